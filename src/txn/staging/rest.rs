//! Whether what is staged is at rest: written a while ago, and a whole document, be it that its writer
//! keeps the file open. And whether it was written at all, where the kernel does that by itself.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::passed::Passed;
use super::{Content, Staging};
use crate::guard::{Guard, Verdict};
use crate::sys::{at, failpoint};
use crate::types::{OpResult, Seq, TxnId};

/// What is read again for its checksum is no longer than this, in bytes.
const QUICK: u64 = 64 << 10;

/// What a content knows for that.
#[derive(Debug)]
pub(super) struct Rest {
    /// When it was written or truncated last.
    pub written: Instant,
    /// What there was has been written anew from its beginning.
    rewritten: bool,
    /// The write after which it was looked at last whether it is at rest and whole, and by which rules.
    judged: Option<(Instant, u32)>,
    /// How often it was judged whether it can be committed.
    judgements: u64,
    /// Some of it came by pages of a mapping: nobody is told when these are stored into.
    pub by_pages: bool,
    /// If the kernel writes it by itself.
    pub passed: Option<Arc<Passed>>,
    /// Shared with the [`Staging`].
    pub changed: Arc<AtomicBool>,
}

impl Default for Rest {
    fn default() -> Rest {
        Rest {
            written: Instant::now(),
            rewritten: false,
            judged: None,
            judgements: 0,
            by_pages: false,
            passed: None,
            changed: Arc::default(),
        }
    }
}

impl Staging {
    /// Whether something was written or truncated that is not published; doesn't wait for the
    /// content. A write says so itself: one that waits while what was written before is published
    /// is not forgotten with that.
    pub fn has_changes(&self) -> bool {
        self.changed.load(Ordering::Acquire) || self.is_written()
    }

    /// Whether the kernel has written it by itself since that was looked at.
    pub fn is_written(&self) -> bool {
        self.passed.get().is_some_and(|passed| passed.is_written())
    }

    /// What was written so far is told from what the kernel writes from now on.
    pub fn look_apart(&self) {
        if let Some(passed) = self.passed.get().filter(|passed| passed.is_written()) {
            self.changed.store(true, Ordering::Release);
            if let Ok((len, mtime_ns)) = passed.now() {
                passed.note(len, mtime_ns);
            }
        }
    }

    /// The commit that has to be on the medium when its close returns, as what was published so far
    /// is of a program that is promised so; 0 if there is none.
    pub fn owed(&self) -> Seq {
        Seq(self.owed.load(Ordering::Acquire))
    }

    /// A commit is owed from now on.
    pub fn owe(&self, seq: Seq) {
        self.owed.store(seq.0, Ordering::Release);
    }
}

impl Content {
    /// What is written now is appended.
    pub fn note_appended(&mut self) {
        self.places.appended = true;
    }

    /// Whether anything was.
    pub fn has_appended(&self) -> bool {
        self.places.appended && !failpoint::mutant("C10-behind")
    }

    /// Whether what others have written of the version that it was made of last has its place in this, too: it has what it
    /// hasn't written from there, or differs by what was added behind.
    pub fn keeps_places(&self) -> bool {
        self.is_by_parts() || self.places.come_behind && self.has_appended()
    }
}

impl Content {
    pub(super) fn set_changed(&mut self, changed: bool) {
        self.changed = changed;
        self.rest.changed.store(changed, Ordering::Release);
    }

    /// It is written or cut at its beginning, or not.
    pub(super) fn note_start(&mut self, at_start: bool) {
        self.rest.rewritten |= at_start && (self.sequence.next > 0 || !self.anew);
    }

    /// Whether nobody has written it for so long. What comes by a mapping is never known to rest.
    pub fn rests_for(&self, long: Duration) -> bool {
        let rests = self.rest.written.elapsed() >= long;
        !self.rest.by_pages && (rests || crate::sys::failpoint::mutant("C2-rest"))
    }

    /// Whether it was looked at since it was written last: once is enough, as it stays what it is.
    /// But rules may have changed: theirs is the checksum.
    pub fn is_judged(&self, rules: u32) -> bool {
        self.rest.judged == Some((self.rest.written, rules))
    }

    /// It is looked at now.
    pub fn note_judged(&mut self, rules: u32) {
        self.rest.judged = Some((self.rest.written, rules));
    }

    /// It is judged whether it can be committed as it is now. Gives how often it was.
    pub fn begin_judgement(&mut self) -> u64 {
        self.rest.judgements += 1;
        self.rest.judgements
    }

    /// Whether its writer has written it anew from its beginning, having it open.
    pub fn is_rewritten(&self) -> bool {
        self.rest.rewritten
    }

