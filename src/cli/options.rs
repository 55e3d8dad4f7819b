//! The usual `-o` options of mount(8) and fstab.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use rustix::mount::MountFlags;

use super::{Failure, exit};

/// What `-o` may say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Flags of mount(2).
    pub flags: MountFlags,
    /// Read-only.
    pub read_only: bool,
    /// Other users are let in.
    pub allow_other: Option<bool>,
    /// `rules=FILE`
    pub rules: Option<PathBuf>,
    /// `durability=async|sync`
    pub durability: Option<String>,
    /// `network_ok`
    pub network_ok: bool,
    /// `bound=MILLISECONDS`
    pub bound: Option<u64>,
    /// `lock_timeout=SECONDS`
    pub lock_timeout: Option<u64>,
    /// `lock_warn=SECONDS`
    pub lock_warn: Option<u64>,
}

/// Milliseconds that `bound` may be.
pub const BOUND: RangeInclusive<u64> = 10..=60_000;
/// Seconds that `lock_timeout` and `lock_warn` may be: up to a day.
pub const PATIENCE: RangeInclusive<u64> = 0..=86_400;

/// All options, for `commitfs mount --help`.
pub const HELP: &str = "\
Options of -o:
  ro, rw                     read-only, or not (the default)
  allow_other                other users may enter (the default for root)
  no_allow_other             they may not
  noexec, exec               programs on it can't be run, or can (default)
  noatime, nodiratime, relatime, strictatime, lazytime
                             as for any mount
  allow_suid, allow_dev      set-id bits and device files mean something
  durability=async|sync      as --durability; sync means durability=sync
  bound=MILLISECONDS         as --bound, 10 to 60000
  lock_timeout=SECONDS       as --lock-timeout, up to 86400
  lock_warn=SECONDS          as --lock-warn, up to 86400
  rules=FILE                 as --rules
  network_ok                 as --network-ok
Options of fstab (defaults, noauto, nofail, user, _netdev, x-... and the like), fsname= and subtype= are accepted
and change nothing. A value given on the command line goes before one given by -o.";

impl Options {
    /// Reads all `-o` arguments.
    pub fn parse(lists: &[String]) -> Result<Options, Failure> {
        let mut o = Options {
            flags: MountFlags::NOSUID | MountFlags::NODEV,
            read_only: false,
            allow_other: None,
            rules: None,
            durability: None,
            network_ok: false,
            bound: None,
            lock_timeout: None,
            lock_warn: None,
        };
        for word in lists
            .iter()
            .flat_map(|l| l.split(','))
            .filter(|w| !w.is_empty())
        {
            o.take(word)?;
        }
        Ok(o)
    }

    fn take(&mut self, word: &str) -> Result<(), Failure> {
        match word
            .split_once('=')
            .map_or((word, None), |(k, v)| (k, Some(v)))
        {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = Some(true),
            ("no_allow_other", None) => self.allow_other = Some(false),
            // Always on: the kernel checks permissions.
            ("default_permissions", None) => {}
            ("noexec", None) => self.flags |= MountFlags::NOEXEC,
            ("exec", None) => self.flags -= MountFlags::NOEXEC,
            ("noatime", None) => self.flags |= MountFlags::NOATIME,
            ("nodiratime", None) => self.flags |= MountFlags::NODIRATIME,
            ("relatime", None) => self.flags |= MountFlags::RELATIME,
            ("strictatime", None) => self.flags |= MountFlags::STRICTATIME,
            ("lazytime", None) => self.flags |= MountFlags::LAZYTIME,
            ("sync", None) => self.durability = Some("sync".into()),
            ("allow_suid", None) => self.flags -= MountFlags::NOSUID,
            ("allow_dev", None) => self.flags -= MountFlags::NODEV,
            // mount.fuse adds `dev` and `suid` by itself, so they can't mean consent.
            (
                "nosuid" | "nodev" | "suid" | "dev" | "async" | "atime" | "diratime" | "norelatime"
                | "nostrictatime" | "nolazytime" | "defaults" | "auto" | "noauto" | "user"
                | "nouser" | "users" | "owner" | "group" | "nofail" | "_netdev",
                None,
            ) => {}
            // The source in the table of mounts is the backing directory: that is how a mount is found.
            ("fsname" | "subtype", Some(_)) => {}
            (key, _) if key.starts_with("x-") || key == "comment" => {}
            ("rules", Some(file)) => self.rules = Some(file.into()),
            ("durability", Some(value)) => self.durability = Some(value.into()),
            ("network_ok", None) => self.network_ok = true,
            ("bound", Some(value)) => self.bound = Some(number(word, value, &BOUND)?),
            ("lock_timeout", Some(value)) => {
                self.lock_timeout = Some(number(word, value, &PATIENCE)?);
            }
            ("lock_warn", Some(value)) => self.lock_warn = Some(number(word, value, &PATIENCE)?),
            _ => {
                return Err(Failure::new(
                    exit::USAGE,
                    format!(
                        "-o {word}: unknown option; `commitfs mount --help` lists those that are known"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The value of an option that is a number within limits.
fn number(word: &str, value: &str, limits: &RangeInclusive<u64>) -> Result<u64, Failure> {
    match value.parse() {
        Ok(number) if limits.contains(&number) => Ok(number),
        _ => Err(Failure::new(
            exit::USAGE,
            format!(
                "-o {word}: a whole number from {} to {}, please",
                limits.start(),
                limits.end()
            ),
        )),
    }
}
