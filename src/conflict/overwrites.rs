//! Updates that others overwrote without having seen them, where no rule keeps them (C17): counted
//! for each path, with the rule that would have kept them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Why;
use super::document::read_document_in;
use super::texts::{Doubtful, Texts};
use crate::json::{Document, Value};
use crate::namespace::Sum;
use crate::rules::quoted;
use crate::sys::{at, proc};
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

/// Saves that wait to be compared.
const WAITING: usize = 1024;

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
    pub texts: Texts,
    /// Saves that may take back what their own program has saved.
    doubtful: VecDeque<Doubtful>,
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
pub struct Pair {
    /// The path.
    pub path: String,
    lost: Arc<File>,
    by: Arc<File>,
    /// Who wrote the later one had read the file.
    has_read: bool,
}

impl Pair {
    /// Numbers that differ, and whether the two can be merged; `None` where they can't be read.
    pub fn compare(&self) -> Option<(BTreeSet<String>, bool)> {
        let (lost, by) = (read_text(&self.lost).ok()?, read_text(&self.by).ok()?);
        let mut found = BTreeSet::new();
        if let (Some(lost), Some(by)) = (lost.document(), by.document())
            && self.has_read
        {
            differing_numbers(lost.value(), by.value(), &mut String::new(), &mut found);
        }
        Some((found, lost.can_be_merged() && by.can_be_merged()))
    }
}

/// A version that was replaced by one that does not build on it.
#[derive(Debug)]
pub struct Loss {
    /// What is lost.
    pub lost: NodeId,
    /// What has replaced it.
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
pub struct Removed {
    tid: u32,
    dentry: Dentry,
    /// It.
    pub version: NodeId,
    /// Its length and checksum.
    pub sum: Option<Sum>,
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
    /// What its documents count by, as it seems.
    #[serde(skip)]
    pub counters: BTreeSet<String>,
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
    /// Whether this is what stands in a version: rewritten with the same bytes it is no other.
    pub fn is(&self, version: NodeId, sum: Option<Sum>) -> bool {
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
    pub fn note_removed(
        &mut self,
        tid: u32,
        dentry: Dentry,
        (version, sum): (NodeId, Option<Sum>),
    ) {
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

    /// What an open transaction is put in the place of, if its thread has removed it.
    pub fn replaced_by(&self, id: TxnId) -> Option<&Removed> {
        self.replacing.get(&id)
    }

    /// A save of a path has replaced a version that it did not build on.
    pub fn count(&mut self, path: &str, (pid, command): (u32, &str), loss: &Loss, merges: bool) {
        let paths = &mut self.paths;
        if paths.len() >= PATHS && !paths.contains_key(path) {
            let oldest = paths.values().min_by_key(|o| o.time_ns);
            if let Some(oldest) = oldest.map(|o| o.path.clone()) {
                paths.remove(&oldest);
            }
        }
        let entry = paths.entry(path.to_owned()).or_default();
        path.clone_into(&mut entry.path);
        entry.count += 1;
        (entry.pid, entry.command, entry.time_ns) = (pid, command.to_owned(), now_ns());
        entry.is_merged = merges;
        entry.blind += u64::from(!loss.has_read);
        entry.own += u64::from(loss.is_own);
        match loss.why {
            Some(Why::NoDocument) => entry.documents.1 += 1,
            Some(Why::Uncertain) => entry.documents.0 += 1,
            None => {}
        }
    }

    /// Whether any were overwritten.
    pub fn has_any(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Two versions of a path are to be compared, if some of its were overwritten, but not for ever.
    pub fn compare(
        &mut self,
        path: String,
        has_read: bool,
        files: impl FnOnce() -> Option<(Arc<File>, Arc<File>)>,
    ) {
        let Some(entry) = self.paths.get_mut(&path) else {
            return;
        };
        if entry.looks < LOOKS
            && self.unseen.len() < UNSEEN
            && let Some((lost, by)) = files()
        {
            entry.looks += 1;
            self.unseen.push_back(Pair {
                path,
                lost,
                by,
                has_read,
            });
        }
    }

    /// Two that are to be compared.
    pub fn next_to_compare(&mut self) -> Option<Pair> {
        self.unseen.pop_front()
    }

    /// What has come out of that: numbers that differ, and whether they can be merged.
    pub fn note_compared(&mut self, path: &str, found: BTreeSet<String>, can_be_merged: bool) {
        if let Some(entry) = self.paths.get_mut(path) {
            match can_be_merged {
                true => entry.documents.0 += 1,
                false => entry.documents.1 += 1,
            }
            entry.counters.extend(found);
            while entry.counters.len() > COUNTERS {
                entry.counters.pop_last();
            }
        }
    }

    /// A save may take back what its own program has saved.
    pub fn doubt(&mut self, save: Doubtful) {
        if self.doubtful.len() < WAITING {
            self.doubtful.push_back(save);
        }
    }

    /// One of those.
    pub fn next_doubtful(&mut self) -> Option<Doubtful> {
        self.doubtful.pop_front()
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
        if super::texts::is_temporary(&self.path) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Creation, OnConflict, Rules};

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
