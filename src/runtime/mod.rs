//! What a mount runs on, whatever the files are: threads, waits, counts, its configuration. Knows nothing of requests,
//! transactions and nodes.

pub mod config;
pub mod counters;
pub mod lock_stats;
pub mod metrics;
pub mod pool;
pub mod reaper;
pub mod unmount;
pub mod waits;
pub mod wakeups;

pub use config::{Config, Durability, LogTo};
pub use counters::Counters;
pub use lock_stats::{BOUNDS, Histogram, LockStats, NameTotals, Totals};
pub use metrics::{Latency, Metrics};
pub use pool::Pool;
pub use reaper::{DeferredCloses, Reaper};
pub use unmount::Unmount;
pub use waits::{Waiting, Waits};
pub use wakeups::{Awaited, Wakeups};
