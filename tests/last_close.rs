//! C2, C3. A shell writes `{ date; uname; } > report`: three processes hold the file, each closes
//! it, and a reader in between finds one line. `Popen(stdout=f); f.close()` closes the file before
//! the child has written a byte. Here nothing shows before the last reference is gone, and
//! everything shows the moment the last close() has returned.

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::watching::stale_after_close_write;
use common::{Actor, Mount, assert_content, eventually, stamped, times, version_of};

/// A mount with an old version of `f`.
fn with_old() -> Option<Mount> {
    let m = Mount::options().mount()?;
    m.save("f", "old\n");
    Some(m)
}

macro_rules! with_old {
    () => {
        match with_old() {
            Some(mount) => mount,
            None => return,
        }
    };
}

fn watch_while(m: &Mount, allowed: &[&str], work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let now = m.text("f").expect("the name never vanishes");
                assert!(allowed.contains(&now.as_str()), "a stranger read {now:?}");
            }
        });
        // The watcher ends also when the work panics.
        struct Set<'a>(&'a AtomicBool);
        impl Drop for Set<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _set = Set(&done);
        work();
    });
}

#[test]
fn a_group_of_commands_commits_once_and_shows_nothing_before() {
    for shell in ["bash", "dash"] {
        let m = with_old!();
        let commits = m.commits();
        let script = "{ echo one; sleep 0.1; /bin/echo two; sleep 0.1; uname >/dev/null; \
                      /bin/echo three; sleep 0.1; } > f";
        watch_while(&m, &["old\n", "one\ntwo\nthree\n"], || {
            let limit = Duration::from_secs(20);
            common::shell(shell, m.mountpoint(), script, limit).ok();
            assert_eq!(
                m.text("f").unwrap(),
                "one\ntwo\nthree\n",
                "{shell}: after the group"
            );
        });
        if !common::plain() {
            assert_eq!(
                m.commits(),
                commits + 1,
                "{shell}: one commit for the group"
            );
        }
    }
}

#[test]
fn a_descriptor_kept_by_exec_commits_when_the_shell_closes_it() {
    for program in ["bash", "dash"] {
        let m = with_old!();
        let mut shell = m.shell(program);
        shell.run("exec 3>f");
        shell.run("echo one >&3");
        shell.run("/bin/echo two >&3");
        shell.run("( echo three; /bin/echo four ) >&3");
        assert_content(m.read("f"), b"old\n", "while descriptor 3 is open");
        assert_eq!(shell.run("exec 3>&-").0, 0);
        assert_content(m.read("f"), b"one\ntwo\nthree\nfour\n", "after exec 3>&-");

        shell.run("exec 4>f; echo last >&4");
        assert_content(
            m.read("f"),
            b"one\ntwo\nthree\nfour\n",
            "while the shell runs",
        );
        shell.exit(3);
        assert_content(
            m.read("f"),
            b"last\n",
            "after a normal exit, whatever the status",
        );
    }
}

#[test]
fn a_parent_that_closes_its_copy_of_a_childs_output_exposes_nothing() {
    let m = with_old!();
    let mut program = m.live_python(
        "import subprocess, sys\n\
         f = open('f', 'w')\n\
         p = subprocess.Popen(['sh', '-c', 'echo early; read go; echo late'], stdout=f,\n\
                              stdin=subprocess.PIPE)\n\
         f.close()\n\
         print('closed'); sys.stdin.readline()\n\
         p.communicate(b'go\\n'); print('done', p.returncode); sys.stdin.readline()\n",
    );
    program.expect("closed");
    std::thread::sleep(Duration::from_millis(50));
    assert_content(m.read("f"), b"old\n", "after the parent's close");
    program.send("");
    program.expect("done 0");
    assert_content(m.read("f"), b"early\nlate\n", "after the child's end");
    program.send("");
    assert!(program.finish().success());
}

