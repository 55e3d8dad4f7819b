//! Reading the operations of a JSON patch.

use super::error::{PatchError, PatchErrorKind};
use super::number::Number;
use super::object::Object;
use super::pointer::Pointer;
use super::value::Value;

/// One operation: where, and what.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub path: Pointer,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Add(Value),
    Remove,
    Replace(Value),
    Move(Pointer),
    Copy(Pointer),
    Test(Value),
    Increment(Number),
}

impl Operation {
    /// Reads the operation that is the `number`th, from 1, of its patch.
    pub(super) fn read(value: &Value, number: usize) -> Result<Operation, PatchError> {
        let malformed = |reason: String| PatchError {
            operation: Some(number),
            ..PatchError::whole(PatchErrorKind::Malformed, reason)
        };
        match value {
            Value::Object(object) => Self::from_object(object).map_err(malformed),
            other => Err(malformed(format!("it is {}, not an object", other.kind()))),
        }
    }

    fn from_object(object: &Object) -> Result<Operation, String> {
        let name = string(object, "op")?;
        let action = match name.as_str() {
            "add" => Action::Add(member(object, "value")?.clone()),
            "remove" => Action::Remove,
            "replace" => Action::Replace(member(object, "value")?.clone()),
            "move" => Action::Move(pointer(object, "from")?),
            "copy" => Action::Copy(pointer(object, "from")?),
            "test" => Action::Test(member(object, "value")?.clone()),
            "increment" => Action::Increment(step(object)?),
            _ => return Err(format!("there is no operation {name:?}")),
        };
        let path = pointer(object, "path")?;
        if let Action::Move(from) = &action
            && from.is_above(&path)
        {
            return Err(format!(
                "{from:?} can't move into itself",
                from = from.to_string()
            ));
        }
        Ok(Operation { path, action })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.action {
            Action::Add(_) => "add",
            Action::Remove => "remove",
            Action::Replace(_) => "replace",
            Action::Move(_) => "move",
            Action::Copy(_) => "copy",
            Action::Test(_) => "test",
            Action::Increment(_) => "increment",
        }
    }
}

fn member<'a>(object: &'a Object, name: &str) -> Result<&'a Value, String> {
    object
        .get(name)
        .ok_or_else(|| format!("it has no member {name:?}"))
}

fn string(object: &Object, name: &str) -> Result<String, String> {
    match member(object, name)? {
        Value::String(text) => Ok(text.as_str().into_owned()),
        other => Err(format!("its {name:?} is {}, not a string", other.kind())),
    }
}

fn pointer(object: &Object, name: &str) -> Result<Pointer, String> {
    Pointer::parse(&string(object, name)?).map_err(|error| error.to_string())
}

fn step(object: &Object) -> Result<Number, String> {
    match member(object, "value")? {
        Value::Number(number) if number.is_finite() => Ok(number.clone()),
        other => Err(format!(
            "it increments by {other}, which is no finite number"
        )),
    }
}
