//! A save that failed half-way closes its file like any other. What is at stake here: half a
//! document that passes for a whole one (it is published, and the only good version is gone), and a
//! whole one that passes for half (a program that works on the plain directory fails).

use serde_json::json;

use super::{Verdict::*, *};

pub(super) fn judged(guard: Guard, content: &[u8]) -> Verdict {
    examine(guard, &content, content.len() as u64).expect("memory can be read")
}

#[track_caller]
pub(super) fn assert_incomplete(verdict: Verdict, place: &str) {
    assert!(
        matches!(&verdict, Incomplete(why) if why.contains(place)),
        "{verdict:?}, wanted {place:?}"
    );
}

#[track_caller]
fn assert_malformed(verdict: Verdict, place: &str) {
    assert!(
        matches!(&verdict, Malformed(why) if why.contains(place)),
        "{verdict:?}, wanted {place:?}"
    );
}

/// Whole with all its bytes, cut off with any fewer.
#[track_caller]
fn assert_ends_only_at_its_end(guard: Guard, whole: &[u8]) {
    assert_eq!(judged(guard, whole), Complete);
    for cut in 1..whole.len() {
        let verdict = judged(guard, &whole[..cut]);
        assert!(matches!(verdict, Incomplete(_)), "{cut}: {verdict:?}");
    }
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
fn only_whole_documents_take_the_place_of_whole_documents() {
    let (half, other) = (Incomplete("byte 5".into()), Foreign("byte 0".into()));
    let odd = Malformed("byte 3".into());
    for (_, guard) in Guard::NAMES.iter().filter(|(_, g)| *g != Guard::None) {
        let strict = *guard == Guard::JsonStrict;
        let json = strict || *guard == Guard::Json;
        for current in [
            None,
            Some(&Empty),
            Some(&half),
            Some(&odd),
            Some(&other),
            Some(&Complete),
        ] {
            let over_complete = current == Some(&Complete);
            for how in [Replaces::Whole, Replaces::InPlace] {
                let ok = |new: &Verdict, allow_empty| {
                    judge(*guard, new, how, allow_empty)
                        .decide(|| Ok::<_, ()>(current.cloned()))
                        .expect("it can be read")
                        .is_ok()
                };
                let by_edit = how == Replaces::InPlace;
                assert!(ok(&Complete, false));
                assert!(!ok(&half, false));
                assert_eq!(ok(&Empty, false), !over_complete);
                assert!(ok(&Empty, true));
                let spoils = by_edit && over_complete;
                assert_eq!(ok(&odd, false), !(strict || spoils));
                let foreign = !strict && !((by_edit || json) && over_complete);
                assert_eq!(ok(&other, false), foreign, "{guard} {how:?} {current:?}");
            }
        }
    }
    let any = judge(Guard::None, &half, Replaces::InPlace, false);
    assert_eq!(any, Judgement::Permitted);
    let half = judge(Guard::Json, &half, Replaces::Whole, true);
    let Judgement::Refused(violation) = half else {
        panic!("half a document: {half:?}");
    };
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
        assert_eq!(judged(Guard::Zip, &zip), Complete);
        assert_eq!(
            judged(Guard::Zip, &[zips::LOCAL, &zip].concat()),
            Complete,
            "with another archive in front"
        );
        for cut in 1..zip.len().min(400) {
            // Of an archive whose comment ends in an archive's end, nothing shorter is whole
            // either.
            assert!(
                matches!(judged(Guard::Zip, &zip[..cut]), Incomplete(_)),
                "{cut} of {}",
                zip.len()
            );
        }
        assert_incomplete(
            judged(Guard::Zip, &[&zip[..], b"tail"].concat()),
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
            judged(Guard::Zip, &[local, &zips::directory(), &end].concat()),
            "can't be",
        );
    }
    let overwritten = [local, &[b'x'; 46], &zips::end(1, 46, at, b"")].concat();
    assert_incomplete(judged(Guard::Zip, &overwritten), "there is no directory");
    let mut broken64 = zips::zip64();
    broken64[local.len() + 46] = b'x';
    assert!(matches!(judged(Guard::Zip, &broken64), Incomplete(_)));
}

#[test]
fn what_does_not_begin_as_a_zip_is_foreign() {
    for content in [&b"\x80\x02}q\0"[..], b"hello", b"PKZIP", b"\0\0\0\0"] {
        assert!(matches!(judged(Guard::Zip, content), Foreign(_)));
    }
    assert_eq!(judged(Guard::Zip, b""), Empty);
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
    assert_eq!(judged(Guard::Safetensors, &whole), Complete);
    for cut in 1..whole.len() {
        assert!(
            matches!(judged(Guard::Safetensors, &whole[..cut]), Incomplete(_)),
            "{cut}"
        );
    }
    assert_malformed(
        judged(Guard::Safetensors, &[&whole[..], b"x"].concat()),
        "the tensors end at byte",
    );
    assert_eq!(judged(Guard::Safetensors, &safetensors("{}", 0)), Complete);
    assert_eq!(judged(Guard::Safetensors, b""), Empty);
}

