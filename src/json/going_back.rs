//! Whether a text takes back what stands in a later one, because it was made from an earlier one.
//!
//! Two coroutines on one thread load a document, and each saves its change. What the second saves has
//! what the first had changed as it was before. The file system sees one thread that loads and saves
//! in some order; the texts tell.

use super::array::Array;
use super::number::Number;
use super::value::Value;

/// Larger arrays say nothing.
const MOST_COMPARISONS: usize = 1 << 22;

/// What speaks for either text, in places where the two differ.
#[derive(Debug, Default)]
struct Signs {
    for_earlier: usize,
    for_later: usize,
    /// Numbers that are as in the later one: two that both count from 1 to 2.
    alike: usize,
}

/// Whether `mine` was rather made from `earlier` than from `later`, as far as they differ.
pub fn goes_back(earlier: &Value, later: &Value, mine: &Value) -> bool {
    let mut signs = Signs::default();
    signs.look(Some(earlier), Some(later), Some(mine));
    match signs {
        Signs {
            for_earlier: 0,
            for_later: 0,
            alike,
        } => alike > 0 && mine == later,
        signs => signs.for_earlier > signs.for_later,
    }
}

type Maybe<'a> = Option<&'a Value>;

impl Signs {
    fn look(&mut self, earlier: Maybe, later: Maybe, mine: Maybe) {
        if earlier == later {
            return;
        }
        match (earlier, later, mine) {
            (
                Some(Value::Object(earlier)),
                Some(Value::Object(later)),
                Some(Value::Object(mine)),
            ) => {
                for member in later.members() {
                    let key = &member.key;
                    self.look(
                        earlier.get_text(key),
                        Some(&member.value),
                        mine.get_text(key),
                    );
                }
                let gone = earlier
                    .members()
                    .filter(|m| later.get_text(&m.key).is_none());
                for member in gone {
                    self.look(Some(&member.value), None, mine.get_text(&member.key));
                }
            }
            (
                Some(Value::Number(earlier)),
                Some(Value::Number(later)),
                Some(Value::Number(mine)),
            ) => {
                self.numbers(earlier, later, mine);
            }
            (Some(Value::Array(earlier)), Some(Value::Array(later)), Some(Value::Array(mine))) => {
                self.arrays(earlier, later, mine);
            }
            (earlier, later, mine) => {
                self.for_later += usize::from(mine == later);
                self.for_earlier += usize::from(mine == earlier);
            }
        }
    }

    /// What counts on from the later one lies beyond it, unless two have counted alike.
    fn numbers(&mut self, earlier: &Number, later: &Number, mine: &Number) {
        let is_down = |from: &Number, to: &Number| {
            let difference = to.minus(from).ok();
            difference.map(|d| d.text().starts_with('-'))
        };
        if mine == later {
            self.alike += 1;
        } else if mine != earlier && is_down(later, mine) == is_down(earlier, later) {
            self.for_later += 1;
        } else {
            self.for_earlier += 1;
        }
    }

    /// Items that have come since, or gone.
    fn arrays(&mut self, earlier: &Array, later: &Array, mine: &Array) {
        let (earlier, later) = between_ends(&earlier.items, &later.items);
        if (earlier.len() + later.len()).saturating_mul(mine.items.len()) > MOST_COMPARISONS {
            return;
        }
        let mut come = later.iter().filter(|i| !earlier.contains(i)).peekable();
        let mut gone = earlier.iter().filter(|i| !later.contains(i));
        let is_later = match come.peek() {
            Some(_) => come.any(|item| mine.items.contains(item)),
            None => !gone.any(|item| mine.items.contains(item)),
        };
        match is_later {
            true => self.for_later += 1,
            false => self.for_earlier += 1,
        }
    }
}

/// What is left of two sequences without what both begin and end with.
fn between_ends<'a>(one: &'a [Value], two: &'a [Value]) -> (&'a [Value], &'a [Value]) {
    let start = one.iter().zip(two).take_while(|(a, b)| a == b).count();
    let (one, two) = (&one[start..], &two[start..]);
    let pairs = one.iter().rev().zip(two.iter().rev());
    let end = pairs.take_while(|(a, b)| a == b).count();
    (&one[..one.len() - end], &two[..two.len() - end])
}
