//! JSON values.

use super::array::Array;
use super::number::Number;
use super::object::Object;
use super::style::Layout;
use super::text::Text;

/// A JSON value. Two are equal if they mean the same: numbers by their value, strings by what they
/// say, objects in any order.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(Text),
    Array(Array),
    Object(Object),
}

impl Value {
    /// Whether another value is written with equal digits and its members in equal order. Escapes and
    /// layout may differ.
    pub fn is_identical(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Number(one), Value::Number(two)) => one.text() == two.text(),
            (Value::Array(one), Value::Array(two)) => {
                one.items.len() == two.items.len()
                    && one
                        .items
                        .iter()
                        .zip(&two.items)
                        .all(|(one, two)| one.is_identical(two))
            }
            (Value::Object(one), Value::Object(two)) => {
                one.len() == two.len()
                    && one
                        .members()
                        .zip(two.members())
                        .all(|(one, two)| one.key == two.key && one.value.is_identical(&two.value))
            }
            _ => self == other,
        }
    }

    /// Is it neither an array nor an object?
    pub fn is_scalar(&self) -> bool {
        !matches!(self, Value::Array(_) | Value::Object(_))
    }

    /// How many items or members it holds.
    pub(super) fn len(&self) -> usize {
        match self {
            Value::Array(array) => array.items.len(),
            Value::Object(object) => object.len(),
            _ => 0,
        }
    }

    /// How many arrays and objects are open in its innermost place: 0 for a number, 1 for `[]`.
    pub fn depth(&self) -> usize {
        let inner = match self {
            Value::Array(array) => array.items.iter().map(Value::depth).max(),
            Value::Object(object) => object.members().map(|member| member.value.depth()).max(),
            _ => return 0,
        };
        1 + inner.unwrap_or(0)
    }

    /// What kind of value this is, with its article.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }

    /// Forgets how the source was laid out and escaped, so that the value takes on the style of the
    /// document it comes to.
    pub(super) fn forget_style(&mut self) {
        match self {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => *text = text.canonical(),
            Value::Array(array) => {
                array.layout = Layout::Auto;
                array.items.iter_mut().for_each(Value::forget_style);
            }
            Value::Object(object) => {
                object.layout = Layout::Auto;
                object.each_mut(|key, value| {
                    *key = key.canonical();
                    value.forget_style();
                });
            }
        }
    }
}
