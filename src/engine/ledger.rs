//! Who has read and written what: which version a save builds on (C17).
//!
//! Programs don't say what a save is based on. What they read, by which thread and in what order,
//! does: a thread that reads and then saves has changed what it read; one that saves again without
//! reading goes on from what it wrote. Where that is not what happens (reads and saves spread over
//! a pool of threads, a shell whose child reads), the newest text that the process can have known
//! is taken, and said to be uncertain unless it is the only one. Pure: processes are numbers that
//! are never used again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::types::{NodeId, Slot};

/// A process, by a number of its own; its pid may come back as another's.
pub type ProcessId = u64;

/// Texts kept, at most.
const MOST_TEXTS: usize = 1024;
/// Their bytes, at most. One text is kept however large.
const MOST_BYTES: u64 = 64 << 20;
/// Names of which anything is known, at most.
const MOST_NAMES: usize = 16_384;
/// How long what a dead process has read may still serve its parents.
const AFTERLIFE: Duration = Duration::from_secs(60);

/// A thread of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    /// The process.
    pub process: ProcessId,
    /// The thread.
    pub tid: u32,
}

/// The text that somebody has read or written.
#[derive(Clone, Debug)]
pub enum Text {
    /// There was no file.
    Missing,
    /// In this file, which nobody writes any more.
    Kept(Arc<KeptFile>),
    /// There was one, but it has been dropped to stay within the bounds.
    Dropped,
}

/// A file that is kept for its text.
#[derive(Debug)]
pub struct KeptFile {
    /// The file.
    pub file: Arc<File>,
    len: u64,
    total: Arc<AtomicU64>,
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.total.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// What a save builds on.
#[derive(Clone, Debug)]
pub struct Base {
    /// The version with this very text; `None` where there is none, because it was merged.
    pub version: Option<NodeId>,
    /// The text.
    pub text: Text,
    /// No other text can have been meant.
    pub is_certain: bool,
}

/// Something that a thread has read or written.
#[derive(Clone, Debug)]
struct Event {
    at: u64,
    version: Option<NodeId>,
    text: Text,
}

/// The last read that no save has used up.
#[derive(Clone, Debug)]
struct Outstanding {
    event: Event,
    /// How many reads there were.
    count: u64,
}

#[derive(Debug, Default)]
struct Thread {
    read: Option<Outstanding>,
    written: Option<Event>,
}

/// What a process did with one file.
#[derive(Debug, Default)]
struct Party {
    threads: HashMap<u32, Thread>,
    /// One thread saves what another has read: what a thread itself did says nothing.
    is_shared: bool,
    /// Reads beyond the first that were used up by one save.
    owed: u64,
    /// What a process that it has started wrote last; the text is not kept.
    child_wrote: Option<Event>,
    /// It has several loads under way at once, and which of them a save goes back to, nobody knows.
    is_mixed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    names: HashMap<Slot, HashMap<ProcessId, Party>>,
    /// In the order in which they came.
    order: VecDeque<Slot>,
    /// Of each process its parents, nearest first, as they were when it was first seen.
    ancestors: HashMap<ProcessId, Vec<ProcessId>>,
    /// Texts in the order in which they came, to be dropped in that order.
    kept: VecDeque<(Slot, Actor, u64)>,
    total: Arc<AtomicU64>,
    clock: u64,
}

impl Party {
    fn newest_write(&self) -> Option<&Event> {
        let written = self.threads.values().filter_map(|t| t.written.as_ref());
        written.max_by_key(|w| w.at)
    }

    fn reads(&self) -> impl Iterator<Item = &Outstanding> {
        self.threads.values().filter_map(|t| t.read.as_ref())
    }
}

impl Ledger {
    /// Says who a process descends from, nearest first.
    pub fn introduce(&mut self, process: ProcessId, ancestors: Vec<ProcessId>) {
        self.ancestors.insert(process, ancestors);
    }

    /// The time now: what happens later is newer than it.
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// A file that is kept for its text.
    pub fn keep(&self, file: Arc<File>) -> Text {
        let len = file.metadata().map_or(0, |m| m.len());
        self.total.fetch_add(len, Ordering::Relaxed);
        let total = self.total.clone();
        Text::Kept(Arc::new(KeptFile { file, len, total }))
    }

    /// The text of a version that somebody else has read already.
    fn known(&self, slot: &Slot, version: NodeId) -> Option<Text> {
        let threads = self.names.get(slot)?.values();
        let mut reads = threads.flat_map(Party::reads).map(|r| &r.event);
        let same = reads.find(|e| e.version == Some(version))?;
        matches!(same.text, Text::Kept(_)).then(|| same.text.clone())
    }

