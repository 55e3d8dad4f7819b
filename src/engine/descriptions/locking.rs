//! Advisory locks (C12): waiting, granting, and what
//! a grant or an unlock means for what is read and committed.
//!
//! A lock belongs to the file, not to a version. When one is granted through a description, that
//! description moves forward to the version current then; when one is given back by a writer, what
//! it wrote so far is committed first. Waiting is done on workers, with an eye on the signals of
//! the waiting thread: the kernel won't let it go before it has an answer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::io::Errno;

use crate::engine::base::handle::{Asked, Closing, FlushRest, OpenFile, Progress};
use crate::engine::base::state::sleep_until;
use crate::engine::base::{current, state};
use crate::engine::descriptions::commit_points::written_by;
use crate::engine::descriptions::kinds::VersionReader;
use crate::engine::descriptions::{commit_points, io, letting_go};
use crate::engine::documents::texts;
use crate::engine::meaning::{group_locks, ledger, metadata, pins};
use crate::engine::versions::{durability, overlaid};
use crate::engine::{Engine, State};
use crate::locks::{FileId, Lock, LockKind, Mode, closes_cycle};
use crate::namespace::{NodeKind, Shown};
use crate::runtime::{Awaited, Waiting};
use crate::sys::proc::Call;
use crate::sys::{failpoint, proc};
use crate::types::{Caller, HandleId, NodeId, OpResult, TxnId};

/// How often a waiting thread's signals are looked at.
fn signal_look() -> Duration {
    Duration::from_millis(failpoint::number("COMMITFS_SIGNAL_LOOK_MS", 40))
}

/// A lock request.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// Node it is asked on.
    pub node: NodeId,
    /// Description it is asked through.
    pub handle: HandleId,
    /// Owner, as the kernel numbers them.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// `None` unlocks.
    pub mode: Option<Mode>,
    /// Process.
    pub pid: u32,
    /// Wait for it.
    pub wait: bool,
    /// Which call it comes from.
    pub kind: LockKind,
}

/// What stands against a lock.
struct Blocked {
    /// Processes that hold it.
    by: Vec<u32>,
    /// It is free, but others have waited for it.
    gives_way: bool,
}

impl LockRequest {
    fn lock(&self, mode: Mode) -> Lock {
        Lock {
            owner: self.owner,
            start: self.start,
            end: self.end,
            mode,
            kind: self.kind,
            at: None,
            pid: self.pid,
            handle: self.handle,
            node: self.node,
            since: Instant::now(),
        }
    }
}

impl Engine {
    /// An uncached read names the owner of its process's fcntl locks.
    pub fn learn_owner(&self, owner: u64) {
        self.lock().locks.learn_posix(owner);
    }
}

impl Engine {
    /// fcntl(F_GETLK): the first lock that stands against the request.
    pub fn getlk(&self, request: &LockRequest) -> Option<Lock> {
        let state = self.lock();
        let file = state.file_of(request.node);
        // F_OFD_GETLK for F_UNLCK asks for what the description itself holds.
        let wanted = request.lock(request.mode.unwrap_or(Mode::Shared));
        if failpoint::mutant("C12-first") {
            return state.locks.against(file, &wanted).last().cloned();
        }
        let own = request.mode.is_none();
        state.locks.first_against(file, &wanted, own)
    }
}

/// Which call a lock request comes from, asked of the thread that waits for its answer.
fn kind_of_request(caller: Caller, request: &LockRequest) -> LockKind {
    let is_part = request.start != 0 || request.end != crate::locks::END;
    let call = match failpoint::mutant("C12-calls") {
        true => None,
        false => proc::call_of(caller.tid),
    };
    match call {
        Some(Call::Flock) => LockKind::Flock,
        Some(Call::Fcntl(libc::F_SETLK | libc::F_SETLKW)) => LockKind::Posix,
        Some(Call::Fcntl(libc::F_OFD_SETLK | libc::F_OFD_SETLKW)) => LockKind::OpenFile,
        _ if is_part => LockKind::Fcntl,
        _ => LockKind::Unknown,
    }
}

