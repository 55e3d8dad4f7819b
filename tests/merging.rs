//! C17: programs that load, change and save a document at the same time, and know nothing of each
//! other. A plain directory keeps the last save; under a rule with `on_conflict = "merge"` no change
//! is lost where it is certain what a save builds on, and nothing is counted twice anywhere.

mod common;

use common::{Actor, Mount, assert_content, assert_errno, times};

const RULES: &str = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";
const FAIL: &str = "[[rule]]\nglob = \"*.json\"\non_conflict = \"fail\"\n";

/// Unmodified programs: what they do with the file `f`, saving with `save`.
const PROGRAM: &str = r#"
import json, os, sys, threading, tempfile, random
def load():
    with open("s.json") as f:
        return json.load(f)
def in_place(state):
    with open("s.json", "w") as f:
        json.dump(state, f)
def by_replace(state):
    t = f"s.tmp{os.getpid()}-{threading.get_ident()}"
    with open(t, "w") as f:
        json.dump(state, f)
    os.replace(t, "s.json")
def within(state):
    with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as f:
        json.dump(state, f)
        f.flush()
        os.replace(f.name, "s.json")
save = {"in place": in_place, "by replace": by_replace, "within": within}[sys.argv[1] if len(sys.argv) > 1 else SAVE]
def increment(rounds):
    for _ in range(rounds):
        state = load()
        state["n"] += 1
        save(state)
def processes(count, function, *arguments):
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                function(*arguments)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(c, 0)[1] for c in children] == [0] * count
"#;

const WAYS: [&str; 3] = ["in place", "by replace", "within"];

fn program(m: &Mount, way: &str, script: &str) {
    m.python(&format!("SAVE = {way:?}\n{PROGRAM}\n{script}"))
        .ok();
}

fn number(m: &Mount, member: &str) -> i64 {
    let text = m.read("s.json").expect("the document");
    let document: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    document[member].as_i64().expect("a number")
}

fn counter(m: &Mount, name: &str) -> u64 {
    m.status()["counters"][name].as_u64().expect("a counter")
}

#[test]
fn twenty_threads_lose_no_increment() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        program(
            &m,
            way,
            "
ts = [threading.Thread(target=increment, args=(10,)) for _ in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]",
        );
        assert_eq!(number(&m, "n"), 200, "{way}: {}", m.status()["counters"]);
        assert_eq!(counter(&m, "uncertain_bases"), 0, "{way}");
    }
}

#[test]
fn twenty_processes_lose_no_increment() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        program(&m, way, "processes(20, increment, 10)");
        assert_eq!(number(&m, "n"), 200, "{way}: {}", m.status()["counters"]);
        assert!(counter(&m, "merges") > 0, "{way}");
        assert_eq!(counter(&m, "merge_conflicts"), 0, "{way}");
        assert_eq!(counter(&m, "rejected"), 0, "{way}");
    }
}

#[test]
fn ten_processes_that_read_once_and_save_a_hundred_times_lose_nothing() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        program(
            &m,
            way,
            r#"
def often():
    state = load()
    for _ in range(100):
        state["n"] += 1
        save(state)
processes(10, often)"#,
        );
        assert_eq!(number(&m, "n"), 1000, "{way}: {}", m.status()["counters"]);
    }
}

#[test]
fn coroutines_on_one_thread_count_nothing_twice() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        program(
            &m,
            way,
            r#"
import asyncio
async def one():
    for _ in range(10):
        state = load()
        await asyncio.sleep(random.random() / 500)
        state["n"] += 1
        save(state)
async def all():
    await asyncio.gather(*[one() for _ in range(20)])
asyncio.run(all())"#,
        );
        let n = number(&m, "n");
        assert!((1..=200).contains(&n), "{way}: {n}");
    }
}

#[test]
fn pools_that_load_and_save_in_different_threads_count_nothing_twice() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        program(
            &m,
            way,
            r#"
import asyncio
from concurrent.futures import ThreadPoolExecutor
def pool():
    async def one(executor):
        loop = asyncio.get_running_loop()
        for _ in range(10):
            state = await loop.run_in_executor(executor, load)
            state["n"] += 1
            await loop.run_in_executor(executor, save, state)
    async def all():
        with ThreadPoolExecutor(5) as executor:
            await asyncio.gather(*[one(executor) for _ in range(10)])
    asyncio.run(all())
processes(2, pool)"#,
        );
        let n = number(&m, "n");
        assert!((1..=200).contains(&n), "{way}: {n}");
    }
}

