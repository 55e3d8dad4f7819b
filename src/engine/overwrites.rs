//! Updates that others overwrote without having seen them, where no rule keeps them (C17): counted
//! for each path, with the rule that would have kept them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::merging::{Why, read_document_in};
use super::own_saves::{Doubtful, Texts};
use super::{Engine, State};
use crate::json::{Document, Value};
use crate::namespace::Sum;
use crate::rules::{Creation, OnConflict};
use crate::sys::{at, proc};
use crate::txn::Transaction;
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of, now_ns};

/// Threads of which it is known what they have read, at most.
const THREADS: usize = 4096;
/// Files that a thread has read, at most.
const FILES: usize = 8;
/// Removed files that whoever removed them may put others in the place of, at most, and how long
/// they may.
const REMOVED: usize = 16;
const REPLACED_WITHIN: Duration = Duration::from_secs(2);
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
    threads: HashMap<u32, ThreadSight>,
    /// In the order in which they came.
    order: VecDeque<u32>,
    clock: u64,
    removed: VecDeque<Removed>,
    /// What the open transactions are put in the place of.
    replacing: HashMap<TxnId, Removed>,
    paths: HashMap<String, Overwritten>,
    unseen: VecDeque<Pair>,
    /// Small texts that threads have read and saved.
    pub(super) texts: Texts,
    /// Saves that may take back what their own program has saved.
    pub(super) doubtful: VecDeque<Doubtful>,
}

impl Overwrites {
    /// Nothing yet, where the process may have so many descriptors.
    pub fn within(descriptors: u64) -> Overwrites {
        Overwrites {
            texts: Texts::within(descriptors),
            ..Overwrites::default()
        }
    }
}

/// Versions of a path to be compared: one, and the one that replaced it.
#[derive(Debug)]
struct Pair {
    path: String,
    lost: Arc<File>,
    by: Arc<File>,
    /// Who wrote the later one had read the file.
    has_read: bool,
}

/// A version that was replaced by one that does not build on it.
#[derive(Debug)]
pub(super) struct Loss {
    pub lost: NodeId,
    pub by: NodeId,
    /// Whoever saved has read some version.
    pub has_read: bool,
    /// Why a rule has not merged them.
    pub why: Option<Why>,
    /// Its own program had saved what is lost.
    pub is_own: bool,
}

/// A version that a thread has removed. To move a file there from another file system is to remove
/// what is there, and to create another.
#[derive(Debug)]
struct Removed {
    tid: u32,
    dentry: Dentry,
    version: NodeId,
    sum: Option<Sum>,
    at: Instant,
}

#[derive(Debug, Default)]
struct ThreadSight {
    /// Its process's parent, once it has been asked for.
    parent: Option<u32>,
    files: VecDeque<Seen>,
}

/// The version of a file that a thread has to do with.
#[derive(Clone, Debug)]
pub struct Seen {
    dentry: Dentry,
    /// The version.
    pub version: NodeId,
    /// Its length and checksum.
    sum: Option<Sum>,
    at: u64,
    /// It, or one before it, was read: what is saved now may be a change of that.
    pub has_read: bool,
    /// What a child has read, for the parent's next save.
    by_child: bool,
    /// When, if it was saved.
    saved: Option<proc::Moment>,
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
    /// What helps.
    pub help: String,
    /// The rule for that, as it stands in a rules file; empty if none helps.
    pub rule: String,
    /// The command that adds it, while the mount lives; empty if none helps.
    pub command_to_add: String,
    #[serde(skip)]
    counters: BTreeSet<String>,
    /// Of them, those by savers that had never read the file, and those that took back what their own
    /// program had saved.
    #[serde(skip)]
    blind: u64,
    #[serde(skip)]
    own: u64,
    /// There is a rule that merges, but it could not.
    #[serde(skip)]
    is_merged: bool,
    /// Versions of it that were JSON documents, as far as they were looked at, and others.
    #[serde(skip)]
    documents: (u64, u64),
    /// How often its documents were compared.
    #[serde(skip)]
    looks: u32,
}

impl Seen {
    fn is(&self, version: NodeId, sum: Option<Sum>) -> bool {
        self.version == version || self.sum.is_some() && self.sum == sum
    }
}

impl Overwrites {
    /// A thread has read a version: for itself, or for its parent (`x=$(jq … f)`).
    pub fn note_read(&mut self, tid: u32, dentry: &Dentry, version: (NodeId, Option<Sum>)) {
        self.note(tid, dentry, version, (true, false), None);
        if let Some(thread) = self.threads.get_mut(&tid) {
            let parent = *thread
                .parent
                .get_or_insert_with(|| proc::parent(tid).unwrap_or(0));
            if parent > 1 {
                self.note(parent, dentry, version, (true, true), None);
            }
        }
    }

