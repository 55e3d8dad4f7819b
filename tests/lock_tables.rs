//! C12: advisory locks give the same answers as on the plain directory, whichever call they come by, whoever holds them, and
//! whether somebody waits or not: every cell of tests/tables/locks.py is compared. The failures it prevents: EDEADLK for a thread that
//! merely waits for another one's lock; a description that can't have its flock beside its fcntl lock.
//! And what there was of locks is counted, by name.

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Actor, Mount, assert_errno, eventually, run};
use serde_json::Value;

/// Runs a part of the table on a mount and on a plain directory.
fn compare(part: &str) {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!(Mount::options().limit(Duration::from_secs(300)));
    m.same_as_plain(&format!(
        "import sys; sys.path.insert(0, {:?}); sys.argv[1:] = [{part:?}]; import locks; locks.main()",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables")
    ));
}

#[test]
fn every_lock_stands_against_every_other_as_on_the_plain_directory() {
    compare("pairs");
}

#[test]
fn so_it_is_with_appenders_files_in_place_and_new_ones() {
    compare("files");
}

#[test]
fn what_f_getlk_names_is_the_first_lock_that_is_in_the_way() {
    compare("order");
}

#[test]
fn cycles_conversions_and_closes_are_those_of_the_plain_directory() {
    compare("rest");
}

/// What `commitfs locks --json` has of a name's past.
fn past(m: &Mount, path: &str) -> Value {
    let is_it = |e: &Value| e["state"] == "past" && e["path"] == path;
    let found = m.locks().into_iter().find(is_it);
    found.unwrap_or(Value::Null)
}

/// How many of a histogram took no longer than so many seconds.
fn up_to(times: &Value, seconds: f64) -> u64 {
    let buckets = times["buckets"].as_array().expect("buckets");
    let bucket = buckets.iter().find(|b| b["le_s"] == seconds);
    bucket.expect("that bound")["count"]
        .as_u64()
        .expect("a number")
}

#[test]
fn how_long_was_waited_for_a_lock_and_how_long_it_was_held_is_told_by_name() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    m.save("other", "1");
    let (mut holder, mut waiter) = (Actor::new(), Actor::new());
    holder.open("f", "r", &m.path("f")).unwrap();
    waiter.open("f", "r", &m.path("f")).unwrap();
    holder.ask("flock", &[b"f"]).unwrap();
    assert_errno(waiter.ask("flock", &[b"f"]), "EAGAIN");
    waiter.start("flock-wait", &[b"f"]);
    eventually(Duration::from_secs(5), "it waits", || {
        m.locks().iter().any(|e| e["state"] == "waiting")
    });
    std::thread::sleep(Duration::from_millis(120));
    holder.ask("funlock", &[b"f"]).unwrap();
    waiter.finish().expect("its turn");
    let limited = run(
        Command::new("timeout")
            .current_dir(m.mountpoint())
            .args(["0.3", "flock", "f", "true"]),
        Duration::from_secs(20),
    );
    assert_eq!(limited.code, Some(124), "{limited:#?}");
    waiter.close("f").unwrap();
    let told = past(&m, "f");
    assert_eq!(told["waits"]["count"], 2, "{told:#}");
    assert_eq!(up_to(&told["waits"], 0.1), 0, "{told:#}");
    assert_eq!(up_to(&told["waits"], 600.0), 2, "{told:#}");
    assert!(told["waits"]["sum_s"].as_f64() >= Some(0.4), "{told:#}");
    assert!(told["waits"]["max_s"].as_f64() < Some(60.0), "{told:#}");
    assert_eq!(told["holds"]["count"], 2, "{told:#}");
    assert_eq!(told["given_up"], 1, "{told:#}");
    assert_eq!(told["refused"], 1, "{told:#}");
    assert_eq!(past(&m, "other"), Value::Null);
    let status = m.status();
    assert_eq!(status["locks"]["all"]["waits"], told["waits"]);
    assert_eq!(status["locks"]["names"][0]["path"], "f");
    for command in ["status", "locks"] {
        let said = m.command(&[command]);
        assert!(
            said.out.contains("f: waits 2, ")
                && said.out.contains("; held 2, ")
                && said
                    .out
                    .contains("waits given up 1; refused as it would have had to wait 1"),
            "{said:#?}"
        );
    }
}

#[test]
fn the_wait_for_a_writer_slot_counts_for_its_name() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_SILENCE_MS", 300));
    m.save("f", "1");
    let (mut one, mut two) = (Actor::new(), Actor::new());
    one.open("f", "r+", &m.path("f")).unwrap();
    one.pwrite("f", 0, b"2").unwrap();
    two.open("f", "r+", &m.path("f")).unwrap();
    two.close("f").unwrap();
    one.close("f").unwrap();
    let told = past(&m, "f");
    assert_eq!(told["waits"]["count"], 1, "{told:#}");
    eventually(Duration::from_secs(5), "both have had it", || {
        past(&m, "f")["holds"]["count"] == 2
    });
}

#[test]
fn lock_files_that_were_found_taken_are_counted() {
    need_daemon!();
    for name in ["f.lock", "f.pid"] {
        let m = mount!();
        let holder = m.bash(&format!("set -o noclobber; : > {name}"));
        holder.ok();
        // (bash looks first, and doesn't even try.)
        for _ in 0..5 {
            let mut other = Actor::new();
            assert_errno(other.open("f", "x", &m.path(name)), "EEXIST");
        }
        // Merely looking is no attempt.
        assert!(m.exists(name));
        let told = past(&m, name);
        assert_eq!(told["taken"], 5, "{told:#}");
        assert_eq!(m.status()["locks"]["all"]["taken"], 5);
        std::fs::remove_file(m.path(name)).unwrap();
        eventually(Duration::from_secs(5), "it has been held", || {
            past(&m, name)["holds"]["count"] == 1
        });
    }
}
