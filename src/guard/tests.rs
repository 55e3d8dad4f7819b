//! A save that failed half-way closes its file like any other. What is at stake here: half a
//! document that passes for a whole one (it is published, and the only good version is gone), and a
//! whole one that passes for half (a program that works on the plain directory fails).

use serde_json::json;

use super::{Verdict::*, *};

pub(super) fn judge(guard: Guard, content: &[u8]) -> Verdict {
    examine(guard, &content, content.len() as u64).expect("memory can be read")
}

#[track_caller]
pub(super) fn assert_incomplete(verdict: Verdict, place: &str) {
    assert!(
        matches!(&verdict, Incomplete(why) if why.contains(place)),
        "{verdict:?}, wanted {place:?}"
    );
}

#[test]
fn content_that_shrinks_under_the_reader_has_no_verdict() {
    let content: &[u8] = b"[1, 2";
    let error = examine(Guard::Json, &content, 50).expect_err("too short");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn guards_are_known_by_their_names() {
    for (name, guard) in Guard::NAMES {
        assert_eq!(name.parse(), Ok(*guard));
        assert_eq!(guard.to_string(), *name);
    }
    let error = "jsn".parse::<Guard>().expect_err("no guard");
    assert!(error.to_string().contains("\"jsn\" is not a guard"));
}

#[test]
fn only_whole_documents_replace_whole_documents() {
    let (half, other) = (Incomplete("byte 5".into()), Foreign("byte 0".into()));
    let ok = |guard, new: &Verdict, current: Option<&Verdict>| {
        permits(guard, new, current, false).is_ok()
    };
    for guard in [
        Guard::Json,
        Guard::JsonStrict,
        Guard::Zip,
        Guard::Safetensors,
    ] {
        for current in [
            None,
            Some(&Empty),
            Some(&half),
            Some(&other),
            Some(&Complete),
        ] {
            let over_complete = current == Some(&Complete);
            assert!(ok(guard, &Complete, current));
            assert!(!ok(guard, &half, current));
            assert_eq!(ok(guard, &Empty, current), !over_complete);
            assert_eq!(
                ok(guard, &other, current),
                !over_complete || guard == Guard::Zip
            );
            assert!(permits(guard, &Empty, current, true).is_ok());
            assert!(permits(Guard::None, &half, current, false).is_ok());
        }
    }
    let violation = permits(Guard::Json, &half, None, true).expect_err("half a document");
    assert_eq!(violation.to_string(), "guard json: incomplete: byte 5");
}

/// Minimal zip writers: what counts is the directory and the end, so the entries' fields are zero.
mod zips {
    pub const LOCAL: &[u8] = b"PK\x03\x04 header and data";

    pub fn end(entries: u16, size: u32, offset: u32, comment: &[u8]) -> Vec<u8> {
        let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
        end.extend([entries.to_le_bytes(), entries.to_le_bytes()].concat());
        end.extend([size.to_le_bytes(), offset.to_le_bytes()].concat());
        end.extend((comment.len() as u16).to_le_bytes());
        [&end, comment].concat()
    }

    pub fn directory() -> Vec<u8> {
        [&b"PK\x01\x02"[..], &[0; 42]].concat()
    }

    pub fn plain(comment: &[u8]) -> Vec<u8> {
        [
            LOCAL,
            &directory(),
            &end(1, 46, LOCAL.len() as u32, comment),
        ]
        .concat()
    }

    pub fn zip64() -> Vec<u8> {
        let offset = LOCAL.len() as u64;
        let mut record = b"PK\x06\x06".to_vec();
        record.extend(
            [44_u64, 0, 0, 1, 1, 46, offset]
                .map(u64::to_le_bytes)
                .concat(),
        );
        // The fields before the counts are a length, versions and disk numbers: 8 + 4 + 8 bytes.
        record.drain(20..24);
        let record_at = offset + 46;
        let locator = [
            &b"PK\x06\x07\0\0\0\0"[..],
            &record_at.to_le_bytes(),
            &[1, 0, 0, 0],
        ]
        .concat();
        [
            LOCAL,
            &directory(),
            &record,
            &locator,
            &end(u16::MAX, u32::MAX, u32::MAX, b""),
        ]
        .concat()
    }
}

#[test]
fn zip_archives_are_whole_with_their_end_record_and_not_before() {
    let look_alike = [&zips::end(3, 9, 9, b"ab")[..], b"a comment"].concat();
    let decoy = [&b"x"[..], &zips::end(9, 1, 2, b"")].concat();
    for zip in [
        zips::plain(b""),
        zips::plain(b"a comment"),
        zips::plain(&[b'x'; 0xFFFF]),
        zips::plain(&look_alike),
        zips::plain(&decoy),
        zips::zip64(),
        zips::end(0, 0, 0, b""),
    ] {
        assert_eq!(judge(Guard::Zip, &zip), Complete);
        assert_eq!(
            judge(Guard::Zip, &[zips::LOCAL, &zip].concat()),
            Complete,
            "with another archive in front"
        );
        for cut in 1..zip.len().min(400) {
            // Of an archive whose comment ends in an archive's end, nothing shorter is whole
            // either.
            assert!(
                matches!(judge(Guard::Zip, &zip[..cut]), Incomplete(_)),
                "{cut} of {}",
                zip.len()
            );
        }
        assert_incomplete(
            judge(Guard::Zip, &[&zip[..], b"tail"].concat()),
            "without an end record",
        );
    }
}

#[test]
fn an_end_record_that_does_not_fit_ends_no_zip() {
    let local = zips::LOCAL;
    let at = local.len() as u32;
    for end in [
        zips::end(1, 46, at + 1, b""),
        zips::end(1, 47, at, b""),
        zips::end(2, 46, at, b""),
        zips::end(0, 46, at, b""),
        zips::end(1, u32::MAX, u32::MAX, b""),
        zips::end(1, 46, u32::MAX, b""),
        zips::end(1, 0, at, b""),
    ] {
        assert_incomplete(
            judge(Guard::Zip, &[local, &zips::directory(), &end].concat()),
            "can't be",
        );
    }
    let overwritten = [local, &[b'x'; 46], &zips::end(1, 46, at, b"")].concat();
    assert_incomplete(judge(Guard::Zip, &overwritten), "there is no directory");
    let mut broken64 = zips::zip64();
    broken64[local.len() + 46] = b'x';
    assert!(matches!(judge(Guard::Zip, &broken64), Incomplete(_)));
}

#[test]
fn what_does_not_begin_as_a_zip_is_foreign() {
    for content in [&b"\x80\x02}q\0"[..], b"hello", b"PKZIP", b"\0\0\0\0"] {
        assert!(matches!(judge(Guard::Zip, content), Foreign(_)));
    }
    assert_eq!(judge(Guard::Zip, b""), Empty);
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &vec![7; data],
    ]
    .concat()
}

