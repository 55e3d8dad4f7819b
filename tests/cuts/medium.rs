//! A disk with a write cache that can lose: one file, `disk`, on a FUSE file system of its own. A loop
//! device over it turns the file system's FLUSH into an fsync here. What was written since the last one
//! is in the cache: at a cut any part of it may have arrived, in any order, and single writes in part. What arrives whole or
//! not at all is a sector, of as many bytes as the file system that is tried may take for granted.
//!
//! A process of its own, so that whoever waits for this disk can be killed. It ends with its parent,
//! whereupon everything on the disk is an I/O error and nothing hangs.

use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::random::Random;

const BLOCK: usize = 4096;
const DISK: INodeNo = INodeNo(2);
const ZEROS: [u8; BLOCK] = [0; BLOCK];

type Block = Option<Arc<[u8; BLOCK]>>;

/// What a disk holds; a copy costs no more than the references.
#[derive(Clone)]
struct Blocks(Vec<Block>);

impl Blocks {
    fn read(&self, offset: usize, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            let (block, within) = ((offset + done) / BLOCK, (offset + done) % BLOCK);
            let len = (BLOCK - within).min(out.len() - done);
            let from = self.0[block].as_deref().unwrap_or(&ZEROS);
            out[done..done + len].copy_from_slice(&from[within..within + len]);
            done += len;
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (block, within) = ((offset + done) / BLOCK, (offset + done) % BLOCK);
            let len = (BLOCK - within).min(data.len() - done);
            let to = self.0[block].get_or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(to)[within..within + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
    }
}

/// A write that no flush has followed yet.
#[derive(Clone)]
struct Cached {
    offset: usize,
    data: Arc<[u8]>,
}

struct Medium {
    /// As programs see the disk.
    now: Blocks,
    /// As of the last flush.
    flushed: Blocks,
    cached: Vec<Cached>,
}

/// The medium at one instant; what the cache loses is decided when it is written out.
struct Snapshot {
    flushed: Blocks,
    cached: Vec<Cached>,
}

impl Medium {
    fn new(len: usize) -> Medium {
        let empty = Blocks(vec![None; len.div_ceil(BLOCK)]);
        Medium {
            now: empty.clone(),
            flushed: empty,
            cached: Vec::new(),
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        self.now.write(offset, data);
        let data = data.into();
        self.cached.push(Cached { offset, data });
    }

    fn flush(&mut self) {
        for write in self.cached.drain(..) {
            let last = (write.offset + write.data.len().max(1) - 1) / BLOCK;
            for block in write.offset / BLOCK..=last {
                self.flushed.0[block].clone_from(&self.now.0[block]);
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            flushed: self.flushed.clone(),
            cached: self.cached.clone(),
        }
    }
}

/// The pieces of a write, cut where the disk's sectors end.
fn sectors(write: &Cached, sector: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let (offset, left) = (write.offset + done, &write.data[done..]);
        let piece = &left[..left.len().min(sector - offset % sector)];
        done += piece.len();
        (!piece.is_empty()).then_some((offset, piece))
    })
}

/// How much of the cache arrives at a cut.
fn arrive(snapshot: &Snapshot, loss: &str, seed: u64, sector: usize) -> Blocks {
    let mut blocks = snapshot.flushed.clone();
    let mut random = Random::from(seed);
    // Of one cache nearly all is lost, of another nearly nothing.
    let percent = match loss {
        "nothing" => 100,
        "everything" => 0,
        _ => [3, 25, 50, 75, 97][random.below(5) as usize],
    };
    for write in &snapshot.cached {
        let torn = percent != 0 && percent != 100 && random.below(4) == 0;
        if !torn && random.below(100) < percent {
            blocks.write(write.offset, &write.data);
        }
        for (offset, piece) in sectors(write, sector).filter(|_| torn) {
            if random.below(100) < percent {
                blocks.write(offset, piece);
            }
        }
    }
    blocks
}

fn write_out(blocks: &Blocks, path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    file.set_len((blocks.0.len() * BLOCK) as u64)?;
    for (n, block) in blocks.0.iter().enumerate() {
        if let Some(block) = block {
            file.write_all_at(&block[..], (n * BLOCK) as u64)?;
        }
    }
    Ok(())
}

fn read_in(medium: &mut Medium, path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::open(path)?;
    let mut block = [0; BLOCK];
    for n in 0..file.metadata()?.len() as usize / BLOCK {
        file.read_exact_at(&mut block, (n * BLOCK) as u64)?;
        if block != ZEROS {
            medium.now.write(n * BLOCK, &block);
        }
    }
    medium.flushed = medium.now.clone();
    Ok(())
}

struct Server(Arc<Mutex<Medium>>);

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let disk = ino == DISK;
        let blocks = self.0.lock().expect("not poisoned").now.0.len();
        FileAttr {
            ino,
            size: if disk { (blocks * BLOCK) as u64 } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if disk {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

const LONG: Duration = Duration::from_secs(86_400);

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&LONG, &self.attr(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.attr(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&LONG, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let medium = self.0.lock().expect("not poisoned");
        let offset = (offset as usize).min(medium.now.0.len() * BLOCK);
        let mut data = vec![0; (size as usize).min(medium.now.0.len() * BLOCK - offset)];
        medium.now.read(offset, &mut data);
        drop(medium);
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut medium = self.0.lock().expect("not poisoned");
        if offset as usize + data.len() > medium.now.0.len() * BLOCK {
            return reply.error(Errno::ENOSPC);
        }
        medium.write(offset as usize, data);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.lock().expect("not poisoned").flush();
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        // Neither discarding nor zeroing in one go; whoever asks writes the zeros.
        reply.error(Errno::EOPNOTSUPP);
    }
}

/// `disk DIRECTORY BYTES SECTOR [IMAGE]`, then on stdin: `snap` takes a snapshot, `dump NUMBER PATH LOSS SEED`
/// writes it out as the cut leaves it, `drop NUMBER` forgets it. Answers each with a line.
pub fn serve(args: &[String]) {
    let directory = &args[0];
    let mut medium = Medium::new(args[1].parse().expect("a size in bytes"));
    let sector: usize = args[2].parse().expect("a size in bytes");
    if let Some(image) = args.get(3) {
        read_in(&mut medium, Path::new(image)).expect("an image");
    }
    let medium = Arc::new(Mutex::new(medium));
    let mut config = fuser::Config::default();
    config.mount_options = vec![fuser::MountOption::FSName("commitfs-test-disk".into())];
    let session = fuser::spawn_mount(Server(medium.clone()), directory, &config);
    let session = session.expect("a mount");
    let mut snapshots: Vec<Option<Snapshot>> = Vec::new();
    let say = |line: &str| {
        println!("{line}");
        std::io::stdout().flush().expect("the test listens");
    };
    say("ready");
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["snap"] => {
                let taken = medium.lock().expect("not poisoned").snapshot();
                let cached = taken.cached.len();
                snapshots.push(Some(taken));
                say(&format!("{} {cached}", snapshots.len() - 1));
            }
            ["dump", number, path, loss, seed] => {
                let number: usize = number.parse().expect("a number");
                let snapshot = snapshots[number].as_ref().expect("not dropped");
                let blocks = arrive(snapshot, loss, seed.parse().expect("a seed"), sector);
                write_out(&blocks, Path::new(path)).expect("an image");
                say("ok");
            }
            ["drop", number] => {
                snapshots[number.parse::<usize>().expect("a number")] = None;
                say("ok");
            }
            _ => panic!("no such order: {line}"),
        }
    }
    drop(session);
}
