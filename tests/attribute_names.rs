//! C15. A patch is set as an attribute. Under a name that plain directories take as well it would get
//! lost, and its program be told that all is well, where nothing happens to be mounted.

mod common;

use std::time::Duration;

use common::{Actor, assert_content, assert_errno, commitfs, eventually};

const INCREMENT: &[u8] = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;

#[test]
fn patches_and_reads_go_by_names_without_a_namespace_and_with_user_before_them() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 1}"#);
    let path = m.path("s.json");
    let mut actor = Actor::new();
    for (before, count) in [("", 2), ("user.", 3)] {
        let name = |rest: &str| format!("{before}commitfs.{rest}");
        let mut set = |rest: &str, value: &[u8]| actor.setxattr(&path, &name(rest), value);
        let version = m.version("s.json").unwrap();
        set("json.patch", INCREMENT).unwrap();
        let merge = format!("json.merge@{}", version + 1);
        set(&merge, format!("{{\"by\": \"{before}\"}}").as_bytes()).unwrap();
        assert_errno(set(&merge, b"{}"), "ESTALE");
        assert_errno(set("json.unknown", b"{}"), "EOPNOTSUPP");
        let get = |actor: &mut Actor, rest: &str| {
            let value = actor.getxattr(&path, &name(rest));
            value.map(|value| String::from_utf8(value).unwrap())
        };
        assert_eq!(get(&mut actor, "version"), Ok((version + 2).to_string()));
        assert_eq!(get(&mut actor, "json:/n"), Ok(count.to_string()));
        assert_eq!(get(&mut actor, "json:/by"), Ok(format!("\"{before}\"")));
        assert_errno(actor.setxattr(&path, &name("json.patch"), b"{"), "EINVAL");
        let reason = get(&mut actor, "json.error").unwrap();
        assert!(!reason.is_empty(), "{before}");
        assert_errno(get(&mut actor, "error"), "ENODATA");
    }
    // In pieces, and by way of the command.
    let long = "x".repeat(200_000);
    let value = m.scratch("value");
    std::fs::write(&value, format!("{{\"long\": \"{long}\"}}")).unwrap();
    let command = common::run::binary();
    let value = value.display();
    m.sh(&format!("{command} json merge s.json - < {value}"))
        .ok();
    let file = path.to_str().unwrap();
    let got = commitfs(["json", "get", "--raw", file, "/long"]).ok();
    assert_eq!(got.out.trim_end(), long);
}

#[test]
fn a_directory_that_is_not_mounted_refuses_a_patch() {
    let m = mount!();
    let plain = m.scratch("plain.json");
    std::fs::write(&plain, "{}").unwrap();
    let refused = Actor::new().setxattr(&plain, "commitfs.json.patch", INCREMENT);
    assert_errno(refused, "EOPNOTSUPP");
}

#[test]
fn a_patch_set_while_nothing_was_mounted_is_reported_and_can_be_removed() {
    need_daemon!();
    let mut m = mount!();
    m.mkdir("d");
    m.save("d/s.json", r#"{"n": 1}"#);
    m.unmount();
    let name = "user.commitfs.json.patch";
    let stored = Actor::new().setxattr(&m.backing().join("d/s.json"), name, INCREMENT);
    if stored.is_err() {
        // No attributes at all there.
        return;
    }
    m.remount();
    eventually(Duration::from_secs(10), "it is reported", || {
        m.status()["errors"] != serde_json::json!([])
    });
    let status = m.status();
    let error = &status["errors"][0];
    assert_eq!(error["path"], "d/s.json", "{status}");
    let reason = error["reason"].as_str().unwrap();
    for word in [name, "increment", "nothing was mounted"] {
        assert!(reason.contains(word), "{reason}");
    }
    assert_content(m.read("d/s.json"), br#"{"n": 1}"#, "unchanged");
    // Whoever does what the error says is rid of it.
    m.command(&["status"]);
    m.sh("setfattr -x user.commitfs.json.patch d/s.json").ok();
    m.unmount();
    let left = Actor::new().getxattr(&m.backing().join("d/s.json"), name);
    assert_errno(left, "ENODATA");
}
