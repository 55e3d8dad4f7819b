//! C14 for names that no rule knows. `shelve` makes a SQLite file called `progress`, a data set is one LMDB file with its
//! lock beside it, a simulation appends to an HDF5 file for a week: several processes edit them in place at once, and kills
//! are survived by what was written before. So most of these pass on the plain directory.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use common::{Actor, Mount, assert_content, assert_errno};

const PAGE: usize = 4096;

/// A page with something in its place.
fn page(at: usize, magic: &[u8]) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[at..at + magic.len()].copy_from_slice(magic);
    page
}

fn sqlite() -> Vec<u8> {
    page(0, b"SQLite format 3\0")
}

/// An HDF5 superblock of the version that knows of followers, with its flags.
fn superblock(flags: u8) -> Vec<u8> {
    page(
        0,
        &[b"\x89HDF\r\n\x1a\n\x03\x08\x08", &[flags][..]].concat(),
    )
}

/// First pages of the formats that are known.
fn first_pages() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("sqlite", sqlite()),
        ("hdf5", page(0, b"\x89HDF\r\n\x1a\n\0\0\0\0")),
        ("hdf5-behind-a-block", page(512, b"\x89HDF\r\n\x1a\n")),
        ("lmdb", page(16, &0xBEEF_C0DE_u32.to_le_bytes())),
        ("bbolt", page(16, &0xED0C_DAED_u32.to_le_bytes())),
        ("gdbm", page(0, &0x1357_9ACF_u32.to_le_bytes())),
        ("berkeley", page(12, &0x0006_1561_u32.to_le_bytes())),
        ("duckdb", page(8, b"DUCK")),
    ]
}

fn transactions(m: &Mount) -> usize {
    if common::plain() {
        0
    } else {
        m.transactions().len()
    }
}

#[test]
fn a_new_file_turns_into_a_database_with_its_first_page_and_outlives_its_writer() {
    let m = mount!();
    for (kind, first) in first_pages() {
        // `x` as h5py, `w` and `c` of the others; and a file that `touch` has made.
        for how in ["rw-create", "rw-create|excl", "r+"] {
            let name = format!("{kind}-{}", how.replace('|', "-"));
            if how == "r+" {
                m.save(&name, "");
            }
            let mut writer = Actor::new();
            writer.open("f", how, &m.path(&name)).unwrap();
            writer.pwrite("f", 0, &first).unwrap();
            assert_content(m.read(&name), &first, &name);
            writer.pwrite("f", PAGE as u64, b"second page").unwrap();
            let all = [&first[..], b"second page"].concat();
            assert_content(m.read(&name), &all, &name);
            assert_eq!(transactions(&m), 0, "{name}");
            writer.kill(libc::SIGKILL);
            assert_content(m.read(&name), &all, &name);
        }
    }
    if !common::plain() {
        assert_eq!(m.aborts("killed"), 0);
        assert!(m.rejected().is_empty());
    }
}

#[test]
fn who_opens_a_database_before_its_first_page_is_written_has_the_same_file() {
    let m = mount!();
    for (how, mut seed) in [("rw-create", None), ("r+", Some(""))] {
        let name = format!("data-{}", how.len());
        let path = m.path(&name);
        if let Some(content) = seed.take() {
            m.save(&name, content);
        }
        let mut actors = [Actor::new(), Actor::new(), Actor::new()];
        for actor in &mut actors {
            actor.open("f", how, &path).unwrap();
        }
        let numbers: Vec<_> = actors
            .iter_mut()
            .map(|a| a.fstat("f").unwrap().ino)
            .collect();
        let [one, two, three] = &mut actors;
        one.pwrite("f", 0, &sqlite()).unwrap();
        two.pwrite("f", PAGE as u64, b"of the second").unwrap();
        three.ftruncate("f", 3 * PAGE as u64).unwrap();
        for actor in [one, two, three] {
            assert_eq!(actor.pread("f", 0, PAGE).unwrap(), sqlite());
            assert_eq!(actor.pread("f", PAGE as u64, 13).unwrap(), b"of the second");
            // SQLite takes a file for moved whose number has changed.
            let stat = actor.fstat("f").unwrap();
            assert_eq!(stat.size, 3 * PAGE as u64);
            assert!(numbers.iter().all(|number| *number == stat.ino), "{how}");
            assert_eq!(actor.stat(&path).unwrap().ino, stat.ino, "{how}");
        }
    }
}

