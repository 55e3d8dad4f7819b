//! Lock files that were left behind: what becomes of a claim when the process that has created it has ended.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::lock_files::{names_a_living_process, still_claims};
use crate::engine::deciding::names;
use crate::engine::descriptions::letting_go;
use crate::engine::meaning::claims::is_open;
use crate::file::Claimant;
use crate::rules::Stale;
use crate::types::{Dentry, NodeId};

/// Forgets claims that were given up, and deals with those whose holders have ended.
pub fn look_after_claims(engine: &Arc<Engine>) {
    let mut left = ended_claims(engine);
    left.retain(|(_, _, file)| !names_a_living_process(file.as_deref()));
    for (dentry, node) in report_stale(engine, left) {
        let saved = letting_go::let_go_of_name(engine, &dentry);
        match saved.is_empty() {
            true => remove(engine, dentry, node),
            false => engine.on_worker(move |engine| {
                letting_go::end_lock_file(engine, &saved);
                remove(engine, dentry, node);
            }),
        }
    }
}

fn remove(engine: &Arc<Engine>, dentry: Dentry, node: NodeId) {
    let then = engine.clone();
    let path = dentry.clone();
    names::unlink_file(engine, dentry, node, move |result| match result {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => {
            let state = then.lock();
            log::error!("{}: can't be removed: {e}", then.show(&state, &path));
        }
    });
}

/// Claims that nobody has open and whose creators have ended, with their files.
pub fn ended_claims(engine: &Engine) -> Vec<(Dentry, NodeId, Option<Arc<File>>)> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let claims = state.names.claims();
    let claims: Vec<(Dentry, NodeId, Instant)> = claims
        .map(|(dentry, c)| (dentry.clone(), c.node, c.since))
        .collect();
    for (dentry, node, since) in claims {
        if !still_claims(engine, state, &dentry, node) {
            let (path, held) = (engine.show(state, &dentry), since.elapsed());
            state
                .tally
                .lock_stats
                .note(&path, |t| t.holds.observe(held));
            state.names.end_claim(&dentry);
        }
    }
    let ended = |(dentry, c): (&Dentry, &Claimant)| {
        // Whoever inherited its descriptor may be the holder now.
        let left = !c.reported && c.has_ended() && !is_open(state, dentry, c.node);
        left.then(|| (dentry.clone(), c.node, state.nodes.fd(c.node).ok()))
    };
    state.names.claims().filter_map(ended).collect()
}

/// Tells of claims that were left behind. Gives those that the rules want removed.
pub fn report_stale(
    engine: &Engine,
    left: Vec<(Dentry, NodeId, Option<Arc<File>>)>,
) -> Vec<(Dentry, NodeId)> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let mut removed = Vec::new();
    for (dentry, node, _) in left {
        let path = engine.show(state, &dentry);
        let Some(c) = state.names.claimant_mut(&dentry).filter(|c| c.node == node) else {
            continue;
        };
        c.reported = true;
        let who = format!("created with O_EXCL by {} ({})", c.pid, c.command);
        match c.stale {
            Stale::Warn => log::warn!("{path}: {who}, which has ended"),
            Stale::Remove => {
                log::warn!("{path}: {who}, which has ended: removed by rule");
                removed.push((dentry, node));
            }
        }
        state.tally.counters.stale_claims += 1;
    }
    removed
}
