//! The table of mounts, `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of commitfs mounts in the table.
pub const FSTYPE: &str = "fuse.commitfs";

/// One mount in this process's mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The number that `fdinfo` shows as `mnt_id`.
    pub id: u64,
    /// The mount it is mounted on.
    pub parent: u64,
    /// Major and minor number of the device, as in `st_dev`. A FUSE connection is listed under the minor one in
    /// `/sys/fs/fuse/connections`.
    pub device: (u32, u32),
    /// What of the file system is mounted: `/`, or a directory for a bind mount.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Options of this mount: `rw,nosuid,…`.
    pub options: String,
    /// The type, with its subtype.
    pub fstype: String,
    /// The source; for commitfs, the backing directory.
    pub source: OsString,
    /// Options of the file system itself: `rw,user_id=0,…`.
    pub super_options: String,
}

/// All mounts that this process sees.
pub fn mountinfo() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Whether another process sees a mount of commitfs over `backing`.
///
/// # Errors
/// As of reading `/proc/PID/mountinfo`: the process is gone, or may not be looked at.
pub fn sees_mount_of(pid: u32, backing: &Path) -> io::Result<bool> {
    let table = parse(&std::fs::read(format!("/proc/{pid}/mountinfo"))?);
    Ok(table
        .iter()
        .any(|entry| entry.fstype == FSTYPE && Path::new(&entry.source) == backing))
}

/// All mounts of commitfs.
pub fn commitfs_mounts() -> io::Result<Vec<MountEntry>> {
    Ok(mountinfo()?
        .into_iter()
        .filter(|entry| entry.fstype == FSTYPE)
        .collect())
}

/// The topmost of the mounts on exactly this path (absolute, without symbolic links).
pub fn top_at<'t>(table: &'t [MountEntry], path: &Path) -> Option<&'t MountEntry> {
    let here = || table.iter().filter(|entry| entry.mount_point == path);
    // Mounts on one path form a chain, each the parent of the next; the root may be its own parent.
    here().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .filter_map(|line| {
            let entry = parse_line(line);
            if entry.is_none() {
                log::warn!(
                    "mountinfo: a line that isn't understood: {}",
                    String::from_utf8_lossy(line)
                );
            }
            entry
        })
        .collect()
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPEROPTIONS`; blanks within a field are escaped.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = || fields.next();
    let id = text(next()?).parse().ok()?;
    let parent = text(next()?).parse().ok()?;
    let device = text(next()?);
    let (major, minor) = device.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(next()?).into();
    let mount_point = unescape(next()?).into();
    let options = text(next()?);
    while next()? != b"-" {}
    let fstype = unescape(next()?).to_string_lossy().into_owned();
    let source = unescape(next()?);
    let super_options = text(next().unwrap_or_default());
    Some(MountEntry {
        id,
        parent,
        device,
        root,
        mount_point,
        options,
        fstype,
        source,
        super_options,
    })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Undoes the kernel's `\ooo` for blanks, tabs, newlines, backslashes and hashes.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
30 22 0:25 / /mnt/a\\040b\\011c\\012d\\134e\\043f rw,nosuid,nodev shared:5 master:2 - fuse.commitfs /back\\054ing rw,user_id=0\n\
31 30 0:26 / /mnt/a\\040b\\011c\\012d\\134e\\043f rw - fuse.commitfs /x rw\n\
40 22 0:5 /sub /m rw - tmpfs  rw\n\
broken line\n";

    #[test]
    fn every_field_is_found_behind_any_number_of_tags() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 4);
        assert_eq!(
            table[1],
            MountEntry {
                id: 30,
                parent: 22,
                device: (0, 25),
                root: "/".into(),
                mount_point: "/mnt/a b\tc\nd\\e#f".into(),
                options: "rw,nosuid,nodev".into(),
                fstype: FSTYPE.into(),
                source: "/back,ing".into(),
                super_options: "rw,user_id=0".into(),
            }
        );
        assert_eq!(
            (table[3].source.to_str(), table[3].root.to_str()),
            (Some(""), Some("/sub"))
        );
    }

    #[test]
    fn the_topmost_of_several_mounts_is_found_in_any_order() {
        let mut table = parse(TABLE);
        let path = Path::new("/mnt/a b\tc\nd\\e#f");
        assert_eq!(top_at(&table, path).unwrap().id, 31);
        table.reverse();
        assert_eq!(top_at(&table, path).unwrap().id, 31);
        assert_eq!(top_at(&table, Path::new("/")).unwrap().id, 22);
        assert_eq!(top_at(&table, Path::new("/mnt")), None);
    }

    #[test]
    fn a_root_that_is_its_own_parent_is_still_found() {
        let table = parse(b"1 1 0:1 / / rw - rootfs rootfs rw\n");
        assert_eq!(top_at(&table, Path::new("/")).unwrap().id, 1);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(br"a\b\04\999\134"), r"a\b\04\999\");
        assert_eq!(unescape(b"\\"), "\\");
    }

    #[test]
    fn the_table_of_this_machine_is_understood_whole() {
        let lines = std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count();
        assert_eq!(mountinfo().unwrap().len(), lines);
    }
}
