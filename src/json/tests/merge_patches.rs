//! C15: RFC 7396.

use super::super::PatchErrorKind;
use super::*;

#[test]
fn merge_patches_do_what_the_rfc_says() {
    let cases = [
        (r#"{"a":1,"b":2}"#, r#"{"a":3}"#, r#"{"a":3,"b":2}"#),
        (r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":1,"b":2}"#),
        (
            r#"{"a":1,"b":2,"c":3}"#,
            r#"{"a":null}"#,
            r#"{"b":2,"c":3}"#,
        ),
        (r#"{"a":1}"#, r#"{"x":null}"#, r#"{"a":1}"#),
        (
            r#"{"a":{"b":1,"c":2}}"#,
            r#"{"a":{"b":9,"c":null}}"#,
            r#"{"a":{"b":9}}"#,
        ),
        (r#"{"a":[1,2]}"#, r#"{"a":[null]}"#, r#"{"a":[null]}"#),
        (
            r#"{"a":[1]}"#,
            r#"{"a":{"b":null,"c":1}}"#,
            r#"{"a":{"c":1}}"#,
        ),
        (
            r#"{"a":1}"#,
            r#"{"n":{"x":null,"y":{"z":null}}}"#,
            r#"{"a":1,"n":{"y":{}}}"#,
        ),
        (r#"{"a":1}"#, "[1,null]", "[1,null]"),
        (r#"{"a":1}"#, "null", "null"),
        (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
        (r#"{"a":1}"#, "{}", r#"{"a":1}"#),
        (
            r#"{"\u0061":1,"é":2}"#,
            r#"{"a":3,"\u00e9":null}"#,
            r#"{"\u0061":3}"#,
        ),
        (r#"{"a":1.10}"#, r#"{"b":2.50}"#, r#"{"a":1.10,"b":2.50}"#),
    ];
    for (before, patch, after) in cases {
        let result = merged(before, patch);
        assert_eq!(value(&result).to_string(), after, "{patch} on {before}");
    }
}

#[test]
fn a_merge_patch_that_is_none_is_malformed() {
    let error = MergePatch::parse(b"{\"a\":", &Limits::default()).expect_err("half of one");
    assert_eq!(error.kind, PatchErrorKind::Malformed);
}

#[test]
fn a_merge_that_gets_too_large_or_deep_changes_nothing() {
    let limits = Limits {
        bytes: 40,
        ..Limits::default()
    };
    let text = "{\"a\":1,\"b\":2}";
    let mut document = document(text);
    let patch = MergePatch::parse(br#"{"a":null,"c":"0123456789012345678901"}"#, &limits);
    let patch = patch.expect("it is small enough itself");
    let tight = Limits {
        bytes: 30,
        ..limits
    };
    let error = document.apply_merge(&patch, &tight).expect_err("too large");
    assert_eq!(error.kind, PatchErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "merge failed: the result would exceed 30 bytes"
    );
    assert_eq!(document.to_text(), text);
}