#[test]
fn processes_that_open_an_empty_file_in_the_same_moment_have_the_same_file() {
    let m = mount!();
    for round in 0..common::times(40, 400) {
        let path = m.path(format!("data-{round}"));
        if round % 2 == 0 {
            m.save(&path, "");
        }
        let mut actors: Vec<_> = (0..4).map(|_| Actor::new()).collect();
        for actor in &mut actors {
            use std::os::unix::ffi::OsStrExt;
            actor.start("open", &[b"f", b"rw-create", path.as_os_str().as_bytes()]);
        }
        for actor in &mut actors {
            actor.finish().unwrap();
        }
        actors[0].pwrite("f", 0, &sqlite()).unwrap();
        for actor in &mut actors {
            assert_eq!(actor.pread("f", 0, 6).unwrap(), b"SQLite", "round {round}");
        }
    }
}

#[test]
fn what_is_mapped_before_it_is_a_database_is_shared() {
    // LMDB with a writable map sets the length, maps, and writes its first page through the map.
    let m = mount!();
    if !common::plain() && !common::has_features(&["direct_io_allow_mmap"]) {
        return;
    }
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for actor in [&mut one, &mut two] {
        actor.open("f", "rw-create", &m.path("train.lmdb")).unwrap();
        actor.ftruncate("f", 2 * PAGE as u64).unwrap();
        actor.mmap("f", "m", 2 * PAGE, "rw").unwrap();
    }
    let first = page(16, &0xBEEF_C0DE_u32.to_le_bytes());
    one.map_write("m", 0, &first).unwrap();
    assert_eq!(two.map_read("m", 0, PAGE).unwrap(), first);
    one.fsync("f").unwrap();
    for round in 0..10u8 {
        two.map_write("m", 5000, &[round; 4]).unwrap();
        assert_eq!(one.map_read("m", 5000, 4).unwrap(), [round; 4]);
        two.fsync("f").unwrap();
        let read = m.read("train.lmdb").expect("it is there");
        assert_eq!(&read[5000..5004], [round; 4]);
    }
}

#[test]
fn locks_that_were_taken_before_the_first_page_hold_after_it() {
    let m = mount!();
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for actor in [&mut one, &mut two] {
        actor.open("f", "rw-create", &m.path("data")).unwrap();
    }
    one.ask("lockrange", &[b"f", b"0", b"10"]).unwrap();
    one.pwrite("f", 0, &sqlite()).unwrap();
    assert_errno(two.ask("lockrange", &[b"f", b"5", b"10"]), "EAGAIN");
    let mut late = Actor::new();
    late.open("f", "r+", &m.path("data")).unwrap();
    assert_errno(late.ask("lockrange", &[b"f", b"5", b"10"]), "EAGAIN");
    one.kill(libc::SIGKILL);
    two.ask("lockrange", &[b"f", b"5", b"10"]).unwrap();
}

#[test]
fn text_written_first_is_staged_and_a_stranger_sees_nothing_of_it() {
    need_daemon!();
    let m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "rw-create", &m.path("notes")).unwrap();
    assert_content(
        m.read("notes"),
        b"",
        "it exists, as nobody knows what it will be",
    );
    assert_eq!(m.names("."), ["notes"]);
    writer.write("f", "half a no").unwrap();
    assert!(m.read("notes").is_none(), "staged");
    assert_content(
        writer.cat(&m.path("notes")).ok(),
        b"half a no",
        "its writer",
    );
    writer.write("f", "te").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("notes"), b"half a note", "committed");

    let mut victim = Actor::new();
    victim.open("f", "rw-create", &m.path("torn")).unwrap();
    victim.write("f", "half").unwrap();
    victim.kill(libc::SIGKILL);
    m.await_rejected("torn", b"half");
    assert!(!m.exists("torn"));
}

