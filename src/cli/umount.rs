//! `commitfs umount`: refused while transactions are open.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Failure, control, exit};
use crate::engine::{Answer, Command};
use crate::store::Store;
use crate::sys::mount as sysmount;

/// How long an unmount that nothing stands against may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Arguments of `commitfs umount`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The mount
    mountpoint: PathBuf,
    /// Wait until the open transactions have ended
    #[arg(long)]
    wait: bool,
    /// Send open transactions to rejected
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    if let Ok(true) = sysmount::detach_dead(&arguments.mountpoint) {
        println!(
            "{}: detached a mount whose daemon was gone",
            arguments.mountpoint.display()
        );
        return Ok(exit::OK);
    }
    let mount = control::mount_of(&arguments.mountpoint)?;
    let command = Command::Unmount {
        force: arguments.force,
        check: false,
    };
    loop {
        let answer = match control::send(&mount.mount_point, &command) {
            Ok(answer) => answer,
            // The daemon was faster than its answer.
            Err(_) if arguments.force || is_gone_soon(&mount) => break,
            Err(e) => return Err(e),
        };
        if answer.ok {
            break;
        }
        if !arguments.wait {
            return Err(refusal(&mount.mount_point, &answer));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until_gone(&mount)
}

/// Whether a mount that doesn't answer is on its way out.
fn is_gone_soon(mount: &sysmount::MountEntry) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        is_gone(mount).unwrap_or(false)
    })
}

fn is_gone(mount: &sysmount::MountEntry) -> std::io::Result<bool> {
    Ok(sysmount::mountinfo()?.iter().all(|m| m.id != mount.id))
}

fn refusal(mountpoint: &std::path::Path, answer: &Answer) -> Failure {
    let mut text = format!(
        "{}: not unmounted, there are open transactions:",
        mountpoint.display()
    );
    for open in &answer.open {
        text += &format!(
            "\n  {}  opened by {} ({}) {} s ago",
            open.path,
            open.pid,
            open.command,
            open.age_ms / 1000
        );
    }
    text += "\n--wait waits for them, --force sends what they wrote to rejected";
    Failure::new(exit::BUSY, text)
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
            return Err(Failure::new(
                exit::BUSY,
                format!(
                    "{}: in use; close what is open below it, leave it with your shell, or use --force",
                    mount.mount_point.display()
                ),
            ));
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
