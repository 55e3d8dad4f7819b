//! Processes by descriptor: a pid number may be somebody else's by the time it is looked at.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

use super::proc::in_place_of_proc;

/// A descriptor for a living process.
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    if let Some(processes) = in_place_of_proc() {
        return processes.pidfd(pid);
    }
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether the process has ended.
pub fn has_ended(pidfd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}

/// Signal that ended the process, if one did: asked of the descriptor (Linux 6.15), else of the
/// zombie as long as nobody has waited for it.
pub fn killed_by(pid: u32, pidfd: &OwnedFd) -> Option<i32> {
    if !has_ended(pidfd) {
        return None;
    }
    let status = status(pid, pidfd)?;
    let signal = status & 0x7f;
    (signal != 0).then_some(signal)
}

/// Wait status of a process that has ended: asked of the descriptor (Linux 6.15), else of the zombie.
///
/// The descriptor has it from when the process was waited for: one that is waited for between these two questions has
/// to be asked for once more.
pub fn status(pid: u32, pidfd: &OwnedFd) -> Option<i32> {
    match in_place_of_proc() {
        Some(processes) => processes.exit_code(pid),
        None => exit_code(pidfd)
            .or_else(|| zombie_exit_code(pid, pidfd))
            .or_else(|| exit_code(pidfd)),
    }
}

/// The kernel's `struct pidfd_info`, first published size.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// Wait status of an ended process, reaped or not; `None` before Linux 6.15.
pub fn exit_code(pidfd: &OwnedFd) -> Option<i32> {
    use std::os::fd::AsRawFd;
    const GET_INFO: u32 = 0xc000_ff0b | ((size_of::<Info>() as u32) << 16);
    const EXIT: u64 = 1 << 3;
    if crate::sys::failpoint::feature_off("pidfd-info") {
        return None;
    }
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    // SAFETY: the request's size field says size_of::<Info>(), which is what `info` points to;
    // the kernel writes no more than that.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO as libc::Ioctl, &raw mut info) };
    (result == 0 && info.mask & EXIT != 0).then_some(info.exit_code)
}

fn zombie_exit_code(pid: u32, pidfd: &OwnedFd) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Still the same process: signalling a reaped one fails.
    if !is_unreaped(pidfd) {
        return None;
    }
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(49)?
        .parse()
        .ok()
}

fn is_unreaped(pidfd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: no pointer is passed but a null one, which the call allows; signal 0 only checks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended_is_known_also_if_its_parent_waits_for_it_meanwhile() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let fd = pidfd(child.id()).unwrap();
        child.wait().unwrap();
        if exit_code(&fd).is_none() {
            return; // before Linux 6.15 nobody knows, once it was waited for
        }
        let tries = 2_000;
        let mut unknown = 0;
        for _ in 0..tries {
            let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
            let fd = pidfd(child.id()).unwrap();
            let pid = child.id();
            std::thread::scope(|scope| {
                scope.spawn(|| child.wait().unwrap());
                while !has_ended(&fd) {}
                unknown += u32::from(status(pid, &fd) != Some(0));
            });
        }
        assert_eq!(unknown, 0, "of {tries}");
    }
}
