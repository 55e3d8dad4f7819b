//! A small content with the attributes of its file, as the journal keeps it until the file itself is on the medium.

use super::format::{Input, Reason, push_bytes};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that all of them hold in memory.
static HELD: AtomicU64 = AtomicU64::new(0);

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Inlined {
    /// All bytes of the content.
    pub bytes: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions, set-id bits among them.
    pub mode: u32,
    /// Extended attributes, ACLs among them, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Inlined {
    /// Its bytes in a record.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        for number in [self.uid, self.gid, self.mode] {
            out.extend(number.to_le_bytes());
        }
        out.extend((self.xattrs.len() as u32).to_le_bytes());
        for (name, value) in &self.xattrs {
            push_bytes(out, name);
            push_bytes(out, value);
        }
        push_bytes(out, &self.bytes);
    }

    /// As they were written there.
    pub(super) fn read(input: &mut Input<'_>) -> Result<Inlined, Reason> {
        let owner = (input.u32()?, input.u32()?, input.u32()?);
        // Grown one by one: the count is not to be trusted with memory.
        let xattr = |input: &mut Input<'_>| -> Result<_, Reason> {
            Ok((input.bytes()?.to_vec(), input.bytes()?.to_vec()))
        };
        let xattrs = (0..input.u32()?)
            .map(|_| xattr(input))
            .collect::<Result<_, _>>()?;
        Ok(Inlined::new(input.bytes()?.to_vec(), owner, xattrs))
    }

    /// A content of these bytes.
    pub fn new(
        bytes: Vec<u8>,
        (uid, gid, mode): (u32, u32, u32),
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Inlined {
        HELD.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Inlined {
            bytes,
            uid,
            gid,
            mode,
            xattrs,
        }
    }

    /// How many bytes of contents this process holds so.
    pub fn held() -> u64 {
        HELD.load(Ordering::Relaxed)
    }
}

impl Drop for Inlined {
    fn drop(&mut self) {
        HELD.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}
