//! C1, C2. The kernel goes by the name of a file that nobody writes without asking the daemon. A program that polls `progress` a
//! thousand times a second costs nothing then; and whoever writes the file, however he came to it, has the name dropped
//! before others could miss his commit, or see what he has staged.

mod common;

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Actor, Mount, Options, eventually, plain, times};

/// Sizes are odd while they are staged, and tell versions apart: as many can be told.
const VERSIONS: u64 = 1000;
const LEAST: u64 = 1000;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no zero in it")
}

fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

fn open(path: &CString, flags: i32) -> OwnedFd {
    // SAFETY: a path of its own, and the descriptor is nobody else's.
    unsafe {
        OwnedFd::from_raw_fd(check(libc::open(
            path.as_ptr(),
            flags | libc::O_CLOEXEC,
            0o644,
        )))
    }
}

fn write(fd: &OwnedFd, bytes: &[u8]) {
    // SAFETY: of these bytes.
    let written = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(
        written,
        bytes.len() as isize,
        "{}",
        std::io::Error::last_os_error()
    );
}

/// A number of bytes is written in two steps.
fn fill(fd: &OwnedFd, size: u64) {
    let bytes = vec![b'x'; size as usize];
    write(fd, &bytes[..501]);
    write(fd, &bytes[501..]);
}

/// In memory that processes share.
struct Clock {
    ticks: AtomicU64,
    next: AtomicU64,
    /// When the newest of all complete commits began.
    newest: AtomicU64,
    /// When each was complete; 0 while it is made.
    ends: [AtomicU64; VERSIONS as usize],
    stop: AtomicU64,
    looks: AtomicU64,
    wrong: AtomicU64,
}

