//! C20, C22 and the command line: what an operator sees and can do. Nothing here means anything on
//! the plain directory.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Actor, Live, Mount, Run, assert_content, commitfs, eventually, is_mounted, run};

fn writing(m: &Mount, name: &str, content: &str) -> Actor {
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path(name)).unwrap();
    writer.write("f", content).unwrap();
    writer
}

#[track_caller]
fn mentions(run: &Run, words: &[&str]) {
    let said = format!("{}{}", run.out, run.err);
    for word in words {
        assert!(said.contains(word), "{word:?} is not mentioned: {run:#?}");
    }
}

fn mount_command(arguments: &[&Path]) -> Run {
    run(
        Command::new(common_binary()).arg("mount").args(arguments),
        Duration::from_secs(30),
    )
}

/// `umount`, on its way.
fn unmounting(m: &Mount, options: &[&str]) -> Live {
    let mut command = Command::new(common_binary());
    Live::spawn(command.arg("umount").args(options).arg(m.mountpoint()))
}

fn common_binary() -> &'static str {
    env!("CARGO_BIN_EXE_commitfs")
}

#[test]
fn mount_returns_when_the_mount_is_ready_and_umount_when_it_is_gone() {
    need_daemon!();
    let m = Mount::options().prepare();
    std::fs::write(m.backing().join("f"), "plain").unwrap();
    mount_command(&[m.backing()]).ok();
    assert!(is_mounted(m.backing()));
    assert_content(m.read("f"), b"plain", "what was there before");
    let status = m.status();
    let pid = status["pid"].as_i64().expect("a pid") as i32;
    assert!(common::alive(pid), "{status}");
    m.save("f", "saved");
    m.command(&["umount"]).ok();
    assert!(!is_mounted(m.backing()));
    eventually(Duration::from_secs(5), "the daemon has ended", || {
        !common::alive(pid)
    });
    assert_eq!(
        std::fs::read(m.backing().join("f")).unwrap(),
        b"saved",
        "plain files remain"
    );
    // And again, elsewhere.
    let elsewhere = m.scratch("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    mount_command(&[m.backing(), &elsewhere]).ok();
    assert!(is_mounted(&elsewhere) && !is_mounted(m.backing()));
    let umount = commitfs([Path::new("umount"), &elsewhere]);
    let still = is_mounted(&elsewhere);
    if still {
        common::detach(&elsewhere);
    }
    umount.ok();
    assert!(!still);
}

#[test]
fn umount_with_open_transactions_is_refused_and_lists_them() {
    need_daemon!();
    let m = mount!();
    m.save("checkpoint", "old");
    let mut writer = writing(&m, "checkpoint", "half");
    let refused = m.command(&["umount"]).fails();
    mentions(&refused, &["checkpoint", &writer.pid().to_string()]);
    assert!(is_mounted(m.mountpoint()), "refused, but unmounted");
    writer.write("f", " and the other half").unwrap();
    writer.close("f").unwrap();
    assert_content(
        m.read("checkpoint"),
        b"half and the other half",
        "the writer was not disturbed",
    );
    let mut m = m;
    m.unmount();
}

#[test]
fn sigterm_with_open_transactions_is_refused_too() {
    need_daemon!();
    let m = mount!();
    let mut writer = writing(&m, "f", "half");
    // SAFETY: the daemon, a child that nobody has waited for.
    unsafe { libc::kill(m.daemon_pid(), libc::SIGTERM) };
    let pid = writer.pid().to_string();
    eventually(Duration::from_secs(5), "the log lists the writer", || {
        m.log().contains(&pid)
    });
    assert!(m.daemon_lives() && is_mounted(m.mountpoint()));
    writer.close("f").unwrap();
    assert_content(m.read("f"), b"half", "committed after SIGTERM");
    // SAFETY: as above.
    unsafe { libc::kill(m.daemon_pid(), libc::SIGTERM) };
    eventually(Duration::from_secs(5), "SIGTERM unmounts", || {
        !m.daemon_lives() && !is_mounted(m.mountpoint())
    });
}

#[test]
fn umount_wait_waits_for_the_last_close() {
    need_daemon!();
    let m = mount!();
    let mut writer = writing(&m, "f", "half");
    let mut waiting = unmounting(&m, &["--wait"]);
    std::thread::sleep(Duration::from_millis(400));
    assert!(common::alive(waiting.pid()), "it did not wait");
    assert!(is_mounted(m.mountpoint()));
    writer.write("f", ", whole").unwrap();
    writer.close("f").unwrap();
    drop(writer);
    assert!(waiting.finish().success());
    assert!(!is_mounted(m.mountpoint()));
    assert_eq!(
        std::fs::read(m.backing().join("f")).unwrap(),
        b"half, whole"
    );
}

#[test]
fn umount_wait_waits_for_a_growing_text() {
    need_daemon!();
    let m = mount!();
    // Its lines are committed as they come: no open transaction, but an open file.
    let mut writer = writing(&m, "new.txt", "line 1\n");
    let mut waiting = unmounting(&m, &["--wait"]);
    std::thread::sleep(Duration::from_secs(6));
    assert!(common::alive(waiting.pid()), "it did not wait");
    writer.write("f", "line 2\n").unwrap();
    writer.close("f").unwrap();
    assert!(waiting.finish().success());
    assert!(!is_mounted(m.mountpoint()));
    assert_eq!(
        std::fs::read(m.backing().join("new.txt")).unwrap(),
        b"line 1\nline 2\n"
    );
}

#[test]
fn an_unmount_that_does_not_come_about_disturbs_no_writer() {
    need_daemon!();
    let m = mount!();
    m.save("held", "");
    m.save("state.json", "{}");
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("held")).unwrap();
    let mut refused = unmounting(&m, &[]);
    // Once it has found no transaction open, it tries for two seconds.
    std::thread::sleep(Duration::from_secs(1));
    let mut writer = Actor::new();
    let mut saves = 0;
    while common::alive(refused.pid()) {
        let content = format!("[{saves}]");
        writer.save(&m.path("state.json"), &content).unwrap();
        writer
            .save(&m.path(format!("new-{saves}")), &content)
            .unwrap();
        writer
            .setxattr(&m.path("state.json"), "user.commitfs.json.merge", b"[]")
            .unwrap();
        assert_content(m.read("state.json"), b"[]", "patched");
        saves += 1;
    }
    assert!(!refused.finish().success());
    assert!(saves > 1 && is_mounted(m.mountpoint()), "{saves} saves");
    drop(reader);
    m.command(&["umount"]).ok();
}

