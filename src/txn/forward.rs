//! What becomes of contents that were promised and not committed: they are rolled forward, or kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::guard::{Guard, Replaces, examine, judge};
use crate::journal::{ContentInfo, Edit};
use crate::rules::{Creation, Rules};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::gaps::Lasts;
use crate::txn::places::{have_places, open_target};
use crate::txn::plan::Plan;
use crate::txn::told::{CompleteRounds, Recorded};
use crate::txn::whole::{checksum_of, content_is_whole, len};
use crate::types::{TxnId, Version, errno_of, mtime_ns};

/// Transactions whose close had been acknowledged, or that had called fsync, or that are claims; and rounds that were complete.
pub(super) fn roll_forward(
    (store, rules, plan): (&Store, &Rules, &mut Plan),
    (transactions, complete, used): (&[(TxnId, Recorded)], &CompleteRounds, &mut BTreeSet<TxnId>),
    mut lasts: Lasts,
    (trusted, whole): (bool, bool),
) -> Result<(), Errno> {
    let mut rounds: BTreeMap<TxnId, Vec<Edit>> = BTreeMap::new();
    for (id, told) in transactions {
        let is_refused = told.withheld == Some(false);
        if used.contains(id) || told.aborted || told.discarded || is_refused {
            continue;
        }
        let round = told.round.filter(|_| !failpoint::mutant("C23-recovered"));
        let is_whole = |round| complete.get(&round).is_some_and(|all| all.contains(id));
        if round.is_some_and(|round| !is_whole(round)) || round.is_some() && told.prepared.is_none()
        {
            // With the others of its round, or not at all.
            continue;
        }
        let found = forwarded(
            (store, rules, &lasts),
            *id,
            told,
            &plan.cuts,
            (trusted, whole),
        )?;
        let Some((mut edit, must_fill)) = found else {
            continue;
        };
        if let Edit::Put {
            path,
            content,
            in_place,
            ..
        } = &mut edit
        {
            *in_place = content.parts.is_some();
            lasts.accept(path, *id, *in_place);
            content.parts.take_if(|_| !must_fill);
            plan.unended.extend(content.grown.is_none().then_some(*id));
        }
        let edits = match round {
            Some(round) => {
                let edits = rounds.entry(round).or_default();
                edits.push(edit);
                if edits.len() < complete[&round].len() {
                    continue;
                }
                let edits = std::mem::take(edits);
                if !have_places(store, &edits)? {
                    // A power cut has taken their directory.
                    continue;
                }
                edits
            }
            None => vec![edit],
        };
        used.extend(edits.iter().filter_map(Edit::put_id));
        plan.last_seq = plan.last_seq.next();
        plan.accepted.push((plan.last_seq, edits));
    }
    Ok(())
}

/// Gives, too, whether the content has to be filled up with what its name has by now.
pub(super) fn forwarded(
    (store, rules, lasts): (&Store, &Rules, &Lasts),
    id: TxnId,
    told: &Recorded,
    cuts: &BTreeMap<PathBuf, u64>,
    (trusted, whole): (bool, bool),
) -> Result<Option<(Edit, bool)>, Errno> {
    let Some(file) = store.open_staging(id)? else {
        return Ok(None);
    };
    if store.is_moved_away(&file)? {
        return Ok(None);
    }
    if let Some((content, path, version)) = &told.prepared {
        let durable = told.fsynced.as_ref().is_some_and(|f| f == content);
        let must_fill = lasts.must_fill(store, path, content, trusted)?;
        if trusted
            || (durable && must_fill)
            || ((whole || durable) && content_is_whole(store, id, content, Some(told))?)
        {
            let put = Edit::Put {
                path: path.clone(),
                id,
                version: *version,
                content: content.clone(),
                in_place: false,
            };
            return Ok(Some((put, must_fill)));
        }
    }
    let Some(path) = told.path.clone() else {
        return Ok(None);
    };
    let put = |content: ContentInfo| Edit::Put {
        path: path.clone(),
        id,
        version: Version::default(),
        content,
        in_place: false,
    };
    if let Some(fsynced) = &told.fsynced {
        if told.withheld.is_some() && !is_as_fsynced(&file, fsynced)? {
            // What was written since, around a write that has failed, is no version.
            return Ok(None);
        }
        let is_cut = len(&file)? < fsynced.len;
        if is_cut && lasts.must_fill(store, &path, fsynced, true)? {
            // It has cut off what it had promised, and others go on from what was there.
            return Ok(None);
        }
        let must_fill = !is_cut && lasts.must_fill(store, &path, fsynced, trusted)?;
        let kept = match must_fill || told.withheld.is_some() {
            // What it has written since may be of the bytes that others have, or stand behind a write that has failed.
            true => {
                guard_permits(store, rules, &file, &path, fsynced.len)?.then(|| fsynced.clone())
            }
            false => keep_fsynced(store, rules, &file, &path, fsynced, (trusted, cuts))?,
        };
        return Ok(kept.map(|content| (put(content), must_fill)));
    }
    let len = len(&file)?;
    Ok((told.claim && len <= CLAIM_LIMIT).then(|| {
        let content = ContentInfo {
            len,
            ..ContentInfo::default()
        };
        (put(content), false)
    }))
}

