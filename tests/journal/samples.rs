//! Headers and records to write: fixed ones of every kind, and random ones.

use commitfs::types::{Seq, TxnId, Version};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use commitfs::journal::{ContentInfo, Edit, FileKey, GrownInfo, Header, Inlined, Record};
use proptest::collection::vec;
use proptest::prelude::*;

pub fn header() -> Header {
    Header {
        journal_id: 0x0123_4567_89ab_cdef,
        created_ns: 1_700_000_000_123_456_789,
        instance: "boot 7 dev 8:1 – α".into(),
        next_id: TxnId(41),
        next_seq: Seq(17),
        durable_seq: Seq(16),
    }
}

pub fn content(len: u64, inline: Option<&[u8]>) -> ContentInfo {
    ContentInfo {
        len,
        crc: inline.map(|bytes| bytes.len() as u32 ^ 0xfeed_beef),
        inline: inline.map(<[u8]>::to_vec),
        mtime_ns: -1_234_567_890_123_456_789_012,
        grown: None,
        parts: None,
    }
}

pub fn raw_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// Every kind of record, with every optional field present and absent.
pub fn one_of_each() -> Vec<Record> {
    let mut records = one_of_each_in_format_5();
    records.extend([true, false].map(|as_fsynced| Record::Withheld {
        id: TxnId(52),
        as_fsynced,
    }));
    records
}

/// What there was when that format was new.
pub fn one_of_each_in_format_5() -> Vec<Record> {
    let mut records = one_of_each_in_format_4();
    records.extend([
        Record::Grouped {
            id: TxnId(49),
            round: TxnId(50),
        },
        Record::Complete {
            round: TxnId(50),
            members: vec![TxnId(49), TxnId(51)],
        },
    ]);
    records
}

/// What there was when that format was new.
pub fn one_of_each_in_format_4() -> Vec<Record> {
    let mut records = one_of_each_in_format_3();
    let whole = |bytes: &[u8], xattrs| {
        let owner = (1000, 100, 0o640);
        std::sync::Arc::new(Inlined::new(bytes.to_vec(), owner, xattrs))
    };
    let xattrs = vec![(b"user.a".to_vec(), b"\0\xff".to_vec())];
    records.extend([
        Record::Inlined {
            id: TxnId(47),
            whole: whole(b"all of it", xattrs),
        },
        Record::Inlined {
            id: TxnId(48),
            whole: whole(b"", Vec::new()),
        },
    ]);
    records
}

/// What there was when that format was new.
pub fn one_of_each_in_format_3() -> Vec<Record> {
    let file = FileKey {
        inode: 79,
        btime_ns: 1_700_000_000_000_000_001,
    };
    let mut records = one_of_each_in_format_2();
    records.extend([
        Record::Growing {
            file,
            path: "log".into(),
            len: 10,
        },
        Record::Commit {
            seq: Seq(20),
            edits: vec![Edit::Append {
                path: "log".into(),
                file: Some(file),
                from: 10,
                len: 3,
                crc: 0xdead_beef,
            }],
        },
        Record::Settled { file },
        Record::Fsynced {
            id: TxnId(41),
            content: ContentInfo {
                grown: Some(GrownInfo { inode: 77, len: 7 }),
                parts: Some(vec![0..3, 5..300, 70_000..u64::MAX]),
                ..content(3, None)
            },
        },
        Record::Commit {
            seq: Seq(21),
            edits: vec![Edit::Put {
                path: "rows".into(),
                id: TxnId(45),
                version: Version(4),
                content: ContentInfo {
                    parts: Some(vec![]),
                    ..content(3, None)
                },
                in_place: true,
            }],
        },
        Record::Moved {
            from: "rows".into(),
            to: "columns".into(),
            inode: 80,
            exchange: true,
            going: [41, 45].map(TxnId).to_vec(),
            coming: [46].map(TxnId).to_vec(),
        },
    ]);
    records
}

