//! `commitfs umount`: refused while transactions are open.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;

use super::{Failure, control, exit, output};
use crate::engine::{Answer, ControlCommand};
use crate::store::Store;
use crate::sys::{mount as sysmount, proc};

/// How long an unmount that nothing stands against may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// So often a mount is tried that is in use by nobody one can see.
const ATTEMPTS: u32 = 5;

/// Arguments of `commitfs umount`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The mount
    mountpoint: PathBuf,
    /// Wait until the open transactions have ended, and nothing is in use any more
    #[arg(long)]
    wait: bool,
    /// Send open transactions to rejected
    #[arg(long)]
    force: bool,
}

/// The name under which umount(8) calls a helper for our mounts, with `DIR [-nlfrv] [-t TYPE] [-N NAMESPACE]`.
const HELPER: &str = "umount.fuse.commitfs";

#[derive(Debug, clap::Parser)]
#[command(name = HELPER, about = "Unmounts a commitfs for umount(8)")]
struct HelperArguments {
    mountpoint: PathBuf,
    /// As `commitfs umount --force`
    #[arg(short)]
    force: bool,
    /// Detach at once, and let what is open end by itself
    #[arg(short)]
    lazy: bool,
    // Nothing to do for us.
    #[arg(short, hide = true)]
    no_mtab: bool,
    #[arg(short, hide = true)]
    read_only: bool,
    #[arg(short, hide = true)]
    verbose: bool,
    #[arg(short = 't', hide = true)]
    kind: Option<String>,
    #[arg(short = 'N', hide = true)]
    namespace: Option<String>,
}

/// Whether this is umount(8)'s call: without a helper it returns while the daemon is still writing
/// out commits, and doesn't ask for open transactions.
pub fn is_helper(line: &[OsString]) -> bool {
    line.first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == HELPER)
}

/// Does what umount(8) asks for.
pub fn run_as_helper(line: &[OsString]) -> Result<u8, Failure> {
    let helper = HelperArguments::parse_from(line);
    if helper.lazy {
        sysmount::unmount(&helper.mountpoint, true).map_err(|e| Failure::new(exit::REFUSED, e))?;
        return Ok(exit::OK);
    }
    run(&Arguments {
        mountpoint: helper.mountpoint,
        wait: false,
        force: helper.force,
    })
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    if let Ok(true) = sysmount::detach_dead(&arguments.mountpoint) {
        output::print(format!(
            "{}: detached a mount whose daemon was gone\n",
            arguments.mountpoint.display()
        ))?;
        return Ok(exit::OK);
    }
    let mount = control::mount_of(&arguments.mountpoint)?;
    refuse_below(&mount, &arguments.mountpoint)?;
    let command = ControlCommand::Unmount {
        force: arguments.force,
        check: false,
    };
    let mut attempts = 0;
    let mut told = Vec::new();
    loop {
        attempts += 1;
        let unread = ask(&mount, &command, arguments)?;
        match wait_until_gone(&mount) {
            // Who has just ended, or looks around on the machine, is in the way for a moment.
            Err(failure) if failure.code == exit::BUSY => {
                let holders = holders(&mount);
                if !arguments.wait && (!holders.is_empty() || attempts == ATTEMPTS) {
                    return Err(in_use(&mount, &holders));
                }
                if arguments.wait && holders != told {
                    eprintln!("{}", waiting_for(&mount, &holders));
                    told = holders;
                }
            }
            other => {
                if unread > 0 && other.is_ok() {
                    eprintln!(
                        "{}: {unread} errors that nobody has read; `commitfs status` shows them after the next mount",
                        mount.mount_point.display()
                    );
                }
                return other;
            }
        }
    }
}

/// Who names a file or a directory below a mount may not know that all of it would go.
fn refuse_below(mount: &sysmount::MountEntry, named: &Path) -> Result<(), Failure> {
    let real = named
        .canonicalize()
        .map_err(|e| control::unusable(named, &e))?;
    if real == mount.mount_point {
        return Ok(());
    }
    Err(Failure::new(
        exit::BAD_INPUT,
        format!(
            "{}: not a mount, it lies on one: `commitfs umount {}` unmounts that",
            named.display(),
            mount.mount_point.display()
        ),
    ))
}

