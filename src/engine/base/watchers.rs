//! Programs that watch a file itself (C8). Their watch stays with the version it was placed on,
//! which nobody touches any more once it is superseded: the watch helper does so for them.
//!
//! The kernel never forgets a node that is watched. So whoever is told of is a superseded version
//! that the kernel still knows a moment later, at this commit of the name and at all later ones;
//! without watchers and readers nothing is told at all.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::engine::{Engine, State};
use crate::store::STATE_DIR;
use crate::sys::watch_helper::{WatchHelper, WatchOrder};
use crate::sys::{at, failpoint};
use crate::types::{Caller, Dentry, NodeId};

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
    pub(in crate::engine) fn nobody_polls(&self) -> bool {
        if failpoint::mutant("C2-polled") {
            return true;
        }
        // By the dispatcher alone: both its closes and the watch helper's lookup.
        self.has_been_polled.load(Ordering::Relaxed)
    }

    /// All polls that were asked for before this are answered.
    pub(in crate::engine) fn note_polled(&self) {
        self.has_been_polled.store(true, Ordering::Relaxed);
    }

    /// Whether the watch helper's lookup is a new one.
    pub(in crate::engine) fn takes_turn(&self, turn: u64) -> bool {
        self.turn.fetch_max(turn, Ordering::Relaxed) < turn
    }
}

impl Engine {
    /// Starts telling watchers; once, when the mount stands. An error says why they aren't told.
    pub fn start_watch_helper(self: &Arc<Self>) -> Result<(), String> {
        let started = try_start_watch_helper(self);
        if let Err(why) = &started {
            *self.watching.untold.lock() = Some(why.clone());
        }
        started
    }
}

fn try_start_watch_helper(engine: &Arc<Engine>) -> Result<(), String> {
    if failpoint::feature_off("supersession_events") || failpoint::mutant("C8-watchers") {
        return Err("switched off".to_owned());
    }
    let directory = engine.config.mountpoint.join(STATE_DIR);
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
    engine.watching.watchers.set(watchers).ok();
    *engine.watching.untold.lock() = None;
    let engine = Arc::downgrade(engine);
    std::thread::Builder::new()
        .name("watchers".into())
        .spawn(move || keep_telling(&engine, watch_helper, &news))
        .map_err(failed)?;
    Ok(())
}

/// A name means another version than `old` now.
pub fn supersede(engine: &Engine, state: &mut State, dentry: &Dentry, old: Option<NodeId>) {
    if let Some(old) = old {
        state.nodes.drop_name(old);
    }
    let known = old.filter(|id| state.nodes.get(*id).is_some_and(|n| n.lookups > 0));
    tell(engine, dentry, known);
}

/// The version a name means has grown in place, of which its own watchers hear by themselves.
pub fn grown(engine: &Engine, dentry: &Dentry) {
    tell(engine, dentry, None);
}

fn tell(engine: &Engine, dentry: &Dentry, old: Option<NodeId>) {
    let Some(watchers) = engine.watching.watchers() else {
        return;
    };
    if (old.is_some() || watchers.lingering.load(Ordering::Relaxed) > 0)
        && watchers.watch_helper.load(Ordering::Relaxed) != 0
    {
        let news = News::Changed(dentry.clone(), old);
        watchers.news.send(news).ok();
    }
}

fn kernel_knows(engine: &Engine, id: NodeId) -> bool {
    engine.lock().nodes.get(id).is_some_and(|n| n.lookups > 0)
}

fn how_to_tell(engine: &Engine, id: NodeId) -> Option<WatchOrder> {
    let fd = engine.lock().nodes.fd(id).ok()?;
    match at::stat(&*fd).ok()?.st_mode & 0o111 {
        0 => Some(WatchOrder::Rewritten),
        _ => Some(WatchOrder::Attributes),
    }
}

fn watch_helper_gone(engine: &Engine) {
    log::warn!(
        "the watch helper is gone: programs that watch single files miss commits from now on"
    );
    *engine.watching.untold.lock() = Some("the watch helper is gone".to_owned());
    if let Some(watchers) = engine.watching.watchers() {
        watchers.watch_helper.store(0, Ordering::Relaxed);
    }
}

/// Whether the watch helper asks: what it does to a version is to be seen by its watchers only.
pub fn is_watch_helper(engine: &Engine, caller: Caller) -> bool {
    engine
        .watching
        .watchers()
        .is_some_and(|w| caller.tid != 0 && w.watch_helper.load(Ordering::Relaxed) == caller.tid)
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
                News::Poll => return watch_helper_gone(&engine),
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
            versions.retain(|id| kernel_knows(&engine, *id));
            versions.drain(..versions.len().saturating_sub(MOST));
            !versions.is_empty()
        });
        if let Some(watchers) = engine.watching.watchers() {
            watchers.lingering.store(lingering.len(), Ordering::Relaxed);
        }
        if engine.lock().unmount.is_under_way() {
            // To be told with what comes next, should the unmount not come about.
            continue;
        }
        for id in touched.iter().filter_map(|s| lingering.get(s)).flatten() {
            if let Some(how) = how_to_tell(&engine, *id)
                && watch_helper.tell(id.0, how).is_err()
            {
                return watch_helper_gone(&engine);
            }
        }
        touched.clear();
    }
}
