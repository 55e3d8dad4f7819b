//! Pages of shared mappings, as the kernel writes them back: whole, whatever of them was changed
//! (`numpy.load(mmap_mode="r+")`, four workers of which each fills its own rows).

use crate::engine::Engine;
use crate::engine::base::setid::Gone;
use crate::engine::descriptions::io;
use crate::engine::descriptions::io::write_staged;
use crate::engine::versions::room;
use crate::txn::{Content, Staging};
use crate::types::OpResult;

/// Writes what a page has that its base hasn't (C9): the rest is as its process has seen it, and
/// others may have written there since. On a worker.
pub fn write_pages(
    engine: &Engine,
    staging: &Staging,
    data: &[u8],
    offset: u64,
    kill: Gone,
) -> OpResult<()> {
    io::change_staged(engine, staging, "write", |content| {
        write_changed(content, data, offset, kill)
    })
}

fn write_changed(content: &mut Content, page: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    let changed = content.changed_in(page, offset);
    if let Err(errno) = &changed
        && !room::is_full(&Err(*errno))
    {
        content.fail(*errno, "write");
    }
    for part in changed? {
        let at = offset + part.start as u64;
        write_staged(content, &page[part], at, kill)?;
    }
    Ok(())
}
