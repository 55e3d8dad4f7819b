//! The operations a test can ask for.

#[path = "stamp.rs"]
#[allow(dead_code)]
mod stamp;

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::Channel;
use crate::sys::{self, Failure, Map, Outcome};

/// What all threads of the helper share.
#[derive(Clone, Default)]
pub struct State(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    files: HashMap<String, RawFd>,
    maps: HashMap<String, Map>,
}

type Answer = Vec<Vec<u8>>;

/// Arguments of one operation, taken in order.
struct Words<'a>(std::slice::Iter<'a, Vec<u8>>);

impl<'a> Words<'a> {
    fn bytes(&mut self) -> Outcome<&'a [u8]> {
        self.0.next().map(Vec::as_slice).ok_or(Failure {
            errno: libc::EINVAL,
            stage: "usage",
        })
    }

    fn text(&mut self) -> Outcome<String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn number(&mut self) -> Outcome<i64> {
        self.text()?.parse().map_err(|_| Failure {
            errno: libc::EINVAL,
            stage: "usage",
        })
    }

    fn rest(&mut self) -> Vec<Vec<u8>> {
        self.0.by_ref().cloned().collect()
    }
}

impl State {
    /// Descriptors that came through an exec, told as `SLOT=N`.
    pub fn inherited(arguments: impl Iterator<Item = String>) -> State {
        let file = |word: String| {
            let (slot, fd) = word.split_once('=')?;
            Some((slot.to_owned(), fd.parse().ok()?))
        };
        let state = State::default();
        state.tables().files = arguments.filter_map(file).collect();
        state
    }

    /// Never held across a system call: a child that is forked meanwhile has no thread to let go.
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().expect("no thread panics with it")
    }

    fn put(&self, name: String, fd: RawFd) {
        self.tables().files.insert(name, fd);
    }

    fn file(&self, name: &str) -> Outcome<RawFd> {
        let found = self.tables().files.get(name).copied();
        found.ok_or(Failure {
            errno: libc::EBADF,
            stage: "slot",
        })
    }

    fn take(&self, name: &str) -> Outcome<RawFd> {
        let found = self.tables().files.remove(name);
        found.ok_or(Failure {
            errno: libc::EBADF,
            stage: "slot",
        })
    }

    fn map(&self, name: &str) -> Outcome<Map> {
        let found = self.tables().maps.get(name).copied();
        found.ok_or(Failure {
            errno: libc::EBADF,
            stage: "map",
        })
    }
}

