//! What of a page that the kernel writes back its process has changed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::parts::Parts;
use crate::sys::failpoint;
use crate::types::{OpResult, errno_of};

/// Contents that a page may hold where its process has changed nothing: the one that the transaction
/// began with, and the one that it goes on from since its last commit.
#[derive(Clone, Debug, Default)]
pub struct SeenPages {
    first: Option<Arc<File>>,
    last: Option<Arc<File>>,
    /// What it has committed since the first, and goes on from.
    committed: Parts,
}

impl SeenPages {
    /// The transaction goes on from this content.
    pub fn note(&mut self, base: &Arc<File>) {
        self.first.get_or_insert_with(|| base.clone());
        self.last = Some(base.clone());
    }

    /// The transaction has committed these bytes, and goes on. Too many to be told apart count as none.
    pub fn commit(&mut self, parts: &Parts) {
        let all = parts.within(0..u64::MAX);
        if !all.into_iter().all(|part| self.committed.add(part)) {
            self.committed = Parts::default();
        }
    }

    fn read(&self, len: usize, offset: u64) -> OpResult<Vec<Vec<u8>>> {
        let files = self.first.iter().chain(&self.last);
        files.map(|file| read_padded(file, len, offset)).collect()
    }
}

/// Which bytes of a page belong to some parts.
fn marks(parts: &Parts, len: usize, offset: u64) -> Vec<bool> {
    let mut marks = vec![false; len];
    for part in parts.within(offset..offset + len as u64) {
        marks[(part.start - offset) as usize..(part.end - offset) as usize].fill(true);
    }
    marks
}

/// What of a page is its process's own.
#[derive(Debug)]
pub struct OwnRanges {
    /// In order, and apart.
    pub ranges: Vec<Range<usize>>,
    /// Some of that others have changed, which was taken over and which the process hasn't written before.
    pub covers: bool,
}

/// Ranges of a page that are its process's own: they differ from what is `staged`, and from whatever
/// else it may have found there; or it has written that byte before. What it had found where it has
/// committed something since is there no more: a digit that comes round again is its own.
pub fn own_ranges(
    page: &[u8],
    offset: u64,
    staged: &File,
    seen: &SeenPages,
    parts: &Parts,
) -> OpResult<OwnRanges> {
    let now = read_padded(staged, page.len(), offset)?;
    let bases = seen.read(page.len(), offset)?;
    let written = marks(parts, page.len(), offset);
    let mut committed = marks(&seen.committed, page.len(), offset);
    if failpoint::mutant("C9-digit") {
        committed.fill(false);
    }
    let last = bases.len().saturating_sub(1);
    let is_news = |at: usize| {
        let may_hold = &bases[if committed[at] { last } else { 0 }..];
        may_hold.iter().all(|base| page[at] != base[at])
    };
    let is_own = |at: usize| page[at] != now[at] && (written[at] || is_news(at));
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut covers = false;
    for at in (0..page.len()).filter(|at| is_own(*at)) {
        covers |= !written[at] && bases.iter().all(|base| now[at] != base[at]);
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => ranges.push(at..at + 1),
        }
    }
    Ok(OwnRanges { ranges, covers })
}

/// Beyond its end a file is zeros to a mapping.
pub fn read_padded(file: &File, len: usize, offset: u64) -> OpResult<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(errno_of(&e)),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    #[test]
    fn a_pages_own_bytes_are_those_that_it_has_not_found_there() {
        let mut seen = SeenPages::default();
        seen.note(&file(b"abcdef"));
        // Others have made `bc` to `BC`, it has written `d` to `D` before.
        let staged = file(b"aBCDef");
        let mut parts = Parts::default();
        parts.add(3..4);
        let all = |page: &[u8]| own_ranges(page, 0, &staged, &seen, &parts).unwrap();
        let own = |page: &[u8]| all(page).ranges;
        assert!(own(b"abcDef").is_empty(), "as it was found");
        assert!(own(b"aBCDef").is_empty(), "as it is");
        assert_eq!(own(b"XbcDeY"), [0..1, 5..6], "changed");
        assert_eq!(own(b"abcdef").pop(), Some(3..4), "taken back");
        assert_eq!(own(b"aZcDef\0\0"), own(b"aZcDef"), "zeros behind the end");
        assert!(all(b"aZcDef").covers, "others' byte");
        assert!(!all(b"XbcYef").covers, "nobody else's");
    }

    #[test]
    fn a_byte_that_comes_round_to_what_it_was_at_first_is_own_once_another_was_committed() {
        let mut seen = SeenPages::default();
        seen.note(&file(b"row 10, row 7"));
        // Its own row was counted up to 19, and committed; others have changed theirs.
        let mut parts = Parts::default();
        parts.add(4..6);
        seen.commit(&parts);
        let staged = file(b"row 19, row 8");
        seen.note(&staged);
        let own = |page: &[u8]| {
            own_ranges(page, 0, &staged, &seen, &Parts::default())
                .unwrap()
                .ranges
        };
        assert_eq!(own(b"row 20, row 7"), std::slice::from_ref(&(4..6)));
        assert!(own(b"row 19, row 7").is_empty(), "as it was found");
    }
}
