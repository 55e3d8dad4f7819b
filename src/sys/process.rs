//! Processes that are asked again and again how they have ended: each is held by one descriptor, whoever asks, and answers once.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use super::{failpoint, pidfd};

/// How a process has ended: its wait status, where that could be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitStatus(pub Option<i32>);

/// A process.
#[derive(Debug)]
pub struct AskedProcess {
    pid: u32,
    descriptor: OwnedFd,
    ended: OnceLock<WaitStatus>,
}

impl AskedProcess {
    fn open(pid: u32) -> Option<AskedProcess> {
        Some(AskedProcess {
            pid,
            descriptor: pidfd::pidfd(pid)?,
            ended: OnceLock::new(),
        })
    }

    /// How it has ended, if it has.
    pub fn ask(&self) -> Option<WaitStatus> {
        if self.known().is_none() && pidfd::has_ended(&self.descriptor) {
            // As long as nobody has waited for it more can be told than later.
            let status = pidfd::status(self.pid, &self.descriptor);
            self.ended.get_or_init(|| WaitStatus(status));
        }
        self.known()
    }

    /// What was found out when somebody asked before.
    pub fn known(&self) -> Option<WaitStatus> {
        self.ended.get().copied()
    }
}

impl AsFd for AskedProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Processes by their numbers, for as long as somebody has use for them.
#[derive(Debug, Default)]
pub struct SharedProcesses {
    by_number: HashMap<u32, Weak<AskedProcess>>,
}

impl SharedProcesses {
    /// The living process of a number; `None` if there is none, or no descriptor for it.
    pub fn get(&mut self, pid: u32) -> Option<Arc<AskedProcess>> {
        let shared = self.by_number.get(&pid).and_then(Weak::upgrade);
        // The number may be somebody else's since.
        let shared = shared.filter(|process| process.ask().is_none());
        if let Some(process) = shared.filter(|_| !failpoint::mutant("C23-descriptors")) {
            return Some(process);
        }
        let process = Arc::new(AskedProcess::open(pid)?);
        self.by_number.insert(pid, Arc::downgrade(&process));
        Some(process)
    }

    /// All that somebody has use for.
    pub fn all(&mut self) -> Vec<Arc<AskedProcess>> {
        let mut all = Vec::new();
        self.by_number.retain(|_, process| {
            all.extend(process.upgrade());
            process.strong_count() > 0
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_descriptor_as_long_as_somebody_has_use_for_it() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut processes = SharedProcesses::default();
        let process = processes.get(child.id()).unwrap();
        let again = processes.get(child.id()).unwrap();
        assert!(Arc::ptr_eq(&process, &again));
        assert_eq!((processes.all().len(), process.ask()), (1, None));
        drop(child.stdin.take());
        while process.ask().is_none() {}
        assert_eq!(
            process.ask(),
            Some(WaitStatus(Some(0))),
            "nobody has waited for it"
        );
        child.wait().unwrap();
        assert_eq!(again.known(), Some(WaitStatus(Some(0))));
        assert!(processes.get(child.id()).is_none(), "it is gone");
        drop((process, again));
        assert!(processes.all().is_empty() && processes.by_number.is_empty());
    }
}
