//! Three-way merge: what became of `base` in `mine` and in `theirs`, in one value.
//!
//! * Objects merge member by member. The members stand as in `theirs`, unless only `mine` changed
//!   their order; what only `mine` has comes behind the member it is behind there, or at the end.
//! * Arrays to which both sides only appended have both appendages, `theirs` first, even if they are
//!   equal: two events may well be the same. Others merge as sequences: what either side has put in is
//!   kept, what one has taken out stays out.
//! * Numbers at the policy's counters get both differences, even if they are equal.
//! * A change on one side only, and the same change on both, is taken.
//! * Everything else is a conflict, and `mine` wins it.
//!
//! What both sides added is merged as if it had been empty before, and 0 at a counter; arrays as if
//! they had been what both begin with.

use std::borrow::Cow;
use std::collections::HashMap;

use super::array::Array;
use super::number::Number;
use super::object::{Member, Object};
use super::pointer::{Pointer, PointerError};
use super::sequence::{self, Item};
use super::value::Value;

/// How to merge.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    counters: Vec<Pointer>,
}

impl Policy {
    /// With numbers that merge by their differences at `counters`: JSON pointers in which `*` stands
    /// for any one member or position.
    ///
    /// # Errors
    /// One of them is no pointer.
    pub fn new<T: AsRef<str>>(counters: &[T]) -> Result<Policy, PointerError> {
        let counters = counters.iter().map(|text| Pointer::parse(text.as_ref()));
        Ok(Policy {
            counters: counters.collect::<Result<_, _>>()?,
        })
    }
}

/// Why two changes don't go together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConflictKind {
    /// Both changed the value, or added one, and differ.
    BothChanged,
    /// `mine` removed what `theirs` changed.
    RemovedByMine,
    /// `theirs` removed what `mine` changed.
    RemovedByTheirs,
    /// A counter's differences add up to no number.
    Counter,
}

/// A place where `mine` won over a change in `theirs`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    pub pointer: Pointer,
    pub kind: ConflictKind,
}

/// The outcome of a merge.
#[derive(Clone, Debug)]
pub struct Merged {
    pub value: Value,
    /// In the order of the document.
    pub conflicts: Vec<Conflict>,
}

/// Merges the changes from `base` to `mine` with those from `base` to `theirs`. If one side changed
/// nothing, the result is the other, digit for digit.
pub fn merge(base: &Value, mine: &Value, theirs: &Value, policy: &Policy) -> Merged {
    let theirs = Side {
        value: theirs,
        is_foreign: false,
    };
    merge_restyled(base, mine, theirs, policy)
}

/// The side of `theirs`.
pub(super) struct Side<'a> {
    pub value: &'a Value,
    /// Its values have to forget their style, as they come to a document of another one.
    pub is_foreign: bool,
}

pub(super) fn merge_restyled(base: &Value, mine: &Value, theirs: Side, policy: &Policy) -> Merged {
    let mut merger = Merger {
        policy,
        path: Vec::new(),
        conflicts: Vec::new(),
        is_foreign: theirs.is_foreign,
    };
    let value = merger.value(Some(base), Some(mine), Some(theirs.value));
    Merged {
        value: value.expect("nobody removed the whole document"),
        conflicts: merger.conflicts,
    }
}

struct Merger<'a> {
    policy: &'a Policy,
    path: Vec<Cow<'a, str>>,
    conflicts: Vec<Conflict>,
    is_foreign: bool,
}

type Maybe<'a> = Option<&'a Value>;

impl<'a> Merger<'a> {
    fn value(&mut self, base: Maybe<'a>, mine: Maybe<'a>, theirs: Maybe<'a>) -> Option<Value> {
        match (mine, theirs) {
            (Some(Value::Object(mine)), Some(Value::Object(theirs))) => {
                let base = match base {
                    Some(Value::Object(base)) => Some(base),
                    _ => None,
                };
                Some(Value::Object(self.objects(base, mine, theirs)))
            }
            (Some(Value::Array(mine_items)), Some(Value::Array(their_items)))
                if !are_identical(base, mine) && !are_identical(base, theirs) =>
            {
                self.arrays(base, mine_items, their_items)
                    .or_else(|| self.sequences(base, mine_items, their_items))
                    .or_else(|| self.choose(base, mine, theirs))
            }
            (Some(Value::Number(mine_number)), Some(Value::Number(their_number)))
                if self.is_counter() =>
            {
                self.counter(base, mine_number, their_number)
                    .or_else(|| self.choose(base, mine, theirs))
            }
            _ => self.choose(base, mine, theirs),
        }
    }

