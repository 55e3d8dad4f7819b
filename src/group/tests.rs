use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::types::{Dentry, HandleId, NodeId, TxnId};

fn group(files: &[&str], optional: &[&str], complete: &[usize]) -> Arc<Group> {
    let patterns = files.iter().chain(optional);
    Arc::new(Group {
        number: 1,
        line: 1,
        lock: None,
        patterns: patterns.map(|p| Pattern::parse(p).unwrap()).collect(),
        needed: files.len(),
        complete: complete.to_vec(),
        timeout: Duration::from_secs(60),
        on_incomplete: OnIncomplete::Reject,
        readers: Readers::Newest,
        directory: None,
    })
}

fn bound(pattern: &str, path: &str) -> Option<Vec<String>> {
    let found = Pattern::parse(pattern).unwrap().find(Path::new(path))?;
    let told = found
        .iter()
        .map(|(name, text)| format!("{name}={}", text.to_string_lossy()));
    Some(told.collect())
}

#[test]
fn a_pattern_binds_what_its_names_stand_for() {
    let is = |pattern, path, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        assert_eq!(bound(pattern, path), Some(names), "{pattern} {path}");
    };
    is(
        "models/{s}.weights.h5",
        "models/AAPL.weights.h5",
        &["s=AAPL"],
    );
    is(
        "/models/{s}_{epoch}.h5",
        "models/AAPL_7.h5",
        &["epoch=7", "s=AAPL"],
    );
    is("{s}/{s}.npz", "a/a.npz", &["s=a"]);
    is("{s}_x.json", "d/e/a_x.json", &["s=a", "/=d/e"]);
    is("*/weights.bin", "run1/weights.bin", &[]);
    is("**/w?.bin", "w1.bin", &[]);
    is("**/w?.bin", "a/b/w1.bin", &[]);
    is("a/**", "a/b/c", &[]);
    is("a\\*\\{b", "a*{b", &["/="]);
    is("{s}.näh", "ü.näh", &["s=ü", "/="]);
}

#[test]
fn a_pattern_matches_nothing_else() {
    for (pattern, path) in [
        ("models/{s}.h5", "models/.h5"),
        ("models/{s}.h5", "models/a/b.h5"),
        ("models/{s}.h5", "x/models/a.h5"),
        ("{s}/{s}.npz", "a/b.npz"),
        ("*/w.bin", "w.bin"),
        ("a/**", "a"),
        ("a/?", "a/bc"),
    ] {
        assert_eq!(bound(pattern, path), None, "{pattern} {path}");
    }
}

#[test]
fn a_path_that_would_take_for_ever_matches_nothing() {
    let path = "a".repeat(255);
    assert_eq!(bound("*a*a*a*a*a*a*a*b", &path), None);
}

#[test]
fn what_is_no_pattern_is_refused_with_a_remedy() {
    for text in [
        "", "/", "a/", "a//b", "../a", "{s", "{}", "{a b}", "[ab]", "a\\",
    ] {
        let (problem, remedy) = Pattern::parse(text).unwrap_err();
        assert!(
            problem.contains(&format!("{text:?}")) && !remedy.is_empty(),
            "{text}"
        );
    }
}

/// Rounds, and the clock that they are told.
struct Bench {
    rounds: Rounds,
    group: Arc<Group>,
    now: Instant,
    last: u64,
}

impl Bench {
    fn new(group: Arc<Group>) -> Bench {
        Bench {
            rounds: Rounds::default(),
            group,
            now: Instant::now(),
            last: 100,
        }
    }

    fn dentry(path: &str) -> Dentry {
        Dentry {
            dir: NodeId(1),
            name: path.into(),
        }
    }

    /// Process `pid` opens a file; those from ten times its number on descend from it.
    fn open(&mut self, pid: u32, path: &str, txn: u64) -> TxnId {
        let membership = self.group.find(Path::new(path)).expect(path);
        let dentry = Bench::dentry(path);
        let entering = Entering {
            membership: &membership,
            dentry: &dentry,
            txn: TxnId(txn),
            pid,
            place: None,
            lock: None,
            is_young: false,
            now: self.now,
        };
        let last = &mut self.last;
        let number = || {
            *last += 1;
            TxnId(*last)
        };
        let id = self
            .rounds
            .enter(&entering, |pid, of| pid / 10 == of, number);
        let round = self.rounds.get_mut(id).unwrap();
        if !round.has_saver(pid) {
            round.savers.push(Saver {
                pid,
                command: "saver".into(),
                process: None,
                ended: None,
                is_ending: false,
                by_status: true,
            });
        }
        id
    }

