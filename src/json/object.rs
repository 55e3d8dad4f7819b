//! Objects: members in the order they were written, found by name in constant time.
//!
//! A removed member leaves a hole, so that removing and putting back (an undo) cost the same in a
//! small object and in a large one. [`Object::close_holes`] is called when holes prevail.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;

use hashbrown::HashTable;

use super::style::Layout;
use super::text::Text;
use super::value::Value;

/// A name and its value.
#[derive(Clone, Debug)]
pub struct Member {
    pub key: Text,
    pub value: Value,
}

/// The members of an object, and how they were laid out. Names are unique.
#[derive(Clone, Debug, Default)]
pub struct Object {
    slots: Vec<Option<Member>>,
    holes: usize,
    /// Slots by name, once there are too many to look at each.
    index: Option<Box<HashTable<usize>>>,
    pub(super) layout: Layout,
}

/// Up to so many slots are searched one by one.
const SEARCHED: usize = 8;

/// Holes that nobody minds.
const FEW_HOLES: usize = 16;

/// Names come from files that anybody may write, so the hash is keyed.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn hash_of(name: &str) -> u64 {
    HASHER.hash_one(name)
}

fn hash_at(slots: &[Option<Member>], slot: usize) -> u64 {
    slots[slot]
        .as_ref()
        .map_or(0, |member| hash_of(&member.key.as_str()))
}

impl Object {
    /// How many members there are.
    pub fn len(&self) -> usize {
        self.slots.len() - self.holes
    }

    /// Is there no member?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The members in order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.slots.iter().flatten()
    }

    /// The values in front of a slot, the nearest first.
    pub(super) fn values_before(&self, slot: usize) -> impl Iterator<Item = &Value> {
        let before = &self.slots[..slot.min(self.slots.len())];
        before.iter().rev().flatten().map(|member| &member.value)
    }

    /// The members in order, with their slots.
    pub(super) fn slots(&self) -> impl Iterator<Item = (usize, &Member)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, member)| Some((slot, member.as_ref()?)))
    }

    /// The value of the member of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        Some(&self.member(self.slot_named(name)?).value)
    }

    /// The value of the member of this name.
    pub(super) fn get_text(&self, key: &Text) -> Option<&Value> {
        Some(&self.member(self.slot_of(key)?).value)
    }

    pub(super) fn slot_named(&self, name: &str) -> Option<usize> {
        self.search(|| hash_of(name), |key| key.says(name))
    }

    pub(super) fn slot_of(&self, key: &Text) -> Option<usize> {
        self.search(|| hash_of(&key.as_str()), |other| other == key)
    }

    fn search(&self, hash: impl Fn() -> u64, found: impl Fn(&Text) -> bool) -> Option<usize> {
        let fits = |slot: &Option<Member>| slot.as_ref().is_some_and(|member| found(&member.key));
        match &self.index {
            Some(index) => index.find(hash(), |&slot| fits(&self.slots[slot])).copied(),
            None => self.slots.iter().position(fits),
        }
    }

    /// The member in a slot that was found and not emptied since.
    pub(super) fn member(&self, slot: usize) -> &Member {
        self.slots[slot].as_ref().expect("a found slot is full")
    }

    /// The value in a slot that was found and not emptied since.
    pub(super) fn value_mut(&mut self, slot: usize) -> &mut Value {
        &mut self.slots[slot]
            .as_mut()
            .expect("a found slot is full")
            .value
    }

    /// Lets every member be rewritten in a way that leaves its name's meaning as it is.
    pub(super) fn each_mut(&mut self, mut rewrite: impl FnMut(&mut Text, &mut Value)) {
        for Member { key, value } in self.slots.iter_mut().flatten() {
            rewrite(key, value);
        }
    }

    /// Appends a member whose name is not there yet, and says in which slot.
    pub(super) fn push(&mut self, key: Text, value: Value) -> usize {
        let slot = self.slots.len();
        self.slots.push(Some(Member { key, value }));
        if self.index.is_some() {
            self.enter(slot);
        } else if self.slots.len() > SEARCHED {
            self.build_index();
        }
        slot
    }

    /// Gives back the memory that growing took too much.
    pub(super) fn shrink(&mut self) {
        self.slots.shrink_to_fit();
    }

    /// Takes back the last [`push`](Object::push).
    pub(super) fn pop(&mut self) -> Member {
        let slot = self.slots.len() - 1;
        self.leave(slot);
        self.slots
            .pop()
            .flatten()
            .expect("the pushed member is there")
    }

    /// Empties a full slot.
    pub(super) fn remove(&mut self, slot: usize) -> Member {
        self.leave(slot);
        self.holes += 1;
        self.slots[slot].take().expect("a found slot is full")
    }

    /// Takes back a [`remove`](Object::remove).
    pub(super) fn put_back(&mut self, slot: usize, member: Member) {
        self.slots[slot] = Some(member);
        self.holes -= 1;
        self.enter(slot);
    }

    /// Have holes come to prevail?
    pub(super) fn is_full_of_holes(&self) -> bool {
        self.holes > self.len() + FEW_HOLES
    }

    /// Moves the members together. Returns the holes, in rising order.
    pub(super) fn close_holes(&mut self) -> Vec<usize> {
        let holes = (0..self.slots.len())
            .filter(|&slot| self.slots[slot].is_none())
            .collect();
        self.slots.retain(Option::is_some);
        self.holes = 0;
        self.build_index();
        holes
    }

    /// Takes back a [`close_holes`](Object::close_holes).
    pub(super) fn open_holes(&mut self, holes: &[usize]) {
        let mut members = std::mem::take(&mut self.slots).into_iter();
        let mut holes_left = holes.iter().copied().peekable();
        for slot in 0..members.len() + holes.len() {
            let is_hole = holes_left.next_if_eq(&slot).is_some();
            self.slots.push(if is_hole {
                None
            } else {
                members.next().flatten()
            });
        }
        self.holes = holes.len();
        self.build_index();
    }

    fn build_index(&mut self) {
        self.index = None;
        if self.slots.len() > SEARCHED {
            self.index = Some(Box::new(HashTable::with_capacity(2 * SEARCHED)));
            for slot in 0..self.slots.len() {
                if self.slots[slot].is_some() {
                    self.enter(slot);
                }
            }
        }
    }

    fn enter(&mut self, slot: usize) {
        let slots = &self.slots;
        if let Some(index) = &mut self.index {
            index.insert_unique(hash_at(slots, slot), slot, |&slot| hash_at(slots, slot));
        }
    }

    fn leave(&mut self, slot: usize) {
        let hash = hash_at(&self.slots, slot);
        if let Some(index) = &mut self.index
            && let Ok(entry) = index.find_entry(hash, |&other| other == slot)
        {
            entry.remove();
        }
    }
}

impl PartialEq for Object {
    /// Equal members in any order are equal objects.
    fn eq(&self, other: &Object) -> bool {
        self.len() == other.len()
            && self
                .members()
                .all(|member| other.get_text(&member.key) == Some(&member.value))
    }
}

impl FromIterator<Member> for Object {
    /// An object of members whose names all differ.
    fn from_iter<T: IntoIterator<Item = Member>>(members: T) -> Object {
        let mut object = Object::default();
        for Member { key, value } in members {
            object.push(key, value);
        }
        object
    }
}
