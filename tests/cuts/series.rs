//! One disk, all workers on it for a while, and cuts at random instants; then what each has left.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::run::{binary, wait};
use crate::common::{Mount, run};
use crate::disk::{Fs, Medium, Snapshot, mounted, scratch};
use crate::judge::{Cut, Found, Promise, Worker, judge};
use crate::plan::KINDS;
use crate::random::Random;
use crate::workers::{self, Workers};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Async,
    Sync,
    /// async, with a short bound.
    Short,
}

impl Durability {
    pub const ALL: [Durability; 3] = [Durability::Async, Durability::Sync, Durability::Short];

    fn args(self) -> [&'static str; 2] {
        match self {
            Durability::Async => ["--durability", "async"],
            Durability::Sync => ["--durability", "sync"],
            Durability::Short => ["--bound", "40"],
        }
    }

    /// What the bound promises, and the time that a busy machine may add.
    fn promise(self) -> Promise {
        match self {
            Durability::Sync => Promise::Acknowledged,
            Durability::Async => Promise::Within(6_000_000_000),
            Durability::Short => Promise::Within(5_000_000_000),
        }
    }
}

pub struct Series {
    fs: Fs,
    durability: Durability,
    seed: u64,
    random: Random,
    scratch: PathBuf,
}

/// What a cut has left of a snapshot.
#[derive(Clone, Copy)]
struct Arrived {
    snapshot: Snapshot,
    loss: &'static str,
    seed: u64,
}

/// How the first of two recoveries ends.
#[derive(Debug)]
enum End {
    /// Killed at a crash point, or not if it doesn't come there.
    At(String),
    Killed(Duration),
    /// The power goes.
    Cut(Duration),
}

impl Series {
    pub fn new(fs: Fs, durability: Durability, seed: u64) -> Series {
        let scratch = scratch().join(format!("{seed}"));
        std::fs::create_dir_all(&scratch).expect("a directory");
        Series {
            fs,
            durability,
            seed,
            random: Random::from(seed),
            scratch,
        }
    }

