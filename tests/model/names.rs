//! Names that are taken, given up, shared and exchanged, by files that are open, too (C6, C11, C13).

use super::direct::is_named_direct;
use super::{File, Found, Killed, ROOT, STRANGER, Slot, Told, World, guards};

impl World {
    fn retarget(&mut self, id: u32, to: &Slot) {
        let order = self.number();
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.slot = to.clone();
        txn.order = order;
    }

    /// The file of a transaction gets another name: what was written so far is committed (C11).
    fn publish(&mut self, id: u32, to: &Slot, renames: bool) -> Told {
        let txn = &self.txns[&id];
        if txn.failed {
            return Err("EFBIG");
        }
        if let Found::Dir(_) = self.current(to) {
            return Err("EISDIR");
        }
        if renames {
            self.take_parts(id);
        }
        let txn = &self.txns[&id];
        let content = match renames {
            true => [txn.content.as_slice(), &txn.added].concat(),
            false => txn.content.clone(),
        };
        if self.refuses(to, &content) != Some(false) {
            return self.refuse(to);
        }
        if renames {
            self.txns.get_mut(&id).expect("it is there").take_added();
        }
        // By a link it stays under its own name, and what was promised with it, as it is now.
        let txn = self.txns.get_mut(&id).expect("it is there");
        let promised = txn.synced.take().filter(|_| !renames);
        txn.synced = promised.map(|_| vec![txn.content.clone()]);
        let mode = self.txns[&id].mode;
        let body = self.edited_body(id).filter(|_| renames);
        self.commit(to, content);
        let file = self.files.get_mut(to).expect("just made");
        file.body = body.or(file.body);
        // The file that takes the name brings its own.
        self.files.get_mut(to).expect("just made").mode = mode;
        Ok(())
    }

    pub fn rename(&mut self, who: u32, from: &str, to: &str) -> Option<Told> {
        let told = |result: Result<Slot, &'static str>| result.map_err(|e| Some(Err(e)));
        let tried = (|| {
            let source = told(self.slot(who, from))?;
            let target = told(self.slot(who, to))?;
            Ok::<_, Option<Told>>((source, target))
        })();
        let (source, target) = match tried {
            Ok(both) => both,
            Err(told) => return told,
        };
        let (seen, there) = (self.look(who, &source), self.look(who, &target));
        if seen == Found::Nothing {
            return Some(Err("ENOENT"));
        }
        if to.starts_with(&format!("{from}/")) {
            return Some(Err("EINVAL"));
        }
        if from.starts_with(&format!("{to}/")) {
            return Some(Err("ENOTEMPTY"));
        }
        match (seen, there) {
            (Found::Dir(_), _) if target.0 != ROOT => None,
            // Who waits for a file in it walks the old path once more.
            (Found::Dir(dir), _) if self.waiters.iter().any(|w| w.slot.0 == dir) => None,
            (Found::Dir(_), Found::File(_)) => Some(Err("ENOTDIR")),
            (Found::Dir(from), Found::Dir(to)) if from == to => Some(Ok(())),
            (Found::Dir(_), Found::Dir(dir)) if self.is_full(dir) => Some(Err("ENOTEMPTY")),
            (Found::Dir(dir), _) => {
                self.dirs.remove(&source.1);
                self.dirs.insert(target.1, dir);
                Some(Ok(()))
            }
            (_, Found::Dir(_)) => Some(Err("EISDIR")),
            _ => self.rename_file(who, &source, &target),
        }
    }

    /// A rename that replaces nothing.
    pub fn rename_new(&mut self, who: u32, from: &str, to: &str) -> Option<Told> {
        let slots = self
            .slot(who, from)
            .and_then(|a| Ok((a, self.slot(who, to)?)));
        match slots {
            Err(errno) => Some(Err(errno)),
            Ok((source, _)) if self.look(who, &source) == Found::Nothing => Some(Err("ENOENT")),
            Ok((_, target)) if self.look(who, &target) != Found::Nothing => Some(Err("EEXIST")),
            Ok(_) => self.rename(who, from, to),
        }
    }

