//! A tree as real files, on which recovery can be tried.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use commitfs::journal::{self, ContentInfo, Edit, FileKey, Record};
use commitfs::sys::at::birth_time;

use crate::tree::{Ino, Kind, Tree};

/// Numbers of files that aren't there any more begin here: no real one comes near.
const GONE: u64 = 1 << 50;

/// Real files by the numbers of the tree's.
struct Numbers(HashMap<Ino, (FileKey, PathBuf)>);

impl Numbers {
    fn of(&self, ino: u64) -> u64 {
        self.0.get(&ino).map_or(GONE + ino, |(real, _)| real.inode)
    }

    fn key(&self, key: FileKey) -> FileKey {
        let gone = FileKey {
            inode: GONE + key.inode,
            btime_ns: 1,
        };
        self.0.get(&key.inode).map_or(gone, |(real, _)| *real)
    }
}

/// Writes what is below a directory of the tree to a real one. `instance`: what ended the daemon has left the machine as it was, which
/// the journal shall say.
pub fn write_out(tree: &Tree, top: Ino, to: &Path, instance: Option<&str>) {
    fs::create_dir_all(to).expect("a directory");
    let mut numbers = Numbers(HashMap::new());
    below(tree, top, to, &mut numbers);
    let state = to.join(".commitfs");
    for name in ["journal", "journal.new"] {
        let path = state.join(name);
        let Ok(found) = fs::read(&path) else { continue };
        if let Some(renumbered) = renumber(&found, &numbers, instance) {
            let file = File::options().write(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(&renumbered));
            written.expect("the journal can be written");
        }
    }
}

fn below(tree: &Tree, dir: Ino, to: &Path, numbers: &mut Numbers) {
    let inode = tree.get(dir).expect("a directory");
    for (name, ino) in inode.entries.iter() {
        let path = to.join(OsStr::from_bytes(name));
        let Some(child) = tree.get(*ino) else {
            continue;
        };
        if let Some((_, first)) = numbers.0.get(ino) {
            fs::hard_link(first, &path).expect("a link");
            continue;
        }
        match child.kind {
            Kind::Directory => fs::create_dir(&path).expect("a directory"),
            Kind::Symlink => {
                std::os::unix::fs::symlink(OsStr::from_bytes(&child.data), &path).expect("a link");
                continue;
            }
            Kind::File => fill(&path, &child.data).expect("a file"),
        }
        for (name, value) in &child.attributes {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&path, &name[..], value, flags).expect("an attribute");
        }
        let permissions = Permissions::from_mode(child.mode);
        fs::set_permissions(&path, permissions).expect("permissions");
        if child.kind == Kind::File && child.modified > 0 {
            let time = UNIX_EPOCH + Duration::from_nanos(child.modified);
            let file = File::open(&path).expect("it is there");
            file.set_modified(time).expect("a time");
        }
        let file = File::open(&path).expect("it is there");
        let (inode, btime_ns) = birth_time(&file).expect("it has a number");
        let real = FileKey { inode, btime_ns };
        numbers.0.insert(*ino, (real, path.clone()));
        if child.kind == Kind::Directory {
            below(tree, *ino, &path, numbers);
        }
    }
}

/// What a file ends with is seldom more than zeros that were set aside: they need not travel.
fn fill(path: &Path, data: &[u8]) -> std::io::Result<()> {
    const STEP: usize = 4096;
    let is_zero = |block: &&[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    let zeros = data.rchunks(STEP).take_while(is_zero).count() * STEP;
    let mut file = File::create(path)?;
    file.write_all(&data[..data.len().saturating_sub(zeros)])?;
    file.set_len(data.len() as u64)
}

/// The journal with the numbers of the real files.
fn renumber(bytes: &[u8], numbers: &Numbers, instance: Option<&str>) -> Option<Vec<u8>> {
    let told = journal::decode(bytes).ok()?;
    let mut header = told.header;
    if let Some(instance) = instance {
        header.instance = instance.to_owned();
    }
    let records: Vec<Record> = told.records.into_iter().map(|r| real(r, numbers)).collect();
    let written = journal::encode(&header, &records).expect("as long as it was");
    assert!(
        written.len() <= bytes.len(),
        "numbers are as long as they were"
    );
    Some(written)
}

fn real(mut record: Record, numbers: &Numbers) -> Record {
    match &mut record {
        Record::Fsynced { content, .. } | Record::Prepared { content, .. } => {
            real_content(content, numbers);
        }
        Record::Commit { edits, .. } => edits.iter_mut().for_each(|edit| match edit {
            Edit::Put { content, .. } => real_content(content, numbers),
            Edit::Append {
                file: Some(file), ..
            } => *file = numbers.key(*file),
            Edit::Append { .. } | Edit::Drop { .. } | Edit::Patch { .. } => {}
        }),
        Record::Moved { inode, .. } => *inode = numbers.of(*inode),
        Record::Growing { file, .. } | Record::Settled { file } => {
            *file = numbers.key(*file);
        }
        _ => {}
    }
    record
}

fn real_content(content: &mut ContentInfo, numbers: &Numbers) {
    if let Some(grown) = &mut content.grown {
        grown.inode = numbers.of(grown.inode);
    }
}
