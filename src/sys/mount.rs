//! Mounting and unmounting, without the mount code of the fuser crate.
//!
//! A process that may mount does so itself; any other asks the set-id helper `fusermount3`. Either way the result is a
//! `/dev/fuse` descriptor for `fuser::Session::from_fd`, and nothing here unmounts behind the caller's back. Every
//! removal first makes sure that the topmost mount on the path is one of commitfs.
//!
//! None of these functions may run on a thread that serves the very mount they are about.

mod backing;
mod helper;
mod table;

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::CapabilitySet;
use thiserror::Error;

pub use backing::{FsKind, fs_kind, has_rename_semantics};
pub use helper::find as find_helper;
pub use rustix::mount::MountFlags;
pub use table::{FSTYPE, MountEntry, commitfs_mounts, mountinfo, sees_mount_of, top_at};

/// How long [`is_dead`] waits for an answer; a dead mount gives its own at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many layers [`detach_dead`] takes off one path before it concludes that it isn't getting anywhere.
const MAX_LAYERS: usize = 64;

/// What to mount, and how.
#[derive(Debug, Clone)]
pub struct MountRequest<'a> {
    /// An existing directory.
    pub mountpoint: &'a Path,
    /// What the mount table shows as its source: the path of the backing directory.
    pub source: &'a str,
    /// Let other users in, where that is allowed (see [`Mounted::allow_other`]).
    pub allow_other: bool,
    /// Let the kernel check permissions by owner and mode.
    pub default_permissions: bool,
    /// Mount read-only.
    pub read_only: bool,
    /// `NOSUID`, `NODEV`, `NOEXEC`, `NOATIME` … The helper always adds the first two, and leaves out flags that it has
    /// no word for.
    pub flags: MountFlags,
    /// The largest read request, in bytes.
    pub max_read: Option<u32>,
}

/// Why the process can't give the kernel files to read by itself (passthrough), if it can't.
pub fn why_not_pass_through() -> Option<&'static str> {
    /// Number of the pid namespace that all others lie in.
    const INITIAL: &str = "pid:[4026531836]";
    let sets = rustix::thread::capabilities(None);
    if !sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)) {
        return Some("the daemon lacks CAP_SYS_ADMIN");
    }
    // A program outside has no number here, so that no node of its own can be given to it: it writes at the readers' node.
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    let is_initial = namespace.is_ok_and(|name| name.as_os_str() == INITIAL);
    (!is_initial).then_some("the daemon runs in a pid namespace of its own")
}

/// A mount that waits for its daemon to serve `device`.
#[derive(Debug)]
pub struct Mounted {
    /// The connection, for `fuser::Session::from_fd`. When its last duplicate is closed, the mount is dead.
    pub device: OwnedFd,
    /// The process mounted by itself, with CAP_SYS_ADMIN (which kernel passthrough needs, too).
    pub privileged: bool,
    /// Other users are let in. False although asked for means that `/etc/fuse.conf` lacks `user_allow_other`.
    pub allow_other: bool,
    /// The mount point as the mount table has it: absolute, without symbolic links.
    pub mountpoint: PathBuf,
}

