//! C23. Files that belong together are published together: what one saver saves of a group waits, seen by nobody else, until all
//! of it is there; then everybody sees all of it, or, if the saver fails, nothing.

mod common;

use std::time::{Duration, Instant};

use commitfs::sys::failpoint::CRASH_POINTS;
use common::rounds::{await_count, entries, groups};
use common::{Actor, Disk, Live, Mount, Options, Random, assert_errno, eventually, times};
use serde_json::Value;

const PAIR: &str = "[[group]]\nfiles = [\"{s}.w\", \"{s}.json\"]\noptional = [\"{s}.o\"]\n";
const TRIPLE: &str = "[[group]]\nfiles = [\"weights.bin\", \"metrics.json\", \"metadata.json\"]\n";

fn pair() -> Options {
    Mount::options().rules(PAIR)
}

/// What a stranger, older than all savers, finds under some names.
fn seen(m: &Mount, reader: &mut Actor, names: &[&str]) -> Vec<Option<String>> {
    let find = |name: &&str| reader.cat(&m.path(name)).ok();
    let found = names.iter().map(find);
    found
        .map(|bytes| bytes.map(|b| String::from_utf8(b).unwrap()))
        .collect()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|t| Some((*t).to_owned())).collect()
}

#[test]
fn others_see_a_group_once_its_last_member_is_closed() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let names = ["a.w", "a.json", "a.o"];
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    assert_eq!(seen(&m, &mut reader, &names[..2]), some(&["old", "0"]));
    assert!(reader.stat(&m.path("a.o")).is_err());
    assert_eq!(reader.stat(&m.path("a.w")).unwrap().size, 3);
    assert_eq!(
        seen(&m, &mut saver, &names),
        [Some("new".into()), Some("0".into()), Some("more".into())]
    );
    assert!(!m.names("").contains(&"a.o".to_owned()));
    let rounds = &groups(&m)["rounds"];
    assert_eq!(
        rounds[0]["missing"],
        serde_json::json!(["a.json"]),
        "{rounds}"
    );
    assert_eq!(rounds[0]["pids"][0], saver.pid());
    let human = m.command(&["status"]).ok().out;
    let line = human.lines().find(|line| line.starts_with("together: by "));
    let line = line.unwrap_or_default();
    assert!(
        line.ends_with(": a.o, a.w; still to come: a.json"),
        "{human}"
    );
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(seen(&m, &mut reader, &names), some(&["new", "1", "more"]));
    assert!(m.names("").contains(&"a.o".to_owned()));
    let told = groups(&m);
    assert_eq!(
        (&told["published"], &told["incomplete"]),
        (&1.into(), &0.into())
    );
    assert_eq!(told["rounds"], serde_json::json!([]));
}

#[test]
fn a_saver_sees_what_it_has_saved_and_so_do_those_that_it_starts() {
    let m = mount!(pair().seed("a.w", "old"));
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    let mut thread = saver.thread();
    let mut child = saver.fork();
    for one in [&mut saver, &mut thread, &mut child] {
        assert_eq!(one.cat(&m.path("a.w")).unwrap(), b"new");
    }
}

#[test]
fn other_files_are_published_at_their_close_and_wait_for_nothing() {
    let m = mount!(pair());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("x"), "1").unwrap();
    assert_eq!(seen(&m, &mut reader, &["x"]), some(&["1"]));
}

#[test]
fn what_is_rejected_where_descriptors_are_short_keeps_its_names() {
    let few = format!("reject-meta:{}:1", libc::EMFILE);
    let m = mount!(pair().seed("a.w", "old").env("COMMITFS_FAIL_AT", few));
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    saver.kill(libc::SIGKILL);
    await_count(&m, "rejected", 1);
    let all = entries(&m);
    let paths = all[0]["members"].as_array().unwrap().iter();
    let paths: Vec<_> = paths.map(|m| m["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a.w", "a.o"]);
}

#[test]
fn a_killed_saver_has_saved_nothing_and_all_of_it_is_one_entry() {
    let mut m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    saver.kill(libc::SIGKILL);
    await_count(&m, "rejected", 1);
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["old", "0"])
    );
    let all = entries(&m);
    assert_eq!(all.len(), 1, "{all:?}");
    let reason = all[0]["reason"].as_str().unwrap();
    assert!(reason.contains("was ended by signal 9"), "{reason}");
    let paths: Vec<_> = all[0]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["a.w", "a.o"]);
    let errors = m.status()["errors"].as_array().unwrap().len();
    assert_eq!(errors, 1, "{}", m.status()["errors"]);
    // Brought back in one step, and with the one that was missing.
    let id = all[0]["id"].as_str().unwrap().to_owned();
    m.command(&["rejected", "restore"]).fails();
    let mount = m.mountpoint().to_str().unwrap().to_owned();
    let refused = common::commitfs(["rejected", "restore", &mount, &id]).fails();
    assert!(
        refused.err.contains("a.w: exists; --force replaces it"),
        "{}",
        refused.err
    );
    common::commitfs(["rejected", "restore", &mount, &id, "--force"]).ok();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json", "a.o"]),
        some(&["new", "0", "more"])
    );
    common::commitfs(["rejected", "drop", &mount, &id]).ok();
    assert!(entries(&m).is_empty());
    m.unmount();
}

