//! Is every line of a text a JSON value of its own? That is how trackers keep metrics in `*.json`:
//! one object for each step, in a file that is never finished (C10).

use super::{JsonStream, Verdict};

/// A scanner of the lenient dialect that also says whether the content is lines of JSON so far.
/// Where the pieces are cut makes no difference.
#[derive(Clone, Debug)]
pub struct JsonLines {
    stream: JsonStream,
    lines: u64,
    /// Some line wasn't one value.
    broken: bool,
    /// The last byte ended a line, or nothing was fed.
    at_start: bool,
}

impl Default for JsonLines {
    fn default() -> JsonLines {
        JsonLines::new(false)
    }
}

impl JsonLines {
    /// A scanner at the start of a document. Of what is strict there are no lines.
    pub fn new(strict: bool) -> JsonLines {
        JsonLines {
            stream: JsonStream::new(strict),
            lines: 0,
            broken: strict,
            at_start: true,
        }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !self.broken && !bytes.is_empty() {
            let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                self.at_start = false;
                break;
            };
            let (line, rest) = bytes.split_at(end);
            self.stream.feed(line);
            self.broken = self.stream.whole_values() != Some(self.lines + 1);
            self.lines += 1;
            self.at_start = true;
            // The line feed itself.
            self.stream.feed(&rest[..1]);
            bytes = &rest[1..];
        }
        self.stream.feed(bytes);
    }

    /// How many bytes were fed.
    pub fn position(&self) -> u64 {
        self.stream.position()
    }

    /// How many lines were whole, each a value of its own; `None` if any was not. An unfinished
    /// last line doesn't count, whatever is in it.
    pub fn lines(&self) -> Option<u64> {
        (!self.broken).then_some(self.lines)
    }

    /// How many lines were whole, where the last line is, too.
    pub fn whole_lines(&self) -> Option<u64> {
        self.lines().filter(|_| self.at_start)
    }

    /// What the document is, if it ends here.
    pub fn verdict(&self) -> Verdict {
        self.stream.verdict()
    }
}
