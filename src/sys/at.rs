//! Calls on the backing directory: always relative to a descriptor, never through a path.
//!
//! The mount usually lies over the backing directory; a path would lead back into the mount and
//! deadlock the daemon with itself.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::{failpoint, interrupt, spare};
use crate::types::seconds_of;

/// Opens `name` in `dir` as a location only (O_PATH), not following a symlink.
pub fn open_path(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens the directory `name` in `dir` for *at calls.
pub fn open_dir(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens a directory's contents; without a trace in its access time, where that is wanted and allowed.
pub fn open_listing(dir: impl AsFd, quietly: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat(&dir, ".", flags, Mode::empty());
    match quietly.then(|| open(flags | OFlags::NOATIME)) {
        Some(Ok(listing)) => Ok(listing),
        _ => open(flags),
    }
}

/// The path under which the kernel reaches an open descriptor again.
fn magic(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens the file behind an O_PATH descriptor for I/O.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<File, Errno> {
    let flags = (flags | OFlags::CLOEXEC | OFlags::NOCTTY)
        - OFlags::NOFOLLOW
        - OFlags::CREATE
        - OFlags::EXCL;
    let path = magic(fd);
    let opened = match rustix::fs::open(&path, flags, Mode::empty()) {
        // Only the owner's daemon, or root's, may leave access times alone.
        Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => {
            rustix::fs::open(&path, flags - OFlags::NOATIME, Mode::empty())
        }
        other => other,
    };
    opened.map(File::from)
}

/// Opens the file behind an O_PATH descriptor for the daemon's own reading: without a trace in the access time, where that is allowed.
pub fn reopen_quietly(fd: impl AsFd) -> Result<File, Errno> {
    reopen(fd, OFlags::RDONLY | OFlags::NOATIME)
}

/// fstat, which works on O_PATH descriptors too.
pub fn stat(fd: impl AsFd) -> Result<Stat, Errno> {
    rustix::fs::fstat(fd)
}

/// A file's inode number and when it was made, in nanoseconds since the epoch; 0 where the file
/// system doesn't know.
pub fn birth_time(fd: impl AsFd) -> Result<(u64, i64), Errno> {
    use rustix::fs::StatxFlags;
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let told = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?;
    let born = told.stx_btime.tv_sec * 1_000_000_000 + i64::from(told.stx_btime.tv_nsec);
    let is_known =
        told.stx_mask & StatxFlags::BTIME.bits() != 0 && !failpoint::feature_off("birth-times");
    Ok((told.stx_ino, if is_known { born } else { 0 }))
}

/// lstat of `name` in `dir`; `None` when there is no such name.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether there is a file that isn't empty at a path below `dir`. Symbolic links are not followed:
/// they could lead into our own mount.
pub fn is_filled_file_below(dir: impl AsFd, path: &Path) -> bool {
    let found = rustix::fs::openat2(
        dir,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    let is_filled = |s: Stat| FileType::from_raw_mode(s.st_mode).is_file() && s.st_size > 0;
    found.and_then(stat).is_ok_and(is_filled)
}

/// chmod through an O_PATH descriptor.
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(magic(fd), Mode::from_raw_mode(mode & 0o7777))
}

/// Brings the time of the last change up to date, changing nothing.
pub fn change(file: impl AsFd) -> Result<(), Errno> {
    let mode = stat(&file)?.st_mode & 0o7777;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
}

/// chown through an O_PATH descriptor (symlinks themselves included).
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    rustix::fs::chownat(
        fd,
        c"",
        uid.map(rustix::fs::Uid::from_raw),
        gid.map(rustix::fs::Gid::from_raw),
        AtFlags::EMPTY_PATH,
    )
}

/// utimensat through an O_PATH descriptor.
pub fn utimens(fd: impl AsFd, times: &rustix::fs::Timestamps) -> Result<(), Errno> {
    rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH)
}

/// Sets the modification time to now.
pub fn touch(fd: impl AsFd) -> Result<(), Errno> {
    let stamp = |nsec| Timespec {
        tv_sec: 0,
        tv_nsec: nsec as _,
    };
    utimens(
        fd,
        &Timestamps {
            last_access: stamp(UTIME_OMIT),
            last_modification: stamp(UTIME_NOW),
        },
    )
}

/// Sets the modification time, in nanoseconds since the epoch, and no other.
pub fn set_mtime(fd: impl AsFd, mtime_ns: i128) -> Result<(), Errno> {
    let (tv_sec, nsec) = seconds_of(mtime_ns);
    utimens(
        fd,
        &Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT as _,
            },
            last_modification: Timespec {
                tv_sec,
                tv_nsec: nsec as _,
            },
        },
    )
}