pub fn perform(state: &State, channel: &mut Channel, words: &[Vec<u8>]) -> Outcome<Answer> {
    let mut args = Words(words.iter());
    let name = args.text()?;
    let number = |n: i64| Ok(vec![n.to_string().into_bytes()]);
    match name.as_str() {
        "pid" => return number(std::process::id().into()),
        "open" => {
            let (slot, flags) = (args.text()?, args.text()?);
            let fd = sys::open(args.bytes()?, open_flags(&flags)?, 0o666)?;
            state.put(slot, fd);
            return number(fd.into());
        }
        "close" => sys::close(state.take(&args.text()?)?)?,
        "dup" => {
            let (from, to) = (args.text()?, args.text()?);
            let fd = sys::dup(state.file(&from)?)?;
            state.put(to, fd);
        }
        "fdpath" => {
            let fd = state.file(&args.text()?)?;
            return Ok(vec![format!("/proc/self/fd/{fd}").into_bytes()]);
        }
        "write" => {
            let fd = state.file(&args.text()?)?;
            sys::write_all(fd, args.bytes()?)?;
        }
        "pwrite" => {
            let (fd, offset) = (state.file(&args.text()?)?, args.number()?);
            return number(sys::pwrite(fd, args.bytes()?, offset)? as i64);
        }
        "fill" => return fill(state.file(&args.text()?)?, &mut args).and_then(number),
        "read" => {
            let fd = state.file(&args.text()?)?;
            return Ok(vec![sys::read(fd, args.number()? as usize)?]);
        }
        "readall" => return Ok(vec![sys::read_all(state.file(&args.text()?)?)?]),
        "pread" => {
            let (fd, offset) = (state.file(&args.text()?)?, args.number()?);
            return Ok(vec![sys::pread(fd, args.number()? as usize, offset)?]);
        }
        "seek" => {
            let fd = state.file(&args.text()?)?;
            return number(sys::seek(fd, args.number()?)?);
        }
        "sendfile" => return Ok(vec![sys::sendfile(state.file(&args.text()?)?)?]),
        "fsync" => sys::fsync(state.file(&args.text()?)?, false)?,
        "fdatasync" => sys::fsync(state.file(&args.text()?)?, true)?,
        "ftruncate" => {
            let fd = state.file(&args.text()?)?;
            sys::ftruncate(fd, args.number()?)?;
        }
        "fstat" => return Ok(describe(&sys::fstat(state.file(&args.text()?)?)?)),
        "fchmod" => {
            let fd = state.file(&args.text()?)?;
            sys::fchmod(fd, args.number()? as u32)?;
        }
        "futimens" => {
            let fd = state.file(&args.text()?)?;
            sys::futimens(fd, args.number()?)?;
        }
        // fallocate SLOT MODE OFFSET LEN
        "fallocate" => {
            let fd = state.file(&args.text()?)?;
            let mode = args.number()? as i32;
            sys::fallocate(fd, mode, args.number()?, args.number()?)?;
        }
        // The first hole or data at or after an offset.
        "seek-hole" | "seek-data" => {
            let fd = state.file(&args.text()?)?;
            return number(sys::seek_sparse(fd, args.number()?, name == "seek-hole")?);
        }
        // copy-range FROM OFFSET TO OFFSET LEN
        "copy-range" => {
            let (from, at) = (state.file(&args.text()?)?, args.number()?);
            let (to, there) = (state.file(&args.text()?)?, args.number()?);
            return number(sys::copy_range(
                from,
                at,
                to,
                there,
                args.number()? as usize,
            )?);
        }
        // O_DIRECT wants memory, offset and length in whole blocks.
        "write-blocks" => {
            let (fd, offset) = (state.file(&args.text()?)?, args.number()?);
            return number(sys::write_blocks(
                fd,
                offset,
                args.number()? as usize,
                b'd',
            )?);
        }
        "read-blocks" => {
            let (fd, offset) = (state.file(&args.text()?)?, args.number()?);
            return Ok(vec![sys::read_blocks(fd, offset, args.number()? as usize)?]);
        }
        // open-beneath SLOT DIRSLOT PATH: for writing, with openat2(RESOLVE_BENEATH).
        "open-beneath" => {
            let (slot, dir) = (args.text()?, args.text()?);
            let fd = sys::open_beneath(state.file(&dir)?, args.bytes()?)?;
            state.put(slot, fd);
        }
        // From now on the process of an ordinary user.
        "become-user" => sys::become_user(args.number()? as u32, args.number()? as u32)?,
        "umask" => sys::umask(args.number()? as u32),
        // events SLOT QUIET_MS: `MASK NAME` of every event until none has come for so long.
        "events" => {
            let fd = state.file(&args.text()?)?;
            return events(fd, args.number()? as i32);
        }
        // Without waiting; `-wait` waits, `-shared` lets others read.
        "flock" | "flock-wait" | "flock-shared" | "funlock" => {
            let fd = state.file(&args.text()?)?;
            sys::flock(fd, flock_operation(&name))?;
        }
        "lockrange" => {
            let fd = state.file(&args.text()?)?;
            let (start, len) = (args.number()?, args.number()?);
            sys::lock_range(fd, libc::F_SETLK, libc::F_WRLCK, start, len)?;
        }
        // fcntl SLOT COMMAND KIND START LEN
        "fcntl" => {
            let fd = state.file(&args.text()?)?;
            let (command, kind) = fcntl_words(&args.text()?, &args.text()?)?;
            sys::lock_range(fd, command, kind, args.number()?, args.number()?)?;
        }
        "mmap" => {
            let (slot, map) = (args.text()?, args.text()?);
            let (len, mode) = (args.number()? as usize, args.text()?);
            let mapping = sys::mmap(state.file(&slot)?, len, mode == "rw")?;
            state.tables().maps.insert(map, mapping);
        }
        "mwrite" => {
            let (map, offset) = (state.map(&args.text()?)?, args.number()? as usize);
            map.write(offset, args.bytes()?);
        }
        "mread" => {
            let (map, offset) = (state.map(&args.text()?)?, args.number()? as usize);
            return Ok(vec![map.read(offset, args.number()? as usize)]);
        }
        "msync" => state.map(&args.text()?)?.sync()?,
        "munmap" => {
            let name = args.text()?;
            let map = state.map(&name)?;
            state.tables().maps.remove(&name);
            map.unmap()?;
        }
        "pair" => {
            let (one, two) = (args.text()?, args.text()?);
            let ends = sys::socketpair()?;
            state.put(one, ends.0);
            state.put(two, ends.1);
        }
        "sendfd" => {
            let socket = state.file(&args.text()?)?;
            sys::send_fd(socket, state.file(&args.text()?)?)?;
        }
        "recvfd" => {
            let (socket, slot) = (state.file(&args.text()?)?, args.text()?);
            let fd = sys::receive_fd(socket)?;
            state.put(slot, fd);
        }
        "fork" => return fork(channel, &args.text()?),
        // thread SOCKET: another thread, which takes its orders from a socket of its own.
        "thread" => {
            let (state, socket) = (state.clone(), args.text()?);
            std::thread::spawn(move || {
                let mut channel = Channel::connect(&socket);
                crate::serve(&state, &mut channel);
            });
        }
        "wait" => return number(sys::wait(args.number()? as i32)?.into()),
        "exec" => return exec(state, &mut args),
        "become" => return become_again(state, channel, &mut args),
        "survey" => return survey(state, &mut args),
        "exit" => {
            channel.answer(&[]);
            std::process::exit(args.number()? as i32);
        }
        "_exit" => {
            channel.answer(&[]);
            sys::exit_now(args.number()? as i32);
        }
        "raise" => {
            sys::raise(args.number()? as i32);
            std::thread::sleep(Duration::from_secs(60));
        }
        "ignore" => sys::set_signal(args.number()? as i32, libc::SIG_IGN),
        "limit-fsize" => sys::set_limit_fsize(args.number()? as u64)?,
        "sleep" => std::thread::sleep(Duration::from_millis(args.number()? as u64)),
        "inotify" => {
            let (slot, mask) = (args.text()?, args.number()? as u32);
            let fd = sys::inotify(args.bytes()?, mask)?;
            state.put(slot, fd);
        }
        "await-event" => {
            let fd = state.file(&args.text()?)?;
            await_event(fd, args.bytes()?)?;
        }
        // Reads the file in the very moment in which the watcher wakes up.
        "await-and-cat" => {
            let (fd, directory) = (state.file(&args.text()?)?, args.text()?);
            let name = args.bytes()?;
            await_event(fd, name)?;
            let path = [directory.as_bytes(), b"/", name].concat();
            return Ok(vec![cat(&path)?]);
        }
        "churn" => churn(channel, &mut args)?,
        "append-lines" => append_lines(channel, &mut args)?,
        "timed-saves" => return timed_saves(&mut args),
        "timed-appends" => return timed_appends(&mut args),
        _ => return on_path(&name, &mut args),
    }
    Ok(vec![])
}

