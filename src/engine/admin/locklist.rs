//! Locks, writer slots and claims for people: `commitfs locks`, and the warning about old ones.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::{Engine, State};
use crate::locks::{LockKind, Mode};
use crate::runtime::{NameTotals, Totals};
use crate::sys::{failpoint, proc};

/// So many names are shown by status; `commitfs locks` shows all that are kept.
const MOST_SHOWN: usize = 20;

/// One entry of `commitfs locks`.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum LockLine {
    /// Who holds or waits for something now.
    Now(LockEntry),
    /// What there was of one name's locks since the mount.
    Past(PastLocks),
}

/// What there was of one name's locks since the mount.
#[derive(Clone, Debug, Serialize)]
pub struct PastLocks {
    /// `past`.
    pub state: &'static str,
    /// The name, and what became of its locks.
    #[serde(flatten)]
    pub name: NameTotals,
}

/// What there was of locks since the mount, for `commitfs status`.
#[derive(Clone, Debug, Serialize)]
pub struct LockTotals {
    /// Of all names.
    pub all: Totals,
    /// Of those that were waited for longest.
    pub names: Vec<NameTotals>,
}

/// One line of `commitfs locks`.
#[derive(Clone, Debug, Serialize)]
pub struct LockEntry {
    /// `held` or `waiting`.
    pub state: &'static str,
    /// `flock`, `fcntl`, `open file description`, `flock or fcntl`, `writer slot`, or `claim` (created with O_EXCL).
    pub kind: String,
    /// Path relative to the root.
    pub path: String,
    /// Process.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// Milliseconds since it was granted or asked for.
    pub age_ms: u64,
    /// The process lives.
    pub alive: bool,
    /// Processes that stand against one that waits.
    pub waits_for: Vec<u32>,
}

fn entry(state: &'static str, kind: String, path: String, pid: u32, since: Instant) -> LockEntry {
    let command = proc::comm(pid);
    LockEntry {
        state,
        kind,
        path,
        pid,
        alive: command.is_some(),
        command: command.unwrap_or_default(),
        age_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        waits_for: Vec::new(),
    }
}

impl Engine {
    /// Who holds and who waits for what, oldest first.
    pub fn lock_entries(&self) -> Vec<LockEntry> {
        lock_entries_since(self, Duration::ZERO)
    }
}

/// Who holds and who waits for what, oldest first; of writer slots, of which one program may hold ten thousand, those that are held for so long.
fn lock_entries_since(engine: &Engine, age: Duration) -> Vec<LockEntry> {
    let state = engine.lock();
    let mut all = held_locks(engine, &state);
    all.extend(claim_entries(engine, &state));
    let open = state.txns.values().filter(|t| t.phase.is_open());
    let any_age = age.is_zero() || failpoint::mutant("C2-others");
    for t in open.filter(|t| any_age || t.started.elapsed() >= age) {
        let known = state.names.is_claimed(t.dentry());
        let kind = match (t.slot.is_held(), t.visibility.is_claim() && !known) {
            (true, _) => "writer slot",
            (_, true) => "claim",
            _ => continue,
        };
        all.push(entry(
            "held",
            kind.into(),
            engine.show(&state, t.dentry()),
            t.participants.opener(),
            t.started,
        ));
    }
    for w in state.waits.all() {
        let mut waiting = entry("waiting", w.what.into(), w.path.clone(), w.pid, w.since);
        waiting.waits_for.clone_from(&w.blockers);
        all.push(waiting);
    }
    all.sort_by_key(|e| std::cmp::Reverse(e.age_ms));
    all
}

fn held_locks(engine: &Engine, state: &State) -> Vec<LockEntry> {
    state
        .locks
        .iter()
        .map(|(file, lock, kind)| {
            let node = state.nodes.get(lock.node).or_else(|| state.nodes.get(file));
            let path = match node.and_then(|n| n.at.clone()) {
                Some(dentry) => engine.show(state, &dentry),
                None => "?".into(),
            };
            let call = match kind {
                LockKind::Posix | LockKind::Fcntl => "fcntl",
                LockKind::OpenFile => "open file description",
                LockKind::Flock => "flock",
                LockKind::Unknown => "flock or fcntl",
            };
            let mode = match lock.mode {
                Mode::Shared => "shared",
                Mode::Exclusive => "exclusive",
            };
            entry(
                "held",
                format!("{call}, {mode}"),
                path,
                lock.pid,
                lock.since,
            )
        })
        .collect()
}

/// What there was of locks since the mount.
pub fn lock_totals(state: &State) -> LockTotals {
    LockTotals {
        all: state.tally.lock_stats.all.clone(),
        names: state.tally.lock_stats.names(MOST_SHOWN),
    }
}

pub fn locks_text(engine: &Engine) -> Vec<u8> {
    let now = engine.lock_entries().into_iter().map(LockLine::Now);
    let past = engine.lock().tally.lock_stats.names(usize::MAX);
    let past = past.into_iter().map(|name| PastLocks {
        state: "past",
        name,
    });
    let all: Vec<_> = now.chain(past.map(LockLine::Past)).collect();
    let mut text = serde_json::to_vec_pretty(&all).unwrap_or_default();
    text.push(b'\n');
    text
}

/// One line in the log for each lock that is held for very long.
pub fn warn_of_old_locks(engine: &Engine) {
    let Some(limit) = engine.config.lock_warn else {
        return;
    };
    let entries = lock_entries_since(engine, limit);
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let old = entries
        .into_iter()
        .filter(|e| e.state == "held" && e.age_ms >= limit);
    for e in old {
        let key = (e.path.clone(), e.pid, e.kind.clone());
        if engine.watch.warned.lock().insert(key) {
            log::warn!(
                "{}: {} held by {} ({}) for {} s",
                e.path,
                e.kind,
                e.pid,
                e.command,
                e.age_ms / 1000
            );
        }
    }
}

pub fn claim_entries(engine: &Engine, state: &State) -> Vec<LockEntry> {
    let claims = state.names.claims();
    claims
        .map(|(dentry, c)| LockEntry {
            state: "held",
            kind: "claim".into(),
            path: engine.show(state, dentry),
            pid: c.pid,
            command: c.command.clone(),
            age_ms: u64::try_from(c.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            alive: !c.has_ended(),
            waits_for: Vec::new(),
        })
        .collect()
}
