//! Is this a whole `.npy` file? Its header, a Python dictionary, says shape and type of the array,
//! and thus how long the data is. Several arrays may follow each other, as `numpy.save` into one
//! open file leaves them.

use std::io;

use super::{ReadAt, Verdict, begins, bytes_at, head, read_exact_at};

const MAGIC: &[u8] = b"\x93NUMPY";
/// In front of the header: magic, version, and the header's length in 2 or 4 bytes.
const SHORT_PREFIX: u64 = 10;
const LONG_PREFIX: u64 = 12;
/// No header is longer.
const MAX_HEADER: u64 = 1 << 24;
/// Arrays of one file that are looked at.
const MAX_ARRAYS: usize = 1000;

/// Judges `len` bytes, of which there is at least one.
pub(super) fn examine(source: &dyn ReadAt, len: u64) -> io::Result<Verdict> {
    if !begins(&head(source, len, MAGIC.len())?, MAGIC) {
        return Ok(Verdict::Foreign(
            "byte 0: does not begin as an array file".into(),
        ));
    }
    let mut at = 0;
    for _ in 0..MAX_ARRAYS {
        match array_end(source, at, len)? {
            Array::Ends(end) if end == len => return Ok(Verdict::Complete),
            Array::Ends(end) => {
                let mut next = vec![0; MAGIC.len().min((len - end) as usize)];
                read_exact_at(source, &mut next, end)?;
                if !begins(&next, MAGIC) {
                    return Ok(Verdict::Malformed(format!(
                        "the array ends at byte {end}, the file at {len}"
                    )));
                }
                at = end;
            }
            Array::Unknown => return Ok(Verdict::Complete),
            Array::CutOff(why) => return Ok(Verdict::Incomplete(why)),
            Array::Odd(why) => return Ok(Verdict::Malformed(why)),
        }
    }
    Ok(Verdict::Complete)
}

enum Array {
    Ends(u64),
    /// Its header doesn't say how long it is.
    Unknown,
    CutOff(String),
    Odd(String),
}

fn array_end(source: &dyn ReadAt, at: u64, len: u64) -> io::Result<Array> {
    let left = len - at;
    let cut = |place: &str| Ok(Array::CutOff(format!("ends at byte {len}, {place}")));
    if left < SHORT_PREFIX {
        return cut("in front of a header");
    }
    let major: [u8; 1] = bytes_at(source, at + 6)?;
    let (prefix, header) = match major[0] {
        1 => {
            let header: [u8; 2] = bytes_at(source, at + 8)?;
            (SHORT_PREFIX, u64::from(u16::from_le_bytes(header)))
        }
        2 | 3 if left < LONG_PREFIX => return cut("in front of a header"),
        2 | 3 => {
            let header: [u8; 4] = bytes_at(source, at + 8)?;
            (LONG_PREFIX, u64::from(u32::from_le_bytes(header)))
        }
        0 => return cut("in front of a header"),
        version => return Ok(Array::Odd(format!("byte {}: version {version}", at + 6))),
    };
    if header > MAX_HEADER {
        return Ok(Array::Odd(format!("a header of {header} bytes")));
    }
    let data = at + prefix + header;
    if len < data {
        return cut("in a header");
    }
    let mut text = vec![0; header as usize];
    read_exact_at(source, &mut text, at + prefix)?;
    if text.iter().all(|byte| *byte == 0) {
        return cut("and its header is a hole");
    }
    let Some(value) = Value::parse(&text) else {
        return Ok(Array::Odd(format!(
            "byte {}: no header of an array",
            at + prefix
        )));
    };
    match value.array_len() {
        None => Ok(Array::Unknown),
        Some(size) => match data.checked_add(size).filter(|end| *end <= len) {
            Some(end) => Ok(Array::Ends(end)),
            // `numpy.lib.format.open_memmap` closes such a file, and then makes it as long as it has to be.
            None if at == 0 && len == data => Ok(Array::Odd(format!(
                "a header alone: {size} bytes of an array are missing"
            ))),
            None => Ok(Array::CutOff(format!(
                "ends at byte {len}, {size} bytes of an array begin at {data}"
            ))),
        },
    }
}

