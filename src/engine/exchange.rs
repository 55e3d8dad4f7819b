//! Two names change places (RENAME_EXCHANGE) while files under them are being written.
//!
//! On the plain directory an open file goes with its name: whoever has `a` open writes into what is
//! `b` afterwards. So each side's transactions follow their file, also one prepared for an open that
//! is still on its way: left behind, its close would replace the other file.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::names::{JUDGEMENTS, open_at};
use super::publishing::Publication;
use super::rest::publish_in_place;
use super::{Durability, Engine, State};
use crate::guard::{Guard, Replaces};
use crate::rules::{Creation, Mode};
use crate::sys::failpoint;
use crate::txn::Abort;
use crate::types::{Caller, Dentry, OpResult, TxnId};

/// What an exchange takes from a name.
#[derive(Clone, Copy, Debug)]
enum ExchangeSide {
    /// A new file that only the caller sees, or that is a claim.
    Hidden(TxnId),
    /// A version, of which the caller has written another.
    Written(TxnId),
    /// What is committed.
    Version,
}

impl ExchangeSide {
    fn has_ended(self, state: &State) -> bool {
        match self {
            ExchangeSide::Hidden(id) | ExchangeSide::Written(id) => state.has_ended(id),
            ExchangeSide::Version => false,
        }
    }
}

/// A name, the one that it exchanges with, and what it gives.
type Side<'a> = (&'a Dentry, &'a Dentry, ExchangeSide);

impl Engine {
    pub(super) fn exchange_now(&self, caller: Caller, from: &Dentry, to: &Dentry) -> OpResult<()> {
        let mut tries = 0;
        let sides = loop {
            tries += 1;
            let sides = [
                (from, to, self.side(caller, from)?),
                (to, from, self.side(caller, to)?),
            ];
            match self.exchange_sides(caller, sides) {
                Ok(true) => break sides,
                Ok(false) if tries < JUDGEMENTS => {}
                Ok(false) => return Err(Errno::BUSY),
                Err(Errno::NOENT)
                    if sides.iter().any(|(.., side)| side.has_ended(&self.lock())) => {}
                Err(e) => return Err(e),
            }
        };
        for (.., side) in sides {
            if let ExchangeSide::Written(id) = side {
                self.publish_written(caller, id);
            }
        }
        if self.config.durability == Durability::Sync {
            self.checkpoint_all()?;
        }
        Ok(())
    }

