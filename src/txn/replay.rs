//! Documents whose last edits stand in the journal only: their texts are made again.
//!
//! An edit's record says what was done to the version before. The text that the first edit of a
//! staging file builds on is the last one put under the name: still staged, or in place already.
//! Every later [`Edit::Put`] or [`Edit::Drop`] of the name makes the edits before it superfluous.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::places::open_target;
use super::plan::Plan;
use crate::journal::{ContentInfo, Edit};
use crate::json::{AnyPatch, Document, Limits};
use crate::store::{Rejected, Store, Worth};
use crate::sys::at;
use crate::types::{TxnId, Version, errno_of, mtime_ns, now_ns, path_hex};

/// A document as its edits have left it.
struct Replayed {
    id: TxnId,
    document: Document,
    /// Gives the text its owner, mode and attributes.
    like: File,
    /// The commit whose edit came last.
    last: usize,
    version: Version,
    mtime_ns: i128,
}

/// Edits that found a document they don't fit, which only happens when somebody has changed it
/// while nothing was mounted.
#[derive(Debug, Default)]
struct Unfit {
    path: PathBuf,
    reason: String,
    patches: Vec<u8>,
}

/// Where the content that a name was given last lies: staged, or, once it is not, in its place.
pub(super) fn last_content(
    store: &Store,
    path: &Path,
    staged: Option<TxnId>,
) -> Result<Option<File>, Errno> {
    let staged = staged.map(|id| store.open_staging(id)).transpose()?;
    match staged.flatten() {
        Some(file) => Ok(Some(file)),
        None => open_target(store, path),
    }
}

/// Writes the texts that the accepted edits come to, and puts [`Edit::Put`]s in the edits' place.
/// What was written by a run that a crash has ended is written again.
pub(super) fn replay(store: &Store, plan: &mut Plan) -> Result<(), Errno> {
    let mut replayed: BTreeMap<PathBuf, Replayed> = BTreeMap::new();
    let mut staged: HashMap<PathBuf, TxnId> = HashMap::new();
    let mut unfit: BTreeMap<TxnId, Unfit> = BTreeMap::new();
    let mut superfluous: BTreeSet<TxnId> = BTreeSet::new();
    let last_put = last_puts(plan);
    for (index, (_, edits)) in plan.accepted.iter().enumerate() {
        for edit in edits {
            match edit {
                // What was put later holds it, or has replaced it.
                Edit::Patch { path, id, .. }
                    if last_put.get(path).is_some_and(|at| *at > index) =>
                {
                    superfluous.insert(*id);
                }
                Edit::Put { path, id, .. } => drop(staged.insert(path.clone(), *id)),
                Edit::Drop { path } => drop(staged.remove(path)),
                Edit::Append { .. } => {}
                Edit::Patch { path, id, .. } => {
                    let found = find(store, &mut replayed, &staged, edit)?;
                    let applied = found.and_then(|document| apply(document, edit, index));
                    if let Err(reason) = applied {
                        note_unfit(unfit.entry(*id).or_default(), path, edit, reason);
                    }
                }
            }
        }
    }
    let mut puts: HashMap<usize, Vec<Edit>> = HashMap::new();
    for (path, document) in replayed {
        let content = write(store, &document)?;
        puts.entry(document.last).or_default().push(Edit::Put {
            path,
            id: document.id,
            version: document.version,
            content,
            in_place: false,
        });
    }
    for (id, unfit) in &unfit {
        keep(store, unfit, plan);
        superfluous.insert(*id);
    }
    for (index, (_, edits)) in plan.accepted.iter_mut().enumerate() {
        edits.retain(|edit| !matches!(edit, Edit::Patch { .. }));
        edits.extend(puts.remove(&index).unwrap_or_default());
    }
    plan.accepted.retain(|(_, edits)| !edits.is_empty());
    for (_, edits) in &plan.accepted {
        for edit in edits {
            if let Edit::Put { id, .. } = edit {
                superfluous.remove(id);
            }
        }
    }
    plan.superfluous.extend(superfluous);
    Ok(())
}

/// Where among the accepted commits each path was given content, or dropped, last.
fn last_puts(plan: &Plan) -> HashMap<PathBuf, usize> {
    let mut last = HashMap::new();
    for (index, (_, edits)) in plan.accepted.iter().enumerate() {
        for edit in edits {
            if let Edit::Put { path, .. } | Edit::Drop { path } = edit {
                last.insert(path.clone(), index);
            }
        }
    }
    last
}

