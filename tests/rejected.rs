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
    assert!(list.starts_with(&format!("{id}  ")), "{list}");
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
    assert_eq!(line.lines().count(), 1, "{line}");
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
