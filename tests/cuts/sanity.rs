//! The judge and the disk are judged: each finds what it is there to find.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::content;
use crate::disk::{Fs, Medium, scratch};
use crate::judge::{Cut, Found, Promise, Worker, judge};
use crate::plan::{KINDS, Kind, Plan, State, Step};

const SECOND: u64 = 1_000_000_000;
const SEED: u64 = 7;

fn is_save(step: &Step) -> bool {
    matches!(step, Step::Save { .. })
}

/// Two rewriters, whose steps take a second each and alternate: the first's begin at 0, 2, 4 …
fn workers(steps: usize) -> Vec<Worker> {
    let rewriter = KINDS.iter().position(|kind| *kind == Kind::Rewriter);
    let me = rewriter.expect("a rewriter");
    let log = |first: u64| -> String {
        let step = |n: u64| {
            let begun = (first + 2 * n) * SECOND + 1;
            let done = begun + SECOND - 2;
            format!("b {n} {begun} \na {n} {done} \n")
        };
        (0..steps as u64).map(step).collect()
    };
    [(me, 0), (me + 100, 1)]
        .map(|(me, first)| Worker::from_log(Kind::Rewriter, me, SEED, &log(first)))
        .into()
}

/// What there is after so many steps of each.
fn after(workers: &[Worker], steps: [usize; 2]) -> Found {
    let mut values = State::new();
    for (worker, steps) in workers.iter().zip(steps) {
        let plan = Plan::new(worker.kind, worker.me, SEED);
        for step in plan.take(steps) {
            assert!(is_save(&step));
            step.apply(worker.me, &mut values);
        }
    }
    Found {
        values,
        ..Found::default()
    }
}

fn faults(workers: &[Worker], found: &Found, promise: Promise) -> Vec<String> {
    let end = 2 * workers[0].steps.len() as u64 * SECOND;
    let cut = Cut {
        from: end,
        to: end + 1,
        promise,
    };
    judge(&cut, workers, found)
}

#[test]
fn the_judge_takes_every_prefix_and_nothing_else() {
    const STEPS: usize = 6;
    let mut both = workers(STEPS);
    // Without fsync: the order alone is looked at.
    for worker in &mut both {
        for (step, _) in &mut worker.steps {
            if let Step::Save { way, .. } = step {
                *way = crate::plan::Way::Plain;
            }
        }
    }
    let forever = Promise::Within(u64::MAX / 2);
    for first in 0..=STEPS {
        for second in 0..=STEPS {
            let found = after(&both, [first, second]);
            let wrong = faults(&both, &found, forever);
            let is_prefix = first == second || first == second + 1;
            assert_eq!(wrong.is_empty(), is_prefix, "{first} {second}: {wrong:?}");
        }
    }
    let most = after(&both, [STEPS, STEPS - 1]);
    assert_eq!(faults(&both, &most, Promise::Within(SECOND / 2)), [""; 0]);
    for promise in [Promise::Acknowledged, Promise::Kill, Promise::Within(0)] {
        let wrong = faults(&both, &most, promise);
        assert!(
            wrong.iter().any(|why| why.contains("lost")),
            "{promise:?}: {wrong:?}"
        );
    }
    let mut stranger = after(&both, [STEPS, STEPS]);
    assert_eq!(faults(&both, &stranger, Promise::Kill), [""; 0]);
    stranger.values.insert("strange".into(), 1);
    assert_eq!(faults(&both, &stranger, Promise::Kill).len(), 1);
}

#[test]
fn a_content_that_is_damaged_anywhere_is_told_from_a_whole_one() {
    let lines = [
        content::line(3, 1),
        content::line(5, 1),
        content::line(3, 2),
    ]
    .concat();
    let grid = [content::row(0, 4), content::row(1, 9)].concat();
    let whole = [
        ("w4/state-0", content::saved(4, 2, 500)),
        ("lines", lines),
        ("grid", grid),
    ];
    for (path, bytes) in whole {
        let parts = content::parts_of(path, &bytes).map(|(_, rest)| rest);
        assert_eq!(parts, Ok(Vec::new()), "{path}");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(is_damaged(path, &damaged), "{path} at {at}");
            assert!(is_damaged(path, &bytes[..at]) || at == 0 || is_shorter(path, &bytes, at));
        }
        assert!(
            is_damaged(path, &[&bytes[..], &[0; 20]].concat()),
            "{path}: zeros"
        );
    }
    let hole = [content::line(3, 1), content::line(3, 3)].concat();
    assert!(is_damaged("lines", &hole), "a hole");
    let half = br#"{"a8": 4, "b8": 3}"#;
    assert!(is_damaged("doc.json", half), "half a patch");
}

fn is_damaged(path: &str, bytes: &[u8]) -> bool {
    content::parts_of(path, bytes).map_or(true, |(_, rest)| !rest.is_empty())
}

/// Logs and the grid may end behind any of their parts: that is for the judge of orders.
fn is_shorter(path: &str, bytes: &[u8], at: usize) -> bool {
    path != "w4/state-0" && (bytes[at - 1] == b'\n')
}

#[test]
fn the_disk_loses_what_was_not_flushed_and_nothing_else() {
    crate::need_root!();
    let directory = scratch().join("medium");
    let mut medium = Medium::new(directory.join("m"), Fs::Ext4, None);
    let disk = File::options().write(true).open(medium.image());
    let disk = disk.expect("the disk");
    let block = |byte: u8| [byte; 4096];
    disk.write_all_at(&block(1), 0).unwrap();
    disk.write_all_at(&block(1), 8192).unwrap();
    disk.sync_data().unwrap();
    disk.write_all_at(&block(2), 0).unwrap();
    let snapshot = medium.snapshot();
    disk.write_all_at(&block(3), 0).unwrap();
    disk.sync_data().unwrap();
    let image = directory.join("image");
    let mut left = |loss: &str, seed| {
        medium.dump(snapshot, &image, loss, seed);
        let mut bytes = vec![0; 12288];
        let file = File::open(&image).expect("an image");
        file.read_exact_at(&mut bytes, 0)
            .expect("as long as the disk");
        assert_eq!(bytes[8192..12288], block(1), "what was flushed");
        bytes[..4096].to_vec()
    };
    assert_eq!(left("everything", 0), block(1));
    assert_eq!(left("nothing", 0), block(2));
    let some: Vec<Vec<u8>> = (0..60).map(|seed| left("some", seed)).collect();
    let is = |byte: u8| some.iter().filter(|left| **left == block(byte)).count();
    let (old, new) = (is(1), is(2));
    assert!(
        old > 5 && new > 5 && old + new < 60,
        "torn ones, too: {old}, {new}"
    );
    assert!(some.iter().flatten().all(|byte| *byte == 1 || *byte == 2));
    drop((disk, medium));
    let _ = std::fs::remove_dir_all(&directory);
    let _ = directory.parent().map(std::fs::remove_dir);
}
