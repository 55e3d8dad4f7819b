//! Listings: the backing directory with what is pending, claimed or the caller's own laid over it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::directories;
use crate::engine::base::handle::{DirEntry, Listing};
use crate::engine::descriptions::kinds::OpenDirectory;
use crate::engine::meaning::{deciding, pins, seeing};
use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::{at, proc};
use crate::types::{Caller, HandleId, NodeId, OpResult, ROOT};

/// A listing of more names than this has taken much memory.
const LONG: usize = 10_000;

impl Engine {
    /// opendir(3).
    pub fn opendir(&self, node: NodeId) -> OpResult<HandleId> {
        let mut state = self.lock();
        if !virtualdir::is_virtual(node) {
            self.dir_fd(&state, node)?;
        }
        let entries = None;
        Ok(state.add_handle(Arc::new(OpenDirectory { node, entries })))
    }
}

impl Engine {
    /// The listing; read anew at offset 0, so rewinddir(3) sees what has changed.
    pub fn readdir(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        offset: u64,
        done: impl FnOnce(OpResult<Listing>) + Send + 'static,
    ) {
        let open = self.lock().handles.get(handle).map(|open| open.listing());
        match open.unwrap_or(Err(Errno::BADF)) {
            Err(e) => done(Err(e)),
            Ok((_, Some(entries))) if offset > 0 => done(Ok(entries)),
            Ok((node, _)) => {
                self.on_worker(move |engine| {
                    let listed = list(engine, caller, node).map(Arc::new);
                    if let Ok(listed) = &listed
                        && let Some(open) = engine.lock().handles.get_mut(handle)
                    {
                        let entries = Some(listed.clone());
                        *open = Arc::new(OpenDirectory { node, entries });
                    }
                    done(listed);
                });
            }
        }
    }
}

impl Engine {
    /// closedir(3).
    pub fn releasedir(&self, handle: HandleId) {
        let closed = self.lock().handles.remove(handle);
        if let Some(Ok((_, Some(entries)))) = closed.map(|closed| closed.listing())
            && entries.len() > LONG
        {
            self.watch.freed.store(true, Ordering::Relaxed);
        }
    }
}

fn list(engine: &Engine, caller: Caller, node: NodeId) -> OpResult<Vec<DirEntry>> {
    if virtualdir::is_virtual(node) {
        return virtualdir::virtual_list(engine, node);
    }
    let dir = engine.dir_fd(&engine.lock(), node)?;
    let dev = at::stat(&*dir)?.st_dev;
    let quietly = engine.config.noatime || engine.config.nodiratime;
    let tgid = proc::tgid(caller.tid);
    // Pending names move to the backing directory under this lock, so none is missed and none
    // is seen twice.
    let mut guard = engine.lock();
    // What has been closed is there (C2).
    deciding::await_creations(&mut guard, node);
    directories::await_due(&mut guard, node);
    let state = &mut *guard;
    let mut names: BTreeMap<OsString, (NodeId, FileType)> = BTreeMap::new();
    for entry in rustix::fs::Dir::new(at::open_listing(&*dir, quietly)?)? {
        let entry = entry?;
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." || Engine::is_state_dir(node, name) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => at::stat_at(&*dir, name)?
                .map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode)),
            kind => kind,
        };
        let number = state.nodes.number((dev, entry.ino()));
        let ino = state.shown_number(number);
        names.insert(name.to_owned(), (ino, kind));
    }
    for (name, pending) in state.pending.in_dir(node) {
        names.insert(name.clone(), (pending.node, FileType::RegularFile));
    }
    pins::lay_over(state, caller, node, &mut names);
    for txn in state.txns.values() {
        let own = || tgid.is_some_and(|t| seeing::sees(state, txn, (t, caller.tid)));
        if txn.dentry().dir == node
            && !txn.is_unlinked()
            && (txn.phase.is_open() || txn.phase.is_held())
            && (txn.visibility.is_seen_by_all() || own())
        {
            let ino = txn.purpose.shown().unwrap_or(txn.node);
            names.insert(txn.dentry().name.clone(), (ino, FileType::RegularFile));
        }
    }
    for hidden in directories::hidden_in(state, node, tgid) {
        names.remove(&hidden);
    }
    let mut entries = vec![
        DirEntry {
            name: ".".into(),
            ino: node,
            kind: FileType::Directory,
        },
        DirEntry {
            name: "..".into(),
            ino: parent(state, node),
            kind: FileType::Directory,
        },
    ];
    entries.extend(
        names
            .into_iter()
            .map(|(name, (ino, kind))| DirEntry { name, ino, kind }),
    );
    Ok(entries)
}

fn parent(state: &State, node: NodeId) -> NodeId {
    match state.nodes.get(node) {
        Some(n) if n.kind == NodeKind::Dir => n.at.as_ref().map_or(ROOT, |at| at.dir),
        _ => ROOT,
    }
}