#[test]
fn umount_force_sends_open_transactions_to_rejected() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "old");
    let mut writer = writing(&m, "f", "half");
    let fresh = writing(&m, "fresh", "new half");
    m.command(&["umount", "--force"]).ok();
    assert!(!is_mounted(m.mountpoint()));
    let _ = writer.write("f", "into the void");
    drop((writer, fresh));
    m.reap_daemon(Duration::from_secs(10));
    assert_eq!(std::fs::read(m.backing().join("f")).unwrap(), b"old");
    assert!(!m.backing().join("fresh").exists());
    m.remount();
    let kept = m.rejected();
    let has = |path: &str, content: &str| {
        kept.iter()
            .any(|one| one.path == path && one.content.starts_with(content.as_bytes()))
    };
    assert!(has("f", "half") && has("fresh", "new half"), "{kept:?}");
}

#[test]
fn status_tells_what_is_open_by_whom_and_what_happened() {
    need_daemon!();
    let m = mount!();
    m.save("f", "one");
    m.save("f", "two");
    let writer = writing(&m, "sub", "0123456789");
    std::thread::sleep(Duration::from_millis(50));
    eventually(Duration::from_secs(2), "two commits are counted", || {
        m.commits() == 2
    });
    let status = m.status();
    assert_eq!(status["pid"], m.daemon_pid(), "{status}");
    assert_eq!(status["backing"], m.backing().to_str().unwrap());
    assert_eq!(status["mountpoint"], m.mountpoint().to_str().unwrap());
    assert_eq!(status["durability"], "async");
    assert!(
        status["killed_writer_detection"]["on"].is_boolean(),
        "{status}"
    );
    assert_eq!(status["counters"]["commits"], 2, "{status}");
    for reason in [
        "killed",
        "failed_write",
        "guard",
        "discarded",
        "forced",
        "vanished_target",
    ] {
        assert_eq!(
            status["counters"]["aborts"][reason], 0,
            "{reason} in {status}"
        );
    }
    let open = m.transactions();
    assert_eq!(open.len(), 1, "{status}");
    assert_eq!(open[0]["path"], "sub");
    assert_eq!(open[0]["pid"], writer.pid());
    assert_eq!(open[0]["state"], "open");
    assert!(
        open[0]["bytes"].is_u64() && open[0]["id"].as_str().is_some_and(|id| id.len() == 16),
        "{status}"
    );
    assert!(
        open[0]["age_ms"]
            .as_u64()
            .is_some_and(|age| (30..20_000).contains(&age)),
        "{status}"
    );
    assert!(
        open[0]["command"]
            .as_str()
            .is_some_and(|c| c.contains("commitfs-test-h")),
        "{status}"
    );

    let human = m.command(&["status"]).ok();
    mentions(
        &human,
        &[
            "sub",
            &writer.pid().to_string(),
            &m.daemon_pid().to_string(),
        ],
    );
    commitfs(["status", "/"]).fails();
}

