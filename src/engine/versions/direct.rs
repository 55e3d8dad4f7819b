//! Opening in direct mode: by rule, because others have the file open so, or because it is a database.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::opening::{Opened, writes};
use crate::engine::base::setid;
use crate::engine::meaning::ledger;
use crate::engine::versions::direct_file::DirectFile;
use crate::engine::versions::passing::of_direct;
use crate::engine::{Engine, State};
use crate::sys::at;
use crate::types::{Caller, NodeId, OpResult};

pub fn open_direct(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    flags: OFlags,
) -> OpResult<Opened> {
    let writes = writes(flags);
    let fd = state.nodes.fd(id)?;
    let wanted =
        flags & (OFlags::ACCMODE | OFlags::TRUNC | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC);
    let wanted = wanted | (engine.reading(flags) & OFlags::NOATIME);
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
        setid::drop_set_id(&*fd, caller, None)?;
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
        ledger::note_direct_author(engine, state, id, caller.tid);
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