    fn leave(&self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
        if let Some(above) = self.scratch.parent() {
            let _ = std::fs::remove_dir(above);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// The directory before anybody does anything, on the medium.
    fn begin(&self, medium: &Medium) -> Mount {
        let disk = mounted(&medium.image(), self.fs);
        let at = disk.path().to_owned();
        let options = Mount::options()
            .on(disk)
            .args(self.durability.args())
            .limit(Duration::from_secs(120));
        let mount = workers::seeded(options).mount().expect("a mount");
        run(
            Command::new("sync").arg("-f").arg(&at),
            Duration::from_secs(30),
        )
        .ok();
        mount
    }

    fn start(&self, mount: &Mount) -> Workers {
        let kinds: Vec<usize> = (0..KINDS.len()).collect();
        Workers::start(&self.scratch, mount, &kinds, self.seed)
    }

    /// Cuts the power so many times, and says what was wrong after each.
    pub fn cut(mut self, cuts: usize) -> Vec<String> {
        let mut medium = Medium::new(self.path("medium"), self.fs, None);
        let mut mount = self.begin(&medium);
        let workers = self.start(&mount);
        let mut taken: Vec<(Cut, Snapshot)> = Vec::new();
        for _ in 0..cuts {
            std::thread::sleep(Duration::from_millis(150 + self.random.below(900)));
            taken.push(take(&mut medium, self.durability.promise()));
        }
        let workers = workers.stop();
        let mut faults: Vec<String> = workers.iter().flat_map(|w| w.wrong.clone()).collect();
        faults.extend(workers.iter().filter_map(|w| {
            let (_, why) = w.failed.as_ref()?;
            Some(format!("{:?} {} failed: {why}", w.kind, w.me))
        }));
        mount.unmount();
        let end = Cut {
            from: now(),
            to: now(),
            promise: Promise::Kill,
        };
        let left = judge(&end, &workers, &Found::read(mount.backing()));
        faults.extend(left.into_iter().map(|why| {
            format!(
                "{:?} {:?} seed {}, never cut: {why}",
                self.fs, self.durability, self.seed
            )
        }));
        drop(mount);
        let steps: usize = workers.iter().map(|worker| worker.steps.len()).sum();
        for (number, (cut, snapshot)) in taken.into_iter().enumerate() {
            let loss = ["nothing", "some", "everything", "some"][self.random.below(4) as usize];
            let arrived = Arrived {
                snapshot,
                loss,
                seed: self.seed + number as u64,
            };
            let wrong = self.after(&mut medium, arrived, &cut, &workers);
            println!(
                "{:?} {:?} seed {} cut {number}: {steps} steps, {} writes in the cache, {loss} lost: {} faults",
                self.fs,
                self.durability,
                self.seed,
                snapshot.cached,
                wrong.len()
            );
            let label = |why: String| {
                let what = format!("{:?} {:?} seed {}", self.fs, self.durability, self.seed);
                format!("{what} cut {number} ({loss} lost): {why}")
            };
            faults.extend(wrong.into_iter().map(label));
        }
        let kept: Vec<String> = faults
            .iter()
            .map(|fault| fault.chars().take(900).collect())
            .collect();
        for fault in &kept {
            println!("  {fault}");
        }
        drop(medium);
        self.leave();
        kept
    }

    /// Recovers what a cut has left, and judges it; then perhaps once more, with a recovery that ends early.
    fn after(
        &mut self,
        medium: &mut Medium,
        arrived: Arrived,
        cut: &Cut,
        workers: &[Worker],
    ) -> Vec<String> {
        let image = self.path("image");
        let dump = |medium: &mut Medium| {
            medium.dump(arrived.snapshot, &image, arrived.loss, arrived.seed);
            image.clone()
        };
        let once = match self.recover(&dump(medium)) {
            Ok(found) => found,
            Err(why) => return vec![format!("recovery: {why}")],
        };
        let mut faults = judge(cut, workers, &once);
        if !faults.is_empty() {
            self.keep(&dump(medium), arrived.seed);
        }
        let time = Duration::from_micros(self.random.below(120_000));
        let end = match self.random.below(6) {
            0..=2 => End::At(self.crash_point()),
            3 => End::Killed(time),
            4 => End::Cut(time),
            _ => return faults,
        };
        let again = dump(medium);
        let again = match self.begin_recovery(&again, &end) {
            Ok(again) => again,
            Err(why) => return vec![format!("the first of two recoveries: {why}")],
        };
        let twice = match self.recover(&again) {
            Ok(twice) => twice,
            Err(why) => {
                faults.push(format!("recovered twice, {end:?}: {why}"));
                return faults;
            }
        };
        if twice.values != once.values {
            let differ = difference(&once, &twice);
            faults.push(format!(
                "recovered twice, {end:?}, gives another state: {differ}"
            ));
        }
        let also = judge(cut, workers, &twice);
        let also = also.into_iter().filter(|fault| !faults.contains(fault));
        let also: Vec<String> = also
            .map(|fault| format!("recovered twice, {end:?}: {fault}"))
            .collect();
        faults.extend(also);
        faults
    }

    /// What a cut has left, and the journal's records as text, for who looks into a fault: below the
    /// directory `COMMITFS_CUTS_KEEP`.
    fn keep(&self, image: &Path, seed: u64) {
        let Some(dir) = std::env::var_os("COMMITFS_CUTS_KEEP").map(PathBuf::from) else {
            return;
        };
        let disk = mounted(image, self.fs);
        let kept = dir.join(format!("{:?}-{:?}-{seed}", self.fs, self.durability));
        std::fs::create_dir_all(&kept).unwrap();
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(disk.path().join("state")).arg(&kept);
        assert!(copy.status().unwrap().success());
        let journal = std::fs::read(kept.join("state/.commitfs/journal")).unwrap();
        let text = match commitfs::journal::decode(&journal) {
            Ok(told) => {
                let records = told.records.iter().map(|record| format!("{record:?}\n"));
                format!("{:?}\n{}", told.header, records.collect::<String>())
            }
            Err(error) => error.to_string(),
        };
        std::fs::write(kept.join("journal.txt"), text).unwrap();
    }

    fn crash_point(&mut self) -> String {
        match self.random.below(6) {
            0..=2 => "recovery-replayed".into(),
            3 => "recovery-taken-over".into(),
            4 => format!("recovery-applied:{}", 1 + self.random.below(8)),
            _ => format!("recovery-rejected:{}", 1 + self.random.below(3)),
        }
    }

    /// A recovery that doesn't come to its end. Gives the image that it leaves.
    fn begin_recovery(&self, image: &Path, end: &End) -> Result<PathBuf, String> {
        let mut medium = match end {
            End::Cut(_) => Some(Medium::new(self.path("second"), self.fs, Some(image))),
            _ => None,
        };
        let disk = match &medium {
            Some(medium) => mounted(&medium.image(), self.fs),
            None => mounted(image, self.fs),
        };
        let mut recovery = Command::new(binary());
        recovery
            .args(["check", "--recover"])
            .arg(disk.path().join("state"));
        recovery
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let End::At(point) = end {
            recovery.env("COMMITFS_CRASH_AT", point);
        }
        let mut recovery = recovery.spawn().map_err(|error| error.to_string())?;
        let mut snapshot = None;
        match end {
            End::At(_) => drop(wait(&mut recovery, Duration::from_secs(20))),
            End::Killed(time) => std::thread::sleep(*time),
            End::Cut(time) => {
                std::thread::sleep(*time);
                snapshot = medium.as_mut().map(Medium::snapshot);
            }
        }
        let _ = recovery.kill();
        wait(&mut recovery, Duration::from_secs(20)).ok_or("it can't be killed")?;
        drop(disk);
        let (Some(medium), Some(snapshot)) = (&mut medium, snapshot) else {
            return Ok(image.to_owned());
        };
        let left = self.path("left");
        medium.dump(snapshot, &left, "some", self.seed);
        Ok(left)
    }

    /// What a mount makes of it.
    fn recover(&self, image: &Path) -> Result<Found, String> {
        let mut mount = Mount::options()
            .on(mounted(image, self.fs))
            .args(self.durability.args())
            .limit(Duration::from_secs(60))
            .prepare();
        mount.try_remount()?;
        mount.unmount();
        Ok(Found::read(mount.backing()))
    }

    /// Kills the daemon at a random instant, and says what was wrong then.
    pub fn kill(mut self) -> Vec<String> {
        let medium = Medium::new(self.path("medium"), self.fs, None);
        let mut mount = self.begin(&medium);
        let workers = self.start(&mount);
        std::thread::sleep(Duration::from_millis(300 + self.random.below(1500)));
        let from = now();
        mount.strike_daemon();
        let cut = Cut {
            from,
            to: now(),
            promise: Promise::Kill,
        };
        let workers = workers.stop();
        mount.kill_daemon();
        mount.remount();
        mount.unmount();
        let found = Found::read(mount.backing());
        let mut faults: Vec<String> = workers.iter().flat_map(|w| w.wrong.clone()).collect();
        faults.extend(judge(&cut, &workers, &found));
        let early = workers.iter().filter_map(|w| {
            let (time, why) = w.failed.as_ref()?;
            (*time < from).then(|| format!("{:?} {} failed: {why}", w.kind, w.me))
        });
        faults.extend(early);
        println!(
            "{:?} seed {} killed: {} faults",
            self.fs,
            self.seed,
            faults.len()
        );
        let label = |why: String| -> String {
            format!("{:?} seed {} killed: {why}", self.fs, self.seed)
                .chars()
                .take(900)
                .collect()
        };
        let faults: Vec<String> = faults.into_iter().map(label).collect();
        for fault in &faults {
            println!("  {fault}");
        }
        drop(mount);
        drop(medium);
        self.leave();
        faults
    }
}

pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn take(medium: &mut Medium, promise: Promise) -> (Cut, Snapshot) {
    let from = now();
    let snapshot = medium.snapshot();
    let cut = Cut {
        from,
        to: now(),
        promise,
    };
    (cut, snapshot)
}

fn difference(one: &Found, other: &Found) -> String {
    let keys = one.values.keys().chain(other.values.keys());
    let keys = keys.filter(|key| one.values.get(*key) != other.values.get(*key));
    let told = |key: &String| {
        format!(
            "{key}: {:?} and {:?}",
            one.values.get(key),
            other.values.get(key)
        )
    };
    let mut all: Vec<String> = keys.map(told).collect();
    all.dedup();
    all.join(", ")
}
