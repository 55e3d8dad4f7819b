//! What is on its way out: aborted contents, and descriptors whose last close may free a large file.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::{OpResult, errno_of};

/// Aborted contents on their way to rejected, and descriptors that may be the last of a file: they
/// take space until they are gone.
#[derive(Debug, Default)]
pub struct DeferredCloses {
    begun: AtomicU64,
    ended: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl DeferredCloses {
    /// One more is.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// One is gone.
    pub fn end(&self) {
        *self.last.lock() = Some(Instant::now());
        self.ended.fetch_add(1, Ordering::AcqRel);
    }

    /// The file system may take a moment to give back what the last one has left.
    pub fn is_recent(&self) -> bool {
        self.last
            .lock()
            .is_some_and(|at| at.elapsed() < Duration::from_millis(150))
    }

    /// How many have been since the mount.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// How many of them are gone.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }
}

/// How long the reaper waits for others after the first.
const GATHERS: Duration = Duration::from_millis(20);
/// It goes on at once when so many wait: each is a descriptor.
const MOST_GATHERED: u64 = 16;

/// A thread that closes what takes long to close: the last descriptor of an unlinked file frees its blocks.
///
/// A save leaves one such descriptor. To wake a thread for each would cost the save more than the close.
#[derive(Debug)]
pub struct Reaper {
    closes: Arc<DeferredCloses>,
    queue: Sender<Arc<File>>,
    thread: Thread,
}

impl Reaper {
    /// With its thread.
    pub fn start() -> OpResult<Reaper> {
        let closes: Arc<DeferredCloses> = Arc::default();
        let told = closes.clone();
        let (queue, deferred) = channel::<Arc<File>>();
        let thread = std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || {
                while let Ok(first) = deferred.recv() {
                    std::thread::park_timeout(GATHERS);
                    for fd in std::iter::once(first).chain(deferred.try_iter()) {
                        drop(fd);
                        told.end();
                    }
                }
            })
            .map_err(|e| errno_of(&e))?;
        let thread = thread.thread().clone();
        Ok(Reaper {
            closes,
            queue,
            thread,
        })
    }

    /// Closes a descriptor within a moment.
    pub fn close(&self, fd: Arc<File>) {
        let closes = &self.closes;
        closes.begin();
        self.queue.send(fd).ok();
        // Others go on closing meanwhile.
        if closes.begun().saturating_sub(closes.ended()) > MOST_GATHERED {
            self.hurry();
        }
    }

    /// What is on its way out.
    pub fn closes(&self) -> &DeferredCloses {
        &self.closes
    }

    /// Somebody waits for the space.
    pub fn hurry(&self) {
        self.thread.unpark();
    }
}
