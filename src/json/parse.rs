//! From text to values, and what the text shows of its style on the way.

use super::MAX_DEPTH;
use super::array::Array;
use super::error::{JsonError, Place};
use super::number::Number;
use super::object::Object;
use super::style::{Evidence, Layout};
use super::text::Text;
use super::value::Value;

/// Reads the one value of `bytes`.
///
/// # Errors
/// See [`JsonError`]; among them `Empty`, if there is nothing but space.
pub(super) fn parse(bytes: &[u8]) -> Result<(Value, Evidence), JsonError> {
    let text = str::from_utf8(bytes)
        .map_err(|error| JsonError::NotUtf8(Place::new(bytes, error.valid_up_to())))?;
    let mut parser = Parser {
        text,
        bytes,
        at: 0,
        depth: 0,
        line_depth: 0,
        evidence: Evidence::default(),
    };
    parser.evidence.unescaped = !text.trim_start_matches(BOM).is_ascii();
    let value = parser.document()?;
    Ok((value, parser.evidence))
}

/// The byte order mark.
const BOM: char = '\u{FEFF}';

/// What Python writes besides JSON's own words.
const NUMBER_WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

struct Parser<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// How many of the open containers have their items on lines of their own.
    line_depth: usize,
    evidence: Evidence,
}

impl<'a> Parser<'a> {
    fn document(&mut self) -> Result<Value, JsonError> {
        if self.text.starts_with(BOM) {
            self.at = BOM.len_utf8();
        }
        self.space()?;
        self.evidence.before = self.text[..self.at].to_owned();
        if self.at == self.bytes.len() {
            return Err(JsonError::Empty);
        }
        let value = self.value()?;
        self.evidence.after = self.space()?.to_owned();
        match self.peek() {
            None => Ok(value),
            Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => {
                Err(JsonError::SeveralValues(self.place()))
            }
            Some(_) => Err(self.unexpected("the end of the document")),
        }
    }

    fn value(&mut self) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.unexpected("a JSON value")),
        }
    }

    fn nested(
        &mut self,
        inner: fn(&mut Self) -> Result<Value, JsonError>,
    ) -> Result<Value, JsonError> {
        if self.depth == MAX_DEPTH {
            return Err(JsonError::TooDeep(self.place()));
        }
        let line_depth = self.line_depth;
        self.depth += 1;
        self.at += 1;
        let value = inner(self)?;
        self.depth -= 1;
        self.line_depth = line_depth;
        Ok(value)
    }

    fn array(&mut self) -> Result<Value, JsonError> {
        let mut array = Array::default();
        let space = self.space()?;
        if self.take(b']') {
            return Ok(Value::Array(array));
        }
        array.layout = self.layout(space, false);
        loop {
            array.items.push(self.value()?);
            if self.ends(b']', array.layout, "',' or ']'")? {
                array.items.shrink_to_fit();
                return Ok(Value::Array(array));
            }
        }
    }

    fn object(&mut self) -> Result<Value, JsonError> {
        let mut object = Object::default();
        let space = self.space()?;
        if self.take(b'}') {
            return Ok(Value::Object(object));
        }
        object.layout = self.layout(space, true);
        loop {
            self.member(&mut object)?;
            if self.ends(b'}', object.layout, "',' or '}'")? {
                object.shrink();
                return Ok(Value::Object(object));
            }
        }
    }

    fn layout(&mut self, space: &str, is_object: bool) -> Layout {
        let layout = self.evidence.opening(space, self.line_depth + 1, is_object);
        self.line_depth += usize::from(layout == Layout::Lines);
        layout
    }

    fn member(&mut self, object: &mut Object) -> Result<(), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a name in double quotes"));
        }
        let place = self.at;
        let key = self.string()?;
        if object.slot_of(&key).is_some() {
            return Err(JsonError::DuplicateKey {
                place: Place::new(self.bytes, place),
                key: key.as_str().into_owned(),
            });
        }
        let before = self.space()?;
        if !self.take(b':') {
            return Err(self.unexpected("':'"));
        }
        let after = self.space()?;
        self.evidence.colon(before, after);
        let value = self.value()?;
        object.push(key, value);
        Ok(())
    }

    /// Behind an item: is it the last one? Otherwise goes on to the next.
    fn ends(&mut self, end: u8, layout: Layout, expected: &'static str) -> Result<bool, JsonError> {
        self.space()?;
        if self.take(end) {
            return Ok(true);
        }
        if !self.take(b',') {
            return Err(self.unexpected(expected));
        }
        let space = self.space()?;
        self.evidence.comma(space, layout);
        Ok(false)
    }

    fn string(&mut self) -> Result<Text, JsonError> {
        self.at += 1;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0..=0x1F) | None => return Err(self.unexpected("the rest of a string")),
                Some(_) => self.at += 1,
            }
        }
        let source = &self.text[start..self.at];
        self.at += 1;
        Ok(Text::from_source(source))
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                let start = self.at;
                while self.at < start + 4 {
                    self.digit(u8::is_ascii_hexdigit, "a hexadecimal digit")?;
                }
                self.evidence.escaped |= &self.text[start..self.at] >= "0080";
            }
            _ => return Err(self.unexpected("an escape")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let rest = &self.text[start..];
        if let Some(word) = NUMBER_WORDS.iter().find(|word| rest.starts_with(**word)) {
            self.at += word.len();
            return Ok(Value::Number(Number::from_source(word)));
        }
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        let source = &self.text[start..self.at];
        Ok(Value::Number(Number::from_source(source)))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        self.digit(u8::is_ascii_digit, "a digit")?;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn digit(&mut self, fits: fn(&u8) -> bool, expected: &'static str) -> Result<(), JsonError> {
        if !self.peek().is_some_and(|byte| fits(&byte)) {
            return Err(self.unexpected(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &'static str, value: Value) -> Result<Value, JsonError> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.unexpected("a JSON value"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn space(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        if self.peek() == Some(b'/') && matches!(self.bytes.get(self.at + 1), Some(b'/' | b'*')) {
            return Err(JsonError::Comment(self.place()));
        }
        Ok(&self.text[start..self.at])
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn place(&self) -> Place {
        Place::new(self.bytes, self.at)
    }

    #[cold]
    fn unexpected(&self, expected: &'static str) -> JsonError {
        let found = match self
            .text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
        {
            None => "the end".to_owned(),
            Some(character) if character.is_control() => format!("{:#04X}", character as u32),
            Some(character) => format!("'{character}'"),
        };
        JsonError::Syntax {
            place: self.place(),
            found,
            expected,
        }
    }
}
