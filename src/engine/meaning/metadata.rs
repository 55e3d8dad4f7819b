//! Owner, mode, attributes and times that a content takes over from what it replaces.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use parking_lot::MutexGuard;
use rustix::fs::Mode;

use crate::engine::base::current;
use crate::engine::base::setid;
use crate::engine::meaning::stat;
use crate::engine::{Engine, State};
use crate::journal;
use crate::namespace::NodeKind;
use crate::sys::{at, failpoint};
use crate::txn::{AsOf, Content, Own, Staging};
use crate::types::{Dentry, NodeId, OpResult, TxnId, mtime_ns};

/// A version was committed since a content was described, which is to be later than that.
pub fn outgrow(
    state: &State,
    since: NodeId,
    file: &File,
    described: &mut journal::ContentInfo,
) -> OpResult<()> {
    if let Some(before) = stat::mtime_of(state, since) {
        described.mtime_ns = outgrow_mtime(file, before)?;
    }
    Ok(())
}

/// `texts::apply_attributes`, of a version whose text is written.
pub fn attributes_of_current(
    engine: &Engine,
    mut state: MutexGuard<'_, State>,
    id: TxnId,
    content: &mut Content,
    dentry: &Dentry,
    keeps_own: bool,
) -> OpResult<Option<AsOf>> {
    let Some(current) = current::current_if_any(engine, &mut state, dentry)? else {
        return Ok(None);
    };
    let fd = state.nodes.fd(current)?;
    let base = state.txns.get(&id).filter(|_| !keeps_own);
    let base = base.map(|t| (t.purpose.base(), t.purpose.base_ctime(), t.staging.clone()));
    drop(state);
    let stat = at::stat(&*fd)?;
    // By somebody else while the transaction was open: a chmod must not be lost, nor must it
    // undo the transaction's own.
    if let Some((base, base_ctime, staging)) = base
        && (base != Some(current) || base_ctime != ctime(&stat))
    {
        refresh_metadata(engine, &content.file, &staging, &fd)?;
    }
    // Unless the program set its own.
    if !content.times_set {
        outgrow_mtime(&content.file, mtime_ns(&stat))?;
    }
    Ok(Some((current, ctime(&stat))))
}

/// What was set by name since a content was given the attributes of a version (`like`), or came with
/// another version, is not lost by its commit: a program may have been told that a file is nobody else's to read.
pub fn renew_attributes(
    engine: &Engine,
    state: &State,
    current: Option<NodeId>,
    (file, staging): (&File, &Staging),
    like: Option<AsOf>,
) {
    let node = current.and_then(|current| state.nodes.get(current));
    let Some(node) = node.filter(|n| n.kind == NodeKind::File) else {
        return;
    };
    let renewed = state.nodes.fd(node.id).and_then(|fd| {
        let now = (node.id, ctime(&at::stat(&*fd)?));
        match like == Some(now) || failpoint::mutant("C8-renewed") {
            true => Ok(()),
            false => refresh_metadata(engine, file, staging, &fd),
        }
    });
    if let Err(errno) = renewed {
        log::warn!("a file keeps the attributes that it was prepared with: {errno}");
    }
}

/// Gives a staging file the owner, mode, ACL and xattrs it will be published with.
pub fn apply_metadata(
    engine: &Engine,
    file: &File,
    base: Option<&File>,
    fresh: Option<(u32, u32, u32)>,
) -> OpResult<rustix::fs::Stat> {
    let mut stat = at::stat(file)?;
    let base = base.filter(|_| !failpoint::mutant("C8"));
    let (mode, uid, gid) = match (base, fresh) {
        (Some(base), _) => {
            let base = at::stat(base)?;
            (base.st_mode & 0o7777, base.st_uid, base.st_gid)
        }
        (None, Some(fresh)) => fresh,
        (None, None) => (0o600, stat.st_uid, stat.st_gid),
    };
    if engine.config.privileged && (stat.st_uid, stat.st_gid) != (uid, gid) {
        rustix::fs::fchown(
            file,
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
        )?;
    } else if stat.st_gid != gid {
        // An ordinary user may give a file to the groups it is in.
        rustix::fs::fchown(file, None, Some(rustix::fs::Gid::from_raw(gid))).ok();
    }
    if let Some(base) = base {
        crate::txn::copy_xattrs(base, file)?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    (stat.st_uid, stat.st_gid) = (uid, gid);
    Ok(stat)
}

/// Brings the attributes of a staging file up to those of the version it will replace, but for
/// what the transaction has changed itself.
pub fn refresh_metadata(
    engine: &Engine,
    file: &File,
    staging: &Staging,
    current: &File,
) -> OpResult<()> {
    let (staged, wanted) = (at::stat(file)?, at::stat(current)?);
    if !staging.is_own(Own::Owner)
        && (staged.st_uid, staged.st_gid) != (wanted.st_uid, wanted.st_gid)
    {
        let gid = Some(rustix::fs::Gid::from_raw(wanted.st_gid));
        let uid = Some(rustix::fs::Uid::from_raw(wanted.st_uid));
        if engine.config.privileged {
            rustix::fs::fchown(file, uid, gid)?;
        } else {
            rustix::fs::fchown(file, None, gid).ok();
        }
    }
    if !staging.is_own(Own::Xattrs) {
        for name in at::list_xattrs(file)? {
            if at::get_xattr(current, OsStr::from_bytes(&name))?.is_none() {
                at::remove_xattr(file, OsStr::from_bytes(&name)).ok();
            }
        }
        crate::txn::copy_xattrs(current, file)?;
    }
    // Last: a change of the owner clears set-id bits, an ACL has a part in the mode.
    let source = if staging.is_own(Own::Mode) {
        &staged
    } else {
        &wanted
    };
    let mut mode = source.st_mode & 0o7777;
    if staging.is_own(Own::NoSetId) {
        mode = setid::without_set_id(mode, staging);
    }
    if mode != at::stat(file)?.st_mode & 0o7777 {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// Moves a file's modification time past another. Gives what it is then; both in nanoseconds since
/// the epoch.
pub fn outgrow_mtime(file: &File, before: i128) -> OpResult<i128> {
    let own = mtime_ns(&at::stat(file)?);
    if own > before || failpoint::mutant("C8-mtime") {
        return Ok(own);
    }
    at::set_mtime(file, before + 1000)?;
    Ok(before + 1000)
}

pub fn ctime(stat: &rustix::fs::Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec)
}

pub const ACCESS: &str = "system.posix_acl_access";
