//! `commitfs rejected`: content that was written but not committed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Failure, control, exit, output};
use crate::store::{Rejected, STATE_DIR, id_name};
use crate::types::path_on_a_line;

/// Arguments of `commitfs rejected`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// List it: id, time, bytes, process, path, reason
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
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.action {
        Action::List { dir, json } => list(dir, *json),
        Action::Show { dir, id } => {
            let mut from = open(dir, id)?;
            output::copy(&mut from)?;
            Ok(exit::OK)
        }
        Action::Restore { dir, id, to, force } => restore(dir, id, to.as_deref(), *force),
    }
}

/// Where rejected content of a mount or a backing directory can be read.
fn place(dir: &Path) -> Result<PathBuf, Failure> {
    let root = match control::mount_of(dir) {
        Ok(mount) => mount.mount_point,
        Err(_) => dir.to_owned(),
    };
    let place = root.join(STATE_DIR).join("rejected");
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

fn all(dir: &Path) -> Result<Vec<Rejected>, Failure> {
    let place = place(dir)?;
    let fd = File::open(&place)
        .map_err(|e| Failure::new(exit::TROUBLE, format!("{}: {e}", place.display())))?;
    crate::store::list_rejected(std::os::fd::AsFd::as_fd(&fd))
        .map_err(|e| Failure::new(exit::TROUBLE, format!("{}: {e}", place.display())))
}

fn list(dir: &Path, json: bool) -> Result<u8, Failure> {
    let all = all(dir)?;
    if json {
        let text =
            serde_json::to_string_pretty(&all).map_err(|e| Failure::new(exit::TROUBLE, e))?;
        output::print(text + "\n")?;
        return Ok(exit::OK);
    }
    for r in &all {
        let age = (crate::types::now_ns() - r.time_ns) / 1_000_000_000;
        output::print(format!(
            "{}  {age} s ago  {} bytes  {} ({})  {}  {}\n",
            id_name(r.id),
            r.len,
            r.pid,
            output::escaped(&r.command),
            path_on_a_line(&r.real_path()),
            r.reason
        ))?;
    }
    Ok(exit::OK)
}

/// The number of rejected content as it is listed; zeros in front may be left out.
fn whole_id(id: &str) -> Option<String> {
    u64::from_str_radix(id, 16).ok().map(id_name)
}

fn open(dir: &Path, id: &str) -> Result<File, Failure> {
    let place = place(dir)?;
    match whole_id(id).map(|name| File::open(place.join(name))) {
        Some(Ok(file)) => Ok(file),
        _ => Err(Failure::new(
            exit::BAD_INPUT,
            format!(
                "{id}: no such rejected content; `commitfs rejected list {}` names them",
                dir.display()
            ),
        )),
    }
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
    let mut content = Vec::new();
    from.read_to_end(&mut content).map_err(bad)?;
    let mut file = File::create(&to).map_err(bad)?;
    file.write_all(&content).map_err(bad)?;
    file.sync_all().map_err(bad)?;
    close_checked(file).map_err(bad)?;
    Ok(exit::OK)
}

/// The path that rejected content was written for.
fn meant_for(dir: &Path, id: &str) -> Result<PathBuf, Failure> {
    let root = match control::mount_of(dir) {
        Ok(mount) => mount.mount_point,
        Err(_) => dir.to_owned(),
    };
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
