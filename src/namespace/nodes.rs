//! Nodes: the numbers the kernel and programs know files by.
//!
//! Every committed version, every transaction and every directory has a node. A node holds an
//! O_PATH descriptor of its backing inode, so it means the same file wherever renames move it. Of
//! nodes that the kernel merely remembers, and that are found under their names again, only some
//! hold one: the kernel may remember more files than a process can hold descriptors.
//! The map from backing inode to number is kept for names that were only listed, too: `stat`,
//! `fstat` and `readdir` must agree (C8). A pair leaves the map when its last link goes, before
//! the backing file system can use the inode number again.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::kept::KeptNames;
use super::shown::Ends;
use crate::sys::{at, failpoint};
use crate::types::{Dentry, NodeId, OpResult, ROOT, TxnId, Version};

/// Backing device and inode number.
pub type InodeKey = (u64, u64);

/// What so many dropped nodes leave is kept.
const MUCH: usize = 1024;
/// How many looks at dropped nodes are waited for the last of them.
const PATIENCE: u32 = 40;
/// Nodes looked at, at most, when one more descriptor is to be held than should be.
const HAND: usize = 8;

/// The end of a file that ends where its backing file does.
pub const WHOLE: u64 = u64::MAX;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Dir,
    /// A regular file: a committed version, or a file in direct mode.
    File,
    /// The private node of a transaction.
    Private(TxnId),
    /// A symlink, fifo, socket or device.
    Special,
}

/// What is told of a document whose text is not in its backing file yet.
#[derive(Clone, Copy, Debug)]
pub struct CachedAttributes {
    /// Length of the text in bytes.
    pub len: u64,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i128,
}

/// A node the kernel knows.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Lookups the kernel will give back by FORGET.
    pub lookups: u64,
    /// What it is.
    pub kind: NodeKind,
    /// O_PATH descriptor of the backing inode: see [`Nodes::fd`].
    fd: RefCell<Option<Arc<File>>>,
    /// The descriptor was asked for since the hand last came by: see [`Nodes::give_up_some`].
    wanted: Cell<bool>,
    /// The backing inode.
    pub key: InodeKey,
    /// Name under which it was last found. For directories always true, `None` for the root.
    pub at: Option<Dentry>,
    /// Open descriptions that read this version.
    pub readers: u32,
    /// Open descriptions in direct mode.
    pub direct: u32,
    /// Somebody could, or it has grown: its content is not told by its number.
    pub written_in_place: bool,
    /// See [`Node::end`].
    end: OnceCell<Arc<AtomicU64>>,
    /// See [`Node::whole`].
    whole: OnceCell<Arc<AtomicU64>>,
    /// Length and checksum of the content it was committed with, if known.
    pub sum: Option<Sum>,
    /// A document that is not written out: see ``engine::documents`.
    pub unwritten: Option<Box<CachedAttributes>>,
    /// Its pages may be in the kernel's cache.
    pub cached: bool,
    /// A pending name means it: it stays although the kernel has forgotten it.
    pub pending: bool,
    /// What was added to it is not on the medium yet, or not even complete: it stays, too.
    pub added_to: bool,
    /// Up to this length it is known to be lines of JSON; nothing is known at 0.
    pub json_lines: u64,
    /// Its version number, once known.
    pub version: Option<Version>,
    /// A commit has put another version in its place: gone as by a rewrite, not by an unlink.
    pub superseded: bool,
    /// Its readers hold a lock and read this newer version (C12).
    pub forwarded: Option<Arc<File>>,
    /// The number that programs have seen of this file since they opened it, if not its own.
    pub shown_as: Option<NodeId>,
    /// The last link is gone.
    pub unlinked: bool,
    /// The last name is gone, though the backing file is still among the staged ones.
    pub nameless: bool,
    /// Gone, and its descriptor given up: see [`Nodes::retire`].
    pub dead: bool,
    /// What its attributes were then.
    pub remains: Option<Box<rustix::fs::Stat>>,
    /// Names of it in the backing directory that mean a newer, pending version to programs.
    pub covered: u32,
    /// (as the backing file says, as programs were told before the version was applied): moving
    /// a version to its name must not look like a change.
    pub ctime_shift: Option<Box<CtimeShift>>,
}

