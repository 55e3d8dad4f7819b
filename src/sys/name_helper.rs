//! The name helper: a small process that has the kernel look a name up again which it goes by without asking.
//!
//! A name is dropped where somebody walks there: the kernel asks for its file's attributes, is answered ESTALE, looks the
//! name up once more and finds something else. The daemon can't walk in its own mount, for the reasons that `watch_helper`
//! gives; nor may it tell the kernel by FUSE_NOTIFY_INVAL_ENTRY, which waits for the directory's lock.
//!
//! The name helper has nothing of the daemon's but two pipes, and it goes in by path each time.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};

/// Set for the name helper to the mount point.
const VARIABLE: &str = "COMMITFS_NAMES";
/// The number of the file system's root on its mount.
const ROOT: u64 = 1;
/// The longest path that a name helper is told: the kernel takes no longer one, and the pipe always has room for it.
const LONGEST: usize = 4096;
/// A device, and whether what is no file was found there.
const ANSWER: usize = 9;

/// The daemon's end.
#[derive(Debug)]
pub struct NameHelper {
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
}

/// What was found at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The device at the mount point; 0 if it wasn't found.
    pub device: u64,
    /// There is something of that device at the path, and it isn't a file.
    pub is_no_file: bool,
}

impl NameHelper {
    /// Starts it. It touches the mount only when told to.
    pub fn start(mountpoint: &Path) -> io::Result<NameHelper> {
        super::background::keep_descriptors_to_ourselves();
        let mut child = Command::new("/proc/self/exe")
            .arg0("commitfs-names")
            .env_clear()
            .env(VARIABLE, mountpoint)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, answers) = child.stdin.take().zip(child.stdout.take()).ok_or_else(|| {
            // Both were asked for.
            io::Error::from(io::ErrorKind::BrokenPipe)
        })?;
        Ok(NameHelper {
            child,
            orders,
            answers,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it can be told to look there.
    pub fn reaches(path: &Path) -> bool {
        path.as_os_str().len() < LONGEST
    }

    /// Has it look at a path that it [reaches](Self::reaches), relative to the mount point. What it was told to look at before,
    /// it has answered.
    pub fn look(&mut self, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        let length = u32::try_from(path.len()).map_err(io::Error::other)?;
        let mut order = length.to_le_bytes().to_vec();
        order.extend(path);
        self.orders.write_all(&order)
    }

    /// What it has found; `None`: it has not answered in that time.
    pub fn answer(&mut self, patience: Duration) -> io::Result<Option<Look>> {
        let patience = patience.try_into().map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&self.answers, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&patience)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
        let mut answer = [0; ANSWER];
        self.answers.read_exact(&mut answer)?;
        let [device @ .., is_no_file] = answer;
        Ok(Some(Look {
            device: u64::from_le_bytes(device),
            is_no_file: is_no_file != 0,
        }))
    }

    /// Ends it, once it doesn't wait for a lock in the kernel any more.
    pub fn kill(&mut self) {
        self.child.kill().ok();
    }

    /// Whether it has ended, and is no process any more.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

/// What the process does that [`NameHelper::start`] has started; `None` in any other.
pub fn run_if_asked() -> Option<ExitCode> {
    let mountpoint = std::env::var_os(VARIABLE)?;
    // A signal to the daemon's group or terminal is not for the name helper: it ends with its orders.
    rustix::process::setsid().ok();
    rustix::thread::set_name(c"commitfs-names").ok();
    super::signals::block().ok();
    let (mut orders, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let mut length = [0; 4];
    while orders.read_exact(&mut length).is_ok() {
        let mut path = vec![0; u32::from_le_bytes(length) as usize];
        if orders.read_exact(&mut path).is_err() {
            break;
        }
        let found = look(&mountpoint, OsStr::from_bytes(&path));
        let mut answer = found.device.to_le_bytes().to_vec();
        answer.push(u8::from(found.is_no_file));
        let told = answers.write_all(&answer);
        if told.and_then(|()| answers.flush()).is_err() {
            break;
        }
    }
    Some(ExitCode::SUCCESS)
}

/// An error at the path mostly says that the name was dropped.
fn look(mountpoint: &OsStr, path: &OsStr) -> Look {
    let device = |told: &Statx| rustix::fs::makedev(told.stx_dev_major, told.stx_dev_minor);
    let mut look = Look {
        device: 0,
        is_no_file: false,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(mountpoint, flags, Mode::empty()) else {
        return look;
    };
    match rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::INO) {
        Ok(mount) if mount.stx_ino == ROOT => look.device = device(&mount),
        _ => return look,
    }
    // The kernel has to ask: attributes that it has kept say nothing of the name.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    if let Ok(found) = rustix::fs::statx(&root, path, flags, StatxFlags::TYPE) {
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        look.is_no_file = kind != FileType::RegularFile && device(&found) == look.device;
    }
    look
}
