//! C23. What the holder of a group's lock saves is published when it lets go of that, before anybody else is granted it; of a
//! holder that is killed, or fails, nothing is.

mod common;

use std::time::{Duration, Instant};

use common::{Actor, Disk, Mount, Options, Random, assert_errno, eventually, times};
use serde_json::Value;

const RULES: &str = "[[group]]\nlock = \"{d}/save.lock\"\nfiles = [\"{d}/*\"]\n";

/// Takes the lock, and gives it back.
const KINDS: [(&str, &str, &str); 3] = [
    (
        "flock",
        "l=open('d/save.lock','a'); fcntl.flock(l,fcntl.LOCK_EX)",
        "fcntl.flock(l,fcntl.LOCK_UN)",
    ),
    (
        "fcntl",
        "l=open('d/save.lock','a'); fcntl.lockf(l,fcntl.LOCK_EX)",
        "fcntl.lockf(l,fcntl.LOCK_UN)",
    ),
    (
        "O_EXCL",
        "os.close(os.open('d/save.lock',os.O_CREAT|os.O_EXCL|os.O_WRONLY))",
        "os.unlink('d/save.lock')",
    ),
];

fn locked() -> Options {
    Mount::options().rules(RULES)
}

fn with_old(m: &Mount) {
    m.mkdir("d");
    for name in ["d/w", "d/m"] {
        m.save(name, "old");
    }
}

/// What a stranger, older than all savers, finds of both.
fn seen(m: &Mount, reader: &mut Actor) -> String {
    let mut find = |name| String::from_utf8(reader.cat(&m.path(name)).unwrap()).unwrap();
    format!("{} {}", find("d/w"), find("d/m"))
}

fn groups(m: &Mount) -> Value {
    m.status()["groups"].clone()
}

#[track_caller]
fn await_count(m: &Mount, what: &str, count: u64) {
    let holds = || groups(m)[what] == count;
    eventually(Duration::from_secs(5), &format!("{count} {what}"), holds);
}

fn entries(m: &Mount) -> Vec<Value> {
    let listed = m.command(&["rejected", "list", "--json"]).ok();
    serde_json::from_str(&listed.out).unwrap()
}

/// A step of a program for each line, with what it says then.
fn steps(lines: &[(&str, &str)]) -> String {
    let mut script =
        "import fcntl,os,subprocess,sys\ndef save(n,t):\n with open(n,'w') as f: f.write(t)\n"
            .to_owned();
    for (code, says) in lines {
        script += &format!("{code}\nprint('{says}',flush=True); input()\n");
    }
    script
}

#[test]
fn what_the_holder_saves_is_published_as_it_lets_go() {
    for (kind, lock, unlock) in KINDS {
        let m = mount!(locked());
        with_old(&m);
        let mut reader = Actor::new();
        let mut saver = m.live_python(&steps(&[
            (lock, "locked"),
            ("save('d/w','new')", "one"),
            (
                "save('d/m','new'); assert open('d/w').read()=='new'",
                "both",
            ),
            (unlock, "unlocked"),
        ]));
        for (line, expected) in [
            ("locked", "old old"),
            ("one", "old old"),
            ("both", "old old"),
            ("unlocked", "new new"),
        ] {
            saver.expect(line);
            assert_eq!(seen(&m, &mut reader), expected, "{kind}: {line}");
            saver.send("");
        }
        assert_eq!(groups(&m)["published"], 1, "{kind}");
    }
}

#[test]
fn who_waits_for_the_lock_finds_all_of_it() {
    for (kind, lock, unlock) in &KINDS[..2] {
        let m = mount!(locked());
        with_old(&m);
        let mut saver = m.live_python(&steps(&[
            (lock, "locked"),
            ("save('d/w','new'); save('d/m','new')", "saved"),
            (unlock, "unlocked"),
        ]));
        saver.expect("locked");
        let mut next = m.live_python(&format!(
            "import fcntl,os\nprint('waits',flush=True)\n{lock}\nprint(open('d/w').read(),open('d/m').read(),flush=True); input()"
        ));
        next.expect("waits");
        saver.send("");
        saver.expect("saved");
        std::thread::sleep(Duration::from_millis(200));
        saver.send("");
        next.expect("new new");
        saver.expect("unlocked");
        saver.send("");
        next.send("");
        let _ = kind;
    }
}

