//! C1. A dashboard reads `progress` while training rewrites it: on a plain directory it finds an
//! empty file, half a document, or the head of one version and the tail of the next, once in a
//! few hundred reads. Here an open file is one whole version, for as long as it is open.

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Actor, assert_content, stamped, times, version_of};

#[test]
fn an_open_reader_keeps_its_version_through_read_pread_mmap_fstat_and_sendfile() {
    let m = mount!();
    let first = stamped(1, 100_000);
    m.save("weights", &first);
    let path = m.path("weights");
    let mut reader = Actor::new();
    for slot in ["half", "fresh", "sent"] {
        reader.open(slot, "r", &path).unwrap();
    }
    reader.mmap("fresh", "map", first.len(), "r").unwrap();
    let head = reader.read("half", 10_000).unwrap();
    let before = reader.fstat("half").unwrap();

    // Shorter, longer, and much shorter: on a plain directory the mapping would raise SIGBUS.
    m.save("weights", stamped(2, 5_000));
    m.save("weights", stamped(3, 300_000));
    m.save("weights", "");
    m.save("weights", stamped(4, 100));

    let tail = reader.read_all("half").unwrap();
    assert_content(
        Some([head, tail].concat()),
        &first,
        "read before and after the commits",
    );
    assert_content(
        Some(reader.read_all("fresh").unwrap()),
        &first,
        "read after the commits",
    );
    let piece = reader.pread("fresh", 99_000, 5_000).unwrap();
    assert_content(Some(piece), &first[99_000..], "pread");
    let sent = reader.ask("sendfile", &[b"sent"]).unwrap().remove(0);
    assert_content(Some(sent), &first, "sendfile");
    let mapped = reader.map_read("map", 0, first.len()).unwrap();
    assert_content(Some(mapped), &first, "mmap");
    let after = reader.fstat("half").unwrap();
    assert_eq!(
        (before.size, before.mtime_ns),
        (after.size, after.mtime_ns),
        "fstat"
    );
    assert_content(m.read("weights"), &stamped(4, 100), "a new open");
}

#[test]
fn no_reader_ever_sees_a_mixture_a_prefix_or_an_empty_file() {
    let m = mount!();
    let path = m.path("state");
    m.save("state", stamped(0, 30_000));
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let saves = times(400, 20_000) as u64;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !done.load(Ordering::Relaxed) {
                    let content = std::fs::read(&path).expect("the file is always there");
                    let version = version_of(&content).unwrap_or_else(|why| panic!("torn: {why}"));
                    assert!(version >= newest, "back from version {newest} to {version}");
                    newest = version;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut writer = Actor::new();
        let mut last = Ok(vec![]);
        for version in 1..=saves {
            let content = stamped(version, 20_000 + (version as usize * 7919) % 20_000);
            // Three chunks with pauses between them, so that a plain directory shows them.
            let args: [&[u8]; 4] = [
                path.as_os_str().as_encoded_bytes(),
                b"9000",
                b"300",
                &content,
            ];
            last = writer.ask("save-slowly", &args);
            if last.is_err() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        last.unwrap();
    });
    assert!(reads.into_inner() > saves / 4, "hardly anything was read");
    assert_eq!(version_of(&m.read("state").unwrap()), Ok(saves));
}

#[test]
fn strangers_see_the_old_version_while_a_writer_is_open() {
    let m = mount!();
    let old = stamped(1, 5_000);
    m.save("state", &old);
    let path = m.path("state");
    let before = std::fs::metadata(&path).unwrap();
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    let mut other = Actor::new();
    for part in 0..3 {
        assert_content(m.read("state"), &old, "while a transaction is open");
        assert_content(other.cat(&path).ok(), &old, "another process");
        let now = std::fs::metadata(&path).unwrap();
        assert_eq!(
            (now.size(), now.mtime_nsec()),
            (before.size(), before.mtime_nsec())
        );
        writer.write("f", format!("part {part}\n")).unwrap();
    }
    assert_eq!(
        m.names("."),
        ["state"],
        "no staging file shows in the listing"
    );
    writer.close("f").unwrap();
    assert_content(m.read("state"), b"part 0\npart 1\npart 2\n", "after close");
}