    fn rename_file(&mut self, who: u32, source: &Slot, target: &Slot) -> Option<Told> {
        // Who waits for it may come in before the name is gone.
        if self.is_waited_for_by_name(source) {
            return None;
        }
        let is_followed = self.at(source).any(|id| !self.txns[&id].links.is_empty());
        if self.is_undecided(source) || self.is_undecided(target) {
            return None;
        }
        if is_followed
            || [source, target]
                .iter()
                .any(|slot| self.once_followed.contains(*slot))
        {
            return None;
        }
        // Of what becomes of those who have it open in the other mode.
        let direct = [source, target]
            .into_iter()
            .any(|slot| self.is_direct(slot));
        if direct && (self.is_in_use(source) || self.is_in_use(target)) {
            return None;
        }
        if self.is_direct(source)
            && let Some(file) = self.files.get(source)
        {
            self.once_direct.insert(file.number);
        }
        // What a lock belongs to then is another test's.
        if self.is_locked(source) || self.is_locked(target) {
            return None;
        }
        // It has the other name still, and no rule about who adds to it (C10).
        if source != target && self.unnames_appenders_of_a_linked_file(target) {
            return None;
        }
        let open = self.own(who, source).or_else(|| self.claim(source));
        let refused = match open {
            Some(id) => self.refuses(target, &self.txns[&id].content),
            None => self.refuses(target, &self.files[source].content),
        };
        let refused = refused?;
        if guards::is_guarded(target) && self.is_added_to(source) {
            return None;
        }
        if let Some(id) = self.own(who, source)
            && self.txns[&id].stream
            && source != target
        {
            if self.txns[&id].killed != Killed::No || self.vanished(source).is_err() {
                return None;
            }
            self.be_born(id);
        }
        if let Some(id) = self.own(who, source).or_else(|| self.claim(source)) {
            // What was written through a mapping is not known to have been written yet.
            if self.txns[&id].unwritten || matches!(self.current(source), Found::Dir(_)) {
                return None;
            }
            if source == target {
                return Some(Ok(()));
            }
            let lost = self.files.get(target).cloned();
            if let Err(errno) = self.publish(id, target, true) {
                return Some(Err(errno));
            }
            let renamed = self.renamed_file(source, target);
            if let Some(file) = self.files.get_mut(target) {
                file.file = renamed;
            }
            let published = self.files.get(target).map(|f| f.number);
            self.unname(target, lost);
            self.rename_appenders(source, target);
            self.files.remove(source);
            self.retarget(id, target);
            let txn = self.txns.get_mut(&id).expect("it is there");
            (txn.edit, txn.changed, txn.claim) = (true, false, false);
            (txn.base, txn.body) = (published, self.files[target].body);
            return Some(Ok(()));
        }
        if let Found::Dir(_) = self.current(target) {
            return Some(Err("EISDIR"));
        }
        if refused && source != target {
            return Some(self.refuse(target));
        }
        let mut file = self.files[source].clone();
        if self
            .files
            .get(target)
            .is_some_and(|f| f.number == file.number)
        {
            return Some(Ok(()));
        }
        let moved = Some(file.number);
        file.file = self.renamed_file(source, target);
        self.files.remove(source);
        let lost = self.files.get(target).cloned();
        self.unname(target, lost);
        self.rename_appenders(source, target);
        self.replace(target, file);
        let followers: Vec<u32> = self
            .at(source)
            .filter(|id| {
                let txn = &self.txns[id];
                txn.edit || txn.base == moved || self.holds_nothing(*id)
            })
            .collect();
        for id in followers {
            self.retarget(id, target);
        }
        Some(Ok(()))
    }

    /// What locks belong to after a rename: another file's, to keep apart what is opened before and
    /// since; but the same as long as it has a third name.
    fn renamed_file(&mut self, source: &Slot, target: &Slot) -> u32 {
        let file = self.files.get(source).map(|f| f.file);
        let mut others = self
            .files
            .iter()
            .filter(|(slot, _)| ![source, target].contains(slot));
        match file.filter(|file| others.any(|(_, f)| f.file == *file)) {
            Some(shared) => shared,
            None => self.number(),
        }
    }

