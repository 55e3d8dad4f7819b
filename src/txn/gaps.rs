//! Editors by parts after a crash (C9): what one has promised goes into what others have made of the
//! file in place meanwhile, or have not, where a power cut has taken that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::journal::{ContentInfo, Edit, GrownInfo};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::parts::{Parts, holds_any};
use crate::txn::plan::Plan;
use crate::txn::replay::last_content;
use crate::txn::told::Recorded;
use crate::types::{Seq, TxnId, Version, errno_of, mtime_ns};

/// Where in the journal each name was last given a content that counts. What a power cut takes has
/// overtaken nobody.
#[derive(Debug, Default)]
pub(super) struct LastCommits {
    any: HashMap<PathBuf, usize>,
    /// One that isn't the version before it, edited in place.
    anew: HashMap<PathBuf, usize>,
}

impl LastCommits {
    /// A name was given a content at this place in the journal.
    pub(super) fn note(&mut self, path: &Path, place: usize, in_place: bool) {
        let maps = [
            Some(&mut self.any),
            Some(&mut self.anew).filter(|_| !in_place),
        ];
        for map in maps.into_iter().flatten() {
            let last = map.entry(path.to_owned()).or_insert(place);
            *last = (*last).max(place);
        }
    }

    /// What of a transaction's promises somebody's later commit hasn't made old; `None` if nothing is
    /// left.
    pub(super) fn standing(&self, told: &Recorded) -> Option<Recorded> {
        let mut told = told.clone();
        let path = told.path.clone()?;
        let (at, own) = (told.told_at, told.committed_at);
        let overtaken = |by_parts: bool| {
            let last = if by_parts { &self.anew } else { &self.any };
            let last = last.get(&path).copied();
            let last = match failpoint::mutant("C7-overtaken") {
                true => last.or(own),
                false => last,
            };
            last.is_some_and(|place| place > at)
        };
        told.prepared
            .take_if(|(content, ..)| overtaken(content.parts.is_some()));
        told.fsynced
            .take_if(|content| overtaken(content.parts.is_some()));
        told.claim &= !overtaken(false);
        let is_left = told.prepared.is_some() || told.fsynced.is_some() || told.claim;
        is_left.then_some(told)
    }
}

/// What each name has while promises are accepted one after the other.
#[derive(Debug, Default)]
pub(super) struct Lasts {
    /// The staging file that its content lies in.
    staged: HashMap<PathBuf, TxnId>,
    /// Those that a promise has given a content that is not an edit of the one before.
    anew: HashSet<PathBuf>,
}

impl Lasts {
    /// The commits that count have put these staging files.
    pub(super) fn new(staged: HashMap<PathBuf, TxnId>) -> Lasts {
        Lasts {
            staged,
            anew: HashSet::new(),
        }
    }

    /// Whether a promised content lacks what its name has by now, or may hold what the name hasn't.
    /// `false`, too, where it fits into nothing.
    pub(super) fn must_fill(
        &self,
        store: &Store,
        path: &Path,
        content: &ContentInfo,
        trusted: bool,
    ) -> Result<bool, Errno> {
        let Some(from) = content.grown.filter(|_| content.parts.is_some()) else {
            return Ok(false);
        };
        if self.anew.contains(path) {
            return Ok(false);
        }
        let last = last_content(store, path, self.staged.get(path).copied())?;
        let is_it = |file: &File| at::stat(file).is_ok_and(|stat| stat.st_ino == from.inode);
        Ok(last.is_some_and(|file| !trusted || !is_it(&file)))
    }

    /// A promise is accepted, `by_parts` or as a content of its own.
    pub(super) fn accept(&mut self, path: &Path, id: TxnId, by_parts: bool) {
        self.staged.insert(path.to_owned(), id);
        if !by_parts {
            self.anew.insert(path.to_owned());
        }
    }
}

/// Whether there are contents to be filled up.
pub(super) fn has_gaps(plan: &Plan) -> bool {
    let mut edits = plan.accepted.iter().flat_map(|(_, edits)| edits);
    edits.any(|edit| matches!(edit, Edit::Put { content, .. } if content.parts.is_some()))
}

