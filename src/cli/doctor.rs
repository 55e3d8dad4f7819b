//! `commitfs doctor`: would a mount work here, and if not, what to do about it.
//!
//! Each check names what it has found and the remedy. The last one is no guess: it mounts a directory
//! of its own, saves a file there, and asks the daemon which of the kernel's features it can use.

mod installed;

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::Serialize;
use serde_json::Value;

use super::{Failure, exit, mount, output};
use crate::store::{STATE_DIR, Store};
use crate::sys::mount as sysmount;

/// The oldest kernel that has all that a mount can't do without.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Less space than this, in bytes, and saves will soon fail.
const LITTLE_SPACE: u64 = 64 << 20;

/// Arguments of `commitfs doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where a mount is wanted; without it, only the machine is looked at
    dir: Option<PathBuf>,
    /// Where it is to be mounted, if not over the directory itself
    mountpoint: Option<PathBuf>,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CheckState {
    Good,
    /// A mount works, with less.
    Note,
    /// No mount until this is mended.
    Bad,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: CheckState,
    found: String,
    /// What to do; empty where there is nothing to do.
    remedy: String,
}

impl Check {
    fn new(
        name: &'static str,
        state: CheckState,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check {
            name,
            state,
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    fn good(name: &'static str, found: impl Into<String>) -> Check {
        Check::new(name, CheckState::Good, found, "")
    }
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut checks = vec![
        kernel(),
        device(),
        right_to_mount(),
        surroundings(),
        detection(),
    ];
    checks.push(other_users());
    checks.extend(installed::checks());
    if let Some(dir) = &arguments.dir {
        directory(dir, arguments.mountpoint.as_deref(), &mut checks);
    }
    if checks.iter().all(|c| c.state != CheckState::Bad) {
        trial(&mut checks);
    }
    let works = checks.iter().all(|c| c.state != CheckState::Bad);
    if arguments.json {
        let all = serde_json::json!({"mount_would_work": works, "checks": checks});
        let text =
            serde_json::to_string_pretty(&all).map_err(|e| Failure::new(exit::TROUBLE, e))?;
        output::print(text + "\n")?;
    } else {
        output::print(for_people(&checks, works))?;
    }
    Ok(if works { exit::OK } else { exit::TROUBLE })
}

fn for_people(checks: &[Check], works: bool) -> String {
    let mut out = String::new();
    for c in checks {
        let mark = match c.state {
            CheckState::Good => "ok  ",
            CheckState::Note => "note",
            CheckState::Bad => "BAD ",
        };
        out += &format!("{mark}  {}: {}\n", c.name, output::escaped_lines(&c.found));
        if !c.remedy.is_empty() {
            out += &format!("      -> {}\n", output::escaped_lines(&c.remedy));
        }
    }
    out + if works {
        "a mount works here\n"
    } else {
        "a mount would not work here: mend what is marked BAD\n"
    }
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        return Check::good("kernel", release);
    }
    let (major, minor) = OLDEST_KERNEL;
    Check::new(
        "kernel",
        CheckState::Bad,
        release,
        format!("commitfs needs Linux {major}.{minor} or later"),
    )
}

fn device() -> Check {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    let Err(e) = opened else {
        return Check::good("/dev/fuse", "can be opened");
    };
    let remedy = match e.raw_os_error() {
        Some(libc::ENOENT) => {
            "load the module (modprobe fuse); in a container, give it the device (--device /dev/fuse)"
        }
        Some(libc::ENODEV | libc::ENXIO) => "load the module: modprobe fuse",
        Some(libc::EACCES) => {
            "let this user open it (chmod 666 /dev/fuse is what distributions have)"
        }
        Some(libc::EPERM) => {
            "the container's list of devices forbids it: start it with --device /dev/fuse"
        }
        _ => "see what keeps it from being opened",
    };
    Check::new("/dev/fuse", CheckState::Bad, e.to_string(), remedy)
}

fn right_to_mount() -> Check {
    const NAME: &str = "right to mount";
    if sysmount::may_mount() {
        return Check::good(NAME, "by itself (CAP_SYS_ADMIN)");
    }
    let is_root = rustix::process::geteuid().is_root();
    let container = "in a container: --cap-add SYS_ADMIN --device /dev/fuse, and where AppArmor is in use \
                     --security-opt apparmor=unconfined";
    if !may_get_right() {
        let found = "nobody here can get CAP_SYS_ADMIN, set-user-id programs neither";
        return Check::new(NAME, CheckState::Bad, found, container);
    }
    let Some(helper) = sysmount::find_helper() else {
        let found = "no CAP_SYS_ADMIN, and no fusermount3";
        let remedy = format!("install the package fuse3; {container}");
        return Check::new(NAME, CheckState::Bad, found, remedy);
    };
    let set_id = helper
        .metadata()
        .is_ok_and(|m| m.permissions().mode() & 0o4000 != 0 && m.uid() == 0);
    let name = helper.display();
    if set_id && !no_new_privileges() {
        return Check::good(NAME, format!("by {name}, which is set-user-id root"));
    }
    let (found, remedy) = if is_root {
        (
            format!("root without CAP_SYS_ADMIN; {name} can't help"),
            container.to_owned(),
        )
    } else if set_id {
        (
            format!("{name} gets no rights here (no_new_privs)"),
            format!("start this without no_new_privs; {container}"),
        )
    } else {
        (
            format!("{name} isn't set-user-id root"),
            format!("chmod u+s {name} (as root), or reinstall the package fuse3"),
        )
    };
    Check::new(NAME, CheckState::Bad, found, remedy)
}

/// Whether CAP_SYS_ADMIN is among what this process and its children can get at all: containers take it away from everybody.
fn may_get_right() -> bool {
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounds = status.lines().find_map(|l| l.strip_prefix("CapBnd:\t"));
    bounds
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_none_or(|set| set >> SYS_ADMIN & 1 == 1)
}

/// Whether set-user-id programs get no rights.
fn no_new_privileges() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line == "NoNewPrivs:\t1"))
}

