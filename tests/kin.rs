//! C1 and C17 among parents, children and threads: who sees what is staged under a name, and what
//! the saves of those build on who are related to each other.

mod common;

use common::{Actor, Mount, assert_content, times};

const MERGE: &str =
    "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\ncounters = [\"/n\", \"/version\"]\n";
const FAIL: &str = "[[rule]]\nglob = \"s.json\"\non_conflict = \"fail\"\n";

/// What processes of every kind find under a name that the main thread has half written.
const LOOKS: &str = r#"
import multiprocessing as mp, os, subprocess, sys, threading

def look(name):
    try:
        return open(name).read()
    except FileNotFoundError:
        return "nothing"

CODE = "import sys\ntry: print(open(sys.argv[1]).read(), end='')\nexcept FileNotFoundError: print('nothing', end='')"

def by_exec(name):
    return subprocess.check_output([sys.executable, "-c", CODE, name], text=True)

def by_shell(name):
    return subprocess.check_output(["sh", "-c", "(cat $0 2>&- || printf nothing) | cat", name], text=True)

def by_fork(name):
    r, w = os.pipe()
    if not os.fork():
        os.write(w, look(name).encode())
        os._exit(0)
    os.close(w)
    found = os.read(r, 99).decode()
    os.wait()
    return found

def by_thread(looks, name):
    found = []
    thread = threading.Thread(target=lambda: found.append(looks(name)))
    thread.start()
    thread.join()
    return found[0]

def by_pool(kind, name):
    with mp.get_context(kind).Pool(1) as pool:
        return pool.apply(look, (name,))

def expect(who, found, wanted):
    assert found == wanted, f"{who} sees {found!r}, not {wanted!r}"

if __name__ == "__main__":
    older = {kind: mp.get_context(kind).Pool(1) for kind in ["fork", "spawn", "forkserver"]}
    for pool in older.values():
        pool.apply(look, ("missing",))
    for name, committed, process in [("s.json", '"old"', '"old"'), ("new.json", "nothing", "nothing"), ("new.bin", "nothing", '"ha')]:
        if name == "s.json":
            with open(name, "w") as f:
                f.write(committed)
        with open(name, "w") as f:
            f.write('"ha')
            f.flush()
            for kind, pool in older.items():
                expect(f"{name}: an older child ({kind})", pool.apply(look, (name,)), committed)
            expect(f"{name}: the thread", look(name), '"ha')
            expect(f"{name}: another thread", by_thread(look, name), process)
            # It holds no descriptor, and whoever opened the file has not started it.
            expect(f"{name}: another thread's command", by_thread(by_exec, name), process)
            expect(f"{name}: a command", by_exec(name), '"ha')
            expect(f"{name}: a pipeline", by_shell(name), '"ha')
            expect(f"{name}: a forked child", by_fork(name), '"ha')
            expect(f"{name}: another thread's forked child has it open", by_thread(by_fork, name), '"ha')
            for kind in older:
                expect(f"{name}: a child started since ({kind})", by_pool(kind, name), '"ha')
            f.write('lf"')
        for kind, pool in older.items():
            expect(f"{name}: an older child ({kind}) afterwards", pool.apply(look, (name,)), '"half"')
        expect(f"{name}: another thread afterwards", by_thread(look, name), '"half"')
    for pool in older.values():
        pool.terminate()
        pool.join()
"#;

#[test]
fn what_is_staged_is_seen_by_who_opened_it_or_was_started_since_and_not_by_older_kin() {
    need_daemon!();
    let m = mount!();
    let program = m.scratch("looks.py");
    std::fs::write(&program, LOOKS).unwrap();
    m.sh(&format!("python3 {}", program.display())).ok();
}

#[test]
fn a_child_that_any_thread_has_forked_finds_what_it_has_open() {
    need_daemon!();
    let m = mount!();
    let path = m.path("state");
    m.save("state", "before");
    let mut writer = Actor::new();
    let mut other = writer.thread();
    let mut older = other.fork();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "half").unwrap();
    let mut child = other.fork();
    assert_content(child.cat(&path).ok(), b"half", "a child that has it open");
    let mut grandchild = child.fork();
    assert_content(
        grandchild.cat(&path).ok(),
        b"half",
        "one that this has forked",
    );
    child.close("f").unwrap();
    assert_content(other.cat(&path).ok(), b"before", "another thread");
    assert_content(older.cat(&path).ok(), b"before", "an older child");
    let mut later = other.fork();
    later.close("f").unwrap();
    let mut without = later.fork();
    assert_content(without.cat(&path).ok(), b"before", "a child without it");
}

