//! Writing a journal: a new file in one step, then appends at its end.
//!
//! The failure story of an append: space is allocated before a byte is
//! written, so a full disk costs nothing. A write that fails all the same is
//! cut off again, durably, before the error is returned; otherwise records of
//! the failed append could stand, whole, behind the next one and come to life
//! at the next mount. When even that fails the outcome is indeterminate, and
//! the journal takes no more records: only a new file can be trusted then.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::format::{self, HEADER_LEN};
use super::{FILE_NAME, Header, JournalError, NEW_FILE_NAME, Record};
use crate::sys::failpoint;

/// Space is allocated at least this many bytes ahead of the records, so that
/// few appends change the file's size, which would make their fdatasync dearer.
const AHEAD: u64 = 1 << 20;
/// The encoding buffer is given back when an append made it larger than this.
const KEEP_BUFFER: usize = 256 << 10;

/// A number for [`Header::journal_id`] that no other journal has, as far as
/// chance allows.
pub fn fresh_id() -> u64 {
    // The hasher's keys come from the system's random numbers; the standard
    // library offers them in no other stable way.
    RandomState::new().build_hasher().finish()
}

/// The journal being written. The caller serialises appends (`&mut self`), and
/// syncs through [`Journal::sync_handle`].
#[derive(Debug)]
pub struct Journal {
    header: Header,
    appender: RecordAppender<Arc<OwnedFd>>,
}

impl Journal {
    /// Makes a new journal that starts with the records `carried`, and puts it
    /// in the place of the one in the state directory `dir`, if any. At any
    /// crash one of the two is there, whole; when this returns, the new one is
    /// on the medium. Space for 1 MiB of records is allocated where the file
    /// system can and has it.
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] for an instance or a record over its limit;
    /// [`JournalError::NameInDoubt`] when the last step, syncing `dir`, failed;
    /// [`JournalError::Io`] otherwise: the old journal is still in place.
    pub fn create(
        dir: BorrowedFd<'_>,
        header: Header,
        carried: &[Record],
    ) -> Result<Self, JournalError> {
        let bytes = format::encode(&header, carried)?;
        let failed = |what| move |source: io::Error| JournalError::Io { what, source };
        let appender = write_new(dir, header.journal_id, &bytes)
            .inspect_err(|_| drop(remove_new(dir)))
            .map_err(failed("write a new journal"))?;
        rustix::fs::renameat(dir, NEW_FILE_NAME, dir, FILE_NAME)
            .map_err(io::Error::from)
            .inspect_err(|_| drop(remove_new(dir)))
            .map_err(failed("put the new journal in its place"))?;
        failpoint::sync("C19-sync-journal-name", || rustix::fs::fsync(dir)).map_err(|errno| {
            JournalError::NameInDoubt {
                source: errno.into(),
            }
        })?;
        Ok(Self { header, appender })
    }

    /// Appends one record; see [`Journal::append_all`].
    ///
    /// # Errors
    /// As [`Journal::append_all`].
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        self.appender.append_all(std::slice::from_ref(record))
    }

    /// Appends `records` in one write. It outlives a killed daemon when this
    /// returns, and a power cut once [`Journal::sync_handle`] has been synced;
    /// a power cut before that leaves any number of the first of them.
    ///
    /// # Errors
    /// [`JournalError::TooLarge`] and [`JournalError::Io`]: none of `records`
    /// is in the file, and the next append takes their place; space reserved
    /// before must be reserved again. [`JournalError::Indeterminate`]: they may
    /// or may not be found by the next mount. [`JournalError::Closed`] ever
    /// after that.
    pub fn append_all(&mut self, records: &[Record]) -> Result<(), JournalError> {
        self.appender.append_all(records)
    }

    /// Makes sure that `bytes` bytes of records (see [`Record::framed_len`])
    /// can be appended from here on without running out of space; appends in
    /// between use it up. On a file system that copies on write this is as
    /// good as its own fallocate.
    ///
    /// # Errors
    /// [`JournalError::Io`], with ENOSPC or EDQUOT when there is no room;
    /// [`JournalError::Closed`] as for appends.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), JournalError> {
        self.appender.reserve(bytes)
    }

    /// Whether records of so many bytes find their place without a call that sets space aside.
    pub fn has_room(&self, bytes: u64) -> bool {
        let want = self.appender.end.saturating_add(bytes);
        !self.appender.closed && want <= self.appender.allocated
    }

    /// Where the last record ends, in bytes from the start of the file.
    pub fn len(&self) -> u64 {
        self.appender.end
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.appender.end == HEADER_LEN as u64
    }

    /// The file, to be fdatasynced without holding the journal's lock: every
    /// append that returned before the fdatasync began is on the medium when
    /// it succeeds. After a failed one the system may have dropped the data,
    /// and a second one that succeeds proves nothing: make a new journal.
    pub fn sync_handle(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.appender.medium)
    }

    /// Takes no more records: it has lost its name.
    pub fn give_up(&mut self) {
        self.appender.closed = true;
    }

    /// The header the journal was made with.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

