//! What a rename has replaced: whether whoever wrote or renamed the file had seen that.

use std::path::Path;
use std::time::Duration;

use crate::conflict::{Loss, Why};
use crate::engine::base::own_saves;
use crate::engine::meaning::overwrites;
use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::journal::Record;
use crate::namespace::NodeKind;
use crate::sys::failpoint;
use crate::types::{Dentry, NodeId, OpResult, TxnId};

/// A file was renamed over a name: whether who wrote it, or else who renamed it, had seen what
/// it replaced.
pub fn note_replaced(
    engine: &Engine,
    state: &mut State,
    renamer: u32,
    author: Option<u32>,
    to: &Dentry,
    (lost, by): (Option<NodeId>, NodeId),
) {
    let seen = |state: &State, tid| state.conflicts.overwrites.last_seen(tid, to).cloned();
    let author = author.filter(|tid| *tid != renamer);
    let seen_by_author = author.and_then(|tid| seen(state, tid));
    let seen_by_renamer = seen(state, renamer);
    // It may be forgotten by now.
    let lost = lost.filter(|l| state.nodes.get(*l).is_none_or(|n| n.kind == NodeKind::File));
    let reader = author.filter(|_| seen_by_author.is_some());
    let reader = reader.unwrap_or(renamer);
    let seen = seen_by_author.as_ref().or(seen_by_renamer.as_ref());
    let unseen = lost.filter(|lost| seen.is_some_and(|s| !state.is_as_seen(s, *lost)));
    let pid = state.conflicts.registry.author(by).map_or(0, |a| a.pid);
    let is_own = unseen.is_some_and(|lost| {
        own_saves::is_own_save(state, pid, lost) || own_saves::is_past_step(state, pid, lost)
    });
    match (seen, lost) {
        (Some(seen), Some(lost)) if unseen.is_some() && !is_own => {
            let loss = Loss {
                lost,
                by,
                has_read: seen.has_read,
                why: None,
                is_own: false,
            };
            note_overwritten_by(engine, state, renamer, to, loss);
        }
        (Some(seen), Some(old)) => {
            overwrites::note_followed(engine, state, to, (old, by), seen.has_read);
            own_saves::note_text_moved(state, reader, to, (lost, by), is_own);
        }
        _ => {}
    }
    if let Some(author) = author.filter(|_| seen_by_author.is_some()) {
        state.note_saved(author, to, by, Duration::ZERO);
    }
    // A program that does nothing but rename what others write has not seen anything.
    if author.is_none() || seen_by_renamer.is_some() {
        state.note_saved(renamer, to, by, Duration::ZERO);
    }
}

/// A version was replaced under a rule that could not merge the two.
pub fn note_unmerged(
    engine: &Engine,
    state: &mut State,
    tid: u32,
    to: &Dentry,
    (lost, by): (NodeId, NodeId),
    why: Option<Why>,
) {
    let loss = Loss {
        lost,
        by,
        has_read: true,
        why,
        is_own: false,
    };
    note_overwritten_by(engine, state, tid, to, loss);
}

fn note_overwritten_by(engine: &Engine, state: &mut State, tid: u32, to: &Dentry, loss: Loss) {
    let pid = crate::sys::proc::tgid(tid).unwrap_or(tid);
    let command = crate::sys::proc::comm(pid).unwrap_or_default();
    overwrites::note_overwritten(engine, state, to, (pid, &command), loss);
}

/// A file is about to take a name, or two to exchange theirs, that somebody has promised to give
/// a content: if it comes about, that is newer. And so are the promises of those who go `along`,
/// each way.
pub fn announce_moved(
    engine: &Engine,
    state: &mut State,
    (from, to): (&Path, &Path),
    inode: u64,
    exchange: bool,
    along: [Vec<TxnId>; 2],
) -> OpResult<()> {
    if failpoint::mutant("C18-replaced") {
        return Ok(());
    }
    let [going, coming] = along;
    engine.sequencer.append(&Record::Moved {
        from: from.to_owned(),
        to: to.to_owned(),
        inode,
        exchange,
        going,
        coming,
    })?;
    // It may come to the medium by itself.
    durability::sync_journal_now(engine, state)
}
