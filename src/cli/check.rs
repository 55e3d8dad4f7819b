//! `commitfs check`: what the next mount of a backing directory would find. Changes nothing, unless
//! it is to recover.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{Failure, control, exit};
use crate::guard::{Guard, Verdict, examine};
use crate::journal::{self, Tail};
use crate::rules::{Creation, Mode, Rules};
use crate::store::{STATE_DIR, Store};
use crate::txn::recovery::{self, Plan};

/// Arguments of `commitfs check`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The backing directory, not mounted
    backing: PathBuf,
    /// Run the guards over every file, too
    #[arg(long)]
    content: bool,
    /// Do what the next mount would: bring all that was committed into the plain files
    #[arg(long)]
    recover: bool,
    /// Rules (TOML), as for mount
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let backing = &arguments.backing;
    let bad =
        |code, e: &dyn std::fmt::Display| Failure::new(code, format!("{}: {e}", backing.display()));
    let dir = File::open(backing).map_err(|e| control::unusable(backing, &e))?;
    if let Ok(mount) = control::mount_of(backing) {
        return Err(bad(
            exit::BUSY,
            &format!(
                "it lies on the mount {}; unmount that first, then check",
                mount.mount_point.display()
            ),
        ));
    }
    if let Some(pid) = Store::lock_holder(dir.as_fd()) {
        return Err(bad(
            exit::BUSY,
            &format!("mounted by process {pid}; unmount it first, then check"),
        ));
    }
    if !backing.join(STATE_DIR).is_dir() {
        return Err(bad(
            exit::BAD_INPUT,
            &"no directory .commitfs in it: it was never mounted with commitfs",
        ));
    }
    let store = Store::open(backing).map_err(|e| Failure::new(exit::DAMAGED, e))?;
    let rules = super::mount::load_rules(arguments.rules.as_deref(), backing)?;
    if arguments.recover {
        let recovered =
            recovery::recover(&store, &rules).map_err(super::mount::recovery_failure)?;
        println!("versions put in place: {}", recovered.applied);
        println!("contents moved to rejected: {}", recovered.rejected);
    }
    let told = journal::read(store.state.as_fd())
        .map_err(|e| bad(exit::DAMAGED, &format!(".commitfs/journal: {e}")))?;
    let plan = recovery::plan(
        &store,
        &rules,
        told.as_ref(),
        &recovery::instance(&store.root),
    )
    .map_err(|e| bad(exit::TROUBLE, &e))?;
    report(told.as_ref(), &plan, &store);
    let mut wrong = 0;
    if arguments.content {
        wrong = check_content(backing, backing, &rules).map_err(|e| bad(exit::TROUBLE, &e))?;
        println!("files whose guard objects: {wrong}");
    }
    Ok(if wrong > 0 { exit::TROUBLE } else { exit::OK })
}

fn report(told: Option<&journal::Contents>, plan: &Plan, store: &Store) {
    match told {
        None => println!("journal: none; a mount would start one"),
        Some(contents) => {
            let tail = match contents.tail {
                Tail::Clean { offset } => format!("ends cleanly at byte {offset}"),
                Tail::Torn { offset } => {
                    format!("torn at byte {offset}, as a crash leaves it; all before it counts")
                }
            };
            println!("journal: {} records, {tail}", contents.records.len());
        }
    }
    println!(
        "commits a mount would put in place: {}",
        plan.accepted.len()
    );
    for left in &plan.leftovers {
        let path = left.path.as_deref().unwrap_or(Path::new("?"));
        println!(
            "unfinished: staging/{:016x} for {} (process {})",
            left.id,
            path.display(),
            left.pid
        );
    }
    println!(
        "rejected contents: {}",
        store.list_rejected().map_or(0, |r| r.len())
    );
}

/// Gives how many files a guard objects to.
fn check_content(root: &Path, dir: &Path, rules: &Rules) -> std::io::Result<usize> {
    let mut wrong = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if relative != Path::new(STATE_DIR) {
                wrong += check_content(root, &path, rules)?;
            }
            continue;
        }
        let policy = rules.decide(relative, Creation::default());
        if !kind.is_file() || policy.mode == Mode::Direct || policy.guard == Guard::None {
            continue;
        }
        let file = File::open(&path)?;
        let verdict = examine(policy.guard, &file, file.metadata()?.len())?;
        if let Verdict::Incomplete(reason) | Verdict::Foreign(reason) = verdict {
            println!("{}: guard {}: {reason}", relative.display(), policy.guard);
            wrong += 1;
        }
    }
    Ok(wrong)
}
