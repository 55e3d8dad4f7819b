//! Rejected content: what aborted transactions had staged, kept for people, within a bound.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, id_name, list, parse_id, read_small};
use crate::types::TxnId;

/// What is known of one rejected content; stored as JSON in `rejected/ID.meta`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Rejected {
    /// Transaction it comes from, also its file's name in hexadecimal.
    pub id: TxnId,
    /// Path it was meant for, relative to the mount's root.
    pub path: String,
    /// Why it wasn't committed, for people.
    pub reason: String,
    /// When, in nanoseconds since the epoch.
    pub time_ns: i64,
    /// Process that had opened it, 0 if unknown.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// Bytes.
    pub len: u64,
}

/// How much rejected content is kept.
#[derive(Clone, Copy, Debug)]
pub struct RejectedBound {
    /// Bytes at most.
    pub bytes: u64,
}

impl RejectedBound {
    /// The lesser of 5 % of the file system and 20 GiB.
    pub fn of(root: impl AsFd) -> RejectedBound {
        let disk =
            rustix::fs::fstatvfs(root).map_or(u64::MAX, |v| v.f_blocks.saturating_mul(v.f_frsize));
        RejectedBound {
            bytes: (disk / 20).min(20 << 30),
        }
    }
}

impl Store {
    /// Moves a staging file to rejected. The meta file comes first, so that content never lies
    /// there unexplained; meta without content is dropped by [`Store::list_rejected`].
    ///
    /// # Errors
    /// When the disk is too full even for the meta file the content is kept all the same.
    pub fn reject(&self, meta: &Rejected) -> Result<(), Errno> {
        let name = id_name(meta.id);
        let text = serde_json::to_vec_pretty(meta).map_err(|_| Errno::INVAL)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let written = self.with_reserve(|| {
            crate::sys::failpoint::fail_point("reject-meta")?;
            let fd = rustix::fs::openat(
                &self.rejected,
                format!("{name}.meta"),
                flags | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o600),
            )?;
            use std::io::Write;
            File::from(fd)
                .write_all(&text)
                .map_err(|e| crate::types::errno_of(&e))
        });
        self.with_reserve(|| rustix::fs::renameat(&self.staging, &name, &self.rejected, &name))?;
        written
    }

    /// All rejected contents, oldest first.
    pub fn list_rejected(&self) -> Result<Vec<Rejected>, Errno> {
        list_rejected(self.rejected.as_fd())
    }

    /// Opens one rejected content for reading.
    pub fn open_rejected(&self, id: TxnId) -> Result<File, Errno> {
        rustix::fs::openat(
            &self.rejected,
            id_name(id),
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .map(File::from)
    }

    /// The meta file of one rejected content, as text.
    pub fn rejected_meta(&self, id: TxnId) -> Result<Vec<u8>, Errno> {
        read_small(self.rejected.as_fd(), &format!("{}.meta", id_name(id)))
    }

    /// Drops the oldest contents until at most `bound` bytes are left; the only copy of a name
    /// goes last. Gives the number of contents dropped.
    pub fn bound_rejected(&self, bound: RejectedBound) -> Result<usize, Errno> {
        let all = self.list_rejected()?;
        let victims = victims(&all, bound.bytes);
        for id in &victims {
            self.drop_rejected(*id)?;
        }
        Ok(victims.len())
    }

    /// Drops one rejected content.
    pub fn drop_rejected(&self, id: TxnId) -> Result<(), Errno> {
        for name in [id_name(id), format!("{}.meta", id_name(id))] {
            match rustix::fs::unlinkat(&self.rejected, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// See [`Store::list_rejected`]; for tools that read a backing directory nobody has mounted.
pub fn list_rejected(dir: std::os::fd::BorrowedFd<'_>) -> Result<Vec<Rejected>, Errno> {
    let mut all = Vec::new();
    for name in list(dir)? {
        let Some(id) = parse_id(OsStr::new(&name)) else {
            continue;
        };
        let Ok(stat) = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let meta = read_small(dir, &format!("{name}.meta"))
            .ok()
            .and_then(|text| serde_json::from_slice::<Rejected>(&text).ok());
        all.push(Rejected {
            id,
            len,
            ..meta.unwrap_or_else(|| Rejected {
                id,
                path: "?".into(),
                reason: "unknown: its meta file is missing".into(),
                time_ns: crate::types::mtime_ns(&stat) as i64,
                pid: 0,
                command: String::new(),
                len,
            })
        });
    }
    all.sort_by_key(|r| (r.time_ns, r.id));
    Ok(all)
}

/// Which of `all` (oldest first) must go so that at most `bytes` are left.
fn victims(all: &[Rejected], bytes: u64) -> Vec<TxnId> {
    let mut total: u64 = all.iter().map(|r| r.len).sum();
    let mut copies: HashMap<&str, usize> = HashMap::new();
    for r in all {
        *copies.entry(&r.path).or_default() += 1;
    }
    let mut gone = Vec::new();
    for only_copies in [false, true] {
        for r in all {
            if total <= bytes {
                return gone;
            }
            let left = copies.get_mut(r.path.as_str()).expect("counted above");
            if gone.contains(&r.id) || (*left <= 1 && !only_copies) {
                continue;
            }
            *left -= 1;
            total -= r.len;
            gone.push(r.id);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(id: TxnId, path: &str, len: u64) -> Rejected {
        Rejected {
            id,
            path: path.into(),
            reason: String::new(),
            time_ns: id as i64,
            pid: 0,
            command: String::new(),
            len,
        }
    }

    #[test]
    fn the_oldest_copy_of_a_name_with_several_goes_first() {
        let all = [
            rejected(1, "a", 10),
            rejected(2, "b", 10),
            rejected(3, "b", 10),
        ];
        assert_eq!(victims(&all, 20), [2]);
    }

    #[test]
    fn only_copies_go_when_nothing_else_is_left() {
        let all = [rejected(1, "a", 10), rejected(2, "b", 10)];
        assert_eq!(victims(&all, 5), [1, 2]);
    }

    #[test]
    fn within_the_bound_nothing_goes() {
        assert!(victims(&[rejected(1, "a", 10)], 10).is_empty());
    }
}
