//! Edits of any number of files that become one commit.

use std::collections::HashSet;
use std::path::Path;

use rustix::io::Errno;

use crate::journal::{Edit, MAX_PAYLOAD, Record};
use crate::types::{OpResult, Seq};

/// Built first, checked as a whole, journalled as one record, and then published to all of its names: no reader and no
/// crash finds a part of it.
#[derive(Clone, Debug, Default)]
pub struct Changeset {
    edits: Vec<Edit>,
    promised: Vec<Record>,
}

impl Changeset {
    /// What it changes so far.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// It changes this, too.
    pub fn add(&mut self, edit: Edit) {
        self.edits.push(edit);
    }

    /// This stands in the journal already, and in a new one as long as the content that it speaks of is not on the medium elsewhere.
    pub fn has_promised(&mut self, records: impl IntoIterator<Item = Record>) {
        self.promised.extend(records);
    }

    /// Whether it can be one commit: EINVAL if a name gets two contents by it, or a content two names; EFBIG if no record
    /// holds it. Gives how many bytes its record takes.
    pub fn check(&self) -> OpResult<u64> {
        let (mut names, mut contents) = (HashSet::<&Path>::new(), HashSet::new());
        for edit in &self.edits {
            if let Edit::Put { path, id, .. } | Edit::Patch { path, id, .. } = edit
                && !(names.insert(path) && contents.insert(*id))
            {
                return Err(Errno::INVAL);
            }
        }
        let bytes = self.clone().into_records(Seq::default()).0.framed_len();
        match bytes > MAX_PAYLOAD as u64 {
            true => Err(Errno::FBIG),
            false => Ok(bytes),
        }
    }

    /// How the journal is told of it, and what stands there before it.
    pub(super) fn into_records(self, seq: Seq) -> (Record, Vec<Record>) {
        let edits = self.edits;
        (Record::Commit { seq, edits }, self.promised)
    }

    /// The guarantee that a test takes out by not journalling it.
    pub(super) fn mutant(&self) -> &'static str {
        match self.edits.first() {
            Some(Edit::Append { .. }) => "C10-journal",
            Some(Edit::Patch { .. }) => "C18-patch",
            _ => "C18-commit",
        }
    }
}

impl From<Edit> for Changeset {
    fn from(edit: Edit) -> Changeset {
        Changeset::from_iter([edit])
    }
}

impl FromIterator<Edit> for Changeset {
    fn from_iter<T: IntoIterator<Item = Edit>>(edits: T) -> Changeset {
        Changeset {
            edits: edits.into_iter().collect(),
            promised: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::ContentInfo;
    use crate::types::{TxnId, Version};

    fn put(path: &str, id: u64) -> Edit {
        Edit::Put {
            path: path.into(),
            id: TxnId(id),
            version: Version(1),
            content: ContentInfo::default(),
            in_place: false,
        }
    }

    #[test]
    fn ten_thousand_files_with_paths_as_long_as_there_are_fit_into_one_record() {
        let long = "d/".repeat(2040);
        let all = (0..10_000).map(|n| put(&format!("{long}{n:05}"), n));
        let bytes = Changeset::from_iter(all).check().unwrap();
        assert!(bytes > 10_000 * 4085, "{bytes}");
    }

    #[test]
    fn what_no_record_holds_is_refused_as_a_whole() {
        let long = "d/".repeat(2040);
        let all = (0..20_000).map(|n| put(&format!("{long}{n:05}"), n));
        assert_eq!(Changeset::from_iter(all).check(), Err(Errno::FBIG));
    }

    #[test]
    fn a_name_gets_one_content_and_a_content_one_name() {
        let check = |edits: Vec<Edit>| Changeset::from_iter(edits).check().map(drop);
        assert_eq!(check(vec![put("a", 1), put("b", 2)]), Ok(()));
        assert_eq!(check(vec![put("a", 1), put("a", 2)]), Err(Errno::INVAL));
        assert_eq!(check(vec![put("a", 1), put("b", 1)]), Err(Errno::INVAL));
        // A rename of what is not in place yet.
        let gone = Edit::Drop { path: "a".into() };
        assert_eq!(check(vec![gone, put("b", 1)]), Ok(()));
    }
}
