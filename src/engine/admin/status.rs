//! What a person or a script may want to know of a living mount.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::engine::admin::locklist;
use crate::engine::base::{advice, rest};
use crate::engine::meaning::{live_rules, overwrites, pins};
use crate::engine::{Durability, Engine, State};
use crate::group::{GroupRound, Rounds};
use crate::store::id_name;
use crate::types::path_hex;

/// An optional feature, most of them of the kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// In use.
    pub on: bool,
    /// Why not, if not.
    pub why: String,
}

/// Whether deaths of writers can be told from exits (C4).
#[derive(Clone, Debug, Serialize)]
pub struct Detection {
    /// They can.
    pub on: bool,
    /// Why not, if not.
    pub why: String,
}

/// An open transaction.
#[derive(Clone, Debug, Serialize)]
pub struct OpenTransaction {
    /// Its id, under which rejected has it if it isn't committed.
    pub id: String,
    /// Path relative to the root.
    pub path: String,
    /// Its bytes in hexadecimal, if they aren't UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Process that opened it.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// Milliseconds since the open.
    pub age_ms: u64,
    /// Bytes staged.
    pub bytes: u64,
    /// `open`, or `prepared` after a FLUSH.
    pub state: &'static str,
    /// Processes that hold it though its writer is gone (C3).
    pub idle_holders: Vec<u32>,
}

/// An open round, as status tells of it.
#[derive(Clone, Debug, Serialize)]
pub struct RoundTold {
    /// Under which rejected lists it, should it not be published.
    pub id: String,
    /// The group's number in the rules file.
    pub group: u32,
    /// Processes that save it, the first first.
    pub pids: Vec<u32>,
    /// The command of the first.
    pub command: String,
    /// Milliseconds since the first open.
    pub age_ms: u64,
    /// Its members so far.
    pub members: Vec<MemberTold>,
    /// What is to come before it is complete.
    pub missing: Vec<String>,
    /// The lock under which it is saved, if it is by one that it is decided of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<RoundLockTold>,
}

/// The lock under which a round is saved.
#[derive(Clone, Debug, Serialize)]
pub struct RoundLockTold {
    /// Path of what is locked, relative to the root.
    pub path: String,
    /// The process that holds it, or has held it.
    pub holder: u32,
    /// Milliseconds since it was given back: nobody gets it before it is decided of the round.
    pub let_go_ms: Option<u64>,
}

/// A member of an open round.
#[derive(Clone, Debug, Serialize)]
pub struct MemberTold {
    /// Path relative to the root.
    pub path: String,
    /// `writing`, `saved` or `refused`.
    pub state: &'static str,
}

/// Groups, as status tells of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GroupsTold {
    /// Rounds that are not decided.
    pub rounds: Vec<RoundTold>,
    /// Rounds published.
    pub published: u64,
    /// Of these, without all members.
    pub incomplete: u64,
    /// Rounds that went to rejected.
    pub rejected: u64,
    /// Members that were saved alone.
    pub alone: u64,
    /// What readers have pinned.
    pub pins: pins::PinsTold,
}

fn lock_told(rounds: &Rounds, round: &GroupRound) -> Option<RoundLockTold> {
    let holding = rounds.holdings.get(round.lock.as_ref()?.holding)?;
    let milliseconds = |at: Instant| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
    Some(RoundLockTold {
        path: holding.path.to_string_lossy().into_owned(),
        holder: holding.pid,
        let_go_ms: holding.let_go.map(milliseconds),
    })
}

fn groups_told(engine: &Engine, state: &State) -> GroupsTold {
    let rounds = &state.txns.rounds;
    let counts = rounds.counts;
    let told = |round: &GroupRound| RoundTold {
        id: id_name(round.id),
        group: round.group.number,
        pids: round.savers.iter().map(|s| s.pid).collect(),
        command: round
            .savers
            .first()
            .map_or_else(String::new, |s| s.command.clone()),
        age_ms: u64::try_from(round.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        members: round
            .members()
            .take(MEMBERS_SHOWN)
            .map(|(dentry, member)| MemberTold {
                path: engine.show(state, dentry),
                state: member.state(),
            })
            .collect(),
        missing: round.missing(),
        lock: lock_told(rounds, round),
    };
    GroupsTold {
        rounds: rounds.all().map(told).collect(),
        published: counts.published,
        incomplete: counts.incomplete,
        rejected: counts.rejected,
        alone: counts.alone,
        pins: pins::told(state),
    }
}

/// What is wrong with the disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskTrouble {
    /// Why commits can't be made durable, if they can't.
    pub failed: Option<String>,
    /// Why commits can't be put in place for now; they are kept, and it is tried again.
    pub stuck: Option<String>,
}