impl Clock {
    fn shared() -> &'static Clock {
        let size = std::mem::size_of::<Clock>();
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: new memory of zeros, which all these atomics may be, and which is never unmapped.
        unsafe {
            let memory = libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            &*memory.cast::<Clock>()
        }
    }

    fn now(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Makes a commit, which gets the size that it is to be told by.
    fn commit(&self, make: impl FnOnce(u64)) {
        let version = self.next.fetch_add(1, Ordering::SeqCst) % VERSIONS;
        self.ends[version as usize].store(0, Ordering::SeqCst);
        let began = self.now();
        make(LEAST + 2 * version);
        self.ends[version as usize].store(self.now(), Ordering::SeqCst);
        self.newest.fetch_max(began, Ordering::SeqCst);
    }

    /// Looks at the size, which must be of a version that no complete commit has replaced.
    fn look(&self, what: &str, size: impl FnOnce() -> Option<u64>) {
        let newest = self.newest.load(Ordering::SeqCst);
        let Some(size) = size() else { return };
        self.looks.fetch_add(1, Ordering::Relaxed);
        let version = size.wrapping_sub(LEAST) / 2;
        if size % 2 == 1 || version >= VERSIONS {
            eprintln!("{what}: a staged size, {size}");
            self.wrong.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let end = self.ends[version as usize].load(Ordering::SeqCst);
        if end != 0 && end < newest {
            eprintln!("{what}: version {version} ended at {end}, and another began at {newest}");
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Runs something in a process of its own.
fn child(run: impl FnOnce()) -> i32 {
    // SAFETY: the child goes on in this function alone, and ends here.
    match unsafe { libc::fork() } {
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            // SAFETY: ends this process.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        pid => check(pid),
    }
}

fn wait_for(pid: i32) {
    let mut status = 0;
    // SAFETY: of a child of ours.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) });
    assert_eq!(status, 0, "a process has failed");
}

fn size_at(directory: i32, path: &CString) -> Option<u64> {
    // SAFETY: zeros are such a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a path and memory of its own.
    match unsafe { libc::fstatat(directory, path.as_ptr(), &raw mut stat, 0) } {
        0 => Some(stat.st_size as u64),
        _ => None,
    }
}

fn opened_size(path: &CString) -> Option<u64> {
    // SAFETY: a path of its own.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return None;
    }
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut buffer = vec![0; 8192];
    // SAFETY: into these bytes.
    let read = unsafe { libc::pread(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    u64::try_from(read).ok()
}

/// `writers` processes commit versions of one file in some way, and others look at it by its path, from inside its directory,
/// and opened: none misses a commit that is complete, and none sees what is staged.
fn race(m: &Mount, name: &str, writers: u32, make: impl Fn(&CString, u64)) {
    std::fs::create_dir(m.path("d")).unwrap();
    let file = format!("d/{name}");
    m.save(&file, vec![b'x'; LEAST as usize]);
    let path = c_path(&m.path(&file));
    let directory = open(&c_path(&m.path("d")), libc::O_PATH);
    let name = CString::new(name).unwrap();
    let clock = Clock::shared();
    let commits = times(150, 50_000);
    let looker = |inside: bool| {
        let (path, name, directory) = (&path, &name, directory.as_raw_fd());
        child(move || {
            while clock.stop.load(Ordering::Relaxed) == 0 {
                match inside {
                    true => clock.look("stat", || size_at(directory, name)),
                    false => clock.look("stat", || size_at(libc::AT_FDCWD, path)),
                }
                if clock.ticks.load(Ordering::Relaxed).is_multiple_of(3) {
                    clock.look("open", || opened_size(path));
                }
            }
        })
    };
    let lookers = [looker(true), looker(false)];
    let writing: Vec<i32> = (0..writers)
        .map(|writer| {
            let (path, make) = (&path, &make);
            child(move || {
                for turn in 0..commits {
                    clock.commit(|size| make(path, size));
                    if (turn + writer as usize).is_multiple_of(2) {
                        // Long enough for the name to be kept again.
                        std::thread::sleep(Duration::from_micros(300));
                    }
                }
            })
        })
        .collect();
    writing.into_iter().for_each(wait_for);
    clock.stop.store(1, Ordering::Relaxed);
    lookers.into_iter().for_each(wait_for);
    assert_eq!(clock.wrong.load(Ordering::SeqCst), 0);
    assert!(clock.looks.load(Ordering::SeqCst) > 100);
}

fn rewrite(path: &CString, size: u64) {
    let fd = open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC);
    fill(&fd, size);
}

fn beside(path: &CString) -> CString {
    // SAFETY: asks for a number.
    let pid = unsafe { libc::getpid() };
    CString::new([path.as_bytes(), format!(".{pid}").as_bytes()].concat()).unwrap()
}

fn rename(from: &CString, to: &CString, flags: u32) {
    let at = libc::AT_FDCWD;
    // SAFETY: two paths of their own. By its number, since musl has no function for it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            at,
            from.as_ptr(),
            at,
            to.as_ptr(),
            flags,
        )
    };
    check(result as i32);
}

/// Names are kept as soon as nobody writes.
fn options() -> Options {
    Mount::options().env("COMMITFS_KEEP_AFTER_MS", 0)
}

/// Limits for each of the races.
macro_rules! raced {
    () => {
        mount!(options().limit(Duration::from_secs(3600)))
    };
}

#[test]
fn a_rewrite_is_seen_once_it_is_closed() {
    let m = raced!();
    race(&m, "state", 1, rewrite);
}

#[test]
fn of_two_writers_each_is_seen_once_it_has_closed() {
    let m = raced!();
    race(&m, "state", 2, rewrite);
}

#[test]
fn a_rename_over_the_name_is_seen_once_it_is_done() {
    let m = raced!();
    race(&m, "state", 1, |path, size| {
        let other = beside(path);
        rewrite(&other, size);
        rename(&other, path, 0);
    });
}

#[test]
fn an_exchange_is_seen_once_it_is_done() {
    let m = raced!();
    race(&m, "state", 1, |path, size| {
        let other = beside(path);
        rewrite(&other, size);
        // Somebody looks at it.
        size_at(libc::AT_FDCWD, &other);
        rename(&other, path, libc::RENAME_EXCHANGE);
    });
}

#[test]
fn a_name_that_is_removed_and_made_anew_is_seen() {
    let m = raced!();
    race(&m, "state", 1, |path, size| {
        // SAFETY: a path of its own.
        check(unsafe { libc::unlink(path.as_ptr()) });
        rewrite(path, size);
    });
}

#[test]
fn a_truncation_is_seen_once_it_is_done() {
    let m = raced!();
    race(&m, "state", 1, |path, size| {
        // SAFETY: a path of its own.
        check(unsafe { libc::truncate(path.as_ptr(), size as libc::off_t) });
    });
}

#[test]
fn a_save_without_a_walk_is_seen_once_it_is_closed() {
    let m = raced!();
    let handle = std::cell::OnceCell::new();
    race(&m, "state", 1, |path, size| {
        let held = handle.get_or_init(|| open(path, libc::O_PATH));
        let link = format!("/proc/self/fd/{}", held.as_raw_fd());
        let fd = open(&CString::new(link).unwrap(), libc::O_WRONLY | libc::O_TRUNC);
        fill(&fd, size);
    });
}

#[test]
fn a_patch_through_a_descriptor_is_seen_once_it_is_made() {
    let m = raced!();
    need_daemon!();
    let held = std::cell::OnceCell::new();
    race(&m, "state", 1, |path, size| {
        let fd = held.get_or_init(|| {
            rewrite_text(path, &text_of(LEAST));
            open(path, libc::O_RDONLY)
        });
        let patch = format!("{{\"v\":\"{}\"}}", "x".repeat(size as usize - 8));
        let name = c"commitfs.json.merge".as_ptr();
        // SAFETY: of these bytes.
        let result =
            unsafe { libc::fsetxattr(fd.as_raw_fd(), name, patch.as_ptr().cast(), patch.len(), 0) };
        check(result);
    });
}

fn text_of(size: u64) -> String {
    format!("{{\"v\":\"{}\"}}", "x".repeat(size as usize - 8))
}

fn rewrite_text(path: &CString, text: &str) {
    let fd = open(path, libc::O_WRONLY | libc::O_TRUNC);
    write(&fd, text.as_bytes());
}

/// Stops the daemon while `look` looks.
fn without_daemon<T: Send>(m: &Mount, look: impl FnOnce() -> T + Send) -> Option<T> {
    let daemon = m.daemon_pid();
    std::thread::scope(|scope| {
        // SAFETY: a signal to a process of this test.
        check(unsafe { libc::kill(daemon, libc::SIGSTOP) });
        let is_stopped = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status"));
            status.is_ok_and(|text| text.contains("State:\tT"))
        };
        eventually(
            Duration::from_secs(5),
            "all its threads are stopped",
            || {
                let mut tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
                tasks.all(|task| task.is_ok_and(is_stopped))
            },
        );
        let (told, found) = std::sync::mpsc::channel();
        scope.spawn(move || told.send(look()).ok());
        let found = found.recv_timeout(Duration::from_millis(500)).ok();
        // SAFETY: as above.
        check(unsafe { libc::kill(daemon, libc::SIGCONT) });
        found
    })
}

/// A name that was looked at is kept.
#[track_caller]
fn assert_kept(m: &Mount, name: &str) {
    let path = m.path(name);
    let size = std::fs::metadata(&path).unwrap().size();
    let found = without_daemon(m, || std::fs::metadata(&path).map(|s| s.size()).ok());
    assert_eq!(found, Some(Some(size)), "{name} isn't kept");
}

#[track_caller]
fn assert_asked_for(m: &Mount, name: &str) {
    let path = m.path(name);
    std::fs::metadata(&path).ok();
    let found = without_daemon(m, || std::fs::metadata(&path).map(|s| s.size()).ok());
    assert_eq!(found, None, "{name} is kept");
}

fn is_off() -> bool {
    let without = std::env::var("COMMITFS_WITHOUT").unwrap_or_default();
    plain()
        || without
            .split(',')
            .any(|f| f == "kept_files" || f == "kept_names")
}

#[test]
fn a_stat_needs_no_daemon_while_nobody_writes() {
    let m = mount!(options());
    if is_off() {
        return;
    }
    m.save("state", "first");
    assert_kept(&m, "state");

    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("state")).unwrap();
    assert_asked_for(&m, "state");
    writer.write("f", "second").unwrap();
    assert_asked_for(&m, "state");
    writer.close("f").unwrap();
    assert_kept(&m, "state");
    assert_eq!(m.read("state").unwrap(), b"second");
}