#[test]
fn safetensors_files_are_as_long_as_their_header_says() {
    let header = json!({
        "__metadata__": {"format": "pt", "data_offsets": "odd, but allowed"},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
    });
    let whole = safetensors(&format!("{header}   "), 12);
    assert_eq!(judge(Guard::Safetensors, &whole), Complete);
    for cut in 1..whole.len() {
        assert!(
            matches!(judge(Guard::Safetensors, &whole[..cut]), Incomplete(_)),
            "{cut}"
        );
    }
    assert_incomplete(
        judge(Guard::Safetensors, &[&whole[..], b"x"].concat()),
        "the tensors end at byte",
    );
    assert_eq!(judge(Guard::Safetensors, &safetensors("{}", 0)), Complete);
    assert_eq!(judge(Guard::Safetensors, b""), Empty);
}

#[test]
fn safetensors_headers_that_say_nothing_sensible_are_told_apart() {
    for header in [
        r#"{"a": {"data_offsets": [4, 0]}}"#,
        r#"{"a": {"dtype": "U8"}}"#,
        r#"{"a": 1}"#,
        r#"{"a": "#,
        "{}{}",
        r#"{"a": {"data_offsets": [0, 18446744073709551615]}}"#,
        "{\0}",
    ] {
        assert!(
            matches!(
                judge(Guard::Safetensors, &safetensors(header, 4)),
                Incomplete(_)
            ),
            "{header}"
        );
    }
    for content in [&b"version https://"[..], b"hello", &safetensors("[]", 0)] {
        assert!(matches!(judge(Guard::Safetensors, content), Foreign(_)));
    }
    assert_incomplete(judge(Guard::Safetensors, &[0; 64]), "hole");
    assert_incomplete(judge(Guard::Safetensors, &safetensors("\0\0\0", 0)), "hole");
}
