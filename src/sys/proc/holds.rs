//! Which descriptors of a process are open for writing on a file.

use std::ffi::CStr;

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::{Errno, Result};

use super::death::memory_is_gone;
use super::{field, for_each_number, number, open_dir};

/// The most descriptors [`holds`] looks at before it gives up: at up to 7 µs each, that takes 7 ms.
const MAX_DESCRIPTORS: u32 = 1024;

/// How many descriptors a process has on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// So many; 0 for a process that is exiting and has given up its files.
    Count(u32),
    /// There is no such process (or `/proc` hides it from this user: `hidepid`).
    Gone,
    /// It can't be known: no right to look, more descriptors than are looked at, or a kernel before 5.14.
    Unknown,
}

/// How many descriptors of the process `tgid` are open for writing on one of the inodes `inos` of mount `mnt_id` (of any
/// mount if `None`).
///
/// A descriptor that is just being closed is no longer counted when its FLUSH arrives. The number of a mount is that
/// of `/proc/self/mountinfo`; the same file system has another one in another mount namespace, and in a bind mount.
/// Descriptors opened with O_PATH hold no file open and aren't counted.
pub fn holds(tgid: u32, inos: &[u64], mnt_id: Option<u64>) -> Holding {
    let counted = match count(tgid, inos, mnt_id) {
        // A thread that has ended shows no descriptors, or (to all but root) none that may be seen.
        Ok(Descriptors { seen: 0, .. }) | Err(Errno::ACCESS)
            if memory_is_gone(tgid) == Some(true) =>
        {
            match living_thread(tgid) {
                Ok(Some(tid)) => count(tid, inos, mnt_id),
                Ok(None) => return Holding::Count(0),
                Err(error) => Err(error),
            }
        }
        counted => counted,
    };
    match counted {
        Ok(descriptors) => Holding::Count(descriptors.matching),
        Err(Errno::NOENT | Errno::SRCH) => Holding::Gone,
        Err(_) => Holding::Unknown,
    }
}

/// A thread that goes on although the first one of its process has ended.
fn living_thread(tgid: u32) -> Result<Option<u32>> {
    let mut living = None;
    for_each_number(&open_dir(tgid, "task")?, |tid| {
        if living.is_none() && memory_is_gone(tid) == Some(false) {
            living = Some(tid);
        }
        Ok(())
    })?;
    Ok(living)
}

#[derive(Default)]
struct Descriptors {
    seen: u32,
    matching: u32,
}