/// Rejected content, summed up.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RejectedSum {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Counters since the mount.
#[derive(Clone, Debug, Serialize)]
pub struct CounterValues {
    /// Versions published.
    pub commits: u64,
    /// Transactions that didn't, by reason.
    pub aborts: BTreeMap<&'static str, u64>,
    /// Rewrites based on a version that wasn't current any more.
    pub overwritten_updates: u64,
    /// Contents moved to rejected.
    pub rejected: u64,
    /// Waits for a writer slot given up after the lock timeout.
    pub lock_timeouts: u64,
    /// Lock files whose creators ended without removing them.
    pub stale_claims: u64,
    /// Contents published though their guards find them wrong in their middle.
    pub malformed: u64,
    /// Opens of large files whose content the kernel reads by itself (passthrough).
    pub passed: u64,
    /// Saves merged into what others had committed meanwhile.
    pub merges: u64,
    /// Places in them where the later of two changes won.
    pub merge_conflicts: u64,
    /// Saves not merged because it was not certain what they build on.
    pub uncertain_bases: u64,
    /// Saves not merged because something was no JSON document.
    pub unmerged: u64,
    /// JSON documents edited through attributes.
    pub patches: u64,
    /// Such edits refused because the version they named wasn't current.
    pub stale_patches: u64,
    /// Such edits begun again, as somebody had committed meanwhile.
    pub patch_retries: u64,
}

/// Which mount it is.
#[derive(Clone, Debug, Serialize)]
pub struct MountTold {
    /// Version of the daemon.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// Backing directory.
    pub backing: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// `async` or `sync`.
    pub durability: &'static str,
    /// Where the daemon's log goes: `file` (`.commitfs/daemon.log`), `journal` or `stderr`.
    pub log: crate::engine::LogTo,
}

impl MountTold {
    fn of(engine: &Engine) -> MountTold {
        MountTold {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            backing: engine.store.path.to_string_lossy().into_owned(),
            mountpoint: engine.config.mountpoint.to_string_lossy().into_owned(),
            durability: match engine.config.durability {
                Durability::Async => "async",
                Durability::Sync => "sync",
            },
            log: engine.config.log,
        }
    }
}

/// The answer to `commitfs status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Which mount it is.
    #[serde(flatten)]
    pub mount: MountTold,
    /// C4.
    pub killed_writer_detection: Detection,
    /// Optional features.
    pub features: Vec<Feature>,
    /// Open transactions, oldest first.
    pub transactions: Vec<OpenTransaction>,
    /// Counters.
    pub counters: CounterValues,
    /// What there was of locks, writer slots and lock files since the mount.
    pub locks: locklist::LockTotals,
    /// How long commits take.
    pub latency: crate::runtime::Latency,
    /// Committed versions not yet in the backing directory.
    pub pending: usize,
    /// What keeps commits from the medium, or from their places.
    #[serde(flatten)]
    pub trouble: DiskTrouble,
    /// Files that are published together.
    pub groups: GroupsTold,
    /// Rejected content.
    pub rejected: RejectedSum,
    /// Updates overwritten by who had not seen them, by path, where no rule keeps them.
    pub overwritten: Vec<crate::conflict::Overwritten>,
    /// Files that their writers keep open and rewrite, which nobody else sees before the close.
    pub kept_open: Vec<crate::file::Held>,
    /// The rules in force.
    pub rules: live_rules::RulesTold,
    /// Errors nobody has read yet.
    pub errors: Vec<crate::engine::ErrorReport>,
}

