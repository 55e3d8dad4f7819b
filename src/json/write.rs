//! From values back to text.

use super::array::Array;
use super::object::Object;
use super::style::{Layout, Style};
use super::text::{Text, push_ascii};
use super::value::Value;

/// The whole text of a document; `size` is about how many bytes it has.
pub(super) fn document_text(value: &Value, style: &Style, size: usize) -> String {
    let mut writer = Writer {
        out: String::with_capacity(size + style.before.len() + style.after.len()),
        style,
        depth: 0,
    };
    writer.out.push_str(&style.before);
    writer.value(value, writer.default_layout());
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
    writer.value(value, writer.default_layout());
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    /// How many of the open containers have their items on lines of their own.
    depth: usize,
}

impl Writer<'_> {
    fn default_layout(&self) -> Layout {
        match self.style.indent {
            Some(_) => Layout::Lines,
            None => Layout::Inline,
        }
    }

    /// `auto` is the layout of containers that have none of their own.
    fn value(&mut self, value: &Value, auto: Layout) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Number(number) => self.out.push_str(number.text()),
            Value::String(text) => self.text(text),
            Value::Array(array) => self.array(array, auto),
            Value::Object(object) => self.object(object, auto),
        }
    }

    fn array(&mut self, array: &Array, auto: Layout) {
        let layout = self.resolve(array.layout, auto);
        let mut siblings = self.layout_inside(layout);
        self.out.push('[');
        self.depth += usize::from(layout == Layout::Lines);
        for (number, item) in array.items.iter().enumerate() {
            self.before_item(number == 0, layout, &self.style.array_padding);
            self.value(item, siblings);
            siblings = layout_of(item).unwrap_or(siblings);
        }
        self.depth -= usize::from(layout == Layout::Lines);
        if !array.items.is_empty() {
            self.before_end(layout, &self.style.array_padding);
        }
        self.out.push(']');
    }

    fn object(&mut self, object: &Object, auto: Layout) {
        let layout = self.resolve(object.layout, auto);
        let mut siblings = self.layout_inside(layout);
        self.out.push('{');
        self.depth += usize::from(layout == Layout::Lines);
        for (number, member) in object.members().enumerate() {
            self.before_item(number == 0, layout, &self.style.object_padding);
            self.text(&member.key);
            self.out.push_str(&self.style.colon);
            self.value(&member.value, siblings);
            siblings = layout_of(&member.value).unwrap_or(siblings);
        }
        self.depth -= usize::from(layout == Layout::Lines);
        if !object.is_empty() {
            self.before_end(layout, &self.style.object_padding);
        }
        self.out.push('}');
    }

    /// A document without lines of its own has no indentation to put things on lines with.
    fn resolve(&self, layout: Layout, auto: Layout) -> Layout {
        match layout {
            _ if self.style.indent.is_none() => Layout::Inline,
            Layout::Auto => auto,
            own => own,
        }
    }

    fn layout_inside(&self, layout: Layout) -> Layout {
        match layout {
            Layout::Inline => Layout::Inline,
            _ => self.default_layout(),
        }
    }

    fn before_item(&mut self, is_first: bool, layout: Layout, padding: &str) {
        if layout == Layout::Lines {
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

    fn before_end(&mut self, layout: Layout, padding: &str) {
        if layout == Layout::Lines {
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

/// The layout that a value shows to what is added behind it.
fn layout_of(value: &Value) -> Option<Layout> {
    let layout = match value {
        Value::Array(array) => array.layout,
        Value::Object(object) => object.layout,
        _ => Layout::Auto,
    };
    (layout != Layout::Auto).then_some(layout)
}

/// At least as many bytes as the value takes in a document, `depth` containers deep. The weight of
/// a container is that of its brackets and of its items, each by itself, so it can be kept up as
/// items come and go.
pub(super) fn weight(value: &Value, style: &Style, depth: usize) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) => number.text().len(),
        Value::String(text) => text_weight(text, style),
        Value::Array(array) => {
            let each = |item: &Value| item_weight(None, item, style, depth + 1, array.layout);
            brackets_weight(style, depth, array.layout)
                + array.items.iter().map(each).sum::<usize>()
        }
        Value::Object(object) => {
            let (inner, layout) = (depth + 1, object.layout);
            brackets_weight(style, depth, layout)
                + object
                    .members()
                    .map(|member| {
                        item_weight(Some(&member.key), &member.value, style, inner, layout)
                    })
                    .sum::<usize>()
        }
    }
}

/// The weight of an item or member of a container of this layout, with all that separates it from
/// the next one.
pub(super) fn item_weight(
    key: Option<&Text>,
    value: &Value,
    style: &Style,
    depth: usize,
    layout: Layout,
) -> usize {
    let name = key.map_or(0, |key| text_weight(key, style) + style.colon.len());
    let separator = style.separator.len().max(style.line_separator.len());
    name + separator + line_weight(style, depth, layout) + weight(value, style, depth)
}

fn brackets_weight(style: &Style, depth: usize, layout: Layout) -> usize {
    let padding = style.array_padding.len().max(style.object_padding.len());
    2 + 2 * padding + line_weight(style, depth, layout)
}

fn line_weight(style: &Style, depth: usize, layout: Layout) -> usize {
    match &style.indent {
        Some(indent) if layout != Layout::Inline => style.newline.len() + depth * indent.len(),
        _ => 0,
    }
}

fn text_weight(text: &Text, style: &Style) -> usize {
    let source = text.source();
    let quoted = source.len() + 2;
    if style.ascii && !source.is_ascii() {
        // Two bytes of UTF-8 become six, three become six, four become twelve.
        3 * quoted
    } else {
        quoted
    }
}
