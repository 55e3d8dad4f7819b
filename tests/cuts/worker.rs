//! `work KIND ID SEED ROOT LOG STOP`: does the steps of its plan until the file STOP is there. Into LOG, which
//! lies elsewhere than ROOT, goes a line for each thing that its client could know: `b STEP TIME` before
//! a step, `s` once its fsync has returned, `a` after it, `e STEP TIME WHY` for a failure (and that is the end), `x`
//! for something that a living daemon must not do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::content;
use crate::plan::{CHECKPOINT, DOCUMENT, GRID, KINDS, Plan, Step, TRIO, Way};
use crate::random::Random;

/// Nanoseconds of the clock that all processes share.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is ours, and nobody uses it again. `File` would drop the error.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mapping that outlives its descriptor.
struct Mapping(*mut std::ffi::c_void, usize);

impl Mapping {
    fn new(file: &File, len: usize) -> io::Result<Mapping> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nobody reads through it.
        let at = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        Ok(Mapping(at?, len))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no reference into it exists.
        let _ = unsafe { rustix::mm::munmap(self.0, self.1) };
    }
}

struct Worker {
    me: usize,
    root: PathBuf,
    log: File,
    random: Random,
    /// The descriptor that stays open from line to line.
    open: Option<File>,
    /// The newest number of its row or its members that was acknowledged.
    acknowledged: u64,
}

pub fn work(args: &[String]) {
    let number = |n: usize| args[n].parse::<u64>().expect("a number");
    let (kind, me, seed) = (KINDS[number(0) as usize], number(1) as usize, number(2));
    let (root, log, stop) = (&args[3], &args[4], Path::new(&args[5]));
    let log = OpenOptions::new().create(true).append(true).open(log);
    let mut worker = Worker {
        me,
        root: root.into(),
        log: log.expect("a log"),
        random: Random::from(seed ^ me as u64),
        open: None,
        acknowledged: 0,
    };
    for (n, step) in Plan::new(kind, me, seed).enumerate() {
        if stop.exists() {
            break;
        }
        worker.note('b', n, "");
        if let Err(error) = worker.act(n, &step) {
            worker.note('e', n, &format!("{step:?}: {error}"));
            std::process::exit(1);
        }
        worker.note('a', n, "");
        worker.pause(
            if matches!(
                step,
                Step::Save {
                    way: Way::Large,
                    ..
                }
            ) {
                300_000
            } else {
                12_000
            },
        );
    }
}