    pub fn link(&mut self, who: u32, from: &str, to: &str) -> Option<Told> {
        let (source, target) = match (self.slot(who, from), self.slot(who, to)) {
            (Err(errno), _) => return Some(Err(errno)),
            (Ok(source), target) => match (self.look(who, &source), target) {
                (Found::Nothing, _) => return Some(Err("ENOENT")),
                (_, Err(errno)) => return Some(Err(errno)),
                (_, Ok(target)) => (source, target),
            },
        };
        if self.look(who, &target) != Found::Nothing {
            return Some(Err("EEXIST"));
        }
        if self.is_undecided(&source) {
            return None;
        }
        if self.is_locked(&source) || self.once_followed.contains(&source) {
            return None;
        }
        if let Found::Dir(_) = self.look(who, &source) {
            return Some(Err("EPERM"));
        }
        if let Some(id) = self.own(who, &source).or_else(|| self.claim(&source)) {
            let txn = &self.txns[&id];
            if txn.unwritten {
                return None;
            }
            let untouched = txn.edit && !txn.changed;
            let current = self.files.get(&source).map(|f| f.number);
            // Nor is it said which of several new files that are written under one name it follows.
            let has_rivals = txn.is_new && self.at(&source).any(|other| other != id);
            if txn.stream || has_rivals {
                return None;
            }
            if !(untouched && txn.base == current) {
                self.refuses(&target, &txn.content)?;
                let told = self.publish(id, &target, false);
                if told.is_ok() {
                    self.follow(id, &target, true);
                }
                return Some(told);
            }
        }
        let file = self.files[&source].clone();
        if self.refuses(&target, &file.content)? {
            return Some(self.refuse(&target));
        }
        self.replace(&target, file);
        for id in self.at(&source).collect::<Vec<_>>() {
            self.follow(id, &target, false);
        }
        Some(Ok(()))
    }

    pub fn unlink(&mut self, who: u32, path: &str) -> Option<Told> {
        let slot = match self.slot(who, path) {
            Ok(slot) => slot,
            Err(errno) => return Some(Err(errno)),
        };
        match (self.look(who, &slot), self.current(&slot)) {
            (Found::Nothing, _) => return Some(Err("ENOENT")),
            (Found::Dir(_), _) | (_, Found::Dir(_)) => return Some(Err("EISDIR")),
            // Who waits for it may come in before the name is gone.
            _ if self.is_waited_for_by_name(&slot) => return None,
            _ if self.is_undecided(&slot) => return None,
            _ if self.unnames_appenders_of_a_linked_file(&slot) => return None,
            _ => {}
        }
        let open: Vec<u32> = self.at(&slot).collect();
        if open.iter().any(|id| !self.txns[id].links.is_empty()) {
            return None;
        }
        for id in open {
            self.txns.get_mut(&id).expect("it is there").discarded = true;
        }
        self.once_followed.remove(&slot);
        let lost = self.files.remove(&slot);
        self.unname(&slot, lost);
        self.errors.remove(&slot);
        Some(Ok(()))
    }

    pub fn mkdir(&mut self, who: u32, name: &str) -> Told {
        if self.look(who, &(ROOT, name.to_owned())) != Found::Nothing {
            return Err("EEXIST");
        }
        let id = self.number();
        self.dirs.insert(name.to_owned(), id);
        Ok(())
    }

    /// Files, or names that everybody sees.
    fn is_full(&self, dir: u32) -> bool {
        !self.names(STRANGER, dir).is_empty()
    }

    pub fn rmdir(&mut self, who: u32, name: &str) -> Told {
        match self.look(who, &(ROOT, name.to_owned())) {
            Found::Nothing => Err("ENOENT"),
            Found::File(_) => Err("ENOTDIR"),
            Found::Dir(dir) if self.is_full(dir) => Err("ENOTEMPTY"),
            Found::Dir(_) => {
                self.dirs.remove(name);
                Ok(())
            }
        }
    }