/// Value of an extended attribute; `None` when the file has none of that name or the backing file
/// system knows no attributes at all.
pub fn get_xattr(fd: impl AsFd, name: &OsStr) -> Result<Option<Vec<u8>>, Errno> {
    let path = magic(fd);
    let mut value = vec![0u8; 256];
    loop {
        match rustix::fs::getxattr(&path, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < 65536 => value.resize(65536, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Sets an extended attribute; `flags` are XATTR_CREATE and XATTR_REPLACE.
pub fn set_xattr(fd: impl AsFd, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Errno> {
    rustix::fs::setxattr(
        magic(fd),
        name,
        value,
        XattrFlags::from_bits_retain(flags as u32),
    )
}

/// Removes an extended attribute.
pub fn remove_xattr(fd: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::removexattr(magic(fd), name)
}

/// Names of all extended attributes.
pub fn list_xattrs(fd: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let path = magic(fd);
    let mut names = vec![0u8; 1024];
    loop {
        match rustix::fs::listxattr(&path, &mut names[..]) {
            Ok(len) => {
                return Ok(names[..len]
                    .split(|b| *b == 0)
                    .filter(|n| !n.is_empty())
                    .map(<[u8]>::to_vec)
                    .collect());
            }
            Err(Errno::RANGE) if names.len() < 65536 => names.resize(65536, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
}

/// Makes what the directory holds durable; works on O_PATH descriptors too.
pub fn sync_dir(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = spare::open(|| rustix::fs::openat(dir, c".", flags, Mode::empty()))?;
    spare::told_once(|| rustix::fs::fsync(&dir))
}

/// Copies are made in pieces of this size; between two it is asked whether anybody still waits.
const PIECE: u64 = 4 << 20;

/// Copies the first `len` bytes of `from`, which has as many at least, into the empty file `to`: by
/// reflink where the file system has it, otherwise by copy_file_range, otherwise by hand. Holes stay.
pub fn copy_contents(from: &File, to: &File, len: u64) -> io::Result<u64> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        if to.metadata()?.len() != len {
            to.set_len(len)?;
        }
        return Ok(len);
    }
    let end = copy_data(from, to, 0..len, |_| Ok(()))?;
    if to.metadata()?.len() < end {
        to.set_len(end)?;
    }
    Ok(end)
}

/// Copies these bytes of `from` to `to`, at the same offsets; where the one has a hole, so has the other
/// then. Gives where what there is of them ends.
pub fn copy_part(from: &File, to: &File, part: Range<u64>) -> io::Result<u64> {
    let end = copy_data(from, to, part, |hole| make_hole(to, hole))?;
    if to.metadata()?.len() < end {
        to.set_len(end)?;
    }
    Ok(end)
}

/// Copies what is data of a part, and tells of its holes.
fn copy_data(
    from: &File,
    to: &File,
    part: Range<u64>,
    mut on_hole: impl FnMut(Range<u64>) -> io::Result<()>,
) -> io::Result<u64> {
    let end = part.end.min(from.metadata()?.len()).max(part.start);
    let mut at = part.start;
    while at < end {
        let data = next_data(from, at..end);
        if at < data.start {
            on_hole(at..data.start)?;
        }
        if copy_bytes(from, to, data.clone())? < data.end {
            // It has been cut off meanwhile.
            return Ok(end);
        }
        at = data.end;
    }
    Ok(end)
}

/// The first data in a part of a file, empty at the part's end if there is none. All of it, where the
/// file system doesn't say.
fn next_data(file: &File, part: Range<u64>) -> Range<u64> {
    use rustix::fs::{SeekFrom, seek};
    if failpoint::mutant("C13-sparse") {
        return part;
    }
    match seek(file, SeekFrom::Data(part.start)) {
        Err(Errno::NXIO) => part.end..part.end,
        Ok(start) if start >= part.end => part.end..part.end,
        Ok(start) => match seek(file, SeekFrom::Hole(start)) {
            Ok(hole) if hole > start => start..hole.min(part.end),
            _ => start..part.end,
        },
        Err(_) => part,
    }
}

/// Whether a file has nothing but zeros in it. Of one that has anything else hardly more is read than what is
/// before that.
///
/// # Errors
/// Those of reading it.
pub fn is_all_zeros(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 64 << 10];
    let mut rest = 0..file.metadata()?.len();
    while !rest.is_empty() {
        let data = next_data(file, rest.clone());
        rest.start = data.end;
        let mut at = data.start;
        while at < data.end {
            let most = buffer.len().min((data.end - at) as usize);
            let read = file.read_at(&mut buffer[..most], at)?;
            if buffer[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            if read == 0 {
                break;
            }
            at += read as u64;
        }
    }
    Ok(true)
}

/// Makes zeros of a part of a file, without taking space for them if that can be.
fn make_hole(file: &File, part: Range<u64>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let part = part.start..part.end.min(file.metadata()?.len());
    if part.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, part.start, part.end - part.start) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        other => return Ok(other?),
    }
    let zeros = vec![0; PIECE as usize];
    let mut at = part.start;
    while at < part.end {
        interrupt::check()?;
        let size = PIECE.min(part.end - at);
        file.write_all_at(&zeros[..size as usize], at)?;
        at += size;
    }
    Ok(())
}

fn copy_bytes(from: &File, to: &File, part: Range<u64>) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut at = part.start;
    let mut by_hand = false;
    let mut buffer = Vec::new();
    while at < part.end {
        interrupt::check()?;
        failpoint::delay("COMMITFS_COPY_DELAY_MS");
        let want = (part.end - at).min(PIECE) as usize;
        let copied = if by_hand {
            buffer.resize(want.min(1 << 20), 0u8);
            let n = from.read_at(&mut buffer, at)?;
            to.write_all_at(&buffer[..n], at)?;
            n
        } else {
            let (mut a, mut b) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut a), to, Some(&mut b), want) {
                Ok(n) => n,
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    by_hand = true;
                    continue;
                }
                Err(e) => return Err(e.into()),
            }
        };
        if copied == 0 {
            break;
        }
        at += copied as u64;
    }
    Ok(at)
}