/// A child of a victim: begins to save, and is killed.
pub fn be_killed(args: &[String]) {
    let number: u64 = args[1].parse().expect("a number");
    let text = content::saved(0, number, 30_000);
    if let Ok(mut file) = File::create(&args[0]) {
        let _ = file.write_all(&text[..10_000 + number as usize % 20_000]);
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

impl Worker {
    fn note(&mut self, what: char, step: usize, why: &str) {
        let line = format!("{what} {step} {} {}\n", now(), why.replace('\n', " "));
        self.log
            .write_all(line.as_bytes())
            .expect("the log takes it");
    }

    fn pause(&mut self, most: u64) {
        if self.random.one_in(3) {
            std::thread::sleep(Duration::from_micros(self.random.below(most)));
        }
    }

    fn act(&mut self, n: usize, step: &Step) -> io::Result<()> {
        match step {
            Step::Save {
                path,
                number,
                len,
                way,
            } => self.save(n, path, &content::saved(self.me, *number, *len), *way),
            Step::Trio {
                number,
                len,
                synced,
            } => {
                let path = |name| format!("w{}/{name}", self.me);
                self.save_round(&TRIO.map(path), *number, (*len, *synced))
            }
            Step::Checkpoint {
                path,
                number,
                len,
                synced,
            } => {
                fs::create_dir(self.root.join(path))?;
                fs::create_dir(self.root.join(path).join("part"))?;
                let paths = CHECKPOINT.map(|name| format!("{path}/{name}"));
                self.save_round(&paths, *number, (*len, *synced))
            }
            Step::Line {
                path,
                number,
                pieces,
                new,
            } => self.line(path, &content::line(self.me, *number), *pieces, *new),
            Step::OneLine {
                path,
                number,
                synced,
            } => {
                let mut file = append(&self.root.join(path))?;
                file.write_all(&content::line(self.me, *number))?;
                self.sync(n, &file, *synced)?;
                close(file)
            }
            Step::SyncLines => match &self.open {
                Some(file) => file.sync_data(),
                None => Ok(()),
            },
            Step::CloseLines => self.open.take().map_or(Ok(()), close),
            Step::Patch { number } => {
                let patch = content::patch(self.me, *number);
                let name = "user.commitfs.json.patch";
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(self.root.join(DOCUMENT), name, patch.as_bytes(), flags)?;
                self.acknowledged = *number;
                Ok(())
            }
            Step::ReadDocument => {
                let text = fs::read(self.root.join(DOCUMENT))?;
                let found = content::parts_of(DOCUMENT, &text).map(|(parts, _)| parts);
                let mine = (Some(self.me), self.acknowledged);
                if !found.as_ref().is_ok_and(|parts| parts.contains(&mine)) {
                    self.note(
                        'x',
                        n,
                        &format!("{mine:?} was acknowledged, and this is there: {found:?}"),
                    );
                }
                Ok(())
            }
            Step::Edit { number, synced } => self.edit(n, *number, *synced),
            Step::Rename { from, to } => fs::rename(self.root.join(from), self.root.join(to)),
            Step::Unlink(path) => fs::remove_file(self.root.join(path)),
            Step::MakeDirectory(path) => fs::create_dir(self.root.join(path)),
            Step::RemoveDirectory(path) => fs::remove_dir(self.root.join(path)),
            Step::SyncDirectory(path) => File::open(self.root.join(path))?.sync_all(),
            Step::SyncElsewhere { number } => {
                // Above the mount is the disk's own directory.
                let mut file = File::create(self.root.join("../neighbour"))?;
                file.write_all(&content::line(self.me, *number))?;
                file.sync_all()
            }
            Step::KilledSave { path, number } => self.killed_save(path, *number),
        }
    }

    /// Files that a rule groups.
    fn save_round(
        &mut self,
        paths: &[String],
        number: u64,
        (len, synced): (usize, bool),
    ) -> io::Result<()> {
        for path in paths {
            let mut file = File::create(self.root.join(path))?;
            file.write_all(&content::saved(self.me, number, len))?;
            // One of a round that isn't whole is kept, and not published: nothing is promised yet.
            if synced {
                file.sync_all()?;
            }
            self.pause(2000);
            close(file)?;
        }
        Ok(())
    }

    fn sync(&mut self, n: usize, file: &File, wanted: bool) -> io::Result<()> {
        if wanted {
            file.sync_all()?;
            self.note('s', n, "");
        }
        Ok(())
    }

    fn save(&mut self, n: usize, path: &str, text: &[u8], way: Way) -> io::Result<()> {
        let mut open = OpenOptions::new();
        open.write(true).create(true).truncate(true);
        let mut file = open.read(way == Way::Mapped).open(self.root.join(path))?;
        if way == Way::Large {
            let (half, synced) = (text.len() / 2, false);
            file.write_all_at(&text[half..], half as u64)?;
            file.write_all_at(&text[..half], 0)?;
            self.sync(n, &file, synced)?;
            return close(file);
        }
        for chunk in text.chunks(text.len() / (1 + self.random.below(3) as usize) + 1) {
            file.write_all(chunk)?;
        }
        self.sync(n, &file, way != Way::Plain)?;
        let mapping = match way {
            Way::Mapped => Some(Mapping::new(&file, text.len())?),
            _ => None,
        };
        if way != Way::Plain {
            self.pause(4000);
        }
        close(file)?;
        if mapping.is_some() {
            std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        }
        Ok(())
    }

    fn line(&mut self, path: &str, line: &[u8], pieces: usize, new: bool) -> io::Result<()> {
        if self.open.is_none() {
            let path = self.root.join(path);
            self.open = Some(if new {
                File::create(path)?
            } else {
                append(&path)?
            });
        }
        let mut file = self.open.as_ref().expect("just opened");
        for piece in line.chunks(line.len().div_ceil(pieces)) {
            file.write_all(piece)?;
        }
        Ok(())
    }

    fn edit(&mut self, n: usize, number: u64, synced: bool) -> io::Result<()> {
        let place = (self.me * content::ROW) as u64;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.root.join(GRID))?;
        // Who has locked its part lets the others in: several are at work at once.
        let alone = self.random.one_in(2) || !lock_part(&file, place)?;
        let mut found = [0; content::ROW];
        file.read_exact_at(&mut found, place)?;
        if found[..] != content::row(self.me, self.acknowledged) {
            let (found, acknowledged) = (
                String::from_utf8_lossy(&found).into_owned(),
                self.acknowledged,
            );
            self.note(
                'x',
                n,
                &format!("row {acknowledged} was acknowledged, and this is there: {found}"),
            );
        }
        let row = content::row(self.me, number);
        let (left, right) = row.split_at(content::ROW / 2);
        file.write_all_at(left, place)?;
        file.write_all_at(right, place + left.len() as u64)?;
        self.sync(n, &file, synced)?;
        if !alone {
            self.pause(12_000);
        }
        close(file)?;
        self.acknowledged = number;
        Ok(())
    }

    fn killed_save(&mut self, path: &str, number: u64) -> io::Result<()> {
        let mut child = std::process::Command::new(std::env::current_exe()?);
        child
            .arg("be-killed")
            .arg(self.root.join(path))
            .arg(number.to_string());
        child.status()?;
        std::thread::sleep(Duration::from_micros(self.random.below(60_000)));
        Ok(())
    }
}

/// Locks a row; `false` where there are no such locks.
fn lock_part(file: &File, place: u64) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // SAFETY: all zeros are a valid `flock`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = place as libc::off_t;
    lock.l_len = content::ROW as libc::off_t;
    // SAFETY: the descriptor is open, and the kernel only reads what the pointer leads to.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::ENOLCK)) => Ok(false),
            error => Err(error),
        },
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
