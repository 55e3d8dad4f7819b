//! Long work for a program may be given up: when that program is being killed, and when the daemon is
//! to end. The kernel lets nobody go whose request has no answer yet.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::{failpoint, proc};

thread_local! {
    /// The thread that this worker works for.
    static CALLER: Cell<u32> = const { Cell::new(0) };
}

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Does something for a thread, 0 if it isn't known, which [`check`] looks at meanwhile.
pub fn on_behalf_of<T>(tid: u32, what: impl FnOnce() -> T) -> T {
    let before = CALLER.replace(tid);
    let done = what();
    CALLER.set(before);
    done
}

/// From now on nothing long is finished: the daemon is to end.
pub fn stop_all() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// It isn't to end after all.
pub fn go_on() {
    STOPPED.store(false, Ordering::Relaxed);
}

/// Whether to go on.
///
/// # Errors
/// EINTR: nobody waits for it any more. Only for signals that end a program: one that handles a signal
/// is not told EINTR by a write to a file on the plain directory, and may take it for a failure.
pub fn check() -> Result<(), Errno> {
    let tid = CALLER.get();
    let killed = tid != 0 && proc::is_being_killed(tid) && !failpoint::mutant("C13-interrupt");
    if killed || STOPPED.load(Ordering::Relaxed) {
        return Err(Errno::INTR);
    }
    Ok(())
}
