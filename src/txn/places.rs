//! Where the files of some paths lie, or would.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::io::Errno;

use crate::journal::Edit;
use crate::store::Store;
use crate::sys::at;
use crate::types::errno_of;

/// Directory and last name of a path below the root; `None` when a directory on the way is gone.
/// Symlinks are never followed: the path was made of directories.
pub(super) fn parent_of(store: &Store, path: &Path) -> Result<Option<(OwnedFd, OsString)>, Errno> {
    let mut dir = store.root.try_clone().map_err(|e| errno_of(&e))?;
    let mut names: Vec<&OsStr> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name),
            _ => return Ok(None),
        }
    }
    let Some((last, dirs)) = names.split_last() else {
        return Ok(None);
    };
    if names[0] == crate::store::STATE_DIR {
        return Ok(None);
    }
    for name in dirs {
        dir = match at::open_dir(&dir, name) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(e) => return Err(e),
        };
    }
    Ok(Some((dir, last.to_os_string())))
}

/// Whether the directories are there that some contents are for.
pub(super) fn have_places(store: &Store, edits: &[Edit]) -> Result<bool, Errno> {
    for path in edits.iter().filter_map(Edit::put_path) {
        if parent_of(store, path)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn open_target(store: &Store, path: &Path) -> Result<Option<File>, Errno> {
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    match at::stat_at(&dir, &name)? {
        Some(stat)
            if rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::RegularFile =>
        {
            let fd = at::open_path(&dir, &name)?;
            at::reopen(&fd, rustix::fs::OFlags::RDONLY).map(Some)
        }
        _ => Ok(None),
    }
}

/// Inode number of what a path leads to, and whether that is a directory.
pub(super) fn found_at(store: &Store, path: &Path) -> Result<Option<(u64, bool)>, Errno> {
    use rustix::fs::FileType;
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    let is_dir = |mode| FileType::from_raw_mode(mode) == FileType::Directory;
    Ok(at::stat_at(&dir, &name)?.map(|stat| (stat.st_ino, is_dir(stat.st_mode))))
}
