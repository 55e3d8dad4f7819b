//! C14. Some files are meant to be shared while they are open: logs that somebody follows, pid and
//! lock files, live databases. Making them atomic would break the programs that use them. So most
//! of these pass on the plain directory: here nothing must have changed.

mod common;

use common::{Actor, Mount, assert_content, assert_errno};

#[test]
fn writes_to_direct_names_show_at_once_and_survive_a_kill() {
    let m = mount!();
    let names = [
        "run.log",
        "job.out",
        "job.err",
        "LOCK",
        ".lock",
        "a.lck",
        "a.pid",
        "a.db",
        "a.sqlite3",
        "a.sqlite-wal",
        "a.mdb",
        "a.wal",
        "a.sst",
        "a.ldb",
        "MANIFEST-000001",
        "events.tfevents",
        "run.wandb",
        ".f.swp",
        "a.part",
        "a.crdownload",
        ".nfs0001",
    ];
    for name in names {
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path(name)).unwrap();
        assert_content(m.read(name), b"", name);
        writer.write("f", "one").unwrap();
        assert_content(m.read(name), b"one", name);
        writer.pwrite("f", 0, b"two").unwrap();
        assert_content(m.read(name), b"two", name);
        writer.kill(libc::SIGKILL);
        assert_content(m.read(name), b"two", name);
    }
    if !common::plain() {
        assert_eq!(m.aborts("killed"), 0, "direct files know no transactions");
    }
}

#[test]
fn an_open_reader_of_a_direct_file_follows_it() {
    let m = mount!();
    let (mut writer, mut reader) = (Actor::new(), Actor::new());
    writer.open("f", "a", &m.path("run.log")).unwrap();
    reader.open("f", "r", &m.path("run.log")).unwrap();
    for number in 0..20 {
        let line = format!("line {number}\n");
        writer.write("f", &line).unwrap();
        assert_content(reader.read_all("f").ok(), line.as_bytes(), "what was added");
    }
    let size = reader.fstat("f").unwrap().size;
    assert_eq!(size, std::fs::metadata(m.path("run.log")).unwrap().len());
    let inode = reader.fstat("f").unwrap().ino;
    writer.close("f").unwrap();
    assert_eq!(
        reader.stat(&m.path("run.log")).unwrap().ino,
        inode,
        "the same file all along"
    );
}

#[test]
fn two_processes_share_a_direct_file_by_mmap() {
    let m = mount!();
    let (mut one, mut two) = (Actor::new(), Actor::new());
    one.open("f", "w+", &m.path("shared.mdb")).unwrap();
    one.ftruncate("f", 8192).unwrap();
    two.open("f", "r+", &m.path("shared.mdb")).unwrap();
    one.mmap("f", "m", 8192, "rw").unwrap();
    two.mmap("f", "m", 8192, "rw").unwrap();
    for round in 0..20u8 {
        one.map_write("m", 4090, &[round; 12]).unwrap();
        assert_eq!(two.map_read("m", 4090, 12).unwrap(), [round; 12]);
        two.map_write("m", 0, &[round + 100; 4]).unwrap();
        assert_eq!(one.map_read("m", 0, 4).unwrap(), [round + 100; 4]);
    }
}

#[test]
fn byte_range_locks_and_flock_exclude_on_direct_files() {
    let m = mount!();
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for actor in [&mut one, &mut two] {
        actor.open("f", "rw-create", &m.path("a.db")).unwrap();
    }
    let lock = |actor: &mut Actor, start: &str, len: &str| {
        actor.ask("lockrange", &[b"f", start.as_bytes(), len.as_bytes()])
    };
    lock(&mut one, "0", "10").unwrap();
    assert_errno(lock(&mut two, "5", "10"), "EAGAIN");
    lock(&mut two, "10", "10").unwrap();
    one.kill(libc::SIGKILL);
    lock(&mut two, "5", "5").expect("the killed holder's lock is free");

    let mut three = Actor::new();
    three.open("f", "rw-create", &m.path("LOCK")).unwrap();
    two.open("l", "rw-create", &m.path("LOCK")).unwrap();
    three.ask("flock", &[b"f"]).unwrap();
    assert_errno(two.ask("flock", &[b"l"]), "EAGAIN");
    three.close("f").unwrap();
    two.ask("flock", &[b"l"]).unwrap();
}

#[test]
fn what_was_saved_elsewhere_and_renamed_to_a_direct_name_is_shared_at_once() {
    let m = mount!();
    for how in ["w", "r+", "a"] {
        m.save("run.tmp", "one");
        let mut writer = Actor::new();
        writer
            .rename(&m.path("run.tmp"), &m.path("run.log"))
            .unwrap();
        writer.open("f", how, &m.path("run.log")).unwrap();
        writer.write("f", "two").unwrap();
        let seen = if how == "a" { "onetwo" } else { "two" };
        assert_content(m.read("run.log"), seen.as_bytes(), how);
        writer.close("f").unwrap();
    }
}

