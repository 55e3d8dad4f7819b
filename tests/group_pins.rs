//! C23, `readers = "pin"`. Who has opened one file of a group finds the others of the same generation, whatever is published
//! meanwhile, until it opens one that it has opened already, or for 5 s after it has closed the last.

mod common;

use std::time::Duration;

use common::watching::stale_after_close_write;
use common::{Actor, Disk, Mount, Options, assert_errno, eventually, times};
use serde_json::Value;

const PAIR: &str =
    "[[group]]\nfiles = [\"{s}.w\", \"{s}.json\"]\noptional = [\"{s}.o\"]\nreaders = \"pin\"\n";
const TRIPLE: &str = "[[group]]\nfiles = [\"weights.bin\", \"metrics.json\", \"metadata.json\"]\nreaders = \"pin\"\n";

fn pair() -> Options {
    let options = Mount::options().rules(PAIR);
    options.seed("a.w", "old").seed("a.json", "0")
}

/// A round of the pair and, where there is a third text, its optional file.
#[track_caller]
fn publish(m: &Mount, saver: &mut Actor, texts: &[&str]) {
    for (name, text) in ["a.o", "a.w", "a.json"].iter().zip(texts) {
        if !text.is_empty() {
            saver.save(&m.path(name), text).unwrap();
        }
    }
}

#[track_caller]
fn assert_reads(m: &Mount, reader: &mut Actor, name: &str, text: &str) {
    let found = reader.cat(&m.path(name)).unwrap();
    assert_eq!(String::from_utf8_lossy(&found), text, "{name}");
}

fn pins(m: &Mount) -> Value {
    m.status()["groups"]["pins"].clone()
}

#[track_caller]
fn await_pins(m: &Mount, count: u64, versions: u64) {
    let what = format!("{count} pins of {versions} versions");
    let holds = || {
        let told = pins(m);
        (&told["count"], &told["versions"]) == (&count.into(), &versions.into())
    };
    eventually(Duration::from_secs(8), &what, holds);
}

