//! The processes and threads that take part in a transaction: who has opened it, written, closed or
//! died, and whoever else may hold a descriptor of it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use super::Kin;
use crate::sys::{failpoint, pidfd, proc};
use crate::types::Caller;

/// A process that takes part in a transaction.
#[derive(Clone, Debug, Default)]
struct Process {
    /// It opened the transaction's first description, or joined it by an open.
    opener: bool,
    wrote: bool,
    /// It closed explicitly, being alive, after the last write.
    closed_cleanly: bool,
    /// Signal that ended it while it held a descriptor.
    killed_by: Option<i32>,
    /// How often it has closed a descriptor explicitly.
    closes: u32,
    /// It has closed a descriptor.
    closed: bool,
    /// It has ended: whoever has its number is another.
    has_ended: bool,
    /// Of one that was killed: those it descended from.
    ancestors: Vec<u32>,
}

impl Process {
    fn takes_part(&self) -> bool {
        self.opener || self.wrote
    }
}

/// Since when it is open: processes that were started later may see what is staged.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// Its first description was opened then.
    Opened(proc::Moment),
    /// A description that added lines went on in it then, and was opened before that.
    HandedOver(proc::Moment),
}

/// Whether a process sees what is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// It does.
    Staged,
    /// It finds what others find.
    Others,
    /// It does if it has a descriptor.
    IfInherited,
}

/// All that take part in a transaction, and all that may.
#[derive(Debug, Default)]
pub struct Participants {
    opener: u32,
    opener_tid: u32,
    /// Other threads of the opener's process that have opened it as well.
    other_threads: Vec<u32>,
    command: String,
    processes: HashMap<u32, Process>,
    since: Option<Since>,
    kin: Kin,
    last_closer: u32,
    /// A mapping may be what keeps it: some description can read and write.
    mappable: bool,
    /// Processes that closed explicitly but may have left a mapping.
    watched: Vec<(u32, OwnedFd)>,
    /// Some description was opened on another node than the transaction's own.
    shares_node: bool,
    /// Processes that merely inherited it and keep it from being committed (C3), once they were
    /// looked for.
    idle_holders: Option<Vec<u32>>,
}

/// Who has opened it.
impl Participants {
    /// It is begun for a process whose open is still to come; 0 if that is not known.
    pub fn expect(&mut self, pid: u32) {
        self.opener = pid;
    }

    /// It is begun for a thread whose truncate(2) is still to come.
    pub fn expect_thread(&mut self, tid: u32) {
        self.opener_tid = tid;
    }

    /// A process changes the file by its name, with no description (truncate(2)).
    pub fn act_unopened(&mut self, pid: u32) {
        self.opener = pid;
        self.command = proc::command(pid);
    }

    /// Its first description is opened: [`Self::join`] is to follow.
    pub fn open(&mut self, pid: u32, tid: u32) {
        (self.opener, self.opener_tid) = (pid, tid);
        self.command = proc::comm(pid).unwrap_or_default();
        self.since = Some(Since::Opened(proc::Moment::now()));
    }

    /// One more description is opened; `maps`: it may be mapped to be written.
    pub fn join(&mut self, pid: u32, tid: u32, maps: bool) {
        self.note_thread(pid, tid);
        self.mappable |= maps;
        let process = self.processes.entry(pid).or_default();
        (process.opener, process.has_ended) = (true, false);
        self.kin.joins(pid);
    }

    /// A thread has opened it.
    fn note_thread(&mut self, pid: u32, tid: u32) {
        if pid == self.opener && !self.was_opened_by(tid) {
            self.other_threads.push(tid);
        }
    }

    /// A description that a thread of a process had opened to add lines goes on in it. Who was started
    /// since that was opened is not known.
    pub fn take_over(&mut self, (opener, tid): (u32, u32)) {
        self.note_thread(opener, tid);
        self.since = Some(Since::HandedOver(proc::Moment::now()));
        self.kin.miss();
        self.processes.entry(opener).or_default().opener = true;
    }

    /// A description is opened on another node than the transaction's own: its descriptors can't be
    /// told by that any more.
    pub fn share_node(&mut self) {
        self.shares_node = true;
    }

