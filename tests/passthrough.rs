//! C1, C12: a checkpoint of gigabytes is read at the speed of the disk, as the kernel reads its file by itself. It is one whole
//! version all the same, nobody else loses an answer by it, and a lock never shows what is superseded.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use common::{Actor, Mount, assert_content, assert_errno, has_features, is_root, stamped, times};

const LARGE: usize = 2 << 20;

/// How often the kernel was given a file to read by itself.
fn passed(m: &Mount) -> u64 {
    m.status()["counters"]["passed"].as_u64().expect("a number")
}

macro_rules! need_passthrough {
    () => {
        need_daemon!();
        need_features!("passthrough");
        if !is_root() {
            return;
        }
    };
}

#[test]
fn a_large_checkpoint_is_read_by_the_kernel_itself_and_stays_one_version() {
    need_passthrough!();
    let m = mount!();
    let first = stamped(1, LARGE);
    m.save("model.pt", &first);
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("model.pt")).unwrap();
    assert_eq!(passed(&m), 1);
    reader.mmap("f", "map", LARGE, "r").unwrap();
    let head = reader.read("f", LARGE / 2).unwrap();
    m.save("model.pt", stamped(2, LARGE + 5));
    m.save("model.pt", stamped(3, 10));
    let tail = reader.read_all("f").unwrap();
    assert_content(Some([head, tail].concat()), &first, "read before and after");
    assert_content(
        Some(reader.map_read("map", 0, LARGE).unwrap()),
        &first,
        "mmap",
    );
    assert_eq!(reader.fstat("f").unwrap().size, LARGE as u64);
    assert_content(m.read("model.pt"), &stamped(3, 10), "a new open");
}

#[test]
fn small_files_and_what_others_add_to_or_share_come_to_the_daemon() {
    need_passthrough!();
    let m = mount!();
    let lines = b"a line of a log\n".repeat(LARGE / 16);
    let database = [b"SQLite format 3\0".to_vec(), vec![0; LARGE]].concat();
    let contents: [(&str, &[u8]); 5] = [
        ("small.pt", b"x"),
        ("log.txt", &lines),
        ("unknown.bin", &lines),
        (
            "list.json",
            &[b"[1,", &vec![b' '; LARGE][..], b"2]"].concat(),
        ),
        ("named.pt", &database),
    ];
    for (name, content) in contents {
        m.save(name, content);
        assert_content(m.read(name), content, name);
    }
    assert_eq!(passed(&m), 0);
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("log.txt")).unwrap();
    let mut log = File::options()
        .append(true)
        .open(m.path("log.txt"))
        .unwrap();
    log.write_all(b"one more\n").unwrap();
    let all = reader.read_all("f").unwrap();
    assert!(
        all.ends_with(b"one more\n"),
        "an open reader sees the log grow"
    );
}

#[test]
fn a_lock_is_not_granted_to_who_would_read_what_is_superseded() {
    need_passthrough!();
    need_features!("posix_locks", "flock_locks");
    let m = mount!();
    m.save("model.pt", stamped(1, LARGE));
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("model.pt")).unwrap();
    reader.ask("flock-shared", &[b"f"]).expect("it is current");
    reader.ask("funlock", &[b"f"]).unwrap();
    m.save("model.pt", stamped(2, LARGE));
    assert_errno(reader.ask("flock", &[b"f"]), "ESTALE");
    let mut other = Actor::new();
    other.open("f", "r", &m.path("model.pt")).unwrap();
    other.ask("flock", &[b"f"]).expect("nobody holds it");
    assert_content(
        Some(other.read_all("f").unwrap()),
        &stamped(2, LARGE),
        "under the lock",
    );
    other.ask("funlock", &[b"f"]).unwrap();
    // A name that was locked once is read by way of the daemon, so that a lock moves its readers on.
    m.save("model.pt", stamped(3, LARGE));
    other.ask("flock", &[b"f"]).unwrap();
    assert_content(
        Some(other.pread("f", 0, LARGE).unwrap()),
        &stamped(3, LARGE),
        "the current version",
    );
}

