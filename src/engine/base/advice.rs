//! Unread errors as status tells them: when, under which id, and the command to run next.

use std::path::Path;

use serde::Serialize;

use crate::engine::Engine;
use crate::store::{Rejected, Unseen};
use crate::sys::clock::LocalTime;
use crate::types::quoted_for_shell;

/// An unread error, and what to do about it.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorReport {
    /// Of the rejected content if there is some, else one of its own; 16 hexadecimal digits.
    pub id: String,
    /// When, in the daemon's time zone, by RFC 3339.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub error: Unseen,
    /// A command for the shell: what to run next.
    pub next: String,
}

/// What is to be told of an error, given what rejected holds now.
pub fn told(engine: &Engine, error: &Unseen, rejected: &[Rejected]) -> ErrorReport {
    let own = || format!("{:016x}", error.time_ns);
    let next = next_command(engine, error, rejected);
    let mut error = error.clone();
    error.remedy = None;
    ErrorReport {
        id: error.rejected.clone().unwrap_or_else(own),
        time: LocalTime::of(error.time_ns).rfc3339(),
        error,
        next,
    }
}

fn next_command(engine: &Engine, error: &Unseen, rejected: &[Rejected]) -> String {
    let mount = quoted_for_shell(&engine.config.mountpoint);
    let is_there = |id: &&String| rejected.iter().any(|r| r.is_listed_as(id));
    let is_round = |id: &String| rejected.iter().any(|r| r.round.as_ref() == Some(id));
    match (&error.remedy, error.rejected.as_ref().filter(is_there)) {
        (Some(remedy), _) => remedy.clone(),
        (None, Some(id)) if error.resumable => {
            format!("commitfs rejected restore {mount} {id}")
        }
        (None, Some(id)) if is_round(id) => format!("commitfs rejected list {mount}"),
        (None, Some(id)) => format!("commitfs rejected show {mount} {id}"),
        (None, None) if error.dropped_bytes.is_some() => {
            format!("commitfs rejected list {mount}")
        }
        (None, None) => format!("commitfs log {mount}"),
    }
}

/// The command that puts a rule for one path in force; `settings` begin with the key that it is
/// about.
pub fn command_to_add(engine: &Engine, path: &str, settings: &[(&str, &str)]) -> String {
    let mount = quoted_for_shell(&engine.config.mountpoint);
    let glob = quoted_for_shell(crate::rules::escaped_glob(path).as_ref());
    let mut command = format!("commitfs rules add {mount} {glob}");
    for (key, value) in settings {
        let word = format!("{key}={value}");
        command += &format!(" {}", quoted_for_shell(word.as_ref()));
    }
    // The first rule that sets a key decides it.
    let rules = &engine.rules.read().rules;
    let is_set = |(key, _): &(&str, &str)| rules.is_decided_by_file(path.as_ref(), key);
    if settings.first().is_some_and(is_set) {
        command += " --first";
    }
    command
}

/// A path below the mount as a word for the shell.
pub fn shell_path(engine: &Engine, relative: &Path) -> String {
    quoted_for_shell(&engine.config.mountpoint.join(relative))
}
