//! What a transaction is for: what its content starts from, and what it has of its own by now.

use crate::rules::Stream;
use crate::types::{NodeId, TxnId};

/// How a transaction comes to be; decides what its content starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// A new name.
    Create {
        /// With O_EXCL: the name exists for everybody at once (C6).
        exclusive: bool,
        /// With O_TRUNC, by a program that doesn't know that it is new.
        empties: bool,
    },
    /// This version, emptied (O_TRUNC).
    Rewrite(NodeId),
    /// This version, kept (r+, append, truncate): commits only if something is written.
    Edit(NodeId),
}

impl Begun {
    /// By an open of a name that has this version.
    pub fn by_open(base: Option<NodeId>, exclusive: bool, empties: bool) -> Begun {
        match base {
            None => Begun::Create { exclusive, empties },
            Some(base) if empties => Begun::Rewrite(base),
            Some(base) => Begun::Edit(base),
        }
    }

    /// The version that is current.
    pub fn base(self) -> Option<NodeId> {
        match self {
            Begun::Create { .. } => None,
            Begun::Rewrite(base) | Begun::Edit(base) => Some(base),
        }
    }
}

/// The version that a transaction starts from.
#[derive(Clone, Copy, Debug)]
struct BaseVersion {
    version: NodeId,
    /// The first of the versions that it comes from by in-place edits: what was written of it fits into
    /// any other of these.
    body: NodeId,
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    /// There is no version of the name yet.
    Create {
        empties: bool,
    },
    Rewrite(BaseVersion),
    Edit(BaseVersion),
}

/// See the module.
#[derive(Debug)]
pub struct Purpose {
    origin: Origin,
    /// When the base was last changed, as of the open: if that has moved, so have attributes.
    base_ctime: (i64, u64),
    /// The version whose inode number its node shows, if not its own: an in-place editor's, the
    /// same from its open to its last close whatever it commits meanwhile.
    shown: Option<NodeId>,
    /// Its first description was opened with O_APPEND.
    appends: bool,
    /// A new file that becomes visible by its first complete lines (C10).
    stream: Option<Stream>,
    /// Something was written or truncated.
    changed: bool,
    /// The transaction by which one of its processes has emptied the name through its path since the
    /// last write: on a plain directory nothing of what was written here would be left.
    emptied_by: Option<TxnId>,
    /// What it holds is kept in rejected already: should it not commit, nobody misses it.
    is_restore: bool,
    /// The round of a group that it is committed with (C23).
    round: Option<TxnId>,
}

/// What it starts from.
impl Purpose {
    /// Of one that nobody has written yet. `base_ctime`: see [`Self::base_ctime`].
    pub fn new(begun: Begun, body: impl Fn(NodeId) -> NodeId, base_ctime: (i64, u64)) -> Purpose {
        let base = |version| BaseVersion {
            version,
            body: body(version),
        };
        let (origin, shown) = match begun {
            Begun::Create { empties, .. } => (Origin::Create { empties }, None),
            Begun::Rewrite(version) => (Origin::Rewrite(base(version)), None),
            Begun::Edit(version) => (Origin::Edit(base(version)), Some(version)),
        };
        Purpose {
            origin,
            base_ctime,
            shown,
            appends: false,
            stream: None,
            changed: false,
            emptied_by: None,
            is_restore: false,
            round: None,
        }
    }

    /// Whether its name has no version yet.
    pub fn creates(&self) -> bool {
        matches!(self.origin, Origin::Create { .. })
    }

    /// Whether it replaces a version from nothing.
    pub fn rewrites(&self) -> bool {
        matches!(self.origin, Origin::Rewrite(_))
    }

    /// Whether it goes on from a version: it commits only if something is written.
    pub fn edits(&self) -> bool {
        matches!(self.origin, Origin::Edit(_))
    }

    /// Whether it began by emptying the file (O_TRUNC).
    pub fn empties(&self) -> bool {
        matches!(
            self.origin,
            Origin::Create { empties: true } | Origin::Rewrite(_)
        )
    }

