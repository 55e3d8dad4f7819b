//! `MOUNT/.commitfs/`: reachable by name, not listed, and not the backing directory's `.commitfs`.
//!
//! ```text
//! status.json     the status, as of the open
//! locks.json      who holds and who waits for what, as of the open
//! control         write a command (JSON), read its answer (JSON)
//! lock            the daemon's pid
//! rules.toml      the rules file of the state directory, if there is one
//! daemon.log      its log, if it goes to a file of the state directory
//! rejected/ID     rejected content; ID.meta says what it is
//! version-N       a superseded version by its node; for the watch helper alone (see `watchers`)
//! ```
//! Only the mount's owner and root may look inside: rejected content may be anybody's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::engine::admin::control::ControlFile;
use crate::engine::admin::status;
use crate::engine::admin::status::OpenTransaction;
use crate::engine::base::handle::DirEntry;
use crate::engine::base::{errors, orders};
use crate::engine::meaning::deciding::DECISION_LIMIT;
use crate::engine::meaning::{deciding, live_rules};
use crate::engine::versions::durability;
use crate::engine::{Engine, VOLATILE};
use crate::rules::Creation;
use crate::runtime::Unmount;
use crate::store::{DAEMON_LOG, RULES_FILE, id_name};
use crate::sys::{at, failpoint};
use crate::types::{Attr, HandleId, NodeId, OpResult, ROOT, TxnId, path_of};

pub const DIR: NodeId = NodeId(2);
pub const STATUS: NodeId = NodeId(3);
pub const CONTROL: NodeId = NodeId(4);
pub const LOCK: NodeId = NodeId(5);
pub const REJECTED: NodeId = NodeId(6);
pub const LOCKS: NodeId = NodeId(7);
pub const LOG: NodeId = NodeId(8);
pub const RULES: NodeId = NodeId(9);
/// Rejected content N has node `CONTENTS + 2 N`, its meta file the next.
pub const CONTENTS: NodeId = NodeId(1 << 62);

pub const FILES: [(&str, NodeId); 7] = [
    (RULES_FILE, RULES),
    (DAEMON_LOG, LOG),
    ("locks.json", LOCKS),
    ("status.json", STATUS),
    ("control", CONTROL),
    ("lock", LOCK),
    ("rejected", REJECTED),
];

/// Whether a node belongs to the virtual directory.
pub fn is_virtual(node: NodeId) -> bool {
    (DIR..=RULES).contains(&node) || node >= CONTENTS
}

pub fn content_of(node: NodeId) -> Option<(TxnId, bool)> {
    let n = node.0.checked_sub(CONTENTS.0)?;
    Some((TxnId(n / 2), n % 2 == 1))
}

/// A command for the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ControlCommand {
    /// Unmount, if nothing stands against it.
    Unmount {
        /// Send open transactions to rejected.
        force: bool,
        /// Only say what stands against it.
        check: bool,
    },
    /// Errors shown by status count as read.
    ErrorsRead,
    /// Bring all commits into the backing directory now.
    Sync,
    /// Drop rejected contents for good, all of them or, where one isn't there, none.
    Drop {
        /// Their ids, as listed.
        ids: Vec<String>,
    },
    /// Put rules in force; if they are none, those that are in force stay.
    Rules {
        /// A rules file's text.
        text: String,
        /// What messages call it.
        source: String,
        /// Make it `.commitfs/rules.toml` first, if that still has this text (empty: or isn't there).
        instead_of: Option<String>,
    },
    /// Say which rules decide how a path is treated.
    Explain {
        /// The path relative to the root.
        path: String,
        /// Its bytes in hexadecimal, if they aren't UTF-8.
        path_hex: Option<String>,
        /// It is there, and empty.
        empty: bool,
        /// It is about to be created with O_EXCL.
        exclusive: bool,
    },
    /// What a process is writing to a path comes from rejected, and needn't be kept a second time if it
    /// isn't committed.
    Restoring {
        /// The path relative to the root.
        path: String,
        /// Its bytes in hexadecimal, if they aren't UTF-8.
        path_hex: Option<String>,
        /// The process.
        pid: u32,
    },
}

