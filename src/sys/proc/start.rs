//! When a process was started: before or after a moment that was noted.
//!
//! The kernel tells it in steps of 10 ms. Within one step the ids decide, as they are handed out in order: one that was
//! handed out last at the moment, and those before it, were there already.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{in_place_of_proc, last_pid, number, pid_max, read};

/// Which field of `/proc/PID/stat` holds the flags, counted from 1 as proc(5) does.
const FLAGS_FIELD: usize = 9;
/// Which holds the time of the start.
const START_FIELD: usize = 22;
/// Steps of that time in a second, as programs are told it: part of the kernel's interface.
const USER_HZ: u64 = 100;
/// `PF_FORKNOEXEC`: it has what its parent had in memory.
const FORKED: u64 = 0x40;

/// A moment that starts of processes can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    ticks: u64,
    last_pid: Option<u32>,
}

/// How a process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pid: u32,
    ticks: u64,
    /// It was forked and has not called execve since.
    pub is_forked: bool,
}

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        Moment {
            ticks: ticks_now(),
            last_pid: last_pid(),
        }
    }

    /// So long ago, to within 10 ms.
    pub fn ago(passed: Duration) -> Moment {
        // Rounded so that it is not later than that.
        let passed = passed.as_millis() * u128::from(USER_HZ) / 1000 + 1;
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        Moment {
            ticks: ticks_now().saturating_sub(passed),
            last_pid: None,
        }
    }

    /// One of a test's own.
    #[cfg(test)]
    pub fn at(ticks: u64) -> Moment {
        let last_pid = Some(u32::try_from(ticks).unwrap_or(0));
        Moment { ticks, last_pid }
    }

    /// The id that had been handed out last: if it is that of another moment, nothing was started in
    /// between.
    pub fn last_pid(&self) -> Option<u32> {
        self.last_pid
    }
}

impl Start {
    /// The start of a process that is waiting for the daemon in a lookup, an open or a read. Of no other, and never in
    /// a FLUSH: `stat` may wait for the very `execve` that sends one.
    pub fn of_caller(tgid: u32) -> Option<Start> {
        if let Some(processes) = in_place_of_proc() {
            let (ticks, is_forked) = processes.start(tgid)?;
            return Some(Start {
                pid: tgid,
                ticks,
                is_forked,
            });
        }
        parse(tgid, &read(tgid, "stat").ok()?)
    }

    /// One of a test's own.
    #[cfg(test)]
    pub fn at(ticks: u64, is_forked: bool) -> Start {
        Start {
            pid: 1,
            ticks,
            is_forked,
        }
    }

    /// Whether it may have been started later than that, by 10 ms.
    pub fn is_not_before(&self, moment: &Moment) -> bool {
        self.ticks >= moment.ticks
    }

    /// Whether it was started later than that. Where it can't be told it was not.
    pub fn is_after(&self, moment: &Moment) -> bool {
        if self.ticks != moment.ticks {
            return self.ticks > moment.ticks;
        }
        moment
            .last_pid
            .is_some_and(|last| is_handed_out_after(self.pid, last, pid_max))
    }
}

fn ticks_now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let fraction = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * USER_HZ + fraction / (1_000_000_000 / USER_HZ)
}

/// The order of two ids that were handed out within a few milliseconds; the counter may have wrapped in between.
fn is_handed_out_after(pid: u32, last: u32, max: fn() -> Option<u32>) -> bool {
    if pid == last {
        return false;
    }
    let Some(max) = max() else {
        return pid > last;
    };
    let distance = (u64::from(pid) + u64::from(max) - u64::from(last)) % u64::from(max);
    distance < u64::from(max) / 2
}

/// The second field is the name of the program in parentheses; it may itself hold blanks and parentheses.
fn parse(pid: u32, stat: &[u8]) -> Option<Start> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = stat[name_end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|f| !f.is_empty());
    let flags: u64 = number(fields.nth(FLAGS_FIELD - 3)?)?;
    Some(Start {
        pid,
        ticks: number(fields.nth(START_FIELD - FLAGS_FIELD - 1)?)?,
        is_forked: flags & FORKED != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_after_what_was_before_it_and_before_what_came_later() {
        for _ in 0..50 {
            let before = Moment::now();
            let mut child = Command::new("cat")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let after = Moment::now();
            let start = Start::of_caller(child.id()).unwrap();
            assert!(start.is_after(&before), "{start:?} {before:?}");
            assert!(!start.is_after(&after), "{start:?} {after:?}");
            drop(child.stdin.take());
            child.wait().unwrap();
        }
    }

    #[test]
    fn within_one_step_the_ids_decide_also_where_they_wrap() {
        let max = || Some(32_768);
        assert!(is_handed_out_after(8, 7, max));
        assert!(!is_handed_out_after(7, 7, max));
        assert!(!is_handed_out_after(7, 8, max));
        assert!(is_handed_out_after(301, 32_760, max));
        assert!(!is_handed_out_after(32_760, 301, max));
    }

    #[test]
    fn the_fields_are_counted_behind_the_name() {
        let stat = b"7 (a) b) c) S 1 7 7 0 -1 4194368 0 0 0 0 0 0 0 0 20 0 1 0 4711 5 6 7";
        let start = parse(7, stat).unwrap();
        assert_eq!((start.ticks, start.is_forked), (4711, true));
    }
}
