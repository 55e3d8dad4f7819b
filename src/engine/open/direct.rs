//! Opening in direct mode: by rule, because others have the file open so, or because it is a database.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::handle::DirectFile;
use super::super::opening::{Opened, writes};
use super::super::shared::{is_database, is_edit};
use super::super::{Engine, State};
use super::of_direct;
use crate::rules::{Creation, Mode as RuleMode};
use crate::sys::{at, failpoint};
use crate::types::{Caller, Dentry, NodeId, OpResult};

impl Engine {
    pub(super) fn open_direct(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        flags: OFlags,
    ) -> OpResult<Opened> {
        let writes = writes(flags);
        let fd = state.nodes.fd(id)?;
        let wanted = flags
            & (OFlags::ACCMODE | OFlags::TRUNC | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC);
        let wanted = wanted | (self.reading(flags) & OFlags::NOATIME);
        // A write-only description still gets reads from the kernel: partial pages.
        let wanted = if writes {
            (wanted - OFlags::WRONLY) | OFlags::RDWR
        } else {
            wanted
        };
        let file = at::reopen(&*fd, wanted).or_else(|e| match e {
            Errno::ACCESS => at::reopen(&*fd, flags & !OFlags::EXCL),
            e => Err(e),
        })?;
        if flags.contains(OFlags::TRUNC) {
            crate::engine::setid::drop_set_id(&*fd, caller, None)?;
        }
        if writes {
            state.nodes.drop_name(id);
        }
        let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
        node.direct += 1;
        node.written_in_place |= writes;
        node.cached = true;
        node.ends().release();
        if writes {
            self.note_direct_author(state, id, caller.tid);
        }
        let handle = state.add_handle(Arc::new(DirectFile {
            node: id,
            file: Arc::new(file),
            writes,
        }));
        Ok(Opened {
            handle,
            keep_cache: !flags.contains(OFlags::TRUNC),
            direct_io: false,
            no_flush: false,
            pass: of_direct(&fd, flags, writes),
        })
    }

    /// Whether an open of this file is in direct mode: by rule, because others have it open so, or
    /// because an in-place editor has met a database.
    pub(in crate::engine) fn opens_direct(
        &self,
        state: &mut State,
        id: NodeId,
        dentry: Option<&Dentry>,
        flags: OFlags,
    ) -> OpResult<bool> {
        if flags.contains(OFlags::TRUNC)
            && dentry.is_some_and(|dentry| self.is_rewritten_whole(state, dentry))
        {
            return Ok(false);
        }
        if self.is_direct(state, id, dentry)? {
            return Ok(true);
        }
        if !is_edit(flags) || failpoint::mutant("C14") {
            return Ok(false);
        }
        let companion = dentry.is_some_and(|dentry| self.is_companion(state, dentry, flags));
        Ok(companion || is_database(state, id)?)
    }

    /// Whether a name is in direct mode by its rule and by what is open, without a look at the content.
    pub(in crate::engine) fn is_direct(
        &self,
        state: &State,
        id: NodeId,
        dentry: Option<&Dentry>,
    ) -> OpResult<bool> {
        if failpoint::mutant("C14") {
            return Ok(false);
        }
        let node = state.nodes.get(id).ok_or(Errno::STALE)?;
        if node.direct > 0 {
            return Ok(true);
        }
        let Some(dentry) = dentry else {
            return Ok(true);
        };
        // A version not yet applied is immutable until it is, whatever its name.
        if state.pending.get(dentry.dir, &dentry.name).is_some() {
            return Ok(false);
        }
        let creation = Creation {
            exclusive: false,
            empty: at::stat(&*state.nodes.fd(id)?)?.st_size == 0,
        };
        let direct = self.policy(state, dentry, creation).mode == RuleMode::Direct;
        Ok(direct && !self.is_begun_atomic(state, dentry))
    }
}