    fn save(&mut self, id: TxnId, path: &str, txn: u64) -> Option<(TxnId, u64)> {
        let round = self.rounds.get_mut(id).unwrap();
        round.save(&Bench::dentry(path), TxnId(txn), 100, self.now)
    }

    fn saved(&mut self, pid: u32, path: &str, txn: u64) -> TxnId {
        let id = self.open(pid, path, txn);
        self.save(id, path, txn);
        id
    }

    fn end(&mut self, id: TxnId, pid: u32, end: End) {
        let savers = &mut self.rounds.get_mut(id).unwrap().savers;
        savers.iter_mut().find(|s| s.pid == pid).unwrap().ended = Some(end);
    }

    fn verdict(&self, id: TxnId) -> Option<Verdict> {
        self.rounds.get(id).unwrap().verdict(self.now)
    }
}

const PUBLISHED: Option<Verdict> = Some(Verdict::Publish { incomplete: None });

fn pair() -> Bench {
    Bench::new(group(&["{s}.w", "{s}.m"], &["{s}.o"], &[]))
}

#[test]
fn a_round_is_complete_once_each_member_is_saved_and_none_is_written() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    assert_eq!(b.verdict(id), None);
    assert_eq!(b.open(1, "a.o", 2), id);
    assert_eq!(b.saved(1, "a.m", 3), id);
    assert_eq!(b.verdict(id), None, "one is being written");
    b.save(id, "a.o", 2);
    assert_eq!(b.verdict(id), PUBLISHED);
    let round = b.rounds.end(id).unwrap();
    assert_eq!(round.saved().collect::<Vec<_>>(), [1, 3, 2].map(TxnId));
    assert_eq!(round.bytes(), 300);
    assert!(b.rounds.is_empty());
}

#[test]
fn rounds_of_different_savers_and_names_stay_apart() {
    let mut b = pair();
    let one = b.saved(1, "a.w", 1);
    assert_ne!(b.saved(2, "a.w", 2), one, "another process");
    assert_ne!(b.saved(1, "b.w", 3), one, "another name");
    assert_eq!(b.saved(10, "a.m", 4), one, "a process that it has started");
    assert_eq!(b.verdict(one), PUBLISHED);
}

#[test]
fn who_completes_by_some_files_needs_no_others() {
    let mut b = Bench::new(group(&["{s}.w", "{s}.m"], &[], &[1]));
    let id = b.saved(1, "a.m", 1);
    assert_eq!(b.verdict(id), PUBLISHED);
    assert_eq!(b.rounds.get(id).unwrap().missing(), ["a.w"]);
}

#[test]
fn a_second_save_takes_the_place_of_the_first() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    assert_eq!(b.open(1, "a.w", 2), id);
    assert_eq!(b.save(id, "a.w", 2), Some((TxnId(1), 100)));
    assert_eq!(b.rounds.get(id).unwrap().bytes(), 100);
    b.saved(1, "a.m", 3);
    let round = b.rounds.get(id).unwrap();
    assert_eq!(round.saved().collect::<Vec<_>>(), [2, 3].map(TxnId));
}

#[test]
fn what_is_opened_again_is_waited_for() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    let now = b.now;
    let reopened = b
        .rounds
        .get_mut(id)
        .unwrap()
        .reopen(&Bench::dentry("a.w"), TxnId(1), now);
    assert_eq!(reopened, 100);
    b.saved(1, "a.m", 2);
    assert_eq!(b.verdict(id), None);
    b.save(id, "a.w", 1);
    assert_eq!(b.verdict(id), PUBLISHED);
}

#[test]
fn a_saver_that_ends_badly_has_saved_nothing() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.end(id, 1, End::Badly("was ended by signal 9".into()));
    let why = "its saver 1 (saver) was ended by signal 9".to_owned();
    assert_eq!(b.verdict(id), Some(Verdict::Reject(why)));
}

