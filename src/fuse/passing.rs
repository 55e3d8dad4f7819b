//! Nodes whose files the kernel reads by itself (passthrough, Linux 6.9): no request comes for their content.
//!
//! The kernel wants all descriptions of a node to be so at the same time, by one and the same backing file, or none: so
//! what each node has open is counted here, as the kernel is told of it and tells us.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, Errno, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;

use super::convert::feature;
use super::creation::CreateReply;
use super::replies::fopen_flags;
use crate::engine::{Created, Engine, Feature, Opened, Pass, give_up};
use crate::sys::{failpoint, mount};
use crate::types::{HandleId, NodeId, OpResult};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// This kernel has it, and it has not failed yet.
    on: AtomicBool,
    nodes: Mutex<HashMap<NodeId, OpenNode>>,
}

/// What a node has open.
#[derive(Debug, Default)]
struct OpenNode {
    /// The kernel reads these by itself.
    passing: Vec<HandleId>,
    /// From this.
    backing: Option<Arc<BackingId>>,
    /// Device and inode number of that.
    file: (u64, u64),
    /// So many others are open.
    others: usize,
}

/// How a description is answered.
enum Served {
    /// Its requests come to us.
    Asks,
    /// The kernel serves it from this file.
    Passes(Arc<BackingId>),
    /// The kernel serves the node's other descriptions by itself, and can't this one.
    Busy,
}

impl Passing {
    /// The kernel reads large files by itself, if it can and is allowed to.
    pub(super) fn offer(&self, config: &mut KernelConfig) -> Feature {
        const NAME: &str = "passthrough";
        // What a lock moves to another version is read uncached.
        let needed = [NAME, "direct_io_allow_mmap"];
        let switched_off = needed.into_iter().any(failpoint::feature_off);
        let switched_off = switched_off.then_some("switched off");
        let mut why = switched_off.or_else(mount::why_not_pass_through);
        let mut offered = || config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
        if why.is_none() && !offered() {
            why = Some("not offered by this kernel (large files at the speed of the disk)");
        }
        if why.is_none() {
            // The backing directory is none that lies on others (overlayfs): the kernel would refuse its files.
            config.set_max_stack_depth(1).ok();
            self.on.store(true, Ordering::Relaxed);
        }
        feature(NAME, why.is_none(), why.unwrap_or_default().to_owned())
    }

    /// Decides how a description is answered. One that can't be served is given up.
    fn serve(
        &self,
        engine: &Arc<Engine>,
        node: NodeId,
        opened: &Opened,
        back: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Served {
        let served = self.enter(node, opened, back, || engine.pass(opened.handle));
        if matches!(served, Served::Busy) {
            log::debug!(
                "a file can't be opened so as long as the kernel serves it by itself for others"
            );
            give_up(engine, node, opened.handle);
        }
        served
    }

    /// A description is about to be answered. `file` says what it reads, `back` gives that to the kernel; should that fail, none is
    /// passed any more.
    fn enter(
        &self,
        id: NodeId,
        opened: &Opened,
        back: impl FnOnce(&File) -> io::Result<BackingId>,
        file: impl FnOnce() -> OpResult<Arc<File>>,
    ) -> Served {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get_mut(&id)
            && let Some(backing) = node.backing.clone()
        {
            let is_same = |file: Arc<File>| identity(&file) == Some(node.file);
            if opened.pass == Pass::Never || !file().is_ok_and(is_same) {
                return Served::Busy;
            }
            node.passing.push(opened.handle);
            return Served::Passes(backing);
        }
        if !self.on.load(Ordering::Relaxed) {
            return Served::Asks;
        }
        let node = nodes.entry(id).or_default();
        let mixes = failpoint::mutant("C1-passed");
        let wanted = opened.pass == Pass::Wanted && (node.others == 0 || mixes);
        if let Some(Ok(file)) = wanted.then(file)
            && let Some(identity) = identity(&file)
        {
            match back(&file) {
                Ok(backing) => {
                    let backing = Arc::new(backing);
                    node.file = identity;
                    node.backing = Some(backing.clone());
                    node.passing.push(opened.handle);
                    return Served::Passes(backing);
                }
                Err(why) => {
                    log::warn!(
                        "large files are read by way of the daemon: the kernel can't be given a file: {why}"
                    );
                    self.on.store(false, Ordering::Relaxed);
                }
            }
        }
        node.others += 1;
        Served::Asks
    }

    /// A description is gone.
    pub(super) fn leave(&self, id: NodeId, handle: HandleId) {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&id) else {
            return;
        };
        match node.passing.iter().position(|passing| *passing == handle) {
            Some(at) => _ = node.passing.swap_remove(at),
            None => node.others = node.others.saturating_sub(1),
        }
        if node.passing.is_empty() {
            node.backing = None;
            if node.others == 0 {
                nodes.remove(&id);
            }
        }
    }
}

fn identity(file: &File) -> Option<(u64, u64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Tells the kernel of an open description, and gives it the backing file if it may read that by itself.
pub(super) fn answer_open(
    reply: ReplyOpen,
    engine: &Arc<Engine>,
    passing: &Passing,
    node: NodeId,
    opened: &Opened,
) {
    let handle = FileHandle(opened.handle.0);
    match passing.serve(engine, node, opened, |file| reply.open_backing(file)) {
        Served::Asks => reply.opened(handle, fopen_flags(opened)),
        Served::Passes(backing) => {
            reply.opened_passthrough(handle, flags_beside(opened), &backing);
        }
        Served::Busy => reply.error(Errno::ETXTBSY),
    }
}

/// [`answer_open`] for a file that was created with it.
pub(super) fn answer_create(
    reply: CreateReply,
    engine: &Arc<Engine>,
    passing: &Passing,
    created: &Created,
) {
    let (node, opened) = (created.attr.ino, &created.opened);
    match passing.serve(engine, node, opened, |file| reply.open_backing(file)) {
        Served::Asks => reply.created(&created.attr, opened.handle, fopen_flags(opened)),
        Served::Passes(backing) => {
            let flags = flags_beside(opened);
            reply.created_passthrough(&created.attr, opened.handle, flags, &backing);
        }
        Served::Busy => reply.error(Errno::ETXTBSY),
    }
}

/// With passthrough the kernel takes no flag that is about pages.
fn flags_beside(opened: &Opened) -> FopenFlags {
    fopen_flags(opened) & FopenFlags::FOPEN_NOFLUSH
}
