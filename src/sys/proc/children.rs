//! Who was started by a process since a moment: nobody else can have inherited what it has open.

use std::os::unix::fs::MetadataExt;

use super::{children, ids, in_place_of_proc, pid_max, range_of_pids};

/// How often the lists of children are read until they stand still.
const READINGS: usize = 4;
/// What reading one thread's list of children costs, in look-ups of an id.
const LIST: usize = 3;

/// The children of the process `pid` whose ids were handed out after `first_exclusive` and up to `last_inclusive`, both as
/// answered by [`last_pid`](super::last_pid). `None` where that can't be known: the kernel doesn't list children, they
/// come and go too fast, or `/proc` hides them.
///
/// Costs as much as the threads of the process or the ids of that range, whichever are fewer, whatever else was started
/// on the machine. A child started with CLONE_PARENT is its parent's.
pub fn children_since(pid: u32, first_exclusive: u32, last_inclusive: u32) -> Option<Vec<u32>> {
    if first_exclusive == last_inclusive {
        return Some(Vec::new());
    }
    let threads = threads(pid)?;
    let range = range_of_pids(first_exclusive, last_inclusive, pid_max).map(Iterator::collect);
    let range: Option<Vec<u32>> = range;
    if let Some(range) = range.filter(|r| r.len() <= threads.saturating_mul(LIST)) {
        let is_child = |id: &u32| ids::of(*id).is_some_and(|i| i.tgid == *id && i.parent == pid);
        return Some(range.into_iter().filter(is_child).collect());
    }
    let mut before = children(pid)?;
    for _ in 1..READINGS {
        // An empty list lacks nobody.
        let now = if before.is_empty() {
            Vec::new()
        } else {
            children(pid)?
        };
        if now == before {
            let is_new = |id: &u32| is_between(*id, first_exclusive, last_inclusive);
            before.retain(is_new);
            return Some(before);
        }
        before = now;
    }
    None
}

/// Whether an id was handed out in that time; the counter may have wrapped once.
fn is_between(id: u32, first_exclusive: u32, last_inclusive: u32) -> bool {
    if first_exclusive <= last_inclusive {
        id > first_exclusive && id <= last_inclusive
    } else {
        id > first_exclusive || id <= last_inclusive
    }
}

/// How many threads a process has, by the links of a directory.
pub fn threads(pid: u32) -> Option<usize> {
    if let Some(processes) = in_place_of_proc() {
        return processes.threads(pid).map(|all| all.len());
    }
    let links = std::fs::metadata(format!("/proc/{pid}/task")).ok()?.nlink();
    usize::try_from(links.saturating_sub(2)).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::sys::proc::last_pid;

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn children_started_since_are_found_and_older_ones_are_not() {
        let own = std::process::id();
        let older = sleeper();
        let then = last_pid().unwrap();
        assert_eq!(children_since(own, then, then), Some(vec![]));
        let younger = sleeper();
        // More ids than a list costs: the lists are read.
        let others: Vec<Child> = (0..40).map(|_| sleeper()).collect();
        let now = last_pid().unwrap();
        let found = children_since(own, then, now).unwrap();
        assert!(!found.contains(&older.id()), "{found:?}");
        assert!(found.contains(&younger.id()), "{found:?}");
        assert!(others.iter().all(|o| found.contains(&o.id())), "{found:?}");
        let few = children_since(own, younger.id() - 1, younger.id());
        assert_eq!(few, Some(vec![younger.id()]));
        others.into_iter().chain([older, younger]).for_each(end);
    }

    #[test]
    fn a_child_of_another_thread_is_found() {
        let own = std::process::id();
        let then = last_pid().unwrap();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (told, pid) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let child = sleeper();
            told.send(child.id()).unwrap();
            wait.recv().ok();
            end(child);
        });
        let pid = pid.recv().unwrap();
        let found = children_since(own, then, last_pid().unwrap()).unwrap();
        assert!(found.contains(&pid), "{found:?}");
        drop(done);
        thread.join().unwrap();
    }

    #[test]
    fn the_counter_may_have_wrapped() {
        assert!(is_between(5, 4, 5) && !is_between(4, 4, 5) && !is_between(6, 4, 5));
        assert!(is_between(32_760, 32_750, 400) && is_between(310, 32_750, 400));
        assert!(!is_between(500, 32_750, 400) && !is_between(32_750, 32_750, 400));
    }

    #[test]
    fn of_nobody_nothing_is_known() {
        assert_eq!(children_since(u32::MAX, 1, 1000), None);
    }
}
