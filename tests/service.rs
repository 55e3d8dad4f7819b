//! The systemd units: their own command lines, run as a service manager would run them, with a
//! socket that listens for what the daemon says of itself. Whoever is ordered after such a service
//! must never meet the plain directory below, nor a dead mount that nobody takes away.
//!
//! Nothing here needs systemd to run. What is read from the unit is what it says on the day of the
//! test: specifiers, quotes and variables are resolved here, and only the places outside the test's
//! own directory (the binary, /etc/commitfs) are put elsewhere.

mod common;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use common::{Actor, Run, alive, assert_content, detach, is_mounted, run, temporary_directory};

const SYSTEM: &str = "systemd/commitfs@.service";
const USER: &str = "systemd/user/commitfs@.service";

/// A unit's settings, and the places that its specifiers stand for.
struct Service {
    root: PathBuf,
    directory: PathBuf,
    settings: Vec<(String, String)>,
    socket: UnixDatagram,
    daemon: Option<Child>,
}

/// A message, and the process it came from.
type Word = (String, i32);

/// The units that this user can start.
fn units() -> &'static [&'static str] {
    if common::is_root() {
        &[SYSTEM, USER]
    } else {
        &[USER]
    }
}

impl Service {
    fn new(unit: &str) -> Service {
        let root = temporary_directory();
        // A name that has to be escaped, and quoted.
        let directory = root.join("run of-it");
        std::fs::create_dir(&directory).expect("a directory");
        let bin = root.join("home/.cargo/bin");
        std::fs::create_dir_all(&bin).expect("a directory");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_commitfs"), bin.join("commitfs"))
            .expect("a link to the binary");
        let socket = UnixDatagram::bind(root.join("notify")).expect("a socket");
        set_socket_passcred(&socket, true).expect("the sender's id with each message");
        Service {
            settings: settings(unit),
            root,
            directory,
            socket,
            daemon: None,
        }
    }

    fn values(&self, key: &str) -> Vec<&str> {
        let of_key = |(name, value): &'_ (String, String)| name == key && !value.is_empty();
        let found = self.settings.iter().filter(|setting| of_key(setting));
        found.map(|(_, value)| value.as_str()).collect()
    }

    fn value(&self, key: &str) -> &str {
        self.values(key).last().copied().unwrap_or_default()
    }

    fn instance(&self) -> String {
        escaped(&self.directory)
    }

    fn place(&self, path: &str) -> String {
        let etc = self.root.join("etc");
        path.replace("/etc/", &format!("{}/", etc.display()))
    }

