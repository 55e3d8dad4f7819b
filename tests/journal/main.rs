//! The journal as its users see it. The failure story: the daemon may be killed
//! and power may be cut between any two bytes, and the medium may return other
//! bytes than it was given. Whatever the file then holds, reading it gives the
//! first so many of the records that were written, or an error; it never gives
//! a record that was not written.

mod files;
mod samples;

use commitfs::types::TxnId;
use std::fs::File;

use commitfs::journal::{HEADER_LEN, Header, JournalError, Record, Tail, decode, encode, fresh_id};
use proptest::collection::vec;
use proptest::prelude::*;

use samples::{
    any_header, any_record, header, one_of_each, one_of_each_in_format_1, one_of_each_in_format_2,
    one_of_each_in_format_3, one_of_each_in_format_4, one_of_each_in_format_5,
};

/// Written by commitfs when format 6 was new, with 64 zeros behind the
/// records. It is never written again; see `write_the_fixture`.
const FIXTURE: &[u8] = include_bytes!("../fixtures/journal-v6.bin");
/// Likewise when format 5 was.
const FIXTURE_5: &[u8] = include_bytes!("../fixtures/journal-v5.bin");
/// Likewise when format 4 was.
const FIXTURE_4: &[u8] = include_bytes!("../fixtures/journal-v4.bin");
/// Likewise when format 2 was.
const FIXTURE_3: &[u8] = include_bytes!("../fixtures/journal-v3.bin");
/// One as the format before that was.
const FIXTURE_2: &[u8] = include_bytes!("../fixtures/journal-v2.bin");
/// And format 1.
const FIXTURE_1: &[u8] = include_bytes!("../fixtures/journal-v1.bin");
const FIXTURE_ZEROS: usize = 64;

/// Where each record ends in the file that `encode` makes of them.
fn ends(records: &[Record]) -> Vec<usize> {
    let mut end = HEADER_LEN;
    let ends = records.iter().map(|record| {
        end += record.framed_len() as usize;
        end
    });
    ends.collect()
}

/// A record with this payload, as it stands right behind the header.
fn first_frame(journal_id: u64, payload: &[u8]) -> Vec<u8> {
    let covered = [
        &journal_id.to_le_bytes()[..],
        &(HEADER_LEN as u64).to_le_bytes(),
        payload,
    ];
    let crc = crc32c::crc32c(&covered.concat());
    let len = payload.len() as u32;
    [&len.to_le_bytes()[..], &crc.to_le_bytes(), payload].concat()
}

fn only_with_payload(payload: &[u8]) -> Vec<u8> {
    let mut bytes = encode(&header(), &[]).unwrap();
    bytes.extend(first_frame(header().journal_id, payload));
    bytes
}

