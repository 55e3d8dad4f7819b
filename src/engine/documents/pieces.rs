//! Edits of documents that are larger than the kernel lets an attribute be.
//!
//! The value of an attribute has at most 64 KiB. A program with more to say sets
//! `user.commitfs.json.part:TOKEN@OFFSET` once for each piece, in order, and then
//! `user.commitfs.json.patch:TOKEN`, `…merge:TOKEN` or `…replace:TOKEN` (with `@N`, if it likes) to
//! the number of bytes in all. The kernel checks each time that the caller may write the file, so
//! nothing here has to. The token is the program's own choice; one drawn at random can't meet
//! another's, whatever is known of the caller. Offset 0 begins anew.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::json::Limits;
use crate::types::OpResult;

const DOCUMENT: &str = "user.commitfs.json.";
/// Of all that is being collected, in bytes: twice the largest edit.
const KEPT_BYTES: usize = 128 << 20;
/// What nobody has added to for so long is dropped.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Of a token, in bytes.
const LONGEST_TOKEN: usize = 32;

/// Whose pieces, and which.
type PieceKey = (u32, String);

#[derive(Debug)]
struct CollectedPieces {
    text: Vec<u8>,
    used: Instant,
}

/// Edits that have begun to arrive.
#[derive(Debug, Default)]
pub struct Pieces(Mutex<HashMap<PieceKey, CollectedPieces>>);

impl Pieces {
    /// Adds a piece at its place; TOOBIG beyond the largest edit, AGAIN if others collect too much, INVAL out of order.
    pub fn add(&self, key: PieceKey, offset: usize, piece: &[u8]) -> OpResult<()> {
        let mut all = self.0.lock();
        if offset == 0 {
            all.remove(&key);
        }
        if offset.saturating_add(piece.len()) > Limits::default().bytes {
            all.remove(&key);
            return Err(Errno::TOOBIG);
        }
        let kept: usize = all.values().map(|c| c.text.len()).sum();
        if kept + piece.len() > KEPT_BYTES {
            return Err(Errno::AGAIN);
        }
        let collected = all.entry(key).or_insert_with(|| CollectedPieces {
            text: Vec::new(),
            used: Instant::now(),
        });
        if collected.text.len() != offset {
            return Err(Errno::INVAL);
        }
        collected.text.extend_from_slice(piece);
        collected.used = Instant::now();
        Ok(())
    }

    /// Takes what has arrived, if it is all.
    pub fn take(&self, key: &PieceKey, len: usize) -> OpResult<Vec<u8>> {
        let mut all = self.0.lock();
        match all.remove(key) {
            Some(collected) if collected.text.len() == len => Ok(collected.text),
            _ => Err(Errno::INVAL),
        }
    }

    /// It is set once more.
    pub fn put_back(&self, key: PieceKey, text: Vec<u8>) {
        let used = Instant::now();
        self.0.lock().insert(key, CollectedPieces { text, used });
    }

    /// Forgets what was begun and given up.
    pub fn sweep(&self) {
        self.0.lock().retain(|_, c| c.used.elapsed() < KEPT_FOR);
    }
}

/// An attribute that has to do with pieces.
#[derive(Debug, PartialEq, Eq)]
pub enum PieceAttribute {
    /// A piece arrives.
    Part {
        /// Whose, of its program's.
        token: String,
        /// Its place in the whole, in bytes.
        offset: usize,
    },
    /// All has arrived; what remains is to set this attribute to it.
    Whole {
        /// Of its pieces.
        token: String,
        /// The attribute.
        name: OsString,
    },
}

