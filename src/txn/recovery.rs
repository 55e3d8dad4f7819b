//! After a crash: brings the backing directory to a prefix of the order of commits.
//!
//! What is acceptable depends on what ended the daemon. If the same boot still has the same file
//! system mounted, nothing was lost but the daemon, and all that was journalled counts. Otherwise
//! a commit beyond the last durable one counts only if its content matches its checksum, and the
//! first that doesn't ends the prefix. Running it twice gives what running it once gives: a fresh
//! journal that says "all of this is durable" stands before the first file is moved.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::gaps::{self, LastCommits, Lasts};
use super::growth::{self, Growth};
use super::leftover::{self, reject};
use super::moves::Followed;
use super::places::{have_places, parent_of};
use super::told::{CompleteRounds, Recorded, SortedRecords, collect};
use super::touched::Touched;
use super::{part, replay};
use crate::guard::{Guard, Replaces, examine, judge};
use crate::journal::{self, ContentInfo, Edit, Header, Journal, JournalError, Record};
use crate::rules::{Creation, Rules};
use crate::store::{Store, Worth};
use crate::sys::{at, failpoint};
use crate::types::{Seq, TxnId, Version, errno_of, mtime_ns, now_ns};

pub use super::leftover::Leftover;

/// A claim (C6) is visible up to this length.
const CLAIM_LIMIT: u64 = 4096;

/// Why recovery refuses. Nothing has been changed then.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The journal can't be read or isn't ours.
    #[error(
        "{path}/.commitfs/journal: {source}; nothing was changed: look with `commitfs check {path}`"
    )]
    Journal {
        /// The backing directory.
        path: PathBuf,
        /// What is wrong with it.
        source: JournalError,
    },
    /// There is no space for a journal, or for the names of what is put in place.
    #[error(
        "{path}: recovery needs room on this disk, up to 2 MiB; remove something and mount again: what was committed waits in .commitfs"
    )]
    Full {
        /// The backing directory.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{path}: recovery: {what}: {source}")]
    Io {
        /// The backing directory.
        path: PathBuf,
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What recovery found and did.
#[derive(Debug)]
pub struct Recovered {
    /// The journal to go on with.
    pub journal: Journal,
    /// Last transaction number ever given.
    pub last_id: TxnId,
    /// Last commit.
    pub last_seq: Seq,
    /// Versions moved to their names.
    pub applied: usize,
    /// Contents moved to rejected.
    pub rejected: usize,
}

/// What would be recovered: the result of reading, before anything is changed.
#[derive(Debug, Default)]
pub struct Plan {
    /// Commits that count, in order.
    pub accepted: Vec<(Seq, Vec<Edit>)>,
    /// Contents that don't, with what is known of them.
    pub leftovers: Vec<Leftover>,
    /// Files that grew in place by appends that don't count, and their length without them.
    pub cuts: BTreeMap<PathBuf, u64>,
    /// Something may be among what is cut off that nobody would find elsewhere.
    keeps_cuts: bool,
    /// Staging files that stood for edits of documents which something later has replaced.
    pub(super) superfluous: Vec<TxnId>,
    /// Staging files of transactions that had not ended.
    pub(super) unended: Vec<TxnId>,
    pub(super) last_id: TxnId,
    last_seq: Seq,
}

impl Plan {
    fn last_commits(&self, places: &BTreeMap<Seq, usize>) -> LastCommits {
        let mut last = LastCommits::default();
        for (seq, edits) in &self.accepted {
            let place = places.get(seq).copied().unwrap_or(0);
            for edit in edits {
                let in_place = matches!(edit, Edit::Put { in_place: true, .. });
                if let Some(path) = edit.put_path() {
                    last.note(path, place, in_place);
                }
            }
        }
        last
    }

    /// Whether there are texts to be written.
    fn edits_documents(&self) -> bool {
        let mut edits = self.accepted.iter().flat_map(|(_, edits)| edits);
        edits.any(|edit| matches!(edit, Edit::Patch { .. }))
    }

    /// An append that counts lies where one that failed was to lie, which couldn't be withdrawn.
    fn spare_accepted(&mut self, edits: &[Edit]) {
        for edit in edits {
            if let Edit::Append {
                path, from, len, ..
            } = edit
                && let Some(cut) = self.cuts.get_mut(path)
            {
                *cut = (*cut).max(from + len);
            }
        }
    }

    fn take_back(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            if let Edit::Append { path, from, .. } = edit {
                // Appends of one file are in order: the first that doesn't count says it.
                self.cuts.entry(path).or_insert(from);
            }
        }
    }
}

/// Identity of boot and mounted file system: the same when nothing but the daemon has ended.
pub fn instance(root: impl AsFd) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let unique = rustix::fs::StatxFlags::from_bits_retain(0x4000);
    let mount = rustix::fs::statx(
        root.as_fd(),
        c"",
        rustix::fs::AtFlags::EMPTY_PATH,
        unique | rustix::fs::StatxFlags::MNT_ID | rustix::fs::StatxFlags::BASIC_STATS,
    );
    match mount {
        Ok(s) => format!(
            "{} {}:{} {}",
            boot.trim(),
            s.stx_dev_major,
            s.stx_dev_minor,
            s.stx_mnt_id
        ),
        Err(_) => boot.trim().to_owned(),
    }
}

