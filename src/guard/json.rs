//! Is this a whole JSON document? Answered while the bytes stream past, in pieces of any size and
//! in constant memory (one bit for each level of nesting), so that a large file needs no second
//! reading and a deep one no stack.
//!
//! The scanner judges wholeness, not taste. Its two dialects:
//!
//! * **strict** is RFC 8259: exactly one value, in valid UTF-8, and nothing else.
//! * **lenient** takes what programs really keep in `*.json`: a byte order mark, `NaN` and
//!   `±Infinity`, comments, trailing commas, several values in a row (JSON Lines, concatenated
//!   JSON). Inside a string only what may end it counts: raw control characters, odd escapes and
//!   bytes that aren't UTF-8 pass, since refusing them would fail saves that the plain directory
//!   keeps, and would find no half-written document.
//!
//! # Incomplete, malformed or foreign
//!
//! A writer that stopped half-way leaves a prefix of something valid: *incomplete*. A syntax error
//! can't come from stopping. Where the content began as JSON (a bracket, or a whole token) it is
//! *malformed*: `{{ template }}`, `{'a': 1}`, `{"a": ${b}}`, a fixture of a test suite, but also two
//! writers in one file. What goes wrong before never was JSON, and is *foreign*: `hello`, `nothing`
//! (which starts like `null`), `2026-01-31 …`, `<html>`.
//!
//! NUL bytes up to the end are what a hole in the file reads as, that was set aside and never
//! written: *incomplete*.

mod lines;
mod nesting;
mod report;
#[cfg(test)]
mod tests;
mod tokens;

use super::Verdict;
pub use lines::JsonLines;
use nesting::Nesting;

/// What the scanner expects next, or is inside of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// So many bytes of a byte order mark were seen; only at the start, only lenient.
    Bom(u8),
    /// Outside of every value: one may begin, or the document may end.
    Top,
    /// Outside of every value, right behind a number or a word, which only space or a comment can separate from a
    /// next value.
    TopGlued,
    /// Behind `[`.
    ElementOrEnd,
    /// Behind `,` in an array.
    Element,
    /// Behind `{`.
    KeyOrEnd,
    /// Behind `,` in an object.
    Key,
    /// Behind a key.
    Colon,
    /// Behind `:`.
    Member,
    /// Behind a value inside an array or object.
    After,
    Text,
    Escape,
    /// So many hexadecimal digits of `\uXXXX` are missing.
    Hex(u8),
    /// Inside a multi-byte character: how many bytes are missing, and the range the next must be
    /// in.
    Utf8 {
        left: u8,
        low: u8,
        high: u8,
    },
    Number(Part),
    /// So many bytes of `WORDS[word]` were seen.
    Word {
        word: u8,
        seen: u8,
    },
    /// Behind the first `/` of a comment.
    Slash,
    LineComment,
    BlockComment,
    /// Behind a `*` in a block comment.
    Star,
    /// Wrong at `hole`, and nothing but NUL since.
    Hole,
    /// Wrong for good; the verdict is in `failure`.
    Failed,
}

/// How far a number has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Minus,
    /// A leading zero, which no digit may follow.
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl Part {
    /// May the number end here?
    fn is_whole(self) -> bool {
        matches!(
            self,
            Part::Zero | Part::Integer | Part::Fraction | Part::Exponent
        )
    }
}

const WORDS: [&str; 5] = ["true", "false", "null", "NaN", "Infinity"];
/// The words from here on exist in the lenient dialect only.
const LENIENT_WORDS: usize = 3;
const INFINITY: u8 = 4;

/// A scanner that is fed a document piece by piece and can say at any time what the document would
/// be, if it ended there. Where the pieces are cut makes no difference.
#[derive(Clone, Debug)]
pub struct JsonStream {
    state: State,
    strict: bool,
    /// The string being read is a member's name.
    key: bool,
    /// So many values at the top level were whole.
    values: u64,
    /// A bracket was open, or a token whole: from here on nothing is foreign.
    began: bool,
    /// Where to go on behind a comment.
    resume: State,
    nesting: Nesting,
    position: u64,
    /// Where the NUL bytes begin.
    hole: u64,
    failure: Option<Verdict>,
}

impl JsonStream {
    /// A scanner at the start of a document.
    pub fn new(strict: bool) -> JsonStream {
        JsonStream {
            state: if strict { State::Top } else { State::Bom(0) },
            strict,
            key: false,
            values: 0,
            began: false,
            resume: State::Top,
            nesting: Nesting::default(),
            position: 0,
            hole: 0,
            failure: None,
        }
    }

