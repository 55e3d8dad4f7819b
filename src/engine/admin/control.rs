//! A description of the control file: what is written is a command, what is read the answer to the last one.

use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::admin::virtualdir;
use crate::engine::base::handle::{
    Asked, OpenFile, Progress, Source, Worked, WriteRequest, WriteRest,
};
use crate::types::OpResult;

/// See the module.
#[derive(Debug, Default)]
pub struct ControlFile(pub Arc<Vec<u8>>);

impl OpenFile for ControlFile {
    fn source(&self, _offset: u64, _len: u64) -> OpResult<Source> {
        Ok(Source::Text(self.0.clone()))
    }

    fn write(
        &self,
        _engine: &Arc<Engine>,
        _by: Asked,
        _request: WriteRequest,
        _data: &[u8],
    ) -> Progress<WriteRest> {
        Progress::Rest(WriteRest::Bytes {
            stream: false,
            kill: 0,
        })
    }

    fn write_rest(
        &self,
        engine: &Arc<Engine>,
        by: Asked,
        _request: WriteRequest,
        data: &[u8],
        _rest: WriteRest,
    ) -> Worked {
        Some(virtualdir::control(engine, by.handle, data))
    }
}