/// Operations on a path, which leave nothing behind in this process.
fn on_path(name: &str, args: &mut Words) -> Outcome<Answer> {
    let path = args.bytes()?;
    match name {
        "cat" => return Ok(vec![cat(path)?]),
        "save" => save(path, args.bytes()?, usize::MAX, Duration::ZERO)?,
        "save-slowly" => {
            let (chunk, pause) = (args.number()? as usize, args.number()? as u64);
            save(path, args.bytes()?, chunk, Duration::from_micros(pause))?;
        }
        "replace" => {
            let temporary = [path, b".tmp"].concat();
            save(&temporary, args.bytes()?, usize::MAX, Duration::ZERO)?;
            sys::rename(&temporary, path, 0)?;
        }
        "stat" => return Ok(describe(&sys::stat(path)?)),
        "truncate" => sys::truncate(path, args.number()?)?,
        "rename" => sys::rename(path, args.bytes()?, 0)?,
        "rename-noreplace" => sys::rename(path, args.bytes()?, libc::RENAME_NOREPLACE)?,
        "exchange" => sys::rename(path, args.bytes()?, libc::RENAME_EXCHANGE)?,
        "link" => sys::link(path, args.bytes()?)?,
        "unlink" => sys::unlink(path)?,
        "mkdir" => sys::mkdir(path)?,
        "rmdir" => sys::rmdir(path)?,
        "chmod" => sys::chmod(path, args.number()? as u32)?,
        "chown" => sys::chown(path, args.number()? as u32, args.number()? as u32)?,
        "utimens" => sys::utimens(path, args.number()?)?,
        "symlink" => sys::symlink(args.bytes()?, path)?,
        "readlink" => return Ok(vec![sys::readlink(path)?]),
        "mkfifo" => sys::mkfifo(path)?,
        "setxattr" => sys::setxattr(path, args.bytes()?, args.bytes()?)?,
        "listxattr" => return sys::listxattr(path),
        // The number that readdir(3) gives for a name.
        "inode-in-listing" => return inode_in_listing(path, args.bytes()?),
        "getxattr" => return Ok(vec![sys::getxattr(path, args.bytes()?)?]),
        "ls" => return list(path),
        _ => {
            return Err(Failure {
                errno: libc::ENOSYS,
                stage: "usage",
            });
        }
    }
    Ok(vec![])
}

