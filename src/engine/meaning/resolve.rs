//! Which node a name means, and to whom.
//!
//! In this order: the pending open of a writer on its second lookup; a transaction whose staged content the
//! caller sees;
//! an O_EXCL claim; the version committed last; the backing directory.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::meaning::deciding::is_due;
use crate::engine::meaning::seeing::sees;
use crate::engine::meaning::{pins, stat};
use crate::engine::{Engine, State, VOLATILE};
use crate::group::PinnedMember;
use crate::namespace::NodeKind;
use crate::sys::{at, failpoint, proc};
use crate::txn::Last;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, TxnId};

/// How long a lookup waits for the RELEASE of a close that has surely begun (a watcher woken by
/// IN_CLOSE_WRITE comes before it).
const SURE_WAIT: Duration = Duration::from_millis(50);
/// How long a lookup waits for the RELEASE of a close that may not have been the last.
const UNSURE_WAIT: Duration = Duration::from_millis(5);

/// How long the kernel keeps the attributes of a writer's own node that it has looked up: it looks at
/// permissions before it opens it.
pub const OPENING: Duration = Duration::from_millis(20);

pub enum Resolved {
    Node(NodeId),
    /// A commit of this name is between FLUSH and RELEASE.
    Wait(Instant),
}

/// As [`attr_after_lookup`], for who holds the state, which is given back.
pub fn attr_counted(engine: &Engine, state: MutexGuard<'_, State>, id: NodeId) -> OpResult<Attr> {
    let result = attr_in(state, id);
    if result.is_err() {
        let fd = engine.lock().nodes.forget(id, 1);
        engine.defer_close(fd);
    }
    result
}

/// Attributes of any node, for who holds the state, which is given back.
fn attr_in(state: MutexGuard<'_, State>, id: NodeId) -> OpResult<Attr> {
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    let NodeKind::Private(txn) = node.kind else {
        return stat::attr_of(&state, node);
    };
    let Some(txn) = state.txns.get(&txn) else {
        return stat::attr_of(&state, node);
    };
    let staging = txn.staging.clone();
    let fd = state.nodes.fd(id)?;
    let unlinked = txn.is_unlinked();
    // What an editor's node shows otherwise (`shown_number`, lines that are not whole) is asked for.
    let is_plain = txn.purpose.rewrites() && txn.purpose.stream().is_none();
    drop(state);
    // A copy or a guard may hold the content for long; its own attributes are good enough then.
    let mut stat = match staging.try_lock() {
        Some(content) => content.stat()?,
        None => at::stat(&*fd)?,
    };
    if unlinked {
        stat.st_nlink = 0;
    }
    Ok(Attr {
        ino: id,
        stat,
        // A write takes set-id bits away, of which the kernel hears by these alone.
        ttl: match is_plain && stat.st_mode & 0o6000 == 0 {
            true => OPENING,
            false => VOLATILE,
        },
        name_ttl: VOLATILE,
    })
}

/// Attributes for a lookup's answer. The node may have been forgotten only after the answer.
pub fn attr_after_lookup(engine: &Engine, id: NodeId) -> OpResult<Attr> {
    attr_counted(engine, engine.lock(), id)
}

/// Attributes of any node.
pub fn attr(engine: &Engine, id: NodeId) -> OpResult<Attr> {
    attr_in(engine.lock(), id)
}

/// See the module. With `wait`, says when a commit of the name is about to be completed.
pub fn resolve(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
    wait: bool,
) -> OpResult<Resolved> {
    if let Some(node) = state.end_of_retry(caller.tid, dentry) {
        return Ok(Resolved::Node(node));
    }
    if let Some(node) = own_view(engine, state, caller, dentry) {
        return Ok(Resolved::Node(node));
    }
    if let Some(claim) = state.txns.seen_by_all_at(dentry).next() {
        return Ok(Resolved::Node(claim.node));
    }
    match pins::find(engine, state, caller, dentry) {
        Some(PinnedMember::Version(node)) => return Ok(Resolved::Node(node)),
        Some(PinnedMember::Absent) => return Err(Errno::NOENT),
        Some(PinnedMember::Lost) => return Err(Errno::STALE),
        Some(PinnedMember::Current) => {
            return current::current(engine, state, dentry).map(Resolved::Node);
        }
        None => {}
    }
    if wait
        && !failpoint::mutant("C2-settle")
        && let Some(deadline) = about_to_commit(state, dentry)
    {
        return Ok(Resolved::Wait(deadline));
    }
    current::current(engine, state, dentry).map(Resolved::Node)
}

/// The staged view of a transaction the caller takes part in.
fn own_view(engine: &Engine, state: &mut State, caller: Caller, dentry: &Dentry) -> Option<NodeId> {
    let id = own_transaction(engine, state, caller, dentry)?;
    let node = state.txns.get(&id)?.node;
    // Closed, it is waited for like anybody's.
    state.deciding_at(node).is_none().then_some(node)
}

/// The newest open transaction of a name that the caller takes part in.
pub fn own_transaction(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
) -> Option<TxnId> {
    let candidates: Vec<TxnId> = state.txns.at(dentry).map(|t| t.id).collect();
    if candidates.is_empty() || failpoint::mutant("C1-own-view") {
        return None;
    }
    if failpoint::mutant("C1") {
        return candidates.first().copied();
    }
    let tgid = proc::tgid(caller.tid)?;
    candidates.into_iter().find(|id| {
        // What the program sees is what is there, not what it has left behind empty.
        state
            .txns
            .get(id)
            .is_some_and(|txn| sees(state, txn, (tgid, caller.tid)))
            && !current::is_no_op(engine, state, *id)
    })
}

/// Until when to wait for a close of this name that is about to be completed.
fn about_to_commit(state: &State, dentry: &Dentry) -> Option<Instant> {
    let now = Instant::now();
    let followed = state.names.leaders(dentry).iter();
    let followed = followed.filter_map(|id| state.txns.get(id));
    state
        .txns
        .at(dentry)
        .chain(followed)
        .filter_map(|t| {
            if t.phase.is_held() {
                return is_due(state, t).then_some(now + SURE_WAIT);
            }
            if t.phase.is_closing() {
                return Some(now + SURE_WAIT);
            }
            let flush = t.preparation.flush()?;
            let life = match flush.last {
                Last::Surely | Last::Likely => SURE_WAIT,
                Last::No => UNSURE_WAIT,
            };
            let deadline = flush.at + life;
            (deadline > now && t.preparation.is_prepared()).then_some(deadline)
        })
        .max()
}

/// What a name means now, and whether a commit is about to change that.
pub fn name_now(engine: &Engine, state: &mut State, dentry: &Dentry) -> pins::NameNow {
    let current = current::current_if_any(engine, state, dentry)
        .ok()
        .flatten();
    (current, about_to_commit(state, dentry).is_some())
}