#[test]
fn a_name_of_several_and_one_that_grows_is_asked_for() {
    let m = mount!(options().rules("[[rule]]\nglob = \"merged\"\non_conflict = \"fail\"\n"));
    if is_off() {
        return;
    }
    for name in ["linked", "empty", "log", "merged", "x.db"] {
        m.save(name, if name == "empty" { "" } else { "text\n" });
    }
    std::fs::hard_link(m.path("linked"), m.path("other")).unwrap();
    let mut appender = Actor::new();
    appender.open("f", "a", &m.path("log")).unwrap();
    for name in ["linked", "other", "empty", "log", "merged", "x.db"] {
        assert_asked_for(&m, name);
    }
}

#[test]
fn a_link_to_what_was_begun_is_kept_once_its_writer_has_ended() {
    let m = mount!(options());
    if is_off() {
        return;
    }
    let mut writer = Actor::new();
    writer.open("f", "a", &m.path("log")).unwrap();
    writer.write("f", "half").unwrap();
    writer.link(&m.path("log"), &m.path("link")).unwrap();
    writer.close("f").unwrap();
    drop(writer);
    // Nothing else has two names then.
    std::fs::remove_file(m.path("log")).unwrap();
    assert_kept(&m, "link");
}

#[test]
fn what_a_thread_has_looked_up_by_another_name_is_opened_by_the_one_that_it_says() {
    let mut m = mount!(options());
    m.save("one", "first");
    m.unmount();
    std::fs::hard_link(m.backing().join("one"), m.backing().join("two")).unwrap();
    m.remount();
    let (one, two) = (m.path("one"), m.path("two"));
    let (mut actor, mut other) = (Actor::new(), Actor::new());
    actor.stat(&two).unwrap();
    other.unlink(&two).unwrap();
    // From here on it is found without a lookup.
    other.stat(&one).unwrap();
    actor.save(&one, "second").unwrap();
    assert_eq!(m.read("one").unwrap(), b"second");
    assert!(!two.exists());
}

