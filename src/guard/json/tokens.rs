//! The insides of tokens: strings, numbers, words and comments. Each function takes the piece being
//! fed and where to go on in it, and returns where it stopped.

use super::{INFINITY, JsonStream, Part, State, WORDS};

impl JsonStream {
    /// Inside a string: the run of bytes that need no look, and the one that ends it.
    pub(super) fn text(&mut self, bytes: &[u8], at: usize) -> usize {
        let rest = &bytes[at..];
        let at = at
            + if self.strict {
                plain_run::<true>(rest)
            } else {
                plain_run::<false>(rest)
            };
        let Some(&byte) = bytes.get(at) else {
            return at;
        };
        match byte {
            b'"' => {
                self.began = true;
                if self.key {
                    self.state = State::Colon;
                } else {
                    self.value_ended(State::Top);
                }
            }
            b'\\' => self.state = State::Escape,
            0x80.. => match lead(byte) {
                Some(state) => self.state = state,
                None => self.fail(byte, at, "valid UTF-8"),
            },
            _ => self.fail(byte, at, "no raw control character in a string"),
        }
        at + 1
    }

    pub(super) fn number(&mut self, mut part: Part, bytes: &[u8], mut at: usize) -> usize {
        while let Some(&byte) = bytes.get(at) {
            part = match (part, byte) {
                (Part::Integer | Part::Fraction | Part::Exponent, b'0'..=b'9') => part,
                (Part::Minus, b'0') => Part::Zero,
                (Part::Minus, b'1'..=b'9') => Part::Integer,
                (Part::Minus, b'I') if !self.strict => {
                    self.state = State::Word {
                        word: INFINITY,
                        seen: 1,
                    };
                    return at + 1;
                }
                (Part::Zero | Part::Integer, b'.') => Part::Point,
                (Part::Point, b'0'..=b'9') => Part::Fraction,
                (Part::Zero | Part::Integer | Part::Fraction, b'e' | b'E') => Part::E,
                (Part::E, b'+' | b'-') => Part::ESign,
                (Part::E | Part::ESign, b'0'..=b'9') => Part::Exponent,
                _ if part.is_whole() => {
                    // The byte is no part of the number; whether it may follow one is for
                    // `structure` to say.
                    self.value_ended(State::TopGlued);
                    return at;
                }
                _ => {
                    self.fail(byte, at, "a digit");
                    return at;
                }
            };
            at += 1;
        }
        self.state = State::Number(part);
        at
    }

    /// Inside a comment, up to what may end it.
    pub(super) fn comment(&mut self, bytes: &[u8], at: usize) -> usize {
        let (ending, next) = match self.state {
            State::LineComment => (b'\n', self.resume),
            _ => (b'*', State::Star),
        };
        let Some(run) = bytes[at..]
            .iter()
            .position(|&byte| byte == ending || byte == 0)
        else {
            return bytes.len();
        };
        match bytes[at + run] {
            0 => self.fail(0, at + run, "a comment"),
            _ => self.state = next,
        }
        at + run + 1
    }

    /// What may be a comment's first byte.
    pub(super) fn slash(&mut self, at: usize) -> usize {
        self.resume = match self.state {
            State::TopGlued => State::Top,
            state => state,
        };
        self.state = State::Slash;
        at + 1
    }

    /// One byte inside a short token.
    pub(super) fn inside(&mut self, byte: u8, at: usize) -> usize {
        const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];
        match self.state {
            State::Bom(seen) if byte == BOM[usize::from(seen)] => {
                self.state = if seen == 2 {
                    State::Top
                } else {
                    State::Bom(seen + 1)
                };
            }
            State::Bom(0) => {
                self.state = State::Top;
                return at;
            }
            State::Word { word, seen }
                if WORDS[usize::from(word)].as_bytes()[usize::from(seen)] == byte =>
            {
                if usize::from(seen) + 1 == WORDS[usize::from(word)].len() {
                    self.value_ended(State::TopGlued);
                } else {
                    self.state = State::Word {
                        word,
                        seen: seen + 1,
                    };
                }
            }
            State::Escape => match byte {
                0 => self.fail(byte, at, "an escape"),
                _ if !self.strict => self.state = State::Text,
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.state = State::Text,
                b'u' => self.state = State::Hex(4),
                _ => self.fail(byte, at, "one of \"\\/bfnrtu behind a backslash"),
            },
            State::Hex(1) if byte.is_ascii_hexdigit() => self.state = State::Text,
            State::Hex(left) if byte.is_ascii_hexdigit() => self.state = State::Hex(left - 1),
            State::Utf8 { left, low, high } if (low..=high).contains(&byte) => {
                self.state = match left {
                    1 => State::Text,
                    _ => State::Utf8 {
                        left: left - 1,
                        low: 0x80,
                        high: 0xBF,
                    },
                };
            }
            State::Slash if byte == b'/' || byte == b'*' => {
                self.state = if byte == b'/' {
                    State::LineComment
                } else {
                    State::BlockComment
                };
            }
            State::Star if byte == b'/' => self.state = self.resume,
            State::Star if byte == b'*' => {}
            State::Star if byte != 0 => self.state = State::BlockComment,
            _ => self.fail(byte, at, self.expected()),
        }
        at + 1
    }
}

/// The first byte of a multi-byte character, and what must follow: overlong forms, surrogates and
/// what lies beyond U+10FFFF are told by the second byte.
fn lead(byte: u8) -> Option<State> {
    let (left, low, high) = match byte {
        0xC2..=0xDF => (1, 0x80, 0xBF),
        0xE0 => (2, 0xA0, 0xBF),
        0xED => (2, 0x80, 0x9F),
        0xE1..=0xEF => (2, 0x80, 0xBF),
        0xF0 => (3, 0x90, 0xBF),
        0xF1..=0xF3 => (3, 0x80, 0xBF),
        0xF4 => (3, 0x80, 0x8F),
        _ => return None,
    };
    Some(State::Utf8 { left, low, high })
}

/// How many bytes at the start of `bytes` are plain content of a string: no quote, no backslash,
/// and nothing that the dialect forbids or wants to look at. Eight at a time, since strings are
/// most of most documents.
fn plain_run<const STRICT: bool>(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xFF;
    const HIGHS: u64 = ONES * 0x80;
    // The high bit of every byte below `limit`. A borrow can flag a byte wrongly, but only above
    // one flagged rightly, and only the lowest is used.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGHS;
    let mut words = bytes.chunks_exact(8);
    let mut run = 0;
    for word in words.by_ref() {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
        let special =
            below(word ^ (ONES * u64::from(b'"')), 1) | below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = special
            | if STRICT {
                below(word, 0x20) | (word & HIGHS)
            } else {
                below(word, 1)
            };
        if special != 0 {
            return run + special.trailing_zeros() as usize / 8;
        }
        run += 8;
    }
    let special = |&byte: &u8| match byte {
        b'"' | b'\\' | 0 => true,
        0x01..=0x1F | 0x80.. => STRICT,
        _ => false,
    };
    let rest = words.remainder();
    run + rest.iter().position(special).unwrap_or(rest.len())
}
