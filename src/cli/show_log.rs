//! `commitfs log`: what the daemon of a mount has said, wherever that went.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Failure, control, exit, output, status};
use crate::store::{DAEMON_LOG, OLD_LOG, STATE_DIR};
use crate::sys::mount::{self as sysmount, MountEntry};

/// Lines shown before new ones are waited for, if not said.
const BEFORE: usize = 10;
/// How often it is looked for new ones.
const PAUSE: Duration = Duration::from_millis(200);

/// Arguments of `commitfs log`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// A mount, or a backing directory nobody has mounted
    dir: PathBuf,
    /// Go on with what the daemon says from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines [default: all; with --follow 10]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

impl Arguments {
    fn last(&self) -> Option<usize> {
        self.lines.or(self.follow.then_some(BEFORE))
    }
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let dir = &arguments.dir;
    if let Some(backing) = below_dead(dir) {
        return of_directory(&backing, arguments);
    }
    match control::mount_if_any(dir)? {
        Some(mount) => of_mount(&mount, arguments),
        None => of_directory(dir, arguments),
    }
}

/// The backing directory of a mount whose daemon is gone, if the mount doesn't cover it: what the
/// daemon has said last is there.
fn below_dead(dir: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(dir).ok()?;
    let table = sysmount::mountinfo().ok()?;
    let mount = path.ancestors().find_map(|p| sysmount::top_at(&table, p))?;
    let asked = mount.mount_point.join(STATE_DIR).symlink_metadata();
    let is_dead = asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN));
    let backing = PathBuf::from(&mount.source);
    (is_dead && mount.fstype == sysmount::FSTYPE && backing.is_dir()).then_some(backing)
}

fn of_directory(dir: &Path, arguments: &Arguments) -> Result<u8, Failure> {
    let state = dir.join(STATE_DIR);
    let file = File::open(state.join(DAEMON_LOG)).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Failure::new(
            exit::BAD_INPUT,
            format!(
                "{}: no daemon has logged here: neither a mount of commitfs, nor a directory that one in the background had mounted",
                dir.display()
            ),
        ),
        _ => control::unusable(dir, &e),
    })?;
    let old = File::open(state.join(OLD_LOG)).ok();
    show(Log::held(file, None), old, arguments, || true)
}

fn of_mount(mount: &MountEntry, arguments: &Arguments) -> Result<u8, Failure> {
    let told = status::read(mount)?;
    let pid = told["pid"].as_u64().unwrap_or_default();
    if told["log"] == "journal" {
        return Err(from_journal(pid, arguments));
    }
    let lives = move || Path::new("/proc").join(pid.to_string()).exists();
    // What its standard error goes to, which lies below the mount: to have it open keeps nobody from
    // unmounting.
    let stderr = PathBuf::from(format!("/proc/{pid}/fd/2"));
    if stderr.metadata().is_ok_and(|found| found.is_file())
        && let Ok(log) = File::open(&stderr)
    {
        return show(Log::held(log, Some(stderr)), None, arguments, lives);
    }
    if told["log"] == "file" {
        let log = mount.mount_point.join(STATE_DIR).join(DAEMON_LOG);
        return show(
            Log {
                source: Source::Named(log),
                at: 0,
            },
            None,
            arguments,
            lives,
        );
    }
    Err(Failure::new(
        exit::BAD_INPUT,
        format!(
            "{}: its daemon (process {pid}) runs in the foreground: what it says is on the terminal, or in the pipe, that it was started with",
            mount.mount_point.display()
        ),
    ))
}

/// Becomes journalctl; comes back if that can't be.
fn from_journal(pid: u64, arguments: &Arguments) -> Failure {
    let mut command = std::process::Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=short-iso"]);
    command.arg(format!("_PID={pid}"));
    if arguments.follow {
        command.arg("--follow");
    }
    if let Some(lines) = arguments.last() {
        command.arg(format!("--lines={lines}"));
    }
    let error = command.exec();
    Failure::new(
        exit::TROUBLE,
        format!(
            "the log of process {pid} is in the journal of systemd, and journalctl can't be run: {error}"
        ),
    )
}

