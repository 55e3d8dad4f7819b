//! What the checkpoint is asked for, by whom, and what it does next. Waits for nothing itself.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::types::{OpResult, Seq};

/// A round that is asked for waits so long for others who are likely to ask for one, too.
const GATHER: Duration = Duration::from_micros(300);

/// An answer that waits until a commit is durable.
pub struct Parked {
    /// The commit.
    pub seq: Seq,
    /// Gives the answer.
    pub answer: Box<dyn FnOnce(OpResult<()>) + Send>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("seq", &self.seq).finish()
    }
}

/// What the checkpoint's thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Ends: there is nothing left.
    Leave,
    /// Tells those who wait that nothing can be written any more, and waits for orders.
    Refuse,
    /// Waits for others who are about to ask, and whom one wait for the disk serves as well.
    Gather(Instant),
    /// A round.
    Round,
    /// Waits until a round is due.
    Until(Instant),
    /// Waits for orders.
    Idle,
}

/// See the module.
#[derive(Debug, Default)]
pub struct CheckpointRequest {
    /// When the next round is due; `None` while nothing waits for one.
    pub due: Option<Instant>,
    /// Rounds are asked for at once until this many have ended.
    pub wanted: u64,
    /// Workers that wait for a commit to be durable.
    pub awaiting: usize,
    /// Answers that do.
    pub parked: Vec<Parked>,
    /// Durable closes that would wait for ever if everybody went on committing.
    pub overtaken: usize,
    /// How many of both there were when the last round had ended, those it was for included.
    pub usual: usize,
    /// The next round writes out all documents.
    pub write_out: bool,
    /// The checkpoint is in the middle of a round.
    pub busy: bool,
    /// That takes along what even the journal doesn't have: until it has ended, nobody may say that all before him is on the medium.
    pub takes_unsynced: bool,
    /// What can't be written any more, whatever is tried: new commits are refused.
    pub failed: Option<Errno>,
    /// Why the last round didn't bring everything out; the next one tries again.
    pub stuck: Option<Errno>,
    /// Rounds ended so far.
    pub rounds: u64,
    /// The daemon is ending: the checkpoint thread leaves after its last round.
    pub stop: bool,
    /// A test has given the engine up: the checkpoint thread leaves with nothing more done.
    pub abandoned: bool,
    gathering: Option<Instant>,
}

impl CheckpointRequest {
    /// What is to be done, where there is `work`: commits that are not in place.
    pub fn next(&mut self, work: bool, now: Instant) -> Todo {
        let wanted = self.wanted > self.rounds;
        let is_due = self.stop || self.due.is_none_or(|due| due <= now);
        let gathers = |since: Instant| now.duration_since(since) < GATHER;
        if self.stop && !work {
            Todo::Leave
        } else if self.failed.is_some() && !self.stop {
            Todo::Refuse
        } else if wanted && !self.is_worth_a_round() && self.gathering.is_none_or(gathers) {
            Todo::Gather(*self.gathering.get_or_insert(now) + GATHER)
        } else if wanted || work && is_due {
            self.gathering = None;
            Todo::Round
        } else if let Some(due) = self.due.filter(|_| work) {
            Todo::Until(due)
        } else {
            // What became due during a round may have been done by that.
            self.due = None;
            Todo::Idle
        }
    }

    /// How many rounds will have ended when one has that begins from now on.
    pub fn next_whole(&self) -> u64 {
        self.rounds + if self.busy { 2 } else { 1 }
    }

    /// What keeps commits from the medium, for the moment or for good.
    pub fn trouble(&self) -> Option<Errno> {
        self.failed.or(self.stuck)
    }

    /// Whether as many wait as a round is worth: half of those who usually do. The others get ready
    /// for the next while the disk is busy with this one.
    pub fn is_worth_a_round(&self) -> bool {
        self.waiting() * 2 >= self.usual
    }

    /// How many wait for a commit to be durable.
    pub fn waiting(&self) -> usize {
        self.awaiting + self.parked.len()
    }

    /// Takes out the answers that can be given, and says what they are.
    ///
    /// The first `asked` were there when the last round began: if that failed, so have they.
    pub fn answers(&mut self, durable: Seq, asked: usize) -> Vec<(Parked, OpResult<()>)> {
        let mut answers = Vec::new();
        for (place, parked) in std::mem::take(&mut self.parked).into_iter().enumerate() {
            let stuck = self.stuck.filter(|_| place < asked);
            match self.failed.or(stuck) {
                _ if parked.seq <= durable => answers.push((parked, Ok(()))),
                Some(errno) => answers.push((parked, Err(errno))),
                None => self.parked.push(parked),
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_begins_when_it_is_due_and_at_once_when_somebody_waits() {
        let now = Instant::now();
        let mut request = CheckpointRequest::default();
        assert_eq!(request.next(false, now), Todo::Idle);
        let due = now + Duration::from_millis(200);
        request.due = Some(due);
        assert_eq!(request.next(true, now), Todo::Until(due));
        assert_eq!(request.next(true, due), Todo::Round);
        request.wanted = 1;
        assert_eq!(request.next(true, now), Todo::Round);
        request.rounds = 1;
        assert_eq!(request.next(true, now), Todo::Until(due));
    }

    #[test]
    fn it_waits_a_moment_for_others_who_usually_ask_too() {
        let now = Instant::now();
        let mut request = CheckpointRequest {
            wanted: 1,
            usual: 8,
            awaiting: 1,
            ..CheckpointRequest::default()
        };
        assert_eq!(request.next(true, now), Todo::Gather(now + GATHER));
        let later = now + GATHER / 2;
        assert_eq!(request.next(true, later), Todo::Gather(now + GATHER));
        assert_eq!(request.next(true, now + GATHER), Todo::Round);
        request.awaiting = 4;
        assert_eq!(request.next(true, now), Todo::Round);
    }

    #[test]
    fn after_a_failure_it_refuses_until_the_daemon_ends() {
        let now = Instant::now();
        let mut request = CheckpointRequest {
            wanted: 1,
            failed: Some(Errno::IO),
            ..CheckpointRequest::default()
        };
        assert_eq!(request.next(true, now), Todo::Refuse);
        request.stop = true;
        assert_eq!(request.next(true, now), Todo::Round);
        assert_eq!(request.next(false, now), Todo::Leave);
    }
}
