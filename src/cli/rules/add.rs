//! `commitfs rules add`: one more rule, as status proposes it.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::place::Place;
use super::{bad_rules, say_in_force};
use crate::cli::{Failure, exit};
use crate::rules::{Rules, SetAlready};

/// How often it is tried to be the only one who changes the file.
const RETRIES: usize = 100;

/// For `commitfs rules add --help`.
pub(super) const HELP: &str = "\
Keys and values are those of a rules file (docs/semantics.md), as KEY=VALUE:
  mode=direct|atomic            guard=none|json|json-strict|zip|...
  publish=close|whole           close_error=true|false
  allow_empty=true|false        on_signal=reject|commit
  on_conflict=last|merge|fail   counters=/POINTER (several times)
  record=lines|close|stream     lock_timeout=30s
  stale=warn|remove
The first rule of the file that sets a key for a path decides that key: the new
one goes to the end, with --first to the beginning. Files that are open keep the
rules that they were opened with.
  commitfs rules add DIR 'prog*.json' on_conflict=merge counters=/done";

/// Arguments of `commitfs rules add`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// A mount, or a directory nobody has mounted
    dir: PathBuf,
    /// Which files: with a slash, the path from the mount's root; without, the name, anywhere
    glob: String,
    /// What holds for them
    #[arg(required = true, value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Before the rules that are there, not behind them
    #[arg(long)]
    first: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let place = Place::of(&arguments.dir)?;
    let rule = rule_text(&arguments.glob, &arguments.settings)?;
    let new = Rules::parse_alone(&rule, "the new rule").map_err(|e| place.stay(bad_rules(e)))?;
    // Others may be adding rules, too.
    for _ in 0..RETRIES {
        let before = place.read()?;
        let there = Rules::parse(&before, &place.source()).map_err(|e| place.stay(bad_rules(e)))?;
        refuse_without_effect(&place, &there, &new, arguments)?;
        match place.write(&before, &with_rule(&before, &rule, arguments.first)) {
            Err(_) if place.read()? != before => {}
            other => return other.and_then(|()| say_in_force(&place)),
        }
    }
    Err(Failure::new(
        exit::BUSY,
        format!(
            "{}: others change it all the time; try again",
            place.source()
        ),
    ))
}

fn with_rule(before: &str, rule: &str, first: bool) -> String {
    match (first, before) {
        (_, "") => rule.to_owned(),
        (true, before) => format!("{rule}\n{before}"),
        (false, before) => {
            let end = if before.ends_with('\n') { "" } else { "\n" };
            format!("{before}{end}\n{rule}")
        }
    }
}

/// A rule that changes nothing is none that somebody wants.
fn refuse_without_effect(
    place: &Place,
    there: &Rules,
    new: &Rules,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let (found, all_same) = there.set_already(new);
    let (file, dir) = (place.source(), arguments.dir.display());
    let differs = found.iter().find(|f| !f.is_same);
    let why = match (found.first(), differs) {
        (Some(SetAlready { rule, line, .. }), _) if all_same => {
            format!("{file}:{line}, rule {rule}: says so already; nothing was changed")
        }
        (
            _,
            Some(SetAlready {
                rule,
                line,
                key,
                value,
                ..
            }),
        ) if !arguments.first => format!(
            "{file}:{line}, rule {rule}: has this glob and says {key} = {value}, and the first rule counts; nothing was changed. \
             Put the new one before it with --first, or change that one: `commitfs rules show {dir}`, `commitfs rules set {dir} FILE`"
        ),
        _ => return Ok(()),
    };
    Err(Failure::new(exit::BAD_INPUT, why))
}

/// The rule as it stands in a rules file.
fn rule_text(glob: &str, settings: &[String]) -> Result<String, Failure> {
    let mut rule = format!("[[rule]]\nglob = {}\n", quoted(glob));
    let mut counters = Vec::new();
    for setting in settings {
        let bad = || {
            Failure::new(
                exit::USAGE,
                format!("{setting}: not KEY=VALUE, such as mode=direct"),
            )
        };
        let (key, value) = setting.split_once('=').ok_or_else(bad)?;
        match key {
            "counters" => counters.push(quoted(value)),
            "allow_empty" | "close_error" if ["true", "false"].contains(&value) => {
                writeln!(rule, "{key} = {value}").ok();
            }
            _ if key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !key.is_empty() => {
                writeln!(rule, "{key} = {}", quoted(value)).ok();
            }
            _ => return Err(bad()),
        }
    }
    if !counters.is_empty() {
        writeln!(rule, "counters = [{}]", counters.join(", ")).ok();
    }
    Ok(rule)
}

/// A basic string of TOML: that of JSON, but for one control character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::rules::Creation;

    #[test]
    fn a_rule_says_what_was_given() {
        let settings = ["on_conflict=merge", "counters=/a\"b", "counters=/n=1"];
        let settings = settings.map(str::to_owned);
        let text = rule_text("a \"\u{7f}*.json", &settings).unwrap();
        let rules = Rules::parse(&text, "test").unwrap();
        let policy = rules.decide(Path::new("a \"\u{7f}x.json"), Creation::default());
        assert_eq!(*policy.counters, ["/a\"b".to_owned(), "/n=1".to_owned()]);
    }
}
