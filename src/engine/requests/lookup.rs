//! LOOKUP, GETATTR, READLINK: what a program finds, on its way to an open or not.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::admin::virtualdir::{CONTENTS, DIR, FILES, REJECTED};
use crate::engine::base::{current, watchers};
use crate::engine::meaning::resolve::{OPENING, attr_counted};
use crate::engine::meaning::{claims, ledger, resolve, stat};
use crate::engine::requests::finding::keep_file;
use crate::engine::requests::watch_requests;
use crate::engine::requests::{finding, serving};
use crate::engine::versions::appends::sizes;
use crate::engine::{Engine, VOLATILE};
use crate::namespace::{DropNames, NodeKind};
use crate::store::parse_id;
use crate::sys::watch_helper::{self};
use crate::types::{Attr, Caller, Dentry, HandleId, NodeId, OpResult, ROOT};

impl Engine {
    /// Finds `name` in `dir`; counts as one lookup of the node.
    pub fn lookup(
        self: &Arc<Self>,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(dir) || Engine::is_state_dir(dir, name) {
            return done(virtual_lookup(self, caller, dir, name));
        }
        let dentry = Dentry {
            dir,
            name: name.to_owned(),
        };
        let mut state = self.lock();
        if state.may_be_unbound(caller.tid, &dentry) {
            drop(state);
            if let Some(goal) = serving::unbound_goal(self, caller.tid, &dentry) {
                return self.on_worker(move |engine| {
                    serving::lookup_and_serve(engine, caller, dentry, goal, done)
                });
            }
            state = self.lock();
        }
        match finding::try_lookup(self, &mut state, caller, &dentry) {
            Ok(Some(found)) => {
                let is_claimed = state.names.is_claimed(&dentry);
                match attr_counted(self, state, found) {
                    // Now, as the caller waits.
                    Ok(mut attr) => {
                        if is_claimed {
                            claims::note_taken(self, caller, &dentry);
                        }
                        keep_file(self, &dentry, &mut attr);
                        done(Ok(attr));
                    }
                    // It has committed nothing and ended meanwhile: the name means something else now.
                    Err(Errno::STALE) => {
                        self.on_worker(move |engine| {
                            done(finding::lookup_waiting(engine, caller, &dentry))
                        });
                    }
                    Err(e) => done(Err(e)),
                }
            }
            Err(e) => {
                if e == Errno::NOENT {
                    ledger::note_read(self, &mut state, caller, &dentry, None);
                }
                drop(state);
                done(Err(e));
            }
            Ok(None) => {
                drop(state);
                self.on_worker(move |engine| {
                    done(finding::lookup_waiting(engine, caller, &dentry))
                });
            }
        }
    }
}

impl Engine {
    /// Attributes, of an open description where one is given.
    pub fn getattr(&self, caller: Caller, id: NodeId, handle: Option<HandleId>) -> OpResult<Attr> {
        if virtualdir::is_virtual(id) {
            return virtualdir::virtual_attr(self, id);
        }
        let mut attr = match resolve::attr(self, id) {
            Err(Errno::STALE) => attr_of_gone(self, id)?,
            found => found?,
        };
        if attr.ttl == OPENING {
            attr.ttl = VOLATILE;
        }
        attr.ino = self.lock().shown_number(id);
        if let Some(length) = sizes::length_with_tail(self, caller, id, handle) {
            attr.stat.st_size = i64::try_from(length).unwrap_or(i64::MAX);
            attr.ttl = VOLATILE;
        }
        Ok(attr)
    }
}

impl Engine {
    /// Target of a symlink.
    pub fn readlink(&self, id: NodeId) -> OpResult<Vec<u8>> {
        let fd = self.lock().nodes.fd(id)?;
        Ok(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes())
    }
}

/// The kernel looks at permissions before it opens what it has looked up. If that has ended
/// meanwhile without a commit, it is the open that has to send the caller round (see `open_gone`):
/// it is looked up once more only.
pub fn attr_of_gone(engine: &Engine, id: NodeId) -> OpResult<Attr> {
    let mut state = engine.lock();
    let gone = state.nodes.get(id).filter(|n| n.dead);
    let dentry = gone.and_then(|n| n.at.clone());
    let remains = gone.and_then(|n| n.remains.as_deref().copied());
    let dentry = dentry.ok_or(Errno::STALE)?;
    let current = current::current_if_any(engine, &mut state, &dentry)?;
    let current = current.and_then(|id| state.nodes.get(id));
    let ttl = VOLATILE;
    match current.filter(|n| n.kind == NodeKind::File) {
        Some(node) => Ok(Attr {
            ttl,
            ..stat::attr_of(&state, node)?
        }),
        // As it was when it went.
        None => Ok(Attr {
            ino: id,
            stat: remains.ok_or(Errno::STALE)?,
            ttl,
            name_ttl: VOLATILE,
        }),
    }
}

pub fn virtual_lookup(
    engine: &Engine,
    caller: Caller,
    dir: NodeId,
    name: &OsStr,
) -> OpResult<Attr> {
    let node = match dir {
        ROOT => DIR,
        DIR if watchers::is_watch_helper(engine, caller) && name != watch_helper::POLLABLE => {
            return watch_requests::watch_helper_lookup(engine, name);
        }
        DIR => {
            FILES
                .iter()
                .find(|(n, _)| name == *n)
                .ok_or(Errno::NOENT)?
                .1
        }
        REJECTED => {
            let text = name.to_str().ok_or(Errno::NOENT)?;
            let (id, meta) = match text.strip_suffix(".meta") {
                Some(id) => (id, 1),
                None => (text, 0),
            };
            let id = parse_id(OsStr::new(id)).ok_or(Errno::NOENT)?;
            NodeId(CONTENTS.0 + 2 * id.0 + meta)
        }
        _ => return Err(Errno::NOTDIR),
    };
    virtualdir::virtual_attr(engine, node)
}

/// The path of a name, relative to the mount point; `None`: its directory is gone.
pub fn path_now(engine: &Engine, dentry: &Dentry) -> Option<std::path::PathBuf> {
    engine.lock().nodes.path(dentry)
}

/// Whether a node is one of a file.
pub fn is_file(engine: &Engine, id: NodeId) -> bool {
    let state = engine.lock();
    let node = state.nodes.get(id);
    node.is_some_and(|node| matches!(node.kind, NodeKind::File | NodeKind::Private(_)))
}

/// Names of files may be kept from now on, as they can be dropped.
pub fn set_dropper(engine: &Engine, dropper: Arc<dyn DropNames>) {
    engine.lock().nodes.kept_names.dropper = Some(dropper);
}
