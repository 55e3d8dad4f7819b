//! OPEN of what lies in `MOUNT/.commitfs/`.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::admin::control::ControlFile;
use crate::engine::admin::virtualdir::{CONTROL, LOCK, LOCKS, LOG, RULES, STATUS, content_of};
use crate::engine::admin::{locklist, status};
use crate::engine::base::handle::OpenFile;
use crate::engine::base::opening::{Opened, Pass};
use crate::engine::descriptions::kinds::{TextFile, VersionReader};
use crate::namespace::Shown;
use crate::types::{NodeId, OpResult};

/// Opens it: a text as of now, or a file that nobody replaces.
pub fn virtual_open(engine: &Engine, node: NodeId, flags: OFlags) -> OpResult<Opened> {
    let reads_only = !flags.intersects(OFlags::WRONLY | OFlags::RDWR);
    let of_text = |text: Vec<u8>| Arc::new(TextFile(Arc::new(text)));
    let all_of = |file: File| {
        let read = Shown::all_of(Arc::new(file));
        Arc::new(VersionReader {
            node,
            read,
            stays: AtomicBool::new(false),
        })
    };
    let file: Arc<dyn OpenFile> = match node {
        CONTROL => Arc::new(ControlFile::default()),
        _ if !reads_only => return Err(Errno::ROFS),
        STATUS => of_text(status::status_text(engine)),
        LOCKS => of_text(locklist::locks_text(engine)),
        RULES => of_text(engine.store.rules_text()?),
        LOG => all_of(engine.store.open_log()?),
        LOCK => of_text(format!("{}\n", std::process::id()).into_bytes()),
        _ => {
            let (id, meta) = content_of(node).ok_or(Errno::ISDIR)?;
            match meta {
                true => of_text(engine.store.rejected_meta(id)?),
                false => all_of(engine.store.open_rejected(id)?),
            }
        }
    };
    let handle = engine.lock().add_handle(file);
    Ok(Opened {
        handle,
        keep_cache: false,
        // Sizes are not known before the open.
        direct_io: true,
        no_flush: true,
        pass: Pass::Never,
    })
}
