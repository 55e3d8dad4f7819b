//! What holds for any documents.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Serialize;

use super::super::Pointer;
use super::*;

/// A JSON value in the words of serde_json, which writes it independently of us.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>()
            .prop_filter("finite", |x| x.is_finite())
            .prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

fn written_with(value: &serde_json::Value, indent: &str) -> String {
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value
        .serialize(&mut serializer)
        .expect("memory takes everything");
    String::from_utf8(out).expect("it writes UTF-8")
}

fn styles(value: &serde_json::Value) -> Vec<String> {
    let mut texts = vec![value.to_string()];
    for indent in ["  ", "    ", "\t", ""] {
        let text = written_with(value, indent);
        texts.push(text.replace('\n', "\r\n"));
        texts.push(format!("{text}\n"));
        texts.push(text);
    }
    texts
}

/// Small documents with few names, so that edits and changes meet.
fn small() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1".to_owned()),
        Just("1.0".to_owned()),
        Just("2".to_owned()),
        Just("-7".to_owned()),
        Just("\"x\"".to_owned()),
        Just("\"é\"".to_owned()),
        Just("null".to_owned()),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let names = prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..4).prop_shuffle();
        let members = (names, prop::collection::vec(inner.clone(), 4));
        prop_oneof![
            1 => prop::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            3 => members.prop_map(|(names, values)| {
                let members = names.iter().zip(values).map(|(name, value)| format!("\"{name}\":{value}"));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

fn path() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "c", "e", "0", "1", "-"]);
    prop::collection::vec(token, 0..4)
        .prop_map(|tokens| tokens.iter().map(|token| format!("/{token}")).collect())
}

fn operation() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "add",
        "remove",
        "replace",
        "move",
        "copy",
        "increment",
    ]);
    (name, path(), path(), small()).prop_map(|(name, path, from, value)| {
        let value = if name == "increment" {
            "3".to_owned()
        } else {
            value
        };
        format!(r#"{{"op":"{name}","path":"{path}","from":"{from}","value":{value}}}"#)
    })
}

/// Every scalar and empty container with its path.
fn leaves(value: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for member in object.members() {
                leaves(
                    &member.value,
                    &format!("{path}/{}", member.key.as_str()),
                    found,
                );
            }
        }
        other => {
            found.insert(path.to_owned(), other.to_string());
        }
    }
}

fn leaves_of(value: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    leaves(value, "", &mut found);
    found
}

