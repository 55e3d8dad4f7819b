//! What an open description does, whatever its kind: the kinds are in `descriptions::kinds`, and `admin::control`. Nobody else tells them apart: others ask [`OpenFile`] for what is to be done, or for facts. `table` finds
//! descriptions by their numbers.
//!
//! What can be done without waiting is done by the dispatcher, in the operation itself. What is left of it then is done by a
//! worker, who may find that the description has become another meanwhile (a new log has got its first version, a database
//! has begun): the operation begins again with that.

mod listing;
mod table;

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;
use rustix::io::Errno;

use crate::engine::base::setid::Gone;
use crate::engine::base::state;
use crate::engine::{Engine, State};
use crate::file::Opening;
use crate::locks::FileId;
use crate::namespace::Node;
use crate::txn::Staging;
use crate::types::{Caller, HandleId, NodeId, OpResult, Seq, TxnId};

pub use listing::{DirEntry, Listing};
pub use table::Handles;

/// An open description. What one does not have is answered as it would be by a file that is not open in that way.
pub trait OpenFile: Debug + Send + Sync {
    /// What a read of up to `len` bytes is answered from. Does not wait.
    fn source(&self, offset: u64, len: u64) -> OpResult<Source>;

    /// Reads where [`Source::Waits`]. On a worker.
    fn read_waiting(&self, _engine: &Engine, _offset: u64, _size: u32) -> OpResult<Vec<u8>> {
        Err(Errno::BADF)
    }

    /// Writes, or says what of it is left for a worker.
    fn write(
        &self,
        _engine: &Arc<Engine>,
        _by: Asked,
        _request: WriteRequest,
        _data: &[u8],
    ) -> Progress<WriteRest> {
        Progress::Done(Err(Errno::BADF))
    }

    /// What is left of a write. On a worker.
    fn write_rest(
        &self,
        _engine: &Arc<Engine>,
        _by: Asked,
        _request: WriteRequest,
        _data: &[u8],
        _rest: WriteRest,
    ) -> Worked {
        Some(Err(Errno::BADF))
    }

    /// Sets the length in bytes.
    fn truncate(self: Arc<Self>, _engine: &Arc<Engine>, _by: Asked, _size: u64) -> Progress {
        Progress::Done(Err(Errno::INVAL))
    }

    /// fallocate(2).
    fn allocate(
        self: Arc<Self>,
        _engine: &Arc<Engine>,
        _by: Asked,
        _range: Allocation,
    ) -> Progress {
        Progress::Done(Err(Errno::BADF))
    }

    /// lseek(2) with SEEK_HOLE (`hole`) or SEEK_DATA. On a worker.
    fn seek(&self, _offset: u64, _hole: bool) -> OpResult<u64> {
        Err(Errno::INVAL)
    }

    /// What copy_file_range(2) copies from, and how much of `len` bytes there is to be seen. On a worker.
    fn copy_source(&self, _offset: u64, _len: u64) -> OpResult<(Arc<File>, u64)> {
        Err(Errno::INVAL)
    }

    /// What copy_file_range(2) writes. On a worker.
    fn copy_in(
        &self,
        _engine: &Engine,
        _caller: Caller,
        _data: &[u8],
        _offset: u64,
    ) -> OpResult<()> {
        Err(Errno::BADF)
    }

    /// fsync(2) and fdatasync(2) (C7).
    fn fsync(self: Arc<Self>, _engine: &Arc<Engine>) -> Progress {
        Progress::Done(Ok(()))
    }

    /// A descriptor is closed. Called under the state's lock, which it gives back.
    fn flush(
        &self,
        _engine: &Engine,
        state: MutexGuard<'_, State>,
        close: &Closing,
    ) -> Progress<FlushRest> {
        close_unwritten(state, close)
    }

    /// What is left of a FLUSH, if nothing of that has to be waited for.
    fn flush_at_once(
        &self,
        _engine: &Engine,
        _close: &Closing,
        _rest: FlushRest,
    ) -> Option<OpResult<()>> {
        None
    }

    /// What is left of a FLUSH that has to do with its own content. On a worker.
    fn flush_rest(&self, _engine: &Engine, _close: &Closing, _rest: FlushRest) -> Worked {
        Some(Ok(()))
    }

    /// The last reference is gone, and it is out of the table. Called under the state's lock, which it gives back.
    fn release(
        self: Arc<Self>,
        engine: &Arc<Engine>,
        mut state: MutexGuard<'_, State>,
        unlock: Unlock,
    ) {
        state::give_back(engine, &mut state, &unlock);
    }

    /// A lock was granted that was asked for at `node`: what is read from now on is the current version (C12).
    fn granted(self: Arc<Self>, _engine: &Arc<Engine>, _by: Asked, _node: NodeId) -> Progress {
        Progress::Done(Ok(()))
    }

    /// What a directory lists: its node, and what was listed at offset 0.
    fn listing(&self) -> OpResult<(NodeId, Option<Listing>)> {
        Err(Errno::BADF)
    }

    /// The kernel serves it from now on, from this file; `None` if it can't be.
    fn pass(&self) -> Option<Arc<File>> {
        None
    }

    /// The node whose version it reads.
    fn reads(&self) -> Option<NodeId> {
        None
    }

    /// The transaction that it belongs to.
    fn transaction(&self) -> Option<TxnId> {
        None
    }

    /// That of which it is a reference, since it may write.
    fn writes_in(&self) -> Option<TxnId> {
        None
    }

    /// What its transaction has staged.
    fn content(&self) -> Option<&Arc<Staging>> {
        None
    }

    /// The backing file that it reads and writes in place.
    fn in_place(&self) -> Option<&Arc<File>> {
        None
    }