#[test]
fn two_threads_that_share_an_empty_file_both_see_what_is_written_there() {
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let m = mount!();
    let path = m.path("state");
    m.save("state", "");
    let mut first = Actor::new();
    let (mut second, mut third) = (first.thread(), first.thread());
    first.open("f", "rw-create", &path).unwrap();
    second.open("g", "rw-create", &path).unwrap();
    // A text, and no other process has it open: it is staged.
    second.write("g", "text").unwrap();
    for closed in [false, true] {
        if closed {
            second.close("g").unwrap();
        }
        assert_content(first.cat(&path).ok(), b"text", "who has opened it first");
        assert_content(second.cat(&path).ok(), b"text", "who has written it");
        assert_content(third.cat(&path).ok(), b"", "another thread");
        assert_content(m.read("state"), b"", "a stranger");
    }
    first.close("f").unwrap();
    assert_content(third.cat(&path).ok(), b"text", "after the last close");
}

#[test]
fn a_page_that_a_trainer_has_started_first_never_reads_half_a_file() {
    need_daemon!();
    let m = mount!();
    m.python(
        r#"
import json, subprocess, sys
doc = {"step": 0, "history": [0.5] * 20000}
def save():
    with open("progress.json", "w") as f:
        json.dump(doc, f)
save()
page = "import json\nfor _ in range(100): json.load(open('progress.json'))"
page = subprocess.Popen([sys.executable, "-c", page])
while page.poll() is None:
    save()
assert page.returncode == 0"#,
    )
    .ok();
}

#[test]
fn a_directory_lists_what_is_staged_for_those_who_see_it() {
    need_daemon!();
    let m = mount!();
    m.python(
        r#"
import os, subprocess, sys
r, w = os.pipe()
r2, w2 = os.pipe()
older = os.fork()
if not older:
    os.read(r, 1)
    os.write(w2, b"x" if "new.txt.bin" in os.listdir(".") else b".")
    os._exit(0)
with open("new.txt.bin", "w") as f:
    f.write("x")
    f.flush()
    os.write(w, b".")
    assert os.read(r2, 1) == b".", "an older child lists it"
    assert "new.txt.bin" in subprocess.check_output(["ls"], text=True)
    assert "new.txt.bin" in os.listdir(".")
os.waitpid(older, 0)"#,
    )
    .ok();
}

#[test]
fn whoever_has_the_number_of_a_process_that_is_gone_is_another() {
    need_daemon!();
    if !common::is_root() {
        // To choose a process id takes a capability.
        return;
    }
    let m = mount!();
    m.python(
        r#"
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
def fork_as(pid):
    "clone3 with set_tid: a process with this number"
    tids = (ctypes.c_int32 * 1)(pid)
    args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tids), 1, 0)
    got = libc.syscall(435, args, ctypes.sizeof(args))
    assert got >= 0, os.strerror(ctypes.get_errno())
    return got
def save(text):
    with open("s.json", "w") as f: f.write(text)
for closes in [False, True]:
    save('"old"')
    go, wait = os.pipe()
    opener = os.fork()
    if not opener:
        f = os.open("s.json", os.O_WRONLY | os.O_TRUNC)
        os.write(f, b'"ha')
        if not os.fork():
            # It holds the descriptor on.
            os.close(wait)
            os.read(go, 1)
            os._exit(0)
        if closes:
            os.close(f)
        os._exit(0)
    assert os.waitpid(opener, 0)[1] == 0
    # Numbers are not chosen as a rule: within 10 ms they tell who came first.
    time.sleep(.03)
    other = fork_as(opener)
    if not other:
        seen = os.read(os.open("s.json", os.O_RDONLY), 99)
        os._exit(0 if seen == b'"old"' else 1)
    assert os.waitpid(other, 0) == (opener, 0), "it sees what its predecessor has staged"
    os.close(wait)
    os.close(go)"#,
    )
    .ok();
}

fn number(m: &Mount, name: &str, member: &str) -> i64 {
    let text = m.read(name).expect("the document");
    let document: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    document[member].as_i64().expect("a number")
}

fn counter(m: &Mount, name: &str) -> i64 {
    m.status()["counters"][name].as_i64().expect("a counter")
}

