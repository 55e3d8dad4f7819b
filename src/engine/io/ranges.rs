//! fallocate(2), lseek(2) and copy_file_range(2): what is done to a range of a file.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::super::Engine;
use super::super::setid::drop_set_id;
use super::super::state::Handle;
use super::{is_staged, write_direct};
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
        match self.handle(handle) {
            Ok(Handle::Staged {
                txn,
                staging,
                writes: true,
                ..
            }) => {
                match self.note_write(txn, caller, offset.saturating_add(len)) {
                    Err(_) if !is_staged(self, handle) => {
                        return self.fallocate(caller, handle, mode, offset, len, done);
                    }
                    Err(e) => return done(Err(e)),
                    Ok(_) => {}
                }
                let engine = self.clone();
                self.pool.run(move || {
                    let mut changes = true;
                    let allocated = engine.making_room_in(&staging, len, || {
                        let mut content = staging.lock();
                        changes = engine.changes_now(txn);
                        if !changes {
                            return Ok(());
                        }
                        let how = FallocateFlags::from_bits_retain(mode as u32);
                        content.allocate(how, offset, len)?;
                        drop_set_id(&*content.file, caller, Some(&staging))
                    });
                    match changes {
                        true => done(allocated),
                        false => engine.fallocate(caller, handle, mode, offset, len, done),
                    }
                });
            }
            Ok(Handle::Append(appender)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    match engine.leave_stream(caller, handle, &appender, false) {
                        Ok(_) => engine.fallocate(caller, handle, mode, offset, len, done),
                        Err(e) => done(Err(e)),
                    }
                });
            }
            Ok(Handle::Direct {
                file, writes: true, ..
            }) => {
                let engine = self.clone();
                self.pool.run(move || {
                    let how = FallocateFlags::from_bits_retain(mode as u32);
                    let allocate = || rustix::fs::fallocate(&*file, how, offset, len);
                    let allocated = engine.making_room_for(len, allocate);
                    done(allocated.and_then(|()| drop_set_id(&*file, caller, None)));
                });
            }
            Ok(Handle::WatchHelper) => done(Ok(())),
            Ok(_) => done(Err(Errno::BADF)),
            Err(e) => done(Err(e)),
        }
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE.
    pub fn seek(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        hole: bool,
        done: impl FnOnce(OpResult<u64>) + Send + 'static,
    ) {
        let engine = self.clone();
        self.pool
            .run(move || done(engine.seek_now(handle, offset, hole)));
    }

    fn seek_now(&self, handle: HandleId, offset: u64, hole: bool) -> OpResult<u64> {
        let file = match self.handle(handle)? {
            Handle::Reader { read, .. } => read.file,
            Handle::Direct { file, .. } => file,
            Handle::Staged { staging, .. } => staging.lock().readable().file,
            Handle::Append(appender) => return self.seek_appended(&appender, offset, hole),
            _ => return Err(Errno::INVAL),
        };
        // A position of its own: the description may be shared with reads.
        let to = if hole {
            rustix::fs::SeekFrom::Hole(offset)
        } else {
            rustix::fs::SeekFrom::Data(offset)
        };
        rustix::fs::seek(&*file, to)
    }

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
        let engine = self.clone();
        self.pool.run(move || {
            done(engine.copy_now(caller, from, from_offset, to, to_offset, len));
        });
    }

    fn copy_now(
        &self,
        caller: Caller,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        len: u64,
    ) -> OpResult<u32> {
        let mut len = len;
        let source = match self.handle(from)? {
            Handle::Reader { read, .. } => {
                len = read.within(from_offset, len);
                read.file
            }
            Handle::Direct { file, .. } => file,
            Handle::Staged { staging, .. } => {
                let read = staging.lock().readable();
                len = read.within(from_offset, len);
                read.file
            }
            _ => return Err(Errno::INVAL),
        };
        // Through memory, a piece at a time: the staged content's checksum and JSON state see
        // every byte, and the kernel asks again for the rest.
        let mut data = vec![0u8; usize::try_from(len.min(4 << 20)).unwrap_or(4 << 20)];
        let read = source
            .read_at(&mut data, from_offset)
            .map_err(|e| errno_of(&e))?;
        let data = &data[..read];
        if self.handle_to_write(to, to_offset, data).1 {
            self.decide_by(caller, to, to_offset, data)?;
        }
        match self.handle(to)? {
            Handle::Staged {
                txn,
                staging,
                writes: true,
                ..
            } => {
                self.note_write(txn, caller, to_offset + read as u64)?;
                self.change_staged(&staging, "write", |content| {
                    if !self.changes_now(txn) {
                        // It is a log by now. Who is told so reads and writes, as for any other.
                        return Err(Errno::BADF);
                    }
                    content.write(data, to_offset)?;
                    drop_set_id(&*content.file, caller, Some(&staging))
                })?;
            }
            Handle::Direct {
                file, writes: true, ..
            } => {
                self.making_room(|| write_direct(&file, data, to_offset, 0))?;
                drop_set_id(&*file, caller, None)?;
            }
            _ => return Err(Errno::BADF),
        }
        Ok(read as u32)
    }
}
