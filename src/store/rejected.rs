//! Rejected content: what aborted transactions had staged, kept for people.
//!
//! The bound is for content whose name has a version. The only copy of a name goes last, and only
//! when a write would fail otherwise for want of space.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, id_name, list, parse_id, read_small};
use crate::sys::{at, failpoint, spare};
use crate::types::{TxnId, path_of};

/// Why rejected content is dropped where nothing else gives room, for people.
pub const FULL_DISK: &str = "to make room on the full disk";

/// So many contents wait for the disk together: each is open meanwhile.
const AT_ONCE: usize = 256;

/// What is known of one rejected content; stored as JSON in `rejected/ID.meta`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Rejected {
    /// Transaction it comes from; in text always its file's name, 16 hexadecimal digits.
    #[serde(with = "id_text")]
    pub id: TxnId,
    /// Path it was meant for, relative to the mount's root.
    pub path: String,
    /// That path's bytes in hexadecimal, if it isn't UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
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
    /// The round that it was a member of: listed with the others, under this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<String>,
}

impl Rejected {
    /// Path it was meant for, byte for byte.
    pub fn real_path(&self) -> PathBuf {
        path_of(&self.path, self.path_hex.as_deref())
    }

    /// Whether it is, or belongs to, what is listed under an id.
    pub fn is_listed_as(&self, id: &str) -> bool {
        self.round
            .as_ref()
            .map_or_else(|| id_name(self.id) == id, |round| round == id)
    }

    /// Its meta file is missing, or recovery could not tell.
    pub fn is_of_unknown_path(&self) -> bool {
        self.path == "?" || self.path.starts_with("?/")
    }
}

/// Ids as text; older meta files have them as numbers.
mod id_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{TxnId, id_name, parse_id};

    pub fn serialize<S: Serializer>(id: &TxnId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&id_name(*id))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<TxnId, D::Error> {
        let id = match serde_json::Value::deserialize(from)? {
            serde_json::Value::String(text) => parse_id(text.as_ref()),
            other => other.as_u64().map(TxnId),
        };
        id.ok_or_else(|| D::Error::custom("no id of a rejected content"))
    }
}

/// How much rejected content is kept of names that have a version.
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

/// Whose quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

impl Owner {
    /// Who owns a file.
    pub fn of(file: impl AsFd) -> Option<Owner> {
        let stat = rustix::fs::fstat(file).ok()?;
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        Some(Owner { uid, gid })
    }
}

impl Store {
    /// Moves staging files to rejected, whose content waits for the disk together. The meta files come first, so that content
    /// never lies there unexplained; meta without content is dropped by [`Store::list_rejected`]. All are on the
    /// medium when this returns: after that the journal may forget the transactions.
    ///
    /// Where the disk is too full for the meta files, `make_room` is asked for room, until it has none.
    ///
    /// # Errors
    /// When the disk is too full even for a meta file, or fails, the content is kept all the same.
    pub fn reject(&self, metas: &[Rejected], make_room: impl Fn() -> bool) -> Result<(), Errno> {
        let mut result = Ok(());
        for metas in metas.chunks(AT_ONCE) {
            // All of them, whatever becomes of some.
            result = spare::graver(result, self.reject_some(metas, &make_room));
        }
        result
    }

    fn reject_some(&self, metas: &[Rejected], make_room: &impl Fn() -> bool) -> Result<(), Errno> {
        let in_halves = || {
            let (some, others) = metas.split_at(metas.len() / 2);
            spare::graver(
                self.reject_some(some, make_room),
                self.reject_some(others, make_room),
            )
        };
        // A program may have as many files open as the daemon can have descriptors.
        let are_too_many = |e| {
            matches!(e, Errno::MFILE | Errno::NFILE)
                && metas.len() > 1
                && !failpoint::mutant("C22-descriptors")
        };
        let written = loop {
            match self.with_reserve(|| self.explain_rejected(metas)) {
                Err(Errno::NOSPC | Errno::DQUOT) if make_room() => self.reuse_freed(),
                Err(e) if are_too_many(e) => return in_halves(),
                other => break other,
            }
        };
        let (mut files, mut moved) = (Vec::new(), Ok(()));
        for meta in metas {
            match self.open_staging(meta.id) {
                Err(e) if are_too_many(e) => {
                    drop(files);
                    return in_halves();
                }
                Ok(file) => files.extend(file),
                Err(e) => moved = spare::graver(moved, Err(e)),
            }
        }
        let files: Vec<&File> = files.iter().collect();
        let synced = failpoint::sync("C19-sync-rejected", || at::sync_files(&files));
        for name in metas.iter().map(|meta| id_name(meta.id)) {
            let to_rejected = || rustix::fs::renameat(&self.staging, &name, &self.rejected, &name);
            moved = spare::graver(moved, self.with_reserve(to_rejected));
        }
        let named = failpoint::sync("C19-sync-rejected-dir", || {
            rustix::fs::fsync(&self.rejected)
        });
        written.and(synced).and(moved).and(named)
    }

