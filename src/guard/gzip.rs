//! Is this a whole gzip file? Only who unpacks it knows where it ends, so that is done with a small
//! one, without keeping what comes out. A large one isn't read again: its trailer tells the length
//! of the content, which can't be more than deflate makes of that many bytes.

use std::io;

use super::{ReadAt, Verdict, begins, bytes_at, head};

const MAGIC: [u8; 3] = *b"\x1f\x8b\x08";
/// Up to this length a file is unpacked.
const SMALL: u64 = 1 << 20;
/// Checksum and length of the content.
const TRAILER: usize = 8;
/// Deflate makes at most so many bytes of one.
const MOST: u64 = 1032;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    if !begins(&head(source, len, MAGIC.len())?, &MAGIC) {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as a gzip file".into(),
        ));
    }
    if len <= SMALL {
        return Ok(unpack(&head(source, len, SMALL as usize)?));
    }
    let told = u64::from(u32::from_le_bytes(bytes_at(source, len - 4)?));
    if told > len * MOST {
        return Ok(Verdict::Incomplete(format!(
            "ends at byte {len} without a trailer"
        )));
    }
    Ok(Verdict::Complete)
}

/// Why unpacking ends early.
enum Stop {
    CutOff,
    Wrong(&'static str),
}

fn unpack(bytes: &[u8]) -> Verdict {
    let mut at = 0;
    // Behind the last member there may be zeros, up to the end of a tape's block.
    while at == 0 || bytes[at..].iter().any(|byte| *byte != 0) {
        if at > 0 && !begins(&bytes[at..], &MAGIC) {
            return Verdict::Malformed(format!("the content ends at byte {at}"));
        }
        let mut bits = Bits {
            bytes: &bytes[at..],
            at: 0,
            held: 0,
            count: 0,
        };
        match member(&mut bits) {
            Ok(()) => at += bits.at,
            Err(Stop::CutOff) => {
                return Verdict::Incomplete(format!("ends at byte {}", bytes.len()));
            }
            Err(Stop::Wrong(why)) => {
                return Verdict::Malformed(format!("about byte {}: {why}", at + bits.at));
            }
        }
    }
    Verdict::Complete
}

/// One member: header, deflated content, trailer.
fn member(bits: &mut Bits) -> Result<(), Stop> {
    let mut header = [0; 10];
    for byte in &mut header {
        *byte = bits.byte()?;
    }
    let flags = header[3];
    if flags & 4 != 0 {
        let len = u16::from_le_bytes([bits.byte()?, bits.byte()?]);
        for _ in 0..len {
            bits.byte()?;
        }
    }
    for flag in [8, 16] {
        // File name and comment.
        while flags & flag != 0 && bits.byte()? != 0 {}
    }
    for _ in 0..flags & 2 {
        bits.byte()?;
    }
    let len = inflate(bits)?;
    let mut trailer = [0; TRAILER];
    for byte in &mut trailer {
        *byte = bits.byte()?;
    }
    let told = u32::from_le_bytes(*trailer.last_chunk().expect("eight bytes"));
    if told != len as u32 {
        return Err(Stop::Wrong("the trailer tells another length"));
    }
    Ok(())
}

/// Passes over deflated content. Gives how long it is unpacked.
fn inflate(bits: &mut Bits) -> Result<u64, Stop> {
    let mut len = 0;
    loop {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.align();
                let size = u16::from_le_bytes([bits.byte()?, bits.byte()?]);
                let check = u16::from_le_bytes([bits.byte()?, bits.byte()?]);
                if size != !check {
                    return Err(Stop::Wrong("a stored block with an odd length"));
                }
                for _ in 0..size {
                    bits.byte()?;
                }
                len += u64::from(size);
            }
            1 => len += block(bits, &Code::fixed(), &Code::new(&[5; 30]))?,
            2 => {
                let (literals, distances) = codes(bits)?;
                len += block(bits, &literals, &distances)?;
            }
            _ => return Err(Stop::Wrong("a block of unknown kind")),
        }
        if last {
            bits.align();
            return Ok(len);
        }
    }
}

