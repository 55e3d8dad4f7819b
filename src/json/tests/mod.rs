//! What users are told of JSON documents (C15 to C17), held against the modules themselves.

mod documents;
mod going_back;
mod merge_patches;
mod numbers;
mod patches;
mod pointers;
mod properties;
mod speed;
mod styles;
mod three_way;

use super::{Document, JsonError, Limits, MergePatch, Patch, PatchError, Policy, Value, merge};

fn document(text: &str) -> Document {
    Document::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn value(text: &str) -> Value {
    document(text).value().clone()
}

fn error_of(bytes: &[u8]) -> JsonError {
    Document::parse(bytes).expect_err("the document is wrong")
}

/// The text after a patch that has to succeed.
fn patched(text: &str, patch: &str) -> String {
    try_patch(text, patch).unwrap_or_else(|error| panic!("{patch} on {text}: {error}"))
}

/// The text after a patch; if it fails, the document has to be what it was.
fn try_patch(text: &str, patch: &str) -> Result<String, PatchError> {
    let limits = Limits::default();
    let patch = Patch::parse(patch.as_bytes(), &limits)?;
    let mut document = document(text);
    let (before, size) = (document.to_text(), document.text_len());
    let applied = document.apply(&patch, &limits);
    match applied {
        Ok(_) => {
            assert_eq!(document.text_len(), document.to_text().len());
            Ok(document.to_text())
        }
        Err(error) => {
            assert_eq!(document.to_text(), before, "a failed patch left something");
            assert_eq!(document.text_len(), size);
            Err(error)
        }
    }
}

/// The text after a merge patch.
fn merged(text: &str, patch: &str) -> String {
    let limits = Limits::default();
    let patch = MergePatch::parse(patch.as_bytes(), &limits).expect("the patch is JSON");
    let mut document = document(text);
    document.apply_merge(&patch, &limits).expect("it is small");
    assert_eq!(document.text_len(), document.to_text().len());
    document.to_text()
}

/// A three-way merge: the compact text, and each conflict's pointer.
fn merged_three(base: &str, mine: &str, theirs: &str, counters: &[&str]) -> (String, Vec<String>) {
    let policy = Policy::new(counters).expect("the counters are pointers");
    let merged = merge(&value(base), &value(mine), &value(theirs), &policy);
    let conflicts = merged.conflicts.iter();
    (
        merged.value.to_string(),
        conflicts
            .map(|conflict| conflict.pointer.to_string())
            .collect(),
    )
}
