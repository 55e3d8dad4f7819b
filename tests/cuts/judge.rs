//! What may be there after a cut. All that the judge knows is what a client could: each worker's plan,
//! when each step began and when it was acknowledged, and the plain files.
//!
//! - Each file is whole (C1, C10, C18, C19, C21): a content names its writer and its number and has a checksum.
//! - What a worker owns is as after some number of its steps.
//! - All workers together: if a step was acknowledged before another began, and that one is there, so is the
//!   first (C19).
//! - What was promised is there: by fsync (C7), by durability=sync, by the bound (C19), by an answer where
//!   only the daemon died (C18).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::content::{Rest, line, parts_of};
use crate::kept::{self, Kept};
use crate::plan::{DOCUMENT, GRID, Kind, LOG, Plan, State, Step};

/// What is known of one step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub begun: u64,
    pub synced: Option<u64>,
    pub done: Option<u64>,
}

impl Times {
    fn is_done(&self, before: u64) -> bool {
        self.done.is_some_and(|time| time < before)
    }
}

pub struct Worker {
    pub kind: Kind,
    pub me: usize,
    pub steps: Vec<(Step, Times)>,
    /// Why it ended, and when, if it was not told to.
    pub failed: Option<(u64, String)>,
    /// What a living daemon must not do.
    pub wrong: Vec<String>,
}

impl Worker {
    pub fn from_log(kind: Kind, me: usize, seed: u64, log: &str) -> Worker {
        let mut worker = Worker {
            kind,
            me,
            steps: Vec::new(),
            failed: None,
            wrong: Vec::new(),
        };
        let mut plan = Plan::new(kind, me, seed);
        for entry in log.lines() {
            let mut words = entry.splitn(4, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (what, step) = (word(), word().parse::<usize>().expect("a step"));
            let time: u64 = word().parse().expect("a time");
            let why = word().to_owned();
            match what {
                "b" => {
                    assert_eq!(step, worker.steps.len(), "steps come in order");
                    let times = Times {
                        begun: time,
                        ..Times::default()
                    };
                    worker.steps.push((plan.next().expect("no end"), times));
                }
                "s" => worker.steps[step].1.synced = Some(time),
                "a" => worker.steps[step].1.done = Some(time),
                "e" => worker.failed = Some((time, why)),
                "x" => worker
                    .wrong
                    .push(format!("{kind:?} {me}, step {step}: {why}")),
                _ => panic!("no such entry: {entry}"),
            }
        }
        worker
    }
}

/// What ended it all, and what had been promised for that case.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// The instant lies between these two.
    pub from: u64,
    pub to: u64,
    pub promise: Promise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// durability=async: what was acknowledged so many nanoseconds before.
    Within(u64),
    /// durability=sync.
    Acknowledged,
    /// Only the daemon dies.
    Kill,
}

/// The plain files.
#[derive(Debug, Default)]
pub struct Found {
    pub values: State,
    pub rests: BTreeMap<String, Rest>,
    pub faults: Vec<String>,
    /// What isn't whole; nothing more is asked of those who write there.
    pub torn: BTreeSet<String>,
    pub rejected: Vec<Kept>,
}

impl Found {
    /// Reads a backing directory that nobody has mounted.
    pub fn read(root: &Path) -> Found {
        let mut found = Found::default();
        found.walk(root, "");
        found.rejected = kept::read(&root.join(".commitfs"));
        found
    }

    fn walk(&mut self, directory: &Path, prefix: &str) {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let meta = entry.metadata().expect("its attributes");
            if path == ".commitfs" || name == "seed" {
                continue;
            }
            if meta.is_dir() {
                self.walk(&entry.path(), &format!("{path}/"));
                continue;
            }
            if meta.nlink() != 1 {
                let links = meta.nlink();
                self.faults.push(format!("{path} has {links} links"));
            }
            match std::fs::read(entry.path()) {
                Ok(content) => self.take(path, &content),
                Err(error) => self.faults.push(format!("{path}: {error}")),
            }
        }
    }

    /// Whether all that a worker owns can be told.
    fn tells(&self, worker: &Worker) -> bool {
        let shared = match worker.kind {
            Kind::Kept | Kind::Each => LOG,
            Kind::Patcher => DOCUMENT,
            Kind::Editor => GRID,
            _ => "",
        };
        let own = format!("w{}/", worker.me);
        !self
            .torn
            .iter()
            .any(|path| path == shared || path.starts_with(&own))
    }

    fn take(&mut self, path: String, content: &[u8]) {
        let (parts, rest) = match parts_of(&path, content) {
            Ok(parts) => parts,
            Err(why) => {
                self.faults.push(format!("{path}: {why}"));
                self.torn.insert(path);
                return;
            }
        };
        // 0 was there before anybody did anything.
        for (writer, number) in parts.into_iter().filter(|(_, number)| *number > 0) {
            let key = writer.map_or_else(|| path.clone(), |writer| format!("{path}#{writer}"));
            self.values.insert(key, number);
        }
        if !rest.is_empty() {
            self.rests.insert(path, rest);
        }
    }
}

