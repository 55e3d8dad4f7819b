//! Creating: a new file is a transaction that its name belongs to once it has committed, or is there at once by a rule.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::opening::{Opened, Pass};
use crate::engine::base::{current, lines, strangers};
use crate::engine::descriptions::append::writing;
use crate::engine::descriptions::open::{arriving, joining, writers};
use crate::engine::descriptions::{retries, slots};
use crate::engine::documents::texts;
use crate::engine::meaning::{claims, group_locks, ledger, live_rules, pins, resolve};
use crate::engine::requests::attrs;
use crate::engine::versions::beginning;
use crate::engine::versions::beginning::Beginning;
use crate::engine::versions::direct_file::DirectFile;
use crate::engine::versions::{durability, shared};
use crate::engine::{Engine, State, VOLATILE};
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
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    let (node, is_common) = (txn.node, txn.visibility.is_common());
    if let Some(node) = state.nodes.get_mut(node) {
        node.lookups += 1;
    }
    drop(state);
    let mut attr = resolve::attr(engine, node)?;
    if !is_common && attr.stat.st_mode & 0o6000 == 0 {
        attr.ttl = resolve::OPENING;
    }
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
        retries::end_retry(self, caller.tid);
        let dentry = Dentry {
            dir: request.dir,
            name: request.name.clone(),
        };
        pins::note_creation(self, caller.tid, &dentry, request.flags);
        strangers::meet(self, caller, request.flags);
        let delay = failpoint::number("COMMITFS_CREATE_DELAY_MS", 0);
        if delay > 0 {
            return self.on_worker(move |engine| {
                std::thread::sleep(std::time::Duration::from_millis(delay));
                create_found_missing(engine, caller, request, done);
            });
        }
        create_found_missing(self, caller, request, done);
    }
}

fn create_found_missing(
    engine: &Arc<Engine>,
    caller: Caller,
    request: CreateRequest,
    done: impl FnOnce(OpResult<Created>) + Send + 'static,
) {
    // What somebody else has created in the same moment may be a patched document already.
    let is_on_unwritten = |created: &Created| {
        texts::is_dirty(engine, created.attr.ino)
            || texts::dirty_editor(engine, created.opened.handle).is_some()
    };
    match create_now(engine, engine.lock(), caller, &request, false) {
        Err(Unready::Failed(e)) => done(Err(e)),
        Ok(created) if is_on_unwritten(&created) => {
            engine.on_worker(move |engine| done(materialize_created(engine, created)));
        }
        Ok(created) => done(Ok(created)),
        Err(Unready::MustWait(dentry)) => {
            engine.on_worker(move |engine| {
                let created = create_waiting(engine, caller, &dentry, &request);
                done(created.and_then(|created| materialize_created(engine, created)));
            });
        }
    }
}

fn materialize_created(engine: &Arc<Engine>, created: Created) -> OpResult<Created> {
    let (node, opened) = (created.attr.ino, created.opened);
    texts::materialize(engine, node)
        .inspect_err(|_| engine.release(node, opened.handle, None))
        .and_then(|()| arriving::materialize_editor(engine, opened))
        .and_then(|opened| {
            Ok(Created {
                attr: resolve::attr(engine, node)
                    .inspect_err(|_| engine.release(node, opened.handle, None))?,
                opened,
            })
        })
        .inspect_err(|_| engine.forget(node, 1))
}

/// Somebody else has created the file in the same moment, and edits it already.
fn create_waiting(
    engine: &Engine,
    caller: Caller,
    dentry: &Dentry,
    request: &CreateRequest,
) -> OpResult<Created> {
    let state = slots::wait_for_slot(engine, caller, dentry)?;
    match create_now(engine, state, caller, request, true) {
        Ok(created) => Ok(created),
        Err(Unready::Failed(e)) => Err(e),
        Err(Unready::MustWait(_)) => Err(Errno::AGAIN),
    }
}

