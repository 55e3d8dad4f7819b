//! Pins: which generation of a group a thread reads. A generation is what all names of a group mean between two commits. The state of
//! a generation that is pinned is kept as what has been replaced since: whoever pins it finds that, and else what is there now.
//!
//! Each generation that is pinned remembers what was replaced between it and the next one that is. So a member is, to who has pinned
//! one, what that or the first later one remembers of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Binding, Group, Membership};
use crate::sys::proc::Start;
use crate::types::{HandleId, NodeId};

/// Pins at most; beyond it those end early whose thread has had nothing open for longest.
const MOST_PINS: usize = 10_000;
/// Directories at most of which one generation remembers that they were renamed; beyond it, all that it doesn't remember is lost.
const MOST_MOVED: usize = 64;

/// What names of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// The group's number in the rules file.
    pub group: u32,
    /// What the names in its patterns stand for.
    pub binding: Arc<Binding>,
}

impl From<&Membership> for GroupKey {
    fn from(membership: &Membership) -> GroupKey {
        GroupKey {
            group: membership.group.number,
            binding: membership.binding.clone(),
        }
    }
}

/// A thread: numbers come round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinningThread {
    /// Its number.
    pub tid: u32,
    /// When it was started, and whether it has begun another program since.
    pub start: Option<Start>,
}

/// What a member is in a generation that is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedMember {
    /// What its name means now.
    Current,
    /// There was none.
    Absent,
    /// A version that was replaced, or removed, since.
    Version(NodeId),
    /// It was another one, which is not kept any more.
    Lost,
}

/// What a thread finds that has pinned a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedView {
    /// What the member is.
    pub member: PinnedMember,
    /// The thread has opened it already: its next open begins a new pin.
    pub was_opened: bool,
}

/// A generation that somebody has pinned.
#[derive(Debug)]
struct Generation {
    number: u64,
    pins: usize,
    /// What was replaced since, and before the next one that is pinned.
    replaced: BTreeMap<PathBuf, PinnedMember>,
    /// Directories that were renamed since: what else was below their paths isn't known.
    moved: Vec<PathBuf>,
}

impl Generation {
    fn is_unchanged(&self) -> bool {
        self.replaced.is_empty() && self.moved.is_empty()
    }

    fn find(&self, path: &Path) -> Option<PinnedMember> {
        let has_moved = || self.moved.iter().any(|dir| path.starts_with(dir));
        let replaced = self.replaced.get(path).copied();
        replaced.or_else(|| has_moved().then_some(PinnedMember::Lost))
    }

    fn note_moved(&mut self, dirs: Vec<PathBuf>) {
        for dir in dirs {
            if !self.moved.contains(&dir) {
                self.moved.push(dir);
            }
        }
        if self.moved.len() > MOST_MOVED {
            // All paths are below the empty one.
            self.moved = vec![PathBuf::new()];
        }
    }
}

/// A group of which generations are pinned, the oldest first.
#[derive(Debug)]
struct PinnedGroup {
    group: Arc<Group>,
    generations: VecDeque<Generation>,
}

impl PinnedGroup {
    fn find(&self, number: u64, path: &Path) -> PinnedMember {
        let since = self.generations.iter().filter(|g| g.number >= number);
        let mut found = since.filter_map(|generation| generation.find(path));
        found.next().unwrap_or(PinnedMember::Current)
    }
}

/// What one thread has pinned of one group.
#[derive(Debug)]
struct Pin {
    id: u64,
    generation: u64,
    opened: HashSet<PathBuf>,
    /// Descriptions that are open of what it has opened.
    open: usize,
    /// When the last of them was closed, or else when it began.
    idle: Instant,
    began: Instant,
}

impl Pin {
    fn is_idle_for(&self, life: Duration, now: Instant) -> bool {
        self.open == 0 && now.saturating_duration_since(self.idle) >= life
    }
}

/// A pin, as status tells of it.
#[derive(Clone, Debug)]
pub struct PinTold {
    /// The thread.
    pub tid: u32,
    /// Of what.
    pub key: GroupKey,
    /// When it began.
    pub began: Instant,
    /// Members that it has opened.
    pub opened: usize,
    /// Descriptions of them that are open.
    pub open: usize,
}

