//! `commitfs rules`: what holds for which file, and changes of it while the mount lives.

mod add;
mod place;

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Failure, control, exit, output};
use crate::engine::ControlCommand;
use crate::rules::{Creation, Explained, Rules};
use crate::types::path_hex;
use place::Place;

/// Arguments of `commitfs rules`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Look for mistakes in a rules file
    Check {
        /// A mount, a directory nobody has mounted, or a rules file
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Say how a file is treated, and by which rules
    Explain {
        /// The file; it need not be there
        path: PathBuf,
        /// As if a program were about to create it with O_EXCL
        #[arg(long)]
        exclusive: bool,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Read the rules file of a mount again; if it can't be, the rules in force stay
    Reload {
        /// The mount
        dir: PathBuf,
    },
    /// Print the rules file
    Show {
        /// A mount, or a directory nobody has mounted
        dir: PathBuf,
    },
    /// Replace the rules file, and put it in force
    Set {
        /// A mount, or a directory nobody has mounted
        dir: PathBuf,
        /// The new rules; - reads them from standard input
        file: PathBuf,
    },
    /// Add a rule to the rules file, and put it in force
    #[command(after_help = add::HELP)]
    Add(add::Arguments),
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.action {
        Action::Check { dir } => check(dir),
        Action::Explain {
            path,
            exclusive,
            json,
        } => explain(path, *exclusive, *json),
        Action::Reload { dir } => reload(dir),
        Action::Show { dir } => {
            output::print(Place::of(dir)?.read()?)?;
            Ok(exit::OK)
        }
        Action::Set { dir, file } => set(dir, file),
        Action::Add(arguments) => add::run(arguments),
    }
}

fn bad_rules(e: impl std::fmt::Display) -> Failure {
    Failure::new(exit::BAD_INPUT, format!("rules: {e}"))
}

fn check(dir: &Path) -> Result<u8, Failure> {
    let (text, source, in_force) = if dir.is_file() {
        (read_file(dir)?, dir.display().to_string(), None)
    } else {
        let place = Place::of(dir)?;
        let text = place.read()?;
        let in_force = place.is_in_force(&text)?;
        (text, place.source(), in_force)
    };
    let rules = Rules::parse(&text, &source).map_err(bad_rules)?;
    if text.is_empty() && in_force != Some(false) {
        let said = format!(
            "{}: no rules; those built in hold\n",
            output::escaped(&source)
        );
        output::print(said)?;
        return Ok(exit::OK);
    }
    let count = match rules.from_file() {
        1 => "1 rule".to_owned(),
        count => format!("{count} rules"),
    };
    let count = match rules.groups() {
        0 => count,
        1 => count + ", 1 group",
        groups => format!("{count}, {groups} groups"),
    };
    let source = output::escaped(&source).into_owned();
    let mut said = format!("{source}: {count}, nothing wrong\n");
    for doubt in rules.doubts() {
        said += &format!("{}\n", output::escaped(&doubt));
    }
    if in_force == Some(false) {
        said += &format!(
            "it is not in force as it stands; `commitfs rules reload {}` puts it in force\n",
            dir.display()
        );
    }
    output::print(said)?;
    Ok(exit::OK)
}

fn read_file(path: &Path) -> Result<String, Failure> {
    let bad = |e: std::io::Error| Failure::new(exit::BAD_INPUT, format!("{}: {e}", path.display()));
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(bad)?;
        return Ok(text);
    }
    std::fs::read_to_string(path).map_err(bad)
}

fn reload(dir: &Path) -> Result<u8, Failure> {
    let place = Place::of(dir)?;
    if !place.is_mounted() {
        return Err(Failure::new(
            exit::BAD_INPUT,
            format!(
                "{}: no commitfs is mounted here; `commitfs mount` reads the rules",
                dir.display()
            ),
        ));
    }
    place.put_in_force(&place.read()?)?;
    say_in_force(&place)
}

fn set(dir: &Path, file: &Path) -> Result<u8, Failure> {
    let place = Place::of(dir)?;
    let text = read_file(file)?;
    Rules::parse(&text, &file.display().to_string()).map_err(|e| place.stay(bad_rules(e)))?;
    place.write(&place.read()?, &text)?;
    say_in_force(&place)
}

fn say_in_force(place: &Place) -> Result<u8, Failure> {
    let source = place.source();
    let when = match place.is_mounted() {
        true => "in force",
        false => "will be in force when it is mounted",
    };
    output::print(format!("{}: {when}\n", output::escaped(&source)))?;
    Ok(exit::OK)
}

fn explain(path: &Path, exclusive: bool, json: bool) -> Result<u8, Failure> {
    let found = place::whole(path)?;
    let empty = found.metadata().is_ok_and(|m| m.is_file() && m.len() == 0);
    let (explained, source) = match Place::above(&found)? {
        Some((place, relative)) => {
            let explained = match place.mountpoint() {
                Some(mountpoint) => {
                    let command = ControlCommand::Explain {
                        path: relative.to_string_lossy().into_owned(),
                        path_hex: path_hex(&relative),
                        empty,
                        exclusive,
                    };
                    control::send(mountpoint, &command)?.explained
                }
                None => {
                    let rules = Rules::parse(&place.read()?, &place.source());
                    let rules = rules.map_err(bad_rules)?;
                    rules.explained(&relative, Creation { exclusive, empty })
                }
            };
            let source = match place.read()?.is_empty() {
                true => String::new(),
                false => place.source(),
            };
            (explained, source)
        }
        None => {
            let name = found.file_name().unwrap_or_default();
            let creation = Creation { exclusive, empty };
            let explained = Rules::builtin().explained(name.as_ref(), creation);
            (explained, String::new())
        }
    };
    if json {
        let text =
            serde_json::to_string_pretty(&explained).map_err(|e| Failure::new(exit::TROUBLE, e))?;
        output::print(text + "\n")?;
    } else {
        output::print(for_people(&found, &source, &explained))?;
    }
    Ok(exit::OK)
}

fn for_people(path: &Path, source: &str, explained: &[Explained]) -> String {
    let mut out = format!("{}\n", crate::types::path_on_a_line(path));
    out += &match source {
        "" => "by the built-in rules: there is no rules file\n".to_owned(),
        source => format!("by {} and the built-in rules\n", output::escaped(source)),
    };
    let widest = explained.iter().map(|e| e.value.chars().count()).max();
    let width = widest.unwrap_or_default().clamp(5, 24);
    let row = |key: &str, value: &str, why: &str| format!("{key:<12}  {value:<width$}  {why}\n");
    out += &row("KEY", "VALUE", "BECAUSE OF");
    for told in explained {
        // The file is named above.
        let why = match told.why.strip_prefix(source) {
            Some(rest) if !source.is_empty() && rest.starts_with(':') => {
                let name = Path::new(source).file_name().unwrap_or_default();
                format!("{}{rest}", name.to_string_lossy())
            }
            _ => told.why.clone(),
        };
        out += &row(&told.key, &told.value, &output::escaped(&why));
    }
    out
}