#[test]
fn a_saver_that_ends_with_another_status_than_0_has_saved_nothing() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.exit(3);
    await_count(&m, "rejected", 1);
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["old", "0"])
    );
    assert!(
        entries(&m)[0]["reason"]
            .as_str()
            .unwrap()
            .contains("has ended with status 3")
    );
}

#[test]
fn who_exits_with_another_status_while_its_last_member_is_closed_has_saved_nothing() {
    let m = mount!(pair().seed("a.w", "old"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.open("f", "w", &m.path("a.json")).unwrap();
    saver.write("f", "1").unwrap();
    saver.exit(1);
    await_count(&m, "rejected", 1);
    assert_eq!(seen(&m, &mut reader, &["a.w"]), some(&["old"]));
}

#[test]
fn how_a_saver_ends_after_its_last_close_changes_nothing() {
    let m = mount!(
        pair()
            .seed("a.w", "old")
            .env("COMMITFS_RELEASE_DELAY_MS", 300)
    );
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    saver.exit(1);
    eventually(Duration::from_secs(3), "published", || {
        seen(&m, &mut reader, &["a.w", "a.json"]) == some(&["new", "1"])
    });
    assert_eq!(groups(&m)["rejected"], 0);
}

#[test]
fn who_ends_well_publishes_what_it_has_saved_and_what_is_missing_is_named() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    saver.exit(0);
    // At once, for who asks.
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.o"]),
        some(&["new", "more"])
    );
    let told = groups(&m);
    assert_eq!(
        (&told["published"], &told["incomplete"]),
        (&1.into(), &1.into())
    );
    let errors = m.status()["errors"].clone();
    let reason = errors[0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("its saver has ended without a.json"),
        "{reason}"
    );
}

#[test]
fn a_file_that_is_put_there_by_hand_is_seen_when_the_program_has_ended() {
    let m = mount!(pair().seed("a.w", "old"));
    for n in 0..10 {
        let shown = m
            .sh(&format!("echo {n} > x && cp x a.w && cat a.w && ls"))
            .ok()
            .out;
        assert!(shown.starts_with(&format!("{n}\n")), "{shown}");
        let shown = m.sh(&format!("cat x > b{n}.w && ls")).ok().out;
        assert!(shown.contains(&format!("b{n}.w")), "{shown}");
    }
    assert_eq!(m.status()["errors"], serde_json::json!([]));
    // A shell that has opened one itself has just ended.
    await_count(&m, "alone", 20);
}

#[test]
fn savers_at_the_same_time_stay_apart_and_the_last_complete_one_wins_as_a_whole() {
    let m = mount!(pair());
    let mut reader = Actor::new();
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.save(&m.path("a.w"), "one").unwrap();
    other.save(&m.path("a.w"), "other").unwrap();
    assert_eq!(one.cat(&m.path("a.w")).unwrap(), b"one");
    other.save(&m.path("a.json"), "2").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["other", "2"])
    );
    one.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["one", "1"])
    );
}

#[test]
fn a_round_belongs_to_a_process_and_those_that_it_starts() {
    let m = mount!(pair());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    let mut child = saver.fork();
    child.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["new", "1"])
    );
}

#[test]
fn a_second_save_takes_the_place_of_the_first_and_a_later_round_begins_anew() {
    let m = mount!(pair().separate());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    for text in ["first", "second"] {
        saver.save(&m.path("a.w"), text).unwrap();
    }
    assert_eq!(saver.cat(&m.path("a.w")).unwrap(), b"second");
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["second", "1"])
    );
    saver.save(&m.path("a.w"), "third").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.w"]), some(&["second"]));
    saver.save(&m.path("a.json"), "2").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["third", "2"])
    );
    eventually(Duration::from_secs(2), "what was replaced is gone", || {
        std::fs::read_dir(m.backing().join(".commitfs/staging")).is_ok_and(|d| d.count() <= 2)
    });
    assert!(m.rejected().is_empty());
}

#[test]
fn what_waits_is_written_on_by_its_saver() {
    let m = mount!(pair());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "one").unwrap();
    saver.open("f", "r+", &m.path("a.w")).unwrap();
    saver.pwrite("f", 0, b"O").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.json"]),
        [None],
        "one is being written"
    );
    saver.close("f").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["One", "1"])
    );
    saver.save(&m.path("a.w"), "two").unwrap();
    saver.open("f", "a", &m.path("a.w")).unwrap();
    saver.write("f", "+").unwrap();
    saver.close("f").unwrap();
    saver.truncate(&m.path("a.w"), 2).unwrap();
    saver.save(&m.path("a.json"), "2").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["tw", "2"])
    );
}

#[test]
fn a_refused_member_keeps_all_back_and_may_be_saved_again() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "{}"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    assert_errno(saver.save(&m.path("a.json"), "{\"half"), "EBADMSG");
    await_count(&m, "rejected", 1);
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["old", "{}"])
    );
    let all = entries(&m);
    assert_eq!(
        (all.len(), all[0]["members"].as_array().unwrap().len()),
        (1, 2),
        "{all:?}"
    );
    // While another member is being written, it is time.
    saver.open("f", "w", &m.path("a.w")).unwrap();
    assert_errno(saver.save(&m.path("a.json"), "{\"half"), "EBADMSG");
    saver.save(&m.path("a.json"), "{\"n\": 1}").unwrap();
    saver.write("f", "newer").unwrap();
    saver.close("f").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["newer", "{\"n\": 1}"])
    );
}

