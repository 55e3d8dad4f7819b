//! Creating: a new file is a transaction that its name belongs to once it has committed, or is there at once by a rule.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::handle::DirectFile;
use super::super::opening::{Opened, Pass};
use super::super::{Engine, State, VOLATILE, pins, virtualdir};
use super::beginning::Beginning;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode};
use crate::sys::{at, failpoint};
use crate::txn::Begun;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, TxnId};

/// What creat(2) and open(2) with O_CREAT ask for.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Directory.
    pub dir: NodeId,
    /// Name in it.
    pub name: OsString,
    /// Permissions, the caller's umask applied.
    pub mode: u32,
    /// The caller's umask, for directories with a default ACL.
    pub umask: u32,
    /// Flags of open(2).
    pub flags: OFlags,
}

/// A created file.
#[derive(Clone, Copy, Debug)]
pub struct Created {
    /// Attributes of its node.
    pub attr: Attr,
    /// The description.
    pub opened: Opened,
}

/// A creation that isn't done, or has to wait for the writer slot of a name (C9).
enum Unready {
    Failed(Errno),
    MustWait(Dentry),
}

impl From<Errno> for Unready {
    fn from(errno: Errno) -> Unready {
        Unready::Failed(errno)
    }
}

/// Why what has come to stand under a name can't be created as a file.
fn other_than_file(state: &State, node: NodeId) -> Option<Errno> {
    match state.nodes.get(node).map(|n| n.kind) {
        Some(NodeKind::File) => None,
        Some(NodeKind::Dir) => Some(Errno::ISDIR),
        // Where a symlink leads the kernel knows, if this is not its second lookup.
        _ => Some(Errno::STALE),
    }
}

/// What a creation is answered, which counts as a lookup of the transaction's node.
fn created(
    engine: &Engine,
    mut state: MutexGuard<'_, State>,
    id: TxnId,
    opened: Opened,
) -> OpResult<Created> {
    let node = state.txns.get(&id).ok_or(Errno::STALE)?.node;
    if let Some(node) = state.nodes.get_mut(node) {
        node.lookups += 1;
    }
    drop(state);
    let attr = engine.attr(node)?;
    Ok(Created { attr, opened })
}