/// Asks the daemon to unmount, until it agrees. Gives how many of its errors nobody has read.
fn ask(
    mount: &sysmount::MountEntry,
    command: &ControlCommand,
    arguments: &Arguments,
) -> Result<usize, Failure> {
    let mut told = String::new();
    loop {
        let answer = match control::send(&mount.mount_point, command) {
            Ok(answer) => answer,
            // The daemon was faster than its answer.
            Err(_) if arguments.force || is_gone_soon(mount) => return Ok(0),
            Err(e) => return Err(e),
        };
        if answer.ok {
            return Ok(answer.unread);
        }
        if !arguments.wait {
            return Err(refusal(&mount.mount_point, &answer));
        }
        let waiting = awaited(&mount.mount_point, &answer);
        // Their ages grow; who they are is what may have changed.
        let whom = format!(
            "{:?}",
            answer
                .open
                .iter()
                .map(|o| (&o.path, o.pid))
                .collect::<Vec<_>>()
        );
        if told != whom {
            eprintln!("{}", output::escaped_lines(&waiting));
            told = whom;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Processes that stand in the mount, or have something open there, as far as one may see.
fn holders(mount: &sysmount::MountEntry) -> Vec<(u32, String)> {
    let own = std::process::id();
    proc::all_pids()
        .into_iter()
        .filter(|pid| *pid != own && holds(*pid, mount))
        .map(|pid| (pid, proc::comm(pid).unwrap_or_default()))
        .collect()
}

fn holds(pid: u32, mount: &sysmount::MountEntry) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let stands = |link: &str| {
        std::fs::read_link(process.join(link)).is_ok_and(|at| at.starts_with(&mount.mount_point))
    };
    let line = format!("mnt_id:\t{}\n", mount.id);
    let infos = std::fs::read_dir(process.join("fdinfo"))
        .into_iter()
        .flatten()
        .flatten();
    stands("cwd")
        || stands("root")
        || infos
            .filter_map(|info| std::fs::read_to_string(info.path()).ok())
            .any(|text| text.contains(&line))
}

fn in_use(mount: &sysmount::MountEntry, holders: &[(u32, String)]) -> Failure {
    let text = format!(
        "{}: in use; close what is open below it, leave it with your shell, or use --force",
        mount.mount_point.display()
    );
    Failure::new(exit::BUSY, text + &listed(holders))
}

fn waiting_for(mount: &sysmount::MountEntry, holders: &[(u32, String)]) -> String {
    let text = format!(
        "{}: in use; waiting until what is open below it is closed, and shells have left it",
        mount.mount_point.display()
    );
    text + &listed(holders)
}

/// A line for each process.
fn listed(processes: &[(u32, String)]) -> String {
    processes
        .iter()
        .map(|(pid, command)| format!("\n  {pid} ({command})"))
        .collect()
}

/// Whether a mount that doesn't answer is on its way out.
fn is_gone_soon(mount: &sysmount::MountEntry) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_gone(mount).unwrap_or(false)
    })
}

fn is_gone(mount: &sysmount::MountEntry) -> std::io::Result<bool> {
    // The kernel gives the number of a mount that is gone to the next one, anywhere.
    let is_it = |m: &sysmount::MountEntry| {
        m.id == mount.id && m.device == mount.device && m.mount_point == mount.mount_point
    };
    Ok(!sysmount::mountinfo()?.iter().any(is_it))
}

fn refusal(mountpoint: &Path, answer: &Answer) -> Failure {
    if answer.open.is_empty() {
        let why = answer.error.as_deref().unwrap_or("the daemon refuses");
        let text = format!(
            "{}: not unmounted, {why}; make room on its disk, or use --force: the next mount puts them in place",
            mountpoint.display()
        );
        return Failure::new(exit::BUSY, text);
    }
    let text = format!(
        "{}: not unmounted, there are open transactions:{}\n--wait waits for them, --force sends what they wrote to rejected",
        mountpoint.display(),
        open_transactions(answer)
    );
    Failure::new(exit::BUSY, text)
}

/// What `--wait` waits for.
fn awaited(mountpoint: &Path, answer: &Answer) -> String {
    if answer.open.is_empty() {
        return format!("{}; waiting for that", refusal(mountpoint, answer).message);
    }
    format!(
        "{}: waiting for open transactions:{}",
        mountpoint.display(),
        open_transactions(answer)
    )
}

/// A line for each.
fn open_transactions(answer: &Answer) -> String {
    answer
        .open
        .iter()
        .map(|open| {
            format!(
                "\n  {}  opened by {} ({}) {} s ago",
                open.path,
                open.pid,
                open.command,
                open.age_ms / 1000
            )
        })
        .collect()
}

/// Waits until the mount and the daemon's lock are gone.
fn wait_until_gone(mount: &sysmount::MountEntry) -> Result<u8, Failure> {
    let asked = Instant::now();
    loop {
        let still = !is_gone(mount).map_err(|e| Failure::new(exit::TROUBLE, e))?;
        let held = std::fs::File::open(&mount.source)
            .ok()
            .is_some_and(|dir| Store::lock_holder(std::os::fd::AsFd::as_fd(&dir)).is_some());
        if !still && !held {
            return Ok(exit::OK);
        }
        if still && asked.elapsed() > Duration::from_secs(4) {
            return Err(in_use(mount, &[]));
        }
        if asked.elapsed() > PATIENCE {
            return Err(Failure::new(
                exit::TROUBLE,
                "the daemon is still writing out commits; it ends when it has done so",
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
