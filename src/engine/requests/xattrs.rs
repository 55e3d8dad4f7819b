//! Extended attributes: the backing file's own, and the virtual ones `user.commitfs.*`.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::admin::virtualdir;
use crate::engine::descriptions::io;
use crate::engine::documents::attributes;
use crate::engine::documents::{edits, texts};
use crate::engine::requests::attrs;
use crate::engine::versions::publish;
use crate::namespace::NodeKind;
use crate::sys::{at, failpoint};
use crate::txn::{OURS, Own, VERSION};
use crate::types::{Caller, NodeId, OpResult};

/// Those that speak of a JSON document.
pub const DOCUMENT: &[u8] = b"user.commitfs.json";

/// Our attributes go by a name without a namespace, which a plain directory refuses (EOPNOTSUPP):
/// nobody patches one unawares. The same with `user.` before it is taken, too. Gives the latter.
fn full_name(name: &OsStr) -> Cow<'_, OsStr> {
    if !name.as_bytes().starts_with(b"commitfs.") || failpoint::mutant("C15-bare") {
        return Cow::Borrowed(name);
    }
    let mut full = OsString::from("user.");
    full.push(name);
    Cow::Owned(full)
}

impl Engine {
    /// getxattr(2).
    pub fn getxattr(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Vec<u8>>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(Err(Errno::NODATA));
        }
        let name = &*full_name(name);
        if name.as_bytes().starts_with(DOCUMENT) {
            return edits::get_document(self, caller, node, name, done);
        }
        if name.as_bytes().starts_with(OURS) {
            return done(own_xattr(self, node, name));
        }
        let fd = self.lock().nodes.fd(node);
        done(fd.and_then(|fd| at::get_xattr(&*fd, name)?.ok_or(Errno::NODATA)));
    }
}

fn own_xattr(engine: &Engine, node: NodeId, name: &OsStr) -> OpResult<Vec<u8>> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    match name.to_str() {
        Some(VERSION) => Ok(publish::version_of(state, node).to_string().into_bytes()),
        Some("user.commitfs.error") => {
            let dentry = state
                .nodes
                .get(node)
                .and_then(|n| n.at.clone())
                .ok_or(Errno::NODATA)?;
            let error = state.names.error(&dentry).ok_or(Errno::NODATA)?;
            serde_json::to_vec(error).map_err(|_| Errno::IO)
        }
        _ => Err(Errno::NODATA),
    }
}

impl Engine {
    /// setxattr(2).
    pub fn setxattr(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(Err(Errno::OPNOTSUPP));
        }
        let name = &*full_name(name);
        if name.as_bytes().starts_with(OURS) {
            return attributes::set_own_xattr(self, caller, node, name, value, done);
        }
        let node = attrs::meant(self, caller, node);
        if texts::is_dirty(self, node) || attrs::is_private(self, node) {
            let (name, value) = (name.to_owned(), value.to_vec());
            return self.on_worker(move |engine| {
                let settled = texts::materialize(engine, node);
                done(settled.and_then(|()| set_stored(engine, node, &name, &value, flags)));
            });
        }
        done(set_stored(self, node, name, value, flags));
    }
}

fn set_stored(
    engine: &Engine,
    node: NodeId,
    name: &OsStr,
    value: &[u8],
    flags: i32,
) -> OpResult<()> {
    change_stored(engine, node, name, |fd| {
        at::set_xattr(fd, name, value, flags)
    })
}

/// Changes an attribute of a node's file. An open transaction keeps what was set through its own descriptor, be it that what
/// it has staged is being published.
fn change_stored(
    engine: &Engine,
    node: NodeId,
    name: &OsStr,
    change: impl FnOnce(&File) -> OpResult<()>,
) -> OpResult<()> {
    let open = {
        let state = engine.lock();
        let id = match state.nodes.get(node).map(|n| n.kind) {
            Some(NodeKind::Private(id)) => Some(id),
            _ => None,
        };
        id.and_then(|id| Some((id, state.txns.get(&id)?.staging.clone())))
    };
    let mut content = open.as_ref().map(|(_, staging)| staging.lock());
    if let Some(content) = &mut content {
        content.copy_base()?;
    }
    let fd = engine.lock().nodes.fd(node)?;
    change(&fd)?;
    if let Some((id, staging)) = &open {
        // Where nothing is written it is a change of the file all the same.
        io::changes_now(engine, *id);
        staging.set_own(Own::Xattrs);
        if name == "system.posix_acl_access" {
            staging.set_own(Own::Mode);
        }
    }
    Ok(())
}

impl Engine {
    /// removexattr(2).
    pub fn removexattr(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let node = attrs::meant(self, caller, node);
        let name = full_name(name).into_owned();
        let remove = move |engine: &Arc<Engine>| done(remove_stored(engine, node, &name));
        match attrs::is_private(self, node) {
            true => self.on_worker(remove),
            false => remove(self),
        }
    }
}

fn remove_stored(engine: &Engine, node: NodeId, name: &OsStr) -> OpResult<()> {
    // What was set while nothing was mounted is an ordinary attribute, and may go.
    let is_ours = name.as_bytes().starts_with(OURS) && !name.as_bytes().starts_with(DOCUMENT);
    if virtualdir::is_virtual(node) || is_ours {
        return Err(Errno::NODATA);
    }
    texts::materialize(engine, node)?;
    change_stored(engine, node, name, |fd| at::remove_xattr(fd, name))
}

impl Engine {
    /// listxattr(2): names, each ended by a zero byte.
    pub fn listxattr(&self, node: NodeId) -> OpResult<Vec<u8>> {
        if virtualdir::is_virtual(node) {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        let fd = self.lock().nodes.fd(node)?;
        for name in at::list_xattrs(&*fd)? {
            if !name.starts_with(OURS) {
                all.extend(name);
                all.push(0);
            }
        }
        Ok(all)
    }
}
