//! From values back to text.

use std::fmt;

use super::array::Array;
use super::object::Object;
use super::style::Style;
use super::text::{Text, push_ascii};
use super::value::Value;

impl fmt::Display for Value {
    /// On one line, without spaces.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&value_text(self, &Style::compact()))
    }
}

/// The whole text of a document, which has `size` bytes.
pub(super) fn document_text(value: &Value, style: &Style, size: usize) -> String {
    let mut writer = Writer {
        out: String::with_capacity(size),
        style,
        depth: 0,
    };
    writer.out.push_str(&style.before);
    writer.value(value);
    writer.out.push_str(&style.after);
    writer.out
}

/// One value's text.
pub(super) fn value_text(value: &Value, style: &Style) -> String {
    let mut writer = Writer {
        out: String::new(),
        style,
        depth: 0,
    };
    writer.value(value);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    /// How many of the open containers have their items on lines of their own.
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Number(number) => self.out.push_str(number.text()),
            Value::String(text) => self.text(text),
            Value::Array(array) => self.array(array),
            Value::Object(object) => self.object(object),
        }
    }

    fn array(&mut self, array: &Array) {
        let has_lines = self.style.has_lines(array.layout);
        self.out.push('[');
        self.depth += usize::from(has_lines);
        for (number, item) in array.items.iter().enumerate() {
            self.before_item(number == 0, has_lines, &self.style.array_padding);
            self.value(item);
        }
        self.depth -= usize::from(has_lines);
        if !array.items.is_empty() {
            self.before_end(has_lines, &self.style.array_padding);
        }
        self.out.push(']');
    }

    fn object(&mut self, object: &Object) {
        let has_lines = self.style.has_lines(object.layout);
        self.out.push('{');
        self.depth += usize::from(has_lines);
        for (number, member) in object.members().enumerate() {
            self.before_item(number == 0, has_lines, &self.style.object_padding);
            self.text(&member.key);
            self.out.push_str(&self.style.colon);
            self.value(&member.value);
        }
        self.depth -= usize::from(has_lines);
        if !object.is_empty() {
            self.before_end(has_lines, &self.style.object_padding);
        }
        self.out.push('}');
    }

    fn before_item(&mut self, is_first: bool, has_lines: bool, padding: &str) {
        if has_lines {
            if !is_first {
                self.out.push_str(&self.style.line_separator);
            }
            self.new_line();
        } else if is_first {
            self.out.push_str(padding);
        } else {
            self.out.push_str(&self.style.separator);
        }
    }

    fn before_end(&mut self, has_lines: bool, padding: &str) {
        if has_lines {
            self.new_line();
        } else {
            self.out.push_str(padding);
        }
    }

    fn new_line(&mut self) {
        self.out.push_str(self.style.newline);
        let indent = self.style.indent.as_deref().unwrap_or_default();
        for _ in 0..self.depth {
            self.out.push_str(indent);
        }
    }

    fn text(&mut self, text: &Text) {
        self.out.push('"');
        let source = text.source();
        if self.style.ascii && !source.is_ascii() {
            push_ascii(&mut self.out, source);
        } else {
            self.out.push_str(source);
        }
        self.out.push('"');
    }
}
