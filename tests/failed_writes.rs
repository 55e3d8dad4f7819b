//! C5. The disk is full, the program does not look at what write() returns (a shell, C's stdio at
//! exit), and the file is now as long as the space was. Here a failed write never commits: the
//! close reports it, the old version stays, the bytes are kept aside.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use commitfs::journal::{self, Record};
use common::{Actor, Disk, Mount, assert_content, assert_errno, commitfs, eventually, stamped};

#[test]
fn a_write_beyond_the_file_size_limit_spoils_the_transaction() {
    let m = mount!();
    let old = stamped(1, 10_000);
    m.save("f", &old);
    for block in [4_096, 1 << 20] {
        let mut writer = Actor::new();
        writer
            .ask("ignore", &[libc::SIGXFSZ.to_string().as_bytes()])
            .unwrap();
        writer.ask("limit-fsize", &[b"65536"]).unwrap();
        writer.open("f", "w", &m.path("f")).unwrap();
        // The program goes on as if nothing had happened.
        assert_eq!(writer.fill("f", 200_000, block, b'x'), Ok(65_536));
        writer
            .close("f")
            .expect_err("close reports the failed write");
        assert_content(m.read("f"), &old, "after the failed write");
    }
    m.await_rejected("f", &[b'x'; 65_536]);
    assert_eq!(m.aborts("failed_write"), 2);
}

#[test]
fn a_shell_that_ignores_its_ulimit_leaves_the_old_version() {
    let m = mount!();
    let old = stamped(1, 10_000);
    m.save("f", &old);
    let scripts = [
        "trap '' XFSZ; ulimit -f 64; { head -c 200000 /dev/zero; true; } > f",
        "ulimit -f 64; head -c 200000 /dev/zero > f; true",
        "ulimit -f 64; python3 -c 'import sys; sys.stdout.write(\"x\" * 200000)' > f; true",
    ];
    for script in scripts {
        m.bash(script);
        assert_content(m.read("f"), &old, script);
    }
}

#[test]
fn a_file_of_exactly_the_limit_is_not_a_reason_to_lose_the_old_one() {
    // Just below the limit nothing has failed. (Exactly at the limit it cannot be told.)
    let m = mount!();
    let mut writer = Actor::new();
    writer.ask("limit-fsize", &[b"65536"]).unwrap();
    writer.open("f", "w", &m.path("f")).unwrap();
    assert_eq!(writer.fill("f", 65_535, 4_096, b'x'), Ok(65_535));
    writer.close("f").unwrap();
    assert_content(m.read("f"), &[b'x'; 65_535], "just below the limit");
}

fn on_a_small_disk() -> Option<Mount> {
    let options = Mount::options()
        .on(Disk::ext4(24))
        .limit(Duration::from_secs(150));
    let m = options.mount()?;
    m.save("f", stamped(1, 100_000));
    Some(m)
}

macro_rules! on_a_small_disk {
    () => {
        match on_a_small_disk() {
            Some(mount) => mount,
            None => return,
        }
    };
}

#[test]
fn a_full_disk_fails_the_close_and_leaves_the_old_version() {
    need_root!();
    let m = on_a_small_disk!();
    let mut writer = Actor::new();
    for block in [4_096, 1 << 20] {
        writer.open("f", "w", &m.path("f")).unwrap();
        let taken = writer.fill("f", 64 << 20, block, b'x').unwrap_or(0);
        assert!(taken < 64 << 20, "the disk was not full");
        writer
            .close("f")
            .expect_err("close reports the failed write");
        assert_content(m.read("f"), &stamped(1, 100_000), "after the disk was full");
    }
    writer.open("f", "w", &m.path("fresh")).unwrap();
    let _ = writer.fill("f", 64 << 20, 1 << 20, b'x');
    writer
        .close("f")
        .expect_err("close reports the failed write");
    assert!(!m.exists("fresh"), "a new file appeared in part");
    assert_eq!(m.aborts("failed_write"), 3);

    // What was rejected makes room (on this disk it is beyond its bound): the next saves work.
    for version in 2..30 {
        m.save("f", stamped(version, 200_000));
        m.save("other", stamped(version, 1_000_000));
    }
    assert_content(
        m.read("f"),
        &stamped(29, 200_000),
        "a save after the disk was full",
    );
}

