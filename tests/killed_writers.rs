//! C4. The OOM killer ends a trainer in the middle of `torch.save`: on a plain directory the
//! checkpoint is now a prefix, and the good one that it replaced is gone. Here a writer that was
//! killed never commits, whoever closes the file last.

mod common;

use std::time::Duration;

use common::{Actor, Mount, Random, assert_content, eventually, stamped, times, version_of};

fn mounted_with(old: &[u8]) -> Option<Mount> {
    let m = Mount::options().mount()?;
    m.save("f", old);
    Some(m)
}

macro_rules! mounted_with {
    ($old:expr) => {
        match mounted_with($old.as_ref()) {
            Some(mount) => mount,
            None => return,
        }
    };
}

/// The old version is there now, and still there when everything has settled.
#[track_caller]
fn assert_unchanged(m: &Mount, old: &[u8], what: &str) {
    assert_content(m.read("f"), old, what);
    std::thread::sleep(Duration::from_millis(60));
    assert_content(m.read("f"), old, what);
}

#[test]
fn a_writer_ended_by_any_signal_leaves_the_old_version_byte_for_byte() {
    let old = stamped(1, 10_000);
    let m = mounted_with!(old);
    let signals = [
        libc::SIGKILL,
        libc::SIGSEGV,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGABRT,
    ];
    for (count, signal) in signals.into_iter().enumerate() {
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("f")).unwrap();
        let part = format!("half of a version, ended by signal {signal}");
        writer.write("f", &part).unwrap();
        writer.kill(signal);
        assert_unchanged(&m, &old, &format!("after signal {signal}"));
        if !common::plain() {
            let rejected = m.await_rejected("f", part.as_bytes());
            assert_eq!(rejected.meta["pid"], writer.pid(), "{rejected:?}");
            assert_eq!(m.aborts("killed"), count as u64 + 1);
        }
    }
}

#[test]
fn a_new_file_of_a_killed_writer_never_appears() {
    let m = mounted_with!("old");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("fresh")).unwrap();
    writer.write("f", "half").unwrap();
    writer.kill(libc::SIGKILL);
    assert!(!m.exists("fresh"));
    assert_eq!(m.names("."), ["f"]);
    m.save("fresh", "whole");
    assert_content(m.read("fresh"), b"whole", "the name is free");
}

#[test]
fn a_writer_with_several_threads_is_recognised() {
    let m = mounted_with!("old");
    let mut program = m.live_python(
        "import threading, time\n\
         for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n\
         f = open('f', 'w')\n\
         def work():\n\
         \x20   f.write('half'); f.flush(); print('written'); time.sleep(60)\n\
         threading.Thread(target=work).start()\n",
    );
    program.expect("written");
    program.kill(libc::SIGKILL);
    program.finish();
    assert_unchanged(&m, b"old", "after a process with threads was killed");
}

#[test]
fn a_command_stopped_by_timeout_leaves_the_old_version() {
    // Plain: "partial". The shell that opened the file, and timeout itself, end normally.
    let writers = [
        "timeout 0.5 sh -c 'echo partial; sleep 10' > f; true",
        "timeout -s KILL 0.5 sh -c 'echo partial; sleep 10' > f; true",
        "timeout -s INT 0.5 sh -c 'echo partial; exec sleep 10' > f; true",
        "timeout 1.5 python3 -uc 'import time; print(\"partial\"); time.sleep(10)' > f; true",
        "timeout 0.5 sh -c '{ echo partial; sleep 10; } > f'; true",
    ];
    for shell in ["bash", "dash"] {
        let m = mounted_with!("old");
        for script in writers {
            common::shell(shell, m.mountpoint(), script, Duration::from_secs(20));
            assert_unchanged(&m, b"old", &format!("{shell}: {script}"));
        }
    }
}

#[test]
fn a_writer_killed_inside_a_shell_group_spoils_the_whole_group() {
    let groups = [
        "{ echo a; sh -c 'echo b; kill -9 $$'; } > f",
        "( echo a; sh -c 'kill -SEGV $$' ; kill -9 $BASHPID ) > f",
        "exec 3> f; echo a >&3; sh -c 'echo b >&3; kill -TERM $$'; exec 3>&-",
        "{ sh -c 'echo a; kill -9 $$' & wait; /bin/echo b; } > f",
    ];
    let m = mounted_with!("old");
    for script in groups {
        m.bash(&format!("{script}; true"));
        assert_unchanged(&m, b"old", script);
    }
}

