//! Changes of attributes: mode, owner, times, length, and ACLs that are inherited.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::opening::Goal;
use crate::engine::base::setid::drop_set_id;
use crate::engine::base::{current, watchers};
use crate::engine::descriptions::open::arriving;
use crate::engine::descriptions::retries::arrive;
use crate::engine::descriptions::{close, io, retries};
use crate::engine::documents::texts;
use crate::engine::meaning::metadata::ACCESS;
use crate::engine::meaning::{deciding, pins, seeing};
use crate::engine::requests::watch_requests;
use crate::engine::versions::beginning;
use crate::engine::versions::shared;
use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::{at, failpoint, proc};
use crate::txn::{Own, Staging};
use crate::types::{Attr, Caller, HandleId, NodeId, OpResult, TxnId};

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// The current one.
    Now,
    /// Seconds and nanoseconds since the epoch.
    At(i64, u32),
}

/// What to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    fn times(&self) -> Option<Timestamps> {
        let stamp = |time: Option<SetTime>| match time {
            None => Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT as _,
            },
            Some(SetTime::Now) => Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_NOW as _,
            },
            Some(SetTime::At(sec, nsec)) => Timespec {
                tv_sec: sec,
                tv_nsec: nsec.into(),
            },
        };
        (self.atime.is_some() || self.mtime.is_some()).then(|| Timestamps {
            last_access: stamp(self.atime),
            last_modification: stamp(self.mtime),
        })
    }
}

/// How a truncate(2) is to be done.
enum Truncation {
    /// In direct mode, it is done already.
    Done,
    /// In the content that the caller's own transaction has staged. And whether it was sent round before.
    Open(TxnId, Arc<Staging>, bool),
    /// Once it is decided what becomes of that transaction: it is closed. And whether it was sent round before.
    Undecided(TxnId, bool),
    /// As a transaction of its own.
    Alone(TxnId),
}

impl Engine {
    /// chmod, chown, utimensat, truncate and their kin.
    pub fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        handle: Option<HandleId>,
        change: SetAttr,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            // `echo command > control` empties it first.
            return done(virtualdir::virtual_attr(self, node));
        }
        if watchers::is_watch_helper(self, caller) {
            return done(watch_requests::watch_helper_attr(self, node));
        }
        let target = match change.size {
            None => meant(self, caller, node),
            Some(_) => {
                pins::leave_at(self, caller.tid, node);
                node
            }
        };
        if texts::is_dirty(self, target) {
            return self.on_worker(move |engine| match texts::materialize(engine, target) {
                Ok(()) => engine.setattr(caller, node, handle, change, done),
                Err(errno) => done(Err(errno)),
            });
        }
        let engine = self.clone();
        let finish = move |size: OpResult<()>| {
            let changed = size.and_then(|()| self::change(&engine, target, &change));
            if target != node
                && let Some(notify) = engine.kernel.notify()
            {
                // The kernel takes it for a change of what it came by.
                notify.attributes_changed_by_now(target);
            }
            done(changed.and_then(|()| engine.getattr(caller, node, None)));
        };
        match (change.size, handle) {
            // The base may have to be copied first.
            (None, _) if is_private(self, node) => self.pool.run(move || finish(Ok(()))),
            (None, _) => finish(Ok(())),
            (Some(size), Some(handle)) => io::truncate_handle(self, caller, handle, size, finish),
            (Some(size), None) => truncate_path(self, caller, node, (size, false), finish),
        }
    }
}

pub fn is_private(engine: &Engine, node: NodeId) -> bool {
    let state = engine.lock();
    let kind = state.nodes.get(node).map(|n| n.kind);
    matches!(kind, Some(NodeKind::Private(_)))
}

