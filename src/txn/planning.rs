//! What recovery is going to do is made out, from what the journal says and what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use rustix::io::Errno;

use crate::journal::{self, Edit};
use crate::rules::Rules;
use crate::store::Store;
use crate::sys::failpoint;
use crate::txn::forward::roll_forward;
use crate::txn::gaps::Lasts;
use crate::txn::growth::Growth;
use crate::txn::leftover::Leftover;
use crate::txn::moves::Followed;
use crate::txn::plan::Plan;
use crate::txn::told::{Recorded, SortedRecords, collect};
use crate::txn::whole::verified;
use crate::types::TxnId;

/// Decides what counts. Changes nothing.
pub fn plan(
    store: &Store,
    rules: &Rules,
    told: Option<&journal::Contents>,
    instance: &str,
) -> Result<Plan, Errno> {
    let mut plan = Plan::default();
    let staged: BTreeSet<TxnId> = store.staged_ids()?.into_iter().collect();
    plan.last_id = staged.last().copied().unwrap_or_default();
    let kept = store.list_rejected()?;
    plan.last_id = (kept.iter().map(|r| r.id)).fold(plan.last_id, TxnId::max);
    let mut transactions: BTreeMap<TxnId, Recorded> = BTreeMap::new();
    let mut used: BTreeSet<TxnId> = BTreeSet::new();
    if let Some(contents) = told {
        let trusted = contents.header.instance == instance && !failpoint::mutant("C18-trust");
        plan.last_id = plan.last_id.max(contents.header.next_id.previous());
        plan.last_seq = contents.header.next_seq.previous();
        let Followed {
            mut records,
            replaced,
        } = super::moves::follow(store, &contents.records)?;
        let growth = Growth::find(store, &mut records)?;
        let SortedRecords {
            commits,
            durable,
            barrier,
            places,
            complete,
        } = collect(&records, contents.header.durable_seq, &mut transactions);
        plan.last_id = plan
            .last_id
            .max(transactions.keys().next_back().copied().unwrap_or_default());
        let mut whole = true;
        let mut puts: HashMap<PathBuf, TxnId> = HashMap::new();
        for (seq, edits) in commits {
            plan.last_seq = plan.last_seq.max(seq);
            // In place, so a kill may have come between its record and its last byte: nobody was
            // told that it had happened, and what came after it doesn't build on it.
            let is_append = matches!(edits.as_slice(), [Edit::Append { .. }]);
            if seq > durable
                && is_append
                && (trusted || !whole)
                && !(whole && verified(store, &edits, &transactions, &puts)?)
            {
                plan.take_back(edits);
                continue;
            }
            let beyond = !trusted && barrier.is_some_and(|last| seq > last);
            whole = whole
                && (seq <= durable
                    || trusted
                    || (!beyond && verified(store, &edits, &transactions, &puts)?));
            if !whole {
                plan.take_back(edits);
                continue;
            }
            plan.spare_accepted(&edits);
            for edit in &edits {
                if let Edit::Put { id, .. } | Edit::Patch { id, .. } = edit {
                    used.insert(*id);
                    plan.last_id = plan.last_id.max(*id);
                }
                match edit {
                    Edit::Put { id, path, .. } => drop(puts.insert(path.clone(), *id)),
                    Edit::Drop { path } => drop(puts.remove(path)),
                    Edit::Append { .. } | Edit::Patch { .. } => {}
                }
            }
            plan.accepted.push((seq, edits));
        }
        if !trusted {
            for (path, end) in growth.cuts(store, &plan.accepted)? {
                let cut = plan.cuts.entry(path).or_insert(end);
                *cut = (*cut).min(end);
            }
            plan.keeps_cuts = true;
        }
        let mut last_commit = plan.last_commits(&places);
        for (path, place) in replaced {
            last_commit.note(&path, place, false);
        }
        let standing = |(id, told): (&TxnId, &Recorded)| Some((*id, last_commit.standing(told)?));
        let mut waiting: Vec<(TxnId, Recorded)> =
            transactions.iter().filter_map(standing).collect();
        waiting.sort_by_key(|(_, t)| t.committed_at.unwrap_or(t.told_at));
        let whole = whole && (trusted || barrier.is_none());
        roll_forward(
            (store, rules, &mut plan),
            (&waiting, &complete, &mut used),
            Lasts::new(puts),
            (trusted, whole),
        )?;
    }
    plan.leftovers.extend(rounds_begun(&transactions));
    for id in staged.difference(&used) {
        if let Some(file) = store.open_staging(*id)?
            && store.is_moved_away(&file)?
        {
            plan.superfluous.push(*id);
            continue;
        }
        plan.leftovers.push(left(*id, transactions.get(id)));
    }
    Ok(plan)
}

pub(super) fn left(id: TxnId, told: Option<&Recorded>) -> Leftover {
    Leftover {
        id,
        path: told.and_then(|t| t.path.clone()),
        pid: told.map_or(0, |t| t.pid),
        discarded: told.is_some_and(|t| t.discarded),
        round: told.and_then(|t| t.round),
    }
}

/// Rounds that the journal knows by the directories that were made for them.
pub(super) fn rounds_begun(transactions: &BTreeMap<TxnId, Recorded>) -> Vec<Leftover> {
    let is_round = |(id, told): &(&TxnId, &Recorded)| told.round == Some(**id) && !told.aborted;
    let begun = transactions.iter().filter(is_round);
    begun.map(|(id, told)| left(*id, Some(told))).collect()
}
