//! What every operation means. Knows nothing of FUSE: callers, node numbers and closures that take
//! the answer come in; what the answer is, and when it may be given, is decided here.
//!
//! Every method returns at once. What may block (copies, fsync, guards that read, waits for another
//! transaction) runs on a worker, and the answer is given from there.

mod admin;
mod base;
mod deciding;
mod descriptions;
mod documents;
mod meaning;
mod requests;
mod versions;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use base::directories;
use base::strangers::Strangers;
use base::watchers::Watchers;
use documents::Documents;
use meaning::live_rules::InForce;
use versions::appends::adding::Appends;

use crate::commit::Sequencer;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Policy};
use crate::runtime::{Pool, Reaper};
use crate::store::{RejectedBound, Store};
use crate::sys::{at, failpoint};
use crate::types::{Dentry, NodeId, OpResult, ROOT};

pub use crate::runtime::{
    BOUNDS, Config, Counters, Durability, Histogram, LogTo, NameTotals, Totals, Unmount,
};
pub use admin::status::{Feature, Status};
pub use admin::virtualdir::{Answer, Blocker, ControlCommand, is_virtual};
#[cfg(feature = "testing")]
pub use base::abandon::abandon;
pub use base::advice::ErrorReport;
pub use base::handle::{DirEntry, Listing, WriteRequest};
pub use base::opening::{OpenRequest, Opened, Pass};
pub use base::state::State;
pub use descriptions::letting_go::release;
pub use descriptions::locking::LockRequest;
pub use requests::attrs::{SetAttr, SetTime};
pub use requests::creating::{CreateRequest, Created};
pub use requests::lookup::{is_file, path_now, set_dropper};
pub use requests::removing::unlink;
pub use versions::passing::give_up;

/// Attributes of what doesn't change behind the kernel's back.
const STABLE: Duration = Duration::from_secs(3600);
/// Attributes of a directory. A creation makes the kernel drop them, and one that was answered just before it,
/// and arrives just after, lasts as long as this.
const DIR_TIMES: Duration = Duration::from_secs(1);
/// Attributes of what does.
const VOLATILE: Duration = Duration::ZERO;

/// What the engine tells the kernel of its own accord.
pub trait Notify: Send + Sync {
    /// The kernel shall ask for the node's attributes again.
    fn attributes_changed(&self, node: NodeId);

    /// The kernel shall ask for the node's attributes again; returns when it knows: not for who holds a lock.
    fn attributes_changed_by_now(&self, node: NodeId);
}

/// The engine of one mount.
pub struct Engine {
    pub(crate) store: Store,
    /// Those in force; changed under the state's lock.
    rules: RwLock<InForce>,
    pub(crate) config: Config,
    state: Mutex<State>,
    /// The checkpoint has orders.
    checkpoint_wanted: Condvar,
    /// Numbers of commits, and the journal. Its lock is taken after all others.
    pub(crate) sequencer: Sequencer,
    /// Taken after a content, and before `State`.
    appends: Appends,
    documents: Documents,
    pub(crate) pool: Pool,
    /// Closes files on their way out.
    reaper: Reaper,
    /// What the kernel offers, and is told.
    pub kernel: Kernel,
    watching: Watching,
    watch: Watch,
    turns: Turns,
    pub(crate) rejected_bound: RejectedBound,
    strangers: Strangers,
}

/// What the kernel offers, and is told of its own accord.
#[derive(Default)]
pub struct Kernel {
    notify: OnceLock<Box<dyn Notify>>,
    features: OnceLock<Vec<Feature>>,
    /// Small files are read uncached: the kernel allows that together with mmap.
    uncached: AtomicBool,
    /// Ends the session; the argument says whether to detach a mount that is in use.
    stop: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
}

impl Kernel {
    /// Where changes are told; set once, when the mount stands.
    pub fn set_notify(&self, notify: Box<dyn Notify>) {
        self.notify.set(notify).ok();
    }

    /// Whom changes are told, once the mount stands.
    fn notify(&self) -> Option<&dyn Notify> {
        Some(&**self.notify.get()?)
    }

    /// What it offers and what of that is in use; set once, at the handshake.
    pub fn set_features(&self, features: Vec<Feature>) {
        self.features.set(features).ok();
    }

    /// It allows uncached descriptions to be mapped; set once, at the handshake.
    pub fn set_uncached(&self, allowed: bool) {
        self.uncached.store(allowed, Ordering::Relaxed);
    }

    /// Whether small files are read uncached.
    fn uncached(&self) -> bool {
        self.uncached.load(Ordering::Relaxed)
    }

    /// What to call when an unmount was asked for and nothing stands against it; the argument
    /// says whether to detach a mount that is still in use.
    pub fn set_stop(&self, stop: Box<dyn Fn(bool) + Send + Sync>) {
        self.stop.set(stop).ok();
    }
}

/// How watchers of superseded versions are told of new ones.
struct Watching {
    watchers: OnceLock<Watchers>,
    /// Why they aren't told, if they aren't.
    untold: Mutex<Option<String>>,
}

