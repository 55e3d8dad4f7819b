//! Some workers on a simulated disk for a moment; and then what might have become of it at any instant.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use commitfs::rules::Rules;
use commitfs::store::Store;
use commitfs::txn::recovery::{instance, recover};

use crate::common::run::{binary, run};
use crate::common::{Mount, temporary_directory};
use crate::image::write_out;
use crate::judge::{Cut, Found, Promise, Worker, judge};
use crate::medium::Medium;
use crate::plan::{KINDS, Kind, rules};
use crate::random::Random;
use crate::served::Served;
use crate::tree::{Done, Operation, TOP, Tree, from_bytes, to_bytes};
use crate::workers::{self, Workers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Async,
    Sync,
    /// async, with a short bound.
    Short,
}

impl Durability {
    pub const ALL: [Durability; 3] = [Durability::Short, Durability::Sync, Durability::Async];

    fn args(self) -> [&'static str; 2] {
        match self {
            Durability::Async => ["--durability", "async"],
            Durability::Sync => ["--durability", "sync"],
            Durability::Short => ["--bound", "40"],
        }
    }

    fn promise(self) -> Promise {
        match self {
            Durability::Sync => Promise::Acknowledged,
            // The session is over by then; what is promised is the order.
            Durability::Async | Durability::Short => Promise::Within(60_000_000_000),
        }
    }
}

/// What was done, and what its clients know of it.
pub struct Session {
    durability: Durability,
    seed: u64,
    done: Vec<Done>,
    workers: Vec<Worker>,
    /// The first operation that may be the last before a cut.
    begin: usize,
}

/// One that is to be recovered.
struct Case {
    number: usize,
    tree: Tree,
    cut: Cut,
    what: String,
}

/// In memory, if there is such a place.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if std::env::var_os("COMMITFS_TEST_DIR").is_none() && memory.is_dir() {
        let path = memory.join(format!("cfs-recoveries-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory in memory");
        return path;
    }
    temporary_directory()
}

