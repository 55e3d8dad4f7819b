//! Threads for what may block, so that the dispatcher never does.
//!
//! The pool grows when every thread is busy: jobs may wait for each other (a rename for the
//! checkpoint, a lookup for a close), and a fixed number of threads would turn that into a deadlock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// Threads that linger idle.
const KEEP: usize = 4;
/// An idle thread beyond those ends after this time.
const IDLE: Duration = Duration::from_secs(10);
/// More threads than this are never started; jobs queue up instead.
const MOST: usize = 1024;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// No thread begins another job.
    ended: bool,
}

#[cfg(feature = "testing")]
mod own;
#[cfg(feature = "testing")]
pub use own::do_own_jobs;

/// A growing pool of threads.
#[derive(Clone, Default)]
pub struct Pool(Arc<(Mutex<Queue>, Condvar)>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// Runs `job` on some thread, soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        #[cfg(feature = "testing")]
        let Some(job) = own::keep(job) else {
            return;
        };
        let (queue, wake) = &*self.0;
        let mut q = queue.lock();
        q.jobs.push_back(Box::new(job));
        if q.idle >= q.jobs.len() || q.threads >= MOST {
            wake.notify_one();
            return;
        }
        q.threads += 1;
        drop(q);
        let pool = self.clone();
        let started = std::thread::Builder::new()
            .name("worker".into())
            // A JSON value of 512 levels takes 512 calls within each other, of over 1 KiB each.
            .stack_size(2 << 20)
            .spawn(move || pool.work());
        if let Err(e) = started {
            log::warn!("no thread for a worker ({e}); its job waits for another");
            queue.lock().threads -= 1;
        }
    }

    /// Jobs that have not begun are dropped, and the threads end.
    #[cfg(feature = "testing")]
    pub fn end(&self) {
        let (queue, wake) = &*self.0;
        let mut q = queue.lock();
        q.ended = true;
        q.jobs.clear();
        for _ in 0..q.idle {
            wake.notify_one();
        }
    }

    fn work(self) {
        let (queue, wake) = &*self.0;
        let mut q = queue.lock();
        while !q.ended {
            if let Some(job) = q.jobs.pop_front() {
                drop(q);
                job();
                q = queue.lock();
                continue;
            }
            q.idle += 1;
            let timed_out = wake.wait_for(&mut q, IDLE).timed_out();
            q.idle -= 1;
            if timed_out && q.jobs.is_empty() && q.threads > KEEP {
                q.threads -= 1;
                return;
            }
        }
    }
}