#[test]
fn what_nobody_saves_under_the_lock_is_published_at_its_close() {
    let m = mount!(locked());
    with_old(&m);
    let mut reader = Actor::new();
    let mut other = Actor::new();
    let mut holder = m.live_python(&steps(&[
        (KINDS[0].1, "locked"),
        ("save('d/w','new')", "one"),
    ]));
    holder.expect("locked");
    other.save(&m.path("d/m"), "other").unwrap();
    assert_eq!(seen(&m, &mut reader), "old other");
    holder.send("");
    holder.expect("one");
    assert_eq!(seen(&m, &mut reader), "old other");
    holder.send("");
}

#[test]
fn a_holder_that_is_killed_or_fails_has_saved_nothing() {
    for (kind, lock, _) in KINDS {
        for end in ["os.kill(os.getpid(),9)", "os._exit(1)"] {
            let m = mount!(locked());
            with_old(&m);
            let mut reader = Actor::new();
            let script = format!(
                "import fcntl,os\n{lock}\nopen('d/w','w').write('new')\nopen('d/m','w').write('new')\n{end}"
            );
            m.python(&script);
            let decided = || groups(&m)["rejected"] == 1;
            let begun = Instant::now();
            while !decided() && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(decided(), "{kind}: {end}: {}", groups(&m));
            assert_eq!(seen(&m, &mut reader), "old old", "{kind}: {end}");
            let is_whole = |all: &[Value]| {
                let round = all.iter().find(|e| e["members"].is_array());
                round.is_some_and(|e| e["members"].as_array().unwrap().len() == 2)
            };
            eventually(Duration::from_secs(5), kind, || is_whole(&entries(&m)));
        }
    }
}

#[test]
fn a_holder_that_is_killed_and_has_much_to_close_has_not_let_go() {
    for (kind, lock) in [
        (
            "flock",
            "l=open('d/save.lock','r+'); fcntl.flock(l,fcntl.LOCK_EX)",
        ),
        (
            "fcntl",
            "l=open('d/save.lock','r+'); fcntl.lockf(l,fcntl.LOCK_EX)",
        ),
    ] {
        let m = mount!(locked());
        with_old(&m);
        m.save("d/save.lock", "");
        let mut reader = Actor::new();
        // The lock is given back by the first of its closes, long before it is known how it ends.
        let script = format!(
            "import fcntl,os\n{lock}\nwith open('d/w','w') as f: f.write('new')\n\
             more=[open('x%d'%i,'w') for i in range(300)]\nos.kill(os.getpid(),9)"
        );
        m.python(&script);
        let is_decided = || groups(&m)["rejected"] == 1 || groups(&m)["published"] == 1;
        eventually(Duration::from_secs(10), kind, is_decided);
        assert_eq!(seen(&m, &mut reader), "old old", "{kind}");
    }
}

#[test]
fn a_holder_that_ends_well_has_let_go() {
    for (kind, lock, _) in KINDS {
        let m = mount!(locked());
        with_old(&m);
        let mut reader = Actor::new();
        let script =
            format!("import fcntl,os\n{lock}\nfor n in 'wm':\n open('d/'+n,'w').write('new')\n");
        m.python(&script).ok();
        eventually(Duration::from_secs(3), kind, || {
            seen(&m, &mut reader) == "new new"
        });
    }
}

#[test]
fn a_refused_file_keeps_all_back_unless_it_is_saved_again() {
    let m = mount!(locked());
    with_old(&m);
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.open("l", "a", &m.path("d/save.lock")).unwrap();
    for again in [false, true] {
        saver.ask("flock", &[b"l"]).unwrap();
        saver.save(&m.path("d/w"), "new").unwrap();
        assert_errno(saver.save(&m.path("d/x.json"), "{\"half"), "EBADMSG");
        if again {
            saver.save(&m.path("d/x.json"), "{}").unwrap();
        }
        saver.ask("funlock", &[b"l"]).unwrap();
        let expected = if again { "new old" } else { "old old" };
        assert_eq!(seen(&m, &mut reader), expected);
    }
    assert_eq!(m.text("d/x.json").as_deref(), Some("{}"));
}

