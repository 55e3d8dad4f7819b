//! The journal: an append-only file that says which transactions are open and
//! which commits have happened, so that the next mount can finish or undo what
//! a killed daemon or a power cut left half done.
//!
//! # File layout (format version 6, little endian)
//!
//! ```text
//! 0    magic "COMMITFJ"          8 bytes
//! 8    format version            u32
//! 12   length of the instance    u32, at most 200
//! 16   journal id                u64, random for each file
//! 24   created                   i64, ns since the Unix epoch
//! 32   next transaction id       u64
//! 40   next commit number        u64
//! 48   durable commit number     u64
//! 56   instance                  200 bytes, UTF-8, zero padded
//! 256  zero                      252 bytes
//! 508  crc32c of bytes 0..508    u32
//! 512  records, back to back, each:
//!        length of the payload   u32, 1 ..= 64 MiB
//!        crc32c                  u32, of journal id ‖ file offset of this
//!                                record (u64) ‖ payload
//!        payload                 tag (u8), then the record's fields
//!      zeros, or the end of the file
//! ```
//!
//! Every later format keeps the magic, the version and the header's checksum
//! where they are: that is how an older program tells "newer" from "damaged".
//!
//! # What it relies on
//!
//! * The header and the records carried over are on the medium before the file
//!   gets its name, so a bad header is damage and never a crash.
//! * Nothing is promised about appended bytes until an fdatasync returns: any
//!   part of them may be missing after a power cut. Reading stops at the first
//!   record that is not whole. What follows it was not yet synced either, or
//!   the medium lost data it had acknowledged.
//! * The id and the offset in each checksum keep bytes of an older journal, or
//!   of a file stored inline, from passing for records of this one.

mod format;
mod inlined;
mod reader;
mod writer;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::types::{Seq, TxnId, Version};

pub use format::{FORMAT_VERSION, HEADER_LEN, MAX_INSTANCE, MAX_PAYLOAD, encode};
pub use inlined::Inlined;
pub use reader::{Contents, Tail, decode, read};
pub use writer::{Journal, fresh_id};

/// Name of the journal in the state directory.
pub const FILE_NAME: &str = "journal";

/// Name under which a new journal is written before it replaces the old one.
/// A file found under it is left over from a crash and holds nothing of value.
pub const NEW_FILE_NAME: &str = "journal.new";

/// What the journal says about itself as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Random, different for every journal file; see [`fresh_id`].
    pub journal_id: u64,
    /// When the file was made, in nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// Names the boot and the mounted device; opaque here. At most
    /// [`MAX_INSTANCE`] bytes.
    pub instance: String,
    /// The first transaction id not used before this file was made.
    pub next_id: TxnId,
    /// The first commit number not used before this file was made.
    pub next_seq: Seq,
    /// Every commit up to this one had its data on the medium when this file
    /// was made.
    pub durable_seq: Seq,
}

/// What a version of a file holds, as far as recovery needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentInfo {
    /// Length in bytes.
    pub len: u64,
    /// crc32c of the whole content, when it is known.
    pub crc: Option<u32>,
    /// The whole content itself; not written: [`Record::Inlined`] came instead.
    pub inline: Option<Vec<u8>>,
    /// Modification time, in nanoseconds since the Unix epoch.
    pub mtime_ns: i128,
    /// The file to which others may add records that this content is to have, too.
    pub grown: Option<GrownInfo>,
    /// Of an editor by parts (C9): the bytes that it has written, in order and apart. All else is as in
    /// the last version of the file that it was copied from, and is taken from there.
    pub parts: Option<Vec<Range<u64>>>,
}

/// The file that a content was copied from, to which records are added in place (C10). Whoever puts
/// the content in that file's place takes over what it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrownInfo {
    /// Inode number of that file in the backing file system.
    pub inode: u64,
    /// How many bytes of the file the content was made of, or has taken over.
    pub len: u64,
}

/// Tells a file from every other that has had, or will have, its inode number or its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// Inode number in the backing file system.
    pub inode: u64,
    /// When it was made, in nanoseconds since the Unix epoch; 0 where that is not known.
    pub btime_ns: i64,
}

