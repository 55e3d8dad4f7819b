//! Bytes to and from headers and records. No I/O.
//!
//! Every length read from a file is checked against the bytes that are left
//! before anything is allocated for it, so a hostile file costs memory in
//! proportion to its own size and never more.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ContentInfo, Edit, FileKey, GrownInfo, Header, Inlined, JournalError, Record};
use crate::types::{Seq, TxnId, Version};

/// The format this program writes. It reads all up to this one.
pub const FORMAT_VERSION: u32 = 6;
/// The first whose contents say what they were copied from.
const WITH_GROWN: u32 = 2;
/// The first that says what editors by parts have written.
const WITH_PARTS: u32 = 3;
/// Where the first record starts, in bytes.
pub const HEADER_LEN: usize = 512;
/// The longest [`Header::instance`], in bytes.
pub const MAX_INSTANCE: usize = 200;
/// The largest payload of one record, in bytes: 10,000 edits with paths as long as there are fit.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Length and checksum in front of each payload, in bytes.
pub(super) const FRAME_LEN: usize = 8;

const MAGIC: &[u8; 8] = b"COMMITFJ";
const VERSION_AT: usize = 8;
const INSTANCE_LEN_AT: usize = 12;
const INSTANCE_AT: usize = 56;
const HEADER_CRC_AT: usize = HEADER_LEN - 4;

/// Tags of records and edits. A number, once released, is never given to
/// anything else.
mod tag {
    pub const BEGIN: u8 = 1;
    pub const RETARGET: u8 = 2;
    pub const FSYNCED: u8 = 3;
    pub const PREPARED: u8 = 4;
    pub const UNPREPARED: u8 = 5;
    pub const COMMIT: u8 = 6;
    pub const ABORT: u8 = 7;
    pub const DURABLE: u8 = 8;
    pub const WITHDRAWN: u8 = 9;
    pub const BARRIER: u8 = 10;
    pub const MOVED: u8 = 11;
    pub const GROWING: u8 = 12;
    pub const SETTLED: u8 = 13;
    pub const INLINED: u8 = 14;
    pub const GROUPED: u8 = 15;
    pub const COMPLETE: u8 = 16;
    pub const WITHHELD: u8 = 17;

    pub const PUT: u8 = 1;
    pub const DROP: u8 = 2;
    pub const APPEND: u8 = 3;
    pub const PATCH: u8 = 4;
    pub const APPEND_TO: u8 = 5;
}

/// The bytes of a whole journal: the counterpart of [`super::decode`].
///
/// # Errors
/// [`JournalError::TooLarge`] for an instance or a record over its limit.
pub fn encode(header: &Header, records: &[Record]) -> Result<Vec<u8>, JournalError> {
    let mut out = encode_header(header)?.to_vec();
    for record in records {
        push_frame(&mut out, header.journal_id, 0, record)?;
    }
    Ok(out)
}

fn encode_header(header: &Header) -> Result<[u8; HEADER_LEN], JournalError> {
    let instance = header.instance.as_bytes();
    if instance.len() > MAX_INSTANCE {
        return Err(JournalError::TooLarge {
            what: "an instance name",
            len: instance.len() as u64,
            limit: MAX_INSTANCE as u64,
        });
    }
    let mut fields = Vec::with_capacity(HEADER_LEN);
    fields.extend(MAGIC);
    fields.extend(FORMAT_VERSION.to_le_bytes());
    fields.extend((instance.len() as u32).to_le_bytes());
    fields.extend(header.journal_id.to_le_bytes());
    fields.extend(header.created_ns.to_le_bytes());
    fields.extend(header.next_id.0.to_le_bytes());
    fields.extend(header.next_seq.0.to_le_bytes());
    fields.extend(header.durable_seq.0.to_le_bytes());
    debug_assert_eq!(fields.len(), INSTANCE_AT);
    fields.extend(instance);

    let mut out = [0; HEADER_LEN];
    out[..fields.len()].copy_from_slice(&fields);
    let crc = crc32c::crc32c(&out[..HEADER_CRC_AT]);
    out[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Reads the header at the start of `bytes`.
///
/// Gives the format of the records behind it, too.
pub(super) fn decode_header(bytes: &[u8]) -> Result<(Header, u32), JournalError> {
    let damaged = |at: usize, reason| JournalError::Damaged {
        offset: at as u64,
        reason,
    };
    let shown = bytes.len().min(MAGIC.len());
    if bytes[..shown] != MAGIC[..shown] {
        return Err(JournalError::Foreign);
    }
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(damaged(bytes.len(), "the file ends within the header"));
    };
    // The checksum comes before the version: its place is the same in every
    // format, and a flipped bit must not pass for a newer one.
    let (body, crc) = header.split_at(HEADER_CRC_AT);
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(damaged(HEADER_CRC_AT, "the header's checksum is wrong"));
    }
    let mut input = Input {
        bytes: &body[VERSION_AT..],
        version: FORMAT_VERSION,
    };
    let version = input.u32().map_err(|r| damaged(VERSION_AT, r))?;
    if version > FORMAT_VERSION {
        return Err(JournalError::NewerFormat { found: version });
    }
    if version == 0 {
        return Err(damaged(VERSION_AT, "no such format version"));
    }
    let header = header_fields(input).map_err(|r| damaged(INSTANCE_LEN_AT, r))?;
    Ok((header, version))
}

