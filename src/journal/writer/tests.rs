//! Appends against a medium that fails: what must hold is that the file decodes
//! to exactly the appends that returned success, at every point of failure.

use super::*;
use crate::journal::{Tail, decode, encode};
use crate::types::{Seq, TxnId};

const FULL: i32 = 28; // ENOSPC
const BROKEN: i32 = 5; // EIO

/// A file in memory.
struct Faulty {
    bytes: Vec<u8>,
    /// How many more bytes are written before writes fail.
    healthy: usize,
    /// The file cannot get longer than this many bytes.
    space: u64,
    cut_works: bool,
    writes: usize,
}

impl Medium for Faulty {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.writes += 1;
        let len = bytes.len().min(self.healthy);
        if len == 0 {
            return Err(io::Error::from_raw_os_error(BROKEN));
        }
        self.healthy -= len;
        let at = offset as usize;
        self.bytes.resize(self.bytes.len().max(at + len), 0);
        self.bytes[at..at + len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn allocate(&mut self, from: u64, to: u64) -> io::Result<()> {
        assert!(self.bytes[from as usize..].iter().all(|byte| *byte == 0));
        if to > self.space {
            return Err(io::Error::from_raw_os_error(FULL));
        }
        self.bytes.resize(self.bytes.len().max(to as usize), 0);
        Ok(())
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        if !self.cut_works {
            return Err(io::Error::from_raw_os_error(BROKEN));
        }
        self.bytes.truncate(len as usize);
        Ok(())
    }
}

fn appender(space: u64) -> RecordAppender<Faulty> {
    let header = Header {
        journal_id: 0x1122_3344_5566_7788,
        created_ns: 0,
        instance: String::new(),
        next_id: TxnId(1),
        next_seq: Seq(1),
        durable_seq: Seq(0),
    };
    let bytes = encode(&header, &[]).unwrap();
    let end = bytes.len() as u64;
    let medium = Faulty {
        bytes,
        healthy: usize::MAX,
        space,
        cut_works: true,
        writes: 0,
    };
    RecordAppender::new(medium, header.journal_id, end)
}

fn abort(id: u64) -> Record {
    Record::Abort { id: TxnId(id) }
}

fn records(appender: &RecordAppender<Faulty>) -> Vec<Record> {
    decode(&appender.medium.bytes).unwrap().records
}

#[test]
fn an_append_after_a_failed_append_takes_its_place_and_nothing_of_it_stays() {
    // Records of one length: without the cut, the second of a failed pair
    // would follow the next append as if it had been written.
    let pair = [abort(2), abort(3)];
    let bytes: u64 = pair.iter().map(Record::framed_len).sum();
    for written in 0..bytes as usize {
        let mut journal = appender(u64::MAX);
        journal.append_all(&[abort(1)]).unwrap();
        let end = journal.end;

        journal.medium.healthy = written;
        let error = journal.append_all(&pair).unwrap_err();
        assert!(matches!(error, JournalError::Io { .. }), "{error}");
        assert_eq!(journal.end, end);
        assert_eq!(records(&journal), [abort(1)], "after {written} bytes");

        journal.medium.healthy = usize::MAX;
        journal.append_all(&[abort(4)]).unwrap();
        let contents = decode(&journal.medium.bytes).unwrap();
        assert_eq!(contents.records, [abort(1), abort(4)]);
        let offset = journal.end;
        assert_eq!(contents.tail, Tail::Clean { offset });
    }
}

#[test]
fn a_failed_append_that_cannot_be_undone_is_indeterminate_and_closes_the_journal() {
    let mut journal = appender(u64::MAX);
    journal.append_all(&[abort(1)]).unwrap();
    let one = abort(2).framed_len() as usize;
    (journal.medium.healthy, journal.medium.cut_works) = (one + 3, false);
    let error = journal.append_all(&[abort(2), abort(3)]).unwrap_err();
    assert!(
        matches!(error, JournalError::Indeterminate { .. }),
        "{error}"
    );

    (journal.medium.healthy, journal.medium.cut_works) = (usize::MAX, true);
    let writes = journal.medium.writes;
    let error = journal.append_all(&[abort(4)]).unwrap_err();
    assert!(matches!(error, JournalError::Closed), "{error}");
    assert!(matches!(journal.reserve(1), Err(JournalError::Closed)));
    assert_eq!(journal.medium.writes, writes);
}

#[test]
fn a_full_disk_fails_an_append_before_a_byte_is_written() {
    let mut journal = appender(HEADER_LEN as u64 + abort(1).framed_len());
    journal.append_all(&[abort(1)]).unwrap();
    let before = journal.medium.bytes.clone();
    let error = journal.append_all(&[abort(2)]).unwrap_err();
    match error {
        JournalError::Io { source, .. } => assert_eq!(source.raw_os_error(), Some(FULL)),
        other => panic!("{other}"),
    }
    assert_eq!((journal.medium.bytes, journal.medium.writes), (before, 1));
}

#[test]
fn reserved_space_is_there_when_the_disk_is_full() {
    let mut journal = appender(u64::MAX);
    let bytes = (AHEAD / abort(0).framed_len() + 1) * abort(0).framed_len();
    journal.reserve(bytes).unwrap();
    journal.medium.space = 0;
    for id in 0..bytes / abort(0).framed_len() {
        journal.append_all(&[abort(id)]).unwrap();
    }
    assert_eq!(journal.end, HEADER_LEN as u64 + bytes);
}

#[test]
fn several_records_go_out_in_one_write() {
    let mut journal = appender(u64::MAX);
    journal.append_all(&[abort(1), abort(2), abort(3)]).unwrap();
    journal.append_all(&[]).unwrap();
    assert_eq!(journal.medium.writes, 1);
    assert_eq!(records(&journal), [abort(1), abort(2), abort(3)]);
}

#[test]
fn a_record_over_the_limit_is_refused_and_nothing_beside_it_is_written() {
    let mut journal = appender(u64::MAX);
    let huge = Record::Fsynced {
        id: TxnId(1),
        content: crate::journal::ContentInfo {
            len: 0,
            crc: None,
            inline: Some(vec![7; format::MAX_PAYLOAD]),
            mtime_ns: 0,
            grown: None,
            parts: None,
        },
    };
    let error = journal.append_all(&[abort(1), huge]).unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { .. }), "{error}");
    assert_eq!(journal.medium.writes, 0);
    journal.append_all(&[abort(2)]).unwrap();
    assert_eq!(records(&journal), [abort(2)]);
}
