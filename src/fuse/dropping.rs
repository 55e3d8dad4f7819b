//! Names that the kernel goes by without asking, and is to drop: by the name helper, one after the other. Answers to those
//! who have changed what such a name means wait for it.
//!
//! Whoever holds a directory's lock in the kernel never waits here, as the helper may need that lock: neither who changes
//! names, nor who changes a directory's own attributes. Who changes a file's holds that file's lock, and somebody who removes the file may
//! wait for that with the directory's. So who waits is answered when the helper waits for a lock itself, by which time the name is
//! dropped: its first lookup, of a name that it has found, takes none.
//!
//! It isn't over then. A rename that has the name in hand, and its directory's lock, takes what the kernel has kept of it along: so a name
//! stays where a rename finds it until who drops it has had that lock (`aside`).

mod aside;
mod walker;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::Notifier;
use parking_lot::{Condvar, Mutex};

use super::Adapter;
use super::creation::Creations;
use crate::engine::{Engine, is_file};
use crate::namespace::{DropNames, DroppedName};
use crate::types::{Dentry, NodeId};
use aside::AsideNames;
use walker::Walker;

/// After that long answers are given all the same: nobody hangs because the helper does.
const PATIENCE: Duration = Duration::from_secs(2);

type ParkedReply = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Debug, Default)]
pub struct NameDropper {
    queue: Mutex<DropQueue>,
    wanted: Condvar,
    /// Names that were ever to be dropped, and those that have been.
    begun: AtomicU64,
    ended: AtomicU64,
    /// The name helper's process; 0: there is none.
    helper: AtomicU32,
    /// The name that is being dropped was looked up again.
    is_dropped: AtomicBool,
    /// There are names aside.
    any_aside: AtomicBool,
}

#[derive(Debug, Default)]
struct DropQueue {
    /// The first is what the name helper is looking for.
    names: VecDeque<QueuedName>,
    aside: AsideNames,
    parked: Vec<ParkedAnswer>,
}

#[derive(Clone, Debug)]
struct QueuedName {
    name: DroppedName,
    /// It was renamed since: the kernel may hear of that later.
    has_moved: bool,
}

/// An answer that waits until so many names have been dropped, or for so long.
struct ParkedAnswer {
    after: u64,
    until: Instant,
    answer: ParkedReply,
}

impl std::fmt::Debug for ParkedAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParkedAnswer")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Adapter {
    /// Of an engine whose names are dropped so; `device` is the connection to the kernel.
    pub fn new(engine: Arc<Engine>, names: Arc<NameDropper>, device: BorrowedFd<'_>) -> Adapter {
        let passing = Arc::default();
        let creations = Arc::new(Creations::over(device));
        Adapter {
            engine,
            passing,
            creations,
            names,
        }
    }
}

impl NameDropper {
    /// Starts the name helper, and the thread that tells it what to do.
    pub fn start(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        notifier: Notifier,
        mountpoint: &Path,
    ) -> io::Result<()> {
        let walker = Walker::start(self.clone(), engine, notifier, mountpoint)?;
        std::thread::Builder::new()
            .name("names".into())
            .spawn(move || walker.keep_dropping())?;
        Ok(())
    }

    /// Gives an answer once all names are dropped that were to be by now.
    pub fn then(&self, answer: impl FnOnce() + Send + 'static) {
        if self.ended.load(Ordering::SeqCst) < self.begun.load(Ordering::SeqCst) {
            let mut queue = self.queue.lock();
            let begun = self.begun.load(Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) < begun {
                return queue.parked.push(ParkedAnswer {
                    after: begun,
                    until: Instant::now() + PATIENCE,
                    answer: Box::new(answer),
                });
            }
        }
        answer();
    }

    /// Of a change of what a node is: of a directory nobody waits for what others know of names in it.
    pub fn then_of(&self, engine: &Engine, id: NodeId, answer: impl FnOnce() + Send + 'static) {
        match is_file(engine, id) {
            true => self.then(answer),
            false => answer(),
        }
    }

    /// Whether a lookup is the name helper's, of the name that it has to find nothing at.
    pub fn is_looked_up(&self, pid: u32, dir: NodeId, name: &OsStr) -> bool {
        if !self.is_helper(pid) {
            return self.is_aside(pid, |dentry| dentry.dir == dir && dentry.name == name);
        }
        let queue = self.queue.lock();
        let now = queue.names.front().map(|now| &now.name.dentry);
        let is_now = now.is_some_and(|dentry| dentry.dir == dir && dentry.name == name);
        if is_now {
            self.is_dropped.store(true, Ordering::SeqCst);
        }
        is_now
    }

    /// Whether it is the name helper that asks for the attributes of what it is to find no more: it has come to a file, be it that the
    /// kernel hasn't heard yet of a rename by which the name means another.
    pub fn is_asked_for(&self, engine: &Engine, pid: u32, node: NodeId) -> bool {
        let asks = self.is_helper(pid) && !self.queue.lock().names.is_empty();
        (asks || self.is_aside(pid, |_| true)) && is_file(engine, node)
    }

    fn is_idle(&self) -> bool {
        self.ended.load(Ordering::SeqCst) == self.begun.load(Ordering::SeqCst)
            && !self.any_aside.load(Ordering::SeqCst)
    }

    fn is_helper(&self, pid: u32) -> bool {
        pid != 0 && self.helper.load(Ordering::Relaxed) == pid
    }

    /// Answers who waits for so many names, and who has waited too long.
    fn answer(&self, ended: u64) {
        let now = Instant::now();
        let ready = {
            let mut queue = self.queue.lock();
            let parked = std::mem::take(&mut queue.parked);
            let is_ready = |parked: &ParkedAnswer| parked.after <= ended || parked.until <= now;
            let (ready, waiting) = parked.into_iter().partition::<Vec<_>, _>(is_ready);
            queue.parked = waiting;
            ready
        };
        for parked in ready {
            (parked.answer)();
        }
    }
}

impl DropNames for NameDropper {
    fn is_there(&self) -> bool {
        self.helper.load(Ordering::Relaxed) != 0
    }

    fn drop_name(&self, name: DroppedName) {
        let mut queue = self.queue.lock();
        self.begun.fetch_add(1, Ordering::SeqCst);
        let has_moved = false;
        queue.names.push_back(QueuedName { name, has_moved });
        self.wanted.notify_one();
    }

    fn is_dropping(&self, dentry: &Dentry) -> bool {
        if self.is_idle() {
            return false;
        }
        let queue = self.queue.lock();
        let mut names = queue.names.iter().chain(queue.aside.names());
        names.any(|queued| queued.name.dentry == *dentry)
    }

    fn move_name(&self, from: &Dentry, to: &Dentry) -> Vec<NodeId> {
        if self.is_idle() {
            return Vec::new();
        }
        let mut queue = self.queue.lock();
        self.take_back(&mut queue, |aside| aside == from);
        let names = queue.names.iter_mut();
        let moved = names.filter(|queued| queued.name.dentry == *from);
        moved
            .map(|queued| {
                queued.has_moved = true;
                queued.name.dentry.clone_from(to);
                queued.name.node
            })
            .collect()
    }
}
