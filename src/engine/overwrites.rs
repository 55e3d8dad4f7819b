//! Updates that others overwrote without having seen them, where no rule keeps them (C17): counted
//! for each path, with the rule that would have kept them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;

use super::{Engine, State};
use crate::json::Value;
use crate::namespace::Sum;
use crate::rules::{Creation, OnConflict};
use crate::sys::{at, proc};
use crate::types::{NodeId, Slot, now_ns};

/// Threads of which it is known what they have read, at most.
const THREADS: usize = 4096;
/// Files that a thread has read, at most.
const FILES: usize = 8;
/// Paths that are counted, at most.
const PATHS: usize = 200;
/// Counters that a rule proposes, at most.
const COUNTERS: usize = 20;
/// Times that the documents of a path are compared.
const LOOKS: u32 = 40;
/// Pairs of versions that wait to be compared.
const UNSEEN: usize = 64;
/// Documents up to this size are.
const COMPARED: usize = 1 << 20;
/// Paths that status shows.
const SHOWN: usize = 20;

/// What threads have read, and what was overwritten.
#[derive(Debug, Default)]
pub struct Overwrites {
    threads: HashMap<u32, Thread>,
    /// In the order in which they came.
    order: VecDeque<u32>,
    clock: u64,
    paths: HashMap<String, Overwritten>,
    /// Versions to be compared, of a path: one, and the one that replaced it.
    unseen: VecDeque<(String, Arc<OwnedFd>, Arc<OwnedFd>)>,
}

#[derive(Debug, Default)]
struct Thread {
    /// Its process's parent, once it has been asked for.
    parent: Option<u32>,
    files: VecDeque<Seen>,
}

/// The version of a file that a thread has to do with.
#[derive(Clone, Debug)]
pub struct Seen {
    slot: Slot,
    /// The version.
    pub version: NodeId,
    /// Its length and checksum.
    sum: Option<Sum>,
    at: u64,
    /// What a child has read, for the parent's next save.
    by_child: bool,
}

/// The updates of one path that were overwritten.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Overwritten {
    /// Path relative to the root.
    pub path: String,
    /// How often.
    pub count: u64,
    /// Who did it last.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// When, in nanoseconds since the epoch.
    pub time_ns: i64,
    /// The rule that would have kept them, as it stands in a rules file.
    pub rule: String,
    #[serde(skip)]
    counters: BTreeSet<String>,
    /// How often its documents were compared.
    #[serde(skip)]
    looks: u32,
}

impl Overwrites {
    /// A thread has read a version: for itself, or for its parent (`x=$(jq … f)`).
    pub fn note_read(&mut self, tid: u32, slot: &Slot, version: (NodeId, Option<Sum>)) {
        self.note(tid, slot, version, false);
        if let Some(thread) = self.threads.get_mut(&tid) {
            let parent = *thread
                .parent
                .get_or_insert_with(|| proc::parent(tid).unwrap_or(0));
            if parent > 1 {
                self.note(parent, slot, version, true);
            }
        }
    }

    /// A thread has written a version. What it has read was not for its parent.
    pub fn note_saved(&mut self, tid: u32, slot: &Slot, version: (NodeId, Option<Sum>)) {
        let parent = self.threads.get(&tid).and_then(|t| t.parent);
        for tid in [Some(tid), parent].into_iter().flatten() {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.files.retain(|s| !s.by_child || s.slot != *slot);
            }
        }
        self.note(tid, slot, version, false);
    }

    fn note(
        &mut self,
        tid: u32,
        slot: &Slot,
        (version, sum): (NodeId, Option<Sum>),
        by_child: bool,
    ) {
        if !self.threads.contains_key(&tid) {
            while self.threads.len() >= THREADS
                && let Some(oldest) = self.order.pop_front()
            {
                self.threads.remove(&oldest);
            }
            self.order.push_back(tid);
        }
        self.clock += 1;
        let seen = Seen {
            slot: slot.clone(),
            version,
            sum,
            at: self.clock,
            by_child,
        };
        let files = &mut self.threads.entry(tid).or_default().files;
        files.retain(|s| s.slot != *slot || s.by_child != by_child);
        if files.len() >= FILES {
            files.pop_front();
        }
        files.push_back(seen);
    }

    /// The version of a name that a thread, or a child of it, saw last.
    pub fn last_seen(&self, tid: u32, slot: &Slot) -> Option<&Seen> {
        let files = self.threads.get(&tid)?.files.iter();
        files.filter(|s| s.slot == *slot).max_by_key(|s| s.at)
    }

    /// Those that status shows: the most frequent first.
    pub fn list(&self) -> Vec<Overwritten> {
        let mut all: Vec<Overwritten> = self.paths.values().cloned().collect();
        all.sort_by(|a, b| (b.count, &a.path).cmp(&(a.count, &b.path)));
        all.truncate(SHOWN);
        for one in &mut all {
            one.rule = rule_for(&one.path, &one.counters);
        }
        all
    }
}

