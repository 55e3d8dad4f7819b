//! C7, C10, C18, C19, C21. Everything at once, on a disk whose power is cut at random instants, on three file systems,
//! with a write cache that loses any part of what it has not flushed; and daemons killed. The judge is
//! independent of the code under test: it reads no journal, only the plain files and what the workers have
//! written down elsewhere of what they asked for and what was acknowledged.
//!
//! `cuts/plan.rs` says what the workers do, `cuts/medium.rs` what the disk is, `cuts/judge.rs` what may be
//! there in the end. `COMMITFS_CUTS` says how many cuts, `COMMITFS_SEED` repeats the choices (not the instants).
//! `scripts/cuts` runs the long form. Needs root.

mod common;
#[path = "cuts/content.rs"]
#[allow(dead_code)]
mod content;
#[path = "cuts/disk.rs"]
mod disk;
#[path = "cuts/judge.rs"]
mod judge;
#[path = "cuts/kept.rs"]
mod kept;
#[path = "cuts/plan.rs"]
#[allow(dead_code)]
mod plan;
#[path = "cuts/random.rs"]
mod random;
#[path = "cuts/sanity.rs"]
mod sanity;
#[path = "cuts/series.rs"]
mod series;
#[path = "cuts/served.rs"]
mod served;
#[path = "cuts/workers.rs"]
mod workers;

use disk::Fs;
use series::{Durability, Series};

/// How many cuts for each combination of file system and durability.
fn cuts(short: usize) -> usize {
    let asked = std::env::var("COMMITFS_CUTS")
        .ok()
        .and_then(|n| n.parse().ok());
    asked.unwrap_or(common::times(short, 100))
}

fn seed() -> u64 {
    common::Random::new().below(1 << 40)
}

/// Series of a few cuts each, until there were enough.
fn many(fs: Fs, durability: Durability, cuts: usize) -> Vec<String> {
    let seed = seed();
    let mut done = 0;
    let mut faults = Vec::new();
    for series in 0.. {
        if done >= cuts {
            break;
        }
        let these = (cuts - done).min(6);
        faults.extend(Series::new(fs, durability, seed + series).cut(these));
        done += these;
    }
    println!(
        "{fs:?} {durability:?}: {} faults in {cuts} cuts",
        faults.len()
    );
    faults
}

fn all(fs: Fs) {
    let some = |durability| many(fs, durability, cuts(3));
    let faults: Vec<String> = Durability::ALL.into_iter().flat_map(some).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn after_a_cut_on_ext4_all_is_whole_in_order_and_as_promised() {
    need_root!();
    need_daemon!();
    all(Fs::Ext4);
}

#[test]
fn after_a_cut_on_xfs_all_is_whole_in_order_and_as_promised() {
    need_root!();
    need_daemon!();
    all(Fs::Xfs);
}

#[test]
fn after_a_cut_on_btrfs_all_is_whole_in_order_and_as_promised() {
    need_root!();
    need_daemon!();
    all(Fs::Btrfs);
}

#[test]
fn a_killed_daemon_leaves_all_whole_and_all_that_was_acknowledged() {
    need_root!();
    need_daemon!();
    let seed = seed();
    let mut faults = Vec::new();
    for number in 0..cuts(4) {
        let fs = Fs::ALL[number % 3];
        faults.extend(Series::new(fs, Durability::Async, seed + number as u64).kill());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_length_without_content_is_not_kept_as_content() {
    // A power cut leaves many a staging file so; a program can make one without.
    need_daemon!();
    let mut m = mount!();
    let mut actor = common::Actor::new();
    for (name, content) in [("nothing", ""), ("zero", "\0"), ("one", "1")] {
        actor.open(name, "w", &m.path(name)).unwrap();
        actor.write(name, content).unwrap();
        actor.ftruncate(name, 5000).unwrap();
    }
    m.kill_daemon();
    drop(actor);
    m.remount();
    let mut kept: Vec<String> = m.rejected().into_iter().map(|one| one.path).collect();
    kept.sort();
    assert_eq!(kept, ["one", "zero"]);
}
