//! Appends by whole records (C10).
//!
//! A file opened with O_APPEND, or a new text stream, is not copied: complete lines go to the end
//! of the current version, in place, each write's lines in one piece. A version that grows by
//! whole records stays the same version, so open readers see the growth. The unfinished rest of a
//! line waits in memory for its newline, an fsync, a close, or one second.
//!
//! Crash argument: the journal says what will be appended, where, and its checksum, before the
//! bytes are written. Recovery takes back what is not all there.

pub mod reading;
pub mod records;
pub mod streams;
pub mod tails;
pub mod writing;
