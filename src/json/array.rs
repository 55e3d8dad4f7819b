//! Arrays.

use super::style::Layout;
use super::value::Value;

/// The items of an array, and how they were laid out.
#[derive(Clone, Debug, Default)]
pub struct Array {
    pub(super) items: Vec<Value>,
    pub(super) layout: Layout,
}

impl Array {
    /// The items, in order.
    pub fn items(&self) -> &[Value] {
        &self.items
    }
}

impl From<Vec<Value>> for Array {
    fn from(items: Vec<Value>) -> Array {
        Array {
            items,
            layout: Layout::Auto,
        }
    }
}

impl PartialEq for Array {
    /// Equal items in the same order.
    fn eq(&self, other: &Array) -> bool {
        self.items == other.items
    }
}
