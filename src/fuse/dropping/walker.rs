//! The thread that tells the name helper where to look, and starts another one when that doesn't answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{io, mem};

use fuser::{INodeNo, Notifier};

use super::{NameDropper, PATIENCE, QueuedName};
use crate::engine::{Engine, path_now};
use crate::namespace::DroppedName;
use crate::sys::name_helper::{Look, NameHelper};
use crate::sys::{failpoint, proc};

/// How often a name is looked for that may just be moving.
const TRIES: u32 = 5;
/// After that long a name helper is given up. What it has left is still done before anybody is answered who waits for it.
const ENOUGH: Duration = Duration::from_secs(1);
/// So often it is looked at what the name helper waits for. A request that the kernel has been answered is over by then.
const SLICE: Duration = Duration::from_millis(10);
/// Another name helper is started that long after one was given up; twice that after the next, and so on up to a minute.
const RESTART: Duration = Duration::from_secs(1);
const SLOWEST_RESTART: Duration = Duration::from_secs(60);
/// With so many that wait for something in the kernel no more are started.
const MOST_STUCK: usize = 8;

pub(super) struct Walker {
    names: Arc<NameDropper>,
    engine: Weak<Engine>,
    notifier: Notifier,
    mountpoint: PathBuf,
    helper: Option<NameHelper>,
    /// The device of this mount, as far as a name helper has been there.
    device: Option<u64>,
    /// They don't answer, and have not ended yet.
    given_up: Vec<NameHelper>,
    /// When another one is started, and how long after the one before.
    restart: Instant,
    pause: Duration,
    /// Threads that wait in the kernel.
    forcing: Arc<AtomicUsize>,
}

impl Walker {
    pub(super) fn start(
        names: Arc<NameDropper>,
        engine: &Arc<Engine>,
        notifier: Notifier,
        mountpoint: &Path,
    ) -> io::Result<Walker> {
        let mut walker = Walker {
            names,
            engine: Arc::downgrade(engine),
            notifier,
            mountpoint: mountpoint.to_owned(),
            helper: None,
            device: None,
            given_up: Vec::new(),
            restart: Instant::now(),
            pause: RESTART,
            forcing: Arc::default(),
        };
        walker.start_helper()?;
        Ok(walker)
    }

    pub(super) fn keep_dropping(mut self) {
        while let Some(name) = self.next() {
            failpoint::delay("COMMITFS_DROP_DELAY_MS");
            if !self.walk_to(&name) {
                self.drop_by_force(&name.name);
            }
            let ended = {
                let mut queue = self.names.queue.lock();
                let now = queue.names.front().map(|now| &now.name.dentry);
                if now.is_some_and(|now| *now != name.name.dentry) {
                    // It has moved meanwhile.
                    continue;
                }
                queue.names.pop_front();
                self.names.ended.fetch_add(1, Ordering::SeqCst) + 1
            };
            self.names.answer(ended);
        }
    }

    /// The next name that is to be dropped, once there is one; `None`: there will be none.
    fn next(&mut self) -> Option<QueuedName> {
        loop {
            self.given_up.retain_mut(|helper| !helper.has_ended());
            if self.helper.is_none()
                && self.restart <= Instant::now()
                && self.given_up.len() < MOST_STUCK
            {
                self.engine.upgrade()?;
                if self.start_helper().is_err() {
                    self.restart_later();
                }
            }
            let names = self.names.clone();
            let mut queue = names.queue.lock();
            if let Some(name) = queue.names.front() {
                return Some(name.clone());
            }
            match self.helper.is_some() && self.given_up.is_empty() {
                true => names.wanted.wait(&mut queue),
                false => drop(names.wanted.wait_for(&mut queue, RESTART)),
            }
        }
    }