    /// A thread begins to write a file, and may be gone when that is committed.
    pub fn note_begin(&mut self, tid: u32, dentry: &Dentry, id: TxnId) {
        let of = |r: &Removed| r.tid == tid && r.dentry == *dentry;
        if let Some(removed) = self.removed.iter().position(of)
            && let Some(removed) = self.removed.remove(removed)
            && removed.at.elapsed() < REPLACED_WITHIN
        {
            self.replacing.insert(id, removed);
        }
        let thread = self.thread(tid);
        thread.parent = thread.parent.or_else(|| proc::parent(tid));
    }

    /// The parent of who begins to write, if it was that which saved the file last that it knows of,
    /// and has started this process since: what that saves is a step of its own.
    pub fn step_of(&self, tid: u32, dentry: &Dentry) -> Option<u32> {
        let parent = self.threads.get(&tid)?.parent?;
        let saved = self.last_seen(parent, dentry)?.saved?;
        let start = proc::Start::of_caller(proc::tgid(tid)?)?;
        start.is_not_before(&saved).then_some(parent)
    }

    /// A transaction has come to its end.
    pub fn forget(&mut self, id: TxnId) {
        self.replacing.remove(&id);
    }

    /// A thread has removed a version.
    fn note_removed(&mut self, tid: u32, dentry: Dentry, (version, sum): (NodeId, Option<Sum>)) {
        self.removed.truncate(REMOVED - 1);
        self.removed.push_front(Removed {
            tid,
            dentry,
            version,
            sum,
            at: Instant::now(),
        });
    }

    /// A thread has written a version. What it has read was not for its parent.
    pub fn note_saved(
        &mut self,
        tid: u32,
        dentry: &Dentry,
        version: (NodeId, Option<Sum>),
        ago: Duration,
    ) {
        let has_read = self.last_seen(tid, dentry).is_some_and(|s| s.has_read);
        let parent = self.threads.get(&tid).and_then(|t| t.parent);
        for tid in [Some(tid), parent].into_iter().flatten() {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.files.retain(|s| !s.by_child || s.dentry != *dentry);
            }
        }
        let saved = Some(proc::Moment::ago(ago));
        self.note(tid, dentry, version, (has_read, false), saved);
    }

    fn note(
        &mut self,
        tid: u32,
        dentry: &Dentry,
        (version, sum): (NodeId, Option<Sum>),
        (has_read, by_child): (bool, bool),
        saved: Option<proc::Moment>,
    ) {
        self.clock += 1;
        let seen = Seen {
            dentry: dentry.clone(),
            version,
            sum,
            at: self.clock,
            has_read,
            by_child,
            saved,
        };
        let files = &mut self.thread(tid).files;
        files.retain(|s| s.dentry != *dentry || s.by_child != by_child);
        if files.len() >= FILES {
            files.pop_front();
        }
        files.push_back(seen);
    }

    fn thread(&mut self, tid: u32) -> &mut ThreadSight {
        if !self.threads.contains_key(&tid) {
            while self.threads.len() >= THREADS
                && let Some(oldest) = self.order.pop_front()
            {
                self.threads.remove(&oldest);
            }
            self.order.push_back(tid);
        }
        self.threads.entry(tid).or_default()
    }

    /// What a thread that has seen nothing itself has by its kin: what another child of its parent has read
    /// (`jq … f | sponge f`).
    pub fn last_seen_by_kin(&self, tid: u32, dentry: &Dentry) -> Option<&Seen> {
        let own = self.last_seen(tid, dentry);
        let parent = self.threads.get(&tid).and_then(|t| t.parent);
        own.or_else(|| {
            let files = self.threads.get(&parent?)?.files.iter();
            files.rev().find(|s| s.by_child && s.dentry == *dentry)
        })
    }

    /// The version of a name that a thread, or a child of it, saw last.
    pub fn last_seen(&self, tid: u32, dentry: &Dentry) -> Option<&Seen> {
        let files = self.threads.get(&tid)?.files.iter();
        files.filter(|s| s.dentry == *dentry).max_by_key(|s| s.at)
    }

    /// Those that status shows: the most frequent first.
    pub fn list(&self) -> Vec<Overwritten> {
        let mut all: Vec<Overwritten> = self.paths.values().cloned().collect();
        all.sort_by(|a, b| (b.count, &a.path).cmp(&(a.count, &b.path)));
        all.truncate(SHOWN);
        for one in &mut all {
            let (help, rule) = one.advice();
            (one.help, one.rule) = (help.to_owned(), rule);
        }
        all
    }
}

