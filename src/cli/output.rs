//! Standard output of all commands: who closes the pipe ends the command as any Unix tool, and
//! what can't be written is an error, never a panic.

use std::borrow::Cow;
use std::io::{self, Read, Write};

use super::{Failure, exit};
use crate::sys::signals;

/// Prints text, whole.
///
/// # Errors
/// [`exit::TROUBLE`] if it can't be written, for example to a full disk. If nobody reads it any
/// more (`| head`), the process ends by SIGPIPE instead.
pub(super) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    copy(&mut text.as_ref())
}

/// Prints text and makes sure that it ends with its line.
pub(super) fn print_lines(text: &[u8]) -> Result<(), Failure> {
    let end: &[u8] = if text.ends_with(b"\n") { b"" } else { b"\n" };
    copy(&mut text.chain(end))
}

/// Prints all that can be read from somewhere; errors as [`print()`].
pub(super) fn copy(from: &mut impl Read) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let printed = io::copy(from, &mut out).and_then(|_| out.flush());
    match printed {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => signals::end_by_broken_pipe(),
        printed => {
            printed.map_err(|e| Failure::new(exit::TROUBLE, format!("standard output: {e}")))
        }
    }
}

/// A name for people: control characters, which could steer a terminal or break a line, as Rust
/// writes them.
pub(super) fn escaped(name: &str) -> Cow<'_, str> {
    escape(name, |_| false)
}

/// A message of several lines for people, escaped but for its ends of lines.
pub(super) fn escaped_lines(message: &str) -> Cow<'_, str> {
    escape(message, |c| c == '\n')
}

fn escape(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !stays(c);
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if !steers(c) {
            out.push(c);
            continue;
        }
        out.extend(c.escape_default());
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        assert_eq!(escaped("a b\u{e9}.json"), "a b\u{e9}.json");
        assert_eq!(
            escaped("a\n\u{1b}[2Jb\u{9b}\t\r"),
            "a\\n\\u{1b}[2Jb\\u{9b}\\t\\r"
        );
        assert_eq!(escaped_lines("one\ntwo\u{7}"), "one\ntwo\\u{7}");
    }
}
