//! C23. A directory that a rule groups is listed once all of it is there, whoever has a part in it; what is saved again into one that
//! is there replaces what was there in one step.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use commitfs::sys::failpoint::CRASH_POINTS;
use common::rounds::{await_count, entries, groups};
use common::{Actor, Mount, Options, assert_errno, eventually, times};

const NAMED: &str =
    "[[group]]\ndirectory = \"**/checkpoint-*\"\ncomplete = [\"trainer_state.json\"]\n";

const GUESSED: &str = "[[group]]\ndirectory = \"checkpoint_*\"\nsettle = \"400ms\"\n";

fn named() -> Options {
    Mount::options().rules(NAMED)
}

/// As [`named`], and others are waited for but a moment.
fn quick() -> Options {
    Mount::options().rules(&format!("{NAMED}settle = \"300ms\"\n"))
}

/// What a program finds in a directory, sorted.
#[track_caller]
fn listed(reader: &mut Actor, path: &Path) -> Vec<String> {
    let found = reader.on_path("ls", path, &[]).unwrap();
    let mut names: Vec<String> = found
        .into_iter()
        .map(|name| String::from_utf8(name).unwrap())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

/// A directory has been made, and that is all.
fn make(saver: &mut Actor, m: &Mount, dir: &str) {
    saver.mkdir(&m.path(dir)).unwrap();
}

fn save_all(saver: &mut Actor, m: &Mount, dir: &str, names: &[&str]) {
    for name in names {
        saver.save(&m.path(format!("{dir}/{name}")), "{}").unwrap();
    }
}

#[test]
fn a_new_directory_is_listed_once_what_the_group_names_is_there() {
    let m = mount!(named());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let dir = m.path("checkpoint-1");
    saver.mkdir(&dir).unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert_eq!(listed(&mut saver, &m.path("")), ["checkpoint-1"]);
    save_all(
        &mut saver,
        &m,
        "checkpoint-1",
        &["model.safetensors.x", "b"],
    );
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    // By its name everybody finds it, and what was saved its savers.
    assert!(reader.stat(&dir).is_ok());
    assert_eq!(listed(&mut reader, &dir), [""; 0]);
    assert_eq!(listed(&mut saver, &dir), ["b", "model.safetensors.x"]);
    assert_errno(reader.cat(&dir.join("b")), "ENOENT");
    let rounds = &groups(&m)["rounds"];
    let missing = serde_json::json!(["checkpoint-1/trainer_state.json"]);
    assert_eq!(rounds[0]["missing"], missing, "{rounds}");
    save_all(&mut saver, &m, "checkpoint-1", &["trainer_state.json"]);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(listed(&mut reader, &dir).len(), 3);
    let told = groups(&m);
    assert_eq!(
        (&told["published"], &told["incomplete"]),
        (&1.into(), &0.into())
    );
}

#[test]
fn ranks_that_make_it_together_save_it_together() {
    let m = mount!(named());
    let mut reader = Actor::new();
    let mut ranks: Vec<Actor> = (0..4).map(|_| Actor::new()).collect();
    make(&mut ranks[2], &m, "checkpoint-1");
    for rank in [1, 3, 2, 0] {
        let made = ranks[rank].mkdir(&m.path("checkpoint-1"));
        assert_errno(made, "EEXIST");
        let name = format!("rng_state_{rank}.pth");
        save_all(&mut ranks[rank], &m, "checkpoint-1", &[&name]);
        assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    }
    // Each sees what the others have saved.
    for rank in &mut ranks {
        assert_eq!(listed(rank, &m.path("")), ["checkpoint-1"]);
        assert_eq!(listed(rank, &m.path("checkpoint-1")).len(), 4);
        let other = m.path("checkpoint-1/rng_state_3.pth");
        assert_eq!(rank.cat(&other).unwrap(), b"{}");
    }
    save_all(&mut ranks[0], &m, "checkpoint-1", &["trainer_state.json"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")).len(), 5);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
}

#[test]
fn what_is_being_written_is_waited_for() {
    let m = mount!(named());
    let mut reader = Actor::new();
    let (mut first, mut second) = (Actor::new(), Actor::new());
    make(&mut first, &m, "checkpoint-1");
    second.open("f", "w", &m.path("checkpoint-1/b")).unwrap();
    second.write("f", "b").unwrap();
    save_all(&mut first, &m, "checkpoint-1", &["a", "trainer_state.json"]);
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert_eq!(
        listed(&mut reader, &m.path("checkpoint-1")).len(),
        2,
        "by its name"
    );
    second.close("f").unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")).len(), 3);
}

#[test]
fn a_rank_that_is_killed_takes_all_of_it_along_and_it_is_brought_back_in_one_step() {
    for (status, signal) in [(0, libc::SIGKILL), (3, 0)] {
        let mut m = mount!(quick());
        let mut reader = Actor::new();
        let (mut first, mut second) = (Actor::new(), Actor::new());
        make(&mut first, &m, "checkpoint-1");
        make(&mut second, &m, "checkpoint-1/sub");
        save_all(&mut second, &m, "checkpoint-1", &["b", "sub/c"]);
        save_all(&mut first, &m, "checkpoint-1", &["a"]);
        match signal {
            0 => second.exit(status),
            signal => second.kill(signal),
        }
        save_all(&mut first, &m, "checkpoint-1", &["trainer_state.json"]);
        await_count(&m, "rejected", 1);
        // What the other saves of it now is none, either.
        save_all(&mut first, &m, "checkpoint-1", &["late"]);
        assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
        first.exit(0);
        eventually(Duration::from_secs(5), "it is gone", || {
            !m.exists("checkpoint-1")
        });
        assert!(!m.backing().join("checkpoint-1").exists());
        assert_eq!(groups(&m)["rejected"], 1);
        let all = entries(&m);
        assert_eq!(all.len(), 1, "{all:?}");
        let members = all[0]["members"].as_array().unwrap();
        assert_eq!(members.len(), 5, "{all:?}");
        let id = all[0]["id"].as_str().unwrap().to_owned();
        let mount = m.mountpoint().to_str().unwrap().to_owned();
        common::commitfs(["rejected", "restore", &mount, &id]).ok();
        assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
        assert_eq!(listed(&mut reader, &m.path("checkpoint-1")).len(), 5);
        assert_eq!(reader.cat(&m.path("checkpoint-1/sub/c")).unwrap(), b"{}");
        m.unmount();
    }
}

#[test]
fn who_saves_again_what_was_rejected_begins_anew() {
    let rules = format!("{NAMED}settle = \"200ms\"\ntimeout = \"500ms\"\n");
    let m = mount!(Mount::options().rules(&rules));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint-1");
    save_all(&mut saver, &m, "checkpoint-1", &["a"]);
    await_count(&m, "rejected", 1);
    // Later than that, and not all of it.
    save_all(&mut saver, &m, "checkpoint-1", &["trainer_state.json"]);
    eventually(Duration::from_secs(3), "rejected", || {
        m.rejected().len() == 2
    });
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    std::thread::sleep(Duration::from_millis(300));
    save_all(&mut saver, &m, "checkpoint-1", &["a", "trainer_state.json"]);
    await_count(&m, "published", 1);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")).len(), 2);
}

#[test]
fn a_rank_that_comes_when_the_others_have_been_killed_saves_nothing_by_itself_but_a_new_job_does() {
    let m = mount!(named());
    let mut reader = Actor::new();
    let (mut first, mut late) = (Actor::new(), Actor::new());
    make(&mut first, &m, "checkpoint-1");
    save_all(&mut first, &m, "checkpoint-1", &["a"]);
    first.kill(libc::SIGKILL);
    await_count(&m, "rejected", 1);
    save_all(&mut late, &m, "checkpoint-1", &["trainer_state.json"]);
    eventually(Duration::from_secs(3), "rejected", || {
        m.rejected().len() == 2
    });
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert_eq!(entries(&m).len(), 1);
    let mut job = Actor::new();
    assert_errno(job.mkdir(&m.path("checkpoint-1")), "EEXIST");
    save_all(&mut job, &m, "checkpoint-1", &["b", "trainer_state.json"]);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(
        listed(&mut reader, &m.path("checkpoint-1")),
        ["b", "trainer_state.json"]
    );
}

#[test]
fn when_all_have_ended_well_without_what_the_group_names_what_there_is_is_published_after_a_while()
{
    let m = mount!(Mount::options().rules(&format!("{NAMED}settle = \"700ms\"\n")));
    let mut reader = Actor::new();
    let (mut first, mut second) = (Actor::new(), Actor::new());
    make(&mut first, &m, "checkpoint-1");
    save_all(&mut first, &m, "checkpoint-1", &["a"]);
    first.exit(0);
    // Another rank may be about to begin.
    let began = Instant::now();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    save_all(&mut second, &m, "checkpoint-1", &["b"]);
    second.exit(0);
    await_count(&m, "incomplete", 1);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")), ["a", "b"]);
    let errors = m.status()["errors"].clone();
    let reason = errors[0]["reason"].as_str().unwrap();
    let missing = "its saver has ended without checkpoint-1/trainer_state.json";
    assert!(reason.contains(missing), "{reason}");
}

#[test]
fn by_rule_what_there_is_of_a_directory_that_failed_is_published() {
    let rules = format!("{NAMED}on_incomplete = \"commit\"\n");
    let m = mount!(Mount::options().rules(&rules));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint-1");
    save_all(&mut saver, &m, "checkpoint-1", &["a", "b"]);
    saver.kill(libc::SIGKILL);
    await_count(&m, "incomplete", 1);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")), ["a", "b"]);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
}

#[test]
fn a_refused_member_keeps_all_of_it_back() {
    let m = mount!(quick());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint-1");
    let path = m.path("checkpoint-1/config.json");
    assert_errno(saver.save(&path, "{\"half"), "EBADMSG");
    save_all(&mut saver, &m, "checkpoint-1", &["a", "trainer_state.json"]);
    await_count(&m, "rejected", 1);
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert_eq!(entries(&m).len(), 1);
    saver.exit(0);
    eventually(Duration::from_secs(5), "it is gone", || {
        !m.exists("checkpoint-1")
    });
}

#[test]
fn where_nothing_is_named_it_is_listed_once_nothing_was_written_for_a_while() {
    let m = mount!(Mount::options().rules(GUESSED));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint_1");
    save_all(&mut saver, &m, "checkpoint_1", &["a"]);
    saver.open("f", "w", &m.path("checkpoint_1/b")).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0], "one is open");
    saver.close("f").unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    // Who was told its name finds what has been saved so far.
    assert_eq!(listed(&mut reader, &m.path("checkpoint_1")), ["a", "b"]);
    assert_eq!(reader.cat(&m.path("checkpoint_1/a")).unwrap(), b"{}");
    await_count(&m, "published", 1);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint_1"]);
    // Or at once, when all who have saved it have ended.
    make(&mut saver, &m, "checkpoint_2");
    save_all(&mut saver, &m, "checkpoint_2", &["a"]);
    saver.exit(0);
    assert_eq!(
        listed(&mut reader, &m.path("")),
        ["checkpoint_1", "checkpoint_2"]
    );
    assert_eq!(groups(&m)["incomplete"], 0);
}

#[test]
fn with_both_the_first_rank_may_be_the_first_to_end() {
    let m = mount!(Mount::options().rules(&format!("{NAMED}settle = \"500ms\"\n")));
    let mut reader = Actor::new();
    let mut ranks: Vec<Actor> = (0..4).map(|_| Actor::new()).collect();
    make(&mut ranks[0], &m, "checkpoint-1");
    save_all(
        &mut ranks[0],
        &m,
        "checkpoint-1",
        &["a", "trainer_state.json"],
    );
    for (n, rank) in ranks.iter_mut().enumerate().skip(1) {
        assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
        std::thread::sleep(Duration::from_millis(100));
        let name = format!("rng_state_{n}.pth");
        save_all(rank, &m, "checkpoint-1", &[&name]);
    }
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    assert_eq!(
        listed(&mut reader, &m.path("checkpoint-1")).len(),
        5,
        "by its name"
    );
    await_count(&m, "published", 1);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")).len(), 5);
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
}

#[test]
fn subdirectories_belong_to_it() {
    let m = mount!(named());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    for dir in [
        "checkpoint-1",
        "checkpoint-1/global_step1",
        "checkpoint-1/checkpoint-2",
    ] {
        make(&mut saver, &m, dir);
    }
    let states = ["global_step1/optim_states.pt", "checkpoint-2/a"];
    save_all(&mut saver, &m, "checkpoint-1", &states);
    // The name in one of these is another file.
    save_all(
        &mut saver,
        &m,
        "checkpoint-1/checkpoint-2",
        &["trainer_state.json"],
    );
    for dir in ["", "checkpoint-1", "checkpoint-1/global_step1"] {
        assert_eq!(listed(&mut reader, &m.path(dir)), [""; 0], "{dir}");
    }
    save_all(&mut saver, &m, "checkpoint-1", &["trainer_state.json"]);
    let dir = m.path("checkpoint-1");
    assert_eq!(
        listed(&mut reader, &dir),
        ["checkpoint-2", "global_step1", "trainer_state.json"]
    );
    assert_eq!(reader.cat(&dir.join("checkpoint-2/a")).unwrap(), b"{}");
}

#[test]
fn a_temporary_name_in_it_is_renamed_as_ever() {
    let rules = "[[group]]\ndirectory = \"checkpoint-*\"\ncomplete = [\".metadata\"]\n";
    let m = mount!(Mount::options().rules(rules));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint-1");
    save_all(&mut saver, &m, "checkpoint-1", &["__0_0.distcp"]);
    let (from, to) = (
        m.path("checkpoint-1/.metadata.tmp"),
        m.path("checkpoint-1/.metadata"),
    );
    saver.open("f", "w", &from).unwrap();
    saver.write("f", "meta").unwrap();
    saver.fsync("f").unwrap();
    saver.close("f").unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    saver.rename(&from, &to).unwrap();
    assert_eq!(
        listed(&mut reader, &m.path("checkpoint-1")),
        [".metadata", "__0_0.distcp"]
    );
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(reader.cat(&to).unwrap(), b"meta");
}

#[test]
fn what_is_in_a_directory_that_was_there_before_is_published_at_its_close() {
    let m = mount!(named().seed("checkpoint-1/a", "old"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    save_all(&mut saver, &m, "checkpoint-1", &["a", "b"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")), ["a", "b"]);
    assert_eq!(reader.cat(&m.path("checkpoint-1/a")).unwrap(), b"{}");
    // As after it was published.
    make(&mut saver, &m, "checkpoint-2");
    save_all(&mut saver, &m, "checkpoint-2", &["trainer_state.json"]);
    save_all(&mut saver, &m, "checkpoint-2", &["README.md"]);
    let found = listed(&mut reader, &m.path("checkpoint-2"));
    assert_eq!(found, ["README.md", "trainer_state.json"]);
}

#[test]
fn a_directory_that_is_made_alone_is_there_when_its_program_has_ended_and_goes_again_as_it_is_filled()
 {
    let m = mount!(named());
    let shown = m.sh("mkdir checkpoint-1 && ls").ok().out;
    assert_eq!(shown, "checkpoint-1\n");
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    save_all(&mut saver, &m, "checkpoint-1", &["a"]);
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    save_all(&mut saver, &m, "checkpoint-1", &["trainer_state.json"]);
    assert_eq!(
        listed(&mut reader, &m.path("checkpoint-1")),
        ["a", "trainer_state.json"]
    );
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    let shown = m
        .sh("mkdir x && echo 1 > x/trainer_state.json && cp -r x checkpoint-2 && ls")
        .ok();
    assert_eq!(shown.out, "checkpoint-1\ncheckpoint-2\nx\n");
    assert_eq!(m.status()["errors"], serde_json::json!([]));
}

#[test]
fn who_removes_it_again_leaves_nothing() {
    let m = mount!(named());
    let mut saver = Actor::new();
    make(&mut saver, &m, "checkpoint-1");
    save_all(&mut saver, &m, "checkpoint-1", &["a"]);
    saver.unlink(&m.path("checkpoint-1/a")).unwrap();
    saver.rmdir(&m.path("checkpoint-1")).unwrap();
    assert_errno(saver.stat(&m.path("checkpoint-1")), "ENOENT");
    saver.exit(0);
    let is_over = || groups(&m)["rounds"] == serde_json::json!([]);
    eventually(Duration::from_secs(3), "no round", is_over);
    assert!(m.rejected().is_empty());
    assert_eq!(m.status()["errors"], serde_json::json!([]));
}

/// All that a checkpoint has, in the order in which it is saved.
const FILES: [&str; 4] = [
    "model.bin",
    "optimizer.pt",
    "sub/state.pt",
    "trainer_state.json",
];

/// Makes and saves a checkpoint; gives the error of what failed.
fn save_checkpoint(saver: &mut Actor, m: &Mount, dir: &str) -> Result<(), common::Failure> {
    saver.mkdir(&m.path(dir))?;
    saver.mkdir(&m.path(format!("{dir}/sub")))?;
    for name in FILES {
        saver.save(&m.path(format!("{dir}/{name}")), "{}")?;
    }
    Ok(())
}

/// Every checkpoint that is listed has all its files.
#[track_caller]
fn assert_whole(m: &Mount, when: &str) -> Vec<String> {
    let dirs: Vec<String> = m
        .names("")
        .into_iter()
        .filter(|n| n.starts_with("checkpoint-"))
        .collect();
    for dir in &dirs {
        for name in FILES {
            let path = format!("{dir}/{name}");
            assert_eq!(m.text(&path).as_deref(), Some("{}"), "{when}: {path}");
        }
    }
    dirs
}

#[test]
fn a_daemon_killed_at_every_crash_point_lists_a_directory_whole_or_not_at_all() {
    need_daemon!();
    let points = CRASH_POINTS.iter().filter(|p| !p.starts_with("recovery"));
    for (point, sync) in points.flat_map(|p| [(p, false), (p, true)]) {
        for count in 1..=times(2, 6) {
            let when = format!("{point}:{count}, sync {sync}");
            let base = named().env("COMMITFS_JOURNAL_LIMIT", 1);
            let mut m = mount!(if sync { base.sync() } else { base });
            m.save("other", "1");
            m.unmount();
            m.set_env("COMMITFS_CRASH_AT", format!("{point}:{count}"));
            if m.try_remount().is_err() {
                m.clear_env();
                m.remount();
                continue;
            }
            let mut saver = Actor::new();
            let mut acknowledged = 0;
            for n in 1..4 {
                if save_checkpoint(&mut saver, &m, &format!("checkpoint-{n}")).is_err() {
                    break;
                }
                acknowledged = n;
            }
            let unfinished = saver.mkdir(&m.path("checkpoint-9")).is_ok();
            if unfinished {
                let _ = saver.save(&m.path("checkpoint-9/model.bin"), "{}");
            }
            m.kill_daemon();
            m.clear_env();
            m.remount();
            let found = assert_whole(&m, &when);
            assert!(
                found.len() >= acknowledged,
                "{when}: {found:?}, {acknowledged}"
            );
            drop(saver);
            m.unmount();
        }
    }
}

#[test]
fn a_recovery_that_is_killed_leaves_no_directory_of_what_it_rejects() {
    need_daemon!();
    for point in ["recovery-replayed", "recovery-applied", "recovery-rejected"] {
        let mut m = mount!(named().args(["--bound", "60000"]));
        let mut saver = Actor::new();
        save_checkpoint(&mut saver, &m, "checkpoint-1").unwrap();
        for dir in ["checkpoint-2", "checkpoint-2/sub"] {
            make(&mut saver, &m, dir);
        }
        save_all(
            &mut saver,
            &m,
            "checkpoint-2",
            &["sub/state.pt", "model.bin"],
        );
        // One in which nothing was opened yet.
        make(&mut saver, &m, "checkpoint-3");
        m.kill_daemon();
        m.set_env("COMMITFS_CRASH_AT", point);
        assert!(m.try_remount().is_err(), "{point} was not reached");
        m.clear_env();
        m.remount();
        assert_eq!(assert_whole(&m, point), ["checkpoint-1"], "{point}");
        for dir in ["checkpoint-2", "checkpoint-3"] {
            assert!(!m.backing().join(dir).exists(), "{point}: {dir}");
        }
        let all = entries(&m);
        assert_eq!(all.len(), 1, "{point}: {all:?}");
        assert_eq!(all[0]["members"].as_array().unwrap().len(), 2, "{point}");
    }
}

#[test]
fn an_unmount_takes_what_is_not_complete_away() {
    need_daemon!();
    let mut m = mount!(named());
    let mut saver = Actor::new();
    save_checkpoint(&mut saver, &m, "checkpoint-1").unwrap();
    make(&mut saver, &m, "checkpoint-2");
    save_all(&mut saver, &m, "checkpoint-2", &["model.bin"]);
    m.command(&["umount", "--force"]).ok();
    m.remount();
    assert_eq!(assert_whole(&m, "by force"), ["checkpoint-1"]);
    assert_eq!(entries(&m).len(), 1);
}

#[test]
fn checkpoints_of_four_ranks_that_are_killed_at_random_are_never_half_in_a_listing() {
    let m = mount!(named().limit(Duration::from_secs(300)));
    let rounds = times(12, 200);
    let script = format!(
        "import os,random,signal,time,json
def save(path,size=3000):
    with open(path,'wb') as f:
        for n in range(4): f.write(b'x'*size)
def rank(n,dir,world):
    # A model and its states by the first rank, a random state by each; what names the end last.
    time.sleep(random.random()*0.01)
    os.makedirs(dir,exist_ok=True)
    if n==0:
        save(dir+'/model.safetensors.bin',9000); save(dir+'/optimizer.pt')
    save(dir+f'/rng_state_{{n}}.pth')
    world[n].write(b'.'); world[n].flush()
    if n==0:
        for other in range(1,4):
            if not os.read(reads[other],1): os._exit(1)
        with open(dir+'/trainer_state.json','w') as f: json.dump({{'step':1}},f)
seen=set()
for r in range({rounds}):
    dir=f'checkpoint-{{r}}'
    pipes=[os.pipe() for n in range(4)]
    reads=[p[0] for p in pipes]
    pids=[]
    for n in range(4):
        pid=os.fork()
        if pid==0:
            world=[os.fdopen(p[1],'wb') for p in pipes]
            for m in range(4):
                if m!=n: world[m].close()
            try: rank(n,dir,world)
            except OSError as e: os._exit(1)
            os._exit(0)
        pids.append(pid)
    for p in pipes: os.close(p[1])
    time.sleep(random.random()*0.08)
    if r%3: os.kill(pids[r%4],signal.SIGKILL)
    end=time.time()+10
    alive=set(pids)
    while alive and time.time()<end:
        for d in os.listdir('.'):
            if d.startswith('checkpoint-') and len(os.listdir(d))!=7: print('half',d,os.listdir(d),flush=True)
        for pid in list(alive):
            if os.waitpid(pid,os.WNOHANG)[0]: alive.discard(pid)
    for d in os.listdir('.'):
        if d.startswith('checkpoint-') and len(os.listdir(d))!=7: print('half at the end',d,os.listdir(d),flush=True)
    for p in reads: os.close(p)
print('there',len([d for d in os.listdir('.') if d.startswith('checkpoint-')]))
"
    );
    let found = m.python(&script).ok().out;
    assert!(!found.contains("half"), "{found}");
    let there: usize = found.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(there >= rounds / 4, "{found}");
    let all = entries(&m);
    assert!(all.iter().all(|e| e["members"].is_array()), "{all:?}");
}

#[test]
fn ten_thousand_files_of_a_directory_are_published_all_or_not_at_all() {
    let m = mount!(named().limit(Duration::from_secs(300)));
    let count = times(2_000, 10_000);
    let script = format!(
        "import os,sys\nd=sys.argv[1] if len(sys.argv)>1 else 'checkpoint-1'\nd=input()\nos.mkdir(d)\n\
         for n in range({count}): open(f'{{d}}/{{n}}','w').write(str(n))\n\
         print('saved',flush=True)\nif input()=='fail': os._exit(1)\n\
         open(d+'/trainer_state.json','w').write('1'); print('all',flush=True); input()"
    );
    let mut failing = m.live_python(&script);
    failing.send("checkpoint-1");
    failing.expect("saved");
    assert_eq!(m.names(""), [""; 0]);
    failing.send("fail");
    failing.finish();
    eventually(Duration::from_secs(60), "it is gone", || {
        !m.exists("checkpoint-1")
    });
    let mut saver = m.live_python(&script);
    saver.send("checkpoint-2");
    saver.expect("saved");
    saver.send("");
    saver.expect("all");
    assert_eq!(m.names(""), ["checkpoint-2"]);
    assert_eq!(m.names("checkpoint-2").len(), count + 1);
    assert_eq!(entries(&m).len(), 1);
}

#[test]
fn a_directory_that_is_being_removed_leaves_the_listing_first() {
    let mut m = mount!(Mount::options().rules(&format!("{NAMED}timeout = \"1500ms\"\n")));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    for n in 1..=2 {
        save_checkpoint(&mut saver, &m, &format!("checkpoint-{n}")).unwrap();
    }
    let mut remover = Actor::new();
    let dir = m.path("checkpoint-1");
    remover.unlink(&dir.join(FILES[0])).unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-2"]);
    assert_eq!(
        listed(&mut remover, &m.path("")),
        ["checkpoint-1", "checkpoint-2"]
    );
    assert_eq!(listed(&mut reader, &dir).len(), 3, "by its name");
    for name in &FILES[1..] {
        remover.unlink(&dir.join(name)).unwrap();
    }
    remover.rmdir(&dir.join("sub")).unwrap();
    remover.rmdir(&dir).unwrap();
    assert_eq!(listed(&mut remover, &m.path("")), ["checkpoint-2"]);
    // What a killed one leaves shows after a while: it is what the plain directory has.
    remover
        .unlink(&m.path("checkpoint-2").join(FILES[0]))
        .unwrap();
    remover.kill(libc::SIGKILL);
    let began = Instant::now();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    let is_listed = || m.names("") == ["checkpoint-2"];
    eventually(Duration::from_secs(5), "it is listed again", is_listed);
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    m.unmount();
}

#[test]
fn who_removes_one_file_of_a_directory_and_ends_leaves_it_listed() {
    let m = mount!(named());
    let mut saver = Actor::new();
    save_checkpoint(&mut saver, &m, "checkpoint-1").unwrap();
    let shown = m
        .sh("rm checkpoint-1/optimizer.pt && ls . checkpoint-1")
        .ok()
        .out;
    assert!(shown.contains("checkpoint-1\n"), "{shown}");
    assert!(!shown.contains("optimizer"), "{shown}");
    let shown = m.sh("rm -r checkpoint-1 && ls").ok().out;
    assert_eq!(shown, "");
    assert_eq!(groups(&m)["rounds"], serde_json::json!([]));
}

#[test]
fn checkpoints_that_are_removed_while_others_are_saved_are_never_half_in_a_listing() {
    let m = mount!(named());
    let rounds = times(10, 100);
    let script = format!(
        "import os,shutil
names=['model.bin','optimizer.pt','trainer_state.json']
def save(n):
    d=f'checkpoint-{{n}}'
    os.makedirs(d,exist_ok=True)
    for name in names: open(d+'/'+name,'w').write('{{}}')
    # By the number, as a trainer rotates them.
    for old in sorted(os.listdir('.'),key=lambda d: int(d.split('-')[1]))[:-2]: shutil.rmtree(old)
pid=os.fork()
if pid==0:
    for n in range({rounds}): save(n)
    os._exit(0)
looks=0
while not os.waitpid(pid,os.WNOHANG)[0]:
    for d in os.listdir('.'):
        try: found=len(os.listdir(d))
        except FileNotFoundError: continue
        # What is listed may go between the two.
        if found!=3 and d in os.listdir('.'): print('half',d,found,flush=True)
        looks+=1
print('looks',looks,sorted(os.listdir('.')))
"
    );
    let found = m.python(&script).ok().out;
    assert!(!found.contains("half"), "{found}");
    let last = format!("['checkpoint-{}', 'checkpoint-{}']", rounds - 2, rounds - 1);
    assert!(found.trim().ends_with(&last), "{found}");
}

const EXISTING: &str =
    "[[group]]\ndirectory = \"best\"\nexisting = true\ncomplete = [\"training_args.bin\"]\n";

#[test]
fn what_is_saved_again_into_a_directory_replaces_what_was_there_in_one_step() {
    let m = mount!(Mount::options().rules(EXISTING));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    make(&mut saver, &m, "best");
    let names = ["config.json", "model-1", "model-2", "training_args.bin"];
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    for name in names {
        saver.save(&m.path(format!("best/{name}")), "1").unwrap();
    }
    assert_eq!(listed(&mut reader, &m.path("")), ["best"]);
    let found = |reader: &mut Actor| {
        names.map(|name| {
            String::from_utf8(reader.cat(&m.path(format!("best/{name}"))).unwrap()).unwrap()
        })
    };
    assert_eq!(found(&mut reader), ["1"; 4]);
    // One shard less, and one file more, by two ranks.
    let mut other = Actor::new();
    saver.save(&m.path("best/config.json"), "2").unwrap();
    other.save(&m.path("best/model-1"), "2").unwrap();
    saver.save(&m.path("best/added"), "2").unwrap();
    assert_eq!(found(&mut reader), ["1"; 4]);
    assert_eq!(found(&mut saver), ["2", "2", "1", "1"]);
    assert_eq!(listed(&mut reader, &m.path("best")), names);
    assert_eq!(listed(&mut reader, &m.path("")), ["best"]);
    saver.save(&m.path("best/training_args.bin"), "2").unwrap();
    assert_eq!(found(&mut reader), ["2", "2", "1", "2"]);
    assert_eq!(listed(&mut reader, &m.path("best")).len(), 5);
    // One that fails leaves what was there.
    other.save(&m.path("best/model-1"), "3").unwrap();
    other.kill(libc::SIGKILL);
    saver.save(&m.path("best/training_args.bin"), "3").unwrap();
    await_count(&m, "rejected", 1);
    assert_eq!(found(&mut reader), ["2", "2", "1", "2"]);
    // And the next job begins anew.
    let mut job = Actor::new();
    for name in names {
        job.save(&m.path(format!("best/{name}")), "4").unwrap();
    }
    assert_eq!(found(&mut reader), ["4"; 4]);
}

#[test]
fn a_directory_made_in_one_that_is_there_is_listed_with_the_rest() {
    let m = mount!(
        Mount::options()
            .rules(EXISTING)
            .seed("best/training_args.bin", "1")
    );
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    make(&mut saver, &m, "best/sub");
    saver.save(&m.path("best/sub/a"), "2").unwrap();
    assert_eq!(listed(&mut reader, &m.path("best")), ["training_args.bin"]);
    assert_eq!(
        listed(&mut saver, &m.path("best")),
        ["sub", "training_args.bin"]
    );
    saver.save(&m.path("best/training_args.bin"), "2").unwrap();
    assert_eq!(
        listed(&mut reader, &m.path("best")),
        ["sub", "training_args.bin"]
    );
    assert_eq!(listed(&mut reader, &m.path("best/sub")), ["a"]);
    make(&mut saver, &m, "best/other");
    saver.save(&m.path("best/other/a"), "2").unwrap();
    saver.kill(libc::SIGKILL);
    eventually(Duration::from_secs(20), "it is gone", || {
        !m.exists("best/other")
    });
    assert_eq!(
        listed(&mut reader, &m.path("best")),
        ["sub", "training_args.bin"]
    );
}

#[test]
fn a_rank_that_was_killed_a_moment_ago_counts() {
    let m = mount!(named());
    let mut first = Actor::new();
    for n in 0..10 {
        let dir = format!("checkpoint-{n}");
        make(&mut first, &m, &dir);
        let mut second = Actor::new();
        save_all(&mut second, &m, &dir, &["b"]);
        second.exit(3);
        save_all(&mut first, &m, &dir, &["trainer_state.json"]);
        assert_eq!(m.names(""), [""; 0], "{n}");
    }
}

#[test]
fn a_rank_that_is_killed_when_it_has_made_the_directory_leaves_none_that_is_empty() {
    let m = mount!(quick());
    let (mut first, mut second) = (Actor::new(), Actor::new());
    for n in 0..2 {
        let dir = format!("checkpoint-{n}");
        make(&mut first, &m, &dir);
        first.kill(libc::SIGKILL);
        first = Actor::new();
        for _ in 0..20 * (1 - n) {
            assert_eq!(m.names(""), [""; 0]);
        }
        if n == 1 {
            save_all(&mut second, &m, &dir, &["a", "trainer_state.json"]);
            await_count(&m, "rejected", 1);
        }
        second.exit(0);
        second = Actor::new();
        eventually(Duration::from_secs(5), "it is gone", || !m.exists(&dir));
        assert_eq!(m.names(""), [""; 0]);
    }
    assert_eq!(entries(&m).len(), 1);
}

#[test]
fn a_directory_that_gets_a_name_outside_of_its_group_is_complete() {
    let m = mount!(named());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    make(&mut saver, &m, "checkpoint-1");
    make(&mut saver, &m, "checkpoint-1/sub");
    save_all(&mut saver, &m, "checkpoint-1", &["a", "sub/b"]);
    let names = [
        m.path("checkpoint-1"),
        m.path("checkpoint-2"),
        m.path("best"),
    ];
    saver.rename(&names[0], &names[1]).unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), [""; 0]);
    saver.rename(&names[1], &names[2]).unwrap();
    await_count(&m, "published", 1);
    assert_eq!(listed(&mut reader, &m.path("")), ["best"]);
    assert_eq!(listed(&mut reader, &names[2]), ["a", "sub"]);
    assert_eq!(reader.cat(&names[2].join("sub/b")).unwrap(), b"{}");
    saver.save(&names[2].join("c"), "{}").unwrap();
    assert_eq!(listed(&mut reader, &names[2]), ["a", "c", "sub"]);
}

#[test]
fn a_directory_that_is_written_elsewhere_and_renamed_needs_nothing() {
    let m = mount!(named());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    make(&mut saver, &m, "tmp-checkpoint-1");
    save_all(&mut saver, &m, "tmp-checkpoint-1", &["a"]);
    saver
        .rename(&m.path("tmp-checkpoint-1"), &m.path("checkpoint-1"))
        .unwrap();
    assert_eq!(listed(&mut reader, &m.path("")), ["checkpoint-1"]);
    assert_eq!(listed(&mut reader, &m.path("checkpoint-1")), ["a"]);
}