impl Engine {
    /// flock(2), fcntl(F_SETLK), fcntl(F_SETLKW).
    pub fn setlk(
        self: &Arc<Self>,
        caller: Caller,
        request: LockRequest,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let request = LockRequest {
            kind: kind_of_request(caller, &request),
            ..request
        };
        let Some(mode) = request.mode else {
            // The kernel names no process in an unlock.
            let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
            return unlock(self, LockRequest { pid, ..request }, done);
        };
        // To share what was held alone lets others look: it is an unlock, too.
        let writers = match mode == Mode::Shared && holds_alone(self, &request) {
            true => written_under(self, &request),
            false => Vec::new(),
        };
        if writers.is_empty() {
            return lock_or_wait(self, caller, request, mode, done);
        }
        self.on_worker(move |engine| {
            for txn in writers {
                commit_points::commit_point(engine, txn, caller.tid);
            }
            lock_or_wait(engine, caller, request, mode, done);
        });
    }
}

fn holds_alone(engine: &Engine, request: &LockRequest) -> bool {
    let state = engine.lock();
    let file = state.file_of(request.node);
    state.locks.holds_alone(file, &request.lock(Mode::Shared))
}

fn lock_or_wait(
    engine: &Arc<Engine>,
    caller: Caller,
    request: LockRequest,
    mode: Mode,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    match try_lock(engine, &request, mode) {
        Ok(()) => after_grant(engine, caller, request, done),
        Err(_) if !request.wait => {
            let mut state = engine.lock();
            let path = engine.show_node(&state, request.node);
            state.tally.lock_stats.note(&path, |t| t.refused += 1);
            drop(state);
            done(Err(Errno::AGAIN));
        }
        Err(blocked) => {
            let gives_way = blocked.gives_way;
            engine.on_worker(move |engine| {
                match wait_for_lock(engine, caller, &request, mode, gives_way) {
                    Ok(()) => after_grant(engine, caller, request, done),
                    Err(e) => done(Err(e)),
                }
            });
        }
    }
}

/// Grants the lock, or says what stands against it.
fn try_lock(engine: &Engine, request: &LockRequest, mode: Mode) -> Result<(), Blocked> {
    try_lock_in(engine, &mut engine.lock(), request, mode)
}

fn try_lock_in(
    engine: &Engine,
    state: &mut State,
    request: &LockRequest,
    mode: Mode,
) -> Result<(), Blocked> {
    let file = state.file_of(request.node);
    let at = state.nodes.get(request.node).and_then(|n| n.at.clone());
    let wanted = Lock {
        at,
        ..request.lock(mode)
    };
    state.locks.learn_from(&wanted);
    let (holds, gave_up) = state.locks.convert_flock(file, &wanted);
    if gave_up {
        state::note_ended(engine, state, file);
    }
    if holds {
        return Ok(());
    }
    let by: Vec<u32> = state.locks.against(file, &wanted).map(|l| l.pid).collect();
    // Those who have waited for what was given up just now have their turn first.
    let waits = |w: &Waiting| w.lock.as_ref().is_some_and(|(of, _)| *of == file);
    let gives_way = gave_up && request.wait && state.waits.all().any(waits);
    if (by.is_empty() && !gives_way) || failpoint::mutant("C12-exclusion") {
        state.locks.grant(file, wanted.clone());
        group_locks::granted(engine, state, file, &wanted);
        state.files.note_locked(file);
        // Editors that wait for the slot need not any longer: the lock serialises.
        state.wake(Awaited::Locks(file));
        return Ok(());
    }
    Err(Blocked { by, gives_way })
}

fn wait_for_lock(
    engine: &Engine,
    caller: Caller,
    request: &LockRequest,
    mode: Mode,
    gives_way: bool,
) -> OpResult<()> {
    let mut state = engine.lock();
    let file = state.file_of(request.node);
    if gives_way {
        poll_signals(&mut state, caller, &[Awaited::Locks(file)])?;
    }
    let ticket = state.waits.new_ticket();
    let since = Instant::now();
    let wanted = request.lock(mode);
    let result = loop {
        let blockers = match try_lock_in(engine, &mut state, request, mode) {
            Ok(()) => break Ok(()),
            Err(blocked) => blocked.by,
        };
        let others = state.waits.all().filter_map(|w| w.lock.as_ref());
        let others = others.map(|(file, lock)| (*file, lock));
        if state.locks.closes_cycle(file, &wanted, others) {
            break Err(Errno::DEADLK);
        }
        // flock gives up the lock that it converts before it waits, so two that share it and both want it alone don't
        // wait for each other. Where the calls can't be told apart it does so once that is seen to be needed.
        let is_flock = state.locks.kind(&wanted) == LockKind::Unknown;
        if is_flock
            && closes_cycle(request.pid, &blockers, &state.waits.graph())
            && state.locks.release(file, &wanted)
        {
            state::note_ended(engine, &mut state, file);
            continue;
        }
        let path = engine.show_node(&state, request.node);
        state.waits.note(
            ticket,
            Waiting {
                pid: request.pid,
                path,
                what: "lock",
                lock: Some((file, wanted.clone())),
                since,
                blockers,
            },
        );
        // It may be part of another file by now: what was staged is a version.
        let locks = [Awaited::Locks(state.file_of(request.node))];
        if let Err(e) = poll_signals(&mut state, caller, &locks) {
            break Err(e);
        }
    };
    let waiting = state.waits.end(ticket);
    let path = match waiting {
        Some(waiting) => waiting.path,
        None => engine.show_node(&state, request.node),
    };
    state.note_waited(&path, since, result.is_err());
    result
}

