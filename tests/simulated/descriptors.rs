//! Open files, and the descriptors of a process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use commitfs::types::{HandleId, NodeId};
use parking_lot::Mutex;
use rustix::fs::OFlags;

/// What open(2) makes.
#[derive(Debug)]
pub struct OpenFile {
    /// The daemon that it was opened at.
    pub generation: u64,
    pub handle: HandleId,
    pub node: NodeId,
    /// The number that the node has in `/proc`.
    pub shown: Arc<AtomicU64>,
    pub flags: OFlags,
    pub direct_io: bool,
    pub no_flush: bool,
    pub position: Mutex<u64>,
    /// Whose locks of the description are.
    pub owner: u64,
    pub has_flock: AtomicBool,
    pub references: AtomicU32,
}

impl OpenFile {
    pub fn writes(&self) -> bool {
        !matches!(self.flags & OFlags::RWMODE, OFlags::RDONLY)
    }

    pub fn reads(&self) -> bool {
        (self.flags & OFlags::RWMODE) != OFlags::WRONLY
    }

    pub fn appends(&self) -> bool {
        self.flags.contains(OFlags::APPEND)
    }
}

#[derive(Clone, Debug)]
pub struct Descriptor {
    pub name: String,
    pub file: Arc<OpenFile>,
    closes_on_exec: bool,
}

/// The descriptors of a process, by number.
#[derive(Debug, Default)]
pub struct Descriptors(BTreeMap<u32, Descriptor>);

impl Descriptors {
    /// Takes the lowest number that is free.
    pub fn add(&mut self, name: &str, file: Arc<OpenFile>, closes_on_exec: bool) {
        file.references.fetch_add(1, Ordering::Relaxed);
        let number = (3..).find(|n| !self.0.contains_key(n)).expect("a number");
        let name = name.to_owned();
        self.0.insert(
            number,
            Descriptor {
                name,
                file,
                closes_on_exec,
            },
        );
    }

    pub fn get(&self, name: &str) -> Option<&Arc<OpenFile>> {
        let found = self.0.values().find(|descriptor| descriptor.name == name);
        found.map(|descriptor| &descriptor.file)
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<OpenFile>> {
        let found = self.0.iter().find(|(_, d)| d.name == name);
        let number = *found?.0;
        self.0.remove(&number).map(|descriptor| descriptor.file)
    }

    /// Those that an execve closes.
    pub fn remove_by_exec(&mut self) -> Vec<Arc<OpenFile>> {
        let closed = self.0.extract_if(.., |_, d| d.closes_on_exec);
        closed.map(|(_, d)| d.file).collect()
    }

    pub fn remove_all(&mut self) -> Vec<Arc<OpenFile>> {
        std::mem::take(&mut self.0)
            .into_values()
            .map(|d| d.file)
            .collect()
    }

    /// What a child has.
    pub fn inherit(&self) -> Descriptors {
        for descriptor in self.0.values() {
            descriptor.file.references.fetch_add(1, Ordering::Relaxed);
        }
        Descriptors(self.0.clone())
    }

    /// What `/proc` shows of those that may write.
    pub fn written(&self) -> Vec<(u64, OFlags)> {
        let files = self.0.values().map(|d| &d.file).filter(|f| f.writes());
        files
            .map(|f| (f.shown.load(Ordering::Relaxed), f.flags))
            .collect()
    }
}
