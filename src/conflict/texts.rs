//! Texts that threads have read and saved, to find saves by which a program takes back what it has saved itself, where no rule
//! for conflicts is (C17):
//! coroutines that share a thread, threads that load and save the same file. To the file system that
//! is one program that loads and saves; the texts tell (see [`json::goes_back`](crate::json)).

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::document::read_document_in;
use super::ledger::Reads;
use crate::types::{Dentry, NodeId};

/// Files up to this size are kept, as they were read and saved by a thread, to be compared.
const SMALL: u64 = 64 << 10;
/// Files of threads of which that is done, at most.
const MOST: usize = 128;
/// They are kept so long after a thread has last had to do with the file: each costs a descriptor, and
/// who merely polls a file never saves it.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// See the module.
#[derive(Debug, Default)]
pub struct Texts {
    known: HashMap<(u32, Dentry), KnownText>,
    /// In the order in which they came.
    order: VecDeque<(u32, Dentry)>,
    clock: u64,
    /// So many at most: each costs a descriptor.
    most: usize,
}

#[derive(Debug)]
struct KnownText {
    reads: Reads<Arc<File>>,
    written: Option<(u64, Arc<File>)>,
    touched: Instant,
}

/// A save to be compared with what its program has read and saved before.
#[derive(Debug)]
pub struct Doubtful {
    /// Its name.
    pub dentry: Dentry,
    /// What was read before the save that it may take back.
    pub earlier: Vec<Arc<File>>,
    /// That save.
    pub later: Arc<File>,
    /// Itself.
    pub mine: Arc<File>,
    /// What it has replaced, and itself.
    pub versions: (NodeId, NodeId),
    /// Its process, and that one's command.
    pub who: (u32, String),
}

impl Texts {
    /// None, where the process may have so many descriptors.
    pub fn within(descriptors: u64) -> Texts {
        let most = usize::try_from(descriptors / 8).unwrap_or(MOST).min(MOST);
        Texts {
            most,
            ..Texts::default()
        }
    }

    /// A thread has read a version.
    pub fn note_read(&mut self, tid: u32, dentry: &Dentry, version: NodeId, file: &Arc<File>) {
        if is_small(file) {
            self.clock += 1;
            let at = self.clock;
            let known = self.known(tid, dentry);
            known.reads.note(Some(version), at, file.clone());
        }
    }

    /// A thread has saved a version. Gives what it had read before its last save, and that.
    pub fn note_saved(
        &mut self,
        tid: u32,
        dentry: &Dentry,
        file: &Arc<File>,
    ) -> Option<(Vec<Arc<File>>, Arc<File>)> {
        if !is_small(file) {
            self.known.remove(&(tid, dentry.clone()));
            return None;
        }
        self.clock += 1;
        let at = self.clock;
        let known = self.known(tid, dentry);
        let before = known.written.replace((at, file.clone()));
        let doubts = before.map(|(saved, later)| {
            let earlier = known.reads.all().filter(|r| r.at < saved);
            (earlier.map(|r| r.what.clone()).collect::<Vec<_>>(), later)
        });
        known.reads.use_up(at, false);
        doubts.filter(|(earlier, _)| !earlier.is_empty())
    }

    /// What a thread has read and not saved since.
    pub fn outstanding(&self, tid: u32, dentry: &Dentry) -> Vec<Arc<File>> {
        let known = self.known.get(&(tid, dentry.clone()));
        let reads = known.into_iter().flat_map(|k| k.reads.all());
        reads.map(|r| r.what.clone()).collect()
    }

    fn known(&mut self, tid: u32, dentry: &Dentry) -> &mut KnownText {
        let key = (tid, dentry.clone());
        if !self.known.contains_key(&key) {
            while self.order.len() >= self.most
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.retain(|one| *one != key);
            self.order.push_back(key.clone());
        }
        let known = self.known.entry(key).or_insert_with(|| KnownText {
            reads: Reads::default(),
            written: None,
            touched: Instant::now(),
        });
        known.touched = Instant::now();
        known
    }

    /// Gives up what nobody has had to do with for a while.
    pub fn forget_old(&mut self) {
        self.known
            .retain(|_, known| known.touched.elapsed() < KEPT_FOR);
        self.order.retain(|key| self.known.contains_key(key));
    }
}

impl Doubtful {
    /// Whether it does take it back.
    pub fn goes_back(&self) -> bool {
        let (Some(later), Some(mine)) =
            (read_document_in(&self.later), read_document_in(&self.mine))
        else {
            return false;
        };
        self.earlier.iter().any(|earlier| {
            read_document_in(earlier)
                .is_some_and(|e| crate::json::goes_back(e.value(), later.value(), mine.value()))
        })
    }
}

/// Whether a text is kept.
pub fn is_small(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.len() <= SMALL)
}

/// Whether a path ends in a name as programs give to what they are about to rename.
pub fn is_temporary(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let mut parts = name.split(['.', '-', '_']);
    let is_made_up = |part: &str| part.starts_with("tmp") && part.len() >= 9;
    name.ends_with('~')
        || parts.any(|part| ["tmp", "temp", "partial", "part"].contains(&part) || is_made_up(part))
}

#[cfg(test)]
mod tests {
    use super::is_temporary;

    #[test]
    fn temporary_names_are_told_from_others() {
        for name in [
            "a/s.json.tmp",
            "tmpab12cd34",
            ".tmp-7",
            "s.tmp3.json~",
            "zarr.json.4f.partial",
        ] {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["a.tmp/s.json", "template.json", "s.json", "tempo"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
