//! Which system call a thread is in that waits for the daemon's answer: FUSE doesn't tell flock from fcntl, nor an O_EXCL from a stat.
//!
//! `/proc/TID/syscall` takes the lock that an `execve` holds while it closes descriptors. A thread that asks for a lock, or looks a
//! name up, or changes attributes, is in no `execve` that has come so far, and one that has come so far has no other threads: so it may be read there, and
//! nowhere else.

use rustix::io::Errno;

use super::{in_place_of_proc, number, read};
use crate::sys::failpoint;

/// Arguments that are looked at.
const ARGUMENTS: usize = 5;
/// How often a thread that has sent its request and not gone to sleep yet is looked at again.
const TRIES: u32 = 40;

/// What a thread waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// flock(2).
    Flock,
    /// fcntl(2), with its command.
    Fcntl(i32),
    /// open(2) or openat(2), with its flags.
    Open(i32),
    /// chmod(2) and the like, which change attributes of what a path leads to.
    Named,
    /// Any other, or one of another architecture's numbers.
    Other,
}

/// Whether thread `tid` is in a call that opens or truncates what a path leads to, as far as that is known: a 32-bit program's
/// calls and a worker of io_uring are not. `None` where it can't be read. To be asked of a thread that waits in a lookup.
pub fn is_opening(tid: u32) -> Option<bool> {
    if let Some(processes) = in_place_of_proc() {
        return processes.call(tid).map(|(_, opens)| opens);
    }
    Some(opens(number_in(&line(tid)?)?))
}

/// The system call that thread `tid` is in; `None` where that can't be read. To be asked of a thread that waits for a lock, a lookup or a change of attributes, and
/// takes a few microseconds.
pub fn call_of(tid: u32) -> Option<Call> {
    if let Some(processes) = in_place_of_proc() {
        let call = processes.call(tid).map(|(call, _)| call);
        return call.filter(|_| !failpoint::feature_off("calls"));
    }
    parse(&line(tid)?)
}

fn line(tid: u32) -> Option<Vec<u8>> {
    if tid == 0 || failpoint::feature_off("calls") {
        return None;
    }
    for attempt in 0..TRIES {
        match read(tid, "syscall") {
            Ok(text) if text.starts_with(b"running") => {}
            Ok(text) => return Some(text),
            Err(Errno::AGAIN) => {}
            Err(_) => return None,
        }
        if attempt < TRIES / 2 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
    None
}

fn number_in(line: &[u8]) -> Option<i64> {
    let mut fields = line.split(u8::is_ascii_whitespace);
    number(fields.next()?)
}

fn opens(call: i64) -> bool {
    match call {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open | libc::SYS_creat => true,
        libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_truncate
        | libc::SYS_execve
        | libc::SYS_execveat => true,
        _ => false,
    }
}

fn parse(text: &[u8]) -> Option<Call> {
    let mut fields = text
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|f| !f.is_empty());
    let call: i64 = number(fields.next()?)?;
    let mut arguments = [0; ARGUMENTS];
    for (argument, field) in arguments.iter_mut().zip(fields) {
        let digits = std::str::from_utf8(field.strip_prefix(b"0x")?).ok()?;
        *argument = u64::from_str_radix(digits, 16).ok()?;
    }
    // An int fills half of its register.
    let int = |argument: u64| argument as u32 as i32;
    Some(match call {
        libc::SYS_flock => Call::Flock,
        libc::SYS_fcntl => Call::Fcntl(int(arguments[1])),
        libc::SYS_openat => Call::Open(int(arguments[2])),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => Call::Open(int(arguments[1])),
        call if is_named(call, &arguments) => Call::Named,
        _ => Call::Other,
    })
}

fn is_named(call: i64, arguments: &[u64; ARGUMENTS]) -> bool {
    let is_path = |flags: u64| flags & libc::AT_EMPTY_PATH as u64 == 0;
    match call {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_lchown
        | libc::SYS_utimes
        | libc::SYS_utime => true,
        libc::SYS_fchmodat
        | libc::SYS_setxattr
        | libc::SYS_lsetxattr
        | libc::SYS_removexattr
        | libc::SYS_lremovexattr => true,
        libc::SYS_fchmodat2 => is_path(arguments[3]),
        libc::SYS_fchownat => is_path(arguments[4]),
        // Without a path it is futimens(3).
        libc::SYS_utimensat => arguments[1] != 0 && is_path(arguments[3]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_number_and_arguments() {
        let line =
            |call: i64| format!("{call} 0x3 0xffff00000026 0xc1 0x0 0x0 0x0 0x7ffe 0x7f1c\n");
        let parsed = |call| parse(line(call).as_bytes());
        assert_eq!(parsed(libc::SYS_flock), Some(Call::Flock));
        assert_eq!(parsed(libc::SYS_fcntl), Some(Call::Fcntl(0x26)));
        assert_eq!(parsed(libc::SYS_openat), Some(Call::Open(0xc1)));
        assert_eq!(parse(b"-1 0x7ffe 0x7f1c\n"), Some(Call::Other));
        assert_eq!(parse(b""), None);
        let named = [libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_utimensat];
        let through_descriptors = [libc::SYS_fchmod, libc::SYS_fchown, libc::SYS_fsetxattr];
        assert!(named.map(parsed).iter().all(|c| *c == Some(Call::Named)));
        let others = through_descriptors.map(parsed);
        assert!(others.iter().all(|c| *c == Some(Call::Other)));
        let futimens = format!("{} 0x3 0x0 0x7ffe 0x0 0x0 0x0", libc::SYS_utimensat);
        assert_eq!(parse(futimens.as_bytes()), Some(Call::Other));
    }

    #[test]
    fn what_opens_is_told_from_what_looks() {
        let numbers = [libc::SYS_openat, libc::SYS_openat2, libc::SYS_truncate];
        assert!(numbers.iter().all(|call| opens(*call)));
        let others = [libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_unlinkat];
        assert!(!others.iter().any(|call| opens(*call)));
        assert_eq!(number_in(b"257 0x3 0x0\n"), Some(257));
        assert_eq!(number_in(b"running\n"), None);
    }

    #[test]
    fn a_thread_that_waits_is_in_a_call() {
        let (send, receive) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            send.send(rustix::thread::gettid()).expect("the other end");
            wait.recv().ok();
        });
        let tid = receive.recv().expect("the other end");
        let tid = u32::try_from(tid.as_raw_nonzero().get()).expect("positive");
        assert!(matches!(call_of(tid), Some(Call::Other) | None));
        drop(end);
        thread.join().expect("it ends");
    }
}