    /// Gives whether they have changed places: not if somebody else has put something under one of the
    /// names that has not been judged.
    fn exchange_sides(&self, caller: Caller, sides: [Side<'_>; 2]) -> OpResult<bool> {
        let mut judged = [None; 2];
        // What may be refused comes before anybody sees anything of it.
        for ((dentry, other, side), judged) in sides.iter().zip(&mut judged) {
            match *side {
                ExchangeSide::Hidden(id) => {
                    // It gets its first version under the name that it has.
                    self.check_written(caller, id, dentry)?;
                    self.check_written(caller, id, other)?;
                }
                ExchangeSide::Written(id) => self.check_written(caller, id, other)?,
                ExchangeSide::Version => *judged = self.check_moved(caller, dentry, other)?,
            }
        }
        for ((dentry, other, side), judged) in sides.iter().zip(&mut judged) {
            match *side {
                ExchangeSide::Hidden(id) => self.bring_out(caller, id, dentry)?,
                ExchangeSide::Written(id)
                    if matches!(self.judge_written(id, dentry), Ok(Ok(()))) =>
                {
                    self.publish_written(caller, id);
                }
                ExchangeSide::Written(_) => {}
                ExchangeSide::Version => continue,
            }
            *judged = self.check_moved(caller, dentry, other)?;
        }
        let [(from, to, _), _] = sides;
        let is_judged = |one, other| {
            let mut both = judged.into_iter().zip([Some(one), other]);
            both.all(|(judged, found)| judged.is_none() || judged == found)
        };
        let exchanged = self.checkpoint_until(|engine, barrier| {
            engine.rename_step(from, to, RenameFlags::EXCHANGE, is_judged, barrier)
        })?;
        Ok(exchanged.is_some())
    }

    fn side(&self, caller: Caller, dentry: &Dentry) -> OpResult<ExchangeSide> {
        let mut state = self.lock();
        let own = self.own_transaction(&mut state, caller, dentry);
        if self.current_if_any(&mut state, dentry)?.is_some() {
            let written = own.filter(|id| state.txns.get(id).is_some_and(|t| t.would_commit()));
            return Ok(written.map_or(ExchangeSide::Version, ExchangeSide::Written));
        }
        let claim = || state.txns.seen_by_all_at(dentry).next();
        let hidden = own.or_else(|| claim().map(|t| t.id));
        Ok(hidden.map_or(ExchangeSide::Version, ExchangeSide::Hidden))
    }

    /// Whether what a transaction holds so far may get a name.
    fn check_written(&self, caller: Caller, id: TxnId, name: &Dentry) -> OpResult<()> {
        if failpoint::mutant("C11-refused") {
            return Ok(());
        }
        let judged = self.judge_written(id, name)?;
        judged.map_err(|abort| self.refuse(name, abort, caller.tid))
    }

    /// What the guard of a name says of it.
    fn judge_written(&self, id: TxnId, name: &Dentry) -> OpResult<Result<(), Abort>> {
        let (staging, policy, stays) = {
            let state = self.lock();
            let txn = state.txns.get(&id).ok_or(Errno::NOENT)?;
            let policy = self.policy(&state, name, Creation::default());
            (txn.staging.clone(), policy, txn.dentry() == name)
        };
        let judges = policy.mode == Mode::Atomic && policy.guard != Guard::None;
        if judges {
            self.copy_base(&staging).ok();
        }
        let mut content = staging.lock();
        match &content.failed {
            // It has no first version either.
            Some(failure) if stays => return Err(failure.errno),
            // What is committed goes, as after the close.
            Some(_) => return Ok(Ok(())),
            None => {}
        }
        if !judges {
            return Ok(Ok(()));
        }
        content.copy_base()?;
        let how = match stays {
            true => self.replaces(id, &content),
            false => Replaces::Whole,
        };
        Ok(self.check_guard(&mut content, name, &policy, how))
    }

    /// A new file gets its first version under the name that it has: there has to be something to
    /// exchange.
    fn bring_out(&self, caller: Caller, id: TxnId, dentry: &Dentry) -> OpResult<()> {
        match self.unpublished_stream(id) {
            Some(handle) => self.publish_first(id, handle, 0, b"").map(drop),
            None => self
                .publish_open(
                    caller.tid,
                    id,
                    dentry,
                    Publication::Rename(RenameFlags::empty()),
                )
                .map(drop),
        }
    }

    /// What the caller has written so far is what others find at once under the new name, as after a
    /// rename of an open file (C11). What can't be committed yet, half a document say, is judged at
    /// the close.
    fn publish_written(&self, caller: Caller, id: TxnId) {
        let dentry = self.lock().txns.get(&id).map(|t| t.dentry().clone());
        let Some(dentry) = dentry.filter(|_| self.unpublished_stream(id).is_none()) else {
            return;
        };
        match publish_in_place(self, caller.tid, id) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => log::info!(
                "{}: in an exchange, what is written is not committed yet: {e}",
                self.show(&self.lock(), &dentry)
            ),
        }
    }

    /// The transactions of two names have changed places with what these mean.
    pub(super) fn exchange_writers(&self, state: &mut State, from: &Dentry, to: &Dentry) {
        if failpoint::mutant("C11-exchange") {
            return;
        }
        let (here, there) = (open_at(state, from), open_at(state, to));
        for (ids, dentry) in [(here, to), (there, from)] {
            for id in ids {
                self.retarget(state, id, dentry);
                self.journal_moved(state, id);
            }
        }
    }
}