#[test]
fn a_parent_and_its_children_that_load_and_save_count_exactly() {
    need_daemon!();
    for round in 0..times(2, 20) {
        let m = mount!(Mount::options().rules(MERGE));
        m.save("s.json", r#"{"n": 0}"#);
        // Forked, and by execve.
        m.python(&format!(
            r#"
import json, os, subprocess, sys
CODE = """
import json
for _ in range(50):
    with open("s.json") as f: x = json.load(f)
    x["n"] += 1
    with open("s.json", "w") as f: json.dump(x, f)
"""
if {round} % 2:
    children = [subprocess.Popen([sys.executable, "-c", CODE]) for _ in range(4)]
    exec(CODE)
    assert [c.wait() for c in children] == [0] * 4
else:
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            exec(CODE)
            os._exit(0)
        children.append(child)
    exec(CODE)
    assert [os.waitpid(c, 0)[1] for c in children] == [0] * 4"#
        ))
        .ok();
        assert_eq!(number(&m, "s.json", "n"), 250, "{}", m.status()["counters"]);
        assert_eq!(counter(&m, "uncertain_bases"), 0);
        assert_eq!(counter(&m, "overwritten_updates"), 0);
    }
}

#[test]
fn a_parent_that_keeps_its_state_loses_nothing_of_what_its_children_save() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"n": 0}"#);
    m.python(
        r#"
import json, os
def load():
    with open("s.json") as f: return json.load(f)
def save(x):
    with open("s.json", "w") as f: json.dump(x, f)
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        for _ in range(30):
            x = load(); x["n"] += 1; save(x)
        os._exit(0)
    children.append(child)
x = load()
for _ in range(60):
    x["n"] += 1
    save(x)
for child in children:
    assert os.waitpid(child, 0)[1] == 0"#,
    )
    .ok();
    assert_eq!(number(&m, "s.json", "n"), 150, "{}", m.status()["counters"]);
}

#[test]
fn a_forked_child_saves_on_what_its_parent_had_read() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"n": 0}"#);
    m.python(
        r#"
import json, os
def load():
    with open("s.json") as f: return json.load(f)
def save(x):
    with open("s.json", "w") as f: json.dump(x, f)
save(load())
x = load()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        for _ in range(10):
            x["n"] += 1
            save(x)
        os._exit(0)
    children.append(child)
for _ in range(10):
    y = load(); y["n"] += 1; save(y)
for child in children:
    assert os.waitpid(child, 0)[1] == 0"#,
    )
    .ok();
    assert_eq!(number(&m, "s.json", "n"), 60, "{}", m.status()["counters"]);
    assert_eq!(counter(&m, "uncertain_bases"), 0);
}

#[test]
fn what_was_read_while_it_was_only_staged_is_no_base() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"n": 0}"#);
    // The child has the parent's descriptor, and sees what that stages; then a third one saves.
    m.python(
        r#"
import json, os, subprocess
def load():
    with open("s.json") as f: return json.load(f)
x = load()
f = open("s.json", "w")
f.write('{"n": 1}'); f.flush()
r, w = os.pipe()
child = os.fork()
if not child:
    x = load()
    assert x == {"n": 1}, x
    f.close()
    os.read(r, 1)
    x["n"] += 1
    with open("s.json", "w") as f: json.dump(x, f)
    os._exit(0)
f.close()
os.write(w, b".")
assert os.waitpid(child, 0)[1] == 0"#,
    )
    .ok();
    assert_eq!(number(&m, "s.json", "n"), 2, "{}", m.status()["counters"]);
    assert_eq!(counter(&m, "merges"), 0);
    assert_eq!(counter(&m, "uncertain_bases"), 1);
}

#[test]
fn of_threads_that_save_by_temporary_file_and_rename_one_a_round_goes_through() {
    need_daemon!();
    let m = mount!(Mount::options().rules(FAIL));
    let saved = m
        .python(
            r#"
import json, os, threading
json.dump({"n": 0}, open("s.json", "w"))
barrier = threading.Barrier(4)
saved = [0] * 5
def work(me):
    for round in range(5):
        with open("s.json") as f: x = json.load(f)
        x["n"] += 1
        barrier.wait()
        t = f"s.tmp{me}"
        with open(t, "w") as f: json.dump(x, f)
        for again in range(2):
            # A second try without another look is no better than the first.
            try:
                os.replace(t, "s.json")
                saved[round] += 1
                break
            except OSError:
                pass
        barrier.wait()
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(saved)"#,
        )
        .ok();
    assert_eq!(saved.out.trim(), "[1, 1, 1, 1, 1]");
    assert_eq!(number(&m, "s.json", "n"), 5);
}