/// Why a mount could not be made or removed. The text says what to do about it.
#[derive(Debug, Error)]
pub enum MountError {
    /// There is nothing at the mount point.
    #[error("{}: no such directory; create it first", .path.display())]
    Missing {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point is a file.
    #[error("{}: not a directory; a mount point has to be one", .path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// A mount without a daemon lies on the mount point.
    #[error("{}: the file system mounted here has lost its daemon; detach it with `umount -l` or `fusermount3 -uz`", .path.display())]
    Dead {
        /// The mount point.
        path: PathBuf,
    },
    /// No FUSE in this kernel or container.
    #[error(
        "/dev/fuse can't be opened ({source}); load the module (`modprobe fuse`) or give the container the device"
    )]
    NoFuse {
        /// What opening the device said.
        source: io::Error,
    },
    /// No right to mount and no helper to do it.
    #[error("{}: only root may mount without fusermount3; install the package fuse3 or run as root", .path.display())]
    NoHelper {
        /// The mount point.
        path: PathBuf,
    },
    /// The kernel or the helper says no.
    #[error("{}: mounting is refused: {reason}; `commitfs doctor` looks for the cause", .path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// In the words of the kernel or of `fusermount3`.
        reason: String,
    },
    /// The mount is in use.
    #[error("{}: in use; close what is open below it (`fuser -vm` lists the processes) or detach it lazily", .path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// The topmost mount on the path is not one of commitfs, or there is none.
    #[error("{}: no commitfs is mounted here", .path.display())]
    NotMounted {
        /// The path.
        path: PathBuf,
    },
    /// Something else that the system reported.
    #[error("{}: cannot {doing}: {source}", .path.display())]
    System {
        /// What was tried.
        doing: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl MountError {
    fn system(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::System {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// Mounts, directly or through `fusermount3`.
pub fn mount(request: &MountRequest) -> Result<Mounted, MountError> {
    let mountpoint = checked_mountpoint(request.mountpoint)?;
    if may_mount() {
        match mount_directly(request, &mountpoint) {
            // A sandbox may take the right away although the capability is there.
            Err(MountError::Refused { .. }) if helper::exists() => {}
            other => return other,
        }
    }
    helper::mount(request, &mountpoint)
}

/// Whether a mount of this process can be for other users as well: `/etc/fuse.conf` has to allow that to ordinary users.
pub fn may_let_others_in() -> bool {
    rustix::process::getuid().is_root() || helper::configuration_allows_other()
}

/// Whether this process may mount by itself (CAP_SYS_ADMIN).
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// The mount point without symbolic links, if it is a directory.
fn checked_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let owned = || path.to_owned();
    // O_PATH sends no request to whatever is mounted there.
    let opened = rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    match opened {
        Ok(_) => {}
        Err(Errno::NOENT) => return Err(MountError::Missing { path: owned() }),
        Err(Errno::NOTDIR) => return Err(MountError::NotADirectory { path: owned() }),
        Err(Errno::NOTCONN) => return Err(MountError::Dead { path: owned() }),
        Err(error) => return Err(MountError::system("use it as a mount point", path, error)),
    }
    let resolved = resolve(path);
    let covered = mountinfo()
        .is_ok_and(|table| top_at(&table, &resolved).is_some_and(|top| top.fstype == FSTYPE));
    if covered && is_dead(&resolved) {
        return Err(MountError::Dead { path: owned() });
    }
    Ok(resolved)
}

fn mount_directly(request: &MountRequest, mountpoint: &Path) -> Result<Mounted, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| MountError::NoFuse {
            source: error.into(),
        })?;
    let mut flags = request.flags;
    flags.set(
        MountFlags::RDONLY,
        request.read_only || flags.contains(MountFlags::RDONLY),
    );
    let data = direct_options(request, device.as_raw_fd());
    match rustix::mount::mount(request.source, mountpoint, FSTYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(Mounted {
            device,
            privileged: true,
            allow_other: request.allow_other,
            mountpoint: mountpoint.to_owned(),
        }),
        Err(Errno::NODEV) => Err(MountError::NoFuse {
            source: Errno::NODEV.into(),
        }),
        Err(error @ (Errno::PERM | Errno::ACCESS)) => Err(MountError::Refused {
            path: mountpoint.to_owned(),
            reason: error.to_string(),
        }),
        Err(error) => Err(MountError::system("mount", mountpoint, error)),
    }
}

/// The options of a direct mount: all numbers and fixed words, so there is nothing to escape.
fn direct_options(request: &MountRequest, device: i32) -> CString {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let mut options = format!("fd={device},rootmode=40000,user_id={uid},group_id={gid}");
    if request.default_permissions {
        options.push_str(",default_permissions");
    }
    if request.allow_other {
        options.push_str(",allow_other");
    }
    if let Some(bytes) = request.max_read {
        let _ = write!(options, ",max_read={bytes}");
    }
    CString::new(options).unwrap_or_default()
}

/// Removes the commitfs mount on top of `mountpoint`; with `lazy` it is detached now and goes when its last user has
/// gone.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let path = resolve(mountpoint);
    let table =
        mountinfo().map_err(|error| MountError::system("read the mount table", &path, error))?;
    match top_at(&table, &path) {
        Some(top) if top.fstype == FSTYPE => remove_top(&path, lazy),
        _ => Err(MountError::NotMounted { path }),
    }
}