#[track_caller]
fn the_others_are_of_the_same_generation(m: &Mount) {
    let (mut reader, mut saver, mut other) = (Actor::new(), Actor::new(), Actor::new());
    // The kernel has looked at all of them.
    for name in ["a.w", "a.json"] {
        other.cat(&m.path(name)).unwrap();
        reader.stat(&m.path(name)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(150));
    reader.stat(&m.path("a.json")).unwrap();
    assert_reads(m, &mut reader, "a.w", "old");
    publish(m, &mut saver, &["more", "new", "10"]);
    for _ in 0..2 {
        // Long enough for the kernel to keep a name.
        std::thread::sleep(Duration::from_millis(150));
        assert_reads(m, &mut other, "a.w", "new");
        assert_reads(m, &mut other, "a.json", "10");
        assert_reads(m, &mut other, "a.o", "more");
        // As it was before there were three.
        assert_errno(reader.stat(&m.path("a.o")), "ENOENT");
        assert_errno(reader.cat(&m.path("a.o")), "ENOENT");
        assert_eq!(reader.stat(&m.path("a.json")).unwrap().size, 1);
        assert_eq!(reader.stat(&m.path("a.w")).unwrap().nlink, 1);
    }
    publish(m, &mut saver, &["", "newer", "100"]);
    assert_reads(m, &mut reader, "a.json", "0");
    assert_reads(m, &mut other, "a.json", "100");
    // It opens one that it has opened already.
    assert_reads(m, &mut reader, "a.json", "100");
    publish(m, &mut saver, &["", "newest", "1000"]);
    assert_reads(m, &mut reader, "a.w", "newer");
    assert_reads(m, &mut reader, "a.o", "more");
    assert_reads(m, &mut reader, "a.w", "newest");
    assert_reads(m, &mut reader, "a.json", "1000");
}

#[test]
fn who_has_opened_one_finds_the_others_of_the_same_generation_until_it_begins_anew() {
    let options = pair().env("COMMITFS_KEEP_PAUSE_MS", 0);
    the_others_are_of_the_same_generation(&mount!(options));
}

#[test]
fn so_it_is_whatever_the_kernel_keeps() {
    for without in [
        "kept_files",
        "kept_names",
        "passthrough",
        "direct_io_allow_mmap",
    ] {
        the_others_are_of_the_same_generation(&mount!(pair().env("COMMITFS_WITHOUT", without)));
    }
}

/// As h5py does to save anew: it opens the file that is there as it is, closes it, and opens it once more to empty it.
#[test]
fn what_was_opened_while_its_saver_looked_at_it_counts_as_opened() {
    let hdf5 = |step: u8| [b"\x89HDF\r\n\x1a\n".as_slice(), &[0; 88], &[step; 9]].concat();
    let m = mount!(
        Mount::options()
            .rules("[[group]]\nfiles = [\"{s}.h5\", \"{s}.json\"]\nreaders = \"pin\"\n")
            .seed("a.h5", hdf5(0))
            .seed("a.json", "0")
    );
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let read = |reader: &mut Actor| {
        let weights = reader.cat(&m.path("a.h5")).unwrap();
        let step = reader.cat(&m.path("a.json")).unwrap();
        (weights.last().copied(), step)
    };
    read(&mut reader);
    saver.open("probed", "r+", &m.path("a.h5")).unwrap();
    read(&mut reader);
    saver.close("probed").unwrap();
    saver.save(&m.path("a.h5"), hdf5(1)).unwrap();
    saver.save(&m.path("a.json"), "1").unwrap();
    assert_eq!(read(&mut reader), (Some(1), b"1".to_vec()));
}

#[test]
fn without_the_rule_each_is_the_newest() {
    let m = mount!(
        Mount::options()
            .rules(&PAIR.replace("\"pin\"", "\"newest\""))
            .seed("a.w", "old")
            .seed("a.json", "0")
    );
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    assert_reads(&m, &mut reader, "a.w", "old");
    publish(&m, &mut saver, &["", "new", "1"]);
    assert_reads(&m, &mut reader, "a.json", "1");
    assert_eq!(pins(&m)["count"], 0);
}

#[test]
fn five_seconds_after_the_last_close_it_is_over_and_its_space_given_back() {
    let m = mount!(pair().env("COMMITFS_PIN_MS", 700));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("a.w")).unwrap();
    publish(&m, &mut saver, &["", "new", "1"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(reader.read_all("f").unwrap(), b"old");
    assert_reads(&m, &mut reader, "a.json", "0");
    let told = pins(&m);
    assert_eq!(
        (&told["count"], &told["versions"]),
        (&1.into(), &2.into()),
        "{told}"
    );
    assert!(told["bytes"].as_u64().unwrap() >= 4096, "{told}");
    assert_eq!(told["threads"][0]["tid"], reader.pid());
    assert_eq!(told["threads"][0]["names"]["s"], "a");
    reader.close("f").unwrap();
    assert_eq!(reader.stat(&m.path("a.w")).unwrap().size, 3);
    await_pins(&m, 0, 0);
    assert_eq!(pins(&m)["bytes"], 0);
    assert_reads(&m, &mut reader, "a.json", "1");
}

#[test]
fn a_mapping_keeps_it_and_who_looks_only_pins_nothing() {
    let m = mount!(pair().env("COMMITFS_PIN_MS", 300));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    reader.stat(&m.path("a.w")).unwrap();
    assert_eq!(pins(&m)["count"], 0);
    publish(&m, &mut saver, &["", "new", "1"]);
    assert_eq!(reader.stat(&m.path("a.json")).unwrap().size, 1);
    reader.open("f", "r", &m.path("a.w")).unwrap();
    reader.mmap("f", "map", 3, "shared-read").unwrap();
    reader.close("f").unwrap();
    publish(&m, &mut saver, &["", "newer", "22"]);
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(reader.map_read("map", 0, 3).unwrap(), b"new");
    assert_reads(&m, &mut reader, "a.json", "1");
    reader.munmap("map").unwrap();
    await_pins(&m, 0, 0);
    assert_reads(&m, &mut reader, "a.json", "22");
}

#[test]
fn each_thread_has_its_own_and_a_child_none() {
    let m = mount!(pair());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let mut thread = reader.thread();
    assert_reads(&m, &mut reader, "a.w", "old");
    let mut child = reader.fork();
    publish(&m, &mut saver, &["", "new", "1"]);
    assert_reads(&m, &mut thread, "a.json", "1");
    assert_reads(&m, &mut child, "a.json", "1");
    assert_reads(&m, &mut reader, "a.json", "0");
}

#[test]
fn what_a_thread_has_pinned_goes_with_it() {
    let m = mount!(pair());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("a.w")).unwrap();
    // What is open is held by somebody else.
    let child = reader.fork();
    publish(&m, &mut saver, &["", "new", "1"]);
    await_pins(&m, 1, 2);
    reader.kill(libc::SIGKILL);
    await_pins(&m, 0, 0);
    drop(child);
}

#[test]
fn who_gets_the_number_of_another_has_not_what_that_has_pinned() {
    need_root!();
    // What a thread that has ended has pinned goes otherwise.
    let m = mount!(pair().env("COMMITFS_WITHOUT", "pin_sweep"));
    let last = "/proc/sys/kernel/ns_last_pid";
    let mut saver = Actor::new();
    let mut others = Vec::new();
    for _ in 0..50 {
        let mut reader = Actor::new();
        reader.open("f", "r", &m.path("a.w")).unwrap();
        publish(&m, &mut saver, &["", "new", "100"]);
        let pid = reader.pid();
        // The kernel tells when a thread has begun in steps of 10 ms.
        std::thread::sleep(Duration::from_millis(20));
        reader.kill(libc::SIGKILL);
        if std::fs::write(last, (pid - 1).to_string()).is_err() {
            return;
        }
        let mut next = Actor::new();
        if next.pid() == pid {
            let size = next.stat(&m.path("a.json")).unwrap().size;
            assert_eq!(size, 3);
            return;
        }
        others.push(next);
        publish(&m, &mut saver, &["", "old", "0"]);
    }
    panic!("no process got the number of another");
}

#[test]
fn a_watcher_that_opens_the_same_file_again_sees_what_was_closed() {
    let rules = "[[group]]\nfiles = [\"f\"]\nreaders = \"pin\"\n";
    let m = mount!(Mount::options().rules(rules));
    let checks = times(500, 10_000);
    let stale = stale_after_close_write(&m, checks);
    assert_eq!(stale, 0, "stale answers in {checks} checks");
}

#[test]
fn groups_of_other_names_are_pinned_for_themselves() {
    let m = mount!(pair().seed("b.w", "old b").seed("b.json", "0"));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    assert_reads(&m, &mut reader, "a.w", "old");
    publish(&m, &mut saver, &["", "new", "1"]);
    saver.save(&m.path("b.w"), "new b").unwrap();
    saver.save(&m.path("b.json"), "1").unwrap();
    assert_reads(&m, &mut reader, "b.json", "1");
    assert_reads(&m, &mut reader, "b.w", "new b");
    assert_reads(&m, &mut reader, "a.json", "0");
}

#[test]
fn names_that_are_removed_renamed_and_made_are_what_they_were() {
    let m = mount!(pair().seed("x", "x").seed("a.o", "more"));
    let (mut reader, mut other) = (Actor::new(), Actor::new());
    let path = |name: &str| m.path(name);
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Actor));
    let change: [Change<'_>; 6] = [
        ("unlink", &|by| by.unlink(&path("a.o")).unwrap()),
        ("make", &|by| {
            // By a program that goes on: it waits for its round.
            m.sh("echo again > a.o").ok();
            by.stat(&path("a.o")).unwrap();
        }),
        ("away", &|by| by.rename(&path("a.o"), &path("y")).unwrap()),
        ("link", &|by| by.link(&path("y"), &path("a.o")).unwrap()),
        ("exchange", &|by| {
            by.exchange(&path("a.o"), &path("x")).unwrap();
        }),
        ("over", &|by| {
            m.sh("mv x a.o").ok();
            by.stat(&path("a.o")).unwrap();
        }),
    ];
    for (what, change) in change {
        assert_eq!(reader.cat(&path("a.w")).unwrap(), b"old", "{what}");
        let before = other.cat(&path("a.o"));
        change(&mut other);
        eventually(Duration::from_secs(3), what, || {
            other.cat(&path("a.o")) != before
        });
        let size = before.as_ref().map(Vec::len).ok();
        let found = reader.stat(&path("a.o")).ok().map(|s| s.size as usize);
        assert_eq!(found, size, "{what}");
        assert_eq!(reader.cat(&path("a.o")), before, "{what}");
        reader.cat(&path("a.w")).unwrap();
        assert_eq!(reader.cat(&path("a.o")), other.cat(&path("a.o")), "{what}");
    }
}

