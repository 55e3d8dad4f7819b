//! The contract (C1 to C12, C14 to C16, C18, C21, C22) in the simplest data structures that can hold
//! it: names with whole contents, and transactions with private ones. Knows nothing of daemons,
//! journals or nodes.
//!
//! Where the contract leaves the outcome of an end open (a killed writer had called fsync, say),
//! [`World::open_ends`] lists what may be found, and [`World::settle`] takes what was.

pub mod attributes;
mod direct;
mod documents;
mod gaps;
mod guards;
mod kin;
mod lines;
mod links;
pub mod locks;
mod names;
mod queue;
pub mod shared;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gaps::Gap;
use kin::{Opened, View};
use lines::Lines;
use links::Follower;
use locks::Lock;
use queue::Waiter;

pub type Content = Vec<u8>;
/// A directory's number and a name in it.
pub type Slot = (u32, String);
/// What a system call answers: nothing, or the name of an errno.
pub type Told = Result<(), &'static str>;

/// The directory that everything lies in.
const ROOT: u32 = 0;
/// The process that takes part in nothing.
pub const STRANGER: u32 = 0;
/// An O_EXCL creation shows as written up to here (C6).
const CLAIM: usize = 4096;

#[derive(Clone, Debug)]
struct File {
    /// The same for hard links.
    number: u32,
    /// What locks belong to: the same for all its versions, until it is renamed.
    file: u32,
    /// When it took its name.
    since: u32,
    /// The version that it was committed in the place of.
    after: Option<u32>,
    /// Permissions, if somebody has set them.
    mode: Option<u32>,
    /// Number of the version that this one comes from by in-place edits, if that is sure.
    body: Option<u32>,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Dir(u32),
    File(Content),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Read,
    Rewrite,
    RewriteAndRead,
    Exclusive,
    Edit,
    /// With O_NONBLOCK.
    EditAtOnce,
    /// O_RDWR|O_CREAT, as databases are opened.
    Share,
    Append,
    AppendAndRead,
}

/// How a description is open, as /proc shows it: whether it reads, and whether it appends.
type How = (bool, bool);

impl Mode {
    fn edits(self) -> bool {
        matches!(self, Mode::Edit | Mode::EditAtOnce)
    }

    fn appends(self) -> bool {
        matches!(self, Mode::Append | Mode::AppendAndRead)
    }

    fn reads(self) -> bool {
        !matches!(self, Mode::Rewrite | Mode::Exclusive | Mode::Append)
    }

