//! How an engine begins: its threads, and what they do by themselves; and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::commit::Sequencer;
use crate::conflict::Overwrites;
use crate::engine::admin::locklist;
use crate::engine::base::state::{Backlog, Conflicts, Tally, Walks, sleep};
use crate::engine::base::{errors, files, handle, strangers};
use crate::engine::deciding::copies::Copies;
use crate::engine::deciding::{checkpoint, copies, finishing, merging, prepare, resting, settling};
use crate::engine::descriptions::append::{streams, tails};
use crate::engine::descriptions::retries;
use crate::engine::meaning::{ledger, live_rules, overwrites, pins, probe};
use crate::engine::requests::{round_watch, stale_claims, strays};
use crate::engine::versions::appends::adding::Appends;
use crate::engine::versions::{aborting, overlaid};
use crate::engine::{Engine, Kernel, State, Turns, Watch, Watching, documents};
use crate::file::{KeptOpen, NameTable};
use crate::namespace::{Nodes, PendingSet};
use crate::rules::Rules;
use crate::runtime::{Awaited, Config, Pool, Reaper, Unmount, Waits};
use crate::store::{RejectedBound, Store};
use crate::sys::{at, failpoint, proc};
use crate::txn::Transactions;
use crate::txn::recovery::Recovered;
use crate::types::{NodeId, OpResult, TxnId};

/// The first number given to a file: below 2^53, which is as far as some programs can count, and from
/// a range of this mount's own. `/proc/PID/fdinfo` of a descriptor on another file system, or another
/// mount of ours, hardly ever shows one of ours then (see `probe`).
fn first_number() -> NodeId {
    let range = crate::journal::fresh_id() >> 40;
    NodeId((1 << 52) + (range << 28))
}

/// What is known at the beginning.
fn first_state(store: &Store, config: &Config, last_id: TxnId) -> OpResult<State> {
    let root = store
        .root
        .try_clone()
        .map_err(|e| crate::types::errno_of(&e))?;
    let stat = at::stat(&root)?;
    // What waits for the disk needs as many and more, some are in reserve; half of all are for programs.
    let remembered = usize::try_from(config.descriptors / 6).unwrap_or(usize::MAX);
    Ok(State {
        nodes: Nodes::new(
            Arc::new(root.into()),
            (stat.st_dev, stat.st_ino),
            first_number(),
            remembered,
        ),
        pending: PendingSet::default(),
        txns: Transactions::new(last_id),
        handles: handle::Handles::default(),
        names: NameTable::default(),
        walks: Walks::default(),
        backlog: Backlog::default(),
        tally: Tally::default(),
        locks: crate::locks::LockTable::default(),
        files: files::Files::default(),
        waits: Waits::default(),
        unmount: Unmount::No,
        conflicts: Conflicts {
            overwrites: Overwrites::within(config.descriptors),
            ..Conflicts::default()
        },
        kept_open: KeptOpen::default(),
    })
}

/// All of an engine but its threads.
fn assembled(
    store: Store,
    rules: Rules,
    config: Config,
    recovered: Recovered,
) -> OpResult<Arc<Engine>> {
    let state = first_state(&store, &config, recovered.last_id)?;
    let reaper = Reaper::start()?;
    let rejected_bound = RejectedBound::of(&store.root);
    Ok(Arc::new(Engine {
        store,
        rules: RwLock::new(live_rules::InForce::of(rules)),
        config,
        state: Mutex::new(state),
        checkpoint_wanted: Condvar::new(),
        sequencer: Sequencer::new(recovered.journal, recovered.last_seq),
        appends: Appends::default(),
        watch: Watch::default(),
        pool: Pool::default(),
        reaper,
        watching: Watching::default(),
        documents: documents::Documents::default(),
        kernel: Kernel::default(),
        turns: Turns::default(),
        rejected_bound,
        strangers: strangers::Strangers::default(),
    }))
}

