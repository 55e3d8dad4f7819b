//! What can be wrong with a document or an edit.

use std::fmt;

/// A place in a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// In bytes from the start of the file.
    pub offset: usize,
    /// Counted from 1.
    pub line: usize,
}

impl Place {
    pub(super) fn new(text: &[u8], offset: usize) -> Place {
        let before = &text[..offset.min(text.len())];
        Place {
            offset,
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "byte {} (line {})", self.offset, self.line)
    }
}

/// Why a text is not a document that can be edited.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonError {
    #[error("not UTF-8 at {0}")]
    NotUtf8(Place),
    #[error("{place} is {found}, expected {expected}")]
    Syntax {
        place: Place,
        found: String,
        expected: &'static str,
    },
    #[error("the member {key:?} is there twice, again at {place}; an edit would lose one")]
    DuplicateKey { place: Place, key: String },
    #[error("a comment at {0}; an edit would lose it")]
    Comment(Place),
    #[error("a second value at {0}; only a single document can be edited")]
    SeveralValues(Place),
    #[error("nested deeper than {limit} at {0}", limit = super::MAX_DEPTH)]
    TooDeep(Place),
    #[error("{size} bytes are more than the {limit} that can be edited")]
    TooLarge { size: usize, limit: usize },
    #[error("empty")]
    Empty,
}

/// The kinds of failure of an edit, which is what a caller decides by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchErrorKind {
    /// The edit itself is wrong, whatever the document (EINVAL).
    Malformed,
    /// What the path leads to, or would have to lead through, is not there (ENOENT).
    MissingPath,
    /// An operation `test` found something else (ECANCELED).
    TestFailed,
    /// The edit doesn't fit what it found: `increment` of a string (EINVAL).
    WrongType,
    /// A number would leave the range in which it is exact (ERANGE).
    OutOfRange,
    /// The edit or its result exceeds a limit (E2BIG).
    TooLarge,
}

/// Why an edit was not made. The document is as it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PatchError {
    pub kind: PatchErrorKind,
    /// Which operation, counted from 1; none if it is the edit as a whole.
    pub operation: Option<usize>,
    /// The operation's name and path.
    pub subject: String,
    pub reason: String,
}

impl PatchError {
    pub(super) fn whole(kind: PatchErrorKind, reason: impl Into<String>) -> PatchError {
        PatchError {
            kind,
            operation: None,
            subject: String::new(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for PatchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(number) = self.operation {
            write!(formatter, "operation {number}: ")?;
        }
        if !self.subject.is_empty() {
            write!(formatter, "{}: ", self.subject)?;
        }
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for PatchError {}
