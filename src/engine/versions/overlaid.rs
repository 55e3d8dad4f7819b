//! Bytes that two have changed differently, one of them through a mapping (C9).
//!
//! On the plain directory the later store stays. Here a mapped page comes when the kernel writes it
//! back, and nobody knows when its bytes were stored: who closes last may have stored first. So the
//! version whose bytes are overwritten that way is kept in rejected, and told.

use std::fs::File;
use std::sync::Arc;

use crate::engine::base::{current, lines};
use crate::engine::versions::room;
use crate::engine::{Engine, State};
use crate::file::Overlaid;
use crate::namespace::Shown;
use crate::store::{Rejected, Unseen, id_name};
use crate::sys::at;
use crate::txn::{Content, copy_attributes};
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of, mtime_ns, now_ns, path_hex};

/// A transaction's commit has overwritten bytes of these versions. They are kept by the watch: a
/// commit waits for no copy.
pub fn note_overlaid(
    state: &mut State,
    dentry: &Dentry,
    (by, command): (u32, String),
    versions: Vec<Shown>,
) {
    state
        .backlog
        .overlaid
        .extend(versions.into_iter().map(|version| Overlaid {
            dentry: dentry.clone(),
            version,
            by,
            command: command.clone(),
        }));
}

/// Keeps what has come together, on a worker.
pub fn keep_overlaid(engine: &Arc<Engine>) {
    if !engine.lock().backlog.overlaid.is_empty() {
        engine.on_worker(move |engine| keep_all_overlaid(engine));
    }
}

/// Keeps what has come together, and waits for it.
pub fn keep_all_overlaid(engine: &Engine) {
    let all = std::mem::take(&mut engine.lock().backlog.overlaid);
    for one in all {
        let what = format!(
            "bytes of it were overwritten with others by {} ({}), which had the file mapped",
            one.by, one.command
        );
        let kept = keep_one(engine, &one, &what);
        let mut state = engine.lock();
        let path = engine.path_of(&state, &one.dentry);
        let reason = match &kept {
            Ok(_) => what,
            Err(errno) => format!("{what}; what was there before can't be kept: {errno}"),
        };
        log::error!("{}: {reason}", path.display());
        let mut unseen = Unseen::of(&path, reason, one.by);
        unseen.rejected = kept.ok().map(id_name);
        state.tally.counters.rejected += u64::from(unseen.rejected.is_some());
        state.tally.errors.add(unseen);
    }
}

fn keep_one(engine: &Engine, one: &Overlaid, reason: &str) -> OpResult<TxnId> {
    let len = one.version.length()?;
    let (id, path) = {
        let mut state = engine.lock();
        (state.txns.new_id(), engine.path_of(&state, &one.dentry))
    };
    let copied = room::making_room(engine, || {
        let file = engine.store.create_staging(id)?;
        let copied = at::copy_contents(&one.version.file, &file, len);
        copied.map_err(|e| {
            engine.store.remove_staging(id).ok();
            errno_of(&e)
        })
    });
    copied?;
    room::keep_rejected(
        engine,
        &[Rejected {
            id,
            path: path.to_string_lossy().into_owned(),
            path_hex: path_hex(&path),
            reason: reason.to_owned(),
            time_ns: now_ns(),
            pid: 0,
            command: String::new(),
            len,
            round: None,
        }],
    );
    room::bound_rejected(engine);
    Ok(id)
}

/// What an editor has written is written into the version that others have made of its base in
/// place meanwhile (C9), or it is looked only whether they have. Gives the version that the
/// content is an edit of; `None` if there is none, as somebody has written the file anew.
pub fn take_parts(
    engine: &Engine,
    id: TxnId,
    content: &mut Content,
    takes: bool,
) -> OpResult<Option<NodeId>> {
    if !content.is_by_parts() {
        return Ok(None);
    }
    let (current, shown, appended) = {
        let mut state = engine.lock();
        let Some(current) = edited(engine, &mut state, id) else {
            return Ok(None);
        };
        let shown = Shown::growing(&state.nodes, current)?;
        (current, shown, state.files.was_appended_to(current))
    };
    if !takes {
        return Ok(content.is_made_of(&shown)?.then_some(current));
    }
    let appended = appended || content.has_appended();
    if content.take_parts(shown, appended)? == Some(false)
        && let Some(txn) = engine.lock().txns.get_mut(&id)
    {
        // It replaces nothing that it hasn't got.
        txn.purpose.follow_base(current);
    }
    Ok(Some(current))
}

/// The current version, if it was made in place of what a transaction began with.
pub fn edited(engine: &Engine, state: &mut State, id: TxnId) -> Option<NodeId> {
    let txn = state.txns.get(&id)?;
    let dentry = txn.dentry().clone();
    let edits = txn.purpose.edits() && !lines::watches(&txn.policy);
    let edits = edits && crate::txn::by_place(txn.policy.guard);
    let body = txn.purpose.body().filter(|_| edits)?;
    let current = current::current_if_any(engine, state, &dentry)
        .ok()
        .flatten()?;
    (state.files.body(current) == body).then_some(current)
}

/// Takes over the lines that others have added since an editor's base was copied (C10).
pub fn take_added(engine: &Engine, content: &mut Content) -> OpResult<()> {
    // What begins to be added from here on is looked for once more when it is decided.
    if content
        .grown()
        .is_none_or(|g| engine.appends.are_all_in(&g))
    {
        return Ok(());
    }
    let _nobody_adds = engine.appends.lock();
    content.take_added()
}

/// A staging file with what another has by now.
pub fn copied(engine: &Engine, file: &File) -> OpResult<(TxnId, Arc<File>)> {
    let id = engine.lock().txns.new_id();
    let copy = room::making_room(engine, || engine.store.create_staging(id))?;
    let fill = || {
        let stat = at::stat(file)?;
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        at::copy_contents(file, &copy, len).map_err(|e| errno_of(&e))?;
        copy_attributes(file, &copy)?;
        at::set_mtime(&copy, mtime_ns(&stat))
    };
    let filled = room::making_room(engine, fill);
    filled.inspect_err(|_| _ = engine.store.remove_staging(id).ok())?;
    Ok((id, Arc::new(copy)))
}
