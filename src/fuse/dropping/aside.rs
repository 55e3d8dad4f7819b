//! Names that the kernel has dropped, or will drop, by somebody who still waits for their directory's lock. Nobody waits for that any more.

use std::sync::atomic::Ordering;

use super::{DropQueue, NameDropper, QueuedName};
use crate::types::Dentry;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct AsideNames {
    names: Vec<AsideName>,
    /// As many there were.
    count: u64,
}

#[derive(Debug)]
struct AsideName {
    id: AsideId,
    /// The name helper's process; 0: it is a thread that waits.
    helper: u32,
    name: QueuedName,
}

/// Who waits for a name that is aside is found by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AsideId(u64);

impl AsideNames {
    /// The names.
    pub(super) fn names(&self) -> impl Iterator<Item = &QueuedName> {
        self.names.iter().map(|aside| &aside.name)
    }
}

impl NameDropper {
    /// The first name of the queue, which a name helper or a thread (0) has come to, is waited for no longer.
    pub(super) fn set_aside(
        &self,
        queue: &mut DropQueue,
        helper: u32,
        name: QueuedName,
    ) -> AsideId {
        queue.aside.count += 1;
        let id = AsideId(queue.aside.count);
        queue.aside.names.push(AsideName { id, helper, name });
        self.any_aside.store(true, Ordering::SeqCst);
        id
    }

    /// Whether it is a name helper that still waits for a name such as this.
    pub(super) fn is_aside(&self, pid: u32, is: impl Fn(&Dentry) -> bool) -> bool {
        if pid == 0 || !self.any_aside.load(Ordering::SeqCst) {
            return false;
        }
        let queue = self.queue.lock();
        let mut names = queue.aside.names.iter();
        names.any(|aside| aside.helper == pid && is(&aside.name.name.dentry))
    }

    /// Who waited for it has had the lock (`is_over`), or has ended before.
    pub(super) fn settle(&self, id: AsideId, is_over: bool) {
        let mut queue = self.queue.lock();
        let position = queue.aside.names.iter().position(|aside| aside.id == id);
        if let Some(position) = position {
            let aside = queue.aside.names.swap_remove(position);
            if !is_over {
                self.drop_again(&mut queue, aside.name);
            }
        }
        let any = !queue.aside.names.is_empty();
        self.any_aside.store(any, Ordering::SeqCst);
    }

    /// What was kept of names has come to life again, as they were renamed: they are dropped once more.
    pub(super) fn take_back(&self, queue: &mut DropQueue, are: impl Fn(&Dentry) -> bool) {
        let aside = std::mem::take(&mut queue.aside.names);
        let (moved, stay) = aside
            .into_iter()
            .partition::<Vec<_>, _>(|aside| are(&aside.name.name.dentry));
        self.any_aside.store(!stay.is_empty(), Ordering::SeqCst);
        queue.aside.names = stay;
        for aside in moved {
            self.drop_again(queue, aside.name);
        }
    }

    fn drop_again(&self, queue: &mut DropQueue, name: QueuedName) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        queue.names.push_back(name);
        self.wanted.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{DropNames, DroppedName};
    use crate::types::NodeId;

    fn dentry(name: &str) -> Dentry {
        Dentry {
            dir: NodeId(1),
            name: name.into(),
        }
    }

    /// The name `one` is aside, for which this helper waits.
    fn with_one_aside(helper: u32) -> (NameDropper, AsideId) {
        let names = NameDropper::default();
        let (dentry, node) = (dentry("one"), NodeId(7));
        names.drop_name(DroppedName { dentry, node });
        let mut queue = names.queue.lock();
        let first = queue.names.pop_front().expect("a name");
        names.ended.fetch_add(1, Ordering::SeqCst);
        let id = names.set_aside(&mut queue, helper, first);
        drop(queue);
        (names, id)
    }

    fn queued(names: &NameDropper) -> Vec<Dentry> {
        let queue = names.queue.lock();
        let queued = queue.names.iter();
        queued.map(|queued| queued.name.dentry.clone()).collect()
    }

    #[test]
    fn a_rename_brings_a_name_back_that_its_helper_still_waits_for() {
        let (names, id) = with_one_aside(10);
        assert!(names.is_dropping(&dentry("one")));
        assert_eq!(names.move_name(&dentry("two"), &dentry("three")), []);
        assert!(names.is_looked_up(10, NodeId(1), "one".as_ref()));
        assert!(!names.is_looked_up(11, NodeId(1), "one".as_ref()));
        assert_eq!(names.move_name(&dentry("one"), &dentry("two")), [NodeId(7)]);
        assert_eq!(queued(&names), [dentry("two")]);
        assert!(!names.is_looked_up(10, NodeId(1), "one".as_ref()));
        names.settle(id, false);
        assert_eq!(queued(&names), [dentry("two")]);
    }

    #[test]
    fn a_name_is_dropped_again_only_if_who_waited_for_it_has_ended_before() {
        for is_over in [false, true] {
            let (names, id) = with_one_aside(0);
            names.settle(id, is_over);
            assert_eq!(queued(&names).is_empty(), is_over);
            assert_eq!(names.is_dropping(&dentry("one")), !is_over);
        }
    }
}
