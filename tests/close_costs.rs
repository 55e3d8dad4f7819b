//! C2, C21, C22. A server with three thousand connections saves a file of two kilobytes, and so does a build that starts a
//! thousand processes: a close costs what its file costs, not what else its program has open or who was started
//! meanwhile. And it says what it has to say all the same: half a document is refused at any number.
//!
//! Times depend on the machine, so what is counted is how often the daemon reads: a look at a descriptor is a read.

mod common;

use std::time::{Duration, Instant};

use common::{Live, Mount, assert_content, eventually, times};

/// Programs say a line and wait for one.
const HEAD: &str = "import os, resource, signal, socket, subprocess, sys\n\
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n\
    def say(*words):\n    \
        print(*words, flush=True); return sys.stdin.readline().strip()\n\
    def create(name):\n    \
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)\n\
    def close(fd):\n    \
        try: os.close(fd); return 0\n    \
        except OSError as e: return e.errno\n";

const EBADMSG: i32 = libc::EBADMSG;

/// How often the daemon has read something.
fn reads(m: &Mount) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", m.daemon_pid())).expect("io");
    let line = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    line.and_then(|n| n.parse().ok()).expect("syscr")
}

/// How often it reads while a program does what its next line asks for.
fn reads_of(m: &Mount, program: &mut Live, answer: &str) -> u64 {
    let before = reads(m);
    program.send("");
    program.expect(answer);
    reads(m) - before
}

#[test]
fn a_close_looks_at_few_descriptors_of_a_program_that_has_thousands() {
    need_daemon!();
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         def save():\n    \
             for n in range(50):\n        \
                 fd = create('f'); os.write(fd, b'x' * 2048); os.close(fd)\n\
         say('begin'); save(); say('alone')\n\
         kept = [socket.socket() for _ in range(3000)]\n\
         say('open'); save(); say('beside')\n"
    ));
    program.expect("begin");
    let alone = reads_of(&m, &mut program, "alone");
    program.send("");
    program.expect("open");
    let beside = reads_of(&m, &mut program, "beside");
    println!("reads for 50 saves: {alone}, beside 3,000 sockets {beside}");
    assert!(beside < alone + 50 * 20, "{alone}, {beside}");
}

#[test]
fn a_close_looks_at_no_process_that_others_have_started() {
    need_daemon!();
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         fd = create('f'); os.write(fd, b'x'); say('open'); os.close(fd); say('alone')\n\
         fd = create('f'); os.write(fd, b'x'); say('open'); os.close(fd); say('beside')\n"
    ));
    program.expect("open");
    let alone = reads_of(&m, &mut program, "alone");
    program.send("");
    program.expect("open");
    let mut others: Vec<_> = (0..150)
        .map(|_| {
            let sleep = std::process::Command::new("sleep").arg("60").spawn();
            sleep.expect("sleep")
        })
        .collect();
    let beside = reads_of(&m, &mut program, "beside");
    for other in &mut others {
        other.kill().ok();
        other.wait().ok();
    }
    println!("reads for a save: {alone}, beside 150 new processes {beside}");
    assert!(beside < alone + 100, "{alone}, {beside}");
}

#[test]
fn half_a_document_is_refused_by_its_close_however_much_else_is_open() {
    need_daemon!();
    let m = mount!();
    m.save("f.json", "{}");
    let mut program = m.live_python(&format!(
        "{HEAD}\
         kept = [socket.socket() for _ in range(3000)]\n\
         told = 0\n\
         for n in range(20):\n    \
             fd = create('f.json'); os.write(fd, b'{{\"half\": '); told += close(fd) == {EBADMSG}\n\
         say('told', told)\n"
    ));
    program.expect("told 20");
    assert_content(m.read("f.json"), b"{}", "what was refused is not there");
}

#[test]
fn a_duplicate_among_thousands_of_descriptors_keeps_the_first_close_from_being_refused() {
    need_daemon!();
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         kept = [socket.socket() for _ in range(3000)]\n\
         fd = create('f.json'); os.write(fd, b'{{\"half\": ')\n\
         at = kept[1500].fileno(); os.dup2(fd, at)\n\
         first = close(fd); os.write(at, b'1, '); say('first', first, 'last', close(at))\n"
    ));
    program.expect(&format!("first 0 last {EBADMSG}"));
}

#[test]
fn a_duplicate_that_few_looks_do_not_find_is_found_before_the_daemon_is_killed() {
    // C18: what is rolled forward is what a last close has promised.
    need_daemon!();
    let mut m = mount!();
    m.save("f", "old");
    let mut program = m.live_python(&format!(
        "{HEAD}\
         kept = [socket.socket() for _ in range(3000)]\n\
         fd = create('f'); os.write(fd, b'half')\n\
         os.dup2(fd, kept[1500].fileno()); os.close(fd); say('closed')\n"
    ));
    program.expect("closed");
    std::thread::sleep(Duration::from_millis(1500));
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f"), b"old", "a duplicate was open");
    program.kill(libc::SIGKILL);
}

