//! What the links get that follow a file which is being written: a copy of each of its commits.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::deciding::judging;
use crate::engine::meaning::metadata;
use crate::engine::versions::publish::NewVersion;
use crate::engine::versions::{publish, room};
use crate::engine::{Engine, State};
use crate::journal;
use crate::namespace::NodeKind;
use crate::rules::Creation;
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::Ready;
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of, mtime_ns};

/// So often copies are made once more because what they are for has changed.
pub const RENEWALS: u32 = 16;

/// What is to be committed under the names that follow a transaction.
#[derive(Default)]
pub struct Copies {
    /// These names, with what they had when the copies were begun; one that its guard refuses has no copy.
    of: HashMap<Dentry, NodeId>,
    made: Vec<Copy>,
}

/// For one name that follows.
pub struct Copy {
    dentry: Dentry,
    onto: NodeId,
    ready: Ready,
    path: Arc<File>,
    key: (u64, u64),
}

impl Copies {
    /// Whether the names that follow are still these: a link may have been made, renamed, or given what another
    /// writer has committed.
    pub(in crate::engine) fn fit(&self, state: &State, id: TxnId) -> bool {
        self.of == state.names.followers(id) || failpoint::mutant("C6-behind")
    }

    /// What was copied is not committed.
    pub(in crate::engine) fn remove(self, store: &Store) {
        for copy in self.made {
            store.remove_staging(copy.ready.id).ok();
        }
    }
}

/// A file has got a second name, with this version: it follows whoever has the file open.
pub fn follow_writers(state: &mut State, linked: &Dentry, to: &Dentry, version: NodeId) {
    if failpoint::mutant("C6-links") {
        return;
    }
    let mut writers: Vec<TxnId> = state.names.leaders(linked).to_vec();
    writers.extend(state.txns.at(linked).map(|t| t.id));
    state.names.follow(to, version, writers);
}

/// Copies of what a transaction is about to commit, for the names that follow it. On a worker.
pub fn copies_of_prepared(engine: &Engine, id: TxnId) -> Copies {
    let (followers, ready) = {
        let state = engine.lock();
        let ready = state
            .txns
            .get(&id)
            .and_then(|t| t.preparation.ready().cloned());
        (state.names.followers(id), ready)
    };
    match ready {
        Some(ready) => copies(engine, followers, (&ready.file, &ready.content)),
        None => Copies {
            of: followers,
            made: Vec::new(),
        },
    }
}

/// Gives the names that follow a transaction copies of what has been published of it already, under another name or by an unlock.
pub fn renew_followers(engine: &Engine, id: TxnId, version: NodeId) -> OpResult<()> {
    // Somebody has committed since, and brings that to the links.
    let is_old = |state: &State| state.nodes.get(version).is_none_or(|n| n.superseded);
    // Whoever renames a link again and again keeps nobody waiting for ever.
    for _ in 0..RENEWALS {
        let (followers, fd) = {
            let state = engine.lock();
            let followers = state.names.followers(id);
            if followers.is_empty() || is_old(&state) {
                return Ok(());
            }
            (followers, state.nodes.fd(version)?)
        };
        let file = at::reopen_quietly(&*fd)?;
        let stat = at::stat(&file)?;
        let described = journal::ContentInfo {
            len: u64::try_from(stat.st_size).unwrap_or(0),
            crc: None,
            inline: None,
            mtime_ns: mtime_ns(&stat),
            grown: None,
            parts: None,
        };
        let copies = copies(engine, followers, (&file, &described));
        let mut state = engine.lock();
        if !is_old(&state) && copies.fit(&state, id) {
            publish_copies(engine, &mut state, copies);
            return Ok(());
        }
        drop(state);
        copies.remove(&engine.store);
    }
    Err(Errno::AGAIN)
}

pub fn copies(
    engine: &Engine,
    of: HashMap<Dentry, NodeId>,
    source: (&File, &journal::ContentInfo),
) -> Copies {
    let copy = |(dentry, onto): (&Dentry, &NodeId)| {
        let made = copy_for(engine, dentry, *onto, source);
        made.inspect_err(|e| {
            let path = engine.show(&engine.lock(), dentry);
            log::warn!("{path}: a link stays behind the file that it was made of: {e}");
        })
        .ok()
    };
    let made = of.iter().filter_map(copy).collect();
    Copies { of, made }
}

pub fn copy_for(
    engine: &Engine,
    dentry: &Dentry,
    onto: NodeId,
    (source, described): (&File, &journal::ContentInfo),
) -> OpResult<Copy> {
    let policy = engine.policy(&engine.lock(), dentry, Creation::default());
    judging::check_named(engine, 0, source, (dentry, &policy), true)?;
    publish::reserve_commit(engine)?;
    let id = engine.lock().txns.new_id();
    let file = room::making_room(engine, || engine.store.create_staging(id))?;
    let fill = || fill_copy(engine, id, &file, onto, (source, described));
    let made = room::making_room_for(engine, described.len, fill);
    let (path, key, described) = made.inspect_err(|_| {
        engine.store.remove_staging(id).ok();
    })?;
    let ready = Ready {
        onto: Some(onto),
        ..Ready::new(id, Arc::new(file), described)
    };
    Ok(Copy {
        dentry: dentry.clone(),
        onto,
        ready,
        path: Arc::new(path.into()),
        key,
    })
}

pub fn fill_copy(
    engine: &Engine,
    id: TxnId,
    file: &File,
    onto: NodeId,
    (source, described): (&File, &journal::ContentInfo),
) -> OpResult<(OwnedFd, (u64, u64), journal::ContentInfo)> {
    at::copy_contents(source, file, described.len).map_err(|e| errno_of(&e))?;
    // One file: owner, mode and times are those of what was written.
    let original = at::reopen(source, OFlags::PATH)?;
    metadata::apply_metadata(engine, file, Some(&original), None)?;
    at::set_mtime(file, described.mtime_ns)?;
    let mut described = journal::ContentInfo {
        grown: None,
        ..described.clone()
    };
    metadata::outgrow(&engine.lock(), onto, file, &mut described)?;
    let path = at::open_path(&engine.store.staging, crate::store::id_name(id).as_ref())?;
    let stat = at::stat(&path)?;
    Ok((path, (stat.st_dev, stat.st_ino), described))
}

/// Commits copies, each if its name still has what it followed with.
pub fn publish_copies(engine: &Engine, state: &mut State, copies: Copies) {
    let mut versions = Vec::new();
    for copy in copies.made {
        if current::current_if_any(engine, state, &copy.dentry) != Ok(Some(copy.onto)) {
            engine.store.remove_staging(copy.ready.id).ok();
            continue;
        }
        let dentry = &copy.dentry;
        let version = state
            .nodes
            .create(NodeKind::File, copy.path, copy.key, dentry.clone());
        state.names.renew_follower(dentry, version);
        versions.push(NewVersion {
            node: version,
            dentry: copy.dentry,
            ready: copy.ready,
        });
    }
    publish::publish_all(engine, state, versions);
}
