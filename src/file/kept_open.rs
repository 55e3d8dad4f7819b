//! Files that their writers keep open and rewrite, for status.

use std::collections::HashMap;

use serde::Serialize;

/// A file that its writer keeps open and rewrites.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Held {
    /// Path relative to the root.
    pub path: String,
    /// How often it has been whole and at rest.
    pub count: u64,
    /// Who did it last.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// When, in nanoseconds since the epoch.
    pub time_ns: i64,
    /// What helps.
    pub help: String,
    /// The rule for that.
    pub rule: String,
    /// The command that puts it in force.
    pub command_to_add: String,
}

/// All of them that no rule publishes, by path.
#[derive(Debug, Default)]
pub struct KeptOpen {
    /// By path.
    pub paths: HashMap<String, Held>,
}
