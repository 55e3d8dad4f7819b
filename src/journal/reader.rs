//! Reading a journal: every whole record up to the first that is not.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::format::{FRAME_LEN, HEADER_LEN, MAX_PAYLOAD, decode_header, decode_record, frame_crc};
use super::{FILE_NAME, Header, JournalError, Record};

/// All that a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// What it says about itself.
    pub header: Header,
    /// Its records, in the order in which they were appended.
    pub records: Vec<Record>,
    /// How the records end.
    pub tail: Tail,
}

/// How the records of a journal end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing but zeros, or nothing, follows the last record.
    Clean {
        /// Where the last record ends, in bytes from the start of the file.
        offset: u64,
    },
    /// Something follows the last whole record that is no whole record: an
    /// append that a crash cut short.
    Torn {
        /// Where the last whole record ends, in bytes from the start of the
        /// file.
        offset: u64,
    },
}

/// Reads the whole journal of the state directory `dir`; `None` when there is
/// none. Changes nothing.
///
/// # Errors
/// [`JournalError::Io`] when the file cannot be read, else as [`decode`].
pub fn read(dir: BorrowedFd<'_>) -> Result<Option<Contents>, JournalError> {
    let failed = |source: Errno| JournalError::Io {
        what: "open the journal",
        source: source.into(),
    };
    // NONBLOCK so that a pipe under this name is refused, not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match rustix::fs::openat(dir, FILE_NAME, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(JournalError::Foreign),
        Err(source) => return Err(failed(source)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(JournalError::Foreign);
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .read_to_end(&mut bytes)
        .map_err(|source| JournalError::Io {
            what: "read the journal",
            source,
        })?;
    decode(&bytes).map(Some)
}

/// The contents of a journal whose file holds `bytes`. Never panics, and needs
/// memory in proportion to `bytes` whatever they say.
///
/// # Errors
/// [`JournalError::Foreign`], [`JournalError::NewerFormat`] and
/// [`JournalError::Damaged`] for the header; [`JournalError::BadRecord`] for a
/// record that is whole and yet not understood, because to skip it could undo
/// a commit.
pub fn decode(bytes: &[u8]) -> Result<Contents, JournalError> {
    let (header, version) = decode_header(bytes)?;
    let mut records = Vec::new();
    let mut at = HEADER_LEN;
    while let Some(payload) = whole_payload(bytes, at, header.journal_id) {
        let record = decode_record(payload, version).map_err(|reason| JournalError::BadRecord {
            offset: at as u64,
            tag: payload[0],
            reason,
        })?;
        records.push(record);
        at += FRAME_LEN + payload.len();
    }
    let offset = at as u64;
    // Preallocated space reads as zeros all the way. A zero length with more
    // behind it is a page that did not reach the medium while a later one did.
    let tail = if bytes[at..].iter().all(|byte| *byte == 0) {
        Tail::Clean { offset }
    } else {
        Tail::Torn { offset }
    };
    Ok(Contents {
        header,
        records,
        tail,
    })
}

/// The payload, never empty, of the record at `at`, if a whole one is there.
fn whole_payload(bytes: &[u8], at: usize, journal_id: u64) -> Option<&[u8]> {
    let (len, rest) = bytes[at..].split_first_chunk()?;
    let (crc, rest) = rest.split_first_chunk()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 || len > MAX_PAYLOAD {
        return None;
    }
    let payload = rest.get(..len)?;
    (frame_crc(journal_id, at as u64, payload) == u32::from_le_bytes(*crc)).then_some(payload)
}
