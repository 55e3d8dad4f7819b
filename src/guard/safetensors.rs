//! Is this a whole safetensors file? Its header, a JSON object behind eight bytes of length, says
//! where every tensor's data ends, and thus how long the file has to be.

use std::{fmt, io};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::{JsonStream, ReadAt, Verdict, read_exact_at};

/// The format's own limit on the header's length, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// The length field in front of the header.
const PREFIX: u64 = 8;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    // Of a shorter file, what is there of the length field may already be more than it can hold.
    let mut prefix = [0; PREFIX as usize];
    read_exact_at(source, &mut prefix[..len.min(PREFIX) as usize], 0)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER {
        return Ok(Verdict::Foreign(format!(
            "byte 0: a header of {header_len} bytes, more than any has"
        )));
    }
    if len < PREFIX {
        return Ok(Verdict::Incomplete(format!(
            "ends at byte {len}, in the length of the header"
        )));
    }
    if header_len == 0 {
        return Ok(Verdict::Incomplete(
            "byte 0: the header's length is zero, as in a hole".into(),
        ));
    }
    let data = PREFIX + header_len;
    let mut header = vec![0; header_len.min(len - PREFIX) as usize];
    read_exact_at(source, &mut header, PREFIX)?;
    match header.first() {
        Some(b'{') => {}
        None => {
            return Ok(Verdict::Incomplete(format!(
                "ends at byte {len}, before the header"
            )));
        }
        Some(0) => {
            return Ok(Verdict::Incomplete(
                "byte 8 is NUL, as in a hole, not a header".into(),
            ));
        }
        Some(_) => {
            return Ok(Verdict::Foreign(
                "byte 8: the header does not begin with '{'".into(),
            ));
        }
    }
    if len < data {
        return Ok(Verdict::Incomplete(format!(
            "ends at byte {len}, in the header, which ends at {data}"
        )));
    }
    Ok(examine_length(&header, data, len))
}

/// Judges the length of a file by its header, of which all bytes are there.
fn examine_length(header: &[u8], data: u64, len: u64) -> Verdict {
    let mut stream = JsonStream::new(true);
    stream.feed(header);
    match stream.verdict() {
        Verdict::Incomplete(why) if header.last() == Some(&0) => {
            return Verdict::Incomplete(format!("the header, from byte {PREFIX} on: {why}"));
        }
        Verdict::Incomplete(why) | Verdict::Malformed(why) | Verdict::Foreign(why) => {
            return Verdict::Malformed(format!("the header, from byte {PREFIX} on: {why}"));
        }
        Verdict::Complete | Verdict::Empty => {}
    }
    let extent = match serde_json::from_slice(header) {
        Ok(Extent(extent)) => extent,
        Err(error) => {
            return Verdict::Malformed(format!("the header, from byte {PREFIX} on: {error}"));
        }
    };
    match data.checked_add(extent) {
        Some(end) if end == len => Verdict::Complete,
        Some(end) if end < len => {
            Verdict::Malformed(format!("the tensors end at byte {end}, the file at {len}"))
        }
        _ => Verdict::Incomplete(format!(
            "ends at byte {len}, {extent} bytes of tensors begin at {data}"
        )),
    }
}

/// Where the data of the last tensor ends, counted from the end of the header.
struct Extent(u64);

#[derive(Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Extent, D::Error> {
        deserializer.deserialize_map(ExtentVisitor)
    }
}

struct ExtentVisitor;

impl<'de> Visitor<'de> for ExtentVisitor {
    type Value = Extent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Extent, A::Error> {
        let mut extent = 0;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let (begin, end) = map.next_value::<Tensor>()?.data_offsets;
            if begin > end {
                return Err(A::Error::custom(format_args!(
                    "tensor {name:?} ends before it begins"
                )));
            }
            extent = extent.max(end);
        }
        Ok(Extent(extent))
    }
}