fn open_flags(word: &str) -> Outcome<i32> {
    let create = libc::O_CREAT;
    let mut flags = 0;
    for part in word.split('|') {
        flags |= match part {
            "r" => libc::O_RDONLY,
            "w" => libc::O_WRONLY | create | libc::O_TRUNC,
            "w+" => libc::O_RDWR | create | libc::O_TRUNC,
            "a" => libc::O_WRONLY | create | libc::O_APPEND,
            "a+" => libc::O_RDWR | create | libc::O_APPEND,
            "r+" => libc::O_RDWR,
            "rw-create" => libc::O_RDWR | create,
            "x" => libc::O_WRONLY | create | libc::O_EXCL,
            "excl" => libc::O_EXCL,
            "wronly" => libc::O_WRONLY,
            "cloexec" => libc::O_CLOEXEC,
            "sync" => libc::O_SYNC,
            "dsync" => libc::O_DSYNC,
            "trunc" => libc::O_TRUNC,
            "direct" => libc::O_DIRECT,
            "path" => libc::O_PATH,
            "directory" => libc::O_DIRECTORY,
            "nonblock" => libc::O_NONBLOCK,
            _ => {
                return Err(Failure {
                    errno: libc::EINVAL,
                    stage: "flags",
                });
            }
        };
    }
    Ok(flags)
}

fn flock_operation(name: &str) -> i32 {
    match name {
        "flock-wait" => libc::LOCK_EX,
        "flock-shared" => libc::LOCK_SH | libc::LOCK_NB,
        "funlock" => libc::LOCK_UN,
        _ => libc::LOCK_EX | libc::LOCK_NB,
    }
}

