//! The system calls, each with the name of the step that failed. All unsafe code is here.

use std::ffi::CString;
use std::os::fd::RawFd;

#[derive(Debug)]
pub struct Failure {
    pub errno: i32,
    pub stage: &'static str,
}

pub type Outcome<T> = Result<T, Failure>;

fn last(stage: &'static str) -> Failure {
    Failure {
        errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
        stage,
    }
}

fn check(result: i64, stage: &'static str) -> Outcome<i64> {
    if result < 0 {
        Err(last(stage))
    } else {
        Ok(result)
    }
}

fn cstring(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("no NUL in a path")
}

/// Rust ignores SIGPIPE and catches SIGSEGV; a test program does neither.
pub fn default_signals() {
    for signal in [libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS] {
        set_signal(signal, libc::SIG_DFL);
    }
}

pub fn set_signal(signal: i32, action: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
    unsafe { libc::signal(signal, action) };
}

pub fn connect(path: &str) -> Outcome<RawFd> {
    // SAFETY: the address is initialised, its length is the structure's.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(fd.into(), "socket")?;
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
            *to = from as libc::c_char;
        }
        let size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        check(
            libc::connect(fd, (&raw const address).cast(), size).into(),
            "connect",
        )?;
        Ok(fd)
    }
}

pub fn open(path: &[u8], flags: i32, mode: u32) -> Outcome<RawFd> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(
        unsafe { libc::open(path.as_ptr(), flags, mode) }.into(),
        "open",
    )
    .map(|fd| fd as RawFd)
}

pub fn close(fd: RawFd) -> Outcome<()> {
    // SAFETY: the slot that held the descriptor is gone.
    check(unsafe { libc::close(fd) }.into(), "close").map(drop)
}

pub fn read(fd: RawFd, size: usize) -> Outcome<Vec<u8>> {
    let mut buffer = vec![0; size];
    // SAFETY: the buffer has `size` bytes.
    let got = check(
        unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), size) } as i64,
        "read",
    )?;
    buffer.truncate(got as usize);
    Ok(buffer)
}

pub fn read_all(fd: RawFd) -> Outcome<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let more = read(fd, 256 * 1024)?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

pub fn pread(fd: RawFd, size: usize, offset: i64) -> Outcome<Vec<u8>> {
    let mut buffer = vec![0; size];
    // SAFETY: the buffer has `size` bytes.
    let got = unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), size, offset) };
    buffer.truncate(check(got as i64, "pread")? as usize);
    Ok(buffer)
}

pub fn write(fd: RawFd, data: &[u8]) -> Outcome<usize> {
    // SAFETY: the slice is valid for its length.
    let done = unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) };
    check(done as i64, "write").map(|n| n as usize)
}

pub fn write_all(fd: RawFd, mut data: &[u8]) -> Outcome<()> {
    while !data.is_empty() {
        let done = write(fd, data)?;
        data = &data[done..];
    }
    Ok(())
}

pub fn pwrite(fd: RawFd, data: &[u8], offset: i64) -> Outcome<usize> {
    // SAFETY: the slice is valid for its length.
    let done = unsafe { libc::pwrite(fd, data.as_ptr().cast(), data.len(), offset) };
    check(done as i64, "pwrite").map(|n| n as usize)
}

pub fn seek(fd: RawFd, offset: i64) -> Outcome<i64> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::lseek(fd, offset, libc::SEEK_SET) }, "lseek")
}

pub fn fsync(fd: RawFd, data_only: bool) -> Outcome<()> {
    // SAFETY: no memory is involved.
    let result = unsafe {
        if data_only {
            libc::fdatasync(fd)
        } else {
            libc::fsync(fd)
        }
    };
    check(result.into(), "fsync").map(drop)
}

pub fn ftruncate(fd: RawFd, size: i64) -> Outcome<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::ftruncate(fd, size) }.into(), "ftruncate").map(drop)
}

pub fn truncate(path: &[u8], size: i64) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(
        unsafe { libc::truncate(path.as_ptr(), size) }.into(),
        "truncate",
    )
    .map(drop)
}

pub fn dup(fd: RawFd) -> Outcome<RawFd> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::dup(fd) }.into(), "dup").map(|fd| fd as RawFd)
}

pub fn dup2(from: RawFd, to: RawFd) -> Outcome<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::dup2(from, to) }.into(), "dup2").map(drop)
}

pub fn fstat(fd: RawFd) -> Outcome<libc::stat> {
    // SAFETY: stat is plain data and filled by the call.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::fstat(fd, &mut stat).into(), "fstat")?;
        Ok(stat)
    }
}