#[test]
fn an_edit_of_an_empty_file_shows_with_its_commit() {
    need_daemon!();
    let m = mount!();
    m.save("state", "");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("state")).unwrap();
    writer.write("f", "one").unwrap();
    assert_content(m.read("state"), b"", "staged");
    writer.close("f").unwrap();
    assert_content(m.read("state"), b"one", "committed");
}

#[test]
fn a_file_that_others_have_open_at_its_first_write_is_written_in_place() {
    let m = mount!();
    for (number, rival) in ["r", "rw-create", "wronly", "a"].iter().enumerate() {
        let name = format!("lock-{number}");
        let (mut owner, mut other) = (Actor::new(), Actor::new());
        owner.open("f", "rw-create", &m.path(&name)).unwrap();
        other.open("f", rival, &m.path(&name)).unwrap();
        owner.write("f", "4711\n").unwrap();
        assert_content(m.read(&name), b"4711\n", rival);
        if *rival == "r" || *rival == "rw-create" {
            assert_eq!(other.pread("f", 0, 5).unwrap(), b"4711\n");
        } else {
            other.write("f", "x").unwrap();
            let seen: &[u8] = if *rival == "a" { b"4711\nx" } else { b"x711\n" };
            assert_content(m.read(&name), seen, rival);
        }
        owner.kill(libc::SIGKILL);
        assert!(
            m.read(&name).is_some_and(|content| content.len() >= 5),
            "{rival}"
        );
    }
}

#[test]
fn a_claim_and_a_temporary_file_stay_what_they_were() {
    let m = mount!();
    // mkstemp: seen by all, also by its first 4 KiB, which survive a kill; larger, it is hidden.
    let mut owner = Actor::new();
    owner.open("f", "rw-create|excl", &m.path("claim")).unwrap();
    assert_content(m.read("claim"), b"", "created");
    owner.write("f", "pid 17\n").unwrap();
    assert_content(m.read("claim"), b"pid 17\n", "as written");
    owner.kill(libc::SIGKILL);
    assert_content(m.read("claim"), b"pid 17\n", "after the kill");
    if common::plain() {
        return;
    }
    let mut large = Actor::new();
    large.open("f", "rw-create|excl", &m.path("large")).unwrap();
    large.fill("f", 8192, 4096, b'x').unwrap();
    assert!(!m.exists("large"), "hidden");
    large.close("f").unwrap();
    assert!(m.exists("large"));
    // Under a guard no database is expected.
    let mut document = Actor::new();
    document.open("f", "rw-create", &m.path("a.json")).unwrap();
    assert!(!m.exists("a.json"), "a document appears whole");
}

#[test]
fn a_version_saved_while_an_empty_file_is_held_open_is_what_everybody_sees() {
    let m = mount!();
    m.save("lock", "");
    let mut holder = Actor::new();
    holder.open("f", "r+", &m.path("lock")).unwrap();
    m.save("new", "whole");
    let mut other = Actor::new();
    other.rename(&m.path("new"), &m.path("lock")).unwrap();
    assert_content(m.read("lock"), b"whole", "renamed over it");
    holder.close("f").unwrap();
    assert_content(m.read("lock"), b"whole", "the holder has left");
}