/// The header's bytes changed by `edit`, with a checksum to match.
fn resealed(edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = encode(&header(), &[]).unwrap();
    edit(&mut bytes);
    let crc = crc32c::crc32c(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        header in any_header(),
        records in vec(any_record(), 0..12),
        zeros in 0..40_usize,
    ) {
        let mut bytes = encode(&header, &records).unwrap();
        let offset = bytes.len() as u64;
        prop_assert_eq!(offset, ends(&records).last().map_or(HEADER_LEN as u64, |end| *end as u64));
        bytes.extend(vec![0; zeros]);
        let contents = decode(&bytes).unwrap();
        prop_assert_eq!(contents.header, header);
        prop_assert_eq!(contents.records, records);
        prop_assert_eq!(contents.tail, Tail::Clean { offset });
    }

    #[test]
    fn random_records_cut_anywhere_and_overwritten_give_a_prefix(
        records in vec(any_record(), 1..12),
        cut in any::<prop::sample::Index>(),
        garbage in vec(any::<u8>(), 0..64),
    ) {
        let whole = encode(&header(), &records).unwrap();
        let cut = HEADER_LEN + cut.index(whole.len() - HEADER_LEN);
        let mut bytes = whole.clone();
        let over = garbage.len().min(bytes.len() - cut);
        bytes[cut..cut + over].copy_from_slice(&garbage[..over]);
        bytes.truncate(cut + over);
        let found = decode(&bytes).unwrap().records;
        prop_assert!(records.starts_with(&found));
        let intact = ends(&records).iter().filter(|end| **end <= cut).count();
        prop_assert!(found.len() >= intact);
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_a_record_or_an_error(
        tag in 0..15_u8,
        mut payload in vec(prop_oneof![3 => 0..3_u8, 1 => any::<u8>()], 0..120),
    ) {
        payload.insert(0, tag);
        match decode(&only_with_payload(&payload)) {
            // No two payloads mean the same, so nothing was ignored.
            Ok(contents) => prop_assert_eq!(
                encode(&contents.header, &contents.records).unwrap(),
                only_with_payload(&payload)
            ),
            Err(JournalError::BadRecord { offset, tag: found, .. }) => {
                prop_assert_eq!((offset, found), (HEADER_LEN as u64, tag));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn any_file_at_all_is_decoded_without_a_panic(
        mut bytes in vec(any::<u8>(), 0..2000),
        magic in any::<bool>(),
    ) {
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"COMMITFJ");
        }
        prop_assert!(decode(&bytes).is_err());
    }
}

#[test]
fn a_journal_of_format_1_stays_readable() {
    reads_as(FIXTURE_1, &one_of_each_in_format_1());
}

#[test]
fn a_journal_of_format_2_stays_readable() {
    reads_as(FIXTURE_2, &one_of_each_in_format_2());
}

#[test]
fn a_journal_of_format_3_stays_readable() {
    reads_as(FIXTURE_3, &one_of_each_in_format_3());
}

#[test]
fn a_journal_of_format_4_stays_readable() {
    reads_as(FIXTURE_4, &one_of_each_in_format_4());
}

#[test]
fn a_journal_of_format_5_stays_readable() {
    reads_as(FIXTURE_5, &one_of_each_in_format_5());
}

#[test]
fn a_journal_of_format_6_stays_readable() {
    reads_as(FIXTURE, &one_of_each());
}

fn reads_as(fixture: &[u8], records: &[Record]) {
    let contents = decode(fixture).unwrap();
    assert_eq!(contents.header, header());
    assert_eq!(contents.records, records);
    let offset = (fixture.len() - FIXTURE_ZEROS) as u64;
    assert_eq!(contents.tail, Tail::Clean { offset });
}

#[test]
fn format_6_is_written_as_ever() {
    let bytes = encode(&header(), &one_of_each()).unwrap();
    assert!(FIXTURE[..FIXTURE.len() - FIXTURE_ZEROS] == bytes);
}

#[test]
#[ignore = "writes the fixture of the current format: only when the format's number changes"]
fn write_the_fixture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/journal-v6.bin");
    let mut bytes = encode(&header(), &one_of_each()).unwrap();
    bytes.extend([0; FIXTURE_ZEROS]);
    let mut file = File::create_new(path).expect("a fixture, once released, is never rewritten");
    std::io::Write::write_all(&mut file, &bytes).unwrap();
}

#[test]
fn any_truncation_gives_a_prefix_of_the_records() {
    let records = one_of_each();
    let bytes = encode(&header(), &records).unwrap();
    let ends = ends(&records);
    for len in HEADER_LEN..=bytes.len() {
        let contents = decode(&bytes[..len]).unwrap();
        let whole = ends.iter().filter(|end| **end <= len).count();
        assert_eq!(contents.records, records[..whole], "cut to {len} bytes");
        let end = whole.checked_sub(1).map_or(HEADER_LEN, |last| ends[last]);
        let offset = end as u64;
        // A length that was cut right behind zeros looks like the end.
        let clean = bytes[end..len].iter().all(|byte| *byte == 0);
        let tail = [Tail::Torn { offset }, Tail::Clean { offset }][usize::from(clean)];
        assert_eq!(contents.tail, tail, "cut to {len} bytes");
    }
    for len in 0..HEADER_LEN {
        let error = decode(&bytes[..len]).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    }
}

#[test]
fn any_flipped_bit_gives_a_prefix_or_an_error_and_never_other_records() {
    let records = one_of_each();
    let end = FIXTURE.len() - FIXTURE_ZEROS;
    for bit in 0..FIXTURE.len() * 8 {
        let mut bytes = FIXTURE.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match decode(&bytes) {
            Ok(contents) => {
                assert!(bit / 8 >= HEADER_LEN, "bit {bit} of the header is ignored");
                assert_eq!(contents.header, header());
                let intact = ends(&records).iter().filter(|e| **e <= bit / 8).count();
                assert_eq!(contents.records, records[..intact], "bit {bit}");
                let torn = matches!(contents.tail, Tail::Torn { .. });
                assert!(torn, "bit {bit} went unnoticed");
            }
            Err(JournalError::Foreign) => assert!(bit / 8 < 8),
            Err(JournalError::Damaged { .. }) => assert!((8..HEADER_LEN).contains(&(bit / 8))),
            Err(other) => panic!("bit {bit} of {end} bytes: {other}"),
        }
    }
}

#[test]
fn records_of_an_older_journal_behind_the_end_are_not_taken() {
    let records = one_of_each();
    let old = encode(&header(), &records).unwrap();
    let newer = Header {
        journal_id: fresh_id(),
        ..header()
    };
    for kept in 0..records.len() {
        let mut bytes = encode(&newer, &records[..kept]).unwrap();
        let offset = bytes.len() as u64;
        bytes.extend(&old[bytes.len()..]);
        let contents = decode(&bytes).unwrap();
        assert_eq!(contents.records, records[..kept]);
        assert_eq!(contents.tail, Tail::Torn { offset });
    }
}

#[test]
fn a_record_at_another_place_of_its_own_journal_is_not_taken() {
    let bytes = encode(
        &header(),
        &[
            Record::Abort { id: TxnId(1) },
            Record::Abort { id: TxnId(2) },
        ],
    )
    .unwrap();
    let frame = Record::Abort { id: TxnId(1) }.framed_len() as usize;
    let mut moved = bytes.clone();
    moved.copy_within(HEADER_LEN + frame.., HEADER_LEN);
    assert_eq!(decode(&moved).unwrap().records, []);
    let repeated = [&bytes[..], &bytes[HEADER_LEN..]].concat();
    assert_eq!(decode(&repeated).unwrap().records.len(), 2);
}

#[test]
fn a_torn_middle_ends_reading_though_whole_records_follow() {
    let records = one_of_each();
    let ends = ends(&records);
    let whole = encode(&header(), &records).unwrap();
    let torn = ends[2]..ends[3];
    // A page that never arrived reads as zeros; a half-written one as a mix.
    for lost in [
        torn.clone(),
        torn.start + 6..torn.end,
        torn.start..torn.start + 4,
    ] {
        let mut bytes = whole.clone();
        bytes[lost].fill(0);
        let contents = decode(&bytes).unwrap();
        assert_eq!(contents.records, records[..3]);
        let offset = torn.start as u64;
        assert_eq!(contents.tail, Tail::Torn { offset });
    }
}

#[test]
fn a_length_over_the_limit_or_the_file_is_a_torn_tail() {
    for len in [18, 16 << 20, (16 << 20) + 1, u32::MAX] {
        let mut bytes = encode(&header(), &[]).unwrap();
        bytes.extend(len.to_le_bytes());
        bytes.extend([1; 16]);
        let contents = decode(&bytes).unwrap();
        let offset = HEADER_LEN as u64;
        assert_eq!(contents.tail, Tail::Torn { offset });
    }
}

#[test]
fn lengths_and_counts_inside_a_record_cannot_ask_for_more_than_is_there() {
    let id = [0; 8];
    let huge = u32::MAX.to_le_bytes();
    let path = [&[1], &id[..], &huge].concat();
    let inline = [&[3], &id[..], &id, &[0, 1], &huge].concat();
    let edits = [&[6], &id[..], &huge].concat();
    for payload in [path, inline, edits] {
        let error = decode(&only_with_payload(&payload)).unwrap_err();
        assert!(matches!(error, JournalError::BadRecord { .. }), "{error}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_is_refused_by_place_and_tag() {
    let error = decode(&only_with_payload(&[99, 1, 2, 3])).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("byte 512") && text.contains("tag 99"),
        "{text}"
    );
}

#[test]
fn a_foreign_a_newer_and_a_damaged_header_are_told_apart() {
    for foreign in [&[0; 600][..], b"#!/bin/sh\n", b"COMMITFX"] {
        assert!(matches!(decode(foreign), Err(JournalError::Foreign)));
    }
    let newer = resealed(|bytes| bytes[8] = 7);
    let error = decode(&newer).unwrap_err();
    assert!(
        matches!(error, JournalError::NewerFormat { found: 7 }),
        "{error}"
    );
    let damaged: [fn(&mut [u8]); 3] = [
        |bytes| bytes[8] = 0,
        |bytes| bytes[12] = 201,
        |bytes| bytes[56] = 0xff,
    ];
    for edit in damaged {
        let error = decode(&resealed(edit)).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    }
}
