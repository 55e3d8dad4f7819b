//! A transaction's record: who takes part, what it will replace, and why it may not commit.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Abort, Participants, Staging};
use crate::guard::Guard;
use crate::rules::{Policy, Stream};
use crate::types::{Dentry, NodeId, Seq, TxnId, Version};

/// How a transaction came to be; decides what its content starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// A new name.
    Create {
        /// With O_EXCL: the name exists for everybody at once (C6).
        exclusive: bool,
    },
    /// An existing file, emptied (O_TRUNC).
    Rewrite,
    /// An existing file, kept (r+, append, truncate): commits only if something is written.
    Edit,
}

/// One transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Its number; its staging file's number is the staging's own (they part after C11).
    pub id: TxnId,
    /// The name it will commit under.
    pub dentry: Dentry,
    /// Number of its staging file: parts from its own when a rename of the open file publishes
    /// what was written so far (C11).
    pub staging_id: TxnId,
    /// Its private node.
    pub node: NodeId,
    /// Its content.
    pub staging: Arc<Staging>,
    /// The rules for its path.
    pub policy: Policy,
    /// How it began.
    pub begun: Begun,
    /// Node of the version that was current at its open.
    pub base: Option<NodeId>,
    /// The version whose inode number its node shows, if not its own: an in-place editor's, the
    /// same from its open to its last close whatever it commits meanwhile.
    pub shown_base: Option<NodeId>,
    /// The first of the versions that its base comes from by in-place edits: what was written of it
    /// fits into any other of these.
    pub body: Option<NodeId>,
    /// When the base was last changed, as of the open: if that has moved, so have attributes.
    pub base_ctime: (i64, u64),
    /// Open descriptions.
    pub handles: u32,
    /// The processes that take part, and may.
    pub participants: Participants,
    /// Everybody sees it: an O_EXCL creation of at most 4 KiB (C6).
    pub claim: bool,
    /// Nothing is written yet, and whoever opens the name gets its node: what is written first
    /// decides whether it is a database, to be shared (C14).
    pub common: bool,
    /// Its node was for everybody once.
    pub was_common: bool,
    /// What it holds is kept in rejected already: should it not commit, nobody misses it.
    pub is_restore: bool,
    /// Its name was unlinked.
    pub discarded: bool,
    /// When it began, for people and for the order of things.
    pub started: Instant,
    /// Tells whether FLUSH found this to be surely the last reference, and when.
    pub flushed: Option<Flushed>,
    /// When the close began that came last.
    pub close_began: Option<Instant>,
    /// What the last FLUSH found wrong, told by RELEASE if it was the last.
    pub verdict: Option<Abort>,
    /// RELEASE has come, the rest is under way.
    pub closing: bool,
    /// What the last prepare found, to be committed as is.
    pub content: Option<Ready>,
    /// Something was written or truncated.
    pub changed: bool,
    /// Its first description was opened with O_APPEND.
    pub appends: bool,
    /// A new file that becomes visible by its first complete lines (C10).
    pub stream: Option<Stream>,
    /// It began by emptying the file (O_TRUNC).
    pub empties: bool,
    /// It has the file's writer slot (C9).
    pub holds_slot: bool,
    /// Owners of fcntl locks that go when it has committed.
    pub releases: Vec<u64>,
    /// The transaction by which one of its processes has emptied the name through its path since the
    /// last write: on a plain directory nothing of what was written here would be left.
    pub emptied_by: Option<TxnId>,
    /// When one of its descriptions was last used.
    pub heard: Instant,
    /// When it got the writer slot beside one whose holder had been silent, if it did.
    pub let_in: Option<Instant>,
    /// It has called fsync: exempt from what a kill does (C7).
    pub fsynced: bool,
    /// Node of the version that was current at its last fsync.
    pub current_at_fsync: Option<NodeId>,
    /// What its last fsync told the journal.
    pub last_fsync: Option<crate::journal::ContentInfo>,
    /// The commit that has given its name another version since the journal was told last what may
    /// be rolled forward of it: that is newer. 0: it is on the medium when the next journal is.
    pub overtaken: Option<Seq>,
    /// Written since the last prepare.
    pub unprepared: bool,
}

/// Content that nothing can keep from being committed.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Staging file's number.
    pub id: TxnId,
    /// The staging file.
    pub file: Arc<File>,
    /// What the journal shall say of it.
    pub content: crate::journal::ContentInfo,
    /// Number of the version it was prepared to be.
    pub version: Version,
    /// It is on the medium already.
    pub synced: bool,
    /// The version that it was held against (C17).
    pub onto: Option<NodeId>,
    /// It is merged: what was written lies elsewhere.
    pub merged: Option<Written>,
    /// The file that it was copied from, if others may add to that (C10).
    pub grown: Option<super::GrownBase>,
    /// It can be made of another version of the file as well (C9).
    pub by_parts: bool,
    /// The version that it was made of.
    pub edits: Option<NodeId>,
    /// The version whose attributes it was given.
    pub like: Option<AsOf>,
}

/// A version, and when it was last changed as of some moment: if that has moved, so have attributes.
pub type AsOf = (NodeId, (i64, u64));

impl Ready {
    /// What is to take its name as it is, whatever that has by then.
    pub fn new(id: TxnId, file: Arc<File>, content: crate::journal::ContentInfo) -> Ready {
        Ready {
            id,
            file,
            content,
            version: Version::default(),
            synced: false,
            onto: None,
            merged: None,
            grown: None,
            by_parts: false,
            edits: None,
            like: None,
        }
    }
}