#[test]
fn what_is_saved_after_a_refusal_that_was_the_last_of_its_round_is_of_another_one() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "{}"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    for n in 0..20 {
        saver.save(&m.path("a.w"), "lost").unwrap();
        assert_errno(saver.save(&m.path("a.json"), "{\"half"), "EBADMSG");
        saver
            .save(&m.path("a.json"), format!("{{\"n\": {n}}}"))
            .unwrap();
        let w = reader.cat(&m.path("a.w")).unwrap();
        assert_ne!(w, b"lost", "with a later save of the other");
        saver.save(&m.path("a.w"), format!("w{n}")).unwrap();
        let found = seen(&m, &mut reader, &["a.w", "a.json"]);
        let expected = [format!("w{n}"), format!("{{\"n\": {n}}}")];
        assert_eq!(found, expected.map(Some));
    }
}

#[test]
fn a_round_that_nothing_is_saved_of_any_more_is_rejected_after_its_timeout() {
    let rules = format!("{PAIR}timeout = \"300ms\"\n");
    let m = mount!(Mount::options().rules(&rules).seed("a.w", "old"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.open("f", "w", &m.path("a.json")).unwrap();
    saver.save(&m.path("a.w"), "new").unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(groups(&m)["rejected"], 0, "one is open");
    saver.unlink(&m.path("a.json")).unwrap();
    saver.close("f").unwrap();
    await_count(&m, "rejected", 1);
    assert_eq!(seen(&m, &mut reader, &["a.w"]), some(&["old"]));
    assert_eq!(saver.cat(&m.path("a.w")).unwrap(), b"old");
}

#[test]
fn by_rule_what_there_is_of_a_failed_round_is_published() {
    let rules = format!("{PAIR}on_incomplete = \"commit\"\n");
    let m = mount!(Mount::options().rules(&rules));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    saver.kill(libc::SIGKILL);
    await_count(&m, "incomplete", 1);
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.o"]),
        some(&["new", "more"])
    );
}

#[test]
fn a_round_can_be_complete_by_some_of_its_files() {
    let rules =
        "[[group]]\nfiles = [\"d/*.npy\", \"d/index.json\"]\ncomplete = [\"d/index.json\"]\n";
    let m = mount!(Mount::options().rules(rules));
    m.mkdir("d");
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    for name in ["d/1.npy", "d/2.npy"] {
        saver.save(&m.path(name), name).unwrap();
    }
    assert_eq!(m.names("d"), [""; 0]);
    saver.save(&m.path("d/index.json"), "2").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["d/1.npy", "d/2.npy", "d/index.json"]),
        some(&["d/1.npy", "d/2.npy", "2"])
    );
}

#[test]
fn a_rename_over_a_members_name_saves_the_member() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    let names = ["a.w", "a.json"];
    // Closed before, and open still.
    saver.save(&m.path("tmp"), "new").unwrap();
    saver.chmod(&m.path("tmp"), 0o640);
    saver.rename(&m.path("tmp"), &m.path("a.w")).unwrap();
    assert_eq!(seen(&m, &mut reader, &names), some(&["old", "0"]));
    assert!(!m.exists("tmp"));
    assert_eq!(saver.cat(&m.path("a.w")).unwrap(), b"new");
    saver.open("f", "w", &m.path("tmp2")).unwrap();
    saver.write("f", "1").unwrap();
    saver.rename(&m.path("tmp2"), &m.path("a.json")).unwrap();
    assert_eq!(seen(&m, &mut reader, &names), some(&["old", "0"]));
    saver.close("f").unwrap();
    assert_eq!(seen(&m, &mut reader, &names), some(&["new", "1"]));
    assert_eq!(reader.stat(&m.path("a.w")).unwrap().mode & 0o777, 0o640);
    assert!(!m.exists("tmp2"));
    // One that is killed then.
    saver.save(&m.path("tmp"), "newer").unwrap();
    saver.rename(&m.path("tmp"), &m.path("a.w")).unwrap();
    saver.kill(libc::SIGKILL);
    await_count(&m, "rejected", 1);
    assert_eq!(seen(&m, &mut reader, &names), some(&["new", "1"]));
    m.await_rejected("a.w", b"newer");
}

#[test]
fn a_member_that_its_saver_renames_away_is_published_there() {
    let m = mount!(pair().seed("a.w", "old"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.o"), "new").unwrap();
    saver.rename(&m.path("a.o"), &m.path("plain")).unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["plain", "a.o"]),
        [Some("new".into()), None]
    );
    saver.open("f", "w", &m.path("a.o")).unwrap();
    saver.write("f", "newer").unwrap();
    saver.rename(&m.path("a.o"), &m.path("plain")).unwrap();
    saver.close("f").unwrap();
    assert_eq!(seen(&m, &mut reader, &["plain"]), some(&["newer"]));
    // From one member's name to another's.
    saver.save(&m.path("b.w"), "b").unwrap();
    saver.rename(&m.path("b.w"), &m.path("a.w")).unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "b.w"]),
        [Some("old".into()), None]
    );
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.w", "a.json"]), some(&["b", "1"]));
}

#[test]
fn a_member_that_its_saver_removes_is_none() {
    let m = mount!(pair());
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.unlink(&m.path("a.w")).unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.w", "a.json"]), [None, None]);
    saver.save(&m.path("a.w"), "again").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["a.w", "a.json"]),
        some(&["again", "1"])
    );
    assert!(m.rejected().is_empty());
}

