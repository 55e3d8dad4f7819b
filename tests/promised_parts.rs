//! C7, C9: editors of one file, each of its own part, whose daemon or machine ends before all of them have
//! closed. The failure it prevents: a worker has fsync'd its rows, another one closes, the power goes,
//! and the first one's rows are as they were in the beginning.

mod common;

use std::path::{Path, PathBuf};

use commitfs::journal::{self, Edit, Record};
use common::{Actor, Mount, commitfs, run};

fn journal_of(m: &Mount) -> journal::Contents {
    let bytes = std::fs::read(m.backing().join(".commitfs/journal")).unwrap();
    journal::decode(&bytes).unwrap()
}

/// The power goes with these records on the medium, and comes back.
fn cut(m: &Mount, records: &[Record]) {
    let mut header = journal_of(m).header;
    header.instance = "before the power cut".into();
    let bytes = journal::encode(&header, records).unwrap();
    std::fs::write(m.backing().join(".commitfs/journal"), bytes).unwrap();
    recover(m);
}

fn recover(m: &Mount) {
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
}

fn text(m: &Mount, name: &str) -> String {
    let text = std::fs::read(m.backing().join(name)).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

fn rejected(m: &Mount) -> Vec<String> {
    let entries = std::fs::read_dir(m.backing().join(".commitfs/rejected")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let contents = paths.filter(|path| path.extension().is_none());
    contents
        .map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned())
        .collect()
}

/// Rounds come only when they are asked for.
fn slow() -> common::Options {
    Mount::options()
        .separate()
        .args(["--bound", "60000"])
        .seed("f", "abcdefghijkl\n")
        .seed("other", "zero\n")
}

/// Opens `f` to edit it, a part of it locked so that nobody waits.
fn editor(m: &Mount, part: u64) -> Actor {
    let mut actor = Actor::new();
    actor.open("f", "r+", &m.path("f")).unwrap();
    lock(&mut actor, part);
    actor
}

fn lock(actor: &mut Actor, part: u64) {
    let from = part.to_string();
    actor
        .ask("fcntl", &[b"f", b"set", b"write", from.as_bytes(), b"1"])
        .unwrap();
}

/// One has written the first three bytes, and fsync'd them.
fn synced(m: &Mount) -> Actor {
    let mut one = editor(m, 0);
    one.pwrite("f", 0, b"XYZ").unwrap();
    one.fsync("f").unwrap();
    one
}

/// Another one commits what it writes in the middle.
fn other_commits(m: &Mount) {
    let mut other = editor(m, 6);
    other.pwrite("f", 6, b"UVW").unwrap();
    other.close("f").unwrap();
    other.exit(0);
}

/// Two rounds, each of which ends with a new journal where that is asked for.
fn rounds(m: &Mount) {
    let mut actor = Actor::new();
    for content in ["one", "two"] {
        actor.save(&m.path("other"), content).unwrap();
        actor.open("sync", "r", &m.path("other")).unwrap();
        actor.fsync("sync").unwrap();
        actor.close("sync").unwrap();
    }
}

const BOTH: &str = "XYZdefUVWjkl\n";

#[test]
fn what_an_editor_has_fsynced_goes_into_what_others_have_committed_since() {
    need_features!("posix_locks");
    need_daemon!();
    for (rotated, power_cut) in [(false, false), (true, false), (false, true), (true, true)] {
        let limit = if rotated { 1 } else { 4 << 20 };
        let mut m = mount!(slow().env("COMMITFS_JOURNAL_LIMIT", limit));
        let mut one = synced(&m);
        other_commits(&m);
        rounds(&m);
        // Not fsync'd, and thus not promised.
        one.pwrite("f", 9, b"??").unwrap();
        m.kill_daemon();
        let records = journal_of(&m).records;
        match power_cut {
            true => cut(&m, &records),
            false => recover(&m),
        }
        assert_eq!(text(&m, "f"), BOTH, "{rotated} {power_cut}: {records:#?}");
        assert!(rejected(&m).is_empty());
    }
}

#[test]
fn what_several_have_fsynced_and_not_closed_is_all_there() {
    need_features!("posix_locks");
    need_daemon!();
    let mut m = mount!(slow());
    let _one = synced(&m);
    let mut two = editor(&m, 6);
    two.pwrite("f", 6, b"UVW").unwrap();
    two.fsync("f").unwrap();
    m.kill_daemon();
    recover(&m);
    assert_eq!(text(&m, "f"), BOTH);
}

/// Somebody adds to `f`.
fn add(m: &Mount, lines: &str) {
    let mut adds = Actor::new();
    adds.open("f", "a", &m.path("f")).unwrap();
    adds.write("f", lines.as_bytes()).unwrap();
    adds.close("f").unwrap();
}

#[test]
fn lines_that_others_add_to_what_several_editors_have_fsynced_stay_once() {
    need_features!("posix_locks", "direct_io_allow_mmap");
    need_daemon!();
    let behind = "XYZdefUVWjkl\nmore of one\n";
    for (first, between, after) in [
        (true, "", "line\n"),
        (true, "line\n", ""),
        (true, "line\n", "another\n"),
        (false, "", "line\n"),
        (false, "line\n", ""),
        (false, "line\n", "another\n"),
    ] {
        for power_cut in [false, true] {
            let mut m = mount!(slow());
            let mut one = synced(&m);
            if !first {
                one.pwrite("f", 13, b"more of one\n").unwrap();
                one.fsync("f").unwrap();
            }
            add(&m, between);
            let mut two = editor(&m, 6);
            two.pwrite("f", 6, b"UVW").unwrap();
            two.fsync("f").unwrap();
            add(&m, after);
            m.kill_daemon();
            let records = journal_of(&m).records;
            match power_cut {
                true => cut(&m, &records),
                false => recover(&m),
            }
            let all = if first { BOTH } else { behind };
            let all = [all, between, after].concat();
            assert_eq!(text(&m, "f"), all, "{first} {power_cut}: {records:#?}");
        }
    }
}

#[test]
fn a_close_that_was_answered_counts_though_anothers_close_comes_before_its_release() {
    need_features!("posix_locks");
    need_daemon!();
    let mut m = mount!(slow());
    let mut one = editor(&m, 0);
    one.pwrite("f", 0, b"XYZ").unwrap();
    // What is mapped is not released.
    one.mmap("f", "map", 4, "r").unwrap();
    one.close("f").unwrap();
    other_commits(&m);
    m.kill_daemon();
    let records = journal_of(&m).records;
    recover(&m);
    assert_eq!(text(&m, "f"), BOTH, "{records:#?}");
}

#[test]
fn what_was_taken_over_of_a_commit_goes_with_that() {
    need_features!("posix_locks");
    need_daemon!();
    let mut m = mount!(slow());
    let mut one = synced(&m);
    other_commits(&m);
    // Its next lock shows it what has been committed.
    lock(&mut one, 3);
    assert_eq!(one.pread("f", 0, 20).unwrap(), BOTH.as_bytes());
    m.kill_daemon();
    let records = journal_of(&m).records;
    let put = records.iter().find_map(|record| match record {
        Record::Commit { edits, .. } => edits.iter().find_map(|edit| match edit {
            Edit::Put { path, id, .. } if path == Path::new("f") => Some(*id),
            _ => None,
        }),
        _ => None,
    });
    let lost = put.expect("the other has committed");
    let staged = format!(".commitfs/staging/{}", commitfs::store::id_name(lost));
    std::fs::write(m.backing().join(staged), "").unwrap();
    cut(&m, &records);
    assert_eq!(text(&m, "f"), "XYZdefghijkl\n", "{records:#?}");
}

#[test]
fn it_is_not_mixed_with_what_somebody_has_written_anew() {
    need_features!("posix_locks");
    need_daemon!();
    for again in [false, true] {
        let mut m = mount!(slow());
        let mut one = synced(&m);
        m.save("f", "all of it is new\n");
        other_commits(&m);
        if again {
            one.fsync("f").unwrap();
        }
        m.kill_daemon();
        let records = journal_of(&m).records;
        recover(&m);
        let (now, kept) = match again {
            // The fsync came last.
            true => ("XYZdefghijkl\n", vec![]),
            false => ("all ofUVW is new\n", vec!["XYZdefghijkl\n".to_owned()]),
        };
        assert_eq!(text(&m, "f"), now, "{again}: {records:#?}");
        assert_eq!(rejected(&m), kept, "{again}: {records:#?}");
    }
}

#[test]
fn who_has_cut_off_what_it_had_fsynced_takes_nothing_from_others() {
    need_features!("posix_locks");
    need_daemon!();
    for (commits, power_cut) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut m = mount!(slow());
        let mut one = synced(&m);
        if commits {
            other_commits(&m);
        }
        one.ftruncate("f", 2).unwrap();
        m.kill_daemon();
        let records = journal_of(&m).records;
        match power_cut {
            true => cut(&m, &records),
            false => recover(&m),
        }
        // Alone, its file is as on the plain directory. But after a power cut the journal has what was promised.
        let inlined = records.iter().any(|r| matches!(r, Record::Inlined { .. }));
        let left = match (commits, power_cut && inlined) {
            (true, true) => BOTH,
            (true, false) => "abcdefUVWjkl\n",
            (false, true) => "XYZdefghijkl\n",
            (false, false) => "XY",
        };
        assert_eq!(text(&m, "f"), left, "{commits} {power_cut}: {records:#?}");
    }
}

