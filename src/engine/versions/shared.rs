//! Files that become databases (C14).
//!
//! A database is shared by all who have it open, in place. Of a name that is new or empty nobody can
//! say yet whether it will be one, and the kernel can't move a description from one node to another
//! later. So whoever opens such a name for reading and writing, to edit it, gets one and the same node: that of
//! a transaction that is *common*. What is written first decides. A database, or what others have
//! open by then, turns direct: its staging file takes the name, and every description writes into it
//! in place from then on. Anything else is staged as ever, seen by its writer alone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::{current, lines, target};
use crate::engine::meaning::{ledger, live_rules, seeing, turns};
use crate::engine::versions::barrier::Step;
use crate::engine::versions::direct_file::DirectFile;
use crate::engine::versions::{barrier, durability, publish, room};
use crate::engine::{Engine, State};
use crate::file::Opening;
use crate::guard::Guard;
use crate::journal::Record;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode, Policy, companion_of, looks_like_database};
use crate::sys::{at, failpoint, proc};
use crate::txn::{KeptContent, Transaction};
use crate::types::{Caller, Dentry, HandleId, NodeId, OpResult, TxnId};

/// Bytes that tell a database: HDF5's signature may come as late as at 2048.
const HEAD: usize = 2048 + 8;

/// Whether an open goes on from what is there, as a database's does.
pub fn is_edit(flags: OFlags) -> bool {
    flags.contains(OFlags::RDWR) && !flags.contains(OFlags::TRUNC)
}

/// Whether a file's first bytes say that it is a database.
pub fn is_database(state: &State, id: NodeId) -> OpResult<bool> {
    let mut head = [0u8; HEAD];
    let file = at::reopen_quietly(&*state.nodes.fd(id)?)?;
    let read = file.read_at(&mut head, 0).unwrap_or(0);
    Ok(looks_like_database(&head[..read]))
}

/// Whether a write tells readers of an HDF5 file that they may follow it from now on (SWMR): the
/// superblock's flags say so, and all that was written before is whole.
pub fn begins_swmr(offset: u64, data: &[u8]) -> bool {
    const SIGNATURE: &[u8] = b"\x89HDF\r\n\x1a\n";
    const VERSION_AT: usize = 8;
    const FLAGS_AT: usize = 11;
    const FOLLOWED: u8 = 4;
    offset == 0
        && data.starts_with(SIGNATURE)
        && data.get(VERSION_AT).is_some_and(|version| *version >= 3)
        && data
            .get(FLAGS_AT)
            .is_some_and(|flags| flags & FOLLOWED != 0)
        && !failpoint::mutant("C14-swmr")
}

/// Whether a caller finds a transaction under its name only because that was everybody's when it
/// looked.
pub fn is_outsider(state: &State, txn: &Transaction, caller: Caller) -> bool {
    txn.visibility.was_common()
        && !txn.visibility.is_seen_by_all()
        && !proc::tgid(caller.tid).is_some_and(|tgid| seeing::sees(state, txn, (tgid, caller.tid)))
}

/// Whether an open of a name that is new or empty is shared until its first write. Under other
/// guards than HDF5's no database is expected, and what is saved there is whole or not at all.
pub fn shares(engine: &Engine, policy: &Policy, flags: OFlags) -> bool {
    is_edit(flags)
            && !flags.contains(OFlags::APPEND)
            && policy.mode == RuleMode::Atomic
            && matches!(policy.guard, Guard::None | Guard::Hdf5)
            && !lines::watches(policy)
            // Else its descriptions could not be mapped.
            && engine.kernel.uncached()
            && !failpoint::mutant("C14")
            && !failpoint::mutant("C14-shared")
}

/// Whether O_TRUNC begins a transaction though others may have the file open in place: under a
/// guard it is replaced by whole documents. (h5py's `w` opens r+ first, empties, and only then asks
/// for the lock that another may have: what it would leave is an empty file.)
pub fn is_rewritten_whole(engine: &Engine, state: &State, dentry: &Dentry) -> bool {
    let policy = engine.policy(state, dentry, Creation::default());
    policy.mode == RuleMode::Atomic
        && policy.guard != Guard::None
        && !failpoint::mutant("C14-rewrite")
}

