//! Talking to the daemon of a mount, through files of its virtual directory.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{Failure, exit};
use crate::engine::{Answer, ControlCommand};
use crate::store::STATE_DIR;
use crate::sys::mount::{self as sysmount, MountEntry};

/// What ENOTCONN means.
const DEAD: &str = "the daemon of this mount is gone; mount again, which detaches and recovers it";

/// The mount of ours that an absolute path without symbolic links lies on.
pub fn mount_at(real: &Path) -> std::io::Result<Option<MountEntry>> {
    let table = sysmount::mountinfo()?;
    Ok(real
        .ancestors()
        .find_map(|p| sysmount::top_at(&table, p))
        .filter(|m| m.fstype == sysmount::FSTYPE)
        .cloned())
}

/// What is wrong with a path that was named, in words that help.
pub fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    let why = match error.raw_os_error() {
        Some(libc::ENOTCONN) => DEAD.to_owned(),
        Some(libc::EACCES) => match mounted_for(path) {
            Some(owner) => format!(
                "mounted by user {owner} for that user alone; ask as that user, or mount it with -o allow_other"
            ),
            None => error.to_string(),
        },
        _ => error.to_string(),
    };
    Failure::new(exit::BAD_INPUT, format!("{}: {why}", path.display()))
}

/// Whose mount it is that a path lies on, as far as its words tell: a mount that isn't for this user can't be walked into.
fn mounted_for(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let table = sysmount::mountinfo().ok()?;
    let mount = path.ancestors().find_map(|p| sysmount::top_at(&table, p))?;
    if mount.fstype != sysmount::FSTYPE {
        return None;
    }
    let owner = mount
        .super_options
        .split(',')
        .find_map(|option| option.strip_prefix("user_id="))?;
    Some(owner.to_owned())
}

/// The mount that a path lies on, if it is one of ours and has its daemon.
pub fn mount_of(path: &Path) -> Result<MountEntry, Failure> {
    let bad = |e: std::io::Error| unusable(path, &e);
    let real = path.canonicalize().map_err(bad)?;
    let mount = mount_at(&real).map_err(bad)?.ok_or_else(|| {
        bad(std::io::Error::other(
            "no commitfs is mounted here; `commitfs mount` makes one",
        ))
    })?;
    // The root itself needs no daemon to be found, and the state directory no right to be looked at.
    match mount
        .mount_point
        .join(STATE_DIR)
        .join("lock")
        .symlink_metadata()
    {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Err(bad(e)),
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            let whom =
                mounted_for(&mount.mount_point).map_or(String::new(), |id| format!(" (user {id})"));
            Err(bad(std::io::Error::other(format!(
                "only the user who has mounted it{whom} and root can ask its daemon"
            ))))
        }
        _ => Ok(mount),
    }
}

/// The mount that a path lies on; `None` where no mount of ours is.
///
/// # Errors
/// There is one, but it can't be asked.
pub fn mount_if_any(path: &Path) -> Result<Option<MountEntry>, Failure> {
    match path.canonicalize() {
        Ok(real) if !matches!(mount_at(&real), Ok(None)) => mount_of(path).map(Some),
        Ok(_) => Ok(None),
        Err(e) => Err(unusable(path, &e)),
    }
}

/// Sends a command to a mount's daemon.
pub fn send(mountpoint: &Path, command: &ControlCommand) -> Result<Answer, Failure> {
    let path: PathBuf = mountpoint.join(STATE_DIR).join("control");
    let bad =
        |e: &dyn std::fmt::Display| Failure::new(exit::TROUBLE, format!("{}: {e}", path.display()));
    let text = serde_json::to_vec(command).map_err(|e| bad(&e))?;
    let mut control = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| bad(&e))?;
    control.write_all(&text).map_err(|e| bad(&e))?;
    use std::io::Seek;
    control.rewind().map_err(|e| bad(&e))?;
    let mut answer = Vec::new();
    control.read_to_end(&mut answer).map_err(|e| bad(&e))?;
    serde_json::from_slice(&answer).map_err(|e| bad(&e))
}
