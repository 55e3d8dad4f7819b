//! Programs outside the daemon's pid namespace (a sidecar without a shared one): they have no number here, so that nobody
//! can tell how they end, nor who is whose parent. That is told once in the log, and by status.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::Engine;
use crate::types::Caller;

/// What status says of killed-writer detection where such programs write.
const WHY: &str = "for programs outside the daemon's pid namespace, which have opened files: share that namespace with them";

/// Whether such programs have opened files for writing.
#[derive(Debug, Default)]
pub(super) struct Strangers(AtomicBool);

impl Strangers {
    /// What there is to say of them, if there were any.
    pub(super) fn why(&self) -> Option<String> {
        self.0.load(Ordering::Relaxed).then(|| WHY.to_owned())
    }
}

impl Engine {
    /// Takes note of who opens a file.
    pub(super) fn meet(&self, caller: Caller, flags: OFlags) {
        let reads = flags & OFlags::RWMODE == OFlags::RDONLY;
        if caller.tid != 0 || reads || self.strangers.0.swap(true, Ordering::Relaxed) {
            return;
        }
        log::warn!("killed-writer detection: off {WHY}");
    }
}