/// Recovers a store and starts its new journal.
///
/// # Errors
/// [`RecoveryError`]; a journal that can't be understood is left as it is.
pub fn recover(store: &Store, rules: &Rules) -> Result<Recovered, RecoveryError> {
    let full = |e: &RecoveryError| match e {
        RecoveryError::Io { source, .. } => is_full(source),
        RecoveryError::Journal {
            source: JournalError::Io { source, .. },
            ..
        } => is_full(source),
        RecoveryError::Journal { .. } | RecoveryError::Full { .. } => false,
    };
    let recovered = loop {
        match recover_once(store, rules) {
            // Recovery may end anywhere and begin again.
            Err(e)
                if full(&e)
                    && (store.release_reserve() || super::room::make(store, Worth::OnlyCopy)) => {}
            other => break other,
        }
    };
    recovered.map_err(|e| match full(&e) {
        true => RecoveryError::Full {
            path: store.path.clone(),
        },
        false => e,
    })
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

fn recover_once(store: &Store, rules: &Rules) -> Result<Recovered, RecoveryError> {
    let path = store.path.clone();
    let told = journal::read(store.state.as_fd()).map_err(|source| RecoveryError::Journal {
        path: path.clone(),
        source,
    })?;
    let instance = instance(&store.root);
    let only_daemon = (told.as_ref()).is_some_and(|told| told.header.instance == instance);
    let io = |what: &str| {
        let (path, what) = (path.clone(), what.to_owned());
        move |source: Errno| RecoveryError::Io {
            path,
            what,
            source: source.into(),
        }
    };
    let lost = told.as_ref().filter(|_| !only_daemon);
    super::restore::restore(store, lost).map_err(io("writing out what the journal has"))?;
    let mut plan =
        plan(store, rules, told.as_ref(), &instance).map_err(io("reading staged content"))?;
    let start = |plan: &Plan, records: &[Record]| {
        let header = Header {
            journal_id: journal::fresh_id(),
            created_ns: now_ns(),
            instance: instance.clone(),
            next_id: plan.last_id.next(),
            next_seq: plan.last_seq.next(),
            durable_seq: plan.last_seq,
        };
        Journal::create(store.state.as_fd(), header, records).map_err(|source| {
            RecoveryError::Journal {
                path: path.clone(),
                source,
            }
        })
    };
    sync_accepted(store, &plan).map_err(io("making staged content durable"))?;
    cut(store, &mut plan).map_err(io("taking back unfinished appends"))?;
    if (plan.edits_documents() || gaps::has_gaps(&plan)) && !failpoint::mutant("C19-decided") {
        // The texts that are written now are what a commit beyond the prefix may have had, so that
        // it would count next time.
        start(&plan, &carried(&plan))?;
    }
    gaps::fill(store, &mut plan).map_err(io("filling up what editors had promised"))?;
    replay::replay(store, &mut plan).map_err(io("writing documents that were edited"))?;
    part::from_writers(store, &plan.unended, only_daemon).map_err(io("copying what was open"))?;
    failpoint::crash_point("recovery-replayed");
    sync_accepted(store, &plan).map_err(io("making staged content durable"))?;
    if !plan.accepted.is_empty() || !plan.leftovers.is_empty() {
        start(&plan, &carried(&plan))?;
    }
    let (applied, unplaced) =
        apply(store, &plan).map_err(io("putting committed versions in place"))?;
    failpoint::crash_point("recovery-applied");
    leftover::remove_emptied(store, rules, &plan.leftovers);
    let mut rejected = 0;
    for leftover in plan.leftovers.iter().chain(&unplaced) {
        let was_kept = reject(store, leftover, only_daemon);
        rejected += usize::from(was_kept.map_err(io("moving content to rejected"))?);
    }
    failpoint::crash_point("recovery-rejected");
    Ok(Recovered {
        journal: start(&plan, &[])?,
        last_id: plan.last_id,
        last_seq: plan.last_seq,
        applied,
        rejected,
    })
}

/// Decides what counts. Changes nothing.
pub fn plan(
    store: &Store,
    rules: &Rules,
    told: Option<&journal::Contents>,
    instance: &str,
) -> Result<Plan, Errno> {
    let mut plan = Plan::default();
    let staged: BTreeSet<TxnId> = store.staged_ids()?.into_iter().collect();
    plan.last_id = staged.last().copied().unwrap_or_default();
    let kept = store.list_rejected()?;
    plan.last_id = (kept.iter().map(|r| r.id)).fold(plan.last_id, TxnId::max);
    let mut transactions: BTreeMap<TxnId, Recorded> = BTreeMap::new();
    let mut used: BTreeSet<TxnId> = BTreeSet::new();
    if let Some(contents) = told {
        let trusted = contents.header.instance == instance && !failpoint::mutant("C18-trust");
        plan.last_id = plan.last_id.max(contents.header.next_id.previous());
        plan.last_seq = contents.header.next_seq.previous();
        let Followed {
            mut records,
            replaced,
        } = super::moves::follow(store, &contents.records)?;
        let growth = Growth::find(store, &mut records)?;
        let SortedRecords {
            commits,
            durable,
            barrier,
            places,
            complete,
        } = collect(&records, contents.header.durable_seq, &mut transactions);
        plan.last_id = plan
            .last_id
            .max(transactions.keys().next_back().copied().unwrap_or_default());
        let mut whole = true;
        let mut puts: HashMap<PathBuf, TxnId> = HashMap::new();
        for (seq, edits) in commits {
            plan.last_seq = plan.last_seq.max(seq);
            // In place, so a kill may have come between its record and its last byte: nobody was
            // told that it had happened, and what came after it doesn't build on it.
            let is_append = matches!(edits.as_slice(), [Edit::Append { .. }]);
            if seq > durable
                && is_append
                && (trusted || !whole)
                && !(whole && verified(store, &edits, &transactions, &puts)?)
            {
                plan.take_back(edits);
                continue;
            }
            let beyond = !trusted && barrier.is_some_and(|last| seq > last);
            whole = whole
                && (seq <= durable
                    || trusted
                    || (!beyond && verified(store, &edits, &transactions, &puts)?));
            if !whole {
                plan.take_back(edits);
                continue;
            }
            plan.spare_accepted(&edits);
            for edit in &edits {
                if let Edit::Put { id, .. } | Edit::Patch { id, .. } = edit {
                    used.insert(*id);
                    plan.last_id = plan.last_id.max(*id);
                }
                match edit {
                    Edit::Put { id, path, .. } => drop(puts.insert(path.clone(), *id)),
                    Edit::Drop { path } => drop(puts.remove(path)),
                    Edit::Append { .. } | Edit::Patch { .. } => {}
                }
            }
            plan.accepted.push((seq, edits));
        }
        if !trusted {
            for (path, end) in growth.cuts(store, &plan.accepted)? {
                let cut = plan.cuts.entry(path).or_insert(end);
                *cut = (*cut).min(end);
            }
            plan.keeps_cuts = true;
        }
        let mut last_commit = plan.last_commits(&places);
        for (path, place) in replaced {
            last_commit.note(&path, place, false);
        }
        let standing = |(id, told): (&TxnId, &Recorded)| Some((*id, last_commit.standing(told)?));
        let mut waiting: Vec<(TxnId, Recorded)> =
            transactions.iter().filter_map(standing).collect();
        waiting.sort_by_key(|(_, t)| t.committed_at.unwrap_or(t.told_at));
        let whole = whole && (trusted || barrier.is_none());
        roll_forward(
            (store, rules, &mut plan),
            (&waiting, &complete, &mut used),
            Lasts::new(puts),
            (trusted, whole),
        )?;
    }
    plan.leftovers.extend(rounds_begun(&transactions));
    for id in staged.difference(&used) {
        if let Some(file) = store.open_staging(*id)?
            && store.is_moved_away(&file)?
        {
            plan.superfluous.push(*id);
            continue;
        }
        plan.leftovers.push(left(*id, transactions.get(id)));
    }
    Ok(plan)
}

/// Rounds that the journal knows by the directories that were made for them.
fn rounds_begun(transactions: &BTreeMap<TxnId, Recorded>) -> Vec<Leftover> {
    let is_round = |(id, told): &(&TxnId, &Recorded)| told.round == Some(**id) && !told.aborted;
    let begun = transactions.iter().filter(is_round);
    begun.map(|(id, told)| left(*id, Some(told))).collect()
}

fn left(id: TxnId, told: Option<&Recorded>) -> Leftover {
    Leftover {
        id,
        path: told.and_then(|t| t.path.clone()),
        pid: told.map_or(0, |t| t.pid),
        discarded: told.is_some_and(|t| t.discarded),
        round: told.and_then(|t| t.round),
    }
}

/// Whether the content of a commit beyond the last durable one is all there.
fn verified(
    store: &Store,
    edits: &[Edit],
    transactions: &BTreeMap<TxnId, Recorded>,
    puts: &HashMap<PathBuf, TxnId>,
) -> Result<bool, Errno> {
    for edit in edits {
        let whole = match edit {
            Edit::Put { id, content, .. } => {
                content_is_whole(store, *id, content, transactions.get(id))?
            }
            Edit::Append {
                path,
                from,
                len,
                crc,
                ..
            } => append_is_whole(store, path, *from, *len, *crc)?,
            Edit::Drop { .. } => true,
            Edit::Patch { path, base, .. } => match base {
                Some(base) => base_is_whole(store, path, puts.get(path).copied(), *base)?,
                None => true,
            },
        };
        if !whole {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the text that the first of some edits builds on is all there.
fn base_is_whole(
    store: &Store,
    path: &Path,
    staged: Option<TxnId>,
    (wanted, crc): (u64, u32),
) -> Result<bool, Errno> {
    let Some(file) = replay::last_content(store, path, staged)? else {
        return Ok(false);
    };
    Ok(len(&file)? == wanted && checksum_of(&file, 0, wanted)? == crc)
}

fn append_is_whole(
    store: &Store,
    path: &Path,
    from: u64,
    len: u64,
    crc: u32,
) -> Result<bool, Errno> {
    let Some(file) = open_target(store, path)? else {
        return Ok(false);
    };
    if self::len(&file)? < from + len {
        return Ok(false);
    }
    Ok(checksum_of(&file, from, len)? == crc)
}

fn content_is_whole(
    store: &Store,
    id: TxnId,
    content: &ContentInfo,
    told: Option<&Recorded>,
) -> Result<bool, Errno> {
    let Some(file) = store.open_staging(id)? else {
        return Ok(false);
    };
    if len(&file)? != content.len {
        return Ok(false);
    }
    // It was on the medium before its record was: nothing to compare.
    if told
        .and_then(|t| t.fsynced.as_ref())
        .is_some_and(|f| f.len == content.len && f.crc == content.crc)
    {
        return Ok(true);
    }
    match content.crc {
        Some(crc) => Ok(checksum_of(&file, 0, content.len)? == crc),
        None => Ok(content.len == 0),
    }
}

fn len(file: &File) -> Result<u64, Errno> {
    Ok(file.metadata().map_err(|e| errno_of(&e))?.len())
}

fn checksum_of(file: &File, from: u64, len: u64) -> Result<u32, Errno> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0u8; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
    let (mut at, mut crc) = (from, 0u32);
    while at < from + len {
        let want =
            usize::try_from((from + len - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let read = file
            .read_at(&mut buffer[..want], at)
            .map_err(|e| errno_of(&e))?;
        if read == 0 {
            break;
        }
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        at += read as u64;
    }
    Ok(crc)
}

/// Transactions whose close had been acknowledged, or that had called fsync, or that are claims; and rounds that were complete.
fn roll_forward(
    (store, rules, plan): (&Store, &Rules, &mut Plan),
    (transactions, complete, used): (&[(TxnId, Recorded)], &CompleteRounds, &mut BTreeSet<TxnId>),
    mut lasts: Lasts,
    (trusted, whole): (bool, bool),
) -> Result<(), Errno> {
    let mut rounds: BTreeMap<TxnId, Vec<Edit>> = BTreeMap::new();
    for (id, told) in transactions {
        if used.contains(id) || told.aborted || told.discarded {
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
fn forwarded(
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
        let is_cut = len(&file)? < fsynced.len;
        if is_cut && lasts.must_fill(store, &path, fsynced, true)? {
            // It has cut off what it had promised, and others go on from what was there.
            return Ok(None);
        }
        let must_fill = !is_cut && lasts.must_fill(store, &path, fsynced, trusted)?;
        let kept = match must_fill {
            // What it has written since may be of the bytes that others have.
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

/// C7: content as of the last fsync or newer, guard permitting.
fn keep_fsynced(
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
fn lacks_some(
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
fn added_since(
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
fn take_added(
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

fn guard_permits(
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

pub(super) fn open_target(store: &Store, path: &Path) -> Result<Option<File>, Errno> {
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    match at::stat_at(&dir, &name)? {
        Some(stat)
            if rustix::fs::FileType::from_raw_mode(stat.st_mode)
                == rustix::fs::FileType::RegularFile =>
        {
            let fd = at::open_path(&dir, &name)?;
            at::reopen(&fd, rustix::fs::OFlags::RDONLY).map(Some)
        }
        _ => Ok(None),
    }
}

/// Inode number of what a path leads to, and whether that is a directory.
pub(super) fn found_at(store: &Store, path: &Path) -> Result<Option<(u64, bool)>, Errno> {
    use rustix::fs::FileType;
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    let is_dir = |mode| FileType::from_raw_mode(mode) == FileType::Directory;
    Ok(at::stat_at(&dir, &name)?.map(|stat| (stat.st_ino, is_dir(stat.st_mode))))
}

/// The data of what will be applied must be on the medium before any name changes.
///
/// There may be more commits than this process may have files open: tens of thousands of lines
/// that were appended to one file, say.
fn sync_accepted(store: &Store, plan: &Plan) -> Result<(), Errno> {
    const AT_ONCE: usize = 64;
    let (mut ids, mut grown) = (BTreeSet::new(), BTreeSet::new());
    for edit in plan.accepted.iter().flat_map(|(_, edits)| edits) {
        match edit {
            Edit::Put { id, .. } => drop(ids.insert(*id)),
            Edit::Append { path, .. } => drop(grown.insert(path.as_path())),
            Edit::Drop { .. } | Edit::Patch { .. } => {}
        }
    }
    let staged = ids.into_iter().map(|id| store.open_staging(id));
    let grown = grown.into_iter().map(|path| open_target(store, path));
    let mut files = staged.chain(grown).filter_map(Result::transpose);
    loop {
        let some: Vec<File> = files.by_ref().take(AT_ONCE).collect::<Result<_, _>>()?;
        if some.is_empty() {
            break;
        }
        let some: Vec<&File> = some.iter().collect();
        failpoint::sync("C19-sync-recovered", || at::sync_files(&some))?;
    }
    failpoint::sync("C19-sync-recovered-staging", || store.sync_staging_dir())
}

/// Shortens files by the appends that don't count.
fn cut(store: &Store, plan: &mut Plan) -> Result<(), Errno> {
    for (path, from) in &plan.cuts {
        let Some((dir, name)) = parent_of(store, path)? else {
            continue;
        };
        let fd = match at::open_path(&dir, &name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let file = at::reopen(&fd, rustix::fs::OFlags::RDWR)?;
        if len(&file)? > *from {
            if plan.keeps_cuts {
                plan.last_id = plan.last_id.next();
                // Without that nothing is cut: recovery begins again with what was held in
                // reserve, or when there is room.
                growth::keep_cut(store, plan.last_id, path, &file, *from)?;
            }
            log::warn!(
                "{}: cut back to {from} bytes: what was added behind them was not complete, or came to the disk before its record",
                path.display()
            );
            rustix::fs::ftruncate(&file, *from)?;
        }
        rustix::fs::fdatasync(&file)?;
    }
    Ok(())
}

/// Records a second recovery needs if this one is interrupted.
fn carried(plan: &Plan) -> Vec<Record> {
    let mut records = Vec::new();
    for left in &plan.leftovers {
        records.extend(left.path.clone().map(|path| Record::Begin {
            id: left.id,
            path,
            claim: false,
            pid: left.pid,
            started_ns: now_ns(),
        }));
        records.extend(left.discarded.then_some(Record::Retarget {
            id: left.id,
            path: None,
        }));
        records.extend(
            left.round
                .map(|round| Record::Grouped { id: left.id, round }),
        );
    }
    records.extend(plan.accepted.iter().map(|(seq, edits)| Record::Commit {
        seq: *seq,
        edits: edits.clone(),
    }));
    records
}

/// Moves the final state of the accepted commits into place. A staging file that isn't there has
/// been moved before. Gives how many were moved, and those whose directory is gone.
fn apply(store: &Store, plan: &Plan) -> Result<(usize, Vec<Leftover>), Errno> {
    let mut last: HashMap<&Path, Option<(TxnId, Version, &ContentInfo)>> = HashMap::new();
    let mut every: BTreeSet<TxnId> = BTreeSet::new();
    for (_, edits) in &plan.accepted {
        for edit in edits {
            match edit {
                Edit::Put {
                    path,
                    id,
                    version,
                    content,
                    ..
                } => {
                    every.insert(*id);
                    last.insert(path, Some((*id, *version, content)));
                }
                Edit::Drop { path } => {
                    last.insert(path, None);
                }
                // In place already; replayed already.
                Edit::Append { .. } | Edit::Patch { .. } => {}
            }
        }
    }
    let (mut applied, mut unplaced) = (0, Vec::new());
    let mut touched = Touched::default();
    for (path, put) in last {
        let Some((id, version, content)) = put else {
            continue;
        };
        every.remove(&id);
        let Some(file) = store.open_staging(id)? else {
            continue;
        };
        if store.is_moved_away(&file)? {
            // It may have grown there since.
            store.remove_staging(id)?;
            continue;
        }
        match place(store, path, id, version, content, &file)? {
            Some(dir) => {
                touched.add(path, dir)?;
                applied += 1;
            }
            None => unplaced.push(Leftover {
                id,
                path: Some(path.to_owned()),
                pid: 0,
                discarded: false,
                round: None,
            }),
        }
    }
    touched.sync()?;
    // Superseded by a later commit, or dropped.
    for id in every.into_iter().chain(plan.superfluous.iter().copied()) {
        store.remove_staging(id)?;
    }
    store.sync_moved_away()?;
    Ok((applied, unplaced))
}

/// Gives the directory that it was moved into, if that is there.
fn place(
    store: &Store,
    path: &Path,
    id: TxnId,
    version: Version,
    content: &ContentInfo,
    file: &File,
) -> Result<Option<OwnedFd>, Errno> {
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    if let Some(stat) = at::stat_at(&dir, &name)?
        && rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    {
        return Ok(None);
    }
    if len(file)? > content.len {
        // Written after the fsync that is rolled forward.
        rustix::fs::ftruncate(file, content.len)?;
        rustix::fs::fdatasync(file)?;
    }
    let added_ns = take_added(store, path, content, file)?;
    let stat = at::stat(file)?;
    if content.mtime_ns != 0 && mtime_ns(&stat) != content.mtime_ns.max(added_ns) {
        at::set_mtime(file, content.mtime_ns.max(added_ns))?;
    }
    part::mark_number(file, version, (&dir, &name));
    store.apply(id, &dir, &name)?;
    failpoint::crash_point("recovery-placed");
    Ok(Some(dir))
}