#[test]
fn how_a_saver_ends_after_its_last_close_does_not_count() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.open(1, "a.m", 2);
    // It is seen before the close is.
    b.end(id, 1, End::Badly("has ended with status 1".into()));
    b.rounds.get_mut(id).unwrap().note_closed(1);
    b.save(id, "a.m", 2);
    assert_eq!(b.verdict(id), PUBLISHED);
}

#[test]
fn a_child_that_ends_badly_is_told_when_the_round_ends() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.saved(10, "a.o", 2);
    b.end(id, 10, End::Badly("ended with status 1".into()));
    assert_eq!(b.verdict(id), None);
    b.saved(1, "a.m", 3);
    assert!(matches!(b.verdict(id), Some(Verdict::Reject(_))));
}

#[test]
fn who_ends_well_publishes_what_there_is() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.end(id, 1, End::Well);
    let Some(Verdict::Publish {
        incomplete: Some((missing, why)),
    }) = b.verdict(id)
    else {
        panic!("{:?}", b.verdict(id));
    };
    assert_eq!(
        (missing.as_slice(), why.as_str()),
        (&["a.m".to_owned()][..], "its saver has ended without a.m")
    );
    assert_ne!(b.open(1, "a.m", 2), id, "whoever has its number is another");
}

#[test]
fn a_refused_member_refuses_all_unless_it_is_saved_again() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.open(1, "a.m", 2);
    let now = b.now;
    b.rounds
        .get_mut(id)
        .unwrap()
        .refuse(&Bench::dentry("a.m"), TxnId(2), "half".into(), now);
    assert_eq!(b.verdict(id), Some(Verdict::Reject("half".into())));
    b.saved(1, "a.m", 3);
    assert_eq!(b.verdict(id), PUBLISHED);
}

#[test]
fn a_round_that_rests_is_rejected_and_one_that_is_written_is_not() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.now += Duration::from_secs(59);
    assert_eq!(b.verdict(id), None);
    b.open(1, "a.o", 2);
    b.now += Duration::from_secs(600);
    assert_eq!(b.verdict(id), None);
    b.rounds.leave(id, &Bench::dentry("a.o"), TxnId(2));
    assert!(matches!(b.verdict(id), Some(Verdict::Reject(why)) if why.contains("a.m")));
}

#[test]
fn by_rule_what_there_is_is_published_in_any_case() {
    let commits = Group {
        on_incomplete: OnIncomplete::Commit,
        ..(*group(&["{s}.w", "{s}.m"], &[], &[])).clone()
    };
    let mut b = Bench::new(Arc::new(commits));
    let id = b.saved(1, "a.w", 1);
    b.end(id, 1, End::Badly("ended with status 1".into()));
    assert!(matches!(
        b.verdict(id),
        Some(Verdict::Publish {
            incomplete: Some(_)
        })
    ));
}

#[test]
fn those_that_have_ended_well_are_forgotten_as_long_as_one_goes_on() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.saved(10, "a.o", 2);
    b.end(id, 10, End::Well);
    let round = b.rounds.get_mut(id).unwrap();
    round.forget_ended();
    assert_eq!(round.savers.iter().map(|s| s.pid).collect::<Vec<_>>(), [1]);
    round.savers[0].ended = Some(End::Well);
    round.forget_ended();
    assert!(round.is_left() && round.savers.len() == 1);
}

#[test]
fn a_round_without_members_ends() {
    let mut b = pair();
    let id = b.open(1, "a.w", 1);
    assert_eq!(b.rounds.leave(id, &Bench::dentry("a.w"), TxnId(1)), 0);
    assert!(b.rounds.is_empty());
}

#[test]
fn what_is_being_decided_takes_no_more() {
    let mut b = pair();
    let id = b.saved(1, "a.w", 1);
    b.rounds.get_mut(id).unwrap().decide(PUBLISHED.unwrap());
    assert_ne!(b.open(1, "a.m", 2), id);
    assert_eq!(b.verdict(id), PUBLISHED);
}

#[test]
fn a_large_round_is_counted_not_searched() {
    let mut b = Bench::new(group(&["{s}-*.npy", "{s}.json"], &[], &[]));
    let began = Instant::now();
    let mut id = TxnId(0);
    for n in 0..10_000 {
        id = b.saved(1, &format!("a-{n}.npy"), n);
        assert_eq!(b.verdict(id), None);
    }
    assert_eq!(b.saved(1, "a.json", 10_000), id);
    assert_eq!(b.verdict(id), PUBLISHED);
    assert!(began.elapsed() < Duration::from_secs(2));
}

