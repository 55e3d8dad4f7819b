//! The daemon's heap.

/// Gives memory that was freed back to the system: glibc keeps it otherwise, wherever something small still stands between. Takes some
/// milliseconds for each 100 MB.
pub fn give_back() {
    if super::failpoint::mutant("heap-given-back") {
        return;
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, may be called at any time by any thread, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
