//! Room on a full disk (C5): what is on its way out is waited for, what was replaced is given back,
//! and rejected content makes way, before a write fails for want of space.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Engine, State, pins};
use crate::namespace::Pending;
use crate::store::{FULL_DISK, Owner, Rejected, Worth, id_name};
use crate::sys::{at, failpoint};
use crate::txn::Staging;
use crate::types::{OpResult, TxnId};

/// Room is looked for so long.
pub(super) const ROOM_LIMIT: Duration = Duration::from_secs(3);
/// What was replaced is given back so often for one request.
const GIVE_BACK: u32 = 3;
/// As much as one request may need.
const PIECE: u64 = 1 << 20;

impl Engine {
    /// Does what may find the disk full, as often as room can be made. `what` must be such that it
    /// can be done again after it has failed.
    pub(super) fn making_room<T>(&self, what: impl FnMut() -> OpResult<T>) -> OpResult<T> {
        self.making_room_for(0, what)
    }

    /// Does what writes to a staging file, as often as room can be made: its owner's quota may be what is used up.
    pub(super) fn making_room_in<T>(
        &self,
        staging: &Staging,
        bytes: u64,
        what: impl FnMut() -> OpResult<T>,
    ) -> OpResult<T> {
        self.making_room_of(|| Owner::of(&*staging.lock().file), bytes, what)
    }

    /// Does what needs so many bytes at once, as often as room can be made: nothing is dropped where that would not do.
    pub(super) fn making_room_for<T>(
        &self,
        bytes: u64,
        what: impl FnMut() -> OpResult<T>,
    ) -> OpResult<T> {
        self.making_room_of(|| None, bytes, what)
    }

