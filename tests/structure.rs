//! What the structure of the source is, in numbers. Each has a goal and a limit, which is what has been reached: none gets worse.

#[path = "structure/source.rs"]
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use source::Source;

fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")))
}

/// A goal, and what is beyond it.
type Limits = (usize, &'static [(&'static str, usize)]);

/// What is beyond its goal today. A number here may only fall; what has reached its goal leaves the list.
const METHODS: Limits = (60, &[]);
const FIELDS: Limits = (15, &[("Node", 28), ("Engine", 16), ("Content", 19)]);
const CIRCLES: Limits = (4, &[]);
const FILE_LINES: Limits = (700, &[]);
const FUNCTION_LINES: Limits = (
    70,
    &[
        ("publish_first", 90),
        ("prepare_once", 104),
        ("open_for_writing", 77),
        ("create_now", 129),
        ("push_record", 74),
        ("plan", 105),
        ("collect", 95),
    ],
);

/// What breaks a limit: more than it says, or a limit that isn't needed any more.
fn beyond<'a>((goal, known): Limits, found: impl Iterator<Item = (&'a str, usize)>) -> Vec<String> {
    let mut known: BTreeMap<&str, usize> = known.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, count) in found.filter(|(_, count)| *count > goal) {
        let limit = known.remove(name).unwrap_or(goal);
        if count > limit {
            wrong.push(format!("{name}: {count}, and the limit is {limit}"));
        }
    }
    let done = known
        .keys()
        .map(|name| format!("{name}: has reached the goal of {goal}"));
    wrong.extend(done);
    wrong
}

const NONE: [String; 0] = [];

#[test]
fn folders_use_each_other_in_one_direction() {
    let source = source();
    let circles = source.circles_of_folders();
    assert!(
        circles.is_empty(),
        "{circles:?}\n{:#?}",
        source.folder_uses()
    );
}

/// The rooms of the engine, from the top: what one uses lies below it, or in it. docs/design.md says what they are for.
const ROOMS: [&str; 8] = [
    "requests",
    "descriptions",
    "deciding",
    "documents",
    "admin",
    "versions",
    "meaning",
    "base",
];

/// The place of a file's room in [`ROOMS`]. What all rooms share, the engine itself, is at the bottom.
fn room_of(file: &str) -> Option<usize> {
    let room = match file.strip_prefix("engine/")?.split_once('/') {
        Some((room, _)) => room,
        None => ROOMS[ROOMS.len() - 1],
    };
    let at = ROOMS.iter().position(|known| *known == room);
    assert!(at.is_some(), "{file}: in no room");
    at
}

#[test]
fn rooms_of_the_engine_use_what_is_below_them() {
    let mut wrong = Vec::new();
    for (from, to) in &source().uses {
        if let (Some(above), Some(below)) = (room_of(from), room_of(to))
            && below < above
        {
            let (above, below) = (ROOMS[above], ROOMS[below]);
            wrong.push(format!("{from} of {above} uses {to} of {below}"));
        }
    }
    assert_eq!(wrong, NONE);
}

#[test]
fn no_type_grows_beyond_its_limit() {
    let source = source();
    let methods = source.types_by_methods().into_iter();
    assert_eq!(
        beyond(METHODS, methods.map(|(count, _, of)| (of, count))),
        NONE
    );
    let fields = source.fields.iter();
    assert_eq!(
        beyond(FIELDS, fields.map(|(of, (_, count))| (of.as_str(), *count))),
        NONE
    );
}

#[test]
fn files_of_one_folder_go_round_in_small_circles_only() {
    let circles = source().circles_of_files();
    let sizes = circles.iter().map(|(folder, files)| (*folder, files.len()));
    assert_eq!(beyond(CIRCLES, sizes), NONE);
}

#[test]
fn files_and_functions_are_short() {
    let source = source();
    let files = source.lines.iter();
    assert_eq!(
        beyond(
            FILE_LINES,
            files.map(|(file, lines)| (file.as_str(), *lines))
        ),
        NONE
    );
    let functions = source.functions.iter();
    assert_eq!(
        beyond(
            FUNCTION_LINES,
            functions.map(|f| (f.name.as_str(), f.lines))
        ),
        NONE
    );
}

/// `scripts/structure` shows what this prints.
#[test]
fn the_numbers() {
    let source = source();
    let total: usize = source.lines.values().sum();
    println!("files {}, lines {total}", source.lines.len());
    for (methods, files, of) in source.types_by_methods().into_iter().take(5) {
        println!("methods of {of}: {methods} in {files} files");
    }
    let mut fields: Vec<_> = source.fields.iter().collect();
    fields.sort_by_key(|(_, (_, count))| std::cmp::Reverse(*count));
    for (name, (file, count)) in fields.into_iter().take(5) {
        println!("fields of {name}: {count} ({file})");
    }
    for circle in source.circles_of_folders() {
        println!("folders in a circle: {}", circle.join(" "));
    }
    for (folder, circle) in source.circles_of_files() {
        println!(
            "files of {folder} in a circle: {}: {}",
            circle.len(),
            circle.join(" ")
        );
    }
    for (file, lines) in source.lines.iter().filter(|(_, lines)| **lines > 700) {
        println!("file of {lines} lines: {file}");
    }
    for function in source.functions.iter().filter(|f| f.lines > 70) {
        println!(
            "function of {} lines: {} ({})",
            function.lines, function.name, function.file
        );
    }
    for (name, count) in &source.calls {
        println!("calls of {name}: {count}");
    }
}