#[test]
fn what_many_add_to_a_list_and_to_an_object_is_all_there() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0, "log": [], "by": {}}"#);
        program(
            &m,
            way,
            r#"
def add(me):
    for i in range(10):
        state = load()
        state["log"].append(f"{me}-{i}")
        state["by"][f"{me}-{i}"] = i
        save(state)
ts = [threading.Thread(target=add, args=(me,)) for me in range(10)]
[t.start() for t in ts]; [t.join() for t in ts]
state = load()
assert len(state["log"]) == 100 == len(set(state["log"])), state
assert len(state["by"]) == 100, state"#,
        );
    }
}

#[test]
fn the_first_save_of_many_is_merged_like_any_other() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    program(
        &m,
        "in place",
        r#"
def first():
    try:
        state = load()
    except FileNotFoundError:
        state = {"n": 0}
    state["n"] += 1
    save(state)
processes(20, first)"#,
    );
    assert_eq!(number(&m, "n"), 20);
}

#[test]
fn where_both_changed_the_same_the_last_close_wins_and_is_counted() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    m.save("s.json", r#"{"who": "nobody", "a": 0, "b": 0}"#);
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let path = m.path("s.json");
    one.cat(&path).unwrap();
    two.cat(&path).unwrap();
    one.save(&path, br#"{"who": "one", "a": 1, "b": 0}"#)
        .unwrap();
    two.save(&path, br#"{"who": "two", "a": 0, "b": 1}"#)
        .unwrap();
    let merged = br#"{"who": "two", "a": 1, "b": 1}"#;
    assert_content(m.read("s.json"), merged, "both");
    assert_eq!(counter(&m, "merge_conflicts"), 1);
    assert_eq!(m.version("s.json").unwrap(), 3);
}

#[test]
fn an_editor_whose_base_was_patched_meanwhile_keeps_the_patch() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    m.save("s.json", r#"{"n": 0, "a": 0}"#);
    program(
        &m,
        "in place",
        r#"
with open("s.json", "r+") as f:
    state = json.load(f)
    os.setxattr("s.json", "user.commitfs.json.patch", b'[{"op": "increment", "path": "/n", "value": 5}]')
    state["n"] += 1
    state["a"] = 1
    f.seek(0); json.dump(state, f); f.truncate()"#,
    );
    assert_eq!((number(&m, "n"), number(&m, "a")), (6, 1));
}

#[test]
fn a_stale_save_fails_where_the_rule_says_so() {
    need_daemon!();
    let m = mount!(Mount::options().rules(FAIL));
    m.save("s.json", r#"{"n": 0}"#);
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let path = m.path("s.json");
    one.cat(&path).unwrap();
    two.cat(&path).unwrap();
    one.save(&path, br#"{"n": 1}"#).unwrap();
    assert_errno(two.save(&path, br#"{"n": 2}"#), "ESTALE");
    assert_content(m.read("s.json"), br#"{"n": 1}"#, "the first save");
    m.await_rejected("s.json", br#"{"n": 2}"#);
    let error = two.getxattr(&path, "user.commitfs.error").unwrap();
    assert!(String::from_utf8_lossy(&error).contains("changed by others"));
    assert_eq!(m.aborts("conflict"), 1);
    two.cat(&path).unwrap();
    two.save(&path, br#"{"n": 3}"#).unwrap();
    assert_content(m.read("s.json"), br#"{"n": 3}"#, "after another look");
}

#[test]
fn a_stale_rename_fails_where_the_rule_says_so() {
    need_daemon!();
    let m = mount!(Mount::options().rules(FAIL));
    m.save("s.json", r#"{"n": 0}"#);
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let (path, new) = (m.path("s.json"), m.path("new"));
    two.cat(&path).unwrap();
    one.save(&path, br#"{"n": 1}"#).unwrap();
    two.save(&new, br#"{"n": 2}"#).unwrap();
    assert_errno(two.rename(&new, &path), "ESTALE");
    assert_content(m.read("s.json"), br#"{"n": 1}"#, "the first save");
    assert_content(m.read("new"), br#"{"n": 2}"#, "the source");
    assert_eq!(m.aborts("conflict"), 1);
}

/// `workers` shells that each add one `rounds` times the way people do it with jq: one process
/// reads the document and writes the new one aside, another renames it.
fn shells(m: &Mount, workers: usize, rounds: usize, aside: &str) {
    let add = r#"{ match($0, /[0-9]+/); print "{\"n\": " substr($0, RSTART, RLENGTH) + 1 "}" }"#;
    m.bash(&format!(
        "for w in $(seq {workers}); do
            (for i in $(seq {rounds}); do
                awk '{add}' s.json > {aside} && mv {aside} s.json || exit 1
            done) & all=\"$all $!\"
        done
        for one in $all; do wait $one || exit 1; done"
    ))
    .ok();
}

#[test]
fn who_renames_what_a_process_that_is_gone_has_written_loses_no_increment() {
    need_daemon!();
    for round in 0..times(6, 40) {
        let aside = ["tmp$w", "tmp$w.json"][round % 2];
        let workers = [2, 4, 8][round % 3];
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0}"#);
        shells(&m, workers, 10, aside);
        let counters = m.status()["counters"].clone();
        let n = number(&m, "n");
        assert_eq!(n, 10 * workers as i64, "{workers} by {aside}: {counters}");
        assert_eq!(counters["uncertain_bases"], 0);
    }
}

#[test]
fn what_is_renamed_long_after_its_author_has_gone_is_merged() {
    need_daemon!();
    for aside in ["tmp", "tmp.json", "tmp.txt", "tmp.part"] {
        let m = mount!(Mount::options().rules(RULES));
        m.save("s.json", r#"{"n": 0, "a": 0}"#);
        m.bash(&format!(
            r#"sed 's/"n": 0/"n": 1/' s.json > {aside}
            sed 's/"a": 0/"a": 1/' s.json > other && mv other s.json
            sleep 2
            mv {aside} s.json"#
        ))
        .ok();
        assert_eq!((number(&m, "n"), number(&m, "a")), (1, 1), "{aside}");
        assert_eq!(counter(&m, "merges"), 1, "{aside}");
    }
}

#[test]
fn a_save_that_another_process_of_its_shell_has_read_for_is_never_silent() {
    need_daemon!();
    // What reads and what writes are two processes, and the file system sees no more of it.
    let ways = [
        "sed 's/\"n\": 0/\"n\": 1/' s.json > ../aside; $other; cat ../aside > s.json",
        "sed 's/\"n\": 0/\"n\": 1/' s.json | tee aside | cat > ../aside; $other; mv aside s.json",
    ];
    for way in ways {
        let m = mount!(Mount::options().rules(RULES));
        let path = m.path("s.json");
        m.save("s.json", r#"{"n": 0, "a": 0}"#);
        let mut other = Actor::new();
        other.cat(&path).unwrap();
        let (before, after) = way.split_once("$other;").unwrap();
        let mut shell = m.shell("bash");
        shell.run(before);
        other.save(&path, br#"{"n": 0, "a": 1}"#).unwrap();
        shell.run(after);
        assert_eq!((number(&m, "n"), number(&m, "a")), (1, 0), "{way}");
        assert_eq!(counter(&m, "uncertain_bases"), 1, "{way}");
    }
}

#[test]
fn a_shell_that_reads_through_a_child_counts_nothing_twice() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    m.save("s.json", r#"{"n": 0}"#);
    let shell = r#"for i in 1 2 3 4 5 6 7 8 9 10; do
        x=$(sed 's/[^0-9]//g' s.json); echo "{\"n\": $((x + 1))}" > s.json; done"#;
    m.bash(&format!("for j in 1 2 3 4; do ({shell}) & done; wait"))
        .ok();
    let n = number(&m, "n");
    assert!((10..=40).contains(&n), "{n}");
}

#[test]
fn a_program_on_its_own_is_left_alone() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    m.save("s.json", r#"{"n": 0}"#);
    program(
        &m,
        "in place",
        r#"
load(); load()
save({"n": 1}); save({"n": 2}); load(); save({"n": 7}); save({"n": 3})
def elsewhere(state):
    t = threading.Thread(target=save, args=(state,)); t.start(); t.join()
elsewhere({"n": 4}); save({"n": 5}); elsewhere({"n": 1})"#,
    );
    assert_eq!(number(&m, "n"), 1);
    assert_eq!(counter(&m, "merges"), 0);
}

#[test]
fn without_a_rule_status_names_what_was_overwritten_and_the_rule_that_keeps_it() {
    need_daemon!();
    for way in WAYS {
        let mut m = mount!();
        m.save("s.json", r#"{"n": 0, "who": "nobody"}"#);
        program(&m, way, "processes(20, increment, 10)");
        let n = number(&m, "n");
        assert!((1..=200).contains(&n), "{way}: {n}");
        let overwritten = m.status()["overwritten"][0].clone();
        assert_eq!(overwritten["path"], "s.json", "{way}");
        assert!(overwritten["count"].as_u64() > Some(0), "{way}");
        let rule = overwritten["rule"].as_str().unwrap().to_owned();
        let expected =
            "[[rule]]\nglob = \"s.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";
        assert_eq!(rule, expected, "{way}");
        let shown = m.command(&["status"]).out;
        assert!(shown.contains("OVERWRITTEN s.json"), "{shown}");
        m.unmount();
        let rules = m.backing().join(".commitfs/rules.toml");
        std::fs::write(rules, rule).unwrap();
        m.remount();
        m.save("s.json", r#"{"n": 0}"#);
        program(&m, way, "processes(20, increment, 10)");
        assert_eq!(number(&m, "n"), 200, "{way}");
    }
}

#[test]
fn status_names_what_shells_overwrite_and_the_rule_that_keeps_it() {
    need_daemon!();
    for aside in ["tmp$w", "tmp$w.json", "tmp$w.part"] {
        let m = mount!();
        m.save("s.json", r#"{"n": 0}"#);
        shells(&m, 4, 10, aside);
        assert_overwritten(&m, 40, aside);
    }
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let within = r#"for i in 1 2 3 4 5 6 7 8 9 10; do
        x=$(sed 's/[^0-9]//g' s.json); echo "{\"n\": $((x + 1))}" > s.json; done"#;
    m.bash(&format!("for j in 1 2 3 4; do ({within}) & done; wait"))
        .ok();
    assert_overwritten(&m, 40, "a variable");
}

/// Every update that is missing has been overwritten by some save, and status says so.
fn assert_overwritten(m: &Mount, saves: i64, way: &str) {
    let lost = saves - number(m, "n");
    let overwritten = m.status()["overwritten"][0].clone();
    assert!(lost > 0, "{way}: the shells have not met");
    assert_eq!(overwritten["path"], "s.json", "{way}: {lost} lost");
    // One that is read before two saves loses them both.
    let count = overwritten["count"].as_i64().unwrap();
    assert!(3 * count >= lost, "{way}: {count} for {lost} lost");
    let expected = "[[rule]]\nglob = \"s.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";
    assert_eq!(overwritten["rule"], expected, "{way}");
}

#[test]
fn who_has_read_what_it_replaces_overwrites_nothing() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    shells(&m, 1, 10, "tmp$w");
    let within = r#"x=$(sed 's/[^0-9]//g' s.json); echo "{\"n\": $((x + 1))}" > s.json"#;
    m.bash(&format!(
        "{within}; {within}; mv s.json s; mv s s.json; {within}"
    ))
    .ok();
    program(&m, "within", "increment(10)");
    assert_eq!(number(&m, "n"), 23);
    assert_eq!(counter(&m, "overwritten_updates"), 0);
}

#[test]
fn what_commands_overwrite_that_have_read_nothing_themselves_is_counted() {
    need_daemon!();
    for rule in ["", RULES] {
        let m = mount!(Mount::options().rules(rule));
        let moved = m.scratch("moved");
        let moved = moved.display();
        let ways = [
            format!("mv {moved} NAME"),
            format!("cat {moved} | tee NAME > {moved}.copy"),
            format!("cp {moved} NAME"),
        ];
        for (count, way) in (1..).zip(ways) {
            let name = format!("{count}.json");
            let way = way.replace("NAME", &name);
            m.save(&name, r#"{"n": 0}"#);
            let mut shell = m.shell("bash");
            let loading = shell.run(&format!("sed 's/0/1/' {name} > {moved}"));
            assert_eq!(loading.0, 0);
            m.save(&name, r#"{"n": 0, "lost": 1}"#);
            assert_eq!(shell.run(&way).0, 0, "{way}");
            assert_content(m.read(&name), br#"{"n": 1}"#, &way);
            let counted = || counter(&m, "overwritten_updates");
            assert_eq!(counted(), count, "{way}, with the rule {rule:?}");
            // What one command has saved the next of the same shell has seen.
            assert_eq!(shell.run(&format!("echo '{{}}' > {moved}")).0, 0);
            assert_eq!(shell.run(&way).0, 0, "{way}");
            assert_eq!(counted(), count, "{way}, again");
            shell.exit(0);
        }
        let overwritten = m.status()["overwritten"].clone();
        assert_eq!(overwritten.as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn a_file_that_stays_empty_or_the_same_is_overwritten_by_nobody() {
    need_daemon!();
    let m = mount!();
    m.bash(
        r#"for w in 1 2 3 4; do
            (for i in 1 2 3 4 5; do (exec 9> side.lock; flock 9; echo >> out); done) &
        done; wait; test $(wc -l < out) = 20"#,
    )
    .ok();
    let locks = r#"
import fcntl
def locks():
    for _ in range(20):
        with open("side.lock", "w") as l:
            fcntl.flock(l, fcntl.LOCK_EX)
processes(4, locks)"#;
    program(&m, "in place", locks);
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let path = m.path("same");
    m.save("same", "a");
    one.cat(&path).unwrap();
    two.save(&path, "a").unwrap();
    one.save(&path, "b").unwrap();
    let status = m.status();
    assert_eq!(status["counters"]["overwritten_updates"], 0, "{status}");
    assert_eq!(status["overwritten"].as_array().map(Vec::len), Some(0));
    // A patch whose text is not written yet is no empty file.
    m.save("p.json", r#"{"n": 0}"#);
    one.cat(&m.path("p.json")).unwrap();
    let patch = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;
    two.setxattr(&m.path("p.json"), "user.commitfs.json.patch", patch)
        .unwrap();
    one.save(&m.path("p.json"), br#"{"n": 0}"#).unwrap();
    assert_eq!(counter(&m, "overwritten_updates"), 1);
}

/// Two who have both read a file save one after the other, without any error.
fn overtake(m: &Mount, name: &str, way: &str, [old, first, second]: [&str; 3]) {
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let path = m.path(name);
    m.save(name, old);
    one.cat(&path).unwrap();
    two.cat(&path).unwrap();
    one.save(&path, first).unwrap();
    let aside = m.path("aside");
    match way {
        "in place" => two.save(&path, second).unwrap(),
        "by replace" => {
            two.save(&aside, second).unwrap();
            two.rename(&aside, &path).unwrap();
        }
        _ => {
            two.open("f", "w", &aside).unwrap();
            two.write("f", second).unwrap();
            two.rename(&aside, &path).unwrap();
            two.close("f").unwrap();
        }
    }
}

#[test]
fn no_merge_is_proposed_for_what_is_no_document() {
    need_daemon!();
    for way in WAYS {
        let mut m = mount!();
        let lines = ["begin\n", "one\n", "two\n"];
        overtake(&m, "x.bin", way, lines);
        let overwritten = m.status()["overwritten"][0].clone();
        assert_eq!(overwritten["count"], 1, "{way}");
        let rule = overwritten["rule"].as_str().unwrap().to_owned();
        let expected = "[[rule]]\nglob = \"x.bin\"\non_conflict = \"fail\"\n";
        assert_eq!(rule, expected, "{way}");
        let shown = m.command(&["status"]).out;
        assert!(shown.contains("OVERWRITTEN x.bin"), "{shown}");
        assert!(
            shown.contains("flock") && shown.contains("ESTALE"),
            "{shown}"
        );
        m.unmount();
        std::fs::write(m.backing().join(".commitfs/rules.toml"), rule).unwrap();
        m.remount();
        let (mut one, mut two) = (Actor::new(), Actor::new());
        let path = m.path("x.bin");
        two.cat(&path).unwrap();
        one.cat(&path).unwrap();
        one.save(&path, "one").unwrap();
        assert_errno(two.save(&path, "two"), "ESTALE");
    }
}

#[test]
fn what_a_rule_could_not_merge_is_shown_as_overwritten() {
    need_daemon!();
    let rules = "[[rule]]\nglob = \"x*\"\non_conflict = \"merge\"\n";
    for way in WAYS {
        let m = mount!(Mount::options().rules(rules));
        overtake(&m, "x.bin", way, ["begin\n", "one\n", "two\n"]);
        assert_eq!(counter(&m, "unmerged"), 1, "{way}");
        assert_eq!(counter(&m, "overwritten_updates"), 1, "{way}");
        let overwritten = m.status()["overwritten"][0].clone();
        assert_eq!(overwritten["path"], "x.bin", "{way}");
        assert_eq!(overwritten["count"], 1, "{way}");
        let shown = m.command(&["status"]).out;
        assert!(shown.contains("OVERWRITTEN x.bin"), "{shown}");
        assert!(shown.contains("on_conflict = \"fail\""), "{shown}");
    }
    let m = mount!(Mount::options().rules(rules));
    m.save("x.json", r#"{"n": 0}"#);
    let mut other = Actor::new();
    let mut shell = m.shell("bash");
    shell.run("sed s/0/1/ x.json > ../aside");
    other.save(&m.path("x.json"), r#"{"n": 5}"#).unwrap();
    shell.run("cat ../aside > x.json");
    let overwritten = m.status()["overwritten"][0].clone();
    assert_eq!(overwritten["path"], "x.json");
    assert_eq!(overwritten["rule"], "", "no rule helps");
    let shown = m.command(&["status"]).out;
    assert!(shown.contains("not certain what was changed"), "{shown}");
}

#[test]
fn what_is_merged_is_not_overwritten_though_it_is_what_was_written() {
    need_daemon!();
    for way in WAYS {
        let m = mount!(Mount::options().rules(RULES));
        let documents = [r#"{"a": 0}"#, r#"{"a": 1}"#, r#"{"a": 1}"#];
        overtake(&m, "s.json", way, documents);
        assert_eq!(counter(&m, "merges"), 1, "{way}");
        assert_eq!(counter(&m, "overwritten_updates"), 0, "{way}");
    }
}

#[test]
fn no_rule_is_proposed_for_who_has_never_read_a_file() {
    need_daemon!();
    let m = mount!();
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for i in 0..3 {
        for (who, actor) in [(1, &mut one), (2, &mut two)] {
            let text = format!("{{\"w\": {who}, \"i\": {i}}}");
            actor.save(&m.path("s.json"), text).unwrap();
        }
    }
    let overwritten = m.status()["overwritten"][0].clone();
    assert!(overwritten["count"].as_u64() > Some(0));
    assert_eq!(overwritten["rule"], "", "who saves has not read");
}

#[test]
fn a_file_that_is_a_number_is_a_counter() {
    need_daemon!();
    let mut m = mount!();
    overtake(&m, "c", "in place", ["1\n", "2\n", "5\n"]);
    let rule = m.status()["overwritten"][0]["rule"].clone();
    let rule = rule.as_str().unwrap().to_owned();
    assert!(rule.contains(r#"counters = [""]"#), "{rule}");
    m.unmount();
    std::fs::write(m.backing().join(".commitfs/rules.toml"), rule).unwrap();
    m.remount();
    overtake(&m, "c", "in place", ["1\n", "2\n", "5\n"]);
    assert_content(m.read("c"), b"6\n", "both");
}

#[test]
fn a_proposed_rule_names_counters_though_those_who_overwrote_each_other_counted_alike() {
    need_daemon!();
    for by_rename in [false, true] {
        let m = mount!();
        let path = m.path("s.json");
        m.save("s.json", br#"{"n": 0}"#);
        let (mut one, mut two) = (Actor::new(), Actor::new());
        let save = |actor: &mut Actor, text: &[u8]| match by_rename {
            true => {
                actor.save(&m.path("new"), text).unwrap();
                actor.rename(&m.path("new"), &path).unwrap();
            }
            false => actor.save(&path, text).unwrap(),
        };
        one.cat(&path).unwrap();
        two.cat(&path).unwrap();
        save(&mut one, br#"{"n": 1}"#);
        save(&mut two, br#"{"n": 1}"#);
        two.cat(&path).unwrap();
        save(&mut two, br#"{"n": 2}"#);
        let overwritten = m.status()["overwritten"][0].clone();
        assert_eq!(overwritten["count"], 1);
        let rule = overwritten["rule"].as_str().unwrap();
        assert!(rule.contains(r#"counters = ["/n"]"#), "{rule}");
    }
}

#[test]
fn a_daemon_killed_among_merges_loses_no_acknowledged_save() {
    need_daemon!();
    let mut m = mount!(Mount::options().rules(RULES));
    for round in 0..times(4, 40) {
        m.save("s.json", r#"{"n": 0}"#);
        let load = format!(
            "SAVE = \"in place\"\n{PROGRAM}\n{}",
            r#"
def on():
    while True:
        state = load()
        state["n"] += 1
        try:
            save(state)
        except OSError:
            os._exit(0)
        os.write(1, b".")
try:
    processes(4, on)
except BaseException:
    pass"#
        );
        let mut child = m.live_python(&load);
        std::thread::sleep(std::time::Duration::from_millis(300 + 50 * round as u64));
        m.strike_daemon();
        let saved = child.line().len() as i64;
        child.finish();
        m.kill_daemon();
        m.remount();
        let n = number(&m, "n");
        assert!(n >= saved, "{n} of {saved}");
        // One each may have been on its way.
        assert!(n <= saved + 4, "{n} of {saved}");
    }
}
