//! What the kernel's VFS and FUSE client do between a program and the daemon: entries and nodes with the lookups that they
//! count and the time they are good for, the walk along a path and the second one after an ESTALE, and what each system
//! call sends, in order.
//!
//! Left out: passthrough, the page cache (all data is asked for each time, up to the length that the kernel knows), mappings,
//! permissions (the programs are root's), and the locks of inodes, which two calls at once of these programs don't meet at.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use commitfs::engine::{Notify, Opened};
use commitfs::namespace::{DropNames, DroppedName};
use commitfs::types::{Attr, Caller, Dentry, HandleId, NodeId, OpResult, ROOT};
use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

use super::descriptors::OpenFile;
use super::requests::Connection;

/// What the kernel knows of a node.
struct Inode {
    lookups: u64,
    /// Entries and open files that refer to it.
    references: u64,
    stat: Stat,
    /// Until when that is good.
    until: Instant,
    /// The number that programs see.
    shown: Arc<AtomicU64>,
}

/// A name that was looked up.
#[derive(Clone, Copy)]
struct Entry {
    node: NodeId,
    until: Instant,
}

#[derive(Default)]
struct Caches {
    inodes: HashMap<NodeId, Inode>,
    entries: HashMap<NodeId, HashMap<String, Entry>>,
    /// Lookups to give back, once nothing is held.
    forgotten: Vec<(NodeId, u64)>,
}

/// One mount, as the kernel sees it.
#[derive(Default)]
pub struct Kernel {
    pub daemon: Connection,
    caches: Mutex<Caches>,
    generation: AtomicU64,
    last_owner: AtomicU64,
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

impl Caches {
    /// A reply with a node has come, which counts as a lookup of it.
    fn learn(&mut self, attr: &Attr) {
        let until = Instant::now() + attr.ttl;
        let inode = self.inodes.entry(attr.ino).or_insert_with(|| Inode {
            lookups: 0,
            references: 0,
            stat: attr.stat,
            until,
            shown: Arc::new(AtomicU64::new(attr.ino.0)),
        });
        inode.lookups += 1;
        (inode.stat, inode.until) = (attr.stat, until);
        inode.shown.store(attr.ino.0, Ordering::Relaxed);
    }

    /// Attributes have come; they count as no lookup.
    fn update(&mut self, node: NodeId, attr: &Attr) {
        if let Some(inode) = self.inodes.get_mut(&node) {
            (inode.stat, inode.until) = (attr.stat, Instant::now() + attr.ttl);
            inode.shown.store(attr.ino.0, Ordering::Relaxed);
        }
    }

    fn entry(&self, dir: NodeId, name: &str) -> Option<Entry> {
        self.entries.get(&dir)?.get(name).copied()
    }

    fn refer(&mut self, node: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&node) {
            inode.references += 1;
        }
    }

    /// The last one who lets go of a node makes the kernel forget it.
    fn let_go(&mut self, node: NodeId) {
        let Some(inode) = self.inodes.get_mut(&node) else {
            return;
        };
        inode.references -= 1;
        if inode.references == 0 && node != ROOT {
            let lookups = inode.lookups;
            self.inodes.remove(&node);
            self.forgotten.push((node, lookups));
            for (_, entry) in self.entries.remove(&node).into_iter().flatten() {
                self.let_go(entry.node);
            }
        }
    }

    fn put(&mut self, dir: NodeId, name: &str, entry: Entry) {
        self.refer(entry.node);
        let names = self.entries.entry(dir).or_default();
        if let Some(old) = names.insert(name.to_owned(), entry) {
            self.let_go(old.node);
        }
    }

    fn drop_entry(&mut self, dir: NodeId, name: &str) -> Option<NodeId> {
        let dropped = self.entries.get_mut(&dir)?.remove(name)?;
        self.let_go(dropped.node);
        Some(dropped.node)
    }

    fn expire(&mut self, node: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&node) {
            inode.until = Instant::now();
        }
    }
}

/// Whether every name is asked for again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    First,
    Again,
}

/// Does what a call does along a path: once, and a second time where it is answered ESTALE.
pub fn walk<T>(mut call: impl FnMut(Walk) -> OpResult<T>) -> OpResult<T> {
    match call(Walk::First) {
        Err(Errno::STALE) => call(Walk::Again),
        other => other,
    }
}

/// Where a path ends: a directory, and a name in it unless it is the root.
pub type End<'a> = (NodeId, Option<&'a str>);

impl Kernel {
    /// A daemon serves the mount from now on.
    pub fn begin(&self, engine: Arc<commitfs::engine::Engine>) {
        let root = engine.getattr(nobody(), ROOT, None).expect("a root");
        let mut caches = self.caches.lock();
        *caches = Caches::default();
        caches.learn(&root);
        caches.refer(ROOT);
        caches.expire(ROOT);
        drop(caches);
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.daemon.begin(engine);
    }

