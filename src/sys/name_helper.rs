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
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

/// Set for the name helper to the mount point.
const VARIABLE: &str = "COMMITFS_NAMES";
/// Instead of a number: nothing was found, or something that isn't of this mount.
const NOTHING: u64 = 0;

/// The daemon's end.
#[derive(Debug)]
pub struct NameHelper {
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
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

    /// Has it look at a path, relative to the mount point. Gives the number of what it found; `None`: nothing that is of this
    /// mount. `waiting` is called each time that it has taken so long.
    pub fn look(
        &mut self,
        path: &Path,
        patience: Duration,
        mut waiting: impl FnMut(),
    ) -> io::Result<Option<u64>> {
        let path = path.as_os_str().as_bytes();
        let length = u32::try_from(path.len()).map_err(io::Error::other)?;
        let mut order = length.to_le_bytes().to_vec();
        order.extend(path);
        self.orders.write_all(&order)?;
        let patience = patience.try_into().map_err(io::Error::other)?;
        loop {
            let mut polled = [PollFd::new(&self.answers, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&patience)) {
                Ok(0) => waiting(),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let mut answer = [0; 8];
        self.answers.read_exact(&mut answer)?;
        let found = u64::from_le_bytes(answer);
        Ok((found != NOTHING).then_some(found))
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
        let found = look(&mountpoint, OsStr::from_bytes(&path)).unwrap_or(NOTHING);
        let told = answers.write_all(&found.to_le_bytes());
        if told.and_then(|()| answers.flush()).is_err() {
            break;
        }
    }
    Some(ExitCode::SUCCESS)
}

/// An error mostly says that the name was dropped.
fn look(mountpoint: &OsStr, path: &OsStr) -> rustix::io::Result<u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(mountpoint, flags, Mode::empty())?;
    let mount = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    // The kernel has to ask: attributes that it has kept say nothing of the name.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let found = rustix::fs::statx(&root, path, flags, StatxFlags::INO)?;
    let device = |told: &rustix::fs::Statx| (told.stx_dev_major, told.stx_dev_minor);
    Ok(match device(&found) == device(&mount) {
        true => found.stx_ino,
        false => NOTHING,
    })
}