/// Rooms with a vocabulary of their own: values and texts, guards and rules as they are parsed, commands.
const OWN_WORDS: [&str; 4] = ["json", "guard", "rules", "cli"];

/// Rust files below a folder of `src`, with their text.
fn texts(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(texts(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

/// Those of the rooms that share their words.
fn shared_texts() -> Vec<(PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = texts(&src);
    let is_own = |path: &Path| OWN_WORDS.iter().any(|w| path.starts_with(src.join(w)));
    found.retain(|(path, _)| !is_own(path) && !path.ends_with("guard.rs"));
    assert!(found.len() > 80, "{}", found.len());
    found
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[test]
fn the_words_are_those_of_the_field() {
    // What a stranger would have to be told; docs/design.md has the terms instead.
    const RETIRED: &str = "Slot slot_of herald Herald corpse Departures departures Fallen fallen falling moot is_moot \
        unborn unborn_log heir heirs glance dress redress condemned Parties parties is_unsettled lock_settled \
        drain_all must_drain walk_anew second_walk";
    let retired: Vec<&str> = RETIRED.split_whitespace().collect();
    let mut found = Vec::new();
    for (path, text) in shared_texts() {
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        for line in code {
            let old = words(line).filter(|w| retired.contains(w));
            found.extend(old.map(|w| format!("{}: {w}", path.display())));
        }
    }
    assert_eq!(found, NONE);
}

#[test]
fn each_type_has_a_name_of_its_own() {
    let mut defined: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (path, text) in shared_texts() {
        if path.ends_with("tests.rs") {
            continue;
        }
        for line in text.lines() {
            let mut line = words(line.trim_start()).filter(|w| !w.is_empty());
            let kind =
                line.find(|w| !["pub", "crate", "super", "in", "engine", "self"].contains(w));
            if kind.is_some_and(|k| ["struct", "enum", "trait", "type"].contains(&k))
                && let Some(name) = line.next().filter(|n| n.starts_with(char::is_uppercase))
            {
                defined
                    .entry(name.to_owned())
                    .or_default()
                    .push(path.clone());
            }
        }
    }
    // What a trait demands of every implementation.
    defined.retain(|name, paths| paths.len() > 1 && name != "Error" && name != "Item");
    assert!(defined.is_empty(), "{defined:#?}");
}

#[test]
fn kinds_of_open_descriptions_are_known_in_their_own_files_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let kinds_of = src.join("engine/descriptions/kinds");
    let elsewhere =
        ["engine/admin/control.rs", "engine/versions/direct_file.rs"].map(|f| src.join(f));
    let mut kinds = 0;
    for (path, text) in texts(&src) {
        let here = text.matches("impl OpenFile for ").count();
        let most = usize::from(path.starts_with(&kinds_of) || elsewhere.contains(&path));
        assert!(
            here <= most,
            "{}: {here} kinds, and at most {most} belong here",
            path.display()
        );
        kinds += here;
        // Who has a description can ask what it does, and not what it is.
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        for line in code.filter(|_| path.starts_with(src.join("engine"))) {
            let told = ["Handle", "Any", "as_any"];
            let by_kind = words(line).find(|w| told.contains(w) || w.starts_with("downcast"));
            assert_eq!(by_kind, None, "{}: {line}", path.display());
        }
    }
    assert_eq!(
        kinds, 8,
        "reader, staged, appender, direct, directory, text, control, watch helper"
    );
}

#[test]
fn who_waits_is_woken_by_what_he_waits_for() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let state = src.join("engine/base/state.rs");
    let mut wrong = Vec::new();
    for (path, text) in texts(&src) {
        // A transaction that ends or moves elsewhere wakes nobody.
        let silent = ["txns.remove(", "txns.move_to("]
            .iter()
            .filter(|_| path != state);
        for call in ["notify_all("].iter().chain(silent) {
            if text.contains(call) {
                wrong.push(format!("{}: {call}", path.display()));
            }
        }
    }
    assert_eq!(wrong, NONE);
}

#[test]
fn what_is_said_of_one_item_stands_by_itself() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let begins = |(path, text): (PathBuf, String)| {
        let like_the_last = text
            .lines()
            .filter(|l| l.trim_start().starts_with("/// The same"))
            .count();
        (like_the_last > 0).then_some((path, like_the_last))
    };
    let found: Vec<_> = texts(&src).into_iter().filter_map(begins).collect();
    assert!(found.is_empty(), "{found:?}");
}
