//! Content that the kernel writes by itself (passthrough). No write is told, so whether there were any is seen in the file.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::sys::at;
use crate::types::{OpResult, mtime_ns};

/// A file that the kernel writes by itself, and what was seen of it.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) file: Arc<File>,
    /// Length in bytes.
    len: AtomicI64,
    /// When it was written last, in nanoseconds since the epoch.
    mtime_ns: AtomicI64,
}

impl Passed {
    pub(super) fn of(file: Arc<File>) -> OpResult<Passed> {
        let passed = Passed {
            file,
            len: AtomicI64::new(0),
            mtime_ns: AtomicI64::new(0),
        };
        let (len, mtime_ns) = passed.now()?;
        passed.note(len, mtime_ns);
        Ok(passed)
    }

    pub(super) fn now(&self) -> OpResult<(i64, i64)> {
        let stat = at::stat(&*self.file)?;
        let mtime_ns = i64::try_from(mtime_ns(&stat)).unwrap_or(i64::MAX);
        Ok((stat.st_size, mtime_ns))
    }

    pub(super) fn note(&self, len: i64, mtime_ns: i64) {
        self.len.store(len, Ordering::Relaxed);
        self.mtime_ns.store(mtime_ns, Ordering::Relaxed);
    }

    pub(super) fn seen(&self) -> (i64, i64) {
        let mtime_ns = self.mtime_ns.load(Ordering::Relaxed);
        (self.len.load(Ordering::Relaxed), mtime_ns)
    }

    /// Whether it was written since.
    pub(super) fn is_written(&self) -> bool {
        self.now() != Ok(self.seen())
    }
}
