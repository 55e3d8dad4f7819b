//! Random programs against the contract (C1 to C12, C14 to C16, C18, C21, C22). What goes wrong in
//! practice is not any single call but a combination nobody thought of: a file renamed while its
//! child still writes, a claim whose directory moves, an exec between a mapping and the daemon's
//! death.
//!
//! Several processes do one system call after another on a real mount. After each one, every
//! process and a stranger look at every name and through every descriptor, and must find what
//! `model/world.rs` says. proptest shrinks what fails; a shrunk failure is kept below as a test of
//! its own.
//!
//! The same search runs with the engine in this process, under a simulated kernel (`simulated/`), many times as fast.
//! What it finds it tries on a mount as well, and says which of the two agrees: only what fails there, too, is surely the engine's fault
//! or the model's. All programs that are kept run on both.
//!
//! `COMMITFS_MODEL_SECONDS` says how long to search, `COMMITFS_MODEL_PROGRAMS` how many programs to try
//! at most, `COMMITFS_MODEL_THEME` what they are about (`Streams`), `COMMITFS_SEED` repeats a search, and `PROPTEST_MAX_SHRINK_ITERS=0` reports the first
//! failure as it is. With `COMMITFS_MODEL_GO_ON` a search goes on after it; `COMMITFS_SIMULATED_PROGRAMS` is the number of programs for the
//! simulated kernel, and `COMMITFS_MODEL_THREADS` says how many such searches run side by side.

mod common;
#[path = "model/found.rs"]
mod found;
#[path = "model/place.rs"]
mod place;
mod simulated;
#[path = "model/world.rs"]
mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::{Actor, Failure, times};
use place::{Mounted, Place};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use world::locks::Call;
use world::shared::SIGNATURE;
use world::{Found, Mode, STRANGER, Slot, Told, World};

/// What a program is about besides what all are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    Plain,
    /// Some names are guarded (C21), and what is written are documents, and parts of them.
    Documents,
    /// Some names are in direct mode (C14).
    Direct,
    /// Some of what is written are databases (C14).
    Databases,
    /// Some new names are text streams' (C10).
    Streams,
}

impl Theme {
    /// Where files may be.
    fn files(self) -> [&'static str; FILES] {
        match self {
            Theme::Plain | Theme::Databases => ["a", "b", "c", "d/x", "e/x"],
            Theme::Streams => ["a.txt", "b.csv", "c", "d/x.jsonl", "e/x"],
            Theme::Direct => ["a.log", "b", "c", "d/x.log", "e/x"],
            Theme::Documents => ["a.json", "b", "c", "d/x.json", "e/x"],
        }
    }
}

/// How many files there may be, and where directories may.
const FILES: usize = 5;
const DIRS: [&str; 3] = ["c", "d", "e"];
/// Processes to begin with, and at most.
const FIRST: usize = 3;
const MOST: usize = 5;

/// One step. The numbers choose among the processes, descriptors and names there are, so that a
/// program stays one when steps are left out.
#[derive(Clone, Debug)]
enum Op {
    Open(u8, u8, Mode, bool),
    Write(u8, u16),
    Pwrite(u8, u16, u16),
    Truncate(u8, u16),
    FailingWrite(u8),
    Fsync(u8),
    /// Alone, or with others; without waiting.
    Lock(u8, bool),
    Unlock(u8),
    /// fcntl's, the process's or the description's: from a byte on, so many of them.
    LockBytes(u8, By, u8, u8, bool),
    UnlockBytes(u8, By, u8, u8),
    Dup(u8),
    Close(u8),
    Save(u8, u8, u16),
    Append(u8, u8),
    /// One rewrites a file while another saves it, and closes last.
    Overtaken(u8, u8, u8),
    TruncatePath(u8, u8, u16),
    Map(u8),
    MapWrite(u8, u16),
    Unmap(u8),
    Fork(u8),
    /// Another thread.
    Thread(u8),
    Exec(u8),
    Exit(u8),
    Kill(u8, bool),
    Rename(u8, u8, u8),
    RenameDir(u8, u8, u8),
    /// Where there is nothing, as mv(1) does.
    RenameNew(u8, u8, u8),
    Chmod(u8, u8, bool),
    Exchange(u8, u8, u8),
    /// Adds 1 in a document: in whatever version is current, or only in that, or in the one before.
    Patch(u8, u8, Option<bool>),
    /// The same, and the daemon is killed at once.
    PatchAndStrike(u8, u8),
    Link(u8, u8, u8),
    Unlink(u8, u8),
    Mkdir(u8, u8),
    Rmdir(u8, u8),
    /// Everything is closed, and the file system mounted anew.
    Remount,
    /// The daemon is killed, maybe at once after a close.
    Strike(Option<u8>),
    /// One edits a file in place and calls fsync, another adds to it, and the daemon is killed.
    AddedToSynced(u8, u8, u8),
}

/// Whose an fcntl lock is.
#[derive(Clone, Copy, Debug)]
enum By {
    Process,
    Description,
}

impl By {
    /// `len` 0: all bytes from `first` on.
    fn call(self, first: u8, len: u8) -> Call {
        let first = first.into();
        let last = match len {
            0 => u64::MAX,
            len => first + u64::from(len) - 1,
        };
        match self {
            By::Process => Call::Process(first, last),
            By::Description => Call::Open(first, last),
        }
    }
}

use Op::*;

fn an_op() -> impl Strategy<Value = Op> {
    let who = 0..MOST as u8;
    let file = 0..FILES as u8;
    let dir = 0..DIRS.len() as u8;
    let one = 0..12u8;
    let len = prop_oneof![8 => 0..60u16, 1 => Just(4200u16)];
    let mode = prop_oneof![
        4 => Just(Mode::Rewrite),
        3 => Just(Mode::RewriteAndRead),
        2 => Just(Mode::Exclusive),
        2 => Just(Mode::Edit),
        1 => Just(Mode::EditAtOnce),
        3 => Just(Mode::Read),
        3 => Just(Mode::Append),
        2 => Just(Mode::AppendAndRead),
    ];
    // Where many meet.
    let in_place = prop_oneof![
        3 => Just(Mode::Edit),
        1 => Just(Mode::EditAtOnce),
        2 => Just(Mode::AppendAndRead),
    ];
    let cloexec = prop_oneof![3 => Just(false), 1 => Just(true)];
    let by = prop_oneof![3 => Just(By::Process), 1 => Just(By::Description)];
    // A lock of the whole may be taken for flock's.
    let (from, count) = (1..6u8, 0..4u8);
    prop_oneof![
        16 => (who.clone(), file.clone(), mode, cloexec).prop_map(|(w, f, m, c)| Open(w, f, m, c)),
        8 => (who.clone(), in_place).prop_map(|(w, m)| Open(w, 0, m, false)),
        12 => (one.clone(), len.clone()).prop_map(|(h, n)| Write(h, n)),
        3 => (one.clone(), 0..80u16, 0..40u16).prop_map(|(h, at, n)| Pwrite(h, at, n)),
        2 => (one.clone(), 0..80u16).prop_map(|(h, n)| Truncate(h, n)),
        1 => one.clone().prop_map(FailingWrite),
        3 => one.clone().prop_map(Fsync),
        8 => (one.clone(), any::<bool>()).prop_map(|(h, alone)| Lock(h, alone)),
        6 => one.clone().prop_map(Unlock),
        8 => (one.clone(), by.clone(), from.clone(), count.clone(), any::<bool>())
            .prop_map(|(h, by, at, n, alone)| LockBytes(h, by, at, n, alone)),
        4 => (one.clone(), by, from, count).prop_map(|(h, by, at, n)| UnlockBytes(h, by, at, n)),
        4 => one.clone().prop_map(Dup),
        10 => one.clone().prop_map(Close),
        3 => (who.clone(), file.clone(), len.clone()).prop_map(|(w, f, n)| Save(w, f, n)),
        1 => (who.clone(), file.clone()).prop_map(|(w, f)| Append(w, f)),
        2 => (who.clone(), who.clone(), file.clone()).prop_map(|(w, o, f)| Overtaken(w, o, f)),
        2 => (who.clone(), file.clone(), 0..80u16).prop_map(|(w, f, n)| TruncatePath(w, f, n)),
        1 => (who.clone(), file.clone(), any::<bool>()).prop_map(|(w, f, all)| Chmod(w, f, all)),
        2 => one.clone().prop_map(Map),
        3 => (one.clone(), 0..80u16).prop_map(|(m, at)| MapWrite(m, at)),
        2 => one.clone().prop_map(Unmap),
        4 => who.clone().prop_map(Fork),
        1 => who.clone().prop_map(Thread),
        2 => who.clone().prop_map(Exec),
        2 => who.clone().prop_map(Exit),
        5 => (who.clone(), any::<bool>()).prop_map(|(w, hard)| Kill(w, hard)),
        6 => (who.clone(), file.clone(), file.clone()).prop_map(|(w, a, b)| Rename(w, a, b)),
        2 => (who.clone(), dir.clone(), dir.clone()).prop_map(|(w, a, b)| RenameDir(w, a, b)),
        3 => (who.clone(), file.clone(), file.clone()).prop_map(|(w, a, b)| Link(w, a, b)),
        2 => (who.clone(), file.clone(), file.clone()).prop_map(|(w, a, b)| Exchange(w, a, b)),
        4 => (who.clone(), file.clone()).prop_map(|(w, f)| Unlink(w, f)),
        2 => (who.clone(), dir.clone()).prop_map(|(w, d)| Mkdir(w, d)),
        2 => (who.clone(), dir).prop_map(|(w, d)| Rmdir(w, d)),
        1 => Just(Remount),
        2 => proptest::option::of(one).prop_map(Strike),
        2 => (who.clone(), who, file).prop_map(|(w, o, f)| AddedToSynced(w, o, f)),
    ]
}

