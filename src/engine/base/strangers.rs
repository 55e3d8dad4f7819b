//! Programs outside the daemon's pid namespace (a sidecar without a shared one): they have no number here, so that nobody
//! can tell how they end, nor who is whose parent. That is told once in the log, and by status.
//!
//! Nor can they be sent round to a node of their own, like anybody who comes by a magic link, an O_PATH
//! handle or a bind mount: they empty a file on the node that its readers have open, which the kernel takes
//! for empty then until it has asked for its attributes again. So who reads such a file reads past the kernel's pages.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::engine::Engine;
use crate::sys::failpoint;
use crate::types::{Caller, Dentry};

/// Names that are remembered as emptied under their readers, at most.
const MOST: usize = 1024;

/// What status says of killed-writer detection where such programs write.
const WHY: &str = "for programs outside the daemon's pid namespace, which have opened files: share that namespace with them";

/// See the module.
#[derive(Debug, Default)]
pub struct Strangers {
    /// Whether such programs have opened files for writing.
    met: AtomicBool,
    /// Names that somebody has emptied without a lookup.
    emptied: Mutex<HashSet<Dentry>>,
}

impl Strangers {
    /// A name is emptied on the node that its readers have open.
    pub(in crate::engine) fn note_emptied(&self, dentry: &Dentry) {
        let mut emptied = self.emptied.lock();
        if emptied.len() >= MOST {
            emptied.clear();
        }
        emptied.insert(dentry.clone());
    }

    /// Whether a file that is opened to be read may be emptied under its reader.
    pub(in crate::engine) fn may_empty(&self, dentry: Option<&Dentry>) -> bool {
        let was_emptied = |dentry| self.emptied.lock().contains(dentry);
        (self.met.load(Ordering::Relaxed) || dentry.is_some_and(was_emptied))
            && !failpoint::mutant("C1-emptied")
    }

    /// What there is to say of them, if there were any.
    pub(in crate::engine) fn why(&self) -> Option<String> {
        self.met.load(Ordering::Relaxed).then(|| WHY.to_owned())
    }
}

/// Takes note of who opens a file.
pub fn meet(engine: &Engine, caller: Caller, flags: OFlags) {
    let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
    if caller.tid != 0 || reads || engine.strangers.met.swap(true, Ordering::Relaxed) {
        return;
    }
    log::warn!("killed-writer detection: off {WHY}");
}
