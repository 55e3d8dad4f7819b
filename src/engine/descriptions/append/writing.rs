//! Writes through descriptions that add lines.

use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::handle::{Asked, WriteRequest};
use crate::engine::base::opening::{Opened, Pass};
use crate::engine::base::{lines, setid};
use crate::engine::descriptions::append::{records, streams, tails};
use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::file::{Appender, Opening, Unfinished};
use crate::namespace::Shown;
use crate::rules::Stream;
use crate::sys::{failpoint, proc};
use crate::types::{Caller, Dentry, NodeId, OpResult};

/// An appender of a committed version.
pub fn open_appender(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    dentry: Dentry,
    (flags, stream): (OFlags, Stream),
) -> OpResult<Opened> {
    let read = Shown::open(&state.nodes, id, engine.reading(flags))?;
    state.nodes.drop_name(id);
    let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
    node.readers += 1;
    let opener = proc::tgid(caller.tid).unwrap_or(caller.tid);
    let opening = Opening::with(flags, (opener, caller.tid));
    let appender = Appender::new(id, (true, opening), stream, dentry.clone(), read);
    state.names.enlist(&dentry, &appender);
    let handle = state.add_handle(appender);
    Ok(Opened {
        handle,
        keep_cache: true,
        direct_io: true,
        no_flush: false,
        pass: Pass::Never,
    })
}

/// Whether this can't be more of a stream, `data` being whole up to `end`.
fn breaks_off(stream: Stream, tail: &[u8], data: &[u8], end: usize) -> bool {
    match stream {
        Stream::Lines => false,
        Stream::Table => lines::in_blocks(stream, data),
        Stream::Json => {
            let is_too_long = tail.len() + data.len() > LONGEST_JSON;
            is_too_long || !lines::are_json(tail, &data[..end])
        }
    }
}

/// More of a line that isn't whole yet.
fn hold_unfinished(
    engine: &Engine,
    appender: &Appender,
    inner: &mut Unfinished,
    data: &[u8],
    by: u32,
) -> OpResult<()> {
    let before = inner.tail.len();
    inner.tail.extend_from_slice(data);
    inner.by.insert(by);
    inner.since.get_or_insert_with(Instant::now);
    let is_too_long = inner.tail.len() > LONGEST && appender.stream != Stream::Json;
    if !is_too_long && !appender.opening.sync {
        return Ok(());
    }
    // A write that fails adds nothing; what others were told of waits on.
    tails::flush_tail(engine, appender, inner).inspect_err(|_| inner.tail.truncate(before))
}

/// A write through an appending description. On a worker.
pub fn append_now(
    engine: &Engine,
    asked: Asked,
    appender: &Appender,
    request: WriteRequest,
    data: &[u8],
) -> OpResult<()> {
    let caller = asked.caller;
    let by = proc::tgid(caller.tid).unwrap_or(caller.tid);
    durability::give_way(&mut engine.lock());
    let mut inner = appender.inner.lock();
    // A stream that goes back is one no longer, and a mapping's pages have their places.
    let WriteRequest {
        offset, writeback, ..
    } = request;
    let goes_on = appender.always || offset == inner.read.length()? + inner.tail.len() as u64;
    let end = lines::whole(data, appender.stream);
    let is_no_stream = breaks_off(appender.stream, &inner.tail, data, end);
    if inner.left || writeback || !goes_on || is_no_stream {
        drop(inner);
        return streams::write_left(engine, asked, appender, request, data);
    }
    if failpoint::mutant("C10-lines") {
        return records::append_records(engine, appender, &mut inner, data);
    }
    if request.kill {
        let gone = setid::gone_of(&*inner.read.file, caller);
        setid::clear_set_id(&inner.read.file, gone)?;
    }
    if end == 0 {
        return hold_unfinished(engine, appender, &mut inner, data, by);
    }
    let (lines, rest) = data.split_at(end);
    let whole: Vec<u8>;
    let records = if inner.tail.is_empty() {
        lines
    } else {
        whole = [inner.tail.as_slice(), lines].concat();
        &whole
    };
    match records::append_records(engine, appender, &mut inner, records) {
        // Somebody has made it a document.
        Err(Errno::BADMSG) if appender.stream == Stream::Json => {
            drop(inner);
            return streams::write_left(engine, asked, appender, request, data);
        }
        other => other?,
    }
    inner.hold(rest, by);
    if appender.opening.sync {
        tails::flush_tail(engine, appender, &mut inner)?;
        drop(inner);
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// An unfinished line longer than this doesn't wait.
pub const LONGEST: usize = 1 << 20;

/// A line of JSON, which has to be whole, that is longer than this is none.
pub const LONGEST_JSON: usize = 16 << 20;