#[test]
fn a_killed_child_of_popen_leaves_the_old_version_though_the_parent_closes_last() {
    let m = mounted_with!("old");
    m.python(
        "import subprocess\n\
         with open('f', 'w') as f:\n\
         \x20   f.write('head'); f.flush()\n\
         \x20   p = subprocess.Popen(['sh', '-c', 'echo half; kill -9 $$'], stdout=f)\n\
         \x20   assert p.wait() == -9\n",
    );
    assert_unchanged(&m, b"old", "after the parent's orderly close");
}

/// A trainer whose worker has printed something and is killed goes on: the plain directory keeps it all.
const TRAINER: &str = "import os, sys, multiprocessing as mp\n\
     def worker():\n\
     \x20   print('worker', flush=True); os.kill(os.getpid(), 9)\n\
     p = mp.get_context('fork').Process(target=worker); p.start(); p.join()\n\
     for e in range(3): print('epoch', e, flush=True)\n";

#[test]
fn a_killed_child_that_had_printed_does_not_doom_what_its_parent_goes_on_writing() {
    let m = mounted_with!("old");
    m.save("t.py", TRAINER);
    let all = b"worker\nepoch 0\nepoch 1\nepoch 2\n";
    for script in [
        // The trainer has opened it.
        "exec python3 t.py > f",
        // Its parent has.
        "python3 -c 'import subprocess, sys; subprocess.run([sys.executable, \"t.py\"], stdout=open(\"f\", \"w\"))'",
    ] {
        m.save("f", "old");
        m.sh(script).ok();
        assert_content(m.read("f"), all, script);
    }
    m.bash("{ echo a; sh -c 'echo b; kill -9 $$'; echo c; } > f; true");
    assert_content(m.read("f"), b"a\nb\nc\n", "a shell that goes on");
    // One that writes no more has given up.
    let old = b"a\nb\nc\n";
    m.bash("{ echo d; sh -c 'echo e; kill -9 $$'; } > f; true");
    assert_unchanged(&m, old, "nothing was written since");
    m.bash("{ sh -c 'echo d; kill -9 $$'; echo e; sh -c 'echo f; kill -9 $$'; } > f; true");
    assert_unchanged(&m, old, "a second worker, and nothing since");
}

#[test]
fn a_killed_child_that_has_only_opened_the_file_does_not_doom_what_its_parent_goes_on_writing() {
    let m = mounted_with!("old");
    let script = |rest: &str| {
        format!(
            "import os, signal\n\
             f = open('f', 'w'); f.write('head\\n'); f.flush()\n\
             pid = os.fork()\n\
             if pid == 0:\n\
             \x20   g = os.open('f', os.O_RDWR); os.kill(os.getpid(), signal.SIGKILL)\n\
             os.waitpid(pid, 0)\n\
             {rest}f.close()\n"
        )
    };
    m.python(&script(""));
    assert_unchanged(&m, b"old", "nothing was written since");
    m.python(&script("f.write('tail\\n'); f.flush()\n"));
    assert_content(m.read("f"), b"head\ntail\n", "the parent goes on");
}

