//! C19. The power goes. A file system in ordered or delayed mode may now hold the rename but not
//! the data (a file of zeros, or none), or the second of two files but not the first. Here every
//! file is whole, and all together show a prefix of the order in which the commits happened; with
//! durability=sync, every acknowledged commit.
//!
//! How the power is cut: the backing directory lies on an XFS in an image file, which lies on
//! another XFS. `cp --reflink=always` of that image is atomic: what it holds is what the disk held
//! at one instant, without anything that was still in a cache above the disk. The copy is mounted,
//! its log replayed, commitfs mounted on it, and the files are read. Needs root.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use commitfs::journal::{self, Edit, Record};
use common::{
    Actor, Disk, Failure, Mount, Options, Random, commitfs, run, stamped, temporary_directory,
    times, version_of,
};

const FILES: u64 = 5;
/// How much async durability may lose, and the time a busy machine may add.
const BOUND: Duration = Duration::from_secs(1);
const SLACK: Duration = Duration::from_millis(1500);

/// How each file is saved: all the ways in which a commit can come about.
type Ways = [&'static str; FILES as usize];
const UNSYNCED: Ways = ["rewrite", "patch", "replace", "rewrite", "new"];
const SOME_SYNCED: Ways = ["rewrite", "patch", "replace", "fsync", "new"];

fn way(ways: &Ways, number: u64) -> &'static str {
    ways[(number % FILES) as usize]
}

/// The `number`th commit goes to this file; a new name each time for the last one.
fn name_of(ways: &Ways, number: u64) -> String {
    if way(ways, number) == "new" {
        format!("new-{number}")
    } else {
        format!("file-{}", number % FILES)
    }
}

fn content_of(number: u64) -> Vec<u8> {
    stamped(number, 300 + (number as usize * 7919) % 30_000)
}

