//! C7, C18, C19. Recoveries, many thousands: a daemon and its clients work on a simulated disk that writes down what the daemon
//! asks of it; then, of any instant of that, a medium is made that has lost, torn and reordered what was not synced, or a directory
//! as a killed daemon leaves it; recovery runs on that, and the judge of tests/cuts.rs says what is wrong.
//!
//! `COMMITFS_RECOVERIES` says how many, `COMMITFS_SEED` repeats the choices (not the instants). `scripts/recoveries` runs the long form.
//! What was wrong is kept below `COMMITFS_CUTS_KEEP`. Needs root.

mod common;
#[path = "cuts/content.rs"]
#[allow(dead_code)]
mod content;
#[path = "recoveries/image.rs"]
mod image;
#[path = "cuts/judge.rs"]
#[allow(dead_code)]
mod judge;
#[path = "cuts/kept.rs"]
mod kept;
#[path = "recoveries/medium.rs"]
mod medium;
#[path = "cuts/plan.rs"]
#[allow(dead_code)]
mod plan;
#[path = "cuts/random.rs"]
mod random;
#[path = "recoveries/sanity.rs"]
mod sanity;
#[path = "cuts/served.rs"]
mod served;
#[path = "recoveries/session.rs"]
mod session;
#[path = "cuts/tree.rs"]
#[allow(dead_code)]
mod tree;
#[path = "cuts/workers.rs"]
mod workers;

use session::{Durability, Session};

/// How many recoveries in all.
fn recoveries() -> usize {
    let asked = std::env::var("COMMITFS_RECOVERIES").ok();
    let asked = asked.and_then(|n| n.parse().ok());
    asked.unwrap_or(common::times(2400, 1_500_000))
}

/// Of one session: fewer would not pay, of more the next say less.
fn of_each() -> usize {
    common::times(800, 1500)
}

#[test]
fn whatever_a_medium_keeps_of_what_was_not_synced_all_is_whole_in_order_and_as_promised() {
    need_root!();
    need_daemon!();
    let seed = common::Random::new().below(1 << 40);
    let (all, mut done, mut faults) = (recoveries(), 0, Vec::new());
    for number in 0.. {
        if done >= all || faults.len() > 20 {
            break;
        }
        let these = of_each().min(all - done);
        let durability = Durability::ALL[number as usize % Durability::ALL.len()];
        faults.extend(Session::record(durability, seed + number).recoveries(these));
        done += these;
        println!("{done} recoveries, {} faults", faults.len());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
