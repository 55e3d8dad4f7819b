//! `commitfs doctor`, and what other users are told. Nothing here means anything on the plain
//! directory.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Mount, Run, binary, commitfs, run};
use serde_json::Value;

fn check<'v>(found: &'v Value, name: &str) -> &'v Value {
    let checks = found["checks"].as_array().expect("a list of checks");
    let named = checks.iter().find(|c| c["name"] == name);
    named.unwrap_or_else(|| panic!("no check {name:?}: {found:#}"))
}

/// As a user without any right: not root, and set-user-id programs give none.
fn as_nobody(words: &[&Path]) -> Run {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["--inh-caps=-all", "--no-new-privs", "--"]);
    run(command.arg(binary()).args(words), Duration::from_secs(30))
}

/// A path of which an ordinary user may at least know that it is there.
fn let_pass(m: &Mount) -> Option<()> {
    use std::os::unix::fs::PermissionsExt;
    for dir in m.backing().ancestors().skip(1) {
        let mode = dir.metadata().ok()?.permissions().mode();
        if mode & 0o001 == 0 && dir.starts_with(std::env::temp_dir()) {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).ok()?;
        }
    }
    Some(())
}

#[test]
fn where_a_mount_works_the_doctor_says_so_and_leaves_no_trace() {
    need_daemon!();
    let m = Mount::options().prepare();
    let tmp = m.scratch("tmp");
    std::fs::create_dir(&tmp).unwrap();
    let ask = |options: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("doctor").args(options).arg(m.backing());
        run(command.env("TMPDIR", &tmp), Duration::from_secs(60)).ok()
    };
    let text = ask(&[]);
    assert!(text.out.ends_with("a mount works here\n"), "{text:?}");
    let found: Value = serde_json::from_str(&ask(&["--json"]).out).unwrap();
    assert_eq!(found["mount_would_work"], true, "{found:#}");
    for name in ["kernel", "/dev/fuse", "directory", "space", "trial mount"] {
        assert_eq!(check(&found, name)["state"], "good", "{found:#}");
    }
    for dir in [m.backing(), &tmp] {
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "{dir:?}");
    }
}

#[test]
fn without_the_right_to_mount_the_doctor_names_the_remedy() {
    need_daemon!();
    need_root!();
    let found = as_nobody(&["doctor".as_ref(), "--json".as_ref()]);
    assert_eq!(found.code, Some(1), "{found:?}");
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["mount_would_work"], false);
    let right = check(&found, "right to mount");
    assert_eq!(right["state"], "bad", "{found:#}");
    let remedy = right["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("--cap-add SYS_ADMIN"), "{found:#}");
}

#[test]
fn in_a_container_without_the_capability_the_doctor_says_that_nobody_can_mount() {
    need_daemon!();
    need_root!();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps=-all", "--"]);
    command.arg(binary()).args(["doctor", "--json"]);
    let found = run(&mut command, Duration::from_secs(30));
    assert_eq!(found.code, Some(1), "{found:?}");
    let found: Value = serde_json::from_str(&found.out).unwrap();
    let right = check(&found, "right to mount");
    assert_eq!(right["state"], "bad", "{found:#}");
    let remedy = right["remedy"].as_str().unwrap_or_default();
    assert!(remedy.contains("--cap-add SYS_ADMIN"), "{found:#}");
}

#[test]
fn the_doctor_finds_what_stands_in_the_way_of_a_directory() {
    need_daemon!();
    let m = mount!();
    let missing = m.scratch("missing");
    let file = m.scratch("file");
    std::fs::write(&file, "").unwrap();
    let pid = m.status()["pid"].to_string();
    for (dir, word) in [
        (m.mountpoint(), pid.as_str()),
        (&missing, "create it first"),
        (&file, "not a directory"),
        (Path::new("/"), "root directory"),
    ] {
        let said = commitfs(["doctor".as_ref(), dir.as_os_str()]);
        assert_eq!(said.code, Some(1), "{dir:?}: {said:?}");
        let line = said.out.lines().find(|l| l.starts_with("BAD"));
        assert!(line.is_some_and(|l| l.contains(word)), "{dir:?}: {said:?}");
    }
}

#[test]
fn a_state_directory_of_another_user_is_not_called_damaged() {
    need_daemon!();
    need_root!();
    let mut m = mount!();
    m.save("f", "root's");
    m.unmount();
    let_pass(&m).expect("a directory of our own");
    let said = as_nobody(&["mount".as_ref(), m.backing()]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("belongs to user 0"), "{said:?}");
    assert!(!said.err.contains("move the directory"), "{said:?}");
}

#[test]
fn a_second_user_is_told_whose_mount_it_is() {
    need_daemon!();
    need_root!();
    for options in ["allow_other", "no_allow_other"] {
        let m = mount!(Mount::options().args(["-o", options]));
        let_pass(&m).expect("a directory of our own");
        for command in ["status", "locks"] {
            let said = as_nobody(&[command.as_ref(), m.mountpoint()]);
            assert_eq!(said.code, Some(3), "{options}: {said:?}");
            assert!(said.err.contains("user 0"), "{options}: {said:?}");
        }
    }
}

#[test]
fn allow_other_is_never_dropped_silently() {
    need_daemon!();
    need_root!();
    let allowed = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allowed.lines().any(|l| l.trim() == "user_allow_other") {
        eprintln!("not tried: this machine allows it");
        return;
    }
    let m = Mount::options().prepare();
    let words = ["mount", "-o", "allow_other"].map(Path::new);
    let said = as_nobody(&[words[0], words[1], words[2], m.backing()]);
    assert_eq!(said.code, Some(6), "{said:?}");
    assert!(said.err.contains("user_allow_other"), "{said:?}");
}
