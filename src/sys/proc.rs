//! What the daemon may learn about other processes from `/proc`.
//!
//! Most of these questions are asked about a process that is waiting for the daemon's own reply, often while the
//! kernel holds that process's `execve` or `mmap` locks. A file of `/proc` that needs one of those locks would hang the
//! whole mount, so only what was tried in that situation is used here: the files `statm`, `status`, `comm`, `limits`,
//! `fdinfo/N` and `children`, lstat of `fd/N`, and pidfds. `stat` and the links in `ns/` are read of dying processes
//! (see [`death_of_flusher`]), `stat` also of one that waits in a lookup or an open (see [`Start::of_caller`]), `syscall` of one that waits
//! for a lock or in a lookup (see [`call_of`]). `maps` is read of one that closes a file and is known not to be in an `execve` (see [`has_mapped`]). `environ`, `io`, `wchan`, `exe`, `cwd`, `root` and where `fd/N` points to
//! are never asked for. [`command`] is the one function that must stay off the thread that serves requests.
//!
//! Process ids are those of the `/proc` the daemon sees. Id 0 is what the kernel reports for a process outside the
//! daemon's pid namespace; every function answers "unknown" or "no" for it.

mod call;
mod children;
mod death;
mod holds;
mod ids;
mod maps;
mod processes;
mod start;

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{Errno, Result};

pub use call::{Call, call_of, is_opening};
pub use children::{children_since, threads};
pub use death::{Death, death_of_flusher, self_test_killed_writer_detection};
pub use holds::{HOW, Holding, holds};
pub use maps::has_mapped;
pub(in crate::sys) use processes::in_place_of_proc;
#[cfg(feature = "testing")]
pub use processes::put_in_place_of_proc;
pub use processes::{Ids, Processes};
pub use start::{Moment, Start};

/// How far up [`is_self_or_descendant`] walks.
const MAX_ANCESTRY: usize = 64;
/// The widest range of ids [`pids_between`] looks at.
const MAX_PID_RANGE: u32 = 4096;
/// Ids below this are not handed out again once the counter has wrapped (`RESERVED_PIDS` in the kernel).
const FIRST_PID_AFTER_WRAP: u32 = 300;
/// The longest command line [`command`] shows, in characters.
const MAX_COMMAND_CHARS: usize = 120;

/// The process (thread group) that thread `tid` belongs to.
pub fn tgid(tid: u32) -> Option<u32> {
    ids::of(tid).map(|ids| ids.tgid)
}

/// The parent of `pid`; 0 when it has none in this pid namespace.
pub fn parent(pid: u32) -> Option<u32> {
    ids::of(pid).map(|ids| ids.parent)
}

/// The processes that one descends from, the nearest first.
pub fn ancestors(pid: u32) -> Vec<u32> {
    const MOST: usize = 64;
    std::iter::successors(parent(pid), |pid| parent(*pid))
        .take_while(|pid| *pid > 1)
        .take(MOST)
        .collect()
}

/// Whether `pid` (a process or one of its threads) is the process `ancestor` or descends from it.
///
/// A process whose parent has exited belongs to its reaper from then on, so an orphaned descendant is not found.
pub fn is_self_or_descendant(pid: u32, ancestor: u32) -> bool {
    if ancestor == 0 {
        return false;
    }
    let mut at = pid;
    for _ in 0..MAX_ANCESTRY {
        if at == 0 || at == ancestor {
            return at != 0;
        }
        match ids::of(at) {
            Some(ids) if ids.tgid == ancestor => return true,
            Some(ids) => at = ids.parent,
            None => return false,
        }
    }
    false
}

/// The child of the process `ancestor` that `pid` is or descends from, if it descends from it.
///
/// As with [`is_self_or_descendant`], an orphaned descendant is not found.
pub fn branch_below(pid: u32, ancestor: u32) -> Option<u32> {
    if ancestor == 0 {
        return None;
    }
    let mut at = pid;
    for _ in 0..MAX_ANCESTRY {
        match ids::of(at)?.parent {
            0 => return None,
            parent if parent == ancestor => return Some(at),
            parent => at = parent,
        }
    }
    None
}