    fn how(self) -> How {
        (self.reads(), self.appends())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Killed {
    No,
    /// The contract does not say whether this death counts.
    Maybe,
    Yes,
}

#[derive(Debug)]
struct Txn {
    slot: Slot,
    /// The newest of a process's transactions on one name is the one it sees.
    order: u32,
    content: Content,
    /// What others have added to the file since this was copied from it: to be committed with it.
    added: Content,
    /// Commits only when changed.
    edit: bool,
    /// The next editor waits for its end (C9).
    holds_slot: bool,
    /// Number of the file it was opened on.
    base: Option<u32>,
    /// That file's body.
    body: Option<u32>,
    /// Of an editor of a file without a guard: the bytes it has written, unless it has cut the file.
    parts: Option<BTreeSet<usize>>,
    /// Length of what those were written over.
    origin: usize,
    guarded: bool,
    /// That file's permissions.
    mode: Option<u32>,
    changed: bool,
    /// The name was emptied through its path by a process that saw this content there, and
    /// nothing has been written here since.
    emptied_by: Option<u32>,
    /// It is of a new file, and was not to empty one.
    creates: bool,
    /// A new file whose first complete line is its first version (C10).
    stream: bool,
    /// The same, and whoever closes a descriptor of it makes that version of what there is: it was opened to append.
    log: bool,
    claim: bool,
    discarded: bool,
    done: bool,
    failed: bool,
    /// Contents since and including the last fsync.
    synced: Option<Vec<Content>>,
    /// Commits that come after the fsync have higher numbers.
    synced_at: u32,
    first: u32,
    openers: BTreeSet<u32>,
    opened: Opened,
    /// No version had the name at the open.
    is_new: bool,
    links: Vec<Follower>,
    wrote: BTreeSet<u32>,
    closed: BTreeSet<u32>,
    killed: Killed,
    /// By the deaths of such as had written, and not opened it: whom each descended from.
    lost_children: Vec<BTreeSet<u32>>,
    mappable: bool,
    /// As of the last close of a descriptor.
    at_close: Option<Content>,
    /// Written through a mapping, and not yet known to the file system.
    unwritten: bool,
}

impl Txn {
    fn take_added(&mut self) {
        if !self.added.is_empty() && self.content.len() != self.origin {
            self.parts = None;
        }
        self.origin += self.added.len();
        self.content.append(&mut self.added);
    }

    /// It is about to be changed.
    fn begin_parts(&mut self) {
        if !self.changed {
            self.origin = self.content.len();
            self.parts = (self.edit && !self.guarded).then(BTreeSet::new);
        }
    }

    fn write_part(&mut self, part: Range<usize>) {
        if let Some(parts) = &mut self.parts {
            parts.extend(part);
        }
    }

    fn resize(&mut self, len: usize) {
        if len <= self.content.len() {
            self.parts = None;
        }
        self.content.resize(len, 0);
    }

    /// What it has written, in another version of the same body (C9).
    fn written_into(&mut self, file: &File, appended: bool) {
        let Some(parts) = self.parts.clone() else {
            return;
        };
        let (own, theirs) = (std::mem::take(&mut self.content), &file.content);
        let beyond = |at: &&usize| **at >= self.origin && **at < theirs.len();
        if appended && parts.iter().filter(beyond).any(|at| theirs[*at] != 0) {
            let mut content = theirs[..self.origin].to_vec();
            content.extend(&own[self.origin..]);
            content.extend(&theirs[self.origin..]);
            for at in parts.range(..self.origin) {
                content[*at] = own[*at];
            }
            (self.content, self.parts) = (content, None);
        } else {
            self.content.clone_from(theirs);
            let len = own.len().max(theirs.len());
            self.content.resize(len, 0);
            for at in &parts {
                self.content[*at] = own[*at];
            }
        }
        self.added.clear();
        self.origin = theirs.len();
        self.base = Some(file.number);
    }

    fn participants(&self) -> impl Iterator<Item = &u32> {
        self.openers.iter().chain(&self.wrote).chain(&self.closed)
    }
}

#[derive(Clone, Debug)]
enum What {
    /// The file's number, and its content as of the open.
    Version(u32, Content),
    Staged {
        txn: u32,
        reads: bool,
        writes: bool,
    },
    Lines(Lines),
    /// New or empty, and shared till the first write: the file's number.
    Shared {
        number: u32,
        writes: bool,
    },
    /// In direct mode: the file's number.
    Direct {
        number: u32,
        reads: bool,
        writes: bool,
    },
    /// What it reads is not known any more.
    Unknown,
}

#[derive(Clone, Debug)]
struct Description {
    /// Process, and its thread.
    opener: u32,
    thread: u32,
    position: usize,
    /// It writes to the end.
    appends: bool,
    how: How,
    /// fstat knows it by the version that it was opened on.
    elsewhere: bool,
    /// The file whose locks are taken through it, where that is sure.
    file: Option<u32>,
    /// The file that it was opened on, if there was one.
    of: Option<u32>,
    /// Whether the file system is told when a descriptor of it is closed, where that is sure.
    tells_closes: Option<bool>,
    what: What,
}

#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Unless it has ended.
    parent: Option<u32>,
    /// Its ancestors, be it that they have ended: the thread that forked, and when it was born.
    line: Vec<(u32, u32, u32)>,
    born: u32,
    /// Descriptors: description, and whether an exec closes it.
    pub slots: BTreeMap<String, (u32, bool)>,
    pub maps: BTreeMap<String, u32>,
}

#[derive(Debug)]
pub struct World {
    last: u32,
    dirs: BTreeMap<String, u32>,
    /// Bodies that lines were added to.
    appended: BTreeSet<u32>,
    /// Versions that have had a name in direct mode.
    once_direct: BTreeSet<u32>,
    /// Versions that are there since a shared open has created their name.
    created_shared: BTreeSet<u32>,
    /// Who has opened what is shared to write it: thread, process, and when.
    shared_by: BTreeMap<u32, Vec<(u32, u32, u32)>>,
    files: BTreeMap<Slot, File>,
    txns: BTreeMap<u32, Txn>,
    descriptions: BTreeMap<u32, Description>,
    /// Content of files without a name, by number, as far as somebody adds to them.
    nameless: BTreeMap<u32, Content>,
    /// Those who wait in open(), in the order in which they came.
    waiters: Vec<Waiter>,
    /// Held locks.
    locks: Vec<Lock>,
    pub processes: BTreeMap<u32, Process>,
    /// Threads, and whose they are.
    threads: BTreeMap<u32, u32>,
    /// Transactions, and what may be found under their names.
    ended: Vec<(u32, Slot, Vec<Option<Content>>)>,
    /// The same of links to what was written.
    ended_links: Vec<(Slot, Vec<Option<Content>>)>,
    /// Names whose file may be a hard link of another's: [`World::is_linked_to_open`].
    once_followed: BTreeSet<Slot>,
    /// What a killed writer had synced takes its name some time after the death.
    late: bool,
    /// What may be found under a name now; `None`: what was there before.
    pub open_ends: BTreeMap<Slot, Vec<Option<Content>>>,
    /// Contents that must be in rejected.
    pub rejected: Vec<Content>,
    /// Whether names tell of an error (C22), as far as that is known.
    errors: BTreeMap<Slot, bool>,
}

fn splice(content: &mut Content, at: usize, data: &[u8]) {
    if content.len() < at + data.len() {
        content.resize(at + data.len(), 0);
    }
    content[at..at + data.len()].copy_from_slice(data);
}

impl World {
    pub fn new() -> World {
        World {
            last: 0,
            appended: BTreeSet::new(),
            once_direct: BTreeSet::new(),
            created_shared: BTreeSet::new(),
            shared_by: BTreeMap::new(),
            dirs: BTreeMap::new(),
            files: BTreeMap::new(),
            txns: BTreeMap::new(),
            descriptions: BTreeMap::new(),
            nameless: BTreeMap::new(),
            waiters: Vec::new(),
            locks: Vec::new(),
            processes: BTreeMap::new(),
            threads: BTreeMap::new(),
            ended: Vec::new(),
            ended_links: Vec::new(),
            once_followed: BTreeSet::new(),
            late: false,
            open_ends: BTreeMap::new(),
            rejected: Vec::new(),
            errors: BTreeMap::new(),
        }
    }

    pub fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    // What is seen.

    pub(super) fn holds(&self, who: u32, id: u32) -> bool {
        let Some(process) = self.processes.get(&self.process_of(who)) else {
            return false;
        };
        let held = process.slots.values().map(|(d, _)| d);
        let mut held = held.chain(process.maps.values());
        held.any(|d| matches!(self.descriptions[d].what, What::Staged { txn, writes: true, .. } if txn == id))
    }

    /// Whether a process has a mapping whose descriptor it has closed.
    pub fn holds_by_mapping_alone(&self, who: u32) -> bool {
        let process = self.process(who);
        let open = |d: &u32| process.slots.values().any(|(slot, _)| slot == d);
        process.maps.values().any(|d| !open(d))
    }

    /// Open transactions of a name, newest last.
    fn at<'a>(&'a self, slot: &'a Slot) -> impl Iterator<Item = u32> + 'a {
        let open = |t: &Txn| t.slot == *slot && !t.discarded && !t.done;
        let mut ids: Vec<u32> = self
            .txns
            .iter()
            .filter(|(_, t)| open(t))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_by_key(|id| self.txns[id].order);
        ids.into_iter()
    }

    fn own(&self, who: u32, slot: &Slot) -> Option<u32> {
        let sees = |id: &u32| self.view(*id, who) == View::Yes && !self.is_moot(*id);
        self.at(slot).filter(sees).last()
    }

    /// It holds nothing that would be there on the plain directory, once somebody has put content
    /// under its name.
    fn holds_nothing(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        txn.emptied_by.is_some() || (txn.creates && !txn.edit && !txn.changed)
    }

    /// And somebody has.
    fn is_moot(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        let current = self.files.get(&txn.slot).map(|f| f.number);
        self.holds_nothing(id) && current.is_some() && current != txn.base
    }

    fn claim(&self, slot: &Slot) -> Option<u32> {
        self.at(slot).find(|id| self.txns[id].claim)
    }

    pub fn look(&self, who: u32, slot: &Slot) -> Found {
        if let Some(id) = self.own(who, slot).or_else(|| self.claim(slot)) {
            return Found::File(self.txns[&id].content.clone());
        }
        self.current(slot)
    }

