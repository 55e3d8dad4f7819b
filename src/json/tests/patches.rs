//! C15: RFC 6902, operation by operation and error by error, and `increment`.

use super::super::{PatchErrorKind, Pointer};
use super::*;

#[test]
fn operations_do_what_the_rfc_says() {
    let cases = [
        // add
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/b","value":2}]"#,
            r#"{"a":1,"b":2}"#,
        ),
        (
            r#"{"a":1,"b":2}"#,
            r#"[{"op":"add","path":"/a","value":[3]}]"#,
            r#"{"a":[3],"b":2}"#,
        ),
        (
            r#"[1,3]"#,
            r#"[{"op":"add","path":"/1","value":2}]"#,
            "[1,2,3]",
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"add","path":"/2","value":3}]"#,
            "[1,2,3]",
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"add","path":"/-","value":3}]"#,
            "[1,2,3]",
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"add","path":"/-","value":[3,4]}]"#,
            "[1,2,[3,4]]",
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"","value":"x"}]"#,
            r#""x""#,
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/","value":2}]"#,
            r#"{"a":1,"":2}"#,
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/x~1y~0","value":2}]"#,
            r#"{"a":1,"x/y~":2}"#,
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/-","value":2}]"#,
            r#"{"a":1,"-":2}"#,
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/a","value":null}]"#,
            r#"{"a":null}"#,
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"add","path":"/b","value":2,"why":"unknown"}]"#,
            r#"{"a":1,"b":2}"#,
        ),
        // remove
        (
            r#"{"a":1,"b":2,"c":3}"#,
            r#"[{"op":"remove","path":"/a"}]"#,
            r#"{"b":2,"c":3}"#,
        ),
        (r#"[1,2,3]"#, r#"[{"op":"remove","path":"/1"}]"#, "[1,3]"),
        (r#"{"a":null}"#, r#"[{"op":"remove","path":"/a"}]"#, "{}"),
        (r#"{"a":1}"#, r#"[{"op":"remove","path":""}]"#, "null"),
        (
            r#"{"a":1}"#,
            r#"[{"op":"remove","path":""},{"op":"add","path":"","value":[]}]"#,
            "[]",
        ),
        // replace
        (
            r#"{"a":1,"b":2}"#,
            r#"[{"op":"replace","path":"/a","value":{}}]"#,
            r#"{"a":{},"b":2}"#,
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"replace","path":"/0","value":"x"}]"#,
            r#"["x",2]"#,
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"replace","path":"","value":1.0}]"#,
            "1.0",
        ),
        // move
        (
            r#"{"a":{"b":1},"c":{}}"#,
            r#"[{"op":"move","from":"/a/b","path":"/c/d"}]"#,
            r#"{"a":{},"c":{"d":1}}"#,
        ),
        (
            r#"[1,2,3,4]"#,
            r#"[{"op":"move","from":"/1","path":"/3"}]"#,
            "[1,3,4,2]",
        ),
        (
            r#"[1,2,3]"#,
            r#"[{"op":"move","from":"/0","path":"/-"}]"#,
            "[2,3,1]",
        ),
        (
            r#"{"a":1,"b":2,"c":3}"#,
            r#"[{"op":"move","from":"/a","path":"/b"}]"#,
            r#"{"b":1,"c":3}"#,
        ),
        (
            r#"{"a":1,"b":2}"#,
            r#"[{"op":"move","from":"/a","path":"/a"}]"#,
            r#"{"a":1,"b":2}"#,
        ),
        (
            r#"{"a":{"b":1}}"#,
            r#"[{"op":"move","from":"/a/b","path":""}]"#,
            "1",
        ),
        (
            r#"{"a":{"b":1}}"#,
            r#"[{"op":"move","from":"/a/b","path":"/a"}]"#,
            r#"{"a":1}"#,
        ),
        (r#"[1]"#, r#"[{"op":"move","from":"","path":""}]"#, "[1]"),
        // copy
        (
            r#"{"a":[1]}"#,
            r#"[{"op":"copy","from":"/a","path":"/b"}]"#,
            r#"{"a":[1],"b":[1]}"#,
        ),
        (
            r#"{"a":[1]}"#,
            r#"[{"op":"copy","from":"","path":"/b"}]"#,
            r#"{"a":[1],"b":{"a":[1]}}"#,
        ),
        (
            r#"[1,2]"#,
            r#"[{"op":"copy","from":"/1","path":"/0"}]"#,
            "[2,1,2]",
        ),
        (
            r#"{"a":1}"#,
            r#"[{"op":"copy","from":"/a","path":""}]"#,
            "1",
        ),
        // test
        (
            r#"{"a":{"x":[1,"é"],"y":null}}"#,
            r#"[{"op":"test","path":"/a","value":{"y":null,"x":[1.0,"\u00e9"]}}]"#,
            r#"{"a":{"x":[1,"é"],"y":null}}"#,
        ),
        (
            r#"[100]"#,
            r#"[{"op":"test","path":"/0","value":1e2}]"#,
            "[100]",
        ),
        (
            r#"[true]"#,
            r#"[{"op":"test","path":"","value":[true]}]"#,
            "[true]",
        ),
        (
            r#"[NaN]"#,
            r#"[{"op":"test","path":"/0","value":NaN}]"#,
            "[NaN]",
        ),
        // increment
        (
            r#"{"a":1,"b":2}"#,
            r#"[{"op":"increment","path":"/a","value":2}]"#,
            r#"{"a":3,"b":2}"#,
        ),
        (
            r#"{}"#,
            r#"[{"op":"increment","path":"/a","value":-0.5}]"#,
            r#"{"a": -0.5}"#,
        ),
        (
            r#"[1]"#,
            r#"[{"op":"increment","path":"/0","value":-2}]"#,
            "[-1]",
        ),
        (r#"41"#, r#"[{"op":"increment","path":"","value":1}]"#, "42"),
        // several, and none
        (r#"{}"#, "[]", "{}"),
        (
            r#"{"a":1}"#,
            r#"[{"op":"test","path":"/a","value":1},{"op":"remove","path":"/a"},{"op":"add","path":"/a","value":2}]"#,
            r#"{"a":2}"#,
        ),
    ];
    for (before, patch, after) in cases {
        assert_eq!(patched(before, patch), after, "{patch} on {before}");
    }
}

#[test]
fn what_cannot_be_done_changes_nothing_and_says_why() {
    use PatchErrorKind::*;
    let cases = [
        (
            r#"{"op":"add","path":"/a/b/c","value":1}"#,
            MissingPath,
            "add failed at /a/b/c: /a has no member \"b\"",
        ),
        (
            r#"{"op":"add","path":"/l/3","value":1}"#,
            MissingPath,
            "add failed at /l/3: /l is an array of 2 and has no item 3",
        ),
        (
            r#"{"op":"add","path":"/l/01","value":1}"#,
            MissingPath,
            "add failed at /l/01: /l is an array, and \"01\" is no position in it",
        ),
        (
            r#"{"op":"add","path":"/l/x","value":1}"#,
            MissingPath,
            "add failed at /l/x: /l is an array, and \"x\" is no position in it",
        ),
        (
            r#"{"op":"add","path":"/s/x","value":1}"#,
            MissingPath,
            "add failed at /s/x: /s is a string, nothing is in it",
        ),
        (
            r#"{"op":"remove","path":"/x"}"#,
            MissingPath,
            "remove failed at /x: the document has no member \"x\"",
        ),
        (
            r#"{"op":"remove","path":"/l/2"}"#,
            MissingPath,
            "remove failed at /l/2: /l is an array of 2 and has no item 2",
        ),
        (
            r#"{"op":"remove","path":"/l/-"}"#,
            MissingPath,
            "remove failed at /l/-: /l is an array of 2 and has no item -",
        ),
        (
            r#"{"op":"replace","path":"/x","value":1}"#,
            MissingPath,
            "replace failed at /x: the document has no member \"x\"",
        ),
        (
            r#"{"op":"replace","path":"/l/-","value":1}"#,
            MissingPath,
            "replace failed at /l/-: /l is an array of 2 and has no item -",
        ),
        (
            r#"{"op":"move","from":"/x","path":"/y"}"#,
            MissingPath,
            "move failed at /y: the document has no member \"x\"",
        ),
        (
            r#"{"op":"move","from":"/x","path":"/x"}"#,
            MissingPath,
            "move failed at /x: the document has no member \"x\"",
        ),
        (
            r#"{"op":"move","from":"/l","path":"/x/y"}"#,
            MissingPath,
            "move failed at /x/y: the document has no member \"x\"",
        ),
        (
            r#"{"op":"move","from":"/l/0","path":"/l/2"}"#,
            MissingPath,
            "move failed at /l/2: /l is an array of 1 and has no item 2",
        ),
        (
            r#"{"op":"copy","from":"/x","path":"/y"}"#,
            MissingPath,
            "copy failed at /y: the document has no member \"x\"",
        ),
        (
            r#"{"op":"copy","from":"/l","path":"/x/y"}"#,
            MissingPath,
            "copy failed at /x/y: the document has no member \"x\"",
        ),
        (
            r#"{"op":"test","path":"/x","value":1}"#,
            MissingPath,
            "test failed at /x: the document has no member \"x\"",
        ),
        (
            r#"{"op":"test","path":"/n","value":2}"#,
            TestFailed,
            "test failed at /n: expected 2, found 1",
        ),
        (
            r#"{"op":"test","path":"/n","value":"1"}"#,
            TestFailed,
            "test failed at /n: expected \"1\", found 1",
        ),
        (
            r#"{"op":"test","path":"/n","value":true}"#,
            TestFailed,
            "test failed at /n: expected true, found 1",
        ),
        (
            r#"{"op":"test","path":"/l","value":[2,1]}"#,
            TestFailed,
            "test failed at /l: expected an array of 2, found an array of 2",
        ),
        (
            r#"{"op":"test","path":"","value":null}"#,
            TestFailed,
            "test failed at the document: expected null, found an object of 6",
        ),
        (
            r#"{"op":"test","path":"/big","value":18446744073709551614}"#,
            TestFailed,
            "test failed at /big: expected 18446744073709551614, found 18446744073709551615",
        ),
        (
            r#"{"op":"increment","path":"/s","value":1}"#,
            WrongType,
            "increment failed at /s: \"text\" is no number",
        ),
        (
            r#"{"op":"increment","path":"/x/y","value":1}"#,
            MissingPath,
            "increment failed at /x/y: the document has no member \"x\"",
        ),
        (
            r#"{"op":"increment","path":"/l/2","value":1}"#,
            MissingPath,
            "increment failed at /l/2: /l is an array of 2 and has no item 2",
        ),
        (
            r#"{"op":"increment","path":"/l/-","value":1}"#,
            MissingPath,
            "increment failed at /l/-: /l is an array of 2 and has no item -",
        ),
        (
            r#"{"op":"increment","path":"/big","value":1}"#,
            OutOfRange,
            "increment failed at /big: 18446744073709551616 is beyond the 64-bit integers",
        ),
        (
            r#"{"op":"increment","path":"/a/nan","value":1}"#,
            WrongType,
            "increment failed at /a/nan: NaN is no number to calculate with",
        ),
    ];
    let text =
        r#"{"n":1,"l":[1,2],"s":"text","a":{"nan":NaN,"z":0},"big":18446744073709551615,"o":{}}"#;
    let first = r#"{"op":"remove","path":"/a/z"},{"op":"move","from":"/o","path":"/l/0"},{"op":"move","from":"/l/0","path":"/o"},{"op":"add","path":"/n","value":1}"#;
    for (operation, kind, message) in cases {
        let error = try_patch(text, &format!("[{first},{operation}]")).expect_err(operation);
        assert_eq!(error.to_string(), format!("operation 5: {message}"));
        assert_eq!((error.kind, error.operation), (kind, Some(5)));
    }
}

#[test]
fn a_malformed_patch_is_refused_before_anything_is_done() {
    let cases = [
        ("", "not JSON: empty"),
        (
            "{",
            "not JSON: byte 1 (line 1) is the end, expected a name in double quotes",
        ),
        ("{}", "a patch is an array of operations, not an object"),
        ("[1]", "operation 1: it is a number, not an object"),
        ("[{}]", "operation 1: it has no member \"op\""),
        (
            r#"[{"op":1,"path":""}]"#,
            "operation 1: its \"op\" is a number, not a string",
        ),
        (
            r#"[{"op":"spam","path":""}]"#,
            "operation 1: there is no operation \"spam\"",
        ),
        (
            r#"[{"op":"Add","path":"","value":1}]"#,
            "operation 1: there is no operation \"Add\"",
        ),
        (
            r#"[{"op":"remove"}]"#,
            "operation 1: it has no member \"path\"",
        ),
        (
            r#"[{"op":"remove","path":null}]"#,
            "operation 1: its \"path\" is null, not a string",
        ),
        (
            r#"[{"op":"remove","path":"a"}]"#,
            "operation 1: the pointer \"a\" has to begin with '/'",
        ),
        (
            r#"[{"op":"add","path":"/a"}]"#,
            "operation 1: it has no member \"value\"",
        ),
        (
            r#"[{"op":"replace","path":"/a"}]"#,
            "operation 1: it has no member \"value\"",
        ),
        (
            r#"[{"op":"test","path":"/a"}]"#,
            "operation 1: it has no member \"value\"",
        ),
        (
            r#"[{"op":"increment","path":"/a"}]"#,
            "operation 1: it has no member \"value\"",
        ),
        (
            r#"[{"op":"increment","path":"/a","value":"1"}]"#,
            "operation 1: it increments by \"1\", which is no finite number",
        ),
        (
            r#"[{"op":"increment","path":"/a","value":NaN}]"#,
            "operation 1: it increments by NaN, which is no finite number",
        ),
        (
            r#"[{"op":"copy","path":"/a"}]"#,
            "operation 1: it has no member \"from\"",
        ),
        (
            r#"[{"op":"move","path":"/a","from":"a"}]"#,
            "operation 1: the pointer \"a\" has to begin with '/'",
        ),
        (
            r#"[{"op":"move","path":"/a/b","from":"/a"}]"#,
            "operation 1: \"/a\" can't move into itself",
        ),
        (
            r#"[{"op":"move","path":"/a","from":""}]"#,
            "operation 1: \"\" can't move into itself",
        ),
        (
            r#"[{"op":"test","path":"","value":{}},{"op":"remove"}]"#,
            "operation 2: it has no member \"path\"",
        ),
    ];
    for (patch, message) in cases {
        let error = try_patch("{}", patch).expect_err(patch);
        assert_eq!(error.to_string(), message);
        assert_eq!(error.kind, PatchErrorKind::Malformed, "{patch}");
    }
    let twice = r#"[{"op":"add","path":"/a","path":"/b","value":1}]"#;
    let error = try_patch("{}", twice).expect_err("which path?");
    assert_eq!(error.kind, PatchErrorKind::Malformed);
}

#[test]
fn a_patch_beyond_a_limit_is_refused() {
    let limits = Limits {
        bytes: 1000,
        operations: 3,
    };
    let parse = |text: &str| Patch::parse(text.as_bytes(), &limits);
    let operation = r#"{"op":"remove","path":""}"#;
    parse(&format!("[{operation},{operation},{operation}]")).expect("just so");
    let error = parse(&format!(
        "[{operation},{operation},{operation},{operation}]"
    ));
    let error = error.expect_err("one more");
    assert_eq!(error.kind, PatchErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "4 operations are more than the 3 allowed"
    );
    let error = parse(&format!("[{}]", " ".repeat(1000))).expect_err("too long");
    assert_eq!(error.kind, PatchErrorKind::TooLarge);
}

#[test]
fn a_document_that_copies_itself_is_stopped_before_it_fills_the_memory() {
    let operations: Vec<String> = (0..60)
        .map(|n| format!(r#"{{"op":"copy","from":"","path":"/{n}"}}"#))
        .collect();
    let error = try_patch("{\"a\": \"x\"}", &format!("[{}]", operations.join(",")));
    let error = error.expect_err("2 to the 60th is too much");
    assert_eq!(error.kind, PatchErrorKind::TooLarge);
    let large = format!("[\"{}\"]", "x".repeat(1 << 20));
    let copying = r#"{"op":"copy","from":"/0","path":"/1"},{"op":"remove","path":"/1"}"#;
    let error = try_patch(&large, &format!("[{}]", vec![copying; 300].join(",")));
    let error = error.expect_err("it doesn't grow, but never ends");
    assert_eq!(error.kind, PatchErrorKind::TooLarge);
}

#[test]
fn a_patch_says_where_its_last_value_is_and_can_be_taken_back() {
    let limits = Limits::default();
    let patch = r#"[{"op":"remove","path":"/a"},{"op":"move","from":"/b","path":"/l/-"}]"#;
    let patch = Patch::parse(patch.as_bytes(), &limits).expect("it is one");
    let text = "{\"a\": 1, \"b\": {\"c\": 2}, \"l\": [0]}";
    let mut document = document(text);
    let applied = document.apply(&patch, &limits).expect("it fits");
    assert_eq!(document.to_text(), "{\"l\": [0, {\"c\": 2}]}");
    assert_eq!(applied.target, Pointer::parse("/l/1").ok());
    assert!(applied.changed);
    document.revert(applied.undo);
    assert_eq!(document.to_text(), text);

    let test = Patch::parse(br#"[{"op":"test","path":"/a","value":1}]"#, &limits);
    let applied = document.apply(&test.expect("it is one"), &limits);
    assert!(!applied.expect("it is 1").changed);
}

#[test]
fn members_that_come_and_go_leave_no_trace() {
    let limits = Limits::default();
    let mut document = document("{\"first\":0,\"last\":0}");
    for round in 0..500 {
        let patch = format!(
            r#"[{{"op":"add","path":"/k{round}","value":1}},{{"op":"test","path":"/first","value":0}},{{"op":"remove","path":"/k{round}"}}]"#
        );
        let patch = Patch::parse(patch.as_bytes(), &limits).expect("it is one");
        let applied = document.apply(&patch, &limits).expect("it fits");
        if round % 3 == 0 {
            document.revert(applied.undo);
        }
    }
    assert_eq!(document.to_text(), "{\"first\":0,\"last\":0}");
    assert_eq!(
        document.text_len(),
        super::document("{\"first\":0,\"last\":0}").text_len()
    );
}