    /// The node that /proc shows of who writes through it, if that is not its transaction's own.
    fn shown(&self) -> Option<NodeId> {
        None
    }

    /// How it was opened, and who by, where it writes to what others may write, too.
    fn opening(&self) -> Opening {
        Opening::default()
    }

    /// The length in bytes that fstat(2) tells, if that is not the file's: with its unfinished line.
    fn length_with_tail(&self) -> Option<u64> {
        None
    }

    /// Whether lines are added through it.
    fn adds_lines(&self) -> bool {
        false
    }

    /// Its unfinished line becomes visible if it has waited for so long.
    fn flush_old_tail(&self, _engine: &Engine, _patience: Duration) {}

    /// The connection has ended: its unfinished line is added, or reported as lost.
    fn flush_last_tail(&self, _engine: &Engine) {}

    /// Whether it holds half a JSON value, or somebody is at it just now. Does not wait.
    fn may_hold_half(&self) -> bool {
        false
    }

    /// If it holds half a JSON value it goes on as a transaction. Gives whether it held one.
    fn leave_half(&self, _engine: &Engine, _handle: HandleId) -> bool {
        false
    }
}

/// Who asks for an operation, and through which description.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub caller: Caller,
    pub handle: HandleId,
}

/// What a read is answered from.
pub enum Source {
    /// So many bytes of a file.
    File(Arc<File>, u64),
    /// A text in memory.
    Text(Arc<Vec<u8>>),
    /// What has to be waited for: see [`OpenFile::read_waiting`].
    Waits,
}

/// How far an operation has come without waiting.
pub enum Progress<R = Work> {
    /// To its end.
    Done(OpResult<()>),
    /// The description is another by now: the operation begins again.
    Again,
    /// A worker goes on.
    Rest(R),
}

/// What a worker has come to; `None`: the description is another by now, and the operation begins again.
pub type Worked = Option<OpResult<()>>;

/// What is left of an operation.
pub type Work = Box<dyn FnOnce(&Arc<Engine>) -> Worked + Send>;

/// What is left of a write.
#[derive(Clone, Copy, Debug)]
pub enum WriteRest {
    /// Its program has emptied the name: to go on from what that means now.
    TakeOver,
    /// To give a new log its first version, with the lines that a process writes.
    FirstLines { by: u32 },
    /// To write pages of a mapping back.
    Pages { kill: Gone },
    /// To write; what has come so far of a new log may be a version by then.
    Bytes { stream: bool, kill: Gone },
    /// To write, and to make room for it.
    MakingRoom { kill: Gone },
    /// To tell that it has failed.
    Failed { errno: Errno },
}

/// What fallocate(2) asks for.
#[derive(Clone, Copy, Debug)]
pub struct Allocation {
    /// Its flags.
    pub mode: i32,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u64,
}

/// A descriptor that is being closed.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    pub by: Asked,
    /// The file, as locks know it.
    pub file: FileId,
    /// Of the closing process's fcntl locks, for the kernel.
    pub owner: u64,
    /// The process has such locks.
    pub locked: bool,
}

impl Closing {
    /// The file, if the process has fcntl locks of it.
    pub fn locked_file(&self) -> Option<FileId> {
        self.locked.then_some(self.file)
    }
}

/// What is left of a FLUSH.
#[derive(Clone, Copy, Debug)]
pub enum FlushRest {
    /// To add the unfinished line; the process that closes, if it was killed.
    Tail { killed: Option<u32> },
    /// Nothing is to be committed. To see the commit on the medium that it acknowledges, and to tell what has been found.
    Unchanged { owed: Seq, ended: OpResult<()> },
    /// To prepare what is staged: the process that closes, and how often that has closed a descriptor.
    Content { closer: (u32, u32) },
}

/// A close of what has written nothing: locks may have to be given back.
pub fn close_unwritten(state: MutexGuard<'_, State>, close: &Closing) -> Progress<FlushRest> {
    drop(state);
    let (owed, ended) = (Seq::default(), Ok(()));
    match close.locked {
        true => Progress::Rest(FlushRest::Unchanged { owed, ended }),
        false => Progress::Done(ended),
    }
}

/// What write(2) asks for.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest {
    /// Where the kernel takes the place to be.
    pub offset: u64,
    /// Through a description with O_APPEND: it goes to the end, wherever that is.
    pub appends: bool,
    /// Set-id bits are to go.
    pub kill: bool,
    /// Pages of a mapping, written back by whoever happened to do it.
    pub writeback: bool,
}

/// What a description held locks by.
pub struct Unlock {
    pub file: FileId,
    pub handle: HandleId,
    pub owner: Option<u64>,
}

/// Up to this size a write to the page cache is done by the dispatcher itself: handing it to a
/// worker costs more.
pub const INLINE_WRITE: usize = 64 << 10;

/// Leaves an operation to a worker.
pub fn later(work: impl FnOnce(&Arc<Engine>) -> Worked + Send + 'static) -> Progress {
    Progress::Rest(Box::new(work))
}

/// A description is gone that its node has counted.
pub fn leave_node(
    engine: &Engine,
    state: &mut State,
    node: NodeId,
    uncount: impl FnOnce(&mut Node),
) {
    if let Some(n) = state.nodes.get_mut(node) {
        uncount(n);
    }
    let fd = state.nodes.reap(node);
    engine.defer_close(fd);
}

/// lseek(2) in a file. A position of its own: its description may be shared with reads.
pub fn seek_in(file: &File, offset: u64, hole: bool) -> OpResult<u64> {
    let to = match hole {
        true => rustix::fs::SeekFrom::Hole(offset),
        false => rustix::fs::SeekFrom::Data(offset),
    };
    rustix::fs::seek(file, to)
}