#[test]
fn a_name_that_moves_while_it_is_dropped_is_dropped_at_its_new_place() {
    need_daemon!();
    let m = mount!(options().env("COMMITFS_DROP_DELAY_MS", 300));
    m.save("one", "{\"n\":0}");
    let (one, two) = (m.path("one"), m.path("two"));
    std::fs::metadata(&one).unwrap();
    let (mut patcher, mut other) = (Actor::new(), Actor::new());
    let merge = |value: &str| format!("{{\"n\":{value}}}").into_bytes();
    let name = "commitfs.json.merge";
    let path = one.as_os_str().as_bytes();
    patcher.start("setxattr", &[path, name.as_bytes(), &merge("1")]);
    std::thread::sleep(Duration::from_millis(100));
    other.rename(&one, &two).unwrap();
    other.setxattr(&two, name, &merge("2")).unwrap();
    patcher.finish().unwrap();
    assert_eq!(m.read("two").unwrap(), merge("2"));
}

#[test]
fn a_name_that_moves_between_a_writers_lookups_is_dropped_at_its_new_place() {
    need_daemon!();
    for truncates in [false, true] {
        let m = mount!(options().env("COMMITFS_OPEN_DELAY_MS", 400));
        m.save("one", "the first version");
        let (one, two) = (m.path("one"), m.path("two"));
        let path = one.as_os_str().as_bytes();
        let (mut writer, mut other, mut reader) = (Actor::new(), Actor::new(), Actor::new());
        assert_eq!(reader.stat(&one).unwrap().size, 17);
        match truncates {
            true => writer.start("truncate", &[path, b"3"]),
            false => writer.start("open", &[b"w", b"w", path]),
        }
        // An open's ESTALE is on its way by then, which comes so long after the first lookup; a truncate's at once.
        std::thread::sleep(Duration::from_millis(if truncates { 200 } else { 600 }));
        other.rename(&one, &two).unwrap();
        writer.finish().unwrap();
        if !truncates {
            writer.write("w", "new").unwrap();
            writer.close("w").unwrap();
        }
        assert_eq!(reader.stat(&two).unwrap().size, 3, "{truncates}");
    }
}

#[test]
fn attributes_of_a_kept_name_change_for_all() {
    let m = mount!(options());
    m.save("state", "first");
    let path = m.path("state");
    let (mut one, mut other) = (Actor::new(), Actor::new());
    for mode in [0o600, 0o640] {
        assert_eq!(other.stat(&path).unwrap().size, 5);
        one.chmod(&path, mode);
        assert_eq!(other.stat(&path).unwrap().mode & 0o777, mode);
    }
    one.link(&path, &m.path("other")).unwrap();
    assert_eq!(other.stat(&path).unwrap().nlink, 2);
    one.save(&m.path("other"), "second").unwrap();
    assert_eq!(other.stat(&path).unwrap().nlink, 1);
    one.save(&path, "third, and longer").unwrap();
    assert_eq!(other.stat(&path).unwrap().size, 17);
}

