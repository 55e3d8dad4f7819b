//! Appends by whole lines (C10): descriptions opened with O_APPEND on names without a guard.

use std::collections::BTreeSet;

use super::{Content, File, Found, How, Killed, Mode, Slot, Told, What, World, guards};

/// What a description adds to.
#[derive(Clone, Debug)]
pub struct Lines {
    place: Place,
    reads: bool,
    /// The version it was opened on.
    opened: u32,
    /// The unfinished line, and who has written it.
    rest: Content,
    by: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The file under a name, through all its versions; its renames are followed.
    At(Slot),
    /// A file that has lost its name.
    Nameless(u32),
}

impl Lines {
    fn new(slot: &Slot, opened: u32, reads: bool) -> Lines {
        Lines {
            place: Place::At(slot.clone()),
            reads,
            opened,
            rest: Content::new(),
            by: BTreeSet::new(),
        }
    }

    pub(super) fn reads(&self) -> bool {
        self.reads
    }

    /// The name of what it adds to, if that has one.
    pub(super) fn slot(&self) -> Option<&Slot> {
        match &self.place {
            Place::At(slot) => Some(slot),
            Place::Nameless(_) => None,
        }
    }
}

/// Complete lines, and what follows the last of them.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let newline = data.iter().rposition(|b| *b == b'\n');
    data.split_at(newline.map_or(0, |n| n + 1))
}

/// The unfinished line that a write leaves, and who has written it.
fn unfinished(rest: &[u8], who: u32) -> (Content, BTreeSet<u32>) {
    let by = (!rest.is_empty()).then_some(who);
    (rest.to_vec(), by.into_iter().collect())
}

impl World {
    fn lines(&mut self, description: u32) -> Option<&mut Lines> {
        match &mut self.descriptions.get_mut(&description)?.what {
            What::Lines(lines) => Some(lines),
            _ => None,
        }
    }

    fn all_lines(&mut self) -> impl Iterator<Item = &mut Lines> {
        let descriptions = self.descriptions.values_mut();
        descriptions.filter_map(|d| match &mut d.what {
            What::Lines(lines) => Some(lines),
            _ => None,
        })
    }

    pub(super) fn open_appender(
        &mut self,
        who: u32,
        slot: Slot,
        seen: Found,
        mode: Mode,
        name: &str,
        cloexec: bool,
    ) -> Option<Told> {
        if let Found::Dir(_) = seen {
            return Some(Err("EISDIR"));
        }
        let mut lockable = None;
        let what = if let Some(txn) = self.own(who, &slot).or_else(|| self.claim(&slot)) {
            self.join(who, txn, mode)
        } else if self.is_edited_by_heirs(&slot, mode.how()) {
            return None;
        } else if let Some(file) = self.files.get(&slot).filter(|_| guards::is_guarded(&slot)) {
            lockable = Some(file.file);
            let content = file.content.clone();
            if self.may_be_json_stream(&slot, &content) {
                return None;
            }
            What::Staged {
                txn: self.begin(who, slot, mode, content),
                reads: mode.reads(),
                writes: true,
            }
        } else if let Some(file) = self.files.get(&slot) {
            // Whether somebody has read it through the kernel's cache is not said.
            if self.once_direct.contains(&file.number) || self.has_direct_name(file.number) {
                return None;
            }
            lockable = Some(file.file);
            What::Lines(Lines::new(&slot, file.number, mode.reads()))
        } else {
            What::Staged {
                txn: self.begin(who, slot, mode, Content::new()),
                reads: mode.reads(),
                writes: true,
            }
        };
        let description = self.describe(who, what, mode, name, cloexec);
        self.descriptions.get_mut(&description)?.file = lockable;
        Some(Ok(()))
    }

