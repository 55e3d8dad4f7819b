//! A mounted commitfs for one test.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::run::{Live, Run, Shell, binary, commitfs, run, wait};
use super::{Actor, Disk, Failure, can_mount, is_root, plain, temporary_directory};

/// How to mount.
pub struct Options {
    separate: bool,
    rules: Option<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    seeds: Vec<(String, Vec<u8>)>,
    disk: Option<Disk>,
    above: Option<PathBuf>,
    limit: Duration,
}

pub struct Mount {
    root: PathBuf,
    backing: PathBuf,
    mountpoint: PathBuf,
    options: Options,
    daemon: Arc<Mutex<Option<Child>>>,
    scribe: Mutex<Option<Actor>>,
    watchdog: Option<Sender<()>>,
}

/// Content that a failed transaction left behind.
#[derive(Debug)]
pub struct Rejected {
    pub id: String,
    pub path: String,
    pub reason: String,
    pub meta: Value,
    pub content: Vec<u8>,
}

impl Options {
    /// The mount stands elsewhere than the backing directory.
    pub fn separate(mut self) -> Options {
        self.separate = true;
        self
    }

    /// The text of a rules file.
    pub fn rules(mut self, text: &str) -> Options {
        self.rules = Some(text.to_owned());
        self
    }

    pub fn sync(self) -> Options {
        self.args(["--durability", "sync"])
    }

    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Options {
        self.args.extend(args.map(str::to_owned));
        self
    }

    /// An environment variable of the daemon.
    pub fn env(mut self, name: &str, value: impl ToString) -> Options {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// A file that is in the backing directory before the first mount.
    pub fn seed(mut self, path: &str, content: impl AsRef<[u8]>) -> Options {
        self.seeds
            .push((path.to_owned(), content.as_ref().to_owned()));
        self
    }

    /// The backing directory lies on this disk.
    pub fn on(mut self, disk: Disk) -> Options {
        self.disk = Some(disk);
        self
    }

    /// The backing directory lies in this one.
    pub fn below(mut self, directory: PathBuf) -> Options {
        self.above = Some(directory);
        self
    }

    /// How long the test may take (a minute if not said).
    pub fn limit(mut self, limit: Duration) -> Options {
        self.limit = limit;
        self
    }

    /// Mounts; `None` where no FUSE file system can be mounted.
    #[track_caller]
    pub fn mount(self) -> Option<Mount> {
        if !plain() && !can_mount() {
            return None;
        }
        let mut mount = self.prepare();
        mount.remount();
        Some(mount)
    }

    /// The directories of a mount, not mounted yet.
    pub fn prepare(self) -> Mount {
        let root = temporary_directory();
        let backing = match &self.disk {
            Some(disk) => disk.path().join("state"),
            None => self.above.as_ref().unwrap_or(&root).join("state"),
        };
        let separate = self.separate && !plain();
        let mountpoint = if separate {
            root.join("mnt")
        } else {
            backing.clone()
        };
        for directory in [&backing, &mountpoint] {
            std::fs::create_dir_all(directory).expect("a directory");
        }
        for (path, content) in &self.seeds {
            let path = backing.join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, content).expect("a file in the backing directory");
        }
        if let Some(rules) = &self.rules {
            std::fs::write(root.join("rules.toml"), rules).expect("a rules file");
        }
        Mount {
            root,
            backing,
            mountpoint,
            options: self,
            daemon: Arc::default(),
            scribe: Mutex::default(),
            watchdog: None,
        }
    }
}