/// The common transaction of a name, that goes on from the version which is current.
pub fn common_at(state: &State, dentry: &Dentry, base: Option<NodeId>) -> Option<TxnId> {
    let common = |txn: &&Transaction| {
        let unopened = txn.phase.is_reserved() && !state.is_awaited(txn.id);
        txn.visibility.is_common()
            && txn.purpose.base() == base
            && !txn.is_unlinked()
            && !txn.phase.is_closing()
            && !unopened
    };
    let mut all = state.txns.all_at(dentry);
    all.find(common).map(|txn| txn.id)
}

/// Whether a name belongs to a database by its name, and is to be opened as one's companion
/// (`X-wal`, `X-lock` …): direct as X is, or will be.
pub fn is_companion(engine: &Engine, state: &mut State, dentry: &Dentry, flags: OFlags) -> bool {
    if !is_edit(flags) || failpoint::mutant("C14-companions") {
        return false;
    }
    let Some(main) = companion_of(&dentry.name) else {
        return false;
    };
    let main = Dentry {
        dir: dentry.dir,
        name: main.to_owned(),
    };
    let guarded = engine.policy(state, dentry, Creation::default()).guard != Guard::None;
    !guarded && may_be_database(engine, state, &main).unwrap_or(false)
}

/// Whether a name is missing, empty or a database.
fn may_be_database(engine: &Engine, state: &mut State, dentry: &Dentry) -> OpResult<bool> {
    let open: Vec<bool> = state
        .txns
        .at(dentry)
        .map(|t| t.visibility.is_common())
        .collect();
    if open.iter().any(|common| *common) {
        return Ok(true);
    }
    let Some(id) = current::current_if_any(engine, state, dentry)? else {
        // Somebody writes it, but not as a database.
        return Ok(open.is_empty());
    };
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    if node.kind != NodeKind::File || node.unwritten.is_some() {
        return Ok(false);
    }
    Ok(node.direct > 0
        || engine.policy(state, dentry, Creation::default()).mode == RuleMode::Direct
        || at::stat(&*state.nodes.fd(id)?)?.st_size == 0
        || is_database(state, id)?)
}

/// Whether what stands under a name has been a companion of a database: it goes as it came,
/// without waiting for the disk. (SQLite removes its journal after each transaction.)
pub fn was_a_companion(state: &State, dentry: &Dentry, key: (u64, u64)) -> bool {
    let node = state.nodes.known(key).and_then(|id| state.nodes.get(id));
    companion_of(&dentry.name).is_some()
        && node.is_some_and(|n| n.written_in_place && !n.grows())
        && !failpoint::mutant("C14-removal")
}

/// The first write of a common file, or the one that lets others follow an HDF5 file.
pub fn decide_by(
    engine: &Engine,
    caller: Caller,
    handle: HandleId,
    offset: u64,
    data: &[u8],
) -> OpResult<()> {
    let (id, opener, direct) = {
        let state = engine.lock();
        let open = state.handles.get(handle);
        let of_txn = open.and_then(|open| Some((open.transaction()?, open.opening().opener)));
        let Some((id, opener)) = of_txn else {
            return Ok(());
        };
        let Some(txn) = state.txns.get(&id) else {
            return Ok(());
        };
        let direct = if txn.visibility.is_common() {
            // Pages, not a text: a database that spills before it is whole, a piece of a file.
            offset > 0
                || looks_like_database(data)
                || others_have_it_open(&state, txn.id, opener, proc::tgid(caller.tid))
        } else {
            begins_swmr(offset, data)
        };
        (txn.id, opener, direct)
    };
    if direct && turn_direct(engine, id)? {
        return Ok(());
    }
    let mut state = engine.lock();
    if let Some(txn) = state
        .txns
        .get_mut(&id)
        .filter(|txn| txn.visibility.is_common())
    {
        txn.visibility.end_common();
        // Who only shared it is gone, and what is written has nothing of his.
        txn.participants.forgive_sharers(opener);
        if !txn.is_there()
            && txn.purpose.creates()
            && let Some(txn) = state.txns.get(&id)
        {
            engine
                .sequencer
                .append(&durability::begin_record(&state, txn, false))?;
        }
    }
    Ok(())
}

