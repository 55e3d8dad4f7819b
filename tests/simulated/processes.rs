//! A table of processes that there aren't: what the engine asks of `/proc` and pidfds, it asks here.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};

use commitfs::sys::proc::{Call, Ids, Processes, put_in_place_of_proc};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use super::descriptors::Descriptors;

/// Above all numbers that the kernel hands out: none of them is a process's that there is.
const FIRST: u32 = 1 << 23;

/// The process that has started all others.
pub const TEST: u32 = FIRST;

#[derive(Default)]
struct Thread {
    process: u32,
    children: Vec<u32>,
    call: Option<(Call, bool)>,
}

struct Process {
    parent: u32,
    threads: Vec<u32>,
    started: u64,
    is_forked: bool,
    descriptors: Arc<Mutex<Descriptors>>,
    /// Of one that is ending or has ended.
    status: Option<i32>,
    signals: u64,
    pidfds: Vec<OwnedFd>,
}

#[derive(Default)]
struct Numbers {
    last: u32,
    threads: HashMap<u32, Thread>,
    processes: HashMap<u32, Process>,
}

/// All processes of all simulated kernels of this program: the engine has one `/proc`.
pub struct Table(Mutex<Numbers>);

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let table = Table(Mutex::new(Numbers {
        last: FIRST - 1,
        ..Numbers::default()
    }));
    table.0.lock().begin(1, Arc::default(), false);
    table
});

pub fn table() -> &'static Table {
    put_in_place_of_proc(&*TABLE);
    &TABLE
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 100 + now.tv_nsec as u64 / 10_000_000
}

impl Numbers {
    fn begin(&mut self, parent: u32, descriptors: Arc<Mutex<Descriptors>>, is_forked: bool) -> u32 {
        self.last += 1;
        let pid = self.last;
        self.threads.insert(
            pid,
            Thread {
                process: pid,
                ..Thread::default()
            },
        );
        self.processes.insert(
            pid,
            Process {
                parent,
                threads: vec![pid],
                started: now(),
                is_forked,
                descriptors,
                status: None,
                signals: 0,
                pidfds: Vec::new(),
            },
        );
        pid
    }

    /// Nobody will ask for it any more.
    fn bury(&mut self, pid: u32) {
        if let Some(process) = self.processes.remove(&pid) {
            for tid in process.threads {
                self.threads.remove(&tid);
            }
        }
    }

    fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }
}

impl Table {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock()
    }

    /// A program is started, as by the test.
    pub fn spawn(&self, descriptors: Arc<Mutex<Descriptors>>) -> u32 {
        let mut numbers = self.numbers();
        let pid = numbers.begin(TEST, descriptors, false);
        let test = numbers.threads.get_mut(&TEST).expect("the test");
        test.children.push(pid);
        pid
    }

    /// A thread forks its process.
    pub fn fork(&self, tid: u32, descriptors: Arc<Mutex<Descriptors>>) -> u32 {
        let mut numbers = self.numbers();
        let parent = numbers.threads[&tid].process;
        let pid = numbers.begin(parent, descriptors, true);
        let thread = numbers.threads.get_mut(&tid).expect("it forks");
        thread.children.push(pid);
        pid
    }

    /// A process begins another thread.
    pub fn thread(&self, pid: u32) -> u32 {
        let mut numbers = self.numbers();
        numbers.last += 1;
        let tid = numbers.last;
        let thread = Thread {
            process: pid,
            ..Thread::default()
        };
        numbers.threads.insert(tid, thread);
        let process = numbers.processes.get_mut(&pid).expect("it lives");
        process.threads.push(tid);
        tid
    }

    pub fn exec(&self, pid: u32) {
        let mut numbers = self.numbers();
        let process = numbers.processes.get_mut(&pid).expect("it lives");
        process.is_forked = false;
    }

    /// A thread is in a system call, or in none.
    pub fn enter(&self, tid: u32, call: Option<(Call, bool)>) {
        if let Some(thread) = self.numbers().threads.get_mut(&tid) {
            thread.call = call;
        }
    }

    pub fn signal(&self, pid: u32, signal: i32) {
        if let Some(process) = self.numbers().processes.get_mut(&pid) {
            process.signals |= 1 << (signal - 1);
        }
    }

    /// A process gives its memory up, and then what it has open. Gives the thread that goes last; `None`: it was on its way already.
    pub fn begin_to_end(&self, pid: u32, status: i32) -> Option<u32> {
        let mut numbers = self.numbers();
        let process = numbers.processes.get_mut(&pid)?;
        if process.status.is_some() {
            return None;
        }
        process.status = Some(status);
        process.threads.last().copied()
    }

    /// A process has ended; its parent waits for it if that is the test, and no other does.
    pub fn end(&self, pid: u32) {
        let mut numbers = self.numbers();
        let Some(process) = numbers.processes.get_mut(&pid) else {
            return;
        };
        for pidfd in std::mem::take(&mut process.pidfds) {
            rustix::io::write(&pidfd, &1u64.to_ne_bytes()).expect("an event");
        }
        let (parent, threads) = (process.parent, process.threads.clone());
        let orphans: Vec<u32> = threads
            .iter()
            .flat_map(|tid| {
                std::mem::take(&mut numbers.threads.get_mut(tid).expect("its").children)
            })
            .collect();
        for orphan in orphans {
            match numbers.processes.get_mut(&orphan) {
                Some(ended) if ended.pidfds.is_empty() && ended.status.is_some() => {
                    numbers.bury(orphan);
                }
                Some(living) => living.parent = 1,
                None => {}
            }
        }
        // What is left of the others is a zombie.
        if parent == TEST || parent == 1 {
            numbers.bury(pid);
            let test = numbers.threads.get_mut(&TEST).expect("the test");
            test.children.retain(|child| *child != pid);
        }
    }
}

