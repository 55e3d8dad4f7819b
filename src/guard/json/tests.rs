//! Half a document that passes for a whole one replaces the only good version; a whole one that
//! passes for half fails a program that works on the plain directory.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{
        Guard, PIECE,
        Verdict::{self, *},
        tests::{assert_incomplete, judged},
    },
    JsonLines, JsonStream,
};

fn lenient(content: impl AsRef<[u8]>) -> Verdict {
    judged(Guard::Json, content.as_ref())
}

fn strict(content: impl AsRef<[u8]>) -> Verdict {
    judged(Guard::JsonStrict, content.as_ref())
}

#[test]
fn whole_documents_are_complete_in_both_dialects() {
    for text in [
        "{}",
        "[]",
        " [ ] \r\n",
        "12",
        "-0",
        "0.5e-7",
        "1E+9",
        "\"\"",
        "true",
        "null\n",
        "[[[]],{}]",
        r#"{"a":[1,-2.5,{"b":null}],"":"\u00e9\\\"\/"}"#,
        "\"é 漢 \u{10FFFF}\"",
        "\"\\ud800\"",
    ] {
        assert_eq!(
            (lenient(text), strict(text)),
            (Complete, Complete),
            "{text}"
        );
    }
}

#[test]
fn what_programs_keep_in_json_files_is_complete_only_in_the_lenient_dialect() {
    let latin1 = b"{\"name\": \"Ren\xE9\"}";
    for text in [
        &b"\xEF\xBB\xBF{}"[..],
        b"[NaN, Infinity, -Infinity]",
        b"NaN",
        b"{} // done",
        b"/* ** / */ [1,/**/2] /*/*/",
        b"{\"a\":1//one\n}",
        b"[1,2,]",
        b"{\"a\":1,}",
        b"{}\n{}\n",
        b"{}{}[]",
        b"1 2\n3",
        b"12/* */13",
        b"\"a\"\"b\"",
        latin1,
        b"\"a\tb\"",
        b"\"C:\\data\"",
    ] {
        let shown = text.escape_ascii();
        assert_eq!(lenient(text), Complete, "{shown}");
        assert!(
            matches!(strict(text), Incomplete(_) | Malformed(_) | Foreign(_)),
            "{shown}"
        );
    }
}

#[test]
fn nothing_but_space_and_comments_is_empty() {
    for text in ["", " ", "\n\r\t \n"] {
        assert_eq!((lenient(text), strict(text)), (Empty, Empty));
    }
    assert_eq!(lenient("\u{FEFF}\n"), Empty);
    for text in ["// no value", "/* none */ \n", "// a\n// b\n"] {
        assert_eq!(lenient(text), Empty);
    }
}

#[test]
fn a_document_that_breaks_off_is_incomplete_and_says_where() {
    for (text, place) in [
        ("{\"a\": 1", "byte 7, in a number, with one bracket open"),
        ("{\"a\": [\"x", "byte 9, in a string, with 2 brackets open"),
        ("{\"a\": 1}\n{\"b\":", "byte 14, between values"),
        ("{\"a\": 1}{\"b\":", "byte 13"),
        ("[1,", "byte 3"),
        ("\"abc\\", "in a string"),
        ("-", "in a number"),
        ("1.", "in a number"),
        ("2e+", "in a number"),
        ("tru", "in a word"),
        ("{} nul", "in a word"),
        ("\u{FEFF}{", "byte 4"),
        ("{} /* x *", "in a comment"),
        ("/* no value", "in a comment"),
        ("/", "in a comment"),
    ] {
        assert_incomplete(lenient(text), place);
    }
    assert_incomplete(lenient(b"\xEF\xBB"), "byte 2, in a byte order mark");
    assert_incomplete(strict(b"\"\xE6\xBC"), "byte 3, in a string");
}

#[track_caller]
fn assert_malformed(verdict: Verdict, place: &str) {
    assert!(
        matches!(&verdict, Malformed(why) if why.contains(place)),
        "{verdict:?}, wanted {place:?}"
    );
}

#[test]
fn what_begins_as_json_and_goes_wrong_is_malformed_however_it_goes_on() {
    for (text, place) in [
        ("{\"a\": <garbage>", "byte 6 is '<', expected a JSON value"),
        ("{\"a\":1}xyz\"}", "byte 7 is 'x'"),
        ("[1,2]]", "byte 5 is ']'"),
        ("{\"a\":1]", "byte 6 is ']', expected ',' or '}'"),
        ("{\"a\" 1}", "byte 5 is '1', expected ':'"),
        ("[1 2]", "byte 3 is '2', expected ',' or ']'"),
        ("{\"a\":1,,}", "byte 7 is ','"),
        ("[] tame", "byte 4 is 'a', expected true"),
        ("1 2x", "byte 3 is 'x', expected space"),
        // JSON5, templates, ini files, logs.
        ("{'a': 1}", "byte 1 is"),
        ("{{ template }}", "byte 1 is '{'"),
        ("{% if %}", "byte 1"),
        ("{key: 1}", "byte 1"),
        ("[section]\n", "byte 1"),
        ("[[INFO] x]", "byte 3"),
        ("[,]", "byte 1"),
        ("{\"a\": ${b}, \"c\": [", "byte 6 is '$'"),
    ] {
        assert_malformed(lenient(text), place);
    }
    assert_malformed(
        strict("{} {}"),
        "byte 3 is '{', expected nothing behind the value",
    );
    assert_malformed(strict("[1,]"), "byte 3 is ']'");
}

