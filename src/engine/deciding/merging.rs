//! Merging at commit (C17): a save whose base is not current any more is merged into what is, or
//! refused, as the rule `on_conflict` says.
//!
//! What a save builds on is for the [`ledger`](crate::engine::meaning::ledger) to say. The merge is made where a
//! close still can be told an error, by FLUSH, and made again if another version was committed
//! before RELEASE. So that this hardly ever happens, a save under such a rule waits its turn: from
//! the merge to the commit nobody else's is prepared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::conflict::{Base, Text, Why, goes_back, read_document_in};
use crate::engine::base::current;
use crate::engine::documents::{Parsed, texts};
use crate::engine::meaning::{ledger, metadata};
use crate::engine::versions::{overlaid, room};
use crate::engine::{Engine, State};
use crate::journal;
use crate::json::{self, Document};
use crate::namespace::NodeKind;
use crate::rules::{OnConflict, Policy};
use crate::sys::{at, failpoint};
use crate::txn::{Abort, Ready, Written};
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of, mtime_ns};

/// What became of a save at its merge.
#[derive(Debug)]
pub enum MergeOutcome {
    /// It is committed as it was written.
    AsWritten,
    /// It is, too, and others' updates are lost.
    Overwrites(Why),
    /// This is committed in its place.
    Merged(Box<MergedFile>),
}

impl MergeOutcome {
    /// Why others' updates are lost, if they are.
    pub fn overwrites(&self) -> Option<Why> {
        match self {
            MergeOutcome::Overwrites(why) => Some(*why),
            MergeOutcome::AsWritten | MergeOutcome::Merged(_) => None,
        }
    }
}

/// A merged text in a staging file of its own.
#[derive(Debug)]
pub struct MergedFile {
    pub id: TxnId,
    pub file: Arc<File>,
    pub path: Arc<File>,
    pub key: (u64, u64),
    pub content: journal::ContentInfo,
}

/// The current version's document, as merges read it, and its file. ESTALE: its node is gone.
fn document_of(engine: &Engine, node: NodeId) -> OpResult<(Document, Arc<File>)> {
    texts::materialize(engine, node)?;
    let fd = engine.lock().nodes.fd(node)?;
    let read = Parsed::read(node, &fd);
    read.map(|parsed| (parsed.document, fd))
        .map_err(|refusal| refusal.errno)
}

/// Whether what a transaction has prepared still fits the current version.
pub fn still_fits(engine: &Engine, state: &mut State, id: TxnId) -> bool {
    let Some(txn) = state.txns.get(&id) else {
        return true;
    };
    let (dentry, ready) = (txn.dentry().clone(), txn.preparation.ready());
    let onto = ready.map(|c| c.onto);
    let made_of = ready.filter(|c| c.by_parts).map(|c| c.edits);
    if made_of.is_some() {
        if txn.is_unlinked() || txn.is_doomed() {
            return true;
        }
        // Under a rule for conflicts that decides.
        if let Some(edited) = overlaid::edited(engine, state, id) {
            return Some(Some(edited)) == made_of;
        }
    }
    let save = state.conflicts.registry.saves.get(&id);
    let is_bound = save.is_some_and(|s| s.base.is_some());
    let Some(onto) = onto.filter(|_| is_bound) else {
        return true;
    };
    current::current_if_any(engine, state, &dentry)
        .ok()
        .flatten()
        == onto
}

/// Merges what was written (`mine`, attributes and all) into the current version, if it builds
/// on another one. Gives the version that it was held against, too.
pub fn reconcile(
    engine: &Engine,
    dentry: &Dentry,
    policy: &Policy,
    base: Option<&Base>,
    mine: &File,
) -> Result<(Option<NodeId>, MergeOutcome), Abort> {
    let mut current = current_file(engine, dentry);
    let Some((base, theirs)) = base.zip(current) else {
        return Ok((current, MergeOutcome::AsWritten));
    };
    let stale = ledger::is_stale(base, Some(theirs));
    let doubtful = base.doubts.as_ref().is_some_and(|doubts| {
        let goes_back = goes_back(doubts, mine);
        goes_back.unwrap_or(stale && doubts.is_own_save) && !failpoint::mutant("C17-back")
    });
    if !stale && !doubtful {
        return Ok((current, MergeOutcome::AsWritten));
    }
    if policy.on_conflict == OnConflict::Fail {
        return Err(Abort::Conflict);
    }
    if doubtful {
        note_uncertain(engine, dentry);
        return Ok((current, MergeOutcome::Overwrites(Why::Uncertain)));
    }
    let mut theirs = theirs;
    let document = loop {
        match document_of(engine, theirs) {
            // Its node is gone, be it that another version has been committed, or that nobody
            // needed it any more.
            Err(Errno::STALE) => match current_file(engine, dentry) {
                Some(now) => (theirs, current) = (now, Some(now)),
                None => break None,
            },
            read => break read.ok(),
        }
    };
    let (document, theirs) = document.unzip();
    let outcome = match merged_text(engine, dentry, policy, base, mine, document) {
        Ok(Some(text)) => {
            stage_merged(engine, &text, mine, theirs.as_deref()).map_err(|errno| {
                Abort::FailedWrite {
                    what: "merge",
                    errno,
                }
            })?
        }
        Ok(None) => MergeOutcome::AsWritten,
        Err(why) => MergeOutcome::Overwrites(why),
    };
    Ok((current, outcome))
}

