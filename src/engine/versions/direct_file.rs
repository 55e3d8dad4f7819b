//! A description in direct mode: the backing file is read and written in place.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::engine::base::handle::{
    Allocation, Asked, INLINE_WRITE, OpenFile, Progress, Source, Unlock, Worked, WriteRequest,
    WriteRest, later, leave_node, seek_in,
};
use crate::engine::base::setid::{Gone, clear_set_id, drop_set_id, gone_of};
use crate::engine::base::state;
use crate::engine::versions::room;
use crate::engine::{Engine, State};
use crate::sys::{at, failpoint};
use crate::types::{Caller, NodeId, OpResult, errno_of};

/// See the module.
#[derive(Debug)]
pub struct DirectFile {
    /// The file's node.
    pub node: NodeId,
    /// The backing file.
    pub file: Arc<File>,
    /// Whether it may write.
    pub writes: bool,
}

impl OpenFile for DirectFile {
    fn source(&self, _offset: u64, len: u64) -> OpResult<Source> {
        Ok(Source::File(self.file.clone(), len))
    }

    fn write(
        &self,
        _engine: &Arc<Engine>,
        by: Asked,
        request: WriteRequest,
        data: &[u8],
    ) -> Progress<WriteRest> {
        if !self.writes {
            return Progress::Done(Err(Errno::BADF));
        }
        let kill = match request.kill {
            true => gone_of(&*self.file, by.caller),
            false => 0,
        };
        if data.len() <= INLINE_WRITE {
            let result = write_requested(&self.file, data, request, kill);
            if !room::is_full(&result) {
                return Progress::Done(result);
            }
        }
        Progress::Rest(WriteRest::MakingRoom { kill })
    }

    fn write_rest(
        &self,
        engine: &Arc<Engine>,
        _by: Asked,
        request: WriteRequest,
        data: &[u8],
        rest: WriteRest,
    ) -> Worked {
        let WriteRest::MakingRoom { kill } = rest else {
            return Some(Err(Errno::BADF));
        };
        Some(room::making_room(engine, || {
            write_requested(&self.file, data, request, kill)
        }))
    }

    fn truncate(self: Arc<Self>, _engine: &Arc<Engine>, by: Asked, size: u64) -> Progress {
        if !self.writes {
            return Progress::Done(Err(Errno::INVAL));
        }
        let cut = rustix::fs::ftruncate(&*self.file, size);
        Progress::Done(cut.and_then(|()| drop_set_id(&*self.file, by.caller, None)))
    }

    fn allocate(self: Arc<Self>, _engine: &Arc<Engine>, by: Asked, range: Allocation) -> Progress {
        if !self.writes {
            return Progress::Done(Err(Errno::BADF));
        }
        later(move |engine| {
            let Allocation { mode, offset, len } = range;
            let how = FallocateFlags::from_bits_retain(mode as u32);
            let allocate = || rustix::fs::fallocate(&*self.file, how, offset, len);
            let allocated = room::making_room_for(engine, len, allocate);
            Some(allocated.and_then(|()| drop_set_id(&*self.file, by.caller, None)))
        })
    }

    fn seek(&self, offset: u64, hole: bool) -> OpResult<u64> {
        seek_in(&self.file, offset, hole)
    }

    fn copy_source(&self, _offset: u64, len: u64) -> OpResult<(Arc<File>, u64)> {
        Ok((self.file.clone(), len))
    }

    fn copy_in(&self, engine: &Engine, caller: Caller, data: &[u8], offset: u64) -> OpResult<()> {
        if !self.writes {
            return Err(Errno::BADF);
        }
        room::making_room(engine, || write_direct(&self.file, data, offset, 0))?;
        drop_set_id(&*self.file, caller, None)
    }

    fn fsync(self: Arc<Self>, _engine: &Arc<Engine>) -> Progress {
        later(move |_| Some(self.file.sync_all().map_err(|e| errno_of(&e))))
    }

    fn release(
        self: Arc<Self>,
        engine: &Arc<Engine>,
        mut guard: MutexGuard<'_, State>,
        unlock: Unlock,
    ) {
        let state = &mut *guard;
        leave_node(engine, state, self.node, |n| n.direct -= 1);
        state::give_back(engine, state, &unlock);
    }

    fn pass(&self) -> Option<Arc<File>> {
        Some(self.file.clone())
    }

    fn in_place(&self) -> Option<&Arc<File>> {
        Some(&self.file)
    }
}

fn write_requested(file: &File, data: &[u8], request: WriteRequest, kill: Gone) -> OpResult<()> {
    let pages = match request.writeback {
        true => for_pages(file)?,
        false => None,
    };
    write_direct(pages.as_ref().unwrap_or(file), data, request.offset, kill)
}

fn write_direct(file: &File, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    file.write_all_at(data, offset).map_err(|e| errno_of(&e))?;
    if kill != 0 {
        clear_set_id(file, kill)?;
    }
    Ok(())
}

/// Pages of a mapping come through any description that writes the file: what that would add to its end has its place all the same.
fn for_pages(file: &File) -> OpResult<Option<File>> {
    let appends = rustix::fs::fcntl_getfl(file)?.contains(OFlags::APPEND);
    match appends && !failpoint::mutant("C14-pages") {
        true => Ok(Some(at::reopen(file, OFlags::RDWR)?)),
        false => Ok(None),
    }
}
