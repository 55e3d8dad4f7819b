//! C6. A loader lists a directory and finds `model-17.bin` the moment it is created, empty, long
//! before it is written. Here a name appears together with its first version; except after
//! O_EXCL, which is how programs lock and claim, and must be seen by everybody at once.

mod common;

use std::sync::Barrier;
use std::time::Duration;

use common::{Actor, Mount, assert_content, assert_errno, stamped, times};

#[test]
fn a_new_file_is_hidden_from_strangers_until_it_commits() {
    let m = mount!();
    let path = m.path("fresh");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "content").unwrap();
    let mut child = writer.fork();
    assert!(!m.exists("fresh"), "stat by a stranger");
    assert!(m.read("fresh").is_none(), "open by a stranger");
    assert!(m.names(".").is_empty(), "readdir by a stranger");
    // Its creator and the creator's descendants see it, as on the plain directory.
    assert_eq!(writer.stat(&path).unwrap().size, 7);
    assert_content(child.cat(&path).ok(), b"content", "its child");
    child.exit(0);
    writer.close("f").unwrap();
    assert_content(m.read("fresh"), b"content", "after close");
    assert_eq!(m.names("."), ["fresh"]);
}

#[test]
fn an_empty_new_file_appears_at_close() {
    // The plain directory passes.
    let m = mount!();
    m.sh("touch a; : > b; > c; mkdir d; touch d/e; cp /dev/null g")
        .ok();
    for name in ["a", "b", "c", "d/e", "g"] {
        assert_content(m.read(name), b"", name);
    }
}

#[test]
fn a_claim_by_exclusive_creation_is_seen_by_all_at_once_and_survives_a_kill() {
    // The plain directory passes: hiding these would break every lock file.
    let m = mount!();
    let path = m.path("claim");
    let mut owner = Actor::new();
    owner.open("f", "x", &path).unwrap();
    assert_content(m.read("claim"), b"", "created");
    assert_eq!(m.names("."), ["claim"]);
    let mut rival = Actor::new();
    assert_errno(rival.open("f", "x", &path), "EEXIST");
    let pid = format!("{}\n", owner.pid());
    owner.write("f", &pid).unwrap();
    assert_content(m.read("claim"), pid.as_bytes(), "as written, before close");
    owner.kill(libc::SIGKILL);
    assert_content(m.read("claim"), pid.as_bytes(), "after a kill");
    assert_errno(rival.open("f", "x", &path), "EEXIST");
    rival.unlink(&path).unwrap();
    rival.open("f", "x", &path).unwrap();
    rival.close("f").unwrap();
    assert_content(m.read("claim"), b"", "claimed again");
}

#[test]
fn a_version_committed_over_a_claim_is_seen_by_all() {
    // The plain directory passes.
    let m = mount!();
    let (mut owner, mut other) = (Actor::new(), Actor::new());
    for way in ["save", "rename"] {
        owner.open("f", "x", &m.path(way)).unwrap();
        if way == "save" {
            other.save(&m.path(way), "by another").unwrap();
        } else {
            other.save(&m.path("temporary"), "by another").unwrap();
            other.rename(&m.path("temporary"), &m.path(way)).unwrap();
        }
        assert_content(m.read(way), b"by another", way);
        owner.kill(libc::SIGKILL);
        assert_content(m.read(way), b"by another", "after the claimant's death");
        owner = Actor::new();
    }
}

#[test]
fn an_exclusively_created_file_that_grows_is_hidden_but_still_claimed() {
    let m = mount!();
    let path = m.path("big");
    let mut writer = Actor::new();
    writer.open("f", "x", &path).unwrap();
    let content = stamped(1, 50_000);
    writer.write("f", &content[..3_000]).unwrap();
    assert_content(
        m.read("big"),
        &content[..3_000],
        "the first bytes of a claim",
    );
    writer.write("f", &content[3_000..20_000]).unwrap();
    // Plain: a prefix of 20,000 bytes.
    assert!(m.read("big").is_none(), "beyond 4 KiB");
    let mut rival = Actor::new();
    assert_errno(rival.open("f", "x", &path), "EEXIST");
    writer.write("f", &content[20_000..]).unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("big"), &content, "after close");
}

