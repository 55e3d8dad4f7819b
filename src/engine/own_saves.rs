//! Saves by which a program takes back what it has saved itself, where no rule for conflicts is (C17):
//! coroutines that share a thread, threads that load and save the same file. To the file system that
//! is one program that loads and saves; the texts tell (see [`json::goes_back`](crate::json)).

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::Reads;
use super::merging::read_document_in;
use super::overwrites::Loss;
use super::{Engine, State};
use crate::sys::{at, failpoint, proc};
use crate::types::{Dentry, NodeId};

/// Files up to this size are kept, as they were read and saved by a thread, to be compared.
const SMALL: u64 = 64 << 10;
/// Files of threads of which that is done, at most.
const MOST: usize = 128;
/// They are kept so long after a thread has last had to do with the file: each costs a descriptor, and
/// who merely polls a file never saves it.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// Saves that wait to be compared.
const WAITING: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Texts {
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
pub(super) struct Doubtful {
    dentry: Dentry,
    earlier: Vec<Arc<File>>,
    later: Arc<File>,
    mine: Arc<File>,
    /// What it has replaced, and itself.
    versions: (NodeId, NodeId),
    who: (u32, String),
}

impl Texts {
    /// None, where the process may have so many descriptors.
    pub(super) fn within(descriptors: u64) -> Texts {
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
    fn note_saved(
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
    fn outstanding(&self, tid: u32, dentry: &Dentry) -> Vec<Arc<File>> {
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

impl Engine {
    /// Whether a version was saved by this process itself: nobody else's update.
    pub(super) fn is_own_save(state: &State, pid: u32, version: NodeId) -> bool {
        let author = state.registry.author(version);
        author.is_some_and(|a| pid != 0 && a.pid == pid) && !failpoint::mutant("C17-own")
    }

    /// Whether a version was saved by a process that this one has started as a step of its own, and that has ended: to be
    /// asked while the process waits.
    pub(super) fn is_past_step(state: &State, pid: u32, version: NodeId) -> bool {
        let author = state.registry.author(version);
        author.is_some_and(|a| pid != 0 && a.step_of == Some(pid) && !proc::lives(a.pid))
    }

    /// A thread has replaced a version by its save. `is_own`: one of its own process that it has not
    /// seen itself.
    pub(super) fn note_text_saved(
        state: &mut State,
        (tid, who): (u32, (u32, &str)),
        dentry: &Dentry,
        (replaced, by): (Option<NodeId>, NodeId),
        is_own: bool,
        mine: &Arc<File>,
    ) {
        let outstanding = match is_own {
            true => state.overwrites.texts.outstanding(tid, dentry),
            false => Vec::new(),
        };
        let doubts = state.overwrites.texts.note_saved(tid, dentry, mine);
        let Some(replaced) = replaced else {
            return;
        };
        let replaced_text = || {
            let fd = state.nodes.fd(replaced).ok()?;
            at::reopen_quietly(&*fd).ok().map(Arc::new)
        };
        let doubts = match outstanding.is_empty() {
            true => doubts,
            false => replaced_text()
                .filter(|f| is_small(f))
                .map(|f| (outstanding, f)),
        };
        if let Some((earlier, later)) = doubts
            && state.overwrites.doubtful.len() < WAITING
        {
            state.overwrites.doubtful.push_back(Doubtful {
                dentry: dentry.clone(),
                earlier,
                later,
                mine: mine.clone(),
                versions: (replaced, by),
                who: (who.0, who.1.to_owned()),
            });
        }
    }

    /// Remembers the text of a file that was renamed to a name.
    pub(super) fn note_text_moved(
        state: &mut State,
        tid: u32,
        dentry: &Dentry,
        (replaced, by): (Option<NodeId>, NodeId),
        is_own: bool,
    ) {
        let fd = state.nodes.fd(by);
        let Ok(mine) = fd.and_then(|fd| at::reopen_quietly(&*fd)) else {
            return;
        };
        let pid = state.registry.author(by).map_or(tid, |a| a.pid);
        let command = proc::comm(pid).unwrap_or_default();
        let who = (tid, (pid, command.as_str()));
        Engine::note_text_saved(state, who, dentry, (replaced, by), is_own, &Arc::new(mine));
    }

    /// Counts saves that take back what their own program has saved.
    pub(super) fn compare_own_saves(&self) {
        loop {
            let next = self.lock().overwrites.doubtful.pop_front();
            let Some(save) = next else {
                return;
            };
            if !save.goes_back() {
                continue;
            }
            let loss = Loss {
                lost: save.versions.0,
                by: save.versions.1,
                has_read: true,
                why: None,
                is_own: true,
            };
            let who = (save.who.0, save.who.1.as_str());
            self.note_overwritten(&mut self.lock(), &save.dentry, who, loss);
        }
    }
}

impl Doubtful {
    fn goes_back(&self) -> bool {
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

fn is_small(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.len() <= SMALL)
}

/// Whether a path ends in a name as programs give to what they are about to rename.
pub(super) fn is_temporary(path: &str) -> bool {
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
