//! What the closes of a transaction have found: whether it can be committed as it is, and whether
//! the last of them was told so.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use super::{Abort, GrownBase, KeptContent};
use crate::journal::ContentInfo;
use crate::sys::failpoint;
use crate::types::{NodeId, TxnId, Version};

/// Content that nothing can keep from being committed.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Staging file's number.
    pub id: TxnId,
    /// The staging file.
    pub file: Arc<File>,
    /// What the journal shall say of it.
    pub content: ContentInfo,
    /// Number of the version it was prepared to be.
    pub version: Version,
    /// It is on the medium already.
    pub synced: bool,
    /// What the journal was told of it when it promised something last.
    pub kept: Option<KeptContent>,
    /// The version that it was held against (C17).
    pub onto: Option<NodeId>,
    /// It is merged: what was written lies elsewhere.
    pub merged: Option<Written>,
    /// The file that it was copied from, if others may add to that (C10).
    pub grown: Option<GrownBase>,
    /// It can be made of another version of the file as well (C9).
    pub by_parts: bool,
    /// The version that it was made of.
    pub edits: Option<NodeId>,
    /// Some of what was written of it was appended.
    pub appended: bool,
    /// The version whose attributes it was given.
    pub like: Option<AsOf>,
    /// The how manieth judgement of this content has found it.
    pub judgement: u64,
}

/// A version, and when it was last changed as of some moment: if that has moved, so have attributes.
pub type AsOf = (NodeId, (i64, u64));

impl Ready {
    /// What is to take its name as it is, whatever that has by then.
    pub fn new(id: TxnId, file: Arc<File>, content: ContentInfo) -> Ready {
        Ready {
            id,
            file,
            content,
            version: Version::default(),
            synced: false,
            kept: None,
            onto: None,
            merged: None,
            grown: None,
            by_parts: false,
            edits: None,
            appended: false,
            like: None,
            judgement: 0,
        }
    }
}

/// What a transaction has written, where something else is committed for it, and that file.
#[derive(Clone, Debug)]
pub struct Written {
    /// What was written.
    pub file: Arc<File>,
    /// O_PATH descriptor of the merged file.
    pub path: Arc<File>,
    /// Its backing inode.
    pub key: (u64, u64),
}

/// Whether anybody holds another descriptor than the one that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Last {
    /// Somebody does, or it can't be known.
    No,
    /// Nobody, as far as few looks can tell.
    Likely,
    /// Nobody.
    Surely,
}

/// A FLUSH of a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// Whether it was of the last reference.
    pub last: Last,
    /// When that was looked at.
    pub looked: Instant,
    /// When it was answered.
    pub at: Instant,
    /// By this process.
    pub by: u32,
}

impl Flush {
    /// One that is answered now.
    pub fn now(last: Last, by: u32) -> Flush {
        Flush::of(last, Instant::now(), by)
    }

    /// One that is answered now, and was looked at then.
    pub fn of(last: Last, looked: Instant, by: u32) -> Flush {
        let at = Instant::now();
        Flush {
            last,
            looked,
            at,
            by,
        }
    }
}

#[derive(Debug)]
enum Finding {
    /// None since something was written last.
    Nothing,
    /// This can be committed.
    Ready(Ready),
    /// This could be, but the journal isn't told yet, or more was stored into a mapping since.
    Outdated(Ready),
    /// This stands against it.
    Refused(Abort),
}

/// See the module.
#[derive(Debug)]
pub struct Preparation {
    finding: Finding,
    /// The last FLUSH, unless it was opened once more since.
    flush: Option<Flush>,
    /// When the close began that came last.
    began: Option<Instant>,
    /// How often something was found, and by which judgement of the content at the latest.
    findings: u64,
    newest: u64,
}

impl Default for Preparation {
    fn default() -> Preparation {
        Preparation {
            finding: Finding::Nothing,
            flush: None,
            began: None,
            findings: 0,
            newest: 0,
        }
    }
}

/// What was found.
impl Preparation {
    /// What the last prepare found, to be committed as it is unless more was stored into a mapping since.
    pub fn ready(&self) -> Option<&Ready> {
        match &self.finding {
            Finding::Ready(ready) | Finding::Outdated(ready) => Some(ready),
            Finding::Nothing | Finding::Refused(_) => None,
        }
    }

    /// What stands against the commit.
    pub fn refusal(&self) -> Option<&Abort> {
        match &self.finding {
            Finding::Refused(abort) => Some(abort),
            Finding::Nothing | Finding::Ready(_) | Finding::Outdated(_) => None,
        }
    }

    /// Whether all that was written can be committed as it is.
    pub fn is_prepared(&self) -> bool {
        matches!(self.finding, Finding::Ready(_))
    }

