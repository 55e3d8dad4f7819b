//! Changing a document in place, one step at a time, with a log that takes the steps back.

use super::document::Limits;
use super::error::PatchErrorKind;
use super::layout::{Inside, lay_out, length, lines_above, usual_at};
use super::object::{Member, Object};
use super::pointer::{Address, Missing, Pointer, Spot, value_at, value_at_mut};
use super::style::{Layout, Style};
use super::text::Text;
use super::value::Value;
use super::{MAX_DEPTH, NumberError};

/// What an edit did.
#[derive(Debug)]
pub struct Applied {
    /// Did any operation but `test` take place?
    pub changed: bool,
    /// Where the last operation's value is now; none for the edit of a merge patch.
    pub target: Option<Pointer>,
    /// Takes the edit back, as long as no other came after it; dropped, the edit stays.
    pub undo: Undo,
}

/// The steps of an edit, for [`Document::revert`](super::Document::revert).
#[derive(Debug)]
#[must_use]
pub struct Undo {
    steps: Vec<Step>,
    size: usize,
}

#[derive(Debug)]
enum Step {
    Replaced {
        at: Address,
        old: Value,
    },
    PushedMember {
        object: Address,
    },
    /// The value is none if the next step put it elsewhere.
    RemovedMember {
        object: Address,
        slot: usize,
        key: Text,
        value: Option<Value>,
    },
    InsertedItem {
        array: Address,
        index: usize,
    },
    RemovedItem {
        array: Address,
        index: usize,
        value: Option<Value>,
    },
    ClosedHoles {
        object: Address,
        holes: Vec<usize>,
    },
    /// A container got its layout, as it is to get its first item.
    LaidOut {
        container: Address,
    },
}

/// Why a step was not taken.
#[derive(Debug)]
pub(super) struct Failure {
    pub kind: PatchErrorKind,
    pub reason: String,
}

impl Failure {
    pub(super) fn new(kind: PatchErrorKind, reason: impl Into<String>) -> Failure {
        Failure {
            kind,
            reason: reason.into(),
        }
    }
}

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Failure {
        Failure::new(PatchErrorKind::MissingPath, missing.reason)
    }
}

impl From<NumberError> for Failure {
    fn from(error: NumberError) -> Failure {
        let kind = match error {
            NumberError::NotFinite(_) => PatchErrorKind::WrongType,
            NumberError::Integer(_) | NumberError::Float(..) => PatchErrorKind::OutOfRange,
        };
        Failure::new(kind, error.to_string())
    }
}

/// Copying and moving may read so many times the largest document in one edit.
const WORK_FACTOR: usize = 4;

/// A document that is being edited. Every step is checked first and then taken as a whole.
pub(super) struct Editor<'a> {
    pub root: &'a mut Value,
    style: &'a Style,
    size: &'a mut usize,
    limits: &'a Limits,
    work: usize,
    steps: Vec<Step>,
    old_size: usize,
    /// A value that was taken from its place and has not come to another.
    hand: Option<Value>,
}

