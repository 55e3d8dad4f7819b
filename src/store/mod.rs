//! The state directory `.commitfs/` inside the backing directory: what lies where.
//!
//! ```text
//! .commitfs/lock            flock'ed by the daemon; holds its pid as text
//! .commitfs/format          magic and version of this layout
//! .commitfs/journal         see the module `journal`
//! .commitfs/staging/ID      contents of open, prepared and committed-but-unapplied transactions
//! .commitfs/rejected/ID     contents of aborted transactions, ID.meta says what they are
//! .commitfs/errors          errors that nobody has read
//! .commitfs/rules.toml      the user's rules, if any
//! ```
//! Everything here goes through descriptors opened before the mount covers the directory.

mod daemon_log;
mod rejected;
mod reserve;
mod rules_file;
mod unread;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::{at, failpoint, mount, spare};
use crate::types::TxnId;
pub use daemon_log::LOG_LIMIT;
pub use rejected::{
    FULL_DISK, Owner, Rejected, RejectedBound, Worth, drop_rejected, list_rejected,
};
pub use unread::Unseen;

/// Name of the state directory.
pub const STATE_DIR: &str = ".commitfs";
/// Name of the user's rules in the state directory.
pub const RULES_FILE: &str = "rules.toml";
/// Name of the log of a daemon in the background, in the state directory.
pub const DAEMON_LOG: &str = "daemon.log";
/// Name of one that has made way.
pub const OLD_LOG: &str = "daemon.log.old";
/// What `.commitfs/format` says. The number changes when the layout does.
pub const FORMAT: &str = "commitfs state directory, format 1\n";

/// How long a killed daemon may take to let go of its lock.
const DYING: std::time::Duration = std::time::Duration::from_secs(20);
/// How long a look at the lock may keep it.
const PROBE: std::time::Duration = std::time::Duration::from_millis(200);
/// How long a daemon whose mount has gone may take to write out what was committed.
const LEAVING: std::time::Duration = std::time::Duration::from_secs(60);

/// Why a backing directory can't be used. Each message names the directory and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory is missing, not a directory, or can't be opened.
    #[error("{path}: {source}: give a directory that exists and that you may read and write")]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another daemon holds it.
    #[error(
        "{path} is already mounted by process {pid}: unmount it first (commitfs umount), or use that mount"
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// The holder's pid as its lock file says, 0 if it says nothing.
        pid: u32,
    },
    /// `.commitfs` exists but isn't ours, or is of a newer format, or is damaged.
    #[error(
        "{path}/.commitfs: {reason}: nothing was changed; look with `commitfs check {path}`, and move the directory .commitfs away only when you don't need what it holds"
    )]
    Foreign {
        /// The backing directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `.commitfs` is another user's.
    #[error(
        "{path}/.commitfs belongs to user {owner}, who has mounted it before: mount it as that user, or, once it is unmounted, \
         make it yours (as root: chown -R {me} {path}/.commitfs)"
    )]
    NotAllowed {
        /// The backing directory.
        path: PathBuf,
        /// Number of the user who owns it.
        owner: u32,
        /// Number of the user who asks.
        me: u32,
    },
    /// A system call on the state directory failed.
    #[error("{path}/.commitfs: {what}: {source}")]
    Io {
        /// The backing directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// An opened backing directory with its state directory.
#[derive(Debug)]
pub struct Store {
    /// Where it was, for messages only: the mount may cover it.
    pub path: PathBuf,
    /// The backing directory.
    pub root: OwnedFd,
    /// `.commitfs`
    pub state: OwnedFd,
    /// `.commitfs/staging`
    pub staging: OwnedFd,
    /// `.commitfs/rejected`
    pub rejected: OwnedFd,
    lock: File,
    reserve: reserve::Reserve,
    quota: OnceLock<bool>,
    fine_times: OnceLock<bool>,
}

/// Name of a staging or rejected file.
pub fn id_name(id: TxnId) -> String {
    format!("{:016x}", id.0)
}

/// The number in such a name.
pub fn parse_id(name: &OsStr) -> Option<TxnId> {
    let name = name.to_str()?;
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok().map(TxnId))?
}

