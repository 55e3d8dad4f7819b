//! What is made for packages: manual pages, completions. They say what the program says of itself,
//! and every tool that reads such files can read them. And what is needed to build.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Run, commitfs, run, temporary_directory};

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch(temporary_directory())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The manual pages.
    fn pages(&self) -> Vec<PathBuf> {
        let dir = self.path("share/man1");
        commitfs(["man", "--dir", dir.to_str().expect("UTF-8")]).ok();
        let entries = std::fs::read_dir(dir).expect("a directory of pages");
        entries.map(|entry| entry.expect("a page").path()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The names of subcommands that `commitfs WORDS --help` lists.
fn subcommands(words: &[&str]) -> Vec<String> {
    let help = commitfs([words, &["--help"]].concat()).ok().out;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// All pages that there have to be, by what `--help` says.
fn wanted(words: &[&str], names: &mut BTreeSet<String>) {
    names.insert(format!("{}.1", [&["commitfs"], words].concat().join("-")));
    for name in subcommands(words) {
        wanted(&[words, &[&name]].concat(), names);
    }
}

fn mandoc(arguments: &[&str], page: &Path) -> Run {
    run(Command::new("mandoc").args(arguments).arg(page), PATIENCE)
}

#[test]
fn every_command_has_a_manual_page() {
    let scratch = Scratch::new();
    let mut names = BTreeSet::new();
    wanted(&[], &mut names);
    assert!(names.contains("commitfs-json-incr.1"), "{names:#?}");
    let name = |page: PathBuf| page.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(
        scratch
            .pages()
            .into_iter()
            .map(name)
            .collect::<BTreeSet<_>>(),
        names
    );
    // Once more, over those that are there.
    assert_eq!(scratch.pages().len(), names.len());
    let printed = commitfs(["man"]).ok().out;
    let written = std::fs::read_to_string(scratch.path("share/man1/commitfs.1"));
    assert_eq!(printed, written.expect("a page"));
}

#[test]
fn manual_pages_are_without_errors_and_fit_80_columns() {
    let scratch = Scratch::new();
    for page in scratch.pages() {
        mandoc(&["-T", "lint", "-W", "error"], &page).ok();
        let text = mandoc(&["-T", "utf8", "-O", "width=80"], &page).ok().out;
        // What is bold or underlined comes as a letter, a backspace, and a letter.
        let column = |line: &str| line.chars().count() - 2 * line.matches('\u{8}').count();
        let wide: Vec<_> = text.lines().filter(|line| column(line) > 80).collect();
        assert!(wide.is_empty(), "{}: {wide:#?}", page.display());
    }
}

#[test]
fn manual_pages_that_cannot_be_written_are_an_error_with_a_remedy() {
    let scratch = Scratch::new();
    let file = scratch.path("a file");
    std::fs::write(&file, "mine").expect("written");
    let refused = commitfs(["man", "--dir", file.to_str().expect("UTF-8")]);
    assert_eq!(refused.code, Some(3), "{refused:#?}");
    assert!(
        refused.err.contains("a file") && refused.err.contains("need a directory"),
        "{refused:#?}"
    );
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "mine");
}

#[test]
fn completions_are_made_for_every_shell_and_work_in_bash() {
    let scratch = Scratch::new();
    let script = scratch.path("completions");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let text = commitfs(["completions", shell]).ok().out;
        assert!(text.contains("rejected"), "{shell}");
        std::fs::write(&script, text).expect("written");
        if shell == "bash" {
            run(Command::new("bash").arg("-n").arg(&script), PATIENCE).ok();
            let complete = r#". "$0"; COMP_WORDS=(commitfs do); COMP_CWORD=1; _commitfs commitfs do commitfs; echo "${COMPREPLY[@]}""#;
            let reply = run(
                Command::new("bash").arg("-c").arg(complete).arg(&script),
                PATIENCE,
            )
            .ok();
            assert_eq!(reply.out, "doctor\n");
        }
    }
    let refused = commitfs(["completions", "tcl"]);
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    assert!(refused.err.contains("bash"), "{refused:#?}");
}

/// What `scripts/install-deps run` says where the Rust toolchain is `version`.
fn install_deps_with_rust(version: &str) -> Run {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    for program in ["rustc", "cargo"] {
        let file = scratch.path(program);
        let script = format!("#!/bin/sh\necho '{program} {version} (4d91de4e4 2025-02-17)'\n");
        std::fs::write(&file, script).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("a program");
    }
    let path = std::env::var("PATH").expect("UTF-8");
    let path = format!("{}:{path}", scratch.0.display());
    run(
        Command::new("scripts/install-deps")
            .arg("run")
            .env("PATH", path),
        PATIENCE,
    )
}

#[test]
fn a_toolchain_that_is_too_old_is_told_before_anything_is_built() {
    let old = install_deps_with_rust("1.85.0");
    assert_eq!(old.code, Some(1), "{old:#?}");
    let least = env!("CARGO_PKG_RUST_VERSION");
    assert!(old.err.contains(&format!("need Rust {least}")), "{old:#?}");
    assert!(old.err.contains("rustup update"), "{old:#?}");
    for enough in [least, "1.100.2", "2.0.0-nightly"] {
        let new = install_deps_with_rust(enough);
        assert!(!new.err.contains("need Rust"), "{new:#?}");
    }
}

#[test]
fn what_a_package_consists_of_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("Cargo.toml")).expect("read");
    let manifest: toml::Table = text.parse().expect("TOML");
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array();
    let sources = assets
        .expect("a list")
        .iter()
        .map(|a| a[0].as_str().expect("a path"));
    // What is below target is made from this tree.
    for source in sources.filter(|s| !s.starts_with("target/") && !s.contains('*')) {
        assert!(root.join(source).is_file(), "{source}");
    }
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(root.join(license).is_file(), "{license}");
    }
}
