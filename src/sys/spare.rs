//! Descriptors in reserve, for what has been acknowledged: to bring a commit into place a directory
//! has to be opened for its fsync, and that must not fail because programs have many files open.

use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failpoint;

/// So many are kept: one step needs one or two at a time.
const KEPT: usize = 8;

static SPARE: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Fills the reserve up, as far as the limits allow. Each is an open file of its own, as the
/// system's limit counts those.
pub fn fill() {
    let mut spare = SPARE.lock();
    while spare.len() < KEPT && !failpoint::mutant("C19-spare") {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::open("/dev/null", flags, Mode::empty()) {
            Ok(fd) => spare.push(fd),
            Err(_) => return,
        }
    }
}

/// Opens something that may use the reserve up.
///
/// # Errors
/// Those of `open`: there is no reserve left.
pub fn open<T>(open: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) if SPARE.lock().pop().is_some() => {}
            other => return other,
        }
    }
}

/// Whether an error of an open, or of starting a thread, passes: something was short for the moment, and
/// nothing was lost. What a sync itself says passes never: see [`told_once`].
pub fn is_passing(errno: Errno) -> bool {
    let passing = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::INTR,
        Errno::AGAIN,
    ];
    passing.contains(&errno) && !failpoint::mutant("C19-passing")
}

/// A sync, whose error is told once: what couldn't be written is marked clean, and the next sync would
/// be told that all is well. A failed write of the kernel may be recorded as any error, ENOMEM and EAGAIN
/// among them; these become EIO, so that nobody takes them for those of an open, and tries again.
///
/// # Errors
/// Those of the sync.
pub fn told_once(mut sync: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match sync() {
            // It hasn't come to looking at what was written.
            Err(Errno::INTR) => {}
            Err(e) if is_passing(e) && !failpoint::mutant("C19-told-once") => {
                log::error!("a sync has failed: {e}; what it was to write is lost");
                return Err(Errno::IO);
            }
            other => return other,
        }
    }
}

/// The graver of two results: an error that passes may come again, any other is told once.
pub fn graver(one: Result<(), Errno>, other: Result<(), Errno>) -> Result<(), Errno> {
    match (one, other) {
        (Err(e), Err(_)) if !is_passing(e) => Err(e),
        (_, Err(e)) => Err(e),
        (one, Ok(())) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sync_says_never_passes() {
        for (told, heard) in [
            (Errno::NOMEM, Errno::IO),
            (Errno::AGAIN, Errno::IO),
            (Errno::NOSPC, Errno::NOSPC),
        ] {
            let mut asked = 0;
            let result = told_once(|| {
                asked += 1;
                // The next one would be told that all is well.
                if asked == 1 { Err(told) } else { Ok(()) }
            });
            assert_eq!((result, asked), (Err(heard), 1));
        }
        let mut interrupted = [Err(Errno::INTR), Ok(())].into_iter();
        assert_eq!(told_once(|| interrupted.next().unwrap()), Ok(()));
    }

    #[test]
    fn what_was_lost_is_not_hidden_by_what_passes() {
        let (lost, short) = (Err(Errno::IO), Err(Errno::NOMEM));
        assert_eq!(graver(lost, short), lost);
        assert_eq!(graver(short, lost), lost);
        assert_eq!(graver(short, Ok(())), short);
        assert_eq!(graver(Ok(()), short), short);
        assert_eq!(graver(Ok(()), Ok(())), Ok(()));
    }
}
