//! What the watch helper asks for: its lookups, attributes and opens of superseded versions.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::descriptions::kinds::HelperFile;
use crate::engine::meaning::resolve;
use crate::engine::{Engine, Opened, Pass};
use crate::sys::watch_helper::{self};
use crate::types::{Attr, NodeId, OpResult};

/// The version behind one of the watch helper's names; counts as a lookup.
pub fn watch_helper_lookup(engine: &Engine, name: &OsStr) -> OpResult<Attr> {
    if name == watch_helper::POLLED {
        // Requests come in order: all that had asked before are answered.
        if let Some(watchers) = engine.watching.watchers() {
            watchers.note_polled();
        }
        return Err(Errno::CANCELED);
    }
    let (id, turn) = watch_helper::parse(name).ok_or(Errno::NOENT)?;
    if engine.lock().unmount.is_under_way() {
        // What it still has to tell must not keep the mount busy.
        return Err(Errno::CANCELED);
    }
    if !engine
        .watching
        .watchers()
        .is_some_and(|w| w.takes_turn(turn))
    {
        // Not ENOENT: that would be remembered, too.
        return Err(Errno::CANCELED);
    }
    let id = NodeId(id);
    match engine.lock().nodes.get_mut(id) {
        Some(node) if node.lookups > 0 => node.lookups += 1,
        _ => return Err(Errno::NOENT),
    }
    resolve::attr_after_lookup(engine, id).map(still_linked)
}

/// What the watch helper sees of a version, and does not change.
pub fn watch_helper_attr(engine: &Engine, id: NodeId) -> OpResult<Attr> {
    resolve::attr(engine, id).map(still_linked)
}

pub fn watch_helper_open(engine: &Engine) -> Opened {
    Opened {
        handle: engine.lock().add_handle(Arc::new(HelperFile)),
        keep_cache: true,
        direct_io: false,
        no_flush: true,
        // It reads nothing, and is told of versions that others read.
        pass: Pass::Beside,
    }
}

/// The kernel fails a link(2) that is on its way when it hears that the version has no link left.
pub fn still_linked(mut attr: Attr) -> Attr {
    attr.stat.st_nlink = attr.stat.st_nlink.max(1);
    attr
}
