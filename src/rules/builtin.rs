//! What holds without any rules file: which names are shared while open, which names promise a
//! whole document, and what the names and first bytes of files tell.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::{Mode, Rule, Stale, When};
use crate::guard::Guard;

/// Files that are meant to be shared, or watched, while they are open (C14).
const DIRECT: &[&[&str]] = &[
    // Logs.
    &["*.log", "*.out", "*.err"],
    // Databases, and the files of LevelDB and RocksDB.
    &["*.mdb", "*.duckdb", "*.wal", "*.sst", "*.ldb", "MANIFEST-*"],
    // Event streams of training monitors.
    &["*tfevents*", "*.wandb"],
    // Swap files of editors.
    &["*.swp", "*.swo"],
    // Downloads under way.
    &["*.part", "*.partial", "*.incomplete", "*.crdownload"],
    // Files that an NFS client renamed because they were unlinked while open.
    &[".nfs*"],
];

/// Claims and process ids: direct, too.
const CLAIMS: &[&str] = &["LOCK", ".lock", "*.lck", "*.pid"];

/// SQLite's main file; its companions have the same name and a suffix.
const SQLITE: &[&str] = &["*.db", "*.db3", "*.sqlite", "*.sqlite3"];
const SQLITE_COMPANIONS: &[&str] = &["", "-wal", "-shm", "-journal"];

/// Names that promise a document of a kind (C21).
const GUARDED: &[(&str, Guard)] = &[
    ("*.json", Guard::Json),
    ("*.ipynb", Guard::Json),
    ("*.geojson", Guard::Json),
    ("*.pt", Guard::Zip),
    ("*.pth", Guard::Zip),
    ("*.ckpt", Guard::Zip),
    ("*.npz", Guard::Zip),
    ("*.keras", Guard::Zip),
    ("*.zip", Guard::Zip),
    ("*.safetensors", Guard::Safetensors),
    ("*.npy", Guard::Npy),
    ("*.parquet", Guard::Parquet),
    ("*.h5", Guard::Hdf5),
    ("*.hdf5", Guard::Hdf5),
    ("*.pkl", Guard::Pickle),
    ("*.pickle", Guard::Pickle),
    ("*.gz", Guard::Gzip),
    ("*.rds", Guard::Gzip),
    ("*.RData", Guard::Gzip),
    ("*.zst", Guard::Zstd),
];

/// The built-in rules, in order. Where two match one name and set the same key, they agree.
pub(super) fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for glob in DIRECT.iter().copied().flatten() {
        rules.push(direct(glob, When::Always));
    }
    for name in SQLITE {
        for suffix in SQLITE_COMPANIONS {
            rules.push(direct(&format!("{name}{suffix}"), When::Always));
        }
    }
    let claims = CLAIMS.iter().map(|glob| direct(glob, When::Always));
    for mut claim in claims.chain([direct("*.lock", When::Claimed)]) {
        claim.settings.stale = Some(Stale::Warn);
        rules.push(claim);
    }
    for (glob, guard) in GUARDED {
        let mut rule = rule(glob);
        rule.settings.guard = Some(*guard);
        rules.push(rule);
    }
    rules
}

fn direct(glob: &str, when: When) -> Rule {
    let mut rule = rule(glob);
    rule.when = when;
    rule.settings.mode = Some(Mode::Direct);
    rule
}

fn rule(glob: &str) -> Rule {
    Rule::new(glob).expect("the built-in globs are valid")
}

/// Do a file's first bytes say SQLite, HDF5 or LMDB? Such files are edited in place by several
/// processes at once. The first 512 bytes suffice.
pub fn looks_like_database(first_bytes: &[u8]) -> bool {
    const SQLITE: &[u8] = b"SQLite format 3\0";
    const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";
    // The magic of LMDB's first meta page, behind the page's header, in the byte order of the
    // machine that made it.
    const LMDB: u32 = 0xBEEF_C0DE;
    const LMDB_AT: usize = 16;
    let lmdb = first_bytes.get(LMDB_AT..LMDB_AT + 4);
    first_bytes.starts_with(SQLITE)
        || first_bytes.starts_with(HDF5)
        || lmdb.is_some_and(|magic| magic == LMDB.to_le_bytes() || magic == LMDB.to_be_bytes())
}

/// A file that grows line by line rather than at its close (C10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Lines, whatever they are.
    Lines,
    /// A table, unless it is written out in blocks.
    Table,
    /// JSON, if every line of it is a value of its own.
    Json,
}

/// The kind of stream that a new file of this name is, if it is emptied and written.
pub fn text_stream(name: &OsStr) -> Option<Stream> {
    const LINES: &[&str] = &[".txt", ".jsonl", ".ndjson"];
    const TABLES: &[&str] = &[".csv", ".tsv"];
    const PARTS: &[&[u8; 6]] = &[b"stdout", b"stderr"];
    let name = name.as_bytes();
    let ends_in = |suffixes: &[&str]| suffixes.iter().any(|s| name.ends_with(s.as_bytes()));
    let is_output = || {
        name.windows(6)
            .any(|window| PARTS.iter().any(|part| window == part.as_slice()))
    };
    match () {
        () if ends_in(TABLES) => Some(Stream::Table),
        () if ends_in(LINES) || is_output() => Some(Stream::Lines),
        () => None,
    }
}
