//! Programs that watch a file itself (C8). Their watch stays with the version it was placed on,
//! which nobody touches any more once it is superseded: the watch helper does so for them.
//!
//! The kernel never forgets a node that is watched. So whoever is told of is a superseded version
//! that the kernel still knows a moment later, at this commit of the name and at all later ones;
//! without watchers and readers nothing is told at all.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;

use super::handle::HelperFile;
use super::{Engine, Opened, Pass, State};
use crate::store::STATE_DIR;
use crate::sys::watch_helper::{self, WatchHelper, WatchOrder};
use crate::sys::{at, failpoint};
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult};

/// How long the kernel has to forget a superseded version; commits meanwhile are told as one.
const SETTLE: Duration = Duration::from_millis(10);
/// Superseded versions of one name that are told of: more are hardly watched.
const MOST: usize = 32;

/// What the watch helper is to hear of.
#[derive(Debug)]
enum News {
    /// A name whose content has changed, and the version it meant before if that was another.
    Changed(Dentry, Option<NodeId>),
    /// The kernel is to learn that nothing here can be polled.
    Poll,
}

/// The engine's side of the watch helper.
#[derive(Debug)]
pub(crate) struct Watchers {
    news: Sender<News>,
    /// The watch helper's process; 0 when it is gone.
    watch_helper: AtomicU32,
    /// The watch helper's last lookup: its names are good for one.
    turn: AtomicU64,
    /// Names of which superseded versions are still known to the kernel.
    lingering: AtomicUsize,
    /// The kernel has been told that there is nothing to poll.
    has_been_polled: AtomicBool,
}

