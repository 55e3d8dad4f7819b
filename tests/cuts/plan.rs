//! What the workers do. A worker's steps follow from its kind, number and seed alone, so that the judge
//! knows them without being told; the worker's log says only when each began and when it was acknowledged.
//!
//! Everything that a worker makes is its own: a directory, or its lines, row or member in a file that it
//! shares. So the state after any number of its steps is known, whatever the others do.

use std::collections::BTreeMap;

use crate::random::Random;

/// The newest number behind each thing that a worker owns: a path (a saved file), or `path#worker` (lines
/// in a log, a row of the grid, a member of the document).
pub type State = BTreeMap<String, u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keeps a log open that others append to as well.
    Kept,
    /// Opens that log for each line.
    Each,
    /// Has a log of its own, written in pieces, and syncs it often.
    Pieces,
    /// Writes one new text after another.
    Stream,
    Rewriter,
    Replacer,
    /// Saves with fsync, and a mapping outlives the close.
    Mapper,
    /// Saves 2 MiB from back to front.
    Large,
    Patcher,
    /// Saves, renames, removes.
    Namer,
    Editor,
    /// Makes, fills, renames and removes directories.
    Mover,
    /// Its children are killed while they write.
    Victim,
    /// Saves three files that a rule groups (C23).
    Trio,
    /// Makes, fills and removes directories that a rule groups.
    Checkpointer,
    /// Syncs files of its own on the same disk, outside the mount: the file system may write out what
    /// others have done, in its own order.
    Neighbour,
}

pub const KINDS: &[Kind] = &[
    Kind::Kept,
    Kind::Each,
    Kind::Pieces,
    Kind::Stream,
    Kind::Rewriter,
    Kind::Replacer,
    Kind::Mapper,
    Kind::Large,
    Kind::Patcher,
    Kind::Namer,
    Kind::Editor,
    Kind::Mover,
    Kind::Victim,
    Kind::Kept,
    Kind::Each,
    Kind::Patcher,
    Kind::Editor,
    Kind::Editor,
    Kind::Neighbour,
    Kind::Trio,
    Kind::Trio,
    Kind::Checkpointer,
    Kind::Checkpointer,
];

/// The files of a trio, in the order of their saves.
pub const TRIO: [&str; 3] = ["trio.weights", "trio.metrics", "trio.metadata"];

/// What lies in a checkpoint, in the order of its saves; the last makes it complete.
pub const CHECKPOINT: [&str; 4] = ["model", "part/state", "part/more", "end"];

/// The rules of all: each trio is a group, and each checkpoint.
pub fn rules() -> String {
    let files: Vec<String> = TRIO
        .iter()
        .map(|name| format!("\"w{{s}}/{name}\""))
        .collect();
    let trio = format!("[[group]]\nfiles = [{}]\n", files.join(", "));
    trio + "[[group]]\ndirectory = \"w*/checkpoint-*\"\ncomplete = [\"end\"]\n"
}

pub const LOG: &str = "lines";
pub const GRID: &str = "grid";
pub const DOCUMENT: &str = "doc.json";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Plain,
    Synced,
    Mapped,
    Large,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Save {
        path: String,
        number: u64,
        len: usize,
        way: Way,
    },
    /// All three, each whole, of one number.
    Trio {
        number: u64,
        len: usize,
        synced: bool,
    },
    /// A directory with all of its files, each whole, of one number.
    Checkpoint {
        path: String,
        number: u64,
        len: usize,
        synced: bool,
    },
    /// One line through a descriptor that stays open; `new`: of a text that begins with it.
    Line {
        path: String,
        number: u64,
        pieces: usize,
        new: bool,
    },
    /// Opens, writes one line, closes.
    OneLine {
        path: String,
        number: u64,
        synced: bool,
    },
    SyncLines,
    CloseLines,
    Patch {
        number: u64,
    },
    /// Reads the document: its text has to be written for that.
    ReadDocument,
    Edit {
        number: u64,
        synced: bool,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink(String),
    MakeDirectory(String),
    RemoveDirectory(String),
    SyncDirectory(String),
    KilledSave {
        path: String,
        number: u64,
    },
    SyncElsewhere {
        number: u64,
    },
}