    fn current(&self, slot: &Slot) -> Found {
        match (self.dirs.get(&slot.1), self.files.get(slot)) {
            (Some(dir), _) if slot.0 == ROOT => Found::Dir(*dir),
            (_, Some(file)) => Found::File(file.content.clone()),
            _ => Found::Nothing,
        }
    }

    pub fn slot(&self, who: u32, path: &str) -> Result<Slot, &'static str> {
        let Some((dir, name)) = path.split_once('/') else {
            return Ok((ROOT, path.to_owned()));
        };
        match self.look(who, &(ROOT, dir.to_owned())) {
            Found::Dir(id) => Ok((id, name.to_owned())),
            Found::File(_) => Err("ENOTDIR"),
            Found::Nothing => Err("ENOENT"),
        }
    }

    /// Where everybody finds a slot, unless its directory is gone.
    pub fn path(&self, (dir, name): &Slot) -> Option<String> {
        if *dir == ROOT {
            return Some(name.clone());
        }
        let (parent, _) = self.dirs.iter().find(|(_, id)| *id == dir)?;
        Some(format!("{parent}/{name}"))
    }

    fn names(&self, who: u32, dir: u32) -> BTreeSet<String> {
        let files = self
            .files
            .keys()
            .filter(|s| s.0 == dir)
            .map(|s| s.1.clone());
        let seen = |(id, t): &(&u32, &Txn)| {
            t.slot.0 == dir
                && !t.discarded
                && !t.done
                && (t.claim || self.view(**id, who) == View::Yes)
        };
        let staged = self.txns.iter().filter(seen).map(|(_, t)| t.slot.1.clone());
        let dirs = self.dirs.keys().filter(|_| dir == ROOT).cloned();
        files.chain(staged).chain(dirs).collect()
    }

    /// What a process finds under a path; names, if that ends in a slash.
    pub fn sees(&self, who: u32, path: &str) -> Vec<u8> {
        let bare = path.trim_end_matches('/');
        let found = match self.slot(who, bare) {
            _ if bare.is_empty() => Ok(Found::Dir(ROOT)),
            Ok(slot) => Ok(self.look(who, &slot)),
            Err(e) => Err(e),
        };
        let errno = match (found, path.ends_with('/')) {
            (Ok(Found::Dir(dir)), true) => {
                let names: Vec<String> = self.names(who, dir).into_iter().collect();
                return names.join("/").into_bytes();
            }
            (Ok(Found::File(content)), false) => return content,
            (Ok(Found::Dir(_)), false) => "EISDIR",
            (Ok(Found::File(_)), true) => "ENOTDIR",
            (Ok(Found::Nothing), _) => "ENOENT",
            (Err(errno), _) => errno,
        };
        format!("!{errno}").into_bytes()
    }

    /// What a process reads through a descriptor; the length where it can't read; `None` where
    /// that isn't known.
    pub fn reads(&self, who: u32, slot: &str) -> Option<Vec<u8>> {
        let (description, _) = self.process(who).slots[slot];
        let description = &self.descriptions[&description];
        match &description.what {
            What::Version(_, content) => Some(content.clone()),
            What::Staged { txn, .. } if self.may_have_taken_added(*txn) => None,
            What::Staged {
                txn, reads: true, ..
            } => Some(self.txns[txn].content.clone()),
            What::Staged { .. } if description.elsewhere => None,
            What::Staged { txn, .. } => Some(self.txns[txn].content.len().to_string().into_bytes()),
            What::Lines(lines) => self.read_lines(who, lines),
            What::Direct { number, reads, .. } => {
                let content = self.content_in_place(*number);
                let len = content.len().to_string();
                Some(if *reads {
                    content.clone()
                } else {
                    len.into_bytes()
                })
            }
            What::Shared { number, .. } => Some(self.content_in_place(*number).clone()),
            What::Unknown => None,
        }
    }

