//! Does what `scripts/bench` tells it, and says how long each operation took. One process does many in turn (a habitual
//! writer), or one alone (`worker once OPERATION PATH`).
//!
//! Orders come by lines, `OPERATION COUNT THREADS PATH`; the answer is a line of nanoseconds: the time of all, the median and the 99th
//! percentile of one. With several threads each has a PATH of its own, with its number added.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Advice, XattrFlags};

const SMALL: usize = 2048;
const PATCH: &[u8] = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;
const PATCHES: &str = "commitfs.json.patch";

/// What an operation keeps from one time to the next.
#[derive(Default)]
struct Kept {
    file: Option<File>,
    buffer: Vec<u8>,
}

/// How large what is written and read in one go is, for the operations that end in a number of bytes.
fn parted(operation: &str) -> (&str, usize) {
    match operation.split_once(':') {
        Some((name, bytes)) => (name, bytes.parse().expect("bytes")),
        None => (operation, SMALL),
    }
}

fn rewriting() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options
}

fn save(path: &Path, data: &[u8], synced: bool) -> io::Result<()> {
    let mut file = rewriting().open(path)?;
    file.write_all(data)?;
    if synced {
        file.sync_all()?;
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// As who knows no better way: a temporary file, synced, renamed, and the directory synced.
fn by_hand(path: &Path, data: &[u8]) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    save(&temporary, data, true)?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().expect("a directory"))?.sync_all()
}

/// Load, change and save, by hand: what a patch does inside.
fn count_up(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let number: u64 = (text.chars().filter(char::is_ascii_digit))
        .collect::<String>()
        .parse()
        .unwrap_or(0);
    let temporary = beside(path, ".tmp");
    save(
        &temporary,
        format!("{{\"n\": {}}}\n", number + 1).as_bytes(),
        false,
    )?;
    fs::rename(&temporary, path)
}

fn stream(path: &Path, data: &[u8], total: usize) -> io::Result<()> {
    let mut file = rewriting().open(path)?;
    for _ in 0..total / data.len() {
        file.write_all(data)?;
    }
    Ok(())
}

fn read_all(path: &Path, buffer: &mut [u8], is_cold: bool) -> io::Result<()> {
    let mut file = File::open(path)?;
    if is_cold {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    while file.read(buffer)? > 0 {}
    Ok(())
}

fn read_mapped(path: &Path) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let file = File::open(path)?;
    let len = file.metadata()?.len() as usize;
    // SAFETY: a new mapping at an address that the kernel chooses, of a file that nobody cuts off meanwhile.
    unsafe {
        let at = mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ,
            MapFlags::SHARED,
            &file,
            0,
        )?;
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), len);
        let sum: u64 = bytes
            .iter()
            .step_by(4096)
            .map(|byte| u64::from(*byte))
            .sum();
        std::hint::black_box(sum);
        munmap(at, len)?;
    }
    Ok(())
}

/// One operation; `n` tells those apart that each need a name of their own.
fn act(operation: &str, path: &Path, n: usize, kept: &mut Kept) -> io::Result<()> {
    let (name, size) = parted(operation);
    if kept.buffer.len() != size {
        kept.buffer = (0..size).map(|at| b'a' + (at % 23) as u8).collect();
    }
    let data = &mut kept.buffer[..];
    match name {
        "save" => save(path, data, false),
        "save-synced" => save(path, data, true),
        "by-hand" => by_hand(path, data),
        "create" => save(&path.join(n.to_string()), data, false),
        "replace" => {
            let temporary = beside(path, ".tmp");
            save(&temporary, data, false)?;
            fs::rename(&temporary, path)
        }
        "read" => {
            let mut file = File::open(path)?;
            while file.read(data)? > 0 {}
            Ok(())
        }
        "stat" => fs::metadata(path).map(drop),
        "stat-each" => fs::metadata(path.join(n.to_string())).map(drop),
        "read-each" => fs::read(path.join(n.to_string())).map(drop),
        "append" => OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?
            .write_all(b"one line of a log\n"),
        "append-kept" => {
            if kept.file.is_none() {
                kept.file = Some(OpenOptions::new().append(true).create(true).open(path)?);
            }
            kept.file
                .as_mut()
                .expect("just opened")
                .write_all(b"one line of a log\n")
        }
        "patch" => Ok(rustix::fs::setxattr(
            path,
            PATCHES,
            PATCH,
            XattrFlags::empty(),
        )?),
        "patch-kept" => {
            if kept.file.is_none() {
                kept.file = Some(File::open(path)?);
            }
            let file = kept.file.as_ref().expect("just opened");
            Ok(rustix::fs::fsetxattr(
                file,
                PATCHES,
                PATCH,
                XattrFlags::empty(),
            )?)
        }
        "count-up" => count_up(path),
        "claim" => {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?
                .write_all_at(b"1\n", 0)?;
            fs::remove_file(path)
        }
        // The last two versions are kept, under other names.
        "rotate" => {
            let (older, old) = (beside(path, ".2"), beside(path, ".1"));
            fs::remove_file(&older).ok();
            fs::rename(&old, &older).ok();
            fs::rename(path, &old).ok();
            save(path, data, false)
        }
        _ => streams(name, path, data),
    }
}

/// The operations on a large file, whose size comes first: `write-BYTES:BLOCK`.
fn streams(name: &str, path: &Path, data: &mut [u8]) -> io::Result<()> {
    let (what, total) = name.split_once('-').unwrap_or((name, "0"));
    match what {
        "write" => stream(path, data, total.parse().expect("bytes")),
        "warm" => read_all(path, data, false),
        "cold" => read_all(path, data, true),
        "mapped" => read_mapped(path),
        _ => panic!("no such operation: {name}"),
    }
}

fn run(operation: &str, path: &Path, count: usize) -> io::Result<Vec<u64>> {
    let mut kept = Kept::default();
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let begun = Instant::now();
        act(operation, path, n, &mut kept)?;
        times.push(begun.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

fn order(line: &str) -> io::Result<String> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().expect("OPERATION COUNT THREADS PATH");
    let operation = word();
    let count: usize = word().parse().expect("a count");
    let threads: usize = word().parse().expect("threads");
    let path = PathBuf::from(word());
    let begun = Instant::now();
    let mut times = if threads == 1 {
        run(operation, &path, count)?
    } else {
        let all: io::Result<Vec<Vec<u64>>> = std::thread::scope(|scope| {
            let one = |n: usize| {
                let path = beside(&path, &n.to_string());
                scope.spawn(move || run(operation, &path, count))
            };
            let started: Vec<_> = (0..threads).map(one).collect();
            started
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        all?.concat()
    };
    let total = begun.elapsed().as_nanos();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    Ok(format!("{total} {} {}", at(50), at(99)))
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let answer = |result: io::Result<String>| match result {
        Ok(text) => println!("{text}"),
        Err(error) => println!("error: {error}"),
    };
    match words.first().map(String::as_str) {
        Some("once") => answer(order(&format!("{} 1 1 {}", words[1], words[2]))),
        // `cargo bench` and the like start it with options of theirs.
        Some(_) => println!("this is for scripts/bench"),
        None => {
            for line in io::stdin().lock().lines() {
                answer(order(&line.expect("orders")));
                io::stdout().flush().expect("who has asked listens");
            }
        }
    }
}