    /// Takes one of both, whole.
    fn choose(&mut self, base: Maybe, mine: Maybe, theirs: Maybe) -> Option<Value> {
        if are_identical(theirs, base) {
            return mine.cloned();
        }
        if are_identical(mine, base) {
            return theirs.map(|value| self.adopt(value));
        }
        if mine == theirs || theirs == base {
            return mine.cloned();
        }
        if mine == base {
            return theirs.map(|value| self.adopt(value));
        }
        self.conflict(match (mine, theirs) {
            (None, _) => ConflictKind::RemovedByMine,
            (_, None) => ConflictKind::RemovedByTheirs,
            _ => ConflictKind::BothChanged,
        });
        mine.cloned()
    }

    fn objects(
        &mut self,
        base: Option<&'a Object>,
        mine: &'a Object,
        theirs: &'a Object,
    ) -> Object {
        let mut merging = Objects {
            base,
            mine,
            theirs,
            merged: Object::default(),
        };
        if base.is_some_and(|base| have_same_order(base, theirs)) {
            self.in_my_order(&mut merging);
        } else {
            self.in_their_order(&mut merging);
        }
        merging.merged.layout = mine.layout;
        merging.merged
    }

    fn in_my_order(&mut self, merging: &mut Objects<'a>) {
        for member in merging.mine.members() {
            self.member(merging, member);
        }
        for member in merging.theirs.members() {
            if merging.mine.get_text(&member.key).is_none() {
                self.member(merging, member);
            }
        }
    }

    fn in_their_order(&mut self, merging: &mut Objects<'a>) {
        let mut additions = Additions::of(merging.mine, merging.theirs);
        for (slot, member) in merging.theirs.slots() {
            self.member(merging, member);
            for addition in additions.behind.remove(&slot).unwrap_or_default() {
                self.member(merging, addition);
            }
        }
        for addition in additions.at_end {
            self.member(merging, addition);
        }
    }

    /// Merges the member that is called like `one` of either side.
    fn member(&mut self, merging: &mut Objects<'a>, one: &'a Member) {
        let mine = merging.mine.get_text(&one.key);
        let theirs = merging.theirs.get_text(&one.key);
        let base = merging.base.and_then(|base| base.get_text(&one.key));
        self.path.push(one.key.as_str());
        let value = self.value(base, mine, theirs);
        self.path.pop();
        if let Some(value) = value {
            let key = if self.is_foreign {
                one.key.canonical()
            } else {
                one.key.clone()
            };
            merging.merged.push(key, value);
        }
    }

    /// None if the two don't go together.
    fn arrays(&mut self, base: Maybe<'a>, mine: &'a Array, theirs: &'a Array) -> Option<Value> {
        let base = match base {
            Some(Value::Array(base)) => base.items.as_slice(),
            _ => common_start(&mine.items, &theirs.items),
        };
        let (my_new, their_new) = (
            mine.items.get(base.len()..)?,
            theirs.items.get(base.len()..)?,
        );
        let mut items = if mine.items.starts_with(base) && theirs.items.starts_with(base) {
            base.iter().map(|item| self.adopt(item)).collect()
        } else {
            self.items_with_counters(base, &mine.items, &theirs.items)?
        };
        items.extend(their_new.iter().map(|item| self.adopt(item)));
        items.extend(my_new.iter().cloned());
        Some(Value::Array(Array {
            items,
            layout: mine.layout,
        }))
    }

    /// None where positions mean something, or if the two don't go together.
    fn sequences(&self, base: Maybe<'a>, mine: &'a Array, theirs: &'a Array) -> Option<Value> {
        let Some(Value::Array(base)) = base.filter(|_| !self.is_above_counter()) else {
            return None;
        };
        let merged = sequence::merge(&base.items, &mine.items, &theirs.items)?;
        let items = merged.into_iter().map(|item| match item {
            Item::Mine(item) => item.clone(),
            Item::Theirs(item) => self.adopt(item),
        });
        Some(Value::Array(Array {
            items: items.collect(),
            layout: mine.layout,
        }))
    }