/// Extra bits of the codes for lengths, and the shortest length of each.
const LENGTHS: [(u8, u16); 29] = [
    (0, 3),
    (0, 4),
    (0, 5),
    (0, 6),
    (0, 7),
    (0, 8),
    (0, 9),
    (0, 10),
    (1, 11),
    (1, 13),
    (1, 15),
    (1, 17),
    (2, 19),
    (2, 23),
    (2, 27),
    (2, 31),
    (3, 35),
    (3, 43),
    (3, 51),
    (3, 59),
    (4, 67),
    (4, 83),
    (4, 99),
    (4, 115),
    (5, 131),
    (5, 163),
    (5, 195),
    (5, 227),
    (0, 258),
];
const END_OF_BLOCK: u16 = 256;

fn block(bits: &mut Bits, literals: &Code, distances: &Code) -> Result<u64, Stop> {
    let mut len = 0;
    loop {
        match literals.read(bits)? {
            END_OF_BLOCK => return Ok(len),
            0..END_OF_BLOCK => len += 1,
            symbol => {
                let (extra, shortest) = *LENGTHS
                    .get(usize::from(symbol - 257))
                    .ok_or(Stop::Wrong("an unknown length"))?;
                len += u64::from(shortest) + u64::from(bits.take(extra)?);
                let distance = distances.read(bits)?;
                if distance > 29 {
                    return Err(Stop::Wrong("an unknown distance"));
                }
                let extra = (distance / 2).saturating_sub(1);
                bits.take(extra as u8)?;
            }
        }
    }
}

/// The codes that a block brings along.
fn codes(bits: &mut Bits) -> Result<(Code, Code), Stop> {
    const ORDER: [usize; 19] = [
        16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
    ];
    let literals = usize::from(bits.take(5)?) + 257;
    let distances = usize::from(bits.take(5)?) + 1;
    let count = usize::from(bits.take(4)?) + 4;
    let mut lengths = [0; 19];
    for &place in &ORDER[..count] {
        lengths[place] = bits.take(3)? as u8;
    }
    let code = Code::new(&lengths);
    let mut lengths: Vec<u8> = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match code.read(bits)? {
            length @ 0..16 => (length as u8, 1),
            16 => {
                let last = lengths.last().copied();
                let last = last.ok_or(Stop::Wrong("nothing to repeat"))?;
                (last, 3 + bits.take(2)?)
            }
            17 => (0, 3 + bits.take(3)?),
            _ => (0, 11 + bits.take(7)?),
        };
        lengths.extend(std::iter::repeat_n(value, usize::from(times)));
    }
    if lengths.len() > literals + distances {
        return Err(Stop::Wrong("too many lengths of codes"));
    }
    let (literals, distances) = lengths.split_at(literals);
    Ok((Code::new(literals), Code::new(distances)))
}

/// A canonical Huffman code: how many codes have each length, and their symbols in order.
struct Code {
    counts: [u16; 16],
    symbols: Vec<u16>,
}

impl Code {
    fn new(lengths: &[u8]) -> Code {
        let mut counts = [0; 16];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        let mut symbols: Vec<u16> = (0..lengths.len() as u16).collect();
        symbols.retain(|symbol| lengths[usize::from(*symbol)] > 0);
        symbols.sort_by_key(|symbol| lengths[usize::from(*symbol)]);
        Code { counts, symbols }
    }

    /// The code of literals and lengths that needn't be told.
    fn fixed() -> Code {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        Code::new(&lengths)
    }

    fn read(&self, bits: &mut Bits) -> Result<u16, Stop> {
        let (mut code, mut first, mut index) = (0_i32, 0_i32, 0_i32);
        for count in &self.counts[1..] {
            let count = i32::from(*count);
            code |= i32::from(bits.take(1)?);
            if code - count < first {
                let place = usize::try_from(index + code - first).unwrap_or(usize::MAX);
                return self
                    .symbols
                    .get(place)
                    .copied()
                    .ok_or(Stop::Wrong("a code that there is not"));
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(Stop::Wrong("a code that there is not"))
    }
}

/// Bits of bytes, the lowest first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u32,
    count: u8,
}

impl Bits<'_> {
    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.bytes.get(self.at).ok_or(Stop::CutOff)?;
        self.at += 1;
        Ok(byte)
    }

    /// Up to 13 bits.
    fn take(&mut self, count: u8) -> Result<u16, Stop> {
        while self.count < count {
            self.held |= u32::from(self.byte()?) << self.count;
            self.count += 8;
        }
        let taken = self.held & ((1 << count) - 1);
        self.held >>= count;
        self.count -= count;
        Ok(taken as u16)
    }

    /// Goes on at the next whole byte.
    fn align(&mut self) {
        (self.held, self.count) = (0, 0);
    }
}