/// One change to one name, as part of a [`Record::Commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The name now has the content staged under `id`.
    Put {
        /// Relative to the root of the mount. Any bytes: nothing here checks
        /// that it stays beneath the root.
        path: PathBuf,
        /// The staging id that holds the content.
        id: TxnId,
        /// The version number the file has from now on.
        version: Version,
        /// What was staged.
        content: ContentInfo,
        /// It is the version before it, edited in place: what others have written of that fits in.
        in_place: bool,
    },
    /// The name is gone.
    Drop {
        /// Relative to the root of the mount; any bytes.
        path: PathBuf,
    },
    /// The file grew by whole records, in place. Journalled before the bytes
    /// are written, so that recovery can take back what didn't get that far.
    Append {
        /// Relative to the root of the mount; any bytes. Empty if the file has lost the name that it
        /// was opened by.
        path: PathBuf,
        /// The file; formats before 3 don't say it.
        file: Option<FileKey>,
        /// The file's length before, in bytes.
        from: u64,
        /// How many bytes were added.
        len: u64,
        /// Their crc32c.
        crc: u32,
    },
    /// A JSON document was edited in memory (C15). Its text follows as a [`Edit::Put`] of the same
    /// id; until then, this edit applied to the version before it says what the text is.
    Patch {
        /// Relative to the root of the mount; any bytes.
        path: PathBuf,
        /// The staging id under which the text will be put.
        id: TxnId,
        /// The version number the file has from now on.
        version: Version,
        /// Length in bytes and crc32c of the text that the first edit under this id applies to.
        base: Option<(u64, u32)>,
        /// Whether it is a merge patch (RFC 7396), not a patch (RFC 6902).
        merge: bool,
        /// The patch.
        patch: Vec<u8>,
        /// Modification time of the version, in nanoseconds since the Unix epoch.
        mtime_ns: i128,
    },
}

impl Edit {
    /// The staging id of the content that a name gets.
    pub fn put_id(&self) -> Option<TxnId> {
        match self {
            Edit::Put { id, .. } => Some(*id),
            Edit::Patch { .. } | Edit::Drop { .. } | Edit::Append { .. } => None,
        }
    }

    /// The name that gets a new content.
    pub fn put_path(&self) -> Option<&std::path::Path> {
        match self {
            Edit::Put { path, .. } | Edit::Patch { path, .. } => Some(path),
            Edit::Drop { .. } | Edit::Append { .. } => None,
        }
    }
}