#[test]
fn rules_make_names_direct_and_direct_names_atomic() {
    let rules = "[[rule]]\nglob = \"live/**\"\nmode = \"direct\"\n\
                 [[rule]]\nglob = \"*.log\"\nmode = \"atomic\"\n";
    let m = mount!(Mount::options().rules(rules).seed("live/x", ""));
    let mut writer = Actor::new();
    writer.open("live", "w", &m.path("live/state")).unwrap();
    writer.write("live", "half").unwrap();
    assert_content(m.read("live/state"), b"half", "made direct by a rule");
    writer.open("log", "w", &m.path("run.log")).unwrap();
    writer.write("log", "half").unwrap();
    // Plain: it shows.
    assert!(m.read("run.log").is_none(), "made atomic by a rule");
    writer.close("log").unwrap();
    assert_content(m.read("run.log"), b"half", "after close");
    writer.open("out", "w", &m.path("job.out")).unwrap();
    assert!(
        m.exists("job.out"),
        "the built-in rules still hold for the rest"
    );
}

#[test]
fn rules_are_also_read_from_the_backing_directory() {
    need_daemon!();
    let rules = "[[rule]]\nglob = \"live-*\"\nmode = \"direct\"\n";
    let mut m = mount!();
    m.unmount();
    std::fs::write(m.backing().join(".commitfs/rules.toml"), rules).unwrap();
    m.remount();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("live-1")).unwrap();
    assert!(m.exists("live-1"), "the rule was not read");
}

#[test]
fn a_download_renamed_to_its_final_name_is_whole_and_stays_direct_while_open() {
    let m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("file.part")).unwrap();
    writer.write("f", "downloaded ").unwrap();
    writer
        .rename(&m.path("file.part"), &m.path("file"))
        .unwrap();
    assert_content(m.read("file"), b"downloaded ", "after the rename");
    writer.write("f", "to the end").unwrap();
    assert_content(
        m.read("file"),
        b"downloaded to the end",
        "direct as long as it is open",
    );
    writer.close("f").unwrap();
    assert_content(m.read("file"), b"downloaded to the end", "after close");
    // From now on it is what its name says. Plain: the half shows.
    writer.open("f", "w", &m.path("file")).unwrap();
    writer.write("f", "half").unwrap();
    assert_content(
        m.read("file"),
        b"downloaded to the end",
        "atomic from the next open on",
    );
}

#[test]
fn sqlite_works_from_several_processes_in_both_journal_modes() {
    let m = mount!();
    let script = "import sqlite3, sys, multiprocessing as mp\n\
         def work(n, mode):\n\
         \x20   c = sqlite3.connect(mode + '.db', timeout=20)\n\
         \x20   for i in range(20):\n\
         \x20       with c: c.execute('insert into t values (?, ?)', (n, i))\n\
         if __name__ == '__main__':\n\
         \x20   for mode in ('wal', 'delete'):\n\
         \x20       c = sqlite3.connect(mode + '.db')\n\
         \x20       assert c.execute('pragma journal_mode=' + mode).fetchone()[0] == mode\n\
         \x20       c.execute('pragma synchronous=normal')\n\
         \x20       c.execute('create table t (n, i)'); c.commit()\n\
         \x20       ps = [mp.Process(target=work, args=(n, mode)) for n in range(4)]\n\
         \x20       [p.start() for p in ps]; [p.join() for p in ps]\n\
         \x20       assert c.execute('select count(*) from t').fetchone()[0] == 80, mode\n\
         \x20       assert c.execute('pragma integrity_check').fetchone()[0] == 'ok'\n";
    m.python(script).ok();
}

#[test]
fn a_lock_file_created_exclusively_is_direct_and_a_rewritten_one_is_not() {
    let m = mount!();
    let mut owner = Actor::new();
    owner.open("f", "x", &m.path("job.lock")).unwrap();
    owner.write("f", "1234\n").unwrap();
    assert_content(
        m.read("job.lock"),
        b"1234\n",
        "seen by all as it is written",
    );
    owner.close("f").unwrap();
    // The same name, full of content and rewritten: a package manager's lock file, say.
    m.save("poetry.lock", "# whole\n");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("poetry.lock")).unwrap();
    writer.write("f", "# ha").unwrap();
    // Plain: the half shows.
    assert_content(m.read("poetry.lock"), b"# whole\n", "atomic");
}
