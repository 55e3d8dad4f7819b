//! A test's thread does the jobs of its own requests: to wake another thread for each would take most of the time of a search.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::Job;

thread_local! {
    /// What this thread is to do, while it does its own jobs.
    static OWN: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
}

/// Keeps a job for the thread that asks for it, or gives it back where that doesn't do its own.
pub(super) fn keep<J: FnOnce() + Send + 'static>(job: J) -> Option<J> {
    OWN.with_borrow_mut(|own| match own {
        Some(jobs) => {
            jobs.push_back(Box::new(job));
            None
        }
        None => Some(job),
    })
}

/// Sends a request, and does what workers would do for it, on this thread. Who waits for somebody else's request waits here.
pub fn do_own_jobs(send: impl FnOnce()) {
    OWN.set(Some(VecDeque::new()));
    send();
    while let Some(job) = OWN.with_borrow_mut(|own| own.as_mut().and_then(VecDeque::pop_front)) {
        job();
    }
    OWN.set(None);
}