#[test]
fn the_file_is_opened_once_more_by_its_descriptor() {
    need_passthrough!();
    let m = mount!();
    let content = stamped(1, LARGE);
    m.save("model.pt", &content);
    let path = m.path("model.pt");
    let first = File::open(&path).unwrap();
    let by_descriptor = format!("/proc/self/fd/{}", first.as_raw_fd());
    let mut again = Vec::new();
    File::open(&by_descriptor)
        .unwrap()
        .read_to_end(&mut again)
        .unwrap();
    assert_content(Some(again), &content, "by its descriptor");
    // The kernel can't serve both this and those who read: nothing is changed.
    for truncates in [false, true] {
        let mut options = File::options();
        let refused = options
            .write(true)
            .truncate(truncates)
            .open(&by_descriptor)
            .unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ETXTBSY));
        assert_content(m.read("model.pt"), &content, "nothing is emptied");
    }
    drop(first);
    // Nobody reads it: it is served as ever, by way of the daemon.
    let mut other = Actor::new();
    let handle = File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)
        .unwrap();
    let by_descriptor = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut options = File::options();
    let mut writer = options
        .write(true)
        .truncate(true)
        .open(&by_descriptor)
        .unwrap();
    writer.write_all(&content[..LARGE / 2]).unwrap();
    assert_content(other.cat(&path).ok(), &content, "while it is written");
    writer.write_all(&content[LARGE / 2..]).unwrap();
    drop((writer, handle));
    m.save("model.pt", stamped(2, 5));
    assert_content(m.read("model.pt"), &stamped(2, 5), "as before");
}

#[test]
fn a_checkpoint_that_is_still_open_otherwise_is_read_by_way_of_the_daemon() {
    need_passthrough!();
    let m = mount!();
    let (path, content) = (m.path("model.pt"), stamped(1, LARGE));
    let mut writer = Actor::new();
    writer.open("w", "w", &path).unwrap();
    writer.write("w", &content).unwrap();
    // Its own view of what it writes: the very node that becomes the version's.
    writer.open("own", "r", &path).unwrap();
    writer.mmap("own", "map", LARGE, "r").unwrap();
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &content, "beside it");
    assert_eq!(passed(&m), 0);
    writer.munmap("map").unwrap();
    writer.close("own").unwrap();
    assert_content(m.read("model.pt"), &content, "alone");
    assert_eq!(passed(&m), 1);
}

#[test]
fn readers_of_large_files_see_whole_versions_while_they_are_replaced() {
    need_passthrough!();
    let m = mount!();
    m.save("model.pt", stamped(0, LARGE));
    let path = m.path("model.pt");
    let until = std::time::Instant::now() + Duration::from_secs(times(2, 60) as u64);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while std::time::Instant::now() < until {
                    let content = std::fs::read(&path).unwrap();
                    let version = common::version_of(&content).expect("whole");
                    assert_content(Some(content), &stamped(version, LARGE), "one version");
                }
            });
        }
        let mut writer = Actor::new();
        for version in 1.. {
            if std::time::Instant::now() >= until {
                break;
            }
            writer.save(&path, stamped(version, LARGE)).unwrap();
        }
    });
    assert!(passed(&m) > 0);
}

/// A writer of a large file, whose writes go by the kernel: the version before was as large.
fn writer_beside(m: &Mount, name: &str) -> Actor {
    m.save(name, stamped(1, LARGE));
    let before = passed(m);
    let mut writer = Actor::new();
    writer.open("w", "w", &m.path(name)).unwrap();
    assert_eq!(passed(m), before + 1, "the kernel writes it");
    writer
}

#[test]
fn a_large_checkpoint_is_written_by_the_kernel_itself_and_seen_at_its_close() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    let next = stamped(2, LARGE + 7);
    writer.write("w", &next[..LARGE / 2]).unwrap();
    assert_content(m.read("model.pt"), &stamped(1, LARGE), "others");
    assert_content(
        writer.cat(&m.path("model.pt")).ok(),
        &next[..LARGE / 2],
        "its own view",
    );
    writer.write("w", &next[LARGE / 2..]).unwrap();
    assert_eq!(writer.fstat("w").unwrap().size, next.len() as u64);
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &next, "committed");
    // The first of its kind tells how large the next will be.
    let before = passed(&m);
    writer.save(&m.path("other.pt"), &next).unwrap();
    assert_eq!(passed(&m), before + 1);
    assert_content(m.read("other.pt"), &next, "a new file");
}

#[test]
fn what_a_killed_writer_has_written_by_the_kernel_is_kept_out() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer.kill(libc::SIGKILL);
    m.await_rejected("model.pt", &stamped(2, LARGE));
    assert_content(m.read("model.pt"), &stamped(1, LARGE), "the version before");
}

