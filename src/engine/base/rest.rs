//! Writers that keep their file open and write it anew again and again: a status file that is open for
//! as long as its program runs. On the plain directory others see each text; here nothing would be
//! committed before the close.
//!
//! By rule (`publish = "whole"`) what is staged is published whenever it is a whole document under its
//! guard and nobody has written for [`AT_REST`]: by the watch, which looks four times a second, as
//! unlocking after writing publishes (C12). What is written from then on goes into a fresh staging file.
//! Without the rule, status names such files and the rule.

use std::time::Duration;

use crate::engine::base::advice;
use crate::engine::{Engine, State};
use crate::file::Held;
use crate::guard::Guard;
use crate::rules::{Creation, Mode, quoted};
use crate::sys::failpoint;
use crate::txn::Transaction;
use crate::types::{Seq, TxnId};

/// So long nobody has written what is at rest.
pub const AT_REST: Duration = Duration::from_millis(500);
/// So long a file is kept open as it is before it is taken to be kept open for good: editors take a
/// moment between their last write and their close.
pub const FOR_GOOD: Duration = Duration::from_secs(2);
/// Paths that are remembered, at most, and how many of them status shows.
pub const PATHS: usize = 200;
const SHOWN: usize = 20;

/// Whether what is written so far may become a version while the file is open. What a guard has refused
/// at a close is judged anew, and its error told under the name.
pub fn may_commit_so_far(txn: &Transaction) -> bool {
    txn.round().is_none()
        && !txn.is_unlinked()
        && txn.preparation.may_be_judged_anew()
        && !txn.has_lost_a_writer()
}

/// Those that no rule publishes by now, with the rule that would.
pub fn kept_open(engine: &Engine, state: &State) -> Vec<Held> {
    let would_help = |held: &&Held| {
        let rules = &engine.rules.read().rules;
        let policy = rules.decide(held.path.as_ref(), Creation::default());
        let is_guarded = policy.guard != Guard::None && policy.mode == Mode::Atomic;
        is_guarded && !policy.publishes_at_rest()
    };
    let mut all: Vec<Held> = state.kept_open.paths.values().cloned().collect();
    all.retain(|held| would_help(&held));
    all.sort_by(|a, b| (b.count, &a.path).cmp(&(a.count, &b.path)));
    all.truncate(SHOWN);
    for held in &mut all {
        held.help = "it is kept open, and nobody else sees what is written before it is closed; a rule that shows each whole \
                         text half a second after it was written, also of what is open"
                .to_owned();
        held.rule = rule_for(&held.path);
        held.command_to_add = advice::command_to_add(engine, &held.path, &[("publish", "whole")]);
    }
    all
}

impl State {
    /// A close that has nothing to commit. Gives the commit that it has to see on the medium, as it
    /// acknowledges what was published before; 0 if there is none.
    pub(in crate::engine) fn close_without_commit(&mut self, id: TxnId) -> Seq {
        let Some(txn) = self.txns.get_mut(&id) else {
            return Seq::default();
        };
        // Whoever has inherited it may write yet.
        txn.participants.miss();
        match failpoint::mutant("C19-owed") {
            true => Seq::default(),
            false => txn.staging.owed(),
        }
    }
}

/// `[[rule]]` for one path.
fn rule_for(path: &str) -> String {
    let glob = crate::rules::escaped_glob(path);
    format!("[[rule]]\nglob = {}\npublish = \"whole\"\n", quoted(&glob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;

    #[test]
    fn a_proposed_rule_is_one_and_matches_its_path() {
        for path in ["s.json", "a/b.json", "a [1]*{x}?.json", "q\"\\.npy"] {
            let rules = Rules::parse(&rule_for(path), "test").unwrap();
            let policy = rules.decide(path.as_ref(), Creation::default());
            assert!(policy.publishes_at_rest(), "{path}");
        }
    }
}
