//! `commitfs man`: manual pages, made from what the parser of the command line knows.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Failure, exit, output};

/// What the page of the program says first.
const ABOUT: &str = "\
commitfs is mounted over the directory in which programs keep their state: progress files, checkpoints, metrics, \
configuration. The programs stay as they are. Whoever reads a file sees one whole version of it; the last close of a \
writer makes its content the new version, in one step; a writer that is killed, or runs out of disk, leaves the old one.

What was not committed is kept, and shown by commitfs rejected. commitfs status says what is open, and what has gone wrong. \
commitfs umount leaves plain files in a plain directory.";

/// How it is used.
const EXAMPLES: &str = "\
commitfs doctor ~/state      would a mount work here?
commitfs mount ~/state       over the directory itself
commitfs status ~/state
commitfs umount ~/state

In /etc/fstab:
  /srv/state  /srv/state  fuse.commitfs  defaults,durability=sync  0 0";

/// What it keeps and reads.
const FILES: &str = "\
DIR/.commitfs             journal, rejected content, log; in the backing
                          directory
DIR/.commitfs/rules.toml  rules, read when DIR is mounted
/etc/fuse.conf            user_allow_other, for mounts of ordinary users
/sbin/umount.fuse.commitfs
                          a link to commitfs, for umount(8) by ordinary
                          users";

/// Arguments of `commitfs man`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Write the pages of all subcommands there, as commitfs*.1; made if missing
    ///
    /// /usr/local/share/man/man1 is where man looks for them.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut program = super::Arguments::command().disable_help_subcommand(true);
    program.build();
    match &arguments.dir {
        None => output::print(page(&program, &program)?)?,
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|e| unusable(dir, &e))?;
            write_all(&program, &program, dir)?;
        }
    }
    Ok(exit::OK)
}

/// The page of a command and those of its subcommands.
fn write_all(program: &Command, command: &Command, dir: &Path) -> Result<(), Failure> {
    let file = dir.join(Man::new(command.clone()).get_filename());
    std::fs::write(&file, page(program, command)?).map_err(|e| unusable(&file, &e))?;
    command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .try_for_each(|c| write_all(program, c, dir))
}

fn unusable(path: &Path, why: &std::io::Error) -> Failure {
    Failure::new(
        exit::BAD_INPUT,
        format!(
            "{}: {why}: man pages need a directory that can be written to",
            path.display()
        ),
    )
}

/// One page, in roff.
fn page(program: &Command, command: &Command) -> Result<Vec<u8>, Failure> {
    let man = Man::new(command.clone());
    let mut out = Vec::new();
    sections(&man, program, command, &mut out)
        .map_err(|e| Failure::new(exit::TROUBLE, format!("a manual page: {e}")))?;
    Ok(out)
}

fn sections(
    man: &Man,
    program: &Command,
    command: &Command,
    out: &mut Vec<u8>,
) -> std::io::Result<()> {
    let is_program = command.get_name() == program.get_name();
    title(command, out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    if is_program {
        text("DESCRIPTION", ABOUT, out)?;
    } else {
        man.render_description_section(out)?;
    }
    if command.get_arguments().any(|a| !a.is_hide_set()) {
        man.render_options_section(out)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    if let Some(help) = command.get_after_help() {
        text("NOTES", &help.to_string(), out)?;
    }
    if is_program {
        text("EXAMPLES", &indented(EXAMPLES), out)?;
        text("FILES", &indented(FILES), out)?;
    }
    see_also(program, is_program, out)
}

/// The head of a page, which has no date: the version is the date. The library leaves out what is empty.
fn title(command: &Command, out: &mut Vec<u8>) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, r#".TH "{name}" 1 "" "commitfs {version}" "commitfs""#)?;
    // Neither spread out nor cut at a hyphen: names are to be copied.
    writeln!(out, ".ad l\n.nh")
}

fn indented(table: &str) -> String {
    table.lines().map(|line| format!("  {line}\n")).collect()
}

/// A section: lines that begin with a space stay as they are, the others are filled; an empty line begins a paragraph.
fn text(heading: &str, text: &str, out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [heading]);
    let mut table = false;
    for line in text.lines() {
        let in_table = line.starts_with(' ');
        if in_table != table {
            roff.control(if in_table { "nf" } else { "fi" }, []);
            table = in_table;
        }
        if line.trim().is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(if in_table {
                line.strip_prefix("  ").unwrap_or(line)
            } else {
                line
            })]);
        }
    }
    if table {
        roff.control("fi", []);
    }
    roff.to_writer(out)
}

fn see_also(program: &Command, is_program: bool, out: &mut Vec<u8>) -> std::io::Result<()> {
    let others = if is_program {
        let shown = program.get_subcommands().filter(|c| !c.is_hide_set());
        let names = shown.map(|c| format!("commitfs-{}(1)", c.get_name()));
        names.collect::<Vec<_>>().join(", ")
    } else {
        "commitfs(1), mount(8), umount(8)".to_owned()
    };
    text("SEE ALSO", &others, out)
}