#[test]
fn an_open_file_that_is_renamed_is_published_as_it_stands_and_never_written_again() {
    need_passthrough!();
    let m = mount!();
    m.save("model.pt", stamped(1, LARGE));
    let mut writer = writer_beside(&m, "tmp.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer
        .rename(&m.path("tmp.pt"), &m.path("model.pt"))
        .unwrap();
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "renamed");
    let mut reader = Actor::new();
    reader.open("r", "r", &m.path("model.pt")).unwrap();
    writer.pwrite("w", 0, &stamped(3, LARGE)).unwrap();
    assert_content(
        Some(reader.read_all("r").unwrap()),
        &stamped(2, LARGE),
        "an open reader",
    );
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "as published");
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &stamped(3, LARGE), "at the close");
    // One that writes nothing more commits nothing more.
    let mut writer = writer_beside(&m, "tmp.pt");
    writer.write("w", stamped(4, LARGE)).unwrap();
    writer
        .rename(&m.path("tmp.pt"), &m.path("model.pt"))
        .unwrap();
    m.save("model.pt", stamped(5, LARGE));
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &stamped(5, LARGE), "the later save");
}

#[test]
fn a_link_and_an_unlock_publish_what_is_written_so_far() {
    need_passthrough!();
    need_features!("posix_locks", "flock_locks");
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.ask("flock", &[b"w"]).unwrap();
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer.ask("funlock", &[b"w"]).unwrap();
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "unlocked");
    writer.pwrite("w", 0, &stamped(3, LARGE)).unwrap();
    writer
        .link(&m.path("model.pt"), &m.path("second.pt"))
        .unwrap();
    assert_content(m.read("second.pt"), &stamped(3, LARGE), "linked");
    writer.pwrite("w", 0, &stamped(4, LARGE)).unwrap();
    assert_content(m.read("second.pt"), &stamped(3, LARGE), "still");
    writer.close("w").unwrap();
    for name in ["model.pt", "second.pt"] {
        assert_content(m.read(name), &stamped(4, LARGE), name);
    }
}

#[test]
fn children_write_into_the_same_file_and_the_last_close_commits() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    let parts = stamped(2, LARGE);
    writer.write("w", &parts[..LARGE / 2]).unwrap();
    let mut child = writer.fork();
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &stamped(1, LARGE), "the child has it");
    child.write("w", &parts[LARGE / 2..]).unwrap();
    child.close("w").unwrap();
    assert_content(m.read("model.pt"), &parts, "both parts");
}

#[test]
fn a_time_that_its_program_sets_stays() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    // Nanoseconds since the epoch.
    writer.ask("futimens", &[b"w", b"1000000000"]).unwrap();
    writer.close("w").unwrap();
    let found = std::fs::metadata(m.path("model.pt")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&found), 1);
}

#[test]
fn what_is_promised_to_a_writer_is_not_written_by_it_after_the_daemon_has_been_killed() {
    need_passthrough!();
    let mut m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer.fsync("w").unwrap();
    m.kill_daemon();
    m.remount();
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "promised (C7)");
    // The kernel takes this although nobody serves the connection.
    writer.pwrite("w", 0, &stamped(3, LARGE)).ok();
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "still");
}

#[test]
fn what_a_killed_writer_had_made_durable_is_kept_without_what_it_was_about_to_add() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pkl");
    let whole = [&b"\x80\x04"[..], &vec![b'x'; LARGE], b"."].concat();
    writer.write("w", &whole).unwrap();
    writer.fsync("w").unwrap();
    writer
        .write("w", [&b"\x80\x04"[..], &vec![b'y'; LARGE]].concat())
        .unwrap();
    writer.kill(libc::SIGKILL);
    common::eventually(Duration::from_secs(10), "what was fsync'd (C7)", || {
        m.read("model.pkl").is_some_and(|content| content == whole)
    });
}

#[test]
fn a_program_that_empties_the_name_once_more_loses_nothing_of_what_it_closes_last() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    let content = stamped(2, LARGE);
    writer.write("w", &content[..LARGE / 2]).unwrap();
    writer.save(&m.path("model.pt"), stamped(3, 10)).unwrap();
    writer.write("w", &content[LARGE / 2..]).unwrap();
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &content, "the last close");
}

#[test]
fn what_is_emptied_by_name_while_the_kernel_writes_it_has_what_is_written_after_that() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer.save(&m.path("model.pt"), stamped(3, 10)).unwrap();
    writer.close("w").unwrap();
    assert_content(
        m.read("model.pt"),
        &stamped(3, 10),
        "nothing was written after that",
    );
}

#[test]
fn a_lock_takes_nothing_from_a_writer_whose_file_the_kernel_writes() {
    need_passthrough!();
    need_features!("posix_locks", "flock_locks");
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.ask("flock", &[b"w"]).unwrap();
    writer.write("w", stamped(2, LARGE)).unwrap();
    writer.ask("funlock", &[b"w"]).unwrap();
    m.save("model.pt", stamped(3, LARGE));
    writer.ask("flock", &[b"w"]).unwrap();
    writer.pwrite("w", 0, &stamped(4, LARGE)).unwrap();
    writer.ask("funlock", &[b"w"]).unwrap();
    assert_content(m.read("model.pt"), &stamped(4, LARGE), "unlocked");
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &stamped(4, LARGE), "closed");
}