    /// Whether its descriptors can't all be told by its node.
    pub fn shares_node(&self) -> bool {
        self.shares_node
    }

    /// Process that has opened it first; 0 if that is not known.
    pub fn opener(&self) -> u32 {
        self.opener
    }

    /// Thread that has opened it first; 0 if that is not known.
    pub fn opener_tid(&self) -> u32 {
        self.opener_tid
    }

    /// Process that has opened it first, and its command, for people.
    pub fn who(&self) -> (u32, &str) {
        (self.opener, &self.command)
    }

    /// [`Self::who`], to be kept.
    pub fn to_who(&self) -> (u32, String) {
        (self.opener, self.command.clone())
    }

    /// The threads of the process that opened it first which have opened it.
    fn opener_threads(&self) -> impl Iterator<Item = u32> {
        let others = self.other_threads.iter().copied();
        let others = others.filter(|_| !failpoint::mutant("C1-joined"));
        std::iter::once(self.opener_tid).chain(others)
    }

    /// Whether it is one of these.
    fn was_opened_by(&self, tid: u32) -> bool {
        self.opener_threads().any(|thread| thread == tid)
    }

    /// All that take part.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.keys().copied()
    }

    /// Whether a process does.
    pub fn contains(&self, pid: u32) -> bool {
        self.processes.contains_key(&pid)
    }

    /// Whether a process is the opener, descends from it, or has started it.
    pub fn is_family(&self, pid: u32) -> bool {
        let opener = self.opener;
        opener != 0
            && (proc::is_self_or_descendant(pid, opener)
                || proc::is_self_or_descendant(opener, pid))
    }

    /// Whether a thread of a process finds the staged content under the name (C1): the thread that
    /// opened it does (`open_to_process`: all threads of its process), those who have it open, and
    /// processes that one of these has started since, or a helper of theirs (a fork server).
    ///
    /// Kinship alone gives no view. A pool's worker, or the web page that a trainer has started first,
    /// would read half of what is being saved; and threads of one process that each load, change and
    /// save must not read each other's half-written file.
    pub fn view(&self, (tgid, tid): (u32, u32), open_to_process: bool) -> View {
        let process = self.processes.get(&tgid);
        let process = process.filter(|p| !p.has_ended || failpoint::mutant("C1-number"));
        if let Some(process) = process.filter(|p| p.takes_part())
            && !self.is_another_of_its_number(process, tgid)
        {
            return match tgid != self.opener || self.was_opened_by(tid) || open_to_process {
                true => View::Staged,
                false => View::Others,
            };
        }
        let started_by = self.started_by(tgid, open_to_process);
        if started_by == Some(By::Opener) {
            return match self.since {
                Some(Since::Opened(opened)) if was_started_since(&opened, tgid) => View::Staged,
                Some(Since::Opened(_)) => View::Others,
                Some(Since::HandedOver(moment))
                    if was_started_since(&moment, tgid) && !failpoint::mutant("C1-younger") =>
                {
                    View::Staged
                }
                Some(Since::HandedOver(_)) | None => View::IfInherited,
            };
        }
        // A fork by any thread hands on what the process has open. Whoever outlives the process it inherited from
        // descends from nobody any more.
        let is_forked = started_by.is_some() && !failpoint::mutant("C1-forked");
        let is_orphaned = process.is_some() || self.pids().any(|pid| !proc::lives(pid));
        let is_old = |opened: proc::Moment| !was_started_since(&opened, tgid);
        match (is_forked || is_orphaned) && !self.opened().is_some_and(is_old) {
            true => View::IfInherited,
            false => View::Others,
        }
    }

    /// When its first description was opened, if that is known.
    fn opened(&self) -> Option<proc::Moment> {
        match self.since {
            Some(Since::Opened(moment)) => Some(moment),
            Some(Since::HandedOver(_)) | None => None,
        }
    }

    /// The last process that had been started when it was opened.
    pub fn last_pid_at_open(&self) -> Option<u32> {
        self.opened()?.last_pid()
    }

    /// What opened it has closed it and may be gone: a process started since has but its number.
    fn is_another_of_its_number(&self, process: &Process, tgid: u32) -> bool {
        process.opener
            && process.closed_cleanly
            && !failpoint::mutant("C1-number")
            && self
                .opened()
                .is_some_and(|opened| was_started_since(&opened, tgid))
    }

    /// By whom a process was started, or who it descends from, if that is one that has opened or written it.
    fn started_by(&self, tgid: u32, open_to_process: bool) -> Option<By> {
        let theirs = self.processes.iter().filter(|(_, p)| !p.has_ended);
        let by = theirs
            .filter(|(_, p)| p.takes_part())
            .filter_map(|(pid, _)| {
                let branch = proc::branch_below(tgid, *pid)?;
                let by_opener = *pid != self.opener
                    || open_to_process
                    || self
                        .opener_threads()
                        .any(|tid| proc::has_started(*pid, tid, branch))
                    || failpoint::mutant("C1-threads");
                Some(if by_opener {
                    By::Opener
                } else {
                    By::OtherThread
                })
            });
        by.min()
    }
}

