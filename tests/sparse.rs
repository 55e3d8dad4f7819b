//! C13. Disk images and memory-mapped stores are sparse: their copies are, too, and take no longer than
//! their data does. What takes long ends with the program that it is done for.

mod common;

use std::time::Duration;

use common::{Actor, Disk, Mount, assert_content, eventually};

const SPARSE: &str = "import os
SIZE = 4 << 30
with open('disk.img', 'wb') as f:
    f.truncate(SIZE); f.seek(3 << 30); f.write(b'data')
def check(size, *places):
    s = os.stat('disk.img')
    assert s.st_size == size, s.st_size
    assert s.st_blocks * 512 < 1 << 20, s.st_blocks
    with open('disk.img', 'rb') as f:
        for at, data in ((3 << 30, b'data'), *places):
            assert os.pread(f.fileno(), len(data), at) == data, at
        assert os.pread(f.fileno(), 100, 2 << 30) == bytes(100)
check(SIZE)
";

/// On a disk that is much too small for what the holes would take.
#[test]
fn a_sparse_file_stays_sparse_when_it_is_edited_cut_off_and_added_to() {
    need_root!();
    let options = Mount::options().on(Disk::ext4(60));
    let m = mount!(
        options
            .rules("[[rule]]\nglob = \"*.img\"\nrecord = \"close\"\n")
            .limit(Duration::from_secs(60))
    );
    let ways = [
        "with open('disk.img', 'r+b') as f: f.seek(5000); f.write(b'edit')\ncheck(SIZE, (5000, b'edit'))",
        "os.truncate('disk.img', SIZE + 10)\ncheck(SIZE + 10)",
        "with open('disk.img', 'r+b') as f: f.truncate(SIZE - 10)\ncheck(SIZE - 10)",
        "with open('disk.img', 'ab') as f: f.write(b'more')\ncheck(SIZE + 4, (SIZE, b'more'))",
        "f = open('disk.img', 'r+b'); f.write(b'one'); f.flush(); os.link('disk.img', 'other')\n\
         f.write(b'two'); f.close()\ncheck(SIZE, (0, b'onetwo'))",
    ];
    for way in ways {
        m.python(&format!("{SPARSE}{way}")).ok();
        m.sh("rm -f disk.img other").ok();
    }
}

#[test]
fn a_program_that_is_ended_does_not_wait_for_the_copy_that_it_has_begun() {
    need_daemon!();
    // 64 pieces, half a minute.
    let m = mount!(Mount::options().env("COMMITFS_COPY_DELAY_MS", 500));
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    assert_eq!(writer.fill("f", 256 << 20, 1 << 20, b'o'), Ok(256 << 20));
    writer.close("f").unwrap();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let mut editor = common::Live::python(
            m.mountpoint(),
            "import os\nfd = os.open('f', os.O_RDWR)\nprint('begun', flush=True)\nos.pwrite(fd, b'edit', 5000)",
        );
        editor.expect("begun");
        let pid = editor.pid();
        // It is in the middle of its write when it waits for an answer.
        let waits = || {
            let stack = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            stack.starts_with(&format!("{} ", libc::SYS_pwrite64))
        };
        eventually(Duration::from_secs(5), "it writes", waits);
        let begun = std::time::Instant::now();
        editor.kill(signal);
        editor.finish();
        assert!(
            begun.elapsed() < Duration::from_secs(8),
            "{:?}",
            begun.elapsed()
        );
        let mut reader = Actor::new();
        reader.open("f", "r", &m.path("f")).unwrap();
        assert_eq!(reader.pread("f", 5000, 4), Ok(b"oooo".to_vec()));
    }
    assert_eq!(m.rejected().len(), 0, "nothing was written");
    assert_content(m.read("f").map(|f| f[..4].to_vec()), b"oooo", "whole");
}
