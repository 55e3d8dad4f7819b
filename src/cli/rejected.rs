//! `commitfs rejected`: content that was written but not committed.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Failure, control, exit, output, rejected_drop, rejected_list};
use crate::engine::ControlCommand;
use crate::store::{Rejected, STATE_DIR, id_name};
use crate::types::{TxnId, path_hex};

/// Arguments of `commitfs rejected`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// List it, oldest first: id, time, bytes, path, reason, process
    List {
        /// A mount, or a backing directory nobody has mounted
        dir: PathBuf,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Write one content to standard output
    Show {
        /// A mount, or a backing directory nobody has mounted
        dir: PathBuf,
        /// Its id, as listed
        id: String,
    },
    /// Copy one content to a file
    Restore {
        /// A mount, or a backing directory nobody has mounted
        dir: PathBuf,
        /// Its id, as listed
        id: String,
        /// Where to, instead of the path it was meant for; neither may exist unless --force is given
        to: Option<PathBuf>,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
    },
    /// Remove contents for good
    #[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "all"]))]
    Drop {
        /// A mount, or a backing directory nobody has mounted
        dir: PathBuf,
        /// Their ids, as listed
        #[arg(value_name = "ID")]
        ids: Vec<String>,
        /// All that is listed
        #[arg(long)]
        all: bool,
    },
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.action {
        Action::List { dir, json } => rejected_list::run(&all(dir)?, *json),
        Action::Show { dir, id } => {
            let mut from = open(dir, id)?;
            output::copy(&mut from)?;
            Ok(exit::OK)
        }
        Action::Restore { dir, id, to, force } => restore(dir, id, to.as_deref(), *force),
        Action::Drop { dir, ids, .. } => rejected_drop::run(dir, ids),
    }
}

/// The mount that a directory lies in, or the directory.
fn root_of(dir: &Path) -> PathBuf {
    control::mount_of(dir).map_or_else(|_| dir.to_owned(), |mount| mount.mount_point)
}

/// Where rejected content of a mount or a backing directory can be read.
pub(super) fn place(dir: &Path) -> Result<PathBuf, Failure> {
    let place = root_of(dir).join(STATE_DIR).join("rejected");
    match place.symlink_metadata() {
        Ok(_) => Ok(place),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Failure::new(
            exit::BAD_INPUT,
            format!(
                "{}: neither a mount of commitfs nor a backing directory of one",
                dir.display()
            ),
        )),
        Err(e) => Err(control::unusable(dir, &e)),
    }
}

pub(super) fn all(dir: &Path) -> Result<Vec<Rejected>, Failure> {
    let place = place(dir)?;
    let fd = File::open(&place)
        .map_err(|e| Failure::new(exit::TROUBLE, format!("{}: {e}", place.display())))?;
    crate::store::list_rejected(std::os::fd::AsFd::as_fd(&fd))
        .map_err(|e| Failure::new(exit::TROUBLE, format!("{}: {e}", place.display())))
}

/// The number of rejected content as it is listed; zeros in front may be left out.
pub(super) fn whole_id(id: &str) -> Option<String> {
    let id = u64::from_str_radix(id, 16).ok()?;
    Some(id_name(TxnId(id)))
}

fn open(dir: &Path, id: &str) -> Result<File, Failure> {
    let place = place(dir)?;
    match whole_id(id).map(|name| File::open(place.join(name))) {
        Some(Ok(file)) => Ok(file),
        _ => Err(no_such(dir, id)),
    }
}

/// Nothing is listed under an id.
pub(super) fn no_such(dir: &Path, id: &str) -> Failure {
    Failure::new(
        exit::BAD_INPUT,
        format!(
            "{id}: no such rejected content; `commitfs rejected list {}` names them",
            dir.display()
        ),
    )
}

fn restore(dir: &Path, id: &str, to: Option<&Path>, force: bool) -> Result<u8, Failure> {
    let mut from = open(dir, id)?;
    let to = match to {
        Some(to) => to.to_owned(),
        None => meant_for(dir, id)?,
    };
    if to.symlink_metadata().is_ok() && !force {
        return Err(Failure::new(
            exit::BAD_INPUT,
            format!(
                "{}: exists; --force replaces it, or name another file: `commitfs rejected restore {} {id} FILE`",
                to.display(),
                dir.display()
            ),
        ));
    }
    let bad = |e: std::io::Error| {
        let why = match e.raw_os_error() {
            Some(libc::EBADMSG) => format!(
                "the guard of this name refuses the content; name another file: `commitfs rejected restore {} {id} FILE`",
                dir.display()
            ),
            _ => e.to_string(),
        };
        Failure::new(exit::TROUBLE, format!("{}: {why}", to.display()))
    };
    let mut file = File::create(&to).map_err(bad)?;
    tell_daemon(&to);
    std::io::copy(&mut from, &mut file).map_err(bad)?;
    file.sync_all().map_err(bad)?;
    close_checked(file).map_err(bad)?;
    Ok(exit::OK)
}

/// Tells the daemon what this process is writing: should it be refused, there need not be a second
/// copy of it. Not to be able to tell keeps nobody from trying.
fn tell_daemon(to: &Path) {
    let real = to.canonicalize().ok();
    let mount = real.as_ref().and_then(|real| control::mount_at(real).ok()?);
    if let (Some(real), Some(mount)) = (&real, mount)
        && let Ok(relative) = real.strip_prefix(&mount.mount_point)
    {
        let command = ControlCommand::Restoring {
            path: relative.to_string_lossy().into_owned(),
            path_hex: path_hex(relative),
            pid: std::process::id(),
        };
        control::send(&mount.mount_point, &command).ok();
    }
}

/// The path that rejected content was written for.
fn meant_for(dir: &Path, id: &str) -> Result<PathBuf, Failure> {
    let root = root_of(dir);
    let path = all(dir)?
        .into_iter()
        .find(|r| Some(id_name(r.id)) == whole_id(id))
        .filter(|r| !r.is_of_unknown_path())
        .map(|r| r.real_path())
        .filter(|p| {
            p.components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        });
    path.map(|p| root.join(p)).ok_or_else(|| {
        Failure::new(
            exit::BAD_INPUT,
            format!("{id}: it isn't known which path it was written for; say where to"),
        )
    })
}

/// Closes and says what close() said: a guard may refuse the content.
fn close_checked(file: File) -> std::io::Result<()> {
    let duplicate = file.try_clone()?;
    drop(file);
    crate::sys::at::close(duplicate.into())
}