/// One entry of the journal. Paths are relative to the root of the mount and
/// may hold any bytes; whoever applies them keeps them beneath the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A transaction began.
    Begin {
        /// Its id, which is also its staging id.
        id: TxnId,
        /// The name it will commit to.
        path: PathBuf,
        /// Whether it claims its name.
        claim: bool,
        /// The process that began it.
        pid: u32,
        /// When, in nanoseconds since the Unix epoch.
        started_ns: i64,
    },
    /// The name of an open transaction was moved, or discarded (`None`).
    Retarget {
        /// The transaction.
        id: TxnId,
        /// Its name from now on.
        path: Option<PathBuf>,
    },
    /// The writer called fsync; the data as of then is on the medium.
    Fsynced {
        /// The transaction.
        id: TxnId,
        /// The content as of that fsync.
        content: ContentInfo,
    },
    /// All bytes of what the next [`Record::Fsynced`] of the transaction speaks of, which is not on the medium elsewhere.
    Inlined {
        /// The transaction.
        id: TxnId,
        /// They, and the attributes of the file.
        whole: Arc<Inlined>,
    },
    /// A transaction is complete and waits for its commit.
    Prepared {
        /// The transaction.
        id: TxnId,
        /// Whether it is certain to commit.
        sure: bool,
        /// What it will commit.
        content: ContentInfo,
        /// The name it will commit to.
        path: PathBuf,
        /// The version the file will have.
        version: Version,
    },
    /// A prepared transaction went back to being open.
    Unprepared {
        /// The transaction.
        id: TxnId,
    },
    /// A commit happened: all of its edits, or, without this record, none.
    Commit {
        /// Its place in the order of commits.
        seq: Seq,
        /// What it changes.
        edits: Vec<Edit>,
    },
    /// A transaction ended without a commit.
    Abort {
        /// The transaction.
        id: TxnId,
    },
    /// Commit `seq` did not happen after all: its bytes could not be written.
    Withdrawn {
        /// The commit.
        seq: Seq,
    },
    /// A name was removed, moved or made in the backing directory itself, which no
    /// record describes: commits behind it count only once they are durable.
    Barrier,
    /// A directory is about to be moved in the backing directory: records before this one know what
    /// is below it by its old path. Or a file that is being written, or over a name that is.
    Moved {
        /// Relative to the root of the mount; any bytes.
        from: PathBuf,
        /// Likewise.
        to: PathBuf,
        /// Inode number of what is moved: whether the move has come about.
        inode: u64,
        /// What was at `to` is at `from` since.
        exchange: bool,
        /// Open transactions that go along, with what they have promised, from `from` to `to`.
        going: Vec<TxnId>,
        /// And from `to` to `from`.
        coming: Vec<TxnId>,
    },
    /// Records may be added to a file in place from here on: what it has beyond this length, and
    /// beyond the appends that count, came to the medium before the journal did.
    Growing {
        /// The file.
        file: FileKey,
        /// Where it was; relative to the root of the mount, any bytes.
        path: PathBuf,
        /// Its length, which is on the medium.
        len: u64,
    },
    /// A file has the length it has: it is written in place by others (C14).
    Settled {
        /// The file.
        file: FileKey,
    },
    /// A transaction belongs to a round of a group: it is committed with the others of that, or not at all.
    Grouped {
        /// The transaction, or the merge that it is to commit.
        id: TxnId,
        /// The round; 0: none, by the name that it has by now.
        round: TxnId,
    },
    /// All of a round is there: its members are committed, should no *Commit* follow, if they are prepared still.
    Complete {
        /// The round.
        round: TxnId,
        /// What is prepared of it.
        members: Vec<TxnId>,
    },
    /// A transaction won't be committed for what was promised before ([`Record::Fsynced`]), and is kept for it all the same: a
    /// write of it has failed, or its close was told that it is refused. A later promise of it takes this back.
    Withheld {
        /// The transaction.
        id: TxnId,
        /// What its last fsync has made durable may become the version yet, if it can be told from all that was written since.
        as_fsynced: bool,
    },
    /// Every commit up to `seq` has its data on the medium and may be applied.
    Durable {
        /// The last such commit.
        seq: Seq,
    },
}

/// Why the journal could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The system refused. For an append: nothing of it stays in the file.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was being done, as in "cannot ...".
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// An append failed, and what it may have written could not be taken back:
    /// the next mount may or may not find it. The journal takes no more
    /// records.
    #[error(
        "cannot append to the journal, nor undo what was written of it ({undo}): {source}; the next mount decides whether it happened"
    )]
    Indeterminate {
        /// Why the append failed.
        source: io::Error,
        /// Why it could not be taken back.
        undo: io::Error,
    },
    /// A new journal has taken the old one's place, and it is not known whether
    /// that outlives a power cut: neither can be relied on.
    #[error(
        "a new journal took the place of the old one, but its directory cannot be synced: {source}"
    )]
    NameInDoubt {
        /// The system's answer.
        source: io::Error,
    },
    /// An earlier append was [`JournalError::Indeterminate`], or the journal
    /// was given up; this one wrote nothing.
    #[error("the journal is closed because an earlier write to it failed; a new one is needed")]
    Closed,
    /// Something to be written is over the format's limit; nothing was written.
    #[error("{what} of {len} bytes is over the journal's limit of {limit}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size in bytes.
        len: u64,
        /// The largest size allowed, in bytes.
        limit: u64,
    },
    /// The file under the journal's name is something else.
    #[error("not a commitfs journal; move it away")]
    Foreign,
    /// The header is sound, but of a format this program does not know.
    #[error(
        "the journal has format version {found}, newer than {known}; use the commitfs that wrote it",
        known = FORMAT_VERSION
    )]
    NewerFormat {
        /// The version in the file.
        found: u32,
    },
    /// The header is not what was written. It is whole before the file gets
    /// its name, so no crash explains this.
    #[error("the journal is damaged at byte {offset}: {reason}")]
    Damaged {
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A record has the right checksum and yet makes no sense: a newer program
    /// wrote it, or the program that wrote it was broken.
    #[error("the journal's record at byte {offset} with tag {tag} cannot be understood: {reason}")]
    BadRecord {
        /// Where the record starts, in bytes from the start of the file.
        offset: u64,
        /// The record's tag.
        tag: u8,
        /// What is wrong with it.
        reason: &'static str,
    },
}
