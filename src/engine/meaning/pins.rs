//! Readers that pin generations (C23, `readers = "pin"`): what a thread that has opened one file of a group finds under the names of
//! the others, and what is kept for it.
//!
//! Whatever changes what a name means says so before ([`note_change`]). Such names are looked up each time: what they mean depends on
//! who asks. A thread that changes what it reads (saves, renames, removes), or is granted a lock, wants to see that, and begins anew.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags};
use serde::Serialize;

use crate::engine::{Engine, State};
use crate::group::{GroupKey, Membership, PinnedMember, PinnedView, PinningThread};
use crate::namespace::NodeKind;
use crate::rules::Creation;
use crate::sys::{at, failpoint, proc};
use crate::txn::Transaction;
use crate::types::{Caller, Dentry, HandleId, NodeId};

/// Threads that one look of the watch asks for.
const LOOKS: usize = 1000;
/// Pins that status lists.
const SHOWN: usize = 100;

/// How long a pin lives of which nothing is open.
fn life() -> Duration {
    Duration::from_millis(failpoint::number("COMMITFS_PIN_MS", 5000))
}

/// A name that belongs to a group whose readers pin generations.
pub struct PinnedName {
    key: GroupKey,
    membership: Membership,
    path: PathBuf,
}

/// What becomes of an open for reading.
pub enum Arriving {
    /// What it has come to is opened, and noted if its thread has pinned that.
    Here(Option<PinnedName>),
    /// What was looked up is not what is to be opened: it is looked up again.
    Anew,
    /// What was pinned isn't there any more.
    Lost,
}

/// What a name means now: a node, and whether a commit is about to change that.
pub type NameNow = (Option<NodeId>, bool);

/// Whether there may be pins at all.
fn by_rule(engine: &Engine) -> bool {
    engine.rules.read().rules.has_pins()
}

/// Whether there are any.
pub fn are_there(state: &State) -> bool {
    !state.txns.rounds.pins.is_empty()
}

fn pinned_name(engine: &Engine, state: &State, dentry: &Dentry) -> Option<PinnedName> {
    if !by_rule(engine) {
        return None;
    }
    let path = state.nodes.path(dentry)?;
    let policy = engine.rules.read().rules.decide(&path, Creation::default());
    let membership = policy.pinned()?.clone();
    Some(PinnedName {
        key: GroupKey::from(&membership),
        membership,
        path,
    })
}

fn thread(caller: Caller) -> PinningThread {
    PinningThread {
        tid: caller.tid,
        start: proc::Start::of_caller(caller.tid).filter(|_| !failpoint::mutant("C23-pin-tid")),
    }
}

/// Gives up what nobody needs any more.
fn give_back(engine: &Engine, state: &mut State) {
    for id in state.txns.rounds.pins.take_released() {
        if let Some(node) = state.nodes.get_mut(id) {
            node.readers -= 1;
        }
        let fd = state.nodes.reap(id);
        engine.defer_close(fd);
    }
}

fn view(state: &State, caller: Caller, name: &PinnedName) -> Option<PinnedView> {
    let pins = &state.txns.rounds.pins;
    let is_over = || pins.is_over(caller.tid, &name.key, life(), Instant::now());
    let has_pinned = pins.has_thread(caller.tid) && pins.is_pinned(&name.key) && !is_over();
    if !has_pinned || failpoint::mutant("C23-pin") {
        return None;
    }
    pins.view(thread(caller), &name.key, &name.path)
}

/// What a thread finds under a name, if it has pinned a generation of its group.
pub fn find(
    engine: &Engine,
    state: &State,
    caller: Caller,
    dentry: &Dentry,
) -> Option<PinnedMember> {
    if !state.txns.rounds.pins.has_thread(caller.tid) {
        return None;
    }
    let name = pinned_name(engine, state, dentry)?;
    let view = view(state, caller, &name)?;
    // Who opens it again begins anew.
    let is_over = view.was_opened && view.member == PinnedMember::Lost;
    (!is_over).then_some(view.member)
}