#[test]
fn duplicates_and_forked_children_count_as_references() {
    let m = with_old!();
    let mut parent = Actor::new();
    parent.open("f", "w", &m.path("f")).unwrap();
    parent.dup("f", "copy").unwrap();
    parent.write("f", "1").unwrap();
    parent.close("f").unwrap();
    assert_content(m.read("f"), b"old\n", "after the close of one duplicate");
    let mut child = parent.fork();
    let mut grandchild = child.fork();
    parent.write("copy", "2").unwrap();
    parent.close("copy").unwrap();
    assert_content(m.read("f"), b"old\n", "after the parent's last close");
    child.write("copy", "3").unwrap();
    child.exit(0);
    assert_content(m.read("f"), b"old\n", "after the child's exit");
    grandchild.write("copy", "4").unwrap();
    grandchild.close("copy").unwrap();
    assert_content(m.read("f"), b"1234", "after the last close");
}

#[test]
fn a_descriptor_in_flight_over_a_socket_counts_as_a_reference() {
    let m = with_old!();
    let mut sender = Actor::new();
    sender.ask("pair", &[b"here", b"there"]).unwrap();
    let mut receiver = sender.fork();
    sender.open("f", "w", &m.path("f")).unwrap();
    sender.write("f", "sent ").unwrap();
    sender.ask("sendfd", &[b"here", b"f"]).unwrap();
    sender.close("f").unwrap();
    assert_content(m.read("f"), b"old\n", "while the descriptor is in flight");
    receiver.ask("recvfd", &[b"there", b"got"]).unwrap();
    assert_content(m.read("f"), b"old\n", "while the receiver holds it");
    receiver.write("got", "and received").unwrap();
    receiver.close("got").unwrap();
    assert_content(
        m.read("f"),
        b"sent and received",
        "after the receiver's close",
    );
}

#[test]
fn a_mapping_can_be_the_last_reference() {
    let m = with_old!();
    let mut writer = Actor::new();
    writer.open("f", "w+", &m.path("f")).unwrap();
    writer.ftruncate("f", 8192).unwrap();
    writer.mmap("f", "map", 8192, "rw").unwrap();
    writer.map_write("map", 0, b"before close").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("f"), b"old\n", "while the mapping lives");
    writer.map_write("map", 4096, b"after close").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_content(m.read("f"), b"old\n", "while the mapping lives");
    writer.munmap("map").unwrap();
    let mut expected = vec![0; 8192];
    expected[..12].copy_from_slice(b"before close");
    expected[4096..4107].copy_from_slice(b"after close");
    eventually(
        Duration::from_secs(5),
        "the content of the mapping shows",
        || m.read("f").as_deref() == Some(&expected[..]),
    );
}

#[test]
fn an_executed_program_inherits_the_transaction() {
    let m = with_old!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "before exec\n").unwrap();
    writer.start("exec", &[b"f", b"sh", b"-c", b"sleep 0.3; echo after exec"]);
    std::thread::sleep(Duration::from_millis(100));
    assert_content(m.read("f"), b"old\n", "while the executed program runs");
    writer.await_end();
    assert_content(m.read("f"), b"before exec\nafter exec\n", "after its end");

    // A close-on-exec descriptor is closed by exec itself, and that is a close like any other.
    let mut writer = Actor::new();
    writer.open("f", "w|cloexec", &m.path("f")).unwrap();
    writer.write("f", "closed by exec\n").unwrap();
    writer.start("exec", &[b"-", b"sleep", b"1"]);
    eventually(
        Duration::from_millis(900),
        "exec has closed the file",
        || m.text("f").unwrap() == "closed by exec\n",
    );
}

