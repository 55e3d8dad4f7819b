//! Is this a whole Parquet file? The footer comes last: its length, and the magic again.

use std::io;

use super::{ReadAt, Verdict, begins, bytes_at, head};

/// Plain, and with an encrypted footer.
const MAGICS: [&[u8; 4]; 2] = [b"PAR1", b"PARE"];
/// Magic, footer's length, magic.
const LEAST: u64 = 12;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let head = head(source, len, 4)?;
    if !MAGICS.iter().any(|magic| begins(&head, *magic)) {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as a Parquet file".into(),
        ));
    }
    let cut = || Verdict::Incomplete(format!("ends at byte {len} without a footer"));
    if len < LEAST {
        return Ok(cut());
    }
    let end: [u8; 4] = bytes_at(source, len - 4)?;
    if !MAGICS.contains(&&end) {
        return Ok(cut());
    }
    let footer = u64::from(u32::from_le_bytes(bytes_at(source, len - 8)?));
    if footer == 0 || footer > len - LEAST {
        return Ok(Verdict::Malformed(format!(
            "the footer at the end tells of {footer} bytes, which can't be"
        )));
    }
    Ok(Verdict::Complete)
}