    /// A thread has read a version; `None`: that there is no file.
    pub fn note_read(&mut self, slot: &Slot, actor: Actor, read: Option<(NodeId, &Arc<File>)>) {
        let version = read.map(|(node, _)| node);
        let text = match read {
            None => Text::Missing,
            Some((node, file)) => self
                .known(slot, node)
                .unwrap_or_else(|| self.keep(file.clone())),
        };
        let event = self.event(slot, actor, version, text);
        let thread = self.thread(slot, actor);
        thread.read = Some(match thread.read.take() {
            None => Outstanding { event, count: 1 },
            Some(before) => Outstanding {
                count: before.count + 1,
                event,
            },
        });
    }

    /// A thread's save, begun at a time, has become the version. `merged`: with the changes of
    /// others in it, so that it has another text.
    pub fn note_saved(
        &mut self,
        slot: &Slot,
        actor: Actor,
        begun: u64,
        (version, is_merged): (NodeId, bool),
        text: Text,
    ) {
        let version = (!is_merged).then_some(version);
        let event = self.event(slot, actor, version, text);
        self.use_up(slot, actor, begun);
        let seen = Event {
            text: Text::Dropped,
            ..event
        };
        self.thread(slot, actor).written = Some(event);
        let parent = self.ancestors.get(&actor.process).and_then(|p| p.first());
        if let Some((parent, parties)) = parent.zip(self.names.get_mut(slot)) {
            parties.entry(*parent).or_default().child_wrote = Some(seen);
        }
    }

    /// Takes back the reads that a save builds on.
    fn use_up(&mut self, slot: &Slot, actor: Actor, begun: u64) {
        let Some(name) = self.names.get_mut(slot) else {
            return;
        };
        let take = |thread: &mut Thread| {
            let used = thread.read.take_if(|r| r.event.at <= begun);
            used.map_or(0, |r| r.count)
        };
        let mut used = 0;
        if let Some(party) = name.get_mut(&actor.process) {
            for (tid, thread) in &mut party.threads {
                if party.is_shared || *tid == actor.tid {
                    used += take(thread);
                }
            }
        }
        for (process, party) in name.iter_mut() {
            let parents = self.ancestors.get(process);
            if *process != actor.process && parents.is_some_and(|p| p.contains(&actor.process)) {
                used += party.threads.values_mut().map(take).sum::<u64>();
            }
        }
        if let Some(party) = name.get_mut(&actor.process) {
            party.is_mixed |= party.is_shared && used > 1;
            party.owed = match used {
                0 => party.owed.saturating_sub(1),
                used => party.owed + used - 1,
            };
        }
    }

    /// What a save that begins now builds on, if anything can be said of it.
    pub fn base_of(&mut self, slot: &Slot, actor: Actor) -> Option<Base> {
        let name = self.names.get(slot)?;
        let below: Vec<&Outstanding> = name
            .iter()
            .filter(|(process, _)| {
                let parents = self.ancestors.get(process);
                **process != actor.process && parents.is_some_and(|p| p.contains(&actor.process))
            })
            .flat_map(|(_, party)| party.reads())
            .collect();
        let nobody = Party::default();
        let party = name.get(&actor.process).unwrap_or(&nobody);
        let thread = party.threads.get(&actor.tid);
        let own_read = thread.and_then(|t| t.read.as_ref());
        let own_write = thread.and_then(|t| t.written.as_ref());
        let others = party.threads.iter().filter(|(tid, _)| **tid != actor.tid);
        let since = own_write.map_or(0, |w| w.at);
        let read_elsewhere = others
            .clone()
            .any(|(_, t)| t.read.as_ref().is_some_and(|r| r.event.at > since));
        let wrote_elsewhere = others.clone().any(|(_, t)| t.written.is_some());
        let below_since = below.iter().any(|r| r.event.at > since);
        // A thread that loads and saves for itself doesn't load twice; one of a pool does.
        let is_pool = party.threads.len() > 1 && party.reads().any(|r| r.count > 1);
        if !party.is_shared && !is_pool {
            if let Some(read) = own_read {
                return Some(read.event.as_base(true));
            }
            if let Some(written) = own_write.filter(|_| !read_elsewhere && !below_since) {
                return Some(written.as_base(party.owed == 0));
            }
        }
        let base = Ledger::newest(party, &below);
        if is_pool || read_elsewhere || (own_write.is_none() && wrote_elsewhere) {
            let parties = self.names.get_mut(slot)?;
            parties.entry(actor.process).or_default().is_shared = true;
        }
        base
    }

    /// What a save may build on though the process itself knows nothing of the file: what its parent,
    /// or another process of that one, has read (`jq … f | sponge f`) or written last. Never certain:
    /// the two may have nothing to do with each other.
    pub fn base_among_kin(&self, slot: &Slot, actor: Actor) -> Option<Base> {
        let parent = self.ancestors.get(&actor.process)?.first()?;
        let is_kin = |process: &ProcessId| {
            let above = self.ancestors.get(process);
            process == parent || above.is_some_and(|above| above.contains(parent))
        };
        let parties = self.names.get(slot)?.iter().filter(|(p, _)| is_kin(p));
        let events = parties.flat_map(|(_, party)| {
            let reads = party.reads().map(|r| &r.event);
            reads.chain(party.newest_write()).chain(&party.child_wrote)
        });
        let newest = events.max_by_key(|event| event.at)?;
        Some(newest.as_base(false))
    }

