//! The words every other module uses: node numbers, callers, attributes, errors.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An errno, as programs will see it.
pub use rustix::io::Errno;

/// Result of an operation a program asked for.
pub type OpResult<T> = Result<T, Errno>;

/// Numbers of one kind, so that one can't be taken for another's.
macro_rules! number {
    ($(#[$about:meta])* $name:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after it.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The number before it; of none, none.
            #[must_use]
            pub fn previous(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Number of a node: what the kernel calls nodeid and programs see as `st_ino`.
    ///
    /// Drawn from a counter and never reused while the mount lives, so it can't be mistaken for
    /// another file's the way a backing inode number can.
    NodeId
}

/// The root directory's node.
pub const ROOT: NodeId = NodeId(1);

number! {
    /// Number of a transaction and of its staging file; never reused in a backing directory.
    TxnId
}

number! {
    /// Number of an open description (FUSE file handle).
    HandleId
}

number! {
    /// Number of a commit: one global sequence, whose prefix a power cut leaves. Zero: none yet.
    Seq
}

number! {
    /// Number of a name's version, as `commitfs.version` tells it: one more with each commit of the name.
    Version
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dentry {
    /// Node of the directory.
    pub dir: NodeId,
    /// The name in it.
    pub name: OsString,
}

/// Who asks: thread id (0 when outside the daemon's pid namespace), user and group.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Thread id, as FUSE gives it; 0 in another pid namespace, and where the kernel writes pages
    /// back.
    pub tid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Attributes of a node with the number programs see.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Node number.
    pub ino: NodeId,
    /// The backing file's attributes; `st_ino` and `st_dev` in it are the backing ones.
    pub stat: rustix::fs::Stat,
    /// How long the kernel may keep them.
    pub ttl: Duration,
    /// How long the kernel may go by the name that was looked up without asking again.
    pub name_ttl: Duration,
}

/// Nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Modification time of `stat` in nanoseconds since the epoch.
pub fn mtime_ns(stat: &rustix::fs::Stat) -> i128 {
    i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)
}

/// Whole seconds, and nanoseconds beyond, of nanoseconds since the epoch.
pub fn seconds_of(ns: i128) -> (i64, u64) {
    let seconds = i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(i64::MAX);
    (seconds, ns.rem_euclid(1_000_000_000) as u64)
}

/// Turns an I/O error into the errno it carries, EIO when it carries none.
pub fn errno_of(error: &std::io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::IO, Errno::from_raw_os_error)
}

/// The bytes of a path in hexadecimal, where its text as JSON can have it isn't all of it.
///
/// Names are bytes, JSON is Unicode: `path` is for people then, and `path_hex` is the name.
pub fn path_hex(path: &Path) -> Option<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
    (path.to_str().is_none()).then(|| hex(path.as_os_str().as_bytes()))
}

/// The path of such a pair.
pub fn path_of(text: &str, hex: Option<&str>) -> PathBuf {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex
        .map(|hex| hex.as_bytes().chunks(2).map(byte).collect())
        .unwrap_or_default();
    bytes.map_or_else(
        || PathBuf::from(text),
        |bytes| OsString::from_vec(bytes).into(),
    )
}

/// A path on one line of a terminal: bytes that are no text, and control characters, escaped.
pub fn path_on_a_line(path: &Path) -> String {
    let mut line = String::new();
    for chunk in OsStr::as_bytes(path.as_os_str()).utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
        line.extend(chunk.invalid().iter().map(|b| format!("\\x{b:02x}")));
    }
    line
}

/// A path as one word of a command line for the shell, quoted where it has to be.
pub fn quoted_for_shell(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:,@%=".contains(b);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(is_plain) => text.to_owned(),
        Ok(text) if !text.contains(char::is_control) => {
            format!("'{}'", text.replace('\'', "'\\''"))
        }
        _ => {
            let byte = |b: &u8| match *b {
                b'\'' | b'\\' => format!("\\{}", char::from(*b)),
                b' '..=b'~' => char::from(*b).to_string(),
                _ => format!("\\x{b:02x}"),
            };
            format!("$'{}'", bytes.iter().map(byte).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_bytes_in_json() {
        for name in [&b"plain"[..], b"d/\xff\x00f", "\u{fffd}".as_bytes()] {
            let path = Path::new(OsStr::from_bytes(name));
            let text = path.to_string_lossy();
            assert_eq!(path_of(&text, path_hex(path).as_deref()), path);
        }
    }

    #[test]
    fn a_path_is_one_word_for_the_shell() {
        for (path, word) in [
            (&b"/srv/state"[..], "/srv/state"),
            (b"st ate", "'st ate'"),
            (b"it's", r"'it'\''s'"),
            (b"\x1b'\xff", r"$'\x1b\'\xff'"),
        ] {
            assert_eq!(quoted_for_shell(Path::new(OsStr::from_bytes(path))), word);
        }
    }

    #[test]
    fn a_name_is_one_line_for_people() {
        let path = Path::new(OsStr::from_bytes(b"a\nb \xff\xc3\xa9"));
        assert_eq!(path_on_a_line(path), "a\\nb \\xff\u{e9}");
    }
}