/// Reasons that are always shown, also at zero.
const REASONS: [&str; 7] = [
    "killed",
    "failed_write",
    "guard",
    "discarded",
    "forced",
    "vanished_target",
    "conflict",
];

impl Engine {
    /// The mount as it is now.
    pub fn status(&self) -> Status {
        let rejected = self.store.list_rejected().unwrap_or_default();
        overwrites::guess_counters(self);
        let mut state = self.lock();
        state.tally.errors.note_told(&rejected);
        let mut aborts: BTreeMap<&'static str, u64> = REASONS.iter().map(|r| (*r, 0)).collect();
        aborts.extend(state.tally.counters.aborts.iter().map(|(k, v)| (*k, *v)));
        let unread = state.tally.errors.unread();
        let no_detection = self.config.no_killed_writer_detection.clone();
        let no_detection = no_detection.or_else(|| self.strangers.why());
        Status {
            mount: MountTold::of(self),
            killed_writer_detection: Detection {
                on: no_detection.is_none(),
                why: no_detection.unwrap_or_default(),
            },
            features: features_now(self),
            transactions: open_transactions(self, &state),
            counters: CounterValues {
                commits: state.tally.counters.commits,
                aborts,
                overwritten_updates: state.tally.counters.overwritten,
                rejected: state.tally.counters.rejected,
                lock_timeouts: state.tally.counters.lock_timeouts,
                stale_claims: state.tally.counters.stale_claims,
                malformed: state.tally.counters.malformed,
                passed: state.tally.metrics.passed,
                merges: state.tally.counters.merges,
                merge_conflicts: state.tally.counters.merge_conflicts,
                uncertain_bases: state.tally.counters.uncertain_bases,
                unmerged: state.tally.counters.unmerged,
                patches: state.tally.counters.patches,
                stale_patches: state.tally.counters.stale_patches,
                patch_retries: state.tally.counters.patch_retries,
            },
            locks: locklist::lock_totals(&state),
            latency: state.tally.metrics.told(std::time::Instant::now()),
            pending: state.pending.len(),
            trouble: DiskTrouble {
                failed: state.backlog.checkpoint.failed.map(|e| e.to_string()),
                stuck: state.backlog.checkpoint.stuck.map(|e| e.to_string()),
            },
            groups: groups_told(self, &state),
            rejected: RejectedSum {
                count: rejected.len(),
                bytes: rejected.iter().map(|r| r.len).sum(),
            },
            overwritten: overwrites::with_commands(self, state.conflicts.overwrites.list()),
            kept_open: rest::kept_open(self, &state),
            rules: live_rules::rules_told(self),
            errors: unread.map(|u| advice::told(self, u, &rejected)).collect(),
        }
    }
}

fn features_now(engine: &Engine) -> Vec<Feature> {
    let mut features = engine.kernel.features.get().cloned().unwrap_or_default();
    let untold = engine.watching.untold.lock().clone();
    features.push(Feature {
        name: "supersession_events",
        on: untold.is_none(),
        why: untold.unwrap_or_default(),
    });
    features
}

pub fn open_transactions(engine: &Engine, state: &State) -> Vec<OpenTransaction> {
    let mut open: Vec<_> = state
        .txns
        .values()
        .filter(|t| !t.phase.is_reserved())
        .map(|t| OpenTransaction {
            id: id_name(t.staging_id),
            path: engine.show(state, t.dentry()),
            path_hex: path_hex(&engine.path_of(state, t.dentry())),
            pid: t.participants.opener(),
            command: t.participants.to_who().1,
            age_ms: u64::try_from(t.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes: t
                .staging
                .try_lock()
                .and_then(|c| c.size().ok())
                .unwrap_or(0),
            state: if t.phase.is_held() {
                "waits for its group"
            } else if t.preparation.is_prepared() {
                "prepared"
            } else {
                "open"
            },
            idle_holders: t.participants.idle_holders().unwrap_or_default().to_vec(),
        })
        .collect();
    open.sort_by_key(|t| std::cmp::Reverse(t.age_ms));
    open
}

/// A text file's worth of status.
pub fn status_text(engine: &Engine) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(&engine.status()).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Members of one round that are listed.
const MEMBERS_SHOWN: usize = 100;
