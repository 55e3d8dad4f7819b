//! `commitfs json`: JSON documents are read and edited, each edit in one step (C15).
//!
//! On a mount, an edit is an attribute that is set, and the daemon does the rest (`mounted`). On a
//! plain directory the same edit is made here, as well as it can be, and a warning says that
//! nothing protects it (`plain`).

mod edit;
mod mounted;
mod output;
mod plain;
mod target;
mod trouble;
mod update;

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use self::edit::{Changed, Edit};
use self::output::Form;
use self::target::Target;
use self::trouble::Trouble;
use super::{Failure, exit};
use crate::json::{Document, Pointer};

/// Arguments of `commitfs json`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Edits print VERSION VALUE: the version they made, and the value that is now where they pointed.\n\
                  POINTER is a JSON pointer (RFC 6901): /a/b/0, with ~1 for a slash and ~0 for a tilde in a name.\n\n\
                  Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 bad input (no such file, not JSON, no permission),\n\
                  7 the version is not current, 8 the pointer leads nowhere, 9 a test in a patch failed,\n\
                  10 the command of update failed. From 2 on, nothing was changed."
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Print a document, or the value at a pointer
    Get {
        /// The document
        file: PathBuf,
        /// Where in it; the whole document if not said
        #[arg(value_parser = Pointer::parse)]
        pointer: Option<Pointer>,
        /// Print VERSION VALUE, on one line
        #[arg(long, conflicts_with_all = ["json", "raw"])]
        with_version: bool,
        /// Print {"version": N, "value": V}
        #[arg(long, conflicts_with = "raw")]
        json: bool,
        /// Print a string as it is, without quotes and escapes
        #[arg(short, long)]
        raw: bool,
    },
    /// Set the value at a pointer; what leads there must exist (`merge` makes it)
    Set {
        /// The document
        file: PathBuf,
        /// Where in it; - at the end of a path appends to an array
        #[arg(value_parser = Pointer::parse)]
        pointer: Pointer,
        /// The value, as JSON; - reads it from standard input
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// The value is a string as it stands, not JSON
        #[arg(short, long)]
        string: bool,
        #[command(flatten)]
        how: How,
    },
    /// Apply a JSON patch (RFC 6902, and the operation increment), all of it or nothing
    Patch {
        /// The document
        file: PathBuf,
        /// The patch; - reads it from standard input
        patch: String,
        #[command(flatten)]
        how: How,
    },
    /// Apply a JSON merge patch (RFC 7396): members take the place of others, null removes
    Merge {
        /// The document
        file: PathBuf,
        /// The patch; - reads it from standard input
        patch: String,
        #[command(flatten)]
        how: How,
    },
    /// Add to the number at a pointer, which is 0 where there is none
    Incr {
        /// The document
        file: PathBuf,
        /// Where in it
        #[arg(value_parser = Pointer::parse)]
        pointer: Pointer,
        /// How much to add
        #[arg(default_value = "1", allow_negative_numbers = true)]
        by: String,
        /// Print VERSION VALUE
        #[arg(long, conflicts_with_all = ["json", "quiet"])]
        with_version: bool,
        #[command(flatten)]
        how: How,
    },
    /// Let a command change the document: from its standard input to its standard output
    ///
    /// The output becomes the document, byte for byte, if nobody has changed the document meanwhile; else the command is
    /// run again on what is there then. A command that fails, or prints no JSON, changes nothing.
    Update(update::Arguments),
}