#[test]
fn what_never_was_json_is_foreign() {
    for text in [
        "hello",
        "nothing here",
        "true-blue",
        "None",
        "2026-01-31 12:00 started",
        "12/5/2026",
        "-- a comment",
        "01",
        "<html>",
        "}",
        "# comment",
        "\u{1F}\u{8B}",
        "/usr/bin",
    ] {
        assert!(
            matches!(lenient(text), Foreign(_)),
            "{text}: {:?}",
            lenient(text)
        );
        assert!(
            matches!(strict(text), Foreign(_)),
            "{text}: {:?}",
            strict(text)
        );
    }
}

#[test]
fn nul_bytes_to_the_end_are_a_hole_that_was_never_written() {
    for text in [
        "\0\0",
        "{\0",
        "{}\0",
        "{\"a\":\"\0\0",
        "\"\\\0",
        "12\0",
        "// x\0",
        "/* *\0",
        "[1,\0\0",
        "t\0",
    ] {
        assert_incomplete(lenient(text), "it is NUL");
    }
    assert_incomplete(lenient(" \0"), "from byte 1");
    // Where something follows it is no end.
    assert_malformed(lenient("{\"a\0\":1}"), "byte 3 is NUL");
    assert_malformed(strict("[\"\0\0\"]"), "byte 2 is NUL");
    assert!(matches!(lenient("\0{}"), Foreign(_)));
}

#[test]
fn invalid_utf8_is_no_strict_json() {
    for bad in [
        &b"\x80"[..],
        b"\xC3",
        b"\xC0\xAF",
        b"\xE0\x80\x80",
        b"\xED\xA0\x80",
        b"\xF4\x90\x80\x80",
        b"\xF5\x80",
        b"\xE6\xBC",
        b"\xFF",
    ] {
        let text = [b"[\"", bad, b"\"]"].concat();
        assert!(std::str::from_utf8(&text).is_err());
        assert!(
            matches!(strict(&text), Malformed(_)),
            "{}",
            text.escape_ascii()
        );
        assert_eq!(lenient(&text), Complete);
    }
}

#[test]
fn a_million_brackets_cost_no_stack() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    assert_eq!(lenient(&deep), Complete);
    assert_incomplete(lenient(&deep[..deep.len() - 1]), "one bracket open");
    let wrong = deep.replace("[]", "[1 }");
    assert_malformed(lenient(wrong), "byte 1000002 is '}', expected ',' or ']'");
    let mixed = "[{\"a\":".repeat(100) + "[]" + &"}]".repeat(100);
    assert_eq!(strict(&mixed), Complete);
    for closed in 0..100 {
        // Every second bracket from behind is a brace, also where the stack goes to another word.
        let wrong = [&mixed[..602 + 2 * closed], "]"].concat();
        assert_malformed(strict(wrong), "is ']', expected ',' or '}'");
    }
}

#[test]
fn a_document_longer_than_a_piece_is_read_to_its_end() {
    let text = serde_json::to_vec(&vec!["twelve bytes"; 60_000]).expect("serializable");
    assert!(text.len() > 3 * PIECE);
    assert_eq!(lenient(&text), Complete);
    assert_incomplete(
        lenient(&text[..text.len() - 1]),
        &format!("byte {}", text.len() - 1),
    );
}