    /// Descriptors that write, or all.
    pub fn handles(&self, writing: bool) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        for (who, process) in &self.processes {
            for (slot, (description, _)) in &process.slots {
                let writes = matches!(
                    self.descriptions[description].what,
                    What::Staged { writes: true, .. }
                        | What::Direct { writes: true, .. }
                        | What::Shared { writes: true, .. }
                        | What::Lines(_)
                );
                if writes || !writing {
                    all.push((*who, slot.clone()));
                }
            }
        }
        all
    }

    fn staged(&self, who: u32, slot: &str) -> Option<u32> {
        let (description, _) = self.process(who).slots.get(slot)?;
        self.staged_by(*description)
    }

    fn staged_by(&self, description: u32) -> Option<u32> {
        match self.descriptions[&description].what {
            What::Staged {
                txn, writes: true, ..
            } => Some(txn),
            _ => None,
        }
    }

    // Opening and writing.

    /// Opens as `name`; `None`: not to be tried.
    pub fn open(
        &mut self,
        who: u32,
        path: &str,
        mode: Mode,
        name: &str,
        cloexec: bool,
    ) -> Option<Told> {
        let slot = match self.slot(who, path) {
            Ok(slot) => slot,
            Err(errno) => return Some(Err(errno)),
        };
        if mode != Mode::Read && (self.is_linked_to_open(&slot) || self.is_streamed(&slot)) {
            return None;
        }
        if self.is_direct(&slot) || self.holds_database(&slot, mode) {
            return self.open_direct(who, slot, mode, name, cloexec);
        }
        if self.is_undecided(&slot) || self.shares(who, &slot, mode) {
            let told = self.open_shared(who, slot.clone(), mode, name, cloexec);
            if told.is_some() || !mode.edits() || !Gap::SharedOpens.is_open() {
                return told;
            }
        }
        let mode = if mode == Mode::Share && self.look(who, &slot) != Found::Nothing {
            Mode::Edit
        } else {
            mode
        };
        let seen = self.look(who, &slot);
        let hidden = self.at(&slot).next().is_some();
        let content = match (mode, seen) {
            (Mode::Exclusive, Found::Nothing) if !hidden => Content::new(),
            (Mode::Exclusive, _) => return Some(Err("EEXIST")),
            (Mode::Rewrite | Mode::RewriteAndRead, Found::Dir(_)) => return Some(Err("EISDIR")),
            (Mode::Rewrite | Mode::RewriteAndRead, _) => Content::new(),
            (Mode::Append | Mode::AppendAndRead, seen) => {
                return self.open_appender(who, slot, seen, mode, name, cloexec);
            }
            (Mode::Read, Found::Dir(_)) => return None,
            (_, Found::Dir(_)) => return Some(Err("EISDIR")),
            // Guarded, or written by somebody else.
            (Mode::Share, _) => return None,
            (_, Found::Nothing) => return Some(Err("ENOENT")),
            (Mode::Edit | Mode::EditAtOnce, Found::File(content)) => {
                return self.open_editor(who, slot, content, mode, name, cloexec);
            }
            (Mode::Read, Found::File(content)) => content,
        };
        // A new file's locks are its creator's own until it is committed.
        let mut file = self.files.get(&slot).map(|f| f.file);
        let what = if mode == Mode::Read {
            match self.own(who, &slot).or_else(|| self.claim(&slot)) {
                Some(txn) => {
                    file = None;
                    What::Staged {
                        txn,
                        reads: true,
                        writes: false,
                    }
                }
                None => What::Version(self.files[&slot].number, content),
            }
        } else {
            let own = self.own(who, &slot).or_else(|| self.claim(&slot));
            let own = own.filter(|_| content.is_empty());
            let txn = self.begin(who, slot, mode, content);
            if let Some(own) = own {
                self.txns.get_mut(&own).expect("it is there").emptied_by = Some(txn);
            }
            What::Staged {
                txn,
                reads: mode.reads(),
                writes: true,
            }
        };
        let description = self.describe(who, what, mode, name, cloexec);
        self.descriptions
            .get_mut(&description)
            .expect("just made")
            .file = file;
        Some(Ok(()))
    }

    fn begin(&mut self, who: u32, slot: Slot, mode: Mode, content: Content) -> u32 {
        let id = self.number();
        let process = self.process_of(who);
        let mut opened = Opened::default();
        opened.note(who, process, id);
        let base = self.files.get(&slot).map(|f| f.number);
        let guarded = guards::is_guarded(&slot);
        let streams = self.begins_stream(who, &slot, mode);
        let body = self.files.get(&slot).and_then(|f| f.body);
        let txn = Txn {
            mode: self.files.get(&slot).and_then(|f| f.mode),
            slot,
            base,
            body,
            parts: None,
            origin: 0,
            guarded,
            order: id,
            content,
            added: Content::new(),
            // Where a guard wants whole documents, an append is an edit of a copy (C10).
            edit: mode.edits() || (guarded && mode.appends() && base.is_some()),
            holds_slot: false,
            changed: false,
            emptied_by: None,
            creates: matches!(mode, Mode::Exclusive | Mode::Share)
                || (mode.appends() && base.is_none()),
            stream: (mode.appends() && !guarded) || streams,
            log: mode.appends() && !guarded,
            claim: mode == Mode::Exclusive && !guarded,
            discarded: false,
            done: false,
            failed: false,
            synced: None,
            synced_at: 0,
            first: process,
            openers: BTreeSet::from([process]),
            opened,
            is_new: base.is_none(),
            links: Vec::new(),
            wrote: BTreeSet::new(),
            closed: BTreeSet::new(),
            killed: Killed::No,
            lost_children: Vec::new(),
            mappable: mode.reads(),
            at_close: None,
            unwritten: false,
        };
        self.txns.insert(id, txn);
        id
    }

    fn describe(&mut self, who: u32, what: What, mode: Mode, name: &str, cloexec: bool) -> u32 {
        let id = self.number();
        let of = match &what {
            What::Version(number, _) => self.files.values().find(|f| f.number == *number),
            What::Staged { txn, .. } => self.files.get(&self.txns[txn].slot),
            What::Lines(lines) => lines.slot().and_then(|slot| self.files.get(slot)),
            What::Direct { number, .. } | What::Shared { number, .. } => {
                self.files.values().find(|f| f.number == *number)
            }
            What::Unknown => None,
        };
        let of = of.map(|f| f.file);
        // Who reads a version is asked to tell it only if the file has been locked before.
        let tells_closes = match &what {
            What::Version(..) => of.filter(|of| self.is_file_locked(*of)).map(|_| true),
            What::Staged { writes, .. } => Some(*writes),
            _ => Some(true),
        };
        let description = Description {
            opener: self.process_of(who),
            thread: who,
            position: 0,
            appends: mode.appends(),
            how: mode.how(),
            elsewhere: false,
            file: None,
            of,
            tells_closes,
            what,
        };
        self.descriptions.insert(id, description);
        let process = self.process_mut(who);
        process.slots.insert(name.to_owned(), (id, cloexec));
        id
    }

    fn change(&mut self, id: u32, who: u32, end: usize, change: impl FnOnce(&mut Txn)) {
        let who = self.process_of(who);
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.begin_parts();
        change(txn);
        txn.changed = true;
        txn.emptied_by = None;
        txn.wrote.insert(who);
        txn.claim &= end <= CLAIM;
        let now = txn.content.clone();
        if let Some(states) = &mut txn.synced {
            states.push(now);
        }
        if !txn.lost_children.is_empty() {
            // A trainer that goes on after a worker's death.
            let is_opener = txn.openers.contains(&who);
            txn.lost_children
                .retain(|line| !is_opener && !line.contains(&who));
            if txn.lost_children.is_empty() {
                txn.killed = Killed::No;
            }
        }
    }

    /// Writes at an offset, or at the description's position. `false`: not to be tried.
    pub fn write(&mut self, who: u32, slot: &str, at: Option<usize>, data: &[u8]) -> bool {
        let (description, _) = self.process(who).slots[slot];
        if !self.can_stream(description, at, data) || !self.write_shared(who, description, at, data)
        {
            return false;
        }
        if self.write_direct(description, at, data) {
            return true;
        }
        let Some(id) = self.staged_by(description) else {
            self.write_lines(who, description, data);
            return true;
        };
        if self.txns[&id].stream && self.txns[&id].emptied_by.is_some() {
            let adds = self.descriptions[&description].appends;
            let is_linked = self.is_linked_to_open(&self.txns[&id].slot.clone());
            if is_linked || !adds && Gap::WrittenAfterOwnSave.is_open() {
                return false;
            }
            let txn = self.txns.get_mut(&id).expect("it is there");
            txn.emptied_by = None;
            txn.begin_parts();
            txn.resize(0);
        }
        if self.txns[&id].stream && !self.txns[&id].discarded && data.contains(&b'\n') {
            return self.first_lines(who, description, id, data);
        }
        self.take_over_emptied(id);
        let mut position = self.descriptions[&description].position;
        let mut at = at;
        if self.descriptions[&description].appends {
            (position, at) = (self.txns[&id].content.len(), None);
        }
        if at.is_none() {
            let description = self.descriptions.get_mut(&description);
            description.expect("it is there").position += data.len();
        }
        let from = at.unwrap_or(position);
        self.change(id, who, from + data.len(), |txn| {
            txn.write_part(from..from + data.len());
            splice(&mut txn.content, from, data);
        });
        true
    }

    /// Its own program has emptied the name through its path: it goes on from what that means now.
    fn take_over_emptied(&mut self, id: u32) {
        let txn = self.txns.get_mut(&id).expect("it is there");
        let (slot, by) = match txn.emptied_by.take() {
            Some(by) => (txn.slot.clone(), by),
            None => return,
        };
        let is_open = self.txns.get(&by).is_some_and(|t| !t.done);
        let file = self.files.get(&slot).filter(|_| !is_open).cloned();
        let txn = self.txns.get_mut(&id).expect("it is there");
        match file {
            Some(file) => {
                (txn.content, txn.base, txn.body) = (file.content, Some(file.number), file.body);
                (txn.edit, txn.creates, txn.claim) = (true, false, false);
                (txn.stream, txn.log) = (false, false);
                (txn.parts, txn.changed) = (None, false);
            }
            None if is_open => {
                txn.begin_parts();
                txn.resize(0);
            }
            None => {}
        }
    }

    /// A write that the file system refuses (C5).
    pub fn fail(&mut self, who: u32, slot: &str) {
        let id = self.staged(who, slot).expect("it can fail");
        self.take_over_emptied(id);
        self.change(id, who, usize::MAX, |_| ());
        let txn = self.txns.get_mut(&id).expect("it is there");
        // It was no write at the end.
        (txn.failed, txn.stream) = (true, false);
    }

    /// Whether a write beyond all limits fails through this descriptor, as far as that is said:
    /// O_APPEND goes by no offset, and a stream that shows or was emptied since is written from
    /// front to back.
    pub fn can_fail(&self, who: u32, slot: &str) -> bool {
        let (description, _) = self.process(who).slots[slot];
        let is_emptied_stream = self.staged_by(description).is_some_and(|id| {
            let txn = &self.txns[&id];
            txn.stream && txn.emptied_by.is_some()
        });
        let description = &self.descriptions[&description];
        let is_staged = matches!(description.what, What::Staged { .. });
        !description.appends && is_staged && !is_emptied_stream
    }

    /// `false`: not to be tried.
    pub fn truncate(&mut self, who: u32, slot: &str, len: usize) -> bool {
        let (description, _) = self.process(who).slots[slot];
        if let What::Direct { number, .. } = self.descriptions[&description].what {
            self.change_in_place(number, |content| content.resize(len, 0));
            return true;
        }
        if !self.can_leave_stream(description) {
            return false;
        }
        let Some(id) = self.staged(who, slot).or_else(|| self.leave(who, slot)) else {
            return false;
        };
        self.take_over_emptied(id);
        self.change(id, who, len, |txn| txn.resize(len));
        true
    }

    /// truncate(2): a transaction of its own, unless the process has one open.
    /// `None`: not to be tried.
    pub fn truncate_path(&mut self, who: u32, path: &str, len: usize) -> Option<Told> {
        let slot = match self.slot(who, path) {
            Ok(slot) => slot,
            Err(errno) => return Some(Err(errno)),
        };
        if self.is_linked_to_open(&slot) || self.is_undecided(&slot) {
            return None;
        }
        let seen = self.look(who, &slot);
        if let Some(id) = self.own(who, &slot).or_else(|| self.claim(&slot)) {
            let txn = self.txns.get_mut(&id).expect("it is there");
            // A stream that isn't written from front to back.
            if txn.stream && !txn.creates {
                return None;
            }
            txn.begin_parts();
            txn.resize(len);
            txn.changed = true;
            txn.emptied_by = None;
            let now = txn.content.clone();
            if let Some(states) = &mut txn.synced {
                states.push(now);
            }
            return Some(Ok(()));
        }
        Some(match seen {
            Found::Nothing => Err("ENOENT"),
            Found::Dir(_) => Err("EISDIR"),
            Found::File(_) if self.is_direct(&slot) => {
                let number = self.files[&slot].number;
                self.change_in_place(number, |content| content.resize(len, 0));
                Ok(())
            }
            Found::File(mut content) => {
                let grows = len > content.len() && !guards::is_guarded(&slot);
                content.resize(len, 0);
                if self.refuses(&slot, &content)? {
                    self.reject(content);
                    return Some(self.refuse(&slot));
                }
                let body = self.files[&slot].body;
                self.commit(&slot, content);
                if grows {
                    self.files.get_mut(&slot).expect("just made").body = body;
                }
                Ok(())
            }
        })
    }

    pub fn fsync(&mut self, who: u32, slot: &str) {
        let (description, _) = self.process(who).slots[slot];
        let Some(id) = self.staged_by(description) else {
            return self.finish_line(description);
        };
        let now = self.number();
        // What would be there on the plain directory is what others have committed.
        let moot = self.is_moot(id);
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.unwritten = false;
        // It is the committed version still.
        let edits = txn.edit && txn.changed;
        if edits {
            self.take_parts(id);
        }
        let txn = self.txns.get_mut(&id).expect("it is there");
        if moot || txn.edit && !txn.changed {
            return;
        }
        txn.synced_at = now;
        txn.synced = Some(vec![txn.content.clone()]);
    }

    /// The length of what can be mapped through a descriptor.
    pub fn mappable(&self, who: u32, slot: &str) -> Option<usize> {
        let txn = &self.txns[&self.staged(who, slot)?];
        let (description, _) = self.process(who).slots[slot];
        let What::Staged { reads: true, .. } = self.descriptions[&description].what else {
            return None;
        };
        let may = txn.mappable
            && self.can_leave_stream(description)
            && txn.openers.contains(&self.process_of(who))
            && !txn.content.is_empty()
            && !self.has_process_locks(&txn.slot);
        may.then_some(txn.content.len())
    }

    pub fn map(&mut self, who: u32, slot: &str, map: &str) {
        let process = self.process_mut(who);
        let (description, _) = process.slots[slot];
        process.maps.insert(map.to_owned(), description);
    }

    /// Mappings through which their opener may write up to a length.
    pub fn maps(&self) -> Vec<(u32, String, usize)> {
        let mut all = Vec::new();
        for (who, process) in &self.processes {
            for (map, description) in &process.maps {
                // Who appends to a new file goes on by lines (C10), which a mapping can't do. And a
                // page that is written late must not decide what an emptied name ends up as. One
                // that lies in another version's node is not seen under the name till it is written.
                let elsewhere = self.descriptions[description].elsewhere;
                let txn = self.staged_by(*description).map(|id| &self.txns[&id]);
                let len = match txn.filter(|_| !elsewhere) {
                    Some(txn) if txn.openers.contains(who) && txn.emptied_by.is_none() => {
                        txn.content.len()
                    }
                    _ => 0,
                };
                all.push((*who, map.clone(), len));
            }
        }
        all
    }

    pub fn map_write(&mut self, who: u32, map: &str, at: usize, data: &[u8]) {
        let description = self.process(who).maps[map];
        let id = self.staged_by(description).expect("a writer");
        self.change(id, who, 0, |txn| {
            splice(&mut txn.content, at, data);
            // Of the pages that the kernel writes, what was changed.
            txn.write_part(at..at + data.len());
        });
        self.txns.get_mut(&id).expect("it is there").unwritten = true;
    }

    // Ends.

    pub fn dup(&mut self, who: u32, slot: &str, to: &str) {
        let process = self.process_mut(who);
        let (description, _) = process.slots[slot];
        process.slots.insert(to.to_owned(), (description, false));
    }

    /// What close() says; `None` where the contract leaves it open (a mapping is left, or
    /// the spoilt file has no name any more).
    pub fn close(&mut self, who: u32, slot: &str) -> Option<Told> {
        // A guard's refusal is told by what is surely the last close.
        let who = self.process_of(who);
        let unsure = self.looks_like_others(who, slot);
        let process = self.process_mut(who);
        let (description, _) = process.slots.remove(slot).expect("an open descriptor");
        self.unlock_at_close(who, description, false);
        let id = self.staged_by(description);
        if let Some(id) = id {
            let txn = self.txns.get_mut(&id).expect("it is there");
            txn.closed.insert(who);
            txn.unwritten = false;
            txn.at_close = Some(txn.content.clone());
        }
        self.let_descriptor_go(description);
        self.prepare_mapped(description);
        let id = self.staged_by(description);
        let mapped = self
            .processes
            .values()
            .any(|p| p.maps.values().any(|d| *d == description));
        let spoilt = id.is_some_and(|id| self.txns[&id].failed);
        let unlinked = id.is_some_and(|id| self.txns[&id].discarded);
        // An earlier close may say already that the name can't be had any more.
        let early = id.is_some_and(|id| {
            let txn = &self.txns[&id];
            self.vanished(&txn.slot).is_err()
        });
        let told = self.let_go(description);
        let told = if spoilt { Some(Err("EFBIG")) } else { told };
        let early = early && (told.is_none_or(|told| told.is_ok()) || unlinked);
        let unsure = unsure && told == Some(Err("EBADMSG"));
        let open = mapped || early || unsure || (spoilt && unlinked);
        told.filter(|_| !open)
    }

    /// Where a mapping alone is left of an editor, its close has put behind what was staged what
    /// others had added.
    fn prepare_mapped(&mut self, description: u32) {
        let Some(id) = self.staged_by(description) else {
            return;
        };
        let mut open = self.processes.values().flat_map(|p| p.slots.values());
        if open.any(|(d, _)| self.staged_by(*d) == Some(id)) {
            return;
        }
        let txn = &self.txns[&id];
        if txn.edit && txn.changed && !txn.discarded && !txn.failed && txn.killed == Killed::No {
            self.take_parts(id);
            let txn = self.txns.get_mut(&id).expect("it is there");
            txn.take_added();
            txn.at_close = Some(txn.content.clone());
        }
    }

    pub fn unmap(&mut self, who: u32, map: &str) {
        let process = self.process_mut(who);
        let description = process.maps.remove(map).expect("a mapping");
        let _ = self.let_go(description);
    }

    /// One reference is gone; what follows if it was the last. `None`: it is not said.
    fn let_go(&mut self, description: u32) -> Option<Told> {
        let held = |p: &Process| {
            p.slots.values().any(|(d, _)| *d == description)
                || p.maps.values().any(|d| *d == description)
        };
        if self.processes.values().any(held) {
            return Some(Ok(()));
        }
        self.unlock_description(description);
        let Some(id) = self.staged_by(description) else {
            let gone = self.descriptions.remove(&description);
            if let Some(What::Shared { number, .. }) = gone.map(|d| d.what) {
                self.let_sharer_go(number);
            }
            return Some(Ok(()));
        };
        self.descriptions.remove(&description);
        if self
            .descriptions
            .keys()
            .any(|d| self.staged_by(*d) == Some(id))
        {
            return Some(Ok(()));
        }
        self.finish(id)
    }

    fn vanished(&self, slot: &Slot) -> Told {
        let dir_lives = slot.0 == ROOT || self.dirs.values().any(|d| *d == slot.0);
        match self.current(slot) {
            _ if !dir_lives => Err("ENOENT"),
            Found::Dir(_) => Err("EISDIR"),
            _ => Ok(()),
        }
    }

    fn reject(&mut self, content: Content) {
        if !content.is_empty() {
            self.rejected.push(content);
        }
    }

    fn finish(&mut self, id: u32) -> Option<Told> {
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.done = true;
        if txn.discarded || (txn.edit && !txn.changed) {
            return Some(Ok(()));
        }
        if self.is_moot(id) {
            let (slot, content) = (self.txns[&id].slot.clone(), self.txns[&id].content.clone());
            self.end_links(id, &slot, &[None, Some(content)]);
            return Some(Ok(()));
        }
        let txn = self.txns.get_mut(&id).expect("it is there");
        let is_whole = txn.killed != Killed::Yes && !txn.failed;
        let as_written = txn.content.clone();
        let unsure = self.is_body_unsure(id);
        self.take_parts(id);
        let txn = self.txns.get_mut(&id).expect("it is there");
        let by_parts = std::mem::replace(&mut txn.content, as_written.clone());
        let edits = by_parts != as_written;
        if is_whole {
            txn.content.clone_from(&by_parts);
            txn.take_added();
        }
        let txn = &self.txns[&id];
        let (slot, content) = (txn.slot.clone(), txn.content.clone());
        let refused = self.refuses(&slot, &content);
        let mut ends: Vec<Option<Content>> = Vec::new();
        if txn.killed != Killed::Yes && !txn.failed {
            ends.push(Some(content.clone()));
        }
        if unsure {
            ends.push(Some(as_written));
            self.late = true;
        }
        if txn.killed == Killed::Maybe {
            ends.push(None);
        }
        let aborts = txn.killed == Killed::Yes || txn.failed;
        if aborts || (refused != Some(false) && txn.synced.is_some()) {
            match &txn.synced {
                Some(states) => {
                    let added = |state: &Content| [state.as_slice(), &txn.added].concat();
                    ends.extend(states.iter().map(added).map(Some));
                    ends.extend(edits.then(|| Some(by_parts.clone())));
                    self.late = true;
                }
                None if txn.claim => ends.push(Some(content.clone())),
                None => ends.push(None),
            }
            let current = self.files.get(&txn.slot);
            let outrun = txn.synced.is_some() && current.is_some_and(|f| f.since > txn.synced_at);
            let is_overwritten = |states: &Vec<Content>| {
                let first = &states[0];
                states.iter().any(|state| !state.starts_with(first))
            };
            // C5 and C7 pull apart; what was fsync'd may have been overwritten since, too. And
            // somebody else's later commit may stay.
            if txn.failed || outrun || txn.synced.as_ref().is_some_and(is_overwritten) {
                ends.push(None);
            }
        }
        let (failed, survives) = (txn.failed, !aborts && txn.synced.is_none());
        ends = self.permitted(&slot, ends);
        let vanished = self.vanished(&slot);
        if vanished.is_err() {
            ends = vec![None];
        }
        let told = match refused {
            _ if failed => Some(Err("EFBIG")),
            _ if vanished.is_err() => Some(vanished),
            Some(true) => Some(Err("EBADMSG")),
            Some(false) => Some(Ok(())),
            None => None,
        };
        if told == Some(Err("EBADMSG")) && survives {
            let _ = self.refuse(&slot);
        } else {
            self.errors.remove(&slot);
        }
        if ends == [None] {
            self.reject(content);
        }
        self.end_links(id, &slot, &ends);
        self.ended.push((id, slot, ends));
        told
    }

    /// The end of a step: what ended in it, together. Two transactions of one process end in no
    /// certain order.
    pub fn conclude(&mut self) {
        let late = std::mem::take(&mut self.late);
        let mut by_slot: BTreeMap<Slot, Vec<Vec<Option<Content>>>> = BTreeMap::new();
        let mut of_slot: BTreeMap<Slot, Vec<u32>> = BTreeMap::new();
        for (id, slot, ends) in std::mem::take(&mut self.ended) {
            of_slot.entry(slot.clone()).or_default().push(id);
            by_slot.entry(slot).or_default().push(ends);
        }
        for (slot, all) in by_slot {
            let unchanged = all.iter().all(|ends| ends.contains(&None));
            let several = all.len() > 1;
            let mut ends: Vec<_> = all.concat();
            ends.retain(|end| end.is_some() || unchanged);
            ends.dedup();
            match ends.as_slice() {
                [None] => {}
                [Some(content)] if !late => {
                    let ids = &of_slot[&slot];
                    let body = match ids[..] {
                        [id] => self.edited_body(id),
                        _ => None,
                    };
                    self.commit(&slot, content.clone());
                    let file = self.files.get_mut(&slot).expect("just made");
                    file.body = body.or(file.body.filter(|_| ids.len() == 1));
                    if let [id] = of_slot[&slot][..] {
                        self.became(id, &slot);
                    }
                }
                _ => {
                    self.open_ends.insert(slot.clone(), ends);
                }
            }
            // Whether one is told of before another commits.
            if several {
                self.errors.remove(&slot);
            }
        }
        self.conclude_links();
    }

    /// Who read a transaction's staged content reads the version that it became.
    fn became(&mut self, id: u32, slot: &Slot) {
        let file = &self.files[slot];
        for description in self.descriptions.values_mut() {
            if let What::Staged { txn, .. } = description.what
                && txn == id
            {
                description.what = What::Version(file.number, file.content.clone());
            }
        }
    }

    /// Whether an open end may have come out like this; if so, that is how it was.
    pub fn settle(&mut self, slot: &Slot, seen: &Found) -> bool {
        let ends = self.open_ends[slot].clone();
        let before = self.current(slot);
        let fits = |end: &Option<Content>| match (end, seen) {
            (None, seen) => *seen == before,
            (Some(content), Found::File(seen)) => content == seen,
            _ => false,
        };
        if !ends.iter().any(fits) {
            return false;
        }
        self.open_ends.remove(slot);
        if let (Found::File(content), true) = (seen, *seen != before) {
            let was_followed = self.once_followed.contains(slot);
            let is_told = self.errors.contains_key(slot);
            self.commit(slot, content.clone());
            if !is_told {
                self.errors.remove(slot);
            }
            self.files.get_mut(slot).expect("just made").body = None;
            self.once_followed
                .extend(was_followed.then(|| slot.clone()));
        }
        true
    }

    /// Whether it isn't known if an editor's base was edited in place or replaced.
    fn is_body_unsure(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        let file = self.files.get(&txn.slot);
        let is_stale = file.is_some_and(|f| Some(f.number) != txn.base);
        let known = txn.body.is_some() && file.is_none_or(|f| f.body.is_some());
        txn.edit && txn.parts.is_some() && is_stale && !known
    }

    /// The body that a version has which an editor commits; `None`: a new one.
    fn edited_body(&self, id: u32) -> Option<u32> {
        let txn = self.txns.get(&id)?;
        let file = self.files.get(&txn.slot)?;
        let edits = txn.edit && txn.parts.is_some() && file.body == txn.body;
        txn.body.filter(|_| edits)
    }

    /// What others have committed of the file in place becomes part of what an editor has.
    fn take_parts(&mut self, id: u32) {
        if self.edited_body(id).is_none() || !self.txns[&id].changed {
            return;
        }
        let txn = self.txns.get_mut(&id).expect("it is there");
        let file = &self.files[&txn.slot];
        if txn.base != Some(file.number) {
            let appended = file.body.is_some_and(|b| self.appended.contains(&b));
            txn.written_into(file, appended);
        }
    }

    fn commit(&mut self, slot: &Slot, content: Content) {
        let number = self.number();
        let since = number;
        let old = self.files.get(slot);
        let file = old.map_or(number, |old| old.file);
        let after = old.map(|old| old.number);
        let mode = old.and_then(|old| old.mode);
        self.replace(
            slot,
            File {
                number,
                file,
                since,
                after,
                mode,
                body: Some(number),
                content,
            },
        );
    }

    /// A version takes a name; nobody's claim on it stands any longer.
    fn replace(&mut self, slot: &Slot, mut file: File) {
        file.since = self.number();
        self.errors.insert(slot.clone(), false);
        self.once_followed.remove(slot);
        let number = file.number;
        if let Some(old) = self.files.insert(slot.clone(), file)
            && old.number != number
        {
            self.nameless.insert(old.number, old.content);
        }
        for txn in self.txns.values_mut().filter(|t| t.slot == *slot) {
            txn.claim = false;
        }
    }

    /// A process ends, killed or not. Gives its threads, the first one first.
    pub fn end(&mut self, who: u32, killed: bool) -> Vec<u32> {
        let who = self.process_of(who);
        let threads = self.threads_of(who);
        self.waiters.retain(|w| !threads.contains(&w.who));
        self.threads.retain(|_, process| *process != who);
        let process = self.processes.remove(&who).expect("it lives");
        for other in self.processes.values_mut() {
            if other.parent == Some(who) {
                other.parent = None;
            }
        }
        let mut descriptions: Vec<u32> = process.slots.values().map(|(d, _)| *d).collect();
        let by_slot = descriptions.len();
        descriptions.extend(process.maps.values());
        let mut held = BTreeSet::new();
        for (n, description) in descriptions.iter().enumerate() {
            if n < by_slot {
                self.unlock_at_close(who, *description, killed);
            }
            if killed {
                self.drop_line(who, *description);
            } else if n < by_slot {
                self.let_descriptor_go(*description);
            }
            let Some(id) = self.staged_by(*description) else {
                continue;
            };
            held.insert(id);
            if killed {
                let last = !self.processes.keys().any(|p| self.holds(*p, id));
                self.note_death(id, who, process.parent, last && n < by_slot);
            }
        }
        // It had let go, but only of descriptors one could map: it may have left a mapping.
        let doubtful = |id: &u32, t: &Txn| {
            !held.contains(id) && t.mappable && (t.openers.contains(&who) || t.wrote.contains(&who))
        };
        for (id, txn) in &mut self.txns {
            if killed && !txn.done && doubtful(id, txn) {
                txn.killed = txn.killed.max(Killed::Maybe);
            }
        }
        descriptions.sort_unstable();
        descriptions.dedup();
        for description in descriptions {
            let _ = self.let_go(description);
        }
        threads
    }

    fn note_death(&mut self, id: u32, who: u32, parent: Option<u32>, last: bool) {
        let above = |who: &u32| self.processes.get(who)?.parent;
        let line: BTreeSet<u32> = std::iter::successors(parent, above).collect();

        let txn = self.txns.get_mut(&id).expect("it is there");
        let death = if txn.openers.contains(&who) || txn.wrote.contains(&who) {
            Killed::Yes
        } else if last && txn.openers.is_disjoint(&txn.closed) {
            // The last holder, who merely inherited what its opener left without a close.
            Killed::Maybe
        } else {
            Killed::No
        };
        let is_opener = txn.openers.contains(&who);
        match death {
            Killed::Yes if is_opener => txn.lost_children.clear(),
            Killed::Yes if txn.killed == Killed::No || !txn.lost_children.is_empty() => {
                txn.lost_children.push(line);
            }
            _ => {}
        }
        txn.killed = txn.killed.max(death);
    }

    /// An exec: mappings go, and descriptors marked close-on-exec.
    pub fn exec(&mut self, who: u32) {
        let process = self.process_mut(who);
        let maps: Vec<String> = process.maps.keys().cloned().collect();
        let slots: Vec<String> = process
            .slots
            .iter()
            .filter(|(_, (_, cloexec))| *cloexec)
            .map(|(slot, _)| slot.clone())
            .collect();
        for map in maps {
            self.unmap(who, &map);
        }
        for slot in slots {
            let _ = self.close(who, &slot);
        }
    }

    /// The daemon dies, and all descriptors with it (C18).
    pub fn strike(&mut self) {
        self.shared_by.clear();
        self.created_shared.clear();
        let open: Vec<u32> = self
            .txns
            .iter()
            .filter(|(_, t)| !t.done && !t.discarded)
            .map(|(id, _)| *id)
            .collect();
        let mut forgotten = BTreeSet::new();
        for id in open {
            let mapped_only = !self
                .handles(true)
                .iter()
                .any(|(who, slot)| self.staged(*who, slot) == Some(id));
            let txn = &self.txns[&id];
            if txn.edit && !txn.changed {
                continue;
            }
            let (content, claim) = (txn.content.clone(), txn.claim);
            let staged = content.clone();
            let with_added = |state: &[u8]| [state, &txn.added].concat();
            let mut ends: Vec<Option<Content>> = match &txn.synced {
                // Where it lacks lines of others, what it has written behind its fsync'd length is
                // dropped, and what it has written over that is not (docs/design.md, the crash argument).
                Some(states) => {
                    let cut = |state: &Content| state[..state.len().min(states[0].len())].to_vec();
                    let cuts = states.iter().filter(|_| !txn.added.is_empty()).map(cut);
                    let all = states.iter().cloned().chain(cuts);
                    all.map(|state| Some(with_added(&state))).collect()
                }
                None if claim => vec![Some(content.clone())],
                None => vec![None],
            };
            // Committed by others since the fsync, or failed, or closed but for a mapping.
            if txn.synced.is_some() {
                ends.push(None);
                // Known: it is put in place with the permissions that its file had at its open.
                forgotten.insert(txn.slot.clone());
            }
            // What came through the mapping may not be known yet.
            if mapped_only {
                let with_added = with_added(&content);
                ends.extend([None, Some(content), Some(with_added), txn.at_close.clone()]);
            }
            let slot = txn.slot.clone();
            let is_left = !mapped_only && !txn.unwritten && txn.emptied_by.is_none();
            let is_left = is_left && txn.synced.is_none() && !claim;
            // Of what has a length and no data nothing is kept.
            let is_left = is_left && staged.iter().any(|byte| *byte != 0);
            ends = self.permitted(&slot, ends);
            if self.vanished(&slot).is_err() {
                ends = vec![None];
            }
            if is_left {
                self.reject(staged);
            }
            self.end_links(id, &slot, &ends);
            self.ended.push((id, slot, ends));
        }
        for slot in forgotten {
            if let Some(file) = self.files.get_mut(&slot) {
                file.mode = None;
            }
        }
        self.forget_errors();
        self.txns.clear();
        self.locks.clear();
        self.descriptions.clear();
        for process in self.processes.values_mut() {
            process.slots.clear();
            process.maps.clear();
        }
    }

    /// Errors are the daemon's memory.
    pub fn forget_errors(&mut self) {
        self.errors.clear();
    }
}