/// Whether the kernel tells of it, or of what follows, in the way that the model knows.
fn is_told_of(op: &Op) -> bool {
    match op {
        // Who has a file open doesn't see it grow, and each line makes another version.
        Open(_, _, Mode::Append | Mode::AppendAndRead, _) | Append(..) | AddedToSynced(..) => {
            common::has_features(&["direct_io_allow_mmap"])
        }
        Lock(..) | Unlock(_) | LockBytes(..) | UnlockBytes(..) => {
            common::has_features(&["flock_locks", "posix_locks"])
        }
        // How the owner of a mapping has died can't be asked once its parent has waited for it.
        Map(_) => common::has_features(&["pidfd-info"]),
        _ => true,
    }
}

/// One of those that tell most of guards.
fn a_document_op() -> impl Strategy<Value = Op> {
    let who = 0..MOST as u8;
    let file = 0..FILES as u8;
    let len = 0..60u16;
    prop_oneof![
        2 => (who.clone(), file.clone(), len).prop_map(|(w, f, n)| Save(w, f, n)),
        1 => (who.clone(), file.clone(), file.clone()).prop_map(|(w, a, b)| RenameNew(w, a, b)),
        3 => (who.clone(), file.clone(), proptest::option::of(any::<bool>()))
            .prop_map(|(w, f, n)| Patch(w, f, n)),
        1 => (who.clone(), file.clone()).prop_map(|(w, f)| PatchAndStrike(w, f)),
        1 => (who, file.clone(), file).prop_map(|(w, a, b)| Exchange(w, a, b)),
    ]
}

/// One of those that tell most of databases.
fn a_database_op() -> impl Strategy<Value = Op> {
    let (who, file) = (0..MOST as u8, 0..FILES as u8);
    let mode = prop_oneof![3 => Just(Mode::Share), 1 => Just(Mode::Edit), 1 => Just(Mode::Read)];
    prop_oneof![
        4 => (who.clone(), file.clone(), mode).prop_map(|(w, f, m)| Open(w, f, m, false)),
        1 => (who, file).prop_map(|(w, f)| Save(w, f, 0)),
        2 => (0..12u8, 0..40u16).prop_map(|(h, n)| Write(h, n)),
    ]
}

fn a_program() -> impl Strategy<Value = (Theme, Vec<Op>)> {
    let many = 1..40;
    let documents = prop_oneof![5 => an_op(), 1 => a_document_op()];
    let databases = prop_oneof![2 => an_op(), 1 => a_database_op()];
    let asked = std::env::var("COMMITFS_MODEL_THEME").unwrap_or_default();
    let weight = |theme: Theme, usual| match asked == format!("{theme:?}") {
        true => 1000,
        false => usual,
    };
    prop_oneof![
        weight(Theme::Plain, 8) => (Just(Theme::Plain), vec(an_op(), many.clone())),
        weight(Theme::Direct, 1) => (Just(Theme::Direct), vec(an_op(), many.clone())),
        weight(Theme::Databases, 1) => (Just(Theme::Databases), vec(databases, many.clone())),
        weight(Theme::Streams, 1) => (Just(Theme::Streams), vec(an_op(), many.clone())),
        weight(Theme::Documents, 3) => (Just(Theme::Documents), vec(documents, many)),
    ]
}

/// A mount that serves many programs, each in a directory of its own.
struct Stage {
    place: Box<dyn Place>,
    stranger: Actor,
    programs: u32,
}

impl Stage {
    fn new(limit: Duration) -> Option<Stage> {
        Some(Stage::on(Box::new(Mounted::new(limit)?)))
    }

    fn on(place: Box<dyn Place>) -> Stage {
        let stranger = place.actor();
        Stage {
            place,
            stranger,
            programs: 0,
        }
    }

    /// Runs a program; after a failure the mount is a new one.
    fn run(&mut self, theme: Theme, program: &[Op]) -> Result<(), String> {
        self.programs += 1;
        let name = format!("program-{}", self.programs);
        let mut case = Case {
            stage: self,
            theme,
            name,
            world: World::new(),
            looks: BTreeMap::new(),
            actors: BTreeMap::new(),
            step: 0,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| case.run(program)));
        let Ok(Ok(())) = outcome else {
            case.stage.place.kill();
            case.end_all();
            self.place.mount();
            self.stranger = self.place.actor();
            return match outcome {
                Ok(result) => result,
                Err(panic) => Err(match panic.downcast_ref::<String>() {
                    Some(text) => text.clone(),
                    None => "a step panicked".into(),
                }),
            };
        };
        case.end_all();
        Ok(())
    }
}

struct Case<'a> {
    stage: &'a mut Stage,
    theme: Theme,
    name: String,
    world: World,
    /// What stat(2) has said of names: of which version, its inode's number and time.
    looks: BTreeMap<String, (u32, u64, i64)>,
    actors: BTreeMap<u32, Actor>,
    step: usize,
}