/// So many of a worker's steps are there; and perhaps one more that had called fsync and not ended (C7).
#[derive(Clone, Copy, Debug)]
struct Stand {
    steps: usize,
    rescued: Option<usize>,
}

/// A worker's stand that contradicts least: in what it proves, and in what it lacks.
struct Seen<'a> {
    worker: &'a Worker,
    least: Stand,
    most: Stand,
}

pub fn judge(cut: &Cut, workers: &[Worker], found: &Found) -> Vec<String> {
    let mut faults = found.faults.clone();
    let mut seen = Vec::new();
    let mut owned = BTreeSet::new();
    for worker in workers.iter().filter(|worker| found.tells(worker)) {
        let theirs = |key: &&String| {
            key.starts_with(&format!("w{}/", worker.me))
                || key.ends_with(&format!("#{}", worker.me))
        };
        let keys: BTreeSet<String> = found.values.keys().filter(theirs).cloned().collect();
        match stands(cut, worker, &own(found, &keys)) {
            Ok((least, most)) => seen.push(Seen {
                worker,
                least,
                most,
            }),
            Err(why) => faults.push(why),
        }
        owned.extend(keys);
    }
    faults.extend(
        found
            .rests
            .iter()
            .filter_map(|(path, rest)| unfinished(cut, workers, path, rest)),
    );
    if found.torn.is_empty() {
        let strange = found.values.keys().filter(|key| !owned.contains(*key));
        faults.extend(strange.map(|key| format!("nobody has made {key}")));
    }
    faults.extend(order(cut, &seen));
    faults.extend(kept::judge(cut, workers, &found.rejected));
    faults
}

fn own(found: &Found, keys: &BTreeSet<String>) -> State {
    keys.iter()
        .map(|key| (key.clone(), found.values[key]))
        .collect()
}

fn stands(cut: &Cut, worker: &Worker, found: &State) -> Result<(Stand, Stand), String> {
    let (kind, me) = (worker.kind, worker.me);
    let begun = worker
        .steps
        .iter()
        .take_while(|(_, times)| times.begun < cut.to)
        .count();
    let steps = &worker.steps[..begun];
    let in_flight: Vec<usize> = (0..begun)
        .filter(|n| steps[*n].0.syncs() && !steps[*n].1.is_done(cut.from))
        .collect();
    let mut state = State::new();
    let mut fitting = Vec::new();
    let mut states = Vec::new();
    for number in 0..=begun {
        if state == *found {
            fitting.push(Stand {
                steps: number,
                rescued: None,
            });
        }
        for rescued in in_flight
            .iter()
            .copied()
            .filter(|rescued| *rescued >= number)
        {
            let mut with = state.clone();
            steps[rescued].0.apply(me, &mut with);
            if with == *found {
                fitting.push(Stand {
                    steps: number,
                    rescued: Some(rescued),
                });
            }
        }
        states.push(state.clone());
        if let Some((step, _)) = steps.get(number) {
            step.apply(me, &mut state);
        }
    }
    let promised = (0..begun).rev().find(|n| is_promised(cut, &steps[*n]));
    let keeps =
        |stand: &&Stand| promised.is_none_or(|n| stand.steps > n || stand.rescued == Some(n));
    let kept: Vec<&Stand> = fitting.iter().filter(keeps).collect();
    if let (Some(least), Some(most)) = (kept.first(), kept.last()) {
        return Ok((**least, **most));
    }
    let who = format!("{kind:?} {me}");
    match (fitting.last(), promised) {
        (Some(stand), Some(n)) => Err(format!(
            "{who}: lost: {} is promised, there is only {stand:?} of {begun} steps; the next would be {}",
            told(n, &steps[n], cut),
            told(stand.steps, &steps[stand.steps], cut),
        )),
        _ => {
            let floor = promised.map_or(0, |n| n + 1);
            Err(format!(
                "{who}: what is there is after no number of its steps: {found:?}; after {floor} of {begun}: {:?}; after all: {:?}",
                states[floor], states[begun]
            ))
        }
    }
}

