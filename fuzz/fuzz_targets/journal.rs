//! Any bytes are a journal or an error. Behind the header every record is under a checksum, which no
//! mutation meets by chance; so the same bytes are read once more with checksums that are right. What
//! is read then is written as the same bytes, and a cut or a flipped bit leaves the records in front
//! of it.
#![no_main]

use commitfs::journal::{Contents, HEADER_LEN, JournalError, decode, encode};
use libfuzzer_sys::fuzz_target;

/// Length and checksum in front of each record.
const FRAME: usize = 8;
/// Where the header says which format it is; an older one is written as the newest.
const VERSION: std::ops::Range<usize> = 8..12;

fuzz_target!(|input: &[u8]| {
    let _ = decode(input);
    let Some((bytes, &[place, bit])) = input.split_last_chunk() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    let frames = seal(&mut bytes);
    let contents = match decode(&bytes) {
        Ok(contents) => contents,
        Err(JournalError::BadRecord { offset, .. }) => {
            let whole = frames.iter().position(|at| *at as u64 == offset);
            bytes.truncate(frames[whole.expect("it is at a record")]);
            decode(&bytes).expect("the records in front of it are understood")
        }
        Err(_) => return,
    };
    let written =
        encode(&contents.header, &contents.records).expect("what was read can be written");
    let again = decode(&written).expect("what was written is read");
    assert_eq!(again.header, contents.header);
    assert_eq!(again.records, contents.records);
    if bytes[VERSION] == written[VERSION] {
        assert!(bytes[HEADER_LEN..].starts_with(&written[HEADER_LEN..]));
    }
    let frames = seal(&mut written.clone());
    spoil(&written, &contents, &frames, place, bit);
});

/// Gives header and records the checksums they should have. Returns where the records begin.
fn seal(bytes: &mut [u8]) -> Vec<usize> {
    let mut frames = Vec::new();
    if bytes.len() < HEADER_LEN {
        return frames;
    }
    let (header, _) = bytes.split_at_mut(HEADER_LEN);
    let crc = crc32c::crc32c(&header[..HEADER_LEN - 4]);
    header[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    let id = crc32c::crc32c(&header[16..24]);
    let mut at = HEADER_LEN;
    while at + FRAME < bytes.len() {
        let Some(len) = bytes[at..]
            .first_chunk()
            .map(|len| u32::from_le_bytes(*len))
        else {
            break;
        };
        if len == 0 {
            break;
        }
        let len = (len as usize).min(bytes.len() - at - FRAME);
        bytes[at..at + 4].copy_from_slice(&(len as u32).to_le_bytes());
        let end = at + FRAME + len;
        let crc = crc32c::crc32c_append(id, &(at as u64).to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &bytes[at + FRAME..end]);
        bytes[at + 4..at + FRAME].copy_from_slice(&crc.to_le_bytes());
        frames.push(at);
        at = end;
    }
    frames
}

/// Cuts the journal at one place, and changes one bit there in another copy.
fn spoil(written: &[u8], contents: &Contents, frames: &[usize], place: u8, bit: u8) {
    let behind = written.len() - HEADER_LEN;
    if behind == 0 {
        return;
    }
    let at = HEADER_LEN + behind * usize::from(place) / 256;
    let hit = frames.iter().filter(|frame| **frame <= at).count() - 1;
    let cut = decode(&written[..at]).expect("a record that was cut is not there");
    assert_eq!(cut.records, contents.records[..hit]);
    // In the payload, as a changed length has another payload checked, and by chance that may fit.
    if at < frames[hit] + FRAME {
        return;
    }
    let mut changed = written.to_vec();
    changed[at] ^= 1 << (bit % 8);
    let changed = decode(&changed).expect("a record that was changed is not there");
    assert_eq!(changed.records, contents.records[..hit]);
}