    /// The specifiers of systemd.unit(5) that the units use; any other is an error.
    fn specified(&self, text: &str) -> String {
        let mut out = String::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                out.push(letter);
                continue;
            }
            match letters.next() {
                Some('%') => out.push('%'),
                Some('i') => out.push_str(&self.instance()),
                Some('I') => out.push_str(&self.directory.to_string_lossy()[1..]),
                Some('f') => out.push_str(&self.directory.to_string_lossy()),
                Some('h') => out.push_str(&self.root.join("home").to_string_lossy()),
                Some('E') => out.push_str(&self.root.join("home/.config").to_string_lossy()),
                other => panic!("a specifier that this test doesn't know: {other:?} in {text}"),
            }
        }
        out
    }

    /// Where the unit looks for options of this instance.
    fn options_file(&self) -> PathBuf {
        let file = self.value("EnvironmentFile");
        assert!(file.starts_with('-'), "the file need not exist: {file}");
        self.place(&self.specified(&file[1..])).into()
    }

    /// Where its programs are looked for: as the unit says, else where the manager looks. What is there of commitfs on this
    /// machine is none of the test's.
    fn search_path(&self) -> String {
        let own = self.root.join("home/.cargo/bin");
        let system = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display());
        let said = self.environment().remove("PATH");
        said.map_or(system, |path| self.specified(&path))
    }

    fn set_options(&self, line: &str) {
        let file = self.options_file();
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        std::fs::write(file, line).expect("a file with options");
    }

    fn environment(&self) -> HashMap<String, String> {
        let text = std::fs::read_to_string(self.options_file()).unwrap_or_default();
        let lines = text.lines().chain(self.values("Environment"));
        lines
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
            .collect()
    }

    /// The words of a command line as systemd.service(5) splits it, and whether failing is allowed.
    fn words(&self, line: &str) -> (Vec<String>, bool) {
        let may_fail = line.starts_with('-');
        let environment = self.environment();
        let mut words = Vec::new();
        for (word, quoted) in split(line.trim_start_matches('-')) {
            // Specifiers first: what they stand for is never split.
            let word = self.place(&self.specified(&word));
            match word.strip_prefix('$') {
                Some(name) if !quoted && !name.starts_with('$') => {
                    let value = environment.get(name).map_or("", String::as_str);
                    words.extend(value.split_whitespace().map(str::to_owned));
                }
                _ => words.push(word.replace("$$", "$")),
            }
        }
        (words, may_fail)
    }

    fn command(&self, line: &str) -> (Command, bool) {
        let (words, may_fail) = self.words(line);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.env("NOTIFY_SOCKET", self.root.join("notify"));
        command.env("HOME", self.root.join("home"));
        command.env("PATH", self.search_path());
        if let Some(daemon) = &self.daemon {
            command.env("MAINPID", daemon.id().to_string());
        }
        (command, may_fail)
    }

    /// Runs the commands of `ExecStartPre`, `ExecStop` and the like, one after the other.
    #[track_caller]
    fn run_all(&self, key: &str) {
        for line in self.values(key) {
            let (mut command, may_fail) = self.command(line);
            let ended = run(&mut command, Duration::from_secs(30));
            assert!(may_fail || ended.code == Some(0), "{key}: {ended:#?}");
        }
    }

    /// What the manager does to start the service, up to the daemon's start.
    #[track_caller]
    fn launch(&mut self) {
        self.run_all("ExecStartPre");
        let line = self.value("ExecStart").to_owned();
        let (mut command, _) = self.command(&line);
        let log = std::fs::File::create(self.root.join("log")).expect("a file for the log");
        let daemon = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a copy"))
            .stderr(log)
            .process_group(0)
            .spawn();
        self.daemon = Some(daemon.expect("the daemon starts"));
    }

    /// As `launch`, and waits until the daemon says that it is up.
    #[track_caller]
    fn start(&mut self) {
        self.launch();
        self.await_word("READY=1");
    }

    #[track_caller]
    fn await_word(&mut self, expected: &str) {
        match self.word(Duration::from_secs(20)) {
            Some((word, pid)) => {
                assert_eq!(word, expected);
                assert_eq!(pid, self.pid(), "NotifyAccess=main: from the main process");
            }
            None => panic!("no {expected}:\n{}", self.log()),
        }
    }

    fn word(&self, patience: Duration) -> Option<Word> {
        self.socket
            .set_read_timeout(Some(patience))
            .expect("a time limit");
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::empty(),
        )
        .ok()?;
        let sender = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(of) => Some(of.pid.as_raw_nonzero().get()),
            _ => None,
        });
        let word = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        Some((word, sender.expect("a sender")))
    }

    fn pid(&self) -> i32 {
        self.daemon.as_ref().map_or(0, |child| child.id() as i32)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn await_end(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("a daemon");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = daemon.try_wait().expect("waiting for the daemon") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = daemon.kill();
                let _ = daemon.wait();
                panic!("the daemon should have ended:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's words ---\n{}", self.log());
        }
        self.kill();
        while is_mounted(&self.directory) && detach(&self.directory) {}
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// All settings of the `[Service]` section, in order.
fn settings(unit: &str) -> Vec<(String, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(unit);
    let text = std::fs::read_to_string(&file).expect("a unit");
    let mut section = "";
    let mut found = Vec::new();
    let whole = text.replace("\\\n", " ");
    for line in whole.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[Service]"
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            found.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

/// A path as `systemd-escape --path` writes it.
fn escaped(path: &Path) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:".contains(c);
    let text = path.to_string_lossy();
    let each = text.trim_matches('/').chars().map(|c| match c {
        '/' => "-".to_owned(),
        c if plain(c) => c.to_string(),
        c => format!("\\x{:02x}", u32::from(c)),
    });
    each.collect()
}

/// Words separated by blanks, and whether each was in quotes.
fn split(line: &str) -> Vec<(String, bool)> {
    let mut words: Vec<(String, bool)> = Vec::new();
    let (mut word, mut quote, mut quoted) = (String::new(), None, false);
    for letter in line.chars().chain([' ']) {
        match quote {
            Some(mark) if mark == letter => quote = None,
            Some(_) => word.push(letter),
            None if matches!(letter, '\'' | '"') && word.is_empty() => {
                (quote, quoted) = (Some(letter), true);
            }
            None if letter.is_whitespace() => {
                if !word.is_empty() || quoted {
                    words.push((std::mem::take(&mut word), quoted));
                }
                quoted = false;
            }
            None => word.push(letter),
        }
    }
    assert_eq!(quote, None, "a quote without an end: {line}");
    words
}

fn save(path: &Path, content: &str) {
    Actor::new().save(path, content).expect("saving a file");
}

/// How long a message that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
fn ready_is_said_when_the_mount_answers_and_not_before() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        std::fs::write(s.path("f"), "plain").unwrap();
        s.launch();
        let (word, pid) = s.word(Duration::from_secs(20)).expect("a message");
        // Nothing is waited for here: whoever is ordered after this service starts now.
        assert!(is_mounted(&s.directory), "{unit}: {word} before the mount");
        let answer = std::fs::read(s.path("f")).ok();
        assert_eq!(word, "READY=1");
        assert_eq!(pid, s.pid());
        assert_content(answer, b"plain", unit);
        save(&s.path("f"), "saved");
        assert_content(std::fs::read(s.path("f")).ok(), b"saved", unit);
        assert_eq!(s.word(SILENCE), None, "{unit}: once is enough");
    }
}

