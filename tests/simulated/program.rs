//! A program of the simulated kernel: does one system call at a time, as the words of `tests/helper` say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use commitfs::engine::{LockRequest, SetAttr};
use commitfs::locks::{END, LockKind, Mode};
use commitfs::sys::proc::Call;
use commitfs::types::{Caller, NodeId, OpResult};
use parking_lot::Mutex;
use rustix::fs::{OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::descriptors::{Descriptors, OpenFile};
use super::kernel::{Kernel, Walk, walk};
use super::processes::table;
use crate::common::{Answer, Failure, Remote};

/// A survey reads through a descriptor so far beyond the length that fstat tells.
const LOOK_BEYOND: usize = 64 << 10;
/// The longest READ that is sent.
const PIECE: usize = 1 << 20;

/// A thread of a simulated process.
#[derive(Clone)]
pub struct Task {
    kernel: Arc<Kernel>,
    /// What comes before the paths of the mount.
    mountpoint: &'static str,
    pid: u32,
    tid: u32,
    /// Of the process's fcntl locks.
    owner: u64,
    descriptors: Arc<Mutex<Descriptors>>,
}

type Words = Vec<Vec<u8>>;

/// What makes the kernel send a request at a place that two walks may lead to.
struct Places {
    from: (NodeId, String),
    to: (NodeId, String),
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

fn number<T: std::str::FromStr>(word: &[u8]) -> T {
    let number = text(word).parse().ok();
    number.unwrap_or_else(|| panic!("{} is no number", text(word)))
}

fn open_flags(words: &str) -> OFlags {
    let flags = words.split('|').map(|word| match word {
        "r" => OFlags::RDONLY,
        "w" => OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC,
        "w+" => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
        "a" => OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND,
        "a+" => OFlags::RDWR | OFlags::CREATE | OFlags::APPEND,
        "r+" => OFlags::RDWR,
        "rw-create" => OFlags::RDWR | OFlags::CREATE,
        "x" => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
        "nonblock" => OFlags::NONBLOCK,
        "cloexec" => OFlags::CLOEXEC,
        other => panic!("no flag {other}"),
    });
    flags.fold(OFlags::LARGEFILE, |all, one| all | one)
}

fn described(stat: &Stat, shown: u64) -> Words {
    let mtime = stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec as i64;
    let ctime = stat.st_ctime * 1_000_000_000 + stat.st_ctime_nsec as i64;
    let numbers = [
        stat.st_size,
        shown as i64,
        mtime,
        stat.st_mode.into(),
        stat.st_nlink as i64,
        stat.st_uid.into(),
        stat.st_gid.into(),
        ctime,
        stat.st_blocks,
    ];
    numbers.map(|n| n.to_string().into_bytes()).to_vec()
}

impl Task {
    /// A program that the test starts.
    pub fn spawn(kernel: &Arc<Kernel>, mountpoint: &'static str) -> Task {
        let descriptors = Arc::default();
        let pid = table().spawn(Arc::clone(&descriptors));
        Task {
            kernel: kernel.clone(),
            mountpoint,
            pid,
            tid: pid,
            owner: kernel.new_owner(),
            descriptors,
        }
    }

    fn caller(&self) -> Caller {
        Caller {
            tid: self.tid,
            uid: 0,
            gid: 0,
        }
    }

    fn path(&self, word: &[u8]) -> String {
        let path = text(word);
        let inside = path.strip_prefix(self.mountpoint);
        inside
            .unwrap_or_else(|| panic!("{path} is elsewhere"))
            .to_owned()
    }

    fn file(&self, slot: &[u8]) -> OpResult<Arc<OpenFile>> {
        let descriptors = self.descriptors.lock();
        let file = descriptors.get(&text(slot)).cloned().ok_or(Errno::BADF)?;
        match self.kernel.is_served(&file) {
            true => Ok(file),
            false => Err(Errno::NOTCONN),
        }
    }

    fn call_of(operation: &str, args: &[&[u8]]) -> (Call, bool) {
        match operation {
            "open" => (Call::Open(open_flags(&text(args[1])).bits() as i32), true),
            "cat" | "survey" => (Call::Open(libc::O_RDONLY), true),
            "truncate" => (Call::Other, true),
            "flock" | "flock-shared" | "funlock" => (Call::Flock, false),
            "fcntl" if args[1] == b"set" => (Call::Fcntl(libc::F_SETLK), false),
            "fcntl" => (Call::Fcntl(libc::F_OFD_SETLK), false),
            "chmod" | "setxattr" => (Call::Named, false),
            _ => (Call::Other, false),
        }
    }

    fn perform(&self, operation: &str, args: &[&[u8]]) -> OpResult<Words> {
        table().enter(self.tid, Some(Task::call_of(operation, args)));
        let result = self.call(operation, args);
        table().enter(self.tid, None);
        result
    }

    fn call(&self, operation: &str, args: &[&[u8]]) -> OpResult<Words> {
        let (by, daemon) = (self.caller(), &self.kernel.daemon);
        match operation {
            "open" => self.open(&text(args[0]), &text(args[1]), &self.path(args[2]))?,
            "close" => {
                let closed = self.descriptors.lock().remove(&text(args[0]));
                self.close(&closed.ok_or(Errno::BADF)?)?;
            }
            "dup" => {
                let mut descriptors = self.descriptors.lock();
                let file = descriptors.get(&text(args[0])).cloned();
                descriptors.add(&text(args[1]), file.ok_or(Errno::BADF)?, false);
            }
            "write" => self.write_all(&*self.file(args[0])?, args[1])?,
            "pwrite" => {
                let file = self.file(args[0])?;
                let written = self.write(&file, number(args[1]), args[2])?;
                return Ok(vec![written.to_string().into_bytes()]);
            }
            "fsync" => daemon.fsync(self.file(args[0])?.handle)?,
            "ftruncate" => {
                let file = self.file(args[0])?;
                self.set_size(file.node, Some(&file), number(args[1]))?;
            }
            "truncate" => self.truncate(&self.path(args[0]), number(args[1]))?,
            "flock" => self.lock(&*self.file(args[0])?, Some(Mode::Exclusive))?,
            "flock-shared" => self.lock(&*self.file(args[0])?, Some(Mode::Shared))?,
            "funlock" => self.lock(&*self.file(args[0])?, None)?,
            "fcntl" => self.lock_bytes(&*self.file(args[0])?, &args[1..])?,
            "cat" => return Ok(vec![self.cat(&self.path(args[0]))?]),
            "survey" => return Ok(self.survey(args)),
            "chmod" => self.chmod(&self.path(args[0]), number(args[1]))?,
            "rename" | "rename-noreplace" | "exchange" => {
                let flags = match operation {
                    "rename" => RenameFlags::empty(),
                    "exchange" => RenameFlags::EXCHANGE,
                    _ => RenameFlags::NOREPLACE,
                };
                self.rename(&self.path(args[0]), &self.path(args[1]), flags)?;
            }
            "link" => self.link(&self.path(args[0]), &self.path(args[1]))?,
            "unlink" => self.unlink(&self.path(args[0]))?,
            "mkdir" => self.mkdir(&self.path(args[0]))?,
            "rmdir" => self.rmdir(&self.path(args[0]))?,
            "setxattr" => walk(|walk| {
                let node = self.kernel.node(by, &self.path(args[0]), walk)?;
                daemon.setxattr(by, node, &text(args[1]), args[2])
            })?,
            "getxattr" => {
                return walk(|walk| {
                    let node = self.kernel.node(by, &self.path(args[0]), walk)?;
                    Ok(vec![daemon.getxattr(by, node, &text(args[1]))?])
                });
            }
            _ => panic!("the simulated kernel has no call {operation}"),
        }
        Ok(Vec::new())
    }

    fn open(&self, slot: &str, flags: &str, path: &str) -> OpResult<()> {
        let flags = open_flags(flags);
        let file = walk(|walk| self.open_once(path, flags, walk))?;
        let cloexec = flags.contains(OFlags::CLOEXEC);
        self.descriptors.lock().add(slot, file, cloexec);
        Ok(())
    }

    fn open_once(&self, path: &str, flags: OFlags, walk: Walk) -> OpResult<Arc<OpenFile>> {
        let (kernel, by) = (&self.kernel, self.caller());
        let creates = flags.contains(OFlags::CREATE);
        let alone = creates && flags.contains(OFlags::EXCL);
        let (dir, name) = kernel.end(by, path, walk)?;
        let name = name.ok_or(Errno::ISDIR)?;
        let anew = alone || walk == Walk::Again;
        let node = match kernel.lookup(by, dir, name, anew)? {
            None if creates => {
                let created = kernel.daemon.create(by, dir, name, flags)?;
                kernel.made(dir, name, &created.attr);
                let node = created.attr.ino;
                return Ok(kernel.open_file(node, &created.opened, flags - OFlags::TRUNC));
            }
            None => return Err(Errno::NOENT),
            Some(_) if alone => return Err(Errno::EXIST),
            Some(node) => node,
        };
        let reads_only = (flags & OFlags::RWMODE) == OFlags::RDONLY;
        if kernel.is_dir(node) {
            // A program that reads it is told so by read(2).
            return Err(Errno::ISDIR);
        }
        debug_assert!(reads_only || !kernel.is_dir(node));
        kernel.permission(by, node)?;
        let sent = flags - OFlags::CREATE - OFlags::EXCL - OFlags::CLOEXEC;
        // Its name may be dropped meanwhile.
        kernel.refer(node);
        let opened = kernel.daemon.open(by, node, sent);
        let file = opened.map(|opened| kernel.open_file(node, &opened, flags));
        kernel.let_go(node);
        file
    }

    /// A descriptor is given up: FLUSH, and RELEASE with the last.
    fn close(&self, file: &Arc<OpenFile>) -> OpResult<()> {
        let flushed = self.flush(file);
        self.put(file);
        flushed
    }

    fn flush(&self, file: &OpenFile) -> OpResult<()> {
        match self.kernel.is_served(file) && !file.no_flush {
            true => {
                let daemon = &self.kernel.daemon;
                daemon.flush(self.caller(), file.node, file.handle, self.owner)
            }
            false => Ok(()),
        }
    }

    fn put(&self, file: &OpenFile) {
        if file.references.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        if self.kernel.is_served(file) {
            let locked = file.has_flock.load(Ordering::Relaxed);
            let owner = locked.then_some(file.owner);
            self.kernel.daemon.release(file.node, file.handle, owner);
        }
        self.kernel.closed_file(file);
    }

    fn write_all(&self, file: &OpenFile, mut data: &[u8]) -> OpResult<()> {
        while !data.is_empty() {
            let at = *file.position.lock();
            let written = self.write(file, at, data)?;
            let end = match file.appends() {
                true => self.kernel.size(file.node),
                false => at + written as u64,
            };
            *file.position.lock() = end;
            data = &data[written..];
        }
        Ok(())
    }

    fn write(&self, file: &OpenFile, offset: u64, data: &[u8]) -> OpResult<usize> {
        if !file.writes() {
            return Err(Errno::BADF);
        }
        let at = match file.appends() {
            true => self.kernel.size(file.node),
            false => offset,
        };
        let daemon = &self.kernel.daemon;
        let place = (at, file.appends());
        let written = daemon.write(self.caller(), file.handle, place, data)?;
        self.kernel.wrote(file.node, at + u64::from(written));
        Ok(written as usize)
    }

    fn pread(&self, file: &OpenFile, len: usize, offset: u64) -> OpResult<Vec<u8>> {
        if !file.reads() {
            return Err(Errno::BADF);
        }
        let mut wanted = len;
        if file.direct_io {
            self.kernel.daemon.learn_owner(self.owner);
        } else {
            let handle = Some(file.handle);
            let (stat, _) = self.kernel.attributes(self.caller(), file.node, handle)?;
            let size = usize::try_from(stat.st_size).unwrap_or(0);
            wanted = wanted.min(size.saturating_sub(offset as usize));
        }
        let mut data = Vec::new();
        while data.len() < wanted {
            let (at, size) = (offset + data.len() as u64, (wanted - data.len()).min(PIECE));
            let piece = self.kernel.daemon.read(file.handle, at, size as u32)?;
            let is_last = piece.len() < size;
            data.extend(piece);
            if is_last {
                break;
            }
        }
        Ok(data)
    }

    fn set_size(&self, node: NodeId, file: Option<&OpenFile>, size: u64) -> OpResult<()> {
        if file.is_some_and(|file| !file.writes()) {
            return Err(Errno::INVAL);
        }
        let change = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let handle = file.map(|file| file.handle);
        let daemon = &self.kernel.daemon;
        let attr = daemon.setattr(self.caller(), node, handle, change)?;
        self.kernel.update(node, &attr);
        Ok(())
    }

    fn truncate(&self, path: &str, size: u64) -> OpResult<()> {
        walk(|walk| {
            let node = self.kernel.node(self.caller(), path, walk)?;
            if self.kernel.is_dir(node) {
                return Err(Errno::ISDIR);
            }
            self.kernel.permission(self.caller(), node)?;
            self.set_size(node, None, size)
        })
    }

    fn chmod(&self, path: &str, mode: u32) -> OpResult<()> {
        let by = self.caller();
        walk(|walk| {
            let node = self.kernel.node(by, path, walk)?;
            let (stat, _) = self.kernel.attributes(by, node, None)?;
            let change = SetAttr {
                mode: Some((stat.st_mode & libc::S_IFMT) | mode),
                ..SetAttr::default()
            };
            let attr = self.kernel.daemon.setattr(by, node, None, change)?;
            self.kernel.update(node, &attr);
            Ok(())
        })
    }

    fn set_lock(&self, file: &OpenFile, request: LockRequest) -> OpResult<()> {
        let unlocks = request.mode.is_none();
        let pid = if unlocks { 0 } else { self.pid };
        let request = LockRequest {
            node: file.node,
            handle: file.handle,
            pid,
            ..request
        };
        self.kernel.daemon.setlk(self.caller(), request)
    }

    fn lock(&self, file: &OpenFile, mode: Option<Mode>) -> OpResult<()> {
        let request = lock_request(file.owner, 0, END, mode);
        let locked = self.set_lock(file, request);
        if locked.is_ok() && mode.is_some() {
            file.has_flock.store(true, Ordering::Relaxed);
        }
        locked
    }

    fn lock_bytes(&self, file: &OpenFile, args: &[&[u8]]) -> OpResult<()> {
        let owner = match args[0] {
            b"set" => self.owner,
            _ => file.owner,
        };
        let mode = match args[1] {
            b"read" => Some(Mode::Shared),
            b"write" => Some(Mode::Exclusive),
            _ => None,
        };
        let may = match mode {
            Some(Mode::Shared) => file.reads(),
            Some(Mode::Exclusive) => file.writes(),
            None => true,
        };
        if !may {
            return Err(Errno::BADF);
        }
        let (first, len): (u64, u64) = (number(args[2]), number(args[3]));
        let last = if len == 0 { END } else { first + len - 1 };
        self.set_lock(file, lock_request(owner, first, last, mode))
    }

    fn cat(&self, path: &str) -> OpResult<Vec<u8>> {
        let file = walk(|walk| self.open_once(path, OFlags::RDONLY | OFlags::LARGEFILE, walk))?;
        file.references.fetch_add(1, Ordering::Relaxed);
        let content = self.pread(&file, LOOK_BEYOND, 0);
        self.close(&file)?;
        content
    }

    fn stat(&self, path: &str) -> OpResult<Words> {
        let by = self.caller();
        walk(|walk| {
            let node = self.kernel.node(by, path, walk)?;
            let (stat, shown) = self.kernel.attributes(by, node, None)?;
            Ok(described(&stat, shown))
        })
    }

    fn list(&self, path: &str) -> OpResult<Vec<u8>> {
        let by = self.caller();
        let node = walk(|walk| self.kernel.node(by, path, walk))?;
        if !self.kernel.is_dir(node) {
            return Err(Errno::NOTDIR);
        }
        self.kernel.permission(by, node)?;
        let listed = self.kernel.daemon.list(by, node)?;
        let names = listed
            .into_iter()
            .map(|entry| entry.name.into_encoded_bytes());
        let mut names: Vec<_> = names.filter(|n| n != b"." && n != b"..").collect();
        names.sort();
        Ok(names.join(&b'/'))
    }

    fn survey(&self, args: &[&[u8]]) -> Words {
        let split = args.iter().position(|word| *word == b"--");
        let (paths, slots) = args.split_at(split.unwrap_or(args.len()));
        let told = |found: OpResult<Vec<u8>>| {
            found.unwrap_or_else(|e| format!("!{}", errno_name(e)).into_bytes())
        };
        let mut seen = Vec::new();
        for path in paths {
            seen.push(told(match path.strip_suffix(b"/") {
                Some(directory) => self.list(&self.path(directory)),
                None => match path.strip_prefix(b"stat:") {
                    Some(path) => self.stat(&self.path(path)).map(|s| s.join(&b' ')),
                    None => self.cat(&self.path(path)),
                },
            }));
        }
        for slot in slots.iter().skip(1) {
            seen.push(told(self.look_through(slot)));
        }
        seen
    }

    fn look_through(&self, slot: &[u8]) -> OpResult<Vec<u8>> {
        let file = self.file(slot)?;
        let (stat, _) = self.kernel.attributes(self.caller(), file.node, None)?;
        let length = usize::try_from(stat.st_size).unwrap_or(0);
        match self.pread(&file, length + LOOK_BEYOND, 0) {
            Err(Errno::BADF) => Ok(length.to_string().into_bytes()),
            other => other,
        }
    }

    fn places(&self, from: &str, to: &str, walk: Walk) -> OpResult<Places> {
        let end = |path| {
            let (dir, name) = self.kernel.end(self.caller(), path, walk)?;
            Ok((dir, name.ok_or(Errno::BUSY)?.to_owned()))
        };
        Ok(Places {
            from: end(from)?,
            to: end(to)?,
        })
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> OpResult<()> {
        walk(|walk| self.rename_once((from, to), flags, walk))
    }

    fn rename_once(&self, paths: (&str, &str), flags: RenameFlags, walk: Walk) -> OpResult<()> {
        let (kernel, by) = (&self.kernel, self.caller());
        let places = self.places(paths.0, paths.1, walk)?;
        let from = (places.from.0, places.from.1.as_str());
        let to = (places.to.0, places.to.1.as_str());
        let exchanges = flags.contains(RenameFlags::EXCHANGE);
        let old = kernel.lookup(by, from.0, from.1, walk == Walk::Again)?;
        let new = kernel.lookup(by, to.0, to.1, true)?;
        let old = old.ok_or(Errno::NOENT)?;
        if flags.contains(RenameFlags::NOREPLACE) && new.is_some() {
            return Err(Errno::EXIST);
        }
        if exchanges && new.is_none() {
            return Err(Errno::NOENT);
        }
        let lies_in = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        if lies_in(paths.1, paths.0) {
            return Err(Errno::INVAL);
        }
        if lies_in(paths.0, paths.1) {
            return Err(if exchanges {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            });
        }
        if new == Some(old) {
            return Ok(());
        }
        if let Some(new) = new.filter(|_| !exchanges) {
            match (kernel.is_dir(old), kernel.is_dir(new)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        kernel.daemon.rename(by, from, to, flags)?;
        kernel.renamed(from, to, exchanges);
        Ok(())
    }

    fn link(&self, from: &str, to: &str) -> OpResult<()> {
        let (kernel, by) = (&self.kernel, self.caller());
        walk(|walk| {
            let node = kernel.node(by, from, walk)?;
            let (dir, name) = self.new_name(to, walk)?;
            if kernel.is_dir(node) {
                return Err(Errno::PERM);
            }
            let attr = kernel.daemon.link(by, node, (dir, name))?;
            kernel.found(dir, name, &attr);
            kernel.changed(dir);
            Ok(())
        })
    }

    /// Where something is to be made.
    fn new_name<'a>(&self, path: &'a str, walk: Walk) -> OpResult<(NodeId, &'a str)> {
        let (dir, name) = self.kernel.end(self.caller(), path, walk)?;
        let name = name.ok_or(Errno::EXIST)?;
        match self.kernel.lookup(self.caller(), dir, name, true)? {
            Some(_) => Err(Errno::EXIST),
            None => Ok((dir, name)),
        }
    }

    fn mkdir(&self, path: &str) -> OpResult<()> {
        walk(|walk| {
            let (dir, name) = self.new_name(path, walk)?;
            let attr = self.kernel.daemon.mkdir(self.caller(), dir, name)?;
            self.kernel.found(dir, name, &attr);
            self.kernel.changed(dir);
            Ok(())
        })
    }

    fn unlink(&self, path: &str) -> OpResult<()> {
        self.remove(path, false)
    }

    fn rmdir(&self, path: &str) -> OpResult<()> {
        self.remove(path, true)
    }

    fn remove(&self, path: &str, directory: bool) -> OpResult<()> {
        let (kernel, by) = (&self.kernel, self.caller());
        walk(|walk| {
            let (dir, name) = kernel.end(by, path, walk)?;
            let name = name.ok_or(Errno::BUSY)?;
            let node = kernel.lookup(by, dir, name, walk == Walk::Again)?;
            match (kernel.is_dir(node.ok_or(Errno::NOENT)?), directory) {
                (true, false) => return Err(Errno::ISDIR),
                (false, true) => return Err(Errno::NOTDIR),
                _ => {}
            }
            let removed = match directory {
                true => kernel.daemon.rmdir(dir, name),
                false => kernel.daemon.unlink(by, dir, name),
            };
            match removed {
                Ok(()) => kernel.removed(dir, name),
                Err(Errno::INTR | Errno::NOENT) => kernel.doubted(dir, name),
                Err(_) => {}
            }
            removed
        })
    }

    /// Its process ends: the memory goes first, then what it has open, a FLUSH for each, and then the RELEASEs.
    fn end(&self, status: i32) {
        let Some(last) = table().begin_to_end(self.pid, status) else {
            return;
        };
        let last = Task {
            tid: last,
            ..self.clone()
        };
        let open = last.descriptors.lock().remove_all();
        for file in &open {
            // Nobody is left to be told.
            last.flush(file).ok();
        }
        for file in open.iter().rev() {
            last.put(file);
        }
        table().end(self.pid);
    }
}

fn lock_request(owner: u64, start: u64, end: u64, mode: Option<Mode>) -> LockRequest {
    LockRequest {
        node: NodeId(0),
        handle: commitfs::types::HandleId(0),
        owner,
        start,
        end,
        mode,
        kind: LockKind::Unknown,
        pid: 0,
        wait: false,
    }
}

/// A program that a test tells what to do.
pub struct Program {
    task: Task,
    waiting: Option<JoinHandle<OpResult<Words>>>,
}

impl Program {
    pub fn of(task: Task) -> Program {
        Program {
            task,
            waiting: None,
        }
    }
}

fn answer(result: OpResult<Words>, operation: &str) -> Answer {
    result.map_err(|errno| Failure {
        errno: errno_name(errno).to_owned(),
        stage: operation.to_owned(),
    })
}

impl Remote for Program {
    fn pid(&self) -> i32 {
        self.task.pid as i32
    }

    fn ask(&mut self, operation: &str, args: &[&[u8]]) -> Answer {
        answer(self.task.perform(operation, args), operation)
    }

    fn start(&mut self, operation: &str, args: &[&[u8]]) {
        let (task, operation) = (self.task.clone(), operation.to_owned());
        let args: Words = args.iter().map(|word| word.to_vec()).collect();
        self.waiting = Some(std::thread::spawn(move || {
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            task.perform(&operation, &args)
        }));
    }

    fn has_answered(&self) -> bool {
        self.waiting.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn finish(&mut self) -> Answer {
        let waiting = self.waiting.take().expect("it was started");
        answer(waiting.join().expect("no panic"), "started")
    }

    fn fork(&mut self) -> Box<dyn Remote> {
        let inherited = self.task.descriptors.lock().inherit();
        let descriptors = Arc::new(Mutex::new(inherited));
        let pid = table().fork(self.task.tid, descriptors.clone());
        Box::new(Program::of(Task {
            pid,
            tid: pid,
            owner: self.task.kernel.new_owner(),
            descriptors,
            ..self.task.clone()
        }))
    }

    fn thread(&mut self) -> Box<dyn Remote> {
        let tid = table().thread(self.task.pid);
        let task = self.task.clone();
        Box::new(Program::of(Task { tid, ..task }))
    }

    fn exec_again(&mut self, _slots: &[&str]) {
        table().exec(self.task.pid);
        let closed = self.task.descriptors.lock().remove_by_exec();
        for file in closed {
            self.task.close(&file).ok();
        }
    }

    fn kill(&mut self, signal: i32) {
        if let Some(waiting) = self.waiting.take() {
            // It can't die before its call is answered.
            table().signal(self.task.pid, signal);
            waiting.join().expect("no panic").ok();
        }
        self.task.end(signal);
    }

    fn exit(&mut self, status: i32) {
        self.task.end(status << 8);
    }

    fn await_end(&mut self) {}
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.task.tid == self.task.pid {
            self.kill(libc::SIGKILL);
        }
    }
}

fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::BADF => "EBADF",
        Errno::AGAIN => "EAGAIN",
        Errno::ACCESS => "EACCES",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::XDEV => "EXDEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::FBIG => "EFBIG",
        Errno::NOSPC => "ENOSPC",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::DEADLK => "EDEADLK",
        Errno::NODATA => "ENODATA",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::NOTCONN => "ENOTCONN",
        Errno::STALE => "ESTALE",
        Errno::BADMSG => "EBADMSG",
        Errno::TXTBSY => "ETXTBSY",
        Errno::MLINK => "EMLINK",
        _ => "another",
    }
}
