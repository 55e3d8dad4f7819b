//! What a version takes over from the one it replaces (C8).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use crate::sys::{at, failpoint};
use crate::types::{Version, mtime_ns, now_ns, seconds_of};

/// Attributes below this are ours: not stored by programs, never listed, never copied along.
pub const OURS: &[u8] = b"user.commitfs.";

/// The attribute that keeps a file's version number.
pub const VERSION: &str = "user.commitfs.version";
/// Bytes of a mark that stay in the inode of ext4.
const LONGEST_MARK: usize = 44;
const MILLISECOND: i128 = 1_000_000;
/// Nanoseconds between a mark and the ctime: the kernel's clock for files lags behind by a tick.
const CLOCK_STEP: i128 = -20_000_000;
const AT_ONCE: i128 = 250_000_000;

/// Marks a file as this version, as it is now. Best effort: without the mark the numbers begin again
/// after a remount.
pub fn mark_version(file: impl AsFd, version: Version) {
    let marked = at::stat(&file).and_then(|stat| {
        let mark = format!("{version} {}ns", mtime_ns(&stat));
        at::set_xattr(file, VERSION.as_ref(), mark.as_bytes(), 0)
    });
    marked.ok();
}

/// The version that a file was marked as; one more if it was changed since by somebody else (C20).
pub fn marked_version(file: impl AsFd) -> Option<Version> {
    let mark = at::get_xattr(&file, VERSION.as_ref()).ok()??;
    let mark = String::from_utf8(mark).ok()?;
    let mut words = mark.split(' ');
    let version = Version(words.next()?.parse().ok()?);
    let time = words.next()?;
    let stat = at::stat(&file).ok()?;
    let is_same = match time.strip_suffix("ns") {
        Some(ns) => ns == mtime_ns(&stat).to_string(),
        // Marks used to have whole seconds.
        None => time == stat.st_mtime.to_string(),
    };
    Some(if is_same { version } else { version.next() })
}

/// Writes a version's number just before it is brought to its name, which changes its ctime: with what programs were told of that, and when it
/// was marked so. In few bytes: beside the inode there is no room for more, and a block of its own would be too dear.
pub fn mark_applied(file: impl AsFd, version: Version, told: &Stat) {
    let time = mtime_ns(told);
    let ctime = ns(told.st_ctime, told.st_ctime_nsec) - time;
    let now = (i128::from(now_ns()) - time) / MILLISECOND;
    let mark = format!("{version} {time}ns {ctime} {now}");
    if mark.len() > LONGEST_MARK || failpoint::mutant("C8-ctime") {
        return mark_version(file, version);
    }
    at::set_xattr(file, VERSION.as_ref(), mark.as_bytes(), 0).ok();
}

/// The ctime of a version's file, and what programs are to be told of it: what they were told before, if nothing has changed it but
/// that it was brought to its name.
pub fn told_ctime(file: impl AsFd, stat: &Stat) -> Option<((i64, u64), (i64, u64))> {
    let mark = at::get_xattr(&file, VERSION.as_ref()).ok()??;
    let mark = String::from_utf8(mark).ok()?;
    let mut words = mark.split(' ').skip(1);
    let time: i128 = words.next()?.strip_suffix("ns")?.parse().ok()?;
    let mut number = || words.next()?.parse::<i128>().ok();
    let (told, marked) = (number()?, number()?);
    let since = ns(stat.st_ctime, stat.st_ctime_nsec) - (time + marked * MILLISECOND);
    let is_same = time == mtime_ns(stat) && CLOCK_STEP < since && since < AT_ONCE;
    let applied = (stat.st_ctime, stat.st_ctime_nsec);
    is_same.then(|| (applied, seconds_of(time + told)))
}

fn ns(seconds: i64, nanoseconds: u64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

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