/// Gives the file behind an O_PATH descriptor another name.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::linkat(
        rustix::fs::CWD,
        magic(fd),
        dir,
        name,
        AtFlags::SYMLINK_FOLLOW,
    )
}

/// Closes a descriptor and says what close(2) said, which dropping it doesn't.
pub fn close(fd: OwnedFd) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned and has been given up just now, so nobody else closes it.
    let result = unsafe { libc::close(fd.into_raw_fd()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// fdatasync of many files, several at a time: the file system makes one journal commit of them.
///
/// Not syncfs, which would wait for everything anybody has written to the disk.
pub fn sync_files(files: &[&File]) -> Result<(), Errno> {
    const THREADS: usize = 8;
    // All of them, whatever one says: an error is told once.
    let sync = |part: &[&File]| {
        part.iter()
            .map(|file| spare::told_once(|| rustix::fs::fdatasync(file)))
            .fold(Ok(()), spare::graver)
    };
    if files.len() <= 2 {
        return sync(files);
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> = files
            .chunks(files.len().div_ceil(THREADS))
            .map(|part| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || sync(part));
                // Short of memory or threads: one after the other, then.
                thread.map_err(|_| sync(part))
            })
            .collect();
        parts
            .into_iter()
            .map(|part| match part {
                Ok(thread) => thread.join().unwrap_or(Err(Errno::IO)),
                Err(done) => done,
            })
            .fold(Ok(()), spare::graver)
    })
}

/// Reads what is in the page cache; `None` when the disk would have to be waited for.
pub fn read_cached(file: &File, offset: u64, size: usize) -> Option<Vec<u8>> {
    let mut data = vec![0u8; size];
    let read = {
        let mut slices = [rustix::io::IoSliceMut::new(&mut data)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(file, &mut slices, offset, flags).ok()?
    };
    // Short may mean the end, or the end of what is cached.
    if read < size && offset + (read as u64) < file.metadata().ok()?.len() {
        return None;
    }
    data.truncate(read);
    Some(data)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_part_is_copied_with_its_holes_over_what_was_there() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(b"end", 9 << 20).unwrap();
        from.set_len(20 << 20).unwrap();
        to.write_all_at(&vec![b'x'; 12 << 20], 0).unwrap();
        let part = 2..(15 << 20);
        assert_eq!(copy_part(&from, &to, part).unwrap(), 15 << 20);
        let mut expected = vec![0; 15 << 20];
        expected[..5].copy_from_slice(b"xxgin");
        expected[9 << 20..(9 << 20) + 3].copy_from_slice(b"end");
        let mut found = vec![1; 15 << 20];
        to.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert_eq!(to.metadata().unwrap().len(), 15 << 20);
    }

    #[test]
    fn a_copy_takes_no_space_for_holes_and_ends_where_it_should() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(b"x", 1 << 30).unwrap();
        from.set_len(3 << 30).unwrap();
        assert_eq!(copy_contents(&from, &to, 2 << 30).unwrap(), 2 << 30);
        let copy = to.metadata().unwrap();
        assert_eq!(copy.len(), 2 << 30);
        assert!(copy.blocks() * 512 < 1 << 20, "{}", copy.blocks());
        let mut byte = [0];
        to.read_exact_at(&mut byte, 1 << 30).unwrap();
        assert_eq!(&byte, b"x");
    }
}