    /// Writes the meta files of contents, durably. All of them, whatever becomes of one.
    fn explain_rejected(&self, metas: &[Rejected]) -> Result<(), Errno> {
        let (mut files, mut written) = (Vec::new(), Ok(()));
        for meta in metas {
            match self.write_meta(meta) {
                Ok(file) => files.push(file),
                Err(e) => written = spare::graver(written, Err(e)),
            }
        }
        let files: Vec<&File> = files.iter().collect();
        let synced = failpoint::sync("C19-sync-rejected-meta", || at::sync_files(&files));
        written.and(synced)
    }

    fn write_meta(&self, meta: &Rejected) -> Result<File, Errno> {
        failpoint::fail_point("reject-meta")?;
        let text = serde_json::to_vec_pretty(meta).map_err(|_| Errno::INVAL)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let fd = spare::open(|| {
            rustix::fs::openat(
                &self.rejected,
                format!("{}.meta", id_name(meta.id)),
                flags | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o600),
            )
        })?;
        use std::io::Write;
        let mut file = File::from(fd);
        file.write_all(&text)
            .map_err(|e| crate::types::errno_of(&e))?;
        Ok(file)
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

    /// Drops the oldest contents of names that have a version, until at most `bound` bytes of such
    /// are left. Gives what was dropped.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn bound_rejected(
        &self,
        bound: RejectedBound,
        has_version: impl Fn(&Path) -> bool,
    ) -> Result<Vec<Rejected>, Errno> {
        let all = self.list_rejected()?;
        let worths = worths(&all, has_version);
        Ok(self.drop_all(with_rounds(&all, beyond(&all, &worths, bound.bytes))))
    }

    /// Gives up what is worth least, and at most `worth`: at least `wanted` bytes of it if there is so
    /// much of its worth. The disk is full, or somebody's quota used up, and only what counts towards
    /// that gives room. Gives what was dropped.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn give_up_rejected(
        &self,
        wanted: u64,
        worth: Worth,
        whose: Option<Owner>,
        has_version: impl Fn(&Path) -> bool,
    ) -> Result<Vec<Rejected>, Errno> {
        let all = self.list_rejected()?;
        let counts = |one: &Rejected| whose.is_none_or(|whose| self.counts_towards(whose, one.id));
        let worths = worths(&all, has_version);
        let counted = all.into_iter().zip(worths).filter(|(one, _)| counts(one));
        let (all, worths): (Vec<_>, Vec<_>) = counted.unzip();
        match worths.iter().min() {
            Some(least_worth) if *least_worth <= worth => {
                Ok(self.drop_all(with_rounds(&all, least(&all, &worths, wanted))))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn counts_towards(&self, whose: Owner, id: TxnId) -> bool {
        let stat = rustix::fs::statat(&self.rejected, id_name(id), AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| stat.st_uid == whose.uid || stat.st_gid == whose.gid)
    }

    /// Whether quotas are of users and groups here: on btrfs they are of subvolumes.
    pub fn has_quotas_of_owners(&self) -> bool {
        const BTRFS: u32 = 0x9123_683e;
        let kind = rustix::fs::fstatfs(&self.staging).map(|stat| stat.f_type as u32);
        kind != Ok(BTRFS) && !failpoint::mutant("C5-quota")
    }

    fn drop_all(&self, victims: Vec<&Rejected>) -> Vec<Rejected> {
        let mut dropped = Vec::new();
        for victim in victims {
            match self.drop_rejected(victim.id) {
                Ok(true) => dropped.push(victim.clone()),
                Ok(false) => {}
                Err(e) => log::error!("rejected/{}: can't be dropped: {e}", id_name(victim.id)),
            }
        }
        dropped
    }

    /// Drops one rejected content. Gives false if it is gone already.
    ///
    /// # Errors
    /// What the system says.
    pub fn drop_rejected(&self, id: TxnId) -> Result<bool, Errno> {
        drop_rejected(self.rejected.as_fd(), id)
    }
}

/// See [`Store::drop_rejected`]; for tools that change a backing directory nobody has mounted.
pub fn drop_rejected(dir: std::os::fd::BorrowedFd<'_>, id: TxnId) -> Result<bool, Errno> {
    let remove = |name: String| match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    };
    let was_there = remove(id_name(id))?;
    remove(format!("{}.meta", id_name(id)))?;
    Ok(was_there)
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
                path_hex: None,
                reason: "unknown: its meta file is missing".into(),
                time_ns: crate::types::mtime_ns(&stat) as i64,
                pid: 0,
                command: String::new(),
                len,
                round: None,
            })
        });
    }
    all.sort_by_key(|r| (r.time_ns, r.id));
    Ok(all)
}

/// What would be lost with a content; the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// Its name has a version.
    HasVersion,
    /// Its name has none, but there is a later content of it.
    Earlier,
    /// Nothing else is left of its name.
    OnlyCopy,
}