impl<'a> Editor<'a> {
    pub(super) fn new(
        root: &'a mut Value,
        style: &'a Style,
        size: &'a mut usize,
        limits: &'a Limits,
    ) -> Editor<'a> {
        Editor {
            old_size: *size,
            root,
            style,
            size,
            limits,
            work: 0,
            steps: Vec::new(),
            hand: None,
        }
    }

    /// Keeps what was done.
    pub(super) fn finish(self, target: Option<Pointer>) -> Applied {
        Applied {
            changed: !self.steps.is_empty(),
            target,
            undo: Undo {
                steps: self.steps,
                size: self.old_size,
            },
        }
    }

    /// Takes back what was done.
    pub(super) fn abandon(self) {
        let undo = Undo {
            steps: self.steps,
            size: self.old_size,
        };
        undo.revert(self.root, self.size, self.hand);
    }

    /// Puts a value to where it takes the place of another or is added.
    pub(super) fn put(&mut self, spot: Spot, mut value: Value) -> Result<(), Failure> {
        if let Spot::Item {
            array: container, ..
        }
        | Spot::Member {
            object: container, ..
        } = &spot
        {
            self.lay_out_container(container);
        }
        let usual = match &spot {
            Spot::Existing(at) => usual_at(self.root, self.style, at),
            Spot::Item { array, index } => self.usual_in(array, *index),
            Spot::Member { object, .. } => self.usual_in(object, usize::MAX),
        };
        lay_out(&mut value, self.style, usual);
        if let Err(failure) = self.check(&spot, &value) {
            self.hand = Some(value);
            return Err(failure);
        }
        match spot {
            Spot::Existing(at) => {
                let old = std::mem::replace(value_at_mut(self.root, &at), value);
                self.steps.push(Step::Replaced { at, old });
            }
            Spot::Item { array, index } => {
                items_at(self.root, &array).insert(index, value);
                self.steps.push(Step::InsertedItem { array, index });
            }
            Spot::Member { object, key } => {
                self.close_holes(&object);
                object_at(self.root, &object).push(key, value);
                self.steps.push(Step::PushedMember { object });
            }
        }
        Ok(())
    }

    fn usual_in(&self, container: &Address, position: usize) -> Layout {
        let at = [container.as_slice(), &[position]].concat();
        usual_at(self.root, self.style, &at)
    }

    /// What was empty gets the layout that is usual at its place.
    fn lay_out_container(&mut self, container: &Address) {
        let usual = usual_at(self.root, self.style, container);
        let layout = layout_at(self.root, container);
        if *layout == Layout::Auto {
            *layout = usual;
            self.steps.push(Step::LaidOut {
                container: container.clone(),
            });
        }
    }

    /// Is there room for the value, in depth and in size? If so, it counts from now on.
    fn check(&mut self, spot: &Spot, value: &Value) -> Result<(), Failure> {
        let (added, depth, removed) = match spot {
            Spot::Existing(at) => {
                let lines = lines_above(self.root, self.style, at);
                let old = length(value_at(self.root, at), self.style, lines);
                (length(value, self.style, lines), at.len(), old)
            }
            Spot::Item { array, .. } => {
                let added = self.item_length(array, None, value);
                (added, array.len() + 1, 0)
            }
            Spot::Member { object, key } => {
                let added = self.item_length(object, Some(key), value);
                (added, object.len() + 1, 0)
            }
        };
        if depth + value.depth() > MAX_DEPTH {
            let reason = format!("the result would be nested deeper than {MAX_DEPTH}");
            return Err(Failure::new(PatchErrorKind::TooLarge, reason));
        }
        let size = *self.size + added - removed;
        if size > self.limits.bytes && size > *self.size {
            let limit = self.limits.bytes;
            let reason = format!("the result would exceed {limit} bytes");
            return Err(Failure::new(PatchErrorKind::TooLarge, reason));
        }
        *self.size = size;
        Ok(())
    }

    /// How much longer a container's text is for an item that is not in it.
    fn item_length(&self, container: &Address, key: Option<&Text>, value: &Value) -> usize {
        let lines = lines_above(self.root, self.style, container);
        let container = value_at(self.root, container);
        Inside::of(container, self.style, lines).length(key, value, container.len() == 0)
    }

    /// Removes the value at `at`, which is not the whole document.
    pub(super) fn remove(&mut self, at: Address) {
        let removed = self.take(at);
        match self.steps.last_mut() {
            Some(Step::RemovedMember { value, .. } | Step::RemovedItem { value, .. }) => {
                *value = Some(removed);
            }
            _ => unreachable!("taking is a removal"),
        }
    }

    /// Takes a value, which is not the whole document, to another place; that is looked up when the
    /// value has left the first.
    pub(super) fn shift(&mut self, from: Address, to: &Pointer) -> Result<Pointer, Failure> {
        let value = self.take(from);
        let spot = self
            .count_work(length(&value, self.style, 0))
            .and_then(|()| Ok(to.spot(self.root)?));
        match spot {
            Ok(spot) => {
                let target = to.target(&spot);
                self.put(spot, value)?;
                Ok(target)
            }
            Err(failure) => {
                self.hand = Some(value);
                Err(failure)
            }
        }
    }

    /// A copy of the value at `from`.
    pub(super) fn copy(&mut self, from: &[usize]) -> Result<Value, Failure> {
        self.count_work(length(value_at(self.root, from), self.style, 0))?;
        Ok(value_at(self.root, from).clone())
    }

    /// Keeps the time that one edit takes within reason.
    fn count_work(&mut self, weight: usize) -> Result<(), Failure> {
        let limit = self.limits.bytes.saturating_mul(WORK_FACTOR);
        self.work += weight;
        if self.work > limit {
            let reason = format!("the edit moves and copies more than {limit} bytes");
            return Err(Failure::new(PatchErrorKind::TooLarge, reason));
        }
        Ok(())
    }

    /// Takes a value from its container, into the hands of the caller.
    fn take(&mut self, mut at: Address) -> Value {
        let position = at.pop().expect("the whole document can't be taken");
        let (key, value) = match value_at_mut(self.root, &at) {
            Value::Array(array) => (None, array.items.remove(position)),
            Value::Object(object) => {
                let Member { key, value } = object.remove(position);
                (Some(key), value)
            }
            _ => unreachable!("addresses lead through containers"),
        };
        *self.size -= self.item_length(&at, key.as_ref(), &value);
        self.steps.push(match key {
            None => Step::RemovedItem {
                array: at,
                index: position,
                value: None,
            },
            Some(key) => Step::RemovedMember {
                object: at,
                slot: position,
                key,
                value: None,
            },
        });
        value
    }

    fn close_holes(&mut self, at: &Address) {
        let object = object_at(self.root, at);
        if object.is_full_of_holes() {
            self.steps.push(Step::ClosedHoles {
                object: at.clone(),
                holes: object.close_holes(),
            });
        }
    }
}

