//! Saves by which a program takes back what it has saved itself, where no rule for conflicts is (C17): noted as they are
//! made, and compared by the watch.

use std::fs::File;
use std::sync::Arc;

use crate::conflict::{Doubtful, is_small};
use crate::engine::State;
use crate::sys::{at, failpoint, proc};
use crate::types::{Dentry, NodeId};

/// Whether a version was saved by this process itself: nobody else's update.
pub fn is_own_save(state: &State, pid: u32, version: NodeId) -> bool {
    let author = state.conflicts.registry.author(version);
    author.is_some_and(|a| pid != 0 && a.pid == pid) && !failpoint::mutant("C17-own")
}

/// Whether a version was saved by a process that this one has started as a step of its own, and that has ended: to be
/// asked while the process waits.
pub fn is_past_step(state: &State, pid: u32, version: NodeId) -> bool {
    let author = state.conflicts.registry.author(version);
    author.is_some_and(|a| pid != 0 && a.step_of == Some(pid) && !proc::lives(a.pid))
}

/// A thread has replaced a version by its save. `is_own`: one of its own process that it has not
/// seen itself.
pub fn note_text_saved(
    state: &mut State,
    (tid, who): (u32, (u32, &str)),
    dentry: &Dentry,
    (replaced, by): (Option<NodeId>, NodeId),
    is_own: bool,
    mine: &Arc<File>,
) {
    let outstanding = match is_own {
        true => state.conflicts.overwrites.texts.outstanding(tid, dentry),
        false => Vec::new(),
    };
    let doubts = state
        .conflicts
        .overwrites
        .texts
        .note_saved(tid, dentry, mine);
    let Some(replaced) = replaced else {
        return;
    };
    let replaced_text = || {
        let fd = state.nodes.fd(replaced).ok()?;
        at::reopen_quietly(&*fd).ok().map(Arc::new)
    };
    let doubts = match outstanding.is_empty() {
        true => doubts,
        false => replaced_text()
            .filter(|f| is_small(f))
            .map(|f| (outstanding, f)),
    };
    if let Some((earlier, later)) = doubts {
        state.conflicts.overwrites.doubt(Doubtful {
            dentry: dentry.clone(),
            earlier,
            later,
            mine: mine.clone(),
            versions: (replaced, by),
            who: (who.0, who.1.to_owned()),
        });
    }
}

/// Remembers the text of a file that was renamed to a name.
pub fn note_text_moved(
    state: &mut State,
    tid: u32,
    dentry: &Dentry,
    (replaced, by): (Option<NodeId>, NodeId),
    is_own: bool,
) {
    let fd = state.nodes.fd(by);
    let Ok(mine) = fd.and_then(|fd| at::reopen_quietly(&*fd)) else {
        return;
    };
    let pid = state.conflicts.registry.author(by).map_or(tid, |a| a.pid);
    let command = proc::comm(pid).unwrap_or_default();
    let who = (tid, (pid, command.as_str()));
    note_text_saved(state, who, dentry, (replaced, by), is_own, &Arc::new(mine));
}