impl Default for Watching {
    fn default() -> Watching {
        Watching {
            watchers: OnceLock::new(),
            untold: Mutex::new(Some("not mounted yet".to_owned())),
        }
    }
}

impl Watching {
    /// Who watch superseded versions, if they can be told of others.
    fn watchers(&self) -> Option<&Watchers> {
        self.watchers.get()
    }

    /// Whether it is known that nobody polls a version.
    fn nobody_polls(&self) -> bool {
        self.watchers().is_some_and(Watchers::nobody_polls)
    }
}

/// What the watch keeps between its looks.
#[derive(Default)]
struct Watch {
    /// Locks already told of: path, process, kind.
    warned: Mutex<HashSet<(String, u32, String)>>,
    /// Much memory was freed: it is to go back to the system.
    freed: AtomicBool,
}

/// What one thread does at a time; each is held while that is done, with no other lock taken before.
#[derive(Default)]
struct Turns {
    /// A rules file is written.
    rules: Mutex<()>,
    /// Unread errors are written down.
    unread: Mutex<()>,
    /// Saves are compared with what they have replaced.
    comparison: Mutex<()>,
    /// Everything is brought into the backing directory after the last request.
    shutdown: Mutex<()>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("backing", &self.store.path)
            .finish()
    }
}

impl Engine {
    /// Has a worker do what may block.
    pub(crate) fn on_worker(self: &Arc<Self>, job: impl FnOnce(&Arc<Engine>) + Send + 'static) {
        let engine = self.clone();
        self.pool.run(move || job(&engine));
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        failpoint::schedule_point();
        self.state.lock()
    }

    /// The rules for a name.
    pub(crate) fn policy(&self, state: &State, dentry: &Dentry, creation: Creation) -> Policy {
        let path = state
            .nodes
            .path(dentry)
            .unwrap_or_else(|| PathBuf::from(&dentry.name));
        let rules = self.rules.read();
        let policy = rules.rules.decide(&path, creation);
        match &policy.group {
            Some(member)
                if member.group.directory.is_some()
                    && directories::place(self, state, dentry, member).is_none() =>
            {
                rules.rules.decide_alone(&path, creation)
            }
            _ => policy,
        }
    }

    /// A path, relative to the root; what isn't known of it is `?`.
    pub(crate) fn path_of(&self, state: &State, dentry: &Dentry) -> PathBuf {
        let path = state.nodes.last_path(dentry);
        path.unwrap_or_else(|| PathBuf::from("?").join(&dentry.name))
    }

    /// A path, relative to the root, for people.
    pub(crate) fn show(&self, state: &State, dentry: &Dentry) -> String {
        self.path_of(state, dentry).to_string_lossy().into_owned()
    }

    /// How a file is opened to be read for who asks for it with `flags`.
    pub(crate) fn reading(&self, flags: OFlags) -> OFlags {
        match self.config.noatime {
            true => OFlags::RDONLY | OFlags::NOATIME,
            false => OFlags::RDONLY | (flags & OFlags::NOATIME),
        }
    }

    /// Descriptor of a directory's node.
    pub(crate) fn dir_fd(&self, state: &State, dir: NodeId) -> OpResult<Arc<File>> {
        match state.nodes.get(dir) {
            Some(node) if node.kind == NodeKind::Dir => match state.nodes.fd(dir) {
                // A directory that was removed is empty. ESTALE would send its caller round, who
                // may be sent round once more at the path's end.
                Err(Errno::STALE) => Err(Errno::NOENT),
                found => found,
            },
            Some(_) => Err(Errno::NOTDIR),
            None => Err(Errno::STALE),
        }
    }

    /// Drops an aborted transaction's node, or at least what keeps its file alive.
    pub(crate) fn let_go(&self, state: &mut State, id: NodeId) {
        let fd = state.nodes.reap(id);
        self.defer_close(fd);
        let fd = state.nodes.retire(id);
        self.defer_close(fd);
    }

    /// Closes a descriptor where it doesn't hold anybody up.
    pub(crate) fn defer_close(&self, fd: Option<Arc<File>>) {
        if let Some(fd) = fd {
            self.reaper.close(fd);
        }
    }

    /// A name has appeared in a directory, or gone, that the backing directory doesn't have (yet).
    pub(crate) fn touch_dir(&self, state: &State, dir: NodeId) {
        if failpoint::mutant("C8-dir-times") {
            return;
        }
        if let Ok(fd) = state.nodes.fd(dir) {
            // Best effort: only the owner may.
            at::touch(&*fd).ok();
        }
    }

    /// The state directory is not to be reached through the mount.
    pub(crate) fn is_state_dir(dir: NodeId, name: &OsStr) -> bool {
        dir == ROOT && name == crate::store::STATE_DIR
    }

    /// Free and total space and the like of the backing file system.
    pub fn statfs(&self) -> OpResult<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(self.store.root.as_fd())
    }

    fn show_node(&self, state: &State, node: NodeId) -> String {
        match state.nodes.get(node).and_then(|n| n.at.clone()) {
            Some(dentry) => self.show(state, &dentry),
            None => "?".into(),
        }
    }
}