impl Undo {
    /// `hand` is a value that was taken from its place by the last step and has not come to another.
    pub(super) fn revert(self, root: &mut Value, size: &mut usize, mut hand: Option<Value>) {
        for step in self.steps.into_iter().rev() {
            step.revert(root, &mut hand);
        }
        *size = self.size;
    }
}

impl Step {
    /// What leaves its place goes into `hand`; what comes back and isn't in the log, comes from it.
    fn revert(self, root: &mut Value, hand: &mut Option<Value>) {
        match self {
            Step::Replaced { at, old } => {
                *hand = Some(std::mem::replace(value_at_mut(root, &at), old));
            }
            Step::PushedMember { object } => *hand = Some(object_at(root, &object).pop().value),
            Step::RemovedMember {
                object,
                slot,
                key,
                value,
            } => {
                let value = value.or_else(|| hand.take()).expect(IN_HAND);
                object_at(root, &object).put_back(slot, Member { key, value });
            }
            Step::InsertedItem { array, index } => {
                *hand = Some(items_at(root, &array).remove(index));
            }
            Step::RemovedItem {
                array,
                index,
                value,
            } => {
                let value = value.or_else(|| hand.take()).expect(IN_HAND);
                items_at(root, &array).insert(index, value);
            }
            Step::ClosedHoles { object, holes } => object_at(root, &object).open_holes(&holes),
            Step::LaidOut { container } => *layout_at(root, &container) = Layout::Auto,
        }
    }
}

const IN_HAND: &str = "what was moved from here was just taken back from there";

fn items_at<'a>(root: &'a mut Value, at: &[usize]) -> &'a mut Vec<Value> {
    match value_at_mut(root, at) {
        Value::Array(array) => &mut array.items,
        _ => unreachable!("the address is that of an array"),
    }
}

fn object_at<'a>(root: &'a mut Value, at: &[usize]) -> &'a mut Object {
    match value_at_mut(root, at) {
        Value::Object(object) => object,
        _ => unreachable!("the address is that of an object"),
    }
}

fn layout_at<'a>(root: &'a mut Value, at: &[usize]) -> &'a mut Layout {
    match value_at_mut(root, at) {
        Value::Array(array) => &mut array.layout,
        Value::Object(object) => &mut object.layout,
        _ => unreachable!("the address is that of a container"),
    }
}
