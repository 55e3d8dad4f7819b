//! The private content of one transaction: written by its handles, prepared at close.
//!
//! A `Staging` outlives changes of what lies behind it: a rename of the still open file (C11)
//! publishes the file written so far and lets the transaction go on with a copy of it.

mod grown;
mod inlining;
mod rest;
mod taking;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use crate::guard::{Guard, JsonLines, Verdict, examine};
use crate::journal;
use crate::namespace::Shown;
use crate::sys::at;
use crate::txn::pages::{SeenPages, own_ranges};
use crate::txn::parts::{Parts, by_place};
use crate::txn::passed::Passed;
use crate::types::{OpResult, TxnId, errno_of, mtime_ns};

pub use grown::GrownBase;

/// Content up to this length is read again for its checksum when it wasn't written in sequence.
const REREAD_LIMIT: u64 = 1 << 20;

/// A transaction's staged content, shared by its handles.
#[derive(Debug)]
pub struct Staging {
    content: Mutex<Content>,
    own: AtomicU8,
    /// [`Content::changed`], for who can't wait for the content.
    changed: Arc<AtomicBool>,
    /// The commit of what was published of it that its close has to see on the medium.
    owed: AtomicU64,
    /// The file that the kernel writes by itself.
    passed: OnceLock<Arc<Passed>>,
}

/// Attributes that the transaction's own descriptors have changed: at the commit they stay, and
/// the others are those of the version it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Own {
    /// fchmod, or an access ACL.
    Mode = 1,
    /// fchown.
    Owner = 2,
    /// Extended attributes, ACLs among them.
    Xattrs = 4,
    /// A write by an ordinary user has cleared the set-id bits.
    NoSetId = 8,
    /// That user was not in the file's group, so the set-group-id bit goes in any case.
    NoSetGroup = 16,
}

/// The most pieces that the journal is told of, at a few bytes each.
const MOST_TOLD: usize = 1 << 16;

/// What the handles of one transaction write into.
#[derive(Debug)]
pub struct Content {
    /// Staging file's number.
    pub id: TxnId,
    /// The staging file, open for reading and writing.
    pub file: Arc<File>,
    /// What the content starts from, as long as it hasn't been copied.
    base: Option<Shown>,
    /// The growing file that it was copied from.
    grown: Option<GrownBase>,
    /// What pages may hold that nothing was changed of.
    seen: SeenPages,
    /// What was written over that copy: all else is as it is there, and nothing was cut off.
    parts: Option<Parts>,
    places: grown::Places,
    /// Some of it came by pages of a mapping.
    mapped: bool,
    /// Versions of others that have other bytes where pages of a mapping have some, too.
    overlaid: Vec<Shown>,
    /// Something was written or truncated, ever.
    pub changed: bool,
    /// Something was written or truncated since the last [`Content::examine`].
    pub dirty: bool,
    /// The first failed write, truncate or fsync.
    pub failed: Option<WriteFailure>,
    /// Content that has been made durable by an fsync, and how much of it later writes left alone.
    pub fsynced: Option<Fsynced>,
    /// The program set the modification time itself, after its last write.
    pub times_set: bool,
    /// All of it was written since it was empty, be it that an editor has emptied it.
    anew: bool,
    rest: rest::Rest,
    sequence: Sequence,
    verdict: Option<Verdict>,
    guard: Guard,
}

/// A write, truncate or fsync that failed.
#[derive(Clone, Debug)]
pub struct WriteFailure {
    /// What the program was told.
    pub errno: Errno,
    /// Which call.
    pub what: &'static str,
}

/// The last fsync of a transaction.
#[derive(Clone, Debug)]
pub struct Fsynced {
    /// Length and checksum as of the fsync.
    pub content: journal::ContentInfo,
    /// Whether bytes below that length were written or cut since.
    pub overwritten: bool,
    /// How many bytes the journal has been told of it, in all.
    inlined: u64,
}