fn remove_top(path: &Path, lazy: bool) -> Result<(), MountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => helper::unmount(path, lazy),
        Err(Errno::BUSY) => Err(MountError::Busy {
            path: path.to_owned(),
        }),
        Err(Errno::INVAL | Errno::NOENT) => Err(MountError::NotMounted {
            path: path.to_owned(),
        }),
        Err(error) => Err(MountError::system("unmount", path, error)),
    }
}

/// Whether what is mounted at `mountpoint` has lost its daemon.
///
/// A daemon that lives but doesn't answer within two seconds is not dead; the question put to it then stays behind on a
/// thread of its own (and may keep this process from ending before the daemon does). A user who isn't let into the
/// mount, root among them, gets no answer either and sees it as alive.
pub fn is_dead(mountpoint: &Path) -> bool {
    let path = mountpoint.to_owned();
    let (answer, answered) = mpsc::channel();
    let asking = std::thread::Builder::new()
        .name("mount-probe".to_owned())
        .spawn(move || {
            // A request for statfs goes to the daemon every time, where stat may be served from a cache.
            let _ = answer.send(matches!(rustix::fs::statfs(&path), Err(Errno::NOTCONN)));
        });
    asking.is_ok() && answered.recv_timeout(PROBE_TIMEOUT).unwrap_or(false)
}

/// Detaches the dead commitfs mounts on top of `mountpoint`, down to the first thing that is alive or isn't ours.
/// True if there was one.
pub fn detach_dead(mountpoint: &Path) -> Result<bool, MountError> {
    let path = resolve(mountpoint);
    for layer in 0..MAX_LAYERS {
        let table = mountinfo()
            .map_err(|error| MountError::system("read the mount table", &path, error))?;
        match top_at(&table, &path) {
            Some(top) if top.fstype == FSTYPE && is_dead(&path) => remove_top(&path, true)?,
            _ => return Ok(layer > 0),
        }
    }
    Err(MountError::Dead { path })
}

/// `path`, absolute and without symbolic links, as far as that can be found out: the last component may be a mount
/// that can't be looked at any more.
fn resolve(path: &Path) -> PathBuf {
    if let Ok(whole) = std::fs::canonicalize(path) {
        return whole;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (
        absolute
            .parent()
            .and_then(|parent| std::fs::canonicalize(parent).ok()),
        absolute.file_name(),
    ) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> MountRequest<'static> {
        MountRequest {
            mountpoint: Path::new("/"),
            source: "/a,b",
            allow_other: false,
            default_permissions: false,
            read_only: false,
            flags: MountFlags::empty(),
            max_read: None,
        }
    }

    #[test]
    fn the_source_is_no_part_of_the_direct_options() {
        let options = direct_options(&request(), 7).into_string().unwrap();
        assert!(
            options.starts_with("fd=7,rootmode=40000,user_id="),
            "{options}"
        );
        assert_eq!(options.split(',').count(), 4, "{options}");
        let all = MountRequest {
            allow_other: true,
            default_permissions: true,
            max_read: Some(131_072),
            ..request()
        };
        let options = direct_options(&all, 7).into_string().unwrap();
        assert!(
            options.ends_with(",default_permissions,allow_other,max_read=131072"),
            "{options}"
        );
    }

    #[test]
    fn a_bad_mount_point_is_named() {
        let missing = mount(&MountRequest {
            mountpoint: Path::new("/nonexistent/x"),
            ..request()
        })
        .unwrap_err();
        assert_eq!(
            missing.to_string(),
            "/nonexistent/x: no such directory; create it first"
        );
        let file = mount(&MountRequest {
            mountpoint: Path::new("/dev/null"),
            ..request()
        })
        .unwrap_err();
        assert!(matches!(file, MountError::NotADirectory { .. }), "{file}");
    }

    #[test]
    fn other_mounts_are_never_removed() {
        for path in ["/proc", "/", "/nonexistent/x"] {
            assert!(
                matches!(
                    unmount(Path::new(path), true),
                    Err(MountError::NotMounted { .. })
                ),
                "{path}"
            );
            assert!(!detach_dead(Path::new(path)).unwrap(), "{path}");
        }
    }

    #[test]
    fn a_path_is_resolved_up_to_what_can_be_seen() {
        assert_eq!(
            resolve(Path::new("/proc/self/../self/nonexistent"))
                .file_name()
                .unwrap(),
            "nonexistent"
        );
        assert_eq!(
            resolve(Path::new("/dev/../dev/null")),
            Path::new("/dev/null")
        );
    }
}
