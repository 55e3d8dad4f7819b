//! The end of an engine without a word, within a process that goes on: what a kill of the daemon is to a test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Engine;

/// How long what is under way may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Gives an engine up. What is under way is waited for; nothing more is committed or brought into place after that.
///
/// # Panics
/// Something that was begun doesn't end.
pub fn abandon(engine: Arc<Engine>) {
    engine.lock().backlog.checkpoint.abandoned = true;
    engine.checkpoint_wanted.notify_one();
    engine.pool.end();
    let begun = Instant::now();
    while Arc::strong_count(&engine) > 1 {
        assert!(begun.elapsed() < LIMIT, "{engine:?} is still at work");
        std::thread::sleep(Duration::from_micros(20));
    }
}
