//! Who has read and written what: which version a save builds on (C17).
//!
//! Programs don't say what a save is based on. What they read, by which thread and in what order,
//! does: a thread that reads and then saves has changed what it read; one that saves again without
//! reading goes on from what it wrote; a forked child, from what its parent had by then. Where that
//! is not what happens (reads and saves spread over a pool of threads, a shell whose child reads),
//! the newest text that the process can have known is taken, and said to be uncertain unless it is
//! the only one. Pure: processes are numbers that are never used again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::proc::{Moment, Start};
use crate::types::{Dentry, NodeId};

mod reads;

pub use reads::Reads;

/// A process, by a number of its own; its pid may come back as another's.
pub type ProcessId = u64;

/// Texts kept, at most.
const MOST_TEXTS: usize = 1024;
/// Their bytes, at most. One text is kept however large.
const MOST_BYTES: u64 = 64 << 20;
/// Names of which anything is known, at most.
const MOST_NAMES: usize = 16_384;
/// Events of a process that are remembered for the children that it had forked by then.
const PAST: usize = 8;
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
    /// What else it may be a change of, as its text will tell.
    pub doubts: Option<Doubts>,
}

/// Reads of a thread that are older than its last save and were not used up by one: whoever goes on
/// from one of them, as coroutines do that share a thread, takes that save back.
#[derive(Clone, Debug)]
pub struct Doubts {
    /// What was read.
    pub earlier: Vec<Text>,
    /// What the thread has saved since.
    pub written: Text,
    /// The base is that save itself. Where the texts don't tell, it is not certain.
    pub is_own_save: bool,
}

/// Something that a thread has read or written.
#[derive(Clone, Debug)]
struct Event {
    at: u64,
    version: Option<NodeId>,
    text: Text,
    moment: Option<Moment>,
}

/// A save that has become a version, or part of one.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    /// When it began.
    pub begun: u64,
    /// The version.
    pub version: NodeId,
    /// The changes of others are in it, so that it has another text.
    pub is_merged: bool,
    /// What it builds on was not certain.
    pub is_uncertain: bool,
}

#[derive(Debug, Default)]
struct ThreadReads {
    reads: Reads<Event>,
    written: Option<Event>,
    /// A save of its was refused, or it was not certain what that built on: what it goes on from is
    /// known again only once it has read.
    is_lost: bool,
}

type Outstanding = reads::Read<Event>;

/// What a process did with one file.
#[derive(Debug, Default)]
struct Party {
    threads: HashMap<u32, ThreadReads>,
    /// One thread saves what another has read: what a thread itself did says nothing.
    is_shared: bool,
    /// Reads beyond the first that were used up by one save of a pool.
    owed: u64,
    /// What it had read or written when other processes were started, oldest first.
    past: VecDeque<(u32, Event)>,
    /// The thread and the event that came last.
    last: Option<(u32, Event)>,
    /// What a process that it has started wrote last; the text is not kept.
    child_wrote: Option<Event>,
    /// It has several loads under way at once, and which of them a save goes back to, nobody knows.
    is_mixed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    names: HashMap<Dentry, HashMap<ProcessId, Party>>,
    /// In the order in which they came.
    order: VecDeque<Dentry>,
    /// Of each process its parents, nearest first, as they were when it was first seen.
    ancestors: HashMap<ProcessId, Vec<ProcessId>>,
    /// Texts in the order in which they came, to be dropped in that order.
    kept: VecDeque<(Dentry, Actor, u64)>,
    total: Arc<AtomicU64>,
    clock: u64,
}

impl Party {
    fn newest_write(&self) -> Option<&Event> {
        let written = self.threads.values().filter_map(|t| t.written.as_ref());
        written.max_by_key(|w| w.at)
    }

    fn reads(&self) -> impl Iterator<Item = &Outstanding> {
        self.threads.values().flat_map(ThreadReads::outstanding)
    }

    /// Keeps the last event for those who were forked between it and this one.
    fn note_last(&mut self, tid: u32, event: &Event) {
        if let Some(before) = self.last.replace((tid, event.clone()))
            && before.1.moment.map(|m| m.last_pid()) != event.moment.map(|m| m.last_pid())
        {
            self.past.push_back(before);
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
    }

    fn events(&mut self) -> impl Iterator<Item = &mut Event> {
        let threads = self.threads.values_mut();
        let known = threads.flat_map(|t| t.reads.all_mut().chain(&mut t.written));
        let past = self.past.iter_mut().chain(&mut self.last);
        known.chain(past.map(|(_, event)| event))
    }
}

impl Ledger {
    /// Says who a process descends from, nearest first.
    pub fn introduce(&mut self, process: ProcessId, ancestors: Vec<ProcessId>) {
        self.ancestors.insert(process, ancestors);
    }

