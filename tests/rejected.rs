//! C4, C5, C22. What was not committed is found again: under one id wherever it is named, under a name
//! with the bytes that it had, and what was said of it is said until somebody has read it.

mod common;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use common::{Actor, Mount, assert_content, commitfs};
use serde_json::Value;

/// Half a document, refused. Gives its id, as the directory of rejected content has it.
fn refused(m: &Mount, path: &str) -> String {
    let half = "{\"half\": ";
    Actor::new()
        .save(&m.path(path), half)
        .expect_err("half a document");
    m.await_rejected(path, half.as_bytes()).id
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn content_has_one_id_the_same_string_wherever_it_is_named() {
    need_daemon!();
    let m = mount!();
    m.save("f.json", "{}");
    // Beyond what looks the same in both bases.
    for n in 0..20 {
        m.save("other", format!("{n}"));
    }
    let id = refused(&m, "f.json");
    let directory = m.mountpoint().to_str().unwrap();
    let list = m.command(&["rejected", "list"]).ok().out;
    assert!(list.starts_with("ID "), "{list}");
    assert!(list.contains(&format!("\n{id}  ")), "{list}");
    let listed = json(&m.command(&["rejected", "list", "--json"]).ok().out);
    assert_eq!(listed[0]["id"], id.as_str(), "{listed}");
    let meta = m.read(format!(".commitfs/rejected/{id}.meta")).unwrap();
    assert_eq!(json(&String::from_utf8(meta).unwrap())["id"], id.as_str());
    let status = m.status();
    assert_eq!(status["errors"][0]["rejected"], id.as_str(), "{status}");
    let shown = m.command(&["status", "--keep-errors"]);
    assert!(shown.out.contains(&id), "{shown:#?}");
    let attribute = Actor::new()
        .getxattr(&m.path("f.json"), "user.commitfs.error")
        .unwrap();
    let attribute = json(&String::from_utf8(attribute).unwrap());
    assert_eq!(attribute["rejected"], id.as_str(), "{attribute}");
    assert!(m.log().contains(&format!("rejected/{id}")), "{}", m.log());
    let of_list = listed[0]["id"].as_str().unwrap();
    let show = commitfs(["rejected", "show", directory, of_list]).ok();
    assert_eq!(show.out, "{\"half\": ");
    let copy = m.scratch("copy");
    let to = copy.to_str().unwrap();
    commitfs(["rejected", "restore", directory, of_list, to]).ok();
    assert_content(std::fs::read(&copy).ok(), b"{\"half\": ", "restored");
    // Open transactions have the id that they would be rejected under.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f.json")).unwrap();
    writer.write("f", "{").unwrap();
    let open = m.transactions()[0]["id"].as_str().unwrap().to_owned();
    writer.kill(libc::SIGKILL);
    assert_eq!(m.await_rejected("f.json", b"{").id, open);
}

#[test]
fn a_name_that_is_not_unicode_keeps_its_bytes_in_json_and_when_restored() {
    need_daemon!();
    let m = mount!();
    let name = OsStr::from_bytes(b"caf\xe9\n.bin");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path(name)).unwrap();
    writer.write("f", "half").unwrap();
    let hex = "636166e90a2e62696e";
    assert_eq!(m.transactions()[0]["path_hex"], hex);
    writer.kill(libc::SIGKILL);
    let rejected = m.await_rejected("caf\u{fffd}\n.bin", b"half");
    let listed = json(&m.command(&["rejected", "list", "--json"]).ok().out);
    assert_eq!(listed[0]["path_hex"], hex, "{listed}");
    assert_eq!(m.status()["errors"][0]["path_hex"], hex);
    let line = m.command(&["rejected", "list"]).ok().out;
    assert_eq!(line.lines().count(), 2, "{line}");
    assert!(line.contains(r"caf\xe9\n.bin"), "{line}");
    let directory = m.mountpoint().to_str().unwrap();
    commitfs(["rejected", "restore", directory, &rejected.id]).ok();
    assert_content(m.read(name), b"half", "restored under its own name");
}

#[test]
fn errors_that_nobody_has_read_outlive_an_unmount_which_says_how_many() {
    need_daemon!();
    let mut m = mount!();
    m.save("read.json", "{}");
    refused(&m, "read.json");
    // Errors that were shown count as read.
    assert_eq!(m.command(&["status"]).code, Some(1));
    let ids = [refused(&m, "a.json"), refused(&m, "b.json")];
    let ended = m.command(&["umount"]).ok();
    assert!(
        ended.err.contains("2 errors that nobody has read"),
        "{ended:#?}"
    );
    m.reap_daemon(std::time::Duration::from_secs(10));
    let checked = commitfs([Path::new("check"), m.backing()]).ok();
    assert!(
        checked.out.contains("errors that nobody has read: 2"),
        "{checked:#?}"
    );
    m.remount();
    let status = m.status();
    let errors = status["errors"].as_array().unwrap();
    let told: Vec<_> = errors.iter().map(|e| e["rejected"].clone()).collect();
    assert_eq!(told, ids, "{status}");
    assert_eq!(m.command(&["status"]).code, Some(1));
    let ended = m.command(&["umount"]).ok();
    assert_eq!(ended.err, "");
    m.reap_daemon(std::time::Duration::from_secs(10));
    m.remount();
    assert_eq!(m.status()["errors"], serde_json::json!([]));
}

