//! Links made to a file that is still being written follow it: in the end they have what its close
//! commits (C6).

use super::kin::View;
use super::{Content, Slot, World};

/// A name that follows a transaction, and the number of the version that was put there.
#[derive(Clone, Debug)]
pub struct Follower {
    slot: Slot,
    number: u32,
    /// Whether it is said that it follows: not of one that was made by who doesn't see what is
    /// staged, or before the first write.
    is_sure: bool,
}

impl World {
    /// A link to the file that a transaction writes has been made.
    pub(super) fn follow(&mut self, id: u32, link: &Slot, is_sure: bool) {
        let number = self.files[link].number;
        let txn = self.txns.get_mut(&id).expect("it is there");
        let slot = link.clone();
        txn.links.push(Follower {
            slot,
            number,
            is_sure,
        });
    }

    /// Names that follow a transaction, as far as nobody else has put another version there.
    fn followers(&self, id: u32) -> Vec<(Slot, bool)> {
        let txn = &self.txns[&id];
        let mut all = Vec::new();
        for link in &txn.links {
            // By any name that the link has got since, but not by those that its file had before.
            let is_new = txn.base != Some(link.number);
            let of_it = self.files.iter().filter(|(_, f)| f.number == link.number);
            let others = of_it.filter(|(slot, _)| **slot != txn.slot);
            let others = others.filter(|(slot, _)| is_new || **slot == link.slot);
            all.extend(others.map(|(slot, _)| (slot.clone(), link.is_sure)));
        }
        all
    }

    fn writers_followed_by<'a>(&'a self, slot: &'a Slot) -> impl Iterator<Item = u32> + 'a {
        let open = self
            .txns
            .iter()
            .filter(|(_, t)| !t.done && !t.links.is_empty());
        let follows = move |id: &u32| self.followers(*id).iter().any(|(s, _)| s == slot);
        open.map(|(id, _)| *id).filter(follows)
    }

    /// Whether a name follows something that is being written, or has done so: whether it is a hard
    /// link of what was committed then is not said.
    pub(super) fn is_linked_to_open(&self, slot: &Slot) -> bool {
        self.once_followed.contains(slot)
            || self.at(slot).any(|id| !self.txns[&id].links.is_empty())
            || self.writers_followed_by(slot).next().is_some()
    }

    /// Whether one who takes part in what is written may find that under a link, too.
    pub(super) fn may_see_through_link(&self, who: u32, slot: &Slot) -> bool {
        self.writers_followed_by(slot)
            .any(|id| self.view(id, who) != View::No)
    }

    /// A transaction ends like this: what its links have then.
    pub(super) fn end_links(&mut self, id: u32, slot: &Slot, ends: &[Option<Content>]) {
        if ends == [None] {
            return;
        }
        for (link, is_sure) in self.followers(id) {
            let mut of_link = self.permitted(&link, ends.to_vec());
            if (!is_sure || of_link.as_slice() != ends || ends.len() > 1)
                && !of_link.contains(&None)
            {
                of_link.push(None);
            }
            self.ended_links.push((link, of_link));
            self.once_followed.insert(slot.clone());
        }
    }

    /// The links of what has ended in this step.
    pub(super) fn conclude_links(&mut self) {
        for (link, ends) in std::mem::take(&mut self.ended_links) {
            match ends.as_slice() {
                [None] => {}
                [Some(content)] => {
                    self.commit(&link, content.clone());
                    self.files.get_mut(&link).expect("just made").body = None;
                }
                _ => {
                    self.open_ends.entry(link.clone()).or_default().extend(ends);
                }
            }
            self.once_followed.insert(link);
        }
    }
}
