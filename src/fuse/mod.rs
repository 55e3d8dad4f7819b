//! The adapter between the kernel's FUSE client and the engine: translates, decides nothing.
//!
//! One dispatcher thread takes the requests in order; no callback here waits. Answers are given
//! from wherever the engine has them.

mod capabilities;
mod convert;
mod creation;
mod dropping;
mod notify;
mod passing;
mod replies;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;

use crate::engine::{
    CreateRequest, Engine, LockRequest, OpenRequest, SetAttr, WriteRequest, is_virtual, release,
    unlink,
};
use crate::locks::{LockKind, Mode};
use crate::sys::failpoint;
use capabilities::CAPABILITIES;
use convert::{caller, errno, feature, handle_id, kind, lock_request, node_id, set_time};
use creation::{CreateReply, Creations};
pub use dropping::NameDropper;
pub use notify::KernelNotify;
use passing::{Passing, answer_create, answer_open};
use replies::{attributes, empty, entry, xattr};

/// The file system as fuser wants it: the engine, and who drops names that the kernel keeps.
#[derive(Debug)]
pub struct Adapter {
    engine: Arc<Engine>,
    passing: Arc<Passing>,
    creations: Arc<Creations>,
    names: Arc<NameDropper>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // RELEASE is a background request: held back above the limit, an OPEN would overtake it.
        config.set_max_background(u16::MAX).ok();
        config.set_congestion_threshold(u16::MAX).ok();
        let mut features = vec![self.passing.offer(config), self.creations.feature()];
        for (name, flag, needed_for) in CAPABILITIES {
            let off = failpoint::feature_off(name);
            let on = !off && config.add_capabilities(flag).is_ok();
            let why = match (on, off) {
                (true, _) => String::new(),
                (false, true) => "switched off".to_owned(),
                (false, false) => format!("not offered by this kernel ({needed_for})"),
            };
            features.push(feature(name, on, why));
        }
        // Without it a rewrite begins as an edit in place does, and nothing of C1 to C9 would hold.
        if features.iter().any(|f| f.name == "atomic_o_trunc" && !f.on) {
            return Err(std::io::Error::other(
                "this kernel doesn't tell which opens empty a file; commitfs needs Linux 5.15 or later",
            ));
        }
        let uncached = features
            .iter()
            .any(|f| f.name == "direct_io_allow_mmap" && f.on);
        // What a lock moves to another version is read uncached, or else from pages that the kernel
        // drops when it hears of another time of modification.
        if !uncached {
            config
                .add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA)
                .ok();
        }
        self.engine.kernel.set_uncached(uncached);
        self.engine.kernel.set_features(features);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.names.is_looked_up(req.pid(), node_id(parent), name) {
            return reply.error(Errno::ENOENT);
        }
        self.engine
            .lookup(caller(req), node_id(parent), name, move |r| entry(reply, r));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.engine.forget(node_id(ino), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        if self
            .names
            .is_asked_for(&self.engine, req.pid(), node_id(ino))
        {
            return reply.error(Errno::ESTALE);
        }
        attributes(
            reply,
            self.engine
                .getattr(caller(req), node_id(ino), fh.map(handle_id)),
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let (engine, dropper, node) = (self.engine.clone(), self.names.clone(), node_id(ino));
        self.engine
            .setattr(caller(req), node, fh.map(handle_id), change, move |r| {
                dropper.then_of(&engine, node, move || attributes(reply, r));
            });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.engine.readlink(node_id(ino)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        entry(
            reply,
            self.engine
                .mknod(caller(req), node_id(parent), name, mode, umask, rdev),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        entry(
            reply,
            self.engine
                .mkdir(caller(req), node_id(parent), name, mode, umask),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = move |r| empty(reply, r);
        unlink(&self.engine, caller(req), node_id(parent), name, done);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.engine
            .rmdir(node_id(parent), name, move |r| empty(reply, r));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        entry(
            reply,
            self.engine
                .symlink(caller(req), node_id(parent), name, target),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        self.engine.rename(
            caller(req),
            node_id(parent),
            name,
            node_id(newparent),
            newname,
            flags,
            move |r| {
                empty(reply, r);
            },
        );
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.engine.link(
            caller(req),
            node_id(ino),
            node_id(newparent),
            newname,
            move |r| entry(reply, r),
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let request = OpenRequest {
            flags: OFlags::from_bits_retain(flags.0 as u32),
        };
        let (engine, passing, node) = (self.engine.clone(), self.passing.clone(), node_id(ino));
        let dropper = self.names.clone();
        self.engine
            .open(caller(req), node, request, move |r| match r {
                Ok(opened) => {
                    dropper.then(move || answer_open(reply, &engine, &passing, node, &opened));
                }
                Err(e) => reply.error(errno(e)),
            });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let request = CreateRequest {
            dir: node_id(parent),
            name: name.to_owned(),
            mode,
            umask,
            flags: OFlags::from_bits_retain(flags as u32),
        };
        let (engine, passing) = (self.engine.clone(), self.passing.clone());
        let reply = CreateReply::of(&self.creations, req, reply);
        self.engine.create(caller(req), request, move |r| match r {
            Ok(created) => answer_create(reply, &engine, &passing, &created),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(owner) = lock_owner {
            self.engine.learn_owner(owner.0);
        }
        self.engine
            .read(handle_id(fh), offset, size, move |r| match r {
                Ok(data) => reply.data(&data),
                Err(e) => reply.error(errno(e)),
            });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let request = WriteRequest {
            offset,
            appends: flags.0 & libc::O_APPEND != 0,
            kill: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            writeback: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        let mut who = caller(req);
        if request.writeback {
            who.tid = 0;
        }
        self.engine
            .write(who, handle_id(fh), request, data, move |r| match r {
                Ok(written) => reply.written(written),
                Err(e) => reply.error(errno(e)),
            });
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.engine.flush(
            caller(req),
            node_id(ino),
            handle_id(fh),
            owner.0,
            move |r| empty(reply, r),
        );
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if !is_virtual(node_id(ino)) {
            failpoint::delay("COMMITFS_RELEASE_DELAY_MS");
        }
        let (node, handle) = (node_id(ino), handle_id(fh));
        self.passing.leave(node, handle);
        release(&self.engine, node, handle, lock_owner.map(|o| o.0));
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.engine.fsync(handle_id(fh), move |r| empty(reply, r));
    }

    /// The kernel takes all files for ready from then on, as it does on the plain directory, and asks no more.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.engine.opendir(node_id(ino)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.engine
            .readdir(caller(req), handle_id(fh), offset, move |r| match r {
                Ok(entries) => {
                    let from = usize::try_from(offset)
                        .unwrap_or(usize::MAX)
                        .min(entries.len());
                    for (at, e) in entries.iter().enumerate().skip(from) {
                        if reply.add(INodeNo(e.ino.0), at as u64 + 1, kind(e.kind), &e.name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(e) => reply.error(errno(e)),
            });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.engine.releasedir(handle_id(fh));
        reply.ok();
    }

    fn getlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let request = LockRequest {
            kind: LockKind::Fcntl,
            ..lock_request(ino, fh, lock_owner, (start, end), typ, pid, false)
        };
        match self.engine.getlk(&request) {
            Some(lock) => {
                let typ = if lock.mode == Mode::Shared {
                    libc::F_RDLCK
                } else {
                    libc::F_WRLCK
                };
                reply.locked(lock.start, lock.end, typ, lock.pid);
            }
            None => reply.locked(start, end, libc::F_UNLCK, 0),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let request = lock_request(ino, fh, lock_owner, (start, end), typ, pid, sleep);
        self.engine
            .setlk(caller(req), request, move |r| empty(reply, r));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.engine.fsyncdir(node_id(ino), move |r| empty(reply, r));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.engine.statfs() {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (engine, dropper, node) = (self.engine.clone(), self.names.clone(), node_id(ino));
        self.engine
            .setxattr(caller(req), node, name, value, flags, move |result| {
                dropper.then_of(&engine, node, move || empty(reply, result));
            });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let caller = caller(req);
        self.engine
            .getxattr(caller, node_id(ino), name, move |result| {
                xattr(reply, size, result)
            });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.engine.listxattr(node_id(ino)));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.engine
            .removexattr(caller(req), node_id(ino), name, move |result| {
                empty(reply, result);
            });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask whether a file is a terminal.
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.engine
            .fallocate(caller(req), handle_id(fh), mode, offset, length, move |r| {
                empty(reply, r)
            });
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = whence == libc::SEEK_HOLE;
        match u64::try_from(offset) {
            Ok(offset) => self
                .engine
                .seek(handle_id(fh), offset, hole, move |r| match r {
                    Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                    Err(e) => reply.error(errno(e)),
                }),
            Err(_) => reply.error(Errno::ENXIO),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.engine.copy_range(
            caller(req),
            handle_id(fh_in),
            offset_in,
            handle_id(fh_out),
            offset_out,
            len,
            move |r| match r {
                Ok(copied) => reply.written(copied),
                Err(e) => reply.error(errno(e)),
            },
        );
    }
}