    /// Whether no close has looked at what was written, or it has changed since.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.finding, Finding::Nothing | Finding::Outdated(_))
    }

    /// Whether no close has looked at what was written.
    pub fn is_untouched(&self) -> bool {
        matches!(self.finding, Finding::Nothing)
    }

    /// Whether what is written so far may become a version while the file is open: what a guard has refused
    /// at a close is judged anew.
    pub fn may_be_judged_anew(&self) -> bool {
        matches!(self.refusal(), None | Some(Abort::Guard(_)))
    }

    /// Whether a close, surely or likely the last, was told that all is kept.
    pub fn is_promised(&self) -> bool {
        self.is_prepared() && self.was_last()
    }

    /// Whether the last FLUSH was surely or likely of the last reference.
    pub fn was_last(&self) -> bool {
        self.flush.is_some_and(|flush| flush.last != Last::No)
    }

    /// The last FLUSH, unless it was opened once more since.
    pub fn flush(&self) -> Option<Flush> {
        self.flush
    }

    /// How often something was found.
    pub fn findings(&self) -> u64 {
        self.findings
    }

    /// Whether another close has judged the content later than this one has, and said so before.
    pub fn is_newer_than(&self, ready: &Ready) -> bool {
        ready.judgement < self.newest && !failpoint::mutant("C2-older-close")
    }

    /// Whether another close has done so, where this one began after so many findings, and has come to this result.
    pub fn has_overtaken(&self, result: &Result<Ready, Abort>, since: u64) -> bool {
        match result {
            Ok(ready) => self.is_newer_than(ready),
            Err(_) => self.findings != since && !failpoint::mutant("C2-older-close"),
        }
    }

    /// When the close began that came last.
    pub fn began(&self) -> Option<Instant> {
        self.began
    }
}

/// What happens. Where content is given back that was ready, the journal may have to be told that it isn't.
impl Preparation {
    /// A close begins.
    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// It is opened once more: whoever has closed was not the last.
    pub fn note_open(&mut self) {
        self.flush = None;
    }

    /// A FLUSH is answered. Another one may have looked later who has a descriptor, and be answered before.
    pub fn note_flush(&mut self, flush: Flush) {
        let knows_better = |known: &Flush| known.looked > flush.looked && known.last > flush.last;
        if !self.flush.as_ref().is_some_and(knows_better) {
            self.flush = Some(flush);
        }
    }

    /// A process that ends closes one more of its duplicates. Whether that tells no more than the one before: what it
    /// has left can't be seen, and nobody has written since. (It can't be killed before it has closed the last.)
    pub fn note_further_flush(&mut self) -> bool {
        let is_judged = self.is_prepared() || self.refusal().is_some();
        if let Some(flush) = self.flush.as_mut().filter(|_| is_judged)
            && !failpoint::mutant("C4-duplicates")
        {
            flush.at = Instant::now();
            return true;
        }
        false
    }

    /// The FLUSH of that moment was likely the last; now all was looked at. Gives whether it was, if nothing
    /// has come after it.
    pub fn resolve_doubt(&mut self, at: Instant, last: bool) -> Option<bool> {
        let flush = self.flush.as_mut()?;
        if flush.at != at || flush.last != Last::Likely {
            return None;
        }
        flush.last = if last { Last::Surely } else { Last::No };
        Some(last)
    }

    /// What is being prepared, which the journal is to be told next. Gives what was ready before.
    pub fn replace(&mut self, ready: Ready) -> Option<Ready> {
        self.newest = self.newest.max(ready.judgement);
        match std::mem::replace(&mut self.finding, Finding::Nothing) {
            Finding::Ready(before) => {
                self.finding = Finding::Ready(ready);
                Some(before)
            }
            Finding::Outdated(before) => {
                self.finding = Finding::Outdated(ready);
                Some(before)
            }
            Finding::Nothing | Finding::Refused(_) => {
                self.finding = Finding::Outdated(ready);
                None
            }
        }
    }

    /// The journal is told that a close, likely the last, has promised what was prepared: under the
    /// same lock, as a new journal must carry it.
    pub fn note_promised(&mut self, ready: &Ready, by: u32) {
        // Whether it surely was the last is said by who knows, right after.
        self.flush = Some(Flush::now(Last::Likely, by));
        self.finding = match std::mem::replace(&mut self.finding, Finding::Nothing) {
            Finding::Ready(mut known) | Finding::Outdated(mut known) => {
                if known.id == ready.id {
                    known.content.parts.clone_from(&ready.content.parts);
                }
                Finding::Ready(known)
            }
            // It was written meanwhile.
            Finding::Nothing | Finding::Refused(_) => Finding::Nothing,
        };
    }

    /// The journal is told that this merge is on the medium.
    pub fn note_synced(&mut self, merged: TxnId) {
        if let Finding::Ready(ready) | Finding::Outdated(ready) = &mut self.finding
            && ready.id == merged
        {
            ready.synced = true;
        }
    }

    /// A close has found this to be committed; `dirty`: more was stored into a mapping meanwhile.
    pub fn finish(&mut self, ready: Ready, dirty: bool) {
        self.findings += 1;
        self.newest = self.newest.max(ready.judgement);
        self.finding = match dirty {
            true => Finding::Outdated(ready),
            false => Finding::Ready(ready),
        };
    }

