//! C16: what is not touched stays as it was written.

use super::*;

/// One document as several programs write it.
const WRITTEN: &[(&str, &str)] = &[
    (
        "json.dump",
        "{\"a\": 1, \"b\": [1, 2.50, {}], \"c\": {\"d\": null}}",
    ),
    (
        "json.dump, indent=2",
        "{\n  \"a\": 1,\n  \"b\": [\n    1,\n    [],\n    {}\n  ]\n}",
    ),
    (
        "json.dump, indent=4",
        "{\n    \"a\": {\n        \"b\": true\n    }\n}",
    ),
    ("json.dump, indent=0", "{\n\"a\": [\n1,\n2\n]\n}"),
    (
        "json.dump, indent=\\t",
        "{\n\t\"a\": [\n\t\t1,\n\t\t2\n\t]\n}",
    ),
    ("json.dump, separators=(',', ':')", "{\"a\":1,\"b\":[1,2]}"),
    (
        "json.dump, separators=(', ', ' : ')",
        "{\"a\" : 1, \"b\" : 2}",
    ),
    (
        "json.dump, indent and wide separators",
        "{\n \"a\": 1, \n \"b\": 2\n}",
    ),
    (
        "json.dump, ensure_ascii",
        "{\"caf\\u00e9\": \"\\ud83d\\ude00 \\u007f\\u001b\"}",
    ),
    ("json.dump, ensure_ascii=False", "{\"café\": \"😀\\u001b\"}"),
    ("json.dump, NaN", "[NaN, Infinity, -Infinity]"),
    ("json.dump, a lone surrogate", "[\"\\udc80\"]"),
    ("JSON.stringify", "{\"a\":\"/\",\"b\":[]}"),
    (
        "JSON.stringify, 2",
        "[\n  {\n    \"a\": 1\n  },\n  \"x\"\n]",
    ),
    ("jq", "{\n  \"a\": [],\n  \"b\": \"é\"\n}\n"),
    ("jq --tab", "{\n\t\"a\": 1\n}\n"),
    ("php", "{\"a\":\"http:\\/\\/x\"}"),
    (
        "an editor on Windows",
        "\u{FEFF}{\r\n  \"a\": [\r\n    1\r\n  ]\r\n}\r\n",
    ),
    (
        "prettier",
        "{\n  \"a\": [1, 2, 3],\n  \"b\": { \"c\": 1 },\n  \"d\": {}\n}\n",
    ),
    (
        "objects between brackets",
        "[{\n  \"a\": 1\n}, {\n  \"a\": 2\n}]\n",
    ),
    ("one record a line", "[\n{\"a\":1},\n{\"a\":2}\n]\n"),
    ("a number", "1e400"),
    ("a string", " \"x\" \n"),
    (
        "numbers",
        "[18446744073709551615, 99999999999999999999, 1.10, -0.0, 1E+2, 0.1e-7]",
    ),
];

#[test]
fn what_programs_write_comes_back_byte_for_byte() {
    for (program, text) in WRITTEN {
        assert_eq!(&document(text).to_text(), text, "{program}");
    }
}

#[test]
fn the_length_of_a_text_is_known() {
    for (program, text) in WRITTEN {
        let document = document(text);
        assert!(document.text_len() == document.to_text().len(), "{program}");
    }
}

#[test]
fn a_patch_changes_nothing_but_what_it_says() {
    for (program, text) in WRITTEN.iter().filter(|(_, text)| text.contains("\"a\"")) {
        let Some(at) = text.find("1") else { continue };
        let path = if text.trim_start_matches('\u{FEFF}').starts_with('[') {
            "/0/a"
        } else if text.contains("\"a\": [\n")
            || text.contains("\"a\": [\r")
            || text.contains("\"a\": [1")
        {
            "/a/0"
        } else {
            "/a"
        };
        let patch = format!(r#"[{{"op":"replace","path":"{path}","value":777}}]"#);
        let expected = format!("{}777{}", &text[..at], &text[at + 1..]);
        if !text.contains("true") {
            assert_eq!(patched(text, &patch), expected, "{program}");
        }
    }
}

#[test]
fn what_is_added_looks_like_what_is_there() {
    let add = r#"[{"op":"add","path":"/z","value":{"é":[1,{}]}}]"#;
    let cases = [
        ("{\"a\": 1}", "{\"a\": 1, \"z\": {\"é\": [1, {}]}}"),
        ("{\"a\":1}", "{\"a\":1,\"z\":{\"é\":[1,{}]}}"),
        ("{}", "{\"z\": {\"é\": [1, {}]}}"),
        (
            "{\n  \"a\": 1\n}\n",
            "{\n  \"a\": 1,\n  \"z\": {\n    \"é\": [\n      1,\n      {}\n    ]\n  }\n}\n",
        ),
        (
            "{\n  \"a\": [1, 2]\n}",
            "{\n  \"a\": [1, 2],\n  \"z\": {\"é\": [1, {}]}\n}",
        ),
        (
            "{\"a\": \"\\u00fc\"}",
            "{\"a\": \"\\u00fc\", \"z\": {\"\\u00e9\": [1, {}]}}",
        ),
        ("{\"a\": \"ü\"}", "{\"a\": \"ü\", \"z\": {\"é\": [1, {}]}}"),
        (
            "{\"a\":1, \"b\": 2}",
            "{\"a\":1, \"b\":2, \"z\":{\"é\":[1, {}]}}",
        ),
    ];
    for (before, after) in cases {
        assert_eq!(patched(before, add), after, "{before}");
    }
}

#[test]
fn an_emptied_container_stays_itself() {
    let text = "{\n  \"a\": [\n    1\n  ]\n}";
    let emptied = patched(text, r#"[{"op":"remove","path":"/a/0"}]"#);
    assert_eq!(emptied, "{\n  \"a\": []\n}");
    let filled = patched(&emptied, r#"[{"op":"add","path":"/a/-","value":1}]"#);
    assert_eq!(filled, text);
}

#[test]
fn other_numbers_keep_their_digits() {
    let text = "{\"n\": 1, \"id\": 123456789012345678901234567890, \"x\": 1.10, \"big\": 1e400, \"nan\": NaN}";
    let patch = r#"[{"op":"increment","path":"/n","value":1}]"#;
    assert_eq!(patched(text, patch), text.replace("\"n\": 1", "\"n\": 2"));
}

#[test]
fn a_megabyte_is_edited_in_one_place() {
    let item = "    {\n      \"name\": \"caf\\u00e9\",\n      \"loss\": 0.10\n    }";
    let items = vec![item; 20_000].join(",\n");
    let text = format!("{{\n  \"step\": 1,\n  \"items\": [\n{items}\n  ]\n}}\n");
    assert!(text.len() > 1 << 20);
    let patch = r#"[{"op":"replace","path":"/items/19999/loss","value":0.5},{"op":"increment","path":"/step","value":1}]"#;
    let result = patched(&text, patch);
    let end = text.rfind("0.10").expect("it is there");
    let expected = format!("{}0.5{}", &text[..end], &text[end + 4..]);
    assert_eq!(result, expected.replacen("\"step\": 1", "\"step\": 2", 1));
}