#[test]
fn what_a_saver_has_left_that_has_ended_is_of_the_generation() {
    let m = mount!(pair().env("COMMITFS_ROUNDS_DELAY_MS", 400));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    saver.save(&m.path("a.json"), "1").unwrap();
    saver.exit(0);
    assert_reads(&m, &mut reader, "a.w", "old");
    assert_reads(&m, &mut reader, "a.json", "1");
}

#[test]
fn a_listing_is_that_of_the_generation() {
    let m = mount!(pair().seed("d/x", "").seed("d/a.w", "1").seed("d/a.o", "1"));
    let (mut reader, mut other) = (Actor::new(), Actor::new());
    let listed = |by: &mut Actor| {
        let mut names = by
            .ask("ls", &[m.path("d").as_os_str().as_encoded_bytes()])
            .unwrap();
        names.sort();
        String::from_utf8(names.join(&b" "[..])).unwrap()
    };
    reader.cat(&m.path("d/a.w")).unwrap();
    other.unlink(&m.path("d/a.o")).unwrap();
    m.sh("echo 1 > d/a.json; echo > d/y").ok();
    eventually(Duration::from_secs(3), "others see it", || {
        listed(&mut other) == "a.json a.w x y"
    });
    assert_eq!(listed(&mut reader), "a.o a.w x y");
    reader.cat(&m.path("d/a.w")).unwrap();
    assert_eq!(listed(&mut reader), "a.json a.w x y");
}