#[test]
fn a_thread_whose_save_was_refused_has_to_read_before_the_next() {
    need_daemon!();
    let m = mount!(Mount::options().rules(FAIL));
    m.python(
        r#"
import os
from concurrent.futures import ThreadPoolExecutor
def load():
    with open("s.json") as f: return f.read()
def save(text):
    t = "s.tmp" + text
    with open(t, "w") as f: f.write(text)
    try:
        os.replace(t, "s.json")
        return True
    except OSError:
        return False
with open("s.json", "w") as f: f.write("0")
one, two = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
ask = lambda who, *what: who.submit(*what).result()
ask(one, load)
assert ask(one, save, "1")
ask(two, load)
assert ask(two, save, "2")
assert not ask(one, save, "3"), "it has not seen 2"
ask(two, load)
assert not ask(one, save, "4"), "the other's look is none of its own"
ask(one, load)
assert ask(one, save, "5")"#,
    )
    .ok();
}

#[test]
fn threads_that_read_again_to_compare_lose_nothing() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"version": 0}"#);
    m.python(
        r#"
import json, os, threading
def load():
    with open("s.json") as f: return json.load(f)
def work(me):
    for _ in range(20):
        while True:
            x = load()
            v = x["version"]
            x["version"] += 1
            if load()["version"] == v:
                break
        t = f"s.tmp{me}"
        with open(t, "w") as f: json.dump(x, f)
        os.replace(t, "s.json")
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]"#,
    )
    .ok();
    let version = number(&m, "s.json", "version");
    assert_eq!(version, 160, "{}", m.status()["counters"]);
}

/// Stages that each load, wait, and save their own entry, all on one thread.
const COROUTINES: &str = r#"
import asyncio, json
with open("s.json", "w") as f: json.dump({"version": 0, "stages": {f"s{i}": 0 for i in range(12)}}, f)
async def stage(i):
    for n in range(8):
        with open("s.json") as f: x = json.load(f)
        await asyncio.sleep(.001)
        x["version"] += 1
        x["stages"][f"s{i}"] = n + 1
        with open("s.json", "w") as f: json.dump(x, f)
async def main():
    await asyncio.gather(*[stage(i) for i in range(12)])
asyncio.run(main())"#;

#[test]
fn what_coroutines_that_overlap_take_back_is_counted() {
    need_daemon!();
    for rule in ["", MERGE] {
        let m = mount!(Mount::options().rules(rule));
        m.python(COROUTINES).ok();
        let lost = 96 - number(&m, "s.json", "version");
        assert!(lost > 0, "they have not met");
        let status = m.status();
        let counted = status["counters"]["overwritten_updates"].as_i64().unwrap();
        assert!(counted >= lost, "{counted} of {lost}, with {rule:?}");
        let overwritten = status["overwritten"][0].clone();
        assert_eq!(overwritten["path"], "s.json");
        assert_eq!(overwritten["rule"], "", "no rule would have helped");
    }
}

#[test]
fn a_program_alone_overwrites_nobodys_update() {
    need_daemon!();
    let m = mount!();
    m.python(
        r#"
import json, os, subprocess, threading
from concurrent.futures import ThreadPoolExecutor
def save(p, text):
    with open(p, "w") as f: f.write(text)
for i in range(5):
    save("truncated", "x" * 100 + str(i))
    os.truncate("truncated", 5)
    save("by-thread", "x" * 100 + str(i))
    t = threading.Thread(target=save, args=("by-thread", f"t{i}")); t.start(); t.join()
    save("by-child", "x" * 100 + str(i))
    subprocess.run(["sh", "-c", f"echo child{i} > by-child"], check=True)
# As zarr does: what one thread has read another saves, and the first one goes on.
pool = ThreadPoolExecutor(4)
def load(p):
    with open(p) as f: return json.load(f)
save("pool.json", '{"n": 0, "names": []}')
for i in range(40):
    x = pool.submit(load, "pool.json").result()
    x["n"] += 1
    x["names"].append(i)
    pool.submit(save, "pool.json", json.dumps(x)).result()
# An object that enters and leaves, and a program that looks twice.
save("state.json", '{"state": "idle", "step": 0}')
for i in range(20):
    load("state.json")
    x = load("state.json")
    x["state"] = ["busy", "idle"][i % 2]
    x["step"] += 1
    save("state.json", json.dumps(x))"#,
    )
    .ok();
    let status = m.status();
    assert_eq!(status["overwritten"], serde_json::json!([]));
    assert_eq!(status["counters"]["overwritten_updates"], 0);
}