#[test]
fn children_of_the_holder_save_with_it_and_their_status_is_its_own_business() {
    let m = mount!(locked());
    with_old(&m);
    let mut reader = Actor::new();
    let mut saver = m.live_python(&steps(&[
        (KINDS[0].1, "locked"),
        (
            "subprocess.run('echo -n new > d/w; exit 3',shell=True); save('d/m','new')",
            "saved",
        ),
        (KINDS[0].2, "unlocked"),
    ]));
    for (line, expected) in [
        ("locked", "old old"),
        ("saved", "old old"),
        ("unlocked", "new new"),
    ] {
        saver.expect(line);
        assert_eq!(seen(&m, &mut reader), expected, "{line}");
        saver.send("");
    }
}

#[test]
fn shells_hold_a_lock_by_an_inherited_descriptor_or_a_file_that_names_them() {
    for (lock, unlock) in [
        ("exec 9>d/save.lock; flock 9", "flock -u 9"),
        ("exec 9>d/save.lock; flock 9", "exec 9>&-"),
        ("(set -C; echo $$ > d/save.lock)", "rm d/save.lock"),
    ] {
        let m = mount!(locked());
        with_old(&m);
        let mut reader = Actor::new();
        let script = format!(
            "{lock}\necho -n new > d/w; echo -n new > x; cp x d/m; touch saved; sleep 0.7; {unlock}; sleep 0.3"
        );
        std::thread::scope(|scope| {
            let run = scope.spawn(|| m.sh(&script).ok());
            let mut other = Actor::new();
            eventually(Duration::from_secs(5), "saved", || {
                other.stat(&m.path("saved")).is_ok()
            });
            assert_eq!(seen(&m, &mut reader), "old old", "{lock}");
            run.join().unwrap();
        });
        assert_eq!(seen(&m, &mut reader), "new new", "{lock}, {unlock}");
    }
}

#[test]
fn what_is_appended_and_renamed_under_the_lock_is_part_of_it() {
    let m = mount!(locked());
    with_old(&m);
    let mut reader = Actor::new();
    let mut saver = m.live_python(&steps(&[
        (KINDS[0].1, "locked"),
        (
            "open('d/w','a').write('+\\n'); save('d/t','new'); os.replace('d/t','d/m')",
            "saved",
        ),
        (KINDS[0].2, "unlocked"),
    ]));
    for (line, expected) in [
        ("locked", "old old"),
        ("saved", "old old"),
        ("unlocked", "old+\n new"),
    ] {
        saver.expect(line);
        assert_eq!(seen(&m, &mut reader), expected, "{line}");
        saver.send("");
    }
}

#[test]
fn what_is_closed_right_after_the_unlock_is_part_of_it() {
    for close_at_once in [true, false] {
        let m = mount!(locked());
        with_old(&m);
        let mut saver = m.live_python(&steps(&[
            (KINDS[0].1, "locked"),
            (
                "f=open('d/w','r+'); f.write('new'); f.flush(); save('d/m','new')",
                "saved",
            ),
            (
                if close_at_once {
                    "fcntl.flock(l,fcntl.LOCK_UN); f.close()"
                } else {
                    "fcntl.flock(l,fcntl.LOCK_UN)"
                },
                "unlocked",
            ),
        ]));
        saver.expect("locked");
        saver.send("");
        saver.expect("saved");
        let begun = Instant::now();
        let mut next = m.live_python(
            "import fcntl\nl=open('d/save.lock','a')\nprint('waits',flush=True)\nfcntl.flock(l,fcntl.LOCK_EX)\n\
             print(open('d/w').read(),open('d/m').read(),flush=True); input()",
        );
        next.expect("waits");
        saver.send("");
        // What is edited in place is there, also if it stays open.
        next.expect("new new");
        assert!(begun.elapsed() < Duration::from_secs(4));
        saver.expect("unlocked");
        saver.send("");
        next.send("");
    }
}