fn header_fields(mut input: Input<'_>) -> Result<Header, Reason> {
    let instance_len = input.u32()? as usize;
    if instance_len > MAX_INSTANCE {
        return Err("the instance is too long");
    }
    // Fields of a struct expression are evaluated as written: in file order.
    Ok(Header {
        journal_id: input.u64()?,
        created_ns: i64::from_le_bytes(input.array()?),
        next_id: TxnId(input.u64()?),
        next_seq: Seq(input.u64()?),
        durable_seq: Seq(input.u64()?),
        instance: String::from_utf8(input.take(instance_len)?.to_vec())
            .map_err(|_| "the instance is not UTF-8")?,
    })
}

/// Appends `record` to `out`, framed for the place where `out` as a whole
/// stands `base` bytes into the file. On an error `out` is as it was.
pub(super) fn push_frame(
    out: &mut Vec<u8>,
    journal_id: u64,
    base: u64,
    record: &Record,
) -> Result<(), JournalError> {
    let start = out.len();
    out.extend([0; FRAME_LEN]);
    push_record(out, record);
    let len = out.len() - start - FRAME_LEN;
    if len > MAX_PAYLOAD {
        out.truncate(start);
        return Err(JournalError::TooLarge {
            what: "a record",
            len: len as u64,
            limit: MAX_PAYLOAD as u64,
        });
    }
    let crc = frame_crc(journal_id, base + start as u64, &out[start + FRAME_LEN..]);
    out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    out[start + 4..start + FRAME_LEN].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// The checksum of a record that starts `offset` bytes into the file.
pub(super) fn frame_crc(journal_id: u64, offset: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&journal_id.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

impl Record {
    /// How many bytes this record takes in the file, to be summed for
    /// [`super::Journal::reserve`].
    pub fn framed_len(&self) -> u64 {
        let mut payload = Vec::new();
        push_record(&mut payload, self);
        (FRAME_LEN + payload.len()) as u64
    }
}

fn push_record(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Begin {
            id,
            path,
            claim,
            pid,
            started_ns,
        } => {
            push_number(out, tag::BEGIN, id.0);
            push_path(out, path);
            out.push((*claim).into());
            out.extend(pid.to_le_bytes());
            out.extend(started_ns.to_le_bytes());
        }
        Record::Retarget { id, path } => {
            push_number(out, tag::RETARGET, id.0);
            push_option(out, path.as_deref(), push_path);
        }
        Record::Fsynced { id, content } => {
            push_number(out, tag::FSYNCED, id.0);
            push_content(out, content);
        }
        Record::Inlined { id, whole } => {
            push_number(out, tag::INLINED, id.0);
            whole.append_to(out);
        }
        Record::Prepared {
            id,
            sure,
            content,
            path,
            version,
        } => {
            push_number(out, tag::PREPARED, id.0);
            out.push((*sure).into());
            push_content(out, content);
            push_path(out, path);
            out.extend(version.0.to_le_bytes());
        }
        Record::Unprepared { id } => push_number(out, tag::UNPREPARED, id.0),
        Record::Commit { seq, edits } => {
            push_number(out, tag::COMMIT, seq.0);
            // More edits than a u32 counts are far over MAX_PAYLOAD, which is
            // refused before anything is written.
            out.extend((edits.len() as u32).to_le_bytes());
            edits.iter().for_each(|edit| push_edit(out, edit));
        }
        Record::Abort { id } => push_number(out, tag::ABORT, id.0),
        Record::Durable { seq } => push_number(out, tag::DURABLE, seq.0),
        Record::Withdrawn { seq } => push_number(out, tag::WITHDRAWN, seq.0),
        Record::Barrier => out.push(tag::BARRIER),
        Record::Moved { .. } => push_moved(out, record),
        Record::Grouped { id, round } => {
            push_number(out, tag::GROUPED, id.0);
            out.extend(round.0.to_le_bytes());
        }
        Record::Complete { round, members } => {
            push_number(out, tag::COMPLETE, round.0);
            push_ids(out, members);
        }
        Record::Withheld { id, as_fsynced } => {
            push_number(out, tag::WITHHELD, id.0);
            out.push((*as_fsynced).into());
        }
        Record::Growing { file, path, len } => {
            out.push(tag::GROWING);
            push_key(out, *file);
            push_path(out, path);
            out.extend(len.to_le_bytes());
        }
        Record::Settled { file } => push_settled(out, *file),
    }
}

fn push_moved(out: &mut Vec<u8>, record: &Record) {
    let Record::Moved {
        from,
        to,
        inode,
        exchange,
        going,
        coming,
    } = record
    else {
        return;
    };
    out.push(tag::MOVED);
    push_path(out, from);
    push_path(out, to);
    out.extend(inode.to_le_bytes());
    out.push((*exchange).into());
    push_ids(out, going);
    push_ids(out, coming);
}

fn push_ids(out: &mut Vec<u8>, ids: &[TxnId]) {
    out.extend((ids.len() as u32).to_le_bytes());
    ids.iter().for_each(|id| out.extend(id.0.to_le_bytes()));
}

fn push_settled(out: &mut Vec<u8>, file: FileKey) {
    out.push(tag::SETTLED);
    push_key(out, file);
}

fn push_edit(out: &mut Vec<u8>, edit: &Edit) {
    match edit {
        Edit::Put {
            path,
            id,
            version,
            content,
            in_place,
        } => {
            out.push(tag::PUT);
            push_path(out, path);
            out.extend(id.0.to_le_bytes());
            out.extend(version.0.to_le_bytes());
            push_content(out, content);
            out.push((*in_place).into());
        }
        Edit::Drop { path } => {
            out.push(tag::DROP);
            push_path(out, path);
        }
        Edit::Append {
            path,
            file,
            from,
            len,
            crc,
        } => {
            match file {
                Some(file) => {
                    out.push(tag::APPEND_TO);
                    push_key(out, *file);
                }
                None => out.push(tag::APPEND),
            }
            push_path(out, path);
            out.extend(from.to_le_bytes());
            out.extend(len.to_le_bytes());
            out.extend(crc.to_le_bytes());
        }
        Edit::Patch {
            path,
            id,
            version,
            base,
            merge,
            patch,
            mtime_ns,
        } => {
            out.push(tag::PATCH);
            push_path(out, path);
            out.extend(id.0.to_le_bytes());
            out.extend(version.0.to_le_bytes());
            push_option(out, *base, |out, (len, crc)| {
                out.extend(len.to_le_bytes());
                out.extend(crc.to_le_bytes());
            });
            out.push((*merge).into());
            push_bytes(out, patch);
            out.extend(mtime_ns.to_le_bytes());
        }
    }
}

fn push_content(out: &mut Vec<u8>, content: &ContentInfo) {
    out.extend(content.len.to_le_bytes());
    push_option(out, content.crc, |out, crc| out.extend(crc.to_le_bytes()));
    push_option(out, content.inline.as_deref(), push_bytes);
    out.extend(content.mtime_ns.to_le_bytes());
    push_option(out, content.grown, |out, grown| {
        out.extend(grown.inode.to_le_bytes());
        out.extend(grown.len.to_le_bytes());
    });
    push_option(out, content.parts.as_deref(), push_parts);
}

/// Each as its distance from the end of the one before, and its length.
fn push_parts(out: &mut Vec<u8>, parts: &[Range<u64>]) {
    out.extend((parts.len() as u32).to_le_bytes());
    let mut end = 0;
    for part in parts {
        push_varint(out, part.start - end);
        push_varint(out, part.end - part.start);
        end = part.end;
    }
}

/// Seven bits to a byte, the lowest first; all but the last byte have the eighth set.
fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_key(out: &mut Vec<u8>, file: FileKey) {
    out.extend(file.inode.to_le_bytes());
    out.extend(file.btime_ns.to_le_bytes());
}

fn push_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    out.push(tag);
    out.extend(number.to_le_bytes());
}