fn change(engine: &Engine, node: NodeId, change: &SetAttr) -> OpResult<()> {
    let times = change.times();
    if (change.uid, change.gid, change.mode) == (None, None, None) && times.is_none() {
        return Ok(());
    }
    let noted = || -> OpResult<(Arc<File>, Option<Arc<Staging>>)> {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let n = state.nodes.get(node).ok_or(Errno::STALE)?;
        let (fd, kind) = (state.nodes.fd(node)?, n.kind);
        let staging = match kind {
            NodeKind::Private(id) => {
                io::unprepare(engine, state, id);
                state.txns.get_mut(&id).map(|t| {
                    // Set through an open file that is only being edited, they are a change
                    // of it like any other (touch(1)).
                    if change.size.is_none() {
                        t.purpose.note_change();
                    }
                    t.staging.clone()
                })
            }
            _ => None,
        };
        Ok((fd, staging))
    };
    let (mut fd, staging) = noted()?;
    let mut content = staging.as_ref().map(|staging| staging.lock());
    if let Some(content) = &mut content {
        // Copying later would set the time anew.
        content.copy_base()?;
        if !failpoint::mutant("C8-meanwhile") {
            // If what was staged was published meanwhile, the node has another file, and nobody knows of a change.
            fd = noted()?.0;
        }
    }
    if change.uid.is_some() || change.gid.is_some() {
        at::chown(&*fd, change.uid, change.gid)?;
        if let Some(staging) = &staging {
            staging.set_own(Own::Owner);
        }
    }
    if let Some(mode) = change.mode {
        at::chmod(&*fd, mode)?;
        if let Some(staging) = &staging {
            staging.set_own(Own::Mode);
        }
    }
    if let Some(times) = times {
        if let Some(content) = &mut content {
            content.look()?;
        }
        at::utimens(&*fd, &times)?;
        if let Some(content) = &mut content
            && change.mtime.is_some()
        {
            content.times_set = true;
            content.note_seen()?;
        }
    }
    Ok(())
}

/// truncate(2): a transaction of its own, sent round to a private node like any writer, but not who `was_sent` before.
fn truncate_path(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    (size, was_sent): (u64, bool),
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    arrive(engine, caller, node, Goal::Truncate);
    match truncate_begin(engine, caller, node, (size, was_sent)) {
        Ok(Truncation::Alone(txn)) => {
            engine.on_worker(move |engine| done(truncate_commit(engine, caller, txn, size)));
        }
        Ok(Truncation::Open(txn, staging, was_sent)) => {
            engine.on_worker(move |engine| {
                let mut content = staging.lock();
                if !io::changes_now(engine, txn) {
                    drop(content);
                    return truncate_path(engine, caller, node, (size, was_sent), done);
                }
                let cut = content.truncate(size);
                let set = cut.and_then(|()| drop_set_id(&*content.file, caller, Some(&staging)));
                drop(content);
                done(set);
            });
        }
        Ok(Truncation::Undecided(txn, was_sent)) => {
            engine.on_worker(move |engine| {
                deciding::await_decision(engine, txn);
                truncate_path(engine, caller, node, (size, was_sent), done);
            });
        }
        Ok(Truncation::Done) => done(Ok(())),
        Err(Errno::STALE) if failpoint::number("COMMITFS_OPEN_DELAY_MS", 0) > 0 => {
            engine.pool.run(move || {
                // It is on its second lookup so much later.
                failpoint::delay("COMMITFS_OPEN_DELAY_MS");
                done(Err(Errno::STALE));
            });
        }
        Err(e) => done(Err(e)),
    }
}

fn truncate_begin(
    engine: &Engine,
    caller: Caller,
    id: NodeId,
    (size, was_sent): (u64, bool),
) -> OpResult<Truncation> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let note = retries::take_pending_open(engine, state, caller.tid, Goal::Truncate);
    if let Some(note) = note.as_ref().filter(|n| n.old == id && !n.looked_up) {
        // Without a second lookup. The kernel is told the length of the version that it came by, so
        // that who reads that keeps it.
        return note.own().map(Truncation::Alone).ok_or(Errno::STALE);
    }
    let is_second = (note.is_some() || was_sent) && !failpoint::mutant("C1-walk-end");
    let prepared = note.as_ref().and_then(|n| n.own());
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    if let Some(prepared) = prepared {
        if node.kind == NodeKind::Private(prepared) {
            let walked = note.as_ref().map(|n| &n.dentry);
            seeing::has_walked(state, prepared, walked);
            return Ok(Truncation::Alone(prepared));
        }
        beginning::drop_unopened(engine, state, prepared);
    }
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    match node.kind {
        NodeKind::Dir => return Err(Errno::ISDIR),
        NodeKind::Special => return Err(Errno::INVAL),
        NodeKind::Private(_) if let Some(txn) = state.deciding_at(id) => {
            return Ok(Truncation::Undecided(txn, is_second));
        }
        // By a process that takes part: it means the content it writes.
        NodeKind::Private(txn) if let Some(open) = state.txns.get(&txn) => {
            return Ok(Truncation::Open(txn, open.staging.clone(), is_second));
        }
        NodeKind::Private(_) | NodeKind::File => {}
    }
    let looked_up = seeing::looked_up(state, caller.tid, id);
    let dentry = looked_up.or(node.at.as_ref()).cloned();
    if !node.dead && shared::is_direct(engine, state, id, dentry.as_ref())? {
        let file = at::reopen(&*state.nodes.fd(id)?, rustix::fs::OFlags::WRONLY)?;
        rustix::fs::ftruncate(&file, size)?;
        if let Some(node) = state.nodes.get_mut(id) {
            node.written_in_place = true;
        }
        drop_set_id(&file, caller, None)?;
        return Ok(Truncation::Done);
    }
    let dentry = dentry.ok_or(Errno::STALE)?;
    let begun = match arriving::begin_truncate(engine, state, caller, id, dentry) {
        // Not once more: its second lookup has led elsewhere.
        Err(Errno::STALE) if is_second => {
            let note = state.walks.pending_opens.remove(&caller.tid);
            note.and_then(|note| note.own()).ok_or(Errno::STALE)
        }
        begun => begun,
    };
    begun.map(Truncation::Alone)
}

