//! Every guard has a verdict on any content and none in its place for a piece of it, and the JSON guard the same one however the content is
//! cut; the strict one is of one mind with serde_json, and what a writer leaves that stops half-way
//! in a whole document is never taken for something else, nor, in an array or object, for the whole.
#![no_main]

use commitfs::guard::{Guard, JsonLines, JsonStream, Verdict, examine};
use commitfs::json::{Document, JsonError};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;

fuzz_target!(|content: &[u8]| {
    let len = content.len() as u64;
    for (_, guard) in Guard::NAMES {
        let verdict = examine(*guard, &content, len).expect("memory can be read");
        // Cut off where it has to be: these kinds tell their end.
        let ends = [Guard::Npy, Guard::Zstd, Guard::Gzip, Guard::Safetensors];
        if verdict == Verdict::Complete && ends.contains(guard) {
            let cut = &content[..content.len() - 1];
            let half = examine(*guard, &cut, len - 1).expect("memory can be read");
            assert!(!matches!(half, Verdict::Foreign(_)), "{guard}: {half:?}");
        }
    }
    lines(content);
    let [lenient, strict] = [Guard::Json, Guard::JsonStrict].map(|guard| judge(guard, content));
    let is_json = std::str::from_utf8(content)
        .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    assert_eq!(strict == Verdict::Complete, is_json);
    if is_json {
        assert_eq!(lenient, Verdict::Complete);
    }
    match Document::parse(content) {
        Ok(_) => assert!(matches!(lenient, Verdict::Complete | Verdict::Empty)),
        // Whole, and yet nothing that an edit could keep.
        Err(JsonError::TooDeep(_) | JsonError::DuplicateKey { .. }) => {}
        Err(error) => assert!(!is_json, "{error}"),
    }
});

/// Lines of JSON are whole documents at every end of a line.
fn lines(content: &[u8]) {
    let mut lines = JsonLines::default();
    lines.feed(content);
    assert_eq!(lines.verdict(), judge(Guard::Json, content));
    if lines.whole_lines().is_some_and(|count| count > 0) {
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            let verdict = examine(Guard::Json, &line, line.len() as u64);
            assert_eq!(verdict.expect("memory can be read"), Verdict::Complete);
        }
    }
}

fn judge(guard: Guard, content: &[u8]) -> Verdict {
    let new = || JsonStream::new(guard == Guard::JsonStrict);
    let mut whole = new();
    whole.feed(content);
    let verdict = whole.verdict();
    let mut pieces = new();
    // Cut where the content itself says.
    let piece = 1 + content.first().map_or(0, |byte| usize::from(byte % 8));
    content.chunks(piece).for_each(|bytes| pieces.feed(bytes));
    assert_eq!(pieces.verdict(), verdict);
    let examined = examine(guard, &content, content.len() as u64).expect("memory can be read");
    assert_eq!(examined, verdict);

    let text = content.trim_ascii_end();
    let is_one = guard == Guard::JsonStrict && matches!(text.last(), Some(b'}' | b']'));
    let mut bytes = new();
    for (at, byte) in content.iter().enumerate() {
        if verdict == Verdict::Complete {
            let half = bytes.verdict();
            assert!(!matches!(half, Verdict::Foreign(_)), "{half:?} at {at}");
            assert!(!is_one || at >= text.len() || half != Verdict::Complete);
        }
        bytes.feed(&[*byte]);
    }
    assert_eq!(bytes.verdict(), verdict);
    verdict
}
