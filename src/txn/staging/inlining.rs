//! What an fsync has made durable: small contents the journal keeps by itself until their files are on the medium.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use super::Content;
use crate::journal::{ContentInfo, Inlined};
use crate::sys::{at, failpoint};
use crate::txn::OURS;
use crate::types::{OpResult, errno_of};

/// Content up to this length may be made durable by the journal alone.
const INLINE_LIMIT: u64 = 64 << 10;
/// A content that is made durable again and again may cost so many bytes, or twice its length: who adds a line and calls fsync each time
/// would have the journal told the whole file each time.
const INLINE_FREE: u64 = 4 << 10;
/// Contents that are on the medium in the journal alone hold no more memory than this.
const INLINE_HELD: u64 = 16 << 20;
/// Nor are extended attributes longer than this told with one.
const INLINE_XATTRS: usize = 4 << 10;

impl Content {
    /// The length of what the last fsync had made durable, if nothing of it was touched since.
    pub fn fsynced_len(&self) -> Option<u64> {
        let fsynced = self.fsynced.as_ref().filter(|f| !f.overwritten)?;
        Some(fsynced.content.len)
    }

    /// Cuts the content back to what the last fsync had made durable. Gives whether it could.
    pub fn cut_back_to_fsynced(&mut self) -> bool {
        let kept = self.fsynced.as_ref().filter(|f| !f.overwritten);
        let Some(kept) = kept.map(|f| f.content.clone()) else {
            return false;
        };
        let is_cut = self.truncate(kept.len).is_ok();
        if is_cut {
            self.failed = None;
            if let (Some(grown), Some(then)) = (&mut self.grown, kept.grown) {
                grown.len = then.len;
            }
        }
        is_cut
    }

    /// What was promised before of another file holds of this one, which is on the medium.
    pub fn keep_promise(&mut self, content: ContentInfo) {
        self.note_fsynced(&content, 0);
    }

    /// What the journal has to be told so that the content survives a power cut by that alone. `None` if it is too large
    /// for that, or has been told too often.
    pub fn inline(&mut self) -> OpResult<Option<(ContentInfo, Inlined)>> {
        self.look()?;
        let len = self.size()?;
        let inlined = self.fsynced.as_ref().map_or(0, |f| f.inlined);
        let fits = len <= INLINE_LIMIT && inlined <= 2 * len.max(INLINE_FREE);
        if !fits || Inlined::held() > INLINE_HELD {
            return Ok(None);
        }
        if self.changed {
            self.copy_base()?;
        }
        let content = self.describe()?;
        let mut bytes = vec![0; usize::try_from(content.len).unwrap_or_default()];
        let file = self.readable().file;
        file.read_exact_at(&mut bytes, 0)
            .map_err(|e| errno_of(&e))?;
        let Some(xattrs) = small_xattrs(&self.file)? else {
            return Ok(None);
        };
        if content.crc != Some(crc32c::crc32c(&bytes)) {
            // A mapping is being written to.
            return Ok(None);
        }
        let stat = at::stat(&*self.file)?;
        self.note_fsynced(&content, content.len);
        let owner = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777);
        if failpoint::mutant("C7-inlined-bytes") {
            bytes.clear();
        }
        Ok(Some((content, Inlined::new(bytes, owner, xattrs))))
    }
}

/// Names and values of extended attributes.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Those that a file has, ACLs among them; `None` if they are many.
fn small_xattrs(file: &File) -> OpResult<Option<Xattrs>> {
    let (mut xattrs, mut len) = (Vec::new(), 0);
    for name in at::list_xattrs(file)? {
        if name.starts_with(OURS) {
            continue;
        }
        if let Some(value) = at::get_xattr(file, OsStr::from_bytes(&name))? {
            len += name.len() + value.len();
            xattrs.push((name, value));
        }
    }
    Ok((len <= INLINE_XATTRS).then_some(xattrs))
}