#[test]
fn an_exclusively_created_document_under_a_guard_is_hidden_but_claimed() {
    let m = mount!();
    let path = m.path("new.json");
    let mut writer = Actor::new();
    writer.open("f", "x", &path).unwrap();
    writer.write("f", "{\"a\": ").unwrap();
    assert!(m.read("new.json").is_none(), "half a document");
    let mut rival = Actor::new();
    assert_errno(rival.open("f", "x", &path), "EEXIST");
    writer.write("f", "1}").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("new.json"), b"{\"a\": 1}", "after close");
}

#[test]
fn exactly_one_of_a_hundred_processes_wins_an_exclusive_creation() {
    // The plain directory passes.
    let m = mount!(Mount::options().limit(Duration::from_secs(900)));
    const RIVALS: usize = 100;
    let rounds = times(50, 1_000);
    let barrier = Barrier::new(RIVALS);
    // Each rival: the rounds that it won, and what it found in the others' claims.
    let rival = |number: usize| {
        let mut actor = Actor::new();
        actor.patience(Duration::from_secs(60));
        let (mut won, mut found) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let path = m.path(format!("claim-{round}"));
            barrier.wait();
            let wins = actor.open("f", "x", &path).is_ok();
            if wins {
                won.push((round, actor.pid()));
                actor.write("f", actor.pid().to_string()).unwrap();
                match round % 3 {
                    0 => actor.close("f").unwrap(),
                    // With the claim still open.
                    1 => {
                        actor.kill(libc::SIGKILL);
                        actor = Actor::new();
                    }
                    _ => {}
                }
            }
            barrier.wait();
            if (number + round).is_multiple_of(25) {
                let text = actor.cat(&path).unwrap_or_default();
                found.push((round, String::from_utf8_lossy(&text).into_owned()));
            }
            barrier.wait();
            if wins && round % 3 == 2 {
                actor.close("f").unwrap();
            }
        }
        (won, found)
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let rival = &rival;
        let start = |number| scope.spawn(move || rival(number));
        let all: Vec<_> = (0..RIVALS).map(start).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let mut winners = vec![Vec::new(); rounds];
    for (round, pid) in all.iter().flat_map(|(won, _)| won) {
        winners[*round].push(*pid);
    }
    for (round, pids) in winners.iter().enumerate() {
        assert_eq!(pids.len(), 1, "winners of round {round}: {pids:?}");
        let content = m.text(format!("claim-{round}"));
        assert_eq!(content, Some(pids[0].to_string()), "in the end, {round}");
    }
    for (round, text) in all.iter().flat_map(|(_, found)| found) {
        assert_eq!(*text, winners[*round][0].to_string(), "in round {round}");
    }
}

#[test]
fn noclobber_and_mktemp_claim_as_on_the_plain_directory() {
    let m = mount!();
    m.sh("set -C; echo mine > lock && ! (echo other > lock) 2>/dev/null && cat lock")
        .ok();
    assert_content(m.read("lock"), b"mine\n", "noclobber");
    let made = m
        .sh("f=$(mktemp ./t.XXXXXX) && test -f $f && echo x > $f && cat $f")
        .ok();
    assert_eq!(made.out, "x\n");
    m.python(
        "import tempfile, os\n\
         with tempfile.TemporaryDirectory(dir='.') as d:\n\
         \x20   with tempfile.NamedTemporaryFile(dir=d) as f:\n\
         \x20       f.write(b'x'); f.flush(); assert open(f.name).read() == 'x'\n",
    )
    .ok();
}

#[test]
fn a_directory_made_in_the_place_of_a_hidden_name_fails_the_close_with_eisdir() {
    let m = mount!();
    let path = m.path("name");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "kept").unwrap();
    let mut other = Actor::new();
    other
        .mkdir(&path)
        .expect("a stranger may use a hidden name");
    // What the kernel keeps of the name of a directory is nothing to who has a file there.
    assert!(other.stat(&path).is_ok());
    assert_eq!(writer.cat(&path).unwrap(), b"kept");
    assert_errno(writer.close("f"), "EISDIR");
    assert!(m.path("name").is_dir());
    m.await_rejected("name", b"kept");
    assert_eq!(m.aborts("vanished_target"), 1);
}