/// Checksum and JSON state of content written strictly from front to back.
#[derive(Debug)]
struct Sequence {
    next: u64,
    crc: u32,
    json: Option<JsonLines>,
    intact: bool,
}

impl Sequence {
    fn new(guard: Guard) -> Sequence {
        Sequence {
            next: 0,
            crc: 0,
            json: match guard {
                Guard::Json => Some(JsonLines::new(false)),
                Guard::JsonStrict => Some(JsonLines::new(true)),
                _ => None,
            },
            intact: true,
        }
    }

    fn feed(&mut self, data: &[u8], offset: u64) {
        if !self.intact {
            return;
        }
        if offset != self.next {
            self.intact = false;
            return;
        }
        self.crc = crc32c::crc32c_append(self.crc, data);
        self.next += data.len() as u64;
        if let Some(json) = &mut self.json {
            json.feed(data);
        }
    }
}

impl Staging {
    /// Staged content in `file`, starting from `base` (copied at the first write) or empty.
    pub fn new(id: TxnId, file: Arc<File>, base: Option<Shown>, guard: Guard) -> Staging {
        let mut sequence = Sequence::new(guard);
        sequence.intact = base.is_none();
        let rest = rest::Rest::default();
        let changed = rest.changed.clone();
        let content = Content {
            id,
            file,
            anew: base.is_none(),
            base,
            grown: None,
            seen: SeenPages::default(),
            parts: None,
            places: grown::Places::default(),
            mapped: false,
            overlaid: Vec::new(),
            changed: false,
            dirty: true,
            failed: None,
            fsynced: None,
            times_set: false,
            rest,
            sequence,
            verdict: None,
            guard,
        };
        Staging {
            content: Mutex::new(content),
            own: AtomicU8::new(0),
            changed,
            owed: AtomicU64::new(0),
            passed: OnceLock::new(),
        }
    }

    /// The transaction itself changed this; doesn't wait for the content.
    pub fn set_own(&self, what: Own) {
        self.own.fetch_or(what as u8, Ordering::Relaxed);
    }

    /// Whether it did.
    pub fn is_own(&self, what: Own) -> bool {
        self.own.load(Ordering::Relaxed) & what as u8 != 0
    }

    /// The content, waiting for others that use it.
    pub fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock()
    }

    /// The content if nobody uses it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, Content>> {
        self.content.try_lock()
    }
}

impl Content {
    /// Whether the next write has to copy the base first, which may take long.
    pub fn must_copy(&self) -> bool {
        self.base.is_some()
    }

    /// What reads should look into.
    pub fn readable(&self) -> Shown {
        let staged = || Shown::all_of(self.file.clone());
        self.base.clone().unwrap_or_else(staged)
    }

    /// Attributes of the staged file, with the base's size as long as it isn't copied.
    pub fn stat(&self) -> OpResult<rustix::fs::Stat> {
        let mut stat = at::stat(&*self.file)?;
        if let Some(base) = &self.base {
            let len = base.length()?;
            let base = at::stat(&*base.file)?;
            stat.st_size = i64::try_from(len).unwrap_or(i64::MAX);
            stat.st_blocks = base.st_blocks;
            stat.st_mtime = base.st_mtime;
            stat.st_mtime_nsec = base.st_mtime_nsec;
        }
        Ok(stat)
    }

