//! RFC 6901.

use super::super::{Pointer, PointerError};
use super::*;

fn at(text: &str, pointer: &str) -> Result<String, String> {
    let pointer = Pointer::parse(pointer).map_err(|error| error.to_string())?;
    let value = value(text);
    let found = pointer.resolve(&value).map_err(|error| error.to_string())?;
    Ok(found.to_string())
}

#[test]
fn a_pointer_leads_to_its_value() {
    let text = r#"{"":0,"a":[1,{"b":2}],"x/y":3,"m~n":4,"~1":5,"ä b":6,"\u00fc":7,"0":{"-":8}}"#;
    let cases = [
        ("/", "0"),
        ("/a", r#"[1,{"b":2}]"#),
        ("/a/0", "1"),
        ("/a/1/b", "2"),
        ("/x~1y", "3"),
        ("/m~0n", "4"),
        ("/~01", "5"),
        ("/ä b", "6"),
        ("/ü", "7"),
        ("/0/-", "8"),
    ];
    for (pointer, expected) in cases {
        assert_eq!(at(text, pointer).as_deref(), Ok(expected), "{pointer}");
    }
    assert_eq!(at("[1]", "").as_deref(), Ok("[1]"));
}

#[test]
fn a_pointer_that_leads_nowhere_says_where_it_ends() {
    let text = r#"{"a":[1,2],"b":{"c":"d"}}"#;
    let cases = [
        ("/x", "the document has no member \"x\""),
        ("/b/x/y", "/b has no member \"x\""),
        ("/a/2", "/a is an array of 2 and has no item 2"),
        ("/a/-", "/a is an array of 2 and has no item -"),
        ("/a/00", "/a is an array, and \"00\" is no position in it"),
        ("/a/01", "/a is an array, and \"01\" is no position in it"),
        ("/a/+1", "/a is an array, and \"+1\" is no position in it"),
        ("/a/", "/a is an array, and \"\" is no position in it"),
        ("/a/b", "/a is an array, and \"b\" is no position in it"),
        ("/b/c/0", "/b/c is a string, nothing is in it"),
        ("a", "the pointer \"a\" has to begin with '/'"),
        (
            "/~",
            "the pointer \"/~\" has a '~' that is neither '~0' nor '~1'",
        ),
        (
            "/~2",
            "the pointer \"/~2\" has a '~' that is neither '~0' nor '~1'",
        ),
    ];
    for (pointer, expected) in cases {
        assert_eq!(at(text, pointer), Err(expected.to_owned()), "{pointer}");
    }
    let huge = "/a/99999999999999999999999";
    at(text, huge).expect_err("beyond every array");
}

#[test]
fn a_pointer_is_written_as_it_is_read() {
    for text in ["", "/", "/a/b", "/~0~1/~01", "//", "/ä/0/-"] {
        let pointer = Pointer::parse(text).expect("it is one");
        assert_eq!(pointer.to_string(), text);
    }
    let error = Pointer::parse("x").expect_err("it is none");
    assert_eq!(error, PointerError::NoSlash("x".into()));
}