#[test]
fn a_lock_that_is_not_given_back_in_time_has_saved_nothing() {
    let rules = format!("{RULES}timeout = \"300ms\"\n");
    let m = mount!(Mount::options().rules(&rules));
    with_old(&m);
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    saver.open("l", "a", &m.path("d/save.lock")).unwrap();
    saver.ask("flock", &[b"l"]).unwrap();
    saver.save(&m.path("d/w"), "new").unwrap();
    await_count(&m, "rejected", 1);
    saver.save(&m.path("d/m"), "new").unwrap();
    saver.ask("funlock", &[b"l"]).unwrap();
    await_count(&m, "rejected", 2);
    assert_eq!(seen(&m, &mut reader), "old old");
}

#[test]
fn by_rule_what_a_failed_holder_has_saved_is_published() {
    let rules = format!("{RULES}on_incomplete = \"commit\"\n");
    let m = mount!(Mount::options().rules(&rules));
    with_old(&m);
    let mut reader = Actor::new();
    let (_, lock, _) = KINDS[0];
    m.python(&format!("import fcntl,os\n{lock}\nfor n in 'wm':\n with open('d/'+n,'w') as f: f.write('new')\nos._exit(1)"));
    eventually(Duration::from_secs(3), "published", || {
        seen(&m, &mut reader) == "new new"
    });
}

#[test]
fn of_several_locks_the_nearest_counts() {
    let rules = "[[group]]\nlock = \"*/save.lock\"\nfiles = [\"*/*\"]\n";
    let m = mount!(Mount::options().rules(rules));
    with_old(&m);
    m.mkdir("e");
    m.save("e/w", "old");
    let mut reader = Actor::new();
    let mut saver = Actor::new();
    for slot in ["d", "e"] {
        saver
            .open(slot, "a", &m.path(format!("{slot}/save.lock")))
            .unwrap();
        saver.ask("flock", &[slot.as_bytes()]).unwrap();
        saver.save(&m.path(format!("{slot}/w")), "new").unwrap();
    }
    saver.save(&m.path("d/m"), "new").unwrap();
    saver.ask("funlock", &[b"e"]).unwrap();
    assert_eq!(reader.cat(&m.path("e/w")).unwrap(), b"new");
    assert_eq!(seen(&m, &mut reader), "old old");
    saver.ask("funlock", &[b"d"]).unwrap();
    assert_eq!(seen(&m, &mut reader), "new new");
}

#[test]
fn status_tells_who_holds_the_lock_and_what_is_there_and_rejected_has_it_as_one() {
    let m = mount!(locked());
    with_old(&m);
    let mut saver = Actor::new();
    saver.open("l", "a", &m.path("d/save.lock")).unwrap();
    saver.ask("flock", &[b"l"]).unwrap();
    saver.save(&m.path("d/w"), "new").unwrap();
    saver.open("m", "w", &m.path("d/m")).unwrap();
    let told = groups(&m)["rounds"][0].clone();
    assert_eq!(told["lock"]["path"], "d/save.lock", "{told}");
    assert_eq!(told["lock"]["holder"], saver.pid(), "{told}");
    assert!(told["lock"]["let_go_ms"].is_null(), "{told}");
    let human = m.command(&["status"]).ok().out;
    let held = format!(
        ": d/m (writing), d/w; until {} lets go of d/save.lock\n",
        saver.pid()
    );
    assert!(human.contains(&held), "{human}");
    let member = |n: usize| {
        (
            told["members"][n]["path"].clone(),
            told["members"][n]["state"].clone(),
        )
    };
    assert_eq!(member(0), ("d/m".into(), "writing".into()));
    assert_eq!(member(1), ("d/w".into(), "saved".into()));
    assert_eq!(told["missing"], serde_json::json!([]));
    saver.write("m", "new").unwrap();
    saver.close("m").unwrap();
    saver.kill(9);
    await_count(&m, "rejected", 1);
    let whole = || {
        let all = entries(&m);
        let found = all.iter().find(|e| e["members"].is_array());
        found.map(|e| {
            (
                e["id"].as_str().unwrap().to_owned(),
                e["members"].as_array().unwrap().len(),
            )
        })
    };
    eventually(Duration::from_secs(5), "one entry", || {
        whole().is_some_and(|(_, n)| n == 2)
    });
    let (id, _) = whole().unwrap();
    let published = groups(&m)["published"].as_u64().unwrap();
    let mount = m.mountpoint().to_str().unwrap();
    common::commitfs(["rejected", "restore", mount, &id, "--force"]).ok();
    assert_eq!(seen(&m, &mut Actor::new()), "new new");
    assert_eq!(groups(&m)["published"], published + 1, "in one step");
}

