//! A file system in memory that writes down what is asked of it, in order: the disk of tests/recoveries.rs. What of it
//! reaches a medium that loses power is not decided here.
//!
//! A process of its own, as `medium.rs` is, and for the same reason.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use crate::tree::{Done, Ino, Kind, Operation, TOP, Tree, from_bytes, to_bytes};
use crate::worker::now;

/// Nobody but the kernel changes anything.
const LONG: Duration = Duration::from_secs(86_400);
const BLOCK: u64 = 4096;
/// Blocks of the disk, as statfs says.
const BLOCKS: u64 = 1 << 22;

struct Disk {
    tree: Tree,
    done: Vec<Done>,
    last: Ino,
    handles: HashMap<u64, Listing>,
}

/// A directory as it was when it was opened.
type Listing = Vec<(Ino, FileType, Vec<u8>)>;

#[derive(Clone)]
struct Server(Arc<Mutex<Disk>>);

fn wall_clock() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_nanos() as u64)
}

fn type_of(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

impl Disk {
    fn act(&mut self, operation: Operation) {
        let wall = wall_clock();
        self.tree.apply(&operation);
        let modified = matches!(
            operation,
            Operation::Write { .. } | Operation::Zero { .. } | Operation::Resize { .. }
        );
        match &operation {
            Operation::Write { ino, .. }
            | Operation::Zero { ino, .. }
            | Operation::Resize { ino, .. }
            | Operation::Mode { ino, .. }
            | Operation::Owner { ino, .. }
            | Operation::Modified { ino, .. }
            | Operation::Attribute { ino, .. } => self.tree.touch(*ino, wall, modified),
            Operation::Make { ino, .. } => self.tree.touch(*ino, wall, true),
            Operation::Enter { dir, ino, .. } => {
                self.tree.touch(*dir, wall, true);
                self.tree.touch(*ino, wall, false);
            }
            Operation::Leave { dir, .. } => self.tree.touch(*dir, wall, true),
            Operation::Move { from, to, .. } => {
                self.tree.touch(from.0, wall, true);
                self.tree.touch(to.0, wall, true);
                if let Some(moved) = self.tree.find(to.0, &to.1) {
                    self.tree.touch(moved, wall, false);
                }
            }
            Operation::SyncData { .. } | Operation::Sync { .. } | Operation::SyncAll => {}
        }
        let time = now();
        self.done.push(Done { time, operation });
    }

    fn attr(&self, ino: Ino) -> Option<FileAttr> {
        let inode = self.tree.get(ino)?;
        let time = |ns: u64| UNIX_EPOCH + Duration::from_nanos(ns);
        let size = inode.data.len() as u64;
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: time(inode.modified),
            mtime: time(inode.modified),
            ctime: time(inode.changed),
            crtime: UNIX_EPOCH,
            kind: type_of(inode.kind),
            perm: inode.mode as u16 & 0o7777,
            nlink: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        })
    }

    /// A new file under a name.
    fn add(&mut self, dir: Ino, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Errno> {
        if self.tree.find(dir, name.as_bytes()).is_some() {
            return Err(Errno::EEXIST);
        }
        self.last += 1;
        let (ino, name) = (self.last, name.as_bytes().to_vec());
        self.act(Operation::Make { ino, kind, mode });
        self.act(Operation::Enter { dir, name, ino });
        self.attr(ino).ok_or(Errno::EIO)
    }

    fn remove(&mut self, dir: Ino, name: &OsStr, kind: Kind) -> Result<(), Errno> {
        let name = name.as_bytes().to_vec();
        let ino = self.tree.find(dir, &name).ok_or(Errno::ENOENT)?;
        self.may_go(ino, kind == Kind::Directory)?;
        self.act(Operation::Leave { dir, name });
        Ok(())
    }

    fn may_go(&self, ino: Ino, as_directory: bool) -> Result<(), Errno> {
        let inode = self.tree.get(ino).ok_or(Errno::ENOENT)?;
        match (inode.kind == Kind::Directory, as_directory) {
            (true, false) => Err(Errno::EISDIR),
            (false, true) => Err(Errno::ENOTDIR),
            _ if !inode.entries.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let owned = |(dir, name): (Ino, &OsStr)| (dir, name.as_bytes().to_vec());
        let (from, to) = (owned(from), owned(to));
        let moved = self.tree.find(from.0, &from.1).ok_or(Errno::ENOENT)?;
        let replaced = self.tree.find(to.0, &to.1);
        let exchange = flags.contains(RenameFlags::RENAME_EXCHANGE);
        match replaced {
            None if exchange => return Err(Errno::ENOENT),
            Some(_) if flags.contains(RenameFlags::RENAME_NOREPLACE) => return Err(Errno::EEXIST),
            // Two names of one file: nothing happens.
            Some(replaced) if replaced == moved => return Ok(()),
            Some(replaced) if !exchange => self.may_go(replaced, self.tree.is_directory(moved))?,
            _ => {}
        }
        self.act(Operation::Move { from, to, exchange });
        Ok(())
    }
}

impl Server {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().expect("not poisoned")
    }
}