/// Whether the thread `tid` of the process `pid` has started that child of the process. True where the kernel doesn't
/// list children.
pub fn has_started(pid: u32, tid: u32, child: u32) -> bool {
    if let Some(processes) = in_place_of_proc() {
        return processes.children_of(tid).contains(&child);
    }
    if !kernel_lists_children() {
        return true;
    }
    // While others come and go, a list may lack one.
    (0..3).any(|_| {
        let list = read_at(CWD, &format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        list.split(|b| *b == b' ')
            .filter_map(number::<u32>)
            .any(|one| one == child)
    })
}

/// Whether there is such a process, and it is not on its way out.
pub fn lives(pid: u32) -> bool {
    death::memory_is_gone(pid) == Some(false)
}

/// Whether a thread surely is no more, or on its way out. Where that can't be read, for want of descriptors or since `/proc`
/// hides what others run, it may live.
pub fn is_gone(tid: u32) -> bool {
    if let Some(processes) = in_place_of_proc() {
        return processes.memory_is_gone(tid) != Some(false);
    }
    let hidden = || {
        let pid = i32::try_from(tid)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        pid.map(rustix::process::test_kill_process) == Some(Err(Errno::PERM))
    };
    is_end(&read(tid, "statm")) && !hidden()
}

/// Whether this is what `statm` says of a thread that has ended.
fn is_end(statm: &Result<Vec<u8>>) -> bool {
    match statm {
        Ok(sizes) => sizes.trim_ascii().iter().all(|b| matches!(b, b'0' | b' ')),
        Err(error) => matches!(*error, Errno::NOENT | Errno::SRCH),
    }
}

/// The children of all threads of `pid`, or `None` where that cannot be known: the process is gone, may not be read,
/// or the kernel was built without `CONFIG_PROC_CHILDREN`.
///
/// A child that is forked or reaped meanwhile may be missed or listed.
pub fn children(pid: u32) -> Option<Vec<u32>> {
    if let Some(processes) = in_place_of_proc() {
        let threads = processes.threads(pid)?.into_iter();
        return Some(threads.flat_map(|tid| processes.children_of(tid)).collect());
    }
    if !kernel_lists_children() {
        return None;
    }
    let tasks = open_dir(pid, "task").ok()?;
    let mut found = Vec::new();
    let mut threads = 0u32;
    for_each_number(&tasks, |tid| {
        match read_at(&tasks, &format!("{tid}/children")) {
            Ok(list) => {
                threads += 1;
                found.extend(list.split(|b| *b == b' ').filter_map(number::<u32>));
            }
            // The thread ended since the directory was read.
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })
    .ok()?;
    (threads > 0).then_some(found)
}

fn kernel_lists_children() -> bool {
    static LISTED: OnceLock<bool> = OnceLock::new();
    *LISTED.get_or_init(|| {
        rustix::fs::access("/proc/thread-self/children", rustix::fs::Access::EXISTS).is_ok()
    })
}

/// The id handed out last, to a process or a thread, in this pid namespace.
pub fn last_pid() -> Option<u32> {
    if let Some(processes) = in_place_of_proc() {
        return Some(processes.last_pid());
    }
    // Asked at each open and close: the descriptor is kept.
    static LOADAVG: OnceLock<OwnedFd> = OnceLock::new();
    let file = match LOADAVG.get() {
        Some(file) => file,
        None => {
            let file = open(CWD, "/proc/loadavg").ok()?;
            LOADAVG.get_or_init(|| file)
        }
    };
    let loadavg = first_piece(file).ok()?;
    number(loadavg.trim_ascii().rsplit(|b| *b == b' ').next()?)
}

/// The living processes (not threads) whose ids were handed out after `first_exclusive` and up to `last_inclusive`,
/// both as answered by [`last_pid`]; or `None` when the range is too wide to look through ([`all_pids`] is cheaper
/// then).
///
/// A counter that went once around between the two answers is followed; one that went around further is not noticed.
pub fn pids_between(first_exclusive: u32, last_inclusive: u32) -> Option<Vec<u32>> {
    let ids = range_of_pids(first_exclusive, last_inclusive, pid_max)?;
    Some(ids.filter(|pid| tgid(*pid) == Some(*pid)).collect())
}

/// The ids of a range that may wrap at `max` (exclusive; asked only then), or `None` when there are too many of them.
fn range_of_pids(
    first_exclusive: u32,
    last_inclusive: u32,
    max: fn() -> Option<u32>,
) -> Option<impl Iterator<Item = u32>> {
    let start = first_exclusive.checked_add(1)?;
    let (before, after) = if last_inclusive >= first_exclusive {
        (start..last_inclusive.checked_add(1)?, 0..0)
    } else {
        // An id below the reserved ones cannot have been handed out by a wrapped counter.
        let max = max()?;
        (
            start..max.max(start),
            FIRST_PID_AFTER_WRAP..(last_inclusive + 1).max(FIRST_PID_AFTER_WRAP),
        )
    };
    let count = before.len().checked_add(after.len())?;
    (count <= MAX_PID_RANGE as usize).then(|| before.chain(after))
}

fn pid_max() -> Option<u32> {
    if in_place_of_proc().is_some() {
        return Some(u32::MAX);
    }
    let max = slurp(&open(CWD, "/proc/sys/kernel/pid_max").ok()?).ok()?;
    number(max.trim_ascii())
}

/// All processes that `/proc` shows, in no particular order; empty when it cannot be listed.
pub fn all_pids() -> Vec<u32> {
    if let Some(processes) = in_place_of_proc() {
        return processes.all();
    }
    let mut found = Vec::new();
    if let Ok(dir) = open(CWD, "/proc") {
        let listed = for_each_number(&dir, |pid| {
            found.push(pid);
            Ok(())
        });
        if let Err(error) = listed {
            log::warn!("/proc: cannot list the processes: {error}");
        }
    }
    found
}

/// The short name of a process (at most 15 bytes), safe to ask for anywhere.
pub fn comm(pid: u32) -> Option<String> {
    if let Some(processes) = in_place_of_proc() {
        return processes.comm(pid);
    }
    let name = read_short(pid, "comm").ok()?;
    Some(printable(name.trim_ascii_end(), MAX_COMMAND_CHARS))
}

/// Whether a process has ended but for what it still has to clean up, or is gone.
pub fn is_ending(pid: u32) -> bool {
    // While it closes its files it is no zombie yet.
    death::memory_is_gone(pid) != Some(false)
}

/// Whether a process waits in the kernel for what no signal ends, as a lock.
pub fn waits(pid: u32) -> bool {
    let status = read(pid, "status").unwrap_or_default();
    field(&status, "State").is_some_and(|state| state.trim_ascii_start().starts_with(b"D"))
}

/// The command line of a process for people to read: one line, printable, shortened; `[name]` for a process without
/// one, `(gone)` for none.
///
/// Reading it takes the lock of the process's memory map, which a thread of that process may hold while it waits for
/// the daemon. So never call this on the thread that serves requests; [`comm`] is safe there.
pub fn command(pid: u32) -> String {
    if let Some(processes) = in_place_of_proc() {
        return processes.comm(pid).unwrap_or_else(|| "(gone)".to_owned());
    }
    let line = match read(pid, "cmdline") {
        Ok(line) => line,
        Err(_) => return "(gone)".to_owned(),
    };
    let words = line.trim_ascii().strip_suffix(&[0]).unwrap_or(&line);
    if !words.is_empty() {
        return printable(words, MAX_COMMAND_CHARS);
    }
    comm(pid).map_or_else(|| "(gone)".to_owned(), |name| format!("[{name}]"))
}

/// `bytes` on one line: arguments separated by blanks, control characters replaced, cut after `limit` characters.
fn printable(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text
        .chars()
        .take(limit)
        .map(|c| match c {
            '\0' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

/// The soft limit on the size of files that `tgid` may write, or `None` when it has none or it cannot be read.
pub fn rlimit_fsize(tgid: u32) -> Option<u64> {
    if in_place_of_proc().is_some() {
        return None;
    }
    match asked_rlimit_fsize(tgid) {
        Some(libc::RLIM_INFINITY) => None,
        Some(limit) => Some(limit),
        // Of a process of another user, without the right to ask; the file may be read by all.
        None => parse_rlimit_fsize(&read(tgid, "limits").ok()?),
    }
}

/// The soft limit as a call tells it, in a quarter of the time that the text of `limits` takes.
fn asked_rlimit_fsize(tgid: u32) -> Option<u64> {
    let pid = libc::pid_t::try_from(tgid).ok().filter(|pid| *pid > 0)?;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: nothing is set by a null pointer, and `limit` is a `struct rlimit` to be filled in.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &raw mut limit) };
    (done == 0).then_some(limit.rlim_cur)
}

fn parse_rlimit_fsize(limits: &[u8]) -> Option<u64> {
    let line = limits
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Max file size"))?;
    number(
        line.split(u8::is_ascii_whitespace)
            .find(|word| !word.is_empty())?,
    )
}

/// Whether thread `tid` has a signal to take: one that is pending and neither blocked nor ignored.
///
/// A process that waits for the daemon can't act on it (not even on SIGKILL) until it is answered, so its request is
/// to be answered EINTR. A stop signal (Ctrl-Z) counts as well.
pub fn pending_fatal_or_any_signal(tid: u32) -> bool {
    if let Some(processes) = in_place_of_proc() {
        return processes.signals(tid).is_some_and(|signals| signals != 0);
    }
    read(tid, "status").is_ok_and(|status| has_deliverable_signal(&status))
}

/// Whether thread `tid` of user `uid` has CAP_FSETID: its writes leave set-id bits alone. Only root is asked; others that
/// were given the capability lose the bits, which is the safe side.
pub fn may_keep_set_id(tid: u32, uid: u32) -> bool {
    const CAP_FSETID: u64 = 1 << 4;
    uid == 0
        && match read(tid, "status") {
            Ok(status) => field(&status, "CapEff")
                .and_then(|hex| std::str::from_utf8(hex).ok())
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .is_none_or(|capabilities| capabilities & CAP_FSETID != 0),
            Err(_) => true,
        }
}

/// Whether thread `tid`, whose group for files is `own`, is in a group. Of one that can't be asked nothing is known: it is.
pub fn is_in_group(tid: u32, own: u32, group: u32) -> bool {
    if own == group || tid == 0 {
        return true;
    }
    let Ok(status) = read(tid, "status") else {
        return true;
    };
    let groups = field(&status, "Groups").unwrap_or_default();
    let mut groups = groups.split(|byte| byte.is_ascii_whitespace());
    groups.any(|one| number(one) == Some(group))
}

fn has_deliverable_signal(status: &[u8]) -> bool {
    deliverable_signals(status) != 0
}

fn deliverable_signals(status: &[u8]) -> u64 {
    let mask = |name| signal_mask(status, name);
    (mask("SigPnd") | mask("ShdPnd")) & !mask("SigBlk") & !mask("SigIgn")
}

fn signal_mask(status: &[u8], name: &str) -> u64 {
    field(status, name)
        .and_then(|hex| std::str::from_utf8(hex).ok())
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or(0)
}

/// Whether a thread is gone, or has a signal to take that ends its process.
pub fn is_being_killed(tid: u32) -> bool {
    if let Some(processes) = in_place_of_proc() {
        return processes.signals(tid) != Some(0);
    }
    let Ok(status) = read(tid, "status") else {
        return true;
    };
    let bit = |signal: i32| 1u64 << (signal - 1);
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    let harmless = harmless.into_iter().map(bit).fold(0, |all, one| all | one);
    let fatal = deliverable_signals(&status) & !signal_mask(&status, "SigCgt") & !harmless;
    fatal != 0
}

// ---- reading /proc ----

/// Opens `path` below `dir` for reading; a directory, too.
fn open(dir: impl AsFd, path: &str) -> Result<OwnedFd> {
    openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn open_dir(pid: u32, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/{pid}/{name}"), flags, Mode::empty())
}

/// The content of `/proc/PID/NAME`.
fn read(pid: u32, name: &str) -> Result<Vec<u8>> {
    read_at(CWD, &format!("/proc/{pid}/{name}"))
}

fn read_at(dir: impl AsFd, path: &str) -> Result<Vec<u8>> {
    slurp(&open(dir, path)?)
}

/// The content of `/proc/PID/NAME`, one of those that the kernel writes in one piece, by one read: none of them is
/// as long as the buffer.
fn read_short(pid: u32, name: &str) -> Result<Vec<u8>> {
    first_piece(&open(CWD, &format!("/proc/{pid}/{name}"))?)
}

/// What a file of one piece says now, wherever its descriptor stands.
fn first_piece(file: &OwnedFd) -> Result<Vec<u8>> {
    let mut content = Vec::with_capacity(256);
    rustix::io::retry_on_intr(|| {
        rustix::io::pread(file, rustix::buffer::spare_capacity(&mut content), 0)
    })?;
    Ok(content)
}

fn slurp(file: &OwnedFd) -> Result<Vec<u8>> {
    // Nearly every file fits, and then costs two calls: the content and the end.
    let mut content = Vec::with_capacity(4096);
    loop {
        if content.len() == content.capacity() {
            content.reserve(content.len());
        }
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut content)) {
            Ok(0) => return Ok(content),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Calls `f` for each entry of `dir` whose name is a number, until it fails.
fn for_each_number(dir: &OwnedFd, mut f: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(n) = numeric_name(entry?.file_name()) {
            f(n)?;
        }
    }
    Ok(())
}

fn numeric_name(name: &CStr) -> Option<u32> {
    number(name.to_bytes())
}

/// The value of `NAME:` in a file of such lines (`status`, `fdinfo`), without the blanks around it.
fn field<'a>(lines: &'a [u8], name: &str) -> Option<&'a [u8]> {
    lines.split(|b| *b == b'\n').find_map(|line| {
        let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b":")?;
        Some(value.trim_ascii())
    })
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