/// See [`Node::ctime_shift`].
pub type CtimeShift = ((i64, u64), (i64, u64));

/// Length in bytes and crc32c.
pub type Sum = (u64, u32);

impl Node {
    /// What programs see of it ends here, in bytes: half an append is not shown. [`WHOLE`]: where
    /// the backing file does. Made when it is asked for first: most files are looked at alone.
    pub fn end(&self) -> &Arc<AtomicU64> {
        self.end.get_or_init(at_the_end)
    }

    /// Where its file ends, in bytes, whatever programs see of this version: they share it who show the
    /// file at different lengths.
    pub fn whole(&self) -> &Arc<AtomicU64> {
        self.whole.get_or_init(at_the_end)
    }

    /// It is a version of the file of which this is the end.
    pub fn share_whole(&mut self, whole: Arc<AtomicU64>) {
        self.whole = OnceCell::from(whole);
    }

    /// What an append moves.
    pub fn ends(&self) -> Ends {
        Ends {
            shown: self.end().clone(),
            whole: self.whole().clone(),
        }
    }

    /// Whether it grows, or has grown, in place.
    pub fn grows(&self) -> bool {
        let end = self.end.get();
        end.is_some_and(|end| end.load(Ordering::Acquire) != WHOLE)
    }

    /// Whether the name under which it was found leads to it as long as nobody takes it away, and
    /// nobody has it open.
    fn is_only_remembered(&self) -> bool {
        self.id != ROOT
            && !matches!(self.kind, NodeKind::Private(_))
            && self.readers == 0
            && self.direct == 0
            && self.covered == 0
            && self.forwarded.is_none()
            && !self.pending
            && !self.superseded
            && !self.unlinked
    }
}

/// A table that is nearly empty gets smaller.
fn fit<K: Eq + std::hash::Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() / 4 > table.len() {
        table.shrink_to_fit();
    }
}

fn at_the_end() -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(WHOLE))
}

/// Whether somebody besides the node knows this end of it.
fn is_shared(end: &OnceCell<Arc<AtomicU64>>) -> bool {
    end.get().is_some_and(|end| Arc::strong_count(end) > 1)
}

/// What a node that was dropped means to those who know its number.
#[derive(Debug, Default)]
pub(super) struct Past {
    written_in_place: bool,
    version: Option<Version>,
    sum: Option<Sum>,
    pub(super) shown_as: Option<NodeId>,
    /// [`Node::end`], as long as somebody reads up to it.
    end: Weak<AtomicU64>,
}

/// All nodes.
#[derive(Debug)]
pub struct Nodes {
    live: HashMap<NodeId, Box<Node>>,
    by_key: HashMap<InodeKey, NodeId>,
    next: NodeId,
    /// What dropped nodes take up again when they are found again.
    pub(super) past: HashMap<NodeId, Past>,
    /// [`Node::whole`] of dropped nodes from whose files somebody starts.
    watched_ends: HashMap<InodeKey, Weak<AtomicU64>>,
    /// Names that the kernel goes by.
    pub kept_names: KeptNames,
    /// Nodes that hold a descriptor, or did: the next to give it up first.
    held: RefCell<VecDeque<NodeId>>,
    /// How many should hold one.
    most: usize,
    /// Nodes dropped since their memory was given up last.
    dropped: usize,
    /// What `dropped` was at the last look.
    looked: usize,
    /// Looks since there were many.
    looks: u32,
}

impl Nodes {
    /// With the root directory; files get numbers from `first` on. About `most` nodes hold a descriptor, not counting those that
    /// couldn't be found without.
    pub fn new(root: Arc<File>, key: InodeKey, first: NodeId, most: usize) -> Nodes {
        let mut nodes = Nodes {
            live: HashMap::new(),
            by_key: HashMap::new(),
            next: first,
            past: HashMap::new(),
            watched_ends: HashMap::new(),
            kept_names: KeptNames::default(),
            held: RefCell::default(),
            most,
            dropped: 0,
            looked: 0,
            looks: 0,
        };
        nodes.insert(ROOT, NodeKind::Dir, root, key, None);
        nodes
    }