impl Engine {
    /// An engine over a recovered store, with its threads.
    pub fn start(
        store: Store,
        rules: Rules,
        config: Config,
        recovered: Recovered,
    ) -> OpResult<Arc<Engine>> {
        let engine = assembled(store, rules, config, recovered)?;
        crate::sys::spare::fill();
        errors::take_over_unread(&engine);
        checkpoint::start_checkpoint(&engine)?;
        start_watch(&engine)?;
        round_watch::start_watch(&engine)?;
        strays::start_looking_for_strays(&engine);
        Ok(engine)
    }
}

/// The watch: sweeps notes nobody came back for, reports idle holders (C3).
pub fn start_watch(engine: &std::sync::Arc<Engine>) -> crate::types::OpResult<()> {
    let engine = std::sync::Arc::downgrade(engine);
    std::thread::Builder::new()
        .name("watch".into())
        .spawn(move || {
            while let Some(engine) = engine.upgrade() {
                retries::sweep_retries(&engine);
                sweep(&engine);
                pins::sweep(&engine);
                tails::flush_old_tails(&engine);
                resting::look_after_rest(&engine);
                locklist::warn_of_old_locks(&engine);
                stale_claims::look_after_claims(&engine);
                engine.documents.pieces.sweep();
                overlaid::keep_overlaid(&engine);
                errors::keep_unread(&engine);
                ledger::look_after_parties(&engine);
                overwrites::guess_counters(&engine);
                keep_log_small(&engine);
                engine.lock().conflicts.overwrites.texts.forget_old();
                drop(engine);
                std::thread::sleep(std::time::Duration::from_millis(250));
            }
        })
        .map(drop)
        .map_err(|e| crate::types::errno_of(&e))
}

/// A mount may stand for months.
pub fn keep_log_small(engine: &Engine) {
    if engine.config.log == crate::engine::LogTo::File
        && let Err(e) = engine.store.turn_log_over()
    {
        log::debug!("the log goes on growing: {e}");
    }
}

pub fn sweep(engine: &Engine) {
    probe::resolve_doubts(engine);
    let mut guard = engine.lock();
    let state = &mut *guard;
    if checkpoint::should_rotate(engine, state) {
        checkpoint::rotate(engine, state);
    }
    state.files.tidy(&state.nodes);
    if state.pending.is_empty() && state.txns.is_empty() && !state.backlog.checkpoint.busy {
        state.nodes.reap_directories(state.names.in_use());
    }
    let idle: Vec<_> = state
        .txns
        .values()
        .filter(|t| t.phase.is_open() && t.participants.idle_holders().is_none())
        .filter(|t| {
            t.preparation
                .flush()
                .is_some_and(|f| f.at.elapsed() > IDLE_AFTER)
        })
        .filter(|t| !t.participants.sure_holders().any(proc::lives))
        .map(|t| {
            (
                t.id,
                probe::Looks::of(state, t),
                t.participants.pids().collect::<Vec<_>>(),
            )
        })
        .collect();
    let shrunk = state.nodes.shrink();
    drop(guard);
    if engine.watch.freed.swap(false, Ordering::Relaxed) || shrunk {
        crate::sys::heap::give_back();
    }
    for (id, looks, writers) in idle {
        report_idle(engine, id, &looks, &writers);
    }
}

