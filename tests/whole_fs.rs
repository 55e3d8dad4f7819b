//! C13. Whatever else programs do with files works as on the plain directory: databases punch
//! holes, package managers exchange names, `cp` asks for extents, shells make fifos. A file system
//! that answered EIO or ENOSYS to any of it would have to be switched off for one program, and so
//! for all.

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use common::{Actor, Mount, assert_content, assert_errno, stamped, times};

const APPLIED: Duration = Duration::from_millis(1300);

fn bytes(path: &std::path::Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[test]
fn truncate_by_path_is_a_commit_of_its_own() {
    let m = mount!();
    let old = stamped(1, 100_000);
    m.save("f", &old);
    let path = m.path("f");
    let (mut reader, mut actor) = (Actor::new(), Actor::new());
    reader.open("f", "r", &path).unwrap();
    let before = actor.stat(&path).unwrap();
    actor.truncate(&path, 1_000).unwrap();
    assert_content(m.read("f"), &old[..1_000], "shorter");
    assert_content(reader.read_all("f").ok(), &old, "an open reader");
    actor.truncate(&path, 5_000).unwrap();
    let longer = [&old[..1_000], &[0; 4_000]].concat();
    assert_content(m.read("f"), &longer, "longer");
    actor.truncate(&path, 0).unwrap();
    assert_content(m.read("f"), b"", "empty");
    let after = actor.stat(&path).unwrap();
    assert!(after.ino != before.ino && after.mtime_ns > before.mtime_ns);
    assert_errno(actor.truncate(m.mountpoint(), 0), "EISDIR");
    assert_errno(actor.truncate(&m.path("missing"), 0), "ENOENT");
    // Of a file that the program itself is writing: the content it writes.
    actor.open("f", "w", &path).unwrap();
    actor.write("f", "0123456789").unwrap();
    actor.truncate(&path, 4).unwrap();
    actor.close("f").unwrap();
    assert_content(m.read("f"), b"0123", "own");
}

#[test]
fn o_direct_reads_and_writes_whole_blocks() {
    let m = mount!();
    let path = m.path("blocks");
    let mut actor = Actor::new();
    actor.open("f", "rw-create|direct", &path).unwrap();
    for block in 0..4 {
        let at = (block * 8192).to_string();
        let done = actor.ask("write-blocks", &[b"f", at.as_bytes(), b"8192"]);
        assert_eq!(done.unwrap()[0], b"8192");
    }
    assert!(!m.exists("blocks"), "seen before its first version");
    actor.close("f").unwrap();
    assert_content(m.read("blocks"), &[b'd'; 32768], "written with O_DIRECT");
    actor.open("f", "r|direct", &path).unwrap();
    let read = actor.ask("read-blocks", &[b"f", b"4096", b"8192"]).unwrap();
    assert_content(Some(read[0].clone()), &[b'd'; 8192], "read with O_DIRECT");
    let end = actor
        .ask("read-blocks", &[b"f", b"28672", b"8192"])
        .unwrap();
    assert_eq!(end[0].len(), 4096, "at the end");
}

#[test]
fn holes_are_punched_found_and_kept() {
    let m = mount!();
    let path = m.path("sparse");
    let mut actor = Actor::new();
    actor.open("f", "w+", &path).unwrap();
    actor.fill("f", 256 << 10, 64 << 10, b'x').unwrap();
    let punch = i64::from(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
    actor
        .on_slot("fallocate", "f", &[punch, 64 << 10, 64 << 10])
        .unwrap();
    let sparse = |actor: &mut Actor, what: &str| {
        let mut at = |how: &str, from: i64| actor.on_slot(how, "f", &[from]);
        assert_eq!(at("seek-hole", 0), Ok(64 << 10), "{what}");
        assert_eq!(at("seek-data", 64 << 10), Ok(128 << 10), "{what}");
        assert_eq!(at("seek-hole", 128 << 10), Ok(256 << 10), "{what}");
        assert_errno(at("seek-data", 256 << 10), "ENXIO");
    };
    sparse(&mut actor, "while it is written");
    actor.close("f").unwrap();
    actor.open("f", "r", &path).unwrap();
    sparse(&mut actor, "a version");
    actor.close("f").unwrap();
    let stat = actor.stat(&path).unwrap();
    assert!(stat.blocks <= 200 * 2 && stat.size == 256 << 10, "{stat:?}");
    let content = [
        vec![b'x'; 64 << 10],
        vec![0; 64 << 10],
        vec![b'x'; 128 << 10],
    ]
    .concat();
    assert_content(m.read("sparse"), &content, "holes read as zeros");

    // An edit of it in place, and space asked for beforehand.
    actor.open("f", "r+", &path).unwrap();
    actor
        .on_slot("fallocate", "f", &[0, 256 << 10, 64 << 10])
        .unwrap();
    let keep = i64::from(libc::FALLOC_FL_KEEP_SIZE);
    actor
        .on_slot("fallocate", "f", &[keep, 1 << 20, 4096])
        .unwrap();
    assert_errno(actor.on_slot("fallocate", "f", &[0, 0, 0]), "EINVAL");
    actor.close("f").unwrap();
    let content = [content, vec![0; 64 << 10]].concat();
    assert_content(m.read("sparse"), &content, "allocated");
}

#[test]
fn copy_file_range_copies_between_versions_and_within_a_file() {
    let m = mount!();
    let source = stamped(1, 300_000);
    m.save("source", &source);
    let mut actor = Actor::new();
    actor.open("from", "r", &m.path("source")).unwrap();
    actor.open("to", "w+", &m.path("copy")).unwrap();
    let mut copied = 0;
    while copied < 300_000 {
        let at = copied.to_string();
        let args: [&[u8]; 5] = [b"from", at.as_bytes(), b"to", at.as_bytes(), b"300000"];
        let done = actor.ask("copy-range", &args).unwrap();
        let done: i64 = String::from_utf8_lossy(&done[0]).parse().unwrap();
        assert!(done > 0, "nothing copied at {copied}");
        copied += done;
    }
    actor
        .ask("copy-range", &[b"to", b"0", b"to", b"300000", b"1000"])
        .unwrap();
    assert!(!m.exists("copy"), "seen before its first version");
    actor.close("to").unwrap();
    let both = [&source[..], &source[..1000]].concat();
    assert_content(m.read("copy"), &both, "the copy");
    assert_errno(
        actor.ask("copy-range", &[b"from", b"0", b"from", b"0", b"10"]),
        "EBADF",
    );
}

#[test]
fn names_are_replaced_only_when_allowed_and_exchanged_in_one_step() {
    let m = mount!();
    let (one, two) = (m.path("one"), m.path("two"));
    let mut actor = Actor::new();
    for pause in [Duration::ZERO, APPLIED] {
        m.save("one", "1");
        m.save("two", "2");
        std::thread::sleep(pause);
        assert_errno(actor.rename_noreplace(&one, &two), "EEXIST");
        actor.exchange(&one, &two).unwrap();
        assert_content(m.read("one"), b"2", "exchanged");
        assert_content(m.read("two"), b"1", "exchanged");
        assert_errno(actor.exchange(&one, &m.path("none")), "ENOENT");
        actor.rename_noreplace(&one, &m.path("free")).unwrap();
        assert_content(m.read("free"), b"2", "to a free name");
        assert!(!m.exists("one"));
        actor.unlink(&m.path("free")).unwrap();
    }
    // A file and a directory change places.
    m.mkdir("dir");
    m.save("dir/in", "in");
    actor.exchange(&two, &m.path("dir")).unwrap();
    assert_content(m.read("two/in"), b"in", "the directory");
    assert_content(m.read("dir"), b"1", "the file");
}

#[test]
fn fifos_and_symlinks_work() {
    let m = mount!();
    let mut actor = Actor::new();
    let fifo = m.path("fifo");
    actor.with_numbers("mkfifo", &fifo, &[]).unwrap();
    assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo());
    let out = m
        .sh("cat fifo & echo through > fifo; wait; stat -c %F fifo")
        .ok();
    assert_eq!(out.out, "through\nfifo\n");
    actor.unlink(&fifo).unwrap();

    m.save("file", "old");
    let link = m.path("link");
    actor.ask("symlink", &[bytes(&link), b"file"]).unwrap();
    assert_eq!(actor.ask("readlink", &[bytes(&link)]).unwrap()[0], b"file");
    actor.save(&link, "through the link").unwrap();
    assert_content(m.read("file"), b"through the link", "the target");
    assert!(link.symlink_metadata().unwrap().file_type().is_symlink());
    let dangling = m.path("dangling");
    actor.ask("symlink", &[bytes(&dangling), b"made"]).unwrap();
    actor.save(&dangling, "x").unwrap();
    assert_content(m.read("made"), b"x", "created through a symlink");
    let long = vec![b'l'; 4000];
    actor
        .ask("symlink", &[bytes(&m.path("long")), &long])
        .unwrap();
    let read = actor.ask("readlink", &[bytes(&m.path("long"))]).unwrap();
    assert_eq!(read[0], long);
    let ring = m.path("ring");
    actor.ask("symlink", &[bytes(&ring), b"ring"]).unwrap();
    assert_errno(actor.cat(&ring), "ELOOP");
}

#[test]
fn statfs_speaks_of_the_backing_file_system() {
    need_daemon!();
    let m = mount!(Mount::options().separate());
    let script = |dir: &std::path::Path| {
        let line = format!("stat -f -c '%l %S %b %c' '{}'", dir.display());
        m.sh(&line).ok().out
    };
    assert_eq!(script(m.mountpoint()), script(m.backing()));
}

#[test]
fn openat2_stays_beneath_and_the_writer_has_a_transaction() {
    let m = mount!();
    m.mkdir("dir");
    m.save("dir/f", "old!");
    m.save("outside", "x");
    let mut actor = Actor::new();
    actor.open("dir", "r|directory", &m.path("dir")).unwrap();
    actor.ask("open-beneath", &[b"f", b"dir", b"f"]).unwrap();
    actor.write("f", "new").unwrap();
    assert_content(m.read("dir/f"), b"old!", "while it is open");
    actor.close("f").unwrap();
    assert_content(m.read("dir/f"), b"new!", "after close");
    assert_errno(
        actor.ask("open-beneath", &[b"f", b"dir", b"../outside"]),
        "EXDEV",
    );
}

#[test]
fn a_location_and_a_magic_link_open_the_file_for_writing() {
    let m = mount!();
    m.save("f", "old content");
    let path = m.path("f");
    let mut actor = Actor::new();
    for (how, expected) in [("r+", "NEW content"), ("w", "NEW")] {
        actor.open("at", "path", &path).unwrap();
        let magic = actor.ask("fdpath", &[b"at"]).unwrap().remove(0);
        let magic = PathBuf::from(OsStr::from_bytes(&magic));
        actor.open("f", how, &magic).unwrap();
        actor.write("f", "NEW").unwrap();
        actor.close("f").unwrap();
        actor.close("at").unwrap();
        assert_content(m.read("f"), expected.as_bytes(), how);
    }
    // A reader's descriptor, opened again for writing.
    actor.open("r", "r", &path).unwrap();
    let magic = actor.ask("fdpath", &[b"r"]).unwrap().remove(0);
    let magic = PathBuf::from(OsStr::from_bytes(&magic));
    actor.open("f", "r+", &magic).unwrap();
    actor.write("f", "new").unwrap();
    actor.close("f").unwrap();
    assert_content(m.read("f"), b"new", "reopened");
}

#[test]
fn what_somebody_reads_is_rewritten_through_a_magic_link_and_read_on() {
    need_daemon!();
    let m = mount!();
    // Read past the kernel's pages, and through them.
    for (name, len) in [("small", 5_000), ("large", 300_000)] {
        let (old, new) = (stamped(1, len), stamped(2, len / 2));
        m.save(name, &old);
        let path = m.path(name);
        let (mut reader, mut actor) = (Actor::new(), Actor::new());
        reader.open("f", "r", &path).unwrap();
        reader.mmap("f", "map", old.len(), "r").unwrap();
        let begun = reader.read("f", 1_000).unwrap();
        assert_content(Some(begun), &old[..1_000], name);
        actor.open("at", "path", &path).unwrap();
        let magic = actor.ask("fdpath", &[b"at"]).unwrap().remove(0);
        let magic = PathBuf::from(OsStr::from_bytes(&magic));
        actor.open("f", "w", &magic).unwrap();
        assert_content(reader.pread("f", 0, old.len()).ok(), &old, "emptied");
        actor.write("f", &new).unwrap();
        assert_eq!(reader.fstat("f").unwrap().size, old.len() as u64);
        assert_content(m.read(name), &old, "by name, before the close");
        let mapped = reader.map_read("map", 0, old.len()).unwrap();
        assert_content(Some(mapped), &old, "mapped");
        actor.close("f").unwrap();
        assert_content(m.read(name), &new, "by name");
        assert_content(reader.pread("f", 0, old.len()).ok(), &old, "committed");
    }
}

/// Threads that read a file again and again while it is rewritten by way of an O_PATH descriptor.
const REWRITTEN_WITHOUT_A_WALK: &str = r#"
import os, threading
SIZE, done, odd = 200_000, False, []
def rewrite(n):
    at = os.open('f.txt', os.O_PATH)
    with open(f'/proc/self/fd/{at}', 'wb') as f: f.write(b'%d' % (n % 10) * SIZE)
    os.close(at)
def read():
    while not done:
        with open('f.txt', 'rb') as f:
            for _ in range(5):
                f.seek(0)
                found = f.read()
                if len(found) != SIZE or len(set(found)) != 1: odd.append(len(found))
with open('f.txt', 'wb') as f: f.write(b'0' * SIZE)
# Who has opened it before the first of them may find it empty.
rewrite(0)
readers = [threading.Thread(target=read) for _ in range(3)]
for r in readers: r.start()
try:
    for n in range(SAVES): rewrite(n)
finally: done = True
for r in readers: r.join()
assert not odd, odd
"#;

#[test]
fn nobody_sees_a_rewrite_through_a_magic_link_half_done() {
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let m = mount!();
    let saves = times(200, 3_000).to_string();
    let script = REWRITTEN_WITHOUT_A_WALK.replace("SAVES", &saves);
    common::python(m.mountpoint(), &script, Duration::from_secs(150)).ok();
}

#[test]
fn what_somebody_reads_is_truncated_through_a_magic_link_and_read_on() {
    need_daemon!();
    let m = mount!();
    let old = stamped(1, 300_000);
    m.save("f", &old);
    let (mut reader, mut actor) = (Actor::new(), Actor::new());
    reader.open("f", "r", &m.path("f")).unwrap();
    reader.mmap("f", "map", old.len(), "r").unwrap();
    actor.open("at", "path", &m.path("f")).unwrap();
    let magic = actor.ask("fdpath", &[b"at"]).unwrap().remove(0);
    let magic = PathBuf::from(OsStr::from_bytes(&magic));
    actor.truncate(&magic, 100).unwrap();
    let mapped = reader.map_read("map", 0, old.len()).unwrap();
    assert_content(Some(mapped), &old, "mapped");
    assert_content(reader.read_all("f").ok(), &old, "read");
    assert_content(m.read("f"), &old[..100], "by name");
}

#[test]
fn a_running_program_can_be_replaced_but_not_written() {
    let m = mount!();
    m.sh("cp /bin/sleep program && chmod 755 program").ok();
    let path = m.path("program");
    let (mut actor, mut running) = (Actor::new(), Actor::new());
    running.start("exec", &[b"-", bytes(&path), b"30"]);
    let started = || {
        std::fs::read_link(format!("/proc/{}/exe", running.pid()))
            .is_ok_and(|exe| exe.to_string_lossy().contains("program"))
    };
    common::eventually(Duration::from_secs(10), "the program runs", started);
    assert_errno(actor.truncate(&path, 0), "ETXTBSY");
    assert_errno(actor.open("f", "wronly|trunc", &path), "ETXTBSY");
    assert_errno(actor.open("f", "r+", &path), "ETXTBSY");
    actor.save(&m.path("new"), "another program").unwrap();
    actor.rename(&m.path("new"), &path).unwrap();
    assert_content(m.read("program"), b"another program", "replaced");
    assert!(common::alive(running.pid()));
    running.kill(libc::SIGKILL);
}

#[test]
fn deep_directories_and_names_with_odd_bytes_survive_a_remount() {
    let mut m = mount!();
    let deep: PathBuf = std::iter::repeat_n("directory", 150).collect();
    let odd: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    let names = [
        &odd[..127],
        &odd[127..],
        b" ",
        b"-",
        b"a\nb",
        b"\xff\xfe",
        b"...",
    ];
    m.sh(&format!("mkdir -p {}", deep.display())).ok();
    let mut actor = Actor::new();
    actor.save(&m.path(&deep).join("f"), "deep").unwrap();
    for name in names {
        let path = m.path(OsStr::from_bytes(name));
        actor.save(&path, name).unwrap();
        let twin = [b"m".as_slice(), &name[..name.len().min(200)]].concat();
        let twin = m.path(OsStr::from_bytes(&twin));
        actor.rename(&path, &twin).unwrap();
        actor.rename(&twin, &path).unwrap();
    }
    let long = m.path("n".repeat(255));
    actor.save(&long, "long").unwrap();
    assert_errno(actor.save(&m.path("n".repeat(256)), ""), "ENAMETOOLONG");
    drop(actor);
    for when in ["at once", "after a remount"] {
        assert_content(m.read(deep.join("f")), b"deep", when);
        assert_content(std::fs::read(&long).ok(), b"long", when);
        for name in names {
            assert_content(m.read(OsStr::from_bytes(name)), name, when);
        }
        if when == "at once" {
            m.unmount();
            m.remount();
        }
    }
}

#[test]
fn ten_thousand_files_in_a_directory_are_listed_once_each() {
    let m = mount!(Mount::options().limit(Duration::from_secs(180)));
    m.mkdir("many");
    let count = times(10_000, 100_000);
    let script = format!("for i in range({count}):\n  open(f'many/{{i:06}}', 'w').write(str(i))\n");
    let python = common::python(m.mountpoint(), &script, Duration::from_secs(150));
    python.ok();
    let expected: Vec<String> = (0..count).map(|i| format!("{i:06}")).collect();
    assert!(m.names("many") == expected, "listed while being applied");
    for i in [0, count / 2, count - 1] {
        assert_eq!(m.text(format!("many/{i:06}")), Some(i.to_string()));
    }
    std::thread::sleep(APPLIED);
    assert!(m.names("many") == expected, "listed later");
    let removed = "ls many | wc -l && rm -r many && test ! -e many && echo gone";
    let out = common::sh(m.mountpoint(), removed, Duration::from_secs(60)).ok();
    assert_eq!(out.out, format!("{count}\ngone\n"));
}

/// The kernel remembers as many files as there is memory for; a process has so many descriptors.
#[test]
fn more_files_are_known_to_the_kernel_than_the_daemon_may_have_open() {
    let m = mount!(
        Mount::options()
            .env("COMMITFS_DESCRIPTORS", 200)
            .limit(Duration::from_secs(120))
    );
    let script = r#"
import os
def through(fd):
    return f"/proc/self/fd/{fd}"
dirs = [f"d{i}/{j}" for i in range(10) for j in range(5)]
for d in dirs:
    os.makedirs(d)
files = [f"{d}/{n}" for d in dirs for n in range(20)]
for f in files:
    open(f, "w").write(f)
handles = {f: os.open(f, os.O_PATH) for f in files[::5]}
numbers = {f: os.stat(f).st_ino for f in files}
assert len(set(numbers.values())) == len(files)

os.rename("d3", "moved")
here = lambda f: f.replace("d3/", "moved/", 1)
assert {f: os.stat(here(f)).st_ino for f in files} == numbers
for f in files:
    assert open(here(f)).read() == f, f
for f, fd in handles.items():
    assert os.fstat(fd).st_ino == numbers[f], f
    assert os.getxattr(through(fd), "user.commitfs.version") == b"1", f
    assert open(through(fd)).read() == f, f

# One that was given up can be replaced, removed, linked and moved like any other.
kept = list(handles)
one, two, three, four = kept[:4]
open(one, "w").write("new")
os.unlink(two)
os.link(three, "link")
os.rename(four, "elsewhere")
for f in files[400:]:
    os.stat(here(f))
assert open(one).read() == "new" and os.stat(one).st_ino != numbers[one]
assert open(through(handles[one])).read() in (one, "new")
assert os.fstat(handles[two]).st_ino == numbers[two]
assert open("link").read() == three and os.stat("link").st_ino == numbers[three]
assert os.stat("elsewhere").st_ino == numbers[four]
assert open(through(handles[four])).read() == four
"#;
    m.python(script).ok();
    let open = std::fs::read_dir(format!("/proc/{}/fd", m.daemon_pid()));
    assert!(open.unwrap().count() < 200);
}

#[test]
fn a_listing_under_change_gives_every_steady_name_exactly_once() {
    let m = mount!();
    m.mkdir("dir");
    for i in 0..200 {
        m.save(format!("dir/steady-{i:03}"), "x");
    }
    let steady: Vec<String> = (0..200).map(|i| format!("steady-{i:03}")).collect();
    let mut changing = m.live_python(
        "import os, itertools\n\
         print('go')\n\
         for i in itertools.count():\n\
         \x20   n = f'dir/brief-{i % 50}'\n\
         \x20   open(n, 'w').write('x')\n\
         \x20   open('dir/steady-100', 'w').write(str(i))\n\
         \x20   (os.unlink if i % 3 else lambda n: os.rename(n, 'dir/moved'))(n)\n",
    );
    changing.expect("go");
    for _ in 0..times(200, 5_000) {
        let names = m.names("dir");
        let found: Vec<&String> = names.iter().filter(|n| n.starts_with("steady")).collect();
        assert!(found.iter().copied().eq(&steady), "{} names", found.len());
        let mut once = names.clone();
        once.dedup();
        assert_eq!(names.len(), once.len(), "a name twice");
    }
    changing.kill(libc::SIGKILL);
}

#[test]
fn a_file_with_a_hundred_links_is_rewritten_under_one_name_alone() {
    let m = mount!();
    m.save("origin", "shared");
    let mut actor = Actor::new();
    for i in 0..100 {
        actor
            .link(&m.path("origin"), &m.path(format!("link-{i:02}")))
            .unwrap();
    }
    assert_eq!(actor.stat(&m.path("link-50")).unwrap().nlink, 101);
    // An append grows the file itself, under all its names (C10).
    for (how, i) in [("w", 10), ("r+", 20)] {
        let path = m.path(format!("link-{i}"));
        actor.open("f", how, &path).unwrap();
        actor.write("f", "new").unwrap();
        actor.close("f").unwrap();
    }
    for when in ["at once", "later"] {
        for (name, content) in [
            ("origin", "shared"),
            ("link-10", "new"),
            ("link-20", "newred"),
            ("link-99", "shared"),
        ] {
            assert_content(m.read(name), content.as_bytes(), when);
        }
        assert_eq!(actor.stat(&m.path("origin")).unwrap().nlink, 99, "{when}");
        std::thread::sleep(APPLIED);
    }
}

#[test]
fn times_before_1970_are_kept() {
    let m = mount!();
    m.save("old", "x");
    let path = m.path("old");
    let mut actor = Actor::new();
    for ns in [-1, -1_000_000_000, -1_500_000_001, -86_400_000_000_000] {
        actor.with_numbers("utimens", &path, &[ns]).unwrap();
        assert_eq!(actor.stat(&path).unwrap().mtime_ns, ns);
        let seen = path.metadata().unwrap();
        assert_eq!(seen.mtime() * 1_000_000_000 + seen.mtime_nsec(), ns);
    }
    std::thread::sleep(APPLIED);
    assert_eq!(actor.stat(&path).unwrap().mtime_ns, -86_400_000_000_000);
    actor.save(&path, "later").unwrap();
    assert!(actor.stat(&path).unwrap().mtime_ns > 0);
}