    /// Node of the version that it starts from.
    pub fn base(&self) -> Option<NodeId> {
        match self.origin {
            Origin::Create { .. } => None,
            Origin::Rewrite(base) | Origin::Edit(base) => Some(base.version),
        }
    }

    /// The first of the versions that this comes from by in-place edits.
    pub fn body(&self) -> Option<NodeId> {
        match self.origin {
            Origin::Create { .. } => None,
            Origin::Rewrite(base) | Origin::Edit(base) => Some(base.body),
        }
    }

    /// When the version that was current at the open had been changed last, as of then: seconds and
    /// nanoseconds since the epoch.
    pub fn base_ctime(&self) -> (i64, u64) {
        self.base_ctime
    }

    /// The version whose inode number it shows.
    pub fn shown(&self) -> Option<NodeId> {
        self.shown
    }

    /// The kernel knows its description by another node.
    pub fn show_as(&mut self, node: NodeId) {
        self.shown = Some(node);
    }

    /// Its base has another node, or others have made this of it in place.
    pub fn follow_base(&mut self, to: NodeId) {
        if let Origin::Rewrite(base) | Origin::Edit(base) = &mut self.origin {
            base.version = to;
        }
    }

    /// It starts from this version instead, which comes from `body` by in-place edits.
    pub fn rebase(&mut self, version: NodeId, body: NodeId) {
        self.origin = Origin::Edit(BaseVersion { version, body });
    }

    /// It has nothing of its own any more: what it had has become this version, or was replaced by it.
    pub fn start_anew_from(&mut self, version: NodeId, body: NodeId) {
        self.rebase(version, body);
        (self.changed, self.stream) = (false, None);
    }

    /// It is written to restore what is kept in rejected.
    pub fn restore(&mut self) {
        self.is_restore = true;
    }

    /// It is committed with the others of a round, or by itself.
    pub fn join_round(&mut self, round: Option<TxnId>) {
        self.round = round;
    }

    /// The round that it is committed with.
    pub fn round(&self) -> Option<TxnId> {
        self.round
    }

    /// Whether it is.
    pub fn is_restore(&self) -> bool {
        self.is_restore
    }
}

/// What it has of its own.
impl Purpose {
    /// Something is truncated, or was stored into a mapping.
    pub fn note_change(&mut self) {
        self.changed = true;
    }

    /// Something is written: after its program has emptied the name, if it has.
    pub fn note_write(&mut self) {
        (self.changed, self.emptied_by) = (true, None);
    }

    /// Whether something was written or truncated.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// One of its processes has emptied the name through its path, by another transaction.
    pub fn note_emptied(&mut self, by: TxnId) {
        self.emptied_by = Some(by);
    }

    /// Whether that is so, and nothing was written since.
    pub fn is_emptied(&self) -> bool {
        self.emptied_by.is_some()
    }

    /// The transaction that did so: what that has made of the name is taken over.
    pub fn take_emptied(&mut self) -> Option<TxnId> {
        self.emptied_by.take()
    }

    /// What it holds would not be there on a plain directory once somebody else has put content
    /// under the name: it was created and never written (`mkstemp`, then `open(path, "w")` by
    /// name), or its own program emptied the name through its path after the last write.
    pub fn holds_nothing(&self) -> bool {
        let is_empty = matches!(self.origin, Origin::Create { empties: false }) && !self.changed;
        self.is_emptied() || is_empty
    }

    /// How its first description adds to it.
    pub fn note_lines(&mut self, appends: bool, stream: Option<Stream>) {
        (self.appends, self.stream) = (appends, stream);
    }

    /// Whether its first description was opened with O_APPEND.
    pub fn appends(&self) -> bool {
        self.appends
    }

    /// What its first complete lines make visible, if it is such a new file.
    pub fn stream(&self) -> Option<Stream> {
        self.stream
    }

    /// Whether it is a log without a version, of lines that are no documents.
    pub fn is_log(&self) -> bool {
        self.appends && matches!(self.stream, Some(Stream::Lines | Stream::Table))
    }

    /// Its first lines make nothing visible any more.
    pub fn end_stream(&mut self) {
        self.stream = None;
    }
}
