//! What programs see of a file that may be growing.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Nodes, WHOLE};
use crate::sys::at;
use crate::types::{NodeId, OpResult, errno_of};

/// A version's file up to the end that is shown: see [`super::Node::end`].
#[derive(Clone, Debug)]
pub struct Shown {
    /// The file.
    pub file: Arc<File>,
    /// Where what is shown ends.
    pub end: Arc<AtomicU64>,
}

/// The ends that an append moves, in bytes: of what is shown of a version, and of the whole appends
/// in its file.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Default))]
pub struct Ends {
    pub(super) shown: Arc<AtomicU64>,
    pub(super) whole: Arc<AtomicU64>,
}

impl Ends {
    /// What lies behind `end` is not to be seen until it is complete.
    pub fn hold(&self, end: u64) {
        self.shown.store(end, Ordering::Release);
        self.whole.store(end, Ordering::Release);
    }

    /// An append is complete. A file that was never held, or isn't any more, shows all it has.
    pub fn advance(&self, end: u64) {
        for one in [&self.shown, &self.whole] {
            one.fetch_update(Ordering::AcqRel, Ordering::Acquire, |before| {
                (before != WHOLE).then_some(end)
            })
            .ok();
        }
    }

    /// What is shown of `file`, a version's.
    pub fn show(&self, file: Arc<File>) -> Shown {
        let end = self.shown.clone();
        Shown { file, end }
    }

    /// All that the file has is shown.
    pub fn release(&self) {
        self.hold(WHOLE);
    }
}

impl Nodes {
    /// The number that programs have seen of a file since they opened it, if not its own, be it that the kernel has forgotten it.
    pub fn shown_as(&self, id: NodeId) -> Option<NodeId> {
        let past = || self.past.get(&id).and_then(|past| past.shown_as);
        match self.get(id) {
            Some(node) => node.shown_as,
            None => past(),
        }
    }
}

impl Shown {
    /// Opens a version for reading, with these flags.
    pub fn open(nodes: &Nodes, id: NodeId, flags: OFlags) -> OpResult<Shown> {
        let node = nodes.get(id).ok_or(Errno::STALE)?;
        Ok(Shown {
            file: Arc::new(at::reopen(&*nodes.fd(id)?, flags)?),
            end: node.end().clone(),
        })
    }

    /// Opens a version for reading, with no flags.
    pub fn of(nodes: &Nodes, id: NodeId) -> OpResult<Shown> {
        Shown::open(nodes, id, OFlags::RDONLY)
    }

    /// Opens a version for an editor, who sees what is added to its file as long as nothing is
    /// copied, by whole appends.
    pub fn growing(nodes: &Nodes, id: NodeId) -> OpResult<Shown> {
        Shown::open_growing(nodes, id, OFlags::RDONLY)
    }

    /// Opens a version for an editor, with these flags.
    pub fn open_growing(nodes: &Nodes, id: NodeId, flags: OFlags) -> OpResult<Shown> {
        let end = nodes.get(id).ok_or(Errno::STALE)?.whole().clone();
        Ok(Shown {
            end,
            ..Shown::open(nodes, id, flags)?
        })
    }

    /// A file that nobody adds to.
    pub fn all_of(file: Arc<File>) -> Shown {
        let end = Arc::new(AtomicU64::new(WHOLE));
        Shown { file, end }
    }

    /// Bytes that are shown.
    pub fn length(&self) -> OpResult<u64> {
        // The end is set before the file grows beyond it, and moves once that is complete: a length
        // between the two is half an append's.
        let mut end = self.end.load(Ordering::Acquire);
        loop {
            let whole = self.file.metadata().map_err(|e| errno_of(&e))?.len();
            let before = std::mem::replace(&mut end, self.end.load(Ordering::Acquire));
            if before == end {
                return Ok(whole.min(end));
            }
        }
    }

    /// Whether nobody has added records to it, so that all it has is shown.
    pub fn is_whole(&self) -> bool {
        self.end.load(Ordering::Acquire) == WHOLE
    }

    /// As much of `size` bytes at `offset` as lies before the end.
    pub fn within(&self, offset: u64, size: u64) -> u64 {
        let end = self.end.load(Ordering::Acquire);
        size.min(end.saturating_sub(offset))
    }
}
