//! Three-way merge of arrays as sequences: what each side has put in is kept, what one has taken out
//! stays out. What both have moved (`remove`, then `insert(0, …)`) is there once.
//!
//! Items are known by their values. Where both sides have replaced the same items by others, nothing
//! says which of the new ones belong together: that is for the caller to decide.

use super::value::Value;

/// Items that are compared, at most, once what all begin and end with is left aside.
const MOST: usize = 1000;

/// What became of the items of a base: which are still there, and what has come before each of them,
/// and at the end.
struct Edits<'a> {
    keeps: Vec<bool>,
    /// One more than there are items.
    comes: Vec<Vec<&'a Value>>,
}

/// Merges `mine` and `theirs`. `None`: both have replaced the same, or there is too much to compare.
pub(super) fn merge<'a>(
    base: &'a [Value],
    mine: &'a [Value],
    theirs: &'a [Value],
) -> Option<Vec<Item<'a>>> {
    let my_edits = Edits::of(base, mine)?;
    let their_edits = Edits::of(base, theirs)?;
    if have_replaced_the_same(&my_edits, &their_edits) {
        return None;
    }
    let mut merged = Vec::new();
    for place in 0..=base.len() {
        let mine = my_edits.comes[place].iter();
        let mine = mine.filter(|item| !is_out(item, &my_edits, &their_edits, base));
        let mine = mine.map(|item| Item::Mine(item));
        let theirs = their_edits.comes[place].iter();
        let theirs = theirs.filter(|item| {
            !is_out(item, &their_edits, &my_edits, base) && !has_moved(item, &my_edits, base)
        });
        let theirs = theirs.map(|item| Item::Theirs(item));
        // What was put in front last stands first.
        if place == 0 && !base.is_empty() {
            merged.extend(mine.chain(theirs));
        } else {
            merged.extend(theirs.chain(mine));
        }
        if place < base.len() && my_edits.keeps[place] && their_edits.keeps[place] {
            merged.push(Item::Theirs(&base[place]));
        }
    }
    Some(merged)
}

/// An item of a merged sequence, and whose way of writing it has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item<'a> {
    Mine(&'a Value),
    Theirs(&'a Value),
}

/// What one side has moved, and the other has taken out, is out.
fn is_out(item: &Value, own: &Edits, others: &Edits, base: &[Value]) -> bool {
    let gone = |edits: &Edits| {
        let mut items = base.iter().zip(&edits.keeps);
        items.any(|(one, kept)| !kept && one == item)
    };
    let comes = || others.comes.iter().flatten().any(|one| *one == item);
    gone(own) && gone(others) && !comes()
}

/// Whether a side has taken an item out and put it in elsewhere.
fn has_moved(item: &Value, edits: &Edits, base: &[Value]) -> bool {
    let mut items = base.iter().zip(&edits.keeps);
    items.any(|(one, kept)| !kept && one == item)
        && edits.comes.iter().flatten().any(|one| *one == item)
}

/// Whether both have taken out one item, and put others in its place.
fn have_replaced_the_same(mine: &Edits, theirs: &Edits) -> bool {
    let replaced = |edits: &Edits, at: usize| {
        // In a run of items that are gone what came instead may stand at its beginning or its end.
        let first = (0..at).rev().take_while(|i| !edits.keeps[*i]).last();
        let last = (at..edits.keeps.len())
            .take_while(|i| !edits.keeps[*i])
            .last();
        let run = first.unwrap_or(at)..=last.unwrap_or(at) + 1;
        edits.comes[run].iter().any(|come| !come.is_empty())
    };
    (0..mine.keeps.len())
        .filter(|at| !mine.keeps[*at] && !theirs.keeps[*at])
        .any(|at| replaced(mine, at) && replaced(theirs, at))
}

impl<'a> Edits<'a> {
    fn of(base: &[Value], now: &'a [Value]) -> Option<Edits<'a>> {
        let start = base.iter().zip(now).take_while(|(a, b)| a == b).count();
        let (old, new) = (&base[start..], &now[start..]);
        let same = old.iter().rev().zip(new.iter().rev());
        let end = same.take_while(|(a, b)| a == b).count();
        let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
        if old.len() > MOST || new.len() > MOST {
            return None;
        }
        let mut edits = Edits {
            keeps: vec![true; base.len()],
            comes: vec![Vec::new(); base.len() + 1],
        };
        edits.compare(start, old, new);
        Some(edits)
    }

    /// By the longest sequence that both have in common.
    fn compare(&mut self, start: usize, old: &[Value], new: &'a [Value]) {
        let width = new.len() + 1;
        let mut common = vec![0u16; (old.len() + 1) * width];
        for i in (0..old.len()).rev() {
            for j in (0..new.len()).rev() {
                common[i * width + j] = if old[i] == new[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            let is_same = i < old.len() && j < new.len() && old[i] == new[j];
            if is_same {
                (i, j) = (i + 1, j + 1);
            } else if j < new.len()
                && (i == old.len() || common[i * width + j + 1] >= common[(i + 1) * width + j])
            {
                self.comes[start + i].push(&new[j]);
                j += 1;
            } else {
                self.keeps[start + i] = false;
                i += 1;
            }
        }
    }
}
