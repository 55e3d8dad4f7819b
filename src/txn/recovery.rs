//! After a crash: brings the backing directory to a prefix of the order of commits.
//!
//! What is acceptable depends on what ended the daemon. If the same boot still has the same file
//! system mounted, nothing was lost but the daemon, and all that was journalled counts. Otherwise
//! a commit beyond the last durable one counts only if its content matches its checksum, and the
//! first that doesn't ends the prefix. Running it twice gives what running it once gives: a fresh
//! journal that says "all of this is durable" stands before the first file is moved.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::journal::{self, Header, Journal, JournalError, Record};
use crate::rules::Rules;
use crate::store::{Store, Worth};
use crate::sys::failpoint;
use crate::txn::apply::{apply, carried, cut, sync_accepted};
use crate::txn::gaps::{self};
use crate::txn::leftover::{self, reject};
use crate::txn::{part, replay};
use crate::types::{Seq, TxnId, now_ns};

pub use super::leftover::Leftover;
pub use super::plan::Plan;
pub use super::planning::plan;

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
    let leftovers = plan.leftovers.iter().chain(&unplaced);
    let rejected = reject(store, leftovers, only_daemon);
    let rejected = rejected.map_err(io("moving content to rejected"))?;
    failpoint::crash_point("recovery-rejected");
    Ok(Recovered {
        journal: start(&plan, &[])?,
        last_id: plan.last_id,
        last_seq: plan.last_seq,
        applied,
        rejected,
    })
}
