//! Patches that were set while nothing was mounted. With `user.` before its name, such an attribute
//! is one that a plain directory takes and keeps: the program was told that all is well, and nothing
//! has changed. A mount looks for them once, and says so.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::advice;
use crate::engine::requests::xattrs::DOCUMENT;
use crate::store::{STATE_DIR, Unseen};
use crate::sys::{at, failpoint};
use crate::types::{errno_of, quoted_for_shell};

/// So many files are looked at, those of higher directories first.
const MOST: usize = 20_000;
/// So much of a value is shown.
const SHOWN: usize = 200;

/// Begins to look, in a thread of its own: a tree may be large.
pub fn start_looking_for_strays(engine: &Arc<Engine>) {
    let engine = Arc::downgrade(engine);
    let look = move || {
        let Some(root) = engine.upgrade().and_then(|e| e.store.root.try_clone().ok()) else {
            return;
        };
        for (path, name, value) in strays(root) {
            if let Some(engine) = engine.upgrade() {
                report_stray(&engine, &path, &name, &value);
            }
        }
    };
    let started = std::thread::Builder::new()
        .name("strays".into())
        .spawn(look);
    if let Err(e) = started {
        log::warn!(
            "patches set while unmounted are not looked for: {}",
            errno_of(&e)
        );
    }
}

fn report_stray(engine: &Engine, path: &Path, name: &OsStr, value: &[u8]) {
    let name = name.to_string_lossy();
    let shown = String::from_utf8_lossy(&value[..value.len().min(SHOWN)]);
    let reason = format!(
        "it was set as the attribute {name} while nothing was mounted here: {shown}; apply it with `commitfs json`, then `setfattr -x {name}`"
    );
    log::warn!("{}: a patch changed nothing: {reason}", path.display());
    let mut state = engine.lock();
    let known = |u: &Unseen| u.reason == reason && Path::new(&u.path) == path;
    if !state.tally.errors.all().any(known) {
        let mut unseen = Unseen::of(path, reason, 0);
        unseen.remedy = Some(way_to_apply(engine, path, &name, value));
        state.tally.errors.add(unseen);
    }
}

/// Commands that make the edit, or take the attribute away where it is too long to be given here.
fn way_to_apply(engine: &Engine, path: &Path, name: &str, value: &[u8]) -> String {
    let file = advice::shell_path(engine, path);
    let remove = format!("setfattr -x {name} {file}");
    let edit = ["patch", "merge"]
        .into_iter()
        .find(|edit| name.ends_with(&format!(".json.{edit}")));
    match (edit, std::str::from_utf8(value)) {
        (Some(edit), Ok(value)) if value.len() <= SHOWN => {
            let value = quoted_for_shell(Path::new(value));
            format!("commitfs json {edit} {file} {value} && {remove}")
        }
        _ => remove,
    }
}

type Stray = (PathBuf, OsString, Vec<u8>);

/// What edits of documents lie on files below a directory as ordinary attributes.
fn strays(root: OwnedFd) -> Vec<Stray> {
    let mut found = Vec::new();
    if failpoint::mutant("C15-strays") {
        return found;
    }
    let mut left = MOST;
    let mut directories = std::collections::VecDeque::from([(PathBuf::new(), root)]);
    while let Some((path, dir)) = directories.pop_front() {
        if look_into(&path, &dir, &mut directories, &mut found, &mut left).is_err() {
            log::debug!("{}: not looked into for patches", path.display());
        }
        if left == 0 {
            log::info!("patches set while unmounted: {MOST} files were looked at, others were not");
            break;
        }
    }
    found
}

fn look_into(
    path: &Path,
    dir: &OwnedFd,
    directories: &mut std::collections::VecDeque<(PathBuf, OwnedFd)>,
    found: &mut Vec<Stray>,
    left: &mut usize,
) -> Result<(), Errno> {
    // A few are open at a time: a tree that is wider waits for nobody's descriptors.
    const OPEN: usize = 64;
    let device = at::stat(dir)?.st_dev;
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if [".", "..", STATE_DIR].iter().any(|n| name == *n) || *left == 0 {
            continue;
        }
        let below = path.join(name);
        match entry.file_type() {
            FileType::Directory if directories.len() < OPEN => {
                let Ok(fd) = at::open_dir(dir, name) else {
                    continue;
                };
                if at::stat(&fd)?.st_dev == device {
                    directories.push_back((below, fd));
                }
            }
            FileType::RegularFile => {
                *left -= 1;
                if let Ok(file) = at::open_path(dir, name) {
                    found.extend(strays_of(below, file.as_fd()));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn strays_of(path: PathBuf, file: impl AsFd) -> Vec<Stray> {
    let names = at::list_xattrs(&file).unwrap_or_default();
    let edits = names.iter().filter(|name| name.starts_with(DOCUMENT));
    edits
        .filter_map(|name| {
            let name = OsStr::from_bytes(name);
            let value = at::get_xattr(&file, name).ok()??;
            Some((path.clone(), name.to_owned(), value))
        })
        .collect()
}