impl Watchers {
    /// Whether nobody waits for the answer to a poll of a file on this mount, and nobody will. An `epoll_ctl` that does holds its
    /// epoll's lock meanwhile, which a look at that descriptor (`/proc/PID/fdinfo`) waits for: the thread that would answer must
    /// not be the one that looks. The kernel asks until it is told once that there is nothing to poll; the watch helper has it asked as soon as the mount stands.
    pub(super) fn nobody_polls(&self) -> bool {
        if failpoint::mutant("C2-polled") {
            return true;
        }
        // By the dispatcher alone: both its closes and the watch helper's lookup.
        self.has_been_polled.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Starts telling watchers; once, when the mount stands. An error says why they aren't told.
    pub fn start_watch_helper(self: &Arc<Self>) -> Result<(), String> {
        let started = self.try_start_watch_helper();
        if let Err(why) = &started {
            *self.untold.lock() = Some(why.clone());
        }
        started
    }

    fn try_start_watch_helper(self: &Arc<Self>) -> Result<(), String> {
        if failpoint::feature_off("supersession_events") || failpoint::mutant("C8-watchers") {
            return Err("switched off".to_owned());
        }
        let directory = self.config.mountpoint.join(STATE_DIR);
        let failed = |e: std::io::Error| format!("the watch helper can't be started: {e}");
        let watch_helper = WatchHelper::start(&directory).map_err(failed)?;
        let (sender, news) = channel();
        let watchers = Watchers {
            news: sender,
            watch_helper: AtomicU32::new(watch_helper.pid()),
            turn: AtomicU64::new(0),
            lingering: AtomicUsize::new(0),
            has_been_polled: AtomicBool::new(false),
        };
        // At once: looks at other processes' descriptors don't only come with closes.
        watchers.news.send(News::Poll).ok();
        self.watchers.set(watchers).ok();
        *self.untold.lock() = None;
        let engine = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("watchers".into())
            .spawn(move || keep_telling(&engine, watch_helper, &news))
            .map_err(failed)?;
        Ok(())
    }

    /// A name means another version than `old` now.
    pub(super) fn supersede(&self, state: &mut State, dentry: &Dentry, old: Option<NodeId>) {
        if let Some(old) = old {
            state.nodes.drop_name(old);
        }
        let known = old.filter(|id| state.nodes.get(*id).is_some_and(|n| n.lookups > 0));
        self.tell(dentry, known);
    }

    /// The version a name means has grown in place, of which its own watchers hear by themselves.
    pub(super) fn grown(&self, dentry: &Dentry) {
        self.tell(dentry, None);
    }

    fn tell(&self, dentry: &Dentry, old: Option<NodeId>) {
        let Some(watchers) = self.watchers.get() else {
            return;
        };
        if (old.is_some() || watchers.lingering.load(Ordering::Relaxed) > 0)
            && watchers.watch_helper.load(Ordering::Relaxed) != 0
        {
            let news = News::Changed(dentry.clone(), old);
            watchers.news.send(news).ok();
        }
    }

    fn kernel_knows(&self, id: NodeId) -> bool {
        self.lock().nodes.get(id).is_some_and(|n| n.lookups > 0)
    }

    fn how_to_tell(&self, id: NodeId) -> Option<WatchOrder> {
        let fd = self.lock().nodes.fd(id).ok()?;
        match at::stat(&*fd).ok()?.st_mode & 0o111 {
            0 => Some(WatchOrder::Rewritten),
            _ => Some(WatchOrder::Attributes),
        }
    }

    fn watch_helper_gone(&self) {
        log::warn!(
            "the watch helper is gone: programs that watch single files miss commits from now on"
        );
        *self.untold.lock() = Some("the watch helper is gone".to_owned());
        if let Some(watchers) = self.watchers.get() {
            watchers.watch_helper.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the watch helper asks: what it does to a version is to be seen by its watchers only.
    pub(super) fn is_watch_helper(&self, caller: Caller) -> bool {
        self.watchers.get().is_some_and(|w| {
            caller.tid != 0 && w.watch_helper.load(Ordering::Relaxed) == caller.tid
        })
    }

    /// The version behind one of the watch helper's names; counts as a lookup.
    pub(super) fn watch_helper_lookup(&self, name: &OsStr) -> OpResult<Attr> {
        if name == watch_helper::POLLED {
            // Requests come in order: all that had asked before are answered.
            if let Some(watchers) = self.watchers.get() {
                watchers.has_been_polled.store(true, Ordering::Relaxed);
            }
            return Err(Errno::CANCELED);
        }
        let (id, turn) = watch_helper::parse(name).ok_or(Errno::NOENT)?;
        if self.lock().unmount.is_under_way() {
            // What it still has to tell must not keep the mount busy.
            return Err(Errno::CANCELED);
        }
        let last = self
            .watchers
            .get()
            .map(|w| w.turn.fetch_max(turn, Ordering::Relaxed));
        if last.is_none_or(|last| last >= turn) {
            // Not ENOENT: that would be remembered, too.
            return Err(Errno::CANCELED);
        }
        let id = NodeId(id);
        match self.lock().nodes.get_mut(id) {
            Some(node) if node.lookups > 0 => node.lookups += 1,
            _ => return Err(Errno::NOENT),
        }
        self.attr_after_lookup(id).map(still_linked)
    }

    /// What the watch helper sees of a version, and does not change.
    pub(super) fn watch_helper_attr(&self, id: NodeId) -> OpResult<Attr> {
        self.attr(id).map(still_linked)
    }

    pub(super) fn watch_helper_open(&self) -> Opened {
        Opened {
            handle: self.lock().add_handle(Arc::new(HelperFile)),
            keep_cache: true,
            direct_io: false,
            no_flush: true,
            // It reads nothing, and is told of versions that others read.
            pass: Pass::Beside,
        }
    }
}

/// The kernel fails a link(2) that is on its way when it hears that the version has no link left.
fn still_linked(mut attr: Attr) -> Attr {
    attr.stat.st_nlink = attr.stat.st_nlink.max(1);
    attr
}

fn keep_telling(engine: &Weak<Engine>, mut watch_helper: WatchHelper, news: &Receiver<News>) {
    let mut lingering: HashMap<Dentry, Vec<NodeId>> = HashMap::new();
    let mut touched = HashSet::new();
    while let Ok(first) = news.recv() {
        std::thread::sleep(SETTLE);
        let Some(engine) = engine.upgrade() else {
            return;
        };
        for news in std::iter::once(first).chain(news.try_iter()) {
            let (dentry, old) = match news {
                News::Changed(dentry, old) => (dentry, old),
                News::Poll if watch_helper.have_polled().is_ok() => continue,
                News::Poll => return engine.watch_helper_gone(),
            };
            if let Some(old) = old {
                let versions = lingering.entry(dentry.clone()).or_default();
                if !versions.contains(&old) {
                    versions.push(old);
                }
            }
            touched.insert(dentry);
        }
        lingering.retain(|_, versions| {
            versions.retain(|id| engine.kernel_knows(*id));
            versions.drain(..versions.len().saturating_sub(MOST));
            !versions.is_empty()
        });
        if let Some(watchers) = engine.watchers.get() {
            watchers.lingering.store(lingering.len(), Ordering::Relaxed);
        }
        if engine.lock().unmount.is_under_way() {
            // To be told with what comes next, should the unmount not come about.
            continue;
        }
        for id in touched.iter().filter_map(|s| lingering.get(s)).flatten() {
            if let Some(how) = engine.how_to_tell(*id)
                && watch_helper.tell(id.0, how).is_err()
            {
                return engine.watch_helper_gone();
            }
        }
        touched.clear();
    }
}