#[test]
fn an_unwritten_new_file_is_kept_by_a_kill_of_its_creator_and_of_the_daemon() {
    let mut m = mount!();
    let mut creator = Actor::new();
    creator.open("f", "rw-create", &m.path("touched")).unwrap();
    creator.kill(libc::SIGKILL);
    assert_content(m.read("touched"), b"", "its creator was killed");
    if common::plain() {
        return;
    }
    m.save("empty", "");
    let mut holder = Actor::new();
    holder.open("f", "rw-create", &m.path("held")).unwrap();
    holder.open("g", "r+", &m.path("empty")).unwrap();
    m.kill_daemon();
    drop(holder);
    m.remount();
    assert_content(m.read("held"), b"", "the daemon was killed");
    assert_content(m.read("empty"), b"", "the daemon was killed");
    assert!(m.rejected().is_empty());
}

#[test]
fn a_daemon_killed_while_a_file_turns_direct_leaves_the_file() {
    need_daemon!();
    for how in ["rw-create", "r+"] {
        let mut m = mount!(Mount::options().seed("data", ""));
        m.unmount();
        if how != "r+" {
            std::fs::remove_file(m.backing().join("data")).unwrap();
        }
        m.set_env("COMMITFS_CRASH_AT", "turned-direct");
        m.remount();
        let mut writer = Actor::new();
        writer.open("f", how, &m.path("data")).unwrap();
        assert!(
            writer.pwrite("f", 0, &sqlite()).is_err(),
            "the daemon is gone"
        );
        drop(writer);
        m.reap_daemon(Duration::from_secs(5));
        m.clear_env();
        m.remount();
        assert_content(m.read("data"), b"", how);
        assert!(m.rejected().is_empty());
        m.unmount();
        common::commitfs([Path::new("check"), m.backing()]).ok();
    }
}

#[test]
fn what_belongs_to_a_database_by_its_name_is_direct_whichever_comes_first() {
    let m = mount!();
    for suffix in ["-wal", "-shm", "-journal", "-lock"] {
        for main in ["missing", "empty", "database", "undecided"] {
            let name = format!("{main}{suffix}-main");
            let path = m.path(format!("{name}{suffix}"));
            let mut holder = Actor::new();
            match main {
                "empty" => m.save(&name, ""),
                "database" => m.save(&name, sqlite()),
                "undecided" => holder.open("f", "rw-create", &m.path(&name)).unwrap(),
                _ => {}
            }
            let (mut one, mut two) = (Actor::new(), Actor::new());
            one.open("f", "rw-create", &path).unwrap();
            one.write("f", "one").unwrap();
            two.open("f", "rw-create", &path).unwrap();
            assert_eq!(two.pread("f", 0, 3).unwrap(), b"one", "{name}");
            two.pwrite("f", 0, b"two").unwrap();
            assert_eq!(one.pread("f", 0, 3).unwrap(), b"two", "{name}");
            one.ftruncate("f", 2 * PAGE as u64).unwrap();
            one.mmap("f", "m", PAGE, "rw").unwrap();
            two.mmap("f", "m", PAGE, "rw").unwrap();
            one.map_write("m", 100, b"shared").unwrap();
            assert_eq!(two.map_read("m", 100, 6).unwrap(), b"shared", "{name}");
            one.kill(libc::SIGKILL);
            two.kill(libc::SIGKILL);
            let left = m.read(&path).expect("it survives both");
            assert_eq!(&left[..3], b"two", "{name}");
        }
    }
}

#[test]
fn a_text_has_no_companions() {
    need_daemon!();
    let m = mount!();
    m.save("notes", "a text\n");
    let mut writer = Actor::new();
    writer
        .open("f", "rw-create", &m.path("notes-journal"))
        .unwrap();
    writer.write("f", "half").unwrap();
    assert!(!m.exists("notes-journal"), "staged");
}