/// Waits for one of these to happen, but not long; EINTR when the thread has a signal to take.
pub fn poll_signals(
    state: &mut MutexGuard<'_, State>,
    caller: Caller,
    events: &[Awaited],
) -> OpResult<()> {
    sleep_until(state, events, Instant::now() + signal_look());
    let signalled = MutexGuard::unlocked(state, || proc::pending_fatal_or_any_signal(caller.tid));
    if signalled { Err(Errno::INTR) } else { Ok(()) }
}

/// The barrier: what is read through the description from now on is the current version.
fn after_grant(
    engine: &Arc<Engine>,
    caller: Caller,
    request: LockRequest,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    if failpoint::mutant("C12-barrier") {
        return done(Ok(()));
    }
    let handle = request.handle;
    pins::pass_barrier(engine, caller.tid);
    let Some(file) = engine.lock().handles.get(handle).cloned() else {
        return done(Ok(()));
    };
    let progress = file.granted(engine, Asked { caller, handle }, request.node);
    if let Progress::Done(Err(_)) = progress {
        release_range(engine, &request);
    }
    let again = move |engine: &Arc<Engine>, done| after_grant(engine, caller, request, done);
    io::go_on(engine, progress, done, again);
}

/// A reader, and those who share the kernel's pages with it, read the current version from now on.
pub fn move_reader(
    engine: &Engine,
    caller: Caller,
    handle: HandleId,
    node: NodeId,
) -> OpResult<()> {
    let Some(dentry) = engine.lock().nodes.get(node).and_then(|n| n.at.clone()) else {
        return Ok(());
    };
    let mut guard = texts::lock_materialized(engine, &dentry)?;
    let state = &mut *guard;
    let Some(current) = current::current_if_any(engine, state, &dentry)? else {
        return Ok(());
    };
    pins::note_granted(engine, state, caller, (&dentry, handle));
    if current == node || state.file_of(current) != state.file_of(node) {
        return Ok(());
    }
    let (fd, shown) = (state.nodes.fd(current)?, Shown::of(&state.nodes, current)?);
    let shares_pages = match state.nodes.get_mut(node) {
        Some(n) => {
            n.forwarded = Some(fd);
            n.cached && !engine.kernel.uncached()
        }
        None => false,
    };
    ledger::note_read(engine, state, caller, &dentry, Some((current, &shown.file)));
    let moved: Arc<dyn OpenFile> = Arc::new(VersionReader {
        node,
        read: shown,
        stays: AtomicBool::new(false),
    });
    if shares_pages {
        // The kernel's pages are those of all who read there.
        for other in state.handles.values_mut() {
            if other.reads() == Some(node) {
                other.clone_from(&moved);
            }
        }
    } else if let Some(reader) = state.handles.get_mut(handle)
        && reader.reads().is_some()
    {
        *reader = moved;
    }
    drop(guard);
    tell_moved(engine, node);
    Ok(())
}

/// What is read at a node is another version from now on.
pub fn tell_moved(engine: &Engine, node: NodeId) {
    let Some(notify) = engine.kernel.notify() else {
        return;
    };
    if engine.kernel.uncached() {
        notify.attributes_changed(node);
    } else {
        // Before a lock is said to be granted: the kernel's pages may hold what was read.
        notify.attributes_changed_by_now(node);
    }
}