#[test]
fn lines_that_others_have_added_since_stay() {
    need_features!("posix_locks");
    need_daemon!();
    let mut m = mount!(slow());
    let _one = synced(&m);
    other_commits(&m);
    let mut appender = Actor::new();
    appender.open("a", "a", &m.path("f")).unwrap();
    appender.write("a", "a line\n").unwrap();
    appender.close("a").unwrap();
    m.kill_daemon();
    let records = journal_of(&m).records;
    recover(&m);
    assert_eq!(text(&m, "f"), format!("{BOTH}a line\n"), "{records:#?}");
}

fn recovery_is_killed_at(m: &Mount, point: &str) {
    let mut killed = std::process::Command::new(common::run::binary());
    killed.args(["check", "--recover"]).arg(m.backing());
    killed.env("COMMITFS_CRASH_AT", point);
    let killed = run(&mut killed, std::time::Duration::from_secs(20));
    assert_eq!(killed.code, None, "{point}: {killed:?}");
}

#[test]
fn recovery_that_is_killed_goes_on_to_the_same() {
    need_features!("posix_locks");
    need_daemon!();
    for point in ["recovery-filled", "recovery-replayed", "recovery-applied"] {
        let mut m = mount!(slow());
        let _one = synced(&m);
        other_commits(&m);
        m.kill_daemon();
        recovery_is_killed_at(&m, point);
        recover(&m);
        assert_eq!(text(&m, "f"), BOTH, "{point}");
    }
    let points = [
        "recovery-filled",
        "recovery-replayed",
        "recovery-taken-over",
    ];
    for point in points {
        let mut m = mount!(slow());
        let _one = synced(&m);
        let mut two = editor(&m, 6);
        two.pwrite("f", 6, b"UVW").unwrap();
        two.fsync("f").unwrap();
        add(&m, "line\n");
        m.kill_daemon();
        recovery_is_killed_at(&m, point);
        recover(&m);
        assert_eq!(text(&m, "f"), [BOTH, "line\n"].concat(), "{point}");
    }
}

