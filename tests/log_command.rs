//! `commitfs log`: what the daemon has said, read while it is mounted, and how it is said.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Actor, Live, Mount, binary, commitfs, eventually, run};

/// Mounted in the background, as by hand.
struct Background(Mount);

impl Background {
    fn new() -> Background {
        let m = Mount::options().prepare();
        let mut mount = Command::new(binary());
        mount.env("TZ", "UTC").arg("mount").arg(m.backing());
        run(&mut mount, Duration::from_secs(30)).ok();
        Background(m)
    }

    fn directory(&self) -> &str {
        self.0.mountpoint().to_str().unwrap()
    }

    fn fail(&self, name: &str) {
        let path = self.0.path(name);
        Actor::new()
            .save(&path, "{\"half\": ")
            .expect_err("half a document");
    }

    fn logged(&self, options: &[&str]) -> String {
        let mut line = vec!["log", self.directory()];
        line.extend(options);
        commitfs(line).ok().out
    }
}

#[test]
fn the_log_of_a_mount_is_read_while_it_is_mounted_and_after() {
    need_daemon!();
    let mut b = Background::new();
    b.fail("one.json");
    b.fail("two.json");
    eventually(Duration::from_secs(5), "both are logged", || {
        b.logged(&[]).contains("two.json")
    });
    let all = b.logged(&[]);
    assert!(all.contains("mounted on"), "{all}");
    let abort = all.lines().find(|l| l.contains("one.json")).unwrap();
    assert!(abort.contains("WARN"), "{abort}");
    let last = b.logged(&["-n", "1"]);
    assert_eq!(last.lines().count(), 1, "{last}");
    assert!(last.contains("two.json"), "{last}");
    assert_eq!(b.logged(&["-n", "0"]), "");
    b.0.command(&["umount"]).ok();
    assert!(b.logged(&[]).starts_with(&all), "{}", b.logged(&[]));
    std::fs::remove_dir_all(b.0.backing().join(".commitfs")).unwrap();
    let none = commitfs(["log", b.directory()]);
    assert_eq!(none.code, Some(3), "{none:#?}");
    b.0.reap_daemon(Duration::ZERO);
}

#[test]
fn what_follows_is_shown_as_it_is_said_until_the_daemon_ends() {
    need_daemon!();
    let b = Background::new();
    let mut following = Command::new(binary());
    let mut follower = Live::spawn(following.args(["log", "-f", "-n1", b.directory()]));
    assert!(follower.line().contains("mounted on"));
    b.fail("one.json");
    assert!(follower.line().contains("one.json"));
    b.fail("two.json");
    assert!(follower.line().contains("two.json"));
    b.0.command(&["umount", "--wait"]).ok();
    assert_eq!(follower.finish().code(), Some(0));
}

#[test]
fn a_log_that_has_become_large_makes_way_for_a_new_one_while_it_is_followed() {
    need_daemon!();
    let m = Mount::options().separate().prepare();
    let mut mount = Command::new(binary());
    mount.arg("mount").args([m.backing(), m.mountpoint()]);
    run(&mut mount, Duration::from_secs(30)).ok();
    let b = Background(m);
    let mut following = Command::new(binary());
    let mut follower = Live::spawn(following.args(["log", "-f", "-n1", b.directory()]));
    assert!(follower.line().contains("mounted on"));
    let log = b.0.backing().join(".commitfs/daemon.log");
    let line = format!("{}\n", "x".repeat((4 << 20) + 1));
    std::fs::File::options()
        .append(true)
        .open(&log)
        .and_then(|mut log| std::io::Write::write_all(&mut log, line.as_bytes()))
        .unwrap();
    eventually(Duration::from_secs(10), "a new log has begun", || {
        log.metadata().is_ok_and(|found| found.len() < 1000)
    });
    b.fail("one.json");
    assert!(follower.line().starts_with("xxx"));
    assert!(follower.line().contains("one.json"));
    let now = b.logged(&[]);
    assert!(now.contains("one.json") && now.len() < 1000, "{now}");
    b.0.command(&["umount", "--wait"]).ok();
    assert_eq!(follower.finish().code(), Some(0));
    let all = commitfs([Path::new("log"), b.0.backing()]).ok().out;
    assert!(all.contains("mounted on") && all.contains("one.json"));
}

#[test]
fn what_a_daemon_has_said_last_is_read_beside_its_dead_mount() {
    need_daemon!();
    let mut m = Mount::options().separate().prepare();
    let mut mount = Command::new(binary());
    mount.arg("mount").args([m.backing(), m.mountpoint()]);
    run(&mut mount, Duration::from_secs(30)).ok();
    let pid = m.status()["pid"].as_i64().unwrap();
    // SAFETY: the daemon that this test has started.
    unsafe { libc::kill(pid.try_into().unwrap(), libc::SIGKILL) };
    eventually(Duration::from_secs(10), "its mount is dead", || {
        m.mountpoint().read_dir().is_err()
    });
    let said = commitfs([Path::new("log"), m.mountpoint()]).ok();
    assert!(said.out.contains("mounted on"), "{said:#?}");
    m.reap_daemon(Duration::ZERO);
}

#[test]
fn the_log_of_a_daemon_in_the_foreground_is_found_if_it_is_a_file() {
    need_daemon!();
    let m = mount!();
    let directory = m.mountpoint().to_str().unwrap();
    assert_eq!(commitfs(["log", directory]).ok().out, m.log());
    let elsewhere = Mount::options().prepare();
    let mut mount = Command::new(binary());
    mount.args(["mount", "-f"]).arg(elsewhere.backing());
    mount.stderr(Stdio::null());
    let _daemon = Live::spawn(&mut mount);
    eventually(Duration::from_secs(10), "mounted", || {
        common::is_mounted(elsewhere.mountpoint())
    });
    let none = commitfs([Path::new("log"), elsewhere.mountpoint()]);
    assert_eq!(none.code, Some(3), "{none:#?}");
    assert!(none.err.contains("foreground"), "{none:#?}");
    elsewhere.command(&["umount"]).ok();
}

#[test]
fn the_journal_of_systemd_gets_priorities_and_no_times() {
    need_daemon!();
    let mut m = Mount::options().prepare();
    let log = m.scratch("log");
    std::fs::write(&log, "").unwrap();
    let found = log.metadata().unwrap();
    m.set_env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
    m.remount();
    Actor::new()
        .save(&m.path("f.json"), "{\"half\": ")
        .expect_err("half a document");
    eventually(Duration::from_secs(5), "the abort is logged", || {
        m.log().contains("f.json")
    });
    for line in m.log().lines() {
        let expected = match line {
            _ if line.contains("not committed") => "<4>f.json: not committed",
            _ if line.contains(" mounted on ") => "<6>/",
            _ => "<",
        };
        assert!(line.starts_with(expected), "{line}");
    }
    assert_eq!(m.status()["log"], "journal");
    // Said of another stream, it means nothing here.
    m.unmount();
    m.clear_env();
    m.set_env("JOURNAL_STREAM", "1:2");
    m.remount();
    eventually(Duration::from_secs(5), "times, and no priorities", || {
        let log = m.log();
        let last = log.lines().last().unwrap_or_default();
        last.starts_with("[20") && last.contains("mounted on")
    });
}
