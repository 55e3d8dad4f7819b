//! Running as a daemon: the start in the background, word that it is ready, and the limit on descriptors.
//!
//! A process with threads can't fork itself into the background. So the foreground process runs its own program again
//! with a pipe as standard output and [`READY_VARIABLE`] set. The new process calls [`ReadyWriter::from_env`] before all
//! else, which puts it into a session of its own and moves the pipe out of the way. The foreground process waits until
//! the pipe says `ready`, or `error CODE MESSAGE`, or ends, and tells its caller.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::failpoint;

/// Set in the environment of a process that was started by [`spawn_background`], to the number of its ready pipe.
pub const READY_VARIABLE: &str = "COMMITFS_READY_FD";
/// The pipe is handed over as standard output.
const READY_FD: &str = "1";
/// How much of a message is taken from the pipe.
const MAX_MESSAGE: u64 = 64 * 1024;
/// How long a process that has closed its pipe may take to end.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// What became of a process that was started in the background.
#[derive(Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// It is up.
    Ready,
    /// It gave up, and said why.
    Failed {
        /// The exit code for the foreground process.
        code: i32,
        /// For people.
        message: String,
    },
    /// It ended (or closed the pipe) without a word; its log may say more.
    Died(Option<ExitStatus>),
}

/// Runs this program once more in the background, with `args` and its standard error in `log`.
///
/// The working directory is inherited: make relative paths in `args` absolute if the daemon is to leave it.
pub fn spawn_background<I, S>(args: I, log: File) -> io::Result<ReadyReader>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command.args(args).env(READY_VARIABLE, READY_FD);
    keep_descriptors_to_ourselves();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let pipe = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok(ReadyReader { child, pipe })
}

/// Marks all descriptors but the standard ones close-on-exec. A daemon that held a pipe of the shell or the service
/// that called it would keep the other end waiting for as long as it lives.
pub(super) fn keep_descriptors_to_ourselves() {
    // SAFETY: with this flag the call closes nothing; it only sets a flag on descriptors that exist.
    // By its number, since musl has no function for it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result != 0 {
        // Before Linux 5.11 there is no such flag.
        log::debug!(
            "descriptors of the caller are inherited: {}",
            io::Error::last_os_error()
        );
    }
}

/// The foreground process's end of the ready pipe.
#[derive(Debug)]
#[must_use = "nothing is known of the new process until it is waited for"]
pub struct ReadyReader {
    child: Child,
    pipe: ChildStdout,
}

impl ReadyReader {
    /// The id of the new process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the new process is ready, has failed or has ended.
    pub fn wait(mut self) -> io::Result<StartOutcome> {
        match read_outcome(self.pipe)? {
            Some(outcome) => Ok(outcome),
            None => Ok(StartOutcome::Died(exit_status(&mut self.child)?)),
        }
    }
}

/// The message in the pipe; `None` if it ends without one. Lines that are no message are passed over.
fn read_outcome(pipe: impl Read) -> io::Result<Option<StartOutcome>> {
    let mut pipe = BufReader::new(pipe.take(MAX_MESSAGE));
    let mut line = Vec::new();
    loop {
        line.clear();
        if pipe.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line == b"ready\n" {
            return Ok(Some(StartOutcome::Ready));
        }
        if let Some(error) = line.strip_prefix(b"error ") {
            let mut text = error.to_vec();
            pipe.read_to_end(&mut text)?;
            return Ok(parse_failure(&String::from_utf8_lossy(&text)));
        }
    }
}

/// `CODE MESSAGE`, where the message goes on to the end of the stream.
fn parse_failure(text: &str) -> Option<StartOutcome> {
    let (code, message) = text.split_once(' ')?;
    Some(StartOutcome::Failed {
        code: code.parse().ok()?,
        message: message.trim_end().to_owned(),
    })
}

