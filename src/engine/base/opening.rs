//! What opens ask for and come to, and those whose second lookup is still to come.

use std::time::Duration;
use std::time::Instant;

use rustix::fs::OFlags;

use crate::engine::State;
use crate::sys::{failpoint, proc};
use crate::types::{Dentry, HandleId, NodeId, TxnId};

/// What open(2) asks for.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest {
    /// Flags of open(2).
    pub flags: OFlags,
}

/// An open description and how the kernel shall cache it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its number.
    pub handle: HandleId,
    /// Cached pages stay valid: the content is immutable.
    pub keep_cache: bool,
    /// Every read and write comes to us.
    pub direct_io: bool,
    /// No FLUSH wanted at close.
    pub no_flush: bool,
    /// Whether the kernel may read it by itself.
    pub pass: Pass,
}

/// An open is done, or has to wait for the writer slot of a name (C9).
pub enum OpenStep {
    Done(Opened),
    Wait(Dentry),
    /// The transaction whose node it is has been closed and is being decided upon.
    Undecided(TxnId),
    /// It empties what a transaction has staged, and somebody writes, copies or judges that now.
    InUse(TxnId),
}

pub fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR) || flags.contains(OFlags::TRUNC)
}

/// Whether the kernel may serve a description from its backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// What it reads and writes is for us to see.
    Never,
    /// It may, where it does so already for another of the same node.
    Beside,
    /// It had better: there is much to read.
    Wanted,
}

/// After that long it is asked whether the thread of a note still lives, and is still the same.
pub const FRESH: Duration = Duration::from_secs(2);

/// After so many looks of the watch, two seconds of a daemon that runs, it is asked whether a thread that found
/// nothing on its second lookup is still in the same call.
pub const LOOKS: u32 = 8;

/// What a thread was about to do when it was sent round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// open(2) with these flags.
    Open(OFlags),
    /// truncate(2).
    Truncate,
}

/// Where a second lookup leads.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// To the private node of a transaction that was begun for it.
    Own {
        /// The transaction; nobody else opens it.
        txn: TxnId,
        /// The caller's own open transaction that this open empties through its path.
        empties: Option<TxnId>,
    },
    /// To a node that was opened for it when it looked the name up.
    Opened {
        /// The node.
        node: NodeId,
        /// What its open gets.
        opened: Opened,
    },
    /// To what the name means by then.
    Anew {
        /// It has found nothing there, or an error: looks of the watch since.
        failed: Option<u32>,
    },
}

/// A thread was told to look its path up again.
#[derive(Clone, Debug)]
pub struct PendingOpen {
    /// The path's last step.
    pub(in crate::engine) dentry: Dentry,
    /// Node whose open was refused.
    pub(in crate::engine) old: NodeId,
    pub(in crate::engine) goal: Goal,
    pub(in crate::engine) way: Way,
    /// The lookup has come by.
    pub(in crate::engine) looked_up: bool,
    /// Since when.
    pub at: Instant,
}

impl PendingOpen {
    /// One made now; the lookup hasn't come by yet.
    pub(in crate::engine) fn new(dentry: Dentry, old: NodeId, goal: Goal, way: Way) -> PendingOpen {
        PendingOpen {
            dentry,
            old,
            goal,
            way,
            looked_up: false,
            at: Instant::now(),
        }
    }

    /// The transaction that was begun for its thread.
    pub(in crate::engine) fn own(&self) -> Option<TxnId> {
        match self.way {
            Way::Own { txn, .. } => Some(txn),
            _ => None,
        }
    }

    /// Whether a thread of this number is the one that it was made for: numbers come round again.
    pub(in crate::engine) fn is_of(&self, tid: u32) -> bool {
        let passed = self.at.elapsed();
        // The kernel tells starts in steps of 10 ms.
        passed < FRESH
            || proc::Start::of_caller(tid)
                .is_none_or(|start| !start.is_after(&proc::Moment::ago(passed - FRESH / 2)))
    }

    /// Whether nobody will come back for it.
    pub(in crate::engine) fn is_over(&self, tid: u32) -> bool {
        if failpoint::mutant("C1-walk-life") {
            return self.at.elapsed() > FRESH;
        }
        let is_forgotten = matches!(self.way, Way::Anew { failed: Some(looks) } if looks > LOOKS)
            && failpoint::mutant("C1-walk-call");
        is_forgotten || self.at.elapsed() > FRESH && proc::is_gone(tid)
    }

    /// Whether an open or truncation of what was found under a name comes at the end of the second lookup, and not from a
    /// call after one whose second lookup has found nothing.
    pub(in crate::engine) fn is_at_the_end(
        &self,
        tid: u32,
        (node, goal): (NodeId, Goal),
        found: Option<&Dentry>,
    ) -> bool {
        let is_walked = self.old != node || self.looked_up;
        let has_failed = matches!(self.way, Way::Anew { failed: Some(_) });
        self.goal == goal
            && is_walked
            && (!has_failed || found == Some(&self.dentry))
            && self.is_of(tid)
            && !failpoint::mutant("C1-walk-end")
    }
}

impl State {
    /// Whether the open that a transaction was begun for is still to come.
    pub(in crate::engine) fn is_awaited(&self, id: TxnId) -> bool {
        self.walks
            .pending_opens
            .values()
            .any(|note| note.own() == Some(id))
    }
}