#[test]
fn safetensors_headers_that_say_nothing_sensible_are_told_apart() {
    for header in [
        r#"{"a": {"data_offsets": [4, 0]}}"#,
        r#"{"a": {"dtype": "U8"}}"#,
        r#"{"a": 1}"#,
        r#"{"a": "#,
        "{}{}",
        "{\0}",
    ] {
        assert!(
            matches!(
                judged(Guard::Safetensors, &safetensors(header, 4)),
                Malformed(_)
            ),
            "{header}"
        );
    }
    for header in [
        r#"{"a": {"data_offsets": [0, 18446744073709551615]}}"#,
        "{\0\0",
    ] {
        let verdict = judged(Guard::Safetensors, &safetensors(header, 4));
        assert!(matches!(verdict, Incomplete(_)), "{header}");
    }
    for content in [&b"version https://"[..], b"hello", &safetensors("[]", 0)] {
        assert!(matches!(judged(Guard::Safetensors, content), Foreign(_)));
    }
    assert_incomplete(judged(Guard::Safetensors, &[0; 64]), "hole");
    assert_incomplete(
        judged(Guard::Safetensors, &safetensors("\0\0\0", 0)),
        "hole",
    );
}

fn npy(header: &str, data: usize) -> Vec<u8> {
    let header = format!("{header}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(vec![7; data]);
    file
}

#[test]
fn array_files_are_as_long_as_their_header_says() {
    let f8 = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }";
    for (header, data) in [
        (f8, 48),
        (
            "{'descr': '|S10', 'fortran_order': True, 'shape': (4,), }",
            40,
        ),
        (
            "{'descr': '<U3', 'fortran_order': False, 'shape': (), }",
            12,
        ),
        (
            "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (1,)}",
            8,
        ),
        (
            "{\"shape\": (2L,), 'fortran_order': False, 'descr': '|b1'}",
            2,
        ),
        (
            "{'descr': [('a', '<i4'), ('', '|V4'), (('t', 'b'), '<f8', (2, 2)), ('n', [('x', '|u1')])], \
             'fortran_order': False, 'shape': (3,), }",
            3 * 41,
        ),
    ] {
        let whole = npy(header, data);
        for cut in 1..whole.len() {
            // A header alone is what `open_memmap` begins with.
            let verdict = judged(Guard::Npy, &whole[..cut]);
            let is_header = cut + data == whole.len();
            let fits = matches!(verdict, Malformed(_)) == is_header
                && matches!(verdict, Incomplete(_)) != is_header;
            assert!(fits, "{cut}: {verdict:?}");
        }
        assert_eq!(judged(Guard::Npy, &whole), Complete);
    }
    let (one, whole) = (npy(f8, 48), [npy(f8, 48), npy(f8, 48)].concat());
    assert_eq!(
        judged(Guard::Npy, &whole),
        Complete,
        "two saves into one file"
    );
    for cut in one.len() + 1..whole.len() {
        let verdict = judged(Guard::Npy, &whole[..cut]);
        assert!(matches!(verdict, Incomplete(_)), "{cut}: {verdict:?}");
    }
    assert_malformed(
        judged(Guard::Npy, &[&one[..], b"tail"].concat()),
        "the array ends at byte",
    );
}

#[test]
fn array_files_whose_length_is_not_told_are_taken_as_they_are() {
    let objects = "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }";
    assert_eq!(judged(Guard::Npy, &npy(objects, 5)), Complete);
    for odd in ["{'descr': ", "[1]]", "{'a' 1}", "", "{'a': '\\"] {
        let verdict = judged(Guard::Npy, &npy(odd, 5));
        assert!(matches!(verdict, Malformed(_)), "{odd}: {verdict:?}");
    }
    let deep = "[".repeat(30_000);
    assert_malformed(judged(Guard::Npy, &npy(&deep, 0)), "no header");
    let none = "{'descr': '<f8', 'shape': (4294967296, 4294967296), }";
    assert_eq!(judged(Guard::Npy, &npy(none, 0)), Complete);
    assert!(matches!(judged(Guard::Npy, b"hello"), Foreign(_)));
    let hole = [&npy("", 0)[..8], &[20, 0], &[0; 20]].concat();
    assert_incomplete(judged(Guard::Npy, &hole), "hole");
}

