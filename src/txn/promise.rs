//! What the journal was told of a transaction that is on the medium, and is rolled forward after a
//! power cut unless its name has got a newer version since.

use std::sync::Arc;

use super::abort::Abort;
use crate::journal::{ContentInfo, Inlined, Record};
use crate::types::{Dentry, NodeId, Seq, TxnId};

/// See the module.
#[derive(Debug, Default)]
pub struct Promise {
    /// The program has called fsync: exempt from what a kill does (C7).
    fsync: Option<Fsync>,
    /// What is on the medium of what was written.
    told: Option<KeptContent>,
    /// The commit that has given its name another version since the journal was told last what may
    /// be rolled forward of it: that is newer. 0: it is on the medium when the next journal is.
    overtaken: Option<Seq>,
    /// The journal is told that it isn't committed for that, and kept all the same.
    withheld: Option<Withheld>,
    /// It is committed for what was fsync'd.
    rescue: Option<Rescue>,
}

/// A content that the journal says is on the medium.
#[derive(Clone, Debug)]
pub struct KeptContent {
    /// What it says of it.
    pub content: ContentInfo,
    /// All of its bytes, where it lies in the journal and nowhere else, and up to where that has to be on the medium.
    pub inlined: Option<(Arc<Inlined>, u64)>,
}

impl KeptContent {
    /// It lies in its staging file.
    pub fn on_medium(content: ContentInfo) -> KeptContent {
        let inlined = None;
        KeptContent { content, inlined }
    }

    /// It lies in the journal.
    pub fn in_journal(content: ContentInfo, whole: Inlined) -> KeptContent {
        let inlined = Some((Arc::new(whole), 0));
        KeptContent { content, inlined }
    }

    /// The journal is told so by its first appends, so many.
    pub fn is_told(&mut self, by: u64) {
        if let Some((_, appends)) = &mut self.inlined {
            *appends = by;
        }
    }

    /// What the journal is told of the content of this staging file.
    pub fn records(&self, id: TxnId) -> Vec<Record> {
        let inlined = self.inlined.iter();
        let mut records: Vec<Record> = inlined
            .map(|(whole, _)| Record::Inlined {
                id,
                whole: whole.clone(),
            })
            .collect();
        let content = self.content.clone();
        records.push(Record::Fsynced { id, content });
        records
    }
}

/// What was promised is not to be committed, and to be kept all the same.
#[derive(Clone, Copy, Debug)]
pub struct Withheld {
    /// What the last fsync has made durable may become the version yet.
    pub as_fsynced: bool,
    /// The journal is told so by its first appends, so many.
    pub told_by: u64,
}

/// The last fsync.
#[derive(Clone, Copy, Debug)]
struct Fsync {
    /// The version that was current then.
    current: Option<NodeId>,
}

/// What a writer that was ended had fsync'd is committed all the same, in the place of one version.
#[derive(Clone, Debug)]
pub struct Rescue {
    /// The name.
    pub dentry: Dentry,
    /// What was current there.
    pub over: Option<NodeId>,
    /// What keeps it from being committed if something else is by then.
    pub abort: Abort,
}

impl Promise {
    /// What was fsync'd is to be committed, though its writer was ended.
    pub fn note_rescue(&mut self, rescue: Rescue) {
        self.rescue = Some(rescue);
    }

    /// That, until it is a version.
    pub fn rescue(&self) -> Option<&Rescue> {
        self.rescue.as_ref()
    }

    /// The program has called fsync, with this version being current: the content is told with it.
    pub fn note_fsync(&mut self, current: Option<NodeId>, content: KeptContent) {
        self.fsync = Some(Fsync { current });
        self.note_durable(content);
    }

    /// The journal is told that this much of it is on the medium, whatever has its name by now.
    pub fn note_durable(&mut self, content: KeptContent) {
        self.told = Some(content);
        self.overtaken = None;
        self.withheld = None;
    }

    /// The journal is told that a merge is on the medium. What an fsync has told of the text as it was
    /// written stays told, unless it is older than a version that has come since.
    pub fn note_durable_merge(&mut self) {
        if self.overtaken.is_some() {
            self.told = None;
        }
        self.overtaken = None;
    }

    /// The journal is told what a close has prepared.
    pub fn note_prepared(&mut self) {
        self.overtaken = None;
        self.withheld = None;
    }

    /// A version has taken its name.
    pub fn overtake(&mut self, by: Seq) {
        self.overtaken = Some(by);
    }

    /// It goes on in a fresh staging file, of which this is on the medium: nothing if what was promised
    /// has become a version.
    pub fn go_on(&mut self, promised: Option<ContentInfo>) {
        if promised.is_none() {
            self.fsync = None;
        }
        self.rescue = None;
        self.withheld = None;
        self.told = promised.map(KeptContent::on_medium);
    }

    /// Whether the program has called fsync for what isn't published yet.
    pub fn has_fsynced(&self) -> bool {
        self.fsync.is_some()
    }

    /// The version that was current at the last fsync.
    pub fn current_at_fsync(&self) -> Option<NodeId> {
        self.fsync?.current
    }

    /// What is on the medium of what was written.
    pub fn told(&self) -> Option<&ContentInfo> {
        self.told.as_ref().map(|told| &told.content)
    }

    /// Whether that lies in the journal alone.
    pub fn is_inlined(&self) -> bool {
        let told = self.told.as_ref();
        told.is_some_and(|told| told.inlined.is_some())
    }

    /// That, and where.
    pub fn kept(&self) -> Option<&KeptContent> {
        self.told.as_ref()
    }

    /// The journal is told that it isn't committed for what was promised, and kept all the same.
    pub fn withhold(&mut self, withheld: Withheld) {
        self.withheld = Some(withheld);
    }

    /// That.
    pub fn withheld(&self) -> Option<Withheld> {
        self.withheld
    }

    /// What the journal is told of all that was promised of the content of this staging file, and of what is to become of it.
    pub fn records(&self, id: TxnId) -> Vec<Record> {
        let told = self.told.iter();
        let mut records: Vec<Record> = told.flat_map(|told| told.records(id)).collect();
        records.extend(self.withheld.map(|withheld| Record::Withheld {
            id,
            as_fsynced: withheld.as_fsynced,
        }));
        records
    }

    /// The commit that it is older than.
    pub fn overtaken(&self) -> Option<Seq> {
        self.overtaken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: u64) -> ContentInfo {
        ContentInfo {
            len,
            crc: None,
            inline: None,
            mtime_ns: 0,
            grown: None,
            parts: None,
        }
    }

    #[test]
    fn a_merge_takes_the_place_of_an_older_promise_only() {
        let mut promise = Promise::default();
        promise.note_fsync(None, KeptContent::on_medium(content(1)));
        promise.note_durable_merge();
        assert!(promise.told().is_some());
        promise.overtake(Seq(3));
        promise.note_durable_merge();
        assert!(promise.told().is_none() && promise.overtaken().is_none());
    }

    #[test]
    fn what_became_a_version_is_no_promise_any_more() {
        let mut promise = Promise::default();
        promise.note_fsync(Some(NodeId(4)), KeptContent::on_medium(content(1)));
        promise.go_on(Some(content(2)));
        assert_eq!(promise.current_at_fsync(), Some(NodeId(4)));
        promise.go_on(None);
        assert!(!promise.has_fsynced() && promise.told().is_none());
    }
}