/// Its answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Done.
    pub ok: bool,
    /// Why not, if not.
    pub error: Option<String>,
    /// Open transactions that stand against an unmount.
    pub open: Vec<Blocker>,
    /// Errors that nobody has read; they are kept for the next mount.
    #[serde(default)]
    pub unread: usize,
    /// Of a path, what is decided and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explained: Vec<crate::rules::Explained>,
}

impl Answer {
    /// Done, or why not.
    pub(in crate::engine) fn of(result: Result<(), String>) -> Answer {
        Answer {
            ok: result.is_ok(),
            error: result.err(),
            ..Answer::default()
        }
    }
}

/// A transaction that stands against an unmount.
#[derive(Debug, Serialize, Deserialize)]
pub struct Blocker {
    /// Its path.
    pub path: String,
    /// Process that opened it.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// Milliseconds since the open.
    pub age_ms: u64,
}

impl From<OpenTransaction> for Blocker {
    fn from(t: OpenTransaction) -> Blocker {
        Blocker {
            path: t.path,
            pid: t.pid,
            command: t.command,
            age_ms: t.age_ms,
        }
    }
}

pub fn virtual_attr(engine: &Engine, node: NodeId) -> OpResult<Attr> {
    let mut stat = at::stat(&engine.store.state)?;
    let (kind, mode, size) = match node {
        DIR | REJECTED => (FileType::Directory, 0o500, 0),
        // Larger than it will be: programs that read to the size get all of it, and the end
        // is told by a short read.
        STATUS | LOCKS => (FileType::RegularFile, 0o400, 1 << 20),
        CONTROL => (FileType::RegularFile, 0o600, 0),
        LOCK => (FileType::RegularFile, 0o400, 32),
        RULES => {
            let size = engine.store.rules_text()?.len();
            (FileType::RegularFile, 0o400, size as i64)
        }
        LOG => {
            let log = at::stat(&engine.store.open_log()?)?;
            (FileType::RegularFile, 0o400, log.st_size)
        }
        _ => {
            let (id, meta) = content_of(node).ok_or(Errno::NOENT)?;
            let size = if meta {
                engine.store.rejected_meta(id)?.len() as i64
            } else {
                let found = at::stat_at(&engine.store.rejected, id_name(id).as_ref())?;
                found.ok_or(Errno::NOENT)?.st_size
            };
            (FileType::RegularFile, 0o400, size)
        }
    };
    stat.st_mode = kind.as_raw_mode() | mode;
    stat.st_size = size;
    stat.st_nlink = if kind == FileType::Directory { 2 } else { 1 };
    Ok(Attr {
        ino: node,
        stat,
        ttl: VOLATILE,
        name_ttl: VOLATILE,
    })
}

pub fn virtual_list(engine: &Engine, node: NodeId) -> OpResult<Vec<DirEntry>> {
    let entry = |name: &str, ino, kind| DirEntry {
        name: name.into(),
        ino,
        kind,
    };
    let mut entries = vec![
        entry(".", node, FileType::Directory),
        entry(
            "..",
            if node == DIR { ROOT } else { DIR },
            FileType::Directory,
        ),
    ];
    match node {
        DIR => entries.extend(FILES.iter().map(|(name, ino)| {
            let kind = if *ino == REJECTED {
                FileType::Directory
            } else {
                FileType::RegularFile
            };
            entry(name, *ino, kind)
        })),
        REJECTED => {
            for r in engine.store.list_rejected()? {
                let ino = NodeId(CONTENTS.0 + 2 * r.id.0);
                entries.push(entry(&id_name(r.id), ino, FileType::RegularFile));
                entries.push(entry(
                    &format!("{}.meta", id_name(r.id)),
                    ino.next(),
                    FileType::RegularFile,
                ));
            }
        }
        _ => return Err(Errno::NOTDIR),
    }
    Ok(entries)
}