#[test]
fn programs_that_ignore_a_full_disk_leave_the_old_version() {
    need_root!();
    let m = on_a_small_disk!();
    let scripts = [
        "head -c 64M /dev/zero > f",
        "dd if=/dev/zero of=f bs=64k count=1000 2>/dev/null",
        "cp /dev/stdin f < /dev/zero",
        "{ echo head; head -c 64M /dev/zero; echo tail; } > f",
        "head -c 64M /dev/zero | tee f > /dev/null",
        "python3 -c 'import os\nfd = os.open(\"f\", os.O_WRONLY | os.O_TRUNC)\n\
         for _ in range(700):\n  try: os.write(fd, bytes(100000))\n  except OSError: pass'",
    ];
    for script in scripts {
        // cp, tee and head give up at the first error; none of them removes what it wrote.
        m.bash(&format!("{script}; true"));
        assert_content(m.read("f"), &stamped(1, 100_000), script);
    }
    m.save("f", stamped(2, 100_000));
    assert_content(m.read("f"), &stamped(2, 100_000), "a save afterwards");
}

#[test]
fn a_full_disk_never_tears_files_that_many_writers_save() {
    need_root!();
    let mut m = on_a_small_disk!();
    // Four writers, each with files that together do not fit; errors are ignored.
    let script = "for w in 1 2 3 4; do (\n\
                  i=0; while [ $i -lt 40 ]; do\n\
                  { echo begin $i; head -c 7M /dev/zero; echo end $i; } > w$w 2>/dev/null\n\
                  i=$((i+1)); done ) & done; wait; true";
    common::bash(m.mountpoint(), script, Duration::from_secs(100));
    for remounted in [false, true] {
        for writer in 1..=4 {
            let Some(content) = m.read(format!("w{writer}")) else {
                continue;
            };
            let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
            let head = text(&content[..content.len().min(16)]);
            let round = head
                .strip_prefix("begin ")
                .and_then(|rest| rest.split('\n').next());
            let round = round.unwrap_or_else(|| panic!("w{writer} has no head: {head:?}"));
            let end = format!("end {round}\n");
            assert!(
                content.ends_with(end.as_bytes()),
                "w{writer} is torn, {remounted}"
            );
            let len = (7 << 20) + "begin \n".len() + round.len() + end.len();
            assert_eq!(content.len(), len, "w{writer} is torn, {remounted}");
        }
        m.unmount();
        m.remount();
    }
}

/// A disk that cannot make something durable any more must be heard of: whoever asked for
/// durability is told, and nothing is reported as saved that may be gone after a power cut.
#[test]
fn no_failed_sync_is_passed_over() {
    need_daemon!();
    let failing = |name: &str| {
        let at = format!("{name}:{}", libc::EIO);
        Mount::options()
            .env("COMMITFS_FAIL_AT", at)
            .seed("download.part", "direct")
    };
    // Whoever syncs a directory asks for everything in it.
    for name in [
        "C7-sync-dir",
        "C19-sync-dirs-before",
        "C19-sync-appends",
        "C19-sync-data",
        "C19-sync-staging",
        "C19-sync-journal",
        "C19-sync-dirs-after",
        "C19-sync-staging-after",
    ] {
        let m = mount!(failing(name));
        let mut actor = Actor::new();
        actor.mkdir(&m.path("d")).unwrap();
        actor.save(&m.path("f"), "content").unwrap();
        actor.open("d", "r|directory", m.mountpoint()).unwrap();
        let synced = actor.fsync("d");
        assert!(synced.is_err(), "{name}: the directory's fsync worked");
    }
    for name in ["C7-sync-data", "C7-sync-staging", "C19-sync-journal"] {
        let m = mount!(failing(name));
        let mut actor = Actor::new();
        actor.open("f", "w", &m.path("f")).unwrap();
        // More than the journal takes by itself.
        actor.write("f", "content".repeat(10_000)).unwrap();
        assert!(actor.fsync("f").is_err(), "{name}: fsync worked");
    }
    let m = mount!(failing("C14-sync-rename"));
    let renamed = Actor::new().rename(&m.path("download.part"), &m.path("download"));
    assert_errno(renamed, "EIO");
    assert_content(m.read("download.part"), b"direct", "it keeps its name");

    // What a killed writer leaves is kept all the same, and the log says of which that may not last.
    for name in [
        "C19-sync-rejected",
        "C19-sync-rejected-meta",
        "C19-sync-rejected-dir",
    ] {
        let m = mount!(failing(name));
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("f")).unwrap();
        writer.write("f", "half").unwrap();
        writer.kill(libc::SIGKILL);
        m.await_rejected("f", b"half");
        let said = || m.log().contains("rejected/") && m.log().contains("Input/output error");
        common::eventually(Duration::from_secs(5), name, said);
    }

    // A mount that cannot make durable what it recovers does not stand.
    let mut m = mount!();
    for name in [
        "C19-sync-recovered",
        "C19-sync-recovered-staging",
        "C19-sync-recovered-dir",
        "C19-sync-new-journal",
        "C19-sync-journal-name",
        "C19-sync-state-dir",
    ] {
        m.save("f", name);
        m.kill_daemon();
        m.set_env("COMMITFS_FAIL_AT", format!("{name}:{}", libc::EIO));
        assert!(m.try_remount().is_err(), "{name}: mounted");
        m.clear_env();
        m.remount();
        assert_content(m.read("f"), name.as_bytes(), "after a second try");
    }
}

