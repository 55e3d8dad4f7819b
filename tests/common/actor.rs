//! A process that does one system call at a time, as the test tells it to. The other end is
//! `tests/helper`.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::run::{alive, helper, wait};
use super::{temporary_directory, wire};

/// An operation that failed: the errno's name, and the system call.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Failure {
    pub errno: String,
    pub stage: String,
}

pub type Answer = Result<Vec<Vec<u8>>, Failure>;

/// A process that does what it is told: one that there is, or one of a simulated kernel.
pub trait Remote: Send {
    fn pid(&self) -> i32;

    /// How long an operation may take before it counts as hung.
    fn patience(&mut self, _limit: Duration) {}

    fn ask(&mut self, operation: &str, args: &[&[u8]]) -> Answer;

    /// Asks for an operation without waiting for its end.
    fn start(&mut self, operation: &str, args: &[&[u8]]);

    /// Whether the answer to what was started is there.
    fn has_answered(&self) -> bool;

    fn finish(&mut self) -> Answer;

    fn fork(&mut self) -> Box<dyn Remote>;

    fn thread(&mut self) -> Box<dyn Remote>;

    fn exec_again(&mut self, slots: &[&str]);

    fn kill(&mut self, signal: i32);

    fn exit(&mut self, status: i32);

    /// Waits until it is gone.
    fn await_end(&mut self);
}

pub struct Actor(Box<dyn Remote>);

/// A process that runs `tests/helper`.
struct Helper {
    conversation: BufReader<UnixStream>,
    child: Option<Child>,
    pid: i32,
    asked: String,
}

/// What `stat` reports.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Stat {
    pub size: u64,
    pub ino: u64,
    pub mtime_ns: i64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub ctime_ns: i64,
    pub blocks: u64,
}

struct Door {
    directory: PathBuf,
    listener: UnixListener,
}

