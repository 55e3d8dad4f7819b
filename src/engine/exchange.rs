//! Two names change places (RENAME_EXCHANGE) while files under them are being written.
//!
//! On the plain directory an open file goes with its name: whoever has `a` open writes into what is
//! `b` afterwards. So each side's transactions follow their file, also one prepared for an open that
//! is still on its way: left behind, its close would replace the other file.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::names::Move;
use super::{Durability, Engine, State};
use crate::sys::failpoint;
use crate::types::{Caller, OpResult, Slot, TxnId};

impl Engine {
    pub(super) fn exchange_now(&self, caller: Caller, from: &Slot, to: &Slot) -> OpResult<()> {
        for slot in [from, to] {
            self.bring_out(caller, slot)?;
        }
        self.check_moved(caller, from, to)?;
        self.check_moved(caller, to, from)?;
        let own = self.written_by_caller(caller, [from, to]);
        self.rename_settled(from, to, RenameFlags::EXCHANGE)?;
        for id in own {
            self.publish_moved(caller.tid, id);
        }
        if self.config.durability == Durability::Sync {
            self.drain_all()?;
        }
        Ok(())
    }

    /// A new file that only the caller sees, or that is a claim, gets its first version under the name
    /// that it has: there has to be something to exchange.
    fn bring_out(&self, caller: Caller, slot: &Slot) -> OpResult<()> {
        let hidden = {
            let mut state = self.lock();
            let id = self.own_transaction(&mut state, caller, slot).or_else(|| {
                state
                    .transactions_at(slot)
                    .find(|t| t.is_seen_by_all())
                    .map(|t| t.id)
            });
            let exists = self.current_if_any(&mut state, slot)?.is_some();
            id.filter(|_| !exists)
        };
        match hidden.map(|id| (id, self.unborn_log(id))) {
            Some((id, Some(handle))) => self.birth(id, handle, 0, b"").map(drop),
            Some((id, None)) => self
                .publish_open(caller.tid, id, slot, Move::Rename)
                .map(|_| ()),
            None => Ok(()),
        }
    }

    fn written_by_caller(&self, caller: Caller, slots: [&Slot; 2]) -> Vec<TxnId> {
        let mut state = self.lock();
        let own = slots.map(|slot| self.own_transaction(&mut state, caller, slot));
        let written = own.into_iter().flatten();
        written
            .filter(|id| state.txns.get(id).is_some_and(|t| t.would_commit()))
            .collect()
    }

    /// What the caller has written so far is what others find at once under the new name, as after a
    /// rename of an open file (C11). What can't be committed yet, half a document say, is judged at
    /// the close.
    fn publish_moved(&self, tid: u32, id: TxnId) {
        let slot = self.lock().txns.get(&id).map(|t| t.slot.clone());
        let Some(slot) = slot.filter(|_| self.unborn_log(id).is_none()) else {
            return;
        };
        match self.publish_open(tid, id, &slot, Move::Stay) {
            Ok(_) | Err(Errno::NODATA) => {}
            Err(e) => log::info!(
                "{}: exchanged, but what is written is not committed yet: {e}",
                self.show(&self.lock(), &slot)
            ),
        }
    }

    /// The transactions of two names have changed places with what these mean.
    pub(super) fn exchange_writers(&self, state: &mut State, from: &Slot, to: &Slot) {
        if failpoint::mutant("C11-exchange") {
            return;
        }
        let at = |state: &State, slot| state.open_names.get(slot).cloned().unwrap_or_default();
        let (here, there) = (at(state, from), at(state, to));
        for (ids, slot) in [(here, to), (there, from)] {
            for id in ids {
                if state.txns.get(&id).is_some_and(|t| !t.discarded) {
                    self.retarget(state, id, slot);
                    self.journal_moved(state, id);
                }
            }
        }
    }
}