/// A command written to the control file. On a worker.
pub fn control(engine: &Arc<Engine>, handle: HandleId, data: &[u8]) -> OpResult<()> {
    let command: ControlCommand = serde_json::from_slice(data).map_err(|e| {
        log::warn!("control: {e}");
        Errno::INVAL
    })?;
    let answer = obey(engine, &command);
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    if let Some(open) = engine.lock().handles.get_mut(handle) {
        *open = Arc::new(ControlFile(Arc::new(text)));
    }
    Ok(())
}

fn obey(engine: &Arc<Engine>, command: &ControlCommand) -> Answer {
    match command {
        ControlCommand::ErrorsRead => {
            errors::mark_errors_read(engine);
            Answer::of(Ok(()))
        }
        ControlCommand::Sync => {
            Answer::of(durability::checkpoint_all(engine).map_err(|e| e.to_string()))
        }
        ControlCommand::Drop { ids } => Answer::of(orders::drop_rejected(engine, ids)),
        ControlCommand::Restoring {
            path,
            path_hex,
            pid,
        } => {
            orders::note_restoring(engine, &path_of(path, path_hex.as_deref()), *pid);
            Answer::of(Ok(()))
        }
        ControlCommand::Rules {
            text,
            source,
            instead_of,
        } => Answer::of(live_rules::take_rules(
            engine,
            text,
            source,
            instead_of.as_deref(),
        )),
        ControlCommand::Explain {
            path,
            path_hex,
            empty,
            exclusive,
        } => {
            let creation = Creation {
                exclusive: *exclusive,
                empty: *empty,
            };
            let path = path_of(path, path_hex.as_deref());
            Answer {
                explained: engine.rules.read().rules.explained(&path, creation),
                ..Answer::of(Ok(()))
            }
        }
        ControlCommand::Unmount { force, check } => engine.ask_unmount(*force, *check),
    }
}

impl Engine {
    /// Unmounts unless open transactions stand against it (C20).
    pub fn ask_unmount(self: &Arc<Self>, force: bool, check: bool) -> Answer {
        let placed = if force || check {
            Ok(())
        } else {
            durability::checkpoint_all(self)
        };
        if let Err(e) = placed {
            // The plain files would be older than what programs have been told is saved.
            let waiting = self.lock().pending.iter().count();
            return Answer {
                error: Some(format!("{waiting} commits can't be put in place: {e}")),
                ..Answer::default()
            };
        }
        let open = {
            // What was closed before is not open any more, though it may not be decided yet.
            let until = Instant::now()
                + if check || force {
                    Duration::ZERO
                } else {
                    DECISION_LIMIT
                };
            let mut state = deciding::await_all_decisions(self, until);
            let open = status::open_transactions(self, &state);
            if (open.is_empty() || force) && !check {
                // Without force the kernel refuses as long as anything is open, which is no
                // reason to refuse somebody's save.
                state.unmount = match force {
                    true => Unmount::Forced,
                    false => Unmount::Tried,
                };
            }
            open
        };
        let open_ok = open.is_empty() || failpoint::mutant("C20-umount");
        if (!open_ok && !force) || check {
            return Answer {
                ok: open.is_empty(),
                error: (!open.is_empty()).then(|| format!("{} open transactions", open.len())),
                open: open.into_iter().map(Blocker::from).collect(),
                unread: errors::unread(self),
                ..Answer::default()
            };
        }
        if let Some(stop) = self.kernel.stop.get() {
            stop(force);
        }
        Answer {
            ok: true,
            error: None,
            open: open.into_iter().map(Blocker::from).collect(),
            unread: errors::unread(self),
            ..Answer::default()
        }
    }
}