/// Who reads has come to a version by its name. `waited`: whatever was about to be committed then.
pub fn arrive(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (dentry, id, waited): (Option<&Dentry>, NodeId, bool),
    now: impl FnOnce(&Engine, &mut State, &Dentry) -> NameNow,
) -> Arriving {
    // Of who has no number nobody can tell what it opens next.
    let dentry = dentry.filter(|_| caller.tid != 0);
    let name = dentry.and_then(|dentry| pinned_name(engine, state, dentry));
    let Some((dentry, name)) = dentry.zip(name) else {
        return Arriving::Here(None);
    };
    let view = view(state, caller, &name);
    let was_opened = view.is_some_and(|view| view.was_opened);
    let member = view.filter(|_| !was_opened).map(|view| view.member);
    if member == Some(PinnedMember::Lost) {
        return Arriving::Lost;
    }
    if member == Some(PinnedMember::Version(id)) {
        return Arriving::Here(Some(name));
    }
    let (current, changes) = now(engine, state, dentry);
    let is_current = current == Some(id) && (waited || !was_opened || !changes);
    if member == Some(PinnedMember::Current) && current == Some(id) {
        return Arriving::Here(Some(name));
    }
    if !is_current || member.is_some() {
        return Arriving::Anew;
    }
    begin(engine, state, caller, &name);
    Arriving::Here(Some(name))
}

/// A thread looks a name up again, as it opens what it has opened already: what it has pinned is over.
pub fn note_walked(engine: &Engine, caller: Caller, dentry: &Dentry) {
    if !by_rule(engine) {
        return;
    }
    let mut guard = engine.lock();
    let state = &mut *guard;
    let name = pinned_name(engine, state, dentry);
    if let Some(name) = name.filter(|_| state.txns.rounds.pins.has_thread(caller.tid))
        && view(state, caller, &name).is_some_and(|view| view.was_opened)
    {
        state.txns.rounds.pins.end(caller.tid, &name.key);
        give_back(engine, state);
    }
}

fn begin(engine: &Engine, state: &mut State, caller: Caller, name: &PinnedName) {
    let pins = &mut state.txns.rounds.pins;
    pins.begin(thread(caller), &name.membership, Instant::now());
    give_back(engine, state);
}

/// A description of a member is open.
pub fn note_opened(state: &mut State, tid: u32, name: Option<&PinnedName>, handle: HandleId) {
    if let Some(name) = name {
        let pins = &mut state.txns.rounds.pins;
        pins.note_opened(tid, &name.key, &name.path, handle);
    }
}

/// The last reference of a description is gone.
pub fn note_closed(state: &mut State, handle: HandleId) {
    state.txns.rounds.pins.note_closed(handle, Instant::now());
}

/// Whether a name belongs to a group whose readers pin generations: an open of what was found there may be sent round.
pub fn is_pinned(engine: &Engine, state: &State, dentry: &Dentry) -> bool {
    pinned_name(engine, state, dentry).is_some()
}

/// A thread is about to change what a name means, or writes under it: what it has pinned of the group ends. Gives whether it had.
pub fn leave(engine: &Engine, state: &mut State, tid: u32, dentry: &Dentry) -> bool {
    if !state.txns.rounds.pins.has_thread(tid) || failpoint::mutant("C23-pin-own") {
        return false;
    }
    let Some(name) = pinned_name(engine, state, dentry) else {
        return false;
    };
    let had = state.txns.rounds.pins.is_pinned(&name.key);
    state.txns.rounds.pins.end(tid, &name.key);
    give_back(engine, state);
    had
}

/// See [`leave`]: by its node.
pub fn leave_at(engine: &Engine, tid: u32, node: NodeId) {
    if !by_rule(engine) {
        return;
    }
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.txns.rounds.pins.has_thread(tid)
        && let Some(dentry) = state.nodes.get(node).and_then(|n| n.at.clone())
    {
        leave(engine, state, tid, &dentry);
    }
}

/// See [`leave`]: of several names.
pub fn leave_names(engine: &Engine, tid: u32, names: &[&Dentry]) {
    if !by_rule(engine) {
        return;
    }
    let mut guard = engine.lock();
    for dentry in names {
        leave(engine, &mut guard, tid, dentry);
    }
}

/// What threads have opened to write is published: they see it.
pub fn note_saved<'a>(
    engine: &Engine,
    state: &mut State,
    saved: impl Iterator<Item = &'a Transaction>,
) {
    if !are_there(state) {
        return;
    }
    for txn in saved {
        leave(engine, state, txn.participants.opener_tid(), txn.dentry());
    }
}

/// A thread is granted a lock, or makes a file that nobody else may make: what it reads from then on is what there is then.
pub fn pass_barrier(engine: &Engine, tid: u32) {
    if !by_rule(engine) {
        return;
    }
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.txns.rounds.pins.has_thread(tid) && !failpoint::mutant("C23-pin-lock") {
        state.txns.rounds.pins.end_thread(tid);
        give_back(engine, state);
    }
}

