//! Documents on a mount: they are read as files and edited through attributes.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::edit::{Changed, Edit};
use super::trouble::Trouble;
use super::update;
use crate::cli::random;
use crate::json::{Document, Pointer, Value};
use crate::sys::at;

const VERSION: &str = "commitfs.version";
/// What doesn't fit into one attribute goes in pieces of so many bytes; the kernel's limit is 64 KiB.
const PIECE: usize = 60 << 10;
/// How long the daemon may have no room for another large edit.
const PATIENCE: Duration = Duration::from_secs(60);

/// A document's version and text.
pub(super) fn read(file: &Path) -> Result<(u64, Vec<u8>), Trouble> {
    let mut open = File::open(file)?;
    loop {
        let before = version_of(&open).ok_or(Errno::NODATA)?;
        let mut text = Vec::new();
        open.read_to_end(&mut text)?;
        // One that is open stays as it is, unless it is appended to.
        if version_of(&open) == Some(before) {
            return Ok((before, text));
        }
        open.rewind()?;
    }
}

/// The version of an open file.
pub(super) fn version_of(file: &File) -> Option<u64> {
    let text = at::get_xattr(file, VERSION.as_ref()).ok().flatten()?;
    String::from_utf8(text).ok()?.trim().parse().ok()
}

/// The current version of a file.
fn current_version(file: &Path) -> Result<u64, Trouble> {
    let text = get(file, VERSION)?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| Errno::NODATA.into())
}

/// Makes an edit.
pub(super) fn change(file: &Path, edit: &Edit, expected: Option<u64>) -> Result<Changed, Trouble> {
    match edit {
        Edit::Set { pointer, value } if may_be_an_item(pointer) => {
            set_item(file, pointer, value, expected)
        }
        Edit::Set { pointer, value } => {
            let text = Edit::adding(pointer, value);
            set(file, "patch", text.as_bytes(), expected)
        }
        Edit::Increment { text, .. } => set(file, "patch", text.as_bytes(), expected),
        Edit::Patch { text } => set(file, "patch", text, expected),
        Edit::Merge { text } => set(file, "merge", text, expected),
    }
}

/// Whether a pointer ends with a position, if there is an array.
fn may_be_an_item(pointer: &Pointer) -> bool {
    let digits = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    pointer.tokens().last().is_some_and(digits)
}

/// To set an item is to replace it; a patch that adds would push it aside. Only where there is none
/// the value is added, and then to the version that had none.
fn set_item(
    file: &Path,
    pointer: &Pointer,
    value: &str,
    expected: Option<u64>,
) -> Result<Changed, Trouble> {
    let mut backoff = update::Backoff::default();
    loop {
        let version = match expected {
            Some(version) => version,
            None => current_version(file)?,
        };
        let replacing = Edit::replacing(pointer, value);
        let done = match set(file, "patch", replacing.as_bytes(), Some(version)) {
            Err(Trouble::PointerMissing(_)) => {
                let adding = Edit::adding(pointer, value);
                set(file, "patch", adding.as_bytes(), Some(version))
            }
            other => other,
        };
        match done {
            Err(Trouble::NotCurrent(_)) if expected.is_none() => backoff.wait(),
            other => return other,
        }
    }
}

/// Puts a whole text in the place of a version.
pub(super) fn replace(file: &Path, text: &[u8], version: u64) -> Result<Changed, Trouble> {
    set(file, "replace", text, Some(version))
}

/// Sets an attribute that edits a document, in pieces if need be.
fn set(file: &Path, what: &str, text: &[u8], expected: Option<u64>) -> Result<Changed, Trouble> {
    let version = expected.map(|v| format!("@{v}")).unwrap_or_default();
    let name = format!("commitfs.json.{what}");
    let done = if text.len() <= PIECE {
        put(file, &format!("{name}{version}"), text)
    } else {
        let token = format!("{:016x}", random::number());
        send_pieces(file, &token, text)?;
        let len = text.len().to_string();
        put(file, &format!("{name}:{token}{version}"), len.as_bytes())
    };
    done.map_err(|errno| why(file, errno))?;
    Ok(result(file))
}

fn send_pieces(file: &Path, token: &str, text: &[u8]) -> Result<(), Trouble> {
    let begun = Instant::now();
    let mut backoff = update::Backoff::default();
    let mut sent = 0;
    for piece in text.chunks(PIECE) {
        let name = format!("commitfs.json.part:{token}@{sent}");
        loop {
            match put(file, &name, piece) {
                // Others are sending much, too.
                Err(Errno::AGAIN) if begun.elapsed() < PATIENCE => backoff.wait(),
                Err(Errno::TOOBIG) => {
                    let reason = format!("{} bytes are too much for one edit", text.len());
                    return Err(Trouble::DoesNotFit(reason));
                }
                other => break other?,
            }
        }
        sent += piece.len();
    }
    Ok(())
}

fn put(file: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::setxattr(file, name, value, XattrFlags::empty())
}

fn get(file: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(file, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// What this thread's edit came to, as the daemon tells it.
fn result(file: &Path) -> Changed {
    let text = get(file, "commitfs.json.result").unwrap_or_default();
    let Ok(document) = Document::parse(&text) else {
        return Changed::default();
    };
    let Value::Object(members) = document.value() else {
        return Changed::default();
    };
    let text_of = |name: &str| members.get(name).map(ToString::to_string);
    Changed {
        version: text_of("version").and_then(|v| v.parse().ok()),
        value: text_of("value"),
    }
}

/// Why an edit was refused. The daemon knows more than the number, but of its own refusals alone:
/// those of the kernel it never heard of.
fn why(file: &Path, errno: Errno) -> Trouble {
    let reason = || {
        get(file, "commitfs.json.error")
            .ok()
            .and_then(|text| String::from_utf8(text).ok())
            .unwrap_or_else(|| std::io::Error::from(errno).to_string())
    };
    match errno {
        Errno::NOENT => {
            let reason = reason();
            // Else it is the file that isn't there.
            if reason.starts_with("operation ") {
                Trouble::PointerMissing(reason)
            } else {
                Trouble::FileMissing
            }
        }
        Errno::STALE => Trouble::NotCurrent(reason()),
        Errno::CANCELED => Trouble::TestFailed(reason()),
        Errno::INVAL | Errno::RANGE | Errno::TOOBIG => Trouble::DoesNotFit(reason()),
        Errno::BADMSG => Trouble::NotADocument(reason()),
        Errno::OPNOTSUPP => Trouble::NotADocument(reason()),
        _ => errno.into(),
    }
}
