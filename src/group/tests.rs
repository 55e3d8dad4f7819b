use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::types::{Dentry, NodeId, TxnId};

fn group(files: &[&str], optional: &[&str], complete: &[usize]) -> Arc<Group> {
    let patterns = files.iter().chain(optional);
    Arc::new(Group {
        number: 1,
        line: 1,
        patterns: patterns.map(|p| Pattern::parse(p).unwrap()).collect(),
        needed: files.len(),
        complete: complete.to_vec(),
        timeout: Duration::from_secs(60),
        on_incomplete: OnIncomplete::Reject,
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