/// Text that is nearly JSON: whole tokens, broken ones and noise in any order.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"a\"",
        b"\"\\u00e9\\n\"",
        b"\"",
        b"\\",
        b"1",
        b"-2.5e+7",
        b"true",
        b"NaN",
        b"-Infinity",
        b" ",
        b"\n",
        b"// c\n",
        b"/* * */",
        b"/",
        b"*",
        b"\xEF\xBB\xBF",
        "é漢".as_bytes(),
        b"\xF4\x90",
        b"\0",
        b"\x01",
        b"x",
        b"\"key\":",
        b"[1,",
        b"{\"k\":",
        b"a long run of plain text, longer than a word",
    ];
    let piece = prop::sample::select(PIECES).prop_map(<[u8]>::to_vec);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn lines_and_their_verdict_depend_on_no_cut(text in nearly_json(), at: prop::sample::Index) {
        let at = at.index(text.len() + 1);
        let mut pieces = JsonLines::default();
        pieces.feed(&text[..at]);
        pieces.feed(&text[at..]);
        prop_assert_eq!(pieces.verdict(), lenient(&text));
        prop_assert_eq!((pieces.lines(), pieces.whole_lines()), lines_of(&text));
        if let Some(lines @ 1..) = pieces.whole_lines() {
            prop_assert_eq!(lines as usize, text.split(|byte| *byte == b'\n').count() - 1);
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                prop_assert_eq!(lenient(line), Complete);
            }
        }
    }

    #[test]
    fn where_the_pieces_are_cut_makes_no_difference(
        text in nearly_json(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        dialect: bool,
    ) {
        let mut whole = JsonStream::new(dialect);
        whole.feed(&text);
        let mut bounds: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        bounds.extend([0, text.len()]);
        bounds.sort_unstable();
        let mut pieces = JsonStream::new(dialect);
        let mut bytes = JsonStream::new(dialect);
        bounds.windows(2).for_each(|cut| pieces.feed(&text[cut[0]..cut[1]]));
        text.chunks(1).for_each(|byte| bytes.feed(byte));
        prop_assert_eq!(pieces.verdict(), whole.verdict());
        prop_assert_eq!(bytes.verdict(), whole.verdict());
        prop_assert_eq!(pieces.position(), text.len() as u64);
    }

    #[test]
    fn no_proper_prefix_of_a_document_passes_for_whole(value in value(), pretty: bool) {
        let value = if value.is_array() || value.is_object() { value } else { json!([value]) };
        let text = match pretty {
            false => serde_json::to_vec(&value),
            true => serde_json::to_vec_pretty(&value),
        };
        let text = text.expect("serializable");
        prop_assert_eq!((lenient(&text), strict(&text)), (Complete, Complete));
        for dialect in [false, true] {
            let mut stream = JsonStream::new(dialect);
            for byte in &text {
                prop_assert!(matches!(stream.verdict(), Incomplete(_) | Empty));
                stream.feed(&[*byte]);
            }
        }
    }

    #[test]
    fn the_strict_dialect_takes_what_serde_json_takes(text in nearly_json()) {
        // serde_json refuses lone surrogates and too large numbers, neither of which is generated
        // here.
        let parsed = serde_json::from_slice::<Value>(&text).is_ok();
        prop_assert_eq!(strict(&text) == Complete, parsed, "{}", text.escape_ascii());
    }

    #[test]
    fn what_is_strict_is_lenient(text in nearly_json()) {
        if strict(&text) == Complete {
            prop_assert_eq!(lenient(&text), Complete);
        }
    }
}

fn lines_of(text: &[u8]) -> (Option<u64>, Option<u64>) {
    let mut lines = JsonLines::default();
    lines.feed(text);
    (lines.lines(), lines.whole_lines())
}

#[test]
fn lines_of_json_are_told_from_documents() {
    for (text, lines, whole) in [
        ("", Some(0), Some(0)),
        ("{\"a\":1}", Some(0), None),
        ("{\"a\":1}\n", Some(1), Some(1)),
        ("{\"a\":1}\r\n[2]\n", Some(2), Some(2)),
        ("{\"a\":1}\n{\"b\":", Some(1), None),
        ("1\n-2.5\nnull\n\"x\"\n", Some(4), Some(4)),
        ("{\n", None, None),
        ("{\"a\":1}\n\n", None, None),
        ("{} {}\n", None, None),
        ("{}\nnot JSON\n", None, None),
        ("// a comment\n", None, None),
        ("[1,\n2]\n", None, None),
        ("\"a\nb\"\n", None, None),
    ] {
        assert_eq!(lines_of(text.as_bytes()), (lines, whole), "{text:?}");
    }
    let mut strict = JsonLines::new(true);
    strict.feed(b"1\n");
    assert_eq!(strict.lines(), None, "what is strict has no lines");
}

fn record(n: u32) -> Value {
    json!({
        "id": n,
        "name": format!("run-{n}"),
        "loss": f64::from(n) / 7.0,
        "tags": ["train", "été"],
        "done": n.is_multiple_of(2),
    })
}

/// `cargo test --release -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement, not a claim"]
fn speed() {
    let records: Vec<_> = (0..100_000).map(record).collect();
    let numbers: Vec<_> = (0..1_000_000).map(|n| f64::from(n) / 7.0).collect();
    let small: Vec<_> = (0..1_000_000).map(|n| n % 10).collect();
    let prose: Vec<_> = (0..20_000)
        .map(|n| {
            format!(
                "{n}: {}",
                "the quick brown fox \"jumps\" over it. ".repeat(20)
            )
        })
        .collect();
    for (name, text) in [
        ("records", serde_json::to_vec(&records)),
        ("records, indented", serde_json::to_vec_pretty(&records)),
        ("long numbers", serde_json::to_vec(&numbers)),
        ("one-digit numbers", serde_json::to_vec(&small)),
        ("prose", serde_json::to_vec(&prose)),
    ] {
        let text = text.expect("serializable");
        for dialect in [false, true] {
            let rounds = 10;
            let start = std::time::Instant::now();
            for _ in 0..rounds {
                let mut stream = JsonStream::new(dialect);
                text.chunks(PIECE).for_each(|piece| stream.feed(piece));
                assert_eq!(stream.verdict(), Complete);
            }
            let rate = (rounds * text.len()) as f64 / 1e6 / start.elapsed().as_secs_f64();
            println!("{name:<20} strict {dialect:<5} {rate:7.0} MB/s");
        }
    }
}