#[test]
fn what_the_child_of_a_program_saves_that_lives_is_an_update() {
    need_daemon!();
    let m = mount!();
    m.python(
        r#"
import subprocess
def save(text):
    with open("s.txt", "w") as f: f.write(text)
save("one")
child = subprocess.Popen(["sh", "-c", "echo two > s.txt; echo; read wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
save("three")
child.communicate()"#,
    )
    .ok();
    assert_eq!(counter(&m, "overwritten_updates"), 1);
}

#[test]
fn threads_that_overtake_each_other_are_counted() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0, "by": {}}"#);
    m.python(
        r#"
import json, threading
def load():
    with open("s.json") as f: return json.load(f)
barrier = threading.Barrier(4)
def work(me):
    for i in range(5):
        x = load()
        barrier.wait()
        x["n"] += 1
        x["by"][f"{me}-{i}"] = 1
        with open("s.json", "w") as f: json.dump(x, f)
        barrier.wait()
threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]"#,
    )
    .ok();
    let lost = 20 - number(&m, "s.json", "n");
    assert_eq!(lost, 15);
    assert_eq!(counter(&m, "overwritten_updates"), lost);
}

#[test]
fn no_rule_is_proposed_for_savers_that_have_not_read_and_for_temporary_names() {
    need_daemon!();
    let m = mount!();
    m.python(
        r#"
import json, os
children = []
for me in range(3):
    child = os.fork()
    if not child:
        for n in range(20):
            with open("snapshot.json", "w") as f: json.dump({"worker": me, "step": n}, f)
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
def load(p):
    with open(p) as f: return json.load(f)
def save(p, x):
    with open(p, "w") as f: json.dump(x, f)
save("s.json.tmp", {"n": 0})
load("s.json.tmp")
if not os.fork():
    x = load("s.json.tmp"); save("s.json.tmp", {"n": 7})
    os._exit(0)
os.wait()
save("s.json.tmp", {"n": 1})"#,
    )
    .ok();
    let overwritten = m.status()["overwritten"].clone();
    let overwritten = overwritten.as_array().unwrap();
    assert_eq!(overwritten.len(), 2, "{overwritten:?}");
    for one in overwritten {
        assert_eq!(one["rule"], "", "{one}");
    }
}

#[test]
fn lists_that_many_enter_leave_and_move_in_keep_what_is_in_them() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"active": [], "recent": ["old"]}"#);
    m.python(
        r#"
import json, os, time
def change(f):
    with open("s.json") as i: s = json.load(i)
    f(s)
    with open("s.json", "w") as o: json.dump(s, o)
def job(x):
    change(lambda s: s["active"].append(x))
    time.sleep(.02)
    def done(s):
        s["active"].remove(x)
        s["recent"].insert(0, x)
    change(done)
children = []
for i in range(10):
    child = os.fork()
    if not child:
        job(f"x{i}")
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
with open("s.json") as i: s = json.load(i)
assert s["active"] == [], s
assert sorted(s["recent"]) == sorted(["old"] + [f"x{i}" for i in range(10)]), s
assert s["recent"][-1] == "old", s"#,
    )
    .ok();
    assert_eq!(counter(&m, "merge_conflicts"), 0);
}

#[test]
fn who_polls_and_then_saves_is_merged() {
    need_daemon!();
    let m = mount!(Mount::options().rules(MERGE));
    m.save("s.json", r#"{"n": 0, "pending": [], "done": []}"#);
    m.python(
        r#"
import json, os
def load():
    with open("s.json") as f: return json.load(f)
def save(x):
    with open("s.json", "w") as f: json.dump(x, f)
children = []
for me in range(4):
    child = os.fork()
    if not child:
        done = 0
        while done < 10:
            x = load()
            if x["n"] % 2 == 0 or done == 9:
                x["n"] += 1
                x["done"].append(f"{me}-{done}")
                save(x)
                done += 1
            else:
                load(); load()
                x = load()
                x["n"] += 1
                x["done"].append(f"{me}-{done}")
                save(x)
                done += 1
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
x = load()
assert x["n"] == 40 == len(set(x["done"])), x"#,
    )
    .ok();
    assert_eq!(counter(&m, "uncertain_bases"), 0);
}