fn count(tid: u32, inos: &[u64], mnt_id: Option<u64>) -> Result<Descriptors> {
    let process = open_dir(tid, "")?;
    let descriptors = open_dir(tid, "fd")?;
    let mut found = Descriptors::default();
    for_each_number(&descriptors, |fd| {
        found.seen += 1;
        if found.seen > MAX_DESCRIPTORS {
            return Err(Errno::TOOBIG);
        }
        match is_on_file(&process, &descriptors, fd, inos, mnt_id) {
            Ok(true) => found.matching += 1,
            // NOENT: closed since the directory was read.
            Ok(false) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether descriptor `fd` is open for writing on the file. The owner's bits of the link `fd/N` itself tell how it was
/// opened, at a sixth of the price of reading `fdinfo/N`; where the link points to must not be asked.
fn is_on_file(
    process: impl AsFd,
    descriptors: impl AsFd,
    fd: u32,
    inos: &[u64],
    mnt_id: Option<u64>,
) -> Result<bool> {
    let mut buffer = [0; 18];
    let name = decimal(fd, &mut buffer);
    let link = CStr::from_bytes_with_nul(&buffer[name..]).map_err(|_| Errno::INVAL)?;
    let mode = Mode::from_raw_mode(statat(descriptors, link, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    if !mode.contains(Mode::WUSR) {
        return Ok(false);
    }
    let start = name - FDINFO.len();
    buffer[start..name].copy_from_slice(FDINFO);
    let path = CStr::from_bytes_with_nul(&buffer[start..]).map_err(|_| Errno::INVAL)?;
    let info = openat(
        process,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // The lines that matter come first, before those of any file type or lock.
    let mut lines = [0; 256];
    let length = rustix::io::read(&info, &mut lines)?;
    on_file(&lines[..length], inos, mnt_id).ok_or(Errno::NOTSUP)
}

const FDINFO: &[u8] = b"fdinfo/";

/// Whether the lines of a descriptor name one of these files; `None` if they don't say.
fn on_file(info: &[u8], inos: &[u64], mnt_id: Option<u64>) -> Option<bool> {
    let found_mount = number::<u64>(field(info, "mnt_id")?)?;
    let found_ino = number::<u64>(field(info, "ino")?)?;
    Some(inos.contains(&found_ino) && mnt_id.is_none_or(|id| id == found_mount))
}

/// Writes `n` in decimal before the last byte of `buffer`, and says where it begins.
fn decimal(mut n: u32, buffer: &mut [u8]) -> usize {
    let mut start = buffer.len() - 1;
    loop {
        start -= 1;
        buffer[start] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return start;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn every_duplicate_is_counted_and_a_closed_one_is_not() {
        let path = std::env::temp_dir().join(format!("commitfs-holds-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let ino = first.metadata().unwrap().ino();
        let own = std::process::id();
        assert_eq!(holds(own, &[ino], None), Holding::Count(1));
        let second = first.try_clone().unwrap();
        assert_eq!(holds(own, &[ino], None), Holding::Count(2));
        drop(first);
        assert_eq!(holds(own, &[ino], None), Holding::Count(1));
        assert_eq!(holds(own, &[ino], Some(u64::MAX)), Holding::Count(0));
        drop(second);
        assert_eq!(holds(own, &[ino], None), Holding::Count(0));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_exited_process_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        while memory_is_gone(child.id()) != Some(true) {
            std::thread::yield_now();
        }
        // The files go right after the memory.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(holds(child.id(), &[1], None), Holding::Count(0));
        child.wait().unwrap();
        assert_eq!(holds(child.id(), &[1], None), Holding::Gone);
    }

    #[test]
    fn a_missing_process_is_gone() {
        assert_eq!(holds(0, &[1], None), Holding::Gone);
        assert_eq!(holds(u32::MAX, &[1], None), Holding::Gone);
    }

    #[test]
    fn lines_without_an_inode_are_not_taken_for_another_file() {
        assert_eq!(
            on_file(b"pos:\t0\nflags:\t02\nmnt_id:\t9\n", &[5], None),
            None
        );
        assert_eq!(
            on_file(b"pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t5\n", &[5], Some(9)),
            Some(true)
        );
        assert_eq!(
            on_file(
                b"pos:\t0\nflags:\t02\nmnt_id:\t9\nino:\t55\n",
                &[5],
                Some(9)
            ),
            Some(false)
        );
        assert_eq!(
            on_file(b"pos:\t0\nflags:\t02\nmnt_id:\t8\nino:\t5\n", &[5], Some(9)),
            Some(false)
        );
    }

    #[test]
    fn descriptor_numbers_are_written_in_decimal() {
        for n in [0, 7, 10, 1_048_575, u32::MAX] {
            let mut buffer = [0; 18];
            let start = decimal(n, &mut buffer);
            assert_eq!(buffer[start..], [n.to_string().as_bytes(), b"\0"].concat());
        }
    }

    #[test]
    fn descriptors_that_cannot_write_are_not_counted() {
        let path = std::env::temp_dir().join(format!("commitfs-holds-ro-{}", std::process::id()));
        let writer = File::create(&path).unwrap();
        let _reader = File::open(&path).unwrap();
        let _path = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let both = File::options().read(true).write(true).open(&path).unwrap();
        let ino = writer.metadata().unwrap().ino();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(holds(std::process::id(), &[ino], None), Holding::Count(2));
        drop((writer, both));
        assert_eq!(holds(std::process::id(), &[ino], None), Holding::Count(0));
    }
}
