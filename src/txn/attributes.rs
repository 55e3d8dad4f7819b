//! What a version takes over from the one it replaces (C8).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use crate::sys::at;

/// Attributes below this are ours: not stored by programs, never listed, never copied along.
pub const OURS: &[u8] = b"user.commitfs.";

/// Gives a file the extended attributes of another, ACLs included.
pub fn copy_xattrs(from: impl AsFd, file: &File) -> Result<(), Errno> {
    for name in at::list_xattrs(&from)? {
        // A write clears file capabilities.
        if name.starts_with(OURS) || name == b"security.capability" {
            continue;
        }
        let name = OsStr::from_bytes(&name);
        if let Some(value) = at::get_xattr(&from, name)? {
            match at::set_xattr(file, name, &value, 0) {
                // Labels that a security module alone may set come by its own rules.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Gives a file the owner, extended attributes and mode of another, as far as this process may.
pub fn copy_attributes(from: impl AsFd, file: &File) -> Result<(), Errno> {
    let (stat, own) = (at::stat(&from)?, at::stat(file)?);
    if (own.st_uid, own.st_gid) != (stat.st_uid, stat.st_gid) {
        let gid = Some(Gid::from_raw(stat.st_gid));
        match rustix::fs::fchown(file, Some(Uid::from_raw(stat.st_uid)), gid) {
            // An ordinary user may give a file to the groups it is in.
            Err(Errno::PERM) => drop(rustix::fs::fchown(file, None, gid)),
            other => other?,
        }
    }
    copy_xattrs(from, file)?;
    // Last: a change of the owner clears set-id bits, an ACL has a part in the mode.
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))
}
