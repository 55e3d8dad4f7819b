//! Guards: is this content a whole document of its kind, and may it take the place of what is there
//! (C21)?
//!
//! A program that fails half-way through a save often still closes its file in good order, and
//! leaves half a document. A guard tells that from the content alone: [`examine`] reads it and
//! gives a [`Verdict`], [`judge`] decides by it. Nothing here knows of paths, descriptors or
//! transactions, and nothing costs a second reading of a large file: JSON can be judged while it is
//! written ([`JsonStream`]), the binary kinds are told by their head and tail, or by the lengths
//! that they tell of themselves.

mod gzip;
mod hdf5;
mod json;
mod npy;
mod parquet;
mod pickle;
mod safetensors;
#[cfg(test)]
mod tests;
mod zip;
mod zstd;

use std::{fmt, io, str::FromStr};

pub use json::{JsonLines, JsonStream};

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
    /// NumPy's array files, known by header and length.
    Npy,
    /// An Apache Parquet file, known by its magics and footer.
    Parquet,
    /// An HDF5 file, known by the end that its superblock tells.
    Hdf5,
    /// A Python pickle, known by its last byte.
    Pickle,
    /// A gzip file, known by its trailer; a small one is unpacked.
    Gzip,
    /// A zstd file, known by its frames.
    Zstd,
}

impl Guard {
    /// Every guard with the name it has in rules, messages and machine output.
    pub const NAMES: &'static [(&'static str, Guard)] = &[
        ("none", Guard::None),
        ("json", Guard::Json),
        ("json-strict", Guard::JsonStrict),
        ("zip", Guard::Zip),
        ("safetensors", Guard::Safetensors),
        ("npy", Guard::Npy),
        ("parquet", Guard::Parquet),
        ("hdf5", Guard::Hdf5),
        ("pickle", Guard::Pickle),
        ("gzip", Guard::Gzip),
        ("zstd", Guard::Zstd),
    ];

    /// The name of this guard.
    pub fn name(self) -> &'static str {
        let mut all = Guard::NAMES.iter();
        all.find(|(_, guard)| *guard == self)
            .map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no guard has.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a guard; the guards are none, json, json-strict, zip, safetensors, npy, parquet, \
     hdf5, pickle, gzip, zstd"
)]
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
    /// No bytes, or for JSON only space and comments.
    Empty,
    /// A document of the kind that was cut off: it ends inside, or in a hole.
    Incomplete(String),
    /// Begins as the kind and goes wrong in its middle: a template, a fixture, or an accident.
    Malformed(String),
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
        Guard::Npy => npy::examine(source, len),
        Guard::Parquet => parquet::examine(source, len),
        Guard::Hdf5 => hdf5::examine(source, len),
        Guard::Pickle => pickle::examine(source, len),
        Guard::Gzip => gzip::examine(source, len),
        Guard::Zstd => zstd::examine(source, len),
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

/// How content takes the place of what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replaces {
    /// As a whole: a new file, one that was emptied and written anew, or a rename.
    Whole,
    /// By an edit of a part.
    InPlace,
}

/// What a guard says of content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It may be published.
    Permitted,
    /// It may not.
    Refused(Violation),
    /// It may, but not in the place of a whole document.
    NotOverWhole(Violation),
}

impl Judgement {
    /// Decides where `current` tells what the version that is to be replaced is (`None`: there is
    /// none). It is asked only if that matters, since it may have to be read.
    pub fn decide<E>(
        self,
        current: impl FnOnce() -> Result<Option<Verdict>, E>,
    ) -> Result<Result<(), Violation>, E> {
        Ok(match self {
            Judgement::Permitted => Ok(()),
            Judgement::Refused(violation) => Err(violation),
            Judgement::NotOverWhole(violation) => match current()? {
                Some(Verdict::Complete) => Err(violation),
                _ => Ok(()),
            },
        })
    }
}

/// May content be published under a guarded name?
///
/// | content | over a whole document | over anything else, or nothing |
/// |---|---|---|
/// | complete | yes | yes |
/// | empty | only with `allow_empty` | yes (`touch`) |
/// | incomplete | no | no |
/// | malformed | as a whole, not by an edit in place | yes |
/// | foreign | as malformed; under the JSON guard no | yes |
///
/// Malformed content is somebody's will, as on a plain directory: half a document is what a save
/// leaves that failed, and breaks off. Foreign content passes most guards everywhere, since the
/// names are shared with formats that never were of the kind, such as older pickled checkpoints and
/// compressed pickles. The strict guard of JSON takes nothing but JSON.
pub fn judge(guard: Guard, new: &Verdict, how: Replaces, allow_empty: bool) -> Judgement {
    let violation = |reason: String| Violation { guard, reason };
    let by_edit = how == Replaces::InPlace;
    match new {
        _ if guard == Guard::None => Judgement::Permitted,
        Verdict::Complete => Judgement::Permitted,
        Verdict::Empty if allow_empty => Judgement::Permitted,
        Verdict::Empty => Judgement::NotOverWhole(violation(
            "empty content would replace a complete document".to_owned(),
        )),
        Verdict::Incomplete(why) => Judgement::Refused(violation(format!("incomplete: {why}"))),
        Verdict::Malformed(why) | Verdict::Foreign(why) if guard == Guard::JsonStrict => {
            Judgement::Refused(violation(format!("not JSON: {why}")))
        }
        Verdict::Malformed(why) if by_edit => Judgement::NotOverWhole(violation(format!(
            "an edit would spoil a complete document: {why}"
        ))),
        Verdict::Foreign(why) if by_edit || guard == Guard::Json => {
            Judgement::NotOverWhole(violation(format!(
                "something else would replace a complete document: {why}"
            )))
        }
        Verdict::Malformed(_) | Verdict::Foreign(_) => Judgement::Permitted,
    }
}

/// The `N` bytes at `at`; what is asked for lies within the content.
fn bytes_at<const N: usize>(source: &dyn ReadAt, at: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    read_exact_at(source, &mut bytes, at)?;
    Ok(bytes)
}

/// Up to `most` bytes from the start of content of `len` bytes.
fn head(source: &dyn ReadAt, len: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut head = vec![0; most.min(usize::try_from(len).unwrap_or(most))];
    read_exact_at(source, &mut head, 0)?;
    Ok(head)
}

/// Does content begin with a magic? Of what is shorter, all that is there has to fit.
fn begins(head: &[u8], magic: &[u8]) -> bool {
    let known = head.len().min(magic.len());
    head[..known] == magic[..known]
}