    /// The newest text that the process, or one that descends from it, has to do with.
    fn newest(party: &Party, below: &[&Outstanding]) -> Option<Base> {
        let written = party.newest_write();
        let since = written.map_or(0, |w| w.at);
        let reads = party.reads().chain(below.iter().copied());
        let reads: Vec<_> = reads.filter(|r| r.event.at > since).collect();
        let is_clear = party.owed == 0 && !party.is_mixed;
        let Some(newest) = reads.iter().max_by_key(|r| r.event.at) else {
            return written.map(|w| w.as_base(is_clear));
        };
        let is_only = reads.iter().map(|r| r.count).sum::<u64>() == 1;
        Some(newest.event.as_base(is_only && is_clear))
    }

    /// Drops what dead processes did, but for what their parents may still build on, and for what
    /// authors of files that may still be renamed did. `gone` says for how long a process has been
    /// dead.
    pub fn bury(
        &mut self,
        gone: impl Fn(ProcessId) -> Option<Duration>,
        is_author: impl Fn(ProcessId) -> bool,
    ) {
        let ancestors = &self.ancestors;
        let matters = |process: ProcessId, party: &Party| {
            let parents = ancestors.get(&process).map_or(&[][..], Vec::as_slice);
            gone(process).is_none_or(|since| {
                let serves_parents =
                    || party.reads().next().is_some() && parents.iter().any(|p| gone(*p).is_none());
                since < AFTERLIFE && (is_author(process) || serves_parents())
            })
        };
        for name in self.names.values_mut() {
            name.retain(|process, party| matters(*process, party));
        }
        self.names.retain(|_, parties| !parties.is_empty());
        self.order.retain(|slot| self.names.contains_key(slot));
        let used = self.names.values().flat_map(|n| n.keys().copied());
        let used: HashSet<ProcessId> = used.collect();
        self.ancestors
            .retain(|process, _| used.contains(process) || gone(*process).is_none());
    }

    /// Processes that somebody may still ask for.
    pub fn processes(&self) -> HashSet<ProcessId> {
        let seen = self.ancestors.iter();
        seen.flat_map(|(process, parents)| parents.iter().chain([process]))
            .copied()
            .collect()
    }

    fn event(&mut self, slot: &Slot, actor: Actor, version: Option<NodeId>, text: Text) -> Event {
        self.clock += 1;
        let at = self.clock;
        if matches!(text, Text::Kept(_)) {
            self.kept.push_back((slot.clone(), actor, at));
        }
        if self.kept.len() > 2 * MOST_TEXTS {
            let mut kept = std::mem::take(&mut self.kept);
            kept.retain(|(slot, actor, at)| self.event_at(slot, *actor, *at).is_some());
            let superfluous = kept.len().saturating_sub(MOST_TEXTS);
            self.kept = kept;
            self.drop_texts(superfluous);
        }
        while self.kept.len() > 1 && self.total.load(Ordering::Relaxed) > MOST_BYTES {
            self.drop_texts(1);
        }
        Event { at, version, text }
    }

    fn drop_texts(&mut self, count: usize) {
        for (slot, actor, at) in self.kept.drain(..count).collect::<Vec<_>>() {
            if let Some(event) = self.event_at(&slot, actor, at) {
                event.text = Text::Dropped;
            }
        }
    }

    /// What an actor has read or written then, if it still counts.
    fn event_at(&mut self, slot: &Slot, actor: Actor, at: u64) -> Option<&mut Event> {
        let party = self.names.get_mut(slot)?.get_mut(&actor.process)?;
        let thread = party.threads.get_mut(&actor.tid)?;
        let read = thread.read.as_mut().map(|r| &mut r.event);
        let mut events = read.into_iter().chain(&mut thread.written);
        events.find(|event| event.at == at)
    }

    fn thread(&mut self, slot: &Slot, actor: Actor) -> &mut Thread {
        if !self.names.contains_key(slot) {
            // Who is in the middle of something loses its base: the last close wins then.
            while self.names.len() >= MOST_NAMES {
                let Some(oldest) = self.order.pop_front() else {
                    break;
                };
                self.names.remove(&oldest);
            }
            self.order.push_back(slot.clone());
        }
        let parties = self.names.entry(slot.clone()).or_default();
        let party = parties.entry(actor.process).or_default();
        party.threads.entry(actor.tid).or_default()
    }
}

impl Event {
    fn as_base(&self, is_certain: bool) -> Base {
        Base {
            version: self.version,
            text: self.text.clone(),
            is_certain,
        }
    }
}

#[cfg(test)]
mod tests;
