//! How long was waited for locks, and how long they were held, by name: for `commitfs status` and `commitfs locks`. Pure.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

/// Upper bounds of the buckets of a [`Histogram`] in seconds.
pub const BOUNDS: [f64; 12] = [
    0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 600.0,
];
/// Names that are kept; beyond that the one that was heard of least lately goes.
const MOST_NAMES: usize = 1000;

/// How often something took how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Those that took no longer than the bound of the same place in [`BOUNDS`]; each counts the ones before it as well.
    pub buckets: [u64; BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// What they took together, in seconds.
    pub sum_s: f64,
    /// What the longest took, in seconds.
    pub max_s: f64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(took <= bound);
        }
        self.count += 1;
        self.sum_s += took;
        self.max_s = self.max_s.max(took);
    }
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Bucket {
            le_s: f64,
            count: u64,
        }
        #[derive(Serialize)]
        struct Rounded {
            count: u64,
            sum_s: f64,
            max_s: f64,
            buckets: Vec<Bucket>,
        }
        let buckets = BOUNDS.into_iter().zip(self.buckets);
        Rounded {
            count: self.count,
            sum_s: self.sum_s,
            max_s: self.max_s,
            buckets: buckets
                .map(|(le_s, count)| Bucket { le_s, count })
                .collect(),
        }
        .serialize(serializer)
    }
}

/// What became of the locks, writer slots and lock files of one name, or of all, since the mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Requests that had to wait, and how long, whatever became of them.
    pub waits: Histogram,
    /// Locks and writer slots that were given back, and how long they had been held.
    pub holds: Histogram,
    /// Waits that ended without the lock: by a signal, a time limit or EDEADLK.
    pub given_up: u64,
    /// Requests that would not wait (LOCK_NB, F_SETLK) and found it taken.
    pub refused: u64,
    /// Opens with O_CREAT and O_EXCL that found the lock file there.
    pub taken: u64,
}

/// [`Totals`] of one name.
#[derive(Clone, Debug, Serialize)]
pub struct NameTotals {
    /// Path relative to the root.
    pub path: String,
    /// What became of its locks.
    #[serde(flatten)]
    pub totals: Totals,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct LockStats {
    /// Of all names, also those that are not kept.
    pub all: Totals,
    names: HashMap<String, (u64, Totals)>,
    clock: u64,
}

impl LockStats {
    /// Counts something, of all names and of this one.
    pub fn note(&mut self, path: &str, count: impl Fn(&mut Totals)) {
        count(&mut self.all);
        self.clock += 1;
        if !self.names.contains_key(path) && self.names.len() >= MOST_NAMES {
            let oldest = self.names.iter().min_by_key(|(_, (when, _))| *when);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.names.remove(&oldest);
            }
        }
        let (when, totals) = self.names.entry(path.to_owned()).or_default();
        *when = self.clock;
        count(totals);
    }

    /// The names that are kept, those that were waited for longest first; `most` of them.
    pub fn names(&self, most: usize) -> Vec<NameTotals> {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by(|(a, (_, one)), (b, (_, other))| {
            let weight = |t: &Totals| (t.waits.sum_s, t.holds.sum_s);
            let order = weight(other).partial_cmp(&weight(one));
            order
                .unwrap_or(std::cmp::Ordering::Equal)
                .then_with(|| a.cmp(b))
        });
        let named = names.into_iter().take(most);
        named
            .map(|(path, (_, totals))| NameTotals {
                path: path.clone(),
                totals: totals.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::default();
        for millis in [0, 20, 20, 700, 1_000_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.buckets, [1, 1, 1, 3, 3, 3, 4, 4, 4, 4, 4, 4]);
        assert_eq!(histogram.count, 5);
        assert!((histogram.sum_s - 1000.74).abs() < 1e-6);
        assert!((histogram.max_s - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn of_many_names_those_heard_of_last_are_kept_and_all_are_counted() {
        let mut stats = LockStats::default();
        for n in 0..MOST_NAMES + 10 {
            stats.note("always", |t| t.refused += 1);
            stats.note(&n.to_string(), |t| t.taken += 1);
        }
        assert_eq!(stats.all.taken, MOST_NAMES as u64 + 10);
        let kept = stats.names(usize::MAX);
        assert_eq!(kept.len(), MOST_NAMES);
        assert!(kept.iter().any(|n| n.path == "always"));
        assert!(!kept.iter().any(|n| n.path == "3"));
    }
}