#[test]
fn a_journal_is_removed_without_waiting_for_the_disk() {
    need_daemon!();
    // SQLite removes it after each transaction.
    let options = Mount::options().args(["--bound", "10000"]);
    let m = mount!(options.seed("data", sqlite()));
    m.save("other", "not in place yet");
    let mut writer = Actor::new();
    let journal = m.path("data-journal");
    writer.open("f", "rw-create", &journal).unwrap();
    writer.write("f", "pages").unwrap();
    writer.close("f").unwrap();
    writer.unlink(&journal).unwrap();
    assert!(!m.exists("data-journal"));
    assert_eq!(
        m.status()["pending"],
        1,
        "the other still waits for the disk"
    );
}

#[test]
fn a_database_that_was_saved_a_moment_ago_is_edited_in_place() {
    need_daemon!();
    // h5py: save with `w`, then go on with `a`.
    let m = mount!(Mount::options().separate().args(["--bound", "10000"]));
    m.save("data", sqlite());
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path("data")).unwrap();
    editor.pwrite("f", 100, b"edited").unwrap();
    let in_place = std::fs::read(m.backing().join("data")).expect("brought out first");
    assert_eq!(&in_place[100..106], b"edited");
    editor.kill(libc::SIGKILL);
    let read = m.read("data").expect("it is there");
    assert_eq!(&read[100..106], b"edited");
}

#[test]
fn an_hdf5_file_can_be_followed_from_when_its_writer_says_so() {
    let m = mount!();
    for old in [None, Some("the run before")] {
        let name = if old.is_some() { "again" } else { "new" };
        if let Some(content) = old {
            m.save(name, content);
        }
        let mut writer = Actor::new();
        writer.open("f", "w+", &m.path(name)).unwrap();
        writer.pwrite("f", 0, &superblock(1)).unwrap();
        writer.pwrite("f", PAGE as u64, b"step 0").unwrap();
        if !common::plain() {
            let before = old.map(|content| content.as_bytes().to_vec());
            assert_eq!(m.read(name), before, "not yet");
        }
        writer.pwrite("f", 0, &superblock(5)).unwrap();
        let mut reader = Actor::new();
        reader.open("f", "r", &m.path(name)).unwrap();
        for step in 0..10 {
            let data = format!("step {step}");
            writer.pwrite("f", PAGE as u64, data.as_bytes()).unwrap();
            assert_eq!(reader.pread("f", PAGE as u64, 6).unwrap(), data.as_bytes());
        }
        writer.kill(libc::SIGKILL);
        let left = m.read(name).expect("it survives the kill");
        assert_eq!(&left[PAGE..], b"step 9");
    }
    if !common::plain() {
        assert!(m.rejected().is_empty());
    }
}

#[test]
fn a_file_written_from_its_middle_is_written_in_place() {
    // A database that spills before its first page is complete; the pieces of a download.
    let m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "rw-create", &m.path("pieces")).unwrap();
    writer.pwrite("f", 8192, b"piece").unwrap();
    writer.kill(libc::SIGKILL);
    let left = m.read("pieces").expect("it is there");
    assert_eq!(&left[8192..], b"piece");
}

#[test]
fn a_guarded_database_is_emptied_by_nobody_who_then_gives_up() {
    need_daemon!();
    // h5py's `w`: opens r+, opens again with O_TRUNC, and finds HDF5's lock taken.
    let m = mount!();
    let mut whole = superblock(0);
    whole[12..44].copy_from_slice(&[[0; 8], [0xFF; 8], 4096_u64.to_le_bytes(), [0; 8]].concat());
    m.save("weights.h5", &whole);
    let (mut holder, mut loser) = (Actor::new(), Actor::new());
    holder.open("f", "r+", &m.path("weights.h5")).unwrap();
    loser.open("f", "r+", &m.path("weights.h5")).unwrap();
    loser.open("g", "w+", &m.path("weights.h5")).unwrap();
    assert_content(m.read("weights.h5"), &whole, "emptied only in its own eyes");
    assert_errno(loser.close("g"), "EBADMSG");
    assert_content(m.read("weights.h5"), &whole, "kept");
    // Who goes on to the end replaces it.
    let mut other = whole.clone();
    other[100] = 7;
    loser.open("g", "w+", &m.path("weights.h5")).unwrap();
    loser.write("g", &other).unwrap();
    loser.close("g").unwrap();
    assert_content(m.read("weights.h5"), &other, "replaced as a whole");
    assert_eq!(
        holder.pread("f", 100, 1).unwrap(),
        [0],
        "the one that is open"
    );
}

