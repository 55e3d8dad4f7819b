//! What `commitfs` commands have the daemon do, through the control file.

use std::path::Path;

use crate::engine::Engine;
use crate::store::parse_id;
use crate::types::TxnId;

/// Drops rejected contents, as somebody has asked: all, or none if one isn't there.
pub fn drop_rejected(engine: &Engine, ids: &[String]) -> Result<(), String> {
    let kept = engine.store.list_rejected().map_err(|e| e.to_string())?;
    let there = |id: &String| {
        let number = parse_id(id.as_ref()).filter(|id| kept.iter().any(|r| r.id == *id));
        number.ok_or_else(|| format!("{id}: no such rejected content"))
    };
    let ids: Vec<TxnId> = ids.iter().map(there).collect::<Result<_, _>>()?;
    for id in ids {
        engine.store.drop_rejected(id).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// A process restores rejected content by writing it to a path.
pub fn note_restoring(engine: &Engine, path: &Path, pid: u32) {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let of: Vec<TxnId> = state
        .txns
        .values()
        // Of a round many are that already.
        .filter(|t| t.participants.opener() == pid && !t.purpose.is_restore())
        .filter(|t| engine.path_of(state, t.dentry()) == path)
        .map(|t| t.id)
        .collect();
    for id in of {
        if let Some(txn) = state.txns.get_mut(&id) {
            txn.purpose.restore();
        }
    }
}
