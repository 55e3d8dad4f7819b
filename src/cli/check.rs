//! `commitfs check`: what the next mount of a backing directory would find. Changes nothing, unless
//! it is to recover.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Failure, control, exit, output};
use crate::guard::{self, Guard, Replaces, examine, judge};
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
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// Rules (TOML), as for mount
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

/// What was found. Its field names are those of `--json`.
#[derive(Debug, Default, Serialize)]
struct Findings {
    verdict: Judgement,
    /// With `--recover`.
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<RecoveryReport>,
    /// None where there is no journal; a mount would start one.
    journal: Option<JournalFound>,
    /// A mount would put so many in place.
    commits_to_put_in_place: usize,
    /// A mount would send what they wrote to rejected, or roll it forward if it was fsync'd.
    unfinished: Vec<Unfinished>,
    /// A mount would cut off what is at the end of these files.
    to_cut_back: Vec<ToCutBack>,
    rejected_contents: usize,
    /// `commitfs status` shows them after a mount.
    unread_errors: usize,
    /// With `--content`: files whose guard objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<Vec<Wrong>>,
}

#[derive(Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Judgement {
    /// Plain files are all there is.
    #[default]
    Clean,
    /// As a crash leaves it; the next mount puts it right.
    ToRecover,
    /// Some file isn't whole.
    Trouble,
}

#[derive(Debug, Serialize)]
struct RecoveryReport {
    applied: usize,
    rejected: usize,
}

#[derive(Debug, Serialize)]
struct JournalFound {
    records: usize,
    /// Where in the file reading ended, in bytes.
    end: u64,
    /// The record there isn't whole, as a crash leaves it.
    torn: bool,
}

#[derive(Debug, Serialize)]
struct Unfinished {
    staging: String,
    path: String,
    pid: u32,
}

/// Bytes that were added, or came to the disk before the record of it, and don't count.
#[derive(Debug, Serialize)]
struct ToCutBack {
    path: String,
    /// Their length, in bytes, before and after.
    from: u64,
    to: u64,
}

#[derive(Debug, Serialize)]
struct Wrong {
    path: String,
    guard: String,
    reason: String,
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
    let mut found = Findings::default();
    if arguments.recover {
        let recovered =
            recovery::recover(&store, &rules).map_err(super::mount::recovery_failure)?;
        found.recovered = Some(RecoveryReport {
            applied: recovered.applied,
            rejected: recovered.rejected,
        });
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
    found.take_plan(told.as_ref(), &plan, &store);
    if arguments.content {
        let mut wrong = Vec::new();
        check_content(backing, backing, &rules, &mut wrong).map_err(|e| bad(exit::TROUBLE, &e))?;
        wrong.extend(found.to_cut_back.iter().map(ToCutBack::is_wrong));
        found.wrong = Some(wrong);
    }
    found.verdict = found.judge();
    if arguments.json {
        let text = serde_json::to_string_pretty(&found).map_err(|e| bad(exit::TROUBLE, &e))?;
        output::print(text + "\n")?;
    } else {
        output::print(found.for_people(backing))?;
    }
    Ok(match found.verdict {
        Judgement::Trouble => exit::TROUBLE,
        Judgement::Clean | Judgement::ToRecover => exit::OK,
    })
}

impl Findings {
    fn take_plan(&mut self, told: Option<&journal::Contents>, plan: &Plan, store: &Store) {
        self.journal = told.map(|contents| {
            let (end, torn) = match contents.tail {
                Tail::Clean { offset } => (offset, false),
                Tail::Torn { offset } => (offset, true),
            };
            JournalFound {
                records: contents.records.len(),
                end,
                torn,
            }
        });
        self.commits_to_put_in_place = plan.accepted.len();
        self.unfinished = plan
            .leftovers
            .iter()
            .map(|left| Unfinished {
                staging: crate::store::id_name(left.id),
                path: left
                    .path
                    .as_deref()
                    .unwrap_or(Path::new("?"))
                    .to_string_lossy()
                    .into_owned(),
                pid: left.pid,
            })
            .collect();
        self.to_cut_back = plan
            .cuts
            .iter()
            .filter_map(|(path, to)| {
                let from = store.path.join(path).symlink_metadata().ok()?.len();
                let path = path.to_string_lossy().into_owned();
                (from > *to).then_some(ToCutBack {
                    path,
                    from,
                    to: *to,
                })
            })
            .collect();
        self.rejected_contents = store.list_rejected().map_or(0, |r| r.len());
        self.unread_errors = store.kept_unread().map_or(0, |list| list.len());
    }