fn told(n: usize, (step, times): &(Step, Times), cut: &Cut) -> String {
    let before = |time: Option<u64>| {
        time.map(|time| (cut.from as i64 - time as i64) / 1000)
            .map_or("not".to_owned(), |us| format!("{us} us before the cut"))
    };
    format!(
        "step {n} {step:?} (begun {}, synced {}, done {})",
        before(Some(times.begun)),
        before(times.synced),
        before(times.done)
    )
}

fn is_promised(cut: &Cut, (step, times): &(Step, Times)) -> bool {
    let done = times.is_done(cut.from);
    if step.syncs() && (done || times.synced.is_some_and(|time| time < cut.from)) {
        return true;
    }
    match cut.promise {
        Promise::Kill => done,
        Promise::Acknowledged => done && step.is_promised_by_sync(),
        Promise::Within(bound) => times.done.is_some_and(|time| time + bound < cut.from),
    }
}

/// An unfinished line at the end of a log: only of a writer that writes lines in pieces, and only its next.
fn unfinished(cut: &Cut, workers: &[Worker], path: &str, rest: &[u8]) -> Option<String> {
    let is_begun = |worker: &Worker| {
        worker.steps.iter().any(|(step, times)| match step {
            Step::Line {
                path: its,
                number,
                pieces,
                ..
            } => {
                *pieces > 1
                    && its == path
                    && times.begun < cut.to
                    && line(worker.me, *number).starts_with(rest)
            }
            _ => false,
        })
    };
    let shown = String::from_utf8_lossy(&rest[..rest.len().min(60)]).into_owned();
    (!workers.iter().any(is_begun)).then(|| format!("{path} ends with {shown:?}"))
}

/// The newest step that is there and proves that what came before it is, too. Directories may be there
/// before earlier commits; a step that fsync alone has saved proves nothing.
fn proof<'a>(cut: &Cut, seen: &'a Seen) -> Option<(usize, &'a (Step, Times))> {
    let steps = seen.worker.steps.iter().enumerate().take(seen.least.steps);
    let mut steps = steps.rev();
    steps.find(|(_, (step, times))| {
        let open = step.syncs() && !times.is_done(cut.from);
        changes(step) && !open
    })
}

fn changes(step: &Step) -> bool {
    !matches!(
        step,
        Step::SyncLines
            | Step::CloseLines
            | Step::MakeDirectory(_)
            | Step::RemoveDirectory(_)
            | Step::SyncDirectory(_)
            | Step::KilledSave { .. }
            | Step::ReadDocument
            | Step::SyncElsewhere { .. }
    )
}

/// The first acknowledged step that isn't there.
fn gap<'a>(cut: &Cut, seen: &'a Seen) -> Option<(usize, &'a (Step, Times))> {
    let mut steps = seen.worker.steps.iter().enumerate().skip(seen.most.steps);
    let gap = steps.find(|(n, (step, _))| changes(step) && seen.most.rescued != Some(*n));
    gap.filter(|(_, (_, times))| times.is_done(cut.from))
}

fn order(cut: &Cut, seen: &[Seen]) -> Option<String> {
    let proofs = seen
        .iter()
        .filter_map(|one| proof(cut, one).map(|step| (one, step)));
    let gaps = seen
        .iter()
        .filter_map(|one| gap(cut, one).map(|step| (one, step)));
    let (there, (n, step)) = proofs.max_by_key(|(_, (_, (_, times)))| times.begun)?;
    let (lacks, (m, missing)) = gaps.min_by_key(|(_, (_, (_, times)))| times.done)?;
    (missing.1.done? < step.1.begun).then(|| {
        format!(
            "no prefix: {:?} {}: {} is there, but not {:?} {}: {}",
            there.worker.kind,
            there.worker.me,
            told(n, step, cut),
            lacks.worker.kind,
            lacks.worker.me,
            told(m, missing, cut),
        )
    })
}