/// Who has started a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// Who sees what is staged.
    Opener,
    /// Another thread of the process that has opened it.
    OtherThread,
}

fn was_started_since(opened: &proc::Moment, tgid: u32) -> bool {
    let start = proc::Start::of_caller(tgid);
    start.is_some_and(|start| start.is_after(opened)) || failpoint::mutant("C1-kin")
}

/// Who writes, closes and dies.
impl Participants {
    /// A thread has written. Pages written back by the kernel's own threads carry no process of ours.
    pub fn write(&mut self, tid: u32) {
        if tid == self.opener_tid {
            self.processes.entry(self.opener).or_default().wrote = true;
            self.outlives(self.opener);
            self.kin.joins(self.opener);
        } else if let Some(pid) = proc::tgid(tid) {
            self.outlives(pid);
            let process = self.processes.entry(pid).or_default();
            process.wrote = true;
            (process.closed_cleanly, process.has_ended) = (false, false);
            self.kin.joins(pid);
        }
    }

    /// A process has written. If it is the opener, or one that a killed one descended from, it goes
    /// on without that one, as a trainer does without its worker: such a death doesn't count (C4).
    /// Nor does that of one which has opened the first opener's file by itself, and written nothing.
    fn outlives(&mut self, writer: u32) {
        let is_opener = self.processes.get(&writer).is_some_and(|p| p.opener);
        if failpoint::mutant("C4-workers") {
            return;
        }
        let is_first = writer == self.opener && !failpoint::mutant("C4-only-opened");
        for (pid, process) in &mut self.processes {
            let is_child = is_opener || process.ancestors.contains(&writer);
            let has_only_opened = is_first && *pid != writer && !process.wrote;
            let is_idle = !process.opener && is_child || has_only_opened;
            if process.killed_by.is_some() && is_idle {
                (process.killed_by, process.wrote, process.opener) = (None, false, false);
            }
        }
    }

    /// Those that have written.
    pub fn writers(&self) -> impl Iterator<Item = u32> {
        let writers = self.processes.iter().filter(|(_, p)| p.wrote);
        writers.map(|(pid, _)| *pid)
    }

    /// Whether a process that ends, and was looked at before, closes one more of its duplicates.
    pub fn closes_further(&mut self, caller: Caller) -> bool {
        if !self.processes.values().any(|p| p.has_ended) || proc::lives(caller.tid) {
            return false;
        }
        let has_ended = |pid: &u32| self.processes.get(pid).is_some_and(|p| p.has_ended);
        let Some(pid) = proc::tgid(caller.tid).filter(has_ended) else {
            return false;
        };
        self.last_closer = pid;
        true
    }

    /// Looks at the closing task: whether it is ending, and how. Gives its process, and how often that
    /// has closed a descriptor.
    pub fn close(&mut self, caller: Caller) -> (u32, u32) {
        let Some(pid) = proc::tgid(caller.tid) else {
            return (caller.tid, 0);
        };
        let death = proc::death_of_flusher(caller.tid, pid);
        self.last_closer = pid;
        let process = self.processes.entry(pid).or_default();
        process.closed = true;
        process.has_ended |= death != proc::Death::Alive && !proc::lives(pid);
        if let Some(signal) = death.fatal_signal() {
            process.killed_by = Some(signal);
            process.ancestors = proc::ancestors(pid);
        } else if death == proc::Death::Alive {
            process.closed_cleanly = true;
            process.closes += 1;
            if self.mappable && !self.watched.iter().any(|(p, _)| *p == pid) {
                self.watched.extend(pidfd::pidfd(pid).map(|fd| (pid, fd)));
            }
        }
        (pid, process.closes)
    }

