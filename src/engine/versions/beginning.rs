//! How a transaction begins: its staging file with the attributes of what it builds on, and a node of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::meaning::metadata;
use crate::engine::meaning::metadata::ctime;
use crate::engine::versions::room;
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::namespace::{NodeKind, Shown};
use crate::rules::{Creation, Policy};
use crate::sys::{at, failpoint};
use crate::txn::{Begun, Purpose, Staging, Transaction, Visibility};
use crate::types::{Dentry, NodeId, OpResult, TxnId};

/// What a transaction starts with.
pub struct Beginning {
    pub(in crate::engine) dentry: Dentry,
    pub(in crate::engine) begun: Begun,
    pub(in crate::engine) policy: Policy,
    /// Permissions, owner and group of a new file.
    pub(in crate::engine) fresh: Option<(u32, u32, u32)>,
    /// With neither base nor `fresh`: the open transaction whose attributes it takes.
    pub(in crate::engine) like: Option<NodeId>,
    /// How what it begins with is read.
    pub(in crate::engine) reading: OFlags,
}

/// So many descriptors are left to those who read, or bring into place what was acknowledged.
const LEFT: u64 = 8;

/// A transaction on a committed version: [`Begun::Edit`] goes on from its content,
/// [`Begun::Rewrite`] from nothing.
pub fn begin_on(
    engine: &Engine,
    state: &mut State,
    dentry: Dentry,
    begun: Begun,
) -> OpResult<TxnId> {
    let policy = engine.policy(state, &dentry, Creation::default());
    begin(
        engine,
        state,
        Beginning {
            reading: engine.reading(OFlags::empty()),
            dentry,
            begun,
            policy,
            fresh: None,
            like: None,
        },
    )
}

/// Ends a transaction that was prepared for an open that never came.
pub fn drop_unopened(engine: &Engine, state: &mut State, id: TxnId) {
    if !state.txns.get(&id).is_some_and(|t| t.phase.is_reserved()) {
        return;
    }
    let Some(txn) = state.remove_transaction(id) else {
        return;
    };
    state.forget_save(id);
    if let Some(node) = state.nodes.get_mut(txn.node) {
        node.kind = NodeKind::File;
        node.unlinked = true;
    }
    engine.let_go(state, txn.node);
    if let Some(content) = txn.staging.try_lock() {
        engine.store.remove_staging(content.id).ok();
    }
}

/// Makes the staging file and the private node of a transaction nobody has opened yet.
pub fn begin(engine: &Engine, state: &mut State, start: Beginning) -> OpResult<TxnId> {
    let fd_of = |id: Option<NodeId>| id.map(|id| state.nodes.fd(id)).transpose();
    let (base, like) = (fd_of(start.begun.base())?, fd_of(start.like)?);
    // Taken before the attributes are: a change in between is seen at the commit.
    let base_ctime = match &base {
        Some(base) => ctime(&at::stat(&**base)?),
        None => (0, 0),
    };
    let id = state.txns.new_id();
    let file = create_staging_making_room(engine, state, id)?;
    let made = metadata::apply_metadata(
        engine,
        &file,
        base.as_deref().or(like.as_deref()),
        start.fresh,
    );
    let content = match start.begun {
        Begun::Edit(id) => Shown::open_growing(&state.nodes, id, start.reading).map(Some),
        _ => Ok(None),
    };
    let (stat, content) = match (made, content) {
        (Ok(stat), Ok(content)) => (stat, content),
        (Err(e), _) | (_, Err(e)) => {
            engine.store.remove_staging(id).ok();
            return Err(e);
        }
    };
    let key = (stat.st_dev, stat.st_ino);
    let guard = start.policy.guard;
    let file = Arc::new(file);
    let staging = Arc::new(Staging::new(id, file.clone(), content, guard));
    let node = state
        .nodes
        .create(NodeKind::Private(id), file, key, start.dentry.clone());
    let everybody_sees = match start.begun {
        Begun::Create { exclusive, .. } => {
            (exclusive || failpoint::mutant("C6")) && !failpoint::mutant("C6-claim")
        }
        _ => false,
    };
    let claim = everybody_sees && start.policy.guard == Guard::None;
    let txn = Transaction::new(
        id,
        start.dentry.clone(),
        node,
        staging,
        start.policy,
        Purpose::new(start.begun, |base| state.files.body(base), base_ctime),
        Visibility::new(claim),
    );
    state.txns.insert(txn);
    // Versions of one file, and processes that are creating it together, share its locks.
    let base = start.begun.base();
    let kin = base.or_else(|| state.txns.at(&start.dentry).next().map(|t| t.node));
    if let Some(kin) = kin {
        state.same_file(node, kin);
    }
    Ok(id)
}

/// A staging file; rejected content makes room if the disk is full (C5). EMFILE: the last descriptors are kept.
fn create_staging_making_room(engine: &Engine, state: &mut State, id: TxnId) -> OpResult<File> {
    let file = match engine.store.create_staging(id) {
        Err(full @ (Errno::NOSPC | Errno::DQUOT))
            if room::make_room(engine, state, room::whose(engine, full, &|| None)) =>
        {
            engine.store.create_staging(id)
        }
        other => other,
    }?;
    // Numbers are handed out from below: with this one, so many are open.
    let open = u64::try_from(file.as_raw_fd()).unwrap_or(0) + 1;
    if open + LEFT > engine.config.descriptors && !failpoint::mutant("C19-left") {
        engine.store.remove_staging(id).ok();
        return Err(Errno::MFILE);
    }
    Ok(file)
}
