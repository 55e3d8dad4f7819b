//! Bytes that two have changed differently, one of them through a mapping (C9).
//!
//! On the plain directory the later store stays. Here a mapped page comes when the kernel writes it
//! back, and nobody knows when its bytes were stored: who closes last may have stored first. So the
//! version whose bytes are overwritten that way is kept in rejected, and told.

use std::sync::Arc;

use super::{Engine, State};
use crate::namespace::Shown;
use crate::store::{Rejected, Unseen, id_name};
use crate::sys::at;
use crate::types::{Dentry, OpResult, TxnId, errno_of, now_ns, path_hex};

/// A version, some bytes of which a commit has overwritten.
#[derive(Debug)]
pub struct Overlaid {
    dentry: Dentry,
    version: Shown,
    /// Who has.
    by: u32,
    command: String,
}

impl Engine {
    /// A transaction's commit has overwritten bytes of these versions. They are kept by the watch: a
    /// commit waits for no copy.
    pub(super) fn note_overlaid(
        state: &mut State,
        dentry: &Dentry,
        (by, command): (u32, String),
        versions: Vec<Shown>,
    ) {
        state
            .overlaid
            .extend(versions.into_iter().map(|version| Overlaid {
                dentry: dentry.clone(),
                version,
                by,
                command: command.clone(),
            }));
    }

    /// Keeps what has come together, on a worker.
    pub(super) fn keep_overlaid(self: &Arc<Self>) {
        if !self.lock().overlaid.is_empty() {
            let engine = self.clone();
            self.pool.run(move || engine.keep_all_overlaid());
        }
    }

    /// Keeps what has come together, and waits for it.
    pub(super) fn keep_all_overlaid(&self) {
        let all = std::mem::take(&mut self.lock().overlaid);
        for one in all {
            let what = format!(
                "bytes of it were overwritten with others by {} ({}), which had the file mapped",
                one.by, one.command
            );
            let kept = self.keep_one(&one, &what);
            let mut state = self.lock();
            let path = self.path_of(&state, &one.dentry);
            let reason = match &kept {
                Ok(_) => what,
                Err(errno) => format!("{what}; what was there before can't be kept: {errno}"),
            };
            log::error!("{}: {reason}", path.display());
            let mut unseen = Unseen::of(&path, reason, one.by);
            unseen.rejected = kept.ok().map(id_name);
            state.counters.rejected += u64::from(unseen.rejected.is_some());
            state.errors.add(unseen);
        }
    }

    fn keep_one(&self, one: &Overlaid, reason: &str) -> OpResult<TxnId> {
        let len = one.version.length()?;
        let (id, path) = {
            let mut state = self.lock();
            (state.txns.new_id(), self.path_of(&state, &one.dentry))
        };
        let copied = self.making_room(|| {
            let file = self.store.create_staging(id)?;
            let copied = at::copy_contents(&one.version.file, &file, len);
            copied.map_err(|e| {
                self.store.remove_staging(id).ok();
                errno_of(&e)
            })
        });
        copied?;
        self.keep_rejected(&Rejected {
            id,
            path: path.to_string_lossy().into_owned(),
            path_hex: path_hex(&path),
            reason: reason.to_owned(),
            time_ns: now_ns(),
            pid: 0,
            command: String::new(),
            len,
        });
        Ok(id)
    }
}