#[test]
fn the_stop_command_unmounts_and_the_daemon_ends_with_success() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.start();
        save(&s.path("f"), "saved");
        s.run_all("ExecStop");
        assert!(!is_mounted(&s.directory), "{unit}");
        s.await_word("STOPPING=1");
        assert!(s.await_end().success(), "{unit}: {}", s.log());
        assert_content(std::fs::read(s.path("f")).ok(), b"saved", unit);
    }
}

#[test]
fn the_stop_command_waits_for_those_who_write() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.start();
        let mut writer = Actor::new();
        writer.open("f", "w", &s.path("f")).unwrap();
        writer.write("f", "all of it").unwrap();
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| s.run_all("ExecStop"));
            std::thread::sleep(Duration::from_millis(500));
            assert!(is_mounted(&s.directory), "{unit}: under a writer's feet");
            writer.close("f").unwrap();
            stopping.join().expect("the stop command");
        });
        s.await_word("STOPPING=1");
        assert!(s.await_end().success(), "{unit}: {}", s.log());
        assert_content(std::fs::read(s.path("f")).ok(), b"all of it", unit);
    }
}

#[test]
fn after_a_crash_programs_get_errors_until_the_next_start_recovers() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.start();
        save(&s.path("f"), "saved");
        s.kill();
        assert!(
            is_mounted(&s.directory),
            "{unit}: the plain directory shows"
        );
        Actor::new()
            .save(&s.path("f"), "past us")
            .expect_err("nobody writes to a dead mount");
        s.start();
        assert_content(std::fs::read(s.path("f")).ok(), b"saved", unit);
        save(&s.path("f"), "again");
        assert_content(std::fs::read(s.path("f")).ok(), b"again", unit);
        s.run_all("ExecStop");
        s.await_word("STOPPING=1");
        assert!(s.await_end().success(), "{unit}: {}", s.log());
        assert!(
            !is_mounted(&s.directory),
            "{unit}: the dead one is below it"
        );
    }
}

