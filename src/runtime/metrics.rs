//! How long closes take to commit and commits to reach the medium: for `commitfs status`. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::lock_stats::Histogram;
use crate::types::Seq;

/// Commits that come closer together than this count as one for the lag of the checkpoint.
const APART: Duration = Duration::from_millis(10);
/// Moments that are remembered, at most.
const MOST: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From a close, the last of its file's, to its version.
    pub commits: Histogram,
    /// Descriptions that the kernel serves by itself.
    pub passed: u64,
    /// Of each round that brought commits to the medium, how long the oldest of them had waited.
    pub checkpoints: Histogram,
    /// Commits that are not on the medium, each standing for those up to the next one: the first of them,
    /// and when that was.
    waiting: VecDeque<(Seq, Instant)>,
}

/// What status tells of it.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// See [`Metrics::commits`].
    pub commits: Histogram,
    /// See [`Metrics::checkpoints`].
    pub checkpoints: Histogram,
    /// How long the oldest commit that is not on the medium has been waiting, in seconds.
    pub checkpoint_lag_s: f64,
}

impl Metrics {
    /// A commit has happened.
    pub fn note_commit(&mut self, seq: Seq, now: Instant) {
        let is_close = |last: &(Seq, Instant)| now.duration_since(last.1) < APART;
        let is_told = self.waiting.back().is_some_and(is_close) || self.waiting.len() >= MOST;
        if !is_told || self.waiting.is_empty() {
            self.waiting.push_back((seq, now));
        }
    }

    /// Every commit up to one is on the medium; `last` is the last there is.
    pub fn note_durable(&mut self, durable: Seq, last: Seq, now: Instant) {
        let is_out = |oldest: &(Seq, Instant)| oldest.0 <= durable;
        let Some((_, oldest)) = self.waiting.front().copied().filter(is_out) else {
            return;
        };
        self.checkpoints.observe(now.duration_since(oldest));
        while let Some((first, at)) = self.waiting.front().copied()
            && first <= durable
        {
            let end = self.waiting.get(1).map_or(last, |next| next.0.previous());
            self.waiting.pop_front();
            if end > durable {
                self.waiting.push_front((durable.next(), at));
            }
        }
    }

    /// What status tells.
    pub fn told(&self, now: Instant) -> Latency {
        let oldest = self.waiting.front();
        Latency {
            commits: self.commits.clone(),
            checkpoints: self.checkpoints.clone(),
            checkpoint_lag_s: oldest.map_or(0.0, |(_, at)| now.duration_since(*at).as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_commit_that_is_not_on_the_medium() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut metrics = Metrics::default();
        let lag = |metrics: &Metrics, ms| (metrics.told(at(ms)).checkpoint_lag_s * 1000.0).round();
        assert_eq!(lag(&metrics, 0), 0.0);
        for (seq, ms) in [(1, 0), (2, 5), (3, 9), (4, 100), (5, 101)] {
            metrics.note_commit(Seq(seq), at(ms));
        }
        assert_eq!(lag(&metrics, 200), 200.0);
        // 2 and 3 were counted as if they had come with 1.
        metrics.note_durable(Seq(1), Seq(5), at(200));
        assert_eq!(lag(&metrics, 300), 300.0);
        metrics.note_durable(Seq(3), Seq(5), at(300));
        assert_eq!(lag(&metrics, 300), 200.0);
        metrics.note_durable(Seq(5), Seq(5), at(400));
        assert_eq!(lag(&metrics, 500), 0.0);
        metrics.note_durable(Seq(5), Seq(5), at(500));
        let checkpoints = metrics.told(at(500)).checkpoints;
        assert_eq!((checkpoints.count, checkpoints.max_s), (3, 0.3));
    }
}
