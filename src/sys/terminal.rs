//! What a terminal is asked for.

use std::os::fd::{AsFd, AsRawFd};

/// How many characters a line has, if this is a terminal that says so.
pub fn columns(fd: impl AsFd) -> Option<usize> {
    // SAFETY: all zeros is a valid window size; the call writes one there, or nothing.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        match libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) {
            0 => size,
            _ => return None,
        }
    };
    (size.ws_col > 0).then_some(size.ws_col.into())
}