#[test]
fn what_waits_holds_up_nobody() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let (mut saver, mut other) = (Actor::new(), Actor::new());
    saver.open("f", "r+", &m.path("a.w")).unwrap();
    saver.pwrite("f", 0, b"O").unwrap();
    saver.close("f").unwrap();
    let began = Instant::now();
    other.open("f", "r+", &m.path("a.w")).unwrap();
    other.pwrite("f", 1, b"L").unwrap();
    other.close("f").unwrap();
    other.save(&m.path("a.json"), "2").unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(other.cat(&m.path("a.w")).unwrap(), b"oLd");
    saver.save(&m.path("a.json"), "1").unwrap();
    // Editors by parts commit what they have written (C9).
    assert_eq!(other.cat(&m.path("a.w")).unwrap(), b"OLd");
}

#[test]
fn updates_of_two_savers_are_merged_in_their_groups_as_well() {
    let rules = format!(
        "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n{PAIR}"
    );
    let m = mount!(Mount::options().rules(&rules).seed("a.json", "{\"n\": 1}"));
    let mut reader = Actor::new();
    let mut savers = [Actor::new(), Actor::new()];
    for saver in &mut savers {
        saver.cat(&m.path("a.json")).unwrap();
    }
    for saver in &mut savers {
        saver.save(&m.path("a.json"), "{\"n\": 2}").unwrap();
    }
    for saver in &mut savers {
        saver.save(&m.path("a.w"), "w").unwrap();
    }
    assert_eq!(seen(&m, &mut reader, &["a.json"]), some(&["{\"n\": 3}"]));
}

#[test]
fn lines_and_streams_of_members_show_with_the_others() {
    let rules = "[[group]]\nfiles = [\"log.txt\", \"new.csv\", \"end\"]\n";
    let m = mount!(Mount::options().rules(rules).seed("log.txt", "0\n"));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.open("f", "a", &m.path("log.txt")).unwrap();
    saver.write("f", "1\n").unwrap();
    saver.open("g", "w", &m.path("new.csv")).unwrap();
    saver.write("g", "a,b\n").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["log.txt", "new.csv"]),
        [Some("0\n".into()), None]
    );
    for slot in ["f", "g"] {
        saver.close(slot).unwrap();
    }
    assert_eq!(
        seen(&m, &mut reader, &["log.txt", "new.csv"]),
        [Some("0\n".into()), None]
    );
    saver.save(&m.path("end"), "").unwrap();
    assert_eq!(
        seen(&m, &mut reader, &["log.txt", "new.csv", "end"]),
        some(&["0\n1\n", "a,b\n", ""])
    );
}

#[test]
fn claims_and_direct_files_are_no_members() {
    let rules = "[[group]]\nfiles = [\"{s}.w\", \"{s}.db\"]\noptional = [\"{s}.o\"]\n";
    let m = mount!(Mount::options().rules(rules));
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.open("f", "x", &m.path("a.o")).unwrap();
    saver.write("f", "1").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.o"]), some(&["1"]));
    saver.close("f").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.o"]), some(&["1"]));
    saver.save(&m.path("a.db"), "page").unwrap();
    assert_eq!(seen(&m, &mut reader, &["a.db"]), some(&["page"]));
    let said = m.command(&["rules", "check"]).ok().out;
    assert!(
        said.contains("\"{s}.db\" is direct, and no member"),
        "{said}"
    );
}

#[test]
fn an_unmount_is_refused_while_a_round_is_open_and_by_force_all_of_it_is_one_entry() {
    need_daemon!();
    let mut m = mount!(pair());
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    let refused = m.command(&["umount"]).fails();
    assert!(refused.err.contains("a.w"), "{}", refused.err);
    m.command(&["umount", "--force"]).ok();
    m.remount();
    assert!(!m.exists("a.w"));
    let all = entries(&m);
    assert_eq!(
        (all.len(), all[0]["members"].as_array().unwrap().len()),
        (1, 2),
        "{all:?}"
    );
}

#[test]
fn a_lock_that_is_given_back_publishes_nothing_of_a_round() {
    let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
    let mut reader = Actor::new();
    let script = "import fcntl\nf=open('a.w','r+'); fcntl.flock(f,fcntl.LOCK_EX); f.write('new'); f.flush(); fcntl.flock(f,fcntl.LOCK_UN)\n\
                  print('unlocked',flush=True); input(); f.close(); print('closed',flush=True); input(); open('a.json','w').write('1'); print('all',flush=True); input()";
    let mut saver = m.live_python(script);
    for (line, expected) in [("unlocked", "old"), ("closed", "old"), ("all", "new")] {
        saver.expect(line);
        assert_eq!(seen(&m, &mut reader, &["a.w"]), some(&[expected]), "{line}");
        saver.send("");
    }
}

#[test]
fn a_member_that_is_fsynced_is_kept_in_rejected_whoever_is_killed() {
    need_daemon!();
    let mut m = mount!(pair().seed("a.w", "old"));
    let mut saver = Actor::new();
    saver.open("f", "w", &m.path("a.w")).unwrap();
    saver.write("f", "synced").unwrap();
    saver.fsync("f").unwrap();
    saver.kill(libc::SIGKILL);
    m.await_rejected("a.w", b"synced");
    assert_eq!(m.text("a.w").as_deref(), Some("old"));
    let mut saver = Actor::new();
    for close in [false, true] {
        saver.open("f", "w", &m.path("a.w")).unwrap();
        saver.write("f", format!("closed: {close}")).unwrap();
        saver.fsync("f").unwrap();
        if close {
            saver.close("f").unwrap();
        }
        m.kill_daemon();
        m.remount();
        assert_eq!(m.text("a.w").as_deref(), Some("old"), "closed: {close}");
        m.await_rejected("a.w", format!("closed: {close}").as_bytes());
        saver = Actor::new();
    }
}