#[test]
fn what_a_full_disk_has_cut_off_is_not_committed() {
    need_passthrough!();
    let options = Mount::options().on(common::Disk::ext4(48));
    let options = options
        .env("COMMITFS_AMPLE_MIB", 0)
        .env("COMMITFS_ENOUGH_MIB", 2);
    let Some(m) = options.limit(Duration::from_secs(120)).mount() else {
        return;
    };
    let mut writer = writer_beside(&m, "model.pt");
    assert_ne!(writer.fill("w", 200 << 20, 1 << 20, b'x'), Ok(200 << 20));
    let closed = writer.close("w");
    assert_errno(closed, "ENOSPC");
    assert_content(m.read("model.pt"), &stamped(1, LARGE), "the version before");
}

#[test]
fn a_document_that_is_cut_off_is_refused() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pkl");
    let half = [&b"\x80\x04"[..], &vec![b'x'; LARGE]].concat();
    writer.write("w", &half).unwrap();
    assert_errno(writer.close("w"), "EBADMSG");
    assert_content(
        m.read("model.pkl"),
        &stamped(1, LARGE),
        "the version before",
    );
}

#[test]
fn who_could_map_it_does_not_share_a_file_that_the_kernel_writes() {
    need_passthrough!();
    let m = mount!();
    let mut writer = writer_beside(&m, "model.pt");
    writer.write("w", stamped(2, LARGE)).unwrap();
    assert_errno(writer.open("again", "r+", &m.path("model.pt")), "ETXTBSY");
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &stamped(2, LARGE), "committed");
}

#[test]
fn without_the_feature_nothing_is_passed() {
    need_daemon!();
    if has_features(&["passthrough"]) {
        return;
    }
    let m = mount!();
    m.save("model.pt", stamped(1, LARGE));
    assert_content(m.read("model.pt"), &stamped(1, LARGE), "read");
    assert_eq!(passed(&m), 0);
}

#[test]
fn a_file_that_others_read_and_that_gets_a_direct_name_is_written_in_place() {
    need_passthrough!();
    let m = mount!();
    for (how, expected) in [
        ("a", [stamped(1, LARGE), b"more".to_vec()].concat()),
        ("r+", [b"more", &stamped(1, LARGE)[4..]].concat()),
        ("w", b"more".to_vec()),
    ] {
        m.save("model.pt", stamped(1, LARGE));
        let before = passed(&m);
        let (mut reader, mut writer) = (Actor::new(), Actor::new());
        reader.open("f", "r", &m.path("model.pt")).unwrap();
        assert_eq!(passed(&m), before + 1, "the kernel reads it");
        let path = m.path("model.db");
        writer.rename(&m.path("model.pt"), &path).unwrap();
        writer.open("f", how, &path).unwrap();
        writer.write("f", "more").unwrap();
        assert_content(Some(reader.read_all("f").unwrap()), &expected, how);
        writer.close("f").unwrap();
        assert_content(m.read("model.db"), &expected, how);
    }
}

/// One of its descriptors is closed while the disk is nearly full, the last when there is room.
#[test]
fn what_was_short_of_room_for_a_moment_is_committed() {
    need_passthrough!();
    let options = Mount::options().on(common::Disk::ext4(64)).separate();
    let options = options
        .env("COMMITFS_AMPLE_MIB", 0)
        .env("COMMITFS_ENOUGH_MIB", 24);
    let Some(m) = options.limit(Duration::from_secs(120)).mount() else {
        return;
    };
    let mut writer = writer_beside(&m, "model.pt");
    let content = stamped(2, LARGE);
    writer.write("w", &content).unwrap();
    let ballast = m.backing().parent().unwrap().join("ballast");
    let free = || {
        let disk = rustix::fs::statvfs(m.backing()).unwrap();
        (disk.f_bfree * disk.f_frsize) >> 20
    };
    let lack = usize::try_from(free().saturating_sub(16)).unwrap();
    std::fs::write(&ballast, vec![b'x'; lack << 20]).unwrap();
    File::open(&ballast).unwrap().sync_all().unwrap();
    assert!(free() < 24, "{}", free());
    writer.dup("w", "g").unwrap();
    assert_errno(writer.close("g"), "ENOSPC");
    std::fs::remove_file(&ballast).unwrap();
    File::open(m.backing()).unwrap().sync_all().unwrap();
    common::eventually(Duration::from_secs(10), "room", || free() > 24);
    writer.close("w").unwrap();
    assert_content(m.read("model.pt"), &content, "committed");
}
