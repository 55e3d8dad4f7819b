//! What kind of file system a directory lies on, and whether it can rename as commitfs needs it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, fstat, fstatfs, mkdirat, openat, renameat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::mountinfo;

/// A kind of file system, by what may be expected of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FsKind {
    /// On this machine's own disks or in its memory.
    Local(&'static str),
    /// Shared with other machines.
    Network(&'static str),
    /// Served by a program, under this type (`fuse.sshfs`).
    Fuse(String),
    /// Unknown; its magic number.
    Other(i64),
}

impl FsKind {
    /// Whether other machines may change the files behind the kernel's back.
    pub fn is_network(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Fuse(fstype) => {
                let name = fstype.strip_prefix("fuse.").unwrap_or(fstype);
                NETWORK_FUSE.iter().any(|known| name.starts_with(known))
            }
            Self::Local(_) | Self::Other(_) => false,
        }
    }
}

const FUSE_MAGIC: u32 = 0x6573_5546;

/// The beginnings of the subtypes of FUSE file systems that go over the network. virtiofs is the host's directory.
const NETWORK_FUSE: [&str; 20] = [
    "sshfs",
    "glusterfs",
    "fuse.glusterfs",
    "ceph",
    "s3fs",
    "s3ql",
    "goofys",
    "geesefs",
    "mountpoint-s3",
    "rclone",
    "gcsfuse",
    "blobfuse",
    "juicefs",
    "JuiceFS",
    "moosefs",
    "mfs",
    "lizardfs",
    "seaweedfs",
    "davfs",
    "virtiofs",
];