proptest! {
    #[test]
    fn any_document_comes_back_byte_for_byte(json in any_json()) {
        for text in styles(&json) {
            let document = document(&text);
            prop_assert_eq!(&document.to_text(), &text);
            prop_assert!(document.text_len() == text.len());
        }
    }

    #[test]
    fn any_bytes_are_a_document_or_an_error(bytes: Vec<u8>, text in "[\\[\\]{}:,\"0-9a-eEInNfy. \\\\-]{0,40}") {
        let _ = Document::parse(&bytes);
        if let Ok(document) = Document::parse(text.as_bytes()) {
            let again = super::document(&document.to_text());
            prop_assert!(again.value().is_identical(document.value()));
        }
    }

    #[test]
    fn adding_a_member_and_removing_it_leaves_any_text_as_it_was(json in any_json()) {
        for text in styles(&serde_json::json!({"kept": json, "n": 1})) {
            let added = patched(&text, r#"[{"op":"add","path":"/new","value":[1,{"x":"y"}]}]"#);
            prop_assert_eq!(patched(&added, r#"[{"op":"remove","path":"/new"}]"#), text.clone());
            let counted = patched(&text, r#"[{"op":"increment","path":"/n","value":41}]"#);
            let at = text.rfind('1').expect("the counter is last");
            prop_assert_eq!(counted, format!("{}42{}", &text[..at], &text[at + 1..]));
        }
    }

    #[test]
    fn a_patch_that_fails_or_is_taken_back_leaves_nothing(
        text in small(),
        operations in prop::collection::vec(operation(), 1..8),
    ) {
        let limits = Limits::default();
        let patch = format!("[{}]", operations.join(","));
        let value = serde_json::from_str(&text).expect("it is JSON");
        let texts = styles(&value).into_iter().chain([text.replace('é', "\\u00e9"), text]);
        if let Ok(patch) = Patch::parse(patch.as_bytes(), &limits) {
            for text in texts {
                let mut document = document(&text);
                let before = (document.to_text(), document.text_len());
                if let Ok(applied) = document.apply(&patch, &limits) {
                    let rest = super::document(&document.to_text());
                    prop_assert!(rest.value().is_identical(document.value()));
                    prop_assert_eq!(document.text_len(), document.to_text().len());
                    document.revert(applied.undo);
                }
                prop_assert_eq!((document.to_text(), document.text_len()), before);
            }
        }
    }

    #[test]
    fn a_document_in_memory_is_patched_to_the_same_values_as_one_that_was_written_and_read(
        text in small(),
        operations in prop::collection::vec(operation(), 2..6),
    ) {
        let limits = Limits::default();
        let value = serde_json::from_str(&text).expect("it is JSON");
        for text in styles(&value) {
            let mut kept = document(&text);
            for operation in &operations {
                let patch = Patch::parse(format!("[{operation}]").as_bytes(), &limits);
                let Ok(patch) = patch else { continue };
                let mut read = document(&kept.to_text());
                let (one, two) = (kept.apply(&patch, &limits), read.apply(&patch, &limits));
                prop_assert_eq!(one.is_ok(), two.is_ok());
                // Their texts may differ: one that was emptied remembers how it was laid out.
                prop_assert!(kept.value().is_identical(read.value()));
            }
        }
    }

    #[test]
    fn a_merge_patch_can_be_taken_back(text in small(), patch in small()) {
        let limits = Limits::default();
        let patch = MergePatch::parse(patch.as_bytes(), &limits).expect("it is JSON");
        let mut document = document(&text);
        let applied = document.apply_merge(&patch, &limits).expect("it is small");
        document.revert(applied.undo);
        prop_assert_eq!(document.to_text(), text);
    }

    #[test]
    fn one_sided_changes_are_taken_digit_for_digit(base in small(), changed in small(), counter in path()) {
        let counters = [counter.as_str(), "/*", "/*/*", ""];
        let mine = merged_three(&base, &changed, &base, &counters);
        prop_assert_eq!(mine, (changed.clone(), vec![]));
        let theirs = merged_three(&base, &base, &changed, &counters);
        prop_assert_eq!(theirs, (changed, vec![]));
    }

    #[test]
    fn merging_is_deterministic_and_without_conflict_both_changes_are_in(
        base in small(), mine in small(), theirs in small(),
    ) {
        let (text, conflicts) = merged_three(&base, &mine, &theirs, &[]);
        prop_assert_eq!(&merged_three(&base, &mine, &theirs, &[]), &(text.clone(), conflicts.clone()));
        let (other, others) = merged_three(&base, &theirs, &mine, &[]);
        prop_assert_eq!(conflicts.is_empty(), others.is_empty());
        if !conflicts.is_empty() {
            return Ok(());
        }
        let [base, mine, theirs, merged, other] =
            [&base, &mine, &theirs, &text, &other].map(|text| value(text));
        let scalars = |value: &Value| -> BTreeMap<String, Value> {
            let leaves = leaves_of(value).into_keys();
            leaves
                .filter_map(|path| Some((path.clone(), Pointer::parse(&path).ok()?.resolve(value).ok()?.clone())))
                .filter(|(_, value)| value.depth() == 0)
                .collect()
        };
        for side in [&mine, &theirs] {
            for (path, changed) in scalars(side) {
                let pointer = Pointer::parse(&path).expect("it was one");
                if pointer.resolve(&base) != Ok(&changed) {
                    prop_assert_eq!(pointer.resolve(&merged), Ok(&changed), "{}", path);
                }
            }
            for (path, _) in scalars(&base) {
                let pointer = Pointer::parse(&path).expect("it was one");
                if pointer.resolve(side).is_err() {
                    prop_assert!(pointer.resolve(&merged).is_err(), "{} is back", path);
                }
            }
        }
        let names = |value: &Value| leaves_of(value).into_keys().collect::<Vec<_>>();
        prop_assert_eq!(names(&merged), names(&other));
    }
}
