//! link(2), and links to files that are still being written (C6). On the plain directory such a link is the very file,
//! and has in the end what the writer's close leaves. Here the link is a version of its own, made of
//! what was written so far, or of what was committed: it *follows* those who have the file open, and gets
//! a copy of what they commit, unless somebody has put something else there meanwhile.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::close::Aborted;
use super::deciding::is_promised;
use super::names::{Barrier, Step, refuse_state_dir};
use super::publish::NewVersion;
use super::publishing::Publication;
use super::{Engine, State, virtualdir};
use crate::guard::Guard;
use crate::journal;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::Ready;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, Seq, TxnId, errno_of, mtime_ns};

/// So often copies are made once more because what they are for has changed.
pub(super) const RENEWALS: u32 = 16;

/// What is to be committed under the names that follow a transaction.
#[derive(Default)]
pub(super) struct Copies {
    /// These names, with what they had when the copies were begun; one that its guard refuses has no copy.
    of: HashMap<Dentry, NodeId>,
    made: Vec<Copy>,
}

impl Copies {
    /// Whether the names that follow are still these: a link may have been made, renamed, or given what another
    /// writer has committed.
    pub(super) fn fit(&self, state: &State, id: TxnId) -> bool {
        self.of == state.names.followers(id) || failpoint::mutant("C6-behind")
    }

    /// What was copied is not committed.
    pub(super) fn remove(self, store: &Store) {
        for copy in self.made {
            store.remove_staging(copy.ready.id).ok();
        }
    }
}

/// For one name that follows.
struct Copy {
    dentry: Dentry,
    onto: NodeId,
    ready: Ready,
    path: Arc<File>,
    key: (u64, u64),
}

