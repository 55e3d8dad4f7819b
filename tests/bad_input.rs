//! Bad input gets a clear message and an exit code, and changes nothing: a mistyped path, a rules
//! file with a typing error, a `.commitfs` directory that is damaged or not ours.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Mount, Run, assert_content, detach, is_mounted, run};

/// Everything below a directory: path, kind and content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let content = std::fs::read(&path).ok();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path.clone());
            }
            all.insert(path, content);
        }
    }
    all
}

/// `commitfs mount ARGS…` must fail with a message that has all the words, mount nothing, and leave
/// the tree as it was.
#[track_caller]
fn refused(args: &[&Path], unchanged: &Path, words: &[&str]) -> Run {
    let before = tree(unchanged);
    let mut command = Command::new(env!("CARGO_BIN_EXE_commitfs"));
    let run = run(command.arg("mount").args(args), Duration::from_secs(20));
    for path in args {
        if is_mounted(path) && *path != Path::new("/proc/sys") {
            detach(path);
            panic!("{} was mounted: {run:#?}", path.display());
        }
    }
    let run = run.fails();
    assert!(!run.err.trim().is_empty(), "no message: {run:#?}");
    assert!(
        !run.err.contains("panicked"),
        "a panic is no message: {run:#?}"
    );
    for word in words {
        assert!(
            run.err.contains(word),
            "{word:?} is not in the message: {run:#?}"
        );
    }
    assert!(
        tree(unchanged) == before,
        "a refused mount changed {}",
        unchanged.display()
    );
    run
}

#[test]
fn a_backing_directory_that_is_missing_or_a_file_is_refused() {
    need_daemon!();
    let m = Mount::options().seed("file", "content").prepare();
    let missing = m.backing().join("missing");
    refused(&[&missing], m.backing(), &["missing"]);
    assert!(!missing.exists(), "it was created");
    refused(&[&m.backing().join("file")], m.backing(), &["file"]);
    refused(&[&m.backing().join("file/below")], m.backing(), &["below"]);
    let nowhere = m.scratch("nowhere");
    refused(&[m.backing(), &nowhere], m.backing(), &["nowhere"]);
    refused(
        &[m.backing(), &m.backing().join("file")],
        m.backing(),
        &["file"],
    );
}

#[test]
fn a_command_line_with_an_unknown_word_is_refused() {
    need_daemon!();
    let m = Mount::options().prepare();
    for bad in [
        "--no-such-option",
        "--durability=sometimes",
        "--log-level=loud",
    ] {
        refused(
            &[Path::new(bad), m.backing()],
            m.backing(),
            &[bad.split('=').next().unwrap()],
        );
    }
    refused(&[], m.backing(), &[]);
    refused(
        &[Path::new("-o"), Path::new("no_such_option"), m.backing()],
        m.backing(),
        &["no_such_option"],
    );
}

#[test]
fn a_backing_directory_that_cannot_be_written_is_refused() {
    need_daemon!();
    let m = Mount::options().prepare();
    if common::is_root() {
        // Root may write everywhere but on a read-only file system.
        let mount = ["-t", "tmpfs", "-o", "ro", "tmpfs"];
        let limit = Duration::from_secs(10);
        run(Command::new("mount").args(mount).arg(m.backing()), limit).ok();
        let result = std::panic::catch_unwind(|| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_commitfs"));
            run(
                command.arg("mount").arg(m.backing()),
                Duration::from_secs(20),
            )
        });
        while is_mounted(m.backing()) && detach(m.backing()) {}
        let run = result.expect("an answer").fails();
        assert!(
            run.err.contains("state"),
            "no path in the message: {run:#?}"
        );
    } else {
        use std::os::unix::fs::PermissionsExt;
        let mode = |bits| std::fs::Permissions::from_mode(bits);
        std::fs::set_permissions(m.backing(), mode(0o500)).unwrap();
        refused(&[m.backing()], m.backing(), &["state"]);
        std::fs::set_permissions(m.backing(), mode(0o700)).unwrap();
    }
}

#[test]
fn a_file_system_that_cannot_rename_is_refused() {
    need_root!();
    need_daemon!();
    let m = Mount::options().prepare();
    refused(
        &[Path::new("/proc/sys"), m.backing()],
        m.backing(),
        &["/proc/sys"],
    );
}

