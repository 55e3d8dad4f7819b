//! `scripts/up DIR`: one command from a directory to a mount with its rules.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Run, detach, is_mounted, run, temporary_directory};

const PATIENCE: Duration = Duration::from_secs(60);

struct Place {
    root: PathBuf,
    dir: PathBuf,
}

impl Place {
    fn new() -> Place {
        let root = temporary_directory();
        let dir = root.join("st ate");
        Place { root, dir }
    }

    fn up(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new("scripts/up");
        command.env("COMMITFS", env!("CARGO_BIN_EXE_commitfs"));
        run(command.arg(&self.dir).args(arguments), PATIENCE)
    }

    fn leave(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_commitfs"));
        run(command.arg("umount").arg(&self.dir), PATIENCE).ok();
    }

    fn rules(&self) -> PathBuf {
        self.dir.join(".commitfs/rules.toml")
    }

    /// What four unmodified programs count to that do so twenty times each, all at once.
    fn count(&self) -> u64 {
        let file = self.dir.join("progress.json");
        std::fs::write(&file, r#"{"n": 0}"#).expect("a document");
        let program = "
import json, multiprocessing, sys
def count(_):
    for _ in range(20):
        with open(sys.argv[1]) as f: state = json.load(f)
        state['n'] += 1
        with open(sys.argv[1], 'w') as f: json.dump(state, f)
if __name__ == '__main__':
    with multiprocessing.Pool(4) as pool: pool.map(count, range(4), 1)
    print(json.load(open(sys.argv[1]))['n'])";
        let counted = run(
            Command::new("python3").args(["-c", program]).arg(&file),
            PATIENCE,
        )
        .ok();
        counted.out.trim().parse().expect("a number")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        detach(&self.dir);
        std::fs::remove_dir_all(&self.root).ok();
    }
}

#[test]
fn up_makes_the_directory_mounts_it_and_is_content_with_what_is_there() {
    need_daemon!();
    let place = Place::new();
    let first = place.up(&[]).ok();
    assert!(is_mounted(&place.dir) && first.out.contains("killed-writer detection"));
    let again = place.up(&[]).ok();
    assert!(again.err.contains("mounted already"), "{again:#?}");
    place.leave();
}

#[test]
fn a_merge_rule_holds_for_every_later_mount() {
    need_daemon!();
    let place = Place::new();
    place
        .up(&["--merge", "progress*.json", "--counter", "/n"])
        .ok();
    assert_eq!(place.count(), 80);
    place.leave();
    let kept = std::fs::read_to_string(place.rules()).expect("the rules");
    let mut mount = Command::new(env!("CARGO_BIN_EXE_commitfs"));
    run(mount.arg("mount").arg(&place.dir), PATIENCE).ok();
    assert_eq!(place.count(), 80);
    place.leave();
    // Asked for once more, together with one that could be added: neither is.
    let twice = ["--merge", "other.json", "--merge=progress*.json"];
    for again in [place.up(&["--merge=progress*.json"]), place.up(&twice)] {
        assert_eq!(again.code, Some(1), "{again:#?}");
        assert!(again.err.contains("rules.toml:1, rule 1: "), "{again:#?}");
        assert!(again.err.contains("nothing was changed"), "{again:#?}");
        assert!(!is_mounted(&place.dir));
        let now = std::fs::read_to_string(place.rules()).expect("the rules");
        assert_eq!(now, kept);
    }
}

#[test]
fn a_merge_rule_holds_at_once_where_it_is_mounted_already() {
    need_daemon!();
    let place = Place::new();
    place.up(&[]).ok();
    place
        .up(&["--merge", "progress*.json", "--counter", "/n"])
        .ok();
    assert_eq!(place.count(), 80);
    let twice = ["--merge", "other.json", "--merge=progress*.json"];
    let again = place.up(&twice);
    assert_eq!(again.code, Some(1), "{again:#?}");
    let mut show = Command::new(env!("CARGO_BIN_EXE_commitfs"));
    let shown = run(show.args(["rules", "show"]).arg(&place.dir), PATIENCE).ok();
    let rule =
        "[[rule]]\nglob = \"progress*.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";
    assert_eq!(shown.out, rule);
    place.leave();
    // A rule that says something else stands against it just as well.
    std::fs::write(place.rules(), rule.replace("merge", "last")).expect("written");
    let against = place.up(&["--merge", "progress*.json"]);
    assert_eq!(against.code, Some(1), "{against:#?}");
    assert!(
        against.err.contains("on_conflict = \"last\""),
        "{against:#?}"
    );
}

#[test]
fn a_rule_that_cannot_be_is_refused_and_leaves_those_that_were_there() {
    need_daemon!();
    let place = Place::new();
    std::fs::create_dir_all(place.rules().parent().expect("a directory")).expect("made");
    let own = "[[rule]]\nglob = \"x\"\nmode = \"direct\"";
    std::fs::write(place.rules(), own).expect("written");
    let refused = place.up(&["--merge", "[a"]);
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.err.contains("not a glob"), "{refused:#?}");
    assert_eq!(
        std::fs::read_to_string(place.rules()).expect("the rules"),
        own
    );
    assert!(!is_mounted(&place.dir));
}

#[test]
fn what_cannot_be_meant_is_said_in_a_line() {
    let place = Place::new();
    let said = |arguments: &[&str], code: i32, word: &str| {
        let run = place.up(arguments);
        assert_eq!(run.code, Some(code), "{run:#?}");
        assert!(run.err.contains(word), "{run:#?}");
        assert_eq!(run.err.lines().count(), 1, "{run:#?}");
    };
    said(&["other"], 2, "one DIR");
    said(&["--counter", "/n"], 2, "--merge before it");
    said(&["--merge", "x", "--counter", "n"], 2, "JSON pointer");
    said(&["--merge", ""], 2, "GLOB");
    said(&["--nonsense"], 2, "--nonsense");
    std::fs::write(&place.dir, "a file").expect("written");
    said(&[], 1, "is a file");
    assert!(Path::new(&place.dir).is_file());
}