impl Step {
    /// What it does to what its worker owns.
    pub fn apply(&self, me: usize, state: &mut State) {
        let shared = |path: &str| format!("{path}#{me}");
        match self {
            Step::Save { path, number, .. } => {
                state.insert(path.clone(), *number);
            }
            Step::Trio { number, .. } => {
                state.extend(TRIO.map(|name| (format!("w{me}/{name}"), *number)));
            }
            Step::Checkpoint { path, number, .. } => {
                state.extend(CHECKPOINT.map(|name| (format!("{path}/{name}"), *number)));
            }
            Step::Line { path, number, .. } | Step::OneLine { path, number, .. } => {
                state.insert(shared(path), *number);
            }
            Step::Patch { number } => {
                state.insert(shared(DOCUMENT), *number);
            }
            Step::Edit { number, .. } => {
                state.insert(shared(GRID), *number);
            }
            Step::Rename { from, to } => {
                let below = format!("{from}/");
                let moved = state
                    .keys()
                    .filter(|key| *key == from || key.starts_with(&below));
                for key in moved.cloned().collect::<Vec<_>>() {
                    let value = state.remove(&key).expect("a key");
                    state.insert(format!("{to}{}", &key[from.len()..]), value);
                }
            }
            Step::Unlink(path) => {
                state.remove(path);
                state.remove(&shared(path));
            }
            Step::SyncLines
            | Step::CloseLines
            | Step::MakeDirectory(_)
            | Step::RemoveDirectory(_)
            | Step::SyncDirectory(_)
            | Step::KilledSave { .. }
            | Step::ReadDocument
            | Step::SyncElsewhere { .. } => {}
        }
    }

    /// Has called fsync of what it wrote before it ends.
    pub fn syncs(&self) -> bool {
        match self {
            Step::Save { way, .. } => matches!(way, Way::Synced | Way::Mapped),
            Step::OneLine { synced, .. }
            | Step::Edit { synced, .. }
            | Step::Checkpoint { synced, .. }
            | Step::Trio { synced, .. } => *synced,
            Step::SyncLines | Step::SyncDirectory(_) => true,
            _ => false,
        }
    }

    /// A commit under durability=sync once it is acknowledged. Lines are when they are closed.
    pub fn is_promised_by_sync(&self) -> bool {
        matches!(
            self,
            Step::Save { .. }
                | Step::Trio { .. }
                | Step::Checkpoint { .. }
                | Step::OneLine { .. }
                | Step::SyncLines
                | Step::CloseLines
                | Step::Patch { .. }
                | Step::Edit { .. }
                | Step::Rename { .. }
                | Step::SyncDirectory(_)
        )
    }
}

/// A worker's steps, one after the other, without end.
pub struct Plan {
    kind: Kind,
    me: usize,
    random: Random,
    number: u64,
    lines: u64,
    text: u64,
    next: std::collections::VecDeque<Step>,
}

impl Plan {
    pub fn new(kind: Kind, me: usize, seed: u64) -> Plan {
        Plan {
            kind,
            me,
            random: Random::from(seed ^ (me as u64) << 40),
            number: 0,
            lines: 0,
            text: 0,
            next: std::collections::VecDeque::new(),
        }
    }

    fn own(&self, name: &str) -> String {
        format!("w{}/{name}", self.me)
    }

    fn save(&mut self, path: String, way: Way) -> Step {
        let len = match way {
            Way::Large => 2 << 20,
            _ if self.random.one_in(8) => 20_000 + self.random.below(80_000) as usize,
            _ => 100 + self.random.below(6000) as usize,
        };
        Step::Save {
            path,
            number: self.number,
            len,
            way,
        }
    }

    /// A log that stays open: lines, a sync now and then, seldom a close.
    fn kept(&mut self, path: String, pieces: usize, sync_one_in: u64) {
        self.lines += 1;
        let pieces = 1 + self.random.below(pieces as u64) as usize;
        self.next.push_back(Step::Line {
            path,
            number: self.lines,
            pieces,
            new: false,
        });
        if self.random.one_in(sync_one_in) {
            self.next.push_back(Step::SyncLines);
        }
        if self.random.one_in(12) {
            self.next.push_back(Step::CloseLines);
        }
    }

    fn stream(&mut self) {
        self.text += 1;
        let endings = ["txt", "jsonl", "txt", "ndjson"];
        let name = |text: u64| format!("out-{text}.{}", endings[text as usize % 4]);
        let path = self.own(&name(self.text));
        for line in 1..=3 + self.random.below(12) {
            self.next.push_back(Step::Line {
                path: path.clone(),
                number: line,
                pieces: 1 + self.random.below(2) as usize,
                new: line == 1,
            });
            if self.random.one_in(9) {
                self.next.push_back(Step::SyncLines);
            }
        }
        self.next.push_back(Step::CloseLines);
        if self.text > 3 {
            self.next
                .push_back(Step::Unlink(self.own(&name(self.text - 3))));
        }
    }

