//! What is a stream, which is shown line by line while it grows, and what is a document, which is
//! whole at its close (C10).

use crate::engine::base::current;
use crate::engine::{Engine, State};
use crate::guard::{Guard, JsonLines, ReadAt, Verdict};
use crate::namespace::NodeKind;
use crate::rules::{OnConflict, Policy, Record as RecordRule, Stream};
use crate::sys::{at, failpoint};
use crate::txn::Content;
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of};

/// A table written in blocks of this size or more is a document: `DataFrame.to_csv`, a download.
const BLOCK: usize = 4096;
/// Lines of JSON that make a stream of a document.
const LEAST: u64 = 2;
/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// Whether a file's appends are by lines: not where a guard looks at whole documents.
pub fn by_lines(policy: &Policy) -> bool {
    policy.guard == Guard::None
        && policy.record != Some(RecordRule::Close)
        && !failpoint::mutant("C10")
}

/// Whether what is appended shows at the close of a transaction, by rule or with the others of its group.
pub fn show_at_close(state: &State, id: TxnId) -> bool {
    let txn = state.txns.get(&id);
    txn.is_some_and(|t| t.round().is_some() || t.policy.record == Some(RecordRule::Close))
}

/// Whether they are where every line is a JSON value of its own, as trackers write them.
pub fn by_json_lines(policy: &Policy) -> bool {
    policy.guard == Guard::Json
        && policy.record != Some(RecordRule::Close)
        // A save that merges builds on what its thread has read.
        && !watches(policy)
        && !failpoint::mutant("C10-json")
}

/// Whether others may add lines to a file while somebody edits it.
pub fn may_be_added_to(policy: &Policy) -> bool {
    by_lines(policy) || by_json_lines(policy)
}

/// How long the complete lines at the start of `data` are.
pub fn whole(data: &[u8], stream: Stream) -> usize {
    let ends = |byte: &u8| *byte == b'\n' || (*byte == b'\r' && stream != Stream::Json);
    let end = |data: &[u8]| data.iter().rposition(ends).map_or(0, |at| at + 1);
    // The line feed is still to come, where lines end in both.
    let breaks_off = data.ends_with(b"\r") && data.windows(2).any(|two| two == b"\r\n");
    match breaks_off {
        true => end(&data[..data.len() - 1]),
        false => end(data),
    }
}

/// Whether a table looks written out in blocks: then it is a document.
pub fn in_blocks(stream: Stream, data: &[u8]) -> bool {
    let ends_inside = !matches!(data.last(), Some(b'\n' | b'\r'));
    stream == Stream::Table
        && data.len() >= BLOCK
        && ends_inside
        && !failpoint::mutant("C10-blocks")
}

/// Whether what comes behind whole lines, an unfinished line and more, goes on with JSON lines.
pub fn are_json(tail: &[u8], lines: &[u8]) -> bool {
    let mut json = JsonLines::default();
    json.feed(tail);
    json.feed(lines);
    lines.is_empty() || json.whole_lines().is_some()
}

/// Whether an unfinished line is a JSON value as it is.
pub fn is_json_value(tail: &[u8]) -> bool {
    let mut json = JsonLines::default();
    json.feed(tail);
    json.verdict() == Verdict::Complete
}

/// Whether a new file's next write makes it a stream that can be shown, or shows that it is none.
pub fn next(stream: Stream, content: &Content, data: &[u8]) -> Next {
    match stream {
        Stream::Json => match content.json_lines_with(data) {
            None => Next::Document,
            Some(LEAST..) => Next::Shows,
            Some(_) => Next::Waits,
        },
        _ if in_blocks(stream, data) => Next::Document,
        _ if whole(data, stream) > 0 => Next::Shows,
        _ => Next::Waits,
    }
}

/// What a write makes of a new file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Its complete lines are its first version.
    Shows,
    /// Nothing yet.
    Waits,
    /// It is whole at its close.
    Document,
}

/// Whether the current version of a name is known to be lines of JSON, `len` bytes in all.
pub fn knows_json_lines(state: &State, node: NodeId, len: u64) -> bool {
    len > 0 && state.nodes.get(node).is_some_and(|n| n.json_lines == len)
}