    pub(super) fn join(&mut self, who: u32, txn: u32, mode: Mode) -> What {
        let (now, process) = (self.number(), self.process_of(who));
        let joined = self.txns.get_mut(&txn).expect("it is there");
        joined.openers.insert(process);
        joined.opened.note(who, process, now);
        joined.mappable |= mode.reads();
        What::Staged {
            txn,
            reads: mode.reads(),
            writes: true,
        }
    }

    fn number_and_content(&self, place: &Place) -> (u32, &Content) {
        match place {
            Place::At(slot) => (self.files[slot].number, &self.files[slot].content),
            Place::Nameless(number) => (*number, &self.nameless[number]),
        }
    }

    pub(super) fn read_lines(&self, who: u32, lines: &Lines) -> Option<Vec<u8>> {
        let (number, content) = self.number_and_content(&lines.place);
        if lines.reads {
            return Some([content.as_slice(), &lines.rest].concat());
        }
        // fstat tells of the version that it was opened on, and of lines that aren't finished: the kernel
        // names no description, so these are all that the process has written of, and who merely has
        // one can't be told from others. Of a file that has not just one name it isn't told at all
        // (H29 of docs/design.md).
        let process = self.process_of(who);
        let rests = self.descriptions.values().filter_map(|d| match &d.what {
            What::Lines(other) if other.place == lines.place => Some(other),
            _ => None,
        });
        let own = rests.filter(|other| other.by.contains(&process));
        let own: usize = own.map(|other| other.rest.len()).sum();
        let len = content.len() + own;
        let names = self.files.values().filter(|f| f.number == number).count();
        let is_own = lines.by.contains(&process);
        // What others write in place grows under another node (H3).
        let is_anothers = self.is_open_directly(number) || self.once_direct.contains(&number);
        let is_told = (lines.rest.is_empty() || is_own) && (own == 0 || names == 1) && !is_anothers;
        (number == lines.opened && is_told).then(|| len.to_string().into_bytes())
    }

    pub(super) fn write_lines(&mut self, who: u32, description: u32, data: &[u8]) {
        let who = self.process_of(who);
        let lines = self.lines(description).expect("an appender");
        let (whole, rest) = split(data);
        if whole.is_empty() {
            lines.rest.extend(rest);
            lines.by.insert(who);
            return;
        }
        let whole = [lines.rest.as_slice(), whole].concat();
        (lines.rest, lines.by) = unfinished(rest, who);
        let place = lines.place.clone();
        self.grow(&place, &whole);
    }

    /// A version grows, under all its names, for its open readers (C1), and for editors who have
    /// not written yet (C9).
    fn grow(&mut self, place: &Place, bytes: &[u8]) {
        let (number, _) = self.number_and_content(place);
        if let Some(content) = self.nameless.get_mut(&number) {
            content.extend(bytes);
        }
        for file in self.files.values_mut().filter(|f| f.number == number) {
            file.content.extend(bytes);
            self.appended.extend(file.body);
        }
        for description in self.descriptions.values_mut() {
            match &mut description.what {
                What::Version(n, content) if *n == number => content.extend(bytes),
                // Which of several transactions the version is, is not known.
                What::Staged { txn, .. } if self.txns[txn].done => {
                    description.what = What::Unknown;
                }
                _ => {}
            }
        }
        for txn in self.txns.values_mut() {
            if txn.edit && txn.base == Some(number) {
                match txn.changed {
                    true => txn.added.extend(bytes),
                    false => txn.content.extend(bytes),
                }
            }
        }
    }

    /// A new file gets its first complete line. `false`: not to be tried.
    pub(super) fn first_lines(&mut self, who: u32, description: u32, id: u32, data: &[u8]) -> bool {
        let txn = &self.txns[&id];
        // Of two writers of one line one was killed: what is left of it is not said. And who can't
        // have the name is told by a write or by the close.
        let is_overtaken = !txn.creates && self.files.contains_key(&txn.slot);
        if txn.killed != Killed::No || is_overtaken || self.vanished(&txn.slot).is_err() {
            return false;
        }
        let who = self.process_of(who);
        let (whole, rest) = split(data);
        self.change(id, who, 0, |txn| txn.content.extend(whole));
        self.be_born(id);
        let lines = self.lines(description).expect("just made");
        (lines.rest, lines.by) = unfinished(rest, who);
        true
    }