#[test]
fn nothing_is_acknowledged_that_only_a_nameless_journal_knows() {
    need_daemon!();
    // The first journal gets its name; of the second it is not known whether that lasts.
    let at = format!("C19-sync-journal-name:{}:1:1", libc::EIO);
    let mut m = mount!(
        Mount::options()
            .env("COMMITFS_FAIL_AT", at)
            .env("COMMITFS_JOURNAL_LIMIT", 600)
    );
    let mut actor = Actor::new();
    let mut saved = 0;
    let mut refused = None;
    for round in 1..=100 {
        match actor.save(&m.path("f"), format!("{round}")) {
            Ok(()) => saved = round,
            Err(failure) => refused = Some(failure.errno),
        }
        if round % 10 == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!(refused.as_deref(), Some("EIO"), "{saved}");
    m.kill_daemon();
    m.clear_env();
    m.remount();
    assert_content(
        m.read("f"),
        format!("{saved}").as_bytes(),
        "the last that was acknowledged",
    );
}

/// Fills the disk with files of the sizes that fit still. Gives what was acknowledged.
fn fill(m: &Mount) -> BTreeMap<String, Vec<u8>> {
    let mut actor = Actor::new();
    let mut saved = BTreeMap::new();
    for size in [2_000_000, 300_000, 3_000, 300] {
        for n in 0..400 {
            // A long name: its directory grows with few files.
            let name = format!("f{size}-{n}-{}", "x".repeat(120));
            let content = vec![b'a' + (n % 26) as u8; size];
            if actor.save(&m.path(&name), &content).is_err() {
                break;
            }
            saved.insert(name, content);
        }
    }
    saved
}

#[track_caller]
fn assert_all_there(saved: &BTreeMap<String, Vec<u8>>, read: impl Fn(&str) -> Option<Vec<u8>>) {
    let missing: Vec<_> = saved
        .iter()
        .filter(|(name, content)| read(name).as_ref() != Some(content))
        .map(|(name, _)| name)
        .collect();
    assert!(
        missing.is_empty(),
        "{} of {}: {missing:?}",
        missing.len(),
        saved.len()
    );
}

#[test]
fn what_was_saved_before_the_disk_was_full_outlives_daemon_and_mount() {
    need_root!();
    let mut m = on_a_small_disk!();
    let saved = fill(&m);
    assert!(saved.len() > 10, "{}", saved.len());
    assert_all_there(&saved, |name| m.read(name));
    m.kill_daemon();
    m.remount();
    assert_all_there(&saved, |name| m.read(name));
    m.unmount();
    assert_all_there(&saved, |name| std::fs::read(m.backing().join(name)).ok());
}

#[test]
fn what_is_rejected_on_a_full_disk_is_kept_with_its_name_and_reason() {
    need_daemon!();
    let full = format!("reject-meta:{}:1", libc::ENOSPC);
    let m = mount!(Mount::options().env("COMMITFS_FAIL_AT", full));
    Actor::new()
        .save(&m.path("f.json"), "{")
        .expect_err("half a document");
    // close() doesn't wait for it.
    eventually(
        Duration::from_secs(5),
        "it is listed with its reason",
        || {
            let listed = m.command(&["rejected", "list"]).ok().out;
            listed.contains("f.json  guard json: ")
        },
    );
}

#[test]
fn an_unmount_that_would_leave_commits_behind_is_refused_and_says_what_to_do() {
    need_daemon!();
    let full = format!("apply:{}:1000000", libc::ENOSPC);
    let mut m = mount!(Mount::options().env("COMMITFS_FAIL_AT", full));
    m.save("f", "saved");
    let refused = m.command(&["umount"]);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    for word in ["1 commits", "No space left", "make room", "--force"] {
        assert!(refused.err.contains(word), "{refused:#?}");
    }
    assert_content(m.read("f"), b"saved", "still mounted");
    let status = m.command(&["status"]);
    assert!(status.out.contains("CAN'T BE PUT IN PLACE"), "{status:#?}");
    m.command(&["umount", "--force"]).ok();
    m.reap_daemon(Duration::from_secs(10));
    assert!(!m.backing().join("f").exists());
    m.clear_env();
    m.remount();
    assert_content(m.read("f"), b"saved", "the next mount puts it in place");
}

#[test]
fn an_unlink_that_fails_leaves_who_has_the_file_open_what_he_has_written() {
    let full = format!("unlink:{}", libc::ENOSPC);
    let mut m = mount!(
        Mount::options()
            .seed("f", "old")
            .env("COMMITFS_FAIL_AT", full)
    );
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.pwrite("f", 0, b"new").unwrap();
    writer.fsync("f").unwrap();
    common::assert_errno(other.unlink(&m.path("f")), "ENOSPC");
    writer.close("f").unwrap();
    common::assert_content(m.read("f"), b"new", "closed");
    // A program that is killed keeps what it has fsync'd, too.
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.pwrite("f", 0, b"NEW").unwrap();
    writer.fsync("f").unwrap();
    common::assert_errno(other.unlink(&m.path("f")), "ENOSPC");
    m.kill_daemon();
    m.clear_env();
    m.remount();
    common::assert_content(m.read("f"), b"NEW", "recovered");
}

#[test]
fn a_first_line_that_can_not_be_shown_is_there_once_when_it_is_written_again() {
    let full = format!("journal-reserve:{}:6", libc::ENOSPC);
    let m = mount!(Mount::options().env("COMMITFS_FAIL_AT", full));
    let mut writer = Actor::new();
    writer.open("f", "a", &m.path("b.txt")).unwrap();
    let mut failed = 0;
    while let Err(why) = writer.write("f", "a line\n") {
        assert_eq!(why.errno, "ENOSPC");
        failed += 1;
        assert!(failed < 20);
    }
    assert!(failed > 0);
    writer.close("f").unwrap();
    common::assert_content(m.read("b.txt"), b"a line\n", "written once");
}

/// Its second write fails, rounds come only when they are asked for, and what is refused stays on its way to rejected.
fn failing_after_an_fsync() -> common::Options {
    let failing = format!("write:{}:1:1", libc::EIO);
    let options = Mount::options().separate().args(["--bound", "60000"]);
    let options = options.env("COMMITFS_FAIL_AT", failing).seed("f", "old\n");
    options.env("COMMITFS_REJECT_DELAY_MS", 60_000)
}

/// Small, or more than the journal takes by itself.
const LENGTHS: [usize; 2] = [600, 200_000];

/// Has fsync'd so many bytes, and a write behind them has failed.
fn failed_after_an_fsync(m: &Mount, len: usize) -> Actor {
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", vec![b's'; len]).unwrap();
    writer.fsync("f").unwrap();
    assert_errno(writer.pwrite("f", len as u64, b"lost"), "EIO");
    writer
}

/// The daemon is killed, or the power goes when all that the journal was told is on the medium.
fn end(m: &mut Mount, power_cut: bool) -> Vec<Record> {
    m.kill_daemon();
    let path = m.backing().join(".commitfs/journal");
    let mut told = journal::decode(&std::fs::read(&path).unwrap()).unwrap();
    if power_cut {
        told.header.instance = "before the power cut".into();
        let bytes = journal::encode(&told.header, &told.records).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    commitfs(["check", "--recover", m.backing().to_str().unwrap()]).ok();
    told.records
}

/// What `f` has, and what is in rejected.
fn left(m: &Mount) -> (Vec<u8>, Vec<Vec<u8>>) {
    let entries = std::fs::read_dir(m.backing().join(".commitfs/rejected")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let contents = paths.filter(|path| path.extension().is_none());
    let rejected = contents.map(|path| std::fs::read(path).unwrap()).collect();
    (std::fs::read(m.backing().join("f")).unwrap(), rejected)
}

/// A journal is begun anew with each round.
fn new_journal(m: &Mount) {
    let mut actor = Actor::new();
    for content in ["one", "two"] {
        actor.save(&m.path("other"), content).unwrap();
        actor.open("sync", "r", &m.path("other")).unwrap();
        actor.fsync("sync").unwrap();
        actor.close("sync").unwrap();
    }
}

/// Power cut or not, each with a new journal in between or not.
const ENDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn rotating(options: common::Options, rotated: bool) -> common::Options {
    options.env("COMMITFS_JOURNAL_LIMIT", if rotated { 1 } else { 4 << 20 })
}

/// A gap would be in the place of what failed, and the fsync'd part be a version with that.
#[test]
fn after_a_failed_write_a_recovery_takes_what_was_fsynced_and_nothing_behind_it() {
    need_daemon!();
    for ((power_cut, rotated), len) in ENDS
        .into_iter()
        .flat_map(|end| LENGTHS.map(|len| (end, len)))
    {
        let mut m = mount!(rotating(failing_after_an_fsync(), rotated));
        let mut writer = failed_after_an_fsync(&m, len);
        writer.pwrite("f", len as u64 + 4, b"behind it").unwrap();
        new_journal(&m);
        let records = end(&mut m, power_cut);
        let (text, rejected) = left(&m);
        let told = format!("{power_cut} {rotated} {len}: {records:?}");
        assert!(text == vec![b's'; len], "{} bytes, {told}", text.len());
        assert!(rejected.is_empty(), "{told}");
    }
}

#[test]
fn what_was_written_over_an_fsync_and_a_failed_write_is_no_version_after_a_kill() {
    need_daemon!();
    for (rotated, len) in [false, true]
        .into_iter()
        .flat_map(|r| LENGTHS.map(|len| (r, len)))
    {
        let mut m = mount!(rotating(failing_after_an_fsync(), rotated));
        let mut writer = failed_after_an_fsync(&m, len);
        writer.pwrite("f", 0, b"again").unwrap();
        new_journal(&m);
        end(&mut m, false);
        let again = [b"again", &vec![b's'; len - 5][..]].concat();
        assert!(
            left(&m) == (b"old\n".to_vec(), vec![again]),
            "{rotated} {len}"
        );
    }
}

/// An fsync behind a failed write promises that it is kept, not that it is a version.
#[test]
fn what_was_fsynced_after_a_failed_write_is_kept_and_never_a_version() {
    need_daemon!();
    for ((power_cut, rotated), len) in ENDS
        .into_iter()
        .flat_map(|end| LENGTHS.map(|len| (end, len)))
    {
        let mut m = mount!(rotating(failing_after_an_fsync(), rotated));
        let mut writer = failed_after_an_fsync(&m, len);
        writer.pwrite("f", len as u64 + 4, b"behind it").unwrap();
        writer.fsync("f").unwrap();
        new_journal(&m);
        end(&mut m, power_cut);
        let gap = [&vec![b's'; len][..], &[0; 4], b"behind it"].concat();
        assert!(
            left(&m) == (b"old\n".to_vec(), vec![gap]),
            "{power_cut} {rotated} {len}"
        );
    }
    let m = mount!(failing_after_an_fsync().env("COMMITFS_REJECT_DELAY_MS", 0));
    let mut writer = failed_after_an_fsync(&m, 600);
    writer.pwrite("f", 604, b"behind it").unwrap();
    writer.fsync("f").unwrap();
    writer.kill(libc::SIGKILL);
    m.await_rejected("f", &[&[b's'; 600][..], &[0; 4], b"behind it"].concat());
    assert_content(m.read("f"), b"old\n", "its writer was killed");
}

#[test]
fn what_a_close_was_told_is_refused_is_no_version_after_a_crash_whatever_was_fsynced() {
    need_daemon!();
    for ((power_cut, rotated), len) in ENDS
        .into_iter()
        .flat_map(|end| LENGTHS.map(|len| (end, len)))
    {
        let mut m = mount!(rotating(failing_after_an_fsync(), rotated));
        let mut writer = failed_after_an_fsync(&m, len);
        assert_errno(writer.close("f"), "EIO");
        eventually(Duration::from_secs(5), "it is aborted", || {
            m.aborts("failed_write") == 1
        });
        new_journal(&m);
        if power_cut && len == LENGTHS[0] {
            // The journal alone has it on the medium.
            lose_staged(&m, len);
        }
        end(&mut m, power_cut);
        let fsynced = vec![b's'; len];
        assert!(
            left(&m) == (b"old\n".to_vec(), vec![fsynced]),
            "{power_cut} {rotated} {len}"
        );
    }
}

/// What of the staged content of that length was never synced is lost.
fn lose_staged(m: &Mount, len: usize) {
    let entries = std::fs::read_dir(m.backing().join(".commitfs/staging")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let mut lost = files.filter(|path| std::fs::metadata(path).unwrap().len() == len as u64);
    std::fs::write(lost.next().expect("it is staged"), "").unwrap();
}

#[test]
fn what_a_conflict_has_refused_is_no_version_after_a_crash_though_it_was_fsynced() {
    need_daemon!();
    for (power_cut, rotated) in ENDS {
        let options = Mount::options().separate().args(["--bound", "60000"]);
        let options = options.env("COMMITFS_REJECT_DELAY_MS", 60_000);
        let options = options.rules("[[rule]]\nglob = \"f\"\non_conflict = \"fail\"\n");
        let mut m = mount!(rotating(options.seed("f", "old\n"), rotated));
        let (mut one, mut other) = (Actor::new(), Actor::new());
        one.cat(&m.path("f")).unwrap();
        other.cat(&m.path("f")).unwrap();
        other.save(&m.path("f"), "of the other\n").unwrap();
        one.open("f", "w", &m.path("f")).unwrap();
        one.write("f", "refused\n").unwrap();
        one.fsync("f").unwrap();
        assert_errno(one.close("f"), "ESTALE");
        new_journal(&m);
        let records = end(&mut m, power_cut);
        let kept = (b"of the other\n".to_vec(), vec![b"refused\n".to_vec()]);
        assert_eq!(left(&m), kept, "{power_cut} {rotated}: {records:?}");
    }
}

#[test]
fn what_a_forced_unmount_sends_to_rejected_is_no_version_after_a_kill_right_then() {
    need_daemon!();
    let options = Mount::options().separate().seed("f", "old\n");
    let mut m = mount!(options.env("COMMITFS_REJECT_DELAY_MS", 60_000));
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "fsynced\n").unwrap();
    writer.fsync("f").unwrap();
    let mut unmount = std::process::Command::new(common::run::binary());
    unmount.args(["umount", "--force"]).arg(m.mountpoint());
    unmount.stdout(std::process::Stdio::null());
    let mut unmount = unmount.stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually(Duration::from_secs(10), "it is aborted", || {
        m.log().contains("not committed")
    });
    end(&mut m, false);
    unmount.wait().unwrap();
    assert_eq!(left(&m), (b"old\n".to_vec(), vec![b"fsynced\n".to_vec()]));
}

/// Else a power cut would take what was written around the failure for what was promised.
#[test]
fn a_failed_write_after_an_fsync_is_on_the_medium_before_it_is_told() {
    need_daemon!();
    for fails in [false, true] {
        // The fsync is the first that waits for the journal.
        let failing = format!("C19-sync-journal:{}:1000:1", libc::EIO);
        let options = Mount::options().separate().args(["--bound", "60000"]);
        let m = mount!(options.env("COMMITFS_FAIL_AT", failing));
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("f")).unwrap();
        writer.write("f", "fsynced\n").unwrap();
        writer.fsync("f").unwrap();
        if fails {
            // No file system of today has files so long.
            assert_errno(writer.pwrite("f", 1 << 61, b"lost"), "EFBIG");
        }
        let saved = Actor::new().save(&m.path("other"), "one");
        assert_eq!(
            saved.is_err(),
            fails,
            "the journal is lost if it was asked for"
        );
    }
}