/// What Python's literals of a header come to.
#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
    Truth,
    Items(Vec<Value>),
    Members(Vec<(String, Value)>),
}

impl Value {
    fn parse(text: &[u8]) -> Option<Value> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parser = Parser { rest: text };
        let value = parser.value(0)?;
        parser.rest.trim().is_empty().then_some(value)
    }

    /// Length of the data that a header tells of.
    fn array_len(&self) -> Option<u64> {
        let Value::Members(members) = self else {
            return None;
        };
        let member = |name| members.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        let size = member("descr")?.item_size()?;
        size.checked_mul(member("shape")?.product()?)
    }

    fn product(&self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(*number),
            Value::Items(items) => items.iter().try_fold(1_u64, |product, item| match item {
                Value::Number(number) => product.checked_mul(*number),
                _ => None,
            }),
            _ => None,
        }
    }

    /// Bytes of one element of a type: `'<f8'`, or a list of fields.
    fn item_size(&self) -> Option<u64> {
        match self {
            Value::Text(code) => simple_size(code),
            Value::Items(fields) => fields.iter().try_fold(0_u64, |size, field| {
                let Value::Items(parts) = field else {
                    return None;
                };
                let (one, count) = match parts.as_slice() {
                    [_, one] => (one, 1),
                    [_, one, shape] => (one, shape.product()?),
                    _ => return None,
                };
                size.checked_add(one.item_size()?.checked_mul(count)?)
            }),
            _ => None,
        }
    }
}

/// `<f8`, `|S10`, `<U5`, `<M8[ns]`. Objects are pickled, their length isn't told.
fn simple_size(code: &str) -> Option<u64> {
    let code = code.trim_start_matches(['<', '>', '|', '=']);
    let mut letters = code.chars();
    let kind = letters.next()?;
    let digits = letters.as_str();
    let digits = digits.split('[').next()?;
    let count: u64 = digits.parse().ok()?;
    match kind {
        'b' | 'i' | 'u' | 'f' | 'c' | 'm' | 'M' | 'S' | 'a' | 'V' => Some(count),
        'U' => count.checked_mul(4),
        _ => None,
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn next_is(&mut self, wanted: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > 16 {
            return None;
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '\'' | '"' => self.text().map(Value::Text),
            '{' => self.members(depth),
            '(' => self.items('(', ')', depth),
            '[' => self.items('[', ']', depth),
            '0'..='9' => {
                let end = self.rest.find(|c: char| !c.is_ascii_digit());
                let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
                // Python 2 wrote long integers so.
                self.rest = rest.strip_prefix('L').unwrap_or(rest);
                digits.parse().ok().map(Value::Number)
            }
            _ => {
                let word = ["True", "False"]
                    .iter()
                    .find_map(|w| self.rest.strip_prefix(w));
                self.rest = word?;
                Some(Value::Truth)
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = self
            .rest
            .chars()
            .next()
            .filter(|c| matches!(c, '\'' | '"'))?;
        let (mut text, mut letters) = (String::new(), self.rest.char_indices().skip(1));
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => text.push(letters.next()?.1),
                _ if letter == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                _ => text.push(letter),
            }
        }
        None
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Option<Value> {
        self.next_is(open);
        let mut items = Vec::new();
        while !self.next_is(close) {
            items.push(self.value(depth + 1)?);
            if !self.next_is(',') && !self.rest.trim_start().starts_with(close) {
                return None;
            }
        }
        Some(Value::Items(items))
    }

    fn members(&mut self, depth: usize) -> Option<Value> {
        self.next_is('{');
        let mut members = Vec::new();
        while !self.next_is('}') {
            self.rest = self.rest.trim_start();
            let name = self.text()?;
            if !self.next_is(':') {
                return None;
            }
            members.push((name, self.value(depth + 1)?));
            if !self.next_is(',') && !self.rest.trim_start().starts_with('}') {
                return None;
            }
        }
        Some(Value::Members(members))
    }
}