#[test]
fn a_patch_and_each_file_that_is_saved_alone_make_a_generation_of_their_own() {
    let m = mount!(pair().seed("a.json", "{\"n\":0}"));
    let (mut reader, mut other) = (Actor::new(), Actor::new());
    let patch = |by: &mut Actor, n: u32| {
        let text = format!("{{\"n\":{n}}}");
        by.setxattr(&m.path("a.json"), "commitfs.json.merge", text.as_bytes())
            .unwrap();
    };
    for n in 1..6 {
        // Its text is nowhere but in memory when somebody pins that.
        patch(&mut other, 10 * n);
        reader.cat(&m.path("a.w")).unwrap();
        let told = format!("{{\"n\":{}}}", 10 * n);
        for more in 1..3 {
            patch(&mut other, 10 * n + more);
            let size = reader.stat(&m.path("a.json")).unwrap().size;
            assert_eq!(size, told.len() as u64);
        }
        assert_reads(
            &m,
            &mut other,
            "a.json",
            &format!("{{\"n\":{}}}", 10 * n + 2),
        );
        assert_reads(&m, &mut reader, "a.json", &told);
    }
    m.sh("echo by hand > a.w").ok();
    eventually(Duration::from_secs(3), "saved alone", || {
        other.cat(&m.path("a.w")).unwrap() == b"by hand\n"
    });
    assert_reads(&m, &mut reader, "a.w", "by hand\n");
}

