//! What is written under a lock is committed as the lock is given back, or as its holder closes the file.

use rustix::io::Errno;

use crate::engine::base::rest::may_commit_so_far;
use crate::engine::deciding::resting::publish_in_place;
use crate::engine::descriptions::append::streams;
use crate::engine::{Engine, State};
use crate::locks::FileId;
use crate::sys::{failpoint, proc};
use crate::txn::Transaction;
use crate::types::{Caller, TxnId};

/// A close of any descriptor of a `locked` file gives the closing process's fcntl locks of it
/// back: what was written under them through others than the one that is `closed` is committed
/// first.
pub fn commit_written(
    engine: &Engine,
    caller: Caller,
    locked: Option<FileId>,
    closed: Option<TxnId>,
) {
    let Some(file) = locked else {
        return;
    };
    let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
    let written = written_by(&engine.lock(), file, pid, None);
    for id in written.into_iter().filter(|id| Some(*id) != closed) {
        commit_by_close(engine, caller, id);
    }
}

/// Unlocking after writing commits what is written so far; the transaction goes on.
pub fn commit_point(engine: &Engine, id: TxnId, by: u32) {
    if failpoint::mutant("C12-commit-point") {
        return;
    }
    let dentry = match engine.lock().txns.get(&id) {
        Some(txn) if may_commit_so_far(txn) => txn.dentry().clone(),
        _ => return,
    };
    // What a new log holds is its first version.
    let unpublished = streams::unpublished_stream(engine, id).filter(|_| is_changed(engine, id));
    let published = match unpublished {
        Some(handle) => streams::publish_first(engine, id, handle, 0, b"").map(drop),
        None => publish_in_place(engine, by, id),
    };
    // NODATA: there was nothing new to commit.
    if let Err(e) = published
        && e != Errno::NODATA
    {
        let state = engine.lock();
        log::info!(
            "{}: unlocked, but not committed: {e}",
            engine.show(&state, &dentry)
        );
    }
}

/// What a killed writer leaves is no commit, though another process may hold it open; nor does
/// one commit that is killed and has merely inherited it.
pub fn commit_by_close(engine: &Engine, caller: Caller, id: TxnId) {
    let killed = streams::killed_flusher(caller).is_some();
    let commits = |t: &Transaction| !t.has_lost_a_writer() && (!killed || t.is_exempt());
    if engine.lock().txns.get(&id).is_some_and(commits) {
        commit_point(engine, id, caller.tid);
    }
}

pub fn is_changed(engine: &Engine, id: TxnId) -> bool {
    engine.lock().txns.get(&id).is_some_and(|t| t.is_changed())
}

/// Open transactions of a file that a process has written, or takes part in and others have.
pub fn written_by(state: &State, file: FileId, pid: u32, through: Option<TxnId>) -> Vec<TxnId> {
    // All processes of other pid namespaces have the number 0.
    let takes_part =
        |t: &Transaction| (pid != 0 && t.participants.contains(pid)) || Some(t.id) == through;
    let mut written: Vec<_> = state
        .txns
        .values()
        .filter(|t| t.is_changed() && takes_part(t) && state.file_of(t.node) == file)
        .map(|t| t.id)
        .collect();
    written.sort_unstable();
    written
}