/// A download that is killed half-way, by a program that then goes on from what is there.
fn resume_a_download(fetch: &str, resume: &str) {
    if !is_installed(fetch) {
        common::cannot_run(&format!("{fetch} is not installed"));
        return;
    }
    let m = mount!();
    m.save("server.txt", "");
    m.python(&format!(
        "import http.server, os, re, signal, subprocess, threading, time\n\
         data = bytes(i * 7 % 251 for i in range(300000)); sent = threading.Event(); stall = [True]\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20   def log_message(self, *a): pass\n\
         \x20   def do_GET(self):\n\
         \x20       begin = int((re.findall(r'bytes=(\\d+)-', self.headers.get('Range', '')) or [0])[0])\n\
         \x20       self.send_response(206 if begin else 200)\n\
         \x20       if begin: self.send_header('Content-Range', f'bytes {{begin}}-{{len(data) - 1}}/{{len(data)}}')\n\
         \x20       self.send_header('Accept-Ranges', 'bytes')\n\
         \x20       self.send_header('Content-Length', str(len(data) - begin)); self.end_headers()\n\
         \x20       if stall[0]:\n\
         \x20           stall[0] = False; self.wfile.write(data[:200000]); self.wfile.flush(); time.sleep(60)\n\
         \x20       else: open('begun', 'w').write(str(begin)); self.wfile.write(data[begin:])\n\
         s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), H); s.daemon_threads = True\n\
         threading.Thread(target=s.serve_forever, daemon=True).start()\n\
         url = f'http://127.0.0.1:{{s.server_port}}/d.bin'\n\
         env = dict(os.environ, no_proxy='*')\n\
         p = subprocess.Popen(['{fetch}', *'{resume}'.split(), url], env=env)\n\
         fd = None; end = time.time() + 30\n\
         while time.time() < end:\n\
         \x20   for d in os.listdir(f'/proc/{{p.pid}}/fd'):\n\
         \x20       try:\n\
         \x20           if 'd.bin' in os.readlink(f'/proc/{{p.pid}}/fd/{{d}}') and os.stat(f'/proc/{{p.pid}}/fd/{{d}}').st_size > 100000: end = 0\n\
         \x20       except OSError: pass\n\
         \x20   time.sleep(0.05)\n\
         p.kill(); p.wait()\n\
         if not os.path.exists('d.bin'):\n\
         \x20   while True:\n\
         \x20       status = subprocess.run(['{commitfs}', 'status', '.'], capture_output=True, text=True).stdout\n\
         \x20       told = [l for l in status.splitlines() if 'commitfs rejected restore' in l]\n\
         \x20       if told: break\n\
         \x20       time.sleep(0.05)\n\
         \x20   words = told[0].split('commitfs rejected restore ')[1].split()\n\
         \x20   subprocess.run(['{commitfs}', 'rejected', 'restore', *words], check=True)\n\
         assert 0 < os.path.getsize('d.bin') < len(data), os.path.getsize('d.bin')\n\
         subprocess.run(['{fetch}', *'{resume}'.split(), url], env=env, check=True)\n\
         assert open('d.bin', 'rb').read() == data\n\
         assert int(open('begun').read()) > 0, 'it began anew'\n",
        commitfs = common::binary(),
    ))
    .ok();
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

#[test]
fn curl_goes_on_with_a_download_that_was_killed() {
    resume_a_download("curl", "-s -S -C - -O");
}

#[test]
fn wget_goes_on_with_a_download_that_was_killed() {
    resume_a_download("wget", "-q -c");
}

#[test]
fn a_killed_opener_spoils_what_its_child_goes_on_writing() {
    let m = mounted_with!("old");
    let mut opener = Actor::new();
    opener.open("f", "w", &m.path("f")).unwrap();
    let mut child = opener.fork();
    opener.kill(libc::SIGKILL);
    child.write("f", "half").unwrap();
    let _ = child.close("f");
    assert_unchanged(&m, b"old", "after the child's orderly close");
}

#[test]
fn a_killed_process_that_merely_inherited_the_descriptor_does_not_count() {
    // The plain directory passes: a pool worker's end must not cost the parent its save.
    let m = mounted_with!("old");
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut parent = Actor::new();
        parent.open("f", "w", &m.path("f")).unwrap();
        parent.write("f", "one ").unwrap();
        let mut worker = parent.fork();
        parent.write("f", "two ").unwrap();
        worker.kill(signal);
        parent.write("f", signal.to_string()).unwrap();
        parent.close("f").unwrap();
        assert_content(
            m.read("f"),
            format!("one two {signal}").as_bytes(),
            "after the close",
        );
    }
    m.python(
        "import multiprocessing, time\n\
         f = open('f', 'w'); f.write('head '); f.flush()\n\
         with multiprocessing.get_context('fork').Pool(2) as pool:\n\
         \x20   pool.map(abs, [1, 2])\n\
         f.write('tail'); f.close()\n",
    )
    .ok();
    assert_content(m.read("f"), b"head tail", "beside a terminated pool");
}