/// Writes `journal.new`, whole and synced.
fn write_new(
    dir: BorrowedFd<'_>,
    id: u64,
    bytes: &[u8],
) -> io::Result<RecordAppender<Arc<OwnedFd>>> {
    remove_new(dir)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut medium = Arc::new(rustix::fs::openat(dir, NEW_FILE_NAME, flags, mode)?);
    write_all(&mut medium, bytes, 0)?;
    let mut appender = RecordAppender::new(medium, id, bytes.len() as u64);
    // A full disk must not keep a mount from starting: what needs the space
    // asks for it again.
    if let Err(error) = appender.reserve(AHEAD) {
        log::warn!("the journal starts without space set aside: {error}");
    }
    failpoint::sync("C19-sync-new-journal", || {
        rustix::fs::fdatasync(&appender.medium)
    })?;
    Ok(appender)
}

fn remove_new(dir: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, NEW_FILE_NAME, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What an appender needs of a file; a trait so that tests can make it fail.
trait Medium {
    /// Writes some of `bytes` at `offset`, and says how many.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Gives the file space for `from..to`, which reads as zeros; the file
    /// ends at `to` or later. Nothing was ever written at `from` or beyond.
    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()>;
    /// Cuts the file off at `len`, and returns when that is on the medium.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

impl Medium for Arc<OwnedFd> {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        Ok(retry_on_intr(|| {
            rustix::io::pwrite(self.as_fd(), bytes, offset)
        })?)
    }

    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()> {
        let all = || rustix::fs::fallocate(self.as_fd(), FallocateFlags::empty(), from, to - from);
        match retry_on_intr(all) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            other => other?,
        }
        // Written once, the space is the file's for good: an fdatasync of records that come there writes them and nothing
        // else, where it would have to commit which parts of the space have been written.
        let zeros = vec![0; 64 << 10];
        let mut at = from;
        while at < to {
            let len = (to - at).min(zeros.len() as u64);
            write_all(self, &zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        rustix::fs::ftruncate(self.as_fd(), len)?;
        Ok(rustix::fs::fsync(self.as_fd())?)
    }
}

fn write_all(medium: &mut impl Medium, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = medium.write_at(bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// The end of a journal, where the next record goes.
///
/// Invariant while not closed: no byte at or after `end` was ever written with
/// anything but zeros, or it has been cut off since.
#[derive(Debug)]
struct RecordAppender<M> {
    medium: M,
    journal_id: u64,
    /// Where the last record ends, in bytes from the start of the file.
    end: u64,
    /// Up to here the file has space; never less than `end`.
    allocated: u64,
    /// An append failed and could not be cut off, or the file has lost its name.
    closed: bool,
    buffer: Vec<u8>,
}

impl<M: Medium> RecordAppender<M> {
    fn new(medium: M, journal_id: u64, end: u64) -> Self {
        Self {
            medium,
            journal_id,
            end,
            allocated: end,
            closed: false,
            buffer: Vec::new(),
        }
    }

    fn append_all(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let outcome = records
            .iter()
            .try_for_each(|r| format::push_frame(&mut buffer, self.journal_id, self.end, r))
            .and_then(|()| self.reserve(buffer.len() as u64))
            .and_then(|()| self.write(&buffer));
        if buffer.capacity() <= KEEP_BUFFER {
            self.buffer = buffer;
        }
        outcome
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), JournalError> {
        if self.closed {
            return Err(JournalError::Closed);
        }
        let want = self.end.saturating_add(bytes);
        if want <= self.allocated {
            return Ok(());
        }
        let generous = want.max(self.end.saturating_add(AHEAD));
        for to in [generous, want] {
            match self.medium.allocate(self.allocated, to) {
                Ok(()) => {
                    self.allocated = to;
                    break;
                }
                Err(_) if to > want => (),
                Err(source) => {
                    let what = "set aside space for the journal";
                    return Err(JournalError::Io { what, source });
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let Err(source) = write_all(&mut self.medium, bytes, self.end) else {
            self.end += bytes.len() as u64;
            return Ok(());
        };
        match self.medium.cut(self.end) {
            Ok(()) => {
                self.allocated = self.end;
                let what = "append to the journal";
                Err(JournalError::Io { what, source })
            }
            Err(undo) => {
                self.closed = true;
                Err(JournalError::Indeterminate { source, undo })
            }
        }
    }
}

#[cfg(test)]
mod tests;