#[test]
fn who_saves_sees_what_it_has_saved_and_builds_on_what_is_there() {
    let m = mount!(pair().seed("x", "x"));
    let path = |name: &str| m.path(name);
    let mut saver = Actor::new();
    let mut reader = Actor::new();
    let pin = |reader: &mut Actor, saver: &mut Actor, text: &str| {
        reader.cat(&path("a.w")).unwrap();
        publish(&m, saver, &[text, text, "1"]);
        assert_eq!(reader.stat(&path("a.w")).unwrap().size, 3, "pinned");
    };
    // What it writes goes to the newest version.
    pin(&mut reader, &mut saver, "two");
    reader.cat(&path("a.w")).unwrap();
    publish(&m, &mut saver, &["", "three", "1"]);
    assert_eq!(reader.stat(&path("a.w")).unwrap().size, 3);
    reader.open("f", "r+", &path("a.w")).unwrap();
    reader.pwrite("f", 0, b"T").unwrap();
    reader.close("f").unwrap();
    assert_reads(&m, &mut reader, "a.w", "Three");
    // It reads one, and saves both: no older ones are its own any more.
    reader.cat(&path("a.o")).unwrap();
    reader.save(&path("a.json"), "2").unwrap();
    assert_reads(&m, &mut reader, "a.w", "Three");
    assert_reads(&m, &mut reader, "a.json", "2");
    // It truncates, removes, renames over, patches.
    for by in ["truncate", "unlink", "exchange", "patch"] {
        let mut reader = Actor::new();
        for text in ["{}", "{ }"] {
            saver.save(&path("a.w"), "abcdef").unwrap();
            saver.save(&path("a.json"), text).unwrap();
            if text == "{}" {
                reader.cat(&path("a.w")).unwrap();
            }
        }
        assert_eq!(reader.stat(&path("a.json")).unwrap().size, 2, "{by}");
        match by {
            "truncate" => reader.truncate(&path("a.w"), 1).unwrap(),
            "unlink" => reader.unlink(&path("a.o")).unwrap(),
            "exchange" => reader.exchange(&path("x"), &path("a.w")).unwrap(),
            _ => reader
                .setxattr(&path("a.json"), "commitfs.json.merge", b"{\"n\":1}")
                .unwrap(),
        }
        assert!(reader.stat(&path("a.json")).unwrap().size > 2, "{by}");
    }
}

#[test]
fn a_lock_that_is_granted_shows_what_was_saved_under_the_last_one() {
    for (lock, made_anew) in [("flock", false), ("lockrange", false), ("x", true)] {
        let m = mount!(pair().seed("l.lock", ""));
        let (mut reader, mut saver) = (Actor::new(), Actor::new());
        assert_reads(&m, &mut reader, "a.w", "old");
        publish(&m, &mut saver, &["", "new", "1"]);
        assert_eq!(reader.stat(&m.path("a.json")).unwrap().size, 1);
        if made_anew {
            reader.open("l", "x", &m.path("m.lock")).unwrap();
        } else {
            reader.open("l", "r+", &m.path("l.lock")).unwrap();
            match lock {
                "flock" => reader.on_slot("flock", "l", &[]).unwrap(),
                _ => lock_range(&mut reader, "l"),
            };
        }
        assert_reads(&m, &mut reader, "a.json", "1");
    }
}

fn lock_range(by: &mut Actor, slot: &str) -> i64 {
    let args: [&[u8]; 3] = [slot.as_bytes(), b"0", b"0"];
    by.ask("lockrange", &args).unwrap();
    0
}

#[test]
fn a_lock_on_a_member_pins_what_it_moves_to() {
    let m = mount!(pair());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("a.w")).unwrap();
    publish(&m, &mut saver, &["", "new", "1"]);
    assert_eq!(reader.pread("f", 0, 9).unwrap(), b"old");
    reader.on_slot("flock-shared", "f", &[]).unwrap();
    assert_eq!(reader.pread("f", 0, 9).unwrap(), b"new");
    publish(&m, &mut saver, &["", "newer", "2"]);
    assert_reads(&m, &mut reader, "a.json", "1");
}

#[test]
fn a_directory_that_is_put_in_the_place_of_another_has_no_files_of_what_is_pinned() {
    let rules = "[[group]]\nfiles = [\"run/w\", \"run/j\"]\nreaders = \"pin\"\n";
    let m = mount!(
        Mount::options()
            .rules(rules)
            .seed("run/w", "1")
            .seed("run/j", "1")
            .seed("run/k", "")
            .seed("new/w", "2")
            .seed("new/j", "2")
    );
    let (mut reader, mut other) = (Actor::new(), Actor::new());
    assert_reads(&m, &mut reader, "run/w", "1");
    other.rename(&m.path("run"), &m.path("old")).unwrap();
    other.rename(&m.path("new"), &m.path("run")).unwrap();
    for _ in 0..2 {
        assert_errno(reader.cat(&m.path("run/j")), "ESTALE");
    }
    assert_reads(&m, &mut other, "run/j", "2");
    assert_reads(&m, &mut reader, "run/w", "2");
    assert_reads(&m, &mut reader, "run/j", "2");
}

