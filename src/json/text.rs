//! Strings as they were written: the source between the quotes, escapes and all.

use std::borrow::Cow;
use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// A string or a member's name. Two are equal if they mean the same, however they are escaped.
#[derive(Clone, Debug)]
pub struct Text {
    source: Box<str>,
    /// The source holds a backslash; without one it is the string itself.
    escaped: bool,
}

impl Text {
    /// The string `value`, with no more escapes than JSON demands.
    pub fn new(value: &str) -> Text {
        let mut source = String::with_capacity(value.len());
        for character in value.chars() {
            push_character(&mut source, character);
        }
        Text::from_source(&source)
    }

    /// A string whose text between the quotes is `source`, which is valid there.
    pub(super) fn from_source(source: &str) -> Text {
        Text {
            escaped: source.as_bytes().contains(&b'\\'),
            source: source.into(),
        }
    }

    /// The text between the quotes.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What the string says. Half a surrogate pair, which no Rust string can hold, becomes U+FFFD.
    pub fn as_str(&self) -> Cow<'_, str> {
        if !self.escaped {
            return Cow::Borrowed(&self.source);
        }
        self.code_points()
            .map(|point| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect::<String>()
            .into()
    }

    /// Does the string say exactly this?
    pub fn says(&self, value: &str) -> bool {
        if self.escaped {
            self.code_points().eq(value.chars().map(u32::from))
        } else {
            &*self.source == value
        }
    }

    /// This string with no more escapes than JSON demands.
    pub(super) fn canonical(&self) -> Text {
        if !self.escaped {
            return self.clone();
        }
        let mut source = String::with_capacity(self.source.len());
        for point in self.code_points() {
            match char::from_u32(point) {
                Some(character) => push_character(&mut source, character),
                None => push_escape(&mut source, point as u16),
            }
        }
        Text::from_source(&source)
    }

    fn code_points(&self) -> CodePoints<'_> {
        CodePoints { rest: &self.source }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        self.source == other.source
            || ((self.escaped || other.escaped) && self.code_points().eq(other.code_points()))
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// What a source says, with halves of surrogate pairs where one stands alone.
struct CodePoints<'a> {
    rest: &'a str,
}

impl CodePoints<'_> {
    /// The code unit of the `\uXXXX` at the start of `text`.
    fn unit(text: &str) -> Option<u32> {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    }

    fn escape(&mut self) -> Option<u32> {
        let Some(first) = Self::unit(self.rest) else {
            let letter = *self.rest.as_bytes().get(1)?;
            self.rest = &self.rest[2..];
            return Some(u32::from(match letter {
                b'b' => 8,
                b't' => b'\t',
                b'n' => b'\n',
                b'f' => 12,
                b'r' => b'\r',
                same => same,
            }));
        };
        self.rest = &self.rest[6..];
        if (0xD800..0xDC00).contains(&first)
            && let Some(second @ 0xDC00..0xE000) = Self::unit(self.rest)
        {
            self.rest = &self.rest[6..];
            return Some(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        }
        Some(first)
    }
}

impl Iterator for CodePoints<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let character = self.rest.chars().next()?;
        if character == '\\' {
            return self.escape();
        }
        self.rest = &self.rest[character.len_utf8()..];
        Some(u32::from(character))
    }
}

fn push_character(source: &mut String, character: char) {
    match character {
        '"' => source.push_str("\\\""),
        '\\' => source.push_str("\\\\"),
        '\u{8}' => source.push_str("\\b"),
        '\t' => source.push_str("\\t"),
        '\n' => source.push_str("\\n"),
        '\u{C}' => source.push_str("\\f"),
        '\r' => source.push_str("\\r"),
        '\0'..='\u{1F}' => push_escape(source, character as u16),
        _ => source.push(character),
    }
}

fn push_escape(source: &mut String, unit: u16) {
    write!(source, "\\u{unit:04x}").expect("a string takes everything");
}

/// Length of what [`push_ascii`] appends.
pub(super) fn ascii_length(source: &str) -> usize {
    if source.is_ascii() {
        return source.len();
    }
    source
        .chars()
        .map(|c| if c.is_ascii() { 1 } else { 6 * c.len_utf16() })
        .sum()
}

/// Appends `source` with every character beyond ASCII escaped.
pub(super) fn push_ascii(out: &mut String, source: &str) {
    for character in source.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                push_escape(out, *unit);
            }
        }
    }
}