/// Those whose contents are small: a case has to be written out.
fn some(random: &mut Random) -> Vec<usize> {
    let fit = |n: &usize| !matches!(KINDS[*n], Kind::Large | Kind::Neighbour);
    let all: Vec<usize> = (0..KINDS.len()).filter(fit).collect();
    let wanted = 3 + random.below(7) as usize;
    let mut chosen: Vec<usize> = (0..wanted)
        .map(|_| all[random.below(all.len() as u64) as usize])
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

impl Session {
    pub fn record(durability: Durability, seed: u64) -> Session {
        let mut random = Random::from(seed);
        let scratch = temporary_directory();
        let mut disk = Served::new(scratch.join("disk"), "tree", &[]);
        // Beyond so many bytes the journal is replaced: in a moment it wouldn't be.
        let journal = [2_000, 20_000, 4_000_000][random.below(3) as usize];
        let options = Mount::options()
            .below(disk.directory().to_owned())
            .env("COMMITFS_JOURNAL_LIMIT", journal)
            .args(durability.args())
            .args(["--network-ok"])
            .limit(Duration::from_secs(120));
        // In every second one its threads overtake each other as on a busy machine.
        let options = match random.below(2) {
            0 => options.env("COMMITFS_SCHEDULE", seed + 1),
            _ => options,
        };
        let mut mount = workers::seeded(options).mount().expect("a mount");
        assert_eq!(disk.ask("settle"), "ok");
        let kinds = some(&mut random);
        let workers = Workers::start(&scratch, &mount, &kinds, seed);
        std::thread::sleep(Duration::from_millis(250 + random.below(500)));
        let workers = workers.stop();
        mount.unmount();
        let record = scratch.join("done");
        assert_eq!(disk.ask(&format!("dump {}", record.display())), "ok");
        let done = from_bytes(&std::fs::read(&record).expect("a record"));
        drop((mount, disk));
        std::fs::remove_dir_all(&scratch).expect("nobody is there any more");
        let is_settled = |done: &Done| done.operation == Operation::SyncAll;
        let begin = 1 + done.iter().position(is_settled).expect("it was asked for");
        Session {
            durability,
            seed,
            done,
            workers,
            begin,
        }
    }

    /// So many, at random instants; says what was wrong.
    pub fn recoveries(&self, count: usize) -> Vec<String> {
        let living = self.workers.iter().flat_map(|w| {
            let failed = w
                .failed
                .iter()
                .map(|(_, why)| format!("{:?} {} failed: {why}", w.kind, w.me));
            w.wrong.iter().cloned().chain(failed)
        });
        let mut faults: Vec<String> = living.collect();
        let scratch = scratch();
        let (send, receive) = sync_channel(8);
        let (receive, wrong) = (Mutex::new(receive), Mutex::new(Vec::new()));
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| self.judge_all(&receive, &wrong, &scratch));
            }
            self.cases(count, |case| send.send(case).expect("somebody judges"));
            drop(send);
        });
        let _ = std::fs::remove_dir(&scratch);
        let steps: usize = self.workers.iter().map(|worker| worker.steps.len()).sum();
        let kinds: Vec<Kind> = self.workers.iter().map(|worker| worker.kind).collect();
        let is_replaced = |done: &&Done| matches!(&done.operation, Operation::Move { to, .. } if to.1 == b"journal");
        let journals = self.done[self.begin..].iter().filter(is_replaced).count();
        println!(
            "{:?} seed {}: {steps} steps of {kinds:?}, {} operations, {journals} new journals",
            self.durability,
            self.seed,
            self.done.len() - self.begin
        );
        faults.extend(wrong.into_inner().expect("not poisoned"));
        for fault in &mut faults {
            *fault = fault.chars().take(1200).collect();
            println!("  {fault}");
        }
        faults
    }

    fn cases(&self, count: usize, mut send: impl FnMut(Case)) {
        let mut random = Random::from(self.seed);
        let span = (self.done.len() - self.begin) as u64;
        let mut instants: Vec<usize> = (0..count)
            .map(|_| self.begin + random.below(span) as usize)
            .collect();
        instants.sort_unstable();
        let (mut medium, mut next) = (Medium::new(), 0);
        for (number, instant) in instants.into_iter().enumerate() {
            while next < instant {
                medium.act(&self.done[next].operation);
                next += 1;
            }
            // Of one cache nearly all is lost, of another nearly nothing.
            let percent = [0, 3, 25, 50, 75, 97, 100][random.below(7) as usize];
            let killed = random.one_in(5);
            let cut = Cut {
                from: self.done[instant - 1].time,
                to: self.done[instant].time,
                promise: match killed {
                    true => Promise::Kill,
                    false => self.durability.promise(),
                },
            };
            let tree = match killed {
                true => medium.now.clone(),
                false => medium.cut(percent, &mut random),
            };
            let unsynced = medium.unsynced();
            let what = match killed {
                true => format!("killed after operation {instant}"),
                false => format!("{percent} % of {unsynced} after operation {instant}"),
            };
            send(Case {
                number,
                tree,
                cut,
                what,
            });
        }
    }

    fn judge_all(&self, cases: &Mutex<Receiver<Case>>, wrong: &Mutex<Vec<String>>, scratch: &Path) {
        loop {
            let case = cases.lock().expect("not poisoned").recv();
            let Ok(case) = case else { return };
            let at = scratch.join(case.number.to_string());
            let faults = self.judge(&case, &at);
            let label = |why: String| {
                format!(
                    "{:?} seed {}, {}: {why}",
                    self.durability, self.seed, case.what
                )
            };
            wrong
                .lock()
                .expect("not poisoned")
                .extend(faults.into_iter().map(label));
            std::fs::remove_dir_all(&at).expect("nobody is there any more");
        }
    }

    fn judge(&self, case: &Case, at: &Path) -> Vec<String> {
        let state = case.tree.find(TOP, b"state").expect("a backing directory");
        std::fs::create_dir_all(at).expect("a directory");
        let same = (case.cut.promise == Promise::Kill)
            .then(|| instance(std::fs::File::open(at).expect("a directory")));
        write_out(&case.tree, state, at, same.as_deref());
        let once = match recovered(at) {
            Ok(found) => found,
            Err(why) => return vec![why],
        };
        let mut faults = judge(&case.cut, &self.workers, &once);
        if case.number.is_multiple_of(8) {
            match recovered(at) {
                Ok(twice) if twice.values == once.values => {}
                Ok(twice) => faults.push(format!("recovered twice gives {:?}", twice.values)),
                Err(why) => faults.push(format!("recovered twice: {why}")),
            }
        }
        if !faults.is_empty() {
            self.keep(case, state, at);
        }
        // To a daemon that was killed, nothing is promised of the power after that.
        if case.cut.promise != Promise::Kill && case.number.is_multiple_of(50) {
            faults.extend(self.recovered_in_two(case, &at.with_extension("again")));
        }
        faults
    }

    /// The power goes while recovery is at work, and the next one finds what that has left.
    fn recovered_in_two(&self, case: &Case, at: &Path) -> Vec<String> {
        let mut random = Random::from(self.seed ^ case.number as u64);
        let done = recorded_recovery(&case.tree, at);
        let is_settled = |done: &Done| done.operation == Operation::SyncAll;
        let begin = 1 + done.iter().position(is_settled).expect("it was asked for");
        let mut medium = Medium::new();
        let mut faults = Vec::new();
        for (number, done) in done.iter().enumerate() {
            medium.act(&done.operation);
            if number < begin || !random.one_in(6) {
                continue;
            }
            let percent = [0, 3, 25, 50, 75, 97, 100][random.below(7) as usize];
            let left = medium.cut(percent, &mut random);
            let state = left.find(TOP, b"state").expect("a backing directory");
            write_out(&left, state, at, None);
            let wrong = recovered(at).map(|found| judge(&case.cut, &self.workers, &found));
            let label = |why| format!("recovery cut after {number}, {percent} % are there: {why}");
            faults.extend(wrong.unwrap_or_else(|why| vec![why]).into_iter().map(label));
            std::fs::remove_dir_all(at).expect("nobody is there any more");
        }
        faults
    }

    /// What there was, before and after recovery, and the journal's records as text, for who looks into a fault.
    fn keep(&self, case: &Case, state: u64, after: &Path) {
        let Some(dir) = std::env::var_os("COMMITFS_CUTS_KEEP").map(PathBuf::from) else {
            return;
        };
        let kept = dir.join(format!("{}-{}", self.seed, case.number));
        write_out(&case.tree, state, &kept.join("before"), None);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(after).arg(kept.join("after"));
        assert!(copy.status().expect("cp starts").success());
        let journal = std::fs::read(kept.join("before/.commitfs/journal")).unwrap_or_default();
        let text = match commitfs::journal::decode(&journal) {
            Ok(told) => {
                let records = told.records.iter().map(|record| format!("{record:?}\n"));
                format!("{:?}\n{}", told.header, records.collect::<String>())
            }
            Err(error) => error.to_string(),
        };
        std::fs::write(kept.join("journal.txt"), text).expect("a file");
        let operations: String = self
            .done
            .iter()
            .enumerate()
            .skip(self.begin)
            .map(shown)
            .collect();
        std::fs::write(kept.join("operations.txt"), operations).expect("a file");
    }
}

