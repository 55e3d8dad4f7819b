//! rename(2): of what is open, of what is pending, and in the backing directory; over a name with a rule for conflicts it is a
//! save, which may be merged.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::engine::base::publication::Publication;
use crate::engine::base::{current, lines};
use crate::engine::deciding::names::{Renamed, refuse_state_dir};
use crate::engine::deciding::publishing;
use crate::engine::descriptions::append::streams;
use crate::engine::meaning::{deciding, pins, resolve};
use crate::engine::requests::exchange;
use crate::engine::requests::exchange::{rename_into_group, rename_staged, stays_staged};
use crate::engine::requests::merged::rename_merged;
use crate::engine::requests::moving::{check_moved, rename_step, unlink_moved};
use crate::engine::versions::replaced;
use crate::engine::versions::{barrier, durability};
use crate::engine::{Durability, Engine, State};
use crate::namespace::NodeKind;
use crate::rules::Creation;
use crate::sys::failpoint;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId};

/// Whether a rename has to look its names up again, as it takes the timeout of the old name along: the kernel would go by that
/// where somebody has a new file open, or where what comes out is another version. It looks them up once more when told so, and
/// by then they have none.
fn takes_kept_name(engine: &Engine, tid: u32, names: (&Dentry, &Dentry), exchange: bool) -> bool {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let (from, to) = names;
    let takes = takes_timeout_along(engine, state, from, to)
        | (exchange && takes_timeout_along(engine, state, to, from));
    let names = &state.nodes.kept_names;
    let is_dropping = names.is_dropping(from) || exchange && names.is_dropping(to);
    if state.nodes.kept_names.was_told(tid, from, to) {
        return false;
    }
    // Who has no number here can't be told just once.
    let takes = takes || is_dropping && tid != 0;
    if takes && tid != 0 {
        state.nodes.kept_names.tell_renamer(tid, from, to);
    }
    takes && !failpoint::mutant("C1-kept-name")
}

fn takes_timeout_along(engine: &Engine, state: &mut State, from: &Dentry, to: &Dentry) -> bool {
    let source = current::current(engine, state, from).ok();
    let source = source.and_then(|id| state.nodes.get(id));
    let Some((id, kind)) = source.map(|node| (node.id, node.kind)) else {
        return false;
    };
    let is_open = state.txns.all_at(to).next().is_some();
    match kind {
        NodeKind::Dir | NodeKind::Special => is_open && state.nodes.kept_names.ask_each_time(id),
        NodeKind::Private(_) => false,
        NodeKind::File => {
            let policy = || engine.policy(state, to, Creation::default());
            let merges = || Some(policy()).is_some_and(|p| lines::watches(&p) || p.group.is_some());
            let takes = state.nodes.kept_names.is_kept(id) && (is_open || merges());
            takes && state.nodes.drop_name(id)
        }
    }
}

/// The kernel drops what it has kept of the target's name itself.
fn rename_looked_up(
    engine: &Engine,
    caller: Caller,
    (from, to): (&Dentry, &Dentry),
    flags: RenameFlags,
) -> OpResult<()> {
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    pins::leave_names(engine, caller.tid, &[from, to]);
    if takes_kept_name(engine, caller.tid, (from, to), exchange) {
        return Err(Errno::STALE);
    }
    let replaced = {
        let mut state = engine.lock();
        let target = current::current_if_any(engine, &mut state, to)
            .ok()
            .flatten();
        target.filter(|id| !exchange && state.nodes.kept_names.has_dropped(*id))
    };
    let result = rename_now(engine, caller, from, to, flags);
    if let (Err(_), Some(id)) = (&result, replaced) {
        // It is still there.
        let mut state = engine.lock();
        state.nodes.kept_names.keep(id);
        state.nodes.drop_name(id);
    }
    result
}

impl Engine {
    /// rename(2), renameat2(2).
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        new_dir: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        for (dir, name) in [(dir, name), (new_dir, new_name)] {
            if let Err(e) = refuse_state_dir(dir, name) {
                return done(Err(e));
            }
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            return done(Err(Errno::INVAL));
        }
        let from = Dentry {
            dir,
            name: name.to_owned(),
        };
        let to = Dentry {
            dir: new_dir,
            name: new_name.to_owned(),
        };
        self.on_worker(move |engine| done(rename_looked_up(engine, caller, (&from, &to), flags)));
    }
}

fn rename_now(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<()> {
    deciding::await_decisions(engine, &[from, to]);
    if flags.contains(RenameFlags::EXCHANGE) {
        return exchange::exchange_now(engine, caller, from, to);
    }
    let open = {
        let mut state = engine.lock();
        if flags.contains(RenameFlags::NOREPLACE) && deciding::exists(engine, &mut state, to)? {
            return Err(Errno::EXIST);
        }
        resolve::own_transaction(engine, &mut state, caller, from)
            .or_else(|| state.txns.seen_by_all_at(from).next().map(|t| t.id))
    };
    if let Some(id) = open.filter(|id| stays_staged(engine, *id, to)) {
        return rename_staged(engine, caller, id, (from, to));
    }
    match open.map(|id| (id, streams::unpublished_stream(engine, id))) {
        // Its first version takes the new name like any other.
        Some((id, Some(handle))) => drop(streams::publish_first(engine, id, handle, 0, b"")?),
        Some((id, None)) if !failpoint::mutant("C11") => {
            return match rename_open(engine, caller, id, from, to, flags) {
                Err(Errno::NOENT) if engine.lock().has_ended(id) => {
                    rename_now(engine, caller, from, to, flags)
                }
                result => result,
            };
        }
        _ => {}
    }
    if !rename_into_group(engine, caller, from, to)?
        && !rename_merged(engine, caller, from, to, flags)?
    {
        let (source, lost) = rename_in_place(engine, caller, from, to, flags)?;
        if flags.is_empty() {
            let mut state = engine.lock();
            let author = state.conflicts.registry.author(source).map(|a| a.tid);
            replaced::note_replaced(engine, &mut state, caller.tid, author, to, (lost, source));
        }
    }
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// Renames once nothing that either name means is pending.
fn rename_in_place(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<Renamed> {
    barrier::checkpoint_judged(
        engine,
        || check_moved(engine, caller, from, to),
        |judged, barrier| {
            let is_judged = |source, _| judged.is_none_or(|judged| source == judged);
            rename_step(engine, from, to, flags, is_judged, barrier)
        },
    )
}

/// Renames a file whose transaction is open (C11).
fn rename_open(
    engine: &Engine,
    caller: Caller,
    id: TxnId,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<()> {
    if from == to {
        return Ok(());
    }
    // A version committed under the old name before goes with it, as it would have been this
    // very file; what is committed or added from here on stays.
    let left =
        publishing::publish_open(engine, caller.tid, id, to, Publication::Rename(flags))?.left;
    if left.is_some() {
        unlink_moved(engine, caller, from, left)?;
    }
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}