impl PieceAttribute {
    /// `None`: not one of these.
    pub fn parse(name: &OsStr) -> Option<PieceAttribute> {
        let rest = std::str::from_utf8(name.as_bytes()).ok()?;
        let (what, rest) = rest.strip_prefix(DOCUMENT)?.split_once(':')?;
        let (token, number) = match rest.split_once('@') {
            Some((token, number)) => (token, Some(number)),
            None => (rest, None),
        };
        let is_plain = token.bytes().all(|b| b.is_ascii_alphanumeric());
        if token.is_empty() || token.len() > LONGEST_TOKEN || !is_plain {
            return None;
        }
        let token = token.to_owned();
        match (what, number) {
            ("part", Some(offset)) => Some(PieceAttribute::Part {
                token,
                offset: offset.parse().ok()?,
            }),
            ("patch" | "merge" | "replace", number) => {
                let version = number.map(|n| format!("@{n}")).unwrap_or_default();
                let name = format!("{DOCUMENT}{what}{version}").into();
                Some(PieceAttribute::Whole { token, name })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(token: &str) -> PieceKey {
        (0, token.to_owned())
    }

    #[test]
    fn pieces_come_in_order_or_not_at_all() {
        let pieces = Pieces::default();
        pieces.add(key("a"), 0, b"one").unwrap();
        pieces.add(key("b"), 0, b"another's").unwrap();
        assert_eq!(pieces.add(key("a"), 4, b"x"), Err(Errno::INVAL));
        pieces.add(key("a"), 3, b" two").unwrap();
        assert_eq!(pieces.take(&key("a"), 7), Ok(b"one two".to_vec()));
        assert_eq!(pieces.take(&key("a"), 7), Err(Errno::INVAL));
        assert_eq!(pieces.take(&key("b"), 1), Err(Errno::INVAL));
    }

    #[test]
    fn another_users_pieces_are_not_mine() {
        let pieces = Pieces::default();
        pieces.add((1, "a".into()), 0, b"one").unwrap();
        assert_eq!(pieces.take(&(2, "a".into()), 3), Err(Errno::INVAL));
        assert_eq!(pieces.take(&(1, "a".into()), 3), Ok(b"one".to_vec()));
    }

    #[test]
    fn offset_0_begins_anew() {
        let pieces = Pieces::default();
        pieces.add(key("a"), 0, b"given up").unwrap();
        pieces.add(key("a"), 0, b"new").unwrap();
        assert_eq!(pieces.take(&key("a"), 3), Ok(b"new".to_vec()));
    }

    #[test]
    fn there_is_an_end_to_what_is_collected() {
        let pieces = Pieces::default();
        let most = Limits::default().bytes;
        let piece = vec![b' '; most / 2];
        pieces.add(key("a"), 0, &piece).unwrap();
        pieces.add(key("a"), most / 2, &piece).unwrap();
        assert_eq!(pieces.add(key("x"), usize::MAX, b" "), Err(Errno::TOOBIG));
        assert_eq!(pieces.add(key("a"), most, b" "), Err(Errno::TOOBIG));
        for token in ["b", "c", "d", "e"] {
            pieces.add(key(token), 0, &piece).unwrap();
        }
        assert_eq!(pieces.add(key("f"), 0, b" "), Err(Errno::AGAIN));
        pieces.take(&key("b"), most / 2).unwrap();
        pieces.add(key("f"), 0, b" ").unwrap();
    }

    #[test]
    fn names_say_which_piece_of_what() {
        let parse = |name: &str| PieceAttribute::parse(OsStr::new(name));
        let whole = |name: &str| {
            Some(PieceAttribute::Whole {
                token: "1f".into(),
                name: name.into(),
            })
        };
        assert_eq!(
            parse("user.commitfs.json.part:1f@61440"),
            Some(PieceAttribute::Part {
                token: "1f".into(),
                offset: 61440
            })
        );
        assert_eq!(
            parse("user.commitfs.json.patch:1f"),
            whole("user.commitfs.json.patch")
        );
        assert_eq!(
            parse("user.commitfs.json.merge:1f@7"),
            whole("user.commitfs.json.merge@7")
        );
        for other in [
            "user.commitfs.json:/patch:1f",
            "user.commitfs.json.patch",
            "user.commitfs.json.patch@7",
            "user.commitfs.json.part:1f",
            "user.commitfs.json.part:@1",
            "user.commitfs.json.part:1f@x",
            "user.commitfs.json.patch:../x",
            "user.commitfs.json.result:1f",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