/// What there was when that format was new.
pub fn one_of_each_in_format_2() -> Vec<Record> {
    let grown = Some(GrownInfo { inode: 77, len: 7 });
    let patch = Edit::Patch {
        path: "settings.json".into(),
        id: TxnId(44),
        version: Version(3),
        base: Some((9, 0xfeed_beef)),
        merge: true,
        patch: b"{}".to_vec(),
        mtime_ns: 1,
    };
    let mut records = one_of_each_in_format_1();
    records.extend([
        Record::Fsynced {
            id: TxnId(41),
            content: ContentInfo {
                grown,
                ..content(3, None)
            },
        },
        Record::Commit {
            seq: Seq(19),
            edits: vec![patch],
        },
        Record::Moved {
            from: "a".into(),
            to: "b".into(),
            inode: 78,
            exchange: true,
            going: vec![],
            coming: vec![],
        },
    ]);
    records
}

/// What there was when that format was new.
pub fn one_of_each_in_format_1() -> Vec<Record> {
    let put = |path: &[u8], id, inline| Edit::Put {
        path: raw_path(path),
        id: TxnId(id),
        version: Version(id + 100),
        content: content(5, inline),
        in_place: false,
    };
    let moved = raw_path(b"dir/not utf-8 \xff");
    vec![
        Record::Begin {
            id: TxnId(41),
            path: "dir/settings.json".into(),
            claim: true,
            pid: 4242,
            started_ns: -5,
        },
        Record::Retarget {
            id: TxnId(41),
            path: Some(moved.clone()),
        },
        Record::Retarget {
            id: TxnId(40),
            path: None,
        },
        Record::Fsynced {
            id: TxnId(41),
            content: content(u64::MAX, None),
        },
        Record::Prepared {
            id: TxnId(41),
            sure: false,
            content: content(5, Some(b"whole")),
            path: moved,
            version: Version(9),
        },
        Record::Unprepared { id: TxnId(41) },
        Record::Commit {
            seq: Seq(17),
            edits: vec![
                put(b"a", 41, Some(b"12345")),
                Edit::Drop { path: "b/c".into() },
                Edit::Append {
                    path: "log".into(),
                    file: None,
                    from: 7,
                    len: 3,
                    crc: 0xdead_beef,
                },
                put(b"d", 42, None),
            ],
        },
        Record::Commit {
            seq: Seq(18),
            edits: vec![],
        },
        Record::Abort { id: TxnId(43) },
        Record::Durable { seq: Seq(18) },
        Record::Withdrawn { seq: Seq(19) },
        Record::Barrier,
    ]
}

pub fn any_path() -> impl Strategy<Value = PathBuf> {
    vec(any::<u8>(), 0..40).prop_map(|bytes| raw_path(&bytes))
}

fn any_parts() -> impl Strategy<Value = Vec<std::ops::Range<u64>>> {
    let number = prop_oneof![1..300_u64, 1..1_u64 << 55];
    vec((number.clone(), number), 0..20).prop_map(|parts| {
        let mut end = 0;
        let each = parts.into_iter().map(|(gap, len)| {
            let start = end + gap - u64::from(end == 0);
            end = start + len;
            start..end
        });
        each.collect()
    })
}

pub fn any_content() -> impl Strategy<Value = ContentInfo> {
    let inline = prop::option::of(vec(any::<u8>(), 0..200));
    let grown = any::<Option<(u64, u64)>>();
    let parts = prop::option::of(any_parts());
    (any::<(u64, Option<u32>, i128)>(), inline, (grown, parts)).prop_map(
        |((len, crc, mtime_ns), inline, (grown, parts))| ContentInfo {
            len,
            crc,
            inline,
            mtime_ns,
            grown: grown.map(|(inode, len)| GrownInfo { inode, len }),
            parts,
        },
    )
}