fn enter(reply: ReplyEntry, made: Result<FileAttr, Errno>) {
    match made {
        Ok(attr) => reply.entry(&LONG, &attr, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn end(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// What an attribute's size or value is answered with.
fn give(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room < value.len() => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        let found = disk.tree.find(dir.0, name.as_bytes());
        enter(
            reply,
            found.and_then(|ino| disk.attr(ino)).ok_or(Errno::ENOENT),
        );
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.disk().attr(ino.0) {
            Some(attr) => reply.attr(&LONG, &attr),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (mut disk, ino) = (self.disk(), ino.0);
        let Some(inode) = disk.tree.get(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let (old_uid, old_gid) = (inode.uid, inode.gid);
        if let Some(len) = size.filter(|len| *len != inode.data.len() as u64) {
            disk.act(Operation::Resize { ino, len });
        }
        if let Some(mode) = mode {
            disk.act(Operation::Mode {
                ino,
                mode: mode & 0o7777,
            });
        }
        if uid.is_some() || gid.is_some() {
            let (uid, gid) = (uid.unwrap_or(old_uid), gid.unwrap_or(old_gid));
            disk.act(Operation::Owner { ino, uid, gid });
        }
        if let Some(modified) = modified {
            let ns = match modified {
                TimeOrNow::Now => wall_clock(),
                TimeOrNow::SpecificTime(time) => time
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |time| time.as_nanos() as u64),
            };
            disk.act(Operation::Modified { ino, ns });
        }
        reply.attr(&LONG, &disk.attr(ino).expect("it is there"));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.disk().tree.get(ino.0) {
            Some(inode) => reply.data(&inode.data),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        enter(
            reply,
            self.disk()
                .add(dir.0, name, Kind::File, mode & 0o7777 & !umask),
        );
    }

    fn mkdir(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        enter(
            reply,
            self.disk()
                .add(dir.0, name, Kind::Directory, mode & 0o7777 & !umask),
        );
    }

    fn unlink(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        end(reply, self.disk().remove(dir.0, name, Kind::File));
    }

    fn rmdir(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        end(reply, self.disk().remove(dir.0, name, Kind::Directory));
    }

    fn symlink(&self, _: &Request, dir: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let mut disk = self.disk();
        let made = disk.add(dir.0, name, Kind::Symlink, 0o777);
        let made = made.and_then(|attr| {
            let (ino, data) = (attr.ino.0, target.as_os_str().as_bytes().to_vec());
            disk.act(Operation::Write {
                ino,
                offset: 0,
                data,
            });
            disk.attr(ino).ok_or(Errno::EIO)
        });
        enter(reply, made);
    }

    fn rename(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        new_dir: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((dir.0, name), (new_dir.0, new_name));
        end(reply, self.disk().rename(from, to, flags));
    }

    fn link(&self, _: &Request, ino: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut disk = self.disk();
        let (dir, name, ino) = (dir.0, name.as_bytes().to_vec(), ino.0);
        if disk.tree.find(dir, &name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        disk.act(Operation::Enter { dir, name, ino });
        enter(reply, disk.attr(ino).ok_or(Errno::ESTALE));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self
            .disk()
            .add(dir.0, name, Kind::File, mode & 0o7777 & !umask)
        {
            Ok(attr) => {
                let keep = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&LONG, &attr, Generation(0), FileHandle(0), keep);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.disk();
        let Some(inode) = disk.tree.get(ino.0) else {
            return reply.error(Errno::ESTALE);
        };
        let begin = (offset as usize).min(inode.data.len());
        let end = (begin + size as usize).min(inode.data.len());
        reply.data(&inode.data[begin..end]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ino = ino.0;
        self.disk().act(match data.iter().any(|byte| *byte != 0) {
            true => Operation::Write {
                ino,
                offset,
                data: data.to_vec(),
            },
            false => Operation::Zero {
                ino,
                offset,
                len: data.len() as u64,
            },
        });
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data: bool, reply: ReplyEmpty) {
        let ino = ino.0;
        self.disk().act(match data {
            true => Operation::SyncData { ino },
            false => Operation::Sync { ino },
        });
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut disk = self.disk();
        let Some(inode) = disk.tree.get(ino.0) else {
            return reply.error(Errno::ESTALE);
        };
        let entry = |(name, ino): (&Vec<u8>, &Ino)| {
            let kind = disk.tree.get(*ino).map_or(Kind::File, |inode| inode.kind);
            (*ino, type_of(kind), name.clone())
        };
        let listing: Listing = inode.entries.iter().map(entry).collect();
        disk.last += 1;
        let handle = disk.last;
        disk.handles.insert(handle, listing);
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let disk = self.disk();
        let own = [".", ".."].map(|name| (ino.0, FileType::Directory, name.as_bytes().to_vec()));
        let rest = disk.handles.get(&handle.0).into_iter().flatten().cloned();
        let all = own.into_iter().chain(rest).enumerate();
        for (n, (ino, kind, name)) in all.skip(offset as usize) {
            if reply.add(INodeNo(ino), n as u64 + 1, kind, OsStr::from_bytes(&name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.disk().handles.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.disk().act(Operation::Sync { ino: ino.0 });
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            BLOCKS,
            BLOCKS,
            BLOCKS,
            1 << 20,
            1 << 20,
            BLOCK as u32,
            255,
            BLOCK as u32,
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        if !name.as_bytes().starts_with(b"user.") {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (ino, name, value) = (ino.0, name.as_bytes().to_vec(), Some(value.to_vec()));
        self.disk().act(Operation::Attribute { ino, name, value });
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let disk = self.disk();
        let inode = disk.tree.get(ino.0);
        match inode.and_then(|inode| inode.attributes.get(name.as_bytes())) {
            Some(value) => give(reply, size, value),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let disk = self.disk();
        let names = disk
            .tree
            .get(ino.0)
            .into_iter()
            .flat_map(|inode| inode.attributes.keys());
        let all: Vec<u8> = names.flat_map(|name| [name, &b"\0"[..]].concat()).collect();
        give(reply, size, &all);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (mut disk, ino, name) = (self.disk(), ino.0, name.as_bytes().to_vec());
        let inode = disk.tree.get(ino);
        if !inode.is_some_and(|inode| inode.attributes.contains_key(&name)) {
            return reply.error(Errno::ENODATA);
        }
        disk.act(Operation::Attribute {
            ino,
            name,
            value: None,
        });
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (mut disk, ino) = (self.disk(), ino.0);
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let now = disk.tree.len(ino);
        match mode {
            0 if now < offset + len => disk.act(Operation::Resize {
                ino,
                len: offset + len,
            }),
            0 | libc::FALLOC_FL_KEEP_SIZE => {}
            _ if mode == hole && offset < now => {
                let len = len.min(now - offset);
                disk.act(Operation::Zero { ino, offset, len });
            }
            _ if mode == hole => {}
            _ => return reply.error(Errno::EOPNOTSUPP),
        }
        reply.ok();
    }
}

/// `tree DIRECTORY`, then on stdin: `load PATH` does what is written down there, `settle` says that all is on the medium, `dump PATH` writes
/// down all that was done. Answers each with a line.
pub fn serve(args: &[String]) {
    let disk = Arc::new(Mutex::new(Disk {
        tree: Tree::new(),
        done: Vec::new(),
        last: TOP,
        handles: HashMap::new(),
    }));
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("commitfs-test-tree".into())];
    let session = fuser::spawn_mount(Server(disk.clone()), &args[0], &config);
    let session = session.expect("a mount");
    let say = |line: &str| {
        println!("{line}");
        std::io::stdout().flush().expect("the test listens");
    };
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let mut disk = disk.lock().expect("not poisoned");
        match line.split_once(' ') {
            None if line == "settle" => disk.act(Operation::SyncAll),
            Some(("load", path)) => {
                let all = from_bytes(&std::fs::read(path).expect("a file"));
                for done in all {
                    if let Operation::Make { ino, .. } = done.operation {
                        disk.last = disk.last.max(ino);
                    }
                    disk.act(done.operation);
                }
            }
            Some(("dump", path)) => std::fs::write(path, to_bytes(&disk.done)).expect("a file"),
            _ => panic!("no such order: {line}"),
        }
        say("ok");
    }
    drop(session);
}
