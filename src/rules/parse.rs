//! The rules file: TOML text to rules, and for everything that isn't one, an error that a person
//! can act on.

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Origin, Rule,
    of_directory::DirectoryTable,
    policy::{Choice, KEYS, Settings},
};
use crate::group::{Group, OnIncomplete, Pattern, Readers};
use crate::json::{Pointer, PointerError};

/// Why a rules file can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct RulesError {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, from one.
    pub line: Option<u32>,
    /// The rule's number in the file, from one.
    pub rule: Option<u32>,
    /// Or the group's.
    pub group: Option<u32>,
    /// The key of the rule.
    pub key: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RulesError {
            file,
            line,
            rule,
            group,
            key,
            problem,
            remedy,
        } = self;
        f.write_str(file)?;
        if let Some(line) = line {
            write!(f, ":{line}")?;
        }
        if let Some(rule) = rule {
            write!(f, ", rule {rule}")?;
        }
        if let Some(group) = group {
            write!(f, ", group {group}")?;
        }
        if let Some(key) = key {
            write!(f, ", key {key}")?;
        }
        write!(f, ": {problem}; {remedy}")
    }
}

impl RulesError {
    /// A rule would publish what is whole of files of which nobody can tell that.
    pub(super) fn nothing_whole(file: &str, (rule, line): (u32, u32), name: &str) -> RulesError {
        RulesError {
            file: file.into(),
            line: Some(line),
            rule: Some(rule),
            group: None,
            key: Some("publish".into()),
            problem: format!(
                "\"whole\" needs a guard, which says what a whole document is, and {name:?} has none"
            ),
            remedy: "name one beside it, as in guard = \"json\"".into(),
        }
    }

    /// Every glob is valid, but all together are more than the matcher takes.
    pub(super) fn too_complex(file: &str, error: &globset::Error) -> RulesError {
        RulesError {
            file: file.into(),
            line: None,
            rule: None,
            group: None,
            key: Some("glob".into()),
            problem: error.to_string(),
            remedy: "use fewer or simpler globs".into(),
        }
    }
}

/// What is wrong with a value, and the remedy, yet without the place.
type Fault = (String, String);

type Value<'i> = Spanned<DeValue<'i>>;

/// The rules and the groups of a file, each in order.
pub(super) fn parse(text: &str, file: &str) -> Result<(Vec<Rule>, Vec<Group>), RulesError> {
    let source = Source { text, file };
    let root = DeTable::parse(text).map_err(|error| {
        let message = error.message().trim_end().replace('\n', ", ");
        let at = error
            .span()
            .and_then(|span| text.get(span))
            .unwrap_or_default();
        let named = !at.is_empty() && at.len() < 80 && !at.contains('\n');
        let fault = (
            if named {
                format!("{message} `{at}`")
            } else {
                message
            },
            "the file has to be valid TOML".into(),
        );
        source.error(error.span(), None, None, fault)
    })?;
    let (mut rules, mut groups) = (Vec::new(), Vec::new());
    for (key, value) in in_order(root.get_ref()) {
        let at = Some(key.span());
        let name: &str = key.get_ref();
        if name != "rule" && name != "group" {
            let fault = (
                format!("unknown key {name:?}"),
                "all there can be is [[rule]] and [[group]] tables".into(),
            );
            return Err(source.error(at, None, None, fault));
        }
        let tables = value.get_ref().as_array().ok_or_else(|| {
            let fault = (
                format!("{name} is not a list of tables"),
                format!("begin each {name} with [[{name}]]"),
            );
            source.error(at, None, None, fault)
        })?;
        for (number, table) in (1..).zip(tables) {
            match name {
                "group" => groups.push(source.group(number, table)?),
                _ => rules.push(source.rule(number, table)?),
            }
        }
    }
    Ok((rules, groups))
}

/// The entries of a table in the order of the text, so that the first mistake is the one reported.
fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a Spanned<toml::de::DeString<'i>>, &'a Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The text being parsed, for the places in messages.
struct Source<'a> {
    text: &'a str,
    file: &'a str,
}

