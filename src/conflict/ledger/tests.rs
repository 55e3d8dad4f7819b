//! Counters that simulated programs keep in one file, each in its own way of loading and saving:
//! where the base is certain nothing is lost, and nothing is counted twice anywhere.

use std::collections::HashMap;
use std::io::{Read, Seek, Write};

use super::*;
use crate::json::Value;

/// A file with a counter on which every save is merged.
struct World {
    ledger: Ledger,
    node: NodeId,
    value: i64,
    files: HashMap<NodeId, Arc<File>>,
    uncertain: u32,
    ended: HashSet<ProcessId>,
    time: u64,
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

fn dentry() -> Dentry {
    Dentry {
        dir: NodeId(1),
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
            node: NodeId(1),
            value: 0,
            files: HashMap::from([(NodeId(1), file_of(0))]),
            uncertain: 0,
            ended: HashSet::new(),
            time: 0,
        }
    }

    /// Later than all before, and other processes may have been started since.
    fn now(&mut self) -> u64 {
        self.time += 2;
        self.time
    }

    fn load(&mut self, actor: Actor) -> i64 {
        let file = self.files[&self.node].clone();
        let now = Some(Moment::at(self.now()));
        self.ledger
            .note_read(&dentry(), actor, Some((self.node, &file)), now);
        self.value
    }

    fn base(&mut self, actor: Actor) -> Option<Base> {
        let ended = &self.ended;
        let has_ended = |process| ended.contains(&process);
        self.ledger.base_of(&dentry(), actor, has_ended)
    }

    fn save(&mut self, actor: Actor, mine: i64) {
        let base = self.base(actor);
        self.save_on(actor, base, mine);
    }

    fn save_on(&mut self, actor: Actor, base: Option<Base>, mine: i64) {
        let begun = self.ledger.now();
        let mut merged = mine;
        let mut is_uncertain = false;
        if let Some(base) = base {
            let stale = base.version != Some(self.node);
            let doubts = base.doubts.as_ref();
            let goes_back = doubts.is_some_and(|doubts| goes_back(doubts, mine));
            is_uncertain = goes_back || stale && !base.is_certain;
            self.uncertain += u32::from(goes_back || !base.is_certain);
            if stale
                && !is_uncertain
                && let Text::Kept(kept) = &base.text
            {
                merged = self.value + mine - value_of(&kept.file);
            }
        }
        self.node = self.node.next();
        self.value = merged;
        self.files.insert(self.node, file_of(merged));
        let text = self.ledger.keep(file_of(mine));
        let saved = Saved {
            begun,
            version: self.node,
            is_merged: merged != mine,
            is_uncertain,
        };
        let now = Some(Moment::at(self.now()));
        let ended = &self.ended;
        let has_ended = |process| ended.contains(&process);
        let text = (text, now);
        self.ledger
            .note_saved(&dentry(), actor, saved, text, has_ended);
    }
}