/// Looks whether a version is lines of JSON, at least two. Reads it, unless that is known.
pub fn learn_json_lines(engine: &Engine, id: NodeId) -> OpResult<bool> {
    let (fd, known) = {
        let state = engine.lock();
        let Some(node) = state.nodes.get(id).filter(|n| n.kind == NodeKind::File) else {
            return Ok(false);
        };
        (state.nodes.fd(id)?, node.json_lines)
    };
    let file = at::reopen_quietly(&*fd)?;
    let len = file.metadata().map_err(|e| errno_of(&e))?.len();
    if known == len && len > 0 {
        return Ok(true);
    }
    let mut json = JsonLines::default();
    let mut piece = vec![0; PIECE];
    while json.position() < len && json.lines().is_some() {
        let want = PIECE.min(usize::try_from(len - json.position()).unwrap_or(PIECE));
        let read = file.read_at(&mut piece[..want], json.position());
        match read.map_err(|e| errno_of(&e))? {
            0 => return Ok(false),
            read => json.feed(&piece[..read]),
        }
    }
    let are_lines = json.whole_lines().is_some_and(|lines| lines >= LEAST);
    if are_lines && let Some(node) = engine.lock().nodes.get_mut(id) {
        node.json_lines = len;
    }
    Ok(are_lines)
}

/// Learns whether what a name means now is lines of JSON.
pub fn learn_current_json_lines(engine: &Engine, dentry: &Dentry) -> OpResult<bool> {
    let current = {
        let mut state = engine.lock();
        current::current(engine, &mut state, dentry)?
    };
    learn_json_lines(engine, current)
}

/// Whether a version under a name may turn out to be lines of JSON, and nobody has looked: for
/// who opens it to append.
pub fn has_json_lines_to_learn(engine: &Engine, id: NodeId) -> bool {
    let guard = engine.lock();
    let state = &*guard;
    let node = state.nodes.get(id).filter(|n| n.kind == NodeKind::File);
    let Some((node, dentry)) = node.and_then(|n| Some((n, n.at.as_ref()?))) else {
        return false;
    };
    let policy = engine.policy(state, dentry, crate::rules::Creation::default());
    if node.direct > 0 || !by_json_lines(&policy) {
        return false;
    }
    let len = state.nodes.fd(id).and_then(|fd| at::stat(&*fd));
    len.is_ok_and(|s| s.st_size > 0 && node.json_lines != s.st_size as u64)
}

/// Whether who opens a version to append adds lines to it, and which.
pub fn adds_lines(state: &State, id: NodeId, policy: &Policy) -> Option<Stream> {
    if by_lines(policy) {
        return Some(Stream::Lines);
    }
    let len = || {
        let fd = state.nodes.fd(id).ok()?;
        u64::try_from(at::stat(&*fd).ok()?.st_size).ok()
    };
    let known = by_json_lines(policy) && knows_json_lines(state, id, len()?);
    known.then_some(Stream::Json)
}

/// Whether what becomes of a stale save is for this module to say.
pub fn watches(policy: &Policy) -> bool {
    policy.on_conflict != OnConflict::Last && !failpoint::mutant("C17")
}

/// Whether a rule makes a stream of what begins by emptying its file.
pub fn is_stream_by_rule(policy: &Policy, (empties, reads): (bool, bool)) -> bool {
    let is_set = policy.record == Some(RecordRule::Stream) && !failpoint::mutant("C10-rule");
    is_set && by_lines(policy) && empties && !reads
}

/// A new file's stream, if its name or how it is opened makes it one.
pub fn of_new(
    dentry: &Dentry,
    policy: &Policy,
    (appends, empties, reads): (bool, bool, bool),
) -> Option<Stream> {
    if is_stream_by_rule(policy, (empties, reads)) {
        return Some(Stream::Lines);
    }
    if by_json_lines(policy) {
        // A status file, which is rewritten, is no stream whatever it begins with.
        let document = policy.publishes_at_rest();
        return (appends || (empties && !reads && !document)).then_some(Stream::Json);
    }
    let named = crate::rules::text_stream(&dentry.name).filter(|_| empties && !reads);
    let stream = if appends { Some(Stream::Lines) } else { named };
    stream.filter(|_| by_lines(policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_a_line_feed_or_a_carriage_return() {
        for (data, len) in [
            (&b"one\ntwo"[..], 4),
            (b"10 %\r20 %\r", 10),
            (b"\r 10 %", 1),
            (b"none", 0),
            (b"one\r\ntwo\r", 5),
            (b"one\r\ntwo\r\n", 10),
        ] {
            assert_eq!(whole(data, Stream::Lines), len, "{}", data.escape_ascii());
        }
        assert_eq!(whole(b"1\r", Stream::Json), 0);
    }

    #[test]
    fn a_table_in_blocks_is_told_from_one_in_lines() {
        let block = b"1,2\n".repeat(2000);
        assert!(in_blocks(Stream::Table, &block[..4097]));
        assert!(
            !in_blocks(Stream::Table, &block[..4096]),
            "it ends in a line feed"
        );
        assert!(!in_blocks(Stream::Table, &block[..4095]), "too short");
        assert!(!in_blocks(Stream::Lines, &block[..4097]));
    }
}