    fn making_room_of<T>(
        &self,
        owner: impl Fn() -> Option<Owner>,
        bytes: u64,
        mut what: impl FnMut() -> OpResult<T>,
    ) -> OpResult<T> {
        let begun = Instant::now();
        let (mut given_back, mut exhausted) = (0, false);
        loop {
            let gone = self.reaper.closes().ended();
            let result = what();
            let full = match &result {
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) if !exhausted => *errno,
                _ => return result,
            };
            // Others may go on replacing and removing without end.
            let mut found = begun.elapsed() < ROOM_LIMIT && self.wait_for_deferred_closes(gone);
            if !found && given_back < GIVE_BACK {
                given_back += 1;
                found = self.give_back_replaced();
            }
            found = found || pins::make_room(self);
            exhausted = !found && !self.drop_rejected_for(bytes, self.whose(full, &owner));
            self.store.reuse_freed();
        }
    }

    /// Copies what an editor goes on from, unless its writes have failed. What fails once there is no
    /// room fails again for whoever needs the copy.
    pub(super) fn copy_base(&self, staging: &Staging) -> OpResult<()> {
        self.making_room_in(staging, 0, || {
            let mut content = staging.lock();
            match content.failed {
                None => content.copy_base(),
                Some(_) => Ok(()),
            }
        })
    }

    /// As much as could be free at most, with nothing left of what may go.
    fn most_room(&self) -> u64 {
        let free = rustix::fs::fstatvfs(&self.store.root)
            .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        free.saturating_add(self.store.bytes_kept())
    }

    /// The disk was full when `gone` files had left. Gives whether something of ours has made room
    /// since, so that it is worth trying again; waits for the disk.
    ///
    /// What is gone for programs comes first, and what somebody might still want last.
    pub(super) fn find_room(
        &self,
        gone: u64,
        full: Errno,
        owner: impl Fn() -> Option<Owner>,
    ) -> bool {
        let found = self.wait_for_deferred_closes(gone)
            || self.give_back_replaced()
            || (pins::make_room(self) && self.wait_for_deferred_closes(gone))
            || self.drop_rejected_for(0, self.whose(full, &owner));
        if found {
            self.store.reuse_freed();
        }
        found
    }

    fn drop_rejected_for(&self, bytes: u64, whose: Option<Owner>) -> bool {
        bytes <= self.most_room() && self.make_room(&mut self.lock(), whose)
    }

    /// Whose content makes way for what has failed so; `None`: everybody's. A file that nobody owns yet
    /// is the daemon's.
    pub(super) fn whose(&self, full: Errno, owner: &impl Fn() -> Option<Owner>) -> Option<Owner> {
        if full != Errno::DQUOT || !self.store.has_quotas_of_owners() {
            return None;
        }
        let own = || Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        };
        Some(owner().unwrap_or_else(own))
    }

    /// Removes a staging file that nobody needs any more.
    pub(super) fn remove_staging(&self, id: TxnId) {
        self.reaper.closes().begin();
        self.store.remove_staging(id).ok();
        self.reaper.closes().end();
    }

    /// Waits for what is on its way out, but not for ever. Gives whether anything has left since
    /// `gone` files had.
    fn wait_for_deferred_closes(&self, gone: u64) -> bool {
        let closing = || {
            let failed = |t: &crate::txn::Transaction| {
                t.phase.is_closing() && t.staging.try_lock().is_some_and(|c| c.failed.is_some())
            };
            self.lock().txns.values().any(failed)
        };
        let leaving = self.reaper.closes().begun();
        self.reaper.hurry();
        for _ in 0..100 {
            if self.reaper.closes().ended() >= leaving && !closing() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.reaper.closes().ended() != gone {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
        self.reaper.closes().is_recent()
    }

    /// Versions that were replaced or removed take space until the checkpoint has come by: those that
    /// never were put in place, and those that lie under names whose new versions are not in place.
    /// Gives whether there may be any; waits for the checkpoint then.
    fn give_back_replaced(&self) -> bool {
        let state = self.lock();
        let nothing = !state.unsynced.has_deletes() && state.pending.is_empty();
        if nothing || failpoint::mutant("C5-room") {
            return false;
        }
        drop(state);
        let checkpointed = self.checkpoint_all();
        // The reaper may have got them only now.
        let leaving = self.reaper.closes().begun();
        self.reaper.hurry();
        for _ in 0..100 {
            if self.reaper.closes().ended() >= leaving {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        checkpointed.is_ok()
    }

    /// Drops rejected content that is worth least. Gives whether any went.
    pub(super) fn make_room(&self, state: &mut State, whose: Option<Owner>) -> bool {
        self.drop_up_to(Worth::OnlyCopy, whose, state)
    }

    fn drop_up_to(&self, worth: Worth, whose: Option<Owner>, state: &mut State) -> bool {
        let versions = self.versions(state);
        let dropped = self.store.give_up_rejected(PIECE, worth, whose, versions);
        let dropped = dropped.unwrap_or_default();
        let why = match whose {
            None => FULL_DISK,
            Some(_) => "to make room where a quota was used up",
        };
        self.report_dropped(state, &dropped, why);
        !dropped.is_empty()
    }

    /// Keeps aborted content in rejected. Without its meta file nobody could tell what it is, and it
    /// would count as an only copy: there is room for that as long as something is worth less.
    pub(super) fn keep_rejected(&self, meta: &Rejected) {
        let room = || {
            !failpoint::mutant("C5-meta-room")
                && self.drop_up_to(Worth::Earlier, None, &mut self.lock())
        };
        if let Err(e) = self.store.reject(meta, room) {
            log::error!("rejected/{}: {e}", id_name(meta.id));
        }
        self.bound_rejected();
    }

    /// Keeps rejected content within its bound, where its name has a version.
    pub(super) fn bound_rejected(&self) {
        let has_version = self.versions(&self.lock());
        let dropped = self.store.bound_rejected(self.rejected_bound, has_version);
        let why = format!(
            "as more than {} bytes were kept of files that have versions",
            self.rejected_bound.bytes
        );
        self.report_dropped(&mut self.lock(), &dropped.unwrap_or_default(), &why);
    }

    /// Tells whether a path has a version, as of now. One that is empty is none: whoever has emptied
    /// a file and was killed has left nothing else.
    fn versions<'a>(&'a self, state: &State) -> impl Fn(&Path) -> bool + use<'a> {
        let is_filled =
            |p: &Pending| p.unwritten.is_some() || at::stat(&*p.file).is_ok_and(|s| s.st_size > 0);
        let filled = state.pending.iter().filter(|(_, p)| is_filled(p));
        let pending: HashSet<PathBuf> = filled
            .map(|(dentry, _)| self.path_of(state, &dentry))
            .collect();
        move |path| pending.contains(path) || at::is_filled_file_below(&self.store.root, path)
    }
}