#[test]
fn a_writer_and_its_descendants_read_their_own_staged_bytes_through_the_path() {
    let m = mount!();
    m.save("state", "old\n");
    let path = m.path("state");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "staged\n").unwrap();
    let mut child = writer.fork();
    let mut grandchild = child.fork();
    assert_content(writer.cat(&path).ok(), b"staged\n", "the writer");
    assert_eq!(writer.stat(&path).unwrap().size, 7);
    assert_content(child.cat(&path).ok(), b"staged\n", "its child");
    assert_content(grandchild.cat(&path).ok(), b"staged\n", "its grandchild");
    assert_content(m.read("state"), b"old\n", "a stranger");

    let mut shell = m.shell("bash");
    shell.run("exec 3>log.d");
    shell.run("echo one >&3");
    assert_eq!(
        shell.run("cat log.d").1,
        "one\n",
        "a command that the writing shell starts"
    );
    assert!(!m.exists("log.d"), "a stranger sees no file yet");
}

#[test]
fn a_child_that_outlives_the_opener_still_reads_what_it_writes_through_the_path() {
    // The plain directory passes.
    let m = mount!();
    m.save("f", "old");
    let mut opener = Actor::new();
    opener.open("f", "w", &m.path("f")).unwrap();
    let mut child = opener.fork();
    opener.exit(0);
    child.write("f", "new").unwrap();
    let mut grandchild = child.fork();
    grandchild.close("f").unwrap();
    for process in [&mut child, &mut grandchild] {
        assert_eq!(process.cat(&m.path("f")), Ok(b"new".to_vec()));
    }
    child.close("f").unwrap();
    assert_content(m.read("f"), b"new", "after the close");

    // Before it has written anything, too, and if the opener had closed its own descriptor.
    opener = Actor::new();
    opener.open("f", "w", &m.path("g")).unwrap();
    let mut child = opener.fork();
    opener.close("f").unwrap();
    opener.exit(0);
    assert_eq!(child.cat(&m.path("g")), Ok(Vec::new()));
    child.close("f").unwrap();
}

#[test]
fn an_open_that_truncates_does_not_empty_the_file_for_others() {
    let m = mount!();
    let old = stamped(1, 70_000);
    m.save("state", &old);
    let path = m.path("state");
    let mut reader = Actor::new();
    reader.open("r", "r", &path).unwrap();
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    assert_content(m.read("state"), &old, "after open with O_TRUNC");
    assert_content(reader.read_all("r").ok(), &old, "an open reader");
    // truncate(2) is a transaction of its own: whole at once, and readers keep theirs.
    reader.open("again", "r", &path).unwrap();
    reader.mmap("again", "map", old.len(), "r").unwrap();
    let mut other = Actor::new();
    other.truncate(&path, 10).unwrap();
    assert_content(
        reader.map_read("map", 0, old.len()).ok(),
        &old,
        "a mapping, after truncate",
    );
    assert_content(m.read("state"), &old[..10], "after truncate");
    writer.write("f", "new").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("state"), b"new", "the last close wins");
}

#[test]
fn a_reader_that_stays_for_many_commits_still_has_its_version() {
    let m = mount!();
    let path = m.path("state");
    let mut readers = Vec::new();
    for version in 0..40 {
        m.save("state", stamped(version, 3_000 + version as usize));
        let mut reader = Actor::new();
        reader.open("f", "r", &path).unwrap();
        readers.push(reader);
    }
    std::thread::sleep(Duration::from_millis(1200));
    for (version, reader) in readers.iter_mut().enumerate() {
        let content = reader.read_all("f").unwrap();
        assert_eq!(version_of(&content), Ok(version as u64));
    }
}