fn commit(actor: &mut Actor, m: &Mount, ways: &Ways, number: u64) -> Result<(), Failure> {
    let (path, content) = (m.path(name_of(ways, number)), content_of(number));
    match way(ways, number) {
        "replace" => {
            let path = path.as_os_str().as_encoded_bytes();
            actor.ask("replace", &[path, &content]).map(drop)
        }
        "fsync" => {
            actor.open("f", "w", &path)?;
            actor.write("f", &content)?;
            actor.fsync("f")?;
            actor.close("f")
        }
        "patch" => {
            let patch = format!(r#"[{{"op": "replace", "path": "/n", "value": {number}}}]"#);
            match actor.setxattr(&path, "user.commitfs.json.patch", patch.as_bytes()) {
                Err(missing) if missing.errno == "ENOENT" => {
                    actor.save(&path, format!(r#"{{"n": {number}}}"#).as_bytes())
                }
                done => done,
            }
        }
        _ => actor.save(&path, &content),
    }
}

/// Two processes take turns, so that the order of commits is known though no one process made it.
/// Every acknowledgement is noted with its time.
struct History {
    ways: Ways,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    times: Mutex<Vec<Instant>>,
}

impl History {
    fn write(&self, m: &Mount) {
        let mut actors = [Actor::new(), Actor::new()];
        let mut number = 1;
        while !self.stop.load(Ordering::Relaxed) {
            commit(&mut actors[number as usize % 2], m, &self.ways, number).expect("a save");
            self.times.lock().unwrap().push(Instant::now());
            self.acknowledged.store(number, Ordering::SeqCst);
            number += 1;
        }
    }

    /// The newest commit acknowledged before a moment.
    fn before(&self, moment: Instant) -> u64 {
        self.times
            .lock()
            .unwrap()
            .partition_point(|time| *time <= moment) as u64
    }
}

fn number_in(document: &[u8]) -> Result<u64, String> {
    let value: serde_json::Value = serde_json::from_slice(document).map_err(|e| e.to_string())?;
    value["n"].as_u64().ok_or_else(|| value.to_string())
}

/// The number in each file after a cut: that they are whole is checked, too.
fn versions(m: &Mount, ways: &Ways, cut: &str) -> Vec<u64> {
    let read = |name: &str| {
        let content = m.read(name)?;
        let version = if content.starts_with(b"{") {
            number_in(&content)
        } else {
            version_of(&content)
        };
        Some(version.unwrap_or_else(|why| panic!("{cut}: {name} is torn: {why}")))
    };
    let newest_name = || {
        let numbers = m.names(".").into_iter().filter_map(|name| {
            let number: u64 = name.strip_prefix("new-")?.parse().ok()?;
            assert_eq!(read(&name), Some(number), "{cut}: {name}");
            Some(number)
        });
        numbers.max()
    };
    let file = |file: u64| match way(ways, file) {
        "new" => newest_name().unwrap_or(0),
        _ => read(&format!("file-{file}")).unwrap_or(0),
    };
    (0..FILES).map(file).collect()
}

/// A prefix of the order up to P leaves in each file the last number up to P that went there.
/// Returns P.
fn prefix_of(found: &[u64], ways: &Ways, cut: &str) -> u64 {
    let last = *found.iter().max().expect("some files");
    for (file, number) in found.iter().enumerate() {
        let expected = (0..=last)
            .rev()
            .find(|n| n % FILES == file as u64)
            .unwrap_or(0);
        assert_eq!(
            *number, expected,
            "{cut}: no prefix: commit {last} is there, but file {file} ({}) has {number}: {found:?}",
            ways[file]
        );
    }
    last
}

/// What the disk in this image held at one instant.
fn cut_power(image: &Path, copy: PathBuf) -> PathBuf {
    let mut cp = Command::new("cp");
    let limit = Duration::from_secs(60);
    run(cp.arg("--reflink=always").arg(image).arg(&copy), limit).ok();
    copy
}

/// A mount of what a cut has left.
fn mounted_after(copy: &Path) -> Mount {
    let disk = Disk::existing(copy, "loop,nouuid");
    Mount::options().on(disk).mount().expect("a mount")
}

/// The long form has fifty, on five disks: a disk fills up in time.
fn cuts(options: impl Fn() -> Options, ways: Ways, sync: bool) {
    for _ in 0..times(1, 5) {
        some_cuts(options(), ways, sync);
    }
}

fn some_cuts(options: Options, ways: Ways, sync: bool) {
    let cuts = times(3, 10);
    let below = temporary_directory();
    // Every fifth commit is a file that stays.
    let outer = Disk::xfs(&below.join("outer"), times(2048, 12_000) as u64);
    let image: PathBuf = outer.path().join("disk");
    let inner = Disk::xfs(&image, times(400, 5000) as u64);
    let mut random = Random::new();
    let Some(m) = options.on(inner).limit(Duration::from_secs(3000)).mount() else {
        return;
    };
    let history = History {
        ways,
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
        times: Mutex::default(),
    };
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let _stop = Stop(&history.stop);
        let writing = scope.spawn(|| history.write(&m));
        for cut in 0..cuts {
            // The first cut comes after the bound, so that something must be there.
            let pause = if cut == 0 {
                3_000
            } else {
                300 + random.below(1_200)
            };
            std::thread::sleep(Duration::from_millis(pause));
            let start = Instant::now();
            let acknowledged = history.acknowledged.load(Ordering::SeqCst);
            let copy = cut_power(&image, outer.path().join(format!("cut-{cut}")));
            let bounded = start
                .checked_sub(BOUND + SLACK)
                .map_or(0, |time| history.before(time));
            // C7: what was fsync'd and closed is durable in either mode, and so is all before it.
            let mut latest = (1..=acknowledged).rev().take(FILES as usize);
            let synced = latest.find(|n| way(&ways, *n) == "fsync").unwrap_or(0);
            let at_least = if sync {
                acknowledged
            } else {
                bounded.max(synced)
            };
            after(&copy, &ways, cut, at_least);
            std::fs::remove_file(&copy).expect("the copy can go");
            assert!(!writing.is_finished(), "the writers stopped");
        }
    });
    println!("{} commits, {cuts} cuts", history.acknowledged.into_inner());
    drop(m);
    drop(outer);
    let _ = std::fs::remove_dir_all(&below);
}

/// Mounts the disk as the cut left it, and looks.
fn after(copy: &Path, ways: &Ways, cut: usize, at_least: u64) {
    let cut = format!("cut {cut}");
    let disk = Disk::existing(copy, "loop,nouuid");
    let mut m = Mount::options()
        .on(disk)
        .limit(Duration::from_secs(times(60, 600) as u64))
        .mount()
        .expect("a mount");
    let found = versions(&m, ways, &cut);
    let last = prefix_of(&found, ways, &cut);
    println!("{cut}: {last} commits are there, at least {at_least} must be");
    assert!(
        last >= at_least,
        "{cut}: commit {at_least} is lost, the last is {last}"
    );
    // It goes on from there.
    m.save("file-0", stamped(last + FILES, 100));
    assert_eq!(version_of(&m.read("file-0").unwrap()), Ok(last + FILES));
    m.unmount();
    m.remount();
    assert_eq!(
        version_of(&m.read("file-0").unwrap()),
        Ok(last + FILES),
        "{cut}: remounted"
    );
}

#[test]
fn after_a_power_cut_all_files_show_a_prefix_of_the_order_of_commits() {
    need_root!();
    cuts(Mount::options, UNSYNCED, false);
}

#[test]
fn after_a_power_cut_what_was_synced_and_all_before_it_is_there() {
    need_root!();
    cuts(Mount::options, SOME_SYNCED, false);
}

#[test]
fn after_a_power_cut_with_sync_durability_every_acknowledged_commit_is_there() {
    need_root!();
    cuts(|| Mount::options().sync(), SOME_SYNCED, true);
}

#[test]
fn what_fsync_acknowledged_survives_a_power_cut_in_either_mode() {
    // C7: fsync and close of the only descriptor is durable when close() returns.
    need_root!();
    let below = temporary_directory();
    let outer = Disk::xfs(&below.join("outer"), 2048);
    let image = outer.path().join("disk");
    let Some(m) = Mount::options().on(Disk::xfs(&image, 400)).mount() else {
        return;
    };
    let mut writer = Actor::new();
    let cut = |name: &str| cut_power(&image, outer.path().join(name));
    let mut save_synced = |name: &str, close: bool| {
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", stamped(7, 20_000)).unwrap();
        writer.fsync("f").unwrap();
        if close {
            writer.close("f").unwrap();
        }
    };
    save_synced("closed", true);
    // What came after the fsync, too.
    let mut later = Actor::new();
    let content = stamped(8, 40_000);
    later.open("f", "w", &m.path("later")).unwrap();
    later.write("f", &content[..20_000]).unwrap();
    later.fsync("f").unwrap();
    later.write("f", &content[20_000..]).unwrap();
    later.close("f").unwrap();
    let copy = cut("one");
    assert_eq!(
        mounted_after(&copy).read("later").map(|c| version_of(&c)),
        Some(Ok(8)),
        "written after the fsync"
    );
    assert_eq!(
        mounted_after(&copy).read("closed").map(|c| version_of(&c)),
        Some(Ok(7)),
        "closed"
    );

    // Not closed yet: recovery makes it the file's version.
    save_synced("open", false);
    let copy = cut("two");
    assert_eq!(
        mounted_after(&copy).read("open").map(|c| version_of(&c)),
        Some(Ok(7)),
        "still open"
    );

    // fsync of the directory makes all earlier commits and renames in it durable.
    let mut other = Actor::new();
    other.save(&m.path("a"), stamped(1, 5_000)).unwrap();
    other.save(&m.path("b"), stamped(2, 5_000)).unwrap();
    other.rename(&m.path("b"), &m.path("c")).unwrap();
    other.unlink(&m.path("closed")).unwrap();
    other.open("d", "r|directory", m.mountpoint()).unwrap();
    other.fsync("d").unwrap();
    let copy = cut("three");
    let seen = mounted_after(&copy);
    assert_eq!(
        seen.read("a").map(|c| version_of(&c)),
        Some(Ok(1)),
        "a commit"
    );
    assert_eq!(
        seen.read("c").map(|c| version_of(&c)),
        Some(Ok(2)),
        "a rename"
    );
    assert!(!seen.exists("b") && !seen.exists("closed"), "an unlink");
    drop((seen, m, outer));
    let _ = std::fs::remove_dir_all(&below);
}

#[test]
fn what_an_editor_has_synced_and_what_others_have_added_since_survive_a_power_cut() {
    need_root!();
    let below = temporary_directory();
    let outer = Disk::xfs(&below.join("outer"), 2048);
    let image = outer.path().join("disk");
    let Some(m) = Mount::options().on(Disk::xfs(&image, 400)).mount() else {
        return;
    };
    m.save("log", "begun\n");
    let (mut editor, mut appender) = (Actor::new(), Actor::new());
    editor.open("f", "r+", &m.path("log")).unwrap();
    editor.pwrite("f", 0, b"B").unwrap();
    editor.fsync("f").unwrap();
    appender.open("f", "a", &m.path("log")).unwrap();
    for line in ["one\n", "two\n"] {
        appender.write("f", line).unwrap();
        appender.fsync("f").unwrap();
    }
    editor.pwrite("f", 6, b"not synced\n").unwrap();
    let cut = mounted_after(&cut_power(&image, outer.path().join("cut")));
    let text = cut.text("log");
    assert_eq!(text.as_deref(), Some("Begun\none\ntwo\n"));
    drop((cut, m, outer));
    let _ = std::fs::remove_dir_all(&below);
}

#[test]
fn a_name_goes_only_after_what_was_committed_before_is_in_its_place() {
    // An old checkpoint is removed once the new one is written: never may the first be durable
    // and the second not. No power is cut here; the order is looked at.
    need_daemon!();
    let options = Mount::options().separate().args(["--bound", "60000"]);
    let m = mount!(options.seed("old", "1").seed("moved", "1"));
    let mut actor = Actor::new();
    for (n, way) in ["unlink", "rename"].iter().enumerate() {
        let new = format!("new-{n}");
        actor.save(&m.path(&new), "2").unwrap();
        if *way == "unlink" {
            actor.unlink(&m.path("old")).unwrap();
        } else {
            actor
                .rename(&m.path("moved"), &m.path("elsewhere"))
                .unwrap();
        }
        let placed = std::fs::read(m.backing().join(&new)).ok();
        assert_eq!(placed.as_deref(), Some(b"2".as_slice()), "{way}");
    }
}

const MERGE: &str = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\n";

/// Somebody loads a document, another one patches it, and the first saves: the patch is merged in. A
/// mapping keeps the commit from following the close, which has promised it.
fn save_merged(m: &Mount, fsync: bool) -> Actor {
    let document = m.path("s.json");
    m.save("s.json", r#"{"old": 1}"#);
    let (mut saver, mut other) = (Actor::new(), Actor::new());
    saver.cat(&document).unwrap();
    let patch = br#"[{"op": "add", "path": "/theirs", "value": 1}]"#;
    other
        .setxattr(&document, "user.commitfs.json.patch", patch)
        .unwrap();
    saver.open("f", "w+", &document).unwrap();
    saver.write("f", r#"{"old": 1, "mine": 1}"#).unwrap();
    if fsync {
        saver.fsync("f").unwrap();
    }
    saver.mmap("f", "map", 4096, "rw").unwrap();
    saver.close("f").unwrap();
    saver
}

/// What a dead daemon has left, with so many of its records on the medium.
fn recovered(m: &Mount, records: &[Record]) -> serde_json::Value {
    let copy = temporary_directory().join("copy");
    let mut cp = Command::new("cp");
    let limit = Duration::from_secs(20);
    run(cp.arg("-a").arg(m.backing()).arg(&copy), limit).ok();
    let mut header = journal_of(m).header;
    header.instance = "before the power cut".into();
    let bytes = journal::encode(&header, records).unwrap();
    std::fs::write(copy.join(".commitfs/journal"), bytes).unwrap();
    commitfs(["check", "--recover", copy.to_str().unwrap()]).ok();
    let text = std::fs::read(copy.join("s.json")).unwrap();
    std::fs::remove_dir_all(copy.parent().unwrap()).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn journal_of(m: &Mount) -> journal::Contents {
    let bytes = std::fs::read(m.backing().join(".commitfs/journal")).unwrap();
    journal::decode(&bytes).unwrap()
}

#[test]
fn wherever_the_journal_ends_a_merged_save_takes_back_nothing_that_it_was_merged_with() {
    need_daemon!();
    let mut m = mount!(Mount::options().separate().rules(MERGE).sync());
    let saver = save_merged(&m, false);
    m.kill_daemon();
    drop(saver);
    let records = journal_of(&m).records;
    // That was acknowledged before, and so on the medium.
    let patch = |edit: &Edit| matches!(edit, Edit::Patch { .. });
    let patched = |r: &Record| matches!(r, Record::Commit { edits, .. } if edits.iter().any(patch));
    let theirs = records.iter().position(patched).expect("a patch");
    for end in theirs + 1..=records.len() {
        let found = recovered(&m, &records[..end]);
        let last = &records[..end].last();
        assert_eq!(found["theirs"], 1, "behind {last:?}: {found}");
    }
    let whole = recovered(&m, &records);
    assert_eq!(whole["mine"], 1, "the close had promised it: {whole}");
}

#[test]
fn a_new_journal_knows_that_a_merged_save_was_promised() {
    need_daemon!();
    let options = Mount::options().separate().rules(MERGE);
    let options = options.args(["--bound", "60000"]);
    let mut m = mount!(options.env("COMMITFS_JOURNAL_LIMIT", 1));
    let saver = save_merged(&m, true);
    let mut other = Actor::new();
    other.save(&m.path("other"), "put in place").unwrap();
    other.open("d", "r|directory", m.mountpoint()).unwrap();
    other.fsync("d").unwrap();
    other.save(&m.path("later"), "not on the medium").unwrap();
    assert!(m.exists("later"), "its commit follows the close");
    m.kill_daemon();
    drop(saver);
    let records = journal_of(&m).records;
    let staged = |edit: &Edit| match edit {
        Edit::Put { path, id, .. } if path.as_os_str() == "later" => Some(*id),
        _ => None,
    };
    let later = records.iter().find_map(|record| match record {
        Record::Commit { edits, .. } => edits.iter().find_map(staged),
        _ => None,
    });
    let staging = m.backing().join(".commitfs/staging");
    let lost = staging.join(commitfs::store::id_name(later.expect("its commit")));
    std::fs::write(lost, "").unwrap();
    let found = recovered(&m, &records);
    assert_eq!(
        (&found["mine"], &found["theirs"]),
        (&1.into(), &1.into()),
        "{found}\n{records:#?}"
    );
}
