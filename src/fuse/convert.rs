//! Types of the engine to types of fuser and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, INodeNo, LockOwner, Request, TimeOrNow};

use crate::engine::{Feature, LockRequest, SetTime};
use crate::locks::{LockKind, Mode};
use crate::types::{Attr, Caller, HandleId, NodeId};

pub(super) fn caller(req: &Request) -> Caller {
    Caller {
        tid: req.pid(),
        uid: req.uid(),
        gid: req.gid(),
    }
}

pub(super) fn errno(e: rustix::io::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw_os_error())
}

pub(super) fn feature(name: &'static str, on: bool, why: String) -> Feature {
    Feature { name, on, why }
}

pub(super) fn kind(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as T;
    match kind {
        T::Directory => FileType::Directory,
        T::Symlink => FileType::Symlink,
        T::Fifo => FileType::NamedPipe,
        T::Socket => FileType::Socket,
        T::CharacterDevice => FileType::CharDevice,
        T::BlockDevice => FileType::BlockDevice,
        T::RegularFile | T::Unknown => FileType::RegularFile,
    }
}

fn time(sec: i64, nsec: u64) -> SystemTime {
    let nsec = Duration::from_nanos(nsec);
    match u64::try_from(sec) {
        Ok(sec) => UNIX_EPOCH + Duration::from_secs(sec) + nsec,
        Err(_) => UNIX_EPOCH - Duration::from_secs(sec.unsigned_abs()) + nsec,
    }
}

/// A time the caller wants set. Before 1970 fuser subtracts the nanoseconds where the kernel had
/// meant them added; undone here.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => match t.duration_since(UNIX_EPOCH) {
            Ok(d) => SetTime::At(
                i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
                d.subsec_nanos(),
            ),
            Err(before) => {
                let d = before.duration();
                SetTime::At(
                    -i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
                    d.subsec_nanos(),
                )
            }
        },
    }
}

pub(super) fn attr_of(attr: &Attr) -> FileAttr {
    let s = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: u64::try_from(s.st_size).unwrap_or(0),
        blocks: u64::try_from(s.st_blocks).unwrap_or(0),
        atime: time(s.st_atime, s.st_atime_nsec),
        mtime: time(s.st_mtime, s.st_mtime_nsec),
        ctime: time(s.st_ctime, s.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(s.st_mode)),
        perm: (s.st_mode & 0o7777) as u16,
        nlink: u32::try_from(s.st_nlink).unwrap_or(u32::MAX),
        uid: s.st_uid,
        gid: s.st_gid,
        rdev: s.st_rdev as u32,
        blksize: u32::try_from(s.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

/// The node that a request is about.
pub(super) fn node_id(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// The open description that a request is about.
pub(super) fn handle_id(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

pub(super) fn lock_request(
    ino: INodeNo,
    fh: FileHandle,
    owner: LockOwner,
    (start, end): (u64, u64),
    typ: i32,
    pid: u32,
    wait: bool,
) -> LockRequest {
    LockRequest {
        node: node_id(ino),
        handle: handle_id(fh),
        owner: owner.0,
        start,
        end,
        mode: match typ {
            libc::F_RDLCK => Some(Mode::Shared),
            libc::F_WRLCK => Some(Mode::Exclusive),
            _ => None,
        },
        kind: LockKind::Unknown,
        pid,
        wait,
    }
}
