//! What rules set and paths get: the keys, their values, their names and their defaults.

use std::{sync::Arc, time::Duration};

use crate::group::{Membership, Readers};
use crate::guard::Guard;

/// An enumeration whose values have names in rules and messages.
pub(super) trait Choice: Copy + PartialEq + 'static {
    const NAMES: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(name, _)| name)
    }
}

/// Defines a public enumeration together with the names of its values.
macro_rules! choice {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $type { $($(#[$doc])* $value,)* }

        impl Choice for $type {
            const NAMES: &'static [(&'static str, $type)] = &[$(($name, $type::$value),)*];
        }
    };
}

choice! {
    /// How writes reach the file.
    Mode {
        /// Staged, and committed as one version at the last close.
        Atomic = "atomic",
        /// Passed through, visible at once (C14).
        Direct = "direct",
    }
}
choice! {
    /// When what is written becomes a version (C2).
    Publish {
        /// At the last close.
        Close = "close",
        /// Also while it is held open, whenever it is a whole document and at rest.
        Whole = "whole",
    }
}
choice! {
    /// What becomes of the transaction of a writer that a signal ended (C4).
    OnSignal {
        /// The old version stays.
        Reject = "reject",
        /// It commits as if closed.
        Commit = "commit",
    }
}
choice! {
    /// What becomes of a save whose base is no longer current (C17).
    OnConflict {
        /// The last close wins.
        Last = "last",
        /// The change is merged into the current version.
        Merge = "merge",
        /// The close fails.
        Fail = "fail",
    }
}
choice! {
    /// When appended content becomes visible (C10).
    Record {
        /// Line by line.
        Lines = "lines",
        /// At the last close.
        Close = "close",
        /// Line by line, also where the name exists: each run takes the place of the one before.
        Stream = "stream",
    }
}
choice! {
    /// What becomes of a claim that a dead process left behind.
    Stale {
        /// It is reported.
        Warn = "warn",
        /// It is removed.
        Remove = "remove",
    }
}
impl Choice for Guard {
    const NAMES: &'static [(&'static str, Guard)] = Guard::NAMES;
}

/// How a path is treated, as [`Rules::decide`](super::Rules::decide) says; the default is what holds
/// where no rule speaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How writes reach the file.
    pub mode: Mode,
    /// The kind of document it has to be.
    pub guard: Guard,
    /// When what is written becomes a version.
    pub publish: Publish,
    /// close() fails where the guard refuses the content (C21).
    pub close_error: bool,
    /// Empty content may replace a complete document.
    pub allow_empty: bool,
    /// What a signal does to its writer's transaction.
    pub on_signal: OnSignal,
    /// What happens to a save with a stale base.
    pub on_conflict: OnConflict,
    /// JSON pointers to numbers that merge by their differences.
    pub counters: Arc<[String]>,
    /// When appended content becomes visible; `None` leaves it to how the file is opened and named.
    pub record: Option<Record>,
    /// How long an editor waits for the writer slot; `None` is the mount's own.
    pub lock_timeout: Option<Duration>,
    /// What happens to a claim left behind; `None`: the name isn't that of a claim.
    pub stale: Option<Stale>,
    /// The group that it becomes a version with (C23).
    pub group: Option<Membership>,
}

impl Policy {
    /// Whether a writer that keeps its file open is published whenever what it has written is a whole
    /// document and at rest. Without a guard nobody can tell what is whole.
    pub fn publishes_at_rest(&self) -> bool {
        self.publish == Publish::Whole && self.guard != Guard::None && self.mode == Mode::Atomic
    }

    /// The group whose readers pin generations.
    pub fn pinned(&self) -> Option<&Membership> {
        let group = self.group.as_ref();
        group.filter(|member| member.group.readers == Readers::Pin)
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Settings::default().into_policy(&Arc::from([]))
    }
}

