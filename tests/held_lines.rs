//! C5, C10, C20. Unfinished lines that write() has acknowledged and that wait in memory: a disk that
//! fails, or is full for a moment, and an unmount by force don't lose them without a word.

mod common;

use common::{Actor, Mount, assert_content, assert_errno};

/// A mount on which unfinished lines wait for more than time, and the adding of lines fails as said,
/// with an open appender of `f`.
fn appending(failing: &str) -> Option<(Mount, Actor)> {
    let options = Mount::options()
        .args(["--bound", "60000"])
        .env("COMMITFS_LINE_PATIENCE_MS", 60_000)
        .env("COMMITFS_FAIL_AT", failing);
    let m = options.mount()?;
    m.save("f", "0\n");
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("f")).unwrap();
    Some((m, actor))
}

macro_rules! appending {
    ($failing:expr) => {
        match appending($failing) {
            Some(mount) => mount,
            None => return,
        }
    };
}

#[test]
fn an_unfinished_line_that_could_not_be_added_is_added_by_the_close() {
    need_daemon!();
    let (m, mut actor) = appending!(&format!("append:{}:1", libc::EIO));
    actor.write("f", "half").unwrap();
    assert_errno(actor.fsync("f"), "EIO");
    actor.close("f").unwrap();
    assert_content(m.read("f"), b"0\nhalf", "after the close");
    assert_eq!(m.status()["errors"], serde_json::json!([]));
}

#[test]
fn an_unfinished_line_that_cannot_be_added_fails_the_close_and_is_an_error_in_status() {
    need_daemon!();
    let (m, mut actor) = appending!(&format!("append:{}", libc::EIO));
    actor.write("f", "half").unwrap();
    assert_errno(actor.fsync("f"), "EIO");
    assert_errno(actor.close("f"), "EIO");
    assert_content(m.read("f"), b"0\n", "the lines before");
    common::eventually(std::time::Duration::from_secs(5), "it is told", || {
        m.status()["errors"][0]["path"] == "f"
    });
}

#[test]
fn a_line_finds_the_room_that_what_was_replaced_gives_back() {
    need_daemon!();
    let (m, mut actor) = appending!(&format!("append:{}:1:1", libc::ENOSPC));
    actor.write("f", "1\n").unwrap();
    m.save("other", "waits for the checkpoint");
    actor.write("f", "2\n").unwrap();
    actor.close("f").unwrap();
    assert_content(m.read("f"), b"0\n1\n2\n", "all lines");
}

#[test]
fn an_unmount_by_force_adds_unfinished_lines() {
    need_daemon!();
    let (mut m, mut actor) = appending!("none:5:0");
    actor.write("f", "1\nhalf").unwrap();
    m.command(&["umount", "--force"]).ok();
    m.reap_daemon(std::time::Duration::from_secs(10));
    drop(actor);
    let left = std::fs::read(m.backing().join("f")).ok();
    assert_content(left, b"0\n1\nhalf", "in the backing directory");
}

const LINES: &str = "{\"a\": 1}\n{\"b\": 2}\n";

#[test]
fn a_value_that_waits_is_not_lost_when_others_make_a_document_of_the_file() {
    need_daemon!();
    let (m, mut actor) = appending!("none:5:0");
    m.save("f.json", LINES);
    actor.open("j", "a", &m.path("f.json")).unwrap();
    actor.write("j", "{\"c\": 3}").unwrap();
    m.save("f.json", "[]");
    actor.write("j", "\n{\"d\": 4}\n").unwrap();
    actor.close("j").unwrap();
    let expected = b"[]{\"c\": 3}\n{\"d\": 4}\n";
    assert_content(m.read("f.json"), expected, "as on the plain directory");
}

#[test]
fn an_unmount_by_force_sends_half_a_value_to_rejected() {
    need_daemon!();
    let (mut m, mut actor) = appending!("none:5:0");
    m.save("f.json", LINES);
    actor.open("j", "a", &m.path("f.json")).unwrap();
    actor.write("j", "{\"c\": 3}\n{\"d\"").unwrap();
    m.command(&["umount", "--force"]).ok();
    m.reap_daemon(std::time::Duration::from_secs(10));
    drop(actor);
    m.remount();
    let kept = m.rejected();
    assert!(
        kept.iter()
            .any(|one| one.path == "f.json" && one.content.ends_with(b"{\"d\""))
    );
    let lines = [LINES, "{\"c\": 3}\n"].concat();
    assert_content(m.read("f.json"), lines.as_bytes(), "the lines before");
}