    /// What was written so far is the file's first version, or added to that of who came first.
    pub(super) fn be_born(&mut self, id: u32) {
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.done = true;
        let (slot, content) = (txn.slot.clone(), txn.content.clone());
        let is_first = !self.files.contains_key(&slot);
        let opened = if is_first {
            self.commit(&slot, content.clone());
            self.files[&slot].number
        } else {
            self.number()
        };
        let file = self.files[&slot].file;
        for description in self.descriptions.values_mut() {
            let What::Staged { txn, reads, writes } = description.what else {
                continue;
            };
            if txn == id {
                description.of = Some(file);
                description.what = match writes {
                    true => What::Lines(Lines::new(&slot, opened, reads)),
                    false => What::Version(opened, content.clone()),
                };
            }
        }
        if !is_first {
            self.grow(&Place::At(slot), &content);
        }
    }

    /// The unfinished line waits no longer.
    pub(super) fn finish_line(&mut self, description: u32) {
        let Some(lines) = self.lines(description) else {
            return;
        };
        let (place, rest) = (lines.place.clone(), std::mem::take(&mut lines.rest));
        lines.by.clear();
        if !rest.is_empty() {
            self.grow(&place, &rest);
        }
    }

    /// A descriptor is closed, be it not the last.
    pub(super) fn let_descriptor_go(&mut self, description: u32) {
        self.finish_line(description);
        let Some(id) = self.staged_by(description) else {
            return;
        };
        let txn = &self.txns[&id];
        let unborn = txn.log && txn.changed && !txn.edit && !txn.discarded;
        let is_overtaken = !txn.creates && self.files.contains_key(&txn.slot);
        let stands = !is_overtaken && txn.killed == Killed::No && self.vanished(&txn.slot).is_ok();
        if unborn && stands && !self.is_moot(id) {
            self.be_born(id);
        }
    }

    /// The death of one of its writers drops an unfinished line.
    pub(super) fn drop_line(&mut self, who: u32, description: u32) {
        if let Some(lines) = self.lines(description)
            && lines.by.contains(&who)
        {
            lines.rest.clear();
            lines.by.clear();
        }
    }

    /// A description that truncates goes on as an editor of a copy. What becomes of a file without
    /// a name is nobody's concern.
    pub(super) fn leave(&mut self, who: u32, slot: &str) -> Option<u32> {
        let (description, _) = self.process(who).slots[slot];
        let lines = self.lines(description)?;
        let (Place::At(slot), reads) = (lines.place.clone(), lines.reads) else {
            return None;
        };
        if self.has_heirs_beside_others(description, &slot) {
            return None;
        }
        self.finish_line(description);
        let content = self.files[&slot].content.clone();
        let txn = self.begin(who, slot, Mode::Edit, content);
        let now = self.number();
        let description = self.descriptions.get_mut(&description)?;
        let edit = self.txns.get_mut(&txn).expect("just begun");
        edit.openers.insert(description.opener);
        edit.opened
            .note(description.thread, description.opener, now);
        description.elsewhere = true;
        description.what = What::Staged {
            txn,
            reads,
            writes: true,
        };
        Some(txn)
    }

    /// A name means another file now, or none; who adds to the one that it meant goes on with it.
    pub(super) fn unname(&mut self, slot: &Slot, lost: Option<File>) {
        let Some(lost) = lost else { return };
        for lines in self
            .all_lines()
            .filter(|l| l.place == Place::At(slot.clone()))
        {
            lines.place = Place::Nameless(lost.number);
        }
        self.nameless.insert(lost.number, lost.content);
    }

