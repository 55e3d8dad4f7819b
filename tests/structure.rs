//! What the structure of the source is, in numbers. Each has a goal and a limit, which is what has been reached: none gets worse.

#[path = "structure/source.rs"]
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use source::Source;

fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")))
}

/// A goal, and what is beyond it.
type Limits = (usize, &'static [(&'static str, usize)]);

/// What is beyond its goal today. A number here may only fall; what has reached its goal leaves the list.
const METHODS: Limits = (60, &[("Engine", 554)]);
const FIELDS: Limits = (
    15,
    &[
        ("Transaction", 51),
        ("State", 40),
        ("Node", 28),
        ("Engine", 27),
        ("Status", 20),
        ("Content", 19),
    ],
);
const CIRCLES: Limits = (4, &[("cli", 6), ("engine", 53), ("json", 5), ("txn", 5)]);
const FILE_LINES: Limits = (
    700,
    &[
        ("engine/append.rs", 978),
        ("engine/close.rs", 808),
        ("engine/drain.rs", 701),
        ("engine/io.rs", 811),
        ("engine/merging.rs", 852),
        ("engine/names.rs", 1412),
        ("engine/open.rs", 1474),
        ("txn/recovery.rs", 1006),
        ("txn/staging.rs", 771),
    ],
);
const FUNCTION_LINES: Limits = (
    70,
    &[
        ("start", 119),
        ("for_people", 131),
        ("Engine::append_now", 74),
        ("Engine::birth", 121),
        ("Engine::leave_stream", 84),
        ("Engine::flush", 96),
        ("Engine::prepare_once", 109),
        ("Engine::publish_unwritten", 77),
        ("Engine::write_decided", 120),
        ("Engine::start", 110),
        ("Engine::rename_merging", 84),
        ("Engine::rename_backing", 117),
        ("Engine::open_for_writing", 83),
        ("Engine::begin", 104),
        ("Engine::create_now", 137),
        ("Engine::commit", 109),
        ("Engine::publish_now", 245),
        ("Engine::wait_for_slot", 77),
        ("Adapter::init", 82),
        ("push_record", 82),
        ("plan", 114),
        ("collect", 105),
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
