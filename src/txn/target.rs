//! What a transaction is to become: a version of its name, or nothing that anybody sees.

use crate::types::Dentry;

/// See the module.
#[derive(Debug)]
pub(super) enum Target {
    /// It will commit under this name.
    Name(Dentry),
    /// That was its name, which was unlinked: nobody will see it.
    Unlinked(Dentry),
}

impl Target {
    /// The name that it has, or had.
    pub(super) fn dentry(&self) -> &Dentry {
        match self {
            Target::Name(dentry) | Target::Unlinked(dentry) => dentry,
        }
    }

    /// Its name goes to another place. Gives the one that it had.
    pub(super) fn move_to(&mut self, to: Dentry) -> Dentry {
        match self {
            Target::Name(dentry) | Target::Unlinked(dentry) => std::mem::replace(dentry, to),
        }
    }

    /// Its name is unlinked.
    pub(super) fn unlink(&mut self) {
        *self = Target::Unlinked(self.dentry().clone());
    }
}
