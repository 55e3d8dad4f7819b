//! fallocate(2), lseek(2) and copy_file_range(2): what is done to a range of a file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::base::handle::{Allocation, Asked};
use crate::engine::descriptions::io;
use crate::engine::versions::shared;
use crate::types::{Caller, HandleId, OpResult, errno_of};

impl Engine {
    /// fallocate(2).
    pub fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        mode: i32,
        offset: u64,
        len: u64,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let file = match io::opened(self, handle) {
            Ok(file) => file,
            Err(e) => return done(Err(e)),
        };
        let range = Allocation { mode, offset, len };
        let progress = file.allocate(self, Asked { caller, handle }, range);
        let again = move |engine: &Arc<Engine>, done| {
            engine.fallocate(caller, handle, mode, offset, len, done);
        };
        io::go_on(self, progress, done, again);
    }
}

impl Engine {
    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn seek(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        hole: bool,
        done: impl FnOnce(OpResult<u64>) + Send + 'static,
    ) {
        self.on_worker(move |engine| {
            let opened = io::opened(engine, handle);
            done(opened.and_then(|file| file.seek(offset, hole)));
        });
    }
}

impl Engine {
    /// copy_file_range(2) between two descriptions.
    #[allow(clippy::too_many_arguments)]
    pub fn copy_range(
        self: &Arc<Self>,
        caller: Caller,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        self.on_worker(move |engine| {
            done(copy_now(
                engine,
                caller,
                from,
                from_offset,
                to,
                to_offset,
                len,
            ));
        });
    }
}

fn copy_now(
    engine: &Engine,
    caller: Caller,
    from: HandleId,
    from_offset: u64,
    to: HandleId,
    to_offset: u64,
    len: u64,
) -> OpResult<u32> {
    let (source, len) = io::opened(engine, from)?.copy_source(from_offset, len)?;
    // Through memory, a piece at a time: the staged content's checksum and JSON state see
    // every byte, and the kernel asks again for the rest.
    let mut data = vec![0u8; usize::try_from(len.min(4 << 20)).unwrap_or(4 << 20)];
    let read = source
        .read_at(&mut data, from_offset)
        .map_err(|e| errno_of(&e))?;
    let data = &data[..read];
    if io::opened_to_write(engine, to, to_offset, data).1 {
        shared::decide_by(engine, caller, to, to_offset, data)?;
    }
    io::opened(engine, to)?.copy_in(engine, caller, data, to_offset)?;
    Ok(read as u32)
}