pub fn report_idle(engine: &Engine, id: TxnId, looks: &probe::Looks, writers: &[u32]) {
    let ours = |ino, how| looks.may_be(ino, how);
    let may_hold = |pid: &u32| {
        let holding = proc::holds(*pid, MOST_LOOKS, &ours);
        matches!(holding, proc::Holding::Yes | proc::Holding::Unlikely)
    };
    if writers.iter().any(may_hold) {
        return;
    }
    let holds = |pid: &u32| proc::holds(*pid, u64::MAX, &ours) == proc::Holding::Yes;
    let holders: Vec<u32> = proc::all_pids().into_iter().filter(|p| holds(p)).collect();
    let mut state = engine.lock();
    let Some(txn) = state.txns.get_mut(&id) else {
        return;
    };
    txn.participants.note_idle(holders.clone());
    let dentry = txn.dentry().clone();
    let path = engine.show(&state, &dentry);
    drop(state);
    let who: Vec<String> = holders
        .iter()
        .map(|p| format!("{p} ({})", proc::command(*p)))
        .collect();
    log::warn!(
        "{path}: its writer is gone, but it is not committed while still held open by {}",
        if who.is_empty() {
            "a mapping or a descriptor in transit".to_owned()
        } else {
            who.join(", ")
        }
    );
}

/// Of how many descriptors of a writer the watch looks at each, four times a second.
pub const MOST_LOOKS: u64 = 1024;

/// How long a description may be held by a process that merely inherited it before it is told.
pub const IDLE_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// The kernel throws queued RELEASEs away with a connection. No reference is left by then:
/// what was prepared is committed as if they had come, in the order of the closes.
fn finish_flushed(engine: &Engine) {
    let mut state = engine.lock();
    let mut flushed: Vec<_> = state
        .txns
        .values()
        .filter(|t| t.preparation.is_prepared() && !t.phase.is_held())
        .filter_map(|t| Some((t.preparation.flush()?.at, t.id)))
        .collect();
    flushed.sort_unstable();
    let mut all = Vec::new();
    for (_, id) in flushed {
        // One before it may have edited the same file.
        let mut copies = Copies::default();
        if (!merging::still_fits(engine, &mut state, id) || state.names.is_followed(id))
            && let Some(txn) = state.txns.get_mut(&id)
        {
            txn.phase.close();
            let (staging, pid) = (txn.staging.clone(), txn.participants.last_closer());
            drop(state);
            prepare::prepare(engine, id, &staging, pid).ok();
            copies = copies::copies_of_prepared(engine, id);
            state = engine.lock();
        }
        all.extend(finishing::finish_with(engine, &mut state, id, copies));
    }
    drop(state);
    aborting::finish_aborted(engine, all);
}

impl Engine {
    /// An unmount didn't come about.
    pub fn stay(&self) {
        let mut state = self.lock();
        state.unmount = Unmount::No;
        crate::sys::interrupt::go_on();
    }
}

impl Engine {
    /// After the last request: brings everything into the backing directory.
    pub fn shut_down(&self) {
        // The end of the connection and who unmounts by force come here both, and the first to be
        // through ends the process.
        let _turn = self.turns.shutdown.lock();
        failpoint::delay("COMMITFS_SHUTDOWN_DELAY_MS");
        finish_flushed(self);
        settling::end_all(self);
        streams::flush_all_tails(self);
        overlaid::keep_all_overlaid(self);
        errors::keep_unread(self);
        let mut state = self.lock();
        state.backlog.checkpoint.stop = true;
        let rounds = state.backlog.checkpoint.rounds;
        self.checkpoint_wanted.notify_one();
        while state.backlog.checkpoint.rounds == rounds && state.backlog.checkpoint.failed.is_none()
        {
            sleep(&mut state, &[Awaited::Round]);
        }
        while !state.pending.is_empty() && state.backlog.checkpoint.trouble().is_none() {
            sleep(&mut state, &[Awaited::Round]);
        }
        if let (Some(e), waiting @ 1..) =
            (state.backlog.checkpoint.stuck, state.pending.iter().count())
        {
            log::error!(
                "{waiting} commits can't be put in place: {e}; they are kept in .commitfs, and the next mount does it"
            );
        }
        if state.pending.is_empty() {
            if !state.backlog.unsynced.has_appended() {
                // What is done to the files until the next mount is nobody's append.
                state.backlog.growing = crate::commit::Growing::default();
            }
            checkpoint::rotate(self, &mut state);
        }
    }
}