/// A thread creates a file: exclusive creation is how programs lock.
pub fn note_creation(engine: &Engine, tid: u32, dentry: &Dentry, flags: OFlags) {
    match flags.contains(OFlags::EXCL) {
        true => pass_barrier(engine, tid),
        false => leave_names(engine, tid, &[dentry]),
    }
}

/// A description that a lock was granted through reads the current version: its thread pins what belongs to that.
pub fn note_granted(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (dentry, handle): (&Dentry, HandleId),
) {
    if caller.tid != 0
        && let Some(name) = pinned_name(engine, state, dentry)
    {
        begin(engine, state, caller, &name);
        note_opened(state, caller.tid, Some(&name), handle);
    }
}

/// What a name means is about to change, or may be.
pub fn note_change(engine: &Engine, state: &mut State, dentry: &Dentry, current: Option<NodeId>) {
    if !are_there(state) {
        return;
    }
    let Some(name) = pinned_name(engine, state, dentry) else {
        return;
    };
    let node = current.and_then(|id| state.nodes.get(id));
    let was = match (current, node) {
        (None, _) => PinnedMember::Absent,
        // A text that is in memory alone goes with its version.
        (Some(id), Some(node)) if node.kind != NodeKind::Dir && node.unwritten.is_none() => {
            PinnedMember::Version(id)
        }
        _ => PinnedMember::Lost,
    };
    let pins = &mut state.txns.rounds.pins;
    if pins.replace(&name.key, &name.path, was)
        && let Some(node) = current.and_then(|id| state.nodes.get_mut(id))
    {
        node.readers += 1;
    }
    if state.txns.rounds.pins.versions() > most_kept() {
        log::warn!("readers have pinned too many versions: they are kept no more");
        state.txns.rounds.pins.let_all_go();
        give_back(engine, state);
    }
}

/// Each version that is kept costs a descriptor.
fn most_kept() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.and_then(|limit| usize::try_from(limit).ok());
    limit.map_or(usize::MAX, |limit| limit / 8)
}

/// A rename is about to change what two names mean.
pub fn note_renamed(
    engine: &Engine,
    state: &mut State,
    (from, source): (&Dentry, NodeId),
    (to, target): (&Dentry, Option<NodeId>),
) {
    note_change(engine, state, from, Some(source));
    note_change(engine, state, to, target);
}

/// A directory has got another name, or two have changed theirs.
pub fn note_moved(
    state: &mut State,
    (from, source): (&Dentry, NodeId),
    (to, target): (&Dentry, Option<NodeId>),
) {
    let is_dir = |id| state.nodes.get(id).is_some_and(|n| n.kind == NodeKind::Dir);
    let moves = is_dir(source) || target.is_some_and(is_dir);
    if !are_there(state) || !moves || failpoint::mutant("C23-pin-moved") {
        return;
    }
    let paths = [from, to].map(|dentry| state.nodes.path(dentry));
    let paths: Vec<PathBuf> = paths.into_iter().flatten().collect();
    state.txns.rounds.pins.move_directories(&paths);
}

/// Whether somebody may read what a name means now after that was replaced: its text has to be in its file.
pub fn keeps(engine: &Engine, dentry: &Dentry) -> bool {
    if !by_rule(engine) {
        return false;
    }
    let state = engine.lock();
    let pins = &state.txns.rounds.pins;
    !pins.is_empty()
        && pinned_name(engine, &state, dentry).is_some_and(|name| pins.is_pinned(&name.key))
}

/// Names of the group that a node belongs to whose texts are in memory alone. Who pins that may read them later.
pub fn unwritten_beside(engine: &Engine, node: NodeId) -> Vec<Dentry> {
    if !by_rule(engine) {
        return Vec::new();
    }
    let state = engine.lock();
    let dentry = state.nodes.get(node).and_then(|node| node.at.as_ref());
    let Some(name) = dentry.and_then(|dentry| pinned_name(engine, &state, dentry)) else {
        return Vec::new();
    };
    let unwritten = state.pending.unwritten().map(|(dentry, _)| dentry);
    let is_beside = |dentry: &Dentry| {
        pinned_name(engine, &state, dentry).is_some_and(|other| other.key == name.key)
    };
    unwritten.filter(is_beside).collect()
}

