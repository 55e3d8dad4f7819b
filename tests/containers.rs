//! Programs that the daemon has no numbers for, since it is in a pid namespace of its own: a sidecar. What holds for them, and
//! that it is said what doesn't; docs/containers.md has the rest.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Actor, assert_content, commitfs, detach, eventually, is_mounted, run, stamped,
    temporary_directory,
};

/// A mount whose daemon is in a pid namespace of its own, with a /proc of its own; seen out here by propagation.
struct Sidecar {
    root: PathBuf,
    shared: PathBuf,
    dir: PathBuf,
    daemon: Child,
}

impl Sidecar {
    fn start() -> Sidecar {
        let root = temporary_directory();
        let shared = root.join("shared");
        let dir = shared.join("state");
        std::fs::create_dir_all(&dir).expect("a directory");
        let share = r#"mount --bind "$0" "$0" && mount --make-shared "$0""#;
        run(
            Command::new("sh").args(["-c", share]).arg(&shared),
            Duration::from_secs(20),
        )
        .ok();
        let log = std::fs::File::create(root.join("log")).expect("a file for the log");
        let daemon = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args([common::run::binary(), "mount", "-f"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare");
        eventually(Duration::from_secs(20), "it is mounted", || {
            is_mounted(&dir)
        });
        Sidecar {
            root,
            shared,
            dir,
            daemon,
        }
    }

    fn status(&self) -> String {
        let dir = self.dir.to_str().expect("UTF-8");
        commitfs(["status", "--keep-errors", dir]).out
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        detach(&self.dir);
        self.daemon.kill().ok();
        self.daemon.wait().ok();
        detach(&self.shared);
        std::fs::remove_dir_all(&self.root).ok();
    }
}

#[test]
fn a_daemon_that_cannot_know_how_writers_end_says_so() {
    need_root!();
    need_daemon!();
    let sidecar = Sidecar::start();
    assert!(
        sidecar.status().contains("detection: on"),
        "{}",
        sidecar.status()
    );
    let mut writer = Actor::new();
    writer.save(&sidecar.dir.join("f"), "v1").unwrap();
    let said = sidecar.status();
    assert!(
        said.contains("detection: off") && said.contains("pid namespace"),
        "{said}"
    );
    let log = std::fs::read_to_string(sidecar.root.join("log")).expect("a log");
    assert_eq!(log.matches("pid namespace").count(), 1, "{log}");
}

#[test]
fn across_pid_namespaces_readers_see_whole_versions_and_half_documents_are_refused() {
    need_root!();
    need_daemon!();
    let sidecar = Sidecar::start();
    let file = sidecar.dir.join("s.json");
    let (mut writer, mut reader) = (Actor::new(), Actor::new());
    writer.save(&file, "{\"n\": 1}").unwrap();
    assert_eq!(reader.cat(&file).unwrap(), b"{\"n\": 1}");
    writer.open("f", "w", &file).unwrap();
    writer.write("f", "{\"n\": ").unwrap();
    assert_eq!(reader.cat(&file).unwrap(), b"{\"n\": 1}");
    writer.kill(libc::SIGKILL);
    eventually(Duration::from_secs(5), "it is refused", || {
        sidecar.status().contains("guard 1")
    });
    assert_eq!(reader.cat(&file).unwrap(), b"{\"n\": 1}");
}

#[test]
fn across_pid_namespaces_what_others_read_is_rewritten_and_read_on() {
    need_root!();
    need_daemon!();
    let sidecar = Sidecar::start();
    let file = sidecar.dir.join("state.txt");
    let (mut writer, mut reader) = (Actor::new(), Actor::new());
    for len in [5_000, 300_000] {
        let (old, new) = (stamped(1, len), stamped(2, len / 2));
        writer.save(&file, &old).unwrap();
        reader.open("f", "r", &file).unwrap();
        reader.mmap("f", "map", old.len(), "r").unwrap();
        let begun = reader.read("f", 1_000).unwrap();
        assert_content(Some(begun), &old[..1_000], "before");
        writer.open("f", "w", &file).unwrap();
        assert_content(reader.pread("f", 0, old.len()).ok(), &old, "emptied");
        writer.write("f", &new).unwrap();
        assert_content(reader.cat(&file).ok(), &old, "by name, before the close");
        let mapped = reader.map_read("map", 0, old.len()).unwrap();
        assert_content(Some(mapped), &old, "mapped");
        writer.close("f").unwrap();
        assert_content(reader.pread("f", 0, old.len()).ok(), &old, "committed");
        assert_content(reader.cat(&file).ok(), &new, "by name");
    }
}

#[test]
fn across_pid_namespaces_nobody_sees_a_rewrite_half_done() {
    need_root!();
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let sidecar = Sidecar::start();
    let file = sidecar.dir.join("state.txt");
    let saves = common::times(100, 2_000) as u64;
    let mut writer = Actor::new();
    let whole = |n: u64| stamped(n, 200_000 + (n % 7) as usize * 1_000);
    writer.save(&file, whole(0)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_done() {
                    let found = std::fs::read(&file).expect("it is there");
                    common::version_of(&found).expect("one whole version");
                }
            });
        }
        let failed = (1..=saves).find_map(|n| writer.save(&file, whole(n)).err());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}