    /// Forgets what was read and written of names, but for those to be kept.
    pub fn keep_names(&mut self, keeps: impl Fn(&Dentry) -> bool) {
        self.names.retain(|dentry, _| keeps(dentry));
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
    fn known(&self, dentry: &Dentry, version: NodeId) -> Option<Text> {
        let threads = self.names.get(dentry)?.values();
        let mut reads = threads.flat_map(Party::reads).map(|r| &r.what);
        let same = reads.find(|e| e.version == Some(version))?;
        matches!(same.text, Text::Kept(_)).then(|| same.text.clone())
    }

    /// A thread has read a version; `None`: that there is no file.
    pub fn note_read(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        read: Option<(NodeId, &Arc<File>)>,
        moment: Option<Moment>,
    ) {
        let version = read.map(|(node, _)| node);
        let text = match read {
            None => Text::Missing,
            Some((node, file)) => self
                .known(dentry, node)
                .unwrap_or_else(|| self.keep(file.clone())),
        };
        self.note_text_read(dentry, actor, (version, text), moment);
    }

    /// A thread has read what somebody has staged: it is no version, and may become none.
    pub fn note_staged_read(&mut self, dentry: &Dentry, actor: Actor, moment: Option<Moment>) {
        self.note_text_read(dentry, actor, (None, Text::Dropped), moment);
    }

    fn note_text_read(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        (version, text): (Option<NodeId>, Text),
        moment: Option<Moment>,
    ) {
        let event = self.event(dentry, actor, (version, text), moment);
        self.party(dentry, actor).note_last(actor.tid, &event);
        let thread = self.thread(dentry, actor);
        thread.is_lost = false;
        thread.reads.note(event.version, event.at, event);
    }

    /// A thread's save has become a version.
    pub fn note_saved(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        saved: Saved,
        (text, moment): (Text, Option<Moment>),
        has_ended: impl Fn(ProcessId) -> bool,
    ) {
        let version = (!saved.is_merged).then_some(saved.version);
        let event = self.event(dentry, actor, (version, text), moment);
        self.use_up(dentry, actor, saved, has_ended);
        let seen = Event {
            text: Text::Dropped,
            ..event.clone()
        };
        self.party(dentry, actor).note_last(actor.tid, &event);
        let thread = self.thread(dentry, actor);
        thread.written = Some(event);
        thread.is_lost |= saved.is_uncertain;
        let parent = self.ancestors.get(&actor.process).and_then(|p| p.first());
        if let Some((parent, registry)) = parent.zip(self.names.get_mut(dentry)) {
            registry.entry(*parent).or_default().child_wrote = Some(seen);
        }
    }

    /// A thread's save was refused, as it does not build on the current version.
    pub fn note_refused(&mut self, dentry: &Dentry, actor: Actor) {
        let thread = self.thread(dentry, actor);
        thread.reads.clear();
        thread.is_lost = true;
    }

    /// Takes back what a save builds on: one read of its thread. Of a pool all, as nobody knows
    /// which; and of a thread that has read nothing itself, those of children that have read for it.
    fn use_up(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        saved: Saved,
        has_ended: impl Fn(ProcessId) -> bool,
    ) {
        let Some(name) = self.names.get_mut(dentry) else {
            return;
        };
        let mut own = false;
        if let Some(party) = name.get_mut(&actor.process) {
            if party.is_shared {
                let used = party.threads.values_mut();
                let used = used.map(|t| t.reads.use_up_all(saved.begun)).sum::<u64>();
                party.is_mixed |= used > 1;
                party.owed = match used {
                    0 => party.owed.saturating_sub(1),
                    used => party.owed + used - 1,
                };
                own = used > 0;
            } else if let Some(thread) = party.threads.get_mut(&actor.tid) {
                own = thread.outstanding().next().is_some();
                thread.reads.use_up(saved.begun, saved.is_uncertain);
            }
        }
        for (process, party) in name.iter_mut().filter(|_| !own) {
            let parents = self.ancestors.get(process);
            if *process != actor.process
                && parents.is_some_and(|p| p.contains(&actor.process))
                && has_ended(*process)
            {
                for thread in party.threads.values_mut() {
                    thread.reads.use_up_all(saved.begun);
                }
            }
        }
    }

    /// What a save that begins now builds on, if anything can be said of it. A child that has ended
    /// has read for its parent (`x=$(jq …)`); one that lives reads for itself.
    pub fn base_of(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        has_ended: impl Fn(ProcessId) -> bool,
    ) -> Option<Base> {
        let name = self.names.get(dentry)?;
        let nobody = Party::default();
        let party = name.get(&actor.process).unwrap_or(&nobody);
        let thread = party.threads.get(&actor.tid);
        if let Some(base) = thread
            .filter(|_| !party.is_shared)
            .and_then(ThreadReads::own_base)
        {
            return Some(base);
        }
        let below: Vec<&Outstanding> = name
            .iter()
            .filter(|(process, party)| {
                let parents = self.ancestors.get(process);
                **process != actor.process
                    && parents.is_some_and(|p| p.contains(&actor.process))
                    && party.reads().next().is_some()
                    && has_ended(**process)
            })
            .flat_map(|(_, party)| party.reads())
            .collect();
        let own_write = thread.and_then(|t| t.written.as_ref());
        let others = party.threads.iter().filter(|(tid, _)| **tid != actor.tid);
        let since = own_write.map_or(0, |w| w.at);
        let read_elsewhere = others
            .clone()
            .any(|(_, t)| t.outstanding().any(|r| r.at > since));
        let wrote_elsewhere = others.clone().any(|(_, t)| t.written.is_some());
        let below_since = below.iter().any(|r| r.at > since);
        if !party.is_shared
            && let Some(thread) = thread
            && thread.written.is_some()
            && !read_elsewhere
            && !below_since
        {
            return thread.own_save();
        }
        let base = Ledger::newest(party, &below);
        if read_elsewhere || (own_write.is_none() && wrote_elsewhere) {
            let registry = self.names.get_mut(dentry)?;
            registry.entry(actor.process).or_default().is_shared = true;
        }
        base
    }

    /// What a forked child has in memory, of a file that it knows nothing of by itself: what its
    /// parent had read or written last when it was forked.
    pub fn base_inherited(
        &self,
        dentry: &Dentry,
        actor: Actor,
        start: impl FnOnce() -> Option<Start>,
    ) -> Option<Base> {
        let parent = self.ancestors.get(&actor.process)?.first()?;
        let party = self.names.get(dentry)?.get(parent)?;
        let start = start()?;
        let had = |(_, event): &&(u32, Event)| event.moment.is_some_and(|m| start.is_after(&m));
        let known: Vec<_> = party.past.iter().chain(&party.last).filter(had).collect();
        let (tid, event) = known.last()?;
        // Which of its threads has forked it, nobody knows.
        let is_certain = known.iter().all(|(one, _)| one == tid) && !party.is_shared;
        Some(event.as_base(is_certain && start.is_forked))
    }

    /// What a save may build on though the process itself knows nothing of the file: what its parent,
    /// or another process of that one, has read (`jq … f | sponge f`) or written last. Never certain:
    /// the two may have nothing to do with each other.
    pub fn base_among_kin(&self, dentry: &Dentry, actor: Actor) -> Option<Base> {
        let parent = self.ancestors.get(&actor.process)?.first()?;
        let is_kin = |process: &ProcessId| {
            let above = self.ancestors.get(process);
            process == parent || above.is_some_and(|above| above.contains(parent))
        };
        let registry = self.names.get(dentry)?.iter().filter(|(p, _)| is_kin(p));
        let events = registry.flat_map(|(_, party)| {
            let reads = party.reads().map(|r| &r.what);
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
        let reads: Vec<_> = reads.filter(|r| r.at > since).collect();
        let is_clear = party.owed == 0 && !party.is_mixed;
        let Some(newest) = reads.iter().max_by_key(|r| r.at) else {
            return written.map(|w| w.as_base(is_clear));
        };
        let is_only = reads.iter().map(|r| r.count).sum::<u64>() == 1;
        Some(newest.what.as_base(is_only && is_clear))
    }

    /// Drops what dead processes did, but for what their parents may still build on, and for what
    /// authors of files that may still be renamed did. `gone` says for how long a process has been
    /// dead.
    pub fn forget_ended(
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
        self.names.retain(|_, registry| !registry.is_empty());
        self.order.retain(|dentry| self.names.contains_key(dentry));
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

    fn event(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        (version, text): (Option<NodeId>, Text),
        moment: Option<Moment>,
    ) -> Event {
        self.clock += 1;
        let at = self.clock;
        if matches!(text, Text::Kept(_)) {
            self.kept.push_back((dentry.clone(), actor, at));
        }
        if self.kept.len() > 2 * MOST_TEXTS {
            let mut kept = std::mem::take(&mut self.kept);
            kept.retain(|(dentry, actor, at)| self.events_at(dentry, *actor, *at).next().is_some());
            let superfluous = kept.len().saturating_sub(MOST_TEXTS);
            self.kept = kept;
            self.drop_texts(superfluous);
        }
        while self.kept.len() > 1 && self.total.load(Ordering::Relaxed) > MOST_BYTES {
            self.drop_texts(1);
        }
        Event {
            at,
            version,
            text,
            moment,
        }
    }

    fn drop_texts(&mut self, count: usize) {
        for (dentry, actor, at) in self.kept.drain(..count).collect::<Vec<_>>() {
            for event in self.events_at(&dentry, actor, at) {
                event.text = Text::Dropped;
            }
        }
    }

    /// What an actor has read or written then, as far as it still counts.
    fn events_at(
        &mut self,
        dentry: &Dentry,
        actor: Actor,
        at: u64,
    ) -> impl Iterator<Item = &mut Event> {
        let name = self.names.get_mut(dentry);
        let party = name.and_then(|name| name.get_mut(&actor.process));
        let events = party.into_iter().flat_map(Party::events);
        events.filter(move |event| event.at == at)
    }

    fn party(&mut self, dentry: &Dentry, actor: Actor) -> &mut Party {
        self.thread(dentry, actor);
        let registry = self.names.entry(dentry.clone()).or_default();
        registry.entry(actor.process).or_default()
    }

    fn thread(&mut self, dentry: &Dentry, actor: Actor) -> &mut ThreadReads {
        if !self.names.contains_key(dentry) {
            // Who is in the middle of something loses its base: the last close wins then.
            while self.names.len() >= MOST_NAMES {
                let Some(oldest) = self.order.pop_front() else {
                    break;
                };
                self.names.remove(&oldest);
            }
            self.order.push_back(dentry.clone());
        }
        let registry = self.names.entry(dentry.clone()).or_default();
        let party = registry.entry(actor.process).or_default();
        party.threads.entry(actor.tid).or_default()
    }
}

impl ThreadReads {
    /// What it has read since its last save, oldest first.
    fn outstanding(&self) -> impl Iterator<Item = &Outstanding> {
        let since = self.written.as_ref().map_or(0, |w| w.at);
        self.reads.all().filter(move |r| r.at > since)
    }

    /// What it goes on from that has read since its last save.
    fn own_base(&self) -> Option<Base> {
        if self.is_lost {
            // Its own last save is no conflict with itself, but nothing to merge from either.
            let written = self.own_save().map(|base| Base {
                is_certain: false,
                ..base
            });
            return Some(written.unwrap_or_else(Base::unknown));
        }
        let read = self.outstanding().last()?;
        Some(Base {
            doubts: self.doubts(false),
            ..read.what.as_base(true)
        })
    }

    /// What it goes on from that has not.
    fn own_save(&self) -> Option<Base> {
        let written = self.written.as_ref()?;
        Some(Base {
            doubts: self.doubts(true),
            ..written.as_base(true)
        })
    }

    fn doubts(&self, is_own_save: bool) -> Option<Doubts> {
        let written = self.written.as_ref()?;
        let earlier = self.reads.all().filter(|r| r.at < written.at);
        let earlier: Vec<Text> = earlier.map(|r| r.what.text.clone()).collect();
        (!earlier.is_empty()).then(|| Doubts {
            earlier,
            written: written.text.clone(),
            is_own_save,
        })
    }
}

impl Base {
    /// Something is known to be the base, but not what.
    pub fn unknown() -> Base {
        Base {
            version: None,
            text: Text::Dropped,
            is_certain: false,
            doubts: None,
        }
    }
}

impl Event {
    fn as_base(&self, is_certain: bool) -> Base {
        Base {
            version: self.version,
            text: self.text.clone(),
            is_certain,
            doubts: None,
        }
    }
}

#[cfg(test)]
mod tests;