pub fn stat(path: &[u8]) -> Outcome<libc::stat> {
    let path = cstring(path);
    // SAFETY: stat is plain data and filled by the call.
    unsafe {
        let mut stat = std::mem::zeroed();
        check(libc::stat(path.as_ptr(), &mut stat).into(), "stat")?;
        Ok(stat)
    }
}

pub fn rename(from: &[u8], to: &[u8], flags: u32) -> Outcome<()> {
    let (from, to) = (cstring(from), cstring(to));
    // SAFETY: NUL-terminated paths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            flags,
        )
    };
    check(result, "rename").map(drop)
}

pub fn link(from: &[u8], to: &[u8]) -> Outcome<()> {
    let (from, to) = (cstring(from), cstring(to));
    // SAFETY: NUL-terminated paths.
    check(
        unsafe { libc::link(from.as_ptr(), to.as_ptr()) }.into(),
        "link",
    )
    .map(drop)
}

pub fn unlink(path: &[u8]) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::unlink(path.as_ptr()) }.into(), "unlink").map(drop)
}

pub fn mkdir(path: &[u8]) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::mkdir(path.as_ptr(), 0o777) }.into(), "mkdir").map(drop)
}

pub fn rmdir(path: &[u8]) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::rmdir(path.as_ptr()) }.into(), "rmdir").map(drop)
}

pub fn getxattr(path: &[u8], name: &[u8]) -> Outcome<Vec<u8>> {
    let (path, name) = (cstring(path), cstring(name));
    let mut value = vec![0; 64 * 1024];
    // SAFETY: the buffer has the length given.
    let size = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(check(size as i64, "getxattr")? as usize);
    Ok(value)
}

pub fn setxattr(path: &[u8], name: &[u8], value: &[u8]) -> Outcome<()> {
    let (path, name) = (cstring(path), cstring(name));
    // SAFETY: NUL-terminated strings, and a value with its length.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    check(result.into(), "setxattr").map(drop)
}

pub fn listxattr(path: &[u8]) -> Outcome<Vec<Vec<u8>>> {
    let path = cstring(path);
    let mut names = vec![0u8; 64 * 1024];
    // SAFETY: the buffer has the length given.
    let size = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(size as i64, "listxattr")? as usize);
    let mut names: Vec<Vec<u8>> = names
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    Ok(names)
}

pub fn chmod(path: &[u8], mode: u32) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(unsafe { libc::chmod(path.as_ptr(), mode) }.into(), "chmod").map(drop)
}

pub fn fchmod(fd: RawFd, mode: u32) -> Outcome<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::fchmod(fd, mode) }.into(), "fchmod").map(drop)
}

pub fn chown(path: &[u8], uid: u32, gid: u32) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(
        unsafe { libc::lchown(path.as_ptr(), uid, gid) }.into(),
        "chown",
    )
    .map(drop)
}

/// Access time left alone, modification time in nanoseconds since the epoch.
fn mtime(ns: i64) -> [libc::timespec; 2] {
    [
        libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_OMIT,
        },
        libc::timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000),
        },
    ]
}

pub fn utimens(path: &[u8], ns: i64) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path and two times.
    let result = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), mtime(ns).as_ptr(), 0) };
    check(result.into(), "utimensat").map(drop)
}

pub fn futimens(fd: RawFd, ns: i64) -> Outcome<()> {
    // SAFETY: two times.
    check(
        unsafe { libc::futimens(fd, mtime(ns).as_ptr()) }.into(),
        "futimens",
    )
    .map(drop)
}

pub fn symlink(target: &[u8], path: &[u8]) -> Outcome<()> {
    let (target, path) = (cstring(target), cstring(path));
    // SAFETY: NUL-terminated paths.
    check(
        unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }.into(),
        "symlink",
    )
    .map(drop)
}

