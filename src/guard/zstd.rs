//! Is this a whole zstd file? It is frames of blocks, and each block tells its length: a few bytes
//! of every 128 KiB say whether all of them are there.

use std::io;

use super::{ReadAt, Verdict, begins, bytes_at, head, read_exact_at};

const MAGIC: u32 = 0xFD2F_B528;
/// Frames with something of the user's own, of any length.
const SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184D_2A50..=0x184D_2A5F;
/// Blocks that are looked at; the others of a very large file are taken for granted.
const MAX_BLOCKS: usize = 1 << 17;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let head = head(source, len, 4)?;
    let skippable = head.len() == 4 && SKIPPABLE.contains(&u32_of(&head));
    if !begins(&head, &MAGIC.to_le_bytes()) && !skippable {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as a zstd file".into(),
        ));
    }
    let mut walk = Walk {
        source,
        len,
        at: 0,
        blocks: MAX_BLOCKS,
    };
    loop {
        match walk.frame()? {
            Some(verdict) => return Ok(verdict),
            None if walk.at == len => return Ok(Verdict::Complete),
            None => {}
        }
    }
}

struct Walk<'a> {
    source: &'a dyn ReadAt,
    len: u64,
    at: u64,
    blocks: usize,
}

impl Walk<'_> {
    /// The next `N` bytes; `None` if there are fewer.
    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.len - self.at < N as u64 {
            return Ok(None);
        }
        let bytes = bytes_at(self.source, self.at)?;
        self.at += N as u64;
        Ok(Some(bytes))
    }

    fn skip(&mut self, count: u64) -> bool {
        let there = count <= self.len - self.at;
        self.at += if there { count } else { 0 };
        there
    }

    /// Less than a magic is left, the beginning of one or something else.
    fn rest(&self, begin: u64) -> io::Result<Option<Verdict>> {
        let mut rest = vec![0; (self.len - begin) as usize];
        read_exact_at(self.source, &mut rest, begin)?;
        let mut magics = SKIPPABLE.chain([MAGIC]).map(u32::to_le_bytes);
        if magics.any(|magic| magic.starts_with(&rest)) {
            return self.cut("the magic of a frame");
        }
        Ok(Some(Verdict::Malformed(format!(
            "byte {begin}: no frame begins here"
        ))))
    }

    fn cut(&self, place: &str) -> io::Result<Option<Verdict>> {
        Ok(Some(Verdict::Incomplete(format!(
            "ends at byte {}, in {place}",
            self.len
        ))))
    }

    /// Passes over one frame. `Some` is the verdict on the whole file.
    fn frame(&mut self) -> io::Result<Option<Verdict>> {
        let begin = self.at;
        let Some(magic) = self.take::<4>()? else {
            return self.rest(begin);
        };
        let magic = u32::from_le_bytes(magic);
        if SKIPPABLE.contains(&magic) {
            let size = self.take::<4>()?;
            return match size {
                Some(size) if self.skip(u32::from_le_bytes(size).into()) => Ok(None),
                _ => self.cut("a skippable frame"),
            };
        }
        if magic != MAGIC {
            return Ok(Some(Verdict::Malformed(format!(
                "byte {begin}: no frame begins here"
            ))));
        }
        let Some([descriptor]) = self.take::<1>()? else {
            return self.cut("the header of a frame");
        };
        if !self.skip(header_rest(descriptor)) {
            return self.cut("the header of a frame");
        }
        loop {
            let Some([a, b, c]) = self.take::<3>()? else {
                return self.cut("the blocks of a frame");
            };
            let header = u32::from_le_bytes([a, b, c, 0]);
            let size = match header >> 1 & 3 {
                // One byte that is repeated.
                1 => 1,
                3 => {
                    let at = self.at - 3;
                    let why = format!("byte {at}: a block of unknown kind");
                    return Ok(Some(Verdict::Malformed(why)));
                }
                _ => u64::from(header >> 3),
            };
            if !self.skip(size) {
                return self.cut("a block");
            }
            self.blocks -= 1;
            if self.blocks == 0 {
                return Ok(Some(Verdict::Complete));
            }
            if header & 1 == 1 {
                break;
            }
        }
        let checksum = if descriptor & 4 == 4 { 4 } else { 0 };
        match self.skip(checksum) {
            true => Ok(None),
            false => self.cut("the checksum of a frame"),
        }
    }
}

/// Length of a frame's header behind the descriptor: window, dictionary and content size.
fn header_rest(descriptor: u8) -> u64 {
    let single = descriptor >> 5 & 1 == 1;
    let window = u64::from(!single);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match (descriptor >> 6, single) {
        (0, single) => u64::from(single),
        (flag, _) => 1 << flag,
    };
    window + dictionary + content
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("four bytes"))
}
