//! That the simulated medium loses what it may, and nothing else.

use crate::medium::Medium;
use crate::random::Random;
use crate::tree::{Ino, Kind, Operation, TOP, Tree, from_bytes, to_bytes};

const ONE: Ino = 11;
const OTHER: Ino = 12;
const FILE: Ino = 13;

fn enter(dir: Ino, name: &str, ino: Ino) -> Operation {
    let name = name.as_bytes().to_vec();
    Operation::Enter { dir, name, ino }
}

fn leave(dir: Ino, name: &str) -> Operation {
    let name = name.as_bytes().to_vec();
    Operation::Leave { dir, name }
}

fn moved(from: (Ino, &str), to: (Ino, &str)) -> Operation {
    let name = |(dir, name): (Ino, &str)| (dir, name.as_bytes().to_vec());
    Operation::Move {
        from: name(from),
        to: name(to),
        exchange: false,
    }
}

fn write(data: &[u8]) -> Operation {
    Operation::Write {
        ino: FILE,
        offset: 0,
        data: data.to_vec(),
    }
}

/// Two directories and a file without a name, on the medium.
fn begun() -> Medium {
    let mut medium = Medium::new();
    for (ino, kind) in [
        (ONE, Kind::Directory),
        (OTHER, Kind::Directory),
        (FILE, Kind::File),
    ] {
        medium.act(&Operation::Make {
            ino,
            kind,
            mode: 0o700,
        });
    }
    medium.act(&enter(TOP, "one", ONE));
    medium.act(&enter(TOP, "other", OTHER));
    medium.act(&Operation::SyncAll);
    medium
}

/// What may be there after a cut, of many.
fn all_cuts(medium: &Medium) -> Vec<Tree> {
    let cut = |seed| {
        medium.cut(
            [3, 25, 50, 75, 97][seed as usize % 5],
            &mut Random::from(seed),
        )
    };
    (0..2000).map(cut).collect()
}

fn places(tree: &Tree) -> (bool, bool) {
    let is_there = |dir, name: &[u8]| tree.find(dir, name) == Some(FILE);
    (is_there(ONE, b"a"), is_there(OTHER, b"b"))
}

#[test]
fn what_was_synced_is_there_and_of_the_rest_anything() {
    let mut medium = begun();
    medium.act(&enter(ONE, "a", FILE));
    medium.act(&write(&[1; 2048]));
    medium.act(&Operation::SyncData { ino: FILE });
    medium.act(&write(&[2; 2048]));
    let cuts = all_cuts(&medium);
    let contents = cuts.iter().map(|tree| &*tree.get(FILE).unwrap().data);
    let sectors: Vec<Vec<u8>> = contents
        .map(|data| data.chunks(512).map(|sector| sector[0]).collect())
        .collect();
    assert!(sectors.iter().flatten().all(|byte| [1, 2].contains(byte)));
    for seen in [[1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 1, 1]] {
        assert!(sectors.iter().any(|sectors| *sectors == seen), "{seen:?}");
    }
    let named = cuts.iter().filter(|tree| places(tree).0).count();
    assert!((1..cuts.len()).contains(&named), "{named}");
    medium.act(&Operation::Sync { ino: ONE });
    assert!(all_cuts(&medium).iter().all(|tree| places(tree).0));
}

#[test]
fn a_file_that_is_moved_elsewhere_is_somewhere() {
    let mut medium = begun();
    medium.act(&enter(ONE, "a", FILE));
    medium.act(&Operation::SyncAll);
    medium.act(&moved((ONE, "a"), (OTHER, "b")));
    let mut seen: Vec<(bool, bool)> = all_cuts(&medium).iter().map(places).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [(false, true), (true, false), (true, true)]);
    medium.act(&Operation::Sync { ino: ONE });
    let gone = all_cuts(&medium)
        .iter()
        .map(places)
        .all(|at| at == (false, true));
    assert!(gone, "the old name can't go before the new one is there");
}

#[test]
fn a_directory_that_is_gone_was_empty() {
    let mut medium = begun();
    medium.act(&enter(ONE, "a", FILE));
    medium.act(&Operation::SyncAll);
    medium.act(&leave(ONE, "a"));
    medium.act(&leave(TOP, "one"));
    medium.act(&Operation::Sync { ino: TOP });
    let left = |tree: &Tree| places(tree).0;
    assert!(!all_cuts(&medium).iter().any(left));
}

#[test]
fn what_was_done_comes_back_as_it_was_written_down() {
    let mut done = Vec::new();
    for (time, operation) in [
        enter(ONE, "a", FILE),
        moved((ONE, "a"), (OTHER, "b")),
        write(b"text"),
        Operation::Attribute {
            ino: FILE,
            name: b"user.x".to_vec(),
            value: Some(b"1".to_vec()),
        },
        Operation::SyncAll,
    ]
    .into_iter()
    .enumerate()
    {
        let time = time as u64;
        done.push(crate::tree::Done { time, operation });
    }
    let read = from_bytes(&to_bytes(&done));
    let operations = |all: &[crate::tree::Done]| -> Vec<Operation> {
        all.iter().map(|done| done.operation.clone()).collect()
    };
    assert_eq!(operations(&read), operations(&done));
}