pub fn readlink(path: &[u8]) -> Outcome<Vec<u8>> {
    let path = cstring(path);
    let mut target = vec![0u8; 4096];
    // SAFETY: the buffer has the length given.
    let len = unsafe { libc::readlink(path.as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    target.truncate(check(len as i64, "readlink")? as usize);
    Ok(target)
}

pub fn mkfifo(path: &[u8]) -> Outcome<()> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    check(
        unsafe { libc::mkfifo(path.as_ptr(), 0o640) }.into(),
        "mkfifo",
    )
    .map(drop)
}

pub fn fallocate(fd: RawFd, mode: i32, offset: i64, len: i64) -> Outcome<()> {
    // SAFETY: no memory is involved.
    check(
        unsafe { libc::fallocate(fd, mode, offset, len) }.into(),
        "fallocate",
    )
    .map(drop)
}

pub fn seek_sparse(fd: RawFd, offset: i64, hole: bool) -> Outcome<i64> {
    let whence = if hole {
        libc::SEEK_HOLE
    } else {
        libc::SEEK_DATA
    };
    // SAFETY: no memory is involved.
    check(unsafe { libc::lseek(fd, offset, whence) }, "lseek")
}

pub fn copy_range(from: RawFd, mut at: i64, to: RawFd, mut there: i64, len: usize) -> Outcome<i64> {
    // SAFETY: the offsets live on the stack.
    let copied = unsafe { libc::copy_file_range(from, &mut at, to, &mut there, len, 0) };
    check(copied as i64, "copy_file_range")
}

/// Memory that O_DIRECT takes.
#[repr(align(4096))]
struct Blocks([u8; 65536]);

pub fn write_blocks(fd: RawFd, offset: i64, len: usize, byte: u8) -> Outcome<i64> {
    let blocks = Box::new(Blocks([byte; 65536]));
    assert!(len <= blocks.0.len(), "too many blocks");
    // SAFETY: the buffer is longer than `len`.
    let done = unsafe { libc::pwrite(fd, blocks.0.as_ptr().cast(), len, offset) };
    check(done as i64, "pwrite")
}

pub fn read_blocks(fd: RawFd, offset: i64, len: usize) -> Outcome<Vec<u8>> {
    let mut blocks = Box::new(Blocks([0; 65536]));
    assert!(len <= blocks.0.len(), "too many blocks");
    // SAFETY: the buffer is longer than `len`.
    let got = unsafe { libc::pread(fd, blocks.0.as_mut_ptr().cast(), len, offset) };
    Ok(blocks.0[..check(got as i64, "pread")? as usize].to_vec())
}

pub fn open_beneath(dir: RawFd, path: &[u8]) -> Outcome<RawFd> {
    let path = cstring(path);
    // SAFETY: the structure is plain data, initialised, and given with its size.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = libc::O_RDWR as u64;
        how.resolve = libc::RESOLVE_BENEATH;
        let fd = libc::syscall(
            libc::SYS_openat2,
            dir,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        );
        check(fd, "openat2").map(|fd| fd as RawFd)
    }
}

pub fn become_user(uid: u32, gid: u32) -> Outcome<()> {
    // SAFETY: no memory is involved; this process has one thread.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()).into(), "setgroups")?;
        check(libc::setgid(gid).into(), "setgid")?;
        check(libc::setuid(uid).into(), "setuid").map(drop)
    }
}

pub fn umask(mask: u32) {
    // SAFETY: no memory is involved.
    unsafe { libc::umask(mask) };
}

/// Whether there is something to read, waiting so long for it.
pub fn readable(fd: RawFd, patience_ms: i32) -> Outcome<bool> {
    let mut one = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure on the stack.
    check(
        unsafe { libc::poll(&mut one, 1, patience_ms) }.into(),
        "poll",
    )
    .map(|n| n > 0)
}

pub fn set_limit_fsize(limit: u64) -> Outcome<()> {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure is initialised.
    let mut result = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
    if result < 0 {
        let both = libc::rlimit {
            rlim_cur: limit.rlim_cur,
            rlim_max: limit.rlim_cur,
        };
        // SAFETY: the structure is initialised.
        result = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &both) };
    }
    check(result.into(), "setrlimit").map(drop)
}

/// A shared, writable mapping.
#[derive(Clone, Copy)]
pub struct Map {
    at: *mut u8,
    len: usize,
}

// SAFETY: an address and a length; what lies there belongs to all threads anyway.
unsafe impl Send for Map {}

pub fn mmap(fd: RawFd, len: usize, write: bool) -> Outcome<Map> {
    let protection = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    // SAFETY: the kernel picks the address.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        Err(last("mmap"))
    } else {
        Ok(Map { at: at.cast(), len })
    }
}

impl Map {
    pub fn write(self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len, "beyond the mapping");
        // SAFETY: checked against the mapping's length; a file cut short is a SIGBUS, as it should.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.at.add(offset), data.len()) };
    }

    pub fn read(self, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= self.len, "beyond the mapping");
        // SAFETY: as above; volatile, because another process may write it.
        (offset..offset + len)
            .map(|i| unsafe { self.at.add(i).read_volatile() })
            .collect()
    }

    pub fn sync(self) -> Outcome<()> {
        // SAFETY: the mapping's own range.
        let result = unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) };
        check(result.into(), "msync").map(drop)
    }

    pub fn unmap(self) -> Outcome<()> {
        // SAFETY: the slot that held the mapping is gone.
        check(
            unsafe { libc::munmap(self.at.cast(), self.len) }.into(),
            "munmap",
        )
        .map(drop)
    }
}