/// What all edits have in common.
#[derive(Debug, Clone, clap::Args)]
struct How {
    /// Create the file if it is missing; it begins as {}
    #[arg(long, conflicts_with = "if_version")]
    create: bool,
    /// Only if this is the current version
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
    /// Print {"version": N, "value": V}
    #[arg(long)]
    json: bool,
    /// Print nothing
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

impl How {
    fn form(&self) -> Form {
        Form::of(self.json, self.quiet)
    }
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.action {
        Action::Get {
            file,
            pointer,
            with_version,
            json,
            raw,
        } => {
            let form = match (with_version, json, raw) {
                (true, _, _) => Form::Line,
                (_, true, _) => Form::Json,
                (_, _, true) => Form::Raw,
                _ => Form::Value,
            };
            get(file, pointer.as_ref(), form)
        }
        Action::Set {
            file,
            pointer,
            value,
            string,
            how,
        } => {
            let edit = match string {
                true => Edit::set_string(pointer.clone(), value),
                false => Edit::set(pointer.clone(), &given(value)?)?,
            };
            change(file, &edit, how, how.form())
        }
        Action::Patch { file, patch, how } => {
            change(file, &Edit::patch(given(patch)?)?, how, how.form())
        }
        Action::Merge { file, patch, how } => {
            change(file, &Edit::merge(given(patch)?)?, how, how.form())
        }
        Action::Incr {
            file,
            pointer,
            by,
            with_version,
            how,
        } => {
            // What a shell counts with: `n=$(commitfs json incr …)`.
            let form = match how.form() {
                Form::Line if !with_version => Form::Value,
                form => form,
            };
            change(file, &Edit::increment(pointer.clone(), by)?, how, form)
        }
        Action::Update(arguments) => update::run(arguments),
    }
}

/// An argument, or what is on standard input.
fn given(argument: &str) -> Result<Vec<u8>, Failure> {
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
    }
    let mut text = Vec::new();
    std::io::stdin()
        .read_to_end(&mut text)
        .map_err(|e| Failure::new(exit::TROUBLE, format!("standard input: {e}")))?;
    Ok(text)
}

fn get(file: &Path, pointer: Option<&Pointer>, form: Form) -> Result<u8, Failure> {
    let target = Target::of(file)?;
    let (version, text) = match target.mounted {
        true => mounted::read(&target.real).map(|(version, text)| (Some(version), text)),
        false => plain::read(&target.real).map(|text| (None, text)),
    }
    .map_err(|trouble| trouble.of(file))?;
    let document = Document::parse(&text)
        .map_err(|e| Trouble::NotADocument(e.to_string()))
        .map_err(|trouble| trouble.of(file))?;
    let whole = Pointer::default();
    let value = pointer
        .unwrap_or(&whole)
        .resolve(document.value())
        .map_err(|e| Trouble::PointerMissing(e.to_string()).of(file))?;
    let is_blank = text.trim_ascii().is_empty();
    if form == Form::Value && pointer.is_none() && !is_blank {
        return output::text(&text);
    }
    output::value(version, value, form)
}

fn change(file: &Path, edit: &Edit, how: &How, form: Form) -> Result<u8, Failure> {
    let target = Target::of(file)?;
    let told = if target.mounted {
        change_mounted(&target.real, edit, how)
    } else {
        if how.if_version.is_some() {
            return Err(Failure::new(
                exit::BAD_INPUT,
                format!(
                    "{}: --if-version needs a commitfs mount; on a plain directory there are no versions",
                    file.display()
                ),
            ));
        }
        plain::warn(file);
        plain::change(&target.real, how.create, |text| {
            edit.made_of(text).map(|(text, value)| {
                (
                    text,
                    Changed {
                        version: None,
                        value,
                    },
                )
            })
        })
    };
    let told = told.map_err(|trouble| edit.explain(trouble).of(file))?;
    output::told(&told, form)
}

fn change_mounted(file: &Path, edit: &Edit, how: &How) -> Result<Changed, Trouble> {
    // Who creates and who removes the file meanwhile may make it take turns, but not for ever.
    for _ in 0..100 {
        match mounted::change(file, edit, how.if_version) {
            Err(Trouble::FileMissing) if how.create => {}
            other => return other,
        }
        let (text, value) = edit.made_of(b"")?;
        // If it fails all the same, the document would have been empty.
        let text = text.unwrap_or_else(|| b"{}\n".to_vec());
        if let Some(version) = target::create(file, &text, false)? {
            let version = Some(version);
            return Ok(Changed { version, value });
        }
    }
    Err(Trouble::Restless)
}
