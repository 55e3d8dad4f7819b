//! Who is woken by what. A wait is for certain events, and only these end it; whoever makes one of them happen says so under
//! the state's lock, so that nobody looks, and falls asleep, in between.
//!
//! What comes from outside (signals, the end of a process, time) is no event: who waits for such a thing, too, looks now and
//! then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Condvar;

use crate::locks::FileId;
use crate::sys::failpoint;
use crate::types::{Dentry, NodeId, TxnId};

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// Something has become of a transaction of the name: it has ended, was published, written once more, unlinked or moved; or
    /// the line for the writer slot moves on.
    Name(Dentry),
    /// A transaction has ended.
    Transaction(TxnId),
    /// Any has.
    AnyTransaction,
    /// One has that creates a file in the directory, or it creates it elsewhere now.
    Creation(NodeId),
    /// A turn of the name is over, or will be earlier than was thought.
    Turn(Dentry),
    /// Locks of the file were given back or granted, or it is part of another file now.
    Locks(FileId),
    /// A round of the checkpoint has ended, or there will be none any more.
    Round,
    /// No durable close is overtaken any more.
    Overtaken,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Wakeups {
    sleepers: HashMap<Awaited, Vec<Arc<Condvar>>>,
}

impl Wakeups {
    /// One sleeps until one of these happens.
    pub fn add(&mut self, events: &[Awaited], sleeper: &Arc<Condvar>) {
        for event in events {
            let all = self.sleepers.entry(event.clone()).or_default();
            all.push(sleeper.clone());
        }
    }

    /// One sleeps no longer.
    pub fn remove(&mut self, events: &[Awaited], sleeper: &Arc<Condvar>) {
        for event in events {
            if let Some(all) = self.sleepers.get_mut(event) {
                all.retain(|one| !Arc::ptr_eq(one, sleeper));
                if all.is_empty() {
                    self.sleepers.remove(event);
                }
            }
        }
    }

    /// Whether nobody sleeps.
    pub fn is_empty(&self) -> bool {
        self.sleepers.is_empty()
    }

    /// Wakes who sleeps until this. Gives how many.
    pub fn wake(&mut self, event: &Awaited) -> usize {
        if failpoint::mutant("C9-wake") {
            return 0;
        }
        let sleepers = self.sleepers.remove(event).unwrap_or_default();
        for sleeper in &sleepers {
            sleeper.notify_one();
        }
        sleepers.len()
    }
}

/// How long a wait for what is always told of goes without a look: none should be needed.
pub fn look() -> Duration {
    Duration::from_millis(failpoint::number("COMMITFS_LOOK_MS", 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Awaited {
        Awaited::Name(Dentry {
            dir: NodeId(1),
            name: name.into(),
        })
    }

    #[test]
    fn an_event_wakes_those_who_wait_for_it() {
        let mut wakeups = Wakeups::default();
        let (one, other) = (Arc::new(Condvar::new()), Arc::new(Condvar::new()));
        wakeups.add(&[name("a"), Awaited::Round], &one);
        wakeups.add(&[name("a")], &other);
        assert_eq!(wakeups.wake(&name("b")), 0);
        assert_eq!(wakeups.wake(&Awaited::Locks(NodeId(1))), 0);
        wakeups.remove(&[name("a")], &other);
        assert_eq!(wakeups.wake(&name("a")), 1);
        assert_eq!(wakeups.wake(&name("a")), 0);
        wakeups.remove(&[name("a"), Awaited::Round], &one);
        assert!(wakeups.sleepers.is_empty());
    }
}
