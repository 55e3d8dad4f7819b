//! The watch helper: a small process that makes the kernel wake those who watch a superseded version.
//!
//! The kernel makes its inotify events where programs come in, so somebody has to open and close
//! the version on the mount. The daemon can't: a thread of it that waits for its own answer could
//! never be killed, and would keep the connection open with it. Nor may it ask by
//! FUSE_NOTIFY_DELETE: that waits, inside the daemon and past SIGKILL, for the directory's lock,
//! which a program holds while it waits for the daemon; and it takes the version's links away from
//! a link(2) that is just on its way.
//!
//! The watch helper has nothing of the daemon's but a pipe. When the daemon ends, so does whatever the
//! watch helper waits for, and it reads the end of its orders. It goes in by path each time, so it keeps
//! nobody from unmounting.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};

use super::at;

/// Set for the watch helper to the directory in which it finds versions by number.
const VARIABLE: &str = "COMMITFS_HERALD";
/// What the names in that directory start with.
const PREFIX: &str = "version-";
/// The order to have the kernel learn that this mount has no poll.
const POLL: u64 = u64::MAX;
/// A file in that directory which can be polled.
pub const POLLABLE: &str = "lock";
/// What is looked up there once it was.
pub const POLLED: &str = "polled";

/// The daemon's end.
#[derive(Debug)]
pub struct WatchHelper {
    child: Child,
    /// `None` only while it is dropped.
    orders: Option<ChildStdin>,
}

impl WatchHelper {
    /// Starts it. It touches `directory` only when told to.
    pub fn start(directory: &Path) -> io::Result<WatchHelper> {
        super::background::keep_descriptors_to_ourselves();
        let mut child = Command::new("/proc/self/exe")
            .arg0("commitfs-watch")
            .env_clear()
            .env(VARIABLE, directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let orders = child.stdin.take();
        if let Some(pipe) = &orders {
            // Few orders wait there: an unmount has to wait for the watch helper to have read them all.
            rustix::pipe::fcntl_setpipe_size(pipe, 4096).ok();
        }
        Ok(WatchHelper { child, orders })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has the kernel learn that nothing on this mount can be polled: it asks once, and never again. The watch helper looks
    /// [`POLLED`] up then. An error: it is gone.
    pub fn have_polled(&mut self) -> io::Result<()> {
        self.order(POLL)
    }

    /// Has those who watch a version woken. An error: the watch helper is gone.
    pub fn tell(&mut self, version: u64, how: WatchOrder) -> io::Result<()> {
        self.order(version << 1 | u64::from(how == WatchOrder::Attributes))
    }

    fn order(&mut self, order: u64) -> io::Result<()> {
        match &mut self.orders {
            Some(orders) => orders.write_all(&order.to_le_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Drop for WatchHelper {
    fn drop(&mut self) {
        self.orders = None;
        self.child.wait().ok();
    }
}

/// Which events to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchOrder {
    /// Those of a rewriting in place, and then IN_ATTRIB, as when a link is lost: one kind of
    /// watcher reads on, the other looks the name up again.
    Rewritten,
    /// IN_ATTRIB alone. For programs that may be run: an open for writing would fail their execve
    /// with ETXTBSY.
    Attributes,
}

/// What the process does that [`WatchHelper::start`] has started; `None` in any other.
pub fn run_if_asked() -> Option<ExitCode> {
    let directory = std::env::var_os(VARIABLE)?;
    // A signal to the daemon's group or terminal is not for the watch helper: it ends with its orders.
    rustix::process::setsid().ok();
    rustix::thread::set_name(c"commitfs-watch").ok();
    super::signals::block().ok();
    let mut orders = io::stdin().lock();
    let mut order = [0; 8];
    let mut turn = 0;
    while orders.read_exact(&mut order).is_ok() {
        let order = u64::from_le_bytes(order);
        if order == POLL {
            poll(&directory).ok();
            continue;
        }
        let how = match order & 1 {
            0 => WatchOrder::Rewritten,
            _ => WatchOrder::Attributes,
        };
        turn += 1;
        wake(&directory, &name(order >> 1, turn), how);
    }
    Some(ExitCode::SUCCESS)
}

fn poll(directory: &OsStr) -> rustix::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let enter = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(directory, flags, Mode::empty())
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(enter()?, POLLABLE, flags, Mode::empty())?;
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&at_once))?;
    // Nobody is to find the mount busy meanwhile.
    drop(file);
    // Who has found just before that the kernel doesn't know it yet has asked by then.
    std::thread::sleep(std::time::Duration::from_millis(50));
    rustix::fs::statat(enter()?, POLLED, AtFlags::SYMLINK_NOFOLLOW).map(drop)
}

/// A name that stands for a version in one lookup.
fn name(version: u64, turn: u64) -> String {
    format!("{PREFIX}{version:x}-{turn:x}")
}

/// Version and turn of such a name.
pub fn parse(name: &OsStr) -> Option<(u64, u64)> {
    let (version, turn) = name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some((number(version)?, number(turn)?))
}

/// The daemon knows its watch helper and changes nothing for it. Errors say that the version or the
/// mount is gone, or that an ordinary user may not write to the file.
fn wake(directory: &OsStr, name: &str, how: WatchOrder) {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(directory, flags | OFlags::DIRECTORY, Mode::empty())
    else {
        return;
    };
    let Ok(version) = rustix::fs::openat(&directory, name, flags, Mode::empty()) else {
        return;
    };
    if how == WatchOrder::Rewritten
        && let Ok(file) = at::reopen(&version, OFlags::WRONLY | OFlags::NONBLOCK)
    {
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1).ok();
    }
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW as _,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    at::utimens(&version, &times).ok();
    drop(version);
    // The name now stands for nothing, and with it goes what the kernel remembers of it, which
    // would keep the version from being forgotten.
    rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_herald_asks_for_the_daemon_understands() {
        for (version, turn) in [(1, 1), (1 << 40, 0xabc)] {
            assert_eq!(parse(name(version, turn).as_ref()), Some((version, turn)));
        }
        for other in ["version-", "version-1", "version-x-1", "status.json"] {
            assert_eq!(parse(other.as_ref()), None, "{other}");
        }
    }
}
