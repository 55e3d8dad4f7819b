//! Which descriptions add to which file, by its name, and what becomes of that when names change.

use std::sync::Arc;

use super::super::State;
use super::{AppendPlace, Appender, Unnamed};
use crate::types::{Dentry, NodeId};

impl State {
    pub(super) fn enlist(&mut self, dentry: &Dentry, appender: &Arc<Appender>) {
        let list = self.appenders.entry(dentry.clone()).or_default();
        list.push(appender.clone());
    }

    /// A description adds no more lines.
    pub(in crate::engine) fn delist(&mut self, appender: &Appender) {
        let AppendPlace::At(dentry) = &*appender.place.lock() else {
            return;
        };
        if let Some(list) = self.appenders.get_mut(dentry) {
            list.retain(|a| !std::ptr::eq(&**a, appender));
            if list.is_empty() {
                self.appenders.remove(dentry);
            }
        }
    }

    /// What a name means to those who add to it, if there are any: for [`State::unname`].
    pub(in crate::engine) fn added_to(
        &self,
        dentry: &Dentry,
        node: Option<NodeId>,
    ) -> Option<Unnamed> {
        let node = self.nodes.get(node?)?;
        if !self.appenders.contains_key(dentry) {
            return None;
        }
        Some(Unnamed {
            fd: self.nodes.fd(node.id).ok()?,
            ends: node.ends(),
            gone: Arc::default(),
        })
    }

    /// A file has lost its name to another, or for good: who adds to it goes on with it.
    pub(in crate::engine) fn unname(&mut self, dentry: &Dentry, file: Option<Unnamed>) {
        let Some(file) = file else { return };
        for appender in self.appenders.remove(dentry).into_iter().flatten() {
            *appender.place.lock() = AppendPlace::Nameless(file.clone());
        }
    }

    /// A file has another name now, and who adds to it goes on there.
    pub(in crate::engine) fn rename_appenders(&mut self, from: &Dentry, to: &Dentry) {
        let Some(list) = self.appenders.remove(from) else {
            return;
        };
        for appender in &list {
            *appender.place.lock() = AppendPlace::At(to.clone());
        }
        self.appenders.entry(to.clone()).or_default().extend(list);
    }

    /// Two files have changed names.
    pub(in crate::engine) fn exchange_appenders(&mut self, one: &Dentry, other: &Dentry) {
        let aside = self.appenders.remove(other);
        self.rename_appenders(one, other);
        for appender in aside.into_iter().flatten() {
            *appender.place.lock() = AppendPlace::At(one.clone());
            self.enlist(one, &appender);
        }
    }
}
