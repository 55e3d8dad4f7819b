//! C17: what unmodified programs saved at the same time comes together.

use super::super::ConflictKind;
use super::*;

/// Base, mine, theirs, counters, the outcome, and the places of conflict.
type Case = (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // members
    (r#"{"a":1,"b":1}"#, r#"{"a":2,"b":1}"#, r#"{"a":1,"b":2}"#, &[], r#"{"a":2,"b":2}"#, &[]),
    (r#"{}"#, r#"{"m":1}"#, r#"{"t":1}"#, &[], r#"{"t":1,"m":1}"#, &[]),
    (r#"{"a":1}"#, r#"{"a":1,"m":1}"#, r#"{"a":1,"t":1}"#, &[], r#"{"a":1,"m":1,"t":1}"#, &[]),
    (r#"{"a":1,"b":1}"#, r#"{"a":1,"m":1,"b":1}"#, r#"{"b":1,"a":1}"#, &[], r#"{"b":1,"a":1,"m":1}"#, &[]),
    (r#"{"a":1,"b":2}"#, r#"{"b":2}"#, r#"{"a":1,"b":2,"c":3}"#, &[], r#"{"b":2,"c":3}"#, &[]),
    (r#"{"a":1,"b":2}"#, r#"{}"#, r#"{"b":2}"#, &[], r#"{}"#, &[]),
    (r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":2}"#, &[], r#"{"a":2}"#, &[]),
    (r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#, &[], r#"{"a":2}"#, &["/a"]),
    (r#"{"a":1}"#, r#"{}"#, r#"{"a":3}"#, &[], r#"{}"#, &["/a"]),
    (r#"{"a":1}"#, r#"{"a":2}"#, r#"{}"#, &[], r#"{"a":2}"#, &["/a"]),
    (r#"{"s":{"a":1,"b":1}}"#, r#"{"s":{"a":2,"b":1}}"#, r#"{"s":{"a":1,"b":3,"c":4}}"#, &[], r#"{"s":{"a":2,"b":3,"c":4}}"#, &[]),
    (r#"{}"#, r#"{"s":{"a":1}}"#, r#"{"s":{"b":1}}"#, &[], r#"{"s":{"b":1,"a":1}}"#, &[]),
    (r#"{"a/b":{"~":1}}"#, r#"{"a/b":{"~":2}}"#, r#"{"a/b":{"~":3}}"#, &[], r#"{"a/b":{"~":2}}"#, &["/a~1b/~0"]),
    (r#"1"#, r#"2"#, r#"3"#, &[], "2", &[""]),
    (r#"{"a":1}"#, r#"[1]"#, r#"{"a":2}"#, &[], "[1]", &[""]),
    // arrays
    ("[1]", "[1,2]", "[1,3]", &[], "[1,3,2]", &[]),
    ("[1]", "[1,2]", "[1,2]", &[], "[1,2,2]", &[]),
    ("[1,2]", "[2]", "[1,2,3]", &[], "[2]", &[""]),
    ("[1,2]", "[2]", "[2]", &[], "[2]", &[]),
    ("[1,2]", "[1,2]", "[2]", &[], "[2]", &[]),
    (r#"{}"#, r#"{"l":[1]}"#, r#"{"l":[2]}"#, &[], r#"{"l":[2,1]}"#, &[]),
    (r#"{}"#, r#"{"l":[0,1]}"#, r#"{"l":[0,2]}"#, &[], r#"{"l":[0,2,1]}"#, &[]),
    // counters
    (r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":8}"#, &["/n"], r#"{"n":9}"#, &[]),
    (r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":6}"#, &["/n"], r#"{"n":7}"#, &[]),
    (r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":8}"#, &["/m"], r#"{"n":6}"#, &["/n"]),
    (r#"{}"#, r#"{"n":1}"#, r#"{"n":1}"#, &["/n"], r#"{"n":2}"#, &[]),
    (r#"{"n":0.1}"#, r#"{"n":0.3}"#, r#"{"n":0.15}"#, &["/n"], r#"{"n":0.35}"#, &[]),
    (r#"{"n":0}"#, r#"{"n":18446744073709551615}"#, r#"{"n":1}"#, &["/n"], r#"{"n":18446744073709551615}"#, &["/n"]),
    (r#"{"n":18446744073709551615}"#, r#"{"n":18446744073709551613}"#, r#"{"n":18446744073709551614}"#, &["/n"], r#"{"n":18446744073709551612}"#, &[]),
    (r#"{"n":1}"#, r#"{"n":"x"}"#, r#"{"n":2}"#, &["/n"], r#"{"n":"x"}"#, &["/n"]),
    (r#"{"w":{"a":{"n":1},"b":{"n":1}}}"#, r#"{"w":{"a":{"n":2},"b":{"n":2}}}"#, r#"{"w":{"a":{"n":3},"b":{"n":1}}}"#, &["/w/*/n"], r#"{"w":{"a":{"n":4},"b":{"n":2}}}"#, &[]),
    (r#"{"l":[{"n":1},{"n":1}]}"#, r#"{"l":[{"n":2},{"n":1}]}"#, r#"{"l":[{"n":2},{"n":5},3]}"#, &["/l/*/n"], r#"{"l":[{"n":3},{"n":5},3]}"#, &[]),
    (r#"{"l":[{"n":1,"s":0}]}"#, r#"{"l":[{"n":2,"s":1}]}"#, r#"{"l":[{"n":2,"s":2}]}"#, &["/l/*/n"], r#"{"l":[{"n":2,"s":1}]}"#, &["/l"]),
    ("3", "4", "5", &[""], "6", &[]),
    // ways of writing
    (r#"{"a":1}"#, r#"{"a":1.0}"#, r#"{"a":2}"#, &[], r#"{"a":2}"#, &[]),
    (r#"{"a":1}"#, r#"{"a":3}"#, r#"{"a":1.0}"#, &[], r#"{"a":3}"#, &[]),
];

#[test]
fn both_changes_are_kept_or_mine_wins_and_the_conflict_is_named() {
    for (base, mine, theirs, counters, expected, places) in CASES {
        let (text, conflicts) = merged_three(base, mine, theirs, counters);
        assert_eq!(text, *expected, "{base} to {mine} and {theirs}");
        assert_eq!(conflicts, *places, "{base} to {mine} and {theirs}");
    }
}

#[test]
fn conflicts_say_their_kind() {
    let kind = |base, mine, theirs, counters: &[&str]| {
        let policy = Policy::new(counters).expect("they are pointers");
        let merged = merge(&value(base), &value(mine), &value(theirs), &policy);
        merged.conflicts[0].kind
    };
    let one = r#"{"a":1}"#;
    assert_eq!(
        kind(one, r#"{"a":2}"#, r#"{"a":3}"#, &[]),
        ConflictKind::BothChanged
    );
    assert_eq!(
        kind(one, "{}", r#"{"a":3}"#, &[]),
        ConflictKind::RemovedByMine
    );
    assert_eq!(
        kind(one, r#"{"a":3}"#, "{}", &[]),
        ConflictKind::RemovedByTheirs
    );
    assert_eq!(
        kind(one, r#"{"a":NaN}"#, r#"{"a":3}"#, &["/a"]),
        ConflictKind::Counter
    );
}

#[test]
fn the_merged_text_is_in_my_style() {
    let base = document("{\n  \"a\": \"\\u00e9\",\n  \"l\": []\n}\n");
    let theirs = document("{\"a\": \"\\u00e9\", \"l\": [{\"ü\": 1}], \"t\": \"\\u00fc\"}");
    let mine = document("{\n  \"a\": \"è\",\n  \"l\": [],\n  \"m\": 1\n}\n");
    let (merged, conflicts) = Document::merge(&base, &mine, &theirs, &Policy::default());
    assert_eq!(conflicts, []);
    assert_eq!(
        merged.to_text(),
        "{\n  \"a\": \"è\",\n  \"l\": [\n    {\n      \"ü\": 1\n    }\n  ],\n  \"m\": 1,\n  \"t\": \"ü\"\n}\n"
    );
}

#[test]
fn a_counter_that_is_no_pointer_is_refused() {
    Policy::new(&["n"]).expect_err("no slash");
}