    /// Two names change their files; `None`: not to be tried.
    pub fn exchange(&mut self, who: u32, from: &str, to: &str) -> Option<Told> {
        let slots = self
            .slot(who, from)
            .and_then(|a| Ok((a, self.slot(who, to)?)));
        let (one, other) = match slots {
            Ok(both) => both,
            Err(errno) => return Some(Err(errno)),
        };
        let seen = [&one, &other].map(|slot| self.look(who, slot));
        if seen.contains(&Found::Nothing) {
            return Some(Err("ENOENT"));
        }
        if one == other {
            return Some(Ok(()));
        }
        if !self.can_exchange(&one) || !self.can_exchange(&other) {
            return None;
        }
        let [Found::File(first), Found::File(second)] = seen else {
            return None;
        };
        let number = |slot| self.files.get(slot).map(|f| f.number);
        if number(&one).is_some() && number(&one) == number(&other) {
            return self.is_untouched(&one, &other).then_some(Ok(()));
        }
        for (source, target, content) in [(&one, &other, &first), (&other, &one, &second)] {
            // Nor whether a direct file was read through the kernel's cache.
            let goes_elsewhere = guards::is_guarded(target) || is_named_direct(target);
            if goes_elsewhere && self.is_added_to(source) {
                return None;
            }
            // A new file gets its first version under the name that it has.
            if !self.files.contains_key(source) && self.refuses(source, content)? {
                return Some(self.refuse(source));
            }
            if self.refuses(target, content)? {
                return Some(self.refuse(target));
            }
        }
        let (first, second) = (self.lift(who, &one), self.lift(who, &other));
        self.put(first, &other);
        self.put(second, &one);
        Some(Ok(()))
    }

    /// Whether it is said what becomes of a name's file, and of those who have it open, when it
    /// changes names with another.
    fn can_exchange(&self, slot: &Slot) -> bool {
        let file = self.files.get(slot);
        let is_linked = |file: u32| self.files.values().filter(|f| f.file == file).count() > 1;
        let is_dir = slot.0 == ROOT && self.dirs.contains_key(&slot.1);
        if self.is_undecided(slot) {
            return false;
        }
        if is_dir
            || self.is_locked(slot)
            || self.is_linked_to_open(slot)
            || file.is_some_and(|f| is_linked(f.file))
        {
            return false;
        }
        if !self.is_in_use(slot) {
            return true;
        }
        if self.is_direct(slot) || self.is_waited_for_by_name(slot) {
            return false;
        }
        // Which of several has the file is not said; nor what a mapping has left.
        let open: Vec<u32> = self.at(slot).collect();
        let is_clear = |id: &u32| {
            let txn = &self.txns[id];
            let is_of_it = txn.base == file.map(|f| f.number);
            let is_whole = !txn.unwritten && !txn.failed && txn.killed == Killed::No && !txn.stream;
            // Known: H27 of docs/design.md.
            let is_merely_emptied = !txn.edit && !txn.changed && txn.base.is_some();
            is_whole && is_of_it && !is_merely_emptied
        };
        open.len() < 2 && open.iter().all(is_clear)
    }

    fn is_untouched(&self, one: &Slot, other: &Slot) -> bool {
        !self.is_in_use(one) && !self.is_in_use(other)
    }

    /// Takes a file from its name, with those who have it open: what was written so far becomes a
    /// version (C11).
    fn lift(&mut self, who: u32, slot: &Slot) -> Lifted {
        let open: Vec<u32> = self.at(slot).collect();
        let own = self.own(who, slot).or_else(|| self.claim(slot));
        let is_direct = self.is_direct(slot);
        let file = self.files.remove(slot);
        if is_direct {
            self.once_direct.extend(file.iter().map(|f| f.number));
        }
        let number = self.number();
        let file = match own {
            None => File {
                file: number,
                ..file.expect("it is seen")
            },
            Some(id) => {
                let txn = self.txns.get_mut(&id).expect("it is there");
                txn.take_added();
                (txn.synced, txn.edit, txn.changed, txn.claim) = (None, true, false, false);
                (txn.base, txn.body) = (Some(number), Some(number));
                File {
                    number,
                    file: number,
                    since: number,
                    after: None,
                    mode: txn.mode,
                    body: Some(number),
                    content: txn.content.clone(),
                }
            }
        };
        let appenders = self.appenders_at(slot);
        Lifted {
            file,
            open,
            appenders,
        }
    }

    fn put(&mut self, lifted: Lifted, slot: &Slot) {
        self.replace(slot, lifted.file);
        for id in lifted.open {
            self.retarget(id, slot);
        }
        self.move_appenders(&lifted.appenders, slot);
    }
}

/// A file between two names.
struct Lifted {
    file: File,
    open: Vec<u32>,
    appenders: Vec<u32>,
}