impl Source<'_> {
    fn line(&self, offset: usize) -> u32 {
        1 + self
            .text
            .bytes()
            .take(offset)
            .map(|byte| u32::from(byte == b'\n'))
            .sum::<u32>()
    }

    fn error(
        &self,
        at: Option<Range<usize>>,
        rule: Option<u32>,
        key: Option<&str>,
        fault: Fault,
    ) -> RulesError {
        let (problem, remedy) = fault;
        let line = at.map(|span| self.line(span.start));
        RulesError {
            file: self.file.into(),
            line,
            rule,
            group: None,
            key: key.map(Into::into),
            problem,
            remedy,
        }
    }

    fn rule(&self, number: u32, value: &Value) -> Result<Rule, RulesError> {
        let at = Some(value.span());
        let table = value.get_ref().as_table().ok_or_else(|| {
            let fault = (
                wrong_type("a table", value),
                "begin each rule with [[rule]]".into(),
            );
            self.error(at.clone(), Some(number), None, fault)
        })?;
        let mut glob = None;
        let mut settings = Settings::default();
        for (key, value) in in_order(table) {
            let name: &str = key.get_ref();
            let located = |fault| self.error(Some(key.span()), Some(number), Some(name), fault);
            match name {
                "glob" => glob = Some(rule_for_glob(value).map_err(located)?),
                _ => settings.set(name, value).map_err(located)?,
            }
        }
        let mut rule = glob.ok_or_else(|| {
            let fault = (
                "the glob is missing".into(),
                "say which files it is for, as in glob = \"*.json\"".into(),
            );
            self.error(at, Some(number), Some("glob"), fault)
        })?;
        rule.origin = Origin::File {
            rule: number,
            line: self.line(value.span().start),
        };
        rule.settings = settings;
        Ok(rule)
    }
}

impl Settings {
    /// Takes one key of a rule, other than its glob.
    fn set(&mut self, key: &str, value: &Value) -> Result<(), Fault> {
        match key {
            "mode" => self.mode = Some(choice(value)?),
            "guard" => self.guard = Some(choice(value)?),
            "publish" => self.publish = Some(choice(value)?),
            "close_error" => self.close_error = Some(boolean(value)?),
            "allow_empty" => self.allow_empty = Some(boolean(value)?),
            "on_signal" => self.on_signal = Some(choice(value)?),
            "on_conflict" => self.on_conflict = Some(choice(value)?),
            "counters" => self.counters = Some(pointers(value)?),
            "record" => self.record = Some(choice(value)?),
            "lock_timeout" => self.lock_timeout = Some(duration(value)?),
            "stale" => self.stale = Some(choice(value)?),
            _ => {
                let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                return Err((
                    "unknown key".into(),
                    format!("the keys are glob, {}", known.join(", ")),
                ));
            }
        }
        Ok(())
    }
}

fn string<'a>(value: &'a Value, remedy: &str) -> Result<&'a str, Fault> {
    let text = value.get_ref().as_str();
    text.ok_or_else(|| (wrong_type("a string", value), remedy.to_owned()))
}

fn wrong_type(expected: &str, found: &Value) -> String {
    format!("expected {expected}, found {}", found.get_ref().type_str())
}

/// The rule, so far without settings, for a glob that can match something.
fn rule_for_glob(value: &Value) -> Result<Rule, Fault> {
    let valid = "give a glob such as \"*.json\" for a name or \"runs/**/*.pt\" for a path";
    let text = string(value, valid)?;
    let never = |why: &str, remedy: &str| {
        Err((
            format!("{text:?} matches no file: {why}"),
            remedy.to_owned(),
        ))
    };
    if text.is_empty() || text == "/" {
        return never("it names none", valid);
    }
    if text.ends_with('/') {
        return never(
            "only a directory ends in a slash",
            &format!("write \"{text}**\" for all files below it"),
        );
    }
    let mut parts = text.strip_prefix('/').unwrap_or(text).split('/');
    if parts.any(|part| matches!(part, "" | "." | "..")) {
        return never(
            "paths have no empty, \".\" or \"..\" parts",
            "write it from the mount's root, as in \"/a/b.json\"",
        );
    }
    Rule::new(text).map_err(|error| {
        (
            format!("{text:?} is not a glob: {}", error.kind()),
            valid.into(),
        )
    })
}

fn choice<T: Choice>(value: &Value) -> Result<T, Fault> {
    let names: Vec<_> = T::NAMES
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let remedy = format!("use {}", names.join(" or "));
    let text = string(value, &remedy)?;
    let found = T::NAMES.iter().find(|(name, _)| *name == text);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| (format!("unknown value {text:?}"), remedy))
}

fn boolean(value: &Value) -> Result<bool, Fault> {
    value
        .get_ref()
        .as_bool()
        .ok_or_else(|| (wrong_type("a boolean", value), "use true or false".into()))
}

fn duration(value: &Value) -> Result<Duration, Fault> {
    let remedy = "give a whole number and a unit (ms, s, m, h), as in \"30s\"";
    let text = string(value, remedy)?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(60 * 60 * 1000),
        _ => None,
    };
    let total = milliseconds.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    total
        .map(Duration::from_millis)
        .ok_or_else(|| (format!("{text:?} is not a duration"), remedy.into()))
}

