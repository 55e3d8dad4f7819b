//! What is done to names in the backing directory waits for what is committed before it: for a round of the checkpoint, and for decisions.

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::sys::failpoint;
use crate::types::{NodeId, OpResult, Seq};

/// What an operation on names waits for: the commits up to the one that was the last when it began.
#[derive(Debug, Default)]
pub struct Barrier {
    target: Option<Seq>,
    /// Given up: the disk is full, and the operation may be what makes room.
    waived: bool,
}

/// Whether an operation on names is done or has to wait for the checkpoint first.
pub enum Step<T> {
    Done(T),
    CheckpointFirst,
}

/// Takes a step as often as it takes, with a round of the checkpoint before each further one. On a worker.
pub fn until_done<T>(
    engine: &Engine,
    mut barrier: Barrier,
    mut step: impl FnMut(&Engine, &mut Barrier) -> OpResult<Step<T>>,
) -> OpResult<T> {
    loop {
        match step(engine, &mut barrier)? {
            Step::Done(value) => return Ok(value),
            Step::CheckpointFirst => {}
        }
        match durability::checkpoint_all(engine) {
            Ok(()) => {}
            // What makes room must not wait for room.
            Err(Errno::NOSPC | Errno::DQUOT) if !barrier.waived => barrier.waived = true,
            Err(e) => return Err(e),
        }
    }
}

/// So often what an operation on names moves is judged, where others put something else there all the time.
pub const JUDGEMENTS: u32 = 1000;

pub fn checkpoint_until<T>(
    engine: &Engine,
    step: impl FnMut(&Engine, &mut Barrier) -> OpResult<Step<T>>,
) -> OpResult<T> {
    until_done(engine, Barrier::default(), step)
}

/// Takes a step with what was judged for it, or judges once more where somebody else has put something else there: two
/// programs may share a fixed temporary name. Who does that faster than it can be judged keeps nobody waiting for ever.
pub fn checkpoint_judged<T>(
    engine: &Engine,
    judge: impl Fn() -> OpResult<Option<NodeId>>,
    step: impl Fn(Option<NodeId>, &mut Barrier) -> OpResult<Step<Option<T>>>,
) -> OpResult<T> {
    let mut judged = judge()?;
    checkpoint_until(engine, |_, barrier| {
        for _ in 0..JUDGEMENTS {
            match step(judged, barrier)? {
                Step::Done(Some(done)) => return Ok(Step::Done(done)),
                Step::Done(None) => judged = judge()?,
                Step::CheckpointFirst => return Ok(Step::CheckpointFirst),
            }
        }
        Err(Errno::BUSY)
    })
}

/// Whether commits made before the operation began still have to reach the backing directory.
pub fn must_checkpoint(engine: &Engine, state: &State, barrier: &mut Barrier) -> bool {
    if failpoint::mutant("C19-barrier") || barrier.waived {
        return false;
    }
    let waiting = !state.pending.is_empty()
        || state.backlog.unsynced.has_appended()
        || state.backlog.checkpoint.busy;
    let in_journal = |target| {
        state
            .pending
            .unwritten()
            .any(|(_, u)| u.first_seq <= target)
    };
    match barrier.target {
        None if waiting => {
            barrier.target = Some(engine.sequencer.last());
            true
        }
        None => false,
        Some(target) => waiting && (engine.sequencer.durable() < target || in_journal(target)),
    }
}

/// Runs `step` until it needs no checkpoint; the first try is made at once, the others on a worker.
pub fn with_checkpoint<T: 'static>(
    engine: &Arc<Engine>,
    mut step: impl FnMut(&Engine, &mut Barrier) -> OpResult<Step<T>> + Send + 'static,
    done: impl FnOnce(OpResult<T>) + Send + 'static,
) {
    let mut barrier = Barrier::default();
    match step(engine, &mut barrier) {
        Ok(Step::Done(value)) => done(Ok(value)),
        Err(e) => done(Err(e)),
        Ok(Step::CheckpointFirst) => {
            engine.on_worker(move |engine| {
                done(until_done(engine, barrier, step));
            });
        }
    }
}