/// What sendfile(2) delivers of a descriptor, through a memory file.
pub fn sendfile(fd: RawFd) -> Outcome<Vec<u8>> {
    // SAFETY: plain system calls on descriptors of our own; the offset lives on the stack.
    unsafe {
        let sink = libc::memfd_create(c"sink".as_ptr(), libc::MFD_CLOEXEC);
        check(sink.into(), "memfd_create")?;
        let mut offset = 0;
        loop {
            let sent = libc::sendfile(sink, fd, &mut offset, 1 << 20);
            if check(sent as i64, "sendfile")? == 0 {
                break;
            }
        }
        let data = pread(sink, offset as usize, 0);
        libc::close(sink);
        data
    }
}

pub fn fork() -> Outcome<i32> {
    // SAFETY: this process has one thread.
    check(unsafe { libc::fork() }.into(), "fork").map(|pid| pid as i32)
}

pub fn wait(pid: i32) -> Outcome<i32> {
    let mut status = 0;
    // SAFETY: the status lives on the stack.
    check(
        unsafe { libc::waitpid(pid, &mut status, 0) }.into(),
        "waitpid",
    )?;
    Ok(status)
}

pub fn socketpair() -> Outcome<(RawFd, RawFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    let result =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) };
    check(result.into(), "socketpair")?;
    Ok((ends[0], ends[1]))
}

/// Control data for one descriptor, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

pub fn send_fd(socket: RawFd, fd: RawFd) -> Outcome<()> {
    let mut control = Control([0; 64]);
    let mut byte = [0u8];
    // SAFETY: every pointer is to a local that outlives the call; the control buffer is large
    // enough for one descriptor.
    unsafe {
        let mut part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        check(libc::sendmsg(socket, &message, 0) as i64, "sendmsg").map(drop)
    }
}

pub fn receive_fd(socket: RawFd) -> Outcome<RawFd> {
    let mut control = Control([0; 64]);
    let mut byte = [0u8];
    // SAFETY: as in send_fd; the header is checked before it is read.
    unsafe {
        let mut part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        check(libc::recvmsg(socket, &mut message, 0) as i64, "recvmsg")?;
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null() {
            return Err(Failure {
                errno: libc::ENOMSG,
                stage: "recvmsg",
            });
        }
        Ok(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
    }
}

pub fn inotify(path: &[u8], mask: u32) -> Outcome<RawFd> {
    let path = cstring(path);
    // SAFETY: a NUL-terminated path.
    unsafe {
        let fd = libc::inotify_init1(libc::IN_CLOEXEC);
        check(fd.into(), "inotify_init")?;
        check(
            libc::inotify_add_watch(fd, path.as_ptr(), mask).into(),
            "inotify_add_watch",
        )?;
        Ok(fd)
    }
}

/// An advisory lock of an open description; `operation` says whether to wait.
pub fn flock(fd: RawFd, operation: i32) -> Outcome<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::flock(fd, operation) }.into(), "flock").map(drop)
}

/// An advisory lock of a range: `command` is F_SETLK, F_OFD_SETLKW …, `kind` F_WRLCK, F_UNLCK ….
pub fn lock_range(fd: RawFd, command: i32, kind: i32, start: i64, len: i64) -> Outcome<()> {
    // SAFETY: the structure is initialised.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = start;
        lock.l_len = len;
        check(libc::fcntl(fd, command, &lock).into(), "fcntl").map(drop)
    }
}

pub fn raise(signal: i32) {
    // SAFETY: sends a signal to this process.
    unsafe { libc::kill(libc::getpid(), signal) };
}

pub fn exec(program: &[u8], args: &[Vec<u8>]) -> Failure {
    let program = cstring(program);
    let args: Vec<CString> = args.iter().map(|arg| cstring(arg)).collect();
    let mut pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: a NULL-terminated array of NUL-terminated strings.
    unsafe { libc::execvp(program.as_ptr(), pointers.as_ptr()) };
    last("exec")
}

pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process, running nothing.
    unsafe { libc::_exit(code) }
}

pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::EMLINK => "EMLINK",
        libc::EPIPE => "EPIPE",
        libc::ERANGE => "ERANGE",
        libc::EDEADLK => "EDEADLK",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::ELOOP => "ELOOP",
        libc::ENOMSG => "ENOMSG",
        libc::ENODATA => "ENODATA",
        libc::EBADMSG => "EBADMSG",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENOTCONN => "ENOTCONN",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ESTALE => "ESTALE",
        libc::EDQUOT => "EDQUOT",
        libc::ECANCELED => "ECANCELED",
        libc::E2BIG => "E2BIG",
        other => return format!("E{other}"),
    };
    name.into()
}