/// Container and AppArmor: they don't forbid a mount by themselves, but explain why one is refused.
fn surroundings() -> Check {
    const NAME: &str = "surroundings";
    let mut found = Vec::new();
    let in_container = [
        "/.dockerenv",
        "/run/.containerenv",
        "/run/systemd/container",
    ]
    .iter()
    .any(|file| Path::new(file).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if in_container {
        found.push(
            "a container: its mounts are seen inside it, and elsewhere only if they are shared"
                .to_owned(),
        );
    }
    let label = std::fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
    let label = label.trim();
    if !label.is_empty() && label != "unconfined" {
        found.push(format!("AppArmor profile {label}: it may forbid to mount"));
    }
    if found.is_empty() {
        return Check::good(NAME, "no container, no AppArmor profile");
    }
    Check::new(NAME, CheckState::Note, found.join("; "), "")
}

fn detection() -> Check {
    const NAME: &str = "killed-writer detection";
    match mount::detection() {
        None => Check::good(NAME, "works"),
        Some(why) => Check::new(
            NAME,
            CheckState::Note,
            format!("off: {why}"),
            "what a killed writer leaves would be committed; share the pid namespace of the programs (--pid host), as root or as their user",
        ),
    }
}

fn other_users() -> Check {
    const NAME: &str = "other users";
    if sysmount::may_let_others_in() {
        return Check::good(NAME, "may be let in (-o allow_other)");
    }
    Check::new(
        NAME,
        CheckState::Note,
        "a mount of this user is for this user alone",
        "if others are to enter: a line user_allow_other in /etc/fuse.conf, and -o allow_other",
    )
}

/// The checks that a mount of `dir` would begin with, and how much space there is.
fn directory(dir: &Path, mountpoint: Option<&Path>, checks: &mut Vec<Check>) {
    const NAME: &str = "directory";
    let bad = |failure: Failure| Check::new(NAME, CheckState::Bad, failure.message, "");
    let looked_at = mount::usable_directory(dir).and_then(|backing| {
        let mountpoint = match mountpoint {
            Some(mountpoint) => mount::usable_directory(mountpoint)?,
            None => backing.clone(),
        };
        mount::check_backing(&backing, &mountpoint, false)?;
        Store::preflight(&backing).map_err(mount::store_failure)?;
        mount::load_rules(None, &backing)?;
        Ok(backing)
    });
    match looked_at {
        Err(failure) => checks.push(bad(failure)),
        Ok(backing) => {
            checks.push(renames(&backing));
            checks.extend(space(&backing));
        }
    }
}

/// Whether files can be replaced there, which is tried where the daemon would.
fn renames(backing: &Path) -> Check {
    const NAME: &str = "directory";
    let state = backing.join(STATE_DIR);
    let place = if state.is_dir() { &state } else { backing };
    let tried =
        std::fs::File::open(place).and_then(|dir| sysmount::has_rename_semantics(dir.as_fd()));
    match tried {
        Ok(true) => {
            let kind = std::fs::File::open(backing)
                .and_then(|dir| sysmount::fs_kind(dir.as_fd()))
                .map_or("?".to_owned(), |kind| match kind {
                    sysmount::FsKind::Local(name) | sysmount::FsKind::Network(name) => {
                        name.to_owned()
                    }
                    sysmount::FsKind::Fuse(name) => name,
                    sysmount::FsKind::Other(magic) => format!("file system {magic:#x}"),
                });
            Check::good(
                NAME,
                format!("{} ({kind}) can be mounted", backing.display()),
            )
        }
        Ok(false) => Check::new(
            NAME,
            CheckState::Bad,
            format!(
                "{}: its file system can't replace a file by rename",
                backing.display()
            ),
            "use a directory on ext4, XFS, btrfs or the like",
        ),
        Err(e) => Check::new(
            NAME,
            CheckState::Bad,
            format!("{}: {e}", backing.display()),
            "it has to be writable for this user, and not full",
        ),
    }
}

fn space(backing: &Path) -> Option<Check> {
    const NAME: &str = "space";
    let fs = rustix::fs::statvfs(backing).ok()?;
    let free = fs.f_bavail.saturating_mul(fs.f_frsize);
    let found = format!("{} MiB free", free >> 20);
    Some(if free < LITTLE_SPACE {
        Check::new(
            NAME,
            CheckState::Note,
            found,
            "a file takes twice its size while it is rewritten: make room",
        )
    } else {
        Check::good(NAME, found)
    })
}

/// Mounts a directory of its own, saves there, and looks which features of the kernel are in use.
fn trial(checks: &mut Vec<Check>) {
    const NAME: &str = "trial mount";
    let bad = |found: String| Check::new(NAME, CheckState::Bad, found, "");
    let dir = std::env::temp_dir().join(format!("commitfs-doctor-{}", std::process::id()));
    if let Err(e) = std::fs::create_dir(&dir) {
        let found = format!("not tried: {}: {e}", dir.display());
        let remedy = "set TMPDIR to a directory that this user can write to";
        checks.push(Check::new(NAME, CheckState::Note, found, remedy));
        return;
    }
    match mounted(&dir) {
        Ok(status) => {
            checks.push(Check::good(NAME, "mounts, saves and unmounts"));
            checks.push(features(&status));
        }
        Err(found) => checks.push(bad(found)),
    }
    // Only what is ours; a mount that can't be taken away keeps its directory.
    for file in ["f", STATE_DIR] {
        let path = dir.join(file);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(&path);
    }
    let _ = std::fs::remove_dir(&dir);
}

fn mounted(dir: &Path) -> Result<Value, String> {
    own(&["mount"], dir)?;
    let saved = std::fs::write(dir.join("f"), "saved");
    let status = own(&["status", "--json"], dir);
    let gone = own(&["umount"], dir).or_else(|_| own(&["umount", "--force"], dir));
    saved.map_err(|e| format!("a file can't be saved on it: {e}"))?;
    gone?;
    match std::fs::read(dir.join("f")) {
        Ok(text) if text == b"saved" => {}
        _ => return Err("what was saved is not there after the unmount".to_owned()),
    }
    serde_json::from_slice(&status?.stdout).map_err(|e| format!("its status is no JSON: {e}"))
}

/// Runs this program.
fn own(words: &[&str], dir: &Path) -> Result<Output, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new(program)
        .args(words)
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("commitfs {}: {}", words.join(" "), said.trim()))
}

fn features(status: &Value) -> Check {
    const NAME: &str = "features";
    let all = status["features"].as_array().cloned().unwrap_or_default();
    let off: Vec<String> = all
        .iter()
        .filter(|f| f["on"] != Value::Bool(true))
        .map(|f| {
            let text = |v: &Value| v.as_str().unwrap_or("?").to_owned();
            format!("{} ({})", text(&f["name"]), text(&f["why"]))
        })
        .collect();
    if off.is_empty() {
        return Check::good(NAME, format!("all {} in use", all.len()));
    }
    Check::new(
        NAME,
        CheckState::Note,
        format!("not in use: {}", off.join(", ")),
        "all guarantees hold without them; docs/semantics.md says what differs",
    )
}
