//! Names that the kernel goes by without asking, and is to drop: by the name helper, one after the other. Answers to those
//! who have changed what such a name means wait for it.
//!
//! Whoever holds a directory's lock in the kernel never waits here, as the helper may need that lock.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex};

use super::Adapter;
use crate::engine::{Engine, path_now};
use crate::namespace::{DropNames, DroppedName};
use crate::sys::failpoint;
use crate::sys::name_helper::NameHelper;
use crate::types::{Dentry, NodeId};

/// After that long answers are given all the same: nobody hangs because the helper does.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a name is looked for that may just be moving.
const TRIES: u32 = 5;

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
}

#[derive(Default)]
struct DropQueue {
    /// The first is what the name helper is looking for.
    names: VecDeque<DroppedName>,
    /// Answers that wait until so many have been dropped.
    parked: Vec<(u64, ParkedReply)>,
}

impl std::fmt::Debug for DropQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DropQueue")
            .field("names", &self.names)
            .finish()
    }
}

impl Adapter {
    /// Of an engine whose names are dropped so.
    pub fn new(engine: Arc<Engine>, names: Arc<NameDropper>) -> Adapter {
        let passing = Arc::default();
        Adapter {
            engine,
            passing,
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
        let helper = NameHelper::start(mountpoint)?;
        self.helper.store(helper.pid(), Ordering::Relaxed);
        let (dropper, engine) = (self.clone(), Arc::downgrade(engine));
        std::thread::Builder::new()
            .name("names".into())
            .spawn(move || dropper.keep_dropping(&engine, helper, &notifier))?;
        Ok(())
    }

    /// Gives an answer once all names are dropped that were to be by now.
    pub fn then(&self, answer: impl FnOnce() + Send + 'static) {
        if self.ended.load(Ordering::SeqCst) < self.begun.load(Ordering::SeqCst) {
            let mut queue = self.queue.lock();
            let begun = self.begun.load(Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) < begun {
                return queue.parked.push((begun, Box::new(answer)));
            }
        }
        answer();
    }

    /// Whether a lookup is the name helper's, of the name that it has to find nothing at.
    pub fn is_looked_up(&self, pid: u32, dir: NodeId, name: &OsStr) -> bool {
        if !self.is_helper(pid) {
            return false;
        }
        let queue = self.queue.lock();
        let now = queue.names.front();
        let is_now = now.is_some_and(|n| n.dentry.dir == dir && n.dentry.name == name);
        if is_now {
            self.is_dropped.store(true, Ordering::SeqCst);
        }
        is_now
    }

    /// Whether it is the name helper that asks for the attributes of what it is to find no more.
    pub fn is_asked_for(&self, pid: u32, node: NodeId) -> bool {
        let is_now = |name: &DroppedName| name.node == node;
        self.is_helper(pid) && self.queue.lock().names.front().is_some_and(is_now)
    }

    fn is_helper(&self, pid: u32) -> bool {
        pid != 0 && self.helper.load(Ordering::Relaxed) == pid
    }

    fn keep_dropping(&self, engine: &Weak<Engine>, mut helper: NameHelper, notifier: &Notifier) {
        loop {
            let name = {
                let mut queue = self.queue.lock();
                loop {
                    match queue.names.front() {
                        Some(name) => break name.clone(),
                        None => self.wanted.wait(&mut queue),
                    }
                }
            };
            let walked = self.walk_to(engine, &mut helper, &name);
            if !matches!(walked, Ok(true)) {
                if walked.is_err() && self.helper.swap(0, Ordering::Relaxed) != 0 {
                    log::warn!("the name helper is gone: names of files are looked up each time");
                }
                self.drop_by_force(notifier, &name);
            }
            {
                let mut queue = self.queue.lock();
                if queue
                    .names
                    .front()
                    .is_some_and(|now| now.dentry != name.dentry)
                {
                    // It has moved meanwhile.
                    continue;
                }
                queue.names.pop_front();
                self.ended.fetch_add(1, Ordering::SeqCst);
            }
            self.answer(self.ended.load(Ordering::SeqCst));
        }
    }

    /// Gives whether the kernel has dropped the name.
    fn walk_to(
        &self,
        engine: &Weak<Engine>,
        helper: &mut NameHelper,
        name: &DroppedName,
    ) -> io::Result<bool> {
        failpoint::delay("COMMITFS_DROP_DELAY_MS");
        for _ in 0..TRIES {
            let path = engine
                .upgrade()
                .map(|engine| path_now(&engine, &name.dentry));
            let Some(Some(path)) = path else {
                // Its directory is gone.
                return Ok(true);
            };
            self.is_dropped.store(false, Ordering::SeqCst);
            let found = helper.look(&path, PATIENCE, || {
                log::warn!("{}: the kernel takes long to drop the name", path.display());
                self.answer(u64::MAX);
            })?;
            // Something else is there already, if that is still the way to the name.
            let is_other = || {
                let now = engine
                    .upgrade()
                    .map(|engine| path_now(&engine, &name.dentry));
                found.is_some_and(|id| id != name.node.0) && now == Some(Some(path.clone()))
            };
            if self.is_dropped.load(Ordering::SeqCst) || is_other() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where the name helper can't go: an ordinary user's directory without permissions, a path that is too long, something
    /// mounted over it. It may wait for the directory's lock, so it has a thread of its own; see `sys::name_helper`.
    fn drop_by_force(&self, notifier: &Notifier, name: &DroppedName) {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let (notifier, dropped, told) = (notifier.clone(), name.clone(), done.clone());
        let started = std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || {
                let dir = INodeNo(dropped.dentry.dir.0);
                notifier.inval_entry(dir, &dropped.dentry.name).ok();
                *told.0.lock() = true;
                told.1.notify_one();
            });
        if started.is_ok() {
            let mut is_done = done.0.lock();
            done.1.wait_while_for(&mut is_done, |done| !*done, PATIENCE);
        }
    }

    fn answer(&self, ended: u64) {
        let parked = std::mem::take(&mut self.queue.lock().parked);
        let (ready, waiting): (Vec<_>, Vec<_>) =
            parked.into_iter().partition(|(ticket, _)| *ticket <= ended);
        self.queue.lock().parked.extend(waiting);
        for (_, answer) in ready {
            answer();
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
        queue.names.push_back(name);
        self.wanted.notify_one();
    }

    fn move_name(&self, from: &Dentry, to: &Dentry) -> Vec<NodeId> {
        if self.ended.load(Ordering::SeqCst) == self.begun.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let mut queue = self.queue.lock();
        let moved = queue.names.iter_mut().filter(|name| name.dentry == *from);
        moved
            .map(|name| {
                name.dentry.clone_from(to);
                name.node
            })
            .collect()
    }
}
