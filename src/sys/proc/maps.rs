//! Whether a process has a file mapped.

use rustix::fd::AsFd;
use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::{in_place_of_proc, open, read, slurp};

/// Whether a thread that waits for the answer to a FLUSH has a file mapped as shared whose inode number is `wanted`.
/// `None`: that can't be known.
///
/// `maps` needs a lock that `execve` holds while it closes files. By then the process has a new, empty address space:
/// one without text is not asked. What another thread does in its `mmap` or `munmap` is waited for, so this is for a
/// worker that holds nothing which a request of that process might need.
pub fn has_mapped(tid: u32, wanted: &dyn Fn(u64) -> bool) -> Option<bool> {
    if let Some(processes) = in_place_of_proc() {
        return Some(processes.mapped(tid).into_iter().any(wanted));
    }
    let text = |statm: &[u8]| {
        statm
            .split(|b| *b == b' ')
            .nth(3)
            .map(|pages| pages != b"0")
    };
    if text(&read(tid, "statm").ok()?) != Some(true) {
        return None;
    }
    let maps = open(rustix::fs::CWD, &format!("/proc/{tid}/maps")).ok()?;
    match asked(&maps, wanted) {
        Err(Errno::NOTTY) => told(&slurp(&maps).ok()?, wanted),
        answer => answer.ok(),
    }
}

/// The kernel's `struct procmap_query` (Linux 6.11).
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    flags: u64,
    from: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

/// Asks for one mapping after the other: a hundredth of the time that the text takes.
fn asked(maps: impl AsFd, wanted: &dyn Fn(u64) -> bool) -> Result<bool> {
    const PROCMAP_QUERY: Opcode = opcode::read_write::<Query>(b'f', 17);
    const SHARED: u64 = 0x08;
    const THIS_OR_NEXT: u64 = 0x10;
    const OF_A_FILE: u64 = 0x20;
    let mut from = 0;
    loop {
        let mut query = Query {
            size: size_of::<Query>() as u64,
            flags: SHARED | THIS_OR_NEXT | OF_A_FILE,
            from,
            ..Query::default()
        };
        // SAFETY: the request's size is that of `Query`, which begins with it; no buffers are named in it.
        match unsafe { ioctl(&maps, Updater::<PROCMAP_QUERY, Query>::new(&mut query)) } {
            Ok(()) if wanted(query.inode) => return Ok(true),
            Ok(()) => from = query.end,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}

/// What the text of a process's maps tells; an empty one is that of a thread that has given up its memory.
fn told(maps: &[u8], wanted: &dyn Fn(u64) -> bool) -> Option<bool> {
    let is_wanted = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ').filter(|f| !f.is_empty());
        let is_shared = fields.nth(1).is_some_and(|how| how.ends_with(b"s"));
        is_shared && fields.nth(2).and_then(super::number).is_some_and(wanted)
    };
    (!maps.is_empty()).then(|| maps.split(|b| *b == b'\n').any(is_wanted))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    struct Mapping(*mut libc::c_void);

    impl Mapping {
        fn of(file: &std::fs::File, how: libc::c_int) -> Mapping {
            use std::os::fd::AsRawFd;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice; nothing is read or written through it.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, how, file.as_raw_fd(), 0) };
            assert_ne!(at, libc::MAP_FAILED);
            Mapping(at)
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: made by `of`, and referred to by nobody.
            unsafe { libc::munmap(self.0, 4096) };
        }
    }

    #[test]
    fn a_shared_mapping_is_found_asked_for_or_told_and_a_private_one_is_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let ino = file.metadata().unwrap().ino();
        let (own, wanted) = (std::process::id(), |found| found == ino);
        let text = || told(&read(own, "maps").unwrap(), &wanted);
        for (how, is_shared) in [(libc::MAP_SHARED, true), (libc::MAP_PRIVATE, false)] {
            let mapping = Mapping::of(&file, how);
            assert_eq!(has_mapped(own, &wanted), Some(is_shared));
            assert_eq!(text(), Some(is_shared));
            drop(mapping);
            assert_eq!(has_mapped(own, &wanted), Some(false));
            assert_eq!(text(), Some(false));
        }
    }

    #[test]
    fn of_a_process_that_has_ended_nothing_is_known() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while super::super::lives(child.id()) {
            std::thread::yield_now();
        }
        assert_eq!(has_mapped(child.id(), &|_| true), None);
        child.wait().unwrap();
        assert_eq!(has_mapped(child.id(), &|_| true), None);
    }
}
