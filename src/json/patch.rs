//! JSON patches (RFC 6902), with the operation `increment`.
//!
//! Where the RFC leaves a choice: removing the whole document leaves `null`; `increment` of a member
//! that is not there creates it, as if it had been 0.

use super::document::Limits;
use super::edit::{Applied, Editor, Failure};
use super::error::{PatchError, PatchErrorKind};
use super::number::Number;
use super::operations::{Action, Operation};
use super::parse::parse;
use super::pointer::{Pointer, Spot, value_at};
use super::value::Value;

/// The operations of a patch, read and found well-formed.
#[derive(Clone, Debug)]
pub struct Patch {
    operations: Vec<Operation>,
}

/// Moving so many items by one place is no effort.
const FEW_ITEMS: usize = 4096;

impl Patch {
    /// See [`AnyPatch::is_local`](super::AnyPatch::is_local).
    pub(super) fn is_local(&self, root: &Value) -> bool {
        self.operations.iter().all(|operation| {
            let existing = operation.path.locate(root).map(|at| value_at(root, &at));
            match &operation.action {
                Action::Increment(_) | Action::Test(_) => true,
                Action::Move(_) | Action::Copy(_) => false,
                Action::Replace(_) => existing.is_ok_and(Value::is_scalar),
                Action::Add(_) => match operation.path.spot(root) {
                    Ok(Spot::Item { array, index }) => {
                        value_at(root, &array).len() - index <= FEW_ITEMS
                    }
                    Ok(Spot::Existing(_)) => existing.is_ok_and(Value::is_scalar),
                    Ok(Spot::Member { .. }) | Err(_) => true,
                },
                Action::Remove => {
                    let above = operation.path.above().and_then(|p| p.locate(root).ok());
                    let siblings = above.map_or(0, |at| match value_at(root, &at) {
                        Value::Array(array) => array.items.len(),
                        _ => 0,
                    });
                    existing.is_ok_and(Value::is_scalar) && siblings <= FEW_ITEMS
                }
            }
        })
    }

    /// Reads a patch.
    ///
    /// # Errors
    /// It is not JSON, not an array, has an operation that is none, or too many (`TooLarge`).
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Patch, PatchError> {
        let items = match value_of_edit(bytes, limits)? {
            Value::Array(array) => array.items,
            other => {
                let reason = format!("a patch is an array of operations, not {}", other.kind());
                return Err(PatchError::whole(PatchErrorKind::Malformed, reason));
            }
        };
        if items.len() > limits.operations {
            let (count, limit) = (items.len(), limits.operations);
            let reason = format!("{count} operations are more than the {limit} allowed");
            return Err(PatchError::whole(PatchErrorKind::TooLarge, reason));
        }
        let numbered = items.iter().zip(1..);
        let operations = numbered.map(|(item, number)| Operation::read(item, number));
        Ok(Patch {
            operations: operations.collect::<Result<_, _>>()?,
        })
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Is there no operation?
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Does all operations, or none.
    pub(super) fn apply(&self, mut editor: Editor) -> Result<Applied, PatchError> {
        let mut target = None;
        for (operation, number) in self.operations.iter().zip(1..) {
            match editor.operate(operation) {
                Ok(pointer) => target = Some(pointer),
                Err(failure) => {
                    editor.abandon();
                    return Err(explain(operation, number, failure));
                }
            }
        }
        Ok(editor.finish(target))
    }
}

/// The value of a patch or merge patch, without a style of its own.
pub(super) fn value_of_edit(bytes: &[u8], limits: &Limits) -> Result<Value, PatchError> {
    if bytes.len() > limits.bytes {
        let reason = format!("its {} bytes are more than {}", bytes.len(), limits.bytes);
        return Err(PatchError::whole(PatchErrorKind::TooLarge, reason));
    }
    let (mut value, _) = parse(bytes).map_err(|error| {
        PatchError::whole(PatchErrorKind::Malformed, format!("not JSON: {error}"))
    })?;
    value.forget_style();
    Ok(value)
}

fn explain(operation: &Operation, number: usize, failure: Failure) -> PatchError {
    let name = operation.name();
    let subject = match operation.path.tokens() {
        [] => format!("{name} failed at the document"),
        _ => format!("{name} failed at {}", operation.path),
    };
    PatchError {
        kind: failure.kind,
        operation: Some(number),
        subject,
        reason: failure.reason,
    }
}

impl Editor<'_> {
    /// Does one operation, and says where its value is.
    fn operate(&mut self, operation: &Operation) -> Result<Pointer, Failure> {
        let path = &operation.path;
        match &operation.action {
            Action::Add(value) => self.add(path, value.clone()),
            Action::Remove => self.remove_at(path),
            Action::Replace(value) => {
                let at = path.locate(self.root)?;
                self.put(Spot::Existing(at), value.clone())?;
                Ok(path.clone())
            }
            Action::Move(from) => self.move_to(from, path),
            Action::Copy(from) => {
                let at = from.locate(self.root)?;
                let value = self.copy(&at)?;
                self.add(path, value)
            }
            Action::Test(value) => self.test(path, value),
            Action::Increment(by) => self.increment(path, by),
        }
    }

    fn add(&mut self, path: &Pointer, value: Value) -> Result<Pointer, Failure> {
        let spot = path.spot(self.root)?;
        let target = path.target(&spot);
        self.put(spot, value)?;
        Ok(target)
    }

    fn remove_at(&mut self, path: &Pointer) -> Result<Pointer, Failure> {
        let at = path.locate(self.root)?;
        if at.is_empty() {
            self.put(Spot::Existing(at), Value::Null)?;
        } else {
            self.remove(at);
        }
        Ok(path.clone())
    }

    fn move_to(&mut self, from: &Pointer, path: &Pointer) -> Result<Pointer, Failure> {
        let at = from.locate(self.root)?;
        if from == path {
            return Ok(path.clone());
        }
        self.shift(at, path)
    }

    fn test(&mut self, path: &Pointer, expected: &Value) -> Result<Pointer, Failure> {
        let found = path.resolve(self.root)?;
        if found == expected {
            return Ok(path.clone());
        }
        let reason = format!("expected {}, found {}", brief(expected), brief(found));
        Err(Failure::new(PatchErrorKind::TestFailed, reason))
    }

    fn increment(&mut self, path: &Pointer, by: &Number) -> Result<Pointer, Failure> {
        let spot = match path.spot(self.root)? {
            spot @ Spot::Member { .. } => {
                let zero = Number::from(0u64);
                self.put(spot, Value::Number(zero.plus(by)?))?;
                return Ok(path.clone());
            }
            Spot::Existing(at) => at,
            Spot::Item { .. } => path.locate(self.root)?,
        };
        let sum = match value_at(self.root, &spot) {
            Value::Number(number) => number.plus(by)?,
            other => {
                let reason = format!("{} is no number", brief(other));
                return Err(Failure::new(PatchErrorKind::WrongType, reason));
            }
        };
        self.put(Spot::Existing(spot), Value::Number(sum))?;
        Ok(path.clone())
    }
}

/// A value as a message can hold it.
fn brief(value: &Value) -> String {
    const ENOUGH: usize = 60;
    let text = match value {
        Value::Array(array) => return format!("an array of {}", array.items.len()),
        Value::Object(object) => return format!("an object of {}", object.len()),
        Value::String(text) => format!("\"{}\"", text.source()),
        scalar => scalar.to_string(),
    };
    match text.char_indices().nth(ENOUGH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
