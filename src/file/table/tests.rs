use std::time::Duration;

use super::super::Opening;
use super::*;
use crate::namespace::Ends;
use crate::rules::{Stale, Stream};

fn dentry(name: &str) -> Dentry {
    Dentry {
        dir: NodeId(1),
        name: name.into(),
    }
}

fn error() -> Unseen {
    Unseen::of("f".as_ref(), "no space".to_owned(), 1)
}

fn claimant() -> Option<Claimant> {
    Some(Claimant::new(NodeId(7), std::process::id(), Stale::Warn))
}

/// With everything that one can have but descriptions that add lines.
fn full(names: &mut NameTable, dentry: &Dentry, leader: TxnId) {
    names.follow(dentry, NodeId(7), vec![leader]);
    names.claim(dentry, claimant);
    names.take_turn(dentry, TxnId(9), Instant::now() + Duration::from_secs(60));
    names.queue(dentry, 1);
    names.note_error(dentry, error());
}

fn appender(names: &mut NameTable, dentry: &Dentry) -> Arc<Appender> {
    let file = Arc::new(std::fs::File::open("/dev/null").unwrap());
    let read = Ends::default().show(file);
    let how = (true, Opening::default());
    let appender = Appender::new(NodeId(7), how, Stream::Lines, dentry.clone(), read);
    names.enlist(dentry, &appender);
    appender
}

fn adds_at(appender: &Appender) -> Option<Dentry> {
    match &*appender.place.lock() {
        AppendPlace::At(dentry) => Some(dentry.clone()),
        AppendPlace::Nameless(_) => None,
    }
}

#[test]
fn who_adds_lines_goes_where_the_file_goes() {
    let mut names = NameTable::default();
    let (one, other, third) = (dentry("one"), dentry("other"), dentry("third"));
    let (first, second) = (appender(&mut names, &one), appender(&mut names, &other));
    names.exchange(&one, &other);
    assert_eq!(adds_at(&first), Some(other.clone()));
    assert_eq!(adds_at(&second), Some(one.clone()));
    let lost = Unnamed {
        fd: Arc::new(std::fs::File::open("/dev/null").unwrap()),
        ends: Ends::default(),
        gone: Arc::default(),
    };
    // Nobody's file has lost its name.
    names.unname(&other, None);
    assert_eq!(names.appenders(&other).len(), 1);
    names.unname(&other, Some(lost));
    names.rename(&one, &other);
    assert_eq!(
        (adds_at(&first), adds_at(&second)),
        (None, Some(other.clone()))
    );
    names.move_appenders(&other, &third);
    assert_eq!(names.len(), 1);
    names.delist(&first);
    names.delist(&second);
    assert!(names.is_empty());
}

#[test]
fn a_rename_moves_what_is_the_file_s_and_leaves_what_is_the_name_s() {
    let mut names = NameTable::default();
    let (from, to) = (dentry("from"), dentry("to"));
    full(&mut names, &from, TxnId(1));
    names.follow(&to, NodeId(8), vec![TxnId(2)]);
    names.rename(&from, &to);
    assert_eq!(names.leaders(&to), [TxnId(1)]);
    assert!(names.leaders(&from).is_empty() && !names.is_followed(TxnId(2)));
    assert_eq!(
        names.followers(TxnId(1)),
        HashMap::from([(to.clone(), NodeId(7))])
    );
    assert!(names.is_claimed(&from) && names.is_turn_taken(&from) && names.has_queue(&from));
    assert!(names.error(&from).is_some());
    assert!(!names.is_claimed(&to) && !names.is_turn_taken(&to) && !names.has_queue(&to));
    assert!(names.error(&to).is_none());
}

#[test]
fn an_exchange_moves_what_is_the_files_both_ways() {
    let mut names = NameTable::default();
    let (one, other) = (dentry("one"), dentry("other"));
    full(&mut names, &one, TxnId(1));
    names.follow(&other, NodeId(8), vec![TxnId(1), TxnId(2)]);
    names.exchange(&one, &other);
    assert_eq!(names.leaders(&one), [TxnId(1), TxnId(2)]);
    assert_eq!(names.leaders(&other), [TxnId(1)]);
    assert_eq!(
        names.followers(TxnId(1)),
        HashMap::from([(one.clone(), NodeId(8)), (other.clone(), NodeId(7))])
    );
    assert!(names.is_claimed(&one) && !names.is_claimed(&other));
}

#[test]
fn an_entry_ends_when_nothing_is_left_in_it() {
    let mut names = NameTable::default();
    let name = dentry("f");
    full(&mut names, &name, TxnId(1));
    assert_eq!(names.len(), 1);
    assert_eq!(names.in_use().count(), 1);
    names.end_following(TxnId(1));
    names.end_claim(&name);
    names.end_claim(&name);
    assert!(!names.change_turn(&name, TxnId(8), None) && names.is_turn_taken(&name));
    assert!(names.change_turn(&name, TxnId(9), None));
    names.leave_queue(&name, 1);
    assert!(!names.is_empty() && names.in_use().count() == 0);
    names.forget_error(&name);
    assert!(names.is_empty() && !names.is_followed(TxnId(1)) && names.claims().count() == 0);
    // Who only asks makes none.
    assert!(names.leaders(&name).is_empty() && !names.has_queue(&name));
    names.leave_queue(&name, 1);
    names.move_appenders(&name, &dentry("g"));
    assert!(names.is_empty());
}

#[test]
fn who_leaves_the_line_makes_the_next_the_first() {
    let mut names = NameTable::default();
    let name = dentry("f");
    names.queue(&name, 1);
    names.queue(&name, 2);
    assert!(names.is_first(&name, 1) && !names.is_first(&name, 2));
    names.leave_queue(&name, 1);
    assert!(names.is_first(&name, 2));
    names.leave_queue(&name, 2);
    assert!(!names.has_queue(&name));
}

#[test]
fn turns_that_are_over_are_forgotten() {
    let mut names = NameTable::default();
    let (past, future) = (dentry("past"), dentry("future"));
    let now = Instant::now();
    names.take_turn(&past, TxnId(1), now);
    names.take_turn(&future, TxnId(2), now + Duration::from_secs(60));
    assert!(!names.is_turn_taken(&past));
    names.forget_turns(now);
    assert_eq!((names.len(), names.turn(&past)), (1, None));
    assert!(names.is_turn_taken(&future));
}

#[test]
fn of_very_many_names_the_oldest_errors_are_forgotten() {
    let mut names = NameTable::default();
    let at = |time: usize| Unseen {
        time_ns: time as i64,
        ..error()
    };
    for time in 0..MOST_ERRORS {
        names.note_error(&dentry(&format!("of-{time}")), at(time));
    }
    let (first, second, third) = (dentry("of-0"), dentry("of-1"), dentry("of-2"));
    names.note_error(&second, at(MOST_ERRORS));
    names.note_error(&dentry("last"), at(MOST_ERRORS + 1));
    assert!(names.error(&first).is_none());
    assert!(names.error(&second).is_some(), "it has a newer one");
    assert!(names.error(&third).is_some());
    assert_eq!(names.len(), MOST_ERRORS);
}
