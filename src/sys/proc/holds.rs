//! Which descriptors of a process are open for writing on a file.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom, openat, statat};
use rustix::io::{Errno, Result};

use super::death::memory_is_gone;
use super::{field, for_each_number, in_place_of_proc, number, numeric_name, open_dir};

/// Of a process with more descriptors than are looked at: the first so many are asked for, where programs redirect
/// their output to,
const FIRST: u32 = 3;
/// and so many of the last, where a duplicate comes to lie.
const LAST: usize = 8;

/// Whether a process has a descriptor on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// It has.
    Yes,
    /// It has not; also said of a process that is exiting and has given up its files.
    No,
    /// Not where one is likely to be; it has more descriptors than are looked at.
    Unlikely,
    /// There is no such process (or `/proc` hides it from this user: `hidepid`).
    Gone,
    /// It can't be known: no right to look, or a kernel before 5.14.
    Unknown,
}

/// How a file is open: access mode, and O_APPEND.
pub const HOW: OFlags = OFlags::RWMODE.union(OFlags::APPEND);

/// Whether a descriptor of the process `tgid` is open for writing and `wanted`, which is asked with the inode's number
/// and [`HOW`] it is open. The latter is that of the open, unless fcntl(F_SETFL) has changed it.
///
/// Each look costs a few microseconds, so of a process with more than `most` descriptors only a few are looked at. A
/// descriptor that is just being closed is not there any more when its FLUSH arrives. Descriptors opened with O_PATH
/// hold no file open.
pub fn holds(tgid: u32, most: u64, wanted: &dyn Fn(u64, OFlags) -> bool) -> Holding {
    if let Some(processes) = in_place_of_proc() {
        return match processes.written(tgid) {
            None => Holding::Gone,
            Some(all) if all.iter().any(|(ino, flags)| wanted(*ino, *flags & HOW)) => Holding::Yes,
            Some(_) => Holding::No,
        };
    }
    let found = match find(tgid, most, wanted) {
        // A thread that has ended shows no descriptors, or (to all but root) none that may be seen.
        Ok(Found { seen: 0, .. }) | Err(Errno::ACCESS) if memory_is_gone(tgid) == Some(true) => {
            match living_thread(tgid) {
                Ok(Some(tid)) => find(tid, most, wanted),
                Ok(None) => return Holding::No,
                Err(error) => Err(error),
            }
        }
        found => found,
    };
    match found {
        Ok(Found { holding, .. }) => holding,
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

struct Found {
    /// At least so many descriptors are there.
    seen: u64,
    holding: Holding,
}

/// Ends a listing before its end.
enum SearchStop {
    Found,
    TooMany,
    Failed(Errno),
}

fn find(tid: u32, most: u64, wanted: &dyn Fn(u64, OFlags) -> bool) -> Result<Found> {
    let descriptors = open_dir(tid, "fd")?;
    // How many there are; 0 before Linux 6.2, which doesn't tell.
    let told = u64::try_from(rustix::fs::fstat(&descriptors)?.st_size).unwrap_or(0);
    let look = |fd| match is_wanted(&descriptors, fd, wanted) {
        Ok(found) => Ok(found),
        // Closed since the directory was read.
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    };
    if told > most {
        let holding = match is_where_likely(&descriptors, told, look)? {
            true => Holding::Yes,
            false => Holding::Unlikely,
        };
        return Ok(Found {
            seen: told,
            holding,
        });
    }
    let mut seen = 0;
    let holding = match each_until(&descriptors, &mut [MaybeUninit::uninit(); 8192], |fd| {
        seen += 1;
        match look(fd) {
            _ if seen > most => Err(SearchStop::TooMany),
            Ok(true) => Err(SearchStop::Found),
            Ok(false) => Ok(()),
            Err(error) => Err(SearchStop::Failed(error)),
        }
    }) {
        Ok(()) => Holding::No,
        Err(SearchStop::Found) => Holding::Yes,
        Err(SearchStop::TooMany) => Holding::Unlikely,
        Err(SearchStop::Failed(error)) => return Err(error),
    };
    Ok(Found { seen, holding })
}

/// Looks at some of very many: those that programs redirect, and those behind the lowest of which there are `count`,
/// as numbers are handed out from below.
fn is_where_likely(
    descriptors: &OwnedFd,
    count: u64,
    look: impl Fn(u32) -> Result<bool>,
) -> Result<bool> {
    for fd in 0..FIRST {
        if look(fd)? {
            return Ok(true);
        }
    }
    // Positions in that directory are numbers of descriptors, after `.` and `..`.
    rustix::fs::seek(descriptors, SeekFrom::Start(count))?;
    let mut left = LAST;
    let answer = each_until(descriptors, &mut [MaybeUninit::uninit(); 32 * LAST], |fd| {
        if left == 0 {
            return Err(SearchStop::TooMany);
        }
        left -= 1;
        match look(fd) {
            Ok(true) => Err(SearchStop::Found),
            Ok(false) => Ok(()),
            Err(error) => Err(SearchStop::Failed(error)),
        }
    });
    match answer {
        Ok(()) | Err(SearchStop::TooMany) => Ok(false),
        Err(SearchStop::Found) => Ok(true),
        Err(SearchStop::Failed(error)) => Err(error),
    }
}

fn each_until(
    directory: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    mut f: impl FnMut(u32) -> std::result::Result<(), SearchStop>,
) -> std::result::Result<(), SearchStop> {
    let mut entries = RawDir::new(directory, buffer);
    while let Some(entry) = entries.next() {
        if let Some(fd) = numeric_name(entry.map_err(SearchStop::Failed)?.file_name()) {
            f(fd)?;
        }
    }
    Ok(())
}

/// Whether descriptor `fd` is open for writing, and wanted. The owner's bits of the link `fd/N` itself tell how it was
/// opened, at a sixth of the price of reading `fdinfo/N`; where the link points to must not be asked.
fn is_wanted(
    descriptors: impl AsFd,
    fd: u32,
    wanted: &dyn Fn(u64, OFlags) -> bool,
) -> Result<bool> {
    let mut buffer = [0; 21];
    let name = decimal(fd, &mut buffer);
    let link = CStr::from_bytes_with_nul(&buffer[name..]).map_err(|_| Errno::INVAL)?;
    let mode = Mode::from_raw_mode(statat(&descriptors, link, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
    if !mode.contains(Mode::WUSR) {
        return Ok(false);
    }
    let start = name - FDINFO.len();
    buffer[start..name].copy_from_slice(FDINFO);
    let path = CStr::from_bytes_with_nul(&buffer[start..]).map_err(|_| Errno::INVAL)?;
    let info = openat(
        descriptors,
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

const FDINFO: &[u8] = b"../fdinfo/";

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
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const ALL: u64 = u64::MAX;

    fn on(ino: u64) -> impl Fn(u64, OFlags) -> bool {
        move |found, _| found == ino
    }

    #[test]
    fn every_duplicate_is_found_and_a_closed_one_is_not() {
        let path = std::env::temp_dir().join(format!("commitfs-holds-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let ino = first.metadata().unwrap().ino();
        let own = std::process::id();
        assert_eq!(holds(own, ALL, &on(ino)), Holding::Yes);
        let second = first.try_clone().unwrap();
        drop(first);
        assert_eq!(holds(own, ALL, &on(ino)), Holding::Yes);
        drop(second);
        assert_eq!(holds(own, ALL, &on(ino)), Holding::No);
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
        assert_eq!(holds(child.id(), ALL, &on(1)), Holding::No);
        child.wait().unwrap();
        assert_eq!(holds(child.id(), ALL, &on(1)), Holding::Gone);
    }

    #[test]
    fn a_missing_process_is_gone() {
        assert_eq!(holds(0, ALL, &on(1)), Holding::Gone);
        assert_eq!(holds(u32::MAX, ALL, &on(1)), Holding::Gone);
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
        let appender = File::options().append(true).open(&path).unwrap();
        let ino = std::fs::metadata(&path).unwrap().ino();
        std::fs::remove_file(&path).unwrap();
        let appends = |found: u64, how: OFlags| found == ino && how.contains(OFlags::APPEND);
        let found = || holds(std::process::id(), ALL, &appends);
        assert_eq!(found(), Holding::Yes);
        drop(appender);
        assert_eq!(found(), Holding::No);
        assert_eq!(holds(std::process::id(), ALL, &on(ino)), Holding::Yes);
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
        drop(writer);
        assert_eq!(holds(std::process::id(), ALL, &on(ino)), Holding::Yes);
        drop(both);
        assert_eq!(holds(std::process::id(), ALL, &on(ino)), Holding::No);
    }

    /// Descriptors of `/dev/null`, as many as make so many.
    fn many(count: usize) -> Vec<File> {
        rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit {
                current: Some(count as u64 + 100),
                maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            },
        )
        .unwrap();
        let null = || File::options().write(true).open("/dev/null").unwrap();
        (0..count).map(|_| null()).collect()
    }

    #[test]
    fn of_very_many_descriptors_few_are_looked_at() {
        let others = many(2000);
        let looked = std::cell::Cell::new(0);
        let counting = |_: u64, _: OFlags| {
            looked.set(looked.get() + 1);
            false
        };
        let own = std::process::id();
        assert_eq!(holds(own, 32, &counting), Holding::Unlikely);
        assert!(looked.get() <= FIRST + LAST as u32, "{}", looked.get());
        assert_eq!(holds(own, ALL, &counting), Holding::No);
        assert!(looked.get() > others.len() as u32);
    }

    #[test]
    fn a_duplicate_among_very_many_is_found_where_it_comes_to_lie_and_by_looking_at_all() {
        let others = many(2000);
        let path = std::env::temp_dir().join(format!("commitfs-holds-many-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let ino = file.metadata().unwrap().ino();
        std::fs::remove_file(&path).unwrap();
        let copy = file.try_clone().unwrap();
        let own = std::process::id();
        drop(file);
        assert_eq!(holds(own, 32, &on(ino)), Holding::Yes);
        // SAFETY: the number is that of a descriptor which is open and is given up with this.
        let hidden = unsafe { libc::dup2(copy.as_raw_fd(), others[700].as_raw_fd()) };
        drop(copy);
        assert_eq!(holds(own, 32, &on(ino)), Holding::Unlikely);
        assert_eq!(holds(own, ALL, &on(ino)), Holding::Yes);
        assert_eq!(hidden, others[700].as_raw_fd());
    }
}
