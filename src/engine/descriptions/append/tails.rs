//! Unfinished lines that wait in memory: when they are added, and what becomes of those that can't be.
//!
//! write() has acknowledged them. So none is given up before it is added: the next flush tries again,
//! a close tells why it couldn't, and what is left after the last close is an error in status (C22).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::handle::OpenFile;
use crate::engine::base::{errors, lines};
use crate::engine::descriptions::append::records;
use crate::file::{AppendPlace, Appender, Unfinished};
use crate::rules::Stream;
use crate::sys::{failpoint, proc};
use crate::txn::Abort;
use crate::types::{HandleId, OpResult};

/// An unfinished line becomes visible after this time, in milliseconds.
const PATIENCE: u64 = 1000;

/// Whether an unfinished line is half a JSON value, which nobody is to see.
pub fn is_half(appender: &Appender, inner: &Unfinished) -> bool {
    appender.stream == Stream::Json && !inner.tail.is_empty() && !lines::is_json_value(&inner.tail)
}

/// Makes the unfinished line visible. Half a JSON value stays unfinished (C21).
pub fn flush_tail(engine: &Engine, appender: &Appender, inner: &mut Unfinished) -> OpResult<()> {
    if inner.tail.is_empty() || is_half(appender, inner) {
        return Ok(());
    }
    let tail = std::mem::take(&mut inner.tail);
    let added = records::append_records(engine, appender, inner, &tail);
    if let Err(e) = added {
        inner.failed = Some(e);
        if !failpoint::mutant("C5-tail") {
            inner.tail = tail;
        }
        return Err(e);
    }
    (inner.since, inner.failed) = (None, None);
    // Nobody has written any of the next one.
    inner.by.clear();
    if let Some(notify) = engine.kernel.notify() {
        notify.attributes_changed(appender.node);
    }
    Ok(())
}

/// A close, an fsync: the unfinished line waits no longer. If the process that closes was
/// killed, the line is dropped, unless others are writing it.
pub fn finish_appender(engine: &Engine, appender: &Appender, killed: Option<u32>) -> OpResult<()> {
    let mut inner = appender.inner.lock();
    if let Some(killed) = killed {
        if !inner.by.contains(&killed) {
            return Ok(());
        }
        if !inner.tail.is_empty() {
            log::info!(
                "an unfinished line of {} bytes is dropped: its writer was ended by a signal",
                inner.tail.len()
            );
        }
        inner.tail.clear();
        inner.by.clear();
        inner.since = None;
        return Ok(());
    }
    flush_tail(engine, appender, &mut inner)
}

/// Unfinished lines that have waited long enough.
pub fn flush_old_tails(engine: &Engine) {
    let patience = failpoint::number("COMMITFS_LINE_PATIENCE_MS", PATIENCE);
    let patience = Duration::from_millis(patience);
    for (_, file) in adding_lines(engine) {
        file.flush_old_tail(engine, patience);
    }
}

pub fn adding_lines(engine: &Engine) -> Vec<(HandleId, Arc<dyn OpenFile>)> {
    let state = engine.lock();
    let adding = state.handles.iter().filter(|(_, file)| file.adds_lines());
    adding.map(|(handle, f)| (*handle, f.clone())).collect()
}

impl Appender {
    /// An unfinished line that has waited for so long.
    pub(in crate::engine) fn flush_tail_after(&self, engine: &Engine, patience: Duration) {
        if let Some(mut inner) = self.inner.try_lock()
            && self.stream != Stream::Json
            && inner.since.is_some_and(|s| s.elapsed() >= patience)
            && let Err(e) = flush_tail(engine, self, &mut inner)
        {
            // The disk is given as long again.
            inner.since = Some(Instant::now());
            log::warn!("an unfinished line can't be appended yet: {e}");
        }
    }

    /// The unfinished line of a description that has ended without a close.
    pub(in crate::engine) fn flush_tail_for_good(&self, engine: &Engine) {
        flush_tail(engine, self, &mut self.inner.lock()).ok();
        self.report_left(engine);
    }

    /// Nobody has the description any more: what couldn't be added is lost, which close() has told.
    /// It may have to wait for whoever tries just now.
    pub(in crate::engine) fn report_left(&self, engine: &Engine) {
        let mut inner = self.inner.lock();
        let len = std::mem::take(&mut inner.tail).len();
        if len == 0 {
            return;
        }
        let errno = inner.failed.unwrap_or(Errno::IO);
        drop(inner);
        let mut state = engine.lock();
        let place = self.place.lock().clone();
        if let AppendPlace::At(dentry) = place {
            let what = "append of an unfinished line";
            let abort = Abort::FailedWrite { what, errno };
            let path = engine.show(&state, &dentry);
            log::error!("{path}: an unfinished line of {len} bytes is lost: {errno}");
            let opener = self.opening.opener;
            let command = proc::comm(opener).unwrap_or_default();
            let who = (opener, command.as_str());
            errors::remember_error(engine, &mut state, &dentry, &abort, who, None);
        } else {
            log::error!("an unfinished line of {len} bytes of a removed file is lost: {errno}");
        }
    }

    /// Whether there may be anything to report of it: for who may not wait.
    pub(in crate::engine) fn may_be_left(&self) -> bool {
        let inner = self.inner.try_lock();
        inner.is_none_or(|inner| !inner.tail.is_empty())
    }

    /// Whether it ends with half a JSON value, or somebody is at it just now. Does not wait.
    pub(in crate::engine) fn may_be_half(&self) -> bool {
        self.stream == Stream::Json && self.inner.try_lock().is_none_or(|i| is_half(self, &i))
    }
}
