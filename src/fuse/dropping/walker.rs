//! The thread that tells the name helper where to look, and starts another one when that doesn't answer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{io, mem};

use fuser::{INodeNo, Notifier};

use super::aside::AsideId;
use super::{NameDropper, PATIENCE, QueuedName};
use crate::engine::{Engine, path_now};
use crate::namespace::DroppedName;
use crate::sys::name_helper::{Look, NameHelper};
use crate::sys::{failpoint, proc};

/// How often a name is looked for that may just be moving.
const TRIES: u32 = 5;
/// After that long a name helper isn't waited for any more: it is given up, unless it has had the name dropped and waits for the
/// directory's lock. What it has left is still done before anybody is answered who waits for it.
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
    /// One is being started, since then: what it is executed from may be a disk that doesn't answer.
    starting: Option<(Instant, Receiver<io::Result<NameHelper>>)>,
    /// They wait for a directory's lock; `None`: the name has been renamed meanwhile, and is dropped by others.
    waiting: Vec<(Option<AsideId>, LockWaiter)>,
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

/// Who waits for a directory's lock.
enum LockWaiter {
    Helper(NameHelper),
    Thread(Receiver<()>),
}

/// What has become of a name.
enum Walked {
    Dropped,
    /// It is dropped, unless a rename has it in hand: that holds the lock for which this one waits.
    Waits(LockWaiter),
    /// It couldn't be dropped so.
    Failed,
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
            starting: None,
            waiting: Vec::new(),
            device: None,
            given_up: Vec::new(),
            restart: Instant::now(),
            pause: RESTART,
            forcing: Arc::default(),
        };
        walker.has_started(NameHelper::start(mountpoint)?);
        Ok(walker)
    }

    pub(super) fn keep_dropping(mut self) {
        while let Some(name) = self.next() {
            failpoint::delay("COMMITFS_DROP_DELAY_MS");
            let mut walk = self.walk_to(&name);
            if matches!(walk, Walked::Failed) {
                walk = self.drop_by_force(&name.name);
            }
            let waiting = match walk {
                Walked::Dropped => None,
                Walked::Waits(waiting) => Some(waiting),
                // There is no room for a thread.
                Walked::Failed => {
                    std::thread::sleep(SLICE);
                    self.names.answer(0);
                    continue;
                }
            };
            let (has_moved, aside) = self.pop(&name, waiting.as_ref());
            self.waiting.extend(waiting.map(|waiting| (aside, waiting)));
            self.names.answer(match has_moved {
                true => 0,
                false => self.names.ended.load(Ordering::SeqCst),
            });
        }
    }

    /// The first name of the queue is dropped, as far as anybody waits for that. Not if it has moved meanwhile (`true`).
    fn pop(&self, name: &QueuedName, waiting: Option<&LockWaiter>) -> (bool, Option<AsideId>) {
        let mut queue = self.names.queue.lock();
        let now = queue.names.front().map(|now| &now.name.dentry);
        if now.is_some_and(|now| *now != name.name.dentry) {
            return (true, None);
        }
        let popped = queue.names.pop_front();
        let helper = waiting.map(|waiting| match waiting {
            LockWaiter::Helper(helper) => helper.pid(),
            LockWaiter::Thread(_) => 0,
        });
        let aside = popped
            .zip(helper)
            .map(|(name, helper)| self.names.set_aside(&mut queue, helper, name));
        self.names.ended.fetch_add(1, Ordering::SeqCst);
        (false, aside)
    }

    /// The next name that is to be dropped, once there is one; `None`: there will be none.
    fn next(&mut self) -> Option<QueuedName> {
        loop {
            self.look_after_others();
            if self.helper.is_none()
                && self.starting.is_none()
                && self.restart <= Instant::now()
                && self.stuck() < MOST_STUCK
            {
                self.engine.upgrade()?;
                self.start_helper();
            }
            let is_starting = self.starting.as_ref();
            let is_starting = is_starting.is_some_and(|(since, _)| since.elapsed() < ENOUGH);
            let names = self.names.clone();
            let mut queue = names.queue.lock();
            if let Some(name) = queue.names.front().filter(|_| !is_starting) {
                return Some(name.clone());
            }
            if is_starting {
                drop(queue);
                self.await_start(SLICE);
                names.answer(0);
                continue;
            }
            let is_quiet =
                self.helper.is_some() && self.given_up.is_empty() && self.waiting.is_empty();
            match is_quiet {
                true => names.wanted.wait(&mut queue),
                false => drop(names.wanted.wait_for(&mut queue, RESTART)),
            }
        }
    }

    /// Those that have waited for a lock, or were given up, may have ended.
    fn look_after_others(&mut self) {
        self.await_start(Duration::ZERO);
        for (aside, mut waiting) in mem::take(&mut self.waiting) {
            let is_over = match &mut waiting {
                LockWaiter::Helper(helper) => match helper.answer(Duration::ZERO) {
                    Ok(None) => None,
                    Ok(Some(_)) => Some(true),
                    Err(_) => Some(false),
                },
                LockWaiter::Thread(ended) => match ended.try_recv() {
                    Err(TryRecvError::Empty) => None,
                    Ok(()) | Err(TryRecvError::Disconnected) => Some(true),
                },
            };
            let Some(is_over) = is_over else {
                self.waiting.push((aside, waiting));
                continue;
            };
            if let Some(aside) = aside {
                self.names.settle(aside, is_over);
            }
            // There is another one by now, or will be.
            if let LockWaiter::Helper(mut helper) = waiting {
                helper.kill();
                self.given_up.push(helper);
            }
        }
        self.given_up.retain_mut(|helper| !helper.has_ended());
    }

    /// Name helpers that wait in the kernel.
    fn stuck(&self) -> usize {
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|(_, waiting)| matches!(waiting, LockWaiter::Helper(_)));
        waiting.count() + self.given_up.len()
    }

    fn start_helper(&mut self) {
        let (told, started) = channel();
        let mountpoint = self.mountpoint.clone();
        let start = move || drop(told.send(NameHelper::start(&mountpoint)));
        let thread = std::thread::Builder::new().name("start-names".into());
        match thread.spawn(start) {
            Ok(_) => self.starting = Some((Instant::now(), started)),
            Err(_) => self.restart_later(),
        }
    }

    /// Waits so long for the one that is being started.
    fn await_start(&mut self, patience: Duration) {
        let Some((_, started)) = &self.starting else {
            return;
        };
        let started = started.recv_timeout(patience);
        if let Err(RecvTimeoutError::Timeout) = started {
            return;
        }
        self.starting = None;
        match started {
            Ok(Ok(helper)) => self.has_started(helper),
            _ => self.restart_later(),
        }
    }

    fn has_started(&mut self, helper: NameHelper) {
        self.names.helper.store(helper.pid(), Ordering::Relaxed);
        self.helper = Some(helper);
        // By the end of it all is well.
        self.restart = Instant::now() + SLOWEST_RESTART;
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

    /// Has the name helper look at it.
    fn walk_to(&mut self, queued: &QueuedName) -> Walked {
        let name = &queued.name;
        for _ in 0..TRIES {
            let Some(path) = self.path_to(name) else {
                // Its directory is gone.
                return Walked::Dropped;
            };
            if !NameHelper::reaches(&path) {
                return Walked::Failed;
            }
            self.names.is_dropped.store(false, Ordering::SeqCst);
            let found = match self.look(&path) {
                Ok(Some(found)) => found,
                Ok(None) => return self.leave_waiting(),
                // It may have ended just as it was to drop the name.
                Err(why) => {
                    if self.helper.is_some() {
                        self.give_up(&why);
                    }
                    return Walked::Failed;
                }
            };
            if self.names.is_dropped.load(Ordering::SeqCst) {
                self.device = Some(found.device);
                return Walked::Dropped;
            }
            // By a request that the kernel has been answered, if that is still the way to the name.
            let is_ours = found.is_no_file && self.device == Some(found.device)
                || failpoint::mutant("C2-kept-elsewhere");
            if is_ours && !queued.has_moved && self.path_to(name).as_ref() == Some(&path) {
                return Walked::Dropped;
            }
        }
        Walked::Failed
    }

    /// The name helper waits for a lock, and another one is started right away.
    fn leave_waiting(&mut self) -> Walked {
        self.names.helper.store(0, Ordering::Relaxed);
        self.restart = Instant::now();
        match self.helper.take() {
            Some(helper) => Walked::Waits(LockWaiter::Helper(helper)),
            None => Walked::Failed,
        }
    }

    fn path_to(&self, name: &DroppedName) -> Option<PathBuf> {
        path_now(&*self.engine.upgrade()?, &name.dentry)
    }

    /// Where somebody may wait for who waits for this, they are answered meanwhile. `None`: it has had the name dropped, and waits for
    /// the directory's lock.
    fn look(&mut self, path: &Path) -> io::Result<Option<Look>> {
        let names = self.names.clone();
        let helper = self.helper.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let next = names.ended.load(Ordering::SeqCst) + 1;
        let began = Instant::now();
        helper.look(path)?;
        loop {
            if let Some(found) = helper.answer(SLICE)? {
                return Ok(Some(found));
            }
            let is_dropped = names.is_dropped.load(Ordering::SeqCst);
            let waits = is_dropped && proc::waits(helper.pid());
            names.answer(if waits { next } else { 0 });
            if began.elapsed() >= ENOUGH {
                return match waits {
                    true => Ok(None),
                    false => Err(io::ErrorKind::TimedOut.into()),
                };
            }
        }
    }

    /// Where the name helper can't go: an ordinary user's directory without permissions, a path that is too long, something
    /// mounted over it, the mount moved. It may wait for the directory's lock, so it has a thread of its own; see `sys::name_helper`.
    fn drop_by_force(&self, name: &DroppedName) -> Walked {
        while self.forcing.load(Ordering::SeqCst) >= MOST_STUCK {
            std::thread::sleep(SLICE);
            self.names.answer(0);
        }
        let (notifier, dropped, forcing) =
            (self.notifier.clone(), name.clone(), self.forcing.clone());
        let (told, ended) = channel::<()>();
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
            return Walked::Failed;
        }
        let began = Instant::now();
        while ended.recv_timeout(SLICE) == Err(RecvTimeoutError::Timeout) {
            self.names.answer(0);
            if began.elapsed() >= PATIENCE {
                return Walked::Waits(LockWaiter::Thread(ended));
            }
        }
        Walked::Dropped
    }
}