/// The document that an edit is for; the inner error says why there is none.
fn find<'a>(
    store: &Store,
    replayed: &'a mut BTreeMap<PathBuf, Replayed>,
    staged: &HashMap<PathBuf, TxnId>,
    edit: &Edit,
) -> Result<Result<&'a mut Replayed, String>, Errno> {
    let Edit::Patch { path, id, base, .. } = edit else {
        return Ok(Err("not an edit of a document".to_owned()));
    };
    if !replayed.contains_key(path) {
        let Some(mut like) = last_content(store, path, staged.get(path).copied())? else {
            return Ok(Err("the file is gone".to_owned()));
        };
        let mut text = Vec::new();
        like.read_to_end(&mut text).map_err(|e| errno_of(&e))?;
        if base.is_some_and(|b| b != (text.len() as u64, crc32c::crc32c(&text))) {
            log::warn!(
                "{}: changed while nothing was mounted: its last edits are applied to what is there",
                path.display()
            );
        }
        let document = match Document::parse_within(&text, &Limits::default()) {
            Ok(document) => document,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let fresh = Replayed {
            id: *id,
            document,
            like,
            last: 0,
            version: Version::default(),
            mtime_ns: 0,
        };
        replayed.insert(path.clone(), fresh);
    }
    Ok(replayed.get_mut(path).ok_or_else(String::new))
}

fn apply(replayed: &mut Replayed, edit: &Edit, index: usize) -> Result<(), String> {
    let Edit::Patch {
        id,
        version,
        merge,
        patch,
        mtime_ns,
        ..
    } = edit
    else {
        return Ok(());
    };
    let limits = Limits::default();
    let patch = AnyPatch::parse(*merge, patch, &limits).map_err(|e| e.to_string())?;
    let applied = patch.apply(&mut replayed.document, &limits);
    drop(applied.map_err(|e| e.to_string())?);
    (replayed.id, replayed.last) = (*id, index);
    (replayed.version, replayed.mtime_ns) = (*version, *mtime_ns);
    Ok(())
}

fn note_unfit(unfit: &mut Unfit, path: &Path, edit: &Edit, reason: String) {
    log::error!("{}: an edit can't be applied: {reason}", path.display());
    if let Edit::Patch { patch, .. } = edit {
        unfit.patches.extend_from_slice(patch);
        unfit.patches.push(b'\n');
    }
    (unfit.path, unfit.reason) = (path.to_owned(), reason);
}

/// Edits that were acknowledged and don't fit any more are kept where people look for what is
/// missing.
fn keep(store: &Store, unfit: &Unfit, plan: &mut Plan) {
    plan.last_id = plan.last_id.next();
    let id = plan.last_id;
    let written = store.create_staging(id).and_then(|file| {
        file.write_all_at(&unfit.patches, 0)
            .map_err(|e| errno_of(&e))?;
        let meta = Rejected {
            id,
            path: unfit.path.to_string_lossy().into_owned(),
            path_hex: path_hex(&unfit.path),
            reason: format!(
                "edits that don't fit the document any more: {}",
                unfit.reason
            ),
            time_ns: now_ns(),
            pid: 0,
            command: String::new(),
            len: unfit.patches.len() as u64,
            round: None,
        };
        store.reject(&[meta], || super::room::make(store, Worth::Earlier))
    });
    if let Err(errno) = written {
        log::error!("{}: its edits can't be kept: {errno}", unfit.path.display());
    }
}

fn write(store: &Store, replayed: &Replayed) -> Result<ContentInfo, Errno> {
    let file = match store.open_staging(replayed.id)? {
        Some(file) => file,
        None => store.create_staging(replayed.id)?,
    };
    let before = mtime_ns(&at::stat(&replayed.like)?);
    let mtime_ns = replayed.mtime_ns.max(before + 1000);
    let content = write_text(&file, replayed.document.to_text().as_bytes(), mtime_ns)?;
    super::copy_attributes(&replayed.like, &file)?;
    Ok(content)
}

/// Writes a text to a staging file that is empty, or holds what a crash has left of it, with that
/// modification time.
pub fn write_text(file: &File, text: &[u8], mtime_ns: i128) -> Result<ContentInfo, Errno> {
    let io = |e: std::io::Error| errno_of(&e);
    file.write_all_at(text, 0).map_err(io)?;
    // Gives back the space set aside beyond, too.
    file.set_len(text.len() as u64).map_err(io)?;
    at::set_mtime(file, mtime_ns)?;
    Ok(ContentInfo {
        len: text.len() as u64,
        crc: Some(crc32c::crc32c(text)),
        inline: None,
        mtime_ns,
        grown: None,
        parts: None,
    })
}