pub fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any_path(), any::<(u64, u64, bool)>(), any_content()).prop_map(
            |(path, (id, version, in_place), content)| Edit::Put {
                path,
                id: TxnId(id),
                version: Version(version),
                content,
                in_place
            }
        ),
        any_path().prop_map(|path| Edit::Drop { path }),
        (
            (any_path(), any::<u64>(), any::<u64>()),
            any::<(Option<(u64, u32)>, bool, Vec<u8>, i128)>()
        )
            .prop_map(|((path, id, version), (base, merge, patch, mtime_ns))| {
                Edit::Patch {
                    path,
                    id: TxnId(id),
                    version: Version(version),
                    base,
                    merge,
                    patch,
                    mtime_ns,
                }
            }),
        (
            any_path(),
            prop::option::of(any_key()),
            any::<(u64, u64, u32)>()
        )
            .prop_map(|(path, file, (from, len, crc))| Edit::Append {
                path,
                file,
                from,
                len,
                crc
            }),
    ]
}

pub fn any_key() -> impl Strategy<Value = FileKey> {
    any::<(u64, i64)>().prop_map(|(inode, btime_ns)| FileKey { inode, btime_ns })
}

pub fn any_record() -> impl Strategy<Value = Record> {
    let begin = (any::<u64>(), any_path(), any::<(bool, u32, i64)>());
    let prepared = (
        any::<(u64, bool)>(),
        any_content(),
        any_path(),
        any::<u64>(),
    );
    prop_oneof![
        begin.prop_map(|(id, path, (claim, pid, started_ns))| Record::Begin {
            id: TxnId(id),
            path,
            claim,
            pid,
            started_ns
        }),
        (any::<u64>(), prop::option::of(any_path())).prop_map(|(id, path)| Record::Retarget {
            id: TxnId(id),
            path
        }),
        (any::<u64>(), any_content()).prop_map(|(id, content)| Record::Fsynced {
            id: TxnId(id),
            content
        }),
        prepared.prop_map(|((id, sure), content, path, version)| Record::Prepared {
            id: TxnId(id),
            sure,
            content,
            path,
            version: Version(version)
        }),
        any::<u64>().prop_map(|id| Record::Unprepared { id: TxnId(id) }),
        (any::<u64>(), vec(any_edit(), 0..5)).prop_map(|(seq, edits)| Record::Commit {
            seq: Seq(seq),
            edits
        }),
        any::<u64>().prop_map(|id| Record::Abort { id: TxnId(id) }),
        any::<(u64, bool)>().prop_map(|(id, as_fsynced)| Record::Withheld {
            id: TxnId(id),
            as_fsynced
        }),
        any::<u64>().prop_map(|seq| Record::Durable { seq: Seq(seq) }),
        any::<u64>().prop_map(|seq| Record::Withdrawn { seq: Seq(seq) }),
        Just(Record::Barrier),
        (any_key(), any_path(), any::<u64>()).prop_map(|(file, path, len)| Record::Growing {
            file,
            path,
            len
        }),
        any_key().prop_map(|file| Record::Settled { file }),
        any_inlined(),
        (
            (any_path(), any_path()),
            any::<(u64, bool)>(),
            any::<(Vec<u64>, Vec<u64>)>()
        )
            .prop_map(
                |((from, to), (inode, exchange), (going, coming))| Record::Moved {
                    from,
                    to,
                    inode,
                    exchange,
                    going: going.into_iter().map(TxnId).collect(),
                    coming: coming.into_iter().map(TxnId).collect(),
                }
            ),
    ]
}

pub fn any_header() -> impl Strategy<Value = Header> {
    (any::<(u64, i64, u64, u64, u64)>(), ".{0,50}").prop_map(
        |((journal_id, created_ns, next_id, next_seq, durable_seq), instance)| Header {
            journal_id,
            created_ns,
            instance,
            next_id: TxnId(next_id),
            next_seq: Seq(next_seq),
            durable_seq: Seq(durable_seq),
        },
    )
}

fn any_inlined() -> impl Strategy<Value = Record> {
    let bytes = || vec(any::<u8>(), 0..200);
    let xattrs = vec((bytes(), bytes()), 0..3);
    (any::<u64>(), bytes(), any::<(u32, u32, u32)>(), xattrs).prop_map(
        |(id, bytes, owner, xattrs)| Record::Inlined {
            id: TxnId(id),
            whole: std::sync::Arc::new(Inlined::new(bytes, owner, xattrs)),
        },
    )
}
