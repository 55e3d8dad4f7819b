//! Counters that simulated programs keep in one file, each in its own way of loading and saving:
//! where the base is certain nothing is lost, and nothing is counted twice anywhere.

use std::collections::HashMap;
use std::io::{Read, Seek, Write};

use super::*;

/// A file with a counter on which every save is merged.
struct World {
    ledger: Ledger,
    node: NodeId,
    value: i64,
    files: HashMap<NodeId, Arc<File>>,
    uncertain: u32,
}

fn file_of(value: i64) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    write!(file, "{value}").unwrap();
    Arc::new(file)
}

fn value_of(file: &File) -> i64 {
    let mut text = String::new();
    let mut file = file;
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

fn slot() -> Slot {
    Slot {
        dir: 1,
        name: "n.json".into(),
    }
}

fn actor(process: ProcessId, tid: u32) -> Actor {
    Actor { process, tid }
}

impl World {
    fn new() -> World {
        World {
            ledger: Ledger::default(),
            node: 1,
            value: 0,
            files: HashMap::from([(1, file_of(0))]),
            uncertain: 0,
        }
    }

    fn load(&mut self, actor: Actor) -> i64 {
        let file = self.files[&self.node].clone();
        self.ledger
            .note_read(&slot(), actor, Some((self.node, &file)));
        self.value
    }

    fn save(&mut self, actor: Actor, mine: i64) {
        let begun = self.ledger.now();
        let base = self.ledger.base_of(&slot(), actor);
        let mut merged = mine;
        if let Some(base) = base {
            self.uncertain += u32::from(!base.is_certain);
            if base.version != Some(self.node)
                && base.is_certain
                && let Text::Kept(kept) = &base.text
            {
                merged = self.value + mine - value_of(&kept.file);
            }
        }
        self.node += 1;
        self.value = merged;
        self.files.insert(self.node, file_of(merged));
        let text = self.ledger.keep(file_of(mine));
        let version = (self.node, merged != mine);
        self.ledger.note_saved(&slot(), actor, begun, version, text);
    }
}

/// Numbers that can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) % limit as u64) as usize
    }
}

/// Workers that each load, add one and save, again and again; who does it is drawn by lot.
fn run(
    world: &mut World,
    workers: usize,
    rounds: usize,
    dice: &mut Dice,
    mut who: impl FnMut(usize, &mut Dice) -> Actor,
) {
    let mut left = vec![rounds; workers];
    let mut loaded = vec![None; workers];
    while left.iter().any(|n| *n > 0) {
        let worker = dice.below(workers);
        if left[worker] == 0 {
            continue;
        }
        let by = who(worker, dice);
        match loaded[worker].take() {
            None => loaded[worker] = Some(world.load(by)),
            Some(value) => {
                world.save(by, value + 1);
                left[worker] -= 1;
            }
        }
    }
}

#[test]
fn threads_that_each_load_and_save_lose_nothing() {
    let mut world = World::new();
    run(&mut world, 20, 10, &mut Dice(1), |worker, _| {
        actor(1, worker as u32)
    });
    assert_eq!((world.value, world.uncertain), (200, 0));
}

#[test]
fn processes_that_each_load_and_save_lose_nothing() {
    let mut world = World::new();
    run(&mut world, 20, 10, &mut Dice(2), |worker, _| {
        actor(worker as u64, 1)
    });
    assert_eq!((world.value, world.uncertain), (200, 0));
}

#[test]
fn processes_that_read_once_and_save_often_lose_nothing() {
    let mut world = World::new();
    let mut dice = Dice(3);
    let mut values: Vec<i64> = (0..10).map(|p| world.load(actor(p, 1))).collect();
    for _ in 0..1000 {
        let process = dice.below(10);
        values[process] += 1;
        world.save(actor(process as u64, 1), values[process]);
    }
    assert_eq!((world.value, world.uncertain), (1000, 0));
}

