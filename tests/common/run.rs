//! Programs under a time limit.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::temporary_directory;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    /// The run itself, if the program exited with 0.
    #[track_caller]
    pub fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "the program failed: {self:#?}");
        self
    }

    #[track_caller]
    pub fn fails(self) -> Run {
        assert!(
            self.code.is_some_and(|code| code != 0),
            "expected an error exit: {self:#?}"
        );
        self
    }
}

/// Runs a program in a process group of its own; past the limit the whole group is killed and the
/// test fails. Output goes through files, so that a child left behind cannot keep a pipe open.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Run {
    let directory = temporary_directory();
    let (out, err) = (directory.join("out"), directory.join("err"));
    let file = |path: &Path| File::create(path).expect("a file for output");
    command
        .stdin(Stdio::null())
        .stdout(file(&out))
        .stderr(file(&err))
        .process_group(0);
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        signal_group(child.id(), libc::SIGKILL);
        wait(&mut child, Duration::from_secs(5));
    }
    let text = |path: &Path| {
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    };
    let (out, err) = (text(&out), text(&err));
    let _ = std::fs::remove_dir_all(&directory);
    let Some(status) = status else {
        panic!("not done within {limit:?}: {command:?}\nstdout: {out}\nstderr: {err}");
    };
    Run {
        code: status.code(),
        signal: status.signal(),
        out,
        err,
    }
}

pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal_group(leader: u32, signal: i32) {
    // SAFETY: sends a signal to a group whose leader has not been waited for.
    unsafe { libc::kill(-(leader as i32), signal) };
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[track_caller]
pub fn shell(program: &str, directory: &Path, script: &str, limit: Duration) -> Run {
    run(
        Command::new(program)
            .current_dir(directory)
            .args(["-c", script]),
        limit,
    )
}

#[track_caller]
pub fn sh(directory: &Path, script: &str, limit: Duration) -> Run {
    shell("sh", directory, script, limit)
}

#[track_caller]
pub fn bash(directory: &Path, script: &str, limit: Duration) -> Run {
    shell("bash", directory, script, limit)
}

#[track_caller]
pub fn python(directory: &Path, script: &str, limit: Duration) -> Run {
    run(
        Command::new("python3")
            .current_dir(directory)
            .args(["-c", script]),
        limit,
    )
}

/// The binary under test.
#[track_caller]
pub fn commitfs<I, S>(args: I) -> Run
where
    I: IntoIterator<Item = S>,
    S: AsRef<std::ffi::OsStr>,
{
    run(Command::new(binary()).args(args), Duration::from_secs(30))
}

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_commitfs")
}

pub fn helper() -> PathBuf {
    let known = option_env!("CARGO_BIN_EXE_commitfs-test-helper").map(PathBuf::from);
    let path = known.unwrap_or_else(|| Path::new(binary()).with_file_name("commitfs-test-helper"));
    assert!(
        path.exists(),
        "{} is missing: test with --features testing",
        path.display()
    );
    path
}

/// A running program whose output is read line by line, and that can be told things.
pub struct Live {
    child: Child,
    lines: BufReader<UnixStream>,
    orders: UnixStream,
}

impl Live {
    pub fn spawn(command: &mut Command) -> Live {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let (orders, stdin) = UnixStream::pair().expect("a socket pair");
        near.set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time limit");
        command.stdin(Stdio::from(OwnedFd::from(stdin)));
        command
            .stdout(Stdio::from(OwnedFd::from(far)))
            .process_group(0);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command keeps copies of the descriptors; without them, the end would not be seen.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Live {
            child,
            lines: BufReader::new(near),
            orders,
        }
    }

    pub fn python(directory: &Path, script: &str) -> Live {
        Live::spawn(
            Command::new("python3")
                .current_dir(directory)
                .args(["-uc", script]),
        )
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line of output; empty at the end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(_) => line.trim_end().to_owned(),
            Err(error) => panic!("the program said nothing: {error}"),
        }
    }

    #[track_caller]
    pub fn expect(&mut self, line: &str) {
        assert_eq!(self.line(), line);
    }

    pub fn send(&mut self, line: &str) {
        self.orders
            .write_all(format!("{line}\n").as_bytes())
            .expect("the program listens");
    }

    pub fn kill(&mut self, signal: i32) {
        // SAFETY: a child that has not been waited for.
        unsafe { libc::kill(self.pid(), signal) };
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        wait(&mut self.child, Duration::from_secs(20)).expect("the program should have ended")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal_group(self.child.id(), libc::SIGKILL);
            wait(&mut self.child, Duration::from_secs(2));
        }
    }
}

/// A shell that takes one command at a time.
pub struct Shell(Live);

impl Shell {
    pub fn new(program: &str, directory: &Path) -> Shell {
        Shell(Live::spawn(Command::new(program).current_dir(directory)))
    }

    /// Runs a command and returns its exit status and what it printed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> (i32, String) {
        self.0.send(&format!("{command}\necho \"__end $?\""));
        let mut printed = String::new();
        loop {
            let line = self.0.line();
            if let Some(status) = line.strip_prefix("__end ") {
                return (status.parse().expect("an exit status"), printed);
            }
            assert!(
                !line.is_empty() || alive(self.0.pid()),
                "the shell is gone after {command}"
            );
            printed.push_str(&line);
            printed.push('\n');
        }
    }

    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Ends the shell normally.
    pub fn exit(mut self, status: i32) {
        self.0.send(&format!("exit {status}"));
        self.0.finish();
    }
}