    /// Whether it is a whole document of its kind, as it stands.
    pub fn is_whole(&mut self) -> OpResult<bool> {
        Ok(self.examine(self.guard)? == Verdict::Complete)
    }

    /// Whether it can be prepared without a copy, a merge or a read of any length: it is small, all of it was written since it was
    /// empty, and the guard needs no second look.
    pub fn is_quickly_prepared(&mut self, guard: Guard) -> bool {
        let is_own = self.base.is_none() && self.grown.is_none() && self.parts.is_none();
        let is_told = !self.rest.by_pages && !self.passes();
        let is_plain = is_own && self.failed.is_none() && is_told;
        let Ok(len) = self.size() else {
            return false;
        };
        if !is_plain || len > QUICK {
            return false;
        }
        let is_seen = self.sequence.intact && self.sequence.next == len && guard == self.guard;
        match guard {
            Guard::None => self.is_summed(len),
            Guard::Json | Guard::JsonStrict if is_seen => {
                self.examine(guard).is_ok_and(|v| v == Verdict::Complete)
            }
            _ => false,
        }
    }

    /// Whether its checksum is known, or it is no wait for the disk to have it.
    fn is_summed(&mut self, len: u64) -> bool {
        if self.sequence.intact && self.sequence.next == len {
            return true;
        }
        let cached = at::read_cached(&self.file, 0, usize::try_from(len).unwrap_or_default());
        let whole = cached.filter(|cached| cached.len() as u64 == len);
        let Some(cached) = whole.filter(|_| self.sequence.json.is_none()) else {
            return false;
        };
        self.sequence.crc = crc32c::crc32c(&cached);
        self.sequence.next = len;
        self.sequence.intact = true;
        true
    }

    /// Whether all of it was written since it was empty.
    pub fn is_anew(&self) -> bool {
        self.anew
    }

    /// Whether the guard found it to go wrong in its middle, when it looked last.
    pub fn is_malformed(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Malformed(_)))
    }
}

impl Staging {
    /// The file that the kernel writes by itself, if it does.
    pub fn passed(&self) -> Option<Arc<File>> {
        self.passed.get().map(|passed| passed.file.clone())
    }

    /// The kernel writes it by itself from now on. Gives the file; `None` if somebody uses the content, or it begins with that of another.
    pub fn pass(&self) -> Option<Arc<File>> {
        if self.passed.get().is_none() {
            let mut content = self.try_lock().filter(|content| !content.must_copy())?;
            let passed = Arc::new(Passed::of(content.file.clone()).ok()?);
            content.sequence.intact = false;
            content.rest.passed = Some(passed.clone());
            self.passed.set(passed).ok();
        }
        self.passed()
    }
}

impl Content {
    /// Whether the kernel writes it by itself.
    pub fn passes(&self) -> bool {
        self.rest.passed.is_some()
    }

    /// Looks whether the kernel has written it since the last look. What is judged next is judged anew in any case: two writes may
    /// come within one tick of the clock.
    pub fn look(&mut self) -> OpResult<bool> {
        let Some(passed) = self.rest.passed.clone() else {
            return Ok(false);
        };
        self.verdict = None;
        let now = passed.now()?;
        if now == passed.seen() {
            return Ok(false);
        }
        passed.note(now.0, now.1);
        self.touched();
        // Whether it has only grown nobody knows: a guard is asked about what is cut back.
        let len = u64::try_from(now.0).unwrap_or(0);
        if let Some(fsynced) = self.fsynced.as_mut().filter(|f| len < f.content.len) {
            fsynced.overwritten = true;
        }
        Ok(true)
    }

    /// Whether the kernel has written it by itself since the last look.
    pub fn is_written(&self) -> bool {
        let passed = self.rest.passed.as_ref();
        passed.is_some_and(|passed| passed.is_written())
    }

    /// What was changed of it just now was no write.
    pub fn note_seen(&mut self) -> OpResult<()> {
        if let Some(passed) = &self.rest.passed {
            let (len, mtime_ns) = passed.now()?;
            passed.note(len, mtime_ns);
        }
        Ok(())
    }

    /// What it stands in is published, and it goes on in the file that the kernel writes: all that has is of it, and is still to be
    /// committed under its own name if it `waits`. Gives what is published.
    pub fn write_on_in(&mut self, id: TxnId, file: File, waits: bool) -> Arc<File> {
        let published = self.continue_in(id, file, true);
        if !waits {
            self.set_changed(false);
        }
        published
    }

    /// It stands in this copy now, which is to be published. Gives the file that the kernel writes on, and its number.
    pub fn step_aside(&mut self, id: TxnId, copy: Arc<File>) -> (TxnId, Arc<File>) {
        let file = std::mem::replace(&mut self.file, copy);
        (std::mem::replace(&mut self.id, id), file)
    }
}