    pub(super) fn rename_appenders(&mut self, from: &Slot, to: &Slot) {
        for lines in self
            .all_lines()
            .filter(|l| l.place == Place::At(from.clone()))
        {
            lines.place = Place::At(to.clone());
        }
    }

    /// Descriptions that add to the file under a name.
    pub(super) fn appenders_at(&self, slot: &Slot) -> Vec<u32> {
        let all = self.descriptions.iter();
        all.filter(|(_, d)| matches!(&d.what, What::Lines(lines) if lines.slot() == Some(slot)))
            .map(|(number, _)| *number)
            .collect()
    }

    pub(super) fn move_appenders(&mut self, appenders: &[u32], to: &Slot) {
        for description in appenders {
            self.lines(*description).expect("an appender").place = Place::At(to.clone());
        }
    }

    /// Those who have an editor's transaction open and have merely inherited it. Once who they
    /// have it from is dead, the daemon tells by their descriptors, which look like those of other
    /// editors and appenders of the version it started from (H10): known, and not tried here.
    fn heirs(&self, id: u32) -> impl Iterator<Item = u32> {
        let inherits = move |who: &u32| {
            let took_part = self.txns[&id].participants().any(|p| p == who);
            self.holds(*who, id) && !took_part
        };
        self.processes.keys().copied().filter(inherits)
    }

    /// Whether one descends from somebody who has taken part in a transaction, through processes
    /// that live, but for one that is about to end.
    fn descends_from_a_participant(&self, heir: u32, id: u32, ends: Option<u32>) -> bool {
        let parent_of = |who: &u32| self.processes[who].parent;
        let mut ancestors = std::iter::successors(Some(heir), parent_of)
            .take_while(|who| Some(*who) != ends && self.processes.contains_key(who));
        ancestors.any(|who| self.txns[&id].participants().any(|p| *p == who))
    }

    pub(super) fn is_added_to(&self, slot: &Slot) -> bool {
        let mut all = self.descriptions.values();
        all.any(|d| matches!(&d.what, What::Lines(lines) if lines.slot() == Some(slot)))
    }

    fn hows(&self, id: u32) -> BTreeSet<How> {
        let all = self.descriptions.iter();
        all.filter(|(d, _)| self.staged_by(**d) == Some(id))
            .map(|(_, d)| d.how)
            .collect()
    }

    /// Whether somebody who opens a file in place would look like heirs of one that is dead.
    pub(super) fn is_edited_by_heirs(&self, slot: &Slot, how: How) -> bool {
        self.at(slot).any(|id| {
            let is_told = |heir| self.descends_from_a_participant(heir, id, None);
            let is_alone = |heir| !is_told(heir) || self.is_older_than_edit(heir, id);
            self.txns[&id].edit && self.hows(id).contains(&how) && self.heirs(id).any(is_alone)
        })
    }

    /// Whether a process was started before what it has inherited was opened, as an editor's: by one who added lines then.
    fn is_older_than_edit(&self, who: u32, id: u32) -> bool {
        let born = self.processes[&who].born;
        self.txns[&id].opened.is_after(born)
    }

    /// Whether those who have inherited a description that adds lines would look like others, once it edits a copy (H10).
    fn has_heirs_beside_others(&self, description: u32, slot: &Slot) -> bool {
        let own = &self.descriptions[&description];
        let holds = |p: &&super::Process| p.slots.values().any(|(d, _)| *d == description);
        let alike = |(d, other): (&u32, &super::Description)| {
            let is_at = match &other.what {
                What::Lines(lines) => lines.slot() == Some(slot),
                _ => self
                    .staged_by(*d)
                    .is_some_and(|id| self.txns[&id].slot == *slot),
            };
            *d != description && other.how == own.how && is_at
        };
        self.processes.values().filter(holds).count() > 1 && self.descriptions.iter().any(alike)
    }