const LOCAL: [(u32, &str); 19] = [
    (0xEF53, "ext2/ext3/ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x794C_7630, "overlay"),
    (0xF2F5_2010, "f2fs"),
    (0x2FC1_2FC1, "zfs"),
    (0xCA45_1A4E, "bcachefs"),
    (0x3153_464A, "jfs"),
    (0x5265_4973, "reiserfs"),
    (0x3434, "nilfs2"),
    (0x2405_1905, "ubifs"),
    (0xF15F, "ecryptfs"),
    (0x4D44, "vfat"),
    (0x2011_BAB0, "exfat"),
    (0x7366_746E, "ntfs3"),
    (0x482B, "hfsplus"),
    (0x5346_544E, "ntfs"),
];

const NETWORK: [(u32, &str); 21] = [
    (0x6969, "nfs"),
    (0x517B, "smb"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x0102_1997, "9p"),
    (0x00C3_6400, "ceph"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "kafs"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x7375_7245, "coda"),
    (0x7461_636F, "ocfs2"),
    (0x0116_1970, "gfs2"),
    (0x1983_0326, "beegfs"),
    (0x2003_0528, "orangefs"),
    (0xAAD7_AAEA, "panfs"),
    (0x564C, "ncpfs"),
    (0x786F_4256, "vboxsf"),
    (0xBACB_ACBC, "vmhgfs"),
    (0x7C7C_6673, "prl_fs"),
    (0x1803_1977, "wekafs"),
];

/// What kind of file system the open file or directory lies on.
pub fn fs_kind(fd: BorrowedFd<'_>) -> io::Result<FsKind> {
    let magic = fstatfs(fd)?.f_type;
    // The field is signed on some architectures, and the magic numbers have 32 bits.
    let kind = match by_magic(magic as u32) {
        Some(kind) => kind,
        None if magic as u32 == FUSE_MAGIC => FsKind::Fuse(fuse_type(fd)?),
        #[allow(clippy::unnecessary_cast, reason = "narrower on 32-bit architectures")]
        None => FsKind::Other(magic as i64),
    };
    Ok(kind)
}

fn by_magic(magic: u32) -> Option<FsKind> {
    let name = |table: &[(u32, &'static str)]| {
        table
            .iter()
            .find(|(known, _)| *known == magic)
            .map(|(_, name)| *name)
    };
    name(&LOCAL)
        .map(FsKind::Local)
        .or_else(|| name(&NETWORK).map(FsKind::Network))
}

/// The type in the mount table; all FUSE file systems have one magic number.
fn fuse_type(fd: BorrowedFd<'_>) -> io::Result<String> {
    let device = fstat(fd)?.st_dev;
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let entry = mountinfo()?
        .into_iter()
        .find(|entry| entry.device == device);
    Ok(entry.map_or_else(|| "fuse".to_owned(), |entry| entry.fstype))
}

/// Whether files can be replaced in one step in `dir`, and put under a new name without replacing anything
/// (`RENAME_NOREPLACE`). Tried in a directory that is created for it and removed again.
///
/// An error means that it could not be tried: the directory isn't writable, the disk is full.
pub fn has_rename_semantics(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let probe = BackingProbe::new(dir)?;
    let (old, new) = (probe.create("old")?, probe.create("new")?);
    if old == new {
        return Ok(false);
    }
    if !possible(renameat(&probe.inside, "new", &probe.inside, "old"))? {
        return Ok(false);
    }
    let replaced = probe.ino("old")? == Some(new) && probe.ino("new")?.is_none();
    let other = probe.create("new")?;
    let keep = |from, to| {
        renameat_with(
            &probe.inside,
            from,
            &probe.inside,
            to,
            RenameFlags::NOREPLACE,
        )
    };
    let refused = keep("new", "old") == Err(Errno::EXIST) && probe.ino("old")? == Some(new);
    let moved = possible(keep("new", "free"))? && probe.ino("free")? == Some(other);
    Ok(replaced && refused && moved)
}

/// Success, or a failure that says that this file system can't do it.
fn possible(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(
            Errno::INVAL
            | Errno::NOSYS
            | Errno::OPNOTSUPP
            | Errno::EXIST
            | Errno::XDEV
            | Errno::PERM,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A directory to try things in; removed with its files when dropped.
struct BackingProbe<'d> {
    dir: BorrowedFd<'d>,
    name: String,
    inside: OwnedFd,
}

impl<'d> BackingProbe<'d> {
    const FILES: [&'static str; 3] = ["old", "new", "free"];

    fn new(dir: BorrowedFd<'d>) -> rustix::io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let name = format!(
                ".commitfs-probe-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            match mkdirat(dir, &name, Mode::RWXU) {
                Ok(()) => {}
                // Left behind by an earlier process with this id, which was killed within these few calls.
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return match openat(dir, &name, flags, Mode::empty()) {
                Ok(inside) => Ok(Self { dir, name, inside }),
                Err(error) => {
                    let _ = unlinkat(dir, &name, AtFlags::REMOVEDIR);
                    Err(error)
                }
            };
        }
    }

    fn create(&self, name: &str) -> rustix::io::Result<u64> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(fstat(openat(
            self.inside.as_fd(),
            name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )?)?
        .st_ino)
    }

    fn ino(&self, name: &str) -> rustix::io::Result<Option<u64>> {
        match statat(&self.inside, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for BackingProbe<'_> {
    fn drop(&mut self) {
        for file in Self::FILES {
            let _ = unlinkat(&self.inside, file, AtFlags::empty());
        }
        if let Err(error) = unlinkat(self.dir, &self.name, AtFlags::REMOVEDIR) {
            log::warn!(
                "{}: cannot remove this directory, which was used to try renames: {error}",
                self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn the_usual_file_systems_are_recognised() {
        assert_eq!(by_magic(0xEF53), Some(FsKind::Local("ext2/ext3/ext4")));
        assert_eq!(by_magic(0xFF53_4D42), Some(FsKind::Network("cifs")));
        assert_eq!(by_magic(FUSE_MAGIC), None);
        assert_eq!(
            fs_kind(File::open("/proc").unwrap().as_fd()).unwrap(),
            FsKind::Other(0x9FA0)
        );
        assert_eq!(
            fs_kind(File::open("/dev/shm").unwrap().as_fd()).unwrap(),
            FsKind::Local("tmpfs")
        );
    }

    #[test]
    fn fuse_over_the_network_counts_as_network() {
        for (fstype, network) in [
            ("fuse.sshfs", true),
            ("fuse.rclone", true),
            ("virtiofs", true),
            ("fuse.ntfs-3g", false),
        ] {
            assert_eq!(
                FsKind::Fuse(fstype.to_owned()).is_network(),
                network,
                "{fstype}"
            );
        }
    }

    #[test]
    fn a_local_directory_can_rename_and_keeps_no_trace_of_the_trial() {
        let path = std::env::temp_dir().join(format!("commitfs-renames-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let dir = File::open(&path).unwrap();
        assert!(has_rename_semantics(dir.as_fd()).unwrap());
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        std::fs::remove_dir(&path).unwrap();
        assert!(
            has_rename_semantics(dir.as_fd()).is_err(),
            "a removed directory can't be tried"
        );
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        assert!(has_rename_semantics(File::open("/proc/self").unwrap().as_fd()).is_err());
    }
}