impl Overwritten {
    fn advice(&self) -> (&'static str, String) {
        let is_document = match self.documents {
            (0, 0) => self.path.to_ascii_lowercase().ends_with(".json"),
            (documents, others) => documents > others,
        };
        if 2 * self.own > self.count {
            return (
                "a program takes back what it has saved itself between its load and its save, as \
                 coroutines do that share a thread; no rule helps. Load and save without waiting in \
                 between, or use `commitfs json`",
                String::new(),
            );
        }
        if 2 * self.blind > self.count {
            return (
                "who saves it has not read it, so that no rule helps. Give each its own file, or \
                 append to it (O_APPEND)",
                String::new(),
            );
        }
        if super::own_saves::is_temporary(&self.path) {
            return (
                "several use one temporary name. Give each its own",
                String::new(),
            );
        }
        match (is_document, self.is_merged) {
            (true, false) => (
                "a rule that keeps them",
                rule_for(&self.path, "merge", &self.counters),
            ),
            (true, true) => (
                "its rule could not merge them, as it was not certain what was changed. \
                 Load and save by the same thread, or use `commitfs json`",
                String::new(),
            ),
            (false, is_merged) => (
                if is_merged {
                    "its rule could not merge them, as they are no JSON documents. Lock it (flock) \
                     from load to save, or append to it (O_APPEND); with this rule before that one, \
                     the close of a save that is out of date fails with ESTALE"
                } else {
                    "they are no JSON documents, which a rule could merge. Lock it (flock) from \
                     load to save, or append to it (O_APPEND); with this rule, the close of a save \
                     that is out of date fails with ESTALE"
                },
                rule_for(&self.path, "fail", &BTreeSet::new()),
            ),
        }
    }
}

impl Engine {
    /// Adds the commands that put the proposed rules in force.
    pub(super) fn with_commands(&self, mut all: Vec<Overwritten>) -> Vec<Overwritten> {
        for one in all.iter_mut().filter(|one| !one.rule.is_empty()) {
            let on_conflict = match one.rule.contains("on_conflict = \"merge\"") {
                true => "merge",
                false => "fail",
            };
            let mut settings = vec![("on_conflict", on_conflict)];
            if on_conflict == "merge" {
                settings.extend(one.counters.iter().map(|c| ("counters", c.as_str())));
            }
            one.command_to_add = self.command_to_add(&one.path, &settings);
        }
        all
    }