#[test]
fn parquet_files_end_in_a_footer() {
    for magic in [b"PAR1", b"PARE"] {
        let file = [
            &magic[..],
            b"columns",
            b"footer!",
            &7_u32.to_le_bytes(),
            &magic[..],
        ]
        .concat();
        assert_ends_only_at_its_end(Guard::Parquet, &file);
    }
    let odd = [&b"PAR1"[..], &999_u32.to_le_bytes(), b"PAR1"].concat();
    assert_malformed(judged(Guard::Parquet, &odd), "999 bytes");
    assert!(matches!(judged(Guard::Parquet, b"hello"), Foreign(_)));
}

/// The superblock of an HDF5 file that says it is `end` bytes long.
fn superblock(version: u8, end: u64) -> Vec<u8> {
    let mut block = b"\x89HDF\r\n\x1a\n".to_vec();
    match version {
        0 | 1 => {
            block.extend([version, 0, 0, 0, 0, 8, 8, 0]);
            block.extend(vec![0; if version == 0 { 8 } else { 12 }]);
        }
        _ => block.extend([version, 8, 8, 0]),
    }
    block.extend([0, u64::MAX, end, u64::MAX].map(u64::to_le_bytes).concat());
    block
}

#[test]
fn hdf5_files_are_as_long_as_their_superblock_says() {
    for version in 0..=3 {
        let mut file = superblock(version, 300);
        file.resize(300, 7);
        assert_ends_only_at_its_end(Guard::Hdf5, &file);
        let longer = [&file[..], b"tail"].concat();
        assert_eq!(
            judged(Guard::Hdf5, &longer),
            Complete,
            "with something behind"
        );
        let mut behind = vec![b'#'; 1024];
        behind.extend(superblock(version, 1024 + 300));
        behind.resize(1024 + 300, 7);
        assert_eq!(
            judged(Guard::Hdf5, &behind),
            Complete,
            "with a user's block"
        );
        behind.pop();
        assert_incomplete(judged(Guard::Hdf5, &behind), "by its superblock at 1324");
        let unknown = superblock(version, u64::MAX);
        assert_eq!(judged(Guard::Hdf5, &unknown), Complete);
    }
    assert_eq!(
        judged(Guard::Hdf5, &superblock(9, 300)),
        Complete,
        "of the future"
    );
    assert!(matches!(judged(Guard::Hdf5, &[b'#'; 5000]), Foreign(_)));
}

#[test]
fn pickles_end_in_their_last_instruction() {
    // pickle.dumps(list(range(9)), 2) and of protocol 4, whose frame tells its length.
    let old = b"\x80\x02]q\x00(K\x00K\x01K\x02K\x03e.";
    assert_ends_only_at_its_end(Guard::Pickle, old);
    let new = b"\x80\x04\x95\x0f\0\0\0\0\0\0\0]\x94(K\x00K\x01K.K\x03K\x04e.";
    assert_ends_only_at_its_end(Guard::Pickle, new);
    for foreign in [
        &b"(lp0\nI1\na."[..],
        b"\x1f\x8b\x08",
        b"x\x9c",
        b"\x80\x09..",
        b"h",
    ] {
        assert!(matches!(judged(Guard::Pickle, foreign), Foreign(_)));
    }
}

/// `printf 'hello hello hello hello\n' | gzip -9n`, and content that isn't compressed.
const GZIPPED: &[u8] =
    b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xcbH\xcd\xc9\xc9W\xc8@'\xb9\0\0\x88Y\x0b\x18\0\0\0";

fn stored(content: &[u8]) -> Vec<u8> {
    let len = content.len() as u16;
    let mut file = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0\x01".to_vec();
    file.extend([len.to_le_bytes(), (!len).to_le_bytes()].concat());
    file.extend(content);
    file.extend([0; 4]);
    file.extend(u32::from(len).to_le_bytes());
    file
}

#[test]
fn gzip_files_end_in_the_trailer_of_their_content() {
    let plain = stored(b"something that is not compressed");
    for whole in [GZIPPED, &plain] {
        assert_ends_only_at_its_end(Guard::Gzip, whole);
        let twice = [whole, whole].concat();
        assert_eq!(judged(Guard::Gzip, &twice), Complete, "two members");
        let verdict = judged(Guard::Gzip, &twice[..twice.len() - 1]);
        assert!(matches!(verdict, Incomplete(_)), "{verdict:?}");
        let padded = [whole, &[0; 512]].concat();
        assert_eq!(judged(Guard::Gzip, &padded), Complete, "a tape's block");
        assert_malformed(
            judged(Guard::Gzip, &[whole, b"tail"].concat()),
            "ends at byte",
        );
    }
    let mut other = GZIPPED.to_vec();
    other[GZIPPED.len() - 4] ^= 1;
    assert_malformed(judged(Guard::Gzip, &other), "another length");
    assert!(matches!(judged(Guard::Gzip, b"BZh9"), Foreign(_)));
}