#[test]
fn a_description_that_is_opened_again_by_its_number_is_the_same_version() {
    let m = mount!(pair());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("a.w")).unwrap();
    publish(&m, &mut saver, &["", "new", "1"]);
    for name in ["a.w", "a.json", "a.w"] {
        reader.stat(&m.path(name)).unwrap();
        let path = reader.ask("fdpath", &[b"f"]).unwrap().remove(0);
        let path = std::path::PathBuf::from(String::from_utf8(path).unwrap());
        assert_eq!(reader.cat(&path).unwrap(), b"old");
    }
    assert_reads(&m, &mut reader, "a.json", "0");
}

#[test]
fn rules_that_change_end_what_was_pinned_of_other_groups() {
    let m = mount!(pair());
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    assert_reads(&m, &mut reader, "a.w", "old");
    publish(&m, &mut saver, &["", "new", "1"]);
    let rules = m.scratch("rules.toml");
    let set = |text: &str| {
        std::fs::write(&rules, text).unwrap();
        let mount = m.mountpoint().to_str().unwrap();
        common::commitfs(["rules", "set", mount, rules.to_str().unwrap()]).ok();
    };
    set(&format!(
        "{PAIR}\n[[rule]]\nglob = \"x\"\nmode = \"direct\"\n"
    ));
    assert_reads(&m, &mut reader, "a.json", "0");
    reader.cat(&m.path("a.w")).unwrap();
    publish(&m, &mut saver, &["", "newer", "2"]);
    set(&PAIR.replace("pin", "newest"));
    assert_reads(&m, &mut reader, "a.json", "2");
    assert_eq!(pins(&m)["versions"], 0);
}

#[test]
fn however_much_is_published_no_more_is_kept_than_what_is_pinned() {
    let m = mount!(pair().separate());
    let (mut saver, mut slow) = (Actor::new(), Actor::new());
    let mut quick: Vec<Actor> = (0..3).map(|_| Actor::new()).collect();
    // However long it takes.
    slow.open("f", "r", &m.path("a.w")).unwrap();
    for round in 0..times(60, 1000) {
        let text = format!("{round}");
        publish(&m, &mut saver, &["", &text, &text]);
        let reader = &mut quick[round % 3];
        for name in ["a.w", "a.json"] {
            assert_reads(&m, reader, name, &text);
        }
        let versions = pins(&m)["versions"].as_u64().unwrap();
        assert!(versions <= 8, "{versions}");
    }
    assert_reads(&m, &mut slow, "a.json", "0");
    for one in quick.into_iter().chain([slow]) {
        drop(one);
    }
    await_pins(&m, 0, 0);
    eventually(Duration::from_secs(5), "what was replaced is gone", || {
        std::fs::read_dir(m.backing().join(".commitfs/staging")).is_ok_and(|d| d.count() <= 2)
    });
}

#[test]
fn on_a_full_disk_nothing_is_kept_and_who_has_pinned_it_is_told() {
    const MIB: u64 = 1 << 20;
    let rules = "[[group]]\nfiles = [\"{s}.w\", \"{s}.json\"]\nreaders = \"pin\"\n";
    let m = mount!(
        Mount::options()
            .rules(rules)
            .on(Disk::ext4(64))
            .limit(Duration::from_secs(60))
    );
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let save = |by: &mut Actor, len: u64| {
        by.open("f", "w", &m.path("a.w")).unwrap();
        let filled = by.fill("f", len, MIB, b'x');
        assert_eq!(filled, Ok(len));
        by.close("f").unwrap();
        by.save(&m.path("a.json"), len.to_string()).unwrap();
    };
    save(&mut saver, 20 * MIB);
    assert_reads(&m, &mut reader, "a.json", &(20 * MIB).to_string());
    save(&mut saver, MIB);
    assert_eq!(reader.stat(&m.path("a.w")).unwrap().size, 20 * MIB);
    assert!(pins(&m)["bytes"].as_u64().unwrap() >= 20 * MIB);
    // No room for that beside what is pinned.
    save(&mut saver, 35 * MIB);
    let told = pins(&m);
    assert_eq!(
        (&told["versions"], &told["bytes"]),
        (&0.into(), &0.into()),
        "{told}"
    );
    assert!(told["let_go"].as_u64().unwrap() > 0, "{told}");
    assert_errno(reader.open("f", "r", &m.path("a.w")), "ESTALE");
    assert_errno(reader.stat(&m.path("a.w")), "ESTALE");
    assert_reads(&m, &mut reader, "a.json", &(35 * MIB).to_string());
    assert_eq!(reader.stat(&m.path("a.w")).unwrap().size, 35 * MIB);
    reader.open("f", "r", &m.path("a.w")).unwrap();
}