/// All pins of a mount.
#[derive(Debug, Default)]
pub struct Pins {
    groups: HashMap<GroupKey, PinnedGroup>,
    threads: HashMap<u32, (PinningThread, HashMap<GroupKey, Pin>)>,
    /// Of whose pin a description is.
    handles: HashMap<HandleId, (u32, GroupKey, u64)>,
    count: usize,
    /// Number given last, to a generation or a pin.
    last: u64,
    /// Versions that are kept.
    kept: HashMap<NodeId, usize>,
    /// Versions that nobody needs any more, as often as they were kept.
    released: Vec<NodeId>,
    /// Versions that had to make room.
    pub let_go: u64,
}

impl Pins {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Versions that are kept for them.
    pub fn kept(&self) -> impl Iterator<Item = NodeId> {
        self.kept.keys().copied()
    }

    /// How many these are.
    pub fn versions(&self) -> usize {
        self.kept.len()
    }

    /// Versions to be given up, as often as they were kept.
    pub fn take_released(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.released)
    }

    /// Whether generations of a group are pinned.
    pub fn is_pinned(&self, key: &GroupKey) -> bool {
        self.groups.contains_key(key)
    }

    /// Whether a thread of this number has pinned anything.
    pub fn has_thread(&self, tid: u32) -> bool {
        self.threads.contains_key(&tid)
    }

    /// What a member is to a thread; `None`: it has pinned nothing of the group.
    pub fn view(&self, thread: PinningThread, key: &GroupKey, path: &Path) -> Option<PinnedView> {
        let (known, pins) = self.threads.get(&thread.tid)?;
        let pin = pins.get(key).filter(|_| *known == thread)?;
        Some(PinnedView {
            member: self.groups.get(key)?.find(pin.generation, path),
            was_opened: pin.opened.contains(path),
        })
    }

    /// A thread pins the generation that there is now; what it had pinned of that group before ends.
    pub fn begin(&mut self, thread: PinningThread, membership: &Membership, now: Instant) {
        let key = GroupKey::from(membership);
        let known = self.threads.get(&thread.tid).map(|(known, _)| *known);
        match known {
            Some(known) if known != thread => self.end_thread(thread.tid),
            _ => self.end(thread.tid, &key),
        }
        if self.count >= MOST_PINS {
            self.end_idlest();
        }
        self.last += 2;
        let (id, number) = (self.last - 1, self.last);
        let groups = self.groups.entry(key.clone());
        let pinned = groups.or_insert_with(|| PinnedGroup {
            group: membership.group.clone(),
            generations: VecDeque::new(),
        });
        let newest = pinned.generations.back_mut();
        let generation = match newest.filter(|newest| newest.is_unchanged()) {
            Some(newest) => {
                newest.pins += 1;
                newest.number
            }
            None => {
                pinned.generations.push_back(Generation {
                    number,
                    pins: 1,
                    replaced: BTreeMap::new(),
                    moved: Vec::new(),
                });
                number
            }
        };
        let pin = Pin {
            id,
            generation,
            opened: HashSet::new(),
            open: 0,
            idle: now,
            began: now,
        };
        let (_, pins) = self
            .threads
            .entry(thread.tid)
            .or_insert_with(|| (thread, HashMap::new()));
        pins.insert(key, pin);
        self.count += 1;
    }

    /// A thread opens a member of what it has pinned.
    pub fn note_opened(&mut self, tid: u32, key: &GroupKey, path: &Path, handle: HandleId) {
        let pins = self.threads.get_mut(&tid).map(|(_, pins)| pins);
        if let Some(pin) = pins.and_then(|pins| pins.get_mut(key)) {
            pin.opened.insert(path.to_owned());
            pin.open += 1;
            self.handles.insert(handle, (tid, key.clone(), pin.id));
        }
    }

    /// The last reference of a description is gone.
    pub fn note_closed(&mut self, handle: HandleId, now: Instant) {
        let Some((tid, key, id)) = self.handles.remove(&handle) else {
            return;
        };
        let pins = self.threads.get_mut(&tid).map(|(_, pins)| pins);
        let pin = pins.and_then(|pins| pins.get_mut(&key));
        // It may have begun anew since.
        if let Some(pin) = pin.filter(|pin| pin.id == id) {
            pin.open -= 1;
            pin.idle = now;
        }
    }

    /// What a name of a group means is about to change. Gives whether what it meant is to be kept from now on.
    pub fn replace(&mut self, key: &GroupKey, path: &Path, was: PinnedMember) -> bool {
        let pinned = self.groups.get_mut(key);
        let Some(newest) = pinned.and_then(|pinned| pinned.generations.back_mut()) else {
            return false;
        };
        if newest.find(path).is_some() {
            return false;
        }
        newest.replaced.insert(path.to_owned(), was);
        let PinnedMember::Version(node) = was else {
            return false;
        };
        *self.kept.entry(node).or_default() += 1;
        true
    }

    /// Directories have got other names: what was below these paths is not found there any more.
    pub fn move_directories(&mut self, dirs: &[PathBuf]) {
        for pinned in self.groups.values_mut() {
            if let Some(newest) = pinned.generations.back_mut() {
                newest.note_moved(dirs.to_vec());
            }
        }
    }

    /// A thread has nothing pinned of a group any more.
    pub fn end(&mut self, tid: u32, key: &GroupKey) {
        let Some((_, pins)) = self.threads.get_mut(&tid) else {
            return;
        };
        let Some(pin) = pins.remove(key) else {
            return;
        };
        if pins.is_empty() {
            self.threads.remove(&tid);
        }
        self.count -= 1;
        self.leave(key, pin.generation);
    }

    /// A thread has nothing pinned any more.
    pub fn end_thread(&mut self, tid: u32) {
        let pins = self.threads.get(&tid).map(|(_, pins)| pins);
        let keys: Vec<GroupKey> = pins
            .map(|p| p.keys().cloned().collect())
            .unwrap_or_default();
        for key in keys {
            self.end(tid, &key);
        }
    }

    /// A thread has ended.
    pub fn note_ended(&mut self, thread: PinningThread) {
        let is_known = |(known, _): &(PinningThread, _)| *known == thread;
        if self.threads.get(&thread.tid).is_some_and(is_known) {
            self.end_thread(thread.tid);
        }
    }

    /// Whether a thread has had nothing open for so long of what it has pinned of a group.
    pub fn is_over(&self, tid: u32, key: &GroupKey, life: Duration, now: Instant) -> bool {
        let pins = self.threads.get(&tid).map(|(_, pins)| pins);
        let pin = pins.and_then(|pins| pins.get(key));
        pin.is_some_and(|pin| pin.is_idle_for(life, now))
    }

    /// Ends the pins of those that have had nothing open for so long.
    pub fn end_idle(&mut self, life: Duration, now: Instant) {
        let mut over = Vec::new();
        for (tid, (_, pins)) in &self.threads {
            let idle = pins.iter().filter(|(_, pin)| pin.is_idle_for(life, now));
            over.extend(idle.map(|(key, _)| (*tid, key.clone())));
        }
        for (tid, key) in over {
            self.end(tid, &key);
        }
    }

    fn end_idlest(&mut self) {
        let all = self.threads.iter();
        let all = all.flat_map(|(tid, (_, pins))| pins.iter().map(move |(key, p)| (*tid, key, p)));
        let idlest = all
            .filter(|(.., pin)| pin.open == 0)
            .min_by_key(|(.., pin)| pin.idle);
        if let Some((tid, key)) = idlest.map(|(tid, key, _)| (tid, key.clone())) {
            self.end(tid, &key);
        }
    }

    /// Threads that have pinned something.
    pub fn threads(&self) -> impl Iterator<Item = PinningThread> {
        self.threads.values().map(|(thread, _)| *thread)
    }

    /// Groups that are other ones by now, by their numbers: what is pinned of them ends.
    pub fn end_others(&mut self, is_same: impl Fn(&Group) -> bool) {
        let gone = self.groups.iter().filter(|(_, p)| !is_same(&p.group));
        let gone: HashSet<GroupKey> = gone.map(|(key, _)| key.clone()).collect();
        let mut pins = Vec::new();
        for (tid, (_, of_thread)) in &self.threads {
            let keys = of_thread.keys().filter(|key| gone.contains(key));
            pins.extend(keys.map(|key| (*tid, key.clone())));
        }
        for (tid, key) in pins {
            self.end(tid, &key);
        }
    }

    /// Nothing that was replaced is kept any more: who has pinned it doesn't find it. Gives whether there was any.
    pub fn let_all_go(&mut self) -> bool {
        let mut gone = Vec::new();
        for pinned in self.groups.values_mut() {
            for generation in &mut pinned.generations {
                for was in generation.replaced.values_mut() {
                    if let PinnedMember::Version(node) = *was {
                        *was = PinnedMember::Lost;
                        gone.push(node);
                    }
                }
            }
        }
        let any = !gone.is_empty();
        self.let_go += gone.len() as u64;
        gone.into_iter().for_each(|node| self.release(node));
        any
    }

    /// What there was under names of a directory in the generations that a thread has pinned, where that is not what there is now.
    pub fn listed(&self, thread: PinningThread, dir: &Path) -> BTreeMap<&Path, PinnedMember> {
        let mut listed = BTreeMap::new();
        let pins = self.threads.get(&thread.tid);
        let pins = pins.filter(|(known, _)| *known == thread);
        for (key, pin) in pins.iter().flat_map(|(_, pins)| pins) {
            let generations = self.groups.get(key).map(|pinned| pinned.generations.iter());
            let since = generations.into_iter().flatten();
            for generation in since.filter(|g| g.number >= pin.generation) {
                let here = generation.replaced.iter();
                let here = here.filter(|(path, _)| path.parent() == Some(dir));
                for (path, was) in here {
                    listed.entry(path.as_path()).or_insert(*was);
                }
            }
        }
        listed
    }

    /// All of them, by thread.
    pub fn told(&self) -> Vec<PinTold> {
        let mut told = Vec::new();
        for (tid, (_, pins)) in &self.threads {
            told.extend(pins.iter().map(|(key, pin)| PinTold {
                tid: *tid,
                key: key.clone(),
                began: pin.began,
                opened: pin.opened.len(),
                open: pin.open,
            }));
        }
        told.sort_by_key(|pin| (pin.began, pin.tid));
        told
    }

    /// One pin less of a generation: without any, those before it remember what it alone remembers.
    fn leave(&mut self, key: &GroupKey, number: u64) {
        let Some(pinned) = self.groups.get_mut(key) else {
            return;
        };
        let generations = &mut pinned.generations;
        let Some(at) = generations.iter().position(|g| g.number == number) else {
            return;
        };
        generations[at].pins -= 1;
        if generations[at].pins > 0 {
            return;
        }
        let mut released = Vec::new();
        if let Some(gone) = generations.remove(at) {
            let mut before = at.checked_sub(1).and_then(|at| generations.get_mut(at));
            for (path, was) in gone.replaced {
                match &mut before {
                    Some(before) if before.find(&path).is_none() => {
                        before.replaced.insert(path, was);
                    }
                    _ => released.extend(version(was)),
                }
            }
            if let Some(before) = before {
                before.note_moved(gone.moved);
            }
        }
        if generations.is_empty() {
            self.groups.remove(key);
        }
        released.into_iter().for_each(|node| self.release(node));
    }

    fn release(&mut self, node: NodeId) {
        if let Entry::Occupied(mut kept) = self.kept.entry(node) {
            *kept.get_mut() -= 1;
            if *kept.get() == 0 {
                kept.remove();
            }
            self.released.push(node);
        }
    }
}

fn version(member: PinnedMember) -> Option<NodeId> {
    match member {
        PinnedMember::Version(node) => Some(node),
        _ => None,
    }
}
