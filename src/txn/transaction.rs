//! A transaction's record: who takes part, what it will replace, and why it may not commit.

use std::sync::Arc;
use std::time::Instant;

use super::target::Target;
use super::{
    Abort, Participants, Phase, Preparation, Promise, Purpose, Staging, Visibility, WriterSlot,
};
use crate::guard::Guard;
use crate::rules::{OnSignal, Policy};
use crate::sys::failpoint;
use crate::types::{Dentry, NodeId, Seq, TxnId};

/// One transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Its number; its staging file's number is the staging's own (they part after C11).
    pub id: TxnId,
    /// The name it will commit under.
    target: Target,
    /// Number of its staging file: parts from its own when a rename of the open file publishes
    /// what was written so far (C11).
    pub staging_id: TxnId,
    /// Its private node.
    pub node: NodeId,
    /// Its content.
    pub staging: Arc<Staging>,
    /// The rules for its path.
    pub policy: Policy,
    /// What it is for.
    pub purpose: Purpose,
    /// Who else finds it under its name.
    pub visibility: Visibility,
    /// How far it has come.
    pub phase: Phase,
    /// The processes that take part, and may.
    pub participants: Participants,
    /// When it began, for people and for the order of things.
    pub started: Instant,
    /// What its closes have found.
    pub preparation: Preparation,
    /// The file's writer slot (C9), if it has it.
    pub slot: WriterSlot,
    /// Owners of fcntl locks that go when it has committed.
    pub releases: Vec<u64>,
    /// What the journal was told that is on the medium.
    pub promise: Promise,
}

impl Transaction {
    /// One that nobody has opened yet, and that has a staging file of its own number.
    pub fn new(
        id: TxnId,
        dentry: Dentry,
        node: NodeId,
        staging: Arc<Staging>,
        policy: Policy,
        purpose: Purpose,
        visibility: Visibility,
    ) -> Transaction {
        Transaction {
            id,
            target: Target::Name(dentry),
            staging_id: id,
            node,
            staging,
            policy,
            purpose,
            visibility,
            phase: Phase::Reserved,
            participants: Participants::default(),
            started: Instant::now(),
            preparation: Preparation::default(),
            slot: WriterSlot::none(),
            releases: Vec::new(),
            promise: Promise::default(),
        }
    }

    /// The name it will commit under, or would have if that had not been unlinked.
    pub fn dentry(&self) -> &Dentry {
        self.target.dentry()
    }

    /// Whether its name was unlinked: nobody will see it.
    pub fn is_unlinked(&self) -> bool {
        matches!(self.target, Target::Unlinked(_))
    }

    /// Its name is unlinked.
    pub fn unlink(&mut self) {
        self.target.unlink();
    }

    /// It goes on under another name. Gives the one that it had.
    pub(super) fn move_to(&mut self, to: Dentry) -> Dentry {
        self.target.move_to(to)
    }

    /// The round of a group that it is committed with, if it is a member of one (C23).
    pub fn round(&self) -> Option<TxnId> {
        self.purpose.round()
    }

    /// One of its processes has emptied the name through its path, by another transaction.
    pub fn note_emptied(&mut self, by: TxnId) {
        self.staging.look_apart();
        self.purpose.note_emptied(by);
    }

    /// What the kernel has written by itself is a write like any other.
    pub fn note_passed(&mut self) {
        if self.staging.is_written() {
            self.purpose.note_write();
        }
    }

    /// Whether something was written or truncated that is not published yet.
    pub fn is_changed(&self) -> bool {
        let waits = self.staging.has_changes() && !failpoint::mutant("C12-meanwhile");
        self.purpose.is_changed() || waits
    }

    /// Whether it has called fsync, be it before what was written then was published: what its close
    /// promises is on the medium (C7).
    pub fn has_synced(&self) -> bool {
        self.promise.has_fsynced() || self.staging.owed() > Seq::default()
    }

    /// Whether closing it changes the file.
    pub fn would_commit(&self) -> bool {
        self.is_changed() || !self.purpose.edits()
    }

    /// Whether all threads of the process that opened it see what is staged: under a new name that
    /// nobody guards. Elsewhere there is a whole version to see, or there will be.
    pub fn is_open_to_its_process(&self) -> bool {
        // What it has closed is whole.
        self.purpose.creates() && self.policy.guard == Guard::None || self.phase.is_held()
    }

    /// Whether it stands for a file that is there already, as far as everybody is concerned: should
    /// its writer or the daemon be killed now, it stays.
    pub fn is_there(&self) -> bool {
        let seen = &self.visibility;
        seen.is_claim() || (seen.is_common() && self.purpose.creates())
    }

    /// Whether all that it has promised tells which bytes it has written, so that these fit into any
    /// version that others make of its file in place.
    pub fn promises_parts(&self) -> bool {
        let contents = [
            self.promise.told(),
            self.preparation.ready().map(|ready| &ready.content),
        ];
        contents.iter().flatten().all(|told| told.parts.is_some())
    }

    /// The journal is told that the merge which a close promises is on the medium.
    pub fn note_durable_merge(&mut self, merged: TxnId) {
        self.promise.note_durable_merge();
        self.preparation.note_synced(merged);
    }

    /// Whether a close, surely the last, was told that what it has prepared is kept.
    pub fn is_acknowledged(&self) -> bool {
        self.preparation.is_promised() && self.death().is_none()
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

    /// Whether a writer's death keeps it from being committed (C4).
    pub fn is_doomed(&self) -> bool {
        self.death().is_some() && !self.is_exempt()
    }

    /// Whether a writer's death keeps it from committing what is written so far, while others hold it.
    pub fn has_lost_a_writer(&self) -> bool {
        self.writers_death().is_some() && !self.is_exempt()
    }

    /// Whether it commits though a writer was killed.
    pub fn is_exempt(&self) -> bool {
        // A claim is what everybody sees already (C6).
        self.is_there() || self.policy.on_signal == OnSignal::Commit || failpoint::mutant("C4")
    }
}