#[test]
fn large_files_that_the_kernel_reads_by_itself_are_of_one_generation() {
    let rules = "[[group]]\nfiles = [\"{s}.npz\", \"{s}.json\"]\nreaders = \"pin\"\n";
    let m = mount!(Mount::options().rules(rules));
    let (mut reader, mut saver) = (Actor::new(), Actor::new());
    let save = |by: &mut Actor, byte: u8| {
        by.open("f", "w", &m.path("a.npz")).unwrap();
        by.fill("f", 3 << 20, 1 << 20, byte).unwrap();
        by.close("f").unwrap();
        by.save(&m.path("a.json"), format!("{}", byte - b'0'))
            .unwrap();
    };
    save(&mut saver, b'1');
    for byte in b'2'..b'8' {
        reader.open("f", "r", &m.path("a.npz")).unwrap();
        save(&mut saver, byte);
        assert_eq!(reader.pread("f", 2 << 20, 1).unwrap(), [byte - 1]);
        assert_reads(&m, &mut reader, "a.json", &format!("{}", byte - b'1'));
        reader.close("f").unwrap();
    }
}

const WORKER: &str = "
import os,json,time
def save(tag):
    with open('weights.bin','wb') as f: f.write(tag.to_bytes(8,'big')*2000)
    with open('metrics.json','w') as f: json.dump({'tag':tag,'loss':[tag]*200},f)
    with open('metadata.json','w') as f: json.dump({'tag':tag},f)
def read(n):
    names=['weights.bin','metrics.json','metadata.json']
    names=names[n%3:]+names[:n%3]
    found=set()
    for name in names:
        with open(name,'rb') as f: data=f.read()
        found.add(int.from_bytes(data[:8],'big') if name=='weights.bin' else json.loads(data)['tag'])
        if n%4==0: time.sleep(0.001)
    return len(found)
save(1)
";

/// Ten unmodified writers, and three readers that open one after the other. Gives how many have found files of different saves, of
/// how many.
fn mixed_of(rules: &str, rounds: usize) -> Option<(usize, usize)> {
    let m = Mount::options()
        .rules(rules)
        .limit(Duration::from_secs(400))
        .mount()?;
    let script = format!(
        "{WORKER}
pids=[]
for i in range(13):
    pid=os.fork()
    if pid==0:
        if i<10:
            n=0
            while not os.path.exists('stop'):
                save(1+i*100000+n)
                n+=1
                time.sleep(0.002)
        else:
            mixed=[read(n) for n in range({rounds})]
            with open('found%d'%i,'w') as f: json.dump(mixed,f)
        os._exit(0)
    pids.append(pid)
for pid in pids[10:]: os.waitpid(pid,0)
open('stop','w').close()
for pid in pids[:10]: os.waitpid(pid,0)
for i in (10,11,12): print(open('found%d'%i).read())
"
    );
    let found = common::python(m.mountpoint(), &script, Duration::from_secs(300));
    let found = found.ok().out;
    let found: Vec<usize> = found
        .lines()
        .flat_map(|line| serde_json::from_str::<Vec<usize>>(line).unwrap())
        .collect();
    Some((found.iter().filter(|n| **n > 1).count(), found.len()))
}

#[test]
fn readers_beside_ten_writers_find_no_mixture() {
    let rounds = times(100, 500);
    let Some((mixed, of)) = mixed_of(TRIPLE, rounds) else {
        return;
    };
    assert_eq!((mixed, of), (0, 3 * rounds));
    // So they do without the rule.
    let newest = TRIPLE.replace("\"pin\"", "\"newest\"");
    let (mixed, _) = mixed_of(&newest, rounds).unwrap();
    assert!(mixed > 0, "nothing was published between two opens");
}