fn exit_status(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + EXIT_GRACE;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The background process's end of the ready pipe. Dropped without a word, it reads as a death.
#[derive(Debug)]
#[must_use = "the foreground process waits for a word"]
pub struct ReadyWriter {
    pipe: File,
}

impl ReadyWriter {
    /// Takes over the ready pipe, if this process was started by [`spawn_background`]: from here on it has a session of
    /// its own and its standard output is `/dev/null`. To be called once, before anything is printed.
    pub fn from_env() -> io::Result<Option<Self>> {
        let stdout = io::stdout();
        let is_pipe = || {
            rustix::fs::fstat(&stdout)
                .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Fifo)
        };
        if std::env::var_os(READY_VARIABLE).is_none_or(|fd| fd != READY_FD) || !is_pipe() {
            return Ok(None);
        }
        let pipe = rustix::io::fcntl_dupfd_cloexec(&stdout, 3)?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        rustix::stdio::dup2_stdout(&null)?;
        // Fails for the leader of a process group, which is the first of its kind already.
        let _ = rustix::process::setsid();
        Ok(Some(Self { pipe: pipe.into() }))
    }

    /// Says that the daemon is up. Fails if the foreground process has gone meanwhile.
    pub fn ready(mut self) -> io::Result<()> {
        self.pipe.write_all(b"ready\n")
    }

    /// Says why the daemon gives up, and the code that the foreground process is to exit with.
    pub fn fail(mut self, code: i32, message: &str) {
        if let Err(error) = writeln!(self.pipe, "error {code} {message}") {
            log::warn!("nobody waits to be told: {message} ({error})");
        }
    }
}

/// Tells the service manager about `state` (`READY=1`, `STOPPING=1`, `STATUS=…`), if there is one that asked to be told.
pub fn sd_notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
    else {
        return;
    };
    if let Err(error) = send_state(&address, state) {
        log::warn!(
            "cannot notify the service manager at {}: {error}",
            address.to_string_lossy()
        );
    }
}

fn send_state(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "neither a path nor an abstract name",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// Raises the number of files this process may have open as far as it may, and says how far.
pub fn raise_nofile_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Who may raises the hard limit, too: each file that is open costs a descriptor or two.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let all = Rlimit {
        current: most,
        maximum: most,
    };
    let allowed = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let raised = most.is_some()
        && limit.maximum.is_some_and(|hard| Some(hard) < most)
        && setrlimit(Resource::Nofile, all).is_ok();
    if !raised
        && limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, allowed)
    {
        log::warn!("cannot raise the limit of open files: {error}");
    }
    let current = getrlimit(Resource::Nofile).current;
    let current = current.unwrap_or(u64::MAX);
    let lowered = failpoint::number("COMMITFS_DESCRIPTORS", current);
    if lowered < current {
        let lower = Rlimit {
            current: Some(lowered),
            ..limit
        };
        setrlimit(Resource::Nofile, lower).ok();
    }
    lowered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Option<StartOutcome> {
        read_outcome(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_first_word_of_the_daemon_decides() {
        assert_eq!(outcome("ready\n"), Some(StartOutcome::Ready));
        assert_eq!(
            outcome("noise\nready\nerror 3 too late\n"),
            Some(StartOutcome::Ready)
        );
        assert_eq!(outcome(""), None);
        assert_eq!(outcome("read"), None);
        assert_eq!(outcome("error what\n"), None);
    }

    #[test]
    fn a_failure_keeps_all_its_lines() {
        let failed = StartOutcome::Failed {
            code: 12,
            message: "first\nsecond".to_owned(),
        };
        assert_eq!(outcome("error 12 first\nsecond\n"), Some(failed));
    }

    #[test]
    fn what_one_end_writes_the_other_understands() {
        let (reader, writer) = io::pipe().unwrap();
        ReadyWriter {
            pipe: File::from(std::os::fd::OwnedFd::from(writer)),
        }
        .fail(4, "no\nway");
        assert_eq!(
            read_outcome(reader).unwrap(),
            Some(StartOutcome::Failed {
                code: 4,
                message: "no\nway".to_owned()
            })
        );
    }

    #[test]
    fn a_service_manager_is_told_on_a_path_and_on_an_abstract_name() {
        let path = std::env::temp_dir().join(format!("commitfs-notify-{}", std::process::id()));
        let at_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("commitfs-notify-{}", std::process::id());
        let abstract_one =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send_state(path.as_os_str(), "READY=1").unwrap();
        send_state(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        for socket in [at_path, abstract_one] {
            let mut buffer = [0; 32];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(send_state(path.as_os_str(), "READY=1").is_err());
        assert!(send_state(OsStr::new("vsock:2:3"), "READY=1").is_err());
    }

    #[test]
    fn the_descriptor_limit_reaches_its_maximum() {
        let raised = raise_nofile_limit();
        assert_eq!(
            Some(raised),
            getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX))
        );
    }
}
