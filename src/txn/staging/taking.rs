//! What others have written beside a content is taken over into it.

use std::os::unix::fs::FileExt;

use super::super::pages::read_padded;
use super::super::parts::{PIECE, Parts, differ, each_piece, holds_any};
use super::{Content, GrownBase};
use crate::namespace::Shown;
use crate::sys::at;
use crate::types::{OpResult, errno_of, mtime_ns};

impl Content {
    /// Takes over what others have added to the file since it was copied: on the plain directory,
    /// too, the lines that others append stay. While nobody adds to anything.
    pub fn take_added(&mut self) -> OpResult<()> {
        match self.grown.clone().filter(|g| !g.is_complete()) {
            Some(grown) => self.take_behind(grown),
            None => Ok(()),
        }
    }

    /// What a file has beyond what the content has of it comes behind that.
    pub(super) fn take_behind(&mut self, mut grown: GrownBase) -> OpResult<()> {
        let whole = grown.from.length()?;
        let mut piece = vec![
            0;
            usize::try_from(whole.saturating_sub(grown.len))
                .unwrap_or(PIECE)
                .min(PIECE)
        ];
        if self.size()? != grown.len {
            // What it has written itself stands where the others' file goes on.
            self.parts = None;
        }
        while grown.len < whole {
            let size = piece
                .len()
                .min(usize::try_from(whole - grown.len).unwrap_or(PIECE));
            grown
                .from
                .file
                .read_exact_at(&mut piece[..size], grown.len)
                .map_err(|e| errno_of(&e))?;
            let end = self.size()?;
            let parts = self.parts.take();
            let written = self.write(&piece[..size], end);
            self.parts = parts;
            written?;
            grown.len += size as u64;
        }
        self.grown = Some(grown);
        Ok(())
    }

    /// Whether this is what it was copied from.
    pub fn is_made_of(&self, version: &Shown) -> OpResult<bool> {
        let Some(grown) = &self.grown else {
            return Ok(false);
        };
        Ok(at::stat(&*grown.from.file)?.st_ino == at::stat(&*version.file)?.st_ino)
    }

    /// What it has written is what it changes in another version of the same file (C9), as on the
    /// plain directory; where records were `appended` to that, they don't have a place of their own.
    /// Gives whether others have changed any of what it has written; `None` if it was made of this
    /// version.
    pub fn take_parts(&mut self, current: Shown, appended: bool) -> OpResult<Option<bool>> {
        let (Some(parts), Some(grown)) = (self.parts.clone(), self.grown.clone()) else {
            return Ok(None);
        };
        if self.is_made_of(&current)? {
            return Ok(None);
        }
        let times = self.times_set.then(|| self.stat()).transpose()?;
        // A copy that ends half-way must not be taken for either.
        self.touched();
        self.sequence.intact = false;
        if let Some(fsynced) = &mut self.fsynced {
            fsynced.overwritten = true;
        }
        let taken = self.copy_gaps(&parts, grown, current, appended);
        self.places.overwrites |= taken.inspect_err(|errno| self.fail(*errno, "copy"))?;
        if let Some(stat) = times {
            at::set_mtime(&self.file, mtime_ns(&stat))?;
            self.times_set = true;
        }
        Ok(Some(self.places.overwrites))
    }

    pub(super) fn copy_gaps(
        &mut self,
        parts: &Parts,
        grown: GrownBase,
        current: Shown,
        appended: bool,
    ) -> OpResult<bool> {
        let (whole, own) = (current.length()?, self.size()?);
        let mut overwrites = differ(parts, &grown.from.file, &current.file, 0..grown.len)?;
        let meets = holds_any(parts, &current.file, grown.len..own.min(whole))?;
        let comes_behind = meets && appended;
        self.places.come_behind = comes_behind && parts.within(0..grown.len).is_empty();
        overwrites |= meets && !appended;
        if self.mapped && overwrites && self.covers(parts, &grown, &current)? {
            self.overlay(current.clone());
        }
        let end = if comes_behind { grown.len } else { whole };
        for gap in parts.gaps(0..end) {
            at::copy_part(&current.file, &self.file, gap).map_err(|e| errno_of(&e))?;
        }
        let grown = GrownBase {
            from: current,
            len: end,
        };
        match comes_behind {
            true => self.take_behind(grown)?,
            false => self.grown = Some(grown),
        }
        Ok(overwrites)
    }

    /// Whether others have made bytes of what it was made of other ones than it has itself.
    pub(super) fn covers(
        &self,
        parts: &Parts,
        grown: &GrownBase,
        current: &Shown,
    ) -> OpResult<bool> {
        let mut covers = false;
        let both = 0..self.size()?.min(current.length()?);
        each_piece(parts, &self.file, both, |own, at| {
            let theirs = read_padded(&current.file, own.len(), at)?;
            let mut base = read_padded(&grown.from.file, own.len(), at)?;
            // Beyond what was copied there was nothing.
            let copied = usize::try_from(grown.len.saturating_sub(at)).unwrap_or(usize::MAX);
            base[copied.min(own.len())..].fill(0);
            let bytes = own.iter().zip(theirs).zip(base);
            covers |= bytes
                .into_iter()
                .any(|((own, theirs), base)| theirs != base && theirs != *own);
            Ok(())
        })?;
        Ok(covers)
    }
}
