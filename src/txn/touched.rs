//! Directories that recovery has moved something into: each is synced once, and few are open at a time.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys::{at, failpoint};

/// See the module.
#[derive(Default)]
pub(super) struct Touched(BTreeMap<PathBuf, OwnedFd>);

impl Touched {
    /// Something was moved to this path, in this directory.
    pub(super) fn add(&mut self, path: &Path, dir: OwnedFd) -> Result<(), Errno> {
        const AT_ONCE: usize = 64;
        let parent = path.parent().unwrap_or(path).to_owned();
        self.0.insert(parent, dir);
        match self.0.len() > AT_ONCE {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// All of them are on the medium.
    pub(super) fn sync(&mut self) -> Result<(), Errno> {
        for (_, dir) in std::mem::take(&mut self.0) {
            failpoint::sync("C19-sync-recovered-dir", || at::sync_dir(dir.as_fd()))?;
        }
        Ok(())
    }
}
