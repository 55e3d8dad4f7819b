//! Which containers have their items on lines of their own, and how long a text becomes.
//!
//! Every container that holds something has a layout of its own: the source's, or, where it came by
//! an edit, what was usual at its place then. So the length of a value's text depends on nothing but
//! the value and the number of lines it is indented by, and an edit can keep up the length of the
//! whole document at the cost of the edit.

use super::object::Object;
use super::pointer::value_at;
use super::style::{Layout, Style};
use super::text::{Text, ascii_length};
use super::value::Value;

/// So many neighbours are asked how they are laid out.
const NEIGHBOURS: usize = 64;

/// Gives a value's containers the layouts that are usual, where they have none of their own; `usual`
/// is what is at its place.
pub(super) fn lay_out(value: &mut Value, style: &Style, usual: Layout) {
    let layout = match value {
        Value::Array(array) if !array.items.is_empty() => &mut array.layout,
        Value::Object(object) if !object.is_empty() => &mut object.layout,
        _ => return,
    };
    if *layout == Layout::Auto {
        *layout = usual;
    }
    let mut usual = style.usual_inside(*layout);
    let mut item = |item: &mut Value| {
        lay_out(item, style, usual);
        usual = layout_of(item).unwrap_or(usual);
    };
    match value {
        Value::Array(array) => array.items.iter_mut().for_each(item),
        Value::Object(object) => object.each_mut(|_, value| item(value)),
        _ => {}
    }
}

/// The layout that is usual at a place in a container that has one: that of the neighbours in front,
/// or that of the surroundings.
pub(super) fn usual_at(root: &Value, style: &Style, at: &[usize]) -> Layout {
    let Some((&position, container)) = at.split_last() else {
        return style.usual();
    };
    let container = value_at(root, container);
    let neighbour = match container {
        Value::Array(array) => {
            let before = array.items[..position.min(array.items.len())].iter().rev();
            before.take(NEIGHBOURS).find_map(layout_of)
        }
        Value::Object(object) => {
            let before = object.values_before(position);
            before.take(NEIGHBOURS).find_map(layout_of)
        }
        _ => None,
    };
    let surroundings = || layout_of(container).map(|layout| style.usual_inside(layout));
    neighbour.or_else(surroundings).unwrap_or(style.usual())
}

/// The layout that a value shows to what comes behind it.
fn layout_of(value: &Value) -> Option<Layout> {
    let layout = match value {
        Value::Array(array) => array.layout,
        Value::Object(object) => object.layout,
        _ => Layout::Auto,
    };
    (layout != Layout::Auto).then_some(layout)
}

/// How many of the containers above a place have their items on lines of their own.
pub(super) fn lines_above(root: &Value, style: &Style, at: &[usize]) -> usize {
    let above = (0..at.len()).map(|depth| value_at(root, &at[..depth]));
    above
        .filter(|container| layout_of(container).is_some_and(|l| style.has_lines(l)))
        .count()
}

/// Length of a value's text in bytes, below `lines` containers with lines.
pub(super) fn length(value: &Value, style: &Style, lines: usize) -> usize {
    match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => number.text().len(),
        Value::String(text) => text_length(text, style),
        Value::Array(array) => {
            let inside = Inside::of_array(array.layout, style, lines);
            let items = array.items.iter().enumerate();
            2 + items
                .map(|(number, item)| inside.length(None, item, number == 0))
                .sum::<usize>()
        }
        Value::Object(object) => {
            let inside = Inside::of_object(object, style, lines);
            let members = object.members().enumerate();
            2 + members
                .map(|(number, m)| inside.length(Some(&m.key), &m.value, number == 0))
                .sum::<usize>()
        }
    }
}

/// The inside of a container.
pub(super) struct Inside<'a> {
    style: &'a Style,
    padding: &'a str,
    has_lines: bool,
    /// The container itself counts.
    lines: usize,
}

impl<'a> Inside<'a> {
    pub(super) fn of(container: &Value, style: &'a Style, lines: usize) -> Inside<'a> {
        match container {
            Value::Object(object) => Inside::of_object(object, style, lines),
            Value::Array(array) => Inside::of_array(array.layout, style, lines),
            _ => Inside::of_array(Layout::Auto, style, lines),
        }
    }

    fn of_array(layout: Layout, style: &'a Style, lines: usize) -> Inside<'a> {
        let has_lines = style.has_lines(layout);
        Inside {
            style,
            padding: &style.array_padding,
            has_lines,
            lines: lines + usize::from(has_lines),
        }
    }

    fn of_object(object: &Object, style: &'a Style, lines: usize) -> Inside<'a> {
        Inside {
            padding: &style.object_padding,
            ..Inside::of_array(object.layout, style, lines)
        }
    }

    /// How much longer an item makes the container's text; the first brings the space inside the
    /// brackets along, the others what separates them.
    pub(super) fn length(&self, key: Option<&Text>, value: &Value, is_first: bool) -> usize {
        let style = self.style;
        let name = key.map_or(0, |key| text_length(key, style) + style.colon.len());
        let item = name + length(value, style, self.lines);
        let line = |lines: usize| {
            let indent = style.indent.as_deref().unwrap_or_default();
            style.newline.len() + lines * indent.len()
        };
        item + match (self.has_lines, is_first) {
            (true, true) => line(self.lines) + line(self.lines - 1),
            (true, false) => style.line_separator.len() + line(self.lines),
            (false, true) => 2 * self.padding.len(),
            (false, false) => style.separator.len(),
        }
    }
}

fn text_length(text: &Text, style: &Style) -> usize {
    let source = text.source();
    2 + if style.ascii {
        ascii_length(source)
    } else {
        source.len()
    }
}
