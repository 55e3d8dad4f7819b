//! Descriptions that add lines, and how descriptions were opened.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::namespace::{Ends, Shown};
use crate::rules::Stream;
use crate::sys::proc;
use crate::types::{Dentry, NodeId, Seq};

/// How a description was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Access mode and O_APPEND, as /proc shows them.
    pub how: OFlags,
    /// O_SYNC or O_DSYNC: every write is an fsync, too.
    pub sync: bool,
    /// Process that opened it; those it forked may hold it as well.
    pub opener: u32,
    /// Its thread that did.
    pub thread: u32,
}

impl Opening {
    /// What open(2) was given, and the process and thread that called it.
    pub fn with(flags: OFlags, (opener, thread): (u32, u32)) -> Opening {
        Opening {
            how: flags & proc::HOW,
            sync: flags.intersects(OFlags::DSYNC | OFlags::SYNC),
            opener,
            thread,
        }
    }
}

impl Default for Opening {
    fn default() -> Opening {
        Opening {
            how: OFlags::empty(),
            sync: false,
            opener: 0,
            thread: 0,
        }
    }
}

/// The file that a description adds to.
#[derive(Clone, Debug)]
pub enum AppendPlace {
    /// Whatever version is current under this name, which is always the file's own.
    At(Dentry),
    /// One that has lost its name, as on the plain directory.
    Nameless(Unnamed),
}

/// A file that has lost its name, and where what is shown of it ends.
#[derive(Clone, Debug)]
pub struct Unnamed {
    /// The file.
    pub fd: Arc<File>,
    /// Where what is shown of it ends.
    pub ends: Ends,
    /// It has lost its last name, on the medium, too.
    pub gone: Arc<AtomicBool>,
}

/// An open description that appends.
#[derive(Debug)]
pub struct Appender {
    /// Node it was opened on; the kernel's inode of the description.
    pub node: NodeId,
    /// Description opened with O_APPEND: writes go to the end, whatever their offset says.
    pub always: bool,
    /// How it was opened.
    pub opening: Opening,
    /// What its lines are.
    pub stream: Stream,
    /// Where its lines go. Locked under the state's lock only.
    pub place: Mutex<AppendPlace>,
    /// The commit of its last line.
    last: AtomicU64,
    /// Its unfinished line.
    pub inner: Mutex<Unfinished>,
}

/// What a description that appends still has to add, and what is read through it.
#[derive(Debug)]
pub struct Unfinished {
    /// What reads through the description see, apart from the tail.
    pub read: Shown,
    /// The unfinished line.
    pub tail: Vec<u8>,
    /// Processes that have written it.
    pub by: BTreeSet<u32>,
    /// Since when it waits.
    pub since: Option<Instant>,
    /// Why it couldn't be added when that was tried.
    pub failed: Option<Errno>,
    /// The description goes on as a transaction on a copy.
    pub left: bool,
}

impl Appender {
    /// Of a node, by name; what is read through it is `read`.
    pub fn new(
        node: NodeId,
        (always, opening): (bool, Opening),
        stream: Stream,
        dentry: Dentry,
        read: Shown,
    ) -> Arc<Appender> {
        Arc::new(Appender {
            node,
            always,
            opening,
            stream,
            place: Mutex::new(AppendPlace::At(dentry)),
            last: AtomicU64::new(0),
            inner: Mutex::new(Unfinished {
                read,
                tail: Vec::new(),
                by: BTreeSet::new(),
                since: None,
                failed: None,
                left: false,
            }),
        })
    }

    /// The commit of its last line; 0 if it has added none.
    pub fn last(&self) -> Seq {
        Seq(self.last.load(Ordering::Relaxed))
    }

    /// A line of its, or all that it has begun with, is part of a commit.
    pub fn note_commit(&self, seq: Seq) {
        self.last.fetch_max(seq.0, Ordering::Relaxed);
    }

    /// It adds under another name now.
    pub fn move_to(&self, to: &Dentry) {
        *self.place.lock() = AppendPlace::At(to.clone());
    }
}

impl Unfinished {
    /// Keeps the unfinished rest of what a process has written.
    pub fn hold(&mut self, rest: &[u8], by: u32) {
        self.tail = rest.to_vec();
        self.by = (!rest.is_empty()).then_some(by).into_iter().collect();
        self.since = (!rest.is_empty()).then(Instant::now);
        self.failed = None;
    }
}