#[test]
fn who_has_a_new_file_open_goes_on_finding_it_where_a_directory_is_moved() {
    let m = mount!();
    let (path, moved) = (m.path("name"), m.path("dir"));
    m.mkdir("dir");
    let mut other = Actor::new();
    assert!(other.stat(&moved).is_ok());
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "kept").unwrap();
    other
        .rename(&moved, &path)
        .expect("a stranger may use a hidden name");
    assert!(m.path("name").is_dir());
    assert_eq!(writer.cat(&path).unwrap(), b"kept");
    assert_errno(writer.close("f"), "EISDIR");
    m.await_rejected("name", b"kept");
}

#[test]
fn a_parent_removed_under_a_hidden_name_fails_the_close_with_enoent() {
    let m = mount!();
    m.mkdir("d");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("d/name")).unwrap();
    writer.write("f", "kept").unwrap();
    let mut other = Actor::new();
    other
        .rmdir(&m.path("d"))
        .expect("the directory looks empty to a stranger");
    assert_errno(writer.close("f"), "ENOENT");
    assert!(!m.exists("d"));
    m.await_rejected("d/name", b"kept");
    assert_eq!(m.aborts("vanished_target"), 1);
}

#[test]
fn renaming_a_directory_carries_hidden_names_along() {
    let m = mount!();
    m.mkdir("old");
    m.mkdir("old/deep");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("old/deep/name")).unwrap();
    writer.write("f", "carried").unwrap();
    let mut other = Actor::new();
    other.rename(&m.path("old"), &m.path("new")).unwrap();
    assert!(m.names("new/deep").is_empty(), "still hidden");
    writer.close("f").unwrap();
    assert_content(
        m.read("new/deep/name"),
        b"carried",
        "under the new directory",
    );
    assert!(!m.exists("old"));
}

#[test]
fn creators_that_append_keep_each_others_bytes() {
    let m = mount!();
    let mut creators: Vec<Actor> = (0..4).map(|_| Actor::new()).collect();
    for creator in &mut creators {
        creator.open("f", "a", &m.path("log")).unwrap();
    }
    for (creator, text) in creators.iter_mut().zip(["1", "22\n", "333", "4444"]) {
        creator.write("f", text).unwrap();
    }
    for creator in &mut creators {
        creator.close("f").unwrap();
    }
    let found = m.text("log").unwrap();
    for text in ["1", "22\n", "333", "4444"] {
        assert!(found.contains(text), "{text:?} is not in {found:?}");
    }
    assert_eq!(found.len(), 11, "{found:?}");
}

#[test]
fn two_creators_of_one_name_each_see_their_own_and_the_later_commit_wins() {
    let m = mount!();
    let path = m.path("name");
    let (mut one, mut two) = (Actor::new(), Actor::new());
    one.open("f", "w", &path).unwrap();
    two.open("f", "w", &path).unwrap();
    one.write("f", "of one, which is longer").unwrap();
    two.write("f", "of two").unwrap();
    assert_content(
        one.cat(&path).ok(),
        b"of one, which is longer",
        "its own staged bytes",
    );
    assert_content(two.cat(&path).ok(), b"of two", "its own staged bytes");
    assert!(!m.exists("name"));
    one.close("f").unwrap();
    assert_content(
        m.read("name"),
        b"of one, which is longer",
        "after the first commit",
    );
    assert_content(
        two.cat(&path).ok(),
        b"of two",
        "the second still reads its own",
    );
    two.close("f").unwrap();
    assert_content(m.read("name"), b"of two", "after the second commit");
}