    /// A save has replaced a version that it did not build on.
    pub(super) fn note_overwritten(
        &self,
        state: &mut State,
        dentry: &Dentry,
        (pid, command): (u32, &str),
        loss: Loss,
    ) {
        if state.is_empty(loss.lost) {
            return;
        }
        state.counters.overwritten += 1;
        let path = self.show(state, dentry);
        log::info!("{path}: {pid} ({command}) replaced a version that it had not seen");
        let policy = self.policy(state, dentry, Creation::default());
        if policy.on_conflict == OnConflict::Fail {
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
        entry.is_merged = policy.on_conflict == OnConflict::Merge;
        entry.blind += u64::from(!loss.has_read);
        entry.own += u64::from(loss.is_own);
        match loss.why {
            Some(Why::NoDocument) => entry.documents.1 += 1,
            Some(Why::Uncertain) => entry.documents.0 += 1,
            None => state.compare(path, (loss.lost, loss.by), loss.has_read),
        }
    }

    /// A thread removes a version.
    pub(super) fn note_removed(
        &self,
        state: &mut State,
        tid: u32,
        dentry: &Dentry,
        version: Option<NodeId>,
    ) {
        let Some(version) = version.filter(|version| !state.is_empty(*version)) else {
            return;
        };
        let sum = state.nodes.sum(version);
        let removed = (version, sum);
        state.overwrites.note_removed(tid, dentry.clone(), removed);
    }

    /// A save has become the version of a name that had none: whether what its thread removed before
    /// was an update that it had not seen.
    pub(super) fn note_put_back(&self, state: &mut State, txn: &Transaction, by: NodeId) {
        let overwrites = &state.overwrites;
        let Some(removed) = overwrites.replacing.get(&txn.id) else {
            return;
        };
        let Some(seen) = overwrites.last_seen_by_kin(txn.participants.opener_tid(), txn.dentry())
        else {
            return;
        };
        if seen.is(removed.version, removed.sum) {
            return;
        }
        let policy = self.policy(state, txn.dentry(), Creation::default());
        let loss = Loss {
            lost: removed.version,
            by,
            has_read: seen.has_read,
            why: (policy.on_conflict == OnConflict::Merge).then_some(Why::Uncertain),
            is_own: false,
        };
        let who = txn.participants.who();
        self.note_overwritten(state, txn.dentry(), who, loss);
    }

    /// A save has replaced the version that it builds on. Two that overwrote each other may have
    /// counted alike: what those that follow change tells what they count by.
    pub(super) fn note_followed(
        &self,
        state: &mut State,
        dentry: &Dentry,
        versions: (NodeId, NodeId),
        has_read: bool,
    ) {
        if !state.overwrites.paths.is_empty() {
            let path = self.show(state, dentry);
            state.compare(path, versions, has_read);
        }
    }

    /// Numbers that differ between versions that replace each other, where some were overwritten,
    /// are what programs count by.
    pub(super) fn guess_counters(&self) {
        // Whoever asks waits for what the watch is comparing.
        let _turn = self.comparing.lock();
        self.compare_own_saves();
        loop {
            let next = self.lock().overwrites.unseen.pop_front();
            let Some(pair) = next else {
                return;
            };
            let (Ok(lost), Ok(by)) = (read_text(&pair.lost), read_text(&pair.by)) else {
                continue;
            };
            let mut found = BTreeSet::new();
            if let (Some(lost), Some(by)) = (lost.document(), by.document())
                && pair.has_read
            {
                differing_numbers(lost.value(), by.value(), &mut String::new(), &mut found);
            }
            let mut state = self.lock();
            if let Some(entry) = state.overwrites.paths.get_mut(&pair.path) {
                match lost.can_be_merged() && by.can_be_merged() {
                    true => entry.documents.0 += 1,
                    false => entry.documents.1 += 1,
                }
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
        seen.is(version, self.nodes.sum(version))
    }

    /// A transaction has come to its end: what it builds on and replaces matters no more.
    pub(super) fn forget_save(&mut self, id: TxnId) {
        self.registry.forget(id);
        self.overwrites.forget(id);
    }

    /// A thread has written a version, and closed it or renamed it there so long ago: what it has
    /// started since may be here before that is known.
    pub(super) fn note_saved(&mut self, tid: u32, dentry: &Dentry, version: NodeId, ago: Duration) {
        let sum = self.nodes.sum(version);
        self.overwrites.note_saved(tid, dentry, (version, sum), ago);
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
    fn compare(&mut self, path: String, (lost, by): (NodeId, NodeId), has_read: bool) {
        let overwrites = &mut self.overwrites;
        let Some(entry) = overwrites.paths.get_mut(&path) else {
            return;
        };
        if entry.looks < LOOKS
            && overwrites.unseen.len() < UNSEEN
            && let (Ok(lost), Ok(by)) = (self.nodes.fd(lost), self.nodes.fd(by))
        {
            entry.looks += 1;
            overwrites.unseen.push_back(Pair {
                path,
                lost,
                by,
                has_read,
            });
        }
    }
}

/// What a version holds, for a proposal.
enum SavedText {
    Document(Box<Document>),
    /// Too large to be parsed for a proposal, but it looks like one.
    LargeDocument,
    Other,
}

impl SavedText {
    fn document(&self) -> Option<&Document> {
        match self {
            SavedText::Document(document) => Some(document),
            SavedText::LargeDocument | SavedText::Other => None,
        }
    }

    /// Of two texts, or two truth values, one is lost.
    fn can_be_merged(&self) -> bool {
        match self {
            SavedText::Document(document) => matches!(
                document.value(),
                Value::Object(_) | Value::Array(_) | Value::Number(_)
            ),
            SavedText::LargeDocument => true,
            SavedText::Other => false,
        }
    }
}

fn read_text(version: &File) -> OpResult<SavedText> {
    let file = at::reopen_quietly(version)?;
    let len = at::stat(&file)?.st_size;
    if usize::try_from(len).is_ok_and(|len| len <= COMPARED) {
        return Ok(
            read_document_in(&file).map_or(SavedText::Other, |d| SavedText::Document(Box::new(d)))
        );
    }
    let mut head = [0; 64];
    let read = file.read_at(&mut head, 0).map_err(|e| errno_of(&e))?;
    Ok(match head[..read].trim_ascii_start().first() {
        Some(b'{' | b'[') => SavedText::LargeDocument,
        _ => SavedText::Other,
    })
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
fn rule_for(path: &str, on_conflict: &str, counters: &BTreeSet<String>) -> String {
    let glob = crate::rules::escaped_glob(path);
    let mut rule = format!(
        "[[rule]]\nglob = {}\non_conflict = {}\n",
        quoted(&glob),
        quoted(on_conflict)
    );
    if !counters.is_empty() {
        let list: Vec<String> = counters.iter().map(|c| quoted(c)).collect();
        writeln!(rule, "counters = [{}]", list.join(", ")).ok();
    }
    rule
}

/// A basic string of TOML; JSON's is one.
pub(super) fn quoted(text: &str) -> String {
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
            let rules = Rules::parse(&rule_for(path, "merge", &counters), "test").unwrap();
            let policy = rules.decide(path.as_ref(), Creation::default());
            assert_eq!(policy.on_conflict, OnConflict::Merge, "{path}");
            assert_eq!(policy.counters.len(), 2);
        }
    }
}