#[test]
fn coroutines_on_one_thread_count_nothing_twice() {
    let mut world = World::new();
    run(&mut world, 20, 10, &mut Dice(4), |_, _| actor(1, 1));
    assert!(world.value <= 200, "{}", world.value);
    assert!(world.uncertain > 0);
}

#[test]
fn pools_of_threads_count_nothing_twice() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let threads = 2 + dice.below(8);
        let processes = 1 + dice.below(3);
        let mut world = World::new();
        run(&mut world, 12, 10, &mut dice, |worker, dice| {
            actor((worker % processes) as u64, dice.below(threads) as u32)
        });
        assert!(
            (1..=120).contains(&world.value),
            "seed {seed}: {} with {threads} threads in {processes} processes",
            world.value
        );
    }
}

#[test]
fn a_program_on_its_own_is_left_alone() {
    // Loads and saves in any order and by any thread, keeping its state in memory: what it saves
    // is what is there.
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let mut world = World::new();
        let mut state = world.load(actor(1, 0));
        let mut threads = [true, false, false];
        for _ in 0..50 {
            let thread = dice.below(if seed % 2 == 0 { 1 } else { 3 });
            if dice.below(3) == 0 && threads[thread] {
                world.load(actor(1, thread as u32));
            } else {
                state += 1;
                world.save(actor(1, thread as u32), state);
                threads[thread] = true;
                assert_eq!(world.value, state, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_childs_read_serves_its_parent_if_it_is_the_only_one() {
    let mut world = World::new();
    let (shell, first, second) = (actor(1, 1), actor(2, 2), actor(3, 3));
    world.ledger.introduce(2, vec![1]);
    world.ledger.introduce(3, vec![1]);
    let n = world.load(first);
    world.save(actor(9, 9), 5);
    world.save(shell, n + 1);
    assert_eq!((world.value, world.uncertain), (6, 0));
    let n = world.load(first);
    world.save(actor(9, 9), 8);
    world.load(second);
    world.save(shell, n + 1);
    assert_eq!(world.uncertain, 1);
    assert!(world.value <= 9, "{}", world.value);
}

#[test]
fn what_a_process_beside_it_has_read_is_never_a_certain_base() {
    let mut world = World::new();
    let (filter, sponge, stranger) = (actor(2, 2), actor(3, 3), actor(4, 4));
    for (process, parent) in [(2, 1), (3, 1), (4, 9)] {
        world.ledger.introduce(process, vec![parent]);
    }
    world.load(filter);
    assert!(world.ledger.base_of(&slot(), sponge).is_none());
    let base = world.ledger.base_among_kin(&slot(), sponge).unwrap();
    assert_eq!((base.version, base.is_certain), (Some(1), false));
    assert!(world.ledger.base_among_kin(&slot(), stranger).is_none());
}

#[test]
fn what_nobody_has_read_is_no_base() {
    let mut world = World::new();
    world.load(actor(1, 1));
    world.save(actor(2, 2), 7);
    assert_eq!(world.value, 7);
    assert!(world.ledger.base_of(&slot(), actor(3, 3)).is_none());
}

#[test]
fn texts_are_kept_within_bounds() {
    let mut world = World::new();
    for process in 0..3 * MOST_TEXTS as u64 {
        world.load(actor(process, 1));
    }
    let kept = |world: &mut World, process| {
        let base = world.ledger.base_of(&slot(), actor(process, 1));
        matches!(base.unwrap().text, Text::Kept(_))
    };
    assert!(!kept(&mut world, 0));
    assert!(kept(&mut world, 3 * MOST_TEXTS as u64 - 1));
    world.ledger.bury(|_| Some(Duration::ZERO), |_| false);
    assert!(world.ledger.names.is_empty() && world.ledger.order.is_empty());
    assert_eq!(world.ledger.total.load(Ordering::Relaxed), 0);
}