impl Mount {
    pub fn options() -> Options {
        Options {
            separate: false,
            rules: None,
            args: Vec::new(),
            env: Vec::new(),
            seeds: Vec::new(),
            disk: None,
            above: None,
            limit: Duration::from_secs(if super::times(0, 1) == 0 { 60 } else { 1200 }),
        }
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mountpoint.join(relative)
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory with the real files; under the mount unless that stands elsewhere.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// A path outside the mount, removed with it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What the daemon said so far.
    pub fn log(&self) -> String {
        std::fs::read(self.root.join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// An environment variable for the daemons of later mounts.
    pub fn set_env(&mut self, name: &str, value: impl ToString) {
        self.options.env.push((name.to_owned(), value.to_string()));
    }

    pub fn clear_env(&mut self) {
        self.options.env.clear();
    }

    /// Starts the daemon and waits until the mount stands.
    #[track_caller]
    pub fn remount(&mut self) {
        if let Err(error) = self.try_remount() {
            panic!("cannot mount: {error}");
        }
    }

    #[track_caller]
    pub fn try_remount(&mut self) -> Result<(), String> {
        if plain() {
            return Ok(());
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.root.join("log"));
        let log = log.expect("a file for the log");
        let mut command = Command::new(binary());
        command
            .args(["mount", "-f", "--log-level", "info"])
            .args(&self.options.args);
        if self.options.rules.is_some() {
            command.arg("--rules").arg(self.root.join("rules.toml"));
        }
        command.arg(&self.backing);
        if self.mountpoint != self.backing {
            command.arg(&self.mountpoint);
        }
        command.envs(self.options.env.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a copy"))
            .stderr(log);
        let before = mounts_at(&self.mountpoint);
        let mut child = command.process_group(0).spawn().expect("commitfs starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while mounts_at(&self.mountpoint) <= before {
            if let Some(status) = child.try_wait().expect("waiting for the daemon") {
                return Err(format!("the daemon ended ({status}):\n{}", self.log()));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("not within 30 s:\n{}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        *self.daemon.lock().expect("not poisoned") = Some(child);
        self.watch();
        Ok(())
    }

    /// Kills the daemon when the test takes too long; this ends whatever hangs on the mount.
    fn watch(&mut self) {
        let (sender, receiver) = channel();
        let (daemon, limit) = (self.daemon.clone(), self.options.limit);
        self.watchdog = Some(sender);
        std::thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test took longer than {limit:?}; killing its daemon");
                if let Ok(Some(child)) = daemon.lock().as_deref_mut() {
                    let _ = child.kill();
                }
            }
        });
    }

    pub fn daemon_pid(&self) -> i32 {
        self.daemon
            .lock()
            .expect("not poisoned")
            .as_ref()
            .map_or(0, |child| child.id() as i32)
    }

    pub fn daemon_lives(&self) -> bool {
        let mut daemon = self.daemon.lock().expect("not poisoned");
        daemon
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL; the dead mount stays. Programs that go on saving run into errors and end, whereas
    /// on the bare directory below they would go on as if nothing had happened.
    pub fn strike_daemon(&self) {
        let mut daemon = self.daemon.lock().expect("not poisoned");
        if let Some(child) = daemon.as_mut() {
            let _ = child.kill();
            wait(child, Duration::from_secs(10));
        }
    }

    /// SIGKILL, and the dead mount is taken away.
    pub fn kill_daemon(&mut self) {
        if plain() {
            return;
        }
        self.reap_daemon(Duration::ZERO);
    }

    /// Waits for the daemon's end (after a crash point, say) and takes the dead mount away.
    pub fn reap_daemon(&mut self, patience: Duration) {
        self.watchdog = None;
        self.scribe
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        let mut daemon = match self.daemon.lock() {
            Ok(daemon) => daemon,
            Err(poison) => poison.into_inner(),
        };
        if let Some(mut child) = daemon.take()
            && wait(&mut child, patience).is_none()
        {
            let _ = child.kill();
            wait(&mut child, Duration::from_secs(10));
        }
        drop(daemon);
        while is_mounted(&self.mountpoint) && detach(&self.mountpoint) {}
    }

    /// Unmounts as a user would; the daemon must end by itself.
    #[track_caller]
    pub fn unmount(&mut self) {
        self.scribe.get_mut().expect("not poisoned").take();
        if plain() {
            return;
        }
        commitfs([OsStr::new("umount"), self.mountpoint.as_os_str()]).ok();
        self.watchdog = None;
        let child = self.daemon.lock().expect("not poisoned").take();
        let mut child = child.expect("a daemon");
        let status = wait(&mut child, Duration::from_secs(20)).expect("the daemon ends");
        assert!(
            status.success(),
            "the daemon ended with {status}:\n{}",
            self.log()
        );
        assert!(!is_mounted(&self.mountpoint), "still mounted after umount");
    }

    // What the mount shows to a stranger: the test process reads, it never writes.

    /// The content, or `None` if there is no such name.
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let path = self.path(path);
        match std::fs::read(&path) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => panic!("reading {}: {error}", path.display()),
        }
    }

    #[track_caller]
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        self.read(path)
            .map(|content| String::from_utf8_lossy(&content).into_owned())
    }

    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// The names in a directory, sorted.
    #[track_caller]
    pub fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let path = self.path(directory);
        let entries = std::fs::read_dir(&path).expect("a directory");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        };
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    /// Saves a file as a simple program does, in another process.
    #[track_caller]
    pub fn save(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let mut scribe = self.scribe.lock().expect("not poisoned");
        let result = scribe
            .get_or_insert_with(Actor::new)
            .save(&self.path(path), content);
        result.expect("saving a file");
    }

    pub fn version(&self, path: impl AsRef<Path>) -> Result<u64, Failure> {
        let mut scribe = self.scribe.lock().expect("not poisoned");
        let actor = scribe.get_or_insert_with(Actor::new);
        let number = actor.getxattr(&self.path(path), "user.commitfs.version")?;
        Ok(String::from_utf8_lossy(&number)
            .trim()
            .parse()
            .expect("a version number"))
    }

    #[track_caller]
    pub fn mkdir(&self, path: impl AsRef<Path>) {
        let mut scribe = self.scribe.lock().expect("not poisoned");
        scribe
            .get_or_insert_with(Actor::new)
            .mkdir(&self.path(path))
            .expect("mkdir");
    }

    #[track_caller]
    pub fn sh(&self, script: &str) -> Run {
        super::sh(&self.mountpoint, script, Duration::from_secs(20))
    }

    #[track_caller]
    pub fn bash(&self, script: &str) -> Run {
        super::bash(&self.mountpoint, script, Duration::from_secs(20))
    }

    #[track_caller]
    pub fn python(&self, script: &str) -> Run {
        super::python(&self.mountpoint, script, Duration::from_secs(30))
    }

    /// Runs a Python program on the mount and on a plain directory: it has to print the same.
    #[track_caller]
    pub fn same_as_plain(&self, program: &str) {
        let plain = self.scratch("plain");
        std::fs::create_dir_all(&plain).expect("a directory");
        let limit = Duration::from_secs(150);
        let say = |directory: &Path| super::python(directory, program, limit).ok().out;
        let (expected, found) = (say(&plain), say(&self.mountpoint));
        let lines = expected.lines().zip(found.lines());
        let differ: Vec<_> = lines.filter(|(one, other)| one != other).collect();
        assert!(
            differ.is_empty() && expected.len() == found.len() && !found.is_empty(),
            "plain, and here: {differ:#?}"
        );
    }

    pub fn live_python(&self, script: &str) -> Live {
        Live::python(&self.mountpoint, script)
    }

    pub fn shell(&self, program: &str) -> Shell {
        Shell::new(program, &self.mountpoint)
    }

    // What the daemon says.

    /// `commitfs status --json`; null on the plain directory.
    #[track_caller]
    pub fn status(&self) -> Value {
        if plain() {
            return Value::Null;
        }
        let said = self.command(&["status", "--json"]);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:#?}"))
    }

    /// `commitfs locks --json`.
    #[track_caller]
    pub fn locks(&self) -> Vec<Value> {
        let said = self.command(&["locks", "--json"]).ok();
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:#?}"))
    }

    /// `commitfs ARGS… MOUNTPOINT`.
    #[track_caller]
    pub fn command(&self, args: &[&str]) -> Run {
        let mut command = Command::new(binary());
        run(
            command.args(args).arg(&self.mountpoint),
            Duration::from_secs(30),
        )
    }

    #[track_caller]
    pub fn commits(&self) -> u64 {
        self.status()["counters"]["commits"].as_u64().unwrap_or(0)
    }

    /// How many transactions were aborted for this reason.
    #[track_caller]
    pub fn aborts(&self, reason: &str) -> u64 {
        self.status()["counters"]["aborts"][reason]
            .as_u64()
            .unwrap_or(0)
    }

    #[track_caller]
    pub fn transactions(&self) -> Vec<Value> {
        self.status()["transactions"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// Everything in rejected, with content.
    #[track_caller]
    pub fn rejected(&self) -> Vec<Rejected> {
        let directory = self.path(".commitfs/rejected");
        let Ok(entries) = std::fs::read_dir(&directory) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut all = Vec::new();
        for name in names {
            let Some(id) = name
                .to_string_lossy()
                .strip_suffix(".meta")
                .map(str::to_owned)
            else {
                continue;
            };
            // Between the listing and now it may have made room for another.
            let Ok(meta) = std::fs::read(directory.join(&name)) else {
                continue;
            };
            let Ok(content) = std::fs::read(directory.join(&id)) else {
                continue;
            };
            let meta: Value = serde_json::from_slice(&meta).expect("the meta file is JSON");
            let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
            all.push(Rejected {
                id,
                path: text("path"),
                reason: text("reason"),
                meta,
                content,
            });
        }
        all
    }

    /// Waits until something rejected from `path` holds `content`, and returns it.
    #[track_caller]
    pub fn await_rejected(&self, path: &str, content: &[u8]) -> Rejected {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let all = self.rejected();
            let names: Vec<_> = all
                .iter()
                .map(|one| (one.path.clone(), one.content.len()))
                .collect();
            let hit = all
                .into_iter()
                .find(|one| one.path == path && one.content == content);
            if let Some(hit) = hit {
                return hit;
            }
            assert!(
                Instant::now() < deadline,
                "{path} is not in rejected, only {names:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        self.scribe
            .get_mut()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        if is_mounted(&self.mountpoint) && !plain() {
            let mut umount = Command::new(binary());
            umount.args(["umount", "--force"]).arg(&self.mountpoint);
            umount
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if let Ok(mut child) = umount.spawn()
                && wait(&mut child, Duration::from_secs(10)).is_none()
            {
                let _ = child.kill();
                wait(&mut child, Duration::from_secs(1));
            }
            let gone = || !is_mounted(&self.mountpoint);
            let deadline = Instant::now() + Duration::from_secs(2);
            while !gone() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let patience = if is_mounted(&self.mountpoint) { 0 } else { 5 };
        self.reap_daemon(Duration::from_secs(patience));
        if failing {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the daemon's last words ---");
            eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if std::env::var_os("COMMITFS_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// How many file systems are mounted on a directory.
fn mounts_at(path: &Path) -> usize {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let at = |line: &&[u8]| {
        line.split(|byte| *byte == b' ')
            .nth(4)
            .is_some_and(|field| unescape(field) == path)
    };
    table.split(|byte| *byte == b'\n').filter(at).count()
}

/// The table writes spaces, tabs and backslashes as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

pub fn is_mounted(path: &Path) -> bool {
    mounts_at(path) > 0
}

/// Takes a mount away at once, whatever its state.
pub fn detach(path: &Path) -> bool {
    if is_root() {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL in a path");
        // SAFETY: a NUL-terminated path.
        return unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } == 0;
    }
    let unmount = Command::new("fusermount3").arg("-uz").arg(path).status();
    unmount.is_ok_and(|status| status.success())
}
