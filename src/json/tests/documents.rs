//! What is a document, and what is wrong with others.

use super::super::{JsonError, Limits, MAX_DEPTH, Place};
use super::*;

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn an_empty_file_is_an_empty_object() {
    for text in ["", " ", "\n\n", "\u{FEFF}"] {
        assert_eq!(value(text), value("{}"), "{text:?}");
    }
    assert_eq!(
        patched("", r#"[{"op":"increment","path":"/runs","value":1}]"#),
        "{\"runs\": 1}\n"
    );
}

#[test]
fn what_cannot_be_edited_is_refused_by_place_and_name() {
    let cases: [(&[u8], &str); 16] = [
        (b"{\"a\":\n \"\xFF\"}", "not UTF-8 at byte 8 (line 2)"),
        (
            b"{\"a\": 1,\n\"a\": 2}",
            "the member \"a\" is there twice, again at byte 9 (line 2); an edit would lose one",
        ),
        (
            b"{\"\\u0061\":1,\"a\":2}",
            "the member \"a\" is there twice, again at byte 12 (line 1); an edit would lose one",
        ),
        (
            b"{\n// why\n}",
            "a comment at byte 2 (line 2); an edit would lose it",
        ),
        (
            b"[1 /* one */]",
            "a comment at byte 3 (line 1); an edit would lose it",
        ),
        (
            b"{}\n{}\n",
            "a second value at byte 3 (line 2); only a single document can be edited",
        ),
        (
            b"1 2",
            "a second value at byte 2 (line 1); only a single document can be edited",
        ),
        (
            b"{} x",
            "byte 3 (line 1) is 'x', expected the end of the document",
        ),
        (b"[1,]", "byte 3 (line 1) is ']', expected a JSON value"),
        (b"{\"a\" 1}", "byte 5 (line 1) is '1', expected ':'"),
        (
            b"{\"a\":1",
            "byte 6 (line 1) is the end, expected ',' or '}'",
        ),
        (
            b"{1:1}",
            "byte 1 (line 1) is '1', expected a name in double quotes",
        ),
        (b"[01]", "byte 2 (line 1) is '1', expected ',' or ']'"),
        (
            b"\"a\tb\"",
            "byte 2 (line 1) is 0x09, expected the rest of a string",
        ),
        (b"\"\\x\"", "byte 2 (line 1) is 'x', expected an escape"),
        (
            b"\"\\u12\"",
            "byte 5 (line 1) is '\"', expected a hexadecimal digit",
        ),
    ];
    for (bytes, message) in cases {
        assert_eq!(error_of(bytes).to_string(), message, "{bytes:?}");
    }
}

#[test]
fn half_a_document_is_refused_wherever_it_was_cut() {
    let text = r#"{"a": [1, -2.5e+3, "x\n\u00e9"], "b": {"c": null, "d": [true, false]}}"#;
    for end in 1..text.len() {
        error_of(&text.as_bytes()[..end]);
    }
}

#[test]
fn nesting_is_bounded_in_documents_and_in_what_is_added() {
    document(&nested(MAX_DEPTH));
    let place = Place {
        offset: MAX_DEPTH,
        line: 1,
    };
    let error = error_of(nested(MAX_DEPTH + 1).as_bytes());
    assert_eq!(error, JsonError::TooDeep(place));
    error_of("[".repeat(1_000_000).as_bytes());
    error_of("{\"a\":".repeat(1_000_000).as_bytes());

    let add = |depth| {
        let value = nested(depth);
        try_patch(
            "{}",
            &format!(r#"[{{"op":"add","path":"/a","value":{value}}}]"#),
        )
    };
    add(MAX_DEPTH - 2).expect("the patch itself takes two levels");
    let deep = nested(MAX_DEPTH);
    let copy = r#"[{"op":"copy","from":"/0","path":"/0/0"}]"#;
    let error = try_patch(&deep, copy).expect_err("one too deep");
    assert_eq!(
        error.to_string(),
        "operation 1: copy failed at /0/0: the result would be nested deeper than 512"
    );
    let shift = r#"[{"op":"move","from":"/0","path":"/1/0/0"}]"#;
    try_patch(&format!("[{deep_one},[[]]]", deep_one = nested(511)), shift)
        .expect_err("the target is gone or too deep");
}

#[test]
fn the_deepest_document_is_written_compared_and_cloned() {
    let text = format!("{}1{}", "{\"a\": [".repeat(256), "]}".repeat(256));
    let deep = document(&text);
    assert_eq!(deep.to_text(), text);
    assert_eq!(deep.clone().value(), deep.value());
    assert!(deep.value().is_identical(deep.value()));
    assert_eq!(deep.value().depth(), 512);
}

#[test]
fn a_document_beyond_the_limit_is_refused() {
    let limits = Limits {
        bytes: 10,
        ..Limits::default()
    };
    let parse = |text: &str| Document::parse_within(text.as_bytes(), &limits);
    parse("[12345678]").expect("just so");
    let error = parse("[123456789]").expect_err("one more");
    assert_eq!(
        error.to_string(),
        "11 bytes are more than the 10 that can be edited"
    );
}

#[test]
fn members_are_found_in_large_objects_too() {
    let members: Vec<String> = (0..1000).map(|n| format!("\"k{n}\":{n}")).collect();
    let text = format!("{{{}}}", members.join(","));
    let Value::Object(object) = value(&text) else {
        panic!("it is an object")
    };
    assert_eq!(object.get("k777"), Some(&value("777")));
    assert_eq!(object.get("k1000"), None);
    error_of(text.replace("\"k999\"", "\"k0\"").as_bytes());
}

#[test]
fn strings_are_equal_by_what_they_say() {
    assert_eq!(
        value(r#""\u00e9\ud83d\ude00\/\n""#),
        value("\"é😀/\\u000a\"")
    );
    assert_ne!(value(r#""\ud800""#), value(r#""\ud801""#));
    assert_eq!(value(r#"{"\u0061":1,"b":2}"#), value(r#"{"b":2,"a":1}"#));
}