/// Changes the value in a document, as another program sees right after. Gives how long it took.
#[track_caller]
fn patch(patcher: &mut Actor, other: &mut Actor, path: &Path, value: &str) -> Duration {
    let began = std::time::Instant::now();
    let text = format!("{{\"n\":{value}}}");
    let name = "commitfs.json.merge";
    patcher.setxattr(path, name, text.as_bytes()).unwrap();
    let took = began.elapsed();
    assert_eq!(other.stat(path).unwrap().size, text.len() as u64);
    took
}

fn name_helper(m: &Mount) -> Option<i32> {
    let parent = format!("PPid:\t{}\n", m.daemon_pid());
    let processes = std::fs::read_dir("/proc").unwrap();
    let is_helper = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&parent)
            && status.contains("Name:\tcommitfs-names\n")
            && !status.contains("State:\tZ")
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(is_helper)
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a signal to a process of this test.
    check(unsafe { libc::kill(pid, signal) });
}

#[test]
fn who_changes_a_directory_waits_for_no_name_in_it() {
    need_daemon!();
    let m = mount!(options().env("COMMITFS_DROP_DELAY_MS", 300));
    m.mkdir("d");
    let path = m.path("d/state");
    let (mut patcher, mut other, mut third) = (Actor::new(), Actor::new(), Actor::new());
    let held = Duration::from_millis(1500);
    for operation in ["chmod", "setxattr"] {
        m.save("d/state", "{\"n\":0}");
        third.stat(&path).unwrap();
        std::thread::scope(|scope| {
            let patching = scope.spawn(|| patch(&mut patcher, &mut third, &path, "10"));
            std::thread::sleep(Duration::from_millis(100));
            let began = std::time::Instant::now();
            match operation {
                "chmod" => other.chmod(&m.path("d"), 0o711),
                _ => other.setxattr(&m.path("d"), "user.x", b"y").unwrap(),
            }
            let took = (began.elapsed(), patching.join().unwrap());
            assert!(took.0 < held && took.1 < held, "{operation}: {took:?}");
        });
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_patch_and_who_removes_or_replaces_the_file_do_not_wait_for_each_other() {
    need_daemon!();
    let m = mount!(options().env("COMMITFS_DROP_DELAY_MS", 300));
    m.mkdir("d");
    let path = m.path("d/state");
    let (mut patcher, mut other, mut third) = (Actor::new(), Actor::new(), Actor::new());
    for replaces in [false, true] {
        m.save("d/state", "{\"n\":0}");
        m.save("d/other", "{\"n\":10000}");
        third.stat(&path).unwrap();
        let path_text = path.as_os_str().as_bytes();
        let began = std::time::Instant::now();
        patcher.start(
            "setxattr",
            &[path_text, b"commitfs.json.merge", b"{\"n\":10}"],
        );
        std::thread::sleep(Duration::from_millis(100));
        match replaces {
            true => other.rename(&m.path("d/other"), &path).unwrap(),
            false => other.unlink(&path).unwrap(),
        }
        patcher.finish().unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_millis(1500), "{replaces}: {took:?}");
        let found = third.stat(&path).ok().map(|stat| stat.size);
        assert_eq!(found, replaces.then_some(11));
    }
}

#[test]
fn a_patch_is_seen_under_the_name_that_a_slow_rename_gives_to_the_file() {
    need_daemon!();
    for is_stopped in [false, true] {
        let slow = options()
            .env("COMMITFS_DROP_DELAY_MS", 300)
            .env("COMMITFS_ROUND_DELAY_MS", 2500);
        let m = mount!(slow);
        let (from, to) = (m.path("from"), m.path("to"));
        let (mut patcher, mut other, mut third) = (Actor::new(), Actor::new(), Actor::new());
        m.save("from", "{\"n\":0}");
        third.stat(&from).unwrap();
        if is_stopped && !is_off() {
            signal(name_helper(&m).expect("a name helper"), libc::SIGSTOP);
        }
        let path = from.as_os_str().as_bytes();
        patcher.start("setxattr", &[path, b"commitfs.json.merge", b"{\"n\":10}"]);
        std::thread::sleep(Duration::from_millis(100));
        // It has the name in hand, and waits for the file.
        other.rename(&from, &to).unwrap();
        patcher.finish().unwrap();
        let size = third.stat(&to).unwrap().size;
        assert_eq!(size, 8, "the name helper is stopped: {is_stopped}");
    }
}

#[test]
fn a_name_helper_that_does_not_answer_is_replaced() {
    need_daemon!();
    if is_off() {
        return;
    }
    for end in [libc::SIGSTOP, libc::SIGKILL] {
        let m = mount!(options());
        let names = ["one", "two", "three", "four", "five"];
        for name in names {
            m.save(name, "{\"n\":0}");
        }
        let (mut patcher, mut other) = (Actor::new(), Actor::new());
        for name in names {
            other.stat(&m.path(name)).unwrap();
        }
        let helper = name_helper(&m).expect("a name helper");
        signal(helper, end);
        let took = names.map(|name| patch(&mut patcher, &mut other, &m.path(name), "10"));
        assert!(
            took.iter().sum::<Duration>() < Duration::from_secs(4),
            "{took:?}"
        );
        eventually(Duration::from_secs(5), "another name helper", || {
            name_helper(&m).is_some_and(|pid| pid != helper)
        });
        m.save("new", "{\"n\":0}");
        assert_kept(&m, "new");
        patch(&mut patcher, &mut other, &m.path("new"), "10");
    }
}

#[test]
fn nobody_waits_for_all_the_names_that_others_have_dropped() {
    need_daemon!();
    let m = mount!(options().env("COMMITFS_DROP_DELAY_MS", 50));
    m.mkdir("links");
    let (mut linker, mut patcher, mut other) = (Actor::new(), Actor::new(), Actor::new());
    m.save("state", "{\"n\":0}");
    for n in 0..200 {
        let path = m.path(format!("file-{n}"));
        m.save(&path, "text");
        other.stat(&path).unwrap();
    }
    for n in 0..200 {
        let to = m.path(format!("links/{n}"));
        linker.link(&m.path(format!("file-{n}")), &to).unwrap();
    }
    let began = std::time::Instant::now();
    patcher
        .setxattr(&m.path("state"), "commitfs.json.merge", b"{\"n\":10}")
        .unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn a_file_that_is_renamed_to_where_somebody_writes_is_not_taken_for_what_he_has_staged() {
    need_daemon!();
    // It had to be dropped once, and is kept again.
    let m = mount!(options().env("COMMITFS_KEEP_PAUSE_MS", 200));
    let (mut patcher, mut writer, mut other) = (Actor::new(), Actor::new(), Actor::new());
    m.save("one", "{\"n\":0}");
    let (one, two) = (m.path("one"), m.path("two"));
    other.stat(&one).unwrap();
    patch(&mut patcher, &mut other, &one, "10");
    eventually(Duration::from_secs(10), "it is kept", || {
        other.stat(&one).unwrap();
        is_off() || without_daemon(&m, || std::fs::metadata(&one).is_ok()) == Some(true)
    });
    writer.open("new", "w", &two).unwrap();
    writer.write("new", "some text that is staged").unwrap();
    other.rename(&one, &two).unwrap();
    assert_eq!(writer.stat(&two).unwrap().size, 24);
    assert_eq!(other.stat(&two).unwrap().size, 8);
}

#[test]
fn a_name_is_dropped_though_the_mount_has_been_moved() {
    need_daemon!();
    if !common::is_root() {
        return;
    }
    // SAFETY: this thread, and what it starts from here on, have a table of mounts of their own.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) });
    let none = std::ptr::null();
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: changes nothing but how mounts spread.
    check(unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) });
    let m = mount!(options().seed("state", "{\"n\":0}"));
    let elsewhere = m.scratch("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let move_to = |from: &Path, to: &Path| {
        let (from, to) = (c_path(from), c_path(to));
        // SAFETY: two paths.
        let moved =
            unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_MOVE, none.cast()) };
        check(moved);
    };
    move_to(m.mountpoint(), &elsewhere);
    let path = elsewhere.join("state");
    let (mut patcher, mut other) = (Actor::new(), Actor::new());
    for value in ["10", "100"] {
        other.stat(&path).unwrap();
        patch(&mut patcher, &mut other, &path, value);
    }
    drop((patcher, other));
    move_to(&elsewhere, m.mountpoint());
}
