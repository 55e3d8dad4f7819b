//! Large files, which the kernel had better read and write by itself (passthrough).

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::engine::base::lines::may_be_added_to;
use crate::engine::base::opening::Pass;
use crate::engine::base::passed::has_ample_room;
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::journal::Record;
use crate::namespace::Shown;
use crate::rules::{Mode, OnConflict, Policy};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::Transaction;
use crate::types::{HandleId, NodeId, OpResult, TxnId};

/// From this size on, in bytes, it is better to give the kernel the file than to read or write it for it.
const LARGE: u64 = 1 << 20;

/// For who reads a version: not where others may open this very node to write, to add records or in place as a database.
pub fn of_version(
    read: &Shown,
    policy: &Policy,
    is_database: impl FnOnce() -> OpResult<bool>,
) -> OpResult<Pass> {
    let grows = may_be_added_to(policy) && !failpoint::mutant("C10-passed");
    let stays = read.is_whole() && policy.mode != Mode::Direct && !grows;
    Ok(match stays && read.length()? >= LARGE {
        true if !is_database()? => Pass::Wanted,
        _ => Pass::Beside,
    })
}

/// For who writes in a transaction, as the first who does or beside others. The kernel may write what makes all of its content, of which
/// nobody is shown anything before its close, and whose guard would see that it was cut off.
pub fn of_writer(
    store: &Store,
    state: &mut State,
    (id, is_first): (TxnId, bool),
    (tid, flags): (u32, OFlags),
) -> Pass {
    if flags & OFlags::RWMODE == OFlags::RDWR {
        // A mapping of its own would go on changing what is a version by then.
        return Pass::Never;
    }
    let Some(txn) = state.txns.get(&id).filter(|_| is_first) else {
        return Pass::Beside;
    };
    let expected = likely_length(state, txn);
    let is_wanted = expected >= LARGE
        && makes_all(txn, flags)
        && is_hidden(txn)
        && has_ample_room(store, expected)
        && store.tells_writes()
        && state
            .nodes
            .fd(txn.node)
            .is_ok_and(|fd| has_no_privileges(&fd));
    match state.txns.get_mut(&id).filter(|_| is_wanted) {
        Some(txn) => {
            // Nobody will tell.
            txn.participants.write(tid);
            txn.purpose.note_write();
            Pass::Wanted
        }
        None => Pass::Beside,
    }
}

/// As many bytes as the version before has, or the last of its kind.
fn likely_length(state: &State, txn: &Transaction) -> u64 {
    let base = txn
        .purpose
        .base()
        .and_then(|base| state.nodes.fd(base).ok());
    match base.and_then(|base| at::stat(&*base).ok()) {
        Some(stat) => u64::try_from(stat.st_size).unwrap_or(0),
        None => state.files.likely_length(txn.dentry()),
    }
}

fn makes_all(txn: &Transaction, flags: OFlags) -> bool {
    let others = OFlags::APPEND | OFlags::SYNC | OFlags::DSYNC;
    flags.contains(OFlags::TRUNC) && !flags.intersects(others) && !txn.purpose.edits()
}

fn is_hidden(txn: &Transaction) -> bool {
    let policy = &txn.policy;
    let is_guarded = !matches!(
        policy.guard,
        Guard::None | Guard::Json | Guard::JsonStrict | Guard::Hdf5
    );
    is_guarded
        && txn.purpose.stream().is_none()
        && !txn.visibility.is_common()
        && !txn.visibility.is_claim()
        && !policy.publishes_at_rest()
        && policy.on_conflict == OnConflict::Last
}

/// For who opens a file in direct mode. Where the kernel reads it by itself for others who opened it as a version, before it got its name,
/// it serves this one, too, or refuses it; one that was emptied by then must not be refused.
pub fn of_direct(file: &File, flags: OFlags, writes: bool) -> Pass {
    match !writes || flags.contains(OFlags::TRUNC) || has_no_privileges(file) {
        true => Pass::Beside,
        false => Pass::Never,
    }
}

/// A write by an ordinary user would take these from the file, and the kernel doesn't ask for that here.
fn has_no_privileges(file: &File) -> bool {
    let is_plain = at::stat(file).is_ok_and(|stat| stat.st_mode & 0o6000 == 0);
    is_plain && at::get_xattr(file, OsStr::new("security.capability")) == Ok(None)
}

/// A description is not given to who asked for it: what it began is discarded, not committed.
pub fn give_up(engine: &Arc<Engine>, node: NodeId, handle: HandleId) {
    {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let file = state.handles.get(handle).and_then(|file| file.writes_in());
        let txn = file.and_then(|id| state.txns.get_mut(&id));
        if let Some(txn) = txn.filter(|txn| txn.phase.descriptions() == 1) {
            txn.unlink();
            let id = txn.staging_id;
            engine
                .sequencer
                .append(&Record::Retarget { id, path: None })
                .ok();
        }
    }
    engine.release(node, handle, None);
}
