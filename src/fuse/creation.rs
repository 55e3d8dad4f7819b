//! What CREATE is answered.
//!
//! The kernel looks at permissions between the creation and the first write, and asks for attributes first if it
//! may not keep those that came with the answer. The answer has a time for them and another one for the name, which must not
//! be kept as long as others don't see the file; fuser fills in the same for both. So this answer is written here.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyCreate, Request};

use super::convert::{attr_of, feature};
use super::replies::{ENTRY_TTL, GENERATION};
use crate::engine::Feature;
use crate::sys::failpoint;
use crate::types::{Attr, HandleId};

const NAME: &str = "created_attributes";

/// Where answers to creations are written; without it they go by way of fuser.
#[derive(Debug)]
pub(super) struct Creations {
    device: Option<File>,
    why: &'static str,
}

impl Creations {
    /// Over a connection to the kernel.
    pub(super) fn over(device: BorrowedFd<'_>) -> Creations {
        if failpoint::feature_off(NAME) {
            let why = "switched off";
            return Creations { device: None, why };
        }
        let device = device.try_clone_to_owned().ok().map(File::from);
        let why = "no descriptor";
        Creations { device, why }
    }

    /// For status.
    pub(super) fn feature(&self) -> Feature {
        let on = self.device.is_some();
        let why = if on { "" } else { self.why };
        feature(NAME, on, why.to_owned())
    }
}

/// A CREATE that is to be answered.
pub(super) struct CreateReply {
    creations: Arc<Creations>,
    unique: u64,
    reply: ReplyCreate,
}

impl CreateReply {
    /// Of this request.
    pub(super) fn of(creations: &Arc<Creations>, req: &Request, reply: ReplyCreate) -> CreateReply {
        let (creations, unique) = (creations.clone(), req.unique().0);
        CreateReply {
            creations,
            unique,
            reply,
        }
    }

    pub(super) fn open_backing(&self, file: &File) -> io::Result<BackingId> {
        self.reply.open_backing(file)
    }

    pub(super) fn error(self, errno: Errno) {
        self.reply.error(errno);
    }

    /// The file is there, and its attributes may be kept for as long as they say.
    pub(super) fn created(self, attr: &Attr, handle: HandleId, flags: FopenFlags) {
        let Some(mut device) = self.creations.device.as_ref() else {
            return self.reply.created(
                &ENTRY_TTL,
                &attr_of(attr),
                GENERATION,
                FileHandle(handle.0),
                flags,
            );
        };
        let body = created(attr, handle, flags);
        let head = head(self.unique, body.len());
        // fuser would answer once more, with an error, if it were dropped. All that stays is a count.
        std::mem::forget(self.reply);
        let written = device.write_vectored(&[IoSlice::new(&head), IoSlice::new(&body)]);
        if let Err(why) = written {
            // As for any answer: the request is gone, or the mount.
            log::debug!("a creation could not be answered: {why}");
        }
    }

    /// [`CreateReply::created`] of what the kernel writes by itself.
    pub(super) fn created_passthrough(
        self,
        attr: &Attr,
        handle: HandleId,
        flags: FopenFlags,
        backing: &BackingId,
    ) {
        let (attr, handle) = (attr_of(attr), FileHandle(handle.0));
        self.reply
            .created_passthrough(&ENTRY_TTL, &attr, GENERATION, handle, flags, backing);
    }
}

/// `struct fuse_out_header`.
fn head(unique: u64, body: usize) -> Vec<u8> {
    let len = 16 + body as u32;
    [narrow(&[len, 0]), wide(&[unique])].concat()
}

/// `struct fuse_entry_out` and `struct fuse_open_out`, as they are since protocol 7.9.
fn created(attr: &Attr, handle: HandleId, flags: FopenFlags) -> Vec<u8> {
    let (ttl, stat, short) = (attr.ttl, &attr.stat, attr_of(attr));
    let name_ttl = match failpoint::mutant("C1-created-name") {
        true => ttl,
        false => ENTRY_TTL,
    };
    let id = attr.ino.0;
    [
        wide(&[id, GENERATION.0, name_ttl.as_secs(), ttl.as_secs()]),
        narrow(&[name_ttl.subsec_nanos(), ttl.subsec_nanos()]),
        wide(&[id, short.size, short.blocks]),
        // It was made just now.
        wide(&[stat.st_atime, stat.st_mtime, stat.st_ctime].map(|s| s as u64)),
        narrow(&[stat.st_atime_nsec, stat.st_mtime_nsec, stat.st_ctime_nsec].map(|ns| ns as u32)),
        narrow(&[
            stat.st_mode,
            short.nlink,
            short.uid,
            short.gid,
            short.rdev,
            short.blksize,
            0,
        ]),
        wide(&[handle.0]),
        narrow(&[flags.bits(), 0]),
    ]
    .concat()
}

fn wide(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn narrow(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}