fn fcntl_words(command: &str, kind: &str) -> Outcome<(i32, i32)> {
    let unknown = Failure {
        errno: libc::EINVAL,
        stage: "usage",
    };
    let command = match command {
        "set" => libc::F_SETLK,
        "wait" => libc::F_SETLKW,
        "ofd-set" => libc::F_OFD_SETLK,
        "ofd-wait" => libc::F_OFD_SETLKW,
        _ => return Err(unknown),
    };
    match kind {
        "read" => Ok((command, libc::F_RDLCK)),
        "write" => Ok((command, libc::F_WRLCK)),
        "unlock" => Ok((command, libc::F_UNLCK)),
        _ => Err(unknown),
    }
}

fn describe(stat: &libc::stat) -> Answer {
    let mtime = stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec;
    [
        stat.st_size,
        stat.st_ino as i64,
        mtime,
        stat.st_mode.into(),
        stat.st_nlink as i64,
        stat.st_uid.into(),
        stat.st_gid.into(),
        stat.st_ctime * 1_000_000_000 + stat.st_ctime_nsec,
        stat.st_blocks,
    ]
    .iter()
    .map(|n| n.to_string().into_bytes())
    .collect()
}

fn cat(path: &[u8]) -> Outcome<Vec<u8>> {
    let fd = sys::open(path, libc::O_RDONLY, 0)?;
    let data = sys::read_all(fd);
    sys::close(fd)?;
    data
}

/// What `open(path, "w").write(data)` does, in chunks with pauses between them.
fn save(path: &[u8], data: &[u8], chunk: usize, pause: Duration) -> Outcome<()> {
    let fd = sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o666)?;
    for part in data.chunks(chunk) {
        if let Err(error) = sys::write_all(fd, part) {
            let _ = sys::close(fd);
            return Err(error);
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    sys::close(fd)
}

fn list(path: &[u8]) -> Outcome<Answer> {
    let failed = |error: std::io::Error| Failure {
        errno: error.raw_os_error().unwrap_or(0),
        stage: "readdir",
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(std::ffi::OsStr::from_bytes(path)).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().as_bytes().to_vec());
    }
    names.sort();
    Ok(names)
}