#[test]
fn a_large_gzip_file_is_not_read_again() {
    struct Sparse(u64);
    impl ReadAt for Sparse {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            assert!(buf.len() < 100, "a second reading");
            for (at, byte) in buf.iter_mut().enumerate() {
                *byte = match offset + at as u64 {
                    0 => 0x1f,
                    1 => 0x8b,
                    2 => 8,
                    at if at >= self.0 - 4 => 0xff,
                    _ => 0,
                };
            }
            Ok(buf.len())
        }
    }
    for (len, complete) in [(2 << 20, false), (8 << 20, true)] {
        let verdict = examine(Guard::Gzip, &Sparse(len), len).expect("it can be read");
        assert_eq!(verdict == Complete, complete, "{verdict:?}");
    }
}

#[test]
fn zstd_files_are_whole_frames() {
    let magic = 0xFD2F_B528_u32.to_le_bytes();
    let block = |size: u32, kind: u32, last: u32| {
        let header = (size << 3 | kind << 1 | last).to_le_bytes();
        [
            &header[..3],
            &vec![7; if kind == 1 { 1 } else { size as usize }],
        ]
        .concat()
    };
    let skippable = [
        &0x184D_2A53_u32.to_le_bytes()[..],
        &5_u32.to_le_bytes(),
        b"hello",
    ]
    .concat();
    for (header, checksum) in [
        (&[0b0000_0000, 1][..], 0),
        (&[0b0000_0100, 1], 4),
        (&[0b0010_0000, 9], 0),
        (&[0b0110_0101, 1, 1, 2], 4),
        (&[0b1000_0011, 1, 1, 2, 3, 4, 1, 2, 3, 4], 0),
        (&[0b1110_0010, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8], 0),
    ] {
        let frame = [
            &magic[..],
            header,
            &block(3, 0, 0),
            &block(900, 1, 0),
            &block(20, 2, 1),
            &vec![1; checksum],
        ]
        .concat();
        assert_ends_only_at_its_end(Guard::Zstd, &frame);
        let all = [&skippable[..], &frame, &frame, &skippable].concat();
        assert_eq!(judged(Guard::Zstd, &all), Complete);
        let verdict = judged(Guard::Zstd, &all[..all.len() - 1]);
        assert!(matches!(verdict, Incomplete(_)), "{verdict:?}");
        assert_malformed(
            judged(Guard::Zstd, &[&frame[..], b"tail"].concat()),
            "no frame",
        );
        let odd = [&magic[..], header, &block(3, 3, 1)].concat();
        assert_malformed(judged(Guard::Zstd, &odd), "unknown kind");
    }
    assert!(matches!(judged(Guard::Zstd, b"hello"), Foreign(_)));
}

#[test]
fn headers_of_arrays_that_are_no_python_are_odd_and_nothing_worse() {
    for header in [
        "{\u{e9}\u{e9}",
        "{\u{e9}descr\u{e9}: 1}",
        "{'descr': '\u{e9}",
        "{\\",
        "('",
        "[",
    ] {
        assert_malformed(judged(Guard::Npy, &npy(header, 16)), "no header");
    }
}

#[test]
fn what_merely_begins_as_its_kind_is_left_alone() {
    // torch.save before 1.6, or with _use_new_zipfile_serialization=False: pickles, then raw tensors.
    let torch = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\x02M\xe9\x03.raw tensors";
    assert!(matches!(judged(Guard::Pickle, torch), Foreign(_)));
    // What lies behind the last frame is no frame that was cut off.
    let frame = b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00";
    assert_eq!(judged(Guard::Zstd, frame), Complete);
    for (more, cut_off) in [
        (&b"\n"[..], false),
        (b"ab", false),
        (b"\x28\xb5", true),
        (b"\x50", true),
    ] {
        let verdict = judged(Guard::Zstd, &[frame, more].concat());
        assert_eq!(matches!(verdict, Incomplete(_)), cut_off, "{verdict:?}");
    }
    // One of several files that are one together: its superblock tells where they all end.
    let mut member = superblock(0, 9_000);
    member.resize(300, 7);
    assert_incomplete(judged(Guard::Hdf5, &member), "by its superblock");
    member[48..56].copy_from_slice(&200_u64.to_le_bytes());
    assert_eq!(judged(Guard::Hdf5, &member), Complete);
}
