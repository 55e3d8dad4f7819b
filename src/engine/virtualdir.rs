//! `MOUNT/.commitfs/`: reachable by name, not listed, and not the backing directory's `.commitfs`.
//!
//! ```text
//! status.json     the status, as of the open
//! locks.json      who holds and who waits for what, as of the open
//! control         write a command (JSON), read its answer (JSON)
//! lock            the daemon's pid
//! rejected/ID     rejected content; ID.meta says what it is
//! version-N       a superseded version by its node; for the herald alone (see `watchers`)
//! ```
//! Only the mount's owner and root may look inside: rejected content may be anybody's.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::state::{DirEntry, Handle};
use super::status::OpenTransaction;
use super::{Engine, Opened, VOLATILE};
use crate::namespace::Shown;
use crate::store::{id_name, parse_id};
use crate::sys::{at, failpoint};
use crate::types::{Attr, Caller, HandleId, NodeId, OpResult, ROOT, TxnId};

const DIR: NodeId = 2;
const STATUS: NodeId = 3;
const CONTROL: NodeId = 4;
const LOCK: NodeId = 5;
const REJECTED: NodeId = 6;
const LOCKS: NodeId = 7;
/// Rejected content N has node `CONTENTS + 2 N`, its meta file the next.
const CONTENTS: NodeId = 1 << 62;

const FILES: [(&str, NodeId); 5] = [
    ("locks.json", LOCKS),
    ("status.json", STATUS),
    ("control", CONTROL),
    ("lock", LOCK),
    ("rejected", REJECTED),
];

/// Whether a node belongs to the virtual directory.
pub fn is_virtual(node: NodeId) -> bool {
    (DIR..=LOCKS).contains(&node) || node >= CONTENTS
}

fn content_of(node: NodeId) -> Option<(TxnId, bool)> {
    let n = node.checked_sub(CONTENTS)?;
    Some((n / 2, n % 2 == 1))
}

/// A command for the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
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
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
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

impl Engine {
    pub(super) fn virtual_lookup(
        &self,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
    ) -> OpResult<Attr> {
        let node = match dir {
            ROOT => DIR,
            DIR if self.is_herald(caller) => return self.herald_lookup(name),
            DIR => {
                FILES
                    .iter()
                    .find(|(n, _)| name == *n)
                    .ok_or(Errno::NOENT)?
                    .1
            }
            REJECTED => {
                let text = name.to_str().ok_or(Errno::NOENT)?;
                let (id, meta) = match text.strip_suffix(".meta") {
                    Some(id) => (id, 1),
                    None => (text, 0),
                };
                CONTENTS + 2 * parse_id(OsStr::new(id)).ok_or(Errno::NOENT)? + meta
            }
            _ => return Err(Errno::NOTDIR),
        };
        self.virtual_attr(node)
    }