fn pointers(value: &Value) -> Result<Arc<[String]>, Fault> {
    let remedy = "give JSON pointers, as in [\"/epoch\", \"/totals/seen\"]";
    let list = value
        .get_ref()
        .as_array()
        .ok_or_else(|| (wrong_type("an array", value), remedy.into()))?;
    let pointer = |value: &Value| {
        let text = string(value, remedy)?;
        match pointer_fault(text) {
            None => Ok(text.to_owned()),
            Some(why) => Err((
                format!("{text:?} is not a JSON pointer: {why}"),
                remedy.to_owned(),
            )),
        }
    };
    list.iter().map(pointer).collect()
}

/// What keeps `text` from being a JSON pointer by RFC 6901. The empty one is the whole document.
fn pointer_fault(text: &str) -> Option<&'static str> {
    Some(match Pointer::parse(text).err()? {
        PointerError::NoSlash(_) => "it has to begin with '/'",
        PointerError::Tilde(_) => "'~' has to be written ~0, and '/' in a name ~1",
    })
}

/// How long nothing of a round may happen, if its group doesn't say.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Patterns of one group at most: each open of a file compares its path with all.
const MOST_PATTERNS: usize = 64;

const GROUP_KEYS: &str = "files, optional, lock, directory, existing, complete, settle, timeout, on_incomplete and readers";

impl Choice for OnIncomplete {
    const NAMES: &'static [(&'static str, OnIncomplete)] = &[
        ("reject", OnIncomplete::Reject),
        ("commit", OnIncomplete::Commit),
    ];
}

impl Choice for Readers {
    const NAMES: &'static [(&'static str, Readers)] =
        &[("newest", Readers::Newest), ("pin", Readers::Pin)];
}

/// The keys of a table, as they are given.
#[derive(Default)]
struct GroupTable {
    files: Vec<Pattern>,
    optional: Vec<Pattern>,
    complete: Vec<Pattern>,
    lock: Option<Pattern>,
    directory: DirectoryTable,
    timeout: Option<Duration>,
    on_incomplete: Option<OnIncomplete>,
    readers: Option<Readers>,
}

impl GroupTable {
    fn set(&mut self, key: &str, value: &Value<'_>) -> Result<(), Fault> {
        match key {
            "files" => self.files = patterns(value)?,
            "optional" => self.optional = patterns(value)?,
            "complete" => self.complete = patterns(value)?,
            "lock" => self.lock = Some(lock(value)?),
            "directory" => self.directory.pattern = Some(directory(value)?),
            "existing" => self.directory.existing = Some(boolean(value)?),
            "settle" => self.directory.settle = Some(duration(value)?),
            "timeout" => self.timeout = Some(duration(value)?),
            "on_incomplete" => self.on_incomplete = Some(choice(value)?),
            "readers" => self.readers = Some(choice(value)?),
            _ => {
                return Err((
                    "unknown key".into(),
                    format!("the keys of a group are {GROUP_KEYS}"),
                ));
            }
        }
        Ok(())
    }

    /// What is wrong with it as a whole, at which key.
    fn group(self, number: u32, line: u32) -> Result<Group, (&'static str, Fault)> {
        match self.directory.is_absent()? {
            true => self.of_files(number, line),
            false => self.of_directory(number, line),
        }
    }

    fn of_directory(self, number: u32, line: u32) -> Result<Group, (&'static str, Fault)> {
        for (key, patterns) in [("files", &self.files), ("optional", &self.optional)] {
            if !patterns.is_empty() {
                let problem = "a group has files or a directory, not both";
                let remedy = "all files below a directory belong to its group; complete says which are waited for";
                return Err((key, (problem.into(), remedy.into())));
            }
        }
        if self.lock.is_some() {
            let problem = "what is saved under a lock is in files, not in a directory";
            let remedy =
                "name all of it in files, as in [\"best_model/**\"], or leave out the lock";
            return Err(("lock", (problem.into(), remedy.into())));
        }
        let (rule, patterns) = self.directory.rule(&self.complete)?;
        Ok(Group {
            number,
            line,
            lock: None,
            needed: 0,
            complete: (0..patterns.len() - 1).collect(),
            patterns,
            timeout: self.timeout.unwrap_or(TIMEOUT),
            on_incomplete: self.on_incomplete.unwrap_or(OnIncomplete::Reject),
            readers: self.readers.unwrap_or(Readers::Newest),
            directory: Some(rule),
        })
    }

    /// Nothing is waited for under a lock but that it is given back.
    fn check_lock(&self) -> Result<(), (&'static str, Fault)> {
        if self.lock.is_some() && self.readers == Some(Readers::Pin) {
            let problem = "readers of what is saved under a lock pin nothing";
            let remedy = "have them take the lock, too: who holds it finds all of one save";
            return Err(("readers", (problem.to_owned(), remedy.to_owned())));
        }
        let named = [("optional", &self.optional), ("complete", &self.complete)];
        match named.iter().find(|(_, patterns)| !patterns.is_empty()) {
            Some((key, _)) if self.lock.is_some() => {
                let problem = "what is saved under a lock is complete when that is given back";
                let remedy = "name all of it in files, and leave this out";
                Err((key, (problem.to_owned(), remedy.to_owned())))
            }
            _ => Ok(()),
        }
    }