/// What a transaction has written, where something else is committed for it, and that file.
#[derive(Clone, Debug)]
pub struct Written {
    /// What was written.
    pub file: Arc<File>,
    /// O_PATH descriptor of the merged file.
    pub path: Arc<OwnedFd>,
    /// Its backing inode.
    pub key: (u64, u64),
}

/// The last FLUSH of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    /// The last reference, as far as could be seen.
    pub sure: bool,
    /// All descriptors were looked at that could be another one.
    pub whole: bool,
    /// When.
    pub at: Instant,
    /// By this process.
    pub by: u32,
}

impl Transaction {
    /// Whether something was written or truncated that is not published yet.
    pub fn is_changed(&self) -> bool {
        let waits = self.staging.has_changes() && !crate::sys::failpoint::mutant("C12-meanwhile");
        self.changed || waits
    }

    /// Whether it has called fsync, be it before what was written then was published: what its close
    /// promises is on the medium (C7).
    pub fn has_synced(&self) -> bool {
        self.fsynced || self.staging.owed() > Seq::default()
    }

    /// Whether closing it changes the file.
    pub fn would_commit(&self) -> bool {
        self.is_changed() || self.begun != Begun::Edit
    }

    /// Whether all threads of the process that opened it see what is staged: under a new name that
    /// nobody guards. Elsewhere there is a whole version to see, or there will be.
    pub fn is_open_to_its_process(&self) -> bool {
        matches!(self.begun, Begun::Create { .. }) && self.policy.guard == Guard::None
    }

    /// What it holds would not be there on a plain directory once somebody else has put content
    /// under the name: it was created and never written (`mkstemp`, then `open(path, "w")` by
    /// name), or its own program emptied the name through its path after the last write.
    pub fn holds_nothing(&self) -> bool {
        let created = matches!(self.begun, Begun::Create { .. });
        self.emptied_by.is_some() || (created && !self.changed && !self.empties)
    }

    /// Whether everybody sees it under its name.
    pub fn is_seen_by_all(&self) -> bool {
        self.claim || self.common
    }

    /// Whether it stands for a file that is there already, as far as everybody is concerned: should
    /// its writer or the daemon be killed now, it stays.
    pub fn is_there(&self) -> bool {
        let created = matches!(self.begun, Begun::Create { .. });
        self.claim || (self.common && created)
    }

    /// Whether all that it has promised tells which bytes it has written, so that these fit into any
    /// version that others make of its file in place.
    pub fn promises_parts(&self) -> bool {
        let contents = [
            self.last_fsync.as_ref(),
            self.content.as_ref().map(|ready| &ready.content),
        ];
        contents.iter().flatten().all(|told| told.parts.is_some())
    }

    /// The journal is told that this much of it is on the medium, whatever has its name by now.
    pub fn note_durable(&mut self, content: crate::journal::ContentInfo) {
        self.last_fsync = Some(content);
        self.overtaken = None;
    }

    /// The journal is told that the merge which a close promises is on the medium. What an fsync has told of the text as it was
    /// written stays told, unless it is older than a version that has come since.
    pub fn note_durable_merge(&mut self, merged: TxnId) {
        if self.overtaken.is_some() {
            self.last_fsync = None;
        }
        self.overtaken = None;
        if let Some(ready) = self.content.as_mut().filter(|ready| ready.id == merged) {
            ready.synced = true;
        }
    }

    /// The journal is told that a close, surely the last, has promised what was prepared: under the
    /// same lock, as a new journal must carry it.
    pub fn note_promised(&mut self, ready: &Ready, by: u32) {
        if let Some(known) = self.content.as_mut().filter(|known| known.id == ready.id) {
            known.content.parts.clone_from(&ready.content.parts);
        }
        self.flushed = Some(Flushed {
            sure: true,
            // Said by who knows, right after.
            whole: false,
            at: Instant::now(),
            by,
        });
        (self.unprepared, self.verdict) = (false, None);
    }

    /// Whether a close, surely the last, was told that what it has prepared is kept.
    pub fn is_acknowledged(&self) -> bool {
        self.content.is_some()
            && !self.unprepared
            && self.flushed.is_some_and(|flushed| flushed.sure)
            && self.verdict.is_none()
            && self.death().is_none()
    }

    /// A process that ends closes one more of its duplicates. Whether that tells no more than the one before: what it
    /// has left can't be seen, and nobody has written since. (It can't be killed before it has closed the last.)
    pub fn note_further_flush(&mut self) -> bool {
        let is_judged = self.verdict.is_some() || (self.content.is_some() && !self.unprepared);
        let flushed = self.flushed.as_mut().filter(|_| is_judged);
        if let Some(flushed) = flushed
            && !crate::sys::failpoint::mutant("C4-duplicates")
        {
            flushed.at = Instant::now();
            return true;
        }
        false
    }

    /// The death that keeps it from committing (C4): of the opener or a writer, or of the last
    /// holder unless that one merely inherited what the opener had written and closed.
    pub fn death(&self) -> Option<Abort> {
        self.participants.killed().map(Abort::killed)
    }

    /// The death that keeps it from committing as long as somebody holds it: who has closed last is not the last holder.
    pub fn writers_death(&self) -> Option<Abort> {
        self.participants.killed_writer().map(Abort::killed)
    }
}