    fn replacer(&mut self) {
        let temporary = self.own("temporary");
        let way = if self.random.one_in(3) {
            Way::Synced
        } else {
            Way::Plain
        };
        let save = self.save(temporary.clone(), way);
        let target = format!("target-{}", self.random.below(2));
        let to = self.own(&target);
        self.next.push_back(save);
        self.next.push_back(Step::Rename {
            from: temporary,
            to,
        });
        if self.random.one_in(6) {
            let directory = format!("w{}", self.me);
            self.next.push_back(Step::SyncDirectory(directory));
        }
    }

    fn namer(&mut self) {
        let (new, kept) = (
            self.own(&format!("new-{}", self.number)),
            self.own(&format!("kept-{}", self.number)),
        );
        let save = self.save(new.clone(), Way::Plain);
        self.next.push_back(save);
        self.next.push_back(Step::Rename {
            from: new,
            to: kept,
        });
        if self.number > 3 {
            let old = self.own(&format!("kept-{}", self.number - 3));
            self.next.push_back(Step::Unlink(old));
        }
    }

    fn mover(&mut self) {
        let (made, moved) = (
            self.own(&format!("d-{}", self.number)),
            self.own(&format!("e-{}", self.number)),
        );
        self.next.push_back(Step::MakeDirectory(made.clone()));
        for name in ["a", "b"] {
            let save = self.save(format!("{made}/{name}"), Way::Plain);
            self.next.push_back(save);
        }
        self.next.push_back(Step::Rename {
            from: made,
            to: moved,
        });
        if self.number > 2 {
            let old = self.own(&format!("e-{}", self.number - 2));
            self.next.push_back(Step::Unlink(format!("{old}/a")));
            self.next.push_back(Step::Unlink(format!("{old}/b")));
            self.next.push_back(Step::RemoveDirectory(old));
        }
    }

    fn checkpointer(&mut self) {
        let path = |number: u64| format!("checkpoint-{number}");
        let len = 100 + self.random.below(9000) as usize;
        let synced = self.random.one_in(4);
        self.next.push_back(Step::Checkpoint {
            path: self.own(&path(self.number)),
            number: self.number,
            len,
            synced,
        });
        if self.number > 2 {
            let old = self.own(&path(self.number - 2));
            for name in CHECKPOINT {
                self.next.push_back(Step::Unlink(format!("{old}/{name}")));
            }
            for directory in [format!("{old}/part"), old] {
                self.next.push_back(Step::RemoveDirectory(directory));
            }
        }
    }

    fn more(&mut self) {
        self.number += 1;
        let number = self.number;
        match self.kind {
            Kind::Kept => self.kept(LOG.into(), 1, 10),
            Kind::Pieces => self.kept(self.own("pieces"), 2, 3),
            Kind::Each => {
                let synced = self.random.one_in(6);
                self.next.push_back(Step::OneLine {
                    path: LOG.into(),
                    number,
                    synced,
                });
            }
            Kind::Stream => self.stream(),
            Kind::Rewriter => {
                let name = format!("state-{}", self.random.below(3));
                let path = self.own(&name);
                let way = if self.random.one_in(4) {
                    Way::Synced
                } else {
                    Way::Plain
                };
                let save = self.save(path, way);
                self.next.push_back(save);
            }
            Kind::Replacer => self.replacer(),
            Kind::Mapper => {
                let path = self.own(&format!("mapped-{number}"));
                let save = self.save(path, Way::Mapped);
                self.next.push_back(save);
                if number > 3 {
                    let old = self.own(&format!("mapped-{}", number - 3));
                    self.next.push_back(Step::Unlink(old));
                }
            }
            Kind::Large => {
                let save = self.save(self.own("large"), Way::Large);
                self.next.push_back(save);
            }
            Kind::Patcher => {
                self.next.push_back(Step::Patch { number });
                if self.random.one_in(6) {
                    self.next.push_back(Step::ReadDocument);
                }
            }
            Kind::Trio => {
                let len = 100 + self.random.below(9000) as usize;
                let synced = self.random.one_in(4);
                self.next.push_back(Step::Trio {
                    number,
                    len,
                    synced,
                });
            }
            Kind::Checkpointer => self.checkpointer(),
            Kind::Namer => self.namer(),
            Kind::Editor => {
                let synced = self.random.one_in(5);
                self.next.push_back(Step::Edit { number, synced });
            }
            Kind::Mover => self.mover(),
            Kind::Neighbour => self.next.push_back(Step::SyncElsewhere { number }),
            Kind::Victim => self.next.push_back(Step::KilledSave {
                path: self.own(&format!("victim-{number}")),
                number,
            }),
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        while self.next.is_empty() {
            self.more();
        }
        self.next.pop_front()
    }
}