    fn of_files(self, number: u32, line: u32) -> Result<Group, (&'static str, Fault)> {
        self.check_lock()?;
        let needed = self.files.len();
        let patterns: Vec<Pattern> = self.files.into_iter().chain(self.optional).collect();
        let Some(first) = patterns.first().filter(|_| needed > 0) else {
            let remedy = "say which, as in files = [\"models/{s}.h5\", \"models/{s}.json\"], or directory = \"**/checkpoint-*\"";
            return Err(("files", ("the group has no files".into(), remedy.into())));
        };
        if patterns.len() > MOST_PATTERNS {
            let problem = format!("a group has at most {MOST_PATTERNS} patterns");
            return Err((
                "files",
                (problem, "let * stand for a part of a name".into()),
            ));
        }
        for other in patterns.iter().chain(&self.lock) {
            if other.names() != first.names() {
                let names = |p: &Pattern| match p.names() {
                    names if names.is_empty() => "no name".to_owned(),
                    names => format!("{{{}}}", names.join("}, {")),
                };
                let problem = format!(
                    "{:?} has {} in braces, and {:?} has {}",
                    first.written(),
                    names(first),
                    other.written(),
                    names(other)
                );
                let remedy = "all files of a group have the same names in braces: by what these stand for it is told which belong together";
                return Err(("files", (problem, remedy.into())));
            }
            if other.is_by_name() != first.is_by_name() {
                let problem = format!(
                    "{:?} is a path and {:?} a name in any directory",
                    if first.is_by_name() { other } else { first }.written(),
                    if first.is_by_name() { first } else { other }.written(),
                );
                let remedy = "give all of them as paths from the mount's root, or all as names";
                return Err(("files", (problem, remedy.into())));
            }
        }
        let place = |wanted: &Pattern| {
            let found = patterns.iter().position(|p| p == wanted);
            found.ok_or_else(|| {
                let problem = format!("{:?} is none of the group's files", wanted.written());
                let remedy = "name one of files or optional, as it is written there";
                ("complete", (problem, remedy.into()))
            })
        };
        let complete = self.complete.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Group {
            number,
            line,
            needed: if self.lock.is_none() { needed } else { 0 },
            lock: self.lock,
            patterns,
            complete,
            timeout: self.timeout.unwrap_or(TIMEOUT),
            on_incomplete: self.on_incomplete.unwrap_or(OnIncomplete::Reject),
            readers: self.readers.unwrap_or(Readers::Newest),
            directory: None,
        })
    }
}

fn lock(value: &Value<'_>) -> Result<Pattern, Fault> {
    let remedy = "give the pattern of the lock file, as in \"{dir}/save.lock\"";
    Pattern::parse(string(value, remedy)?)
}

fn directory(value: &Value<'_>) -> Result<Pattern, Fault> {
    let remedy = "give a pattern, as in \"**/checkpoint-*\"";
    Pattern::parse(string(value, remedy)?)
}

fn patterns(value: &Value<'_>) -> Result<Vec<Pattern>, Fault> {
    let remedy = "give patterns, as in [\"models/{s}.h5\", \"models/{s}.json\"]";
    let list = value.get_ref().as_array();
    let list = list.ok_or_else(|| (wrong_type("an array", value), remedy.to_owned()))?;
    list.iter()
        .map(|value| Pattern::parse(string(value, remedy)?))
        .collect()
}

impl Source<'_> {
    fn group(&self, number: u32, value: &Value<'_>) -> Result<Group, RulesError> {
        let at = value.span();
        let error = |at, key, fault| RulesError {
            group: Some(number),
            ..self.error(Some(at), None, key, fault)
        };
        let table = value.get_ref().as_table().ok_or_else(|| {
            let fault = (
                wrong_type("a table", value),
                "begin each group with [[group]]".into(),
            );
            error(at.clone(), None, fault)
        })?;
        let mut keys = GroupTable::default();
        for (key, value) in in_order(table) {
            let name: &str = key.get_ref();
            let set = keys.set(name, value);
            set.map_err(|fault| error(key.span(), Some(name), fault))?;
        }
        let line = self.line(at.start);
        keys.group(number, line).map_err(|(key, fault)| {
            let keys = in_order(table);
            let place = keys.iter().find(|(found, _)| found.get_ref() == key);
            let place = place.map_or(at, |(key, _)| key.span());
            error(place, Some(key), fault)
        })
    }
}