    /// Takes the next bytes of the document.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at = match self.state {
                State::Text => self.text(bytes, at),
                State::Number(part) => self.number(part, bytes, at),
                State::LineComment | State::BlockComment => self.comment(bytes, at),
                State::Hole => self.hole(bytes, at),
                State::Failed => break,
                State::Escape
                | State::Hex(_)
                | State::Utf8 { .. }
                | State::Word { .. }
                | State::Slash
                | State::Star
                | State::Bom(_) => self.inside(bytes[at], at),
                _ => self.structure(bytes, at),
            };
        }
        self.position += bytes.len() as u64;
    }

    /// How many bytes were fed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Has the verdict become final? What is fed from now on changes nothing.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// What the document is, if it ends here.
    pub fn verdict(&self) -> Verdict {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        // The end of the file ends a line comment as well as a line feed does.
        let state = if self.state == State::LineComment {
            self.resume
        } else {
            self.state
        };
        match state {
            State::Top | State::Bom(0) if self.values == 0 => Verdict::Empty,
            State::Top | State::TopGlued if self.values > 0 => Verdict::Complete,
            State::Number(part) if self.nesting.depth() == 0 && part.is_whole() => {
                Verdict::Complete
            }
            State::Hole => Verdict::Incomplete(format!(
                "from byte {} on it is NUL, as in a hole that was never written",
                self.hole
            )),
            _ => Verdict::Incomplete(format!(
                "ends at byte {}, {}",
                self.position,
                self.unfinished(state)
            )),
        }
    }

    /// How many values at the top level there would be, if the document ended here; `None` if it
    /// would end inside of one, or went wrong before.
    pub(super) fn whole_values(&self) -> Option<u64> {
        match self.state {
            State::Top | State::TopGlued | State::Bom(0) => Some(self.values),
            State::Number(part) if self.nesting.depth() == 0 && part.is_whole() => {
                Some(self.values + 1)
            }
            _ => None,
        }
    }

    /// Outside of tokens: space, punctuation, and the step into the next token. Half the bytes of a
    /// compact document come by here, so it goes on by itself for as long as it can.
    fn structure(&mut self, bytes: &[u8], mut at: usize) -> usize {
        loop {
            at = self.space(bytes, at);
            let Some(&byte) = bytes.get(at) else {
                return at;
            };
            match self.state {
                _ if byte == b'/' && !self.strict => return self.slash(at),
                State::After if byte == b',' => {
                    self.began = true;
                    self.state = if self.nesting.in_object() {
                        State::Key
                    } else {
                        State::Element
                    };
                }
                State::Colon if byte == b':' => self.state = State::Member,
                State::Key | State::KeyOrEnd if byte == b'"' => {
                    self.key = true;
                    self.state = State::Text;
                    return self.text(bytes, at + 1);
                }
                _ if self.may_close(byte) => self.close(),
                State::Top if self.strict && self.values > 0 => {
                    self.fail(byte, at, "nothing behind the value");
                    return at;
                }
                State::Top | State::Member | State::Element | State::ElementOrEnd => {
                    return self.begin(bytes, at);
                }
                _ => {
                    self.fail(byte, at, self.expected());
                    return at;
                }
            }
            at += 1;
        }
    }

    /// Passes over space, which also makes sure of the scalar in front of it: `1 x` began as JSON.
    fn space(&mut self, bytes: &[u8], start: usize) -> usize {
        let mut at = start;
        while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            at += 1;
        }
        if at > start && matches!(self.state, State::TopGlued | State::After) {
            self.began = true;
            if self.state == State::TopGlued {
                self.state = State::Top;
            }
        }
        at
    }

    /// Is `byte` the bracket that may close what is open?
    fn may_close(&self, byte: u8) -> bool {
        match self.state {
            State::After if self.nesting.in_object() => byte == b'}',
            State::After | State::ElementOrEnd => byte == b']',
            State::KeyOrEnd => byte == b'}',
            // A trailing comma.
            State::Element => byte == b']' && !self.strict,
            State::Key => byte == b'}' && !self.strict,
            _ => false,
        }
    }

    /// The first byte of a value, and the rest of a string or number.
    fn begin(&mut self, bytes: &[u8], at: usize) -> usize {
        let byte = bytes[at];
        match byte {
            b'"' => {
                self.key = false;
                self.state = State::Text;
                return self.text(bytes, at + 1);
            }
            b'{' => {
                self.began = true;
                self.nesting.open(true);
                self.state = State::KeyOrEnd;
            }
            b'[' => {
                self.began = true;
                self.nesting.open(false);
                self.state = State::ElementOrEnd;
            }
            b'-' => return self.number(Part::Minus, bytes, at + 1),
            b'0' => return self.number(Part::Zero, bytes, at + 1),
            b'1'..=b'9' => return self.number(Part::Integer, bytes, at + 1),
            _ => {
                let known = if self.strict {
                    &WORDS[..LENIENT_WORDS]
                } else {
                    &WORDS[..]
                };
                match known.iter().position(|word| word.as_bytes()[0] == byte) {
                    Some(word) => {
                        self.state = State::Word {
                            word: word as u8,
                            seen: 1,
                        }
                    }
                    None => self.fail(byte, at, self.expected()),
                }
            }
        }
        at + 1
    }

    fn close(&mut self) {
        self.nesting.close();
        self.began = true;
        self.value_ended(State::Top);
    }

    /// A value is whole; `top` is the state to go to if it was not inside another.
    fn value_ended(&mut self, top: State) {
        if self.nesting.depth() == 0 {
            self.values += 1;
            self.state = top;
        } else {
            self.state = State::After;
        }
    }
}