    /// Files of a daemon that has gone stay open, and nobody is told of them any more.
    pub fn is_served(&self, file: &OpenFile) -> bool {
        self.generation.load(Ordering::Relaxed) == file.generation
    }

    pub fn new_owner(&self) -> u64 {
        self.last_owner.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends what is to be forgotten.
    fn forget(&self) {
        let forgotten = std::mem::take(&mut self.caches.lock().forgotten);
        for (node, count) in forgotten {
            self.daemon.forget(node, count);
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Caches) -> T) -> T {
        let mut caches = self.caches.lock();
        let result = change(&mut caches);
        let forgets = !caches.forgotten.is_empty();
        drop(caches);
        if forgets {
            self.forget();
        }
        result
    }

    /// What stands under a name. The daemon is asked where what is known has expired, or `anew`.
    pub fn lookup(
        &self,
        by: Caller,
        dir: NodeId,
        name: &str,
        anew: bool,
    ) -> OpResult<Option<NodeId>> {
        let known = self.caches.lock().entry(dir, name);
        if let Some(known) = known {
            if !anew && known.until > Instant::now() {
                return Ok(Some(known.node));
            }
            let found = self.daemon.lookup(by, dir, name);
            match &found {
                Ok(attr) if attr.ino == known.node => {
                    self.found(dir, name, attr);
                    return Ok(Some(attr.ino));
                }
                Ok(attr) => self.daemon.forget(attr.ino, 1),
                Err(Errno::INTR | Errno::NOMEM | Errno::NOTCONN) => return found.map(|_| None),
                Err(_) => {}
            }
            // It is another by now: everybody looks it up anew.
            self.with(|caches| caches.drop_entry(dir, name));
        }
        match self.daemon.lookup(by, dir, name) {
            Ok(attr) => {
                self.found(dir, name, &attr);
                Ok(Some(attr.ino))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// An entry reply has come for a name.
    pub fn found(&self, dir: NodeId, name: &str, attr: &Attr) {
        let entry = Entry {
            node: attr.ino,
            until: Instant::now() + attr.name_ttl,
        };
        self.with(|caches| {
            caches.learn(attr);
            caches.put(dir, name, entry);
        });
    }

    /// A file was created: the reply to that has no time for which the name is good.
    pub fn made(&self, dir: NodeId, name: &str, attr: &Attr) {
        let attr = Attr {
            name_ttl: std::time::Duration::ZERO,
            ..*attr
        };
        self.found(dir, name, &attr);
        self.changed(dir);
    }

    /// What stands under the names of a directory is not what it was.
    pub fn changed(&self, dir: NodeId) {
        self.with(|caches| caches.expire(dir));
    }

    pub fn is_dir(&self, node: NodeId) -> bool {
        let caches = self.caches.lock();
        caches.inodes.get(&node).is_some_and(|i| is_dir(&i.stat))
    }

    /// Looks at permissions, for which attributes are asked for that have expired.
    pub fn permission(&self, by: Caller, node: NodeId) -> OpResult<()> {
        self.attributes(by, node, None).map(drop)
    }

    /// Attributes as programs see them.
    pub fn attributes(
        &self,
        by: Caller,
        node: NodeId,
        handle: Option<HandleId>,
    ) -> OpResult<(Stat, u64)> {
        let known = |caches: &Caches| {
            let inode = caches.inodes.get(&node)?;
            Some((inode.stat, inode.shown.load(Ordering::Relaxed), inode.until))
        };
        if let Some((stat, shown, until)) = known(&self.caches.lock())
            && until > Instant::now()
        {
            return Ok((stat, shown));
        }
        let attr = self.daemon.getattr(by, node, handle)?;
        self.with(|caches| caches.update(node, &attr));
        Ok((attr.stat, attr.ino.0))
    }

    /// An answer to SETATTR has come.
    pub fn update(&self, node: NodeId, attr: &Attr) {
        self.with(|caches| caches.update(node, attr));
    }

    /// Follows a path to its last name.
    pub fn end<'a>(&self, by: Caller, path: &'a str, walk: Walk) -> OpResult<End<'a>> {
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let mut dir = ROOT;
        while let Some(name) = names.next() {
            if !self.is_dir(dir) {
                return Err(Errno::NOTDIR);
            }
            self.permission(by, dir)?;
            if names.peek().is_none() {
                return Ok((dir, Some(name)));
            }
            dir = self
                .lookup(by, dir, name, walk == Walk::Again)?
                .ok_or(Errno::NOENT)?;
        }
        Ok((ROOT, None))
    }

    /// What a path leads to.
    pub fn node(&self, by: Caller, path: &str, walk: Walk) -> OpResult<NodeId> {
        match self.end(by, path, walk)? {
            (root, None) => Ok(root),
            (dir, Some(name)) => self
                .lookup(by, dir, name, walk == Walk::Again)?
                .ok_or(Errno::NOENT),
        }
    }

    /// A call has found a node.
    pub fn refer(&self, node: NodeId) {
        self.with(|caches| caches.refer(node));
    }

    /// And needs it no more.
    pub fn let_go(&self, node: NodeId) {
        self.with(|caches| caches.let_go(node));
    }

    /// A description is open, which keeps its node.
    pub fn open_file(&self, node: NodeId, opened: &Opened, flags: OFlags) -> Arc<OpenFile> {
        let shown = self.with(|caches| {
            caches.refer(node);
            if flags.contains(OFlags::TRUNC) {
                caches.expire(node);
            }
            let inode = caches.inodes.get_mut(&node).expect("it was looked up");
            if flags.contains(OFlags::TRUNC) {
                inode.stat.st_size = 0;
            }
            inode.shown.clone()
        });
        Arc::new(OpenFile {
            generation: self.generation.load(Ordering::Relaxed),
            handle: opened.handle,
            node,
            shown,
            flags,
            direct_io: opened.direct_io,
            no_flush: opened.no_flush,
            position: Mutex::new(0),
            owner: self.new_owner(),
            has_flock: false.into(),
            references: 0.into(),
        })
    }

    /// A description is gone.
    pub fn closed_file(&self, file: &OpenFile) {
        if self.is_served(file) {
            self.with(|caches| caches.let_go(file.node));
        }
    }

    /// The length that the kernel knows.
    pub fn size(&self, node: NodeId) -> u64 {
        let caches = self.caches.lock();
        let inode = caches.inodes.get(&node);
        inode.map_or(0, |inode| u64::try_from(inode.stat.st_size).unwrap_or(0))
    }

    /// So far it was written.
    pub fn wrote(&self, node: NodeId, end: u64) {
        self.with(|caches| {
            caches.expire(node);
            if let Some(inode) = caches.inodes.get_mut(&node) {
                let end = i64::try_from(end).unwrap_or(i64::MAX);
                inode.stat.st_size = inode.stat.st_size.max(end);
            }
        });
    }

    /// A name is gone, and its node has one less.
    pub fn removed(&self, dir: NodeId, name: &str) {
        self.with(|caches| {
            caches.expire(dir);
            if let Some(entry) = caches.entry(dir, name)
                && let Some(inode) = caches.inodes.get_mut(&entry.node)
            {
                inode.stat.st_nlink = inode.stat.st_nlink.saturating_sub(1);
            }
            caches.drop_entry(dir, name);
        });
    }

    /// The daemon is asked for a name before anybody believes it again.
    pub fn doubted(&self, dir: NodeId, name: &str) {
        self.with(|caches| {
            let names = caches.entries.get_mut(&dir);
            if let Some(entry) = names.and_then(|names| names.get_mut(name)) {
                entry.until = Instant::now();
            }
        });
    }

    /// A file has another name, for as long as its old one was good.
    pub fn renamed(&self, from: (NodeId, &str), to: (NodeId, &str), exchanged: bool) {
        if !exchanged && self.caches.lock().entry(to.0, to.1).is_some() {
            self.removed(to.0, to.1);
        }
        self.with(|caches| {
            let (moved, other) = (caches.entry(from.0, from.1), caches.entry(to.0, to.1));
            // Neither goes while both have none of their names.
            let both = [moved, other].map(|entry| entry.map(|entry| entry.node));
            both.iter().flatten().for_each(|node| caches.refer(*node));
            for (dir, name, entry) in [(to.0, to.1, moved), (from.0, from.1, other)] {
                match entry {
                    Some(entry) => caches.put(dir, name, entry),
                    None => drop(caches.drop_entry(dir, name)),
                }
                caches.expire(dir);
            }
            both.iter().flatten().for_each(|node| caches.let_go(*node));
        });
    }
}

/// The kernel of its own accord.
pub fn nobody() -> Caller {
    Caller {
        tid: 0,
        uid: 0,
        gid: 0,
    }
}

/// What a daemon tells the kernel.
pub struct Told(pub std::sync::Weak<Kernel>);

impl Notify for Told {
    fn attributes_changed(&self, node: NodeId) {
        if let Some(kernel) = self.0.upgrade() {
            kernel.caches.lock().expire(node);
        }
    }

    fn attributes_changed_by_now(&self, node: NodeId) {
        self.attributes_changed(node);
    }
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

/// At once, as if the name helper took no time.
impl DropNames for Told {
    fn is_there(&self) -> bool {
        true
    }

    fn drop_name(&self, name: DroppedName) {
        if let Some(kernel) = self.0.upgrade() {
            let name_in_dir = name.dentry.name.to_string_lossy();
            // The next call gives the lookups back: whoever drops a name holds locks of the engine's.
            kernel
                .caches
                .lock()
                .drop_entry(name.dentry.dir, &name_in_dir);
        }
    }

    fn is_dropping(&self, _dentry: &Dentry) -> bool {
        false
    }

    fn move_name(&self, _from: &Dentry, _to: &Dentry) -> Vec<NodeId> {
        Vec::new()
    }
}