#[test]
fn what_was_fsynced_is_on_the_medium_with_the_others_when_the_last_close_returns() {
    need_daemon!();
    need_features!("inline_content");
    // Each fsync and each close waits for the journal; the fourth time that fails.
    let failing = format!("C19-sync-journal:{}:1000:3", libc::EIO);
    let m = mount!(
        pair()
            .args(["--bound", "60000"])
            .env("COMMITFS_FAIL_AT", failing)
    );
    let mut saver = Actor::new();
    for (name, last) in [("a.w", false), ("a.json", true)] {
        saver.open("f", "w", &m.path(name)).unwrap();
        saver.write("f", "{}").unwrap();
        saver.fsync("f").unwrap();
        let closed = saver.close("f");
        match last {
            true => assert_errno(closed, "EIO"),
            false => closed.unwrap(),
        }
    }
}

#[test]
fn a_dead_daemon_leaves_a_round_as_one_entry_and_publishes_what_was_complete() {
    need_daemon!();
    for (point, published) in [
        ("prepared-journalled:2", true),
        ("flush-replied:2", true),
        ("prepared-journalled:1", false),
        ("commit-journalled:1", true),
    ] {
        let mut m = mount!(
            pair()
                .seed("a.w", "old")
                .seed("a.json", "0")
                .env("COMMITFS_CRASH_AT", point)
        );
        let mut saver = Actor::new();
        let _ = saver.save(&m.path("a.w"), "new");
        let _ = saver.save(&m.path("a.json"), "1");
        eventually(Duration::from_secs(3), point, || !m.daemon_lives());
        m.kill_daemon();
        m.clear_env();
        m.remount();
        let found = (m.text("a.w").unwrap(), m.text("a.json").unwrap());
        let expected = match published {
            true => ("new", "1"),
            false => ("old", "0"),
        };
        assert_eq!((found.0.as_str(), found.1.as_str()), expected, "{point}");
        assert_eq!(entries(&m).is_empty(), published, "{point}");
    }
    let mut m = mount!(pair().seed("a.w", "old"));
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.o"), "more").unwrap();
    m.kill_daemon();
    m.remount();
    assert_eq!(
        (m.text("a.w").as_deref(), m.text("a.o")),
        (Some("old"), None)
    );
    let all = entries(&m);
    assert_eq!(
        (all.len(), all[0]["members"].as_array().unwrap().len()),
        (1, 2),
        "{all:?}"
    );
}

/// A pair whose rounds are never published as their last member is closed, but a moment later.
fn pair_decided_later() -> Options {
    pair()
        .seed("a.w", "old")
        .seed("a.json", "0")
        .env("COMMITFS_FAIL_AT", "round-at-once:5")
        .env("COMMITFS_ROUNDS_DELAY_MS", 3000)
}

#[test]
fn a_round_that_is_being_published_survives_the_kill_of_the_daemon_after_a_new_journal() {
    let mut m = mount!(pair_decided_later().env("COMMITFS_JOURNAL_LIMIT", 1));
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    // Each round of the checkpoint starts the journal anew.
    for n in 0..3 {
        m.save("other", format!("{n}"));
        m.sh("sync .").ok();
    }
    assert_eq!(groups(&m)["published"], 0, "it took too long");
    m.kill_daemon();
    m.clear_env();
    m.remount();
    let found = (m.text("a.w").unwrap(), m.text("a.json").unwrap());
    assert_eq!((found.0.as_str(), found.1.as_str()), ("new", "1"));
    assert_eq!(entries(&m), Vec::<Value>::new());
}

#[test]
fn a_saver_that_is_killed_while_what_it_has_saved_is_being_published_takes_nothing_back() {
    let m = mount!(pair_decided_later());
    let mut saver = Actor::new();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    saver.kill(libc::SIGKILL);
    await_count(&m, "published", 1);
    assert_eq!(m.text("a.w").as_deref(), Some("new"));
    assert_eq!(entries(&m), Vec::<Value>::new());
}

/// What becomes of rounds whose savers have ended is seen late, as on a busy machine.
fn pair_seen_late() -> Options {
    pair().env("COMMITFS_ROUNDS_DELAY_MS", 400)
}

#[test]
fn what_a_saver_leaves_that_has_ended_comes_before_what_is_saved_after_that() {
    let m = mount!(pair_seen_late().seed("a.json", "0"));
    let (mut first, mut second) = (Actor::new(), Actor::new());
    first.save(&m.path("a.w"), "first").unwrap();
    second.save(&m.path("a.w"), "second").unwrap();
    first.exit(0);
    second.save(&m.path("a.json"), "2").unwrap();
    await_count(&m, "published", 2);
    assert_eq!(m.text("a.w").as_deref(), Some("second"));
    assert_eq!(m.text("a.json").as_deref(), Some("2"));
}