    fn judge(&self) -> Judgement {
        if self.wrong.as_ref().is_some_and(|wrong| !wrong.is_empty()) {
            Judgement::Trouble
        } else if self.commits_to_put_in_place > 0
            || !self.unfinished.is_empty()
            || !self.to_cut_back.is_empty()
        {
            Judgement::ToRecover
        } else {
            Judgement::Clean
        }
    }

    fn for_people(&self, backing: &Path) -> String {
        let mut out = String::new();
        if let Some(recovered) = &self.recovered {
            out += &format!("versions put in place: {}\n", recovered.applied);
            out += &format!("contents moved to rejected: {}\n", recovered.rejected);
        }
        out += &match &self.journal {
            None => "journal: none; a mount would start one\n".to_owned(),
            Some(j) if j.torn => format!(
                "journal: {} records, torn at byte {}, as a crash leaves it; all before it counts\n",
                j.records, j.end
            ),
            Some(j) => format!(
                "journal: {} records, ends cleanly at byte {}\n",
                j.records, j.end
            ),
        };
        out += &format!(
            "commits a mount would put in place: {}\n",
            self.commits_to_put_in_place
        );
        for left in &self.unfinished {
            out += &format!(
                "unfinished: staging/{} for {} (process {})\n",
                left.staging,
                output::escaped(&left.path),
                left.pid
            );
        }
        for cut in &self.to_cut_back {
            out += &format!(
                "{}: to be cut back from {} to {} bytes\n",
                output::escaped(&cut.path),
                cut.from,
                cut.to
            );
        }
        out += &format!("rejected contents: {}\n", self.rejected_contents);
        if self.unread_errors > 0 {
            out += &format!(
                "errors that nobody has read: {}; `commitfs status` shows them after a mount\n",
                self.unread_errors
            );
        }
        for wrong in self.wrong.iter().flatten() {
            out += &format!(
                "{}: guard {}: {}\n",
                output::escaped(&wrong.path),
                wrong.guard,
                wrong.reason
            );
        }
        if let Some(wrong) = &self.wrong {
            out += &format!("files whose guard objects: {}\n", wrong.len());
        }
        out + &self.conclusion(backing)
    }

    /// The last line: what it comes to, and what to do.
    fn conclusion(&self, backing: &Path) -> String {
        let dir = backing.display().to_string();
        let dir = output::escaped(&dir);
        match self.verdict {
            Judgement::Clean => "verdict: clean\n".to_owned(),
            Judgement::ToRecover => format!(
                "verdict: not unmounted in good order; nothing is lost: the next mount puts it right, or `commitfs check --recover {dir}`\n"
            ),
            Judgement::Trouble => format!(
                "verdict: trouble: {} files are not whole; `commitfs rejected list {dir}` may have others of them\n",
                self.wrong.as_ref().map_or(0, Vec::len)
            ),
        }
    }
}

impl ToCutBack {
    fn is_wrong(&self) -> Wrong {
        Wrong {
            path: self.path.clone(),
            guard: "none".to_owned(),
            reason: format!(
                "what is behind {} bytes came to the disk before its record, or isn't complete",
                self.to
            ),
        }
    }
}

/// Collects the files that a guard objects to.
fn check_content(
    root: &Path,
    dir: &Path,
    rules: &Rules,
    wrong: &mut Vec<Wrong>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if relative != Path::new(STATE_DIR) {
                check_content(root, &path, rules, wrong)?;
            }
            continue;
        }
        let policy = rules.decide(relative, Creation::default());
        if !kind.is_file() || policy.mode == Mode::Direct || policy.guard == Guard::None {
            continue;
        }
        let file = File::open(&path)?;
        let verdict = examine(policy.guard, &file, file.metadata()?.len())?;
        // What may be anybody's will, a template say, is not wrong.
        if let guard::Judgement::Refused(violation) =
            judge(policy.guard, &verdict, Replaces::Whole, true)
        {
            wrong.push(Wrong {
                path: relative.to_string_lossy().into_owned(),
                guard: policy.guard.to_string(),
                reason: violation.reason,
            });
        }
    }
    Ok(())
}
