//! Is this a whole zip archive? The directory and the end record come last, so an archive that was
//! cut off has none, or one that doesn't fit. The entries themselves are not read.
//!
//! Integers in zip records are little-endian. Offsets count from the archive's start, which need
//! not be the file's: something may have been put in front without correcting them.

use std::io;

use super::{ReadAt, Verdict, read_exact_at};

const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";

const END_LEN: usize = 22;
const END_64_LEN: usize = 56;
const LOCATOR_64_LEN: usize = 20;
const MAX_COMMENT: usize = u16::MAX as usize;
/// A directory entry without name, extra field and comment.
const MIN_ENTRY: u64 = 46;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let mut magic = [0; 4];
    let magic = &mut magic[..len.min(4) as usize];
    read_exact_at(source, magic, 0)?;
    if !LOCAL_HEADER.starts_with(magic) && !END.starts_with(magic) {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as a zip archive".into(),
        ));
    }
    let tail_len = len.min((LOCATOR_64_LEN + END_LEN + MAX_COMMENT) as u64);
    let mut tail = vec![0; tail_len as usize];
    let tail_at = len - tail_len;
    read_exact_at(source, &mut tail, tail_at)?;

    // The comment may hold what looks like an end record, so the first misfit from behind is not
    // the last word.
    let mut misfit = None;
    for at in (0..(tail.len() + 1).saturating_sub(END_LEN)).rev() {
        let record = &tail[at..];
        if !record.starts_with(&END) || END_LEN + usize::from(u16_at(record, 20)) != record.len() {
            continue;
        }
        let directory = Directory::read(source, &tail[..at + END_LEN], tail_at)?;
        match directory.check(source)? {
            Ok(()) => return Ok(Verdict::Complete),
            Err(reason) => misfit = misfit.or(Some(reason)),
        }
    }
    Ok(Verdict::Incomplete(misfit.unwrap_or_else(|| {
        format!("ends at byte {len} without an end record")
    })))
}

/// The central directory, as the end record and its 64-bit extension tell of it.
struct Directory {
    entries: u64,
    size: u64,
    offset: u64,
    /// Where the end records begin, and the directory has to have ended.
    limit: u64,
    /// Where the end record itself is, for messages.
    end_at: u64,
}

impl Directory {
    /// Reads what is told by the end record that is the last `END_LEN` bytes of `tail`, which lies
    /// at `tail_at`.
    fn read(source: &dyn ReadAt, tail: &[u8], tail_at: u64) -> io::Result<Directory> {
        let (before, end) = tail.split_at(tail.len() - END_LEN);
        let end_at = tail_at + before.len() as u64;
        let plain = Directory {
            entries: u16_at(end, 10).into(),
            size: u32_at(end, 12).into(),
            offset: u32_at(end, 16).into(),
            limit: end_at,
            end_at,
        };
        let Some(locator) = before
            .last_chunk::<LOCATOR_64_LEN>()
            .filter(|bytes| bytes.starts_with(&LOCATOR_64))
        else {
            return Ok(plain);
        };
        let latest = (end_at - LOCATOR_64_LEN as u64).checked_sub(END_64_LEN as u64);
        // Where the locator says; else, with something in front of the archive, right before the
        // locator.
        for at in [Some(u64_at(locator, 8)), latest].into_iter().flatten() {
            if latest.is_none_or(|latest| at > latest) {
                continue;
            }
            let mut record = [0; END_64_LEN];
            read_exact_at(source, &mut record, at)?;
            if record.starts_with(&END_64) {
                return Ok(Directory {
                    entries: u64_at(&record, 32),
                    size: u64_at(&record, 40),
                    offset: u64_at(&record, 48),
                    limit: at,
                    end_at,
                });
            }
        }
        // What looked like a locator is none; if it was one, the plain record's placeholders won't
        // pass the check.
        Ok(plain)
    }

    /// Is the directory where and what it is said to be? The inner error is the reason why not.
    fn check(&self, source: &dyn ReadAt) -> io::Result<Result<(), String>> {
        let &Directory {
            entries,
            size,
            offset,
            limit,
            end_at,
        } = self;
        let told = format!(
            "the end record at byte {end_at} tells of {entries} entries in {size} bytes at {offset}"
        );
        let fits = offset.checked_add(size).is_some_and(|end| end <= limit);
        let plausible = if entries == 0 {
            size == 0
        } else {
            size / MIN_ENTRY >= entries
        };
        if !fits || !plausible {
            return Ok(Err(format!("{told}, which can't be")));
        }
        if entries == 0 {
            return Ok(Ok(()));
        }
        for at in [offset, limit - size] {
            let mut magic = [0; 4];
            read_exact_at(source, &mut magic, at)?;
            if magic == DIRECTORY_ENTRY {
                return Ok(Ok(()));
            }
        }
        Ok(Err(format!("{told}, but there is no directory")))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes of a record whose length was checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..]
        .first_chunk()
        .expect("a field inside the record")
}
