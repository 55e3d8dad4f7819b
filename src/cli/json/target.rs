//! The file that is meant, where it lies, and how it comes to be there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::mounted;
use super::trouble::Trouble;
use crate::cli::{Failure, control, exit, random};
use crate::sys::{at, mount as sysmount};

/// A file to edit; perhaps there is none yet.
#[derive(Debug)]
pub(super) struct Target {
    /// Absolute, without symbolic links.
    pub real: PathBuf,
    /// On a commitfs mount.
    pub mounted: bool,
}

impl Target {
    /// # Errors
    /// It can't be a document: a directory, a name in a directory that isn't there, a dead mount.
    pub fn of(file: &Path) -> Result<Target, Failure> {
        let bad = |what: &dyn std::fmt::Display| {
            Failure::new(exit::BAD_INPUT, format!("{}: {what}", file.display()))
        };
        let real = match file.canonicalize() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing(file)?,
            Err(e) => return Err(control::unusable(file, &e)),
            Ok(real) => {
                let kind = real.metadata().map_err(|e| bad(&e))?.file_type();
                if !kind.is_file() {
                    let is = if kind.is_dir() {
                        "a directory"
                    } else {
                        "no regular file"
                    };
                    return Err(bad(&format!("it is {is}, not a JSON document")));
                }
                real
            }
        };
        let mounted = control::mount_at(&real).map_err(|e| bad(&e))?.is_some();
        if !mounted && let Some(mount) = mount_over(&real).map_err(|e| bad(&e))? {
            return Err(bad(&format!(
                "it belongs to the mount at {}; edit it there, where it is protected",
                mount.display()
            )));
        }
        Ok(Target { real, mounted })
    }
}

/// Where a name would be that isn't there.
fn missing(file: &Path) -> Result<PathBuf, Failure> {
    let bad = |path: &Path, what: &str| {
        Failure::new(exit::BAD_INPUT, format!("{}: {what}", path.display()))
    };
    // By now, somebody may have created it.
    if file.is_symlink() {
        return Err(bad(file, "a symbolic link that leads nowhere"));
    }
    let Some(name) = file.file_name() else {
        return Err(bad(file, "no name of a file"));
    };
    let dir = match file.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    match dir.canonicalize() {
        Ok(real) => Ok(real.join(name)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(bad(dir, "no such directory; create it first"))
        }
        Err(e) => Err(bad(dir, &e.to_string())),
    }
}

/// The mount that a path of a backing directory belongs to.
fn mount_over(real: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = sysmount::commitfs_mounts()?;
    let over = mounts.into_iter().find(|m| real.starts_with(&m.source));
    Ok(over.map(|m| m.mount_point))
}

/// Creates a file with its content, so that nobody ever sees the name with less. Gives its version,
/// 0 on a plain directory; `None` if the name exists by now.
///
/// # Errors
/// What creating a file can fail with.
pub(super) fn create(file: &Path, text: &[u8], sync: bool) -> Result<Option<u64>, Trouble> {
    let aside = aside(file);
    let created = write_aside(&aside, text, 0o666, sync).and_then(|()| {
        let written = File::open(&aside)?;
        rustix::fs::renameat_with(CWD, &aside, CWD, file, RenameFlags::NOREPLACE)?;
        // By this very file: by its name, it may be a later version.
        Ok(mounted::version_of(&written).unwrap_or(0))
    });
    if created.is_err() {
        std::fs::remove_file(&aside).ok();
    }
    match created {
        Ok(version) => Ok(Some(version)),
        Err(e) if e.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A name beside a file that nobody else uses.
pub(super) fn aside(file: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    // With this a name has at most 255 bytes, whatever the file's.
    let own = file.file_name().unwrap_or_default().to_string_lossy();
    name.push(own.chars().take(50).collect::<String>());
    name.push(format!(".{:016x}.new", random::number()));
    file.with_file_name(name)
}

/// Writes a new file; with `sync`, to the disk.
pub(super) fn write_aside(aside: &Path, text: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(aside)?;
    file.write_all(text)?;
    if sync {
        file.sync_all()?;
    }
    at::close(file.into())
}

/// Gives a new file the owner, the mode and the attributes of the one that it will replace.
pub(super) fn apply_metadata(aside: &Path, like: &File) -> io::Result<()> {
    let (file, old) = (File::open(aside)?, like.metadata()?);
    let new = file.metadata()?;
    if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
        at::chown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    at::chmod(&file, old.mode() & 0o7777)?;
    for name in at::list_xattrs(like)? {
        let name = std::os::unix::ffi::OsStrExt::from_bytes(&name[..]);
        if let Some(value) = at::get_xattr(like, name)? {
            match at::set_xattr(&file, name, &value, 0) {
                // Labels come by the security module's own rules.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::ACCESS) => {}
                other => other?,
            }
        }
    }
    Ok(())
}