    fn insert(
        &mut self,
        id: NodeId,
        kind: NodeKind,
        fd: Arc<File>,
        key: InodeKey,
        at: Option<Dentry>,
    ) {
        self.by_key.insert(key, id);
        self.held.get_mut().push_back(id);
        let watched = self.watched_ends.remove(&key).and_then(|w| w.upgrade());
        let past = self.past.remove(&id).unwrap_or_default();
        let end = past.end.upgrade();
        self.live.insert(
            id,
            Box::new(Node {
                id,
                lookups: 0,
                kind,
                fd: RefCell::new(Some(fd)),
                wanted: Cell::new(true),
                key,
                at,
                readers: 0,
                direct: 0,
                written_in_place: past.written_in_place,
                end: end.map_or_else(OnceCell::new, OnceCell::from),
                whole: watched.map_or_else(OnceCell::new, OnceCell::from),
                sum: past.sum,
                unwritten: None,
                cached: false,
                pending: false,
                added_to: false,
                json_lines: 0,
                version: past.version,
                superseded: false,
                forwarded: None,
                shown_as: past.shown_as.filter(|_| !failpoint::mutant("C8-shown")),
                unlinked: false,
                nameless: false,
                dead: false,
                remains: None,
                covered: 0,
                ctime_shift: None,
            }),
        );
    }

