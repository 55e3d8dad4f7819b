//! C1, C12: a checkpoint of gigabytes is read at the speed of the disk, as the kernel reads its file by itself. It is one whole
//! version all the same, nobody else loses an answer by it, and a lock never shows what is superseded.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
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
    let refused = File::options()
        .write(true)
        .open(&by_descriptor)
        .unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ETXTBSY));
    drop(first);
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