    /// Writes `data` at `offset`; a failure makes the transaction one that won't commit (C5).
    pub fn write(&mut self, data: &[u8], offset: u64) -> OpResult<usize> {
        self.note_start(offset == 0);
        self.mutate("write", |c| {
            crate::sys::failpoint::fail_point("write")?;
            let end = offset.saturating_add(data.len() as u64);
            if c.parts.as_mut().is_some_and(|p| !p.add(offset..end)) {
                c.parts = None;
            }
            let written = c.file.write_at(data, offset).map_err(|e| errno_of(&e))?;
            c.sequence.feed(&data[..written], offset);
            if let Some(fsynced) = &mut c.fsynced
                && offset < fsynced.content.len
            {
                fsynced.overwritten = true;
            }
            if written < data.len() {
                // A short write is how a full disk or a limit begins: what comes next decides,
                // but a program that ignores it must not get half its data committed.
                let rest = &data[written..];
                let at = offset + written as u64;
                let more = c.file.write_at(rest, at).map_err(|e| errno_of(&e))?;
                c.sequence.feed(&rest[..more], at);
                if more < rest.len() {
                    return Err(Errno::NOSPC);
                }
            }
            Ok(data.len())
        })
    }

    /// Sets the length.
    pub fn truncate(&mut self, len: u64) -> OpResult<()> {
        self.note_start(len == 0);
        if len == 0
            && let Some(base) = self.base.take()
        {
            // What is added from now on comes behind what is written.
            let len = base.length()?;
            self.grows_from(base, len);
        }
        self.mutate("truncate", |c| {
            crate::sys::failpoint::fail_point("truncate")?;
            if len <= c.size()? {
                // It ends here, whatever others have behind it.
                c.parts = None;
            }
            rustix::fs::ftruncate(&*c.file, len)?;
            if len == 0 {
                c.anew = true;
                c.sequence = Sequence::new(c.guard);
            } else if len != c.sequence.next {
                c.sequence.intact = false;
            }
            if let Some(fsynced) = &mut c.fsynced
                && len < fsynced.content.len
            {
                fsynced.overwritten = true;
            }
            Ok(())
        })
    }

    /// fallocate on the staged content.
    pub fn allocate(
        &mut self,
        mode: rustix::fs::FallocateFlags,
        offset: u64,
        len: u64,
    ) -> OpResult<()> {
        // Not a write whose failure spoils the content: programs probe for it.
        self.copy_base()?;
        if !rustix::fs::FallocateFlags::KEEP_SIZE.contains(mode) {
            self.parts = None;
        }
        rustix::fs::fallocate(&*self.file, mode, offset, len)?;
        self.touched();
        self.sequence.intact = false;
        if let Some(fsynced) = &mut self.fsynced {
            fsynced.overwritten = true;
        }
        Ok(())
    }

    /// Makes the content durable. Gives what to journal.
    pub fn fsync(&mut self) -> OpResult<journal::ContentInfo> {
        self.look()?;
        let synced = self.sync_data();
        if let Err(errno) = synced {
            self.fail(errno, "fsync");
            return Err(errno);
        }
        let content = self.describe()?;
        self.note_fsynced(&content, 0);
        Ok(content)
    }

    /// So much is durable, of which the journal has been told so many bytes.
    fn note_fsynced(&mut self, content: &journal::ContentInfo, inlined: u64) {
        let before = self.fsynced.as_ref().map_or(0, |f| f.inlined);
        self.fsynced = Some(Fsynced {
            content: content.clone(),
            // What a failed write has left of it is no version.
            overwritten: self.failed.is_some() && !crate::sys::failpoint::mutant("C5-fsynced"),
            inlined: before + inlined,
        });
    }

    fn sync_data(&mut self) -> OpResult<()> {
        if self.changed {
            self.copy_base()?;
        }
        crate::sys::failpoint::sync("C7-sync-data", || rustix::fs::fdatasync(&*self.file))
    }

