//! The commands of README.md, as a new user would type them, from the first to the last.

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Run, binary, detach, run, temporary_directory};

/// What begins a block that is not run, and why.
const LEFT_OUT: [(&str, &str); 2] = [
    ("scripts/stress", "scripts/test runs a shorter one"),
    (
        "sudo cp systemd",
        "tests/service.rs runs the unit's own lines",
    ),
];

/// What has to be there before a block, as its text says.
const BEFORE: [(&str, &str); 2] = [
    ("state = json.load", r#"echo '{"done": 0}' > progress.json"#),
    // Nobody may be in there.
    ("commitfs mount ~/state", "cd; commitfs umount ~/state"),
];

/// Which commands end with another code than 0: what has found what the text says that it finds, and what was ended.
const FINDS: [&str; 2] = ["commitfs status ~/state", "timeout"];

/// A language and a text.
type Block = (String, String);

/// The blocks of code in a text.
fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => found.push(block),
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (None, Some((language, text))) => open = Some((language, text + line + "\n")),
            (None, None) => {}
        }
    }
    found
}

/// A block's text without its remarks.
fn first_command(text: &str) -> &str {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.next().unwrap_or_default()
}

fn for_block<'t>(table: &[(&str, &'t str)], text: &str) -> Option<&'t str> {
    let command = first_command(text);
    let found = table.iter().find(|(begins, _)| command.starts_with(begins));
    found.map(|(_, value)| *value)
}

/// One script of all the blocks. Says `NOT DONE` of a command that fails.
fn script(readme: &str) -> String {
    let mut script = String::from("trap 'echo \"NOT DONE: $BASH_COMMAND\"' ERR\n");
    for (language, text) in blocks(readme) {
        if for_block(&LEFT_OUT, &text).is_some() {
            continue;
        }
        if let Some(before) = for_block(&BEFORE, &text) {
            script += before;
            script.push('\n');
        }
        match language.as_str() {
            "sh" => script += &text,
            "python" => script += &format!("python3 - <<'END'\nimport json, os\n{text}END\n"),
            _ => {}
        }
    }
    // It goes on for as long as the daemon does.
    script = script.replace(
        "\ncommitfs log -f",
        "\ntimeout --preserve-status -s INT 1 commitfs log -f",
    );
    script + "echo \"done: $(jq .done ~/state/progress.json)\"\n"
}

/// A copy of the project, as far as the commands look at it, with a home beside it.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let root = temporary_directory();
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::create_dir_all(root.join("project/target/release")).expect("a directory");
        std::fs::create_dir(root.join("home")).expect("a directory");
        symlink(project.join("scripts"), root.join("project/scripts")).expect("a link");
        let program = root.join("project/target/release/commitfs");
        symlink(binary(), program).expect("a link");
        Place(root)
    }

    fn bash(&self, script: &str) -> Run {
        let mut bash = Command::new("bash");
        bash.args(["-c", script]);
        bash.current_dir(self.0.join("project"));
        bash.env("HOME", self.0.join("home"))
            .env("COMMITFS", binary());
        run(&mut bash, Duration::from_secs(120))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        detach(&self.0.join("home/state"));
        std::fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    need_daemon!();
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.expect("README.md");
    let place = Place::new();
    let said = place.bash(&script(&readme));
    let failed: Vec<&str> = said
        .out
        .lines()
        .filter_map(|line| line.strip_prefix("NOT DONE: "))
        .filter(|command| !FINDS.iter().any(|finds| command.starts_with(finds)))
        .collect();
    assert!(failed.is_empty(), "{failed:#?} {said:#?}");
    // What is promised beside the commands comes, as often as it is.
    let promised = readme.matches("# {\"step\": 1}").count();
    let shown = said
        .out
        .lines()
        .filter(|line| *line == "{\"step\": 1}")
        .count();
    assert!(promised > 0 && shown == promised, "{promised}: {said:#?}");
    assert!(said.out.contains("ended by signal 9"), "{said:#?}");
    let rejected = said
        .out
        .lines()
        .filter(|l| l.contains("state.json") && !l.contains("ERROR"));
    assert!(rejected.count() >= 2, "{said:#?}");
    // Two lines of Python and three of shell have each added one.
    assert!(said.out.ends_with("done: 5\n"), "{said:#?}");
}

#[test]
fn what_the_readme_leaves_out_here_is_still_in_it() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let blocks = blocks(&readme.expect("README.md"));
    for (begins, _) in LEFT_OUT.iter().chain(&BEFORE) {
        let found = blocks
            .iter()
            .any(|(_, text)| first_command(text).starts_with(begins));
        assert!(found, "no block begins with {begins}");
    }
}
