//! Rules that change while the mount lives. What is open keeps the rule that it was opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use serde::Serialize;

use crate::engine::base::lines;
use crate::engine::meaning::pins;
use crate::engine::{Engine, State};
use crate::rules::{Creation, Mode, Rules};
use crate::sys::failpoint;
use crate::types::Dentry;

/// Rules in force.
#[derive(Debug)]
pub struct InForce {
    pub rules: Arc<Rules>,
    /// Since when, if it wasn't from the beginning.
    since: Option<Instant>,
}

impl InForce {
    pub fn of(rules: Rules) -> InForce {
        InForce {
            rules: Arc::new(rules),
            since: None,
        }
    }
}

/// The rules in force, as status tells of them.
#[derive(Clone, Debug, Serialize)]
pub struct RulesTold {
    /// The file named with `--rules` at the mount.
    pub named: Option<PathBuf>,
    /// The file that they come from; empty if all are built in.
    pub file: String,
    /// How many come from it.
    pub count: usize,
    /// Checksum of the text that is in force.
    pub crc32c: u32,
}

pub fn rules_told(engine: &Engine) -> RulesTold {
    let rules = engine.rules.read().rules.clone();
    RulesTold {
        named: engine.config.rules_file.clone(),
        file: rules.source().to_owned(),
        count: rules.from_file(),
        crc32c: rules.checksum(),
    }
}

/// Puts the rules of a text in force, perhaps making it the rules file first. Where anything is
/// wrong with it, those in force stay, and so does the file.
pub fn take_rules(
    engine: &Engine,
    text: &str,
    source: &str,
    instead_of: Option<&str>,
) -> Result<(), String> {
    let _turn = engine.turns.rules.lock();
    let taken = Rules::parse(text, source)
        .map_err(|e| e.to_string())
        .and_then(|rules| {
            if let Some(before) = instead_of {
                keep_rules(engine, before, text)?;
            }
            Ok(rules)
        });
    match taken {
        Ok(rules) => {
            log::info!("{source}: in force; rules: {}", rules.from_file());
            put_in_force(engine, rules);
            Ok(())
        }
        Err(why) => {
            log::warn!("rules that were in force stay: {why}");
            Err(why)
        }
    }
}

fn keep_rules(engine: &Engine, before: &str, text: &str) -> Result<(), String> {
    let now = match engine.store.rules_text() {
        Err(Errno::NOENT) => Ok(Vec::new()),
        other => other,
    };
    let now = now.map_err(|e| format!("the rules file can't be read: {e}"))?;
    if now != before.as_bytes() {
        return Err("somebody else has changed the rules file just now; try again".into());
    }
    let kept = engine.store.keep_rules(text);
    kept.map_err(|e| format!("the rules file can't be written: {e}"))
}

fn put_in_force(engine: &Engine, rules: Rules) {
    let rules = Arc::new(rules);
    let mut state = engine.lock();
    let before = engine.rules.read().rules.clone();
    // Who reads and saves is known of names that a rule for conflicts is about. What was read while
    // it was not noted would be taken for a base that is older than it.
    let mut ledger = std::mem::take(&mut state.conflicts.ledger);
    if !failpoint::mutant("C17-reload") {
        let is_watched = |rules: &Rules, dentry: &Dentry| {
            let path = engine.path_of(&state, dentry);
            lines::watches(&rules.decide(&path, Creation::default()))
        };
        ledger.keep_names(|dentry| is_watched(&before, dentry) && is_watched(&rules, dentry));
    }
    state.conflicts.ledger = ledger;
    *engine.rules.write() = InForce {
        rules,
        since: Some(Instant::now()),
    };
    pins::take_rules(engine, &mut state);
}

/// Whether what others began under a former rule is still going to replace the file: who wrote to
/// it in place now would lose that.
pub fn is_begun_atomic(engine: &Engine, state: &State, dentry: &Dentry) -> bool {
    let Some(since) = engine.rules.read().since else {
        return false;
    };
    if failpoint::mutant("C14-reload") {
        return false;
    }
    let adds = !state.names.appenders(dentry).is_empty();
    let stages = |t: &crate::txn::Transaction| t.policy.mode == Mode::Atomic && t.started < since;
    adds || state.txns.at(dentry).any(stages)
}
