//! Edits as the command line gives them: read and found well-formed before anything is touched.

use super::trouble::Trouble;
use crate::cli::{Failure, exit};
use crate::json::{
    Applied, Document, Limits, MergePatch, Patch, PatchError, PatchErrorKind, Pointer,
};

/// An edit of a document.
#[derive(Debug)]
pub(super) enum Edit {
    Set { pointer: Pointer, value: String },
    Increment { pointer: Pointer, text: String },
    Patch { text: Vec<u8> },
    Merge { text: Vec<u8> },
}

impl Edit {
    /// Sets the value at a pointer to one given as JSON.
    pub fn set(pointer: Pointer, value: &[u8]) -> Result<Edit, Failure> {
        let shown = brief(&String::from_utf8_lossy(value));
        let bad = |reason: String| {
            let message = format!(
                "the value {shown} is not JSON: {reason}; quote a string as '\"…\"', or use --string"
            );
            Failure::new(exit::BAD_INPUT, message)
        };
        if value.trim_ascii().is_empty() {
            return Err(bad("it is empty".to_owned()));
        }
        let value = Document::parse(value).map_err(|e| bad(e.to_string()))?;
        let value = value.value().to_string();
        Ok(Edit::Set { pointer, value })
    }

    /// Sets the value at a pointer to a string.
    pub fn set_string(pointer: Pointer, string: &str) -> Edit {
        let value = quoted(string);
        Edit::Set { pointer, value }
    }

    pub fn increment(pointer: Pointer, by: &str) -> Result<Edit, Failure> {
        let bad = |reason: &dyn std::fmt::Display| {
            let message = format!("{} is nothing to add: {reason}", brief(by));
            Failure::new(exit::BAD_INPUT, message)
        };
        // It must not be able to end the operation and begin another.
        Document::parse(by.as_bytes()).map_err(|e| bad(&e))?;
        let text = operation("increment", &pointer, by);
        parse_patch(text.as_bytes()).map_err(|e| bad(&e.reason))?;
        Ok(Edit::Increment { pointer, text })
    }

    pub fn patch(text: Vec<u8>) -> Result<Edit, Failure> {
        parse_patch(&text).map_err(|e| malformed(&e))?;
        Ok(Edit::Patch { text })
    }

    pub fn merge(text: Vec<u8>) -> Result<Edit, Failure> {
        MergePatch::parse(&text, &Limits::default()).map_err(|e| malformed(&e))?;
        Ok(Edit::Merge { text })
    }

    /// As a patch: the value takes the place of what is there.
    pub fn replacing(pointer: &Pointer, value: &str) -> String {
        operation("replace", pointer, value)
    }

    /// As a patch: the value comes to a member, or into an array.
    pub fn adding(pointer: &Pointer, value: &str) -> String {
        operation("add", pointer, value)
    }

    /// Makes the edit of a text. Gives the new text, unless nothing changed, and the value at the
    /// edit's place.
    ///
    /// # Errors
    /// The text is no document, or the edit doesn't fit it.
    pub fn made_of(&self, text: &[u8]) -> Result<(Option<Vec<u8>>, Option<String>), Trouble> {
        let mut document = Document::parse(text).map_err(|e| {
            Trouble::NotADocument(format!("not a JSON document that can be edited: {e}"))
        })?;
        let applied = self.apply(&mut document)?;
        let target = applied.target.as_ref();
        let value = target
            .and_then(|t| t.resolve(document.value()).ok())
            .map(ToString::to_string);
        let text = applied.changed.then(|| document.to_text().into_bytes());
        Ok((text, value))
    }

    fn apply(&self, document: &mut Document) -> Result<Applied, PatchError> {
        let limits = Limits::default();
        let mut patch = |text: &[u8]| document.apply(&parse_patch(text)?, &limits);
        match self {
            Edit::Set { pointer, value } => {
                match patch(Edit::replacing(pointer, value).as_bytes()) {
                    Err(e) if e.kind == PatchErrorKind::MissingPath => {
                        patch(Edit::adding(pointer, value).as_bytes())
                    }
                    other => other,
                }
            }
            Edit::Increment { text, .. } => patch(text.as_bytes()),
            Edit::Patch { text } => patch(text),
            Edit::Merge { text } => {
                document.apply_merge(&MergePatch::parse(text, &limits)?, &limits)
            }
        }
    }

