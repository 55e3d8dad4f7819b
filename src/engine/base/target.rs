//! Whether a name can still take a file.

use rustix::io::Errno;

use crate::engine::{Engine, State};
use crate::sys::at;
use crate::types::{Dentry, OpResult};

/// A file can be put under the name: its directory is there, and it isn't a directory.
pub fn check_target(engine: &Engine, state: &State, dentry: &Dentry) -> OpResult<()> {
    let Some(dir) = state.nodes.get(dentry.dir) else {
        return Err(Errno::NOENT);
    };
    if dir.unlinked {
        return Err(Errno::NOENT);
    }
    if state.pending.get(dentry.dir, &dentry.name).is_some() {
        return Ok(());
    }
    let dir = engine.dir_fd(state, dentry.dir)?;
    match at::stat_at(&*dir, &dentry.name)? {
        Some(stat)
            if rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::Directory =>
        {
            Err(Errno::ISDIR)
        }
        _ => Ok(()),
    }
}