    /// It won't be committed as it is. Gives what was ready before.
    pub fn refuse(&mut self, abort: Abort) -> Option<Ready> {
        self.findings += 1;
        let before = self.withdraw();
        self.finding = Finding::Refused(abort);
        before
    }

    /// What was found doesn't hold any more: the content changes, or the name that it is for. Gives what was
    /// ready before.
    pub fn withdraw(&mut self) -> Option<Ready> {
        match std::mem::replace(&mut self.finding, Finding::Nothing) {
            Finding::Ready(before) | Finding::Outdated(before) => Some(before),
            Finding::Nothing | Finding::Refused(_) => None,
        }
    }

    /// What was written is a version by now, and it goes on with what is written next. `judged`: what a guard
    /// had refused was judged anew.
    pub fn start_anew(&mut self, judged: bool) {
        self.flush = None;
        let stays = |abort: &Abort| !(judged && matches!(abort, Abort::Guard(_)));
        if !self.refusal().is_some_and(stays) {
            self.finding = Finding::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(id: u64) -> Ready {
        let file = Arc::new(File::open("/dev/null").unwrap());
        Ready::new(TxnId(id), file, ContentInfo::default())
    }

    fn told(preparation: &mut Preparation) {
        preparation.replace(ready(1));
        preparation.note_promised(&ready(1), 7);
        preparation.finish(ready(1), false);
    }

    #[test]
    fn what_is_promised_is_prepared_and_was_closed_last() {
        let mut preparation = Preparation::default();
        preparation.replace(ready(1));
        assert!(preparation.ready().is_some() && preparation.is_unfinished());
        told(&mut preparation);
        assert!(preparation.is_promised() && !preparation.is_unfinished());
        preparation.note_open();
        assert!(preparation.is_prepared() && !preparation.is_promised());
    }

    #[test]
    fn what_is_written_after_a_close_is_found_out_anew() {
        let mut preparation = Preparation::default();
        told(&mut preparation);
        assert_eq!(preparation.withdraw().map(|r| r.id), Some(TxnId(1)));
        assert!(preparation.is_untouched() && preparation.withdraw().is_none());
        // A FLUSH that was under way then promises nothing of it.
        preparation.note_promised(&ready(1), 7);
        assert!(preparation.is_untouched());
        preparation.finish(ready(1), true);
        assert!(preparation.ready().is_some() && !preparation.is_prepared());
    }

    #[test]
    fn what_is_refused_is_not_ready() {
        let mut preparation = Preparation::default();
        told(&mut preparation);
        let guard = || Abort::Guard("half".into());
        assert!(preparation.refuse(guard()).is_some());
        assert!(preparation.ready().is_none() && preparation.may_be_judged_anew());
        preparation.start_anew(false);
        assert!(preparation.refusal().is_some());
        preparation.start_anew(true);
        assert!(preparation.is_untouched());
        preparation.refuse(Abort::Conflict);
        preparation.start_anew(true);
        assert!(preparation.refusal().is_some() && !preparation.may_be_judged_anew());
    }

    #[test]
    fn what_was_judged_before_another_has_found_something_is_older() {
        let judged = |judgement| Ready {
            judgement,
            ..ready(1)
        };
        let mut preparation = Preparation::default();
        let since = preparation.findings();
        assert!(!preparation.has_overtaken(&Ok(judged(1)), since));
        preparation.finish(judged(2), false);
        assert!(preparation.has_overtaken(&Ok(judged(1)), since));
        assert!(preparation.has_overtaken(&Err(Abort::Conflict), since));
        assert!(!preparation.has_overtaken(&Ok(judged(3)), since));
        assert!(!preparation.has_overtaken(&Err(Abort::Conflict), preparation.findings()));
        // Also where it was written since.
        preparation.withdraw();
        assert!(preparation.has_overtaken(&Ok(judged(1)), since));
    }

    #[test]
    fn who_has_looked_later_knows_better_who_has_a_descriptor() {
        let mut preparation = Preparation::default();
        let first = Flush::now(Last::No, 7);
        let second = Flush {
            looked: first.looked + std::time::Duration::from_millis(1),
            ..Flush::now(Last::Surely, 7)
        };
        preparation.note_flush(second);
        preparation.note_flush(first);
        assert!(preparation.was_last());
        let third = Flush {
            looked: second.looked + std::time::Duration::from_millis(1),
            ..first
        };
        preparation.note_flush(third);
        assert!(!preparation.was_last());
    }

    #[test]
    fn a_doubt_is_resolved_once_and_for_its_own_flush() {
        let mut preparation = Preparation::default();
        told(&mut preparation);
        let at = preparation.flush().unwrap().at;
        assert_eq!(preparation.resolve_doubt(at, false), Some(false));
        assert_eq!(preparation.resolve_doubt(at, true), None);
        assert!(!preparation.was_last());
    }
}
