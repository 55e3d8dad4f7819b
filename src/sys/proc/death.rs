//! How a process that is closing its files came to its end.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{in_place_of_proc, number, read, read_short};

/// Which field of `/proc/PID/stat` holds the exit code, counted from 1 as proc(5) does.
const EXIT_CODE_FIELD: usize = 52;

/// What can be said of a process that closes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It lives: it closed the file itself, or by `execve`.
    Alive,
    /// It exited of its own accord, with whatever status.
    Exited,
    /// It was ended by this signal.
    Signalled(i32),
    /// It is gone already, or may not be looked at.
    Unknown,
}

impl Death {
    /// The signal that ended it, if it is one that keeps a writer from committing: SIGPIPE is how pipelines end.
    pub fn fatal_signal(&self) -> Option<i32> {
        match self {
            Death::Signalled(signal) if *signal != libc::SIGPIPE => Some(*signal),
            _ => None,
        }
    }
}

/// How the process `tgid`, whose thread `tid` waits for the reply to a FLUSH, came to send it.
///
/// An exiting task gives up its memory before its files, so a `statm` of zeros tells an exit from a close. Only then is
/// `stat` read: that of a living process may wait for the very `execve` whose FLUSH is being served. The kernel hides
/// the exit code behind a zero from readers without the right to it; such a zero is answered [`Death::Unknown`].
pub fn death_of_flusher(tid: u32, tgid: u32) -> Death {
    match memory_is_gone(tid) {
        Some(true) => {}
        Some(false) => return Death::Alive,
        None => return Death::Unknown,
    }
    // A thread with a file table of its own may end while its process goes on.
    if tgid != tid && memory_is_gone(tgid) != Some(true) {
        return Death::Unknown;
    }
    let code = match in_place_of_proc() {
        Some(processes) => processes.exit_code(tgid),
        None => read(tgid, "stat").ok().and_then(|stat| exit_code(&stat)),
    };
    let Some(code) = code else {
        return Death::Unknown;
    };
    match code & 0x7f {
        0 if code == 0 && !may_see_exit_code(tgid) => Death::Unknown,
        0 => Death::Exited,
        signal => Death::Signalled(signal),
    }
}

/// Whether a thread has given up its memory, as the first thing that an exit does; `None` if it is gone altogether.
pub(super) fn memory_is_gone(tid: u32) -> Option<bool> {
    if let Some(processes) = in_place_of_proc() {
        return processes.memory_is_gone(tid);
    }
    let statm = read_short(tid, "statm").ok()?;
    let sizes = statm.trim_ascii();
    (!sizes.is_empty()).then(|| sizes.iter().all(|b| matches!(b, b'0' | b' ')))
}

/// The exit code in the text of a `stat` file. The second field is the name of the program in parentheses; it may
/// itself hold blanks and parentheses, so the fields are counted from the last closing one.
fn exit_code(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = stat[name_end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|f| !f.is_empty());
    number(fields.nth(EXIT_CODE_FIELD - 3)?)
}

/// Reading a link in `ns/` asks for the same right as the exit code in `stat`, and says so when it is missing.
fn may_see_exit_code(pid: u32) -> bool {
    if in_place_of_proc().is_some() {
        return true;
    }
    rustix::fs::readlinkat(CWD, format!("/proc/{pid}/ns/user"), Vec::new()).is_ok()
}