fn push_option<T>(out: &mut Vec<u8>, value: Option<T>, push: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        push(out, value);
    }
}

fn push_path(out: &mut Vec<u8>, path: &Path) {
    push_bytes(out, path.as_os_str().as_bytes());
}

pub(super) fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A length cut short here goes with a payload over MAX_PAYLOAD, which is
    // refused before anything is written.
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// What is wrong with a payload.
pub(super) type Reason = &'static str;

/// Reads the payload of one record, all of it, of a journal of that format.
pub(super) fn decode_record(payload: &[u8], version: u32) -> Result<Record, Reason> {
    let mut input = Input {
        bytes: payload,
        version,
    };
    let record = match input.u8()? {
        tag::BEGIN => Record::Begin {
            id: input.id()?,
            path: input.path()?,
            claim: input.bool()?,
            pid: input.u32()?,
            started_ns: i64::from_le_bytes(input.array()?),
        },
        tag::RETARGET => Record::Retarget {
            id: input.id()?,
            path: input.option(Input::path)?,
        },
        tag::FSYNCED => Record::Fsynced {
            id: input.id()?,
            content: input.content()?,
        },
        tag::PREPARED => Record::Prepared {
            id: input.id()?,
            sure: input.bool()?,
            content: input.content()?,
            path: input.path()?,
            version: Version(input.u64()?),
        },
        tag::UNPREPARED => Record::Unprepared { id: input.id()? },
        tag::COMMIT => Record::Commit {
            seq: Seq(input.u64()?),
            edits: input.edits()?,
        },
        tag::ABORT => Record::Abort { id: input.id()? },
        tag::DURABLE => Record::Durable { seq: input.seq()? },
        tag::WITHDRAWN => Record::Withdrawn { seq: input.seq()? },
        tag::BARRIER => Record::Barrier,
        tag::MOVED => input.moved()?,
        tag::GROWING => Record::Growing {
            file: input.key()?,
            path: input.path()?,
            len: input.u64()?,
        },
        tag::SETTLED => Record::Settled { file: input.key()? },
        tag::INLINED => Record::Inlined {
            id: input.id()?,
            whole: Arc::new(Inlined::read(&mut input)?),
        },
        tag::GROUPED => Record::Grouped {
            id: input.id()?,
            round: input.id()?,
        },
        tag::COMPLETE => Record::Complete {
            round: input.id()?,
            members: input.ids()?,
        },
        tag::WITHHELD => Record::Withheld {
            id: input.id()?,
            as_fsynced: input.bool()?,
        },
        _ => return Err("no such kind of record"),
    };
    if !input.bytes.is_empty() {
        return Err("it is longer than its fields");
    }
    Ok(record)
}