/// The keys that a rule sets.
#[derive(Clone, Default, Debug)]
pub(super) struct Settings {
    pub(super) mode: Option<Mode>,
    pub(super) guard: Option<Guard>,
    pub(super) publish: Option<Publish>,
    pub(super) close_error: Option<bool>,
    pub(super) allow_empty: Option<bool>,
    pub(super) on_signal: Option<OnSignal>,
    pub(super) on_conflict: Option<OnConflict>,
    pub(super) counters: Option<Arc<[String]>>,
    pub(super) record: Option<Record>,
    pub(super) lock_timeout: Option<Duration>,
    pub(super) stale: Option<Stale>,
}

impl Settings {
    /// Takes over what `later`, a rule further down, sets and nothing before it did.
    pub(super) fn complete_from(&mut self, later: &Settings) {
        self.mode = self.mode.or(later.mode);
        self.guard = self.guard.or(later.guard);
        self.publish = self.publish.or(later.publish);
        self.close_error = self.close_error.or(later.close_error);
        self.allow_empty = self.allow_empty.or(later.allow_empty);
        self.on_signal = self.on_signal.or(later.on_signal);
        self.on_conflict = self.on_conflict.or(later.on_conflict);
        if self.counters.is_none() {
            self.counters.clone_from(&later.counters);
        }
        self.record = self.record.or(later.record);
        self.lock_timeout = self.lock_timeout.or(later.lock_timeout);
        self.stale = self.stale.or(later.stale);
    }

    pub(super) fn into_policy(self, no_counters: &Arc<[String]>) -> Policy {
        Policy {
            mode: self.mode.unwrap_or(Mode::Atomic),
            guard: self.guard.unwrap_or(Guard::None),
            publish: self.publish.unwrap_or(Publish::Close),
            close_error: self.close_error.unwrap_or(true),
            allow_empty: self.allow_empty.unwrap_or(false),
            on_signal: self.on_signal.unwrap_or(OnSignal::Reject),
            on_conflict: self.on_conflict.unwrap_or(OnConflict::Last),
            counters: self.counters.unwrap_or_else(|| no_counters.clone()),
            record: self.record,
            lock_timeout: self.lock_timeout,
            stale: self.stale,
            group: None,
        }
    }
}

/// A key as messages need it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) is_set: fn(&Settings) -> bool,
    pub(super) show: fn(&Policy) -> String,
}

/// Every key but `glob`, in the order in which the documentation has them.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "mode",
        is_set: |s| s.mode.is_some(),
        show: |p| quoted(p.mode),
    },
    Key {
        name: "guard",
        is_set: |s| s.guard.is_some(),
        show: |p| quoted(p.guard),
    },
    Key {
        name: "publish",
        is_set: |s| s.publish.is_some(),
        show: |p| quoted(p.publish),
    },
    Key {
        name: "close_error",
        is_set: |s| s.close_error.is_some(),
        show: |p| p.close_error.to_string(),
    },
    Key {
        name: "allow_empty",
        is_set: |s| s.allow_empty.is_some(),
        show: |p| p.allow_empty.to_string(),
    },
    Key {
        name: "on_signal",
        is_set: |s| s.on_signal.is_some(),
        show: |p| quoted(p.on_signal),
    },
    Key {
        name: "on_conflict",
        is_set: |s| s.on_conflict.is_some(),
        show: |p| quoted(p.on_conflict),
    },
    Key {
        name: "counters",
        is_set: |s| s.counters.is_some(),
        show: |p| format!("{:?}", p.counters),
    },
    Key {
        name: "record",
        is_set: |s| s.record.is_some(),
        show: |p| p.record.map_or("unset".into(), quoted),
    },
    Key {
        name: "lock_timeout",
        is_set: |s| s.lock_timeout.is_some(),
        show: |p| {
            p.lock_timeout
                .map_or("unset".into(), |timeout| format!("\"{timeout:?}\""))
        },
    },
    Key {
        name: "stale",
        is_set: |s| s.stale.is_some(),
        show: |p| p.stale.map_or("unset".into(), quoted),
    },
];

fn quoted(value: impl Choice) -> String {
    format!("{:?}", value.name())
}