impl Case<'_> {
    fn run(&mut self, program: &[Op]) -> Result<(), String> {
        while self.actors.len() < FIRST {
            self.spawn();
        }
        let first = *self.actors.keys().next().expect("a process");
        let root = self.stage.place.path(&self.name);
        let made = self.actor(first).mkdir(&root);
        made.map_err(|e| format!("mkdir: {e:?}"))?;
        self.mkdir(first, "d")?;
        let content = match self.theme {
            Theme::Plain | Theme::Direct | Theme::Streams => b"as it was".to_vec(),
            Theme::Databases => Vec::new(),
            Theme::Documents => self.document(0),
        };
        self.save(first, self.theme.files()[0], &content)?;
        // Another than files are created with here, for its next version to keep.
        self.chmod(first, self.theme.files()[0], 0o666)?;
        for (n, op) in program.iter().enumerate() {
            self.step = n + 1;
            self.perform(op)
                .and_then(|()| self.settle())
                .and_then(|()| self.admit())
                .and_then(|()| self.compare(self.step == program.len()))
                .and_then(|()| self.compare_looks())
                .map_err(|why| format!("step {n}, {op:?}: {why}"))?;
        }
        self.check_errors()?;
        self.check_rejected()
    }

    fn spawn(&mut self) {
        let id = self.world.spawn(None);
        self.actors.insert(id, self.stage.place.actor());
    }

    fn end_all(&mut self) {
        for (who, actor) in &mut self.actors {
            // A thread goes with its process, and that number may be another's then.
            if self.world.process_of(*who) == *who {
                actor.kill(libc::SIGKILL);
            }
        }
    }

    fn actor(&mut self, who: u32) -> &mut Actor {
        self.actors.get_mut(&who).expect("it lives")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.stage.place.path(&self.name).join(name)
    }

    /// Who waits in a system call can do no other.
    fn process(&self, n: u8) -> u32 {
        let all = self.actors.keys().copied();
        let all: Vec<u32> = all.filter(|who| !self.world.waits(*who)).collect();
        all[n as usize % all.len()]
    }

    /// A descriptor, and who is to use it.
    fn handle(&self, n: u8, writing: bool) -> Option<(u32, String)> {
        let mut all = self.world.handles(writing);
        all.retain(|(who, _)| self.free_thread(*who, n).is_some());
        let (who, slot) = all.get(n as usize % all.len().max(1))?.clone();
        Some((self.free_thread(who, n)?, slot))
    }

    /// One of a process's threads that don't wait.
    fn free_thread(&self, process: u32, n: u8) -> Option<u32> {
        let mut all = self.world.threads_of(process);
        all.retain(|who| !self.world.waits(*who));
        all.get(n as usize % all.len().max(1)).copied()
    }

    /// Whether the contract doesn't say what the process finds that is to do something by name.
    fn is_unsure(&self, op: &Op) -> bool {
        let (who, names): (&u8, Vec<&str>) = match op {
            TruncatePath(who, name, _)
            | Chmod(who, name, _)
            | Patch(who, name, _)
            | PatchAndStrike(who, name)
            | Unlink(who, name) => (who, vec![self.theme.files()[*name as usize]]),
            Rename(who, a, b) | RenameNew(who, a, b) | Exchange(who, a, b) | Link(who, a, b) => {
                (who, [a, b].map(|n| self.theme.files()[*n as usize]).into())
            }
            RenameDir(who, a, b) => (who, [a, b].map(|n| DIRS[*n as usize]).into()),
            Mkdir(who, dir) | Rmdir(who, dir) => (who, vec![DIRS[*dir as usize]]),
            _ => return false,
        };
        let who = self.process(*who);
        names.iter().any(|name| self.world.is_unsure_at(who, name))
    }

    /// Content that tells where it comes from, often with whole lines.
    fn data(&self, len: u16) -> Vec<u8> {
        if self.theme == Theme::Documents && len > 0 {
            return self.document(len);
        }
        let (mark, len) = (format!("{}.", self.step), len as usize);
        if self.theme == Theme::Databases && len % 4 == 0 && len > 0 {
            return [SIGNATURE, mark.as_bytes()].concat();
        }
        let mut data: Vec<u8> = mark.bytes().cycle().take(len).collect();
        if len % 3 > 0 {
            data[len - 1] = b'\n';
        }
        if len % 5 == 4 {
            data[len / 2] = b'\n';
        }
        data
    }

    /// A document, half of one, or something else.
    fn document(&self, n: u16) -> Vec<u8> {
        let step = self.step;
        let (head, tail) = (
            format!("{{\"n\": {step}, "),
            format!("\"by\": [{step}, {n}]}}\n"),
        );
        let text = match n % 6 {
            0..3 => head + &tail,
            3 => head,
            4 => tail,
            _ => format!("plain {step}\n"),
        };
        text.into_bytes()
    }

    fn perform(&mut self, op: &Op) -> Result<(), String> {
        let files = self.theme.files();
        let file = |n: &u8| files[*n as usize];
        let dir = |n: &u8| DIRS[*n as usize];
        let maps = matches!(op, Map(_)) && !self.stage.place.maps_files();
        if maps || !is_told_of(op) || self.is_unsure(op) {
            return Ok(());
        }
        match op {
            Open(who, name, mode, cloexec) => {
                let slot = format!("f{}", self.world.number());
                self.open(self.process(*who), file(name), *mode, &slot, *cloexec)?;
            }
            Save(who, name, len) => {
                let data = self.data(*len);
                self.save(self.process(*who), file(name), &data)?;
            }
            Append(who, name) => self.append(self.process(*who), file(name))?,
            Overtaken(who, other, name) => {
                let (who, other, name) = (self.process(*who), self.process(*other), file(name));
                let slot = format!("f{}", self.world.number());
                if !self.open(who, name, Mode::Rewrite, &slot, false)? {
                    return Ok(());
                }
                self.on_descriptor(&Write(0, 20), who, &slot)?;
                let data = self.data(30);
                self.save(other, name, &data)?;
                self.compare_looks()?;
                self.on_descriptor(&Close(0), who, &slot)?;
            }
            TruncatePath(who, name, len) => {
                let (who, path) = (self.process(*who), self.path(file(name)));
                let Some(expected) = self.world.truncate_path(who, file(name), *len as usize)
                else {
                    return Ok(());
                };
                let found = self.actor(who).truncate(&path, (*len).into());
                agree(Some(expected), found)?;
            }
            Fork(who) if self.actors.len() < MOST => {
                let who = self.process(*who);
                // Nothing tells the file system that a mapping alone was inherited.
                if self.world.holds_by_mapping_alone(who) {
                    return Ok(());
                }
                let child = self.actor(who).fork();
                let id = self.world.spawn(Some(who));
                self.actors.insert(id, child);
            }
            Fork(_) => {}
            Thread(who) if self.actors.len() < MOST => {
                let who = self.process(*who);
                let actor = self.actor(who).thread();
                self.actors.insert(self.world.thread(who), actor);
            }
            Thread(_) => {}
            Exec(who) => {
                let who = self.process(*who);
                if self.world.has_threads(who) || self.world.ends_in_any_order(who) {
                    return Ok(());
                }
                self.world.exec(who);
                let kept: Vec<String> = self.world.process(who).slots.keys().cloned().collect();
                let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
                self.actor(who).exec_again(&kept);
            }
            Exit(who) => {
                let who = self.process(*who);
                if self.world.ends_in_any_order(who) || self.world.leaves_heirs_beside_others(who) {
                    return Ok(());
                }
                let threads = self.world.end(who, false);
                self.actor(who).exit(3);
                self.bury(&threads);
            }
            Kill(who, hard) => {
                // One who waits, too.
                let all: Vec<u32> = self.actors.keys().copied().collect();
                let who = all[*who as usize % all.len()];
                if self.world.leaves_heirs_beside_others(who) {
                    return Ok(());
                }
                let threads = self.world.end(who, true);
                let signal = if *hard { libc::SIGKILL } else { libc::SIGTERM };
                self.actor(threads[0]).kill(signal);
                self.bury(&threads);
            }
            Rename(who, from, to) => self.rename(self.process(*who), file(from), file(to))?,
            RenameNew(who, from, to) => {
                let (who, from, to) = (self.process(*who), file(from), file(to));
                let Some(expected) = self.world.rename_new(who, from, to) else {
                    return Ok(());
                };
                let (from, to) = (self.path(from), self.path(to));
                agree(Some(expected), self.actor(who).rename_noreplace(&from, &to))?;
            }
            RenameDir(who, from, to) => self.rename(self.process(*who), dir(from), dir(to))?,
            Exchange(who, from, to) => {
                let (who, from, to) = (self.process(*who), file(from), file(to));
                let Some(expected) = self.world.exchange(who, from, to) else {
                    return Ok(());
                };
                let (from, to) = (self.path(from), self.path(to));
                agree(Some(expected), self.actor(who).exchange(&from, &to))?;
            }
            Chmod(who, name, all) => {
                let mode = if *all { 0o777 } else { 0o600 };
                self.chmod(self.process(*who), file(name), mode)?;
            }
            Patch(who, name, version) => {
                let who = self.process(*who);
                self.patch(who, file(name), *version)?;
                if version.is_none() {
                    // Before anybody has looked.
                    self.patch(who, file(name), None)?;
                }
            }
            PatchAndStrike(who, name) => {
                self.end_waiters();
                self.patch(self.process(*who), file(name), None)?;
                self.strike(None)?;
            }
            Link(who, from, to) => {
                let (who, from, to) = (self.process(*who), file(from), file(to));
                let Some(expected) = self.world.link(who, from, to) else {
                    return Ok(());
                };
                let (from, to) = (self.path(from), self.path(to));
                agree(Some(expected), self.actor(who).link(&from, &to))?;
            }
            Unlink(who, name) => {
                let (who, path) = (self.process(*who), self.path(file(name)));
                let Some(expected) = self.world.unlink(who, file(name)) else {
                    return Ok(());
                };
                agree(Some(expected), self.actor(who).unlink(&path))?;
            }
            Mkdir(who, name) => self.mkdir(self.process(*who), dir(name))?,
            Rmdir(who, name) => {
                let (who, path) = (self.process(*who), self.path(dir(name)));
                let expected = self.world.rmdir(who, dir(name));
                agree(Some(expected), self.actor(who).rmdir(&path))?;
            }
            Remount => self.remount()?,
            Strike(close) => self.strike(*close)?,
            AddedToSynced(who, other, name) => {
                let (who, other, name) = (self.process(*who), self.process(*other), file(name));
                let slot = format!("f{}", self.world.number());
                if !self.open(who, name, Mode::EditAtOnce, &slot, false)? {
                    return Ok(());
                }
                self.on_descriptor(&Pwrite(0, 0, 4), who, &slot)?;
                self.on_descriptor(&Fsync(0), who, &slot)?;
                self.append(other, name)?;
                self.strike(None)?;
            }
            Map(_) | MapWrite(..) | Unmap(_) => self.on_mapping(op)?,
            Write(n, _)
            | Pwrite(n, ..)
            | Truncate(n, _)
            | FailingWrite(n)
            | Fsync(n)
            | Lock(n, _)
            | Unlock(n)
            | LockBytes(n, ..)
            | UnlockBytes(n, ..)
            | Dup(n)
            | Close(n) => {
                let locks = matches!(op, Lock(..) | Unlock(_) | LockBytes(..) | UnlockBytes(..));
                let writing = !(locks || matches!(op, Dup(_) | Close(_)));
                if let Some((who, slot)) = self.handle(*n, writing) {
                    self.on_descriptor(op, who, &slot)?;
                }
            }
        }
        self.world.conclude();
        Ok(())
    }

    fn on_descriptor(&mut self, op: &Op, who: u32, slot: &str) -> Result<(), String> {
        let found = match op {
            Write(_, len) => {
                let data = self.data(*len);
                if !data.is_empty() && !self.world.write(who, slot, None, &data) {
                    return Ok(());
                }
                self.actor(who).write(slot, &data)
            }
            Pwrite(_, at, len) => {
                let data = self.data(*len + 1);
                if !self.world.write(who, slot, Some(*at as usize), &data) {
                    return Ok(());
                }
                self.actor(who).pwrite(slot, (*at).into(), &data)
            }
            Truncate(_, len) => {
                if !self.world.truncate(who, slot, *len as usize) {
                    return Ok(());
                }
                self.actor(who).ftruncate(slot, (*len).into())
            }
            FailingWrite(_) => {
                if !self.world.can_fail(who, slot) {
                    return Ok(());
                }
                // Beyond what ext4 can address.
                let found = self.actor(who).pwrite(slot, 1 << 60, b"x");
                self.world.fail(who, slot);
                return agree(Some(Err("EFBIG")), found);
            }
            Fsync(_) => {
                self.world.fsync(who, slot);
                self.actor(who).fsync(slot)
            }
            Lock(_, alone) => {
                let Some(expected) = self.world.lock(who, slot, Call::Flock, *alone) else {
                    return Ok(());
                };
                let call = if *alone { "flock" } else { "flock-shared" };
                let found = self.actor(who).ask(call, &[slot.as_bytes()]).map(drop);
                return agree(Some(expected), found);
            }
            Unlock(_) => {
                let Some(expected) = self.world.unlock(who, slot, Call::Flock) else {
                    return Ok(());
                };
                let found = self.actor(who).ask("funlock", &[slot.as_bytes()]).map(drop);
                return agree(Some(expected), found);
            }
            LockBytes(_, by, first, len, alone) => {
                let call = by.call(*first, *len);
                let Some(expected) = self.world.lock(who, slot, call, *alone) else {
                    return Ok(());
                };
                let kind = if *alone { "write" } else { "read" };
                return agree(
                    Some(expected),
                    self.fcntl(who, slot, kind, *by, *first, *len),
                );
            }
            UnlockBytes(_, by, first, len) => {
                let call = by.call(*first, *len);
                let Some(expected) = self.world.unlock(who, slot, call) else {
                    return Ok(());
                };
                return agree(
                    Some(expected),
                    self.fcntl(who, slot, "unlock", *by, *first, *len),
                );
            }
            Dup(_) => {
                let to = format!("f{}", self.world.number());
                self.world.dup(who, slot, &to);
                self.actor(who).dup(slot, &to)
            }
            _ => {
                let expected = self.world.close(who, slot);
                return agree(expected, self.actor(who).close(slot));
            }
        };
        agree(Some(Ok(())), found)
    }

    fn fcntl(
        &mut self,
        who: u32,
        slot: &str,
        kind: &str,
        by: By,
        first: u8,
        len: u8,
    ) -> Result<(), Failure> {
        let command = match by {
            By::Process => "set",
            By::Description => "ofd-set",
        };
        let (first, len) = (first.to_string(), len.to_string());
        let words = [slot, command, kind, &first, &len].map(str::as_bytes);
        self.actor(who).ask("fcntl", &words).map(drop)
    }

    fn on_mapping(&mut self, op: &Op) -> Result<(), String> {
        let mut all = self.world.maps();
        all.retain(|(who, ..)| self.free_thread(*who, 0).is_some());
        let pick = |n: u8| (!all.is_empty()).then(|| all[n as usize % all.len()].clone());
        match *op {
            Map(n) => {
                let Some((who, slot)) = self.handle(n, true) else {
                    return Ok(());
                };
                let Some(len) = self.world.mappable(who, &slot) else {
                    return Ok(());
                };
                let map = format!("m{}", self.world.number());
                self.world.map(who, &slot, &map);
                agree(
                    Some(Ok(())),
                    self.actor(who)
                        .mmap(&slot, &map, len.next_multiple_of(4096), "rw"),
                )
            }
            MapWrite(n, at) => match pick(n) {
                Some((who, map, len)) if (1..4096).contains(&len) => {
                    let at = at as usize % len;
                    self.world.map_write(who, &map, at, b"M");
                    agree(Some(Ok(())), self.actor(who).map_write(&map, at, b"M"))
                }
                _ => Ok(()),
            },
            Unmap(n) => match pick(n) {
                Some((who, map, _)) => {
                    self.world.unmap(who, &map);
                    agree(Some(Ok(())), self.actor(who).munmap(&map))
                }
                None => Ok(()),
            },
            _ => unreachable!("no mapping"),
        }
    }

    /// Whether it opened.
    fn open(
        &mut self,
        who: u32,
        name: &str,
        mode: Mode,
        slot: &str,
        cloexec: bool,
    ) -> Result<bool, String> {
        if self.world.is_unsure_at(who, name) {
            return Ok(false);
        }
        let waits = matches!(mode, Mode::Edit | Mode::EditAtOnce | Mode::Share)
            && self.world.must_wait(who, name);
        if waits && mode == Mode::Share {
            return Ok(false);
        }
        if waits && mode == Mode::Edit {
            let at_most_two = self.world.waiting().len() < 2
                && !self.world.is_waited_for(who)
                && !self.world.has_threads(who);
            if at_most_two {
                self.wait_in_open(who, name, slot, cloexec)?;
            }
            return Ok(false);
        }
        let expected = match waits {
            true => Some(Err("EAGAIN")),
            false => self.world.open(who, name, mode, slot, cloexec),
        };
        let Some(expected) = expected else {
            return Ok(false);
        };
        let flags = match mode {
            Mode::Read => "r",
            Mode::Rewrite => "w",
            Mode::RewriteAndRead => "w+",
            Mode::Exclusive => "x",
            Mode::Edit => "r+",
            Mode::EditAtOnce => "r+|nonblock",
            Mode::Share => "rw-create",
            Mode::Append => "a",
            Mode::AppendAndRead => "a+",
        };
        let flags = if cloexec {
            format!("{flags}|cloexec")
        } else {
            flags.to_owned()
        };
        let path = self.path(name);
        agree(Some(expected), self.actor(who).open(slot, &flags, &path))?;
        Ok(expected.is_ok())
    }

    /// Opens in place while somebody else has the file's writer slot.
    fn wait_in_open(
        &mut self,
        who: u32,
        name: &str,
        slot: &str,
        cloexec: bool,
    ) -> Result<(), String> {
        self.world.queue(who, name, slot, cloexec);
        let flags = if cloexec { "r+|cloexec" } else { "r+" };
        let path = self.path(name);
        let path = path.to_string_lossy();
        let words = [slot, flags, &path].map(str::as_bytes);
        self.actor(who).start("open", &words);
        let pid = self.actor(who).pid();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.stage.place.is_waiting(pid) {
            if self.actor(who).has_answered() || Instant::now() > deadline {
                return Err(format!("process {who} does not wait"));
            }
        }
        Ok(())
    }

    /// Those whose turn has come go on, and nobody else does.
    fn admit(&mut self) -> Result<(), String> {
        while let Some((who, told)) = self.world.admit() {
            let answer = self.actor(who).finish().map(drop);
            agree(Some(told), answer).map_err(|why| format!("process {who} had waited: {why}"))?;
        }
        for who in self.world.waiting() {
            if self.actor(who).has_answered() {
                return Err(format!("process {who} has not waited for its turn"));
            }
        }
        Ok(())
    }

    fn end_waiters(&mut self) {
        for who in self.world.waiting() {
            let threads = self.world.end(who, true);
            self.actor(threads[0]).kill(libc::SIGKILL);
            self.bury(&threads);
        }
        self.world.conclude();
    }

    fn chmod(&mut self, who: u32, name: &str, mode: u32) -> Result<(), String> {
        let path = self.path(name);
        let Some(expected) = self.world.chmod(who, name, mode) else {
            return Ok(());
        };
        let found = self.actor(who).with_numbers("chmod", &path, &[mode.into()]);
        agree(Some(expected), found.map(drop))
    }

    fn save(&mut self, who: u32, name: &str, data: &[u8]) -> Result<(), String> {
        if !self.open(who, name, Mode::Rewrite, "save", false)? {
            return Ok(());
        }
        if !data.is_empty() {
            self.world.write(who, "save", None, data);
        }
        let written = self.actor(who).write("save", data);
        agree(Some(Ok(())), written)?;
        let expected = self.world.close(who, "save");
        agree(expected, self.actor(who).close("save"))?;
        self.world.conclude();
        Ok(())
    }

    /// A whole line, as one step.
    fn append(&mut self, who: u32, name: &str) -> Result<(), String> {
        let line = format!("line {}\n", self.step);
        if !self.open(who, name, Mode::Append, "append", false)? {
            return Ok(());
        }
        if self.world.write(who, "append", None, line.as_bytes()) {
            agree(Some(Ok(())), self.actor(who).write("append", &line))?;
        }
        let expected = self.world.close(who, "append");
        agree(expected, self.actor(who).close("append"))?;
        self.world.conclude();
        Ok(())
    }

    /// A patch grows the version number by one (C15), and is refused where that is another one
    /// than it says.
    fn patch(&mut self, who: u32, name: &str, at: Option<bool>) -> Result<(), String> {
        const PATCH: &str = "user.commitfs.json.patch";
        const INCREMENT: &[u8] = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;
        if at.is_some() && !self.world.can_patch(who, name) {
            return Ok(());
        }
        let path = self.path(name);
        let stranger = &mut self.stage.stranger;
        let mut version = || -> Option<u64> {
            let text = stranger.getxattr(&path, "user.commitfs.version").ok()?;
            String::from_utf8(text).ok()?.parse().ok()
        };
        let before = version();
        let (attribute, is_current) = match (at, before) {
            (None, _) => (PATCH.to_owned(), true),
            (Some(is_current), Some(n)) => (
                format!("{PATCH}@{}", n - u64::from(!is_current)),
                is_current,
            ),
            (Some(_), None) => return Err("no version".into()),
        };
        let expected = match is_current {
            true => self.world.patch(who, name),
            false => Some(Err("ESTALE")),
        };
        let Some(expected) = expected else {
            return Ok(());
        };
        let found = self.actor(who).setxattr(&path, &attribute, INCREMENT);
        agree(Some(expected), found)?;
        let stranger = &mut self.stage.stranger;
        let after = stranger.getxattr(&path, "user.commitfs.version").ok();
        let after = after.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let expected = before.map(|n| n + u64::from(expected.is_ok()));
        if after != expected {
            return Err(format!("{name} was version {before:?} and is {after:?}"));
        }
        Ok(())
    }

    fn rename(&mut self, who: u32, from: &str, to: &str) -> Result<(), String> {
        let Some(expected) = self.world.rename(who, from, to) else {
            return Ok(());
        };
        let (from, to) = (self.path(from), self.path(to));
        agree(Some(expected), self.actor(who).rename(&from, &to))
    }

    fn mkdir(&mut self, who: u32, name: &str) -> Result<(), String> {
        let path = self.path(name);
        let expected = self.world.mkdir(who, name);
        agree(Some(expected), self.actor(who).mkdir(&path))
    }

    /// A process is gone with its threads; there are always some.
    fn bury(&mut self, threads: &[u32]) {
        self.actors.retain(|who, _| !threads.contains(who));
        while self.actors.len() < FIRST {
            self.spawn();
        }
    }

    fn remount(&mut self) -> Result<(), String> {
        self.end_waiters();
        self.settle()?;
        for (who, map, _) in self.world.maps() {
            self.world.unmap(who, &map);
            agree(Some(Ok(())), self.actor(who).munmap(&map))?;
            self.world.conclude();
            self.settle()?;
        }
        for (who, slot) in self.world.handles(false) {
            let expected = self.world.close(who, &slot);
            agree(expected, self.actor(who).close(&slot))?;
            self.world.conclude();
            self.settle()?;
        }
        self.stage.place.unmount();
        self.stage.place.mount();
        self.world.forget_errors();
        self.looks.clear();
        Ok(())
    }

    fn strike(&mut self, close: Option<u8>) -> Result<(), String> {
        if self.world.has_undecided() {
            return Ok(());
        }
        self.end_waiters();
        self.settle()?;
        let closed = close.and_then(|n| self.handle(n, true));
        let closed = closed.filter(|(who, slot)| !self.world.looks_like_others(*who, slot));
        if let Some((who, slot)) = closed {
            let expected = self.world.close(who, &slot);
            agree(expected, self.actor(who).close(&slot))?;
            self.world.conclude();
        }
        if self.world.puts_edits_together() {
            return Ok(());
        }
        self.stage.place.kill();
        for (who, map, _) in self.world.maps() {
            self.actor(who).munmap(&map).ok();
        }
        for (who, slot) in self.world.handles(false) {
            self.actor(who).close(&slot).ok();
        }
        self.world.strike();
        self.looks.clear();
        self.stage.place.mount();
        Ok(())
    }

    /// Waits for what was left open to come out one way or another.
    fn settle(&mut self) -> Result<(), String> {
        let open: Vec<Slot> = self.world.open_ends.keys().cloned().collect();
        for slot in open {
            // What need not happen may still be under way.
            if self.world.open_ends[&slot].contains(&None) {
                std::thread::sleep(self.stage.place.takes_at_most());
            }
            let Some(path) = self.world.path(&slot) else {
                // Its directory is gone, so its end doesn't matter.
                self.world.open_ends.remove(&slot);
                continue;
            };
            let path = self.path(&path);
            let deadline = Instant::now() + Duration::from_secs(3);
            loop {
                let found = match self.stage.stranger.cat(&path) {
                    Ok(content) => Found::File(content),
                    Err(e) if e.errno == "EISDIR" => break,
                    Err(_) => Found::Nothing,
                };
                if self.world.settle(&slot, &found) {
                    break;
                }
                if Instant::now() > deadline {
                    let ends = &self.world.open_ends[&slot];
                    return Err(format!("{slot:?} is {found:?}, not one of {ends:?}"));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Everybody looks at everything, or where a step takes less than that a few do, but for the last step.
    fn compare(&mut self, last: bool) -> Result<(), String> {
        let mut everyone: Vec<u32> = self.actors.keys().copied().collect();
        if let (Some(fewer), false) = (self.stage.place.looks(), last) {
            // Each in turn.
            let all = everyone.len().max(1);
            everyone.rotate_left(self.step * fewer % all);
            everyone.truncate(fewer);
        }
        everyone.insert(0, STRANGER);
        everyone.retain(|who| !self.world.waits(*who));
        let files = self.theme.files();
        let mut all_names: Vec<String> = files.iter().map(|f| (*f).to_owned()).collect();
        all_names.push("/".into());
        all_names.extend(DIRS.iter().map(|d| format!("{d}/")));
        let root = self.stage.place.path(&self.name);
        let root = root.to_string_lossy().into_owned();
        for who in everyone {
            let mut names = all_names.clone();
            names.retain(|name| !self.world.loses_locks_by_a_look(who, name));
            names.retain(|name| !self.world.is_unsure_at(who, name));
            let paths: Vec<Vec<u8>> = names
                .iter()
                .map(|name| format!("{root}/{}", name.trim_start_matches('/')).into_bytes())
                .collect();
            let process = self.world.processes.get(&self.world.process_of(who));
            let slots: Vec<String> = process
                .map(|p| p.slots.keys().cloned().collect())
                .unwrap_or_default();
            let asked: Vec<&str> = slots.iter().map(String::as_str).collect();
            let seen = match self.actors.get_mut(&who) {
                Some(actor) => actor.survey(&paths, &asked),
                None => self.stage.stranger.survey(&paths, &asked),
            };
            let by_name = names.iter().map(|name| Some(self.world.sees(who, name)));
            let by_slot = slots.iter().map(|slot| self.world.reads(who, slot));
            let expected = by_name.chain(by_slot);
            for (n, (expected, seen)) in expected.zip(&seen).enumerate() {
                if let Some(expected) = expected
                    && expected != *seen
                {
                    let what = names.iter().chain(&slots).nth(n).expect("asked for");
                    let who = if who == STRANGER {
                        "a stranger".to_owned()
                    } else {
                        format!("process {who}")
                    };
                    return Err(format!(
                        "{who} finds {} at {what}, not {}",
                        show(seen),
                        show(&expected)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Permissions stay, hard links are split, and each version has a number and a later time of
    /// its own (C8).
    fn compare_looks(&mut self) -> Result<(), String> {
        let files = self.theme.files();
        let root = self.path("").to_string_lossy().into_owned();
        let paths: Vec<Vec<u8>> = files
            .iter()
            .map(|name| format!("stat:{root}{name}").into_bytes())
            .collect();
        let answers = self.stage.stranger.survey(&paths, &[]);
        for (name, answer) in files.into_iter().zip(&answers) {
            let before = self.looks.remove(name);
            let Some(looks) = self.world.looks(name) else {
                continue;
            };
            let Some(stat) = common::surveyed_stat(answer) else {
                return Err(format!("stat of {name}: {}", show(answer)));
            };
            self.looks
                .insert(name.to_owned(), (looks.number, stat.ino, stat.mtime_ns));
            let has_mode = looks.mode.is_none_or(|mode| stat.mode & 0o7777 == mode);
            if !has_mode || stat.nlink != looks.names {
                return Err(format!("{name} is {stat:?}, not {looks:?}"));
            }
            let told = match before {
                Some((number, ino, _)) if number == looks.number => stat.ino == ino,
                Some((number, ino, mtime)) if looks.after == Some(number) => {
                    stat.ino != ino && stat.mtime_ns > mtime
                }
                _ => true,
            };
            if !told {
                return Err(format!("{name} is {stat:?} and was {before:?}"));
            }
        }
        Ok(())
    }

    /// What a guard has refused is told of under its name (C22).
    fn check_errors(&mut self) -> Result<(), String> {
        for name in self.theme.files() {
            let Some(expected) = self.world.has_error(name) else {
                continue;
            };
            let path = self.path(name);
            let found = self.stage.stranger.getxattr(&path, "user.commitfs.error");
            if found.is_ok() != expected {
                return Err(format!("the error of {name} is {found:?}"));
            }
        }
        Ok(())
    }

    /// Aborted content is kept (C4, C5, C18, C21).
    fn check_rejected(&mut self) -> Result<(), String> {
        let mut missing = std::mem::take(&mut self.world.rejected);
        if missing.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            for content in self.stage.place.rejected()? {
                if let Some(at) = missing.iter().position(|m| *m == content) {
                    missing.swap_remove(at);
                }
            }
            match missing.first() {
                None => return Ok(()),
                Some(one) if Instant::now() > deadline => {
                    return Err(format!("{} is not in rejected", show(one)));
                }
                Some(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn show(bytes: &[u8]) -> String {
    let short = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    format!("{short:?} ({} bytes)", bytes.len())
}

fn agree(expected: Option<Told>, found: Result<(), Failure>) -> Result<(), String> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let found = found.map_err(|failure| failure.errno);
    if found.as_ref().map_err(String::as_str) == expected.as_ref().map_err(|e| *e) {
        return Ok(());
    }
    Err(format!("it says {found:?}, not {expected:?}"))
}

/// Runs one program on a mount of its own.
#[track_caller]
fn holds(program: &[Op]) {
    holds_with(Theme::Plain, program);
}

#[track_caller]
fn holds_with(theme: Theme, program: &[Op]) {
    let Some(mut stage) = Stage::new(Duration::from_secs(60)) else {
        return;
    };
    if let Err(why) = stage.run(theme, program) {
        panic!("{why}");
    }
    place::set_up();
    if let Err(why) = Stage::on(place::simulated()).run(theme, program) {
        panic!("simulated: {why}");
    }
}

/// Where the short form of a search on a simulated kernel begins.
const SEED: u64 = 1;

/// How long, and how much.
#[derive(Clone, Copy)]
struct Limit {
    time: Duration,
    programs: u64,
    /// Of one stage.
    each: u64,
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Searches, and tells in how many programs.
fn search(mut stage: impl FnMut() -> Stage, limit: Limit, mut random: common::Random) -> u64 {
    let (programs, on) = (Cell::new(0), RefCell::new(stage()));
    let began = Instant::now();
    while began.elapsed() < limit.time && programs.get() < limit.programs {
        if u64::from(on.borrow().programs) >= limit.each {
            on.replace(stage());
        }
        let mut seed = [0; 32];
        seed.iter_mut()
            .for_each(|byte| *byte = random.below(256) as u8);
        let config = Config {
            cases: 10,
            failure_persistence: None,
            max_shrink_iters: 100,
            max_shrink_time: 45_000,
            ..Config::default()
        };
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(config, random);
        let outcome = runner.run(&a_program(), |(theme, program)| {
            programs.set(programs.get() + 1);
            let result = on.borrow_mut().run(theme, &program);
            result.map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(why, program)) => {
                println!("on a mount: {:?}", on_a_mount(&program));
                if std::env::var_os("COMMITFS_MODEL_GO_ON").is_some() {
                    println!("{why}\nby this program: {program:?}");
                    continue;
                }
                panic!("{why}\nby this program: {program:?}")
            }
            Err(error) => panic!("{error}"),
        }
    }
    programs.get()
}

fn tell(programs: u64, began: Instant) {
    let rate = programs as f64 / began.elapsed().as_secs_f64();
    println!("{programs} programs, {rate:.1} in a second");
}

/// Whether it holds there, where the search was on a simulated kernel: who is wrong, this one or commitfs?
fn on_a_mount((theme, program): &(Theme, Vec<Op>)) -> Option<Result<(), String>> {
    Some(Stage::new(Duration::from_secs(60))?.run(*theme, program))
}

fn seconds(short: usize, long: usize) -> Duration {
    let seconds = asked("COMMITFS_MODEL_SECONDS").unwrap_or(times(short, long) as u64);
    Duration::from_secs(seconds)
}

#[test]
fn random_programs_find_what_the_contract_says() {
    need_daemon!();
    let limit = Limit {
        time: seconds(60, 1800),
        programs: asked("COMMITFS_MODEL_PROGRAMS").unwrap_or(u64::MAX),
        each: u64::MAX,
    };
    let Some(stage) = Stage::new(limit.time + Duration::from_secs(3600)) else {
        return;
    };
    let (mut stage, began) = (Some(stage), Instant::now());
    let programs = search(|| stage.take().expect("one"), limit, common::Random::new());
    tell(programs, began);
}

#[test]
fn random_programs_of_a_simulated_kernel_find_what_the_contract_says() {
    place::set_up();
    // The short form is the same each time, as far as threads take the same turns.
    let is_short = times(0, 1) == 0;
    let chosen = common::seed().or(is_short.then_some(SEED));
    let seed = chosen.unwrap_or_else(common::any_seed);
    println!("COMMITFS_SEED={seed}");
    let limit = Limit {
        time: seconds(60, 1800),
        programs: asked("COMMITFS_SIMULATED_PROGRAMS").unwrap_or(times(1000, usize::MAX) as u64),
        each: 30,
    };
    let began = Instant::now();
    let one = move |n| {
        let random = common::Random::of(seed.wrapping_add(n << 32));
        search(|| Stage::on(place::simulated()), limit, random)
    };
    let threads = asked("COMMITFS_MODEL_THREADS").unwrap_or(times(1, 2) as u64);
    let threads: Vec<_> = (0..threads)
        .map(|n| std::thread::spawn(move || one(n)))
        .collect();
    let programs = threads
        .into_iter()
        .map(|t| t.join().expect("it holds"))
        .sum();
    tell(programs, began);
}

#[test]
fn a_killed_claimant_leaves_its_claim() {
    holds(&[Open(1, 1, Mode::Exclusive, false), Kill(1, false)]);
}

#[test]
fn a_version_saved_over_a_claim_is_what_everybody_sees() {
    holds(&[
        Open(0, 2, Mode::Exclusive, false),
        Save(1, 2, 1),
        Kill(0, true),
    ]);
}

#[test]
fn an_orphan_still_sees_what_it_has_open() {
    let fork = [Open(0, 0, Mode::Rewrite, false), Fork(0)];
    holds(&[fork.as_slice(), &[Kill(0, true)]].concat());
    holds(&[fork.as_slice(), &[Close(0), Kill(0, true)]].concat());
}

#[test]
fn an_fsync_before_the_first_write_leaves_the_file_as_it_was() {
    holds(&[Open(0, 0, Mode::Edit, false), Fsync(0), Strike(None)]);
}

#[test]
fn a_claim_that_was_linked_survives_the_daemon_too() {
    holds(&[
        Mkdir(0, 2),
        Open(0, 4, Mode::Exclusive, false),
        Link(1, 4, 2),
        Strike(None),
    ]);
}

#[test]
fn a_claim_that_was_written_and_linked_keeps_its_content_when_the_daemon_dies() {
    holds(&[
        Open(0, 1, Mode::Exclusive, false),
        Truncate(3, 45),
        Link(4, 1, 2),
        Strike(None),
    ]);
}

#[test]
fn a_reader_of_staged_content_that_is_aborted_can_go_on_reading() {
    holds(&[
        Open(0, 0, Mode::Rewrite, false),
        Write(0, 9),
        Open(0, 0, Mode::Read, false),
        FailingWrite(0),
        Close(1),
    ]);
}

#[test]
fn a_claim_on_a_name_that_was_saved_and_removed_survives_the_daemon() {
    holds(&[
        Unlink(0, 0),
        Open(0, 0, Mode::Exclusive, false),
        Strike(None),
    ]);
}

#[test]
fn of_two_transactions_that_follow_a_rename_the_newer_is_still_the_one_seen() {
    holds(&[
        Mkdir(2, 2),
        Save(0, 3, 0),
        Open(0, 3, Mode::Rewrite, false),
        Write(0, 43),
        Open(0, 3, Mode::RewriteAndRead, false),
        Rename(2, 3, 4),
    ]);
}

#[test]
fn a_reader_of_staged_content_reads_on_when_lines_are_appended_to_what_was_committed() {
    holds(&[
        Open(0, 2, Mode::RewriteAndRead, false),
        Open(0, 2, Mode::Read, false),
        Close(0),
        Append(1, 2),
    ]);
}

#[test]
fn what_was_synced_in_a_removed_directory_does_not_appear_in_a_later_one_of_its_name() {
    holds(&[
        Open(2, 3, Mode::Rewrite, false),
        Write(0, 36),
        Fsync(0),
        Rmdir(1, 1),
        Mkdir(1, 1),
        Strike(None),
    ]);
}

#[test]
fn a_failed_write_is_told_though_its_program_has_emptied_the_name_since() {
    holds(&[
        Open(0, 2, Mode::Rewrite, false),
        FailingWrite(0),
        Open(0, 2, Mode::Rewrite, false),
        Close(1),
        Close(0),
    ]);
    holds(&[
        Open(0, 2, Mode::Rewrite, false),
        FailingWrite(0),
        Open(0, 2, Mode::Rewrite, false),
        Close(0),
        Close(0),
    ]);
}

#[test]
fn a_write_that_fails_after_its_program_has_emptied_the_name_leaves_what_is_there_by_then() {
    let fails = [FailingWrite(0), Close(0)];
    // A new name, and one that has a version.
    for name in [1, 0] {
        let opened = [
            Open(0, name, Mode::RewriteAndRead, false),
            Overtaken(0, 1, name),
        ];
        holds(&[&opened[..], &fails].concat());
        // And one where the emptied file is open still.
        let emptied = [
            opened[0].clone(),
            Write(0, 9),
            Open(0, name, Mode::Rewrite, false),
        ];
        holds(&[&emptied[..], &fails, &[Close(0)]].concat());
        holds(&[&emptied[..], &fails[..1], &[Close(1), Close(0)]].concat());
    }
}

#[test]
fn a_killed_child_that_is_not_the_last_holder_does_not_count() {
    holds(&[
        Open(4, 0, Mode::RewriteAndRead, false),
        Fork(4),
        Kill(3, true),
        Exit(1),
    ]);
}

#[test]
fn a_reader_of_a_claim_goes_on_reading_after_a_strangers_rename_and_the_close() {
    holds(&[
        Open(2, 1, Mode::Exclusive, false),
        Write(0, 11),
        Open(0, 1, Mode::Read, false),
        Rename(0, 1, 0),
        Close(1),
    ]);
}

#[test]
fn a_claim_that_a_stranger_truncates_holds_what_is_there_then() {
    holds(&[
        Open(0, 3, Mode::Exclusive, false),
        Open(0, 3, Mode::Rewrite, false),
        TruncatePath(1, 3, 1),
        Close(0),
    ]);
}

#[test]
fn a_link_by_an_editor_that_has_written_nothing_is_a_second_name_of_the_file() {
    holds(&[Open(2, 0, Mode::Edit, false), Link(2, 0, 3), Append(0, 3)]);
}

#[test]
fn a_new_log_that_is_unlinked_before_its_first_line_does_not_come_back() {
    holds(&[
        Open(0, 1, Mode::Append, false),
        Write(0, 3),
        Unlink(0, 1),
        Close(0),
    ]);
}

#[test]
fn a_new_log_that_is_renamed_before_its_first_line_holds_everything_once() {
    holds(&[
        Open(0, 1, Mode::Append, false),
        Write(0, 3),
        Rename(0, 1, 2),
        Write(0, 4),
    ]);
}

#[test]
fn a_new_log_that_a_child_opens_too_shows_the_lines_of_both() {
    let open = [
        Open(0, 1, Mode::Append, false),
        Fork(0),
        Open(3, 1, Mode::Append, false),
    ];
    holds(&[open.as_slice(), &[Write(0, 4), Write(2, 4)]].concat());
    holds(&[open.as_slice(), &[Write(2, 4), Write(0, 4)]].concat());
}

#[test]
fn a_killed_child_that_merely_inherited_it_leaves_an_unfinished_line() {
    holds(&[
        Open(0, 0, Mode::Append, false),
        Write(0, 3),
        Fork(0),
        Kill(3, true),
        Write(0, 4),
    ]);
}

#[test]
fn an_appender_follows_the_rename_of_a_file_that_was_rewritten_meanwhile() {
    let rewritten = [
        Open(0, 0, Mode::AppendAndRead, false),
        Save(1, 0, 4),
        Rename(1, 0, 1),
    ];
    holds(&[rewritten.as_slice(), &[Write(0, 4), Save(1, 1, 5)]].concat());
    holds(&[rewritten.as_slice(), &[Save(1, 1, 5), Truncate(0, 2)]].concat());
}

#[test]
fn an_appender_goes_on_with_an_unlinked_file_that_was_rewritten_meanwhile() {
    holds(&[
        Open(0, 0, Mode::AppendAndRead, false),
        Save(1, 0, 4),
        Unlink(1, 0),
        Write(0, 4),
    ]);
}

#[test]
fn an_appender_follows_a_file_that_its_rewriter_renames() {
    holds(&[
        Open(0, 0, Mode::Rewrite, false),
        Open(1, 0, Mode::Append, false),
        Rename(0, 0, 1),
        Write(1, 4),
    ]);
}

#[test]
fn the_next_editor_starts_from_what_a_killed_one_had_synced() {
    holds(&[
        Open(0, 0, Mode::Edit, false),
        Write(0, 9),
        Fsync(0),
        Open(1, 0, Mode::Edit, false),
        Kill(0, true),
        Pwrite(0, 2, 2),
        Close(0),
    ]);
}

#[test]
fn a_parent_does_not_queue_behind_those_who_wait_for_its_child() {
    holds(&[
        Fork(0),
        Open(3, 0, Mode::Edit, false),
        Open(1, 0, Mode::Edit, false),
        Open(0, 0, Mode::Edit, false),
    ]);
}

#[test]
fn an_orphaned_editor_shows_what_it_writes_to_no_other_program_that_writes_the_file() {
    holds(&[
        Open(1, 0, Mode::Edit, false),
        Open(0, 0, Mode::Edit, false),
        Lock(0, false),
        Fork(0),
        Exit(3),
        Write(4, 48),
    ]);
    holds(&[
        Open(0, 0, Mode::Edit, false),
        Fork(0),
        Exit(0),
        Write(0, 1),
        Open(3, 0, Mode::AppendAndRead, false),
    ]);
}

#[test]
fn an_editor_that_joins_one_who_appends_writes_where_it_says() {
    // A description that truncates goes on as an editor, and a new file's appender is joined.
    holds(&[
        Open(0, 0, Mode::AppendAndRead, false),
        Truncate(0, 8),
        Open(0, 0, Mode::Edit, false),
        Write(1, 45),
        Write(0, 45),
    ]);
    holds(&[
        Open(0, 1, Mode::AppendAndRead, false),
        Truncate(0, 8),
        Open(0, 1, Mode::Edit, false),
        Write(1, 45),
        Write(0, 45),
    ]);
}

#[test]
fn what_an_appender_has_truncated_survives_the_daemon_from_its_close_on() {
    let mut one_after_another = Vec::new();
    for _ in 0..10 {
        one_after_another.extend([
            Open(0, 0, Mode::Append, false),
            Truncate(0, 33),
            Write(0, 47),
            Strike(Some(0)),
        ]);
    }
    holds(&one_after_another);
}

#[test]
fn a_mapping_of_a_new_log_outlives_its_first_line() {
    holds(&[
        Open(1, 3, Mode::AppendAndRead, false),
        Write(0, 3),
        Map(0),
        Write(0, 34),
        Remount,
    ]);
}

#[test]
fn a_lock_that_a_child_takes_through_an_editors_description_lets_the_next_one_in() {
    holds(&[
        Open(0, 0, Mode::Edit, false),
        Fork(0),
        Open(1, 0, Mode::Edit, false),
        Lock(1, false),
        Kill(3, true),
    ]);
}

#[test]
fn what_a_child_truncates_of_an_inherited_log_its_parent_sees() {
    holds(&[
        Open(0, 0, Mode::AppendAndRead, false),
        Fork(0),
        Dup(1),
        Truncate(2, 1),
    ]);
}

#[test]
fn a_thread_sees_what_another_truncates_of_the_log_that_it_has_opened() {
    for opener in [0, 3] {
        for by in [0, 1] {
            let opened = [Thread(0), Open(opener, 0, Mode::AppendAndRead, false)];
            // Longer, and shorter.
            for len in [61, 2] {
                let cut = [Truncate(by, len), Write(by, 9), Close(by)];
                holds(&[&opened[..], &cut].concat());
            }
        }
    }
}

#[test]
fn an_orphan_sees_what_it_inherited_from_an_appender_that_truncated() {
    holds(&[
        Open(1, 0, Mode::AppendAndRead, false),
        Truncate(0, 52),
        Fork(1),
        Exit(1),
    ]);
}

#[test]
fn what_others_append_to_a_linked_file_is_none_of_what_its_writer_goes_on_with() {
    holds(&[
        Open(1, 0, Mode::Edit, false),
        Pwrite(0, 65, 18),
        Link(1, 0, 3),
        Append(2, 3),
    ]);
}

#[test]
fn a_file_that_is_linked_and_then_synced_survives_the_kill_under_both_names() {
    holds(&[
        Open(0, 1, Mode::Rewrite, false),
        Write(0, 9),
        Link(0, 1, 2),
        Fsync(0),
        Kill(0, true),
    ]);
}

#[test]
fn a_close_that_gives_fcntl_locks_back_commits_what_was_written_through_others() {
    // The file is locked already when the reader comes, so its close is told.
    holds(&[
        Open(1, 0, Mode::Edit, false),
        LockBytes(0, By::Description, 1, 1, false),
        Open(0, 0, Mode::Read, false),
        Open(0, 0, Mode::Edit, false),
        LockBytes(1, By::Process, 3, 1, true),
        Write(0, 5),
        Close(0),
    ]);
}

#[test]
fn who_has_rewritten_a_file_and_unlocked_it_reads_what_is_there_when_it_locks_it_again() {
    holds(&[
        Open(0, 0, Mode::RewriteAndRead, false),
        Write(0, 5),
        Lock(0, true),
        Unlock(0),
        Save(1, 0, 9),
        Lock(0, true),
        Pwrite(0, 7, 7),
        Unlock(0),
        Save(1, 0, 4),
        Lock(0, true),
    ]);
}

#[test]
fn a_writer_killed_with_a_mapping_alone_never_commits_though_the_daemon_dies_at_the_last_close() {
    holds(&[
        Fork(0),
        Open(0, 0, Mode::Edit, false),
        Pwrite(0, 4, 11),
        Map(0),
        Close(0),
        Open(3, 0, Mode::AppendAndRead, false),
        Kill(0, true),
        Write(0, 35),
        Strike(Some(0)),
    ]);
}

#[test]
fn a_linked_file_that_its_rewriter_renames_has_nothing_of_the_other_name_left() {
    holds(&[
        Link(0, 0, 2),
        Open(2, 2, Mode::RewriteAndRead, false),
        Rename(2, 2, 3),
        LockBytes(6, By::Description, 3, 0, true),
    ]);
}

#[test]
fn what_was_written_before_a_link_is_committed_by_an_unlock_under_its_own_name_too() {
    holds(&[
        Open(1, 0, Mode::Edit, false),
        Write(0, 1),
        Fork(1),
        Link(3, 0, 1),
        LockBytes(9, By::Process, 2, 0, true),
        Open(2, 0, Mode::AppendAndRead, false),
        Close(8),
    ]);
}

#[test]
fn a_killed_process_that_has_locked_what_it_merely_inherited_commits_nothing() {
    holds(&[
        Open(1, 0, Mode::EditAtOnce, false),
        Fork(4),
        LockBytes(7, By::Process, 1, 2, false),
        Open(1, 0, Mode::AppendAndRead, false),
        Open(1, 3, Mode::RewriteAndRead, true),
        Open(3, 1, Mode::Rewrite, true),
        Truncate(2, 78),
        Close(10),
        Kill(3, true),
    ]);
}

#[test]
fn who_has_written_whole_lines_before_takes_no_unfinished_one_along() {
    let shared = [Open(0, 0, Mode::Append, false), Fork(0)];
    holds(
        &[
            shared.as_slice(),
            &[Write(1, 4), Write(0, 3), Kill(3, true)],
        ]
        .concat(),
    );
    let synced = [Write(1, 3), Fsync(0), Write(0, 3), Kill(3, true)];
    holds(&[shared.as_slice(), &synced].concat());
}

#[test]
fn half_a_document_that_has_lost_its_name_is_closed_without_an_error() {
    let program = [Open(0, 0, Mode::Rewrite, false), Unlink(0, 0), Write(0, 10)];
    holds_with(
        Theme::Documents,
        &[program.as_slice(), &[Close(0)]].concat(),
    );
}

#[test]
fn an_unlock_tells_of_what_a_guard_has_refused_at_the_close_of_another_description() {
    let program = [
        Open(0, 0, Mode::Edit, false),
        Lock(0, false),
        Write(0, 10),
        Open(0, 0, Mode::AppendAndRead, false),
        Close(0),
        Unlock(0),
    ];
    holds_with(Theme::Documents, &program);
}

#[test]
fn an_unlock_commits_nothing_that_a_killed_child_has_had_a_part_in() {
    holds(&[
        Open(0, 0, Mode::Edit, false),
        Lock(0, true),
        Fork(0),
        Write(1, 10),
        Kill(3, true),
        Unlock(0),
    ]);
}

#[test]
fn an_fsync_of_a_new_log_that_others_were_first_to_write_does_not_empty_it_when_the_daemon_dies() {
    let opened = [
        Unlink(0, 0),
        Open(0, 0, Mode::Append, false),
        Append(1, 0),
        Fsync(0),
    ];
    holds(&[opened.as_slice(), &[Strike(None)]].concat());
    holds(&[opened.as_slice(), &[Strike(Some(0))]].concat());
    holds(&[opened.as_slice(), &[Kill(0, true)]].concat());
}

#[test]
fn an_fsync_of_what_was_emptied_by_name_does_not_bring_it_back_when_the_daemon_dies() {
    let emptied = [
        Open(0, 0, Mode::Rewrite, false),
        Write(0, 9),
        TruncatePath(0, 0, 0),
        Save(1, 0, 20),
        Fsync(0),
    ];
    holds(&[emptied.as_slice(), &[Strike(None)]].concat());
    holds(&[emptied.as_slice(), &[Strike(Some(0))]].concat());
}

#[test]
fn the_death_of_an_heir_does_not_show_a_new_log_before_its_writer_closes_it() {
    holds(&[
        Open(1, 1, Mode::Append, false),
        Dup(0),
        Close(0),
        Truncate(0, 25),
        Fork(1),
        Kill(3, false),
    ]);
}

/// An heir is told from who appends by how its descriptor is open; so is the last close of an editor.
#[test]
fn an_editors_heir_sees_what_was_written_beside_those_who_append_once_its_parent_has_ended() {
    let edited = [
        Open(0, 0, Mode::Edit, false),
        Open(1, 0, Mode::AppendAndRead, false),
    ];
    let ends = [Fork(0), Write(0, 30), Fork(3), Kill(3, true), Exit(0)];
    holds(&[edited.as_slice(), &ends].concat());
}

#[test]
fn half_a_document_is_refused_by_its_editors_close_though_another_appends_to_it() {
    holds_with(
        Theme::Documents,
        &[
            Open(0, 0, Mode::Edit, false),
            Exit(2),
            Truncate(0, 17),
            Open(2, 0, Mode::Append, false),
            Close(0),
        ],
    );
}

#[test]
fn a_document_cut_off_after_its_fsync_leaves_what_was_committed_before() {
    holds_with(
        Theme::Documents,
        &[
            Open(2, 0, Mode::AppendAndRead, false),
            Write(0, 2),
            Fsync(0),
            Truncate(0, 3),
            Close(0),
        ],
    );
}

#[test]
fn an_unlock_commits_after_the_death_of_one_who_merely_inherited_the_description() {
    let inherited = [Open(0, 0, Mode::EditAtOnce, false), Write(0, 40), Fork(0)];
    let ends = [Kill(3, true), Lock(0, true), Unlock(0)];
    holds(&[inherited.as_slice(), &ends].concat());
}

#[test]
fn what_was_written_in_a_directory_that_another_replaces_is_rejected_when_the_daemon_dies() {
    holds(&[
        Mkdir(0, 2),
        Open(0, 3, Mode::RewriteAndRead, false),
        Write(0, 40),
        RenameDir(1, 2, 1),
        Strike(None),
    ]);
}

#[test]
fn a_line_added_to_a_new_log_after_its_own_programs_save_comes_behind_that() {
    let opened = [
        Open(1, 1, Mode::AppendAndRead, false),
        Overtaken(1, 1, 1),
        Write(0, 38),
    ];
    holds(&[opened.as_slice(), &[Kill(1, false)]].concat());
    holds(&[opened.as_slice(), &[Strike(None)]].concat());
}