fn shown((number, done): (usize, &Done)) -> String {
    let text = match &done.operation {
        Operation::Write { ino, offset, data } => {
            format!("Write {ino} {offset} {} bytes", data.len())
        }
        other => format!("{other:?}"),
    };
    format!("{number} {} {text}\n", done.time)
}

/// What recovery asks of a disk that has this, after all is on the medium.
fn recorded_recovery(tree: &Tree, at: &Path) -> Vec<Done> {
    std::fs::create_dir_all(at).expect("a directory");
    let record = at.join("done");
    let had = tree.operations().into_iter();
    let had: Vec<Done> = had.map(|operation| Done { time: 0, operation }).collect();
    std::fs::write(&record, to_bytes(&had)).expect("a file");
    let mut disk = Served::new(at.join("disk"), "tree", &[]);
    assert_eq!(disk.ask(&format!("load {}", record.display())), "ok");
    assert_eq!(disk.ask("settle"), "ok");
    let mut recovery = Command::new(binary());
    recovery.args(["check", "--recover"]);
    recovery.arg(disk.directory().join("state"));
    run(&mut recovery, Duration::from_secs(20)).ok();
    assert_eq!(disk.ask(&format!("dump {}", record.display())), "ok");
    let done = from_bytes(&std::fs::read(&record).expect("a record"));
    drop(disk);
    std::fs::remove_dir_all(at).expect("nobody is there any more");
    done
}

fn recovered(at: &Path) -> Result<Found, String> {
    let store = Store::open(at).map_err(|e| format!("the store: {e}"))?;
    let rules = Rules::parse(&rules(), "the rules of all").expect("rules");
    recover(&store, &rules).map_err(|e| format!("recovery: {e}"))?;
    drop(store);
    Ok(Found::read(at))
}
