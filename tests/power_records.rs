//! C7, C10, C19: a power cut leaves a part of the journal, and files that may be ahead of it or behind.
//!
//! No power is cut here. The daemon is killed, and its journal is written anew with the records that
//! had come to the medium, as of another boot; what the cut took of the files is taken from them. So
//! each test has the very cut that it is about. What a crash leaves is looked at in the backing
//! directory, after `commitfs check --recover`.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use commitfs::journal::{self, ContentInfo, Edit, Record};
use commitfs::types::{Seq, TxnId, Version};
use common::{Actor, Disk, Mount, commitfs, run, temporary_directory};

fn journal_of(m: &Mount) -> journal::Contents {
    let bytes = std::fs::read(m.backing().join(".commitfs/journal")).unwrap();
    journal::decode(&bytes).unwrap()
}

/// The power goes with these records on the medium, and comes back.
fn cut(m: &Mount, records: &[Record]) {
    leave(m, records);
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
}

fn leave(m: &Mount, records: &[Record]) {
    let mut header = journal_of(m).header;
    header.instance = "before the power cut".into();
    let bytes = journal::encode(&header, records).unwrap();
    std::fs::write(m.backing().join(".commitfs/journal"), bytes).unwrap();
}

fn text(m: &Mount, name: impl AsRef<Path>) -> String {
    let text = std::fs::read(m.backing().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// The contents in a directory of the state, without what describes them.
fn kept(m: &Mount, directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(m.backing().join(".commitfs").join(directory)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_none()).collect()
}

fn is_append(record: &Record) -> bool {
    match record {
        Record::Commit { edits, .. } => edits.iter().any(|e| matches!(e, Edit::Append { .. })),
        _ => false,
    }
}

/// The records before the last append.
fn without_last_append(records: &[Record]) -> &[Record] {
    let last = records.iter().rposition(is_append).expect("an append");
    &records[..last]
}

/// The staging number that a name was given last.
fn staged(records: &[Record], name: &str) -> TxnId {
    let edits = records.iter().rev().filter_map(|record| match record {
        Record::Commit { edits, .. } => Some(edits),
        _ => None,
    });
    let mut puts = edits.flatten().filter_map(|edit| match edit {
        Edit::Put { path, id, .. } if path == Path::new(name) => Some(*id),
        _ => None,
    });
    puts.next().expect("it was committed")
}

/// Rounds come only when they are asked for.
fn slow() -> common::Options {
    Mount::options().separate().args(["--bound", "60000"])
}

fn append(actor: &mut Actor, m: &Mount, name: &str, line: &str) {
    actor.open("line", "a", &m.path(name)).unwrap();
    actor.write("line", line).unwrap();
    actor.close("line").unwrap();
}

fn fsync(actor: &mut Actor, m: &Mount, name: &str) {
    actor.open("sync", "a", &m.path(name)).unwrap();
    actor.fsync("sync").unwrap();
    actor.close("sync").unwrap();
}

#[test]
fn lines_that_came_to_the_disk_before_their_records_are_cut_off() {
    need_daemon!();
    for rotated in [false, true] {
        let limit = if rotated { 1 } else { 4 << 20 };
        let options = slow().env("COMMITFS_JOURNAL_LIMIT", limit);
        let mut m = mount!(options.seed("notes", "zero\n"));
        let mut actor = Actor::new();
        append(&mut actor, &m, "notes", "one\n");
        fsync(&mut actor, &m, "notes");
        append(&mut actor, &m, "notes", "two\n");
        append(&mut actor, &m, "notes", "three\n");
        m.kill_daemon();
        assert_eq!(text(&m, "notes"), "zero\none\ntwo\nthree\n");
        let records = journal_of(&m).records;
        cut(&m, without_last_append(&records));
        assert_eq!(text(&m, "notes"), "zero\none\ntwo\n", "rotated: {rotated}");
        // It might have come from elsewhere, so it is kept where people look for what is missing.
        let [kept] = &kept(&m, "rejected")[..] else {
            panic!("one line is kept");
        };
        assert_eq!(std::fs::read(kept).unwrap(), b"three\n");
    }
}

/// Recovery with something in its environment.
fn recover_with(m: &Mount, variable: &str, value: &str) -> common::Run {
    let mut check = std::process::Command::new(common::run::binary());
    check.args(["check", "--recover"]).arg(m.backing());
    check.env(variable, value);
    run(&mut check, std::time::Duration::from_secs(20))
}

#[test]
fn what_is_cut_off_is_kept_first_or_told_or_not_cut_off() {
    need_daemon!();
    let whole = "zero\none\ntwo\nthree\n";
    // What goes wrong, what the file and what rejected have then, and how much is told to be lost.
    let failing = |errno: i32| ("COMMITFS_FAIL_AT", format!("staging-create:{errno}:1"));
    for (how, left, rejected, lost) in [
        (
            failing(libc::ENOSPC),
            "zero\none\ntwo\n",
            &["three\n"][..],
            None,
        ),
        (failing(libc::EIO), whole, &[], None),
        (
            ("COMMITFS_KEPT_CUT", "2".into()),
            "zero\none\ntwo\n",
            &["th"],
            Some(4),
        ),
    ] {
        let mut m = mount!(slow().seed("notes", "zero\n"));
        let mut actor = Actor::new();
        append(&mut actor, &m, "notes", "one\n");
        fsync(&mut actor, &m, "notes");
        append(&mut actor, &m, "notes", "two\n");
        append(&mut actor, &m, "notes", "three\n");
        m.kill_daemon();
        let records = journal_of(&m).records;
        leave(&m, without_last_append(&records));
        let recovered = recover_with(&m, how.0, &how.1);
        assert_eq!(text(&m, "notes"), left, "{how:?}: {recovered:?}");
        let kept = kept(&m, "rejected").into_iter();
        let kept: Vec<_> = kept.map(|k| std::fs::read_to_string(k).unwrap()).collect();
        assert_eq!(kept, rejected, "{how:?}: {recovered:?}");
        let told = std::fs::read(m.backing().join(".commitfs/errors")).unwrap_or_default();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap_or_default();
        assert_eq!(told[0]["dropped_bytes"].as_u64(), lost, "{how:?}: {told}");
    }
}

/// The daemon was killed with these records in its journal, and nothing else has happened.
fn recover_killed(m: &Mount, records: &[Record]) {
    let bytes = journal::encode(&journal_of(m).header, records).unwrap();
    std::fs::write(m.backing().join(".commitfs/journal"), bytes).unwrap();
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
}

/// Of the last append: its number, and the file that it was made to.
fn last_append(records: &[Record]) -> (Seq, journal::FileKey) {
    let last = records.iter().rev().find_map(|record| match record {
        Record::Commit { seq, edits } => match edits[..] {
            [
                Edit::Append {
                    file: Some(file), ..
                },
            ] => Some((*seq, file)),
            _ => None,
        },
        _ => None,
    });
    last.expect("an append")
}

#[test]
fn a_line_in_the_place_of_one_that_failed_outlives_a_kill() {
    // The first was journalled and couldn't be written, and neither could that it is withdrawn.
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    append(&mut Actor::new(), &m, "notes", "one\n");
    m.kill_daemon();
    let mut records = journal_of(&m).records;
    let place = records.iter().rposition(is_append).unwrap();
    let mut next = records[place].clone();
    if let Record::Commit { seq, .. } = &mut next {
        *seq = seq.next();
    }
    if let Record::Commit { edits, .. } = &mut records[place]
        && let [Edit::Append { crc, .. }] = &mut edits[..]
    {
        *crc ^= 1;
    }
    records.insert(place + 1, next);
    recover_killed(&m, &records);
    assert_eq!(text(&m, "notes"), "zero\none\n", "{records:#?}");
}

#[test]
fn what_is_written_over_a_line_in_direct_mode_is_not_cut_off() {
    need_daemon!();
    for power_cut in [false, true] {
        let mut m = mount!(slow().seed("notes", "zero\n"));
        append(&mut Actor::new(), &m, "notes", "one\n");
        m.kill_daemon();
        let mut records = journal_of(&m).records;
        let (_, file) = last_append(&records);
        records.push(Record::Settled { file });
        std::fs::OpenOptions::new()
            .write(true)
            .open(m.backing().join("notes"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"ZERO\nONE\n"))
            .unwrap();
        match power_cut {
            true => cut(&m, &records),
            false => recover_killed(&m, &records),
        }
        assert_eq!(
            text(&m, "notes"),
            "ZERO\nONE\n",
            "{power_cut}: {records:#?}"
        );
    }
}

#[test]
fn a_file_whose_birth_is_unknown_is_looked_for_where_it_was_only() {
    // Its inode number may be another's by now.
    need_daemon!();
    let without = ("COMMITFS_WITHOUT", "birth-times");
    let mut m = mount!(slow().seed("notes", "zero\n").env(without.0, without.1));
    append(&mut Actor::new(), &m, "notes", "one\n");
    m.kill_daemon();
    let records = journal_of(&m).records;
    assert_eq!(last_append(&records).1.btime_ns, 0);
    let another = m.backing().join("another");
    std::fs::rename(m.backing().join("notes"), &another).unwrap();
    std::fs::write(&another, "nobody's append\n").unwrap();
    leave(&m, &records);
    let recovered = recover_with(&m, without.0, without.1);
    assert_eq!(recovered.code, Some(0), "{recovered:?}");
    assert_eq!(text(&m, "another"), "nobody's append\n");
}

#[test]
fn zeros_in_the_place_of_lines_that_a_power_cut_took_are_cut_off() {
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    let mut actor = Actor::new();
    append(&mut actor, &m, "notes", "one\n");
    fsync(&mut actor, &m, "notes");
    append(&mut actor, &m, "notes", "two\n");
    m.kill_daemon();
    // The file's length has come to the medium, and nothing else.
    let mut bytes = text(&m, "notes").into_bytes();
    let end = bytes.len() - 4;
    bytes[end..].fill(0);
    std::fs::OpenOptions::new()
        .write(true)
        .open(m.backing().join("notes"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
        .unwrap();
    let records = journal_of(&m).records;
    leave(&m, without_last_append(&records));
    let backing = m.backing().to_str().unwrap().to_owned();
    let told = commitfs(["check", "--content", &backing]);
    assert!(told.out.contains("notes"), "check says so: {told:?}");
    assert_ne!(told.code, Some(0), "{told:?}");
    commitfs(["check", "--recover", &backing]).ok();
    assert_eq!(text(&m, "notes"), "zero\none\n");
    assert!(kept(&m, "rejected").is_empty(), "zeros are nothing");
    commitfs(["check", "--content", &backing]).ok();
}

/// ext4 may write them where space was set aside for a text whose bytes never came.
#[test]
fn a_staging_file_of_zeros_that_a_power_cut_leaves_is_nothing_worth_keeping() {
    need_daemon!();
    for (is_cut, count, when) in [
        (true, 0, "after a power cut"),
        (false, 1, "a program's own, after a kill of the daemon"),
    ] {
        let mut m = mount!(slow());
        let mut actor = Actor::new();
        actor.open("f", "w", &m.path("f")).unwrap();
        actor.write("f", [0; 5000]).unwrap();
        m.kill_daemon();
        let records = journal_of(&m).records;
        match is_cut {
            true => cut(&m, &records),
            false => drop(commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok()),
        }
        assert_eq!(kept(&m, "rejected").len(), count, "{when}");
    }
}

#[test]
fn a_file_that_grows_is_found_under_the_name_it_has_by_then() {
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    let mut actor = Actor::new();
    actor.mkdir(&m.path("old")).unwrap();
    append(&mut actor, &m, "notes", "one\n");
    actor.rename(&m.path("notes"), &m.path("moved")).unwrap();
    append(&mut actor, &m, "moved", "two\n");
    fsync(&mut actor, &m, "moved");
    append(&mut actor, &m, "moved", "three\n");
    // Another link, and a description that has lost the name it was opened by.
    actor.link(&m.path("moved"), &m.path("old/link")).unwrap();
    actor.open("log", "a", &m.path("moved")).unwrap();
    actor.unlink(&m.path("moved")).unwrap();
    actor.write("log", "four\n").unwrap();
    actor.fsync("log").unwrap();
    actor.write("log", "five\n").unwrap();
    m.kill_daemon();
    assert!(text(&m, "old/link").ends_with("four\nfive\n"));
    let records = journal_of(&m).records;
    cut(&m, without_last_append(&records));
    assert_eq!(text(&m, "old/link"), "zero\none\ntwo\nthree\nfour\n");
}

#[test]
fn what_is_written_in_place_in_direct_mode_is_not_cut_off() {
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    let mut actor = Actor::new();
    append(&mut actor, &m, "notes", "one\n");
    actor
        .rename(&m.path("notes"), &m.path("notes.log"))
        .unwrap();
    actor.open("direct", "a", &m.path("notes.log")).unwrap();
    actor.write("direct", "two\n").unwrap();
    actor.fsync("direct").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    cut(&m, &records);
    assert_eq!(text(&m, "notes.log"), "zero\none\ntwo\n");
}

#[test]
fn what_is_changed_between_an_unmount_and_a_power_cut_is_nobodys_append() {
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    append(&mut Actor::new(), &m, "notes", "one\n");
    m.unmount();
    let path = m.backing().join("notes");
    std::fs::write(&path, "zero\none\nby hand\n").unwrap();
    let records = journal_of(&m).records;
    cut(&m, &records);
    assert_eq!(text(&m, "notes"), "zero\none\nby hand\n");
}

#[test]
fn no_line_is_added_before_the_disk_knows_that_its_file_grows() {
    need_daemon!();
    let failing = format!("C19-sync-journal:{}", libc::EIO);
    let m = mount!(
        slow()
            .seed("notes", "zero\n")
            .env("COMMITFS_FAIL_AT", failing)
    );
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("notes")).unwrap();
    assert!(actor.write("f", "one\n").is_err());
    assert_eq!(text(&m, "notes"), "zero\n");
}

#[test]
fn many_who_append_to_one_file_wait_for_the_disk_once() {
    need_daemon!();
    let mut m = mount!(slow().seed("notes", "zero\n"));
    let mut actor = Actor::new();
    for number in 0..50 {
        append(&mut actor, &m, "notes", &format!("{number}\n"));
    }
    m.kill_daemon();
    let records = journal_of(&m).records;
    let grows = records
        .iter()
        .filter(|r| matches!(r, Record::Growing { .. }));
    let rounds = records
        .iter()
        .filter(|r| matches!(r, Record::Durable { .. }));
    assert_eq!((grows.count(), rounds.count()), (1, 0), "{records:#?}");
}

#[test]
fn a_synced_save_outlives_a_power_cut_that_takes_a_commit_before_its_own() {
    need_daemon!();
    // The daemon ends when a round begins, for which the save's RELEASE asks.
    let mut m = mount!(slow().env("COMMITFS_CRASH_AT", "checkpoint-begun"));
    let (mut saver, mut other) = (Actor::new(), Actor::new());
    saver.open("f", "w+", &m.path("precious")).unwrap();
    saver.write("f", "precious").unwrap();
    saver.fsync("f").unwrap();
    saver.mmap("f", "map", 4096, "r").unwrap();
    saver.close("f").unwrap();
    // Not front to back, so that nobody can tell whether it is whole.
    other.open("f", "w", &m.path("large")).unwrap();
    other.pwrite("f", 1 << 20, &vec![1; 1 << 20]).unwrap();
    other.pwrite("f", 0, &vec![1; 1 << 20]).unwrap();
    other.close("f").unwrap();
    saver.munmap("map").unwrap();
    let limit = std::time::Duration::from_secs(20);
    common::eventually(limit, "the save asks for a round", || !m.daemon_lives());
    m.kill_daemon();
    let records = journal_of(&m).records;
    let lost = staged(&records, "large");
    std::fs::write(staging(&m, lost), "").unwrap();
    cut(&m, &records);
    assert_eq!(text(&m, "precious"), "precious");
    assert!(!m.backing().join("large").exists());
}

#[test]
fn a_file_that_was_renamed_over_a_synced_writers_name_outlives_a_kill() {
    // The rename came later than the fsync, and has returned.
    need_daemon!();
    for exchange in [false, true] {
        let mut m = mount!(slow().seed("name", "old").seed("other", "renamed"));
        let (mut writer, mut renamer) = (Actor::new(), Actor::new());
        writer.open("f", "w", &m.path("name")).unwrap();
        writer.write("f", "synced").unwrap();
        writer.fsync("f").unwrap();
        let (from, to) = (m.path("other"), m.path("name"));
        match exchange {
            true => renamer.exchange(&from, &to).unwrap(),
            false => renamer.rename(&from, &to).unwrap(),
        }
        assert_eq!(m.text("name").as_deref(), Some("renamed"));
        m.kill_daemon();
        let records = journal_of(&m).records;
        commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
        assert_eq!(text(&m, "name"), "renamed", "{exchange}: {records:#?}");
        if exchange {
            // The writer has gone with its file.
            assert_eq!(text(&m, "other"), "synced", "{records:#?}");
            continue;
        }
        let kept = kept(&m, "rejected");
        let all = kept.iter().map(|path| std::fs::read(path).unwrap());
        assert!(all.into_iter().any(|content| content == b"synced"));
    }
}

#[test]
fn what_was_synced_goes_with_its_file_to_a_name_that_somebody_has_committed() {
    need_daemon!();
    for (exchange, rotated) in [(false, false), (true, false), (true, true)] {
        let limit = if rotated { 1 } else { 4 << 20 };
        let options = slow().env("COMMITFS_JOURNAL_LIMIT", limit);
        let mut m = mount!(options.seed("a", "old").seed("other", "zero\n"));
        let (mut writer, mut other) = (Actor::new(), Actor::new());
        writer.open("f", "r+", &m.path("a")).unwrap();
        writer.write("f", "synced").unwrap();
        writer.fsync("f").unwrap();
        other.save(&m.path("b"), "committed later").unwrap();
        let (from, to) = (m.path("a"), m.path("b"));
        match exchange {
            true => other.exchange(&from, &to).unwrap(),
            false => other.rename(&from, &to).unwrap(),
        }
        if rotated {
            fsync(&mut other, &m, "other");
            other.save(&m.path("other"), "one").unwrap();
            fsync(&mut other, &m, "other");
        }
        m.kill_daemon();
        let records = journal_of(&m).records;
        commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
        assert_eq!(
            text(&m, "b"),
            "synced",
            "{exchange} {rotated}: {records:#?}"
        );
        if exchange {
            assert_eq!(text(&m, "a"), "committed later");
        }
    }
}

#[test]
fn what_was_closed_goes_with_its_file_to_a_name_that_somebody_has_committed() {
    need_daemon!();
    // None of the files is in place yet, and a mapping holds back the commit of what was closed.
    let mut m = mount!(slow());
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    other.save(&m.path("a"), "old").unwrap();
    writer.open("f", "w+", &m.path("a")).unwrap();
    writer.write("f", "closed").unwrap();
    writer.mmap("f", "map", 4096, "r").unwrap();
    writer.close("f").unwrap();
    other.save(&m.path("b"), "committed later").unwrap();
    other.rename(&m.path("a"), &m.path("b")).unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
    assert_eq!(text(&m, "b"), "closed", "{records:#?}");
    assert!(!m.backing().join("a").exists());
}

#[test]
fn a_new_journal_knows_what_was_synced_before_a_commit_that_a_power_cut_takes() {
    need_daemon!();
    // The commit has to come while a round waits for the disk, which ends with a new journal.
    for _ in 0..10 {
        let options = slow().env("COMMITFS_ROUND_DELAY_MS", 600);
        let mut m = mount!(options.env("COMMITFS_JOURNAL_LIMIT", 1));
        let (mut writer, mut other, mut waiter) = (Actor::new(), Actor::new(), Actor::new());
        writer.open("f", "w", &m.path("precious")).unwrap();
        writer.write("f", "synced").unwrap();
        writer.fsync("f").unwrap();
        other.save(&m.path("other"), "to be put in place").unwrap();
        // Not the directory: the kernel holds that while it is synced.
        waiter.open("d", "r", &m.path("other")).unwrap();
        waiter.start("fsync", &[b"d"]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        other.save(&m.path("precious"), "lost").unwrap();
        waiter.finish().unwrap();
        m.kill_daemon();
        let journal = journal_of(&m);
        let is_lost = |record: &Record| match record {
            Record::Commit { seq, edits } => {
                let puts = edits.iter().filter_map(Edit::put_path);
                *seq > journal.header.durable_seq && puts.into_iter().any(|p| p == "precious")
            }
            _ => false,
        };
        let durable = journal.records.iter();
        let durable = durable.filter(|r| matches!(r, Record::Durable { .. }));
        if !journal.records.iter().any(is_lost) || durable.count() > 0 {
            continue;
        }
        let lost = staged(&journal.records, "precious");
        let begins = |r: &Record| matches!(r, Record::Begin { id, .. } if *id == lost);
        if journal.records.iter().any(begins) {
            // It came after that.
            continue;
        }
        std::fs::write(staging(&m, lost), "").unwrap();
        cut(&m, &journal.records);
        assert_eq!(text(&m, "precious"), "synced", "{:#?}", journal.records);
        return;
    }
    panic!("no commit came during a round");
}

#[test]
fn a_removal_while_a_round_is_under_way_is_not_covered_by_that() {
    need_daemon!();
    // By the next round, it is.
    for covered in [false, true] {
        let options = slow().env("COMMITFS_ROUND_DELAY_MS", 600);
        let mut m = mount!(options.seed("removed.log", "direct"));
        let (mut saver, mut other) = (Actor::new(), Actor::new());
        saver.save(&m.path("first"), "first").unwrap();
        saver.open("f", "r", &m.path("first")).unwrap();
        saver.start("fsync", &[b"f"]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        other.unlink(&m.path("removed.log")).unwrap();
        other.save(&m.path("second"), "second").unwrap();
        saver.finish().unwrap();
        if covered {
            fsync(&mut saver, &m, "first");
            other.save(&m.path("third"), "third").unwrap();
        }
        m.kill_daemon();
        let records = journal_of(&m).records;
        if !covered {
            // The removal hasn't come to the medium.
            std::fs::write(m.backing().join("removed.log"), "direct").unwrap();
        }
        cut(&m, &records);
        let there = |name: &str| m.backing().join(name).exists();
        assert_eq!(text(&m, "first"), "first", "{records:#?}");
        assert_eq!(there("second"), covered, "{records:#?}");
        assert_eq!(there("third"), covered, "{records:#?}");
    }
}

#[test]
fn a_new_journal_has_what_a_removal_that_a_power_cut_may_take_has_removed() {
    need_daemon!();
    for power in [true, false] {
        let options = slow().env("COMMITFS_ROUND_DELAY_MS", 600);
        let mut m = mount!(options.env("COMMITFS_JOURNAL_LIMIT", 1));
        let (mut saver, mut other) = (Actor::new(), Actor::new());
        saver.save(&m.path("precious"), "durable").unwrap();
        // Not the file itself: the kernel holds that while it is synced.
        saver.save(&m.path("asked"), "durable").unwrap();
        saver.open("f", "r", &m.path("asked")).unwrap();
        saver.start("fsync", &[b"f"]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        // Its content is lost, and with that all that comes behind it.
        other.save(&m.path("lost"), "lost").unwrap();
        other.unlink(&m.path("precious")).unwrap();
        saver.finish().unwrap();
        m.kill_daemon();
        let journal = journal_of(&m);
        let dropped = journal.records.iter().any(|record| match record {
            Record::Commit { edits, .. } => edits.iter().any(|e| matches!(e, Edit::Drop { .. })),
            _ => false,
        });
        let records = &journal.records;
        assert!(
            dropped && journal.header.durable_seq >= Seq(1),
            "{records:#?}"
        );
        if power {
            std::fs::write(staging(&m, staged(records, "lost")), "").unwrap();
            cut(&m, records);
            assert_eq!(text(&m, "precious"), "durable", "{records:#?}");
        } else {
            commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
            assert!(!m.backing().join("precious").exists());
            assert_eq!(text(&m, "lost"), "lost");
        }
        assert!(kept(&m, "rejected").is_empty(), "{records:#?}");
    }
}

/// A round that had nothing to do but to sync directories.
#[test]
fn what_comes_after_a_round_without_commits_counts() {
    need_daemon!();
    let mut m = mount!(slow());
    let mut actor = Actor::new();
    actor.mkdir(&m.path("run")).unwrap();
    m.python("import os\nos.fsync(os.open('.', os.O_RDONLY))")
        .ok();
    actor.save(&m.path("run/state"), "state").unwrap();
    actor.save(&m.path("index"), "run/state").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    cut(&m, &records);
    assert_eq!(text(&m, "run/state"), "state", "{records:#?}");
    assert_eq!(text(&m, "index"), "run/state", "{records:#?}");
}

#[test]
fn a_directory_that_a_power_cut_takes_has_no_later_commit_behind_it() {
    need_daemon!();
    let mut m = mount!(slow().seed("index", "nothing"));
    let mut actor = Actor::new();
    actor.mkdir(&m.path("run")).unwrap();
    actor.save(&m.path("run/state"), "state").unwrap();
    actor.save(&m.path("index"), "run/state").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    std::fs::remove_dir(m.backing().join("run")).unwrap();
    cut(&m, &records);
    assert_eq!(text(&m, "index"), "nothing", "{records:#?}");
}

#[test]
fn a_link_that_a_power_cut_takes_has_no_later_commit_behind_it() {
    // `ln state state.old`, and then a new state: the only copy of the old one would be gone.
    need_daemon!();
    let mut m = mount!(slow().seed("state", "old"));
    let mut actor = Actor::new();
    actor.link(&m.path("state"), &m.path("state.old")).unwrap();
    actor.save(&m.path("state"), "new").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    std::fs::remove_file(m.backing().join("state.old")).unwrap();
    cut(&m, &records);
    assert_eq!(text(&m, "state"), "old", "{records:#?}");
}

fn staging(m: &Mount, id: TxnId) -> PathBuf {
    let name = commitfs::store::id_name(id);
    m.backing().join(".commitfs/staging").join(name)
}

#[test]
fn a_staging_entry_that_outlives_its_rename_is_taken_away_and_nothing_else() {
    // On btrfs a power cut can leave both names of a renamed file.
    need_daemon!();
    for with_records in [true, false] {
        let mut m = mount!(slow());
        let mut actor = Actor::new();
        actor.save(&m.path("notes"), "one\n").unwrap();
        append(&mut actor, &m, "notes", "two\n");
        fsync(&mut actor, &m, "notes");
        m.kill_daemon();
        let records = journal_of(&m).records;
        let entry = staging(&m, staged(&records, "notes"));
        std::fs::hard_link(m.backing().join("notes"), &entry).unwrap();
        cut(&m, if with_records { &records } else { &[] });
        assert_eq!(text(&m, "notes"), "one\ntwo\n");
        assert!(!entry.exists(), "with records: {with_records}");
        assert!(
            kept(&m, "rejected").is_empty(),
            "with records: {with_records}"
        );
        let links = m.backing().join("notes").metadata().unwrap().nlink();
        assert_eq!(links, 1);
    }
}

#[test]
fn recovery_that_is_killed_decides_the_same_the_next_time() {
    // It writes the text of a patched document, which is just what a commit beyond the prefix had
    // put there.
    need_daemon!();
    let mut m = mount!(slow().seed("d.json", r#"{"n": 0}"#));
    let mut actor = Actor::new();
    let patch = br#"[{"op": "replace", "path": "/n", "value": 1}]"#;
    let document = m.path("d.json");
    actor
        .setxattr(&document, "user.commitfs.json.patch", patch)
        .unwrap();
    // To be read, it is written out.
    assert_eq!(actor.cat(&document).unwrap(), br#"{"n": 1}"#);
    actor.save(&m.path("later"), "later").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    std::fs::write(staging(&m, staged(&records, "d.json")), "").unwrap();
    leave(&m, &records);
    let mut killed = std::process::Command::new(common::run::binary());
    killed.args(["check", "--recover"]).arg(m.backing());
    killed.env("COMMITFS_CRASH_AT", "recovery-replayed");
    let killed = run(&mut killed, std::time::Duration::from_secs(20));
    assert_eq!(killed.code, None, "{killed:?}");
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
    assert_eq!(text(&m, "d.json"), r#"{"n": 1}"#);
    assert!(
        !m.backing().join("later").exists(),
        "it is beyond the prefix"
    );
}

#[test]
fn under_sync_durability_lines_are_durable_when_their_close_returns() {
    need_daemon!();
    let m = mount!(slow().sync().seed("notes", "zero\n"));
    let mut actor = Actor::new();
    for (name, flags) in [("notes", "a"), ("new-notes", "a"), ("stream.txt", "w")] {
        actor.open("f", flags, &m.path(name)).unwrap();
        for line in ["one\n", "two\n", "half"] {
            actor.write("f", line).unwrap();
        }
        actor.close("f").unwrap();
        let records = journal_of(&m).records;
        let last = records.iter().filter_map(|record| match record {
            Record::Commit { seq, .. } => Some(*seq),
            _ => None,
        });
        let durable = records.iter().filter_map(|record| match record {
            Record::Durable { seq } => Some(*seq),
            _ => None,
        });
        assert_eq!(last.max(), durable.max(), "{name}: {records:#?}");
        assert!(text(&m, name).ends_with("one\ntwo\nhalf"), "{name}");
    }
}

#[test]
fn rejected_content_survives_a_power_cut_with_its_name() {
    need_root!();
    let below = temporary_directory();
    let outer = Disk::xfs(&below.join("outer"), 2048);
    let image = outer.path().join("disk");
    let Some(m) = slow().on(Disk::xfs(&image, 400)).mount() else {
        return;
    };
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("half")).unwrap();
    writer.write("f", "half of it").unwrap();
    writer.kill(libc::SIGKILL);
    let forgotten = |record: &Record| matches!(record, Record::Abort { .. });
    let limit = std::time::Duration::from_secs(10);
    common::eventually(limit, "the journal forgets it", || {
        journal_of(&m).records.iter().any(forgotten)
    });
    let copy = outer.path().join("cut");
    let mut cp = std::process::Command::new("cp");
    cp.arg("--reflink=always").arg(&image).arg(&copy);
    run(&mut cp, std::time::Duration::from_secs(60)).ok();
    let disk = Disk::existing(&copy, "loop,nouuid");
    let seen = Mount::options().on(disk).mount().expect("a mount");
    let rejected = seen.rejected();
    let told: Vec<_> = rejected
        .iter()
        .map(|r| (r.path.as_str(), &r.content[..]))
        .collect();
    assert_eq!(told, [("half", &b"half of it"[..])]);
    drop((seen, m, outer));
    let _ = std::fs::remove_dir_all(&below);
}

#[test]
fn what_was_synced_and_then_published_while_it_was_open_stays() {
    need_daemon!();
    let rule = "[[rule]]\nglob = \"status.json\"\npublish = \"whole\"\n";
    // The publication came to the medium, or not.
    for published in [true, false] {
        let options = slow().rules(rule).seed("status.json", "{\"step\": 10}");
        let mut m = mount!(options);
        let mut writer = Actor::new();
        writer.open("f", "r+", &m.path("status.json")).unwrap();
        writer.pwrite("f", 0, b"{\"step\": 2}").unwrap();
        writer.ftruncate("f", 11).unwrap();
        writer.fsync("f").unwrap();
        common::eventually(std::time::Duration::from_secs(10), "it is shown", || {
            m.text("status.json").as_deref() == Some("{\"step\": 2}")
        });
        writer.pwrite("f", 0, b"{\"step\": ").unwrap();
        writer.ftruncate("f", 9).unwrap();
        m.kill_daemon();
        let records = journal_of(&m).records;
        let synced = |record: &Record| matches!(record, Record::Fsynced { .. });
        let synced = records.iter().position(synced).expect("an fsync");
        let on_medium = if published { records.len() } else { synced + 1 };
        cut(&m, &records[..on_medium]);
        assert_eq!(text(&m, "status.json"), "{\"step\": 2}", "{published}");
    }
}

/// A commit of many files at once, as a journal has it, and its staging files.
fn many(m: &Mount, count: u64) -> (Vec<Record>, PathBuf) {
    let staging = m.backing().join(".commitfs/staging");
    let edits = (0..count).map(|n| {
        let (text, id) = (format!("new {n}"), TxnId(1000 + n));
        std::fs::write(staging.join(format!("{:016x}", id.0)), &text).unwrap();
        Edit::Put {
            path: format!("d{}/f{n}", n % 100).into(),
            id,
            version: Version(2),
            content: ContentInfo {
                len: text.len() as u64,
                crc: Some(crc32c::crc32c(text.as_bytes())),
                ..ContentInfo::default()
            },
            in_place: false,
        }
    });
    let (seq, edits) = (Seq(1_000_000), edits.collect());
    (vec![Record::Commit { seq, edits }], staging)
}

/// How many of these files have what the commit gives them; all others have what they had.
fn renewed(m: &Mount, count: u64) -> u64 {
    let is_new = |n: &u64| {
        let (dir, found) = (n % 100, text(m, format!("d{}/f{n}", n % 100)));
        let is_new = found == format!("new {n}");
        assert!(
            is_new || found == format!("old {n}"),
            "d{dir}/f{n}: {found:?}"
        );
        is_new
    };
    (0..count).filter(is_new).count() as u64
}

#[test]
fn a_commit_of_many_files_counts_whole_or_not_at_all() {
    need_daemon!();
    const COUNT: u64 = 2_000;
    let names = (0..COUNT).map(|n| (format!("d{}/f{n}", n % 100), format!("old {n}")));
    let seeded = || {
        names
            .clone()
            .fold(slow(), |o, (name, text)| o.seed(&name, text))
    };
    // A torn record, a content that the medium hasn't, and one of another text: none of it.
    for torn in [true, false] {
        let mut m = mount!(seeded());
        m.kill_daemon();
        let (records, staging) = many(&m, COUNT);
        leave(&m, &records);
        let journal = m.backing().join(".commitfs/journal");
        match torn {
            true => {
                let len = std::fs::metadata(&journal).unwrap().len();
                let file = std::fs::OpenOptions::new().write(true).open(&journal);
                file.unwrap().set_len(len - 1).unwrap();
            }
            false => std::fs::write(staging.join(format!("{:016x}", 1000 + 777)), "new 7").unwrap(),
        }
        commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
        assert_eq!(renewed(&m, COUNT), 0, "torn: {torn}");
    }
    // Whole, and recovery ends in the middle: all of it, the next time.
    for point in [
        "recovery-replayed",
        "recovery-placed:700",
        "recovery-applied",
    ] {
        let mut m = mount!(seeded());
        m.kill_daemon();
        let (records, _) = many(&m, COUNT);
        leave(&m, &records);
        recover_with(&m, "COMMITFS_CRASH_AT", point);
        if point.contains(':') {
            assert_eq!(renewed(&m, COUNT), 700, "{point}");
        }
        commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
        assert_eq!(renewed(&m, COUNT), COUNT, "{point}");
    }
}

/// All that is committed so far is in its place.
fn sync_all(m: &Mount) {
    let mut actor = Actor::new();
    actor.open("d", "r|directory", m.mountpoint()).unwrap();
    actor.fsync("d").unwrap();
}

fn is_inlined(record: &Record) -> bool {
    matches!(record, Record::Inlined { .. })
}

/// Opens a file anew, writes, and calls fsync.
fn write_and_sync(m: &Mount, name: &str, text: &str) -> Actor {
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path(name)).unwrap();
    writer.write("f", text).unwrap();
    writer.fsync("f").unwrap();
    writer
}

/// What a power cut makes of staging files that were not synced.
fn lose(m: &Mount, how: &str) {
    let staged = kept(m, "staging");
    assert!(!staged.is_empty());
    for path in staged {
        let len = std::fs::metadata(&path).unwrap().len() as usize;
        match how {
            "missing" => std::fs::remove_file(path).unwrap(),
            "empty" => std::fs::write(path, "").unwrap(),
            "zeros" => std::fs::write(path, vec![0; len]).unwrap(),
            _ => std::fs::write(path, vec![b'?'; len + 3]).unwrap(),
        }
    }
}

#[test]
fn what_was_fsynced_and_is_small_is_on_the_medium_with_the_journal() {
    need_daemon!();
    need_features!("inline_content");
    for how in ["missing", "empty", "zeros", "other"] {
        for (closed, limit) in [(false, 4 << 20), (true, 4 << 20), (false, 1), (true, 1)] {
            let options = slow().env("COMMITFS_JOURNAL_LIMIT", limit);
            let mut m = mount!(options.seed("f", "old").seed("other", "old"));
            let file = m.backing().join("f");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
            std::fs::set_permissions(&file, mode).unwrap();
            let mut writer = write_and_sync(&m, "f", "new and longer");
            if closed {
                writer.close("f").unwrap();
            }
            if limit == 1 && !closed {
                // A round of somebody else's begins a new journal.
                let mut other = write_and_sync(&m, "other", &"saved".repeat(2000));
                other.close("f").unwrap();
                sync_all(&m);
                let begun = journal_of(&m).header.durable_seq;
                assert_ne!(begun, Seq::default(), "it is another one");
            }
            m.kill_daemon();
            let records = journal_of(&m).records;
            assert!(
                records.iter().any(is_inlined),
                "{closed} {limit}: {records:?}"
            );
            lose(&m, how);
            cut(&m, &records);
            assert_eq!(
                text(&m, "f"),
                "new and longer",
                "{how} {closed} {limit}: {records:#?}"
            );
            let stat = std::fs::metadata(&file).unwrap();
            assert_eq!(stat.mode() & 0o7777, 0o640, "{how} {closed} {limit}");
        }
    }
}

#[test]
fn what_was_fsynced_is_not_torn_by_what_was_written_after_it() {
    need_daemon!();
    need_features!("inline_content");
    let mut m = mount!(slow().seed("f", "old"));
    let mut writer = write_and_sync(&m, "f", "promised");
    writer.pwrite("f", 2, b"XX").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    cut(&m, &records);
    assert_eq!(text(&m, "f"), "promised");
}

#[test]
fn a_record_that_is_torn_takes_nothing_with_it_that_was_acknowledged() {
    need_daemon!();
    need_features!("inline_content");
    let mut m = mount!(slow().seed("f", "old"));
    let mut writer = write_and_sync(&m, "f", "first");
    writer.pwrite("f", 0, b"FIRST").unwrap();
    writer.fsync("f").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    let last = records.iter().rposition(is_inlined).unwrap();
    for (upto, expected) in [(last, "first"), (last + 1, "first"), (last + 2, "FIRST")] {
        let staged = kept(&m, "staging");
        let content = std::fs::read(&staged[0]).unwrap();
        lose(&m, "zeros");
        leave(&m, &records[..upto]);
        let copy = temporary_directory();
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(m.backing())
            .arg(copy.join("b"))
            .status();
        assert!(status.unwrap().success());
        let backing = copy.join("b");
        commitfs(["check", "--recover", backing.to_str().unwrap()]).ok();
        assert_eq!(
            std::fs::read(backing.join("f")).unwrap(),
            expected.as_bytes()
        );
        std::fs::write(&staged[0], content).unwrap();
    }
}

#[test]
fn a_file_that_is_in_place_is_not_made_again_from_the_journal() {
    need_daemon!();
    need_features!("inline_content");
    let mut m = mount!(slow());
    let mut writer = write_and_sync(&m, "log", "one\n");
    writer.close("f").unwrap();
    sync_all(&m);
    let mut actor = Actor::new();
    append(&mut actor, &m, "log", "two\n");
    fsync(&mut actor, &m, "log");
    m.kill_daemon();
    let records = journal_of(&m).records;
    cut(&m, &records);
    assert_eq!(text(&m, "log"), "one\ntwo\n", "{records:#?}");
}

#[test]
fn a_new_journal_has_the_bytes_of_a_commit_that_came_during_the_round_before_it() {
    need_daemon!();
    need_features!("inline_content");
    for _ in 0..10 {
        let options = slow().env("COMMITFS_ROUND_DELAY_MS", 600);
        let mut m = mount!(options.env("COMMITFS_JOURNAL_LIMIT", 1).seed("f", "old"));
        let promised = "promised".repeat(2000);
        let mut writer = write_and_sync(&m, "f", &promised);
        let (mut other, mut waiter) = (Actor::new(), Actor::new());
        other.save(&m.path("other"), "to be put in place").unwrap();
        waiter.open("d", "r", &m.path("other")).unwrap();
        waiter.start("fsync", &[b"d"]);
        std::thread::sleep(std::time::Duration::from_millis(200));
        writer.close("f").unwrap();
        waiter.finish().unwrap();
        m.kill_daemon();
        let journal = journal_of(&m);
        let since = journal.header.durable_seq;
        let commits = |r: &Record| matches!(r, Record::Commit { seq, .. } if *seq > since);
        let durable = |r: &Record| matches!(r, Record::Durable { .. });
        if !journal.records.iter().any(commits) || journal.records.iter().any(durable) {
            continue;
        }
        let lost = staged(&journal.records, "f");
        std::fs::write(staging(&m, lost), "").unwrap();
        cut(&m, &journal.records);
        assert!(text(&m, "f") == promised, "{}", text(&m, "f").len());
        return;
    }
    panic!("no commit came during a round");
}

#[test]
fn a_round_has_the_file_on_the_medium_whose_bytes_the_journal_has() {
    need_daemon!();
    need_features!("inline_content");
    let m = mount!(slow());
    let mut writer = write_and_sync(&m, "f", "promised");
    assert_ne!(
        dirty_pages(&kept(&m, "staging")[0]),
        Some(0),
        "the journal has it"
    );
    writer.close("f").unwrap();
    sync_all(&m);
    let dirty = dirty_pages(&m.backing().join("f"));
    assert!(matches!(dirty, None | Some(0)), "{dirty:?}");
}

/// Pages of a file that are not on the medium; `None` where the kernel doesn't tell.
fn dirty_pages(path: &Path) -> Option<u64> {
    const CACHESTAT: libc::c_long = 451;
    let file = std::fs::File::open(path).unwrap();
    // From here, so many bytes; and how many pages are cached, dirty, being written, and gone.
    let (range, mut found) = ([0u64, 1 << 30], [0u64; 5]);
    // SAFETY: both are as long as the kernel's.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            range.as_ptr(),
            found.as_mut_ptr(),
            0,
        )
    };
    (result == 0).then_some(found[1] + found[2])
}

#[test]
fn a_file_that_turned_direct_after_an_fsync_is_not_made_what_it_was_then() {
    need_daemon!();
    need_features!("inline_content", "direct_io_allow_mmap");
    let mut m = mount!(slow());
    let mut writer = Actor::new();
    writer.open("f", "rw-create", &m.path("data")).unwrap();
    writer.fsync("f").unwrap();
    writer.pwrite("f", 4096, b"a page").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    let ended = |record: &Record| matches!(record, Record::Abort { .. });
    let ended = records.iter().position(ended).expect("it turned direct");
    cut(&m, &records[..ended]);
    assert_eq!(text(&m, "data").len(), 4102, "{records:#?}");
}

#[test]
fn what_was_refused_is_not_made_again_from_the_journal() {
    need_daemon!();
    need_features!("inline_content");
    let mut m = mount!(slow().seed("f.json", "{}"));
    let mut writer = write_and_sync(&m, "f.json", "{\"n\": 1}");
    writer.pwrite("f", 0, b"{\"half\":").unwrap();
    common::assert_errno(writer.close("f"), "EBADMSG");
    m.await_rejected("f.json", b"{\"half\":");
    m.kill_daemon();
    let records = journal_of(&m).records;
    let ended = |record: &Record| matches!(record, Record::Abort { .. });
    let ended = records.iter().rposition(ended).expect("it was refused");
    cut(&m, &records[..ended]);
    assert_eq!(text(&m, "f.json"), "{}", "{records:#?}");
    let [kept] = &kept(&m, "rejected")[..] else {
        panic!("what was refused is kept once");
    };
    assert_eq!(std::fs::read(kept).unwrap(), b"{\"half\":");
}

/// What an fsync has promised is judged again after a power cut: of a document that isn't whole only the close's promise counts.
#[test]
fn a_close_that_adds_nothing_to_an_fsync_waits_for_the_disk_where_its_word_counts() {
    need_daemon!();
    need_features!("inline_content");
    for (document, waits) in [("{\"n\": 1}", false), ("{n: 1}", true)] {
        // It fails from the second time on.
        let failing = format!("C19-sync-journal:{}:1000:1", libc::EIO);
        let m = mount!(slow().env("COMMITFS_FAIL_AT", failing));
        let mut writer = write_and_sync(&m, "f.json", document);
        let closed = writer.close("f");
        match waits {
            true => common::assert_errno(closed, "EIO"),
            false => closed.unwrap(),
        }
    }
}

#[test]
fn what_is_rolled_forward_has_the_next_number() {
    need_daemon!();
    let mut m = mount!(slow());
    for text in ["first", "second"] {
        m.save("f", text);
    }
    sync_all(&m);
    assert_eq!(m.version("f").unwrap(), 2);
    let writer = write_and_sync(&m, "f", "third");
    m.kill_daemon();
    drop(writer);
    m.remount();
    assert_eq!(m.text("f").as_deref(), Some("third"));
    assert_eq!(m.version("f").unwrap(), 3);
}