#[test]
fn a_child_that_was_killed_a_moment_before_the_last_member_was_saved_counts() {
    let m = mount!(pair_seen_late().seed("a.w", "old").seed("a.json", "0"));
    let mut saver = Actor::new();
    saver.save(&m.path("a.o"), "more").unwrap();
    let mut child = saver.fork();
    child.save(&m.path("a.w"), "new").unwrap();
    child.kill(libc::SIGKILL);
    saver.save(&m.path("a.json"), "1").unwrap();
    await_count(&m, "rejected", 1);
    assert_eq!(m.text("a.w").as_deref(), Some("old"));
    assert_eq!(m.text("a.json").as_deref(), Some("0"));
}

#[test]
fn a_member_that_is_removed_while_it_is_written_is_not_waited_for() {
    let m = mount!(pair());
    let mut saver = Actor::new();
    saver.open("f", "w", &m.path("a.o")).unwrap();
    saver.write("f", "more").unwrap();
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(m.text("a.w"), None);
    saver.unlink(&m.path("a.o")).unwrap();
    await_count(&m, "published", 1);
    assert_eq!(m.text("a.w").as_deref(), Some("new"));
    saver.write("f", "more").unwrap();
    saver.close("f").unwrap();
    assert_eq!(m.text("a.o"), None);
}

#[test]
fn a_link_to_a_member_has_what_is_saved_once_all_of_it_is_published_and_not_before() {
    for published in [true, false] {
        let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
        let (mut saver, mut linker) = (Actor::new(), Actor::new());
        saver.open("w", "r+", &m.path("a.w")).unwrap();
        linker.link(&m.path("a.w"), &m.path("c")).unwrap();
        saver.pwrite("w", 0, b"new").unwrap();
        saver.close("w").unwrap();
        assert_eq!(seen(&m, &mut linker, &["a.w", "c"]), some(&["old", "old"]));
        match published {
            true => {
                saver.save(&m.path("a.json"), "1").unwrap();
                let whole = ["new", "1", "new"];
                eventually(Duration::from_secs(5), "published", || {
                    seen(&m, &mut linker, &["a.w", "a.json", "c"]) == some(&whole)
                });
            }
            false => {
                saver.kill(libc::SIGKILL);
                await_count(&m, "rejected", 1);
                assert_eq!(seen(&m, &mut linker, &["a.w", "c"]), some(&["old", "old"]));
            }
        }
    }
}

#[test]
fn what_others_have_appended_to_a_member_is_kept_beside_what_waits() {
    let m = mount!(
        pair()
            .seed("a.w", "old")
            .seed("a.json", "0")
            .seed("a.o", "1\n")
    );
    let mut saver = Actor::new();
    saver.open("o", "a", &m.path("a.o")).unwrap();
    saver.write("o", "2\n3\n").unwrap();
    saver.close("o").unwrap();
    m.sh("echo other >> a.o").ok();
    await_count(&m, "published", 1);
    saver.save(&m.path("a.w"), "new").unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    await_count(&m, "published", 2);
    assert_eq!(m.text("a.o").as_deref(), Some("1\n2\n3\nother\n"));
}

#[test]
fn a_round_is_published_once_a_child_that_wrote_some_of_it_has_ended_well_though_its_parent_goes_on()
 {
    let write_json = |status: i32| {
        format!(
            "import os, subprocess, sys, time\n\
             open('a.w', 'w').write('new')\n\
             f = open('a.json', 'w')\n\
             child = subprocess.Popen(['sh', '-c', 'sleep 0.3; echo 1; exit {status}'], stdout=f)\n\
             f.close()\n\
             child.wait()\n\
             print('done')\n\
             time.sleep(60)\n"
        )
    };
    for status in [0, 1] {
        let m = mount!(pair().seed("a.w", "old").seed("a.json", "0"));
        let mut parent = Live::python(m.mountpoint(), &write_json(status));
        parent.expect("done");
        let expected = match status {
            0 => {
                await_count(&m, "published", 1);
                ("new", "1\n")
            }
            _ => {
                await_count(&m, "rejected", 1);
                ("old", "0")
            }
        };
        let found = (m.text("a.w").unwrap(), m.text("a.json").unwrap());
        assert_eq!((found.0.as_str(), found.1.as_str()), expected, "{status}");
        parent.kill(libc::SIGKILL);
        parent.finish();
    }
}

/// All three of one save, numbered.
fn save_triple(saver: &mut Actor, m: &Mount, tag: u64) -> Result<(), common::Failure> {
    let weights = tag.to_be_bytes().repeat(2000);
    saver.save(&m.path("weights.bin"), weights)?;
    saver.save(&m.path("metrics.json"), format!("{{\"tag\": {tag}}}"))?;
    saver.save(
        &m.path("metadata.json"),
        format!("{{\"tag\": {tag}, \"end\": 1}}"),
    )
}

/// The tag that all three have.
#[track_caller]
fn tag_of_triple(m: &Mount, what: &str) -> u64 {
    let weights = m.read("weights.bin").expect(what);
    let tag = u64::from_be_bytes(weights[..8].try_into().unwrap());
    assert_eq!(weights, tag.to_be_bytes().repeat(2000), "{what}");
    for name in ["metrics.json", "metadata.json"] {
        let value: Value = serde_json::from_str(&m.text(name).unwrap()).unwrap();
        assert_eq!(value["tag"], tag, "{what}: {name}");
    }
    tag
}