fn goes_back(doubts: &Doubts, mine: i64) -> bool {
    let value = |text: &Text| match text {
        Text::Kept(kept) => Value::Number((value_of(&kept.file) as u64).into()),
        _ => panic!("kept texts only"),
    };
    let mine = Value::Number((mine as u64).into());
    let mut earlier = doubts.earlier.iter().map(value);
    earlier.any(|e| crate::json::goes_back(&e, &value(&doubts.written), &mine))
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
    world.ended.extend([2, 3]);
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
fn threads_that_read_again_to_compare_before_they_save_lose_nothing() {
    for seed in 0..20 {
        let mut world = World::new();
        let mut dice = Dice(seed);
        let mut left = [20; 8];
        let mut loaded = [None; 8];
        while left.iter().any(|n| *n > 0) {
            let worker = dice.below(8);
            let by = actor(1, worker as u32);
            if left[worker] == 0 {
                continue;
            }
            // Loads, loads again and compares, and begins anew if the two differ.
            let Some((first, second)) = loaded[worker] else {
                loaded[worker] = Some((world.load(by), None));
                continue;
            };
            match second {
                None => loaded[worker] = Some((first, Some(world.load(by)))),
                Some(second) => {
                    loaded[worker] = None;
                    if first == second {
                        world.save(by, first + 1);
                        left[worker] -= 1;
                    }
                }
            }
        }
        assert_eq!((world.value, world.uncertain), (160, 0), "seed {seed}");
    }
}

#[test]
fn what_coroutines_on_one_thread_take_back_is_not_certain() {
    let mut world = World::new();
    let me = actor(1, 1);
    let loaded: Vec<i64> = (0..12).map(|_| world.load(me)).collect();
    world.save(me, loaded[0] + 1);
    for one in &loaded[1..] {
        // The last to have saved has loaded again.
        world.load(me);
        world.save(me, one + 1);
    }
    assert_eq!(world.uncertain, 11);
}

#[test]
fn what_children_read_for_themselves_is_none_of_their_parents() {
    let mut world = World::new();
    world.ledger.introduce(2, vec![1]);
    let (parent, child) = (actor(1, 1), actor(2, 2));
    let mine = world.load(parent);
    let its = world.load(child);
    world.save(parent, mine + 1);
    // The parent keeps what it has saved in memory.
    world.save(parent, mine + 2);
    world.save(child, its + 1);
    world.load(child);
    world.save(parent, mine + 3);
    assert_eq!((world.value, world.uncertain), (4, 0));
}

#[test]
fn a_forked_child_goes_on_from_what_its_parent_had_by_then() {
    let mut world = World::new();
    let parent = actor(1, 1);
    let n = world.load(parent);
    let forked = world.now();
    for child in 2..5 {
        world.ledger.introduce(child, vec![1]);
    }
    world.save(parent, n + 1);
    let read = world.load(parent);
    for child in 2..4 {
        let by = actor(child, child as u32);
        assert!(world.base(by).is_none());
        let start = || Some(Start::at(forked, true));
        let base = world.ledger.base_inherited(&dentry(), by, start);
        world.save_on(by, base, n + 1);
    }
    world.save(parent, read + 1);
    assert_eq!((world.value, world.uncertain), (4, 0));
    // One that has called execve has nothing in memory; one that was there before has read nothing.
    let other = actor(4, 4);
    let start = || Some(Start::at(forked, false));
    let base = world.ledger.base_inherited(&dentry(), other, start);
    assert!(!base.unwrap().is_certain);
    let start = || Some(Start::at(1, true));
    let base = world.ledger.base_inherited(&dentry(), other, start);
    assert!(base.is_none());
}

#[test]
fn who_was_refused_has_a_base_again_only_once_it_has_read() {
    let mut world = World::new();
    let me = actor(1, 1);
    let n = world.load(me);
    world.save(actor(2, 2), 5);
    world.ledger.note_refused(&dentry(), me);
    let base = world.base(me).unwrap();
    assert_eq!((base.version, base.is_certain), (None, false));
    assert!(matches!(base.text, Text::Dropped));
    world.save(me, n + 1);
    assert_eq!(world.value, 1, "the last close wins");
    assert!(!world.base(me).unwrap().is_certain);
    world.load(me);
    assert!(world.base(me).unwrap().is_certain);
}

#[test]
fn what_is_only_staged_is_never_a_certain_base() {
    let mut world = World::new();
    let me = actor(1, 1);
    world.load(me);
    world.ledger.note_staged_read(&dentry(), me, None);
    let base = world.base(me).unwrap();
    assert!(matches!(base.text, Text::Dropped));
}

#[test]
fn what_a_process_beside_it_has_read_is_never_a_certain_base() {
    let mut world = World::new();
    let (filter, sponge, stranger) = (actor(2, 2), actor(3, 3), actor(4, 4));
    for (process, parent) in [(2, 1), (3, 1), (4, 9)] {
        world.ledger.introduce(process, vec![parent]);
    }
    world.load(filter);
    assert!(world.base(sponge).is_none());
    let base = world.ledger.base_among_kin(&dentry(), sponge).unwrap();
    assert_eq!((base.version, base.is_certain), (Some(NodeId(1)), false));
    assert!(world.ledger.base_among_kin(&dentry(), stranger).is_none());
}

#[test]
fn what_nobody_has_read_is_no_base() {
    let mut world = World::new();
    world.load(actor(1, 1));
    world.save(actor(2, 2), 7);
    assert_eq!(world.value, 7);
    assert!(world.base(actor(3, 3)).is_none());
}

#[test]
fn texts_are_kept_within_bounds() {
    let mut world = World::new();
    for process in 0..3 * MOST_TEXTS as u64 {
        world.load(actor(process, 1));
    }
    let kept = |world: &mut World, process| {
        let base = world.base(actor(process, 1));
        matches!(base.unwrap().text, Text::Kept(_))
    };
    assert!(!kept(&mut world, 0));
    assert!(kept(&mut world, 3 * MOST_TEXTS as u64 - 1));
    world
        .ledger
        .forget_ended(|_| Some(Duration::ZERO), |_| false);
    assert!(world.ledger.names.is_empty() && world.ledger.order.is_empty());
    assert_eq!(world.ledger.total.load(Ordering::Relaxed), 0);
}
