//! What a thread has read of a file and not saved since: each save uses up one read.

use crate::types::NodeId;

/// Versions that are remembered: more coroutines of one thread hardly save at the same time.
const MOST: usize = 16;

/// Reads of one version, with no other in between.
#[derive(Clone, Debug)]
pub struct Read<T> {
    /// What was read; `None` for no version.
    pub version: Option<NodeId>,
    /// When it was read last.
    pub at: u64,
    /// How often.
    pub count: u64,
    /// What is known of it.
    pub what: T,
}

/// See the module; oldest first.
#[derive(Clone, Debug)]
pub struct Reads<T>(Vec<Read<T>>);

impl<T> Default for Reads<T> {
    fn default() -> Reads<T> {
        Reads(Vec::new())
    }
}

impl<T> Reads<T> {
    /// A version was read.
    pub fn note(&mut self, version: Option<NodeId>, at: u64, what: T) {
        let same = self.0.last_mut().filter(|r| r.version == version);
        let count = same.map_or(0, |r| r.count) + 1;
        if count > 1 {
            self.0.pop();
        } else if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(Read {
            version,
            at,
            count,
            what,
        });
    }

    /// All, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Read<T>> {
        self.0.iter()
    }

    /// What is known of them, to be changed.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|r| &mut r.what)
    }

    /// A save has begun then: it builds on the newest of those before, or, where it has turned out
    /// to build on an earlier one, on the oldest.
    pub fn use_up(&mut self, begun: u64, is_earlier: bool) {
        let before = |r: &Read<T>| r.at <= begun;
        let used = match is_earlier {
            true => self.0.iter().position(before),
            false => self.0.iter().rposition(before),
        };
        if let Some(used) = used {
            self.0[used].count -= 1;
            if self.0[used].count == 0 {
                self.0.remove(used);
            }
        }
    }

    /// Takes away all that were made before then; gives how many.
    pub fn use_up_all(&mut self, begun: u64) -> u64 {
        let used = self.0.iter().filter(|r| r.at <= begun).map(|r| r.count);
        let used = used.sum();
        self.0.retain(|r| r.at > begun);
        used
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