#[test]
fn a_daemon_killed_at_every_crash_point_publishes_a_round_whole_or_not_at_all() {
    need_daemon!();
    let counts = |sync: bool| match (times(0, 1), sync) {
        (0, false) => vec![1, 3],
        (0, true) => vec![2],
        _ => vec![1, 2, 3, 5],
    };
    let points = CRASH_POINTS.iter().filter(|p| !p.starts_with("recovery"));
    for (point, options) in points.flat_map(|p| [(p, false), (p, true)]) {
        for count in counts(options) {
            let when = format!("{point}:{count}, sync {options}");
            let base = Mount::options()
                .rules(TRIPLE)
                .env("COMMITFS_JOURNAL_LIMIT", 1);
            let mut m = mount!(if options { base.sync() } else { base });
            let mut saver = Actor::new();
            save_triple(&mut saver, &m, 1).unwrap();
            saver.exit(0);
            m.unmount();
            m.set_env("COMMITFS_CRASH_AT", format!("{point}:{count}"));
            if m.try_remount().is_err() {
                m.clear_env();
                m.remount();
                continue;
            }
            let mut saver = Actor::new();
            let mut acknowledged = 1;
            for tag in 2..6 {
                if save_triple(&mut saver, &m, tag).is_err() {
                    break;
                }
                acknowledged = tag;
            }
            m.kill_daemon();
            m.clear_env();
            m.remount();
            let found = tag_of_triple(&m, &when);
            assert!(
                found >= acknowledged,
                "{when}: {found}, and {acknowledged} was acknowledged"
            );
            assert!(entries(&m).len() <= 1, "{when}");
            drop(saver);
            m.unmount();
        }
    }
}

#[test]
fn a_daemon_killed_at_every_crash_point_of_recovery_publishes_a_round_whole_or_not_at_all() {
    need_daemon!();
    for point in [
        "recovery-replayed",
        "recovery-placed",
        "recovery-applied",
        "recovery-rejected",
    ] {
        for complete in [false, true] {
            let mut m = mount!(Mount::options().rules(TRIPLE).args(["--bound", "60000"]));
            let mut saver = Actor::new();
            save_triple(&mut saver, &m, 1).unwrap();
            if complete {
                save_triple(&mut saver, &m, 2).unwrap();
            }
            saver.save(&m.path("weights.bin"), "unfinished").unwrap();
            saver.save(&m.path("metrics.json"), "{}").unwrap();
            m.kill_daemon();
            m.set_env("COMMITFS_CRASH_AT", point);
            assert!(m.try_remount().is_err(), "{point} was not reached");
            m.clear_env();
            m.remount();
            assert_eq!(tag_of_triple(&m, point), 1 + u64::from(complete), "{point}");
            let all = entries(&m);
            assert_eq!(
                (all.len(), all[0]["members"].as_array().unwrap().len()),
                (1, 2),
                "{point}"
            );
        }
    }
}

const WORKER: &str = r"
import json,os,sys
def save(d,tag):
    with open(d+'/weights.bin','wb') as f: f.write(tag.to_bytes(8,'big')*2000)
    with open(d+'/metrics.json','w') as f: json.dump({'tag':tag,'loss':[tag]*200},f)
    with open(d+'/metadata.json','w') as f: json.dump({'tag':tag},f)
";

#[test]
fn ten_workers_that_are_killed_and_fail_leave_no_mixture() {
    let m = mount!(
        Mount::options()
            .rules(TRIPLE)
            .limit(Duration::from_secs(300))
    );
    let rounds = times(10, 500);
    let script = format!(
        "{WORKER}
import random,signal,time
for r in range({rounds}):
    pids=[]
    for i in range(10):
        pid=os.fork()
        if pid==0:
            for n in range(2): save('.',1+r*1000+i*10+n)
            os._exit(1 if i==7 else 0)
        pids.append(pid)
    if r:
        time.sleep(random.random()*0.03)
        os.kill(pids[r%10],signal.SIGKILL)
    for pid in pids: os.waitpid(pid,0)
    t={{int.from_bytes(open('weights.bin','rb').read(8),'big')}}
    for n in ('metrics','metadata'): t.add(json.load(open(n+'.json'))['tag'])
    print(len(t),flush=True)
"
    );
    let found = m.python(&script).ok().out;
    let mixed = found.lines().filter(|line| *line != "1").count();
    assert_eq!((mixed, found.lines().count()), (0, rounds), "{found}");
    let all = entries(&m);
    assert!(all.iter().all(|e| e["members"].is_array()), "{all:?}");
}

