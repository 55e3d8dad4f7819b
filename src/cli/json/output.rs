//! What is printed.

use super::edit::Changed;
use crate::cli::{Failure, exit, output};
use crate::json::Value;

/// How a value is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The value.
    Value,
    /// The value, a string without its quotes.
    Raw,
    /// `VERSION VALUE`
    Line,
    /// `{"version": N, "value": V}`
    Json,
    Nothing,
}

impl Form {
    /// The form of an edit's result.
    pub fn of(json: bool, quiet: bool) -> Form {
        match (json, quiet) {
            (true, _) => Form::Json,
            (_, true) => Form::Nothing,
            _ => Form::Line,
        }
    }
}

/// Prints a text as it is.
pub(super) fn text(text: &[u8]) -> Result<u8, Failure> {
    output::print_lines(text)?;
    Ok(exit::OK)
}

/// Prints a value that was read.
pub(super) fn value(version: Option<u64>, value: &Value, form: Form) -> Result<u8, Failure> {
    match (form, value) {
        (Form::Raw, Value::String(string)) => text(format!("{}\n", string.as_str()).as_bytes()),
        (Form::Raw | Form::Value, _) => text(format!("{value}\n").as_bytes()),
        _ => {
            let value = Some(value.to_string());
            told(&Changed { version, value }, form)
        }
    }
}

/// Prints what an edit came to.
pub(super) fn told(told: &Changed, form: Form) -> Result<u8, Failure> {
    let line = match form {
        Form::Nothing => return Ok(exit::OK),
        Form::Value => told.value.clone().unwrap_or_default(),
        Form::Json => {
            let version = told.version.map_or("null".to_owned(), |v| v.to_string());
            match &told.value {
                Some(value) => format!("{{\"version\": {version}, \"value\": {value}}}"),
                None => format!("{{\"version\": {version}}}"),
            }
        }
        _ => {
            let version = told.version.map_or("-".to_owned(), |v| v.to_string());
            match &told.value {
                Some(value) => format!("{version} {value}"),
                None => version,
            }
        }
    };
    text(format!("{line}\n").as_bytes())
}
