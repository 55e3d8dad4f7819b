//! A description of a file of the virtual directory: its text as of the open.

use std::sync::Arc;

use crate::engine::base::handle::{OpenFile, Source};
use crate::types::OpResult;

/// See the module.
#[derive(Debug)]
pub struct TextFile(pub Arc<Vec<u8>>);

impl OpenFile for TextFile {
    fn source(&self, _offset: u64, _len: u64) -> OpResult<Source> {
        Ok(Source::Text(self.0.clone()))
    }
}
