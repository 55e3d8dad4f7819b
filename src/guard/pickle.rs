//! Is this a whole pickle? Its last byte is the instruction to stop. Of protocol 4 and later the
//! first frame also tells its length. Protocols 0 and 1 have no mark at their start, and compressed
//! pickles are of another kind.

use std::io;

use super::{ReadAt, Verdict, bytes_at, head};

const PROTO: u8 = 0x80;
const FRAME: u8 = 0x95;
const STOP: u8 = b'.';
/// Protocol, and the first frame's length.
const FRAMED: u64 = 11;

/// How a checkpoint of PyTorch before 1.6 begins: five pickles, and then the tensors as they are.
const LEGACY_TORCH: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let head = head(source, len, 3)?;
    let begins = match head.as_slice() {
        [PROTO] => true,
        [PROTO, protocol, ..] => (2..=5).contains(protocol),
        _ => false,
    };
    if !begins {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as a pickle of protocol 2 or later".into(),
        ));
    }
    if super::head(source, len, LEGACY_TORCH.len())? == LEGACY_TORCH {
        return Ok(Verdict::Foreign(
            "byte 0: begins as a checkpoint of several pickles and what they don't tell of".into(),
        ));
    }
    let last: [u8; 1] = bytes_at(source, len - 1)?;
    if last != [STOP] || len < 4 {
        return Ok(Verdict::Incomplete(format!(
            "ends at byte {len} without the instruction to stop"
        )));
    }
    if head[2] == FRAME && len > FRAMED {
        let frame = u64::from_le_bytes(bytes_at(source, 3)?);
        if FRAMED.saturating_add(frame) > len {
            return Ok(Verdict::Incomplete(format!(
                "ends at byte {len}, in a frame of {frame} bytes that begins at {FRAMED}"
            )));
        }
    }
    Ok(Verdict::Complete)
}
