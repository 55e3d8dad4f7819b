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

/// How a file is open: access mode, and O_APPEND.
pub const HOW: OFlags = OFlags::RWMODE.union(OFlags::APPEND);

/// How many descriptors of the process `tgid` are open for writing and `wanted`, which is asked with the inode's number
/// and [`HOW`] it is open. The latter is that of the open, unless fcntl(F_SETFL) has changed it.
///
/// A descriptor that is just being closed is no longer counted when its FLUSH arrives. Descriptors opened with O_PATH
/// hold no file open and aren't counted.
pub fn holds(tgid: u32, wanted: &dyn Fn(u64, OFlags) -> bool) -> Holding {
    let counted = match count(tgid, wanted) {
        // A thread that has ended shows no descriptors, or (to all but root) none that may be seen.
        Ok(Descriptors { seen: 0, .. }) | Err(Errno::ACCESS)
            if memory_is_gone(tgid) == Some(true) =>
        {
            match living_thread(tgid) {
                Ok(Some(tid)) => count(tid, wanted),
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

fn count(tid: u32, wanted: &dyn Fn(u64, OFlags) -> bool) -> Result<Descriptors> {
    let process = open_dir(tid, "")?;
    let descriptors = open_dir(tid, "fd")?;
    let mut found = Descriptors::default();
    for_each_number(&descriptors, |fd| {
        found.seen += 1;
        if found.seen > MAX_DESCRIPTORS {
            return Err(Errno::TOOBIG);
        }
        match is_wanted(&process, &descriptors, fd, wanted) {
            Ok(true) => found.matching += 1,
            // NOENT: closed since the directory was read.
            Ok(false) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether descriptor `fd` is open for writing, and wanted. The owner's bits of the link `fd/N` itself tell how it was
/// opened, at a sixth of the price of reading `fdinfo/N`; where the link points to must not be asked.
fn is_wanted(
    process: impl AsFd,
    descriptors: impl AsFd,
    fd: u32,
    wanted: &dyn Fn(u64, OFlags) -> bool,
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
    let (ino, how) = open_file(&lines[..length]).ok_or(Errno::NOTSUP)?;
    Ok(wanted(ino, how))
}

const FDINFO: &[u8] = b"fdinfo/";

/// Inode number and [`HOW`] it is open, by the lines of a descriptor; `None` if they don't say.
fn open_file(info: &[u8]) -> Option<(u64, OFlags)> {
    let flags = std::str::from_utf8(field(info, "flags")?).ok()?;
    let flags = OFlags::from_bits_retain(u32::from_str_radix(flags, 8).ok()?);
    Some((number(field(info, "ino")?)?, flags & HOW))
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

    fn on(ino: u64) -> impl Fn(u64, OFlags) -> bool {
        move |found, _| found == ino
    }

    #[test]
    fn every_duplicate_is_counted_and_a_closed_one_is_not() {
        let path = std::env::temp_dir().join(format!("commitfs-holds-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let ino = first.metadata().unwrap().ino();
        let own = std::process::id();
        assert_eq!(holds(own, &on(ino)), Holding::Count(1));
        let second = first.try_clone().unwrap();
        assert_eq!(holds(own, &on(ino)), Holding::Count(2));
        drop(first);
        assert_eq!(holds(own, &on(ino)), Holding::Count(1));
        drop(second);
        assert_eq!(holds(own, &on(ino)), Holding::Count(0));
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
        assert_eq!(holds(child.id(), &on(1)), Holding::Count(0));
        child.wait().unwrap();
        assert_eq!(holds(child.id(), &on(1)), Holding::Gone);
    }

    #[test]
    fn a_missing_process_is_gone() {
        assert_eq!(holds(0, &on(1)), Holding::Gone);
        assert_eq!(holds(u32::MAX, &on(1)), Holding::Gone);
    }

    #[test]
    fn lines_say_which_inode_is_open_and_how() {
        let without = b"pos:\t0\nflags:\t02\nmnt_id:\t9\n";
        assert_eq!(open_file(without), None);
        let info = b"pos:\t0\nflags:\t0102002\nmnt_id:\t9\nino:\t55\n";
        assert_eq!(open_file(info), Some((55, OFlags::RDWR | OFlags::APPEND)));
    }

    #[test]
    fn a_descriptor_that_appends_is_told_from_one_that_does_not() {
        let path = std::env::temp_dir().join(format!("commitfs-holds-how-{}", std::process::id()));
        let _writer = File::create(&path).unwrap();
        let _appender = File::options().append(true).open(&path).unwrap();
        let ino = std::fs::metadata(&path).unwrap().ino();
        std::fs::remove_file(&path).unwrap();
        let appends = |found: u64, how: OFlags| found == ino && how.contains(OFlags::APPEND);
        assert_eq!(holds(std::process::id(), &appends), Holding::Count(1));
        assert_eq!(holds(std::process::id(), &on(ino)), Holding::Count(2));
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
        assert_eq!(holds(std::process::id(), &on(ino)), Holding::Count(2));
        drop((writer, both));
        assert_eq!(holds(std::process::id(), &on(ino)), Holding::Count(0));
    }
}