/// Whether a file begins with just what an fsync has made durable, as far as that can be told.
fn is_as_fsynced(file: &File, fsynced: &ContentInfo) -> Result<bool, Errno> {
    let crc = fsynced.crc.filter(|_| !failpoint::mutant("C5-as-fsynced"));
    match crc {
        Some(crc) if len(file)? >= fsynced.len => Ok(checksum_of(file, 0, fsynced.len)? == crc),
        _ => Ok(failpoint::mutant("C5-as-fsynced")),
    }
}

/// C7: content as of the last fsync or newer, guard permitting.
pub(super) fn keep_fsynced(
    store: &Store,
    rules: &Rules,
    file: &File,
    path: &Path,
    fsynced: &ContentInfo,
    (trusted, cuts): (bool, &BTreeMap<PathBuf, u64>),
) -> Result<Option<ContentInfo>, Errno> {
    let mut now = ContentInfo {
        len: len(file)?,
        grown: fsynced.grown,
        parts: fsynced.parts.clone(),
        ..ContentInfo::default()
    };
    if lacks_some(store, path, fsynced, cuts.get(path).copied())? {
        // Of that it may have taken some over since the fsync, behind all that it had.
        now.len = now.len.min(fsynced.len);
    }
    let prefix_is_whole = now.len >= fsynced.len
        && fsynced
            .crc
            .is_none_or(|crc| checksum_of(file, 0, fsynced.len) == Ok(crc));
    if (trusted || !prefix_is_whole) && guard_permits(store, rules, file, path, now.len)? {
        return Ok(Some(now));
    }
    if !prefix_is_whole || !guard_permits(store, rules, file, path, fsynced.len)? {
        return Ok(None);
    }
    // Cut to that length when it is put in place.
    Ok(Some(fsynced.clone()))
}

/// Whether records were added to the file that a content was copied from, which it has to take over.
pub(super) fn lacks_some(
    store: &Store,
    path: &Path,
    content: &ContentInfo,
    cut: Option<u64>,
) -> Result<bool, Errno> {
    let Some((file, len)) = added_since(store, path, content)? else {
        return Ok(false);
    };
    let whole = self::len(&file)?;
    Ok(cut.map_or(whole, |cut| cut.min(whole)) > len)
}

/// The file in whose place a content will be put, if that is what the content was copied from, and
/// how much of it the content has.
pub(super) fn added_since(
    store: &Store,
    path: &Path,
    content: &ContentInfo,
) -> Result<Option<(File, u64)>, Errno> {
    let Some(grown) = content.grown else {
        return Ok(None);
    };
    let file = open_target(store, path)?;
    let is_same = |file: &File| at::stat(file).is_ok_and(|stat| stat.st_ino == grown.inode);
    Ok(file.filter(is_same).map(|file| (file, grown.len)))
}

/// C10: what others have added since the content was copied comes behind it. A crash in between
/// leaves a content that is longer than its record says, to be cut and done again. Gives when it was
/// added last, if anything was.
pub(super) fn take_added(
    store: &Store,
    path: &Path,
    content: &ContentInfo,
    mut staged: &File,
) -> Result<i128, Errno> {
    let Some((mut grown, from)) = added_since(store, path, content)? else {
        return Ok(i128::MIN);
    };
    if len(&grown)? <= from || failpoint::mutant("C10-recovered") {
        return Ok(i128::MIN);
    }
    let io = |e: std::io::Error| errno_of(&e);
    grown.seek(SeekFrom::Start(from)).map_err(io)?;
    staged.seek(SeekFrom::Start(content.len)).map_err(io)?;
    std::io::copy(&mut grown, &mut staged).map_err(io)?;
    failpoint::crash_point("recovery-taken-over");
    failpoint::sync("C19-sync-taken-over", || rustix::fs::fdatasync(staged))?;
    Ok(mtime_ns(&at::stat(&grown)?))
}

pub(super) fn guard_permits(
    store: &Store,
    rules: &Rules,
    file: &File,
    path: &Path,
    len: u64,
) -> Result<bool, Errno> {
    struct Cut<'a>(&'a File, u64);
    impl crate::guard::ReadAt for Cut<'_> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
            use std::os::unix::fs::FileExt;
            let left = usize::try_from(self.1.saturating_sub(offset)).unwrap_or(usize::MAX);
            let want = buffer.len().min(left);
            FileExt::read_at(self.0, &mut buffer[..want], offset)
        }
    }
    let policy = rules.decide(path, Creation::default());
    if policy.guard == Guard::None {
        return Ok(true);
    }
    let verdict = examine(policy.guard, &Cut(file, len), len).map_err(|e| errno_of(&e))?;
    // How it was opened is not known: what is wrong in its middle takes no document's place.
    let how = Replaces::InPlace;
    let permitted = judge(policy.guard, &verdict, how, policy.allow_empty).decide(|| {
        Ok::<_, Errno>(match open_target(store, path)? {
            Some(file) => {
                let len = self::len(&file)?;
                Some(examine(policy.guard, &file, len).map_err(|e| errno_of(&e))?)
            }
            None => None,
        })
    })?;
    Ok(permitted.is_ok())
}

/// A claim (C6) is visible up to this length.
pub(super) const CLAIM_LIMIT: u64 = 4096;
