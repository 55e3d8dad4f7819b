//! What a mount tells of rounds of groups (C23).

use std::time::Duration;

use serde_json::Value;

use super::{Mount, eventually};

/// What status says of groups.
pub fn groups(m: &Mount) -> Value {
    m.status()["groups"].clone()
}

/// Waits until so many rounds have been decided so.
#[track_caller]
pub fn await_count(m: &Mount, what: &str, count: u64) {
    let holds = || groups(m)[what] == count;
    eventually(Duration::from_secs(5), &format!("{count} {what}"), holds);
}

/// What rejected lists.
pub fn entries(m: &Mount) -> Vec<Value> {
    let listed = m.command(&["rejected", "list", "--json"]).ok();
    serde_json::from_str(&listed.out).unwrap()
}