    /// Reads through the program's own view.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> OpResult<usize> {
        let from = self.readable();
        let len = from.within(offset, buffer.len() as u64) as usize;
        from.file
            .read_at(&mut buffer[..len], offset)
            .map_err(|e| errno_of(&e))
    }

    /// Copies the base, so that the staging file holds the content itself.
    pub fn copy_base(&mut self) -> OpResult<()> {
        let Some(base) = self.base.clone() else {
            return Ok(());
        };
        // A link may have left a copy of an older base there.
        rustix::fs::ftruncate(&*self.file, 0)?;
        // What is being added to it right now is not whole yet.
        let len = base.length()?;
        at::copy_contents(&base.file, &self.file, len).map_err(|e| {
            rustix::fs::ftruncate(&*self.file, 0).ok();
            errno_of(&e)
        })?;
        self.base = None;
        self.seen.note(&base.file);
        self.grows_from(base, len);
        let by_parts = self.grown.is_some() && by_place(self.guard);
        self.parts = by_parts.then(Parts::default);
        self.places.overwrites = false;
        Ok(())
    }

    /// Others may add to what this was copied from, unless a guard wants whole documents there. JSON
    /// may be lines.
    fn grows_from(&mut self, from: Shown, len: u64) {
        let grows = (by_place(self.guard) || self.guard == Guard::Json)
            && !crate::sys::failpoint::mutant("C10-editors");
        self.grown = grows.then_some(GrownBase { from, len });
    }

    /// What of a page that was written back is this transaction's own.
    pub fn changed_in(&mut self, page: &[u8], offset: u64) -> OpResult<Vec<Range<usize>>> {
        self.rest.by_pages = true;
        self.copy_base()?;
        match &self.parts {
            Some(parts) if !crate::sys::failpoint::mutant("C9-pages") => {
                let own = own_ranges(page, offset, &self.file, &self.seen, parts)?;
                self.mapped |= !own.ranges.is_empty();
                if let Some(grown) = self.grown.as_ref().filter(|_| own.covers) {
                    let version = grown.from.clone();
                    self.overlay(version);
                }
                Ok(own.ranges)
            }
            // All of the content is.
            _ => Ok(std::iter::once(0..page.len()).collect()),
        }
    }

    /// Bytes of this version, which others have changed, are other ones here.
    fn overlay(&mut self, version: Shown) {
        let is_last = |last: &Shown| Arc::ptr_eq(&last.file, &version.file);
        let is_known = self.overlaid.last().is_some_and(is_last);
        if !is_known && !crate::sys::failpoint::mutant("C9-overlaid") {
            self.overlaid.push(version);
        }
    }

    /// The versions whose bytes a commit overwrites that came by pages of a mapping.
    pub fn take_overlaid(&mut self) -> Vec<Shown> {
        std::mem::take(&mut self.overlaid)
    }

    /// Whether all that it doesn't have from what it was copied from is known.
    pub fn is_by_parts(&self) -> bool {
        self.parts.is_some() && !crate::sys::failpoint::mutant("C9-parts")
    }

    /// What [`Content::take_added`] has taken it over from.
    pub fn grown(&self) -> Option<GrownBase> {
        self.grown.clone()
    }

    /// Marks the content as spoilt by a failed call.
    pub fn fail(&mut self, errno: Errno, what: &'static str) {
        if crate::sys::failpoint::mutant("C5") {
            return;
        }
        self.failed.get_or_insert(WriteFailure { errno, what });
    }

    fn touched(&mut self) {
        self.set_changed(true);
        self.rest.written = Instant::now();
        self.dirty = true;
        self.times_set = false;
        self.verdict = None;
    }

    fn mutate<T>(
        &mut self,
        what: &'static str,
        call: impl FnOnce(&mut Content) -> OpResult<T>,
    ) -> OpResult<T> {
        let result = self.copy_base().and_then(|()| call(self));
        self.touched();
        result.inspect_err(|errno| self.fail(*errno, what))
    }

    /// The guard's verdict on the content, remembered until the next write.
    pub fn examine(&mut self, guard: Guard) -> OpResult<Verdict> {
        let len = self.size()?;
        if guard != self.guard {
            // On its way to a name with another guard (C11).
            return examine(guard, &*self.readable().file, len).map_err(|e| errno_of(&e));
        }
        if let Some(verdict) = &self.verdict {
            return Ok(verdict.clone());
        }
        let verdict = match &self.sequence {
            Sequence {
                json: Some(json),
                intact: true,
                next,
                ..
            } if *next == len => json.verdict(),
            _ => examine(self.guard, &*self.readable().file, len).map_err(|e| errno_of(&e))?,
        };
        self.verdict = Some(verdict.clone());
        Ok(verdict)
    }

    /// How many lines of JSON it would be, with `data` at its end; `None` if it is no such lines.
    pub fn json_lines_with(&self, data: &[u8]) -> Option<u64> {
        let json = self
            .sequence
            .json
            .as_ref()
            .filter(|_| self.sequence.intact)?;
        let lines = json.lines()?;
        if !data.contains(&b'\n') {
            return Some(lines);
        }
        let mut with = json.clone();
        with.feed(data);
        with.lines()
    }

    /// Length in bytes.
    pub fn size(&self) -> OpResult<u64> {
        Ok(u64::try_from(self.stat()?.st_size).unwrap_or(0))
    }

    /// Length, checksum and time for the journal.
    pub fn describe(&mut self) -> OpResult<journal::ContentInfo> {
        let stat = self.stat()?;
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let crc = if self.sequence.intact && self.sequence.next == len {
            Some(self.sequence.crc)
        } else if len <= REREAD_LIMIT {
            let mut content = vec![0u8; len as usize];
            self.readable()
                .file
                .read_exact_at(&mut content, 0)
                .map_err(|e| errno_of(&e))?;
            Some(crc32c::crc32c(&content))
        } else {
            None
        };
        Ok(journal::ContentInfo {
            len,
            crc,
            inline: None,
            mtime_ns: mtime_ns(&stat),
            grown: self.grown.as_ref().map(GrownBase::told).transpose()?,
            parts: self.told_parts(),
        })
    }

    /// What recovery has to know of what it has written, unless that would be too much to tell.
    fn told_parts(&self) -> Option<Vec<Range<u64>>> {
        let parts = self.parts.as_ref().filter(|_| self.is_by_parts())?;
        let tells = parts.count() <= MOST_TOLD && !crate::sys::failpoint::mutant("C9-told");
        tells.then(|| parts.within(0..u64::MAX))
    }

    /// Starts from another content. Only as long as nothing is written.
    pub fn start_from(&mut self, base: Shown) {
        debug_assert!(!self.changed);
        if self.base.is_none() {
            self.sequence.intact = false;
        }
        self.base = Some(base);
        self.anew = false;
        self.parts = None;
        self.verdict = None;
    }

    /// Has nothing of its own any more, and starts from another content.
    pub fn take_over(&mut self, base: Shown) {
        self.set_changed(false);
        self.grown = None;
        self.sequence.intact = false;
        if let Some(fsynced) = &mut self.fsynced {
            fsynced.overwritten = true;
        }
        self.dirty = true;
        self.start_from(base);
    }

    /// Goes on with a `file` that starts from what was staged so far: it is empty, or has been
    /// copied there. Gives the file that holds it, which nobody will write any more.
    pub fn continue_in(&mut self, id: TxnId, file: File, copied: bool) -> Arc<File> {
        let published = std::mem::replace(&mut self.file, Arc::new(file));
        self.id = id;
        self.base = (!copied).then(|| Shown::all_of(published.clone()));
        self.anew &= copied;
        // What was copied is still to be committed under its own name.
        self.set_changed(self.changed && copied);
        self.grown = self.grown.take().filter(|_| copied);
        if let Some(parts) = self.parts.take_if(|_| !copied) {
            self.seen.commit(&parts);
        }
        self.dirty = true;
        self.fsynced = None;
        self.sequence.intact = false;
        self.verdict = None;
        published
    }

    /// What it starts from has this end (see [`crate::namespace::Node::whole`]).
    pub fn base_ends_at(&mut self, end: Arc<AtomicU64>) {
        if let Some(base) = &mut self.base {
            base.end = end;
        }
    }
}