#[test]
fn two_whole_file_rewriters_are_counted_as_an_overwritten_update() {
    need_daemon!();
    let m = mount!();
    m.save("f", "base");
    let (mut one, mut two) = (writing(&m, "f", "of one"), writing(&m, "f", "of two"));
    one.close("f").unwrap();
    two.close("f").unwrap();
    assert_content(m.read("f"), b"of two", "the last close wins");
    assert_eq!(m.status()["counters"]["overwritten_updates"], 1);
}

#[test]
fn rejected_content_can_be_listed_shown_and_restored() {
    need_daemon!();
    let m = mount!();
    m.save("d", "old");
    let mut writer = writing(&m, "d", r#"{"lost": "hal"#);
    writer.kill(libc::SIGKILL);
    let rejected = m.await_rejected("d", br#"{"lost": "hal"#);
    let directory = m.mountpoint().to_str().unwrap();
    let status = m.status();
    assert_eq!(status["rejected"]["count"], 1, "{status}");
    assert_eq!(status["rejected"]["bytes"], 13, "{status}");
    let list = commitfs(["rejected", "list", directory]).ok();
    mentions(&list, &[&rejected.id, "d", &writer.pid().to_string()]);
    let show = commitfs(["rejected", "show", directory, &rejected.id]).ok();
    mentions(&show, &[r#"{"lost": "hal"#]);
    assert_content(m.read("d"), b"old", "showing changes nothing");
    let refused = commitfs(["rejected", "restore", directory, &rejected.id]).fails();
    assert!(refused.err.contains("--force"), "{refused:?}");
    assert_content(m.read("d"), b"old", "what is there is not replaced unasked");
    commitfs(["rejected", "restore", "--force", directory, &rejected.id]).ok();
    assert_content(m.read("d"), br#"{"lost": "hal"#, "restored");
    let checked = commitfs(["check", directory]);
    assert_eq!(checked.code, Some(4), "{checked:?}");
    commitfs(["rejected", "show", directory, "no-such-id"]).fails();
    commitfs(["rejected", "restore", directory, "../../escape"]).fails();
    let short = rejected.id.trim_start_matches('0');
    commitfs(["rejected", "show", directory, short]).ok();
    let guarded = m.path("other.json");
    let refused = commitfs([
        "rejected",
        "restore",
        directory,
        &rejected.id,
        guarded.to_str().unwrap(),
    ]);
    let refused = refused.fails();
    assert!(refused.err.contains("name another file"), "{refused:?}");
}

#[test]
fn our_own_directory_is_hidden_but_reachable_and_cannot_be_changed_through_the_mount() {
    need_daemon!();
    let m = mount!();
    m.save("f", "old");
    writing(&m, "f", "half").kill(libc::SIGKILL);
    let rejected = m.await_rejected("f", b"half");
    assert_eq!(m.names("."), ["f"]);
    let mut actor = Actor::new();
    let inside = m.path(".commitfs/rejected").join(&rejected.id);
    actor
        .save(&inside, "overwritten")
        .expect_err("rejected content is read-only");
    actor.rmdir(&m.path(".commitfs")).expect_err("ours");
    actor
        .rename(&m.path(".commitfs"), &m.path("moved"))
        .expect_err("ours");
    actor.mkdir(&m.path(".commitfs")).expect_err("ours");
    for private in ["journal", "staging", "lock", "format"] {
        let path = m.path(".commitfs").join(private);
        actor.save(&path, "damage").expect_err(private);
    }
    m.await_rejected("f", b"half");
    m.sh("rm -rf .commitfs; rm -rf ./* && ls -A && test -z \"$(ls -A)\"")
        .ok();
    m.await_rejected("f", b"half");
}

#[test]
fn check_reports_a_sound_directory_and_finds_a_damaged_one() {
    need_daemon!();
    let mut m = mount!();
    m.save("a.json", "{\"a\": 1}");
    m.save("b", "anything");
    m.unmount();
    let backing = m.backing().to_str().unwrap().to_owned();
    commitfs(["check", &backing]).ok();
    commitfs(["check", "--content", &backing]).ok();
    std::fs::write(m.backing().join("a.json"), "{\"a\": ").unwrap();
    commitfs(["check", &backing]).ok();
    let found = commitfs(["check", "--content", &backing]).fails();
    mentions(&found, &["a.json"]);
    assert_eq!(
        std::fs::read(m.backing().join("a.json")).unwrap(),
        b"{\"a\": ",
        "it only reports"
    );
}

#[test]
fn a_second_mount_is_refused_with_the_pid_of_the_first() {
    need_daemon!();
    let m = mount!(Mount::options().separate());
    m.save("f", "content");
    let pid = m.daemon_pid().to_string();
    let elsewhere = m.scratch("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for attempt in [vec![m.backing()], vec![m.backing(), elsewhere.as_path()]] {
        let start = Instant::now();
        let refused = mount_command(&attempt);
        let mounted = is_mounted(attempt[attempt.len() - 1]);
        if mounted {
            common::detach(attempt[attempt.len() - 1]);
        }
        assert!(!mounted, "mounted twice: {attempt:?}");
        mentions(&refused.fails(), &[&pid]);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "refused, but not at once"
        );
    }
    m.save("f", "still served");
    assert_content(m.read("f"), b"still served", "the first mount");
}

#[test]
fn a_mount_over_a_live_mount_is_refused_with_its_pid() {
    need_daemon!();
    let m = mount!();
    let pid = m.daemon_pid().to_string();
    mentions(&mount_command(&[m.backing()]).fails(), &[&pid]);
    m.save("f", "still served");
    let mut m = m;
    m.unmount();
}

#[test]
fn nested_mounts_are_refused_with_the_pid_of_the_first() {
    need_daemon!();
    let m = mount!(Mount::options().separate().seed("inner/f", "content"));
    let pid = m.daemon_pid().to_string();
    let outer = m.backing().parent().unwrap();
    for nested in [m.backing().join("inner"), m.path("inner"), outer.to_owned()] {
        let refused = mount_command(&[&nested]);
        let mounted = is_mounted(&nested);
        if mounted {
            common::detach(&nested);
        }
        assert!(!mounted, "nested at {}", nested.display());
        mentions(&refused.fails(), &[&pid]);
    }
    assert_content(m.read("inner/f"), b"content", "the first mount");
}

#[test]
fn a_directory_is_free_again_after_its_daemon_was_killed() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "content");
    m.kill_daemon();
    // The stale lock of a dead daemon is no obstacle.
    m.remount();
    assert_content(m.read("f"), b"content", "after a kill");
    m.unmount();
    mount_command(&[m.backing()]).ok();
    m.command(&["umount"]).ok();
}

#[test]
fn every_command_says_that_a_mount_has_lost_its_daemon_and_what_to_do() {
    need_daemon!();
    let m = mount!();
    m.save("f.json", "{}");
    m.strike_daemon();
    eventually(Duration::from_secs(5), "the daemon has ended", || {
        !m.daemon_lives()
    });
    let (dir, file) = (m.mountpoint(), m.path("f.json"));
    let commands: [&[&Path]; 7] = [
        &[Path::new("status"), dir],
        &[Path::new("status"), &file],
        &[Path::new("locks"), dir],
        &[Path::new("rejected"), Path::new("list"), dir],
        &[Path::new("check"), dir],
        &[Path::new("json"), Path::new("get"), &file],
        &[
            Path::new("json"),
            Path::new("set"),
            &file,
            Path::new("/n"),
            Path::new("1"),
        ],
    ];
    for command in commands {
        let said = run(
            Command::new(common_binary()).args(command),
            Duration::from_secs(10),
        );
        mentions(&said, &["daemon of this mount is gone", "mount again"]);
        assert_eq!(said.code, Some(3), "{said:#?}");
    }
}

#[test]
fn an_unmount_of_a_mount_in_use_names_who_uses_it() {
    need_daemon!();
    let m = mount!();
    m.mkdir("d");
    let mut reader = Actor::new();
    m.save("f", "1");
    reader.open("f", "r", &m.path("f")).unwrap();
    let said = m.command(&["umount"]);
    assert_eq!(said.code, Some(4), "{said:?}");
    let holder = format!("{} (commitfs-test-h", reader.pid());
    assert!(said.err.contains(&holder), "{said:?}");
    assert_content(m.read("f"), b"1", "it goes on");
    m.save("f", "2");
    reader.close("f").unwrap();
    assert_eq!(m.command(&["umount"]).code, Some(0));
}

#[test]
fn a_mount_waits_for_the_daemon_of_one_that_is_just_gone() {
    need_daemon!();
    need_root!();
    let mut m = Mount::options().prepare();
    // What the daemon has still to write out when its mount is gone takes a while.
    m.set_env("COMMITFS_SHUTDOWN_DELAY_MS", 1500);
    m.remount();
    m.save("f", "committed");
    let daemon = m.status()["pid"].as_i64().expect("a pid") as i32;
    // As umount(8) without our helper.
    assert!(common::detach(m.mountpoint()));
    assert!(!is_mounted(m.mountpoint()));
    assert!(common::alive(daemon), "it writes out what was committed");
    mount_command(&[m.backing()]).ok();
    assert_content(m.read("f"), b"committed", "by the next mount");
    m.command(&["umount"]).ok();
}

#[test]
fn a_path_below_a_mount_is_not_taken_for_the_mount() {
    need_daemon!();
    let m = mount!();
    m.mkdir("sub");
    m.save("sub/f", "kept");
    for below in ["sub", "sub/f"] {
        let said = commitfs(["umount".as_ref(), m.path(below).as_os_str()]);
        assert_eq!(said.code, Some(3), "{said:?}");
        mentions(
            &said,
            &["commitfs umount", m.mountpoint().to_str().unwrap()],
        );
        assert!(is_mounted(m.mountpoint()));
    }
    assert_content(m.read("sub/f"), b"kept", "still mounted");
}

#[test]
fn an_unmount_that_waits_says_for_whom() {
    need_daemon!();
    let m = mount!();
    let mut writer = writing(&m, "slow", "half");
    let mut command = Command::new(common_binary());
    command.args(["umount".as_ref(), "--wait".as_ref(), m.mountpoint()]);
    // What it says comes by the pipe that a test reads line by line.
    let mut waits = Live::spawn(
        Command::new("sh")
            .args(["-c", "exec \"$@\" 2>&1", "sh", common_binary()])
            .args(command.get_args()),
    );
    let said = waits.line() + &waits.line();
    assert!(said.contains("waiting for open transactions"), "{said}");
    let whom = format!("slow  opened by {}", writer.pid());
    assert!(said.contains(&whom), "{said}");
    writer.close("f").unwrap();
    assert!(waits.finish().success());
}

#[test]
fn umount_8_finds_open_transactions_and_everything_in_place_by_our_helper() {
    need_daemon!();
    let m = mount!();
    let mut writer = writing(&m, "f", "half");
    let helper = |options: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(common_binary());
        command.arg0("/sbin/umount.fuse.commitfs");
        command.arg(m.mountpoint()).args(options);
        run(&mut command, Duration::from_secs(30))
    };
    let refused = helper(&[]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    mentions(&refused, &["open transactions"]);
    writer.close("f").unwrap();
    helper(&["-n", "-v"]).ok();
    assert!(!is_mounted(m.mountpoint()));
    assert_content(
        std::fs::read(m.backing().join("f")).ok(),
        b"half",
        "in place",
    );
}
