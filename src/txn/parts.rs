//! Which bytes of a file an in-place editor has written.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::guard::Guard;
use crate::types::{OpResult, errno_of};

/// Whether what somebody has written of a file keeps its place in what others have made of it: rows of
/// an array do, members of a document don't.
pub fn by_place(guard: Guard) -> bool {
    matches!(guard, Guard::None | Guard::Safetensors | Guard::Npy)
}

/// So many pieces are told apart: they take about 64 MiB of memory.
const MOST: usize = 1 << 20;

/// Bytes that are looked at, or taken over, at once.
pub(super) const PIECE: usize = 1 << 20;

/// Ranges of bytes, apart from each other and in order.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// End of each range, by its beginning.
    ends: BTreeMap<u64, u64>,
}

impl Parts {
    /// These bytes belong to them, too. `false`: there are too many pieces.
    pub fn add(&mut self, added: Range<u64>) -> bool {
        let Range { mut start, mut end } = added;
        if start >= end {
            return true;
        }
        let touching: Vec<u64> = self
            .ends
            .range(..=end)
            .rev()
            .take_while(|(_, e)| **e >= start)
            .map(|(s, _)| *s)
            .collect();
        for other in touching {
            if let Some(e) = self.ends.remove(&other) {
                (start, end) = (start.min(other), end.max(e));
            }
        }
        self.ends.insert(start, end);
        self.ends.len() <= MOST
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// What of them lies within a range.
    pub fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let cut = |(s, e): (&u64, &u64)| (*s).max(range.start)..(*e).min(range.end);
        let parts = self.ends.range(..range.end).map(cut);
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// What of a range doesn't belong to them.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for part in self.within(range.clone()) {
            gaps.push(at..part.start);
            at = part.end;
        }
        gaps.push(at..range.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }
}

/// Whether two files differ in any of some parts.
pub(super) fn differ(
    parts: &Parts,
    one: &File,
    other: &File,
    within: Range<u64>,
) -> OpResult<bool> {
    let mut differs = false;
    each_piece(parts, one, within, |piece, at| {
        let mut theirs = vec![0; piece.len()];
        other
            .read_exact_at(&mut theirs, at)
            .map_err(|e| errno_of(&e))?;
        differs |= theirs != piece;
        Ok(())
    })?;
    Ok(differs)
}

/// Whether a file holds anything but zeros in any of some parts.
pub(super) fn holds_any(parts: &Parts, file: &File, within: Range<u64>) -> OpResult<bool> {
    let mut any = false;
    each_piece(parts, file, within, |piece, _| {
        any |= piece.iter().any(|byte| *byte != 0);
        Ok(())
    })?;
    Ok(any)
}

/// Shows what a file has in some parts, in pieces, each with its place.
pub(super) fn each_piece(
    parts: &Parts,
    file: &File,
    within: Range<u64>,
    mut look: impl FnMut(&[u8], u64) -> OpResult<()>,
) -> OpResult<()> {
    let mut buffer = vec![0; PIECE];
    for part in parts.within(within) {
        let mut at = part.start;
        while at < part.end {
            let size = PIECE.min(usize::try_from(part.end - at).unwrap_or(PIECE));
            file.read_exact_at(&mut buffer[..size], at)
                .map_err(|e| errno_of(&e))?;
            look(&buffer[..size], at)?;
            at += size as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_byte_is_either_a_part_or_in_a_gap(
            added in vec((0..60u64, 0..12u64), 0..20),
            from in 0..70u64,
            len in 0..70u64,
        ) {
            let mut parts = Parts::default();
            let mut written = [false; 256];
            for (start, len) in added {
                prop_assert!(parts.add(start..start + len));
                written[start as usize..(start + len) as usize].fill(true);
            }
            let range = from..from + len;
            let mut found = [None; 256];
            for (ranges, is_part) in [(parts.within(range.clone()), true), (parts.gaps(range.clone()), false)] {
                for byte in ranges.into_iter().flatten() {
                    prop_assert_eq!(found[byte as usize].replace(is_part), None);
                }
            }
            for byte in 0..256 {
                let expected = range.contains(&(byte as u64)).then_some(written[byte]);
                prop_assert_eq!(found[byte], expected, "byte {}", byte);
            }
            let ranges: Vec<_> = parts.within(0..u64::MAX);
            prop_assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