/// The worths of `all`, which are oldest first.
fn worths(all: &[Rejected], has_version: impl Fn(&Path) -> bool) -> Vec<Worth> {
    let mut later: HashSet<PathBuf> = HashSet::new();
    let mut worths: Vec<Worth> = all
        .iter()
        .rev()
        .map(|r| {
            let path = r.real_path();
            if r.is_of_unknown_path() {
                return Worth::OnlyCopy;
            }
            if has_version(&path) {
                return Worth::HasVersion;
            }
            if later.insert(path) {
                Worth::OnlyCopy
            } else {
                Worth::Earlier
            }
        })
        .collect();
    worths.reverse();
    if failpoint::mutant("C5-only-copy") {
        worths.fill(Worth::HasVersion);
    }
    worths
}

/// What goes, goes with all of its round (C23): a part of it is of no use.
fn with_rounds<'a>(all: &'a [Rejected], mut victims: Vec<&'a Rejected>) -> Vec<&'a Rejected> {
    let rounds: HashSet<&str> = victims.iter().filter_map(|v| v.round.as_deref()).collect();
    let going: HashSet<TxnId> = victims.iter().map(|v| v.id).collect();
    let goes_along = |r: &&Rejected| {
        r.round
            .as_deref()
            .is_some_and(|round| rounds.contains(round))
    };
    let left = all
        .iter()
        .filter(|r| goes_along(r) && !going.contains(&r.id));
    victims.extend(left);
    victims
}

/// Which of `all` (oldest first) must go so that at most `bytes` are left of names with a version.
fn beyond<'a>(all: &'a [Rejected], worths: &[Worth], bytes: u64) -> Vec<&'a Rejected> {
    let of_versions = || {
        let all = all.iter().zip(worths);
        all.filter(|(_, worth)| **worth == Worth::HasVersion)
            .map(|(r, _)| r)
    };
    let mut total: u64 = of_versions().map(|r| r.len).sum();
    let too_much = |r: &&Rejected| {
        let over = total > bytes;
        total -= r.len;
        over
    };
    of_versions().take_while(too_much).collect()
}

/// Which of `all` (oldest first) are worth least, `wanted` bytes of them.
fn least<'a>(all: &'a [Rejected], worths: &[Worth], wanted: u64) -> Vec<&'a Rejected> {
    let Some(least) = worths.iter().min() else {
        return Vec::new();
    };
    let mut freed = 0;
    let is_needed = |r: &&Rejected| {
        let needed = freed < wanted;
        freed += r.len;
        needed
    };
    let all = all.iter().zip(worths);
    let worth_least = all.filter(|(_, worth)| *worth == least).map(|(r, _)| r);
    worth_least.take_while(is_needed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(id: TxnId, path: &str, len: u64) -> Rejected {
        Rejected {
            id,
            path: path.into(),
            path_hex: None,
            reason: String::new(),
            time_ns: id.0 as i64,
            pid: 0,
            command: String::new(),
            len,
            round: None,
        }
    }

    fn ids(all: Vec<&Rejected>) -> Vec<TxnId> {
        all.iter().map(|r| r.id).collect()
    }

    fn saved(path: &Path) -> bool {
        path.starts_with("saved")
    }

    #[test]
    fn the_bound_takes_the_oldest_of_names_that_have_a_version() {
        let all = [
            rejected(TxnId(1), "new", 1000),
            rejected(TxnId(2), "saved/a", 10),
            rejected(TxnId(3), "new", 1000),
            rejected(TxnId(4), "saved/b", 10),
        ];
        let worths = worths(&all, saved);
        assert_eq!(ids(beyond(&all, &worths, 19)), [2].map(TxnId));
        assert_eq!(ids(beyond(&all, &worths, 0)), [2, 4].map(TxnId));
        assert!(beyond(&all, &worths, 20).is_empty());
    }

    #[test]
    fn a_full_disk_takes_only_copies_last() {
        let mut all = vec![
            rejected(TxnId(1), "new", 10),
            rejected(TxnId(2), "?", 10),
            rejected(TxnId(3), "saved/a", 10),
            rejected(TxnId(4), "new", 10),
            rejected(TxnId(5), "saved/a", 10),
        ];
        let mut order = Vec::new();
        while !all.is_empty() {
            let victims = ids(least(&all, &worths(&all, saved), 1));
            all.retain(|r| !victims.contains(&r.id));
            order.extend(victims);
        }
        assert_eq!(order, [3, 5, 1, 2, 4].map(TxnId));
    }

    #[test]
    fn a_full_disk_takes_no_more_than_is_wanted() {
        let all = [1, 2, 3].map(|id| rejected(TxnId(id), "saved", 10));
        assert_eq!(
            ids(least(&all, &worths(&all, saved), 11)),
            [1, 2].map(TxnId)
        );
    }

    #[test]
    fn ids_are_the_names_of_files_and_were_numbers_once() {
        let one = rejected(TxnId(0x1f), "f", 1);
        let text = serde_json::to_string(&one).unwrap();
        assert!(text.contains(r#""id":"000000000000001f""#), "{text}");
        assert_eq!(serde_json::from_str::<Rejected>(&text).unwrap(), one);
        let old = text.replace(r#""000000000000001f""#, "31");
        assert_eq!(serde_json::from_str::<Rejected>(&old).unwrap(), one);
    }
}