fn membership(name: &str) -> Membership {
    let mut of = (*group(&["{s}.w", "{s}.json"], &[], &[])).clone();
    of.readers = Readers::Pin;
    Arc::new(of).find(Path::new(name)).unwrap()
}

fn thread(tid: u32) -> PinningThread {
    let start = Some(crate::sys::proc::Start::at(7, false));
    PinningThread { tid, start }
}

/// What a thread finds, and whether it was opened.
fn found(pins: &Pins, tid: u32, name: &str) -> Option<(PinnedMember, bool)> {
    let key = GroupKey::from(&membership(name));
    let view = pins.view(thread(tid), &key, Path::new(name))?;
    Some((view.member, view.was_opened))
}

fn replace(pins: &mut Pins, name: &str, was: PinnedMember) -> bool {
    pins.replace(&GroupKey::from(&membership(name)), Path::new(name), was)
}

fn begin(pins: &mut Pins, tid: u32) {
    pins.begin(thread(tid), &membership("a.w"), Instant::now());
}

const fn version(number: u64) -> PinnedMember {
    PinnedMember::Version(NodeId(number))
}

#[test]
fn who_has_pinned_a_generation_finds_what_was_replaced_since() {
    let mut pins = Pins::default();
    assert!(
        !replace(&mut pins, "a.w", version(1)),
        "nobody has pinned it"
    );
    begin(&mut pins, 1);
    assert_eq!(found(&pins, 1, "a.w"), Some((PinnedMember::Current, false)));
    assert_eq!(found(&pins, 2, "a.w"), None);
    assert_eq!(found(&pins, 1, "b.w"), None);
    assert!(replace(&mut pins, "a.w", version(1)));
    assert!(!replace(&mut pins, "a.json", PinnedMember::Absent));
    begin(&mut pins, 2);
    assert!(replace(&mut pins, "a.w", version(2)));
    assert!(replace(&mut pins, "a.json", version(3)));
    // The second time the same generation sees it.
    assert!(!replace(&mut pins, "a.w", version(4)));
    assert!(!replace(&mut pins, "b.w", version(5)), "of another name");
    assert_eq!(found(&pins, 1, "a.w"), Some((version(1), false)));
    assert_eq!(
        found(&pins, 1, "a.json"),
        Some((PinnedMember::Absent, false))
    );
    assert_eq!(found(&pins, 2, "a.w"), Some((version(2), false)));
    assert_eq!(found(&pins, 2, "a.json"), Some((version(3), false)));
    assert_eq!((pins.len(), pins.versions()), (2, 3));
}

#[test]
fn what_the_last_one_that_needs_it_gives_up_is_released() {
    // The second one's generation ends first, or last.
    for order in [
        [1, 2, 3],
        [2, 1, 3],
        [2, 3, 1],
        [3, 2, 1],
        [3, 1, 2],
        [1, 3, 2],
    ] {
        let mut pins = Pins::default();
        begin(&mut pins, 1);
        replace(&mut pins, "a.w", version(1));
        begin(&mut pins, 2);
        replace(&mut pins, "a.w", version(2));
        replace(&mut pins, "a.json", version(3));
        begin(&mut pins, 3);
        replace(&mut pins, "a.w", version(4));
        let mut released = Vec::new();
        for (n, tid) in order.into_iter().enumerate() {
            pins.end_thread(tid);
            released.extend(pins.take_released().into_iter().map(|node| node.0));
            for left in &order[n + 1..] {
                let [w, json] = ["a.w", "a.json"].map(|name| found(&pins, *left, name).unwrap().0);
                let expected = match left {
                    1 => (version(1), version(3)),
                    2 => (version(2), version(3)),
                    _ => (version(4), PinnedMember::Current),
                };
                assert_eq!((w, json), expected, "{order:?} {left}");
            }
        }
        released.sort_unstable();
        assert_eq!(released, [1, 2, 3, 4], "{order:?}");
        assert!(pins.is_empty() && pins.versions() == 0);
    }
}