/// Puts what a transaction has staged under its name, to be written in place from now on. Gives
/// whether it could: not if its name is gone, or another's.
fn turn_direct(engine: &Engine, id: TxnId) -> OpResult<bool> {
    let staging = match engine.lock().txns.get(&id) {
        Some(txn) => txn.staging.clone(),
        None => return Ok(true),
    };
    let turned = barrier::checkpoint_until(engine, |engine, barrier| {
        // The disk may be full, and this is where room can be made.
        room::copy_base(engine, &staging)?;
        let mut content = staging.lock();
        if content.failed.is_some() {
            return Ok(Step::Done(false));
        }
        content.copy_base()?;
        let is_whole = content.size()? > 0;
        let lies_in_journal = |state: &State| {
            let txn = state.txns.get(&id);
            txn.is_some_and(|t| t.promise.is_inlined() && t.promise.overtaken().is_none())
        };
        let is_inlined = lies_in_journal(&engine.lock());
        if is_whole || is_inlined {
            // What it replaces must not be gone before this is safe.
            rustix::fs::fdatasync(&*content.file)?;
        }
        if is_inlined {
            engine.store.sync_staging_dir()?;
            if !failpoint::mutant("C7-inlined-direct") {
                leave_journal(engine, id)?;
            }
        }
        let mut guard = engine.lock();
        let state = &mut *guard;
        if lies_in_journal(state) && !failpoint::mutant("C7-inlined-direct") {
            // A close has promised it just now.
            return Ok(Step::CheckpointFirst);
        }
        let Some(txn) = state.txns.get(&id) else {
            return Ok(Step::Done(true));
        };
        let (dentry, base, discarded) =
            (txn.dentry().clone(), txn.purpose.base(), txn.is_unlinked());
        let current = current::current_if_any(engine, state, &dentry)?;
        let is_anothers = current != base && !is_whole;
        let target = target::check_target(engine, state, &dentry);
        if discarded || is_anothers || target.is_err() {
            return Ok(Step::Done(false));
        }
        if state.pending.get(dentry.dir, &dentry.name).is_some()
            || (current.is_some() && barrier::must_checkpoint(engine, state, barrier))
        {
            return Ok(Step::CheckpointFirst);
        }
        put_direct(engine, state, id, &content.file, current)?;
        Ok(Step::Done(true))
    })?;
    Ok(turned)
}

fn put_direct(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    staged: &Arc<File>,
    replaced: Option<NodeId>,
) -> OpResult<()> {
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    let (dentry, staging_id) = (&txn.dentry().clone(), txn.staging_id);
    let dir = engine.dir_fd(state, dentry.dir)?;
    let old = at::open_path(&*dir, &dentry.name).ok();
    let old_stat = old.as_ref().and_then(|fd| at::stat(fd).ok());
    if replaced.is_some() {
        engine.sequencer.barrier()?;
    }
    engine.store.apply(staging_id, &*dir, &dentry.name)?;
    failpoint::crash_point("turned-direct");
    // Nothing of it is left in staging.
    engine
        .sequencer
        .append(&Record::Abort { id: staging_id })
        .ok();
    if let Some(old) = old_stat.filter(|s| s.st_nlink == 1) {
        state.nodes.unlinked((old.st_dev, old.st_ino));
    }
    let txn = state.remove_transaction(id).ok_or(Errno::STALE)?;
    turns::end_turn(state, dentry, id);
    state.forget_save(id);
    let open = open_in_place(state, &txn, staged);
    if let Some(node) = state.nodes.get_mut(txn.node) {
        node.kind = NodeKind::File;
        node.at = Some(dentry.clone());
        node.direct += open;
        node.written_in_place = true;
        node.cached = true;
        node.shown_as = txn.purpose.shown();
    }
    ledger::note_direct_author(engine, state, txn.node, txn.participants.opener_tid());
    durability::mark_dirty(engine, state, dentry.dir);
    publish::replace(engine, state, dentry, replaced, txn.node);
    let fd = replaced.and_then(|replaced| state.nodes.reap(replaced));
    engine.defer_close(fd);
    engine.defer_close(old.map(|fd| Arc::new(fd.into())));
    Ok(())
}