/// `waited`: it has waited for the writer slot, or given up doing so.
fn create_now(
    engine: &Engine,
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
    let dir = engine.dir_fd(state, dentry.dir)?;
    if state.nodes.get(dentry.dir).is_some_and(|n| n.unlinked) {
        return Err(Errno::NOENT.into());
    }
    // The kernel found no such name, but somebody may have committed it since.
    let base = current::current_if_any(engine, state, &dentry)?;
    if exclusive && base.is_some() {
        return Err(Errno::EXIST.into());
    }
    if let Some(found) = base.and_then(|base| other_than_file(state, base)) {
        return Err(found.into());
    }
    let creation = Creation {
        exclusive,
        empty: false,
    };
    let policy = group_locks::policy_for(engine, state, caller, &dentry, creation);
    let fresh = fresh(&dir, caller, request.mode & 0o7777)?;
    let direct = policy.mode == RuleMode::Direct
        && !live_rules::is_begun_atomic(engine, state, &dentry)
        || shared::is_companion(engine, state, &dentry, request.flags);
    if direct && !failpoint::mutant("C14") {
        let created = create_direct(engine, state, &dentry, request, fresh)?;
        ledger::note_direct_author(engine, state, created.attr.ino, caller.tid);
        if exclusive {
            claims::note_claim(engine, state, caller, &dentry, created.attr.ino, &policy);
        }
        return Ok(created);
    }
    let adds = request.flags.contains(OFlags::APPEND) && !request.flags.contains(OFlags::TRUNC);
    let adds = base.filter(|_| adds);
    if let Some(base) = adds
        && let Some(stream) = lines::adds_lines(state, base, &policy)
    {
        // Who came first has committed a line meanwhile: this one adds to it.
        let how = (request.flags, stream);
        let opened = writing::open_appender(engine, state, caller, base, dentry, how)?;
        if let Some(node) = state.nodes.get_mut(base) {
            node.lookups += 1;
        }
        drop(guard);
        return Ok(Created {
            attr: resolve::attr(engine, base)?,
            opened,
        });
    }
    let takes_slot = base.is_some()
        && !request.flags.intersects(OFlags::TRUNC | OFlags::APPEND)
        && !writers::is_empty_file(state, base);
    if takes_slot && !waited && writers::must_wait(state, caller, &dentry) {
        return Err(match request.flags.contains(OFlags::NONBLOCK) {
            true => Errno::AGAIN.into(),
            false => Unready::MustWait(dentry),
        });
    }
    let shares = !takes_slot && shared::shares(engine, &policy, request.flags);
    if let Some(common) = shared::common_at(state, &dentry, base).filter(|_| shares) {
        // Somebody has created it in the same moment.
        return join_common(engine, guard, caller, common, request.flags);
    }
    let empties = request.flags.contains(OFlags::TRUNC);
    let id = beginning::begin(
        engine,
        state,
        Beginning {
            reading: engine.reading(OFlags::empty()),
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
        let stream = is_new.then(|| lines::of_new(&dentry, &txn.policy, how));
        txn.purpose.note_lines(appends, stream.flatten());
        if shares && (base.is_none() || caller.tid != 0) {
            txn.visibility.make_common();
        }
    }
    ledger::note_begin(engine, state, caller.tid, id);
    let stream = state
        .txns
        .get(&id)
        .is_some_and(|t| t.purpose.stream().is_some());
    let joined = finish_creation(engine, state, caller, id, request, base.is_none());
    let mut opened = joined.inspect_err(|_| beginning::drop_unopened(engine, state, id))?;
    if base.is_none() && exclusive {
        // Everybody sees the name from now on.
        engine.touch_dir(state, dentry.dir);
        if let Some(txn) = state.txns.get(&id) {
            let (node, policy) = (txn.node, txn.policy.clone());
            claims::note_claim(engine, state, caller, &dentry, node, &policy);
        }
    }
    // Pages would show others the unfinished line.
    opened.direct_io |= stream;
    Ok(created(engine, guard, id, opened)?)
}

fn finish_creation(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: TxnId,
    request: &CreateRequest,
    new: bool,
) -> OpResult<Opened> {
    if new {
        let dir = engine.dir_fd(state, request.dir)?;
        let node = state.txns.get(&id).ok_or(Errno::STALE)?.node;
        let fd = state.nodes.fd(node)?;
        attrs::inherit_acl(&*dir, &*fd, request.mode, request.umask)?;
    } else if request.flags.contains(OFlags::TRUNC) {
        writers::drop_set_id(state, caller, id)?;
    }
    joining::join(engine, state, caller, id, request.flags)
}

/// Mode, owner and group of a new file in `dir`.
pub fn fresh(dir: &File, caller: Caller, mode: u32) -> OpResult<(u32, u32, u32)> {
    let parent = at::stat(dir)?;
    let gid = if parent.st_mode & 0o2000 != 0 {
        parent.st_gid
    } else {
        caller.gid
    };
    Ok((mode, caller.uid, gid))
}

fn create_direct(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    request: &CreateRequest,
    (mode, uid, gid): (u32, u32, u32),
) -> OpResult<Created> {
    let dir = engine.dir_fd(state, dentry.dir)?;
    let keep = request.flags
        & (OFlags::EXCL | OFlags::TRUNC | OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC);
    let file = File::from(rustix::fs::openat(
        &*dir,
        &dentry.name,
        keep | OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )?);
    if engine.config.privileged {
        rustix::fs::fchown(
            &file,
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
        )?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    attrs::inherit_acl(&dir, &file, request.mode, request.umask)?;
    durability::mark_dirty(engine, state, dentry.dir);
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
    engine: &Engine,
    mut guard: MutexGuard<'_, State>,
    caller: Caller,
    id: TxnId,
    flags: OFlags,
) -> Result<Created, Unready> {
    let state = &mut *guard;
    let opened = joining::join(engine, state, caller, id, flags)?;
    Ok(created(engine, guard, id, opened)?)
}