    /// Says it in the words of the command that was given, and how it would work.
    pub fn explain(&self, trouble: Trouble) -> Trouble {
        match trouble {
            Trouble::PointerMissing(reason) if matches!(self, Edit::Patch { .. }) => {
                let hint = self.hint(&reason);
                Trouble::PointerMissing(reason + &hint)
            }
            other if matches!(self, Edit::Patch { .. } | Edit::Merge { .. }) => other,
            Trouble::PointerMissing(reason) => {
                let hint = self.hint(&reason);
                Trouble::PointerMissing(self.in_own_words(&reason) + &hint)
            }
            Trouble::DoesNotFit(reason) => Trouble::DoesNotFit(self.in_own_words(&reason)),
            other => other,
        }
    }

    /// There is one operation, and the user knows nothing of it.
    fn in_own_words(&self, reason: &str) -> String {
        let reason = reason.strip_prefix("operation 1: ").unwrap_or(reason);
        if let Edit::Set { pointer, .. } = self {
            for name in ["add", "replace"] {
                let begin = format!("{name} failed at {pointer}: ");
                if let Some(rest) = reason.strip_prefix(&begin) {
                    return format!("{pointer} can't be set: {rest}");
                }
            }
        }
        reason.to_owned()
    }

    fn hint(&self, reason: &str) -> String {
        let (no_member, no_item) = (
            reason.contains(" has no member "),
            reason.contains(" has no item "),
        );
        match self {
            Edit::Set { pointer, value } if no_member => {
                let shown = match value.len() {
                    0..=40 => value.clone(),
                    _ => "…".to_owned(),
                };
                let command = making(pointer, shown, reason);
                format!("; `{command}` would make it")
            }
            Edit::Set { .. } if no_item => "; - in place of the number appends".to_owned(),
            Edit::Increment { pointer, .. } => match pointer.above() {
                Some(above) if no_member => {
                    // Empty: it may have been made by then, and loses nothing so.
                    let command = making(&above, "{}".to_owned(), reason);
                    format!("; `{command}` would make a place for it, where it begins at 0")
                }
                Some(above) if no_item => {
                    format!("; `commitfs json set FILE {above}/- 0` appends one")
                }
                _ => String::new(),
            },
            Edit::Patch { .. } if no_member => {
                "; `add` sets a member whether it is there or not, but makes no object around it"
                    .to_owned()
            }
            Edit::Patch { .. } if no_item => {
                "; `add` at - in place of the number appends".to_owned()
            }
            _ => String::new(),
        }
    }
}

/// The command that puts a value where a pointer leads, and makes what is missing on the way.
fn making(pointer: &Pointer, value: String, reason: &str) -> String {
    let tokens = pointer.tokens();
    let may_be_position = |name: &String| name == "-" || name.bytes().all(|b| b.is_ascii_digit());
    if !tokens.iter().any(may_be_position) {
        return format!("commitfs json merge FILE '{}'", nested(tokens, value));
    }
    // A merge would put an object in the place of an array.
    let ends_at = |count: &usize| {
        let there: Pointer = tokens[..*count].iter().cloned().collect();
        let whose = match count {
            0 => "the document".to_owned(),
            _ => there.to_string(),
        };
        reason.contains(&format!(": {whose} has no member "))
    };
    let there = (0..tokens.len()).find(ends_at).unwrap_or(0);
    let missing: Pointer = tokens[..=there].iter().cloned().collect();
    let value = nested(&tokens[there + 1..], value);
    format!("commitfs json set FILE {missing} '{value}'")
}

fn operation(name: &str, pointer: &Pointer, value: &str) -> String {
    let path = quoted(&pointer.to_string());
    format!(r#"[{{"op": "{name}", "path": {path}, "value": {value}}}]"#)
}

fn parse_patch(text: &[u8]) -> Result<Patch, PatchError> {
    Patch::parse(text, &Limits::default())
}

fn malformed(error: &PatchError) -> Failure {
    Failure::new(exit::BAD_INPUT, format!("this is no patch: {error}"))
}

fn quoted(string: &str) -> String {
    serde_json::Value::from(string).to_string()
}

/// A value within objects of so many members.
fn nested(names: &[String], value: String) -> String {
    let around = |inner: String, name: &String| format!("{{{}: {inner}}}", quoted(name));
    names.iter().rev().fold(value, around)
}

fn brief(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What an edit came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// None on a plain directory.
    pub(super) version: Option<u64>,
    /// Its JSON text; none for edits that point at nothing, and where it is too large to tell.
    pub(super) value: Option<String>,
}
