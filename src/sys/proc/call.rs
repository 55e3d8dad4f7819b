//! Which system call a thread is in that waits for the daemon's answer: FUSE doesn't tell flock from fcntl, nor an O_EXCL from a stat.
//!
//! `/proc/TID/syscall` takes the lock that an `execve` holds while it closes descriptors. A thread that asks for a lock, or looks a
//! name up, is in no `execve` that has come so far, and one that has come so far has no other threads: so it may be read there, and
//! nowhere else.

use rustix::io::Errno;

use super::{number, read};
use crate::sys::failpoint;

/// Arguments that are looked at.
const ARGUMENTS: usize = 3;
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
    /// Any other, or one of another architecture's numbers.
    Other,
}

/// The system call that thread `tid` is in; `None` where that can't be read. To be asked of a thread that waits for a lock or a lookup, and
/// takes a few microseconds.
pub fn call_of(tid: u32) -> Option<Call> {
    if tid == 0 || failpoint::feature_off("calls") {
        return None;
    }
    for attempt in 0..TRIES {
        match read(tid, "syscall") {
            Ok(text) if text.starts_with(b"running") => {}
            Ok(text) => return parse(&text),
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
        _ => Call::Other,
    })
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