impl Engine {
    /// link(2).
    pub fn link(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        dir: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(Err(Errno::PERM));
        }
        if let Err(e) = refuse_state_dir(dir, name) {
            return done(Err(e));
        }
        {
            // It looks the name up again when told so: by which of several names somebody comes, only lookups tell.
            let mut state = self.lock();
            if state.nodes.kept_names.is_kept(node) {
                state.nodes.drop_name(node);
                return done(Err(Errno::STALE));
            }
        }
        let to = Dentry {
            dir,
            name: name.to_owned(),
        };
        let engine = self.clone();
        self.pool
            .run(move || done(engine.link_now(caller, node, &to)));
    }

    fn link_now(&self, caller: Caller, node: NodeId, to: &Dentry) -> OpResult<Attr> {
        let closed = self.lock().deciding_at(node);
        if let Some(closed) = closed {
            self.await_decision(closed);
        }
        let (node, open) = {
            let mut state = self.lock();
            if self.exists(&mut state, to)? {
                return Err(Errno::EXIST);
            }
            match state.nodes.get(node).ok_or(Errno::STALE)?.kind {
                NodeKind::Private(id) if state.txns.contains_key(&id) => {
                    match self.untouched_base(&mut state, id)? {
                        Some(base) => (base, None),
                        None => (node, Some(id)),
                    }
                }
                NodeKind::Dir => return Err(Errno::PERM),
                _ => (node, None),
            }
        };
        if let Some(id) = open {
            return match self.publish_open(caller.tid, id, to, Publication::Link) {
                Ok(published) => self.attr_after_lookup(published.version),
                Err(Errno::NOENT) if self.lock().has_ended(id) => self.link_now(caller, node, to),
                Err(e) => Err(e),
            };
        }
        let linked = self.checkpoint_judged(
            || self.check_linked(caller, node, to),
            |judged, barrier| self.link_step((node, judged), to, barrier),
        )?;
        // What is kept of a name goes by the one that it was found under.
        Ok(Attr {
            name_ttl: super::VOLATILE,
            ..self.attr(linked)?
        })
    }

    /// The version that a transaction still is, having written nothing.
    fn untouched_base(&self, state: &mut State, id: TxnId) -> OpResult<Option<NodeId>> {
        let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
        let (dentry, base, touched) =
            (txn.dentry().clone(), txn.purpose.base(), txn.would_commit());
        let current = self.current_if_any(state, &dentry)?;
        Ok(base.filter(|base| !touched && current == Some(*base)))
    }

    /// A new name for existing content commits that name, so its guard has a say. Gives the version that
    /// it has to be, if any guard judges.
    fn check_linked(&self, caller: Caller, node: NodeId, to: &Dentry) -> OpResult<Option<NodeId>> {
        let node = self.newest(&mut self.lock(), node)?;
        self.materialize(node)?;
        let (fd, policy, is_file) = {
            let state = self.lock();
            let n = state.nodes.get(node).ok_or(Errno::STALE)?;
            (
                state.nodes.fd(node)?,
                self.policy(&state, to, Creation::default()),
                n.kind == NodeKind::File,
            )
        };
        if !is_file || policy.guard == Guard::None || policy.mode == Mode::Direct {
            return Ok(None);
        }
        let file = at::reopen_quietly(&*fd)?;
        self.check_named(caller.tid, &file, (to, &policy), false)?;
        Ok(Some(node))
    }

    /// Gives the node that has got the name; `None` if it isn't the one that was judged.
    fn link_step(
        &self,
        (node, judged): (NodeId, Option<NodeId>),
        to: &Dentry,
        barrier: &mut Barrier,
    ) -> OpResult<Step<Option<NodeId>>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if self.exists(state, to)? {
            return Err(Errno::EXIST);
        }
        if self.must_checkpoint(state, barrier) {
            return Ok(Step::CheckpointFirst);
        }
        let node = self.newest(state, node)?;
        if judged.is_some_and(|judged| judged != node) {
            return Ok(Step::Done(None));
        }
        if state.nodes.get(node).is_some_and(|n| n.pending) {
            // A patch has come since; what is linked lies in its place.
            return Ok(Step::CheckpointFirst);
        }
        let dir = self.dir_fd(state, to.dir)?;
        if is_promised(state, to)
            && let Some(path) = state.nodes.path(to)
        {
            let inode = state.nodes.get(node).ok_or(Errno::STALE)?.key.1;
            let along = [Vec::new(), Vec::new()];
            self.announce_moved(state, (&path, &path), inode, false, along)?;
        }
        self.sequencer.barrier()?;
        at::link(&*state.nodes.fd(node)?, &*dir, &to.name)?;
        let n = state.nodes.get_mut(node).ok_or(Errno::STALE)?;
        n.lookups += 1;
        let linked = n.at.clone();
        self.mark_dirty(state, to.dir);
        self.overtake(state, to, Seq::default());
        if let Some(linked) = linked {
            self.follow_writers(state, &linked, to, node);
        }
        Ok(Step::Done(Some(node)))
    }

    /// The version that has taken a node's place since it was looked up.
    fn newest(&self, state: &mut State, node: NodeId) -> OpResult<NodeId> {
        let n = state.nodes.get(node).ok_or(Errno::STALE)?;
        match (&n.at, n.superseded) {
            (Some(dentry), true) => {
                let dentry = dentry.clone();
                self.current(state, &dentry)
            }
            _ => Ok(node),
        }
    }

    /// A file has got a second name, with this version: it follows whoever has the file open.
    pub(super) fn follow_writers(
        &self,
        state: &mut State,
        linked: &Dentry,
        to: &Dentry,
        version: NodeId,
    ) {
        if failpoint::mutant("C6-links") {
            return;
        }
        let mut writers: Vec<TxnId> = state.names.leaders(linked).to_vec();
        writers.extend(state.txns.at(linked).map(|t| t.id));
        state.names.follow(to, version, writers);
    }

    /// Copies of what a transaction is about to commit, for the names that follow it. On a worker.
    pub(super) fn copies_of_prepared(&self, id: TxnId) -> Copies {
        let (followers, ready) = {
            let state = self.lock();
            let ready = state
                .txns
                .get(&id)
                .and_then(|t| t.preparation.ready().cloned());
            (state.names.followers(id), ready)
        };
        match ready {
            Some(ready) => self.copies(followers, (&ready.file, &ready.content)),
            None => Copies {
                of: followers,
                made: Vec::new(),
            },
        }
    }

    /// Gives the names that follow a transaction copies of what has been published of it already, under another name or by an unlock.
    pub(super) fn renew_followers(&self, id: TxnId, version: NodeId) -> OpResult<()> {
        // Somebody has committed since, and brings that to the links.
        let is_old = |state: &State| state.nodes.get(version).is_none_or(|n| n.superseded);
        // Whoever renames a link again and again keeps nobody waiting for ever.
        for _ in 0..RENEWALS {
            let (followers, fd) = {
                let state = self.lock();
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
            let copies = self.copies(followers, (&file, &described));
            let mut state = self.lock();
            if !is_old(&state) && copies.fit(&state, id) {
                self.publish_copies(&mut state, copies);
                return Ok(());
            }
            drop(state);
            copies.remove(&self.store);
        }
        Err(Errno::AGAIN)
    }

    fn copies(
        &self,
        of: HashMap<Dentry, NodeId>,
        source: (&File, &journal::ContentInfo),
    ) -> Copies {
        let copy = |(dentry, onto): (&Dentry, &NodeId)| {
            let made = self.copy_for(dentry, *onto, source);
            made.inspect_err(|e| {
                let path = self.show(&self.lock(), dentry);
                log::warn!("{path}: a link stays behind the file that it was made of: {e}");
            })
            .ok()
        };
        let made = of.iter().filter_map(copy).collect();
        Copies { of, made }
    }

    fn copy_for(
        &self,
        dentry: &Dentry,
        onto: NodeId,
        (source, described): (&File, &journal::ContentInfo),
    ) -> OpResult<Copy> {
        let policy = self.policy(&self.lock(), dentry, Creation::default());
        self.check_named(0, source, (dentry, &policy), true)?;
        self.reserve_commit()?;
        let id = self.lock().txns.new_id();
        let file = self.making_room(|| self.store.create_staging(id))?;
        let fill = || self.fill_copy(id, &file, onto, (source, described));
        let made = self.making_room_for(described.len, fill);
        let (path, key, described) = made.inspect_err(|_| {
            self.store.remove_staging(id).ok();
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

    fn fill_copy(
        &self,
        id: TxnId,
        file: &File,
        onto: NodeId,
        (source, described): (&File, &journal::ContentInfo),
    ) -> OpResult<(OwnedFd, (u64, u64), journal::ContentInfo)> {
        at::copy_contents(source, file, described.len).map_err(|e| errno_of(&e))?;
        // One file: owner, mode and times are those of what was written.
        let original = at::reopen(source, OFlags::PATH)?;
        self.apply_metadata(file, Some(&original), None)?;
        at::set_mtime(file, described.mtime_ns)?;
        let mut described = journal::ContentInfo {
            grown: None,
            ..described.clone()
        };
        self.outgrow(&self.lock(), onto, file, &mut described)?;
        let path = at::open_path(&self.store.staging, crate::store::id_name(id).as_ref())?;
        let stat = at::stat(&path)?;
        Ok((path, (stat.st_dev, stat.st_ino), described))
    }

    /// Commits copies, each if its name still has what it followed with.
    fn publish_copies(&self, state: &mut State, copies: Copies) {
        let mut versions = Vec::new();
        for copy in copies.made {
            if self.current_if_any(state, &copy.dentry) != Ok(Some(copy.onto)) {
                self.store.remove_staging(copy.ready.id).ok();
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
        self.publish_all(state, versions);
    }

    /// Decides, also about the links that follow it.
    pub(super) fn finish_with(
        &self,
        state: &mut State,
        id: TxnId,
        copies: Copies,
    ) -> Option<Aborted> {
        let aborted = self.finish(state, id);
        match aborted {
            None => self.publish_copies(state, copies),
            Some(_) => copies.remove(&self.store),
        }
        aborted
    }
}
