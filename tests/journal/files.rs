//! Journals as files in a state directory.

use commitfs::types::TxnId;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;

use commitfs::journal::{
    Header, Journal, JournalError, MAX_INSTANCE, Record, Tail, fresh_id, read,
};

use crate::samples::{content, header, one_of_each};

/// A state directory, gone when dropped.
struct State(tempfile::TempDir, File);

impl State {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        Self(dir, fd)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn create(&self, carried: &[Record]) -> Result<Journal, JournalError> {
        Journal::create(self.1.as_fd(), header(), carried)
    }

    fn records(&self) -> Vec<Record> {
        read(self.1.as_fd()).unwrap().unwrap().records
    }
}

#[test]
fn a_directory_without_a_journal_has_none() {
    assert!(read(State::new().1.as_fd()).unwrap().is_none());
}

#[test]
fn carried_and_appended_records_are_read_back_from_the_file() {
    let state = State::new();
    let records = one_of_each();
    let mut journal = state.create(&records[..2]).unwrap();
    assert!(!journal.is_empty());
    let allocated = fs::metadata(state.path("journal")).unwrap().len();
    assert!(allocated >= journal.len() + (1 << 20));

    journal.append(&records[2]).unwrap();
    journal.append_all(&records[3..]).unwrap();
    rustix::fs::fdatasync(&*journal.sync_handle()).unwrap();
    let contents = read(state.1.as_fd()).unwrap().unwrap();
    assert_eq!(&contents.header, journal.header());
    assert_eq!(contents.records, records);
    let offset = journal.len();
    assert_eq!(contents.tail, Tail::Clean { offset });
}

#[test]
fn a_journal_outgrows_the_space_it_started_with() {
    let state = State::new();
    let mut journal = state.create(&[]).unwrap();
    assert!(journal.is_empty());
    let large = Record::Fsynced {
        id: TxnId(1),
        content: content(400_000, Some(&[7; 400_000])),
    };
    for _ in 0..8 {
        journal.append(&large).unwrap();
    }
    journal.reserve(5 << 20).unwrap();
    let allocated = fs::metadata(state.path("journal")).unwrap().len();
    assert!(allocated >= journal.len() + (5 << 20));
    assert_eq!(state.records(), vec![large; 8]);
}

#[test]
fn a_new_journal_replaces_the_old_one_and_what_a_crash_left_of_another() {
    let state = State::new();
    state.create(&one_of_each()).unwrap();
    fs::write(state.path("journal.new"), vec![b'x'; 3 << 20]).unwrap();
    state.create(&[Record::Abort { id: TxnId(5) }]).unwrap();
    assert_eq!(state.records(), [Record::Abort { id: TxnId(5) }]);
    assert!(!state.path("journal.new").exists());
}

#[test]
fn a_new_journal_that_cannot_be_made_leaves_the_old_one() {
    let state = State::new();
    state.create(&[Record::Abort { id: TxnId(5) }]).unwrap();
    let nameless = Header {
        instance: "x".repeat(MAX_INSTANCE + 1),
        ..header()
    };
    let error = Journal::create(state.1.as_fd(), nameless, &[]).unwrap_err();
    assert!(matches!(error, JournalError::TooLarge { .. }), "{error}");
    fs::create_dir(state.path("journal.new")).unwrap();
    let error = state.create(&[]).unwrap_err();
    assert!(matches!(error, JournalError::Io { .. }), "{error}");
    assert_eq!(state.records(), [Record::Abort { id: TxnId(5) }]);
}

#[test]
fn something_other_than_a_file_under_the_name_is_foreign() {
    let state = State::new();
    let name = state.path("journal");
    fs::create_dir(&name).unwrap();
    assert!(matches!(read(state.1.as_fd()), Err(JournalError::Foreign)));
    fs::remove_dir(&name).unwrap();
    std::os::unix::fs::symlink("elsewhere", &name).unwrap();
    assert!(matches!(read(state.1.as_fd()), Err(JournalError::Foreign)));
    fs::remove_file(&name).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(&state.1, "journal", rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(read(state.1.as_fd()), Err(JournalError::Foreign)));
}

#[test]
fn two_ids_are_not_the_same() {
    assert_ne!(fresh_id(), fresh_id());
}
