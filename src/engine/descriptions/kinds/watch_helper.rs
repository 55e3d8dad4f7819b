//! The watch helper's description, on a superseded version: nothing is read or written.

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::handle::{Allocation, Asked, OpenFile, Progress, Source};
use crate::types::OpResult;

/// See the module.
#[derive(Debug)]
pub struct HelperFile;

impl OpenFile for HelperFile {
    fn source(&self, _offset: u64, _len: u64) -> OpResult<Source> {
        Err(Errno::BADF)
    }

    /// It is how the kernel is made to tell that a version has changed.
    fn allocate(
        self: Arc<Self>,
        _engine: &Arc<Engine>,
        _by: Asked,
        _range: Allocation,
    ) -> Progress {
        Progress::Done(Ok(()))
    }
}