impl Engine {
    /// Creates a file and opens it.
    pub fn create(
        self: &Arc<Self>,
        caller: Caller,
        request: CreateRequest,
        done: impl FnOnce(OpResult<Created>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(request.dir) || Engine::is_state_dir(request.dir, &request.name) {
            return done(Err(Errno::PERM));
        }
        self.end_retry(caller.tid);
        let dentry = Dentry {
            dir: request.dir,
            name: request.name.clone(),
        };
        pins::note_creation(self, caller.tid, &dentry, request.flags);
        self.meet(caller, request.flags);
        let delay = failpoint::number("COMMITFS_CREATE_DELAY_MS", 0);
        if delay > 0 {
            let engine = self.clone();
            return self.pool.run(move || {
                std::thread::sleep(std::time::Duration::from_millis(delay));
                engine.create_found_missing(caller, request, done);
            });
        }
        self.create_found_missing(caller, request, done);
    }

    fn create_found_missing(
        self: &Arc<Self>,
        caller: Caller,
        request: CreateRequest,
        done: impl FnOnce(OpResult<Created>) + Send + 'static,
    ) {
        // What somebody else has created in the same moment may be a patched document already.
        let is_on_unwritten = |created: &Created| {
            self.is_dirty(created.attr.ino) || self.dirty_editor(created.opened.handle).is_some()
        };
        match self.create_now(self.lock(), caller, &request, false) {
            Err(Unready::Failed(e)) => done(Err(e)),
            Ok(created) if is_on_unwritten(&created) => {
                let engine = self.clone();
                self.pool
                    .run(move || done(engine.materialize_created(created)));
            }
            Ok(created) => done(Ok(created)),
            Err(Unready::MustWait(dentry)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    let created = engine.create_waiting(caller, &dentry, &request);
                    done(created.and_then(|created| engine.materialize_created(created)));
                });
            }
        }
    }

    fn materialize_created(self: &Arc<Self>, created: Created) -> OpResult<Created> {
        let (node, opened) = (created.attr.ino, created.opened);
        self.materialize(node)
            .inspect_err(|_| self.release(node, opened.handle, None))
            .and_then(|()| self.materialize_editor(opened))
            .and_then(|opened| {
                Ok(Created {
                    attr: self
                        .attr(node)
                        .inspect_err(|_| self.release(node, opened.handle, None))?,
                    opened,
                })
            })
            .inspect_err(|_| self.forget(node, 1))
    }

    /// Somebody else has created the file in the same moment, and edits it already.
    fn create_waiting(
        &self,
        caller: Caller,
        dentry: &Dentry,
        request: &CreateRequest,
    ) -> OpResult<Created> {
        let state = self.wait_for_slot(caller, dentry)?;
        match self.create_now(state, caller, request, true) {
            Ok(created) => Ok(created),
            Err(Unready::Failed(e)) => Err(e),
            Err(Unready::MustWait(_)) => Err(Errno::AGAIN),
        }
    }

    /// `waited`: it has waited for the writer slot, or given up doing so.
    fn create_now(
        &self,
        mut guard: MutexGuard<'_, State>,
        caller: Caller,
        request: &CreateRequest,
        waited: bool,
    ) -> Result<Created, Unready> {
        let state = &mut *guard;
        if state.unmount.is_forced() {
            return Err(Errno::ROFS.into());
        }
        let dentry = Dentry {
            dir: request.dir,
            name: request.name.clone(),
        };
        let exclusive = request.flags.contains(OFlags::EXCL);
        let hidden = state.txns.at(&dentry).next().is_some();
        if exclusive && hidden && !failpoint::mutant("C6-exclusive") {
            return Err(Errno::EXIST.into());
        }
        let dir = self.dir_fd(state, dentry.dir)?;
        if state.nodes.get(dentry.dir).is_some_and(|n| n.unlinked) {
            return Err(Errno::NOENT.into());
        }
        // The kernel found no such name, but somebody may have committed it since.
        let base = self.current_if_any(state, &dentry)?;
        if exclusive && base.is_some() {
            return Err(Errno::EXIST.into());
        }
        if let Some(found) = base.and_then(|base| other_than_file(state, base)) {
            return Err(found.into());
        }
        let policy = self.policy(
            state,
            &dentry,
            Creation {
                exclusive,
                empty: false,
            },
        );
        let fresh = self.fresh(&dir, caller, request.mode & 0o7777)?;
        let direct = policy.mode == RuleMode::Direct && !self.is_begun_atomic(state, &dentry)
            || self.is_companion(state, &dentry, request.flags);
        if direct && !failpoint::mutant("C14") {
            let created = self.create_direct(state, &dentry, request, fresh)?;
            self.note_direct_author(state, created.attr.ino, caller.tid);
            if exclusive {
                self.note_claim(state, caller, &dentry, created.attr.ino, &policy);
            }
            return Ok(created);
        }
        let adds = request.flags.contains(OFlags::APPEND) && !request.flags.contains(OFlags::TRUNC);
        let adds = base.filter(|_| adds);
        if let Some(base) = adds
            && let Some(stream) = self.adds_lines(state, base, &policy)
        {
            // Who came first has committed a line meanwhile: this one adds to it.
            let how = (request.flags, stream);
            let opened = self.open_appender(state, caller, base, dentry, how)?;
            if let Some(node) = state.nodes.get_mut(base) {
                node.lookups += 1;
            }
            drop(guard);
            return Ok(Created {
                attr: self.attr(base)?,
                opened,
            });
        }
        let takes_slot = base.is_some()
            && !request.flags.intersects(OFlags::TRUNC | OFlags::APPEND)
            && !self.is_empty_file(state, base);
        if takes_slot && !waited && self.must_wait(state, caller, &dentry) {
            return Err(match request.flags.contains(OFlags::NONBLOCK) {
                true => Errno::AGAIN.into(),
                false => Unready::MustWait(dentry),
            });
        }
        let shares = !takes_slot && self.shares(&policy, request.flags);
        if let Some(common) = self.common_at(state, &dentry, base).filter(|_| shares) {
            // Somebody has created it in the same moment.
            return self.join_common(guard, caller, common, request.flags);
        }
        let empties = request.flags.contains(OFlags::TRUNC);
        let id = self.begin(
            state,
            Beginning {
                reading: self.reading(OFlags::empty()),
                dentry: dentry.clone(),
                begun: Begun::by_open(base, exclusive, empties),
                policy,
                fresh: base.is_none().then_some(fresh),
                like: None,
            },
        )?;
        if let Some(txn) = state.txns.get_mut(&id) {
            if takes_slot {
                txn.slot.take(false);
            }
            let appends = request.flags.contains(OFlags::APPEND);
            let reads = request.flags.contains(OFlags::RDWR);
            let how = (appends, empties, reads);
            let is_new = base.is_none() && !exclusive;
            let stream = is_new.then(|| crate::engine::lines::of_new(&dentry, &txn.policy, how));
            txn.purpose.note_lines(appends, stream.flatten());
            if shares && (base.is_none() || caller.tid != 0) {
                txn.visibility.make_common();
            }
        }
        self.note_begin(state, caller.tid, id);
        let stream = state
            .txns
            .get(&id)
            .is_some_and(|t| t.purpose.stream().is_some());
        let joined = self.finish_creation(state, caller, id, request, base.is_none());
        let mut opened = joined.inspect_err(|_| self.drop_unopened(state, id))?;
        if base.is_none() && exclusive {
            // Everybody sees the name from now on.
            self.touch_dir(state, dentry.dir);
            if let Some(txn) = state.txns.get(&id) {
                let (node, policy) = (txn.node, txn.policy.clone());
                self.note_claim(state, caller, &dentry, node, &policy);
            }
        }
        // Pages would show others the unfinished line.
        opened.direct_io |= stream;
        Ok(created(self, guard, id, opened)?)
    }

    fn finish_creation(
        &self,
        state: &mut State,
        caller: Caller,
        id: TxnId,
        request: &CreateRequest,
        new: bool,
    ) -> OpResult<Opened> {
        if new {
            let dir = self.dir_fd(state, request.dir)?;
            let node = state.txns.get(&id).ok_or(Errno::STALE)?.node;
            let fd = state.nodes.fd(node)?;
            self.inherit_acl(&*dir, &*fd, request.mode, request.umask)?;
        } else if request.flags.contains(OFlags::TRUNC) {
            self.drop_set_id(state, caller, id)?;
        }
        self.join(state, caller, id, request.flags)
    }

    /// Mode, owner and group of a new file in `dir`.
    pub(in crate::engine) fn fresh(
        &self,
        dir: &File,
        caller: Caller,
        mode: u32,
    ) -> OpResult<(u32, u32, u32)> {
        let parent = at::stat(dir)?;
        let gid = if parent.st_mode & 0o2000 != 0 {
            parent.st_gid
        } else {
            caller.gid
        };
        Ok((mode, caller.uid, gid))
    }

    fn create_direct(
        &self,
        state: &mut State,
        dentry: &Dentry,
        request: &CreateRequest,
        (mode, uid, gid): (u32, u32, u32),
    ) -> OpResult<Created> {
        let dir = self.dir_fd(state, dentry.dir)?;
        let keep = request.flags
            & (OFlags::EXCL | OFlags::TRUNC | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC);
        let file = File::from(rustix::fs::openat(
            &*dir,
            &dentry.name,
            keep | OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?);
        if self.config.privileged {
            rustix::fs::fchown(
                &file,
                Some(rustix::fs::Uid::from_raw(uid)),
                Some(rustix::fs::Gid::from_raw(gid)),
            )?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        self.inherit_acl(&dir, &file, request.mode, request.umask)?;
        self.mark_dirty(state, dentry.dir);
        let stat = at::stat(&file)?;
        debug_assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile);
        let fd = at::open_path(&*dir, &dentry.name)?;
        let node = state.nodes.adopt(
            NodeKind::File,
            fd,
            (stat.st_dev, stat.st_ino),
            dentry.clone(),
        );
        node.lookups += 1;
        node.direct += 1;
        node.written_in_place = true;
        let id = node.id;
        let handle = state.add_handle(Arc::new(DirectFile {
            node: id,
            file: Arc::new(file),
            writes: true,
        }));
        Ok(Created {
            attr: Attr {
                ino: id,
                stat,
                ttl: VOLATILE,
                name_ttl: VOLATILE,
            },
            opened: Opened {
                handle,
                keep_cache: false,
                direct_io: false,
                no_flush: false,
                pass: Pass::Never,
            },
        })
    }

    /// A creation of what another has just created, to be shared.
    fn join_common(
        &self,
        mut guard: MutexGuard<'_, State>,
        caller: Caller,
        id: TxnId,
        flags: OFlags,
    ) -> Result<Created, Unready> {
        let state = &mut *guard;
        let opened = self.join(state, caller, id, flags)?;
        Ok(created(self, guard, id, opened)?)
    }
}