#[test]
fn ten_thousand_files_of_one_group_are_published_all_or_not_at_all() {
    let rules = "[[group]]\nfiles = [\"d/*.n\", \"d/index\"]\n";
    let m = mount!(
        Mount::options()
            .rules(rules)
            .limit(Duration::from_secs(300))
    );
    m.mkdir("d");
    let mut reader = Actor::new();
    reader.patience(Duration::from_secs(60));
    let count = times(2_000, 10_000);
    let script = format!(
        "import os,sys\nfor n in range({count}): open(f'd/{{n}}.n','w').write(str(n))\n\
         print('saved',flush=True)\nif input()=='fail': os._exit(1)\n\
         open('d/index','w').write('i'); print('all',flush=True); input()"
    );
    let mut failing = m.live_python(&script);
    failing.expect("saved");
    assert_eq!(m.names("d"), [""; 0]);
    failing.send("fail");
    failing.finish();
    eventually(Duration::from_secs(60), "rejected", || {
        groups(&m)["rejected"] == 1
    });
    assert_eq!(m.names("d"), [""; 0]);
    let rejected = || -> Vec<Value> { entries(&m) };
    eventually(Duration::from_secs(60), "all are kept", || {
        let of_round = |entry: &Value| entry["members"].as_array().map(Vec::len);
        rejected().first().and_then(of_round) == Some(count)
    });
    let id = rejected()[0]["id"].as_str().unwrap().to_owned();
    let mount = m.mountpoint().to_str().unwrap();
    common::commitfs(["rejected", "restore", mount, &id]).ok();
    assert_eq!(m.names("d").len(), count);
    assert_eq!(groups(&m)["published"], 1, "in one step");
    let mut saver = m.live_python(&script);
    saver.expect("saved");
    saver.send("");
    saver.expect("all");
    assert_eq!(
        seen(&m, &mut reader, &["d/0.n", "d/index"]),
        some(&["0", "i"])
    );
    assert_eq!(m.names("d").len(), count + 1);
    let last = format!("d/{}.n", count - 1);
    assert_eq!(m.text(&last), Some((count - 1).to_string()));
}

#[test]
fn a_full_disk_refuses_a_round_as_a_whole() {
    need_root!();
    need_daemon!();
    let disk = Disk::ext4(40);
    let options = Mount::options().rules(TRIPLE).on(disk);
    let m = mount!(options.limit(Duration::from_secs(300)));
    let mut random = Random::new();
    let mut saver = Actor::new();
    save_triple(&mut saver, &m, 1).unwrap();
    let mut filler = Actor::new();
    filler.open("f", "w", &m.path("filler")).unwrap();
    let _ = filler.fill("f", 100 << 20, 64 << 10, 1);
    let mut failures = 0;
    let mut last = 1;
    for tag in 2..times(20, 200) as u64 {
        let size = 800_000 + random.below(3_000_000);
        saver.open("w", "w", &m.path("weights.bin")).unwrap();
        let _ = saver.write("w", tag.to_be_bytes());
        let _ = saver.fill("w", size, 64 << 10, 1);
        let weights = saver.close("w");
        let metrics = saver.save(&m.path("metrics.json"), format!("{{\"tag\": {tag}}}"));
        let metadata = saver.save(&m.path("metadata.json"), format!("{{\"tag\": {tag}}}"));
        let is_saved = weights.and(metrics).and(metadata).is_ok();
        let mut tags = vec![u64::from_be_bytes(
            m.read("weights.bin").unwrap()[..8].try_into().unwrap(),
        )];
        for name in ["metrics.json", "metadata.json"] {
            let value: Value = serde_json::from_str(&m.text(name).unwrap()).unwrap();
            tags.push(value["tag"].as_u64().unwrap());
        }
        assert!(tags.iter().all(|t| *t == tags[0]), "{tag}: {tags:?}");
        if is_saved {
            last = tag;
        }
        failures += u32::from(!is_saved);
        assert_eq!(tags[0], last, "{tag}");
    }
    assert!(failures > 0);
}

#[test]
fn workers_that_are_killed_that_fail_or_find_the_disk_full_leave_no_mixture() {
    need_root!();
    need_daemon!();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/stress-groups");
    let below = common::temporary_directory();
    let mut stress = std::process::Command::new(script);
    stress.args(["--rounds", &times(60, 500).to_string()]);
    stress.arg(&below).env("COMMITFS", common::binary());
    let limit = Duration::from_secs(times(200, 1_000) as u64);
    let told = common::run(&mut stress, limit).ok();
    assert!(told.out.contains("'mixed': 0"), "{}", told.out);
    let _ = std::fs::remove_dir_all(&below);
}

#[test]
fn many_rounds_of_a_program_take_one_descriptor_for_it() {
    need_daemon!();
    const ROUNDS: u64 = 300;
    let m = mount!(pair());
    let mut saver = Actor::new();
    let descriptors = || {
        let held = std::fs::read_dir(format!("/proc/{}/fd", m.daemon_pid()));
        held.expect("its files").count() as u64
    };
    let before = descriptors();
    for n in 0..ROUNDS {
        saver.save(&m.path(format!("{n}.w")), "new").unwrap();
    }
    // What each has saved is open.
    let more = descriptors() - before;
    assert!(more < ROUNDS + 20, "{more}");
    saver.save(&m.path("7.json"), "1").unwrap();
    assert_eq!(m.names("").len(), 2);
    saver.kill(libc::SIGKILL);
    await_count(&m, "rejected", ROUNDS - 1);
    eventually(Duration::from_secs(10), "nothing is held", || {
        descriptors() < before + 20
    });
    assert_eq!(m.names("").len(), 2);
}

#[test]
fn a_journal_that_is_replaced_knows_what_waits() {
    need_daemon!();
    let mut m = mount!(pair().seed("a.w", "old").env("COMMITFS_JOURNAL_LIMIT", 1));
    let mut saver = Actor::new();
    saver.open("f", "w", &m.path("a.w")).unwrap();
    saver.write("f", "new").unwrap();
    saver.fsync("f").unwrap();
    saver.close("f").unwrap();
    for n in 0..20 {
        m.save("other", format!("{n}"));
        std::thread::sleep(Duration::from_millis(30));
    }
    m.kill_daemon();
    m.remount();
    assert_eq!(m.text("a.w").as_deref(), Some("old"));
    m.await_rejected("a.w", b"new");
}
