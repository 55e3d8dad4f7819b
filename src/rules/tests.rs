//! A rule that silently doesn't do what its author meant costs data: a database that is staged
//! loses its locks, a checkpoint without its guard is replaced by half of one. So every mistake in
//! a file has to be an error that names its place, and for every path it can be asked which rule
//! decided.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, time::Duration};

use super::*;
use crate::guard::Guard;

const OPENED: Creation = Creation {
    exclusive: false,
    empty: false,
};
const CLAIMED: Creation = Creation {
    exclusive: true,
    empty: false,
};
const EMPTY: Creation = Creation {
    exclusive: false,
    empty: true,
};

fn parse(text: &str) -> Rules {
    Rules::parse(text, "rules.toml").unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refusal(text: &str) -> String {
    Rules::parse(text, "rules.toml")
        .expect_err("an invalid file")
        .to_string()
}

fn decide(rules: &Rules, path: &str) -> Policy {
    rules.decide(Path::new(path), OPENED)
}

#[test]
fn what_no_rule_speaks_of_is_atomic_and_unguarded() {
    let policy = decide(&Rules::builtin(), "runs/7/state.bin");
    assert_eq!(policy, Policy::default());
    assert_eq!(
        (policy.mode, policy.guard, policy.on_signal),
        (Mode::Atomic, Guard::None, OnSignal::Reject)
    );
    assert_eq!(
        (policy.on_conflict, policy.stale, policy.allow_empty),
        (OnConflict::Last, None, false)
    );
    assert_eq!(
        (policy.record, policy.lock_timeout, policy.counters.len()),
        (None, None, 0)
    );
}

#[test]
fn what_belongs_to_a_database_is_known_by_its_name() {
    let companions = [
        ("a-wal", Some("a")),
        ("train.lmdb-lock", Some("train.lmdb")),
        ("a-journal", Some("a")),
        ("x-y-shm", Some("x-y")),
        ("-wal", None),
        ("a.wal", None),
        ("wal", None),
    ];
    for (name, main) in companions {
        assert_eq!(
            companion_of(OsStr::new(name)),
            main.map(OsStr::new),
            "{name}"
        );
    }
}

#[test]
fn names_that_are_shared_while_open_are_direct() {
    let rules = Rules::builtin();
    let names = "LOCK .lock a.lck a.pid a.log a.out a.err .log a.db a.db3 a.sqlite a.sqlite3 \
        a.db-wal a.db3-shm a.sqlite-journal a.sqlite3-wal a.mdb a.duckdb 000001.wal 000002.sst \
        000003.ldb MANIFEST-000004 events.out.tfevents.17.host run-x.wandb .a.swp .a.swo a.part \
        a.partial a.incomplete a.crdownload .nfs0001 \
        LOG LOG.old LOG.old.1700000000 CURRENT";
    for name in names.split_whitespace() {
        for path in [name.to_owned(), format!("deep/er/{name}")] {
            assert_eq!(decide(&rules, &path).mode, Mode::Direct, "{path}");
        }
    }
    let names = "LOCKED clock a.logs log a.dbx db-wal part a.json MANIFEST tfevent \
        a.nfs x.LOG a.db/state a.log/x";
    for name in names.split_whitespace() {
        assert_eq!(decide(&rules, name).mode, Mode::Atomic, "{name}");
    }
}

#[test]
fn a_lock_file_is_direct_only_as_a_claim() {
    let rules = Rules::builtin();
    for (creation, mode) in [
        (OPENED, Mode::Atomic),
        (CLAIMED, Mode::Direct),
        (EMPTY, Mode::Direct),
    ] {
        assert_eq!(rules.decide(Path::new("a/Cargo.lock"), creation).mode, mode);
        assert_eq!(
            rules.decide(Path::new("a/.lock"), creation).mode,
            Mode::Direct
        );
        assert_eq!(rules.decide(Path::new("LOCK"), creation).mode, Mode::Direct);
        assert_eq!(
            rules.decide(Path::new("state.json"), creation).mode,
            Mode::Atomic
        );
    }
}

#[test]
fn names_that_promise_a_document_are_guarded() {
    let rules = Rules::builtin();
    for (name, guard) in [
        ("a.json", Guard::Json),
        ("x/a.pt", Guard::Zip),
        ("a.pth", Guard::Zip),
        ("a.ckpt", Guard::Zip),
        ("a.npz", Guard::Zip),
        ("a.zip", Guard::Zip),
        ("model.safetensors", Guard::Safetensors),
        ("a.jsonl", Guard::None),
        ("a.json.tmp", Guard::None),
        ("json", Guard::None),
        ("a.ptx", Guard::None),
    ] {
        assert_eq!(decide(&rules, name).guard, guard, "{name}");
    }
}

#[test]
fn names_and_paths_need_not_be_utf8() {
    let rules = parse("[[rule]]\nglob = \"sub/*.dat\"\nmode = \"direct\"");
    let decide = |bytes: &[u8]| rules.decide(Path::new(OsStr::from_bytes(bytes)), OPENED);
    assert_eq!(decide(b"\xFF/\xFE.json").guard, Guard::Json);
    assert_eq!(decide(b"\xFE.log").mode, Mode::Direct);
    assert_eq!(decide(b"sub/\xFE.dat").mode, Mode::Direct);
    assert_eq!(decide(b"").mode, Mode::Atomic);
    assert_eq!(
        text_stream(OsStr::from_bytes(b"\xFF.csv")),
        Some(Stream::Table)
    );
}

#[test]
fn the_first_rule_that_sets_a_key_decides_it() {
    let rules = parse(
        r#"
        [[rule]]
        glob = "runs/*/state.json"
        on_conflict = "merge"
        counters = ["/seen", "/a~1b/~0", ""]
        lock_timeout = "2m"

        [[rule]]
        glob = "state.json"
        on_conflict = "fail"
        guard = "json-strict"
        allow_empty = true

        [[rule]]
        glob = "*"
        on_signal = "commit"
        record = "close"
        stale = "remove"
        lock_timeout = "500ms"
        "#,
    );
    let policy = decide(&rules, "runs/7/state.json");
    assert_eq!(
        (policy.on_conflict, policy.guard),
        (OnConflict::Merge, Guard::JsonStrict)
    );
    assert_eq!(
        (policy.allow_empty, policy.on_signal),
        (true, OnSignal::Commit)
    );
    assert_eq!(
        (policy.record, policy.stale),
        (Some(Record::Close), Some(Stale::Remove))
    );
    assert_eq!(
        (policy.lock_timeout, policy.mode),
        (Some(Duration::from_secs(120)), Mode::Atomic)
    );
    assert_eq!(&policy.counters[..], ["/seen", "/a~1b/~0", ""]);

    let policy = decide(&rules, "runs/7/deeper/state.json");
    assert_eq!(
        (policy.on_conflict, policy.counters.len()),
        (OnConflict::Fail, 0)
    );
    assert_eq!(policy.lock_timeout, Some(Duration::from_millis(500)));
    assert_eq!(decide(&rules, "other.json").guard, Guard::Json);
}

#[test]
fn the_users_rules_override_the_built_in_ones() {
    let rules = parse(
        "[[rule]]\nglob = \"*.log\"\nmode = \"atomic\"\n\
         [[rule]]\nglob = \"/conf/**\"\nguard = \"none\"\nmode = \"direct\"",
    );
    assert_eq!(decide(&rules, "x/a.log").mode, Mode::Atomic);
    assert_eq!(decide(&rules, "x/a.out").mode, Mode::Direct);
    assert_eq!(
        (
            decide(&rules, "conf/x/a.json").guard,
            decide(&rules, "x/conf/a.json").guard
        ),
        (Guard::None, Guard::Json)
    );
    assert_eq!(decide(&rules, "conf/a").mode, Mode::Direct);
}

#[test]
fn a_glob_without_a_slash_is_for_names_and_one_with_a_slash_for_paths() {
    let direct = |glob: &str, path: &str| {
        let rules = parse(&format!("[[rule]]\nglob = '{glob}'\nmode = \"direct\""));
        decide(&rules, path).mode == Mode::Direct
    };
    assert!(
        direct("a?.bin", "x/y/ab.bin")
            && direct("{a,b}.bin", "x/b.bin")
            && direct("[ab].bin", "b.bin")
    );
    assert!(!direct("x*n", "x/y.bin"), "a name's glob sees no directory");
    assert!(direct("/a.bin", "a.bin") && !direct("/a.bin", "x/a.bin"));
    assert!(
        direct("x/*.bin", "x/a.bin")
            && !direct("x/*.bin", "x/y/a.bin")
            && !direct("x/*.bin", "y/x/a.bin")
    );
    assert!(
        direct("x/**/*.bin", "x/a.bin")
            && direct("x/**/*.bin", "x/y/z/a.bin")
            && direct("**/x/*.bin", "y/x/a.bin")
    );
    assert!(direct(r"a\*.bin", "a*.bin") && !direct(r"a\*.bin", "ab.bin"));
}

#[test]
fn an_error_names_file_line_rule_key_and_remedy() {
    let text = "# mine\n[[rule]]\nglob = \"*.a\"\n\n[[rule]]\nglob = \"*.b\"\nmode = \"atomc\"\n";
    assert_eq!(
        refusal(text),
        "rules.toml:7, rule 2, key mode: unknown value \"atomc\"; use \"atomic\" or \"direct\""
    );
    let error = Rules::parse(text, "rules.toml").expect_err("an invalid file");
    assert_eq!(
        (error.line, error.rule, error.key.as_deref()),
        (Some(7), Some(2), Some("mode"))
    );
    assert_eq!(
        refusal("[[rule]]\nglob = \"*.a\"\nmood = 1\ncolour = 2"),
        "rules.toml:3, rule 1, key mood: unknown key; the keys are glob, mode, guard, publish, \
         close_error, allow_empty, on_signal, on_conflict, counters, record, lock_timeout, stale"
    );
    assert_eq!(
        refusal("\n[[rule]]\nmode = \"direct\""),
        "rules.toml:2, rule 1, key glob: the glob is missing; say which files it is \
         for, as in glob = \"*.json\""
    );
}

#[test]
fn what_is_published_when_it_is_whole_needs_a_guard_that_says_so() {
    let rule = |glob: &str, more: &str| {
        format!("[[rule]]\nglob = \"{glob}\"\n{more}publish = \"whole\"\n")
    };
    for (glob, more) in [
        ("status", ""),
        ("runs/**", ""),
        ("*.log", ""),
        ("status.json", "guard = \"none\"\n"),
    ] {
        let said = refusal(&rule(glob, more));
        let expected = "rule 1, key publish: \"whole\" needs a guard";
        assert!(said.contains(expected), "{glob}: {said}");
    }
    for (glob, more) in [
        ("*.json", ""),
        ("runs/**/*.npy", ""),
        ("status", "guard = \"json\"\n"),
        ("{status,s}", "guard = \"json-strict\"\n"),
    ] {
        assert!(parse(&rule(glob, more)).from_file() == 1, "{glob}");
    }
    // Another rule may name it; one that is to be added to others is judged with them.
    let guard = "[[rule]]\nglob = \"s*\"\nguard = \"json\"\n";
    let rules = parse(&(rule("status", "") + guard));
    assert!(decide(&rules, "a/status").publishes_at_rest());
    assert!(Rules::parse_alone(&rule("status", ""), "the new rule").is_ok());
    // What matches besides and has none is published at its close, and `explain` says so.
    let rules = parse(&rule("{a.json,b}", ""));
    assert!(!decide(&rules, "b").publishes_at_rest());
    let said = rules.explain(Path::new("b"), OPENED);
    assert!(said.contains("without effect"), "{said}");
}

#[test]
fn values_of_the_wrong_kind_are_refused_with_a_remedy() {
    for (line, problem) in [
        (
            "guard = \"jsn\"",
            "unknown value \"jsn\"; use \"none\" or \"json\" or \"json-strict\" or \"zip\" or",
        ),
        (
            "guard = false",
            "key guard: expected a string, found boolean; use \"none\"",
        ),
        (
            "allow_empty = \"yes\"",
            "expected a boolean, found string; use true or false",
        ),
        (
            "publish = true",
            "expected a string, found boolean; use \"close\" or \"whole\"",
        ),
        ("close_error = \"no\"", "use true or false"),
        ("on_signal = \"ignore\"", "use \"reject\" or \"commit\""),
        (
            "on_conflict = \"first\"",
            "use \"last\" or \"merge\" or \"fail\"",
        ),
        (
            "record = \"line\"",
            "use \"lines\" or \"close\" or \"stream\"",
        ),
        ("stale = \"delete\"", "use \"warn\" or \"remove\""),
        (
            "counters = \"/a\"",
            "expected an array, found string; give JSON pointers",
        ),
        ("counters = [\"/a\", 1]", "expected a string, found integer"),
        (
            "counters = [\"a\"]",
            "\"a\" is not a JSON pointer: it has to begin with '/'",
        ),
        ("counters = [\"/a~2\"]", "'~' has to be written ~0"),
        ("counters = [\"/a~\"]", "'~' has to be written ~0"),
        (
            "lock_timeout = 30",
            "expected a string, found integer; give a whole number and a unit",
        ),
        ("lock_timeout = \"30\"", "\"30\" is not a duration"),
        ("lock_timeout = \"1.5s\"", "is not a duration"),
        ("lock_timeout = \"s\"", "is not a duration"),
        ("lock_timeout = \"-1s\"", "is not a duration"),
        (
            "lock_timeout = \"99999999999999999999s\"",
            "is not a duration",
        ),
        (
            "lock_timeout = \"9999999999999999999h\"",
            "is not a duration",
        ),
    ] {
        let error = refusal(&format!("[[rule]]\nglob = \"*\"\n{line}"));
        assert!(
            error.starts_with("rules.toml:3, rule 1, key ") && error.contains(problem),
            "{error}"
        );
    }
}

#[test]
fn globs_that_match_nothing_are_refused() {
    for (glob, problem) in [
        ("", "matches no file"),
        ("/", "matches no file"),
        ("a[", "is not a glob: unclosed character class"),
        ("a{b", "is not a glob"),
        ("logs/", "write \"logs/**\""),
        ("./a", "paths have no"),
        ("a/../b", "paths have no"),
        ("a//b", "paths have no"),
        ("//a", "paths have no"),
    ] {
        let error = refusal(&format!("[[rule]]\nglob = {glob:?}"));
        assert!(
            error.starts_with("rules.toml:2, rule 1, key glob: ") && error.contains(problem),
            "{error}"
        );
    }
}

#[test]
fn what_is_not_a_list_of_rules_is_refused() {
    for (text, problem) in [
        (
            "[rule]\nglob = \"*\"",
            "rules.toml:1: rule is not a list of tables; begin each rule with [[rule]]",
        ),
        (
            "\n[[rules]]\nglob = \"*\"",
            "rules.toml:2: unknown key \"rules\"; all there can be is [[rule]] and [[group]] tables",
        ),
        ("rule = [1]", "rule 1: expected a table, found integer"),
        ("[[rule]]\nglob = ", "rules.toml:2: "),
        (
            "[[rule]]\nglob = \"a\"\nglob = \"b\"",
            "rules.toml:3: duplicate key",
        ),
    ] {
        let error = refusal(text);
        assert!(error.contains(problem), "{error}");
    }
    assert_eq!(decide(&parse(""), "a.json").guard, Guard::Json);
}

#[test]
fn explain_names_the_rule_behind_every_key() {
    let rules = parse(
        "[[rule]]\nglob = \"x/**\"\non_conflict = \"merge\"\n\
         counters = [\"/n\"]\nlock_timeout = \"5s\"",
    );
    assert_eq!(
        rules.explain(Path::new("x/a.json"), OPENED),
        "\
mode = \"atomic\"              # default
guard = \"json\"               # built-in, \"*.json\"
publish = \"close\"            # default
close_error = true           # default
allow_empty = false          # default
on_signal = \"reject\"         # default
on_conflict = \"merge\"        # rules.toml:1, rule 1, \"x/**\"
counters = [\"/n\"]            # rules.toml:1, rule 1, \"x/**\"
record = unset               # default
lock_timeout = \"5s\"          # rules.toml:1, rule 1, \"x/**\"
stale = unset                # default
"
    );
    let claimed = rules.explain(Path::new("a.lock"), CLAIMED);
    assert!(
        claimed.contains("# built-in, \"*.lock\", created O_EXCL or empty"),
        "{claimed}"
    );
    assert!(
        !rules
            .explain(Path::new("a.lock"), OPENED)
            .contains("built-in")
    );
}

#[test]
fn databases_are_known_by_their_first_bytes() {
    let page = |magic: [u8; 4]| [&[0; 16][..], &magic, &[1, 0, 0, 0]].concat();
    for bytes in [
        &b"SQLite format 3\0\x10"[..],
        b"\x89HDF\r\n\x1a\n\0",
        &page([0xDE, 0xC0, 0xEF, 0xBE]),
        &page([0xBE, 0xEF, 0xC0, 0xDE]),
    ] {
        assert!(looks_like_database(bytes));
        assert!(!looks_like_database(&bytes[1..]));
    }
    for bytes in [
        &b""[..],
        b"SQLite format 3",
        b"\x89PNG\r\n\x1a\n",
        &[0; 512],
        &page([0xDE, 0xC0, 0xEF, 0xBF])[..19],
    ] {
        assert!(!looks_like_database(bytes));
    }
}

#[test]
fn text_streams_are_known_by_their_names() {
    for name in
        "a.txt a.csv a.tsv a.jsonl a.ndjson .txt stdout my-stdout.7 stderr.old xstderrx".split(' ')
    {
        assert!(text_stream(OsStr::new(name)).is_some(), "{name}");
    }
    for name in "a.json txt a.txt.gz std-out a.TXT stdou".split(' ') {
        assert_eq!(text_stream(OsStr::new(name)), None, "{name}");
    }
}

/// `cargo test --release -- --ignored --nocapture deciding`
#[test]
#[ignore = "a measurement, not a claim"]
fn deciding() {
    let rules = parse("[[rule]]\nglob = \"runs/**/state.json\"\non_conflict = \"merge\"");
    for path in ["runs/7/state.json", "a/b/weights.bin", "a/b/c.log"] {
        let start = std::time::Instant::now();
        for _ in 0..1_000_000 {
            std::hint::black_box(rules.decide(Path::new(std::hint::black_box(path)), OPENED));
        }
        println!("{path:<20} {:5.0} ns", start.elapsed().as_secs_f64() * 1e3);
    }
}

fn group_of(rules: &Rules, path: &str) -> Option<usize> {
    let policy = rules.decide(Path::new(path), OPENED);
    policy.group.map(|member| member.pattern)
}

#[test]
fn a_group_has_its_files_and_they_show_with_the_others() {
    let rules = parse(
        "[[rule]]\nglob = \"*.txt\"\nrecord = \"lines\"\n\
         [[group]]\nfiles = [\"m/{s}.h5\", \"m/{s}.txt\"]\noptional = [\"m/{s}.db\"]\ncomplete = [\"m/{s}.txt\"]\n\
         timeout = \"5s\"\non_incomplete = \"commit\"",
    );
    assert_eq!(group_of(&rules, "m/a.h5"), Some(0));
    assert_eq!(group_of(&rules, "m/a.txt"), Some(1));
    assert_eq!(group_of(&rules, "m/a.json"), None);
    assert_eq!(
        group_of(&rules, "m/a.db"),
        None,
        "direct files are no members"
    );
    let text = rules.decide(Path::new("m/a.txt"), OPENED);
    assert_eq!(text.record, Some(Record::Close));
    let claimed = rules.decide(Path::new("m/a.txt"), CLAIMED);
    assert_eq!(
        (claimed.group, claimed.record),
        (None, Some(Record::Lines)),
        "nor are claims"
    );
    let doubts = rules.doubts();
    assert!(
        doubts.len() == 1 && doubts[0].contains("rules.toml:4, group 1: \"m/{s}.db\" is direct"),
        "{doubts:?}"
    );
    let told = rules.explained(Path::new("m/a.h5"), OPENED);
    let told = told.last().unwrap();
    assert_eq!(
        (told.key.as_str(), told.value.as_str()),
        ("group", "1 (s = a)")
    );
    assert_eq!(told.why, "rules.toml:4, group 1, \"m/{s}.h5\"");
}

#[test]
fn the_readers_of_a_group_pin_generations_where_a_rule_says_so() {
    for (readers, value, pins) in [
        ("", "1 (s = a)", false),
        ("readers = \"newest\"", "1 (s = a)", false),
        ("readers = \"pin\"", "1 (s = a), readers pin", true),
    ] {
        let rules = parse(&format!("[[group]]\nfiles = [\"{{s}}.h5\"]\n{readers}"));
        let told = rules.explained(Path::new("a.h5"), OPENED);
        assert_eq!(told.last().unwrap().value, value);
        let policy = rules.decide(Path::new("a.h5"), OPENED);
        assert_eq!((rules.has_pins(), policy.pinned().is_some()), (pins, pins));
        let group = policy.group.unwrap().group;
        assert!(rules.has_group(&group) && !Rules::builtin().has_group(&group));
    }
}

#[test]
fn what_is_saved_under_a_lock_is_a_group_to_its_holder_alone() {
    let rules = parse("[[group]]\nlock = \"{d}/save.lock\"\nfiles = [\"{d}/*\"]");
    assert_eq!(group_of(&rules, "a/w"), None);
    let told = |path: &str| {
        let told = rules.explained(Path::new(path), OPENED);
        let group = told.last().unwrap();
        (group.value.clone(), group.why.clone())
    };
    assert_eq!(
        told("a/w"),
        (
            "1 (d = a)".into(),
            "rules.toml:1, group 1, \"{d}/*\": what the holder of \"{d}/save.lock\" saves".into()
        )
    );
    assert_eq!(
        told("a/save.lock"),
        (
            "none".into(),
            "rules.toml:1, group 1: its lock, which is no member".into()
        )
    );
    let locks = rules.locks_of(Path::new("a/save.lock"));
    assert_eq!(*locks[0].1, vec![("d".to_owned(), "a".into())]);
}

#[test]
fn a_group_may_be_all_that_lies_in_a_directory() {
    let rules = parse(
        "[[group]]\ndirectory = \"**/checkpoint-*\"\ncomplete = [\"trainer_state.json\", \"*/x.db\"]\nsettle = \"2s\"\n\
         [[group]]\ndirectory = \"best\"\nexisting = true\n",
    );
    let of = |path: &str| {
        let group = rules.decide(Path::new(path), Creation::default()).group?;
        Some((
            group.group.number,
            group.pattern,
            group.directory()?.into_os_string(),
        ))
    };
    let is = |path, expected: Option<(u32, usize, &str)>| {
        assert_eq!(
            of(path),
            expected.map(|(n, p, d)| (n, p, d.into())),
            "{path}"
        );
    };
    is("out/checkpoint-1/a", Some((1, 2, "out/checkpoint-1")));
    is(
        "checkpoint-1/trainer_state.json",
        Some((1, 0, "checkpoint-1")),
    );
    is(
        "checkpoint-1/s/trainer_state.json",
        Some((1, 2, "checkpoint-1")),
    );
    is("checkpoint-1/checkpoint-2/a", Some((1, 2, "checkpoint-1")));
    is("tmp-checkpoint-1/a", None);
    is("checkpoint-1", None);
    is("a/best/b/c", Some((2, 0, "a/best")));
    let directory = |path: &str| rules.group_of_directory(Path::new(path))?.directory();
    assert_eq!(
        directory("out/checkpoint-1"),
        Some("out/checkpoint-1".into())
    );
    assert_eq!(directory("best/sub"), Some("best".into()));
    assert_eq!(directory("out"), None);
    let doubts = rules.doubts();
    assert!(
        doubts.len() == 1 && doubts[0].contains("group 1: \"/*/x.db\" is direct"),
        "{doubts:?}"
    );
    let told = rules.explained(Path::new("checkpoint-1/a"), Creation::default());
    assert_eq!(
        told.last().unwrap().why,
        "rules.toml:1, group 1, \"**/checkpoint-*\": while checkpoint-1 is new, until checkpoint-1/trainer_state.json, \
         checkpoint-1/*/x.db is there and nothing was written for 2s"
    );
    let told = rules.explained(Path::new("best/a"), Creation::default());
    assert_eq!(
        told.last().unwrap().why,
        "rules.toml:5, group 2, \"best\": while best is saved, until nothing was written for 10s"
    );
}

#[test]
fn what_is_no_group_is_refused_with_its_line_and_a_remedy() {
    for (text, problem) in [
        (
            "[[group]]",
            "rules.toml:1, group 1, key files: the group has no files; say which",
        ),
        (
            "[[group]]\noptional = [\"a\"]",
            "group 1, key files: the group has no files",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\nfoo = 1",
            "rules.toml:3, group 1, key foo: unknown key; the keys of a group are files",
        ),
        (
            "[[group]]\ndirectory = \"d\"\nfiles = [\"a\"]",
            "rules.toml:3, group 1, key files: a group has files or a directory, not both; all files below a directory belong",
        ),
        (
            "[[group]]\ndirectory = [\"d\"]",
            "group 1, key directory: expected a string, found array; give a pattern",
        ),
        (
            "[[group]]\ndirectory = \"d/\"",
            "group 1, key directory: \"d/\": it names no file",
        ),
        (
            "[[group]]\ndirectory = \"d-{n}\"",
            "group 1, key directory: \"d-{n}\" has {n} in braces; each directory is a group",
        ),
        (
            "[[group]]\ndirectory = \"d\"\ncomplete = [\"{n}.json\"]",
            "rules.toml:3, group 1, key complete: \"{n}.json\" has {n} in braces",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\nsettle = \"5s\"",
            "rules.toml:3, group 1, key settle: it is for groups with a directory; say which",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\nexisting = true",
            "group 1, key existing: it is for groups with a directory",
        ),
        (
            "[[group]]\ndirectory = \"d\"\nexisting = \"yes\"",
            "group 1, key existing: expected a boolean",
        ),
        (
            "[[group]]\nfiles = \"a\"",
            "rules.toml:2, group 1, key files: expected an array",
        ),
        (
            "[[group]]\nfiles = [\"{s\"]",
            "group 1, key files: \"{s\": a brace is not closed",
        ),
        (
            "[[group]]\nfiles = [\"{s}.a\", \"b\"]",
            "group 1, key files: \"{s}.a\" has {s} in braces, and \"b\" has no name",
        ),
        (
            "[[group]]\nfiles = [\"d/a\", \"b\"]",
            "\"d/a\" is a path and \"b\" a name in any directory",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\ncomplete = [\"b\"]",
            "rules.toml:3, group 1, key complete: \"b\" is none of the group's files",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\ntimeout = 5",
            "group 1, key timeout: expected a string",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\nreaders = \"old\"",
            "rules.toml:3, group 1, key readers: unknown value \"old\"; use \"newest\" or \"pin\"",
        ),
        (
            "[[group]]\nlock = \"l\"\nfiles = [\"a\"]\ncomplete = [\"a\"]",
            "rules.toml:4, group 1, key complete: what is saved under a lock is complete when that is given back",
        ),
        (
            "[[group]]\nlock = \"l\"\nfiles = [\"a\"]\nreaders = \"pin\"",
            "rules.toml:4, group 1, key readers: readers of what is saved under a lock pin nothing",
        ),
        (
            "[[group]]\nlock = \"l\"\ndirectory = \"a\"",
            "rules.toml:2, group 1, key lock: what is saved under a lock is in files, not in a directory",
        ),
        (
            "[[group]]\nlock = \"{d}/l\"\nfiles = [\"a\"]",
            "all files of a group have the same names in braces",
        ),
        (
            "[[group]]\nfiles = [\"a\"]\non_incomplete = \"x\"",
            "use \"reject\" or \"commit\"",
        ),
        (
            "group = 1",
            "group is not a list of tables; begin each group with [[group]]",
        ),
    ] {
        let error = refusal(text);
        assert!(error.contains(problem), "{error}");
    }
}