/// Gives every accepted content of an editor by parts the rest of what its name had before. A crash in
/// between leaves one that is filled up once more, from the same.
pub(super) fn fill(store: &Store, plan: &mut Plan) -> Result<(), Errno> {
    let mut before: HashMap<PathBuf, (TxnId, Version, Option<Lacking>)> = HashMap::new();
    let mut appended: BTreeSet<PathBuf> = BTreeSet::new();
    for edit in plan.accepted.iter_mut().flat_map(|(_, edits)| edits) {
        match edit {
            Edit::Put {
                path,
                id,
                version,
                content,
                ..
            } => {
                let last = before.get(path);
                if let Some(parts) = content.parts.take() {
                    let source = last_content(store, path, last.map(|(id, ..)| *id))?;
                    let staged = store.open_staging(*id)?;
                    if let Some((source, staged)) = source.zip(staged)
                        && !store.is_moved_away(&staged)?
                    {
                        let grows = appended.contains(path);
                        let lacking = last.and_then(|(.., lacking)| lacking.as_ref());
                        let owed = lacking.map(|lacking| lacking.owed(content));
                        fill_gaps((&source, &staged), &parts, content, grows)?;
                        if !failpoint::mutant("C10-owed") {
                            content.grown = content.grown.or(owed);
                        }
                        failpoint::crash_point("recovery-filled");
                    }
                    if *version > Version::default() {
                        *version = (*version)
                            .max(last.map_or(Version::default(), |(_, version, _)| version.next()));
                    }
                }
                before.insert(path.clone(), (*id, *version, Lacking::of(content)));
            }
            Edit::Patch {
                path, id, version, ..
            } => drop(before.insert(path.clone(), (*id, *version, None))),
            Edit::Drop { path } => drop(before.remove(path)),
            Edit::Append { path, .. } => drop(appended.insert(path.clone())),
        }
    }
    Ok(())
}

/// Lines that others have added to the file that a content was made of: they come behind it only when
/// it is put in place, or behind what another editor's promise makes of it.
#[derive(Debug)]
struct Lacking {
    from: GrownInfo,
    /// The content's length in bytes.
    len: u64,
}

impl Lacking {
    fn of(content: &ContentInfo) -> Option<Lacking> {
        let from = content.grown?;
        let len = content.len;
        Some(Lacking { from, len })
    }

    /// What still has to come behind a content that is filled up with this one. That may have been made
    /// of the lines already, and has them unless this one has something in their place.
    fn owed(&self, content: &ContentInfo) -> GrownInfo {
        let own = content.grown.filter(|own| own.inode == self.from.inode);
        let has_them = own.filter(|own| self.len <= self.from.len && own.len > self.from.len);
        has_them.unwrap_or(self.from)
    }
}

/// As the living daemon does it at a commit (`Content::take_parts`).
fn fill_gaps(
    (source, staged): (&File, &File),
    written: &[Range<u64>],
    content: &mut ContentInfo,
    grows: bool,
) -> Result<(), Errno> {
    let Some(from) = content.grown else {
        return Ok(());
    };
    let io = |e: std::io::Error| errno_of(&e);
    let stat = at::stat(source)?;
    let (whole, is_same) = (stat.st_size.cast_unsigned(), stat.st_ino == from.inode);
    let mut parts = Parts::default();
    for part in written {
        parts.add(part.clone());
    }
    if staged.metadata().map_err(io)?.len() != content.len {
        // What it has written since is not promised, and a crash may have left more.
        rustix::fs::ftruncate(staged, content.len)?;
    }
    let overlap = from.len..content.len.min(whole);
    let behind = !is_same && grows && holds_any(&parts, source, overlap)?;
    let end = if is_same || behind {
        whole.min(from.len)
    } else {
        whole
    };
    for gap in parts.gaps(0..end) {
        if !failpoint::mutant("C9-filled") {
            at::copy_part(source, staged, gap).map_err(io)?;
        }
    }
    content.len = content.len.max(end);
    if behind {
        let (mut source, mut staged) = (source, staged);
        source.seek(SeekFrom::Start(from.len)).map_err(io)?;
        staged.seek(SeekFrom::Start(content.len)).map_err(io)?;
        content.len += std::io::copy(&mut source, &mut staged).map_err(io)?;
    }
    content.crc = None;
    // Else it has all of what it was given.
    content.grown = Some(from).filter(|_| is_same);
    if content.mtime_ns != 0 {
        content.mtime_ns = content.mtime_ns.max(mtime_ns(&stat) + 1000);
    }
    Ok(())
}

impl Plan {
    pub(super) fn last_commits(&self, places: &BTreeMap<Seq, usize>) -> LastCommits {
        let mut last = LastCommits::default();
        for (seq, edits) in &self.accepted {
            let place = places.get(seq).copied().unwrap_or(0);
            for edit in edits {
                let in_place = matches!(edit, Edit::Put { in_place: true, .. });
                if let Some(path) = edit.put_path() {
                    last.note(path, place, in_place);
                }
            }
        }
        last
    }
}
