//! Signals that ask the daemon to end, taken by a thread instead of a handler.

use std::io;

/// Blocks SIGTERM, SIGINT and SIGHUP in this thread and all it starts from now on. To be called
/// before any thread is started.
pub fn block() -> io::Result<()> {
    let set = set();
    // SAFETY: `set` is an initialised signal set; no old set is asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// Calls `asked` for each such signal, on a thread of its own.
pub fn listen(asked: impl Fn(i32) + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let set = set();
            loop {
                let mut signal = 0;
                // SAFETY: both point to live values of the right type.
                if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
                    asked(signal);
                }
            }
        })?;
    Ok(())
}

/// Ends the process as one that wrote to a pipe which nobody reads (Rust's runtime ignores SIGPIPE,
/// so that the write fails instead).
pub fn end_by_broken_pipe() -> ! {
    // SAFETY: neither call touches memory; the default action of SIGPIPE ends the process.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
    }
    // Only where the signal is blocked: the status a shell shows for it.
    std::process::exit(128 + libc::SIGPIPE)
}

fn set() -> libc::sigset_t {
    // SAFETY: all zeros is a valid value to hand to sigemptyset, which initialises it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