impl Store {
    /// Whether the file system was mounted with a quota when this was asked first, or that can't be told.
    pub fn has_quota(&self) -> bool {
        *self.quota.get_or_init(|| {
            let Ok(stat) = at::stat(&self.root) else {
                return true;
            };
            let device = (
                rustix::fs::major(stat.st_dev),
                rustix::fs::minor(stat.st_dev),
            );
            let table = mount::mountinfo().unwrap_or_default();
            let on_disk = |entry: &&mount::MountEntry| entry.device == device;
            let limits = |entry: &mount::MountEntry| {
                let options = entry.super_options.split(',');
                options
                    .clone()
                    .any(|option| option.contains("quota") && option != "noquota")
            };
            table.iter().find(on_disk).is_none_or(limits)
        })
    }

    /// Whether each write changes its file's time of modification as that is seen, however close to each other they come (Linux 6.13, and
    /// not every file system).
    pub fn tells_writes(&self) -> bool {
        const PROBE: &str = "probe";
        let probe = || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(&self.staging, PROBE, flags, Mode::from_raw_mode(0o600));
            let file = File::from(file?);
            let mut last = at::stat(&file)?;
            for _ in 0..3 {
                rustix::io::pwrite(&file, b"x", 0)?;
                let before = std::mem::replace(&mut last, at::stat(&file)?);
                if (before.st_mtime, before.st_mtime_nsec) == (last.st_mtime, last.st_mtime_nsec) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        *self.fine_times.get_or_init(|| {
            let tells: Result<bool, Errno> = probe();
            rustix::fs::unlinkat(&self.staging, PROBE, rustix::fs::AtFlags::empty()).ok();
            tells == Ok(true)
        })
    }

    /// Opens `path`, creates or checks its state directory and takes its lock.
    ///
    /// # Errors
    /// [`StoreError`], with nothing changed on disk unless the state directory had to be created.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let unusable = |source: Errno| StoreError::Unusable {
            path: path.to_owned(),
            source: source.into(),
        };
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(unusable)?;
        let io = |what: &'static str| {
            move |source: Errno| StoreError::Io {
                path: path.to_owned(),
                what,
                source: source.into(),
            }
        };
        match rustix::fs::mkdirat(&root, STATE_DIR, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(unusable(e)),
        }
        let state = match at::open_dir(&root, OsStr::new(STATE_DIR)) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(StoreError::Foreign {
                    path: path.to_owned(),
                    reason: "it is not a directory".into(),
                });
            }
            Err(Errno::ACCESS | Errno::PERM) => return Err(not_allowed(path)),
            other => other.map_err(io("open"))?,
        };
        let lock = Self::take_lock(path, &state)?;
        Self::check_format(path, &state)?;
        for sub in ["staging", "rejected"] {
            match rustix::fs::mkdirat(&state, sub, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(io("create a sub-directory")(e)),
            }
        }
        let staging = at::open_dir(&state, OsStr::new("staging")).map_err(io("open staging"))?;
        let rejected = at::open_dir(&state, OsStr::new("rejected")).map_err(io("open rejected"))?;
        for dir in [state.as_fd(), root.as_fd()] {
            failpoint::sync("C19-sync-state-dir", || at::sync_dir(dir)).map_err(io("fsync"))?;
        }
        Ok(Store {
            path: path.to_owned(),
            root,
            state,
            staging,
            rejected,
            lock,
            reserve: reserve::Reserve::default(),
            quota: OnceLock::new(),
            fine_times: OnceLock::new(),
        })
    }

    /// Says what would keep [`Store::open`] from working, without changing anything.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub fn preflight(path: &Path) -> Result<(), StoreError> {
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|source| StoreError::Unusable {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let foreign = |reason: String| StoreError::Foreign {
            path: path.to_owned(),
            reason,
        };
        wait_for_leaving(path, root.as_fd())?;
        match at::open_dir(&root, OsStr::new(STATE_DIR)) {
            Ok(state) => {
                Self::read_format(path, &state)?;
                crate::journal::read(state.as_fd())
                    .map(drop)
                    .map_err(|e| foreign(format!("journal: {e}")))
            }
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(foreign("it is not a directory".into())),
            Err(Errno::ACCESS | Errno::PERM) => Err(not_allowed(path)),
            Err(e) => Err(foreign(e.to_string())),
        }
    }

    /// Takes the lock before anything else is looked at: two daemons would ruin each other.
    fn take_lock(path: &Path, state: &OwnedFd) -> Result<File, StoreError> {
        let io = |what: &'static str| {
            move |source: Errno| StoreError::Io {
                path: path.to_owned(),
                what,
                source: source.into(),
            }
        };
        let lock = rustix::fs::openat(
            state,
            "lock",
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o644),
        )
        .map_err(io("open lock"))?;
        // A probe (`lock_holder`) has it for a moment.
        let asked = std::time::Instant::now();
        let taken = loop {
            let taken = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
            let ending = crate::sys::proc::is_ending(holder(lock.as_fd()));
            let patience = if ending { DYING } else { PROBE };
            if taken != Err(Errno::WOULDBLOCK) || asked.elapsed() > patience {
                break taken;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        match taken {
            Ok(()) => Ok(File::from(lock)),
            Err(Errno::WOULDBLOCK) if failpoint::mutant("C20") => Ok(File::from(lock)),
            Err(Errno::WOULDBLOCK) => Err(StoreError::Busy {
                path: path.to_owned(),
                pid: holder(lock.as_fd()),
            }),
            Err(e) => Err(io("lock")(e)),
        }
    }

    /// Whether there is a file `format` of ours; an error if what is there isn't ours.
    fn read_format(path: &Path, state: &OwnedFd) -> Result<bool, StoreError> {
        let foreign = |reason: String| StoreError::Foreign {
            path: path.to_owned(),
            reason,
        };
        match read_small(state.as_fd(), "format") {
            Ok(text) if text == FORMAT.as_bytes() => Ok(true),
            Ok(text) if text.starts_with(b"commitfs state directory, format ") => Err(foreign(
                "format: written by another version of commitfs; use that one".into(),
            )),
            Ok(_) => Err(foreign("format: it is not one of ours".into())),
            Err(Errno::NOENT) => {
                let ours = [
                    "lock",
                    RULES_FILE,
                    // Of somebody who was writing it.
                    "rules.toml.new",
                    DAEMON_LOG,
                    OLD_LOG,
                    "format.new",
                ];
                let names = list(state.as_fd()).map_err(|e| foreign(e.to_string()))?;
                match names.iter().find(|n| !ours.contains(&n.as_str())) {
                    Some(other) => Err(foreign(format!(
                        "it holds {other:?} but no file `format`, so it is not a state directory of commitfs"
                    ))),
                    None => Ok(false),
                }
            }
            Err(e) => Err(foreign(format!("format: can't be read: {e}"))),
        }
    }

    fn check_format(path: &Path, state: &OwnedFd) -> Result<(), StoreError> {
        if Self::read_format(path, state)? {
            return Ok(());
        }
        write_durably(state.as_fd(), "format", FORMAT.as_bytes()).map_err(|e| StoreError::Io {
            path: path.to_owned(),
            what: "write format",
            source: e.into(),
        })
    }

    /// Writes the daemon's pid into the lock file.
    pub fn record_pid(&self, pid: u32) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.lock, 0)?;
        rustix::io::pwrite(&self.lock, format!("{pid}\n").as_bytes(), 0)?;
        Ok(())
    }

    /// Pid in the lock file of the backing directory `root`, whoever holds it.
    pub fn lock_holder(root: BorrowedFd<'_>) -> Option<u32> {
        if failpoint::mutant("C20") {
            return None;
        }
        let lock = rustix::fs::openat(
            root,
            format!("{STATE_DIR}/lock"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .ok()?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Some(holder(lock.as_fd())),
            _ => None,
        }
    }

    /// Creates the staging file of transaction `id`.
    pub fn create_staging(&self, id: TxnId) -> Result<File, Errno> {
        crate::sys::failpoint::fail_point("staging-create")?;
        rustix::fs::openat(
            &self.staging,
            id_name(id),
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )
        .map(File::from)
    }

    /// Opens an existing staging file.
    pub fn open_staging(&self, id: TxnId) -> Result<Option<File>, Errno> {
        match rustix::fs::openat(
            &self.staging,
            id_name(id),
            OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Moves a staging file to its name in the backing directory, over whatever file is there.
    pub fn apply(&self, id: TxnId, dir: impl AsFd, name: &OsStr) -> Result<(), Errno> {
        crate::sys::failpoint::fail_point("apply")?;
        self.with_reserve(|| rustix::fs::renameat(&self.staging, id_name(id), &dir, name))
    }

    /// Removes a staging file; one that is already gone is fine.
    pub fn remove_staging(&self, id: TxnId) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.staging, id_name(id), rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Ids of all staging files.
    pub fn staged_ids(&self) -> Result<Vec<TxnId>, Errno> {
        let mut ids: Vec<_> = list(self.staging.as_fd())?
            .iter()
            .filter_map(|n| parse_id(OsStr::new(n)))
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Bytes of all that is staged or rejected.
    pub fn bytes_kept(&self) -> u64 {
        let len = |dir: &OwnedFd, name: &String| {
            let stat = at::stat_at(dir, OsStr::new(name)).ok().flatten();
            stat.map_or(0, |s| u64::try_from(s.st_blocks).unwrap_or(0) * 512)
        };
        [&self.staging, &self.rejected]
            .into_iter()
            .flat_map(|dir| {
                let names = list(dir.as_fd()).unwrap_or_default();
                names.into_iter().map(move |name| len(dir, &name))
            })
            .sum()
    }

    /// Makes durable that files have left staging, once their new names are. Where a rename is one
    /// step on the medium, it is; elsewhere (btrfs) a file may have both names after a power cut.
    pub fn sync_moved_away(&self) -> Result<(), Errno> {
        const ONE_STEP: [i64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];
        let kind = rustix::fs::fstatfs(&self.staging)?.f_type;
        match ONE_STEP.contains(&kind) {
            true => Ok(()),
            false => self.sync_staging_dir(),
        }
    }

    /// Whether a staging file has another name: it has been put in its place, or moved to rejected,
    /// and a power cut came before the medium knew that it left.
    pub fn is_moved_away(&self, file: impl AsFd) -> Result<bool, Errno> {
        Ok(at::stat(file)?.st_nlink > 1 && !failpoint::mutant("C18-moved-away"))
    }

    /// Makes the directory of staging files durable.
    pub fn sync_staging_dir(&self) -> Result<(), Errno> {
        spare::told_once(|| rustix::fs::fsync(&self.staging))
    }
}

fn not_allowed(path: &Path) -> StoreError {
    use std::os::unix::fs::MetadataExt;
    let owner = path.join(STATE_DIR).metadata().map_or(0, |m| m.uid());
    StoreError::NotAllowed {
        path: path.to_owned(),
        owner,
        me: rustix::process::geteuid().as_raw(),
    }
}

/// Waits while the lock of a backing directory is held by a daemon that will let go of it by itself:
/// one that was killed keeps it until its last write to the disk has ended; one whose mount is gone
/// (`umount DIR` doesn't wait for its daemon) until all that was committed is in place.
///
/// # Errors
/// [`StoreError::Busy`] if the holder is there to stay, or takes too long.
fn wait_for_leaving(path: &Path, root: BorrowedFd<'_>) -> Result<(), StoreError> {
    use crate::sys::{mount::sees_mount_of, proc};
    let asked = std::time::Instant::now();
    let mut told = false;
    while let Some(pid) = Store::lock_holder(root) {
        let patience = if proc::is_ending(pid) {
            DYING
        } else if !sees_mount_of(pid, path).unwrap_or(true) {
            LEAVING
        } else {
            std::time::Duration::ZERO
        };
        let waited = asked.elapsed();
        if waited >= patience {
            return Err(StoreError::Busy {
                path: path.to_owned(),
                pid,
            });
        }
        if waited > std::time::Duration::from_secs(1) && !told {
            told = true;
            log::warn!(
                "{}: waiting for process {pid}, which has it and isn't mounted (yet, or any more)",
                path.display()
            );
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

fn holder(lock: BorrowedFd<'_>) -> u32 {
    let mut text = [0u8; 32];
    let len = rustix::io::pread(lock, &mut text, 0).unwrap_or(0);
    std::str::from_utf8(&text[..len])
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0)
}

/// Names in a directory, without `.` and `..`; names that aren't UTF-8 lossily.
pub(crate) fn list(dir: BorrowedFd<'_>) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whole content of a small file of the state directory.
pub(crate) fn read_small(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
    use std::io::Read;
    let fd = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let mut content = Vec::new();
    File::from(fd)
        .take(16 << 20)
        .read_to_end(&mut content)
        .map_err(|e| crate::types::errno_of(&e))?;
    Ok(content)
}

/// Writes a small file so that after a crash it is there whole or not at all.
pub(crate) fn write_durably(dir: BorrowedFd<'_>, name: &str, content: &[u8]) -> Result<(), Errno> {
    let temporary = format!("{name}.new");
    let fd = rustix::fs::openat(
        dir,
        temporary.as_str(),
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::from_raw_mode(0o644),
    )?;
    let mut file = File::from(fd);
    file.write_all(content)
        .and_then(|()| file.sync_data())
        .map_err(|e| crate::types::errno_of(&e))?;
    rustix::fs::renameat(dir, temporary.as_str(), dir, name)?;
    at::sync_dir(dir)
}