    pub(super) fn virtual_attr(&self, node: NodeId) -> OpResult<Attr> {
        let mut stat = at::stat(&self.store.state)?;
        let (kind, mode, size) = match node {
            DIR | REJECTED => (FileType::Directory, 0o500, 0),
            // Larger than it will be: programs that read to the size get all of it, and the end
            // is told by a short read.
            STATUS | LOCKS => (FileType::RegularFile, 0o400, 1 << 20),
            CONTROL => (FileType::RegularFile, 0o600, 0),
            LOCK => (FileType::RegularFile, 0o400, 32),
            _ => {
                let (id, meta) = content_of(node).ok_or(Errno::NOENT)?;
                let size = if meta {
                    self.store.rejected_meta(id)?.len() as i64
                } else {
                    let found = at::stat_at(&self.store.rejected, id_name(id).as_ref())?;
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
        })
    }

    pub(super) fn virtual_open(&self, node: NodeId, flags: OFlags) -> OpResult<Opened> {
        let reads_only = !flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let handle = match node {
            CONTROL => Handle::Control(Arc::default()),
            _ if !reads_only => return Err(Errno::ROFS),
            STATUS => Handle::Text(Arc::new(self.status_text())),
            LOCKS => Handle::Text(Arc::new(self.locks_text())),
            LOCK => Handle::Text(Arc::new(format!("{}\n", std::process::id()).into_bytes())),
            _ => {
                let (id, meta) = content_of(node).ok_or(Errno::ISDIR)?;
                if meta {
                    Handle::Text(Arc::new(self.store.rejected_meta(id)?))
                } else {
                    let file = Arc::new(self.store.open_rejected(id)?);
                    let read = Shown::all_of(file);
                    Handle::Reader { node, read }
                }
            }
        };
        let handle = self.lock().add_handle(handle);
        Ok(Opened {
            handle,
            keep_cache: false,
            // Sizes are not known before the open.
            direct_io: true,
            no_flush: true,
        })
    }

    pub(super) fn virtual_list(&self, node: NodeId) -> OpResult<Vec<DirEntry>> {
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
                for r in self.store.list_rejected()? {
                    let ino = CONTENTS + 2 * r.id;
                    entries.push(entry(&id_name(r.id), ino, FileType::RegularFile));
                    entries.push(entry(
                        &format!("{}.meta", id_name(r.id)),
                        ino + 1,
                        FileType::RegularFile,
                    ));
                }
            }
            _ => return Err(Errno::NOTDIR),
        }
        Ok(entries)
    }

    /// A command written to the control file.
    pub(super) fn control(
        self: &Arc<Self>,
        handle: HandleId,
        data: &[u8],
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        let command: Command = match serde_json::from_slice(data) {
            Ok(command) => command,
            Err(e) => {
                log::warn!("control: {e}");
                return done(Err(Errno::INVAL));
            }
        };
        let (engine, size) = (self.clone(), data.len() as u32);
        self.pool.run(move || {
            let answer = engine.obey(&command);
            let text = serde_json::to_vec(&answer).unwrap_or_default();
            if let Some(h) = engine.lock().handles.get_mut(&handle) {
                *h = Handle::Control(Arc::new(text));
            }
            done(Ok(size));
        });
    }

    fn obey(self: &Arc<Self>, command: &Command) -> Answer {
        let fine = Answer {
            ok: true,
            error: None,
            open: Vec::new(),
            unread: 0,
        };
        match command {
            Command::ErrorsRead => {
                self.mark_errors_read();
                fine
            }
            Command::Sync => match self.drain_all() {
                Ok(()) => fine,
                Err(e) => Answer {
                    ok: false,
                    error: Some(e.to_string()),
                    open: Vec::new(),
                    unread: 0,
                },
            },
            Command::Unmount { force, check } => self.ask_unmount(*force, *check),
        }
    }

    /// Unmounts unless open transactions stand against it (C20).
    pub fn ask_unmount(self: &Arc<Self>, force: bool, check: bool) -> Answer {
        let placed = if force || check {
            Ok(())
        } else {
            self.drain_all()
        };
        if let Err(e) = placed {
            // The plain files would be older than what programs have been told is saved.
            let waiting = self.lock().pending.iter().count();
            return Answer {
                ok: false,
                error: Some(format!("{waiting} commits can't be put in place: {e}")),
                open: Vec::new(),
                unread: 0,
            };
        }
        let open = {
            let mut state = self.lock();
            let open = self.open_transactions(&state);
            if (open.is_empty() || force) && !check {
                state.leaving = true;
                // Without force the kernel refuses as long as anything is open, which is no
                // reason to refuse somebody's save.
                state.closing = force;
            }
            open
        };
        let open_ok = open.is_empty() || failpoint::mutant("C20-umount");
        if (!open_ok && !force) || check {
            return Answer {
                ok: open.is_empty(),
                error: (!open.is_empty()).then(|| format!("{} open transactions", open.len())),
                open: open.into_iter().map(Blocker::from).collect(),
                unread: self.unread(),
            };
        }
        if let Some(stop) = self.stop.get() {
            stop(force);
        }
        Answer {
            ok: true,
            error: None,
            open: open.into_iter().map(Blocker::from).collect(),
            unread: self.unread(),
        }
    }
}
