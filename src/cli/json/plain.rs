//! Documents on a plain directory: the same edits, as well as they can be made without help.
//!
//! What is there is replaced by a rename, so readers see no half; a lock on the file keeps other
//! `commitfs json` out meanwhile. Whoever doesn't ask for that lock can overwrite the edit, or be
//! overwritten by it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, FlockOperation};

use super::edit::Changed;
use super::target;
use super::trouble::Trouble;
use crate::sys::at;

/// Says what an edit on a plain directory is worth.
pub(super) fn warn(file: &Path) {
    eprintln!(
        "commitfs: warning: nothing protects this update: {} is not on a commitfs mount",
        file.display()
    );
}

/// A document's text.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Trouble> {
    Ok(std::fs::read(file)?)
}

/// Replaces a document by what `edit` makes of it; it gives `None` for a text that stays.
pub(super) fn change(
    file: &Path,
    create: bool,
    edit: impl Fn(&[u8]) -> Result<(Option<Vec<u8>>, Changed), Trouble>,
) -> Result<Changed, Trouble> {
    for _ in 0..100 {
        match locked(file) {
            Ok(open) => return change_locked(file, &open, &edit),
            Err(Trouble::FileMissing) if create => {}
            Err(trouble) => return Err(trouble),
        }
        let (text, told) = edit(b"")?;
        let text = text.unwrap_or_else(|| b"{}\n".to_vec());
        if target::create(file, &text, true)?.is_some() {
            sync_directory(file)?;
            return Ok(told);
        }
    }
    Err(Trouble::Restless)
}

/// Opens and locks the file that a name means.
fn locked(file: &Path) -> Result<File, Trouble> {
    loop {
        let open = File::open(file)?;
        rustix::fs::flock(&open, FlockOperation::LockExclusive)?;
        let (held, named) = (open.metadata()?, std::fs::metadata(file)?);
        // While this one waited, the one before may have put another file there.
        if (held.dev(), held.ino()) == (named.dev(), named.ino()) {
            return Ok(open);
        }
    }
}

fn change_locked(
    file: &Path,
    mut open: &File,
    edit: impl Fn(&[u8]) -> Result<(Option<Vec<u8>>, Changed), Trouble>,
) -> Result<Changed, Trouble> {
    // A rename asks for no right to write the file.
    rustix::fs::access(file, Access::WRITE_OK)?;
    let mut text = Vec::new();
    open.read_to_end(&mut text)?;
    let (text, told) = edit(&text)?;
    let Some(text) = text else {
        return Ok(told);
    };
    let aside = target::aside(file);
    let replaced = target::write_aside(&aside, &text, 0o600, true)
        .and_then(|()| target::apply_metadata(&aside, open))
        .and_then(|()| std::fs::rename(&aside, file));
    if let Err(e) = replaced {
        std::fs::remove_file(&aside).ok();
        return Err(e.into());
    }
    sync_directory(file)?;
    Ok(told)
}

fn sync_directory(file: &Path) -> Result<(), Trouble> {
    let dir = File::open(file.parent().unwrap_or(Path::new("/")))?;
    Ok(at::sync_dir(std::os::fd::AsFd::as_fd(&dir))?)
}
