//! The thread that looks after rounds of groups: how their savers end, what is late, and locks that are given back.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::engine::deciding::rounds::TICK;
use crate::engine::deciding::settling::{finish_later, look_after};
use crate::engine::descriptions::letting_go;
use crate::sys::failpoint;
use crate::sys::process::AskedProcess;
use crate::types::{OpResult, errno_of};

/// Begins to look after rounds, in a thread of its own.
pub fn start_watch(engine: &Arc<Engine>) -> OpResult<()> {
    let weak = Arc::downgrade(engine);
    let look = move || {
        loop {
            let Some(engine) = weak.upgrade() else {
                return;
            };
            failpoint::delay("COMMITFS_ROUNDS_DELAY_MS");
            let lets_go = letting_go::look_after(&engine);
            let (savers, aborted) = look_after(&engine);
            finish_later(&engine, aborted);
            drop(engine);
            match savers {
                Some(savers) => await_end(&savers),
                None if lets_go => std::thread::park_timeout(TICK),
                None => std::thread::park_timeout(Duration::from_secs(1)),
            }
        }
    };
    let watch = std::thread::Builder::new()
        .name("rounds".into())
        .spawn(look);
    let watch = watch.map_err(|e| errno_of(&e))?;
    engine.lock().txns.rounds.watch = Some(watch.thread().clone());
    Ok(())
}

/// Waits until one of these has ended, or for a moment.
fn await_end(savers: &[Arc<AskedProcess>]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds: Vec<PollFd<'_>> = savers
        .iter()
        .map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN))
        .collect();
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK.as_nanos() as i64,
    };
    poll(&mut fds, Some(&tick)).ok();
}