#[test]
fn what_runs_before_the_start_takes_dead_mounts_away_and_leaves_a_living_one() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.start();
        s.run_all("ExecStartPre");
        assert!(is_mounted(&s.directory) && alive(s.pid()), "{unit}");
        s.kill();
        s.run_all("ExecStartPre");
        assert!(!is_mounted(&s.directory), "{unit}");
        // With nothing to do it does nothing.
        s.run_all("ExecStartPre");
    }
}

#[test]
fn a_wrong_directory_is_an_error_exit_and_no_word_of_ready() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        std::fs::remove_dir(&s.directory).unwrap();
        s.launch();
        assert_eq!(s.await_end().code(), Some(3), "{unit}: {}", s.log());
        std::fs::write(&s.directory, "a file").unwrap();
        s.launch();
        assert_eq!(s.await_end().code(), Some(3), "{unit}: {}", s.log());
        assert_eq!(s.word(SILENCE), None, "{unit}: ready for what?");
    }
}

#[test]
fn a_second_start_is_an_error_exit_and_leaves_the_first_alone() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.start();
        let mut first = s.daemon.take();
        s.launch();
        assert_eq!(s.await_end().code(), Some(4), "{unit}: {}", s.log());
        assert_eq!(s.word(SILENCE), None, "{unit}");
        save(&s.path("f"), "saved");
        std::mem::swap(&mut s.daemon, &mut first);
        assert!(alive(s.pid()), "{unit}");
    }
}

#[test]
fn options_of_an_instance_come_from_its_file() {
    need_daemon!();
    for unit in units() {
        let mut s = Service::new(unit);
        s.set_options("COMMITFS_OPTIONS=-o noatime --durability sync\n");
        s.start();
        let status = status(&s.directory);
        assert!(
            status.out.contains("\"durability\": \"sync\""),
            "{status:#?}"
        );
    }
}

fn status(directory: &Path) -> Run {
    let args = [OsStr::new("status"), OsStr::new("--json")];
    common::commitfs(args.iter().map(OsString::from).chain([directory.into()])).ok()
}

#[test]
fn the_stop_command_has_more_time_than_it_takes_at_most() {
    for unit in [SYSTEM, USER] {
        let s = Service::new(unit);
        let stop = s.value("ExecStop");
        let longest: u64 = stop
            .split("timeout ")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .sum();
        let limit: u64 = s.value("TimeoutStopSec").parse().expect("seconds");
        assert!(longest > 0 && longest < limit, "{unit}: {longest}, {limit}");
        assert_eq!(s.value("Type"), "notify");
        assert_eq!(s.value("NotifyAccess"), "main");
        assert_eq!(s.value("Restart"), "on-failure");
    }
}

#[test]
fn systemd_understands_every_line() {
    let Ok(program) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("SKIPPED, and it proves nothing: there is no systemd-analyze");
        return;
    };
    assert!(program.status.success());
    for unit in [SYSTEM, USER] {
        let s = Service::new(unit);
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(unit));
        // It wants the binary to be there.
        let text = text
            .expect("a unit")
            .replace("ExecStart=commitfs", "ExecStart=/bin/true");
        let copy = s.root.join(format!("commitfs@{}.service", s.instance()));
        std::fs::write(&copy, text).unwrap();
        let verified = run(
            Command::new("systemd-analyze")
                .args(["verify", "--man=no"])
                .arg(&copy),
            Duration::from_secs(30),
        )
        .ok();
        let ours: Vec<&str> = verified
            .err
            .lines()
            .filter(|line| line.contains("commitfs@"))
            .collect();
        assert!(ours.is_empty(), "{unit}: {ours:#?}");
    }
}