fn note_uncertain(engine: &Engine, dentry: &Dentry) {
    let mut state = engine.lock();
    log::info!(
        "{}: it is not certain what was saved builds on: the last close wins",
        engine.show(&state, dentry)
    );
    state.tally.counters.uncertain_bases += 1;
}

fn current_file(engine: &Engine, dentry: &Dentry) -> Option<NodeId> {
    let mut state = engine.lock();
    let current = current::current_if_any(engine, &mut state, dentry)
        .ok()
        .flatten();
    current.filter(|c| {
        state
            .nodes
            .get(*c)
            .is_some_and(|n| n.kind == NodeKind::File)
    })
}

/// `None`: the result is what was written.
fn merged_text(
    engine: &Engine,
    dentry: &Dentry,
    policy: &Policy,
    base: &Base,
    mine: &File,
    theirs: Option<Document>,
) -> Result<Option<String>, Why> {
    let name = |engine: &Engine| engine.show(&engine.lock(), dentry);
    let old = match &base.text {
        Text::Missing => Document::parse(b"").ok(),
        Text::Kept(kept) => read_document_in(&kept.file),
        Text::Dropped => None,
    };
    let mine = read_document_in(mine);
    let Ok(counters) = json::Policy::new(&policy.counters) else {
        return Err(Why::Uncertain);
    };
    if !base.is_certain || matches!(base.text, Text::Dropped) {
        note_uncertain(engine, dentry);
        return Err(Why::Uncertain);
    }
    let (Some(old), Some(mine), Some(theirs)) = (old, mine, theirs) else {
        log::info!("{}: can't be merged: the last close wins", name(engine));
        engine.lock().tally.counters.unmerged += 1;
        return Err(Why::NoDocument);
    };
    let old = if failpoint::mutant("C17-base") {
        theirs.clone()
    } else {
        old
    };
    let (merged, conflicts) = Document::merge(&old, &mine, &theirs, &counters);
    let mut state = engine.lock();
    state.tally.counters.merges += 1;
    state.tally.counters.merge_conflicts += conflicts.len() as u64;
    drop(state);
    if !conflicts.is_empty() {
        let places: Vec<String> = conflicts
            .iter()
            .take(5)
            .map(|c| format!("{:?}", c.pointer.to_string()))
            .collect();
        log::info!(
            "{}: merged; both had changed {}: the last close won there",
            name(engine),
            places.join(", ")
        );
    }
    let text = merged.to_text();
    Ok((text != mine.to_text()).then_some(text))
}

/// Writes a merged text to a staging file with the attributes of what it stands for.
fn stage_merged(
    engine: &Engine,
    text: &str,
    mine: &File,
    theirs: Option<&File>,
) -> OpResult<MergeOutcome> {
    let id = engine.lock().txns.new_id();
    let file = room::making_room(engine, || engine.store.create_staging(id))?;
    let with_metadata = || -> OpResult<MergedFile> {
        file.write_all_at(text.as_bytes(), 0)
            .map_err(|e| errno_of(&e))?;
        let like = at::reopen(mine, OFlags::PATH)?;
        metadata::apply_metadata(engine, &file, Some(&like), None)?;
        at::set_mtime(&file, mtime_ns(&at::stat(mine)?))?;
        if let Some(theirs) = theirs {
            metadata::outgrow_mtime(&file, mtime_ns(&at::stat(theirs)?))?;
        }
        let path = at::open_path(&engine.store.staging, crate::store::id_name(id).as_ref())?;
        let stat = at::stat(&path)?;
        Ok(MergedFile {
            id,
            key: (stat.st_dev, stat.st_ino),
            path: Arc::new(path.into()),
            content: journal::ContentInfo {
                len: text.len() as u64,
                crc: Some(crc32c::crc32c(text.as_bytes())),
                inline: None,
                mtime_ns: mtime_ns(&stat),
                grown: None,
                parts: None,
            },
            file: Arc::new(file.try_clone().map_err(|e| errno_of(&e))?),
        })
    };
    let merged = with_metadata().inspect_err(|_| {
        engine.store.remove_staging(id).ok();
    })?;
    Ok(MergeOutcome::Merged(Box::new(merged)))
}

impl MergedFile {
    /// To be committed for what was written.
    pub fn ready(self, as_written: Arc<File>, onto: Option<NodeId>) -> Ready {
        Ready {
            onto,
            merged: Some(Written {
                file: as_written,
                path: self.path,
                key: self.key,
            }),
            ..Ready::new(self.id, self.file, self.content)
        }
    }
}