/// An editor that has written nothing yet starts from the current version; one that has sees
/// what others have written beside that.
pub fn rebase(engine: &Engine, id: TxnId, asked_on: NodeId) -> OpResult<()> {
    let staging = match engine.lock().txns.get(&id) {
        Some(txn) => txn.staging.clone(),
        None => return Ok(()),
    };
    let mut content = staging.lock();
    let dentry = engine.lock().txns.get(&id).map(|txn| txn.dentry().clone());
    let Some(dentry) = dentry else {
        return Ok(());
    };
    if content.passes() {
        // It makes all of its content, and the kernel writes on in the file that holds it.
        return Ok(());
    }
    if content.changed && content.is_by_parts() {
        overlaid::take_parts(engine, id, &mut content, true)?;
        drop(content);
        tell_moved(engine, asked_on);
        return Ok(());
    }
    let mut guard = texts::lock_materialized(engine, &dentry)?;
    let state = &mut *guard;
    let Some(txn) = state.txns.get(&id) else {
        return Ok(());
    };
    let (dentry, base, empties) = (
        txn.dentry().clone(),
        txn.purpose.base(),
        txn.purpose.empties(),
    );
    if content.changed || empties {
        return Ok(());
    }
    let Some(current) = current::current_if_any(engine, state, &dentry)? else {
        return Ok(());
    };
    if base == Some(current) {
        return Ok(());
    }
    let node = state.nodes.get(current).ok_or(Errno::STALE)?;
    if node.kind != NodeKind::File {
        return Ok(());
    }
    let fd = state.nodes.fd(current)?;
    content.start_from(Shown::growing(&state.nodes, current)?);
    metadata::refresh_metadata(engine, &content.file, &staging, &fd)?;
    let body = state.files.body(current);
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.purpose.rebase(current, body);
        txn.visibility.end();
    }
    ledger::note_rebased(state, id, current);
    drop(guard);
    drop(content);
    tell_moved(engine, asked_on);
    Ok(())
}

fn unlock(
    engine: &Arc<Engine>,
    request: LockRequest,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    let writers = written_under(engine, &request);
    let saved = letting_go::saved_under(engine, &request);
    if writers.is_empty() {
        release_range(engine, &request);
        if !letting_go::must_wait(engine, &saved) {
            return done(Ok(()));
        }
        return engine.on_worker(move |engine| {
            letting_go::await_decided(engine, &saved);
            done(Ok(()));
        });
    }
    engine.on_worker(move |engine| {
        for txn in writers {
            // The kernel names no thread in an unlock.
            commit_points::commit_point(engine, txn, 0);
        }
        release_range(engine, &request);
        letting_go::await_decided(engine, &saved);
        done(Ok(()));
    });
}

/// Open transactions of the file that the process which unlocks takes part in and has written:
/// through the locked description or another one (lock by a reader, write by a writer).
fn written_under(engine: &Engine, request: &LockRequest) -> Vec<TxnId> {
    let state = engine.lock();
    let file = state.file_of(request.node);
    if !state.locks.holds(file, request.owner) {
        return Vec::new();
    }
    let open = state.handles.get(request.handle);
    let through = open.and_then(|open| open.writes_in());
    written_by(&state, file, request.pid, through)
}

fn release_range(engine: &Engine, request: &LockRequest) {
    let mut state = engine.lock();
    let file = state.file_of(request.node);
    state.locks.release(file, &request.lock(Mode::Shared));
    state::note_ended(engine, &mut state, file);
    letting_go::decide_given_back(engine, &mut state, file);
}

/// A close by a process: its fcntl locks of the file go, once what it wrote is committed.
pub fn release_posix(engine: &Engine, file: FileId, owner: u64) {
    let mut state = engine.lock();
    if state.locks.release_posix(file, owner) {
        state::note_ended(engine, &mut state, file);
        letting_go::decide_given_back(engine, &mut state, file);
    }
}

/// A descriptor is closed, and nothing of its own is to be committed: what was written under the closing process's fcntl
/// locks is, and they are given back. On a worker.
pub fn end_unchanged(engine: &Engine, close: &Closing, rest: FlushRest) -> OpResult<()> {
    let FlushRest::Unchanged { owed, ended } = rest else {
        return Ok(());
    };
    commit_points::commit_written(engine, close.by.caller, close.locked_file(), None);
    release_posix(engine, close.file, close.owner);
    ended.and_then(|()| durability::await_durable(engine, owed))
}