/// A file that is being edited, fsync'd, and renamed by somebody else.
fn moved(m: &Mount, exchange: bool) -> Actor {
    let (mut writer, mut mover) = (Actor::new(), Actor::new());
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.pwrite("f", 0, b"XYZ").unwrap();
    writer.fsync("f").unwrap();
    let paths: Vec<PathBuf> = ["f", "g", "h"].iter().map(|name| m.path(name)).collect();
    if exchange {
        mover.exchange(&paths[0], &m.path("other")).unwrap();
    } else {
        mover.rename(&paths[0], &paths[1]).unwrap();
        mover.rename(&paths[1], &paths[2]).unwrap();
    }
    writer
}

#[test]
fn what_was_synced_goes_with_its_file_where_the_journal_ends_with_the_rename() {
    need_daemon!();
    for exchange in [false, true] {
        let mut m = mount!(slow());
        let _writer = moved(&m, exchange);
        m.kill_daemon();
        let records = journal_of(&m).records;
        let moved = |record: &Record| matches!(record, Record::Moved { .. });
        let last = records.iter().rposition(moved).expect("a rename");
        cut(&m, &records[..=last]);
        let (name, left) = match exchange {
            true => ("other", "zero\n"),
            false => ("h", ""),
        };
        assert_eq!(text(&m, name), "XYZdefghijkl\n", "{exchange}: {records:#?}");
        assert_eq!(text(&m, "f"), left, "{exchange}: {records:#?}");
        assert!(!m.backing().join("g").exists());
        assert!(rejected(&m).is_empty());
    }
}

#[test]
fn a_rename_that_was_only_announced_takes_nothing_along() {
    need_daemon!();
    let mut m = mount!(slow());
    let _writer = moved(&m, false);
    m.kill_daemon();
    let records = journal_of(&m).records;
    let moved = |record: &Record| matches!(record, Record::Moved { .. });
    let first = records.iter().position(moved).expect("a rename");
    // The renames haven't come to the medium.
    std::fs::rename(m.backing().join("h"), m.backing().join("f")).unwrap();
    cut(&m, &records[..=first]);
    assert_eq!(text(&m, "f"), "XYZdefghijkl\n", "{records:#?}");
    assert!(!m.backing().join("g").exists());
}

/// What the tests above rely on.
#[test]
fn an_edit_in_place_says_so() {
    need_features!("posix_locks");
    need_daemon!();
    let mut m = mount!(slow());
    other_commits(&m);
    m.save("f", "anew");
    m.kill_daemon();
    let flags: Vec<bool> = journal_of(&m)
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Commit { edits, .. } => Some(edits),
            _ => None,
        })
        .flatten()
        .filter_map(|edit| match edit {
            Edit::Put { in_place, .. } => Some(*in_place),
            _ => None,
        })
        .collect();
    assert_eq!(flags, [true, false]);
}
