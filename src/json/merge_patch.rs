//! JSON merge patches (RFC 7396).

use super::document::Limits;
use super::edit::{Applied, Editor, Failure};
use super::error::PatchError;
use super::object::Object;
use super::patch::value_of_edit;
use super::pointer::{Address, Spot, value_at};
use super::text::Text;
use super::value::Value;

/// A merge patch: members that take the place of others or come to them, `null` where one goes.
#[derive(Clone, Debug)]
pub struct MergePatch {
    value: Value,
}

impl MergePatch {
    /// Reads a merge patch; every JSON value is one.
    ///
    /// # Errors
    /// It is not JSON, or too large.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<MergePatch, PatchError> {
        Ok(MergePatch {
            value: value_of_edit(bytes, limits)?,
        })
    }

    /// See [`AnyPatch::is_local`](super::AnyPatch::is_local).
    pub(super) fn is_local(&self, root: &Value) -> bool {
        replaces_scalars(&self.value, root)
    }

    /// Merges all of the patch, or nothing.
    pub(super) fn apply(&self, mut editor: Editor) -> Result<Applied, PatchError> {
        match editor.merge(&mut Address::new(), &self.value) {
            Ok(()) => Ok(editor.finish(None)),
            Err(failure) => {
                editor.abandon();
                Err(PatchError {
                    subject: "merge failed".into(),
                    ..PatchError::whole(failure.kind, failure.reason)
                })
            }
        }
    }
}

fn replaces_scalars(patch: &Value, existing: &Value) -> bool {
    match (patch, existing) {
        (Value::Object(patch), Value::Object(existing)) => patch.members().all(|member| {
            let existing = existing.get_text(&member.key);
            existing.is_none_or(|existing| replaces_scalars(&member.value, existing))
        }),
        (_, existing) => existing.is_scalar(),
    }
}

impl Editor<'_> {
    /// Merges `patch` into the value at `at`, which is left as it came.
    fn merge(&mut self, at: &mut Address, patch: &Value) -> Result<(), Failure> {
        let Value::Object(patch) = patch else {
            return self.put(Spot::Existing(at.clone()), patch.clone());
        };
        if !matches!(value_at(self.root, at), Value::Object(_)) {
            return self.put(Spot::Existing(at.clone()), without_nulls(patch));
        }
        for member in patch.members() {
            self.merge_member(at, &member.key, &member.value)?;
        }
        Ok(())
    }

    fn merge_member(&mut self, at: &mut Address, key: &Text, value: &Value) -> Result<(), Failure> {
        let slot = match value_at(self.root, at) {
            Value::Object(object) => object.slot_of(key),
            _ => None,
        };
        match (slot, value) {
            (Some(slot), Value::Null) => {
                let mut member = at.clone();
                member.push(slot);
                self.remove(member);
                Ok(())
            }
            (Some(slot), _) => {
                at.push(slot);
                let merged = self.merge(at, value);
                at.pop();
                merged
            }
            (None, Value::Null) => Ok(()),
            (None, _) => {
                let spot = Spot::Member {
                    object: at.clone(),
                    key: key.clone(),
                };
                self.put(spot, fresh(value))
            }
        }
    }
}

/// What a patch makes of nothing.
fn fresh(patch: &Value) -> Value {
    match patch {
        Value::Object(object) => without_nulls(object),
        other => other.clone(),
    }
}

fn without_nulls(patch: &Object) -> Value {
    let mut object = Object::default();
    for member in patch.members() {
        if member.value != Value::Null {
            object.push(member.key.clone(), fresh(&member.value));
        }
    }
    Value::Object(object)
}