#[test]
fn reopening_through_dev_stdout_or_proc_self_fd_joins_the_transaction() {
    // The plain directory gives the expected content, too; here nothing shows before the end.
    let scripts = [
        "{ echo a; sleep 0.05; echo b > /dev/stdout; sleep 0.05; echo c; } > f",
        "{ echo a; sleep 0.05; echo b >> /dev/stdout; sleep 0.05; echo c; } > f",
        "exec 5> f; echo a >&5; sleep 0.05; echo bbbb > /proc/self/fd/5; sleep 0.05; exec 5>&-",
        "{ echo a; echo b | tee /dev/fd/3 > /dev/null; echo c; } > f 3>&1",
        "exec 5> f; echo text >&5; cat /proc/self/fd/5 > ../copy; cat ../copy ../copy >&5",
    ];
    for script in scripts {
        let m = with_old!();
        let plain = m.scratch("plain");
        std::fs::create_dir(&plain).unwrap();
        std::fs::write(plain.join("f"), "old\n").unwrap();
        common::bash(&plain, script, Duration::from_secs(20)).ok();
        let expected = std::fs::read_to_string(plain.join("f")).unwrap();
        watch_while(&m, &["old\n", &expected], || {
            m.bash(script).ok();
            assert_eq!(m.text("f").unwrap(), expected, "after {script}");
        });
    }
}

#[test]
fn who_empties_a_file_through_a_descriptor_waits_for_a_write_to_it() {
    need_daemon!();
    // The write copies what is there first, and holds what is staged meanwhile: 1.5 s.
    let m = mount!(Mount::options().env("COMMITFS_COPY_DELAY_MS", 500));
    let mut editor = Actor::new();
    editor.open("f", "w", &m.path("f")).unwrap();
    editor.fill("f", 12 << 20, 1 << 20, b'o').unwrap();
    editor.close("f").unwrap();
    editor.open("f", "r+", &m.path("f")).unwrap();
    let mut child = editor.fork();
    editor.start("pwrite", &[b"f", b"0", b"edit"]);
    let writing = format!("{} ", libc::SYS_pwrite64);
    let call = format!("/proc/{}/syscall", editor.pid());
    eventually(Duration::from_secs(5), "it writes", || {
        std::fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&writing))
    });
    let through = child.ask("fdpath", &[b"f"]).unwrap().remove(0);
    let through = String::from_utf8(through).unwrap();
    child.open("again", "w", through.as_ref()).unwrap();
    editor.finish().unwrap();
    child.write("again", "new").unwrap();
    child.close("again").unwrap();
    child.close("f").unwrap();
    editor.close("f").unwrap();
    assert_content(m.read("f"), b"new", "as emptied after the write");
}

#[test]
fn a_reopened_descriptor_writes_into_the_same_transaction() {
    let m = with_old!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "first ").unwrap();
    let through = writer.ask("fdpath", &[b"f"]).unwrap().remove(0);
    let through = String::from_utf8(through).unwrap();
    writer.open("again", "wronly", through.as_ref()).unwrap();
    writer.pwrite("again", 6, b"second").unwrap();
    writer.open("look", "r", through.as_ref()).unwrap();
    assert_content(
        writer.read_all("look").ok(),
        b"first second",
        "its own staged bytes",
    );
    writer.close("look").unwrap();
    writer.close("f").unwrap();
    assert_content(
        m.read("f"),
        b"old\n",
        "while the reopened descriptor is open",
    );
    writer.close("again").unwrap();
    assert_content(m.read("f"), b"first second", "after both");
}

#[test]
fn every_open_stat_and_readdir_after_close_sees_the_new_version() {
    // The plain directory passes: this is what must not be lost by committing at close.
    let m = mount!();
    let (mut writer, mut reader) = (Actor::new(), Actor::new());
    let path = m.path("f");
    let (mut stale, checks) = (0, times(5_000, 100_000));
    for round in 0..checks as u64 {
        writer
            .save(&path, stamped(round, 60 + round as usize % 500))
            .unwrap();
        // Alternately this process and another; every hundredth time by listing a new name.
        let content = if round % 2 == 0 {
            m.read("f").unwrap()
        } else {
            reader.cat(&path).unwrap()
        };
        if version_of(&content) != Ok(round) {
            stale += 1;
        }
        let size = std::fs::metadata(&path).unwrap().len();
        if size != content.len() as u64 {
            stale += 1;
        }
        if round % 100 == 0 {
            let name = format!("new-{round}");
            writer.save(&m.path(&name), "").unwrap();
            if !m.names(".").contains(&name) {
                stale += 1;
            }
        }
    }
    assert_eq!(stale, 0, "stale answers in {checks} checks");
}