#[test]
fn an_invalid_rule_is_refused_and_named() {
    need_daemon!();
    let m = Mount::options().seed("f", "content").prepare();
    let rules = m.scratch("bad.toml");
    let bad = [
        ("[[rule]]\nglob = \"*.x\"\ncolour = \"red\"\n", "colour"),
        (
            "[[rule]]\nglob = \"*.x\"\nmode = \"sometimes\"\n",
            "sometimes",
        ),
        ("[[rule]]\nglob = \"*.x\"\nguard = \"poetry\"\n", "poetry"),
        ("[[rule]]\nglob = \"*.x\"\non_signal = 3\n", "on_signal"),
        (
            "[[rule]]\nglob = \"*.x\"\non_conflict = \"shrug\"\n",
            "shrug",
        ),
        (
            "[[rule]]\nglob = \"*.x\"\nlock_timeout = \"soon\"\n",
            "soon",
        ),
        ("[[rule]]\nglob = \"a[\"\nmode = \"direct\"\n", "a["),
        ("[[rule]]\nmode = \"direct\"\n", "glob"),
        ("[[rules]]\nglob = \"*\"\n", "rules"),
        ("this is not TOML", "bad.toml"),
        (
            "[[rule]]\nglob = \"*.x\"\nmode = \"direct\"\nmode = \"atomic\"\n",
            "mode",
        ),
    ];
    for (text, word) in bad {
        std::fs::write(&rules, text).unwrap();
        refused(
            &[Path::new("--rules"), &rules, m.backing()],
            m.backing(),
            &["bad.toml", word],
        );
    }
    std::fs::write(&rules, [0xff, 0xfe, 0x00]).unwrap();
    refused(
        &[Path::new("--rules"), &rules, m.backing()],
        m.backing(),
        &["bad.toml"],
    );
    std::fs::remove_file(&rules).unwrap();
    refused(
        &[Path::new("--rules"), &rules, m.backing()],
        m.backing(),
        &["bad.toml"],
    );
}

#[test]
fn a_directory_of_ours_that_is_foreign_or_damaged_is_refused_and_kept() {
    need_daemon!();
    let foreign: [&[(&str, &[u8])]; 4] = [
        &[(".commitfs", b"a file, not a directory")],
        &[(".commitfs/hello", b"somebody else's")],
        &[(".commitfs/format", b"not our format")],
        &[
            (".commitfs/format", b""),
            (".commitfs/journal", b"anything"),
        ],
    ];
    for files in foreign {
        let options = files.iter().fold(
            Mount::options().seed("f", "content"),
            |options, (path, content)| options.seed(path, content),
        );
        let m = options.prepare();
        refused(&[m.backing()], m.backing(), &[".commitfs"]);
    }
}

/// The first regular file at or below a path.
fn some_file(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let mut names: Vec<_> = std::fs::read_dir(path)
        .ok()?
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names.iter().find_map(|path| some_file(path))
}

#[test]
fn a_damaged_journal_or_format_is_refused_told_where_and_never_deleted() {
    need_daemon!();
    for (part, how) in [
        ("journal", "head"),
        ("journal", "foreign"),
        ("format", "version"),
        ("format", "empty"),
    ] {
        let mut m = mount!();
        for round in 0..20 {
            m.save("f", format!("{round}"));
        }
        // Killed, so that the journal holds something.
        m.kill_daemon();
        let file = some_file(&m.backing().join(".commitfs").join(part)).expect(part);
        let good = std::fs::read(&file).unwrap();
        let mut damaged = good.clone();
        match how {
            "head" => damaged.iter_mut().take(8).for_each(|byte| *byte ^= 0x5a),
            "version" => damaged.extend_from_slice(b"\x7f999"),
            "empty" => damaged.clear(),
            _ => damaged = b"somebody else's file of some length, which is no journal".to_vec(),
        }
        std::fs::write(&file, &damaged).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        refused(&[m.backing()], m.backing(), &[".commitfs", name]);
        // Put back, it mounts, and nothing is lost.
        std::fs::write(&file, &good).unwrap();
        m.remount();
        assert_content(m.read("f"), b"19", "after the damage was undone");
    }
}

#[test]
fn a_journal_cut_short_by_a_crash_is_no_damage() {
    need_daemon!();
    let mut m = mount!();
    for round in 0..20 {
        m.save("f", format!("{round}"));
    }
    m.kill_daemon();
    let file = some_file(&m.backing().join(".commitfs/journal")).expect("a journal");
    let mut content = std::fs::read(&file).unwrap();
    content.extend_from_slice(&[0; 3]);
    std::fs::write(&file, &content).unwrap();
    m.remount();
    assert_content(m.read("f"), b"19", "with a torn record at the end");
}

#[test]
fn commands_on_something_that_is_no_mount_say_so() {
    need_daemon!();
    let m = Mount::options().prepare();
    let path = m.backing();
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["umount"],
        &["umount", "--force"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_commitfs"));
        let run = run(command.args(words).arg(path), Duration::from_secs(20)).fails();
        assert!(
            run.err.contains("state"),
            "no path in the message: {run:#?}"
        );
    }
    let mut check = Command::new(env!("CARGO_BIN_EXE_commitfs"));
    run(
        check.arg("check").arg(m.scratch("missing")),
        Duration::from_secs(20),
    )
    .fails();
    assert!(tree(path).is_empty(), "something was created");
}

#[test]
fn a_kernel_that_does_not_tell_rewrites_from_edits_is_refused() {
    need_daemon!();
    let m = Mount::options().prepare();
    std::fs::write(m.backing().join("f"), "plain").unwrap();
    let refused = run(
        Command::new(env!("CARGO_BIN_EXE_commitfs"))
            .arg("mount")
            .arg(m.backing())
            .env("COMMITFS_WITHOUT", "atomic_o_trunc"),
        Duration::from_secs(30),
    );
    assert_eq!(refused.code, Some(6), "{refused:#?}");
    assert!(refused.err.contains("Linux 5.15"), "{refused:#?}");
    assert!(!common::is_mounted(m.backing()));
    assert_content(m.read("f"), b"plain", "the directory as it was");
}