#[test]
fn a_pin_is_over_when_nothing_was_open_for_so_long() {
    let mut pins = Pins::default();
    let (start, life) = (Instant::now(), Duration::from_secs(5));
    let at = |seconds| start + Duration::from_secs(seconds);
    let key = GroupKey::from(&membership("a.w"));
    pins.begin(thread(1), &membership("a.w"), start);
    for handle in [1, 2] {
        pins.note_opened(1, &key, Path::new("a.w"), HandleId(handle));
    }
    assert_eq!(found(&pins, 1, "a.w"), Some((PinnedMember::Current, true)));
    pins.note_closed(HandleId(1), at(10));
    assert!(!pins.is_over(1, &key, life, at(100)));
    pins.note_closed(HandleId(2), at(20));
    pins.note_closed(HandleId(2), at(90));
    assert!(!pins.is_over(1, &key, life, at(24)));
    assert!(pins.is_over(1, &key, life, at(25)));
    pins.end_idle(life, at(24));
    assert_eq!(pins.len(), 1);
    pins.end_idle(life, at(25));
    assert!(pins.is_empty());
    // What was opened before it began anew doesn't count for it.
    pins.begin(thread(1), &membership("a.w"), at(30));
    pins.note_opened(1, &key, Path::new("a.w"), HandleId(3));
    pins.begin(thread(1), &membership("a.w"), at(31));
    pins.note_closed(HandleId(3), at(40));
    assert!(pins.is_over(1, &key, life, at(36)));
}

#[test]
fn a_thread_that_has_the_number_of_another_has_pinned_nothing() {
    let mut pins = Pins::default();
    begin(&mut pins, 1);
    replace(&mut pins, "a.w", version(1));
    let later = PinningThread {
        tid: 1,
        start: Some(crate::sys::proc::Start::at(8, false)),
    };
    let key = GroupKey::from(&membership("a.w"));
    assert_eq!(pins.view(later, &key, Path::new("a.w")), None);
    pins.note_ended(later);
    assert_eq!(pins.len(), 1);
    pins.begin(later, &membership("b.w"), Instant::now());
    assert_eq!(found(&pins, 1, "a.w"), None);
    assert_eq!(pins.take_released(), [NodeId(1)]);
    pins.note_ended(later);
    assert!(pins.is_empty());
}

#[test]
fn what_makes_room_is_lost_and_so_is_what_lay_in_a_directory_that_was_renamed() {
    let mut pins = Pins::default();
    let of = |name: &str| {
        let of = group(&["d/{s}.w", "d/{s}.json"], &[], &[]);
        of.find(Path::new(name)).unwrap()
    };
    let key = GroupKey::from(&of("d/a.w"));
    pins.begin(thread(1), &of("d/a.w"), Instant::now());
    assert!(pins.replace(&key, Path::new("d/a.w"), version(1)));
    let dirs: Vec<_> = (0..100).map(|n| format!("x{n}").into()).collect();
    pins.move_directories(&dirs[..3]);
    let find =
        |pins: &Pins, name: &str| pins.view(thread(1), &key, Path::new(name)).unwrap().member;
    assert_eq!(find(&pins, "d/a.json"), PinnedMember::Current);
    pins.move_directories(&["d".into()]);
    assert_eq!(find(&pins, "d/a.w"), version(1));
    assert_eq!(find(&pins, "d/a.json"), PinnedMember::Lost);
    assert!(!pins.replace(&key, Path::new("d/a.json"), version(2)));
    assert!(pins.let_all_go());
    assert_eq!(find(&pins, "d/a.w"), PinnedMember::Lost);
    assert_eq!((pins.take_released(), pins.let_go), (vec![NodeId(1)], 1));
    assert!(!pins.let_all_go());
    pins.begin(thread(1), &of("d/a.w"), Instant::now());
    assert_eq!(find(&pins, "d/a.json"), PinnedMember::Current);
    // So many that it isn't worth telling them apart.
    pins.move_directories(&dirs);
    assert_eq!(find(&pins, "d/a.json"), PinnedMember::Lost);
}

#[test]
fn pins_are_bounded_and_those_that_were_closed_first_go_first() {
    let mut pins = Pins::default();
    let start = Instant::now();
    for n in 0..10_500_u32 {
        let now = start + Duration::from_millis(n.into());
        pins.begin(thread(n), &membership("a.w"), now);
    }
    assert_eq!(pins.len(), 10_000);
    assert_eq!(
        (found(&pins, 499, "a.w"), found(&pins, 500, "a.w").is_some()),
        (None, true)
    );
}