/// The bytes not yet read, and their format.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    version: u32,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let (head, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or("it is shorter than its fields")?;
        self.bytes = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let (head, rest) = self
            .bytes
            .split_first_chunk()
            .ok_or("it is shorter than its fields")?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Reason> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Reason> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        self.array().map(u64::from_le_bytes)
    }

    fn seq(&mut self) -> Result<Seq, Reason> {
        self.u64().map(Seq)
    }

    fn id(&mut self) -> Result<TxnId, Reason> {
        self.u64().map(TxnId)
    }

    fn bool(&mut self) -> Result<bool, Reason> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Reason>,
    ) -> Result<Option<T>, Reason> {
        self.bool()?.then(|| read(self)).transpose()
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Reason> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn path(&mut self) -> Result<PathBuf, Reason> {
        Ok(PathBuf::from(OsStr::from_bytes(self.bytes()?)))
    }

    fn content(&mut self) -> Result<ContentInfo, Reason> {
        Ok(ContentInfo {
            len: self.u64()?,
            crc: self.option(Self::u32)?,
            inline: self.option(|input| input.bytes().map(<[u8]>::to_vec))?,
            mtime_ns: i128::from_le_bytes(self.array()?),
            grown: match self.version >= WITH_GROWN {
                true => self.option(Self::grown)?,
                false => None,
            },
            parts: match self.version >= WITH_PARTS {
                true => self.option(Self::parts)?,
                false => None,
            },
        })
    }

    fn parts(&mut self) -> Result<Vec<Range<u64>>, Reason> {
        let mut end = 0u64;
        let mut next = |input: &mut Self, first: bool| {
            let (gap, len) = (input.varint()?, input.varint()?);
            if len == 0 || (gap == 0 && !first) {
                return Err("parts that are empty or touch each other");
            }
            let start = end.checked_add(gap);
            let part = start.and_then(|start| Some(start..start.checked_add(len)?));
            let part = part.ok_or("a part ends beyond all numbers")?;
            end = part.end;
            Ok(part)
        };
        // Grown one by one: the count is not to be trusted with memory.
        (0..self.u32()?).map(|n| next(self, n == 0)).collect()
    }

    fn varint(&mut self) -> Result<u64, Reason> {
        let mut number = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is too large, or longer than it need be")
    }

    fn moved(&mut self) -> Result<Record, Reason> {
        Ok(Record::Moved {
            from: self.path()?,
            to: self.path()?,
            inode: self.u64()?,
            exchange: self.bool()?,
            going: self.ids()?,
            coming: self.ids()?,
        })
    }

    fn ids(&mut self) -> Result<Vec<TxnId>, Reason> {
        match self.version >= WITH_PARTS {
            true => (0..self.u32()?).map(|_| self.u64().map(TxnId)).collect(),
            false => Ok(Vec::new()),
        }
    }

    fn key(&mut self) -> Result<FileKey, Reason> {
        Ok(FileKey {
            inode: self.u64()?,
            btime_ns: i64::from_le_bytes(self.array()?),
        })
    }

    fn grown(&mut self) -> Result<GrownInfo, Reason> {
        Ok(GrownInfo {
            inode: self.u64()?,
            len: self.u64()?,
        })
    }

    fn edits(&mut self) -> Result<Vec<Edit>, Reason> {
        // Grown one by one: the count is not to be trusted with memory.
        (0..self.u32()?).map(|_| self.edit()).collect()
    }

    fn edit(&mut self) -> Result<Edit, Reason> {
        match self.u8()? {
            tag::PUT => Ok(Edit::Put {
                path: self.path()?,
                id: TxnId(self.u64()?),
                version: Version(self.u64()?),
                content: self.content()?,
                in_place: self.version >= WITH_PARTS && self.bool()?,
            }),
            tag::DROP => Ok(Edit::Drop { path: self.path()? }),
            tag @ (tag::APPEND | tag::APPEND_TO) => Ok(Edit::Append {
                file: match tag {
                    tag::APPEND => None,
                    _ => Some(self.key()?),
                },
                path: self.path()?,
                from: self.u64()?,
                len: self.u64()?,
                crc: self.u32()?,
            }),
            tag::PATCH => Ok(Edit::Patch {
                path: self.path()?,
                id: TxnId(self.u64()?),
                version: Version(self.u64()?),
                base: self.option(|input| Ok((input.u64()?, input.u32()?)))?,
                merge: self.bool()?,
                patch: self.bytes()?.to_vec(),
                mtime_ns: i128::from_le_bytes(self.array()?),
            }),
            _ => Err("no such kind of edit"),
        }
    }
}