/// Makes sure that [`death_of_flusher`] can recognise a killed process here, by killing one.
///
/// The error says, for people, why the manner of death can't be known. Success speaks for processes of the daemon's own
/// user; for those of others an unprivileged daemon gets [`Death::Unknown`] case by case.
pub fn self_test_killed_writer_detection() -> Result<(), String> {
    let own = rustix::fs::readlinkat(CWD, "/proc/self", Vec::new())
        .map_err(|error| format!("/proc is not mounted or not readable ({error})"))?;
    if own.to_bytes() != std::process::id().to_string().as_bytes() {
        return Err(
            "/proc belongs to another pid namespace than this process; mount a /proc of its own"
                .to_owned(),
        );
    }
    let mut child = spawn_killed_child()
        .map_err(|error| format!("cannot start a process to try it on ({error})"))?;
    let pid = child.id();
    let seen = await_zombie(pid).map(|()| death_of_flusher(pid, pid));
    let reaped = child.wait();
    match seen {
        Ok(Death::Signalled(9)) => Ok(()),
        Ok(Death::Unknown) => Err(explain_unreadable()),
        Ok(other) => Err(format!("the kernel reports a killed process as {other:?}")),
        Err(error) => Err(format!(
            "cannot wait for the process to try it on ({error}; {reaped:?})"
        )),
    }
}

/// A child that kills itself before it executes anything, so that no other program is needed.
fn spawn_killed_child() -> std::io::Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are two plain system calls that
    // neither allocate nor take a lock.
    unsafe {
        command.pre_exec(|| {
            Ok(rustix::process::kill_process(
                rustix::process::getpid(),
                Signal::KILL,
            )?)
        });
    }
    command.spawn()
}

/// Waits until the child has exited, and leaves it to be looked at.
fn await_zombie(pid: u32) -> rustix::io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)?;
    loop {
        match rustix::process::waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        ) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

fn explain_unreadable() -> String {
    let hidden = crate::sys::mount::mountinfo().is_ok_and(|mounts| {
        mounts.iter().any(|m| {
            m.fstype == "proc"
                && m.super_options
                    .split(',')
                    .any(|o| o.starts_with("hidepid="))
        })
    });
    if hidden {
        "/proc is mounted with hidepid; remount it without, or with gid= a group of this process"
            .to_owned()
    } else {
        "no permission to read the exit code of a process in /proc/PID/stat".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat_of(name: &str, code: i32) -> Vec<u8> {
        let middle = (4..EXIT_CODE_FIELD)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        format!("12 ({name}) Z {middle} {code}\n").into_bytes()
    }

    #[test]
    fn the_exit_code_is_found_behind_any_program_name() {
        for name in ["sleep", "a b", "a) Z 1 2 (3", ") ) )", "(", ""] {
            assert_eq!(exit_code(&stat_of(name, 139)), Some(139), "{name:?}");
        }
    }

    #[test]
    fn a_stat_without_that_field_gives_no_exit_code() {
        assert_eq!(exit_code(b""), None);
        assert_eq!(exit_code(b"12 (old) Z 1 2 3\n"), None);
    }

    #[test]
    fn a_killed_process_is_recognised() {
        self_test_killed_writer_detection().unwrap();
    }

    #[test]
    fn an_ordinary_exit_is_told_from_a_kill_whatever_its_status() {
        for status in [0, 1, 7, 255] {
            let mut child = Command::new("sh")
                .arg("-c")
                .arg(format!("exit {status}"))
                .spawn()
                .unwrap();
            await_zombie(child.id()).unwrap();
            assert_eq!(
                death_of_flusher(child.id(), child.id()),
                Death::Exited,
                "exit {status}"
            );
            child.wait().unwrap();
        }
    }

    #[test]
    fn the_signal_is_reported() {
        for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15), ("PIPE", 13)] {
            let mut child = Command::new("sh")
                .arg("-c")
                .arg(format!("ulimit -c 0; kill -{name} $$"))
                .spawn()
                .unwrap();
            await_zombie(child.id()).unwrap();
            assert_eq!(
                death_of_flusher(child.id(), child.id()),
                Death::Signalled(number),
                "{name}"
            );
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_living_process_is_alive_and_a_reaped_one_unknown() {
        let own = std::process::id();
        assert_eq!(death_of_flusher(own, own), Death::Alive);
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(death_of_flusher(child.id(), child.id()), Death::Unknown);
        assert_eq!(death_of_flusher(0, 0), Death::Unknown);
    }
}
