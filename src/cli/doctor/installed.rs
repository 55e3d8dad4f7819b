//! Whether those who mount at boot find the program: mount(8) for a line in fstab, systemd, and
//! sudo look in the directories of the system alone, and `cargo install` puts it elsewhere.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Check, CheckState};

/// Where they look, in this order.
const PLACES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// Whom umount(8) asks, if it is there.
const HELPER: &str = "/sbin/umount.fuse.commitfs";

/// The checks.
pub(super) fn checks() -> Vec<Check> {
    let Ok(own) = std::env::current_exe() else {
        return Vec::new();
    };
    let places: Vec<PathBuf> = PLACES.iter().map(PathBuf::from).collect();
    vec![at_boot(&own, &places), by_umount(Path::new(HELPER))]
}

fn at_boot(own: &Path, places: &[PathBuf]) -> Check {
    const NAME: &str = "fstab and systemd";
    let install = format!("sudo install {} /usr/local/bin/", own.display());
    let mut files = places.iter().map(|place| place.join("commitfs"));
    let Some(there) = files.find(|file| file.is_file()) else {
        return Check::new(
            NAME,
            CheckState::Note,
            format!(
                "would not find commitfs: they look in /usr/local/bin, /usr/bin and the like, and this is {}",
                own.display()
            ),
            format!("if it is to be mounted at boot: {install}"),
        );
    };
    if there.canonicalize().ok() == own.canonicalize().ok() {
        return Check::good(NAME, format!("find {}", there.display()));
    }
    let ours = concat!("commitfs ", env!("CARGO_PKG_VERSION"));
    let theirs = version(&there);
    if theirs == ours {
        return Check::good(NAME, format!("find {}, {theirs}", there.display()));
    }
    Check::new(
        NAME,
        CheckState::Note,
        format!("find {}, {theirs}; this is {ours}", there.display()),
        install,
    )
}

fn version(program: &Path) -> String {
    let said = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match said {
        Ok(text) if !text.is_empty() => text,
        _ => "which doesn't say its version".to_owned(),
    }
}

/// Root's umount(8) takes the type from statfs(2), which says "fuse" of every such mount, and so finds no helper of ours.
fn by_umount(helper: &Path) -> Check {
    const NAME: &str = "umount(8)";
    const ALONE: &str =
        "doesn't wait for what is being written out, nor refuse while transactions are open";
    if helper.exists() {
        let found = format!(
            "by root it {ALONE}; for others it asks {}",
            helper.display()
        );
        return Check::new(NAME, CheckState::Note, found, "use commitfs umount");
    }
    Check::new(
        NAME,
        CheckState::Note,
        format!("asks nobody: it {ALONE}"),
        "use commitfs umount",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(dir: &Path, says: &str) -> PathBuf {
        let file = dir.join("commitfs");
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&file, format!("#!/bin/sh\necho {says}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn a_program_that_only_its_user_finds_is_told_with_the_command_that_helps() {
        let scratch = tempfile::tempdir().unwrap();
        let own = program(&scratch.path().join(".cargo/bin"), "mine");
        let places = [scratch.path().join("sbin"), scratch.path().join("bin")];
        let check = at_boot(&own, &places);
        assert_eq!(check.state, CheckState::Note);
        assert!(
            check
                .remedy
                .contains(&format!("sudo install {}", own.display())),
            "{check:?}"
        );
        let older = program(&places[1], "commitfs 0.0.9");
        let check = at_boot(&own, &places);
        assert_eq!(check.state, CheckState::Note);
        assert!(check.found.contains("commitfs 0.0.9; this is"), "{check:?}");
        program(&places[1], concat!("commitfs ", env!("CARGO_PKG_VERSION")));
        assert_eq!(at_boot(&own, &places).state, CheckState::Good);
        std::fs::remove_file(&older).unwrap();
        std::os::unix::fs::symlink(&own, &older).unwrap();
        let check = at_boot(&own, &places);
        assert_eq!(check.state, CheckState::Good);
        assert!(check.found.ends_with("bin/commitfs"), "{check:?}");
    }

    #[test]
    fn an_umount_that_asks_nobody_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let helper = scratch.path().join("umount.fuse.commitfs");
        assert_eq!(by_umount(&helper).state, CheckState::Note);
        assert!(by_umount(&helper).remedy.contains("commitfs umount"));
        std::fs::write(&helper, "").unwrap();
        assert!(by_umount(&helper).found.contains("by root"));
    }
}