#[test]
fn a_broken_pipe_commits() {
    // The plain directory passes: SIGPIPE is how pipelines end.
    let m = mounted_with!("old");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "written before the pipe broke").unwrap();
    writer.kill(libc::SIGPIPE);
    assert_content(
        m.read("f"),
        b"written before the pipe broke",
        "after SIGPIPE",
    );
    m.bash("seq 1 200000 | tee f | head -n 1 > /dev/null; true")
        .ok();
    let content = m.text("f").unwrap();
    assert!(
        content.starts_with("1\n2\n3\n"),
        "tee's output was dropped: {:?}",
        content.len()
    );
}

#[test]
fn a_normal_exit_commits_with_any_status_closed_or_not() {
    // The plain directory passes.
    let m = mounted_with!("old");
    for status in [0, 1, 7, 130, 137] {
        for how in ["exit", "_exit"] {
            let mut writer = Actor::new();
            let content = format!("{how} {status}");
            writer.open("f", "w", &m.path("f")).unwrap();
            writer.write("f", &content).unwrap();
            writer.ask(how, &[status.to_string().as_bytes()]).unwrap();
            writer.await_end();
            assert_content(m.read("f"), content.as_bytes(), "after the exit");
        }
    }
    m.python("import os; f = open('f', 'w', 1); f.write('no close\\n'); os._exit(3)");
    assert_content(m.read("f"), b"no close\n", "python's os._exit");
    m.sh("trap 'exit 0' TERM; { echo handled; kill -TERM $$; sleep 1; } > f");
    assert_content(
        m.read("f"),
        b"handled\n",
        "a handled SIGTERM is a normal exit",
    );
}

#[test]
fn a_killed_process_with_only_a_mapping_left_does_not_commit() {
    let old = stamped(1, 4096);
    let m = mounted_with!(old);
    let mut writer = Actor::new();
    writer.open("f", "w+", &m.path("f")).unwrap();
    writer.ftruncate("f", 8192).unwrap();
    writer.mmap("f", "map", 8192, "rw").unwrap();
    writer.close("f").unwrap();
    writer.map_write("map", 100, b"half").unwrap();
    writer.kill(libc::SIGKILL);
    assert_unchanged(&m, &old, "after the kill");
    std::thread::sleep(Duration::from_millis(300));
    assert_content(m.read("f"), &old, "later");
}

/// A mount whose daemon is behind: a close has long returned when it comes to know that it was the last.
fn behind() -> Option<Mount> {
    Mount::options()
        .env("COMMITFS_RELEASE_DELAY_MS", 300)
        .mount()
}

#[test]
fn a_process_that_is_killed_right_after_its_close_has_committed() {
    let Some(m) = behind() else { return };
    for how in ["r+", "w+"] {
        m.save("f", "old content");
        let mut writer = Actor::new();
        writer.open("f", how, &m.path("f")).unwrap();
        writer.pwrite("f", 0, b"new content").unwrap();
        // A mapping that is gone by the close, and one of another file, are nobody's.
        writer.mmap("f", "map", 4, "rw").unwrap();
        writer.munmap("map").unwrap();
        writer.close("f").unwrap();
        writer.kill(libc::SIGKILL);
        assert_content(m.read("f"), b"new content", how);
    }
    assert!(m.rejected().is_empty());
}

#[test]
fn a_process_killed_with_an_untouched_mapping_left_does_not_commit() {
    need_daemon!();
    let Some(m) = behind() else { return };
    m.save("f", "old");
    for dup in [false, true] {
        let mut writer = Actor::new();
        writer.open("f", "w+", &m.path("f")).unwrap();
        if dup {
            // What the first close has seen holds no more at the second.
            writer.dup("f", "g").unwrap();
            writer.close("g").unwrap();
        }
        writer.ftruncate("f", 8192).unwrap();
        writer.mmap("f", "map", 8192, "rw").unwrap();
        writer.close("f").unwrap();
        writer.kill(libc::SIGKILL);
        assert_unchanged(&m, b"old", "it was about to fill the mapping");
    }
}