    fn start_helper(&mut self) -> io::Result<()> {
        let helper = NameHelper::start(&self.mountpoint)?;
        self.names.helper.store(helper.pid(), Ordering::Relaxed);
        self.helper = Some(helper);
        // By the end of it all is well.
        self.restart = Instant::now() + SLOWEST_RESTART;
        Ok(())
    }

    fn restart_later(&mut self) {
        if self.restart + SLOWEST_RESTART <= Instant::now() {
            self.pause = RESTART;
        }
        self.restart = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(SLOWEST_RESTART);
    }

    /// Until there is another one, no names are kept.
    fn give_up(&mut self, why: &io::Error) {
        log::warn!("names of files are looked up each time for a while: the name helper: {why}");
        self.names.helper.store(0, Ordering::Relaxed);
        if let Some(mut helper) = self.helper.take() {
            helper.kill();
            self.given_up.push(helper);
        }
        self.restart_later();
    }

    /// Gives whether the kernel has dropped the name.
    fn walk_to(&mut self, queued: &QueuedName) -> bool {
        let name = &queued.name;
        for _ in 0..TRIES {
            let Some(path) = self.path_to(name) else {
                // Its directory is gone.
                return true;
            };
            if !NameHelper::reaches(&path) {
                return false;
            }
            self.names.is_dropped.store(false, Ordering::SeqCst);
            let found = self.look(&path);
            let is_dropped = self.names.is_dropped.load(Ordering::SeqCst);
            let found = match found {
                Ok(found) => found,
                Err(why) => {
                    if self.helper.is_some() {
                        self.give_up(&why);
                    }
                    return is_dropped;
                }
            };
            if is_dropped {
                self.device = Some(found.device);
                return true;
            }
            // By a request that the kernel has been answered, if that is still the way to the name.
            let is_ours = found.is_no_file && self.device == Some(found.device)
                || failpoint::mutant("C2-kept-elsewhere");
            if is_ours && !queued.has_moved && self.path_to(name).as_ref() == Some(&path) {
                return true;
            }
        }
        false
    }

    fn path_to(&self, name: &DroppedName) -> Option<PathBuf> {
        path_now(&*self.engine.upgrade()?, &name.dentry)
    }

    /// Where somebody may wait for who waits for this, they are answered meanwhile.
    fn look(&mut self, path: &Path) -> io::Result<Look> {
        let names = self.names.clone();
        let helper = self.helper.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let next = names.ended.load(Ordering::SeqCst) + 1;
        let began = Instant::now();
        helper.look(path)?;
        loop {
            if let Some(found) = helper.answer(SLICE)? {
                return Ok(found);
            }
            let is_dropped = names.is_dropped.load(Ordering::SeqCst);
            names.answer(match is_dropped && proc::waits(helper.pid()) {
                true => next,
                false => 0,
            });
            if began.elapsed() >= ENOUGH {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Where the name helper can't go: an ordinary user's directory without permissions, a path that is too long, something
    /// mounted over it, the mount moved. It may wait for the directory's lock, so it has a thread of its own; see `sys::name_helper`.
    fn drop_by_force(&self, name: &DroppedName) {
        while self.forcing.load(Ordering::SeqCst) >= MOST_STUCK {
            std::thread::sleep(SLICE);
            self.names.answer(0);
        }
        let (notifier, dropped, forcing) =
            (self.notifier.clone(), name.clone(), self.forcing.clone());
        let (told, ended) = std::sync::mpsc::channel::<()>();
        forcing.fetch_add(1, Ordering::SeqCst);
        let started = std::thread::Builder::new()
            .name("notify".into())
            .spawn(move || {
                let dir = INodeNo(dropped.dentry.dir.0);
                notifier.inval_entry(dir, &dropped.dentry.name).ok();
                forcing.fetch_sub(1, Ordering::SeqCst);
                mem::drop(told);
            });
        if started.is_err() {
            self.forcing.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let began = Instant::now();
        while ended.recv_timeout(SLICE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            && began.elapsed() < PATIENCE
        {
            self.names.answer(0);
        }
    }
}
