//! Guards: is this content a whole document of its kind, and may it take the place of what is there
//! (C21)?
//!
//! A program that fails half-way through a save often still closes its file in good order, and
//! leaves half a document. A guard tells that from the content alone: [`examine`] reads it and
//! gives a [`Verdict`], [`permits`] decides by it. Nothing here knows of paths, descriptors or
//! transactions, and nothing costs a second reading of a large file: JSON can be judged while it is
//! written ([`JsonStream`]), the binary kinds are told by their head and tail.

mod json;
mod safetensors;
#[cfg(test)]
mod tests;
mod zip;

use std::{fmt, io, str::FromStr};

pub use json::JsonStream;

/// How much of a streamed document is read at a time.
const PIECE: usize = 256 * 1024;

/// The kind of document that a rule demands under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// Anything goes.
    None,
    /// JSON as programs write it: see [`JsonStream`].
    Json,
    /// JSON by RFC 8259.
    JsonStrict,
    /// A zip archive, known by its end record.
    Zip,
    /// A safetensors file, known by its header and length.
    Safetensors,
}

impl Guard {
    /// Every guard with the name it has in rules, messages and machine output.
    pub const NAMES: &'static [(&'static str, Guard)] = &[
        ("none", Guard::None),
        ("json", Guard::Json),
        ("json-strict", Guard::JsonStrict),
        ("zip", Guard::Zip),
        ("safetensors", Guard::Safetensors),
    ];

    /// The name of this guard.
    pub fn name(self) -> &'static str {
        match self {
            Guard::None => "none",
            Guard::Json => "json",
            Guard::JsonStrict => "json-strict",
            Guard::Zip => "zip",
            Guard::Safetensors => "safetensors",
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no guard has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a guard; the guards are none, json, json-strict, zip, safetensors")]
pub struct UnknownGuard(pub String);

impl FromStr for Guard {
    type Err = UnknownGuard;

    fn from_str(name: &str) -> Result<Guard, UnknownGuard> {
        let found = Guard::NAMES.iter().find(|(known, _)| *known == name);
        found
            .map(|(_, guard)| *guard)
            .ok_or_else(|| UnknownGuard(name.to_owned()))
    }
}

/// What a content is, by the measure of a guard. Reasons name the byte.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// A whole document.
    Complete,
    /// No bytes, or for JSON only space.
    Empty,
    /// A document of the kind that was cut off, mixed up or holed.
    Incomplete(String),
    /// Never was of the kind.
    Foreign(String),
}

/// Content that can be read at any offset.
pub trait ReadAt {
    /// Reads into `buf` from `offset` and returns how many bytes there were: fewer than asked is
    /// allowed, none means that the content ends at or before `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for &[u8] {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let count = buf.len().min(self.len() - start);
        buf[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }
}

/// Fills `buf` from `offset`. Content that ends earlier changed under the reader, and has no
/// verdict.
fn read_exact_at(source: &dyn ReadAt, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match source.read_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Judges the first `len` bytes of `source`. JSON is read from start to end, up to a first error;
/// of the binary kinds only head and tail are.
///
/// Fails if reading does, or if there are fewer than `len` bytes.
pub fn examine(guard: Guard, source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    match guard {
        Guard::None => Ok(Verdict::Complete),
        _ if len == 0 => Ok(Verdict::Empty),
        Guard::Json | Guard::JsonStrict => examine_json(guard == Guard::JsonStrict, source, len),
        Guard::Zip => zip::examine(source, len),
        Guard::Safetensors => safetensors::examine(source, len),
    }
}

fn examine_json(strict: bool, source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    let mut stream = JsonStream::new(strict);
    let mut buf = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    while stream.position() < len && !stream.has_failed() {
        let left = usize::try_from(len - stream.position()).unwrap_or(PIECE);
        let piece = &mut buf[..left.min(PIECE)];
        read_exact_at(source, piece, stream.position())?;
        stream.feed(piece);
    }
    Ok(stream.verdict())
}

/// Content that its guard keeps from being published.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("guard {guard}: {reason}")]
pub struct Violation {
    /// The guard that objects.
    pub guard: Guard,
    /// Why, for a person.
    pub reason: String,
}

/// May content judged `new` take the place of content judged `current` (`None`: there is no file)?
///
/// | new | over a complete document | over anything else, or nothing |
/// |---|---|---|
/// | complete | yes | yes |
/// | empty | only with `allow_empty` | yes (`touch`) |
/// | incomplete | no | no |
/// | foreign | only under the zip guard | yes |
///
/// Foreign content passes the zip guard everywhere, since the names it stands on are shared with
/// formats that never were zip archives, such as the older pickled checkpoints.
pub fn permits(
    guard: Guard,
    new: &Verdict,
    current: Option<&Verdict>,
    allow_empty: bool,
) -> Result<(), Violation> {
    let over_complete = current == Some(&Verdict::Complete);
    let reason = match new {
        _ if guard == Guard::None => return Ok(()),
        Verdict::Complete => return Ok(()),
        Verdict::Empty if allow_empty || !over_complete => return Ok(()),
        Verdict::Foreign(_) if guard == Guard::Zip || !over_complete => return Ok(()),
        Verdict::Empty => "empty content would replace a complete document".to_owned(),
        Verdict::Foreign(why) => format!("something else would replace a complete document: {why}"),
        Verdict::Incomplete(why) => format!("incomplete: {why}"),
    };
    Err(Violation { guard, reason })
}
