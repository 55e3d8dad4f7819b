//! Small disks: a file system in a file, on a loop device. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::mount::{detach, is_mounted};
use super::run::run;
use super::temporary_directory;

const LIMIT: Duration = Duration::from_secs(60);

pub struct Disk {
    root: PathBuf,
    image: PathBuf,
    at: PathBuf,
    keep_image: bool,
}

impl Disk {
    /// A new ext4 without reserved blocks.
    pub fn ext4(mebibytes: u64) -> Disk {
        let disk = Disk::blank(&temporary_directory().join("image"), mebibytes);
        run(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&disk.image),
            LIMIT,
        )
        .ok();
        disk.mount("loop")
    }

    /// A new XFS with reflinks, in a file of the given name.
    pub fn xfs(image: &Path, mebibytes: u64) -> Disk {
        let disk = Disk::blank(image, mebibytes);
        let mut mkfs = Command::new("mkfs.xfs");
        run(
            mkfs.args(["-q", "-f", "-m", "reflink=1"]).arg(&disk.image),
            LIMIT,
        )
        .ok();
        disk.mount("loop")
    }

    /// What an existing image holds; `options` as for mount(8).
    pub fn existing(image: &Path, options: &str) -> Disk {
        let root = temporary_directory();
        let at = root.join("d");
        Disk {
            root,
            image: image.to_owned(),
            at,
            keep_image: true,
        }
        .mount(options)
    }

    fn blank(image: &Path, mebibytes: u64) -> Disk {
        let file = std::fs::File::create(image).expect("a disk image");
        file.set_len(mebibytes << 20)
            .expect("room for a disk image");
        let root = temporary_directory();
        Disk {
            at: root.join("d"),
            root,
            image: image.to_owned(),
            keep_image: false,
        }
    }

    fn mount(self, options: &str) -> Disk {
        std::fs::create_dir_all(&self.at).expect("a mount point");
        let mut mount = Command::new("mount");
        run(
            mount.args(["-o", options]).arg(&self.image).arg(&self.at),
            LIMIT,
        )
        .ok();
        self
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn image(&self) -> &Path {
        &self.image
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for _ in 0..20 {
            if !is_mounted(&self.at) {
                break;
            }
            // An orderly unmount first, so that the loop device is released with it.
            let done = Command::new("umount").arg(&self.at).status();
            if !done.is_ok_and(|status| status.success()) {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        while is_mounted(&self.at) && detach(&self.at) {}
        if !self.keep_image {
            let _ = std::fs::remove_file(&self.image);
            if let Some(directory) = self.image.parent() {
                let _ = std::fs::remove_dir(directory);
            }
        }
        let _ = std::fs::remove_dir(&self.at);
        let _ = std::fs::remove_dir(&self.root);
    }
}