/// Lays over a listing what its reader has pinned.
pub fn lay_over(
    state: &State,
    caller: Caller,
    dir: NodeId,
    names: &mut BTreeMap<OsString, (NodeId, FileType)>,
) {
    let pins = &state.txns.rounds.pins;
    if !pins.has_thread(caller.tid) || failpoint::mutant("C23-pin-listed") {
        return;
    }
    let below = Dentry {
        dir,
        name: OsString::new(),
    };
    let Some(path) = state.nodes.path(&below) else {
        return;
    };
    // As a path that ends with a slash is the same path.
    let path: PathBuf = path.components().collect();
    for (path, was) in pins.listed(thread(caller), &path) {
        let Some(name) = path.file_name() else {
            continue;
        };
        match was {
            PinnedMember::Absent => {
                names.remove(name);
            }
            PinnedMember::Version(id) => {
                names.insert(name.to_owned(), (id, FileType::RegularFile));
            }
            PinnedMember::Current | PinnedMember::Lost => {}
        }
    }
}

/// Ends the pins that are over, and those of threads that have ended.
pub fn sweep(engine: &Engine) {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let pins = &mut state.txns.rounds.pins;
    if pins.is_empty() {
        return;
    }
    pins.end_idle(life(), Instant::now());
    let threads: Vec<PinningThread> = pins.threads().collect();
    give_back(engine, state);
    drop(guard);
    let from = match threads.len() > LOOKS {
        true => usize::try_from(crate::types::now_ns() / 250_000_000).unwrap_or(0) % threads.len(),
        false => 0,
    };
    let looked = threads
        .iter()
        .cycle()
        .skip(from)
        .take(threads.len().min(LOOKS));
    if failpoint::feature_off("pin_sweep") {
        return;
    }
    let gone: Vec<&PinningThread> = looked.filter(|t| proc::is_gone(t.tid)).collect();
    let mut guard = engine.lock();
    let state = &mut *guard;
    for thread in gone {
        state.txns.rounds.pins.note_ended(*thread);
    }
    give_back(engine, state);
}

/// The disk is full: nothing is kept for pins any more. Gives whether anything was.
pub fn make_room(engine: &Engine) -> bool {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let any = state.txns.rounds.pins.let_all_go();
    if any {
        log::warn!("the disk is full: what readers of groups have pinned is kept no more");
    }
    give_back(engine, state);
    any
}

/// Other rules are in force: what is pinned of groups that are other ones now ends.
pub fn take_rules(engine: &Engine, state: &mut State) {
    let rules = engine.rules.read().rules.clone();
    state
        .txns
        .rounds
        .pins
        .end_others(|group| rules.has_group(group));
    give_back(engine, state);
}

/// Pins, as status tells of them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PinsTold {
    /// How many there are.
    pub count: usize,
    /// Replaced versions that are kept for them.
    pub versions: usize,
    /// The space that these take, in bytes.
    pub bytes: u64,
    /// Versions that had to make room, since the mount.
    pub let_go: u64,
    /// Who has pinned what, the oldest first.
    pub threads: Vec<PinnedBy>,
}

/// A pin, as status tells of it.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedBy {
    /// The thread.
    pub tid: u32,
    /// Its command.
    pub command: String,
    /// The group's number in the rules file.
    pub group: u32,
    /// What the names in its patterns stand for.
    pub names: BTreeMap<String, String>,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Members that it has opened.
    pub opened: usize,
    /// Descriptions of them that are open.
    pub open: usize,
}

pub fn told(state: &State) -> PinsTold {
    let pins = &state.txns.rounds.pins;
    let bytes = |id: NodeId| {
        let stat = state.nodes.fd(id).ok().and_then(|fd| at::stat(&*fd).ok());
        stat.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    };
    let by = |pin: crate::group::PinTold| PinnedBy {
        tid: pin.tid,
        command: proc::comm(pin.tid).unwrap_or_default(),
        group: pin.key.group,
        names: pin
            .key
            .binding
            .iter()
            .map(|(name, text)| (name.clone(), text.to_string_lossy().into_owned()))
            .collect(),
        age_ms: u64::try_from(pin.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        opened: pin.opened,
        open: pin.open,
    };
    PinsTold {
        count: pins.len(),
        versions: pins.versions(),
        bytes: pins.kept().map(bytes).sum(),
        let_go: pins.let_go,
        threads: pins.told().into_iter().take(SHOWN).map(by).collect(),
    }
}
