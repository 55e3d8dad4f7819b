//! Where the next line goes, and what it has to wait for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::{current, lines};
use crate::engine::meaning::turns;
use crate::engine::versions::appends::ends;
use crate::engine::versions::appends::places::{AppendTarget, Hold};
use crate::engine::versions::{durability, growing};
use crate::engine::{Engine, State};
use crate::file::{AppendPlace, Appender, Unnamed};
use crate::rules::Stream;
use crate::sys::at;
use crate::txn::key_of;
use crate::types::{OpResult, errno_of};

/// Where a description's next line goes, or what it has to wait for.
pub fn target(
    engine: &Engine,
    state: &mut State,
    appender: &Appender,
) -> OpResult<Result<AppendTarget, Hold>> {
    let dentry = match appender.place.lock().clone() {
        AppendPlace::At(dentry) => dentry,
        AppendPlace::Nameless(file) => return unnamed_target(engine, state, appender, file),
    };
    if state.names.is_turn_taken(&dentry) {
        // An in-place editor is about to commit what it has of this file.
        return Ok(Err(Hold::Turn(dentry)));
    }
    if state.pending.get(dentry.dir, &dentry.name).is_some() {
        return Ok(Err(Hold::Checkpoint));
    }
    let current = current::current(engine, state, &dentry)?;
    let fd = state.nodes.fd(current)?;
    let file = Arc::new(at::reopen(&*fd, OFlags::RDWR)?);
    let from = file.metadata().map_err(|e| errno_of(&e))?.len();
    let node = state.nodes.get(current).ok_or(Errno::STALE)?;
    if node.direct > 0 {
        // Others write it in place (C14), and see every byte at once.
        return Ok(Ok(AppendTarget {
            node: current,
            dentry: Some(dentry),
            ends: node.ends(),
            file,
            from,
            told: None,
        }));
    }
    if appender.stream == Stream::Json && !lines::knows_json_lines(state, current, from) {
        return Ok(Err(Hold::Unread(dentry)));
    }
    let path = state.nodes.path(&dentry).ok_or(Errno::NOENT)?;
    let key = key_of(&file)?;
    if !state.backlog.growing.is_told(key) {
        growing::tell_growing(engine, state, key, &path, from)?;
        return Ok(Err(Hold::Announced(key)));
    }
    let (node, ends) = ends::hold_end(engine, state, current, &dentry, from)?;
    state.files.append_to(node);
    Ok(Ok(AppendTarget {
        node,
        dentry: Some(dentry),
        ends,
        file,
        from,
        told: Some((key, path)),
    }))
}

/// Where to add to a file that has lost the name it was opened by.
fn unnamed_target(
    engine: &Engine,
    state: &mut State,
    appender: &Appender,
    unnamed: Unnamed,
) -> OpResult<Result<AppendTarget, Hold>> {
    let file = Arc::new(at::reopen(&*unnamed.fd, OFlags::RDWR)?);
    let from = file.metadata().map_err(|e| errno_of(&e))?.len();
    let has_links = at::stat(&*file)?.st_nlink > 0;
    if !has_links && !unnamed.gone.load(Ordering::Relaxed) {
        return Ok(Err(Hold::Gone(unnamed)));
    }
    let key = key_of(&file)?;
    if has_links && !state.backlog.growing.is_told(key) {
        growing::tell_growing(engine, state, key, Path::new(""), from)?;
        return Ok(Err(Hold::Announced(key)));
    }
    Ok(Ok(AppendTarget {
        node: appender.node,
        dentry: None,
        ends: unnamed.ends,
        file,
        from,
        told: has_links.then(|| (key, PathBuf::new())),
    }))
}

/// Waits until a line may be added. Holding nothing.
pub fn wait_out(engine: &Engine, hold: Hold) -> OpResult<()> {
    match hold {
        Hold::Turn(dentry) => {
            turns::await_turn(engine, &dentry);
            Ok(())
        }
        Hold::Checkpoint => durability::checkpoint_all(engine),
        Hold::Unread(dentry) => match lines::learn_current_json_lines(engine, &dentry)? {
            true => Ok(()),
            false => Err(Errno::BADMSG),
        },
        Hold::Announced(key) => growing::await_told(engine, key),
        Hold::Gone(unnamed) => {
            // After a power cut the name might be there still, and show what came later.
            durability::checkpoint_all(engine)?;
            unnamed.gone.store(true, Ordering::Relaxed);
            Ok(())
        }
    }
}