#[test]
fn a_rule_that_names_the_lock_itself_is_odd() {
    let rules = "[[group]]\nlock = \"d/save\"\nfiles = [\"d/save\", \"d/x.db\"]\n";
    let m = mount!(Mount::options().rules(rules));
    let said = m.command(&["rules", "check"]).ok().out;
    assert!(
        said.contains("\"d/save\" is its lock, and no member"),
        "{said}"
    );
    assert!(said.contains("\"d/x.db\" is direct"), "{said}");
}

#[test]
fn a_dead_daemon_leaves_what_was_locked_as_one_entry_and_keeps_what_was_let_go() {
    need_daemon!();
    for let_go in [false, true] {
        let mut m = mount!(locked());
        with_old(&m);
        let mut saver = Actor::new();
        saver.open("l", "a", &m.path("d/save.lock")).unwrap();
        saver.ask("flock", &[b"l"]).unwrap();
        for name in ["d/w", "d/m"] {
            saver.save(&m.path(name), "new").unwrap();
        }
        if let_go {
            saver.ask("funlock", &[b"l"]).unwrap();
        }
        m.kill_daemon();
        m.remount();
        let expected = if let_go { "new" } else { "old" };
        for name in ["d/w", "d/m"] {
            assert_eq!(m.text(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(entries(&m).len(), usize::from(!let_go));
    }
}

#[test]
fn a_daemon_killed_while_it_publishes_leaves_all_of_it_or_nothing() {
    need_daemon!();
    for point in [
        "commit-journalled:1",
        "data-synced:1",
        "durable-journalled:1",
        "applied-one:1",
        "applied-all:1",
    ] {
        let mut m = mount!(locked());
        with_old(&m);
        m.unmount();
        m.set_env("COMMITFS_CRASH_AT", point);
        m.remount();
        let mut saver = Actor::new();
        saver.open("l", "a", &m.path("d/save.lock")).unwrap();
        saver.ask("flock", &[b"l"]).unwrap();
        for name in ["d/w", "d/m"] {
            let _ = saver.save(&m.path(name), "new");
        }
        let let_go = saver.ask("funlock", &[b"l"]).is_ok();
        m.kill_daemon();
        m.clear_env();
        m.remount();
        let found = (m.text("d/w").unwrap(), m.text("d/m").unwrap());
        assert_eq!(found.0, found.1, "{point}");
        assert!(!let_go || found.0 == "new", "{point}");
    }
}

#[test]
fn a_full_disk_refuses_what_was_saved_under_a_lock_as_a_whole() {
    need_root!();
    need_daemon!();
    let options = locked().on(Disk::ext4(40));
    let m = mount!(options.limit(Duration::from_secs(300)));
    m.mkdir("d");
    let mut random = Random::new();
    let (mut saver, mut filler) = (Actor::new(), Actor::new());
    saver.open("l", "a", &m.path("d/save.lock")).unwrap();
    filler.open("f", "w", &m.path("filler")).unwrap();
    let (mut failures, mut last) = (0, 1);
    for tag in 1..times(20, 200) as u64 {
        if tag == 2 {
            let _ = filler.fill("f", 100 << 20, 64 << 10, 1);
        }
        let size = 800_000 + random.below(3_000_000);
        saver.ask("flock", &[b"l"]).unwrap();
        let weights = saver.open("w", "w", &m.path("d/weights.bin"));
        let _ = saver.write("w", tag.to_be_bytes());
        let _ = saver.fill("w", size, 64 << 10, 1);
        let weights = weights.and(saver.close("w"));
        let text = format!("{{\"tag\": {tag}}}");
        let metrics = saver.save(&m.path("d/metrics.json"), &text);
        let metadata = saver.save(&m.path("d/metadata.json"), &text);
        saver.ask("funlock", &[b"l"]).unwrap();
        let is_saved = weights.and(metrics).and(metadata).is_ok();
        let weights = m.read("d/weights.bin").unwrap();
        let mut tags = vec![u64::from_be_bytes(weights[..8].try_into().unwrap())];
        for name in ["d/metrics.json", "d/metadata.json"] {
            let value: Value = serde_json::from_str(&m.text(name).unwrap()).unwrap();
            tags.push(value["tag"].as_u64().unwrap());
        }
        if is_saved {
            last = tag;
        }
        failures += u32::from(!is_saved);
        assert_eq!(tags, [last; 3], "{tag}");
    }
    assert!(failures > 0);
}

/// Ten workers save three files under one lock, twice each; one of them is killed, another ends with status 1 before it gives the
/// lock back. `lock` and `unlock` are statements, indented for the functions that they are put in.
fn with_ten_workers(m: &Mount, (lock, unlock): (&str, &str), rounds: usize) -> Vec<String> {
    let script = format!(
        "import fcntl,json,os,random,signal,sys,time
def lock():
    global l
{lock}
def unlock():
{unlock}
def read():
    t=[int.from_bytes(open('d/weights','rb').read(8),'big')]
    for n in ('metrics','metadata'): t.append(json.load(open('d/'+n+'.json'))['tag'])
    return t
def save(tag):
    lock()
    t=read() if os.path.exists('d/weights') else []
    if len(set(t))>1: os.write(1,b'mixed %r, found for %d\\n' % (t,tag))
    with open('d/weights','wb') as f: f.write(tag.to_bytes(8,'big')*2000)
    with open('d/metrics.json','w') as f: json.dump({{'tag':tag,'loss':[tag]*200}},f)
    with open('d/metadata.json','w') as f: json.dump({{'tag':tag}},f)
    if tag//10%10==7: os._exit(1)
    unlock()
for r in range({rounds}):
    pids=[]
    for i in range(10):
        pid=os.fork()
        if pid==0:
            for n in range(2): save(1+r*1000+i*10+n*100)
            os._exit(0)
        pids.append(pid)
    if r:
        time.sleep(random.random()*0.05)
        os.kill(pids[r%10],signal.SIGKILL)
    for pid in pids: os.waitpid(pid,0)
    lock()
    t=read()
    print('whole' if len(set(t))==1 else 'mixed %r at the end of %d'%(t,r),flush=True)
    unlock()
"
    );
    let found = common::python(m.mountpoint(), &script, Duration::from_secs(290)).ok();
    found.out.lines().map(str::to_owned).collect()
}

#[test]
fn ten_workers_with_a_lock_that_are_killed_and_fail_leave_no_mixture() {
    for (kind, lock, _) in &KINDS[..2] {
        let m = mount!(locked().limit(Duration::from_secs(300)));
        m.mkdir("d");
        let rounds = times(6, 500);
        let lock = format!("    {lock}");
        let found = with_ten_workers(&m, (&lock, "    l.close()"), rounds);
        assert_eq!(found, vec!["whole"; rounds], "{kind}");
    }
}

#[test]
fn ten_workers_with_a_lock_file_that_are_killed_and_fail_leave_no_mixture() {
    // What a worker leaves behind that is killed or fails is removed by rule.
    let rules = format!("[[rule]]\nglob = \"save.lock\"\nstale = \"remove\"\n{RULES}");
    let m = mount!(
        Mount::options()
            .rules(&rules)
            .limit(Duration::from_secs(300))
    );
    m.mkdir("d");
    let rounds = times(3, 200);
    let lock = "    while True:
        try: return os.close(os.open('d/save.lock',os.O_CREAT|os.O_EXCL|os.O_WRONLY))
        except FileExistsError: time.sleep(0.005)";
    let found = with_ten_workers(&m, (lock, "    os.unlink('d/save.lock')"), rounds);
    assert_eq!(found, vec!["whole"; rounds]);
}
