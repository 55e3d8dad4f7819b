//! Results as answers to the kernel.

use std::time::Duration;

use fuser::{Errno, FopenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::convert::{attr_of, errno};
use crate::engine::Opened;
use crate::types::{Attr, OpResult};

/// Names are looked up anew each time: what they mean depends on who asks, and when.
pub(super) const ENTRY_TTL: Duration = Duration::ZERO;
pub(super) const GENERATION: fuser::Generation = fuser::Generation(0);

pub(super) fn entry(reply: ReplyEntry, result: OpResult<Attr>) {
    match result {
        Ok(attr) => reply.entry_with_ttls(&attr.ttl, &attr.name_ttl, &attr_of(&attr), GENERATION),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn attributes(reply: ReplyAttr, result: OpResult<Attr>) {
    match result {
        Ok(attr) => reply.attr(&attr.ttl, &attr_of(&attr)),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn empty(reply: ReplyEmpty, result: OpResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

pub(super) fn xattr(reply: ReplyXattr, size: u32, result: OpResult<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

/// How the kernel shall cache an open description.
pub(super) fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(
        FopenFlags::FOPEN_KEEP_CACHE,
        opened.keep_cache && !opened.direct_io,
    );
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}
