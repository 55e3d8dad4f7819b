//! `commitfs json update`: a command changes the document, and what it prints is set in its place
//! if nobody has changed it meanwhile.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::edit::Changed;
use super::output::{self, Form};
use super::target::{self, Target};
use super::trouble::Trouble;
use super::{mounted, plain};
use crate::cli::{Failure, exit, random};
use crate::json::Document;

/// Arguments of `commitfs json update`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The document
    file: PathBuf,
    /// How often to run the command again because somebody else was faster
    #[arg(long, value_name = "N", default_value_t = 100)]
    retries: u32,
    /// Create the file if it is missing; the command gets {}
    #[arg(long)]
    create: bool,
    /// Print {"version": N}
    #[arg(long)]
    json: bool,
    /// Print nothing
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// The command: the document on its standard input, the new one on its standard output
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Why there was no update.
enum Stop {
    Trouble(Trouble),
    Command(String),
}

impl<T: Into<Trouble>> From<T> for Stop {
    fn from(trouble: T) -> Stop {
        Stop::Trouble(trouble.into())
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let file = &arguments.file;
    let target = Target::of(file)?;
    let done = if target.mounted {
        update(&target.real, arguments)
    } else {
        plain::warn(file);
        on_plain(&target.real, arguments)
    };
    let told = done.map_err(|stop| match stop {
        Stop::Trouble(trouble) => trouble.of(file),
        Stop::Command(what) => {
            let name = arguments.command[0].to_string_lossy();
            let message = format!("{}: not changed: {name} {what}", file.display());
            Failure::new(exit::COMMAND_FAILED, message)
        }
    })?;
    output::told(&told, Form::of(arguments.json, arguments.quiet))
}

fn update(file: &Path, arguments: &Arguments) -> Result<Changed, Stop> {
    let mut backoff = Backoff::default();
    for _ in 0..=arguments.retries {
        match attempt(file, arguments) {
            Err(Stop::Trouble(Trouble::NotCurrent(_))) => backoff.wait(),
            other => return other,
        }
    }
    let reason = format!(
        "somebody else was faster {} times in a row; --retries allows more",
        u64::from(arguments.retries) + 1
    );
    Err(Stop::Trouble(Trouble::Overtaken(reason)))
}

fn attempt(file: &Path, arguments: &Arguments) -> Result<Changed, Stop> {
    let (version, text) = match mounted::read(file) {
        Err(Trouble::FileMissing) if arguments.create => (None, Vec::new()),
        read => read.map(|(version, text)| (Some(version), text))?,
    };
    let new = output_of(&arguments.command, &text)?;
    let value = None;
    match version {
        Some(version) if new == text => {
            let version = Some(version);
            Ok(Changed { version, value })
        }
        Some(version) => Ok(mounted::replace(file, &new, version)?),
        None => match target::create(file, &new, false)? {
            Some(version) => Ok(Changed {
                version: Some(version),
                value,
            }),
            None => Err(Trouble::NotCurrent("it has been created meanwhile".to_owned()).into()),
        },
    }
}

fn on_plain(file: &Path, arguments: &Arguments) -> Result<Changed, Stop> {
    // What the command says has to get through those who know of documents only.
    let failed = std::cell::RefCell::new(None);
    let done = plain::change(file, arguments.create, |text| {
        match output_of(&arguments.command, text) {
            Ok(new) => Ok(((new != text).then_some(new), Changed::default())),
            Err(Stop::Trouble(trouble)) => Err(trouble),
            Err(Stop::Command(what)) => {
                *failed.borrow_mut() = Some(what);
                Err(Trouble::Restless)
            }
        }
    });
    match failed.into_inner() {
        Some(what) => Err(Stop::Command(what)),
        None => Ok(done?),
    }
}

/// What the command makes of a text.
fn output_of(command: &[OsString], text: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Stop::Command(format!("can't be run: {e}")))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            let blank = text.trim_ascii().is_empty();
            let text: &[u8] = if blank { b"{}\n" } else { text };
            // A command that doesn't want to read it all need not.
            stdin.map(|mut stdin| stdin.write_all(text).ok())
        });
        child.wait_with_output()
    });
    let output = output.map_err(|e| Stop::Command(format!("can't be read from: {e}")))?;
    if !output.status.success() {
        return Err(Stop::Command(format!("failed ({})", output.status)));
    }
    if output.stdout.trim_ascii().is_empty() {
        return Err(Stop::Command("printed nothing".to_owned()));
    }
    match Document::parse(&output.stdout) {
        Ok(_) => Ok(output.stdout),
        Err(e) => Err(Stop::Command(format!("printed no JSON document: {e}"))),
    }
}

/// Waits that grow, each of a random length, so that those who met once don't meet again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    waits: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(250);

    pub fn wait(&mut self) {
        let most = (Self::FIRST * 2u32.pow(self.waits.min(7))).min(Self::LONGEST);
        self.waits += 1;
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        std::thread::sleep(Duration::from_micros(random::below(micros)));
    }
}
