//! `.commitfs/errors`: what a mount had to say that nobody has read, for the next one.

use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Rejected, Store, id_name, read_small};
use crate::types::{now_ns, path_hex, path_on_a_line};

const NAME: &str = "errors";

/// An error that nobody may have seen (C22).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unseen {
    /// Path relative to the root.
    pub path: String,
    /// Its bytes in hexadecimal, if they aren't UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// What happened.
    pub reason: String,
    /// When, in nanoseconds since the epoch.
    pub time_ns: i64,
    /// Whose close, rename or link it was.
    pub pid: u32,
    /// The short name of that process.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Under which id rejected has, or had, the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// So many bytes of rejected content were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_bytes: Option<u64>,
    /// That is all there is of a new name without a guard, whose writer was killed: a download can
    /// go on from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumable: bool,
    /// It is published all the same: that is what there is to be known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub published: bool,
    /// A command for the shell that helps, where the rest doesn't tell which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// Shown with the command to run next.
    #[serde(skip)]
    pub told: bool,
    /// Read through the attribute or a status since.
    #[serde(skip)]
    pub read: bool,
}

impl Unseen {
    /// What happened to a path (relative to the root) just now, in words, by a process (0: none).
    pub fn of(path: &Path, reason: String, pid: u32) -> Unseen {
        Unseen {
            path: path.to_string_lossy().into_owned(),
            path_hex: path_hex(path),
            reason,
            time_ns: now_ns(),
            pid,
            command: String::new(),
            rejected: None,
            dropped_bytes: None,
            resumable: false,
            published: false,
            remedy: None,
            told: false,
            read: false,
        }
    }

    /// Rejected content that was dropped, for people to know; goes to the log as well.
    pub fn of_dropped(one: &Rejected, why: &str) -> Unseen {
        let (id, len) = (id_name(one.id), one.len);
        let path = one.real_path();
        log::error!(
            "{}: rejected content {id} was dropped {why}: {len} bytes, written by {} ({})",
            path_on_a_line(&path),
            one.pid,
            one.command
        );
        let reason = format!("rejected content {id} was dropped {why}: {len} bytes");
        let mut unseen = Unseen::of(&path, reason, one.pid);
        unseen.command = one.command.clone();
        unseen.rejected = Some(id);
        unseen.dropped_bytes = Some(len);
        unseen
    }
}

impl Store {
    /// Keeps a list of errors.
    ///
    /// # Errors
    /// What the system says; the former list is kept then.
    pub fn keep_unread(&self, list: &[Unseen]) -> Result<(), Errno> {
        if list.is_empty() {
            return match rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(e),
            };
        }
        let text = serde_json::to_vec_pretty(list).map_err(|_| Errno::IO)?;
        self.with_reserve(|| super::write_durably(self.state_fd(), NAME, &text))
    }

    /// The list as it was kept, empty if there is none.
    ///
    /// # Errors
    /// EIO for one that can't be understood, which isn't taken away.
    pub fn kept_unread(&self) -> Result<Vec<Unseen>, Errno> {
        match read_small(self.state_fd(), NAME).unwrap_or_default() {
            none if none.is_empty() => Ok(Vec::new()),
            kept => serde_json::from_slice(&kept).map_err(|_| Errno::IO),
        }
    }

    fn state_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.state)
    }
}
