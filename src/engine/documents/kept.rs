//! What is remembered between edits: parsed documents, and what each thread's last edit came to.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::documents::pieces::Pieces;
use crate::engine::documents::request::Refusal;
use crate::json::{Document, JsonError, Limits};
use crate::sys::at;
use crate::types::{Dentry, NodeId, TxnId, errno_of};

/// Parsed documents are kept up to this many bytes of text.
const KEPT_BYTES: usize = 64 << 20;
/// Threads whose last result is remembered.
const KEPT_OUTCOMES: usize = 4096;

/// What a thread's last edit came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EditOutcome {
    Done(Vec<u8>),
    Refused(String),
}

/// A parsed document, and the version that it is the text of.
#[derive(Debug)]
pub struct Parsed {
    pub node: NodeId,
    pub document: Document,
    /// Length in bytes and crc32c of the text in the file that edits build on.
    pub(in crate::engine) base: (u64, u32),
    /// Where its text is still to be written.
    pub(in crate::engine) unwritten: Option<UnwrittenEdits>,
}

impl Parsed {
    /// Reads the text of a version from its file.
    pub(in crate::engine) fn read(node: NodeId, fd: &File) -> Result<Parsed, Refusal> {
        let limits = Limits::default();
        let file = at::reopen_quietly(fd)?;
        let size = file.metadata().map_err(|e| errno_of(&e))?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > limits.bytes {
            let limit = limits.bytes;
            return Err(JsonError::TooLarge { size, limit }.into());
        }
        let mut text = Vec::with_capacity(size);
        std::io::Read::read_to_end(&mut &file, &mut text).map_err(|e| errno_of(&e))?;
        Ok(Parsed {
            node,
            document: Document::parse_within(&text, &limits)?,
            base: (text.len() as u64, crc32c::crc32c(&text)),
            unwritten: None,
        })
    }
}

/// A staging file that waits for its text.
#[derive(Debug)]
pub struct UnwrittenEdits {
    pub id: TxnId,
    pub file: Arc<File>,
    /// Modification time it is to have, in nanoseconds since the epoch.
    pub mtime_ns: i128,
}

#[derive(Debug)]
struct Kept {
    /// Held while an edit is under way. Whoever holds it waits for no checkpoint, which writes out what
    /// is in it.
    parsed: Arc<Mutex<Option<Parsed>>>,
    bytes: usize,
    used: Instant,
    /// Its text is nowhere else, since then.
    unwritten: Option<Instant>,
}

/// The engine's side of documents.
#[derive(Debug, Default)]
pub struct Documents {
    kept: Mutex<HashMap<Dentry, Kept>>,
    outcomes: Mutex<(HashMap<u32, EditOutcome>, VecDeque<u32>)>,
    pub(in crate::engine) pieces: Pieces,
}

impl Documents {
    /// The place of a document, to be locked for an edit.
    pub(in crate::engine) fn of(&self, dentry: &Dentry) -> Arc<Mutex<Option<Parsed>>> {
        let mut kept = self.kept.lock();
        let entry = kept.entry(dentry.clone()).or_insert_with(|| Kept {
            parsed: Arc::default(),
            bytes: 0,
            used: Instant::now(),
            unwritten: None,
        });
        entry.used = Instant::now();
        entry.parsed.clone()
    }

    /// Says since when a document's text is nowhere else.
    pub(in crate::engine) fn note_unwritten(&self, dentry: &Dentry, since: Option<Instant>) {
        if let Some(entry) = self.kept.lock().get_mut(dentry) {
            entry.unwritten = since;
        }
    }

    /// Whether a document's text is nowhere else.
    pub(in crate::engine) fn is_unwritten(&self, dentry: &Dentry) -> bool {
        let kept = self.kept.lock();
        kept.get(dentry).is_some_and(|k| k.unwritten.is_some())
    }

    /// Documents whose texts have been nowhere else for so long.
    pub(in crate::engine) fn unwritten_for(&self, delay: Duration) -> Vec<Dentry> {
        let kept = self.kept.lock();
        let due = |k: &Kept| k.unwritten.is_some_and(|since| since.elapsed() >= delay);
        let due = kept.iter().filter(|(_, k)| due(k));
        due.map(|(dentry, _)| dentry.clone()).collect()
    }

    /// Notes a document's size, and forgets those that were used least recently beyond the limit.
    pub(in crate::engine) fn account(&self, dentry: &Dentry, bytes: usize) {
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.get_mut(dentry) {
            entry.bytes = bytes;
        }
        let mut total: usize = kept.values().map(|k| k.bytes + 256).sum();
        while total > KEPT_BYTES {
            // One that is in use is locked, or about to be.
            let idle = kept.iter().filter(|(s, k)| {
                *s != dentry && k.unwritten.is_none() && Arc::strong_count(&k.parsed) == 1
            });
            let Some(oldest) = idle.min_by_key(|(_, k)| k.used).map(|(s, _)| s.clone()) else {
                return;
            };
            total -= kept.remove(&oldest).map_or(0, |k| k.bytes + 256);
        }
    }

    /// Gives what was remembered of the thread before.
    pub(in crate::engine) fn remember(
        &self,
        tid: u32,
        outcome: EditOutcome,
    ) -> Option<EditOutcome> {
        // All threads of other pid namespaces have this number.
        if tid == 0 {
            return None;
        }
        let (by_thread, order) = &mut *self.outcomes.lock();
        let before = by_thread.insert(tid, outcome);
        if before.is_none() {
            order.push_back(tid);
        }
        while order.len() > KEPT_OUTCOMES {
            if let Some(oldest) = order.pop_front() {
                by_thread.remove(&oldest);
            }
        }
        before
    }

    pub(in crate::engine) fn outcome(&self, tid: u32) -> Option<EditOutcome> {
        self.outcomes.lock().0.get(&tid).cloned()
    }
}