impl Processes for Table {
    fn ids(&self, tid: u32) -> Option<Ids> {
        let numbers = self.numbers();
        let tgid = numbers.threads.get(&tid)?.process;
        let parent = numbers.process(tgid)?.parent;
        Some(Ids { tgid, parent })
    }

    fn memory_is_gone(&self, tid: u32) -> Option<bool> {
        let numbers = self.numbers();
        let process = numbers.threads.get(&tid)?.process;
        Some(numbers.process(process)?.status.is_some())
    }

    fn exit_code(&self, pid: u32) -> Option<i32> {
        self.numbers().process(pid)?.status
    }

    fn children_of(&self, tid: u32) -> Vec<u32> {
        let numbers = self.numbers();
        numbers
            .threads
            .get(&tid)
            .map(|thread| thread.children.clone())
            .unwrap_or_default()
    }

    fn threads(&self, pid: u32) -> Option<Vec<u32>> {
        Some(self.numbers().process(pid)?.threads.clone())
    }

    fn last_pid(&self) -> u32 {
        self.numbers().last
    }

    fn all(&self) -> Vec<u32> {
        self.numbers().processes.keys().copied().collect()
    }

    fn start(&self, pid: u32) -> Option<(u64, bool)> {
        let numbers = self.numbers();
        let process = numbers.process(pid)?;
        Some((process.started, process.is_forked))
    }

    fn written(&self, pid: u32) -> Option<Vec<(u64, OFlags)>> {
        let descriptors = self.numbers().process(pid)?.descriptors.clone();
        let descriptors = descriptors.lock();
        Some(descriptors.written())
    }

    fn mapped(&self, _pid: u32) -> Vec<u64> {
        Vec::new()
    }

    fn comm(&self, pid: u32) -> Option<String> {
        self.numbers().process(pid).map(|_| "simulated".to_owned())
    }

    fn signals(&self, tid: u32) -> Option<u64> {
        let numbers = self.numbers();
        let process = numbers.threads.get(&tid)?.process;
        Some(numbers.process(process)?.signals)
    }

    fn call(&self, tid: u32) -> Option<(Call, bool)> {
        let numbers = self.numbers();
        Some(
            numbers
                .threads
                .get(&tid)?
                .call
                .unwrap_or((Call::Other, false)),
        )
    }

    fn pidfd(&self, pid: u32) -> Option<OwnedFd> {
        let mut numbers = self.numbers();
        let process = numbers.processes.get_mut(&pid)?;
        let ours = eventfd(0, EventfdFlags::CLOEXEC).ok()?;
        let theirs = rustix::io::fcntl_dupfd_cloexec(&ours, 3).ok()?;
        process.pidfds.push(ours);
        Some(theirs)
    }
}