#[test]
fn a_lock_given_back_by_a_close_is_free_though_a_duplicate_stays_open() {
    let m = mount!();
    m.save("f", "old");
    let mut program = m.live_python(&format!(
        "{HEAD}\
         import fcntl\n\
         kept = [socket.socket() for _ in range(3000)]\n\
         fd = os.open('f', os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); os.write(fd, b'new')\n\
         os.dup2(fd, kept[1500].fileno()); os.close(fd); say('closed')\n"
    ));
    program.expect("closed");
    let start = Instant::now();
    let mut other = m.live_python(&format!(
        "{HEAD}\
         import fcntl\n\
         fd = os.open('f', os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX)\n\
         say('locked', os.read(fd, 9))\n"
    ));
    other.expect("locked b'new'");
    println!("locked after {:?}", start.elapsed());
}

/// Whatever a child or a grandchild has inherited keeps a close from being refused. `steps` is run
/// while `fd` is open and leaves one of them waiting on the pipe `r`.
#[track_caller]
fn assert_kept_by_heir(steps: &str) {
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         r, w = os.pipe()\n\
         fd = create('f.json'); os.write(fd, b'{{\"half\": ')\n\
         def hold():\n    \
             os.close(w); os.read(r, 1); os._exit(0)\n\
         {steps}\n\
         say('told', close(fd)); os.close(w)\n"
    ));
    program.expect("told 0");
    program.send("");
    program.finish();
    eventually(Duration::from_secs(10), "the last close is refused", || {
        m.aborts("guard") == 1
    });
}

#[test]
fn whoever_has_inherited_a_descriptor_is_found() {
    need_daemon!();
    assert_kept_by_heir("if not os.fork(): hold()");
    // Others are started as well, and end.
    assert_kept_by_heir(
        "for n in range(40):\n    subprocess.run(['true'])\nif not os.fork(): hold()",
    );
    // A child of another thread.
    assert_kept_by_heir(
        "import threading\n\
         def start():\n    \
             if not os.fork(): hold()\n\
         thread = threading.Thread(target=start); thread.start(); thread.join()\n\
         for n in range(40): subprocess.run(['true'])",
    );
    // One whose own parent has ended.
    assert_kept_by_heir(
        "child = os.fork()\n\
         if not child:\n    \
             if not os.fork(): hold()\n    \
             os._exit(0)\n\
         os.waitpid(child, 0)\n\
         for n in range(40): subprocess.run(['true'])",
    );
    // One whose parent has closed it and goes on.
    assert_kept_by_heir(
        "p, q = os.pipe()\n\
         if not os.fork():\n    \
             if not os.fork(): hold()\n    \
             os.close(fd); os.write(q, b'x'); hold()\n\
         os.read(p, 1)\n\
         for n in range(40): subprocess.run(['true'])",
    );
}

#[test]
fn a_program_with_many_outputs_starts_another_one_at_little_cost() {
    // The other one has them all, and closes them before it runs.
    need_daemon!();
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         fds = [create(f'f{{n}}') for n in range(300)]\n\
         for fd in fds: os.write(fd, b'x')\n\
         say('open'); subprocess.run(['true']); say('run')\n\
         for fd in fds: os.close(fd)\n\
         say('closed')\n"
    ));
    program.expect("open");
    let each = reads_of(&m, &mut program, "run") as f64 / 300.0;
    std::thread::sleep(Duration::from_secs(6));
    let before = reads(&m);
    std::thread::sleep(Duration::from_secs(1));
    let idle = reads(&m) - before;
    println!("reads for each output: {each:.1}; in a second: {idle}");
    assert!(each < 20.0, "{each}");
    assert!(idle < 2_000, "{idle}");
    program.send("");
    program.expect("closed");
    assert_eq!(m.commits(), 300);
}

#[test]
fn a_killed_program_ends_at_once_however_many_duplicates_it_has() {
    need_daemon!();
    let m = mount!();
    m.save("f", "old");
    let duplicates = times(2_000, 8_000) as u64;
    let mut program = m.live_python(&format!(
        "{HEAD}\
         fd = create('f'); os.write(fd, b'half')\n\
         kept = [os.dup(fd) for _ in range({duplicates})]\n\
         say('open')\n"
    ));
    program.expect("open");
    let (before, start) = (reads(&m), Instant::now());
    program.kill(libc::SIGKILL);
    program.finish();
    let each = (reads(&m) - before) as f64 / duplicates as f64;
    println!("{:?}, {each:.1} reads for each", start.elapsed());
    // One of them takes the request, two look whether the program is ending.
    assert!(each < 5.0, "{each}");
    assert_content(m.read("f"), b"old", "after the kill");
    m.await_rejected("f", b"half");
}

#[test]
fn files_that_are_edited_cost_nothing_while_nothing_happens() {
    need_daemon!();
    let m = mount!();
    let mut program = m.live_python(&format!(
        "{HEAD}\
         for n in range(1000):\n    \
             fd = create(f'f{{n}}'); os.write(fd, b'x'); os.close(fd)\n\
         kept = [os.open(f'f{{n}}', os.O_RDWR) for n in range(1000)]\n\
         for fd in kept: os.write(fd, b'x')\n\
         say('open'); os._exit(0)\n"
    ));
    program.expect("open");
    let before = reads(&m);
    std::thread::sleep(Duration::from_secs(2));
    let idle = reads(&m) - before;
    println!("reads in two seconds: {idle}");
    assert!(idle < 1_000, "{idle}");
}