#[test]
fn every_error_has_a_time_an_id_and_a_command_that_works() {
    need_daemon!();
    let m = mount!();
    m.save("f.json", "{}");
    let id = refused(&m, "f.json");
    m.save("half", "{\"half\": ");
    m.sh("mv half f.json").fails();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("down load")).unwrap();
    writer.write("f", "half").unwrap();
    writer.kill(libc::SIGKILL);
    m.await_rejected("down load", b"half");
    let status = m.status();
    let errors = status["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 3, "{status}");
    assert_eq!(errors[0]["id"], id.as_str(), "{status}");
    let told = m.command(&["status", "--keep-errors"]).out;
    for error in errors {
        let [id, time, next] = ["id", "time", "next"].map(|key| error[key].as_str().unwrap());
        assert_eq!(id.len(), 16, "{error}");
        assert!(u64::from_str_radix(id, 16).is_ok(), "{error}");
        // 2026-03-09T07:05:01+01:00, by the zone of the daemon, which is that of the command here.
        let (day, rest) = time.split_once('T').expect("RFC 3339");
        let line = format!("ERROR {day} {} {id} ", &rest[..8]);
        assert!(told.contains(&line), "{line}: {told}");
        assert!(told.contains(&format!("next: {next}\n")), "{told}");
        let command = next.replace("commitfs ", &format!("{} ", common::binary()));
        m.sh(&command).ok();
    }
    assert_content(m.read("down load"), b"half", "restored by the command");
}

#[test]
fn a_restore_that_is_refused_adds_nothing() {
    need_daemon!();
    let m = mount!();
    m.save("f.json", "{}");
    let id = refused(&m, "f.json");
    let directory = m.mountpoint().to_str().unwrap();
    let seen = || {
        let status = m.status();
        let ids: Vec<_> = m.rejected().into_iter().map(|r| r.id).collect();
        (ids, status["errors"].clone())
    };
    let before = seen();
    assert_eq!(before.0, std::slice::from_ref(&id));
    for to in ["f.json", "new.json"] {
        let to = m.path(to);
        let to = to.to_str().unwrap();
        let said = commitfs(["rejected", "restore", "--force", directory, &id, to]).fails();
        assert!(said.err.contains("the guard of this name"), "{said:#?}");
    }
    // What is not kept goes a moment after the close.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(seen(), before);
    assert_content(m.read("f.json"), b"{}", "stays");
    assert!(!m.exists("new.json"));
}

#[test]
fn what_is_dropped_is_gone_on_a_mount_and_off_it() {
    need_daemon!();
    let mut m = mount!();
    let names = ["a.json", "b.json", "c.json", "d.json"];
    let ids = names.map(|name| {
        m.save(name, "{}");
        refused(&m, name)
    });
    let directory = m.mountpoint().to_str().unwrap().to_owned();
    let listed = |ids: &[String]| {
        let list = commitfs(["rejected", "list", "--json", &directory])
            .ok()
            .out;
        let found = json(&list);
        let found: Vec<_> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].clone())
            .collect();
        assert_eq!(found, ids);
    };
    let wrong = commitfs(["rejected", "drop", &directory, &ids[0], "ffff"]).fails();
    assert_eq!(wrong.code, Some(3));
    assert!(wrong.err.contains("ffff"), "{wrong:#?}");
    let unsaid = commitfs(["rejected", "drop", &directory]);
    assert_eq!(unsaid.code, Some(2), "{unsaid:#?}");
    listed(&ids);
    // As listed, and without the zeros in front.
    let short = ids[1].trim_start_matches('0');
    let dropped = commitfs(["rejected", "drop", &directory, &ids[0], short]).ok();
    assert_eq!(dropped.out, "dropped 2, 18 bytes\n");
    listed(&ids[2..]);
    // Its error is told until it is read, and names a command that makes sense.
    let next = m.status()["errors"][0]["next"].clone();
    assert_eq!(next, format!("commitfs log {directory}").as_str());
    m.unmount();
    commitfs(["rejected", "drop", &directory, &ids[2]]).ok();
    listed(&ids[3..]);
    commitfs(["rejected", "drop", "--all", &directory]).ok();
    listed(&[]);
    assert_eq!(commitfs(["rejected", "list", &directory]).ok().out, "");
}

/// What it says is how to have the content back, which nobody knows while it is on its way.
#[test]
fn an_error_is_told_again_until_its_content_is_in_rejected() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_REJECT_DELAY_MS", 1000));
    m.save("f.json", "{}");
    Actor::new()
        .save(&m.path("f.json"), "{\"half\": ")
        .expect_err("half a document");
    let early = m.command(&["status"]);
    assert_eq!(early.code, Some(1), "{early:#?}");
    assert!(!early.out.contains("commitfs rejected show"), "{early:#?}");
    m.await_rejected("f.json", b"{\"half\": ");
    let then = m.command(&["status"]);
    assert!(then.out.contains("commitfs rejected show"), "{then:#?}");
    assert_eq!(m.command(&["status"]).code, Some(0), "told once");
}