#[test]
fn a_rule_lets_killed_writers_commit() {
    let rule = "[[rule]]\nglob = \"scratch-*\"\non_signal = \"commit\"\n";
    let m = mount!(Mount::options().rules(rule));
    for name in ["scratch-1", "f"] {
        m.save(name, "old");
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", "half").unwrap();
        writer.kill(libc::SIGTERM);
    }
    assert_content(m.read("scratch-1"), b"half", "with on_signal = commit");
    assert_unchanged(&m, b"old", "without it");
}

#[test]
fn rejected_content_of_a_killed_writer_is_whole_and_says_why() {
    need_daemon!();
    let m = mounted_with!("old");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    assert_eq!(writer.fill("f", 3 << 20, 100_000, b'r'), Ok(3 << 20));
    writer.kill(libc::SIGKILL);
    let rejected = m.await_rejected("f", &vec![b'r'; 3 << 20]);
    assert_eq!(rejected.meta["len"], 3 << 20);
    assert!(!rejected.reason.is_empty());
    assert!(
        rejected.meta["time_ns"]
            .as_u64()
            .is_some_and(|time| time > 1 << 60),
        "{rejected:?}"
    );
    let command = rejected.meta["command"].as_str().unwrap_or_default();
    // The kernel keeps fifteen characters of a command's name.
    assert!(command.contains("commitfs-test-h"), "{rejected:?}");
    let pid = writer.pid().to_string();
    eventually(Duration::from_secs(2), "the log says who and what", || {
        m.log()
            .lines()
            .any(|line| line.contains(&pid) && line.contains('f'))
    });
}

#[test]
fn writers_killed_at_random_moments_leave_whole_files_and_every_acknowledged_save() {
    let m = mount!(Mount::options().limit(Duration::from_secs(600)));
    let mut random = Random::new();
    let kills = times(100, 1_000);
    let ways = ["rewrite", "replace", "fsync"];
    let mut newest = [0; 3];
    for name in ways {
        m.save(name, stamped(0, 100));
    }
    for kill in 0..kills {
        let way = kill % 3;
        let path = m.path(ways[way]);
        let mut writer = Actor::new();
        let (from, seed) = (
            (newest[way] + 1).to_string(),
            random.below(1 << 40).to_string(),
        );
        let path = path.as_os_str().as_encoded_bytes();
        let args: [&[u8]; 5] = [
            ways[way].as_bytes(),
            path,
            from.as_bytes(),
            b"60000",
            seed.as_bytes(),
        ];
        writer.start("churn", &args);
        std::thread::sleep(Duration::from_micros(500 + random.below(20_000)));
        let signals = [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGINT];
        writer.kill(signals[random.below(4) as usize]);
        let mut acknowledged = newest[way];
        while let Ok(words) = writer.finish() {
            acknowledged = String::from_utf8_lossy(&words[0]).parse().unwrap();
        }
        let content = m.read(ways[way]).expect("the file is there");
        let found = version_of(&content)
            .unwrap_or_else(|why| panic!("{} is torn after kill {kill}: {why}", ways[way]));
        // One save may have been complete though its writer could not say so any more.
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "{}: version {found}, acknowledged {acknowledged}",
            ways[way]
        );
        newest[way] = found;
    }
}

/// Its FLUSH was the last as far as anybody could see, and promised what the mapping's end takes back.
#[test]
fn what_a_killed_writer_has_left_in_a_mapping_is_not_committed_by_a_kill_of_the_daemon_right_after()
{
    need_daemon!();
    need_features!("direct_io_allow_mmap", "pidfd-info");
    let mut m = mount!(Mount::options().env("COMMITFS_REJECT_DELAY_MS", 3000));
    m.save("state", "as it was");
    let path = m.path("state");
    let mut writer = Actor::new();
    writer.open("f", "r+", &path).unwrap();
    writer.pwrite("f", 0, b"AS").unwrap();
    writer.mmap("f", "m", 4096, "rw").unwrap();
    writer.close("f").unwrap();
    writer.kill(libc::SIGKILL);
    std::thread::sleep(Duration::from_millis(500));
    assert_content(m.read("state"), b"as it was", "after the kill");
    m.kill_daemon();
    m.remount();
    assert_content(m.read("state"), b"as it was", "after that of the daemon");
}
