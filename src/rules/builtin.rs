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
    &["LOG", "LOG.old", "LOG.old.*", "CURRENT"],
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

/// Where a format has its magic number, and that.
struct Magic(usize, &'static [u8]);

/// Formats of files that several processes edit in place at once. Numbers stand in the byte order of
/// the machine that made the file.
const DATABASES: &[Magic] = &[
    Magic(0, b"SQLite format 3\0"),
    // HDF5, whose signature stands behind a block of the user's, if there is one.
    Magic(0, HDF5),
    Magic(512, HDF5),
    Magic(1024, HDF5),
    Magic(2048, HDF5),
    // LMDB, on its first meta page behind the page's header.
    Magic(16, &0xBEEF_C0DE_u32.to_le_bytes()),
    Magic(16, &0xBEEF_C0DE_u32.to_be_bytes()),
    // bbolt and boltdb, likewise.
    Magic(16, &0xED0C_DAED_u32.to_le_bytes()),
    Magic(16, &0xED0C_DAED_u32.to_be_bytes()),
    Magic(8, b"DUCK"),
    Magic(0, b"redb\x1a\x0a\xa9\x0d\x0a"),
    Magic(0, b"ToKyO CaBiNeT\n"),
    Magic(0, b"TDB file\n"),
];

const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";

/// GDBM's magic numbers, at the beginning: for 32 and 64 bits, with and without a sync of its own.
const GDBM: &[u32] = &[
    0x1357_9ACD,
    0x1357_9ACE,
    0x1357_9ACF,
    0x1357_9AD0,
    0x1357_9AD1,
];

/// Berkeley DB's, behind the first page's number: btree, hash, queue, heap.
const BERKELEY: &[u32] = &[0x0005_3162, 0x0006_1561, 0x0004_2253, 0x0007_4582];
const BERKELEY_AT: usize = 12;

/// Do a file's first bytes say that it is a database (SQLite, HDF5, LMDB, …)? Such files are edited
/// in place by several processes at once. The first 2056 bytes suffice.
pub fn looks_like_database(first_bytes: &[u8]) -> bool {
    let has = |at: usize, magic: &[u8]| first_bytes.get(at..at + magic.len()) == Some(magic);
    let has_number =
        |at, number: u32| has(at, &number.to_le_bytes()) || has(at, &number.to_be_bytes());
    DATABASES.iter().any(|magic| has(magic.0, magic.1))
        || GDBM.iter().any(|number| has_number(0, *number))
        || BERKELEY
            .iter()
            .any(|number| has_number(BERKELEY_AT, *number))
}

/// The database that a file belongs to by its name, should it be one: SQLite's journals and shared
/// memory, LMDB's lock.
pub fn companion_of(name: &OsStr) -> Option<&OsStr> {
    const SUFFIXES: &[&[u8]] = &[b"-wal", b"-shm", b"-journal", b"-lock"];
    let name = name.as_bytes();
    let main = SUFFIXES
        .iter()
        .find_map(|suffix| name.strip_suffix(*suffix));
    main.filter(|main| !main.is_empty()).map(OsStr::from_bytes)
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
