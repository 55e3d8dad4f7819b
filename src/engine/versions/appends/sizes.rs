//! How long a file is for who is adding an unfinished line to it: read(2), fstat(2) and lseek(2) give one answer.

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::file::Appender;
use crate::sys::{failpoint, proc};
use crate::types::{Caller, HandleId, NodeId, OpResult};

/// The length in bytes that the caller is told of a node, through a description if one is named: with the unfinished line, where
/// it reads that or has written it. `None`: that of the file.
pub fn length_with_tail(
    engine: &Engine,
    caller: Caller,
    node: NodeId,
    handle: Option<HandleId>,
) -> Option<u64> {
    let appenders: Vec<Arc<Appender>> = {
        let state = engine.lock();
        if let Some(file) = handle.and_then(|handle| state.handles.get(handle).cloned()) {
            drop(state);
            return file.length_with_tail();
        }
        let dentry = state.nodes.get(node)?.at.as_ref()?;
        let here = state
            .names
            .appenders(dentry)
            .iter()
            .filter(|a| a.node == node);
        here.cloned().collect()
    };
    if failpoint::mutant("C10-length") {
        return None;
    }
    // What is being written to at this moment is not waited for.
    let held = appenders.iter().filter_map(|a| a.inner.try_lock());
    let held: Vec<_> = held.filter(|inner| !inner.tail.is_empty()).collect();
    let length = held.first()?.read.length().ok()?;
    let process = proc::tgid(caller.tid)?;
    let tails = held.iter().filter(|inner| inner.by.contains(&process));
    let tails: Vec<u64> = tails.map(|inner| inner.tail.len() as u64).collect();
    (!tails.is_empty()).then(|| length + tails.iter().sum::<u64>())
}

impl Appender {
    /// The length in bytes that is told through the description, with its unfinished line. `None`: that of the file.
    pub(in crate::engine) fn length_told(&self) -> Option<u64> {
        if failpoint::mutant("C10-length") {
            return None;
        }
        // What is being written to at this moment is not waited for.
        let inner = self.inner.try_lock()?;
        let tail = inner.tail.len() as u64;
        (tail > 0).then_some(inner.read.length().ok()? + tail)
    }

    /// lseek(2) with SEEK_HOLE or SEEK_DATA. On a worker.
    pub(in crate::engine) fn seek_with_tail(&self, offset: u64, hole: bool) -> OpResult<u64> {
        let inner = self.inner.lock();
        let length = inner.read.length()?;
        let end = length + inner.tail.len() as u64;
        if offset >= end {
            return Err(Errno::NXIO);
        }
        if offset >= length {
            return Ok(if hole { end } else { offset });
        }
        let to = match hole {
            true => rustix::fs::SeekFrom::Hole(offset),
            false => rustix::fs::SeekFrom::Data(offset),
        };
        match rustix::fs::seek(&*inner.read.file, to) {
            Ok(at) if at < length => Ok(at),
            Ok(_) | Err(Errno::NXIO) if hole => Ok(end),
            Ok(_) | Err(Errno::NXIO) if end > length => Ok(length),
            Ok(_) => Err(Errno::NXIO),
            Err(e) => Err(e),
        }
    }
}