    /// The process that closed a descriptor last.
    pub fn last_closer(&self) -> u32 {
        self.last_closer
    }

    /// Whether it was closed last by one of those who take part that was ending, and doesn't go on.
    pub fn was_closed_at_end(&self) -> bool {
        let last = self.processes.get(&self.last_closer);
        last.is_some_and(|last| last.closed && !last.closed_cleanly && last.takes_part())
    }

    /// Those that have opened it and never closed a descriptor: each holds one, as long as it lives.
    pub fn sure_holders(&self) -> impl Iterator<Item = u32> {
        let holders = self.processes.iter().filter(|(_, p)| p.opener && !p.closed);
        holders.map(|(pid, _)| *pid)
    }

    /// All that take part but for this one, and whether each has closed a descriptor.
    pub fn others(&self, but: u32) -> impl Iterator<Item = (u32, bool)> {
        let all = self.processes.iter().map(|(pid, p)| (*pid, p.closed));
        all.filter(move |(pid, _)| *pid != but)
    }

    /// Who was killed, and by which signal, that keeps it from committing (C4): the opener or a writer,
    /// or the last holder unless that one merely inherited what the opener had written and closed.
    pub fn killed(&self) -> Option<(u32, i32)> {
        let has_left = |p: &Process| p.opener && p.closed_cleanly && p.killed_by.is_none();
        let opener_left_cleanly = self.processes.values().any(has_left);
        self.killed_among(|pid, p| {
            let is_last = pid == self.last_closer;
            p.takes_part() || (is_last && !opener_left_cleanly)
        })
    }

    /// [`Self::killed`] as long as somebody holds it: who has closed last is not the last holder.
    pub fn killed_writer(&self) -> Option<(u32, i32)> {
        self.killed_among(|_, p| p.takes_part())
    }

    fn killed_among(&self, counts: impl Fn(u32, &Process) -> bool) -> Option<(u32, i32)> {
        self.processes.iter().find_map(|(pid, p)| {
            let signal = p.killed_by?;
            counts(*pid, p).then_some((*pid, signal))
        })
    }

    /// No death counts that was so far.
    pub fn forgive_deaths(&mut self) {
        for process in self.processes.values_mut() {
            process.killed_by = None;
        }
    }

    /// Of those who have had it open through descriptions of their own, and written nothing, no death counts: it is this process's.
    pub fn forgive_sharers(&mut self, opener: u32) {
        let others = self
            .processes
            .iter_mut()
            .filter(|(pid, p)| **pid != opener && !p.wrote);
        for (_, process) in others.filter(|_| !failpoint::mutant("C4-sharers")) {
            process.killed_by = None;
        }
    }

    /// Nobody takes part any more: it ends by force.
    pub fn leave(&mut self) {
        self.processes.clear();
    }
}

/// Mappings, which outlive descriptors, and descriptors that were inherited.
impl Participants {
    /// Whether a mapping may be what keeps it.
    pub fn is_mappable(&self) -> bool {
        self.mappable
    }