#[test]
fn a_file_that_has_lost_its_name_can_still_be_opened_for_followers() {
    let m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "w+", &m.path("x.h5")).unwrap();
    writer.pwrite("f", 0, &superblock(1)).unwrap();
    writer.unlink(&m.path("x.h5")).unwrap();
    writer.pwrite("f", 0, &superblock(5)).unwrap();
    writer.pwrite("f", PAGE as u64, b"step 0").unwrap();
    assert_eq!(writer.pread("f", PAGE as u64, 6).unwrap(), b"step 0");
    writer.close("f").unwrap();
    assert_eq!(m.read("x.h5"), None);
}

#[test]
fn nobody_else_waits_for_the_disk_while_an_fsynced_file_turns_direct() {
    need_daemon!();
    need_features!("inline_content");
    let m = mount!(
        Mount::options()
            .env("COMMITFS_JOURNAL_DELAY_MS", 1500)
            .seed("other", "other")
    );
    let (mut writer, mut reader) = (Actor::new(), Actor::new());
    writer.open("f", "rw-create", &m.path("data")).unwrap();
    writer.fsync("f").unwrap();
    writer.start("pwrite", &[b"f", b"4096", b"a page"]);
    std::thread::sleep(Duration::from_millis(500));
    let begun = std::time::Instant::now();
    assert_eq!(reader.cat(&m.path("other")).unwrap(), b"other");
    let took = begun.elapsed();
    assert!(!writer.has_answered(), "the disk was quicker");
    assert!(took < Duration::from_millis(500), "{took:?}");
    writer.finish().unwrap();
    assert_eq!(reader.stat(&m.path("data")).unwrap().size, 4102);
}

#[test]
fn a_file_that_several_have_shared_keeps_its_number_when_nobody_has_it_open_any_more() {
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let m = mount!();
    m.save("state", "");
    let path = m.path("state");
    let number = || std::fs::metadata(&path).unwrap().ino();
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.open("f", "r+", &path).unwrap();
    other.open("f", "r+", &path).unwrap();
    other.write("f", "a line\n").unwrap();
    let shown = number();
    one.close("f").unwrap();
    other.close("f").unwrap();
    assert_eq!(number(), shown, "after the last close");
    // The kernel finds another node under the name, and forgets the one that it had.
    one.open("f", "r+", &path).unwrap();
    assert_eq!(number(), shown, "while another one edits it");
}

#[test]
fn a_killed_program_that_has_only_shared_a_file_takes_no_text_of_another_along() {
    need_daemon!();
    let m = mount!();
    for killed_first in [true, false] {
        let name = format!("notes-{killed_first}");
        let path = m.path(&name);
        let (mut writer, mut other) = (Actor::new(), Actor::new());
        let open = |actor: &mut Actor| actor.open("f", "rw-create", &path).unwrap();
        if killed_first {
            open(&mut other);
        }
        open(&mut writer);
        if !killed_first {
            open(&mut other);
        }
        other.kill(libc::SIGKILL);
        writer.write("f", "a note").unwrap();
        writer.close("f").unwrap();
        assert_content(m.read(&name), b"a note", &name);
    }
    // What somebody has written himself is another thing.
    let mut victim = Actor::new();
    victim.open("f", "rw-create", &m.path("torn")).unwrap();
    let mut heir = victim.fork();
    victim.kill(libc::SIGKILL);
    heir.write("f", "half").unwrap();
    heir.close("f").unwrap();
    m.await_rejected("torn", b"half");
}