impl Engine {
    /// A save has replaced a version that it did not build on.
    pub(super) fn note_overwritten(
        &self,
        state: &mut State,
        slot: &Slot,
        (pid, command): (u32, &str),
        lost: NodeId,
        by: NodeId,
    ) {
        if state.is_empty(lost) {
            return;
        }
        state.counters.overwritten += 1;
        let path = self.show(state, slot);
        log::info!("{path}: {pid} ({command}) replaced a version that it had not seen");
        let policy = self.policy(state, slot, Creation::default());
        if policy.on_conflict != OnConflict::Last {
            return;
        }
        let paths = &mut state.overwrites.paths;
        if paths.len() >= PATHS && !paths.contains_key(&path) {
            let oldest = paths.values().min_by_key(|o| o.time_ns);
            if let Some(oldest) = oldest.map(|o| o.path.clone()) {
                paths.remove(&oldest);
            }
        }
        let entry = paths.entry(path.clone()).or_default();
        entry.path.clone_from(&path);
        entry.count += 1;
        (entry.pid, entry.command, entry.time_ns) = (pid, command.to_owned(), now_ns());
        state.compare(path, lost, by);
    }

    /// A save has replaced the version that it builds on. Two that overwrote each other may have
    /// counted alike: what those that follow change tells what they count by.
    pub(super) fn note_followed(&self, state: &mut State, slot: &Slot, old: NodeId, by: NodeId) {
        if !state.overwrites.paths.is_empty() {
            let path = self.show(state, slot);
            state.compare(path, old, by);
        }
    }

    /// Numbers that differ between versions that replace each other, where some were overwritten,
    /// are what programs count by.
    pub(super) fn guess_counters(&self) {
        loop {
            let next = self.lock().overwrites.unseen.pop_front();
            let Some((path, lost, by)) = next else {
                return;
            };
            let read = |fd: &OwnedFd| super::merging::read_document_of(fd, COMPARED);
            let (Some(lost), Some(by)) = (read(&lost), read(&by)) else {
                continue;
            };
            let mut found = BTreeSet::new();
            differing_numbers(lost.value(), by.value(), &mut String::new(), &mut found);
            let mut state = self.lock();
            if let Some(entry) = state.overwrites.paths.get_mut(&path) {
                entry.counters.extend(found);
                while entry.counters.len() > COUNTERS {
                    entry.counters.pop_last();
                }
            }
        }
    }
}

impl State {
    /// Whether who saw a version last has seen what stands in another: rewritten with the same
    /// bytes it is no other.
    pub(super) fn is_as_seen(&self, seen: &Seen, version: NodeId) -> bool {
        seen.version == version || seen.sum.is_some() && seen.sum == self.nodes.sum(version)
    }

    /// A thread has written a version.
    pub(super) fn note_saved(&mut self, tid: u32, slot: &Slot, version: NodeId) {
        let sum = self.nodes.sum(version);
        self.overwrites.note_saved(tid, slot, (version, sum));
    }

    /// Files that serve as locks only are opened for writing all the time.
    fn is_empty(&self, version: NodeId) -> bool {
        let is_written = self
            .nodes
            .get(version)
            .is_some_and(|n| n.unwritten.is_none());
        let stat = || at::stat(&*self.nodes.fd(version)?);
        is_written && stat().is_ok_and(|stat| stat.st_size == 0)
    }

    /// Has two versions of a path compared, if some of its were overwritten, but not for ever.
    fn compare(&mut self, path: String, old: NodeId, by: NodeId) {
        let overwrites = &mut self.overwrites;
        let Some(entry) = overwrites.paths.get_mut(&path) else {
            return;
        };
        if entry.looks < LOOKS
            && overwrites.unseen.len() < UNSEEN
            && let (Ok(old), Ok(by)) = (self.nodes.fd(old), self.nodes.fd(by))
        {
            entry.looks += 1;
            overwrites.unseen.push_back((path, old, by));
        }
    }
}

fn differing_numbers(one: &Value, two: &Value, at: &mut String, found: &mut BTreeSet<String>) {
    match (one, two) {
        (Value::Number(one), Value::Number(two)) if one != two && one.is_finite() => {
            found.insert(at.clone());
        }
        (Value::Object(one), Value::Object(two)) => {
            for member in one.members() {
                let name = member.key.as_str();
                if let Some(other) = two.get(&name) {
                    let length = at.len();
                    at.push('/');
                    at.push_str(&name.replace('~', "~0").replace('/', "~1"));
                    differing_numbers(&member.value, other, at, found);
                    at.truncate(length);
                }
            }
        }
        _ => {}
    }
}

/// `[[rule]]` for one path.
fn rule_for(path: &str, counters: &BTreeSet<String>) -> String {
    let mut glob = String::new();
    for c in path.chars() {
        if "*?[]{}!\\".contains(c) {
            glob.push('\\');
        }
        glob.push(c);
    }
    let mut rule = format!(
        "[[rule]]\nglob = {}\non_conflict = \"merge\"\n",
        quoted(&glob)
    );
    if !counters.is_empty() {
        let list: Vec<String> = counters.iter().map(|c| quoted(c)).collect();
        writeln!(rule, "counters = [{}]", list.join(", ")).ok();
    }
    rule
}

/// A basic string of TOML; JSON's is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;

    #[test]
    fn a_proposed_rule_is_one_and_matches_its_path() {
        for path in ["s.json", "a/b.json", "a [1]*{x}?.json", "q\"\\.json"] {
            let counters = BTreeSet::from(["/n".to_owned(), "/a \"b\"".to_owned()]);
            let rules = Rules::parse(&rule_for(path, &counters), "test").unwrap();
            let policy = rules.decide(path.as_ref(), Creation::default());
            assert_eq!(policy.on_conflict, OnConflict::Merge, "{path}");
            assert_eq!(policy.counters.len(), 2);
        }
    }
}
