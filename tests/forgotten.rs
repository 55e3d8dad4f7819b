//! What the kernel has forgotten is dropped, and means the same when it is found again: versions,
//! directories, and what somebody still has to do with them (C8, C10, C12).

mod common;

use std::time::Duration;

use common::{Actor, Mount, assert_content, cannot_run, eventually};

/// Brings all commits into the backing directory, has the kernel forget what nobody has open, and
/// gives the daemon time to do likewise.
fn forget(m: &Mount) {
    let mut actor = Actor::new();
    actor.open("d", "r|directory", m.mountpoint()).unwrap();
    actor.fsync("d").unwrap();
    actor.exit(0);
    if let Err(why) = std::fs::write("/proc/sys/vm/drop_caches", "2") {
        cannot_run(&format!("the kernel can't be made to forget: {why}"));
    }
    std::thread::sleep(Duration::from_millis(600));
}

#[test]
fn who_appends_to_a_file_that_was_moved_goes_on_though_its_new_directory_is_forgotten() {
    need_daemon!();
    need_root!();
    let m = mount!();
    for dir in ["old", "new"] {
        m.mkdir(dir);
    }
    m.save("old/f", "one\n");
    let (mut appender, mut other) = (Actor::new(), Actor::new());
    appender.open("f", "a", &m.path("old/f")).unwrap();
    m.save("old/f", "two\n");
    other.rename(&m.path("old/f"), &m.path("new/f")).unwrap();
    appender.write("f", "three\n").unwrap();
    forget(&m);
    appender.write("f", "four\n").expect("it is found again");
    assert_content(m.read("new/f"), b"two\nthree\nfour\n", "the file");
}

#[test]
fn a_claim_is_remembered_though_its_directory_is_forgotten() {
    need_daemon!();
    need_root!();
    let m = mount!();
    m.mkdir("d");
    let mut holder = Actor::new();
    holder.open("f", "x", &m.path("d/run.lock")).unwrap();
    holder.close("f").unwrap();
    forget(&m);
    holder.kill(libc::SIGKILL);
    eventually(Duration::from_secs(5), "the death is noticed", || {
        let locks = m.locks();
        let claim = locks.iter().find(|l| l["path"] == "d/run.lock");
        claim.expect("the claim")["alive"] == false
    });
    eventually(Duration::from_secs(5), "and counted", || {
        m.status()["counters"]["stale_claims"] == 1
    });
}

#[test]
fn a_version_keeps_its_number_though_its_times_are_set_and_it_is_forgotten() {
    need_daemon!();
    need_root!();
    let m = mount!();
    m.save("s.json", r#"{"n": 1}"#);
    m.save("s.json", r#"{"n": 2}"#);
    forget(&m);
    assert_eq!(m.version("s.json").unwrap(), 2);
    m.python("import os; os.utime('s.json', (1, 1))").ok();
    forget(&m);
    assert_eq!(m.version("s.json").unwrap(), 2);
    let patch = "import os; os.setxattr('s.json', 'user.commitfs.json.merge@2', b'{\"n\": 3}')";
    m.python(patch).ok();
}

#[test]
fn who_reads_a_log_under_a_lock_sees_what_is_added_to_it_after_it_was_forgotten() {
    need_features!("flock_locks");
    need_daemon!();
    need_root!();
    let m = mount!();
    m.save("f", "old\n");
    let (mut reader, mut appender) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("f")).unwrap();
    m.save("f", "new\n");
    let mut append = |line: &str| {
        appender.open("f", "a", &m.path("f")).unwrap();
        appender.write("f", line).unwrap();
        appender.close("f").unwrap();
    };
    append("one\n");
    reader.ask("flock-shared", &[b"f"]).unwrap();
    assert_eq!(reader.pread("f", 0, 99).unwrap(), b"new\none\n");
    forget(&m);
    append("two\n");
    assert_eq!(reader.pread("f", 8, 99).unwrap(), b"two\n");
}

#[test]
fn a_file_that_is_removed_while_it_is_written_anew_frees_its_blocks() {
    need_daemon!();
    let m = mount!();
    m.save("f", vec![b'x'; 1 << 20]);
    m.save("g", "1");
    let mut actor = Actor::new();
    for remove in [true, false] {
        m.save("f", vec![b'x'; 1 << 20]);
        actor.open("d", "r|directory", m.mountpoint()).unwrap();
        actor.fsync("d").unwrap();
        actor.close("d").unwrap();
        actor.open("f", "w", &m.path("f")).unwrap();
        match remove {
            true => actor.unlink(&m.path("f")).unwrap(),
            false => actor.rename(&m.path("g"), &m.path("f")).unwrap(),
        }
        actor.close("f").unwrap();
        let held = || {
            let of = std::fs::read_dir(format!("/proc/{}/fd", m.daemon_pid())).expect("its files");
            let targets = of.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
            let files = targets.map(|t| t.to_string_lossy().into_owned());
            files
                .filter(|t| t.ends_with(" (deleted)") && t.contains("/f "))
                .count()
        };
        eventually(Duration::from_secs(3), "nobody holds it", || held() == 0);
    }
}

#[test]
fn a_file_that_was_looked_at_costs_next_to_nothing_once_the_kernel_has_forgotten_it() {
    // `ls -l`, a backup, a search: what was looked at is remembered by its number alone.
    need_daemon!();
    need_root!();
    const FILES: u64 = 28_000;
    const THREADS: u64 = 2 << 20;
    let mut m = Mount::options().limit(Duration::from_secs(400)).prepare();
    let many = m.backing().join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..FILES {
        std::fs::File::create(many.join(format!("{n:05}"))).unwrap();
    }
    m.remount();
    forget(&m);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", m.daemon_pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
        kib.and_then(|n| n.parse::<u64>().ok()).unwrap() * 1024
    };
    let before = resident();
    let look = "import os\nprint(sum(os.stat(e.path).st_size for e in os.scandir('many')))";
    for round in 0..2 {
        assert_eq!(m.python(look).ok().out.trim(), "0");
        let known = (resident() - before) / FILES;
        assert!((100..500).contains(&known), "round {round}: {known} bytes");
        // Numbers take 29 bytes of each, up to 57 with other numbers of files. What threads have that
        // were started meanwhile doesn't depend on how many there are.
        eventually(Duration::from_secs(60), "it comes back", || {
            forget(&m);
            resident().saturating_sub(before) < FILES * 100 + THREADS
        });
        let left = resident().saturating_sub(before) / FILES;
        println!("round {round}: {known} bytes for each file, {left} once it is forgotten");
    }
}