    /// Merges position by position, which only counters justify: whoever names them says that the
    /// positions mean something. None if there are no counters below, or anything else gets in the
    /// way.
    fn items_with_counters(
        &mut self,
        base: &'a [Value],
        mine: &'a [Value],
        theirs: &'a [Value],
    ) -> Option<Vec<Value>> {
        if !self.is_above_counter() {
            return None;
        }
        let conflicts = self.conflicts.len();
        let mut items = Vec::with_capacity(base.len());
        for (index, base) in base.iter().enumerate() {
            self.path.push(index.to_string().into());
            let item = self.value(Some(base), Some(&mine[index]), Some(&theirs[index]));
            self.path.pop();
            items.extend(item);
        }
        let is_merged = self.conflicts.len() == conflicts;
        self.conflicts.truncate(conflicts);
        is_merged.then_some(items)
    }

    /// None if it is not for the differences to decide.
    fn counter(&mut self, base: Maybe, mine: &Number, theirs: &Number) -> Option<Value> {
        let zero = Number::from(0u64);
        let base = match base {
            Some(Value::Number(base)) if [mine, theirs].iter().all(|n| n.text() != base.text()) => {
                base
            }
            None => &zero,
            _ => return None,
        };
        let sum = mine.minus(base).and_then(|mine| theirs.plus(&mine));
        Some(Value::Number(sum.unwrap_or_else(|_| {
            self.conflict(ConflictKind::Counter);
            mine.clone()
        })))
    }

    fn is_counter(&self) -> bool {
        let is_here = |counter: &Pointer| counter.tokens().len() == self.path.len();
        self.policy
            .counters
            .iter()
            .any(|counter| is_here(counter) && self.is_on(counter))
    }

    fn is_above_counter(&self) -> bool {
        let is_below = |counter: &Pointer| counter.tokens().len() > self.path.len();
        self.policy
            .counters
            .iter()
            .any(|counter| is_below(counter) && self.is_on(counter))
    }

    /// Does the counter's pointer agree with the path so far?
    fn is_on(&self, counter: &Pointer) -> bool {
        let agree = |(token, step): (&String, &Cow<str>)| token == "*" || token == step;
        counter.tokens().iter().zip(&self.path).all(agree)
    }

    fn adopt(&self, value: &Value) -> Value {
        let mut value = value.clone();
        if self.is_foreign {
            value.forget_style();
        }
        value
    }

    fn conflict(&mut self, kind: ConflictKind) {
        let tokens = self.path.iter().map(|token| token.clone().into_owned());
        self.conflicts.push(Conflict {
            pointer: tokens.collect(),
            kind,
        });
    }
}

/// Three objects, and what came of them so far.
struct Objects<'a> {
    base: Option<&'a Object>,
    mine: &'a Object,
    theirs: &'a Object,
    merged: Object,
}

/// The members that only `mine` has, by the slot in `theirs` of the last one in front of them that
/// both have.
struct Additions<'a> {
    behind: HashMap<usize, Vec<&'a Member>>,
    at_end: Vec<&'a Member>,
}

impl<'a> Additions<'a> {
    fn of(mine: &'a Object, theirs: &Object) -> Additions<'a> {
        let mut additions = Additions {
            behind: HashMap::new(),
            at_end: Vec::new(),
        };
        let mut predecessor = None;
        for member in mine.members() {
            match (theirs.slot_of(&member.key), predecessor) {
                (Some(slot), _) => predecessor = Some(slot),
                (None, Some(slot)) => additions.behind.entry(slot).or_default().push(member),
                (None, None) => additions.at_end.push(member),
            }
        }
        additions
    }
}

fn are_identical(one: Maybe, two: Maybe) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => one.is_identical(two),
        (one, two) => one.is_none() && two.is_none(),
    }
}

fn have_same_order(one: &Object, two: &Object) -> bool {
    let (one, two) = (one.members(), two.members());
    one.map(|member| &member.key)
        .eq(two.map(|member| &member.key))
}

fn common_start<'a>(one: &'a [Value], two: &[Value]) -> &'a [Value] {
    let count = one
        .iter()
        .zip(two)
        .take_while(|(one, two)| one == two)
        .count();
    &one[..count]
}
