//! `commitfs rejected`: content that was written but not committed.

use std::collections::BTreeSet;
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
    /// Copy one content to a file, or all of a group to its files
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

/// What is listed under an id: one content, or all of a round (C23), each of its paths once.
pub(super) fn listed_as<'a>(all: &'a [Rejected], id: &str) -> Vec<&'a Rejected> {
    let Some(name) = whole_id(id) else {
        return Vec::new();
    };
    let own = all.iter().find(|r| id_name(r.id) == name);
    let round = all.iter().filter(|r| r.round.as_ref() == Some(&name));
    own.map_or_else(|| round.collect(), |own| vec![own])
}

fn open(dir: &Path, id: &str) -> Result<File, Failure> {
    let place = place(dir)?;
    if let [first, ..] = listed_as(&all(dir)?, id).as_slice()
        && first.round.is_some()
        && whole_id(id).is_some_and(|name| name != id_name(first.id))
    {
        return Err(Failure::new(
            exit::BAD_INPUT,
            format!(
                "{id}: files of a group; `commitfs rejected list --json {}` names each",
                dir.display()
            ),
        ));
    }
    open_one(dir, &place, id)
}

/// Opens what has this id in `place`, without a look at all that are there.
fn open_one(dir: &Path, place: &Path, id: &str) -> Result<File, Failure> {
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
    let all = all(dir)?;
    let listed = listed_as(&all, id);
    if whole_id(id).is_some_and(|name| listed.iter().any(|r| r.round.as_ref() == Some(&name))) {
        return restore_round(dir, id, listed, to, force);
    }
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
    let file = write(dir, id, &mut from, &to)?;
    file.sync_all().map_err(|e| unwritten(dir, id, &to, &e))?;
    close_checked(file).map_err(|e| unwritten(dir, id, &to, &e))?;
    Ok(exit::OK)
}

/// Writes a content to its place, which is to be closed.
fn write(dir: &Path, id: &str, from: &mut File, to: &Path) -> Result<File, Failure> {
    let bad = |e| unwritten(dir, id, to, &e);
    let mut file = File::create(to).map_err(bad)?;
    tell_daemon(to);
    std::io::copy(from, &mut file).map_err(bad)?;
    Ok(file)
}

/// What is said where a content can't be brought to its place.
fn unwritten(dir: &Path, id: &str, to: &Path, e: &std::io::Error) -> Failure {
    let why = match e.raw_os_error() {
        Some(libc::EBADMSG) => format!(
            "the guard of this name refuses the content; name another file: `commitfs rejected restore {} {id} FILE`",
            dir.display()
        ),
        _ => e.to_string(),
    };
    Failure::new(exit::TROUBLE, format!("{}: {why}", to.display()))
}

/// Brings all of a round back. As the rules group its files, this process saves a round of them: they show in one step.
fn restore_round(
    dir: &Path,
    id: &str,
    mut listed: Vec<&Rejected>,
    to: Option<&Path>,
    force: bool,
) -> Result<u8, Failure> {
    let refused = |why: String| Err(Failure::new(exit::BAD_INPUT, format!("{id}: {why}")));
    if to.is_some() {
        return refused("files of a group go back where they were written for".into());
    }
    // The later of two saves of a file.
    listed.sort_by_key(|r| (r.real_path(), std::cmp::Reverse(r.id)));
    listed.dedup_by_key(|r| r.real_path());
    listed.sort_by_key(|r| r.id);
    let root = root_of(dir);
    let mut places = Vec::new();
    for one in listed {
        let path = one.real_path();
        let is_below = |c: std::path::Component| matches!(c, std::path::Component::Normal(_));
        if one.is_of_unknown_path() || !path.components().all(is_below) {
            return refused("it isn't known which path one of them was written for".into());
        }
        let place = root.join(path);
        if place.symlink_metadata().is_ok() && !force {
            return refused(format!("{}: exists; --force replaces it", place.display()));
        }
        places.push((one, place));
    }
    let (kept, mut parents) = (place(dir)?, BTreeSet::new());
    let real = root.canonicalize().ok();
    let is_mounted = real.is_some_and(|real| matches!(control::mount_at(&real), Ok(Some(_))));
    for (one, place) in places {
        let own = id_name(one.id);
        // One that was made for them has gone with them.
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent).ok();
        }
        let file = write(dir, &own, &mut open_one(dir, &kept, &own)?, &place)?;
        if !is_mounted {
            // Without the daemon nobody else brings it to the disk.
            file.sync_all()
                .map_err(|e| unwritten(dir, &own, &place, &e))?;
        }
        close_checked(file).map_err(|e| unwritten(dir, &own, &place, &e))?;
        parents.extend(place.parent().map(Path::to_owned));
    }
    // That waits for the disk once for all files. What is published only as this process ends is in rejected all the same.
    for parent in parents {
        let synced = File::open(&parent).and_then(|parent| parent.sync_all());
        synced.map_err(|e| unwritten(dir, id, &parent, &e))?;
    }
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