/// `fill SLOT LEN BLOCK BYTE`: answers how many bytes were taken before the first error; stops
/// there, as a program does that ignores errors.
fn fill(fd: RawFd, args: &mut Words) -> Outcome<i64> {
    let (mut left, block, byte) = (args.number()?, args.number()?, args.number()? as u8);
    let buffer = vec![byte; block as usize];
    let mut written = 0;
    while left > 0 {
        let part = &buffer[..left.min(block) as usize];
        match sys::write(fd, part) {
            Ok(0) => break,
            Ok(done) => {
                written += done as i64;
                left -= done as i64;
            }
            Err(error) if written == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(written)
}

/// The child takes its orders from a socket of its own.
fn fork(channel: &mut Channel, socket: &str) -> Outcome<Answer> {
    let pid = sys::fork()?;
    if pid == 0 {
        channel.close();
        *channel = Channel::connect(socket);
        return Ok(vec![std::process::id().to_string().into_bytes()]);
    }
    Ok(vec![pid.to_string().into_bytes()])
}

/// `exec SLOT PROGRAM ARG…`: becomes the program, with the slot as its standard output (`-`: none).
fn exec(state: &State, args: &mut Words) -> Outcome<Answer> {
    let slot = args.text()?;
    if slot != "-" {
        sys::dup2(state.file(&slot)?, 1)?;
    }
    let line = args.rest();
    let program = line.first().ok_or(Failure {
        errno: libc::EINVAL,
        stage: "usage",
    })?;
    Err(sys::exec(program, &line))
}

/// What inotify says until it has been quiet for a while.
fn events(fd: RawFd, quiet_ms: i32) -> Outcome<Answer> {
    let mut all = Vec::new();
    while sys::readable(fd, quiet_ms)? {
        let read = sys::read(fd, 64 * 1024)?;
        let mut at = 0;
        while at + 16 <= read.len() {
            let word = |i: usize| u32::from_ne_bytes(read[i..i + 4].try_into().expect("four"));
            let len = word(at + 12) as usize;
            let name = &read[at + 16..at + 16 + len];
            let end = name.iter().position(|b| *b == 0).unwrap_or(len);
            all.push([format!("{} ", word(at + 4)).as_bytes(), &name[..end]].concat());
            at += 16 + len;
        }
    }
    Ok(all)
}

fn inode_in_listing(path: &[u8], name: &[u8]) -> Outcome<Answer> {
    use std::os::unix::fs::DirEntryExt;
    let failed = |error: std::io::Error| Failure {
        errno: error.raw_os_error().unwrap_or(0),
        stage: "readdir",
    };
    for entry in std::fs::read_dir(std::ffi::OsStr::from_bytes(path)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().as_bytes() == name {
            return Ok(vec![entry.ino().to_string().into_bytes()]);
        }
    }
    Err(Failure {
        errno: libc::ENOENT,
        stage: "readdir",
    })
}

/// `become SOCKET PROGRAM SLOT…`: the helper executes itself; of the slots, those named remain.
fn become_again(state: &State, channel: &Channel, args: &mut Words) -> Outcome<Answer> {
    let (socket, program) = (args.bytes()?, args.bytes()?);
    let mut line = vec![program.to_vec(), socket.to_vec()];
    for slot in args.rest() {
        let slot = String::from_utf8_lossy(&slot).into_owned();
        line.push(format!("{slot}={}", state.file(&slot)?).into_bytes());
    }
    channel.close();
    Err(sys::exec(program, &line))
}

/// A survey reads through a descriptor so far beyond the length that fstat tells: an appender reads
/// its own unfinished line, too.
const LOOK_BEYOND: usize = 64 << 10;

/// `survey PATH… -- SLOT…`: all that this process sees. For a path that ends in a slash its names,
/// separated by slashes; for another its content; for a slot its content, or its length if it can't
/// be read. An error is its name after an exclamation mark.
fn survey(state: &State, args: &mut Words) -> Outcome<Answer> {
    let words = args.rest();
    let split = words.iter().position(|word| word == b"--");
    let (paths, slots) = words.split_at(split.unwrap_or(words.len()));
    let told = |found: Outcome<Vec<u8>>| {
        found.unwrap_or_else(|e| format!("!{}", sys::errno_name(e.errno)).into_bytes())
    };
    let mut seen = Vec::new();
    for path in paths {
        seen.push(told(match path.strip_suffix(b"/") {
            Some(directory) => list(directory).map(|names| names.join(&b'/')),
            None => match path.strip_prefix(b"stat:") {
                Some(path) => sys::stat(path).map(|s| describe(&s).join(&b' ')),
                None => cat(path),
            },
        }));
    }
    for slot in slots.iter().skip(1) {
        let fd = state.file(&String::from_utf8_lossy(slot))?;
        let length = sys::fstat(fd)?.st_size as usize;
        seen.push(told(match sys::pread(fd, length + LOOK_BEYOND, 0) {
            Err(e) if e.errno == libc::EBADF => Ok(length.to_string().into_bytes()),
            other => other,
        }));
    }
    Ok(seen)
}

/// Reads inotify events until one names `name`.
fn await_event(fd: RawFd, name: &[u8]) -> Outcome<()> {
    loop {
        let events = sys::read(fd, 64 * 1024)?;
        let mut at = 0;
        while at + 16 <= events.len() {
            let word = |i: usize| u32::from_ne_bytes(events[i..i + 4].try_into().expect("four"));
            let len = word(at + 12) as usize;
            let event = &events[at + 16..at + 16 + len];
            let end = event.iter().position(|b| *b == 0).unwrap_or(len);
            if &event[..end] == name {
                return Ok(());
            }
            at += 16 + len;
        }
    }
}

/// `churn HOW PATH FROM LEN SEED`: saves version after version until it is killed or fails; each
/// save whose close() returned is acknowledged by a line with its number. HOW is `rewrite`,
/// `replace` (temporary file and rename), `fsync` (rewrite with fsync), `new` (a new name for
/// each version: PATH.N) or `patch` (of a JSON document, with a whole save now and then).
fn churn(channel: &Channel, args: &mut Words) -> Outcome<()> {
    let (how, path) = (args.text()?, args.bytes()?);
    let (mut version, len) = (args.number()? as u64, args.number()? as usize);
    let mut random = args.number()? as u64 | 1;
    loop {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let size = stamp::SMALLEST + (random >> 33) as usize % len;
        let pause = Duration::from_micros((random >> 20) % 400);
        let content = stamp::stamped(version, size);
        let chunk = content.len() / 3 + 1;
        match how.as_str() {
            "replace" => {
                let temporary = [path, b".tmp"].concat();
                save(&temporary, &content, chunk, Duration::ZERO)?;
                sys::rename(&temporary, path, 0)?;
            }
            "fsync" => {
                let fd = sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o666)?;
                sys::write_all(fd, &content)?;
                sys::fsync(fd, false)?;
                sys::close(fd)?;
            }
            "patch" => patch_or_save(path, version)?,
            "new" => {
                let name = [path, format!(".{version}").as_bytes()].concat();
                save(&name, &content, chunk, pause)?;
            }
            _ => save(path, &content, chunk, pause)?,
        }
        channel.answer(&[version.to_string().into_bytes()]);
        version += 1;
    }
}

fn patch_or_save(path: &[u8], version: u64) -> Outcome<()> {
    let patch = format!(r#"[{{"op": "replace", "path": "/n", "value": {version}}}]"#);
    if !version.is_multiple_of(16) {
        match sys::setxattr(path, b"user.commitfs.json.patch", patch.as_bytes()) {
            Err(missing) if missing.errno == libc::ENOENT => {}
            done => return done,
        }
    }
    let whole = format!(r#"{{"n": {version}, "of": "churn"}}"#);
    save(path, whole.as_bytes(), usize::MAX, Duration::ZERO)
}

/// `append-lines PATH NAME FROM COUNT PIECES`: line after line, each in so many writes, until it is
/// killed or fails, or COUNT are done (then it answers a last time, with nothing). A line whose last
/// write returned is acknowledged by its number.
fn append_lines(channel: &Channel, args: &mut Words) -> Outcome<()> {
    let (path, name) = (args.bytes()?, args.text()?);
    let (from, count, pieces) = (args.number()?, args.number()?, args.number()? as usize);
    let fd = sys::open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND, 0o666)?;
    for number in from..from + count {
        let line = stamp::line(&name, number as u64);
        for piece in line.as_bytes().chunks(line.len().div_ceil(pieces)) {
            sys::write_all(fd, piece)?;
        }
        channel.answer(&[number.to_string().into_bytes()]);
    }
    sys::close(fd)
}

/// `timed-saves PATH COUNT LEN PAUSE_US`: every save's time in microseconds.
fn timed_saves(args: &mut Words) -> Outcome<Answer> {
    let path = args.bytes()?;
    let (count, len) = (args.number()?, args.number()? as usize);
    let pause = Duration::from_micros(args.number()? as u64);
    let mut times = Vec::new();
    for version in 0..count {
        let content = stamp::stamped(version as u64, len);
        let start = Instant::now();
        save(path, &content, usize::MAX, Duration::ZERO)?;
        times.push(start.elapsed().as_micros().to_string().into_bytes());
        std::thread::sleep(pause);
    }
    Ok(times)
}

/// `timed-appends PATH COUNT LEN`: for each line, what opening, writing and closing took, in
/// microseconds.
fn timed_appends(args: &mut Words) -> Outcome<Answer> {
    let path = args.bytes()?;
    let (count, len) = (args.number()?, args.number()? as usize);
    let mut line = vec![b'x'; len - 1];
    line.push(b'\n');
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let fd = sys::open(path, libc::O_WRONLY | libc::O_APPEND, 0)?;
        sys::write_all(fd, &line)?;
        sys::close(fd)?;
        times.push(start.elapsed().as_micros().to_string().into_bytes());
    }
    Ok(times)
}
