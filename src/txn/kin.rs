//! What is known of the processes that may hold a descriptor of a transaction besides those that take part in it.
//!
//! A descriptor is inherited at a fork from somebody who has it. Whoever has it and gives it up, by a close, an execve or
//! its end, sends a FLUSH; and who sends one has its children still. So the children of each process that sends a FLUSH,
//! noted then, are all that can have inherited it and take no part themselves. Who was once found to have none
//! doesn't get one any more: nobody inherits twice. (Over a socket it may; see `engine::meaning::probe`.)

use std::collections::{HashMap, HashSet};

/// How a process stands, as of when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no descriptor.
    Free,
    /// It has none where one is likely to be: it has too many to look at all.
    LikelyFree,
}

/// The processes that may hold a descriptor of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Kin {
    /// Children of those that had one, started since the open.
    surviving_holders: HashSet<u32>,
    /// Those that were looked at, participants as well.
    known: HashMap<u32, Standing>,
    /// Somebody has given up descriptors while its children were not noted.
    incomplete: bool,
    /// Changes whenever somebody has got one in another way than by inheriting it.
    joined: u64,
}

impl Kin {
    /// A process has opened or written it: whatever was known of that one isn't true.
    pub fn joins(&mut self, pid: u32) {
        self.known.remove(&pid);
        self.joined += 1;
    }

    /// Ids have been handed out anew.
    pub fn forget_standings(&mut self) {
        self.known.clear();
    }

    /// Notes that a FLUSH was answered without noting its sender's children.
    pub fn miss(&mut self) {
        self.incomplete = true;
    }

    /// Whether all that may have inherited a descriptor are known.
    pub fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Adds children of a process that has sent a FLUSH.
    pub fn inherit(&mut self, children: impl IntoIterator<Item = u32>) {
        self.surviving_holders.extend(children);
    }

    /// Those that may have inherited a descriptor.
    pub fn surviving_holders(&self) -> impl Iterator<Item = u32> {
        self.surviving_holders.iter().copied()
    }

    /// Notes what a look has come to.
    pub fn note(&mut self, pid: u32, standing: Standing) {
        self.known.insert(pid, standing);
    }

    /// What is known of a process.
    pub fn standing(&self, pid: u32) -> Option<Standing> {
        self.known.get(&pid).copied()
    }

    /// Takes over what was found out with a copy of this.
    pub fn learn(&mut self, found: Kin) {
        self.incomplete |= found.incomplete;
        self.surviving_holders.extend(found.surviving_holders);
        if self.joined == found.joined {
            self.known.extend(found.known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_joined_since_is_not_taken_for_free() {
        let mut kin = Kin::default();
        let mut found = kin.clone();
        found.note(7, Standing::Free);
        found.inherit([8]);
        kin.joins(7);
        kin.learn(found.clone());
        assert_eq!(kin.standing(7), None);
        assert_eq!(kin.surviving_holders().collect::<Vec<_>>(), [8]);
        let mut again = kin.clone();
        again.note(7, Standing::LikelyFree);
        kin.learn(again);
        assert_eq!(kin.standing(7), Some(Standing::LikelyFree));
        assert!(kin.is_complete());
        found.miss();
        kin.learn(found);
        assert!(!kin.is_complete());
    }
}
