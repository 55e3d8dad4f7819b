//! Making what isn't a regular file that is written: directories, fifos, sockets, devices, symlinks.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::directories;
use crate::engine::deciding::names::refuse_state_dir;
use crate::engine::meaning::{deciding, pins, resolve};
use crate::engine::requests::attrs;
use crate::engine::requests::creating;
use crate::engine::versions::durability;
use crate::namespace::NodeKind;
use crate::sys::at;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult};

impl Engine {
    /// mkdir(2); `mode` as asked for, `umask` the caller's.
    pub fn mkdir(
        &self,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> OpResult<Attr> {
        make(
            self,
            caller,
            dir,
            name,
            mode,
            |parent, name| rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)),
            umask,
        )
    }
}

impl Engine {
    /// mknod(2): fifos, sockets, devices, and empty files.
    #[allow(clippy::too_many_arguments)]
    pub fn mknod(
        &self,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> OpResult<Attr> {
        let kind = FileType::from_raw_mode(mode);
        make(
            self,
            caller,
            dir,
            name,
            mode,
            |parent, name| {
                rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), rdev.into())
            },
            umask,
        )
    }
}

impl Engine {
    /// symlink(2).
    pub fn symlink(
        &self,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        target: &Path,
    ) -> OpResult<Attr> {
        make(
            self,
            caller,
            dir,
            name,
            FileType::Symlink.as_raw_mode() | 0o777,
            |parent, name| rustix::fs::symlinkat(target, parent, name),
            0,
        )
    }
}

fn make(
    engine: &Engine,
    caller: Caller,
    dir: NodeId,
    name: &OsStr,
    mode: u32,
    create: impl FnOnce(&File, &OsStr) -> OpResult<()>,
    umask: u32,
) -> OpResult<Attr> {
    refuse_state_dir(dir, name)?;
    let dentry = Dentry {
        dir,
        name: name.to_owned(),
    };
    let mut guard = engine.lock();
    let state = &mut *guard;
    if deciding::exists(engine, state, &dentry)? {
        return Err(Errno::EXIST);
    }
    let parent = engine.dir_fd(state, dir)?;
    let (mode, uid, gid) = creating::fresh(&parent, caller, mode)?;
    engine.sequencer.barrier()?;
    pins::note_change(engine, state, &dentry, None);
    create(&parent, name)?;
    let fd = File::from(at::open_path(&*parent, name)?);
    let finished = finish_made(engine, &parent, &fd, mode, (uid, gid), umask);
    let stat = finished.inspect_err(|_| {
        let flag = match at::stat(&fd).map(|s| FileType::from_raw_mode(s.st_mode)) {
            Ok(FileType::Directory) => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        rustix::fs::unlinkat(&*parent, name, flag).ok();
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => NodeKind::Dir,
        FileType::RegularFile => NodeKind::File,
        _ => NodeKind::Special,
    };
    let key = (stat.st_dev, stat.st_ino);
    let node = state.nodes.adopt(kind, fd, key, dentry.clone());
    node.lookups += 1;
    let id = node.id;
    durability::mark_dirty(engine, state, dir);
    if kind == NodeKind::Dir {
        directories::note_made(engine, state, caller, &dentry);
    }
    drop(guard);
    resolve::attr(engine, id)
}

fn finish_made(
    engine: &Engine,
    parent: &File,
    fd: &File,
    mode: u32,
    (uid, gid): (u32, u32),
    umask: u32,
) -> OpResult<rustix::fs::Stat> {
    let mut stat = at::stat(fd)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if engine.config.privileged && (stat.st_uid, stat.st_gid) != (uid, gid) {
        at::chown(fd, Some(uid), Some(gid))?;
    }
    if kind != FileType::Symlink {
        // A directory in a setgid directory is setgid itself.
        let inherited = if kind == FileType::Directory {
            at::stat(parent)?.st_mode & 0o2000
        } else {
            0
        };
        at::chmod(fd, (mode & 0o7777) | inherited)?;
        attrs::inherit_acl(parent, fd, mode, umask)?;
    }
    stat = at::stat(fd)?;
    Ok(stat)
}