fn truncate_commit(engine: &Arc<Engine>, caller: Caller, id: TxnId, size: u64) -> OpResult<()> {
    let staging = {
        let mut state = engine.lock();
        let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
        let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
        txn.participants.act_unopened(pid);
        txn.phase.close();
        txn.staging.clone()
    };
    let result = texts::materialize_base(engine, id).and_then(|()| {
        if let Some(txn) = engine.lock().txns.get_mut(&id) {
            txn.purpose.note_change();
        }
        let mut content = staging.lock();
        content.truncate(size)?;
        drop_set_id(&*content.file, caller, Some(&staging))
    });
    close::commit_alone(engine, id, &staging, result)
}

/// Gives a new file or directory in `dir` what the directory's default ACL says (acl(5)),
/// in place of the umask.
pub fn inherit_acl(dir: impl AsFd, fd: impl AsFd, mode: u32, umask: u32) -> OpResult<()> {
    const DEFAULT: &str = "system.posix_acl_default";
    let Some(acl) = at::get_xattr(dir, DEFAULT.as_ref())? else {
        // Mode came without the umask applied.
        if umask & 0o777 != 0 {
            let masked = at::stat(&fd)?.st_mode & 0o7777 & !(umask & 0o777);
            at::chmod(&fd, masked)?;
        }
        return Ok(());
    };
    let (access, bits) = inherited_access(&acl, mode).ok_or(Errno::IO)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(at::stat(&fd)?.st_mode)
        == rustix::fs::FileType::Directory;
    if is_dir {
        at::set_xattr(&fd, DEFAULT.as_ref(), &acl, 0)?;
    }
    let high = at::stat(&fd)?.st_mode & 0o7000;
    at::set_xattr(&fd, ACCESS.as_ref(), &access, 0)?;
    at::chmod(&fd, high | bits)
}

/// The version that a thread means which changes attributes by name: what it had looked up may have been replaced since. (A chmod waits in
/// the kernel while its file is patched, and then comes to the version before.) Who does it through a descriptor means what it has open.
pub fn meant(engine: &Engine, caller: Caller, node: NodeId) -> NodeId {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let is_file = |state: &State, id| {
        state
            .nodes
            .get(id)
            .is_some_and(|n| n.kind == NodeKind::File)
    };
    let is_old = is_file(state, node) && state.nodes.get(node).is_some_and(|n| n.superseded);
    let dentry = seeing::looked_up(state, caller.tid, node);
    let dentry = dentry.or_else(|| state.nodes.get(node)?.at.as_ref());
    let Some(dentry) = dentry.filter(|_| is_old).cloned() else {
        return node;
    };
    let current = current::current_if_any(engine, state, &dentry)
        .ok()
        .flatten();
    let Some(current) = current.filter(|id| *id != node && is_file(state, *id)) else {
        return node;
    };
    drop(guard);
    match proc::call_of(caller.tid) {
        Some(proc::Call::Named) if !failpoint::mutant("C8-named") => current,
        _ => node,
    }
}

/// Access ACL that a file created with `mode` gets from a default ACL, and its permission bits.
/// Both in the kernel's xattr format: version 2, then entries of tag, permissions, id.
fn inherited_access(default: &[u8], mode: u32) -> Option<(Vec<u8>, u32)> {
    const USER_OBJ: u16 = 0x01;
    const GROUP_OBJ: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let mut acl = default.to_vec();
    if acl.len() < 4 || !(acl.len() - 4).is_multiple_of(8) {
        return None;
    }
    let tag = |e: &[u8]| u16::from_le_bytes([e[0], e[1]]);
    let has_mask = acl[4..].chunks_exact(8).any(|e| tag(e) == MASK);
    let mut bits = 0;
    for entry in acl[4..].chunks_exact_mut(8) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        let allowed = u16::from_le_bytes([entry[2], entry[3]]) & ((mode >> shift) & 7) as u16;
        entry[2..4].copy_from_slice(&allowed.to_le_bytes());
        bits |= u32::from(allowed) << shift;
    }
    Some((acl, bits))
}