    /// The node of a number.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.live.get(&id).map(|node| &**node)
    }

    /// Length and checksum of a version, as far as they are known and still true.
    pub fn sum(&self, id: NodeId) -> Option<Sum> {
        let node = self.get(id)?;
        let is_whole = !node.written_in_place && !node.grows() && node.unwritten.is_none();
        node.sum.filter(|_| is_whole)
    }

    /// Whether two versions have the same content, as far as is known.
    pub fn is_same(&self, one: NodeId, other: NodeId) -> bool {
        one == other
            || self
                .sum(one)
                .is_some_and(|sum| self.sum(other) == Some(sum))
    }

    /// The node of a number.
    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.live.get_mut(&id).map(|node| &mut **node)
    }

    /// O_PATH descriptor of a node's backing inode; one that was given up is opened again where
    /// the node was found. ESTALE: the file is gone.
    pub fn fd(&self, id: NodeId) -> OpResult<Arc<File>> {
        let node = self.get(id).filter(|n| !n.dead);
        let node = node.ok_or(Errno::STALE)?;
        if node.fd.borrow().is_none() {
            self.give_up_some();
        }
        self.find(node)
    }

    fn find(&self, node: &Node) -> OpResult<Arc<File>> {
        node.wanted.set(true);
        if let Some(fd) = &*node.fd.borrow() {
            return Ok(fd.clone());
        }
        let dentry = node.at.as_ref().ok_or(Errno::STALE)?;
        let dir = self.live.get(&dentry.dir).ok_or(Errno::STALE)?;
        let found = at::open_path(&*self.find(dir)?, &dentry.name);
        let fd = found.map_err(|e| if e == Errno::NOENT { Errno::STALE } else { e })?;
        let stat = at::stat(&fd)?;
        if (stat.st_dev, stat.st_ino) != node.key {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(File::from(fd));
        *node.fd.borrow_mut() = Some(fd.clone());
        self.held.borrow_mut().push_back(node.id);
        Ok(fd)
    }

    /// Has a few nodes that weren't asked for lately give up their descriptors, while too many
    /// hold one.
    fn give_up_some(&self) {
        for _ in 0..HAND {
            let mut held = self.held.borrow_mut();
            if held.len() <= self.most {
                return;
            }
            let Some(id) = held.pop_front() else {
                return;
            };
            drop(held);
            let Some(node) = self.live.get(&id).filter(|n| n.fd.borrow().is_some()) else {
                continue;
            };
            if node.wanted.take() || !self.could_be_found_again(node) {
                self.held.borrow_mut().push_back(id);
                continue;
            }
            node.fd.take();
        }
    }

    fn is_where_it_was_found(&self, node: &Node) -> bool {
        let Some(dentry) = node.at.as_ref() else {
            return false;
        };
        let dir = self.live.get(&dentry.dir);
        let dir = dir.and_then(|dir| self.find(dir).ok());
        let there = dir.and_then(|dir| at::stat_at(&*dir, &dentry.name).ok().flatten());
        there.is_some_and(|stat| (stat.st_dev, stat.st_ino) == node.key)
    }

    fn could_be_found_again(&self, node: &Node) -> bool {
        node.is_only_remembered() && self.is_where_it_was_found(node)
    }

    /// Number for a backing inode, drawn if it has none yet.
    pub fn number(&mut self, key: InodeKey) -> NodeId {
        let next = &mut self.next;
        *self.by_key.entry(key).or_insert_with(|| {
            *next = next.next();
            *next
        })
    }

    /// Number of a backing inode that already has one.
    pub fn known(&self, key: InodeKey) -> Option<NodeId> {
        self.by_key.get(&key).copied()
    }

    /// Every number that means something, or can come to mean it again.
    pub fn numbers(&self) -> HashSet<NodeId> {
        let known = self.by_key.values().copied();
        known.chain(self.live.keys().copied()).collect()
    }

    /// The node of a backing inode, if it is live and holds its descriptor. `at` is where it was just found.
    pub fn found_again(&mut self, key: InodeKey, at: &Dentry) -> Option<NodeId> {
        let id = self.known(key)?;
        let node = self.live.get_mut(&id)?;
        node.fd.get_mut().as_ref()?;
        node.wanted.set(true);
        if node.at.as_ref() != Some(at) && !self.goes_by_other_name(id) {
            self.live.get_mut(&id)?.at = Some(at.clone());
        }
        Some(id)
    }

    /// Whether the kernel may still come by the name where a file was found first, without a lookup: it has got others since.
    fn goes_by_other_name(&self, id: NodeId) -> bool {
        let node = self.live.get(&id).filter(|_| self.kept_names.is_paused(id));
        let node = node.filter(|n| n.kind == NodeKind::File && n.covered == 0 && !n.superseded);
        let holds = |node: &Node| node.fd.borrow().is_some() && self.is_where_it_was_found(node);
        node.is_some_and(|node| holds(node))
    }

    /// The node of a backing inode, made if it isn't live. `at` is where it was just found.
    pub fn adopt(
        &mut self,
        kind: NodeKind,
        fd: impl Into<File>,
        key: InodeKey,
        at: Dentry,
    ) -> &mut Node {
        let id = self.number(key);
        self.give_up_some();
        let stays = self.goes_by_other_name(id);
        if !self.live.contains_key(&id) {
            self.insert(id, kind, Arc::new(fd.into()), key, Some(at));
        } else if let Some(node) = self.live.get_mut(&id) {
            if !stays {
                node.at = Some(at);
            }
            node.wanted.set(true);
            if node.fd.get_mut().is_none() {
                *node.fd.get_mut() = Some(Arc::new(fd.into()));
                self.held.get_mut().push_back(id);
            }
        }
        self.live.get_mut(&id).expect("just made")
    }

    /// A node of its own number for a backing inode nobody has seen yet.
    pub fn create(&mut self, kind: NodeKind, fd: Arc<File>, key: InodeKey, at: Dentry) -> NodeId {
        self.give_up_some();
        self.next = self.next.next();
        let id = self.next;
        self.insert(id, kind, fd, key, Some(at));
        id
    }

    /// Gives a node another backing inode (its transaction goes on in a copy, C11).
    pub fn move_to(&mut self, id: NodeId, fd: Arc<File>, key: InodeKey) {
        if let Some(node) = self.live.get_mut(&id) {
            if self.by_key.get(&node.key) == Some(&id) {
                self.by_key.remove(&node.key);
            }
            node.key = key;
            *node.fd.get_mut() = Some(fd);
            self.by_key.insert(key, id);
        }
    }

    /// A version is in place: its node has gone by the descriptor that it was written through, which would keep others
    /// from executing it in the backing directory. Where there is no other one, it goes on so.
    pub fn go_by(&mut self, id: NodeId, path: Result<OwnedFd, Errno>) {
        let fd = self.live.get_mut(&id).map(|node| node.fd.get_mut());
        if let (Some(Some(fd)), Ok(path)) = (fd, path) {
            *fd = Arc::new(path.into());
        }
    }

    /// The kernel gives back `count` lookups; a node without any is dropped. Gives the
    /// descriptor of a dropped node whose last link is gone: closing it may free a large file.
    pub fn forget(&mut self, id: NodeId, count: u64) -> Option<Arc<File>> {
        let node = self.live.get_mut(&id)?;
        node.lookups = node.lookups.saturating_sub(count);
        self.reap(id)
    }

    /// Drops the node if neither the kernel nor an open description needs it.
    pub fn reap(&mut self, id: NodeId) -> Option<Arc<File>> {
        let node = self.live.get(&id)?;
        // Names that are pending or hidden are known by their directory's node, and paths lead
        // over it, whether the kernel remembers it or not: see `reap_directories`.
        if (node.kind == NodeKind::Dir && !node.unlinked)
            || node.lookups > 0
            || node.readers > 0
            || node.direct > 0
            || node.pending
            || node.added_to
            || node.covered > 0
            || matches!(node.kind, NodeKind::Private(_))
        {
            return None;
        }
        let node = self.live.remove(&id)?;
        self.kept_names.forget(id);
        self.dropped += 1;
        if node.unlinked {
            if self.by_key.get(&node.key) == Some(&id) {
                self.by_key.remove(&node.key);
            }
            return node.fd.into_inner();
        }
        let past = Past {
            written_in_place: node.written_in_place || node.grows(),
            version: node.version,
            sum: node.sum,
            shown_as: node.shown_as,
            end: node.end.get().map(Arc::downgrade).unwrap_or_default(),
        };
        let is_read = is_shared(&node.end);
        // Of several versions in one file, the newest alone is found there again.
        let is_found = self.by_key.get(&node.key) == Some(&id);
        if is_found && (past.written_in_place || past.version.is_some() || is_read) {
            self.past.insert(id, past);
        }
        if is_shared(&node.whole) {
            // Who starts from this version must know where it ends, and not miss what is added.
            self.watched_ends.retain(|_, end| end.strong_count() > 0);
            let end = Arc::downgrade(node.whole());
            self.watched_ends.insert(node.key, end);
        }
        None
    }

    /// Drops the directories that the kernel has forgotten, but for those on the way to a name where
    /// a file was found, or that is among `names`. Only when no name is pending and no transaction
    /// open: their paths lead over them, too.
    pub fn reap_directories<'a>(&mut self, names: impl Iterator<Item = &'a Dentry>) {
        let is_forgotten =
            |node: &Node| node.kind == NodeKind::Dir && node.lookups == 0 && node.id != ROOT;
        if !self.live.values().any(|node| is_forgotten(node)) {
            return;
        }
        let files = self.live.values().filter(|n| n.kind != NodeKind::Dir);
        let files = files.filter(|n| n.lookups > 0 || n.readers > 0 || n.direct > 0);
        let mut ways: Vec<NodeId> = names.map(|dentry| dentry.dir).collect();
        ways.extend(files.filter_map(|n| Some(n.at.as_ref()?.dir)));
        let mut needed = HashSet::new();
        while let Some(dir) = ways.pop() {
            if needed.insert(dir) {
                let up = self.live.get(&dir).and_then(|n| n.at.as_ref());
                ways.extend(up.map(|dentry| dentry.dir));
            }
        }
        let before = self.live.len();
        self.live
            .retain(|id, node| !is_forgotten(node) || needed.contains(id));
        self.dropped += before - self.live.len();
    }

    /// Gives up an aborted transaction's file, which nobody has open, though the kernel still
    /// remembers it (a superseded version may still be opened by who has just looked it up): the
    /// descriptor would keep its blocks from being freed. The node answers ESTALE from then on.
    /// Gives the descriptor to be closed.
    pub fn retire(&mut self, id: NodeId) -> Option<Arc<File>> {
        let node = self.live.get_mut(&id)?;
        let in_use = node.readers > 0 || node.direct > 0 || node.pending;
        if node.kind != NodeKind::File || !node.unlinked || in_use || node.dead {
            return None;
        }
        node.dead = true;
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        let fd = node.fd.take();
        if let Some(mut stat) = fd.as_ref().and_then(|fd| at::stat(&**fd).ok()) {
            stat.st_nlink = 0;
            node.remains = Some(Box::new(stat));
        }
        fd
    }

    /// The last link of a backing inode is gone: its inode number may come back as another file.
    pub fn unlinked(&mut self, key: InodeKey) {
        if let Some(id) = self.by_key.get(&key).copied() {
            match self.live.get_mut(&id) {
                // The node's descriptor keeps the inode number taken.
                Some(node) if node.fd.borrow().is_some() => node.unlinked = true,
                Some(node) => {
                    (node.unlinked, node.dead) = (true, true);
                    self.by_key.remove(&key);
                }
                None => {
                    self.by_key.remove(&key);
                    self.watched_ends.remove(&key);
                    self.past.remove(&id);
                }
            }
        }
    }

    /// Path of a name relative to the root; `None` when a directory on the way is gone.
    pub fn path(&self, dentry: &Dentry) -> Option<std::path::PathBuf> {
        let path = self.last_path(dentry)?;
        let mut dir = dentry.dir;
        while dir != ROOT {
            let node = self.live.get(&dir)?;
            if node.unlinked {
                return None;
            }
            dir = node.at.as_ref()?.dir;
        }
        Some(path)
    }

    /// Path of a name relative to the root, also where a directory has been removed meanwhile.
    pub fn last_path(&self, dentry: &Dentry) -> Option<std::path::PathBuf> {
        let mut names = vec![dentry.name.clone()];
        let mut dir = dentry.dir;
        while dir != ROOT {
            let node = self.live.get(&dir)?;
            let at = node.at.as_ref()?;
            names.push(at.name.clone());
            dir = at.dir;
        }
        Some(names.iter().rev().collect())
    }

    /// Gives up the room of dropped nodes, once there were many; whether it has, so that the heap has pages to give back. To be asked
    /// again and again: while more are being dropped those that still stand keep most pages in use.
    pub fn shrink(&mut self) -> bool {
        let goes_on = std::mem::replace(&mut self.looked, self.dropped) != self.dropped;
        if self.dropped < MUCH {
            return false;
        }
        self.looks += 1;
        if goes_on && self.looks < PATIENCE {
            return false;
        }
        (self.dropped, self.looked, self.looks) = (0, 0, 0);
        let live = &self.live;
        self.held.get_mut().retain(|id| live.contains_key(id));
        self.held.get_mut().shrink_to_fit();
        fit(&mut self.live);
        fit(&mut self.past);
        fit(&mut self.by_key);
        true
    }

    /// Number of live nodes.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_versions_in_one_file_the_newest_alone_is_remembered() {
        let root = at::open_path(rustix::fs::CWD, "/".as_ref()).expect("the root");
        let fd = Arc::new(File::from(root));
        let mut nodes = Nodes::new(fd.clone(), (0, 1), ROOT, 100);
        let dentry = |name: &str| Dentry {
            dir: ROOT,
            name: name.into(),
        };
        let key = (0, 2);
        let mut last = None;
        for version in 1..100 {
            let id = nodes.create(NodeKind::File, fd.clone(), key, dentry("f"));
            nodes.get_mut(id).expect("just made").version = Some(Version(version));
            if let Some(before) = last.replace(id) {
                nodes.reap(before);
            }
        }
        let last = last.expect("the last one");
        nodes.reap(last);
        assert_eq!(nodes.len(), 1, "all but the root are dropped");
        assert_eq!(nodes.past.len(), 1, "{:?}", nodes.past);
        let fd = at::open_path(rustix::fs::CWD, "/".as_ref()).expect("the root");
        let found = nodes.adopt(NodeKind::File, fd, key, dentry("f"));
        assert_eq!((found.id, found.version), (last, Some(Version(99))));
        nodes.reap(last);
        nodes.unlinked(key);
        assert!(nodes.past.is_empty());
    }
}
