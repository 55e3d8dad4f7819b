//! Is this a whole HDF5 file? Its superblock says where the file ends; it is written when the file
//! is flushed or closed.

use std::io;

use super::{ReadAt, Verdict, begins, bytes_at, head, read_exact_at};

const SIGNATURE: &[u8; 8] = b"\x89HDF\r\n\x1a\n";
/// Superblocks are at most so long, up to the end of the file's address.
const SUPERBLOCK: u64 = 64;
/// Something of the user's own may stand in front of the superblock, of this length or twice that,
/// or four times.
const FIRST_USER_BLOCK: u64 = 512;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let Some(start) = start(source, len)? else {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as an HDF5 file".into(),
        ));
    };
    let mut block = vec![0; SUPERBLOCK.min(len - start) as usize];
    read_exact_at(source, &mut block, start)?;
    let cut = || Verdict::Incomplete(format!("ends at byte {len}, in the superblock"));
    let (Some(&version), Some(&width)) = (
        block.get(8),
        block
            .get(13)
            .zip(block.get(9))
            .map(|(old, new)| if block[8] < 2 { old } else { new }),
    ) else {
        return Ok(cut());
    };
    // Where the addresses begin, of which the third is the end of the file.
    let addresses = match version {
        0 => 24,
        1 => 28,
        2 | 3 => 12,
        _ => return Ok(Verdict::Complete),
    };
    if !matches!(width, 2 | 4 | 8) {
        return Ok(Verdict::Malformed(format!(
            "the superblock has addresses of {width} bytes"
        )));
    }
    let width = usize::from(width);
    let Some(end) = block.get(addresses + 2 * width..addresses + 3 * width) else {
        return Ok(cut());
    };
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(end);
    let end = u64::from_le_bytes(bytes);
    let unknown = u64::MAX >> (64 - 8 * width);
    // One of several files that are one together (the family driver) tells the end of them all.
    let driver = block.get(addresses + 3 * width..addresses + 4 * width);
    let has_driver = version < 2 && driver.is_some_and(|d| d.iter().any(|byte| *byte != 0xff));
    if end == unknown || end <= len || has_driver {
        return Ok(Verdict::Complete);
    }
    Ok(Verdict::Incomplete(format!(
        "ends at byte {len}, by its superblock at {end}"
    )))
}

/// Where the superblock is.
fn start(source: &dyn ReadAt, len: u64) -> io::Result<Option<u64>> {
    if begins(&head(source, len, SIGNATURE.len())?, SIGNATURE) {
        return Ok(Some(0));
    }
    let mut at = FIRST_USER_BLOCK;
    while at.saturating_add(SIGNATURE.len() as u64) <= len {
        if bytes_at::<8>(source, at)? == *SIGNATURE {
            return Ok(Some(at));
        }
        at *= 2;
    }
    Ok(None)
}
