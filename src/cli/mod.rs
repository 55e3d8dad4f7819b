//! The command line: one file per subcommand, and the exit codes they share.

mod check;
mod completions;
mod control;
mod doctor;
mod json;
mod locks;
mod logging;
mod man;
mod mount;
mod openmetrics;
mod options;
mod output;
mod random;
mod rejected;
mod rejected_drop;
mod rejected_list;
mod rules;
mod show_log;
mod status;
mod umount;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit codes; also in `commitfs --help` and docs/semantics.md.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// `status`: there are unread errors. `check`: something is wrong. Others: it failed.
    pub const TROUBLE: u8 = 1;
    /// The command line is wrong (clap's own code).
    pub const USAGE: u8 = 2;
    /// What was named can't be used: missing, not a directory, not writable, invalid rules.
    pub const BAD_INPUT: u8 = 3;
    /// In the way: mounted already, nested, open transactions, in use.
    pub const BUSY: u8 = 4;
    /// `.commitfs` or its journal is damaged or not ours; nothing was changed.
    pub const DAMAGED: u8 = 5;
    /// The system refused: no FUSE, no right to mount.
    pub const REFUSED: u8 = 6;
    /// `json`: the version is not the current one.
    pub const NOT_CURRENT: u8 = 7;
    /// `json`: the pointer leads nowhere.
    pub const NOT_THERE: u8 = 8;
    /// `json patch`: an operation `test` found something else.
    pub const TEST_FAILED: u8 = 9;
    /// `json update`: the command failed.
    pub const COMMAND_FAILED: u8 = 10;
}

/// An error for a person, with the code to exit with.
#[derive(Debug)]
pub struct Failure {
    /// One of [`exit`].
    pub code: u8,
    /// Names the thing and the remedy.
    pub message: String,
}

impl Failure {
    fn new(code: u8, message: impl std::fmt::Display) -> Failure {
        Failure {
            code,
            message: message.to_string(),
        }
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "commitfs",
    version,
    about = "A file system that makes every close an atomic commit",
    after_help = "\
Exit codes:
  0   done
  1   trouble found (status: unread errors; check: something wrong)
  2   wrong usage
  3   bad input
  4   busy (mounted already, open transactions)
  5   damaged or foreign .commitfs
  6   refused by the system
  json: 7 not the current version, 8 the pointer leads nowhere,
  9 a test failed, 10 the command failed"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount over a directory, or a backing directory elsewhere
    Mount(mount::Arguments),
    /// Unmount; refused while transactions are open
    Umount(umount::Arguments),
    /// Show open transactions, counters, features and unread errors
    Status(status::Arguments),
    /// Show who holds and who waits for locks and writer slots
    Locks(locks::Arguments),
    /// Show what the daemon of a mount has said
    Log(show_log::Arguments),
    /// List, show, restore or drop content that was not committed
    Rejected(rejected::Arguments),
    /// Check, explain and change the rules by which files are treated
    Rules(rules::Arguments),
    /// Read and edit JSON documents, each edit in one step
    Json(json::Arguments),
    /// Look for inconsistencies in a backing directory that nobody has mounted
    Check(check::Arguments),
    /// Say whether a mount would work here, and what to do if not
    Doctor(doctor::Arguments),
    /// Print the manual page, or write those of all subcommands
    Man(man::Arguments),
    /// Print completions for a shell
    Completions(completions::Arguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let helpers = [
        crate::sys::watch_helper::run_if_asked,
        crate::sys::name_helper::run_if_asked,
    ];
    if let Some(code) = helpers.iter().find_map(|run| run()) {
        return code;
    }
    let line: Vec<_> = std::env::args_os().collect();
    let result = if umount::is_helper(&line) {
        umount::run_as_helper(&line)
    } else {
        run(Arguments::parse_from(as_subcommand(line)).command)
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            logging::last_words(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Mount(a) => mount::run(a),
        Command::Umount(a) => umount::run(&a),
        Command::Status(a) => status::run(&a),
        Command::Locks(a) => locks::run(&a),
        Command::Log(a) => show_log::run(&a),
        Command::Rejected(a) => rejected::run(&a),
        Command::Rules(a) => rules::run(&a),
        Command::Json(a) => json::run(&a),
        Command::Check(a) => check::run(&a),
        Command::Doctor(a) => doctor::run(&a),
        Command::Man(a) => man::run(&a),
        Command::Completions(a) => completions::run(&a),
    }
}

/// mount(8) calls the program of a `fuse.commitfs` line as `commitfs BACKING DIR -o OPTIONS`.
fn as_subcommand(mut arguments: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let is_path = arguments
        .get(1)
        .and_then(|a| a.to_str())
        .is_some_and(|a| a.contains('/') && !a.starts_with('-'));
    if is_path {
        arguments.insert(1, "mount".into());
    }
    arguments
}