/// A log that may grow, and make way for a new one.
struct Log {
    source: Source,
    /// So many of its bytes have been shown.
    at: u64,
}

enum Source {
    /// Open all the time, and where the one is found that follows it.
    Held(File, Option<PathBuf>),
    /// On the mount, where it would be in the way of an unmount.
    Named(PathBuf),
}

impl Log {
    fn held(file: File, next: Option<PathBuf>) -> Log {
        let source = Source::Held(file, next);
        Log { source, at: 0 }
    }

    /// What has been added to it since it was asked last.
    fn more(&mut self) -> std::io::Result<Vec<u8>> {
        let mut new = Vec::new();
        match &mut self.source {
            Source::Held(file, next) => {
                self.at += read_from(file, self.at, &mut new)?;
                if let Some(next) = next
                    && let (Ok(now), before) = (next.metadata(), file.metadata()?)
                    && (now.dev(), now.ino()) != (before.dev(), before.ino())
                {
                    // What was said between the read above and the change.
                    read_from(file, self.at, &mut new)?;
                    *file = File::open(next)?;
                    self.at = read_from(file, 0, &mut new)?;
                }
            }
            Source::Named(path) => {
                let mut file = File::open(path)?;
                if file.metadata()?.len() < self.at {
                    self.at = 0;
                }
                self.at += read_from(&mut file, self.at, &mut new)?;
            }
        }
        Ok(new)
    }
}

fn read_from(file: &mut File, at: u64, into: &mut Vec<u8>) -> std::io::Result<u64> {
    file.seek(SeekFrom::Start(at))?;
    file.read_to_end(into).map(|len| len as u64)
}

/// Shows a log behind an older part of it, and goes on while its daemon lives.
fn show(
    mut log: Log,
    old: Option<File>,
    arguments: &Arguments,
    lives: impl Fn() -> bool,
) -> Result<u8, Failure> {
    let failed = |e: std::io::Error| Failure::new(exit::TROUBLE, format!("the log: {e}"));
    let so_far = log.more().map_err(failed)?;
    let mut text = Vec::new();
    if let Some(mut part) = old {
        part.read_to_end(&mut text).map_err(failed)?;
    }
    text.extend(so_far);
    output::print(last_lines(&text, arguments.last()))?;
    if !arguments.follow {
        return Ok(exit::OK);
    }
    loop {
        let ends = !lives();
        let new = match log.more() {
            // Unmounted.
            Err(_) if ends => return Ok(exit::OK),
            new => new.map_err(failed)?,
        };
        if ends && new.is_empty() {
            return Ok(exit::OK);
        }
        output::print(new)?;
        std::thread::sleep(PAUSE);
    }
}

/// The end of a text: so many of its lines.
fn last_lines(text: &[u8], count: Option<usize>) -> &[u8] {
    let Some(count) = count else {
        return text;
    };
    let mut ends = text.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    // The end of the last line is none of a line before it.
    let unfinished = usize::from(!text.ends_with(b"\n") && !text.is_empty());
    let begin = ends.nth(count.saturating_sub(unfinished));
    match begin {
        _ if count == 0 => &[],
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_with_and_without_an_end() {
        let last = |text: &'static str, count| last_lines(text.as_bytes(), count);
        assert_eq!(last("a\nb\nc\n", Some(2)), b"b\nc\n");
        assert_eq!(last("a\nb\nc", Some(2)), b"b\nc");
        assert_eq!(last("a\n", Some(2)), b"a\n");
        assert_eq!(last("a\n", Some(0)), b"");
        assert_eq!(last("", Some(3)), b"");
        assert_eq!(last("a\nb", None), b"a\nb");
    }
}