#[test]
fn a_stranger_may_rename_or_link_onto_a_hidden_name_and_the_later_commit_wins() {
    let m = mount!();
    m.save("ready", "renamed");
    m.save("ready2", "linked");
    let mut other = Actor::new();
    for (name, how) in [("a", "rename"), ("b", "link")] {
        let path = m.path(name);
        let mut writer = Actor::new();
        writer.open("f", "w", &path).unwrap();
        writer.write("f", "written").unwrap();
        let expected = if how == "rename" {
            other.rename(&m.path("ready"), &path).unwrap();
            "renamed"
        } else {
            other.link(&m.path("ready2"), &path).unwrap();
            "linked"
        };
        assert_content(m.read(name), expected.as_bytes(), how);
        writer.close("f").unwrap();
        assert_content(m.read(name), b"written", "after the later commit");
    }
    assert_content(m.read("ready2"), b"linked", "the other name of the link");
}

#[test]
fn a_creator_that_removes_its_hidden_name_leaves_nothing() {
    // The plain directory passes.
    let m = mount!();
    let path = m.path("name");
    let mut writer = Actor::new();
    writer.open("f", "w+", &path).unwrap();
    writer.write("f", "scratch").unwrap();
    writer.unlink(&path).unwrap();
    assert_errno(writer.stat(&path), "ENOENT");
    assert_content(
        writer.pread("f", 0, 100).ok(),
        b"scratch",
        "still readable through it",
    );
    writer.close("f").unwrap();
    assert!(!m.exists("name"));
    assert!(m.names(".").is_empty());
    m.sh("rmdir \"$PWD/x\" 2>/dev/null; mkdir x && rmdir x")
        .ok();
}

#[test]
fn separate_mounts_hide_new_names_in_the_backing_directory_too() {
    need_daemon!();
    let m = mount!(Mount::options().separate());
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("fresh")).unwrap();
    writer.write("f", "half").unwrap();
    let shown = |m: &Mount| {
        let entries = std::fs::read_dir(m.backing()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != ".commitfs");
        names
    };
    assert!(shown(&m).is_empty(), "{:?}", shown(&m));
    writer.close("f").unwrap();
    assert_content(m.read("fresh"), b"half", "after close");
    assert!(
        !m.names(".").contains(&".commitfs".to_owned()),
        "hidden from listings"
    );
    m.path(".commitfs/rejected")
        .symlink_metadata()
        .expect("but reachable by name");
    let mut m = m;
    m.unmount();
    assert_eq!(
        std::fs::read(m.backing().join("fresh")).unwrap(),
        b"half",
        "a plain file remains"
    );
}

/// How often the daemon has read something: once for each request, and what else it needs.
fn reads(m: &Mount) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", m.daemon_pid())).expect("io");
    let line = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    line.and_then(|n| n.parse().ok()).expect("syscr")
}

#[test]
fn a_creation_says_how_long_its_attributes_hold() {
    need_daemon!();
    need_features!("created_attributes");
    let create = "import os\n\
        for n in range(100):\n    \
            fd = os.open(f'{NAME}{n}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)\n    \
            os.write(fd, b'x' * 2048); os.close(fd)\n";
    let cost = |m: &Mount| {
        m.python(&create.replace("{NAME}", "warm")).ok();
        let before = reads(m);
        m.python(&create.replace("{NAME}", "f")).ok();
        reads(m) - before
    };
    let with = cost(&mount!());
    let without = cost(&mount!(
        Mount::options().env("COMMITFS_WITHOUT", "created_attributes")
    ));
    println!(
        "reads for 100 new files: {with}, and {without} where each is asked for its attributes"
    );
    assert!(with + 80 < without, "{with}, {without}");
}

#[test]
fn who_looks_at_once_finds_nothing_of_a_new_file() {
    let m = mount!();
    let (mut writer, mut stranger) = (Actor::new(), Actor::new());
    for n in 0..50 {
        let path = m.path(format!("new-{n}.json"));
        writer.open("f", "w", &path).unwrap();
        let found = stranger.stat(&path);
        assert!(found.is_err(), "a name that isn't there yet: {found:?}");
        writer.write("f", "{}").unwrap();
        assert_eq!(writer.fstat("f").unwrap().size, 2);
        writer.close("f").unwrap();
        assert_eq!(stranger.stat(&path).unwrap().size, 2);
    }
}