/// Whether a name is in direct mode by its rule and by what is open, without a look at the content.
pub fn is_direct(
    engine: &Engine,
    state: &State,
    id: NodeId,
    dentry: Option<&Dentry>,
) -> OpResult<bool> {
    if failpoint::mutant("C14") {
        return Ok(false);
    }
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    if node.direct > 0 {
        return Ok(true);
    }
    let Some(dentry) = dentry else {
        return Ok(true);
    };
    // A version not yet applied is immutable until it is, whatever its name.
    if state.pending.get(dentry.dir, &dentry.name).is_some() {
        return Ok(false);
    }
    let creation = Creation {
        exclusive: false,
        empty: at::stat(&*state.nodes.fd(id)?)?.st_size == 0,
    };
    let direct = engine.policy(state, dentry, creation).mode == RuleMode::Direct;
    Ok(direct && !live_rules::is_begun_atomic(engine, state, dentry))
}

/// Whether an open of this file is in direct mode: by rule, because others have it open so, or
/// because an in-place editor has met a database.
pub fn opens_direct(
    engine: &Engine,
    state: &mut State,
    id: NodeId,
    dentry: Option<&Dentry>,
    flags: OFlags,
) -> OpResult<bool> {
    if flags.contains(OFlags::TRUNC)
        && dentry.is_some_and(|dentry| is_rewritten_whole(engine, state, dentry))
    {
        return Ok(false);
    }
    if is_direct(engine, state, id, dentry)? {
        return Ok(true);
    }
    if !is_edit(flags) || failpoint::mutant("C14") {
        return Ok(false);
    }
    let companion = dentry.is_some_and(|dentry| is_companion(engine, state, dentry, flags));
    Ok(companion || is_database(state, id)?)
}

/// What an fsync has promised lies in its file by now, which others are about to write: the journal must not make it what it was.
fn leave_journal(engine: &Engine, id: TxnId) -> OpResult<()> {
    let appends = {
        let mut state = engine.lock();
        let Some(txn) = state.txns.get_mut(&id) else {
            return Ok(());
        };
        let promise = Some(&txn.promise).filter(|promise| promise.overtaken().is_none());
        let Some(kept) = promise.and_then(|promise| promise.told().cloned()) else {
            return Ok(());
        };
        let kept = KeptContent::on_medium(kept);
        let told = engine.sequencer.append_all(&kept.records(txn.staging_id))?;
        txn.promise.note_durable(kept);
        told
    };
    durability::sync_journal_to(engine, appends)
}

/// Makes the descriptions of a transaction such as write in place. Gives how many there are.
fn open_in_place(state: &mut State, txn: &Transaction, staged: &Arc<File>) -> u32 {
    let mut open = 0;
    let staged_handles: Vec<HandleId> = state.handles.of(txn.id).map(|(id, _)| id).collect();
    for id in staged_handles {
        let Some(file) = state.handles.get(id) else {
            continue;
        };
        open += 1;
        let writes = file.writes_in().is_some();
        let Opening { how, sync, .. } = file.opening();
        let mut flags = how & OFlags::APPEND;
        flags.set(OFlags::DSYNC, sync);
        let file = match flags.is_empty() {
            true => staged.clone(),
            false => at::reopen(&**staged, flags | OFlags::RDWR)
                .map_or_else(|_| staged.clone(), Arc::new),
        };
        let direct = DirectFile {
            node: txn.node,
            file,
            writes,
        };
        state.handles.insert(id, Arc::new(direct));
    }
    open
}

/// Whether others have a file open, be it for a mapping, than who writes through a description and
/// who has opened that.
fn others_have_it_open(state: &State, id: TxnId, opener: u32, writer: Option<u32>) -> bool {
    let mut openers = state.handles.of(id).map(|(_, file)| file.opening().opener);
    openers.any(|other| other != opener && Some(other) != writer)
}