#[test]
fn a_watcher_woken_by_close_write_sees_the_new_version() {
    let m = mount!();
    let checks = times(1_000, 10_000);
    let stale = stale_after_close_write(&m, checks);
    assert_eq!(stale, 0, "stale answers in {checks} checks");
}

#[test]
fn what_a_mapping_leaves_is_seen_by_whoever_looks_right_after_it_is_gone() {
    // The plain directory passes.
    let m = mount!();
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    let path = m.path("f");
    for n in 0..times(50, 1_000) {
        let content = format!("{n:08}");
        writer.open("f", "w+", &path).unwrap();
        writer.ftruncate("f", 1 << 20).unwrap();
        writer.mmap("f", "map", 1 << 20, "rw").unwrap();
        writer.close("f").unwrap();
        writer.map_write("map", 0, content.as_bytes()).unwrap();
        writer.munmap("map").unwrap();
        other.open("r", "r", &path).unwrap();
        let seen = other.pread("r", 0, 8).unwrap();
        assert_eq!(String::from_utf8_lossy(&seen), content);
        other.close("r").unwrap();
    }
}

#[test]
fn sixty_four_writers_closing_at_once_beside_a_long_stream_leave_nothing_stale() {
    const WRITERS: usize = 64;
    let m = mount!(Mount::options().limit(Duration::from_secs(240)));
    let stream = times(256, 1024) as u64 * (1 << 20);
    let rounds = times(15, 200) as u64;
    let (barrier, stop) = (Barrier::new(WRITERS), AtomicBool::new(false));
    let stale = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut big = Actor::new();
            big.patience(Duration::from_secs(200));
            while !stop.load(Ordering::Relaxed) {
                big.open("f", "w", &m.path("stream.bin")).unwrap();
                assert_eq!(big.fill("f", stream, 1 << 20, b'x'), Ok(stream));
                big.close("f").unwrap();
                assert_eq!(
                    std::fs::metadata(m.path("stream.bin")).unwrap().len(),
                    stream
                );
            }
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let (m, barrier) = (&m, &barrier);
                scope.spawn(move || {
                    let mut writer = Actor::new();
                    let name = format!("w{number}");
                    let mut stale = Vec::new();
                    for round in 0..rounds {
                        barrier.wait();
                        let saved = writer.save(&m.path(&name), stamped(round, 2_000));
                        let found = m.read(&name).map(|content| version_of(&content));
                        if saved.is_err() || found != Some(Ok(round)) {
                            stale.push(format!("{name} {round}: {saved:?} {found:?}"));
                        }
                    }
                    stale
                })
            })
            .collect();
        let stale: Vec<_> = writers
            .into_iter()
            .flat_map(|one| one.join().unwrap())
            .collect();
        stop.store(true, Ordering::Relaxed);
        stale
    });
    assert!(
        stale.is_empty(),
        "{} of {}: {:?}",
        stale.len(),
        WRITERS as u64 * rounds,
        &stale[..1]
    );
}

#[test]
fn a_file_kept_open_by_an_idle_child_is_reported_with_the_holders_pid() {
    need_daemon!();
    let m = with_old!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "waiting\n").unwrap();
    let holder = writer.fork();
    writer.exit(0);
    let pid = holder.pid().to_string();
    let start = Instant::now();
    eventually(Duration::from_secs(9), "status names the holder", || {
        m.transactions().iter().any(|one| {
            let words = one.to_string();
            words
                .split(|c: char| !c.is_ascii_digit())
                .any(|number| number == pid)
        })
    });
    eventually(Duration::from_secs(9), "the log names the holder", || {
        m.log().contains(&pid)
    });
    println!("reported after {:?}", start.elapsed());
    assert_content(m.read("f"), b"old\n", "nothing is committed meanwhile");
}
