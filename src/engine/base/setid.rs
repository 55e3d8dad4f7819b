//! Set-id bits: which of them go when an ordinary user changes a file's content. The daemon is root, so the backing file system
//! doesn't take them by itself.

use std::fs::File;
use std::os::fd::AsFd;

use crate::engine::Engine;
use crate::sys::{at, failpoint, proc};
use crate::txn::{Own, Staging};
use crate::types::{Caller, OpResult, TxnId};

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
const GROUP_RUNS: u32 = 0o010;

/// Bits of a mode that a change of the content takes away; none if it is root's.
pub type Gone = u32;

/// What a commit takes of a mode, where a writer of it had no right to keep set-id bits.
pub fn without_set_id(mode: u32, staging: &Staging) -> u32 {
    let group = mode & GROUP_RUNS != 0 || staging.is_own(Own::NoSetGroup);
    let gone = if group {
        SET_USER | SET_GROUP
    } else {
        SET_USER
    };
    mode & !gone
}

/// What goes at a change by an ordinary user. The set-group-id bit of a file that its group may not execute means something else: it
/// goes only if the user is not in the group.
fn gone_from(mode: u32, group: u32, caller: Caller) -> Gone {
    let for_good = mode & GROUP_RUNS != 0 || failpoint::mutant("C8-group");
    let keeps = |caller: Caller| proc::is_in_group(caller.tid, caller.gid, group);
    let group_goes = mode & SET_GROUP != 0 && (for_good || !keeps(caller));
    mode & SET_USER | if group_goes { SET_GROUP } else { 0 }
}

/// Which set-id bits a file loses at a change by `caller`.
pub fn gone_of(file: impl AsFd, caller: Caller) -> Gone {
    at::stat(file).map_or(0, |stat| gone_from(stat.st_mode, stat.st_gid, caller))
}

/// What the backing file system does at a write by a process that isn't root.
pub fn clear_set_id(file: &File, gone: Gone) -> OpResult<()> {
    let mode = at::stat(file)?.st_mode & 0o7777;
    if mode & gone != 0 {
        rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(mode & !gone))?;
    }
    Ok(())
}

/// Clears set-id bits where the kernel doesn't ask for it: truncation, allocation, copies. For a staged
/// file the commit is told as well.
pub fn drop_set_id(file: impl AsFd, caller: Caller, staging: Option<&Staging>) -> OpResult<()> {
    let stat = at::stat(&file)?;
    let mode = stat.st_mode & 0o7777;
    if mode & (SET_USER | SET_GROUP) == 0 || proc::may_keep_set_id(caller.tid, caller.uid) {
        return Ok(());
    }
    let gone = gone_from(mode, stat.st_gid, caller);
    if let Some(staging) = staging {
        note_gone(staging, gone);
    }
    match gone {
        0 => Ok(()),
        gone => at::chmod(file, mode & !gone),
    }
}

fn note_gone(staging: &Staging, gone: Gone) {
    staging.set_own(Own::NoSetId);
    if gone & SET_GROUP != 0 {
        staging.set_own(Own::NoSetGroup);
    }
}

/// The kernel says that a write to staged content takes set-id bits.
pub fn note_kill(engine: &Engine, id: TxnId, staging: &Staging, caller: Caller) -> Gone {
    let fd = {
        let state = engine.lock();
        let node = state.txns.get(&id).map(|t| t.node);
        node.and_then(|node| state.nodes.fd(node).ok())
    };
    let gone = fd.map_or(0, |fd| gone_of(&*fd, caller));
    note_gone(staging, gone);
    gone
}