    /// Whether others are open as an editor is, and may show the number of its base, too: those who
    /// append to it, and other editors.
    fn others_look_like(&self, id: u32) -> bool {
        let hows = self.hows(id);
        let alike = self
            .descriptions
            .iter()
            .filter(|(_, d)| hows.contains(&d.how));
        let mut others = alike.filter(|(number, d)| {
            let edits = self.staged_by(**number).filter(|other| *other != id);
            matches!(d.what, What::Lines(_)) || edits.is_some_and(|other| self.txns[&other].edit)
        });
        others.next().is_some()
    }

    /// Whether the end of a process would leave heirs beside others who look like them.
    pub fn leaves_heirs_beside_others(&self, who: u32) -> bool {
        self.txns.iter().any(|(id, txn)| {
            let is_left = |heir| {
                heir != who
                    && self.descends_from_a_participant(heir, *id, None)
                    && !self.descends_from_a_participant(heir, *id, Some(who))
            };
            let leaves = txn.edit && !txn.done && self.heirs(*id).any(is_left);
            leaves && self.others_look_like(*id)
        })
    }

    /// Whether FLUSH can't tell that it was the last, and the journal not, should the daemon be
    /// killed before RELEASE comes: known, and not tried here.
    pub fn looks_like_others(&self, who: u32, slot: &str) -> bool {
        let id = self.staged(who, slot).filter(|id| self.txns[id].edit);
        id.is_some_and(|id| self.others_look_like(id))
    }

    /// Whether recovery would put together what several editors of a file have been told is kept, as of
    /// then, or have committed: tests/promised_parts.rs looks at that.
    pub fn puts_edits_together(&self) -> bool {
        let is_promised = |id: &u32| {
            let txn = &self.txns[id];
            txn.parts.is_some() && (txn.synced.is_some() || txn.at_close.is_some())
        };
        let is_stale = |id: &u32| {
            let txn = &self.txns[id];
            let file = self.files.get(&txn.slot);
            file.is_some_and(|file| Some(file.number) != txn.base)
        };
        let slots: BTreeSet<&Slot> = self.txns.values().map(|txn| &txn.slot).collect();
        slots.into_iter().any(|slot| {
            let promised: Vec<u32> = self.at(slot).filter(is_promised).collect();
            promised.len() > 1 || promised.iter().any(is_stale)
        })
    }

    pub(super) fn unnames_appenders_of_a_linked_file(&mut self, slot: &Slot) -> bool {
        let Some(number) = self.files.get(slot).map(|f| f.number) else {
            return false;
        };
        let names = self.files.values().filter(|f| f.number == number).count();
        names > 1 && self.all_lines().any(|l| l.place == Place::At(slot.clone()))
    }

    /// Whether the end of a process would finish unfinished lines, or commit, in an order that
    /// only the numbers of its descriptors tell.
    pub fn ends_in_any_order(&self, who: u32) -> bool {
        if self.unlocks_in_any_order(who) {
            return true;
        }
        let process = self.process(who);
        let held: BTreeSet<u32> = process.slots.values().map(|(d, _)| *d).collect();
        let mut names = Vec::new();
        let mut adds = BTreeSet::new();
        for description in held {
            let staged = self.staged_by(description).map(|id| &self.txns[&id]);
            let slot = match (&self.descriptions[&description].what, staged) {
                (What::Lines(lines), _) if lines.rest.is_empty() => continue,
                (What::Lines(lines), _) => match &lines.place {
                    Place::At(slot) => slot,
                    Place::Nameless(_) => continue,
                },
                (_, Some(txn)) => &txn.slot,
                _ => continue,
            };
            if staged.is_none_or(|txn| txn.stream) {
                adds.insert(slot);
            }
            names.push(slot);
        }
        let among = |slot: &&Slot| names.iter().filter(|name| *name == slot).count() > 1;
        adds.iter().any(among)
    }
}