impl Door {
    fn open() -> Door {
        let directory = temporary_directory();
        let listener = UnixListener::bind(directory.join("s")).expect("a socket");
        listener
            .set_nonblocking(true)
            .expect("a socket that does not block");
        Door {
            directory,
            listener,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("s")
    }

    #[track_caller]
    fn admit(self) -> BufReader<UnixStream> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("a socket that blocks");
                    stream
                        .set_read_timeout(Some(Duration::from_secs(20)))
                        .expect("a time limit");
                    return BufReader::new(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the helper did not come up");
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => panic!("accept: {error}"),
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Helper {
    #[track_caller]
    fn spawn() -> Helper {
        let door = Door::open();
        let child = Command::new(helper())
            .arg(door.path())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("the helper starts");
        let pid = child.id() as i32;
        Helper {
            conversation: door.admit(),
            child: Some(child),
            pid,
            asked: String::new(),
        }
    }
}

impl Remote for Helper {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn patience(&mut self, limit: Duration) {
        self.conversation
            .get_ref()
            .set_read_timeout(Some(limit))
            .expect("a time limit");
    }

    fn ask(&mut self, operation: &str, args: &[&[u8]]) -> Answer {
        self.start(operation, args);
        self.finish()
    }

    fn start(&mut self, operation: &str, args: &[&[u8]]) {
        let mut line = operation.to_owned();
        for arg in args {
            line.push(' ');
            line.push_str(&wire::encode(arg));
        }
        self.asked = line.chars().take(200).collect();
        line.push('\n');
        // A dead actor is noticed when it doesn't answer.
        let _ = self.conversation.get_mut().write_all(line.as_bytes());
    }

    fn has_answered(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.conversation.get_ref().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, which outlives the call.
        unsafe { libc::poll(&mut poll, 1, 0) > 0 }
    }

    fn finish(&mut self) -> Answer {
        let mut line = String::new();
        match self.conversation.read_line(&mut line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("this operation hangs: {}", self.asked)
            }
            Err(_) => line.clear(),
        }
        let mut words = line.split_ascii_whitespace();
        let failure = |errno: &str, stage: &str| {
            Err(Failure {
                errno: errno.to_owned(),
                stage: stage.to_owned(),
            })
        };
        match words.next() {
            Some("ok") => Ok(words.map(wire::decode).collect()),
            Some(_) => failure(words.next().unwrap_or(""), words.next().unwrap_or("")),
            None => failure("GONE", &self.asked),
        }
    }

    fn fork(&mut self) -> Box<dyn Remote> {
        let door = Door::open();
        self.start("fork", &[door.path().as_os_str().as_bytes()]);
        let mut child = Helper {
            conversation: door.admit(),
            child: None,
            pid: 0,
            asked: "fork".into(),
        };
        child.finish().expect("the child answers");
        child.pid = number(&self.finish().expect("fork works")[0]) as i32;
        Box::new(child)
    }

    fn thread(&mut self) -> Box<dyn Remote> {
        let door = Door::open();
        self.start("thread", &[door.path().as_os_str().as_bytes()]);
        let conversation = door.admit();
        self.finish().expect("a thread begins");
        Box::new(Helper {
            conversation,
            child: None,
            pid: self.pid,
            asked: "thread".into(),
        })
    }

    fn exec_again(&mut self, slots: &[&str]) {
        let door = Door::open();
        let (path, program) = (door.path(), helper());
        let mut args = vec![path.as_os_str().as_bytes(), program.as_os_str().as_bytes()];
        args.extend(slots.iter().map(|slot| slot.as_bytes()));
        self.start("become", &args);
        self.conversation = door.admit();
    }

    fn kill(&mut self, signal: i32) {
        // SAFETY: our child, not waited for, or a grandchild that its parent hasn't waited for.
        unsafe { libc::kill(self.pid, signal) };
        self.await_end();
    }

    fn exit(&mut self, status: i32) {
        let _ = self.ask("exit", &[status.to_string().as_bytes()]);
        self.await_end();
    }

    fn await_end(&mut self) {
        if let Some(child) = &mut self.child {
            wait(child, Duration::from_secs(20)).expect("the process should have ended");
            self.child = None;
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while alive(self.pid) {
            assert!(Instant::now() < deadline, "the process should have ended");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self
            .conversation
            .get_ref()
            .shutdown(std::net::Shutdown::Both);
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            wait(child, Duration::from_secs(2));
        }
    }
}

impl Actor {
    #[track_caller]
    pub fn new() -> Actor {
        Actor::of(Box::new(Helper::spawn()))
    }

    pub fn of(remote: Box<dyn Remote>) -> Actor {
        Actor(remote)
    }

    /// A child that shares the open files of this actor.
    #[track_caller]
    pub fn fork(&mut self) -> Actor {
        Actor(self.0.fork())
    }

    /// Another thread of this actor's process, which begins with all that it has open.
    #[track_caller]
    pub fn thread(&mut self) -> Actor {
        Actor(self.0.thread())
    }

    /// Executes the helper anew. Of its descriptors those marked close-on-exec go, and of the
    /// others those in `slots` keep their names.
    #[track_caller]
    pub fn exec_again(&mut self, slots: &[&str]) {
        self.0.exec_again(slots);
    }

    /// All that the process sees of some paths (names of those that end in a slash, numbers as of
    /// stat(2) where it says `stat:` before them, content of the others) and through some descriptors.
    #[track_caller]
    pub fn survey(&mut self, paths: &[Vec<u8>], slots: &[&str]) -> Vec<Vec<u8>> {
        let mut args: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
        args.push(b"--");
        args.extend(slots.iter().map(|slot| slot.as_bytes()));
        self.ask("survey", &args).expect("a survey")
    }

    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// How long an operation may take before it counts as hung.
    pub fn patience(&mut self, limit: Duration) {
        self.0.patience(limit);
    }

    /// Asks for an operation without waiting for its end.
    pub fn start(&mut self, operation: &str, args: &[&[u8]]) {
        self.0.start(operation, args);
    }

    /// Whether the answer to what was started is there.
    pub fn has_answered(&self) -> bool {
        self.0.has_answered()
    }

    #[track_caller]
    pub fn finish(&mut self) -> Answer {
        self.0.finish()
    }

    #[track_caller]
    pub fn ask(&mut self, operation: &str, args: &[&[u8]]) -> Answer {
        self.0.ask(operation, args)
    }

    #[track_caller]
    fn on_file(&mut self, operation: &str, slot: &str, args: &[&[u8]]) -> Answer {
        let all: Vec<&[u8]> = std::iter::once(slot.as_bytes())
            .chain(args.iter().copied())
            .collect();
        self.ask(operation, &all)
    }

    #[track_caller]
    pub fn on_path(&mut self, operation: &str, path: &Path, args: &[&[u8]]) -> Answer {
        let path = path.as_os_str().as_bytes();
        let all: Vec<&[u8]> = std::iter::once(path).chain(args.iter().copied()).collect();
        self.ask(operation, &all)
    }

    /// `flags` as in Python's open(), or `x` (O_EXCL), `r+`, and `|sync`, `|cloexec` …
    #[track_caller]
    pub fn open(&mut self, slot: &str, flags: &str, path: &Path) -> Result<(), Failure> {
        self.on_file(
            "open",
            slot,
            &[flags.as_bytes(), path.as_os_str().as_bytes()],
        )
        .map(drop)
    }

    #[track_caller]
    pub fn close(&mut self, slot: &str) -> Result<(), Failure> {
        self.on_file("close", slot, &[]).map(drop)
    }

    #[track_caller]
    pub fn dup(&mut self, slot: &str, to: &str) -> Result<(), Failure> {
        self.on_file("dup", slot, &[to.as_bytes()]).map(drop)
    }

    #[track_caller]
    pub fn write(&mut self, slot: &str, data: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.on_file("write", slot, &[data.as_ref()]).map(drop)
    }

    #[track_caller]
    pub fn pwrite(&mut self, slot: &str, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.on_file("pwrite", slot, &[offset.to_string().as_bytes(), data])
            .map(drop)
    }

    /// Writes `len` times `byte`, stops at an error, and tells how much was taken.
    #[track_caller]
    pub fn fill(&mut self, slot: &str, len: u64, block: u64, byte: u8) -> Result<u64, Failure> {
        let [len, block, byte] = [len, block, byte.into()].map(|n: u64| n.to_string());
        let args = [len.as_bytes(), block.as_bytes(), byte.as_bytes()];
        self.on_file("fill", slot, &args)
            .map(|words| number(&words[0]))
    }

    #[track_caller]
    pub fn read(&mut self, slot: &str, len: usize) -> Result<Vec<u8>, Failure> {
        self.on_file("read", slot, &[len.to_string().as_bytes()])
            .map(only)
    }

    #[track_caller]
    pub fn read_all(&mut self, slot: &str) -> Result<Vec<u8>, Failure> {
        self.on_file("readall", slot, &[]).map(only)
    }

    #[track_caller]
    pub fn pread(&mut self, slot: &str, offset: u64, len: usize) -> Result<Vec<u8>, Failure> {
        let args = [offset.to_string(), len.to_string()];
        self.on_file("pread", slot, &[args[0].as_bytes(), args[1].as_bytes()])
            .map(only)
    }

    #[track_caller]
    pub fn fsync(&mut self, slot: &str) -> Result<(), Failure> {
        self.on_file("fsync", slot, &[]).map(drop)
    }

    #[track_caller]
    pub fn ftruncate(&mut self, slot: &str, size: u64) -> Result<(), Failure> {
        self.on_file("ftruncate", slot, &[size.to_string().as_bytes()])
            .map(drop)
    }

    #[track_caller]
    pub fn fstat(&mut self, slot: &str) -> Result<Stat, Failure> {
        self.on_file("fstat", slot, &[]).map(|words| stat(&words))
    }

    #[track_caller]
    pub fn mmap(&mut self, slot: &str, map: &str, len: usize, mode: &str) -> Result<(), Failure> {
        let len = len.to_string();
        self.on_file(
            "mmap",
            slot,
            &[map.as_bytes(), len.as_bytes(), mode.as_bytes()],
        )
        .map(drop)
    }

    #[track_caller]
    pub fn map_write(&mut self, map: &str, offset: usize, data: &[u8]) -> Result<(), Failure> {
        self.on_file("mwrite", map, &[offset.to_string().as_bytes(), data])
            .map(drop)
    }

    #[track_caller]
    pub fn map_read(&mut self, map: &str, offset: usize, len: usize) -> Result<Vec<u8>, Failure> {
        let args = [offset.to_string(), len.to_string()];
        self.on_file("mread", map, &[args[0].as_bytes(), args[1].as_bytes()])
            .map(only)
    }

    #[track_caller]
    pub fn munmap(&mut self, map: &str) -> Result<(), Failure> {
        self.on_file("munmap", map, &[]).map(drop)
    }

    /// `open(path, "w")`, write, close; the failure's stage says which of them failed.
    #[track_caller]
    pub fn save(&mut self, path: &Path, data: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.on_path("save", path, &[data.as_ref()]).map(drop)
    }

    #[track_caller]
    pub fn cat(&mut self, path: &Path) -> Result<Vec<u8>, Failure> {
        self.on_path("cat", path, &[]).map(only)
    }

    #[track_caller]
    pub fn stat(&mut self, path: &Path) -> Result<Stat, Failure> {
        self.on_path("stat", path, &[]).map(|words| stat(&words))
    }

    #[track_caller]
    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.on_path("rename", from, &[to.as_os_str().as_bytes()])
            .map(drop)
    }

    #[track_caller]
    pub fn exchange(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.on_path("exchange", from, &[to.as_os_str().as_bytes()])
            .map(drop)
    }

    #[track_caller]
    pub fn rename_noreplace(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.on_path("rename-noreplace", from, &[to.as_os_str().as_bytes()])
            .map(drop)
    }

    #[track_caller]
    pub fn link(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.on_path("link", from, &[to.as_os_str().as_bytes()])
            .map(drop)
    }

    #[track_caller]
    pub fn unlink(&mut self, path: &Path) -> Result<(), Failure> {
        self.on_path("unlink", path, &[]).map(drop)
    }

    #[track_caller]
    pub fn mkdir(&mut self, path: &Path) -> Result<(), Failure> {
        self.on_path("mkdir", path, &[]).map(drop)
    }

    #[track_caller]
    pub fn rmdir(&mut self, path: &Path) -> Result<(), Failure> {
        self.on_path("rmdir", path, &[]).map(drop)
    }

    #[track_caller]
    pub fn truncate(&mut self, path: &Path, size: u64) -> Result<(), Failure> {
        self.on_path("truncate", path, &[size.to_string().as_bytes()])
            .map(drop)
    }

    /// An operation on a path with numbers for arguments.
    #[track_caller]
    pub fn with_numbers(&mut self, operation: &str, path: &Path, numbers: &[i64]) -> Answer {
        let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        self.on_path(operation, path, &words)
    }

    /// An operation on an open file with numbers for arguments; gives the number it answers.
    #[track_caller]
    pub fn on_slot(
        &mut self,
        operation: &str,
        slot: &str,
        numbers: &[i64],
    ) -> Result<i64, Failure> {
        let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        let answer = self.on_file(operation, slot, &words)?;
        Ok(answer.first().map_or(0, |word| number(word) as i64))
    }

    #[track_caller]
    pub fn chmod(&mut self, path: &Path, mode: u32) {
        self.with_numbers("chmod", path, &[mode.into()])
            .expect("chmod");
    }

    #[track_caller]
    pub fn chown(&mut self, path: &Path, uid: u32, gid: u32) {
        self.with_numbers("chown", path, &[uid.into(), gid.into()])
            .expect("chown");
    }

    #[track_caller]
    pub fn setxattr(&mut self, path: &Path, name: &str, value: &[u8]) -> Result<(), Failure> {
        self.on_path("setxattr", path, &[name.as_bytes(), value])
            .map(drop)
    }

    /// From now on the process of an ordinary user.
    #[track_caller]
    pub fn become_user(&mut self, uid: u32, gid: u32) {
        let ids = [uid.to_string(), gid.to_string()];
        self.ask("become-user", &[ids[0].as_bytes(), ids[1].as_bytes()])
            .expect("another user");
    }

    #[track_caller]
    pub fn getxattr(&mut self, path: &Path, name: &str) -> Result<Vec<u8>, Failure> {
        self.on_path("getxattr", path, &[name.as_bytes()]).map(only)
    }

    /// Ends the process by a signal and waits until it is gone, with all its descriptors.
    #[track_caller]
    pub fn kill(&mut self, signal: i32) {
        self.0.kill(signal);
    }

    /// Kills it, which takes less than a second whatever it waits for. Gives how long.
    #[track_caller]
    pub fn kill_at_once(&mut self) -> Duration {
        let begun = Instant::now();
        self.kill(libc::SIGKILL);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        took
    }

    /// Ends the process with an exit status, running exit handlers.
    #[track_caller]
    pub fn exit(&mut self, status: i32) {
        self.0.exit(status);
    }

    #[track_caller]
    pub fn await_end(&mut self) {
        self.0.await_end();
    }
}

fn only(mut words: Vec<Vec<u8>>) -> Vec<u8> {
    words.pop().unwrap_or_default()
}

fn number(word: &[u8]) -> u64 {
    String::from_utf8_lossy(word).parse().expect("a number")
}

/// What a survey says of `stat:` and a path.
pub fn surveyed_stat(answer: &[u8]) -> Option<Stat> {
    let words: Vec<Vec<u8>> = answer.split(|b| *b == b' ').map(<[u8]>::to_vec).collect();
    (words.len() > 1).then(|| stat(&words))
}

fn stat(words: &[Vec<u8>]) -> Stat {
    let signed = |word: &Vec<u8>| String::from_utf8_lossy(word).parse::<i64>();
    let n: Vec<i64> = words
        .iter()
        .map(|word| signed(word).expect("a number"))
        .collect();
    Stat {
        size: n[0] as u64,
        ino: n[1] as u64,
        mtime_ns: n[2],
        mode: n[3] as u32,
        nlink: n[4] as u64,
        uid: n[5] as u32,
        gid: n[6] as u32,
        ctime_ns: n[7],
        blocks: n[8] as u64,
    }
}
