//! What can be wrong with an edit, and how it is told: what happened, and what to do.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::cli::{Failure, exit};
use crate::json::{PatchError, PatchErrorKind};

/// Why a document was not read or not changed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There is no such file.
    FileMissing,
    /// Its version is another one; the reason says which.
    NotCurrent(String),
    /// Others were faster, too often.
    Overtaken(String),
    /// The pointer leads nowhere; the reason says where the path ends.
    PointerMissing(String),
    /// An operation `test` found something else.
    TestFailed(String),
    /// The file can't be edited: not JSON, in direct mode, too large.
    NotADocument(String),
    /// The edit doesn't fit: no number, out of range, too large.
    DoesNotFit(String),
    /// No right to read or to write it.
    Forbidden(io::Error),
    /// The file comes and goes.
    Restless,
    Failed(io::Error),
}

impl Trouble {
    /// As it is told of a file.
    pub fn of(&self, file: &Path) -> Failure {
        use Trouble as T;
        let code = match self {
            T::FileMissing | T::NotADocument(_) | T::DoesNotFit(_) | T::Forbidden(_) => {
                exit::BAD_INPUT
            }
            T::NotCurrent(_) | T::Overtaken(_) => exit::NOT_CURRENT,
            T::PointerMissing(_) => exit::NOT_THERE,
            T::TestFailed(_) => exit::TEST_FAILED,
            T::Restless | T::Failed(_) => exit::TROUBLE,
        };
        let message = match self {
            T::FileMissing => "no such file; --create makes one".to_owned(),
            T::NotCurrent(reason) => format!("{reason}; read it again, and try again"),
            T::Overtaken(reason)
            | T::PointerMissing(reason)
            | T::TestFailed(reason)
            | T::NotADocument(reason)
            | T::DoesNotFit(reason) => reason.clone(),
            T::Forbidden(e) => format!("{e}; nothing was changed"),
            T::Restless => "it is created and removed again and again by somebody else".to_owned(),
            T::Failed(e) => e.to_string(),
        };
        Failure::new(code, format!("{}: {message}", file.display()))
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) => Trouble::FileMissing,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Trouble::Forbidden(error),
            _ => Trouble::Failed(error),
        }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Trouble {
        io::Error::from(errno).into()
    }
}

impl From<PatchError> for Trouble {
    fn from(error: PatchError) -> Trouble {
        let reason = error.to_string();
        match error.kind {
            PatchErrorKind::MissingPath => Trouble::PointerMissing(reason),
            PatchErrorKind::TestFailed => Trouble::TestFailed(reason),
            PatchErrorKind::Malformed
            | PatchErrorKind::WrongType
            | PatchErrorKind::OutOfRange
            | PatchErrorKind::TooLarge => Trouble::DoesNotFit(reason),
        }
    }
}