    /// Whether some process has closed it that may have left a mapping.
    pub fn may_be_mapped(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Whether it matters if this process has left a mapping.
    pub fn matters_if_mapped(&self, pid: u32) -> bool {
        let takes_part = self.processes.get(&pid).is_some_and(Process::takes_part);
        takes_part && self.watched.iter().any(|(watched, _)| *watched == pid)
    }

    /// A process had no mapping left after it had closed a descriptor for this time: however it ends, it has
    /// no part in what becomes of it, unless it has closed another since.
    pub fn left_no_mapping(&mut self, pid: u32, closes: u32) {
        if self.processes.get(&pid).is_some_and(|p| p.closes == closes) {
            self.watched.retain(|(watched, _)| *watched != pid);
        }
    }

    /// Notes a writer that left only a mapping and has been ended by a signal since: no FLUSH told.
    pub fn note_dead_mapping(&mut self) {
        if !self.mappable {
            return;
        }
        let dead = self.watched.iter().find_map(|(pid, process)| {
            // Its memory goes before it is a zombie, and the mapping with the memory.
            let signal = match proc::death_of_flusher(*pid, *pid) {
                proc::Death::Signalled(signal) if !pidfd::has_ended(process) => signal,
                _ => pidfd::killed_by(*pid, process)?,
            };
            (signal != libc::SIGPIPE).then_some((*pid, signal))
        });
        if let Some((pid, signal)) = dead {
            self.processes.entry(pid).or_default().killed_by = Some(signal);
        }
    }

    /// Who may hold a descriptor besides those that take part.
    pub fn kin(&self) -> &Kin {
        &self.kin
    }

    /// Takes over what was found out with a copy of these.
    pub fn learn(&mut self, found: Kin) {
        self.kin.learn(found);
    }

    /// A FLUSH was answered without a look at its sender's children.
    pub fn miss(&mut self) {
        self.kin.miss();
    }

    /// Processes that merely inherited it keep it from being committed, and have been told.
    pub fn note_idle(&mut self, holders: Vec<u32>) {
        self.idle_holders = Some(holders);
    }

    /// These, once they were looked for.
    pub fn idle_holders(&self) -> Option<&[u32]> {
        self.idle_holders.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was opened by 10, and whose descriptors 11 has as well.
    fn opened() -> Participants {
        let mut participants = Participants::default();
        participants.join(10, 10, false);
        participants.opener = 10;
        participants
    }

    fn kill(participants: &mut Participants, pid: u32, ancestors: &[u32]) {
        participants.last_closer = pid;
        let process = participants.processes.entry(pid).or_default();
        process.killed_by = Some(9);
        process.ancestors = ancestors.to_vec();
    }

    fn close(participants: &mut Participants, pid: u32) {
        participants.last_closer = pid;
        let process = participants.processes.entry(pid).or_default();
        (process.closed, process.closed_cleanly) = (true, true);
    }

    #[test]
    fn an_inheritor_that_is_killed_counts_only_if_the_opener_has_not_left() {
        let mut participants = opened();
        kill(&mut participants, 11, &[10]);
        assert_eq!(participants.killed(), Some((11, 9)));
        assert_eq!(participants.killed_writer(), None);
        close(&mut participants, 10);
        kill(&mut participants, 11, &[10]);
        assert_eq!(participants.killed(), None);
    }

    #[test]
    fn a_killed_worker_does_not_count_once_who_started_it_goes_on() {
        let mut participants = opened();
        participants.processes.entry(11).or_default().wrote = true;
        kill(&mut participants, 11, &[10]);
        assert_eq!(participants.killed_writer(), Some((11, 9)));
        participants.outlives(10);
        assert_eq!(participants.killed(), None);
        kill(&mut participants, 10, &[]);
        participants.outlives(10);
        assert_eq!(participants.killed(), Some((10, 9)), "the opener counts");
    }

    #[test]
    fn who_has_only_opened_it_and_is_killed_does_not_count_once_the_first_opener_goes_on() {
        let mut participants = opened();
        participants.join(12, 12, false);
        kill(&mut participants, 12, &[10]);
        assert_eq!(participants.killed_writer(), Some((12, 9)));
        participants.outlives(10);
        close(&mut participants, 10);
        assert_eq!(participants.killed(), None);
        participants.join(13, 13, false);
        participants.processes.entry(13).or_default().wrote = true;
        kill(&mut participants, 13, &[10]);
        participants.outlives(10);
        assert_eq!(participants.killed(), Some((13, 9)), "it has written");
    }

    #[test]
    fn who_has_opened_and_closed_nothing_surely_holds_it() {
        let mut participants = opened();
        participants.join(12, 12, false);
        close(&mut participants, 12);
        assert_eq!(participants.sure_holders().collect::<Vec<_>>(), [10]);
        assert_eq!(participants.others(10).collect::<Vec<_>>(), [(12, true)]);
    }
}
