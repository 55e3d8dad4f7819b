//! The usual `-o` options of mount(8) and fstab.

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
}

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
            ("sync", None) => self.durability = Some("sync".into()),
            ("allow_suid", None) => self.flags -= MountFlags::NOSUID,
            ("allow_dev", None) => self.flags -= MountFlags::NODEV,
            // mount.fuse adds `dev` and `suid` by itself, so they can't mean consent.
            (
                "nosuid" | "nodev" | "suid" | "dev" | "async" | "atime" | "defaults" | "auto"
                | "noauto" | "user" | "nouser" | "users" | "nofail" | "_netdev",
                None,
            ) => {}
            (key, _) if key.starts_with("x-") || key == "comment" => {}
            ("rules", Some(file)) => self.rules = Some(file.into()),
            ("durability", Some(value)) => self.durability = Some(value.into()),
            ("network_ok", None) => self.network_ok = true,
            _ => {
                return Err(Failure::new(
                    exit::USAGE,
                    format!(
                        "-o {word}: unknown option; known are ro, rw, allow_other, no_allow_other, noexec, noatime, \
                         allow_suid, allow_dev, rules=FILE, durability=async|sync, network_ok"
                    ),
                ));
            }
        }
        Ok(())
    }
}
