//! Rules decide how a path is treated: by which mode, under which guard, with what at a conflict.
//!
//! They are an ordered list; the first rule that matches a path *and* sets a key decides that key.
//! The user's come first, the built-in ones behind them, and what none of them sets has a default.
//! [`Rules::decide`] stands in the way of every open and create: it runs two prepared glob sets,
//! and allocates only where a rule matches.

mod builtin;
mod explain;
mod of_directory;
mod parse;
mod policy;
mod sample;
#[cfg(test)]
mod tests;

use std::{ffi::OsStr, fmt::Write as _, path::Path, sync::Arc};

use globset::{Candidate, Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::group::{Binding, Group, Membership, Readers};
use crate::guard::Guard;
use crate::sys::failpoint;
use policy::Settings;

pub use builtin::{Stream, companion_of, looks_like_database, text_stream};
pub use explain::{Explained, SetAlready, escaped_glob, quoted};
pub use parse::RulesError;
pub use policy::{Mode, OnConflict, OnSignal, Policy, Publish, Record, Stale};

/// How a file came, or is about to come, into being. Names like `*.lock` are used both for claims,
/// which have to be seen at once, and for documents (`Cargo.lock`), which have to be whole; this
/// tells them apart.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Creation {
    /// Created with O_EXCL.
    pub exclusive: bool,
    /// Exists, and is empty.
    pub empty: bool,
}

/// Where a rule comes from.
#[derive(Clone, Debug)]
enum Origin {
    /// A rules file: the rule's number and line, from one.
    File {
        rule: u32,
        line: u32,
    },
    BuiltIn,
}

/// A condition beside the glob. Only built-in rules have one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    Always,
    /// The file is created with O_EXCL, or is empty.
    Claimed,
}

impl When {
    fn holds(self, creation: Creation) -> bool {
        match self {
            When::Always => true,
            When::Claimed => creation.exclusive || creation.empty,
        }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    origin: Origin,
    when: When,
    /// As it was written.
    text: String,
    glob: Glob,
    /// The glob is for the file's name, wherever it is; otherwise for the path from the mount's
    /// root.
    by_name: bool,
    settings: Settings,
}

impl Rule {
    /// A rule with the built-in rules' origin and no settings yet; the error says what is wrong
    /// with the glob.
    fn new(text: &str) -> Result<Rule, globset::Error> {
        let by_name = !text.contains('/');
        // A leading slash only says that the path starts at the root, which it does anyhow.
        let pattern = text.strip_prefix('/').unwrap_or(text);
        // In a name there is no separator to look out for, and `x*` stays a mere comparison of
        // prefixes.
        let glob = GlobBuilder::new(pattern)
            .literal_separator(!by_name)
            .backslash_escape(true)
            .build()?;
        let settings = Settings::default();
        Ok(Rule {
            origin: Origin::BuiltIn,
            when: When::Always,
            text: text.into(),
            glob,
            by_name,
            settings,
        })
    }

    /// The rule as `explain` names it.
    fn describe(&self, file: &str) -> String {
        let condition = match self.when {
            When::Always => "",
            When::Claimed => ", created O_EXCL or empty",
        };
        match self.origin {
            Origin::File { rule, line } => {
                format!("{file}:{line}, rule {rule}, {:?}{condition}", self.text)
            }
            Origin::BuiltIn => format!("built-in, {:?}{condition}", self.text),
        }
    }
}

/// The globs of some of the rules, matched in one go.
#[derive(Clone, Debug)]
struct Globs {
    set: GlobSet,
    /// For each glob of the set, the index of its rule.
    rules: Vec<usize>,
}

impl Globs {
    fn new(rules: &[Rule], by_name: bool) -> Result<Globs, globset::Error> {
        let mut set = GlobSetBuilder::new();
        let mut indices = Vec::new();
        for (index, rule) in rules
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.by_name == by_name)
        {
            set.add(rule.glob.clone());
            indices.push(index);
        }
        Ok(Globs {
            set: set.build()?,
            rules: indices,
        })
    }

    fn find(&self, subject: &OsStr, found: &mut Vec<usize>) {
        if self.rules.is_empty() {
            return;
        }
        let matches = self.set.matches_candidate(&Candidate::new(subject));
        found.extend(matches.into_iter().map(|index| self.rules[index]));
    }
}

/// The rules of a mount, ready to be asked.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What the user's rules come from, for `explain`.
    file: String,
    /// CRC-32C of their text.
    checksum: u32,
    rules: Vec<Rule>,
    groups: Arc<[Arc<Group>]>,
    names: Globs,
    paths: Globs,
    /// Shared by all policies without counters.
    no_counters: Arc<[String]>,
}

impl Rules {
    /// The built-in rules alone.
    pub fn builtin() -> Rules {
        Rules::compile(Vec::new(), Vec::new(), "").expect("the built-in globs are valid")
    }

    /// The rules in `text`, a TOML document that messages call `source`, and the built-in ones
    /// behind them.
    pub fn parse(text: &str, source: &str) -> Result<Rules, RulesError> {
        let rules = Rules::parse_alone(text, source)?;
        rules.check_whole()?;
        Ok(rules)
    }

    /// The rules in `text` that are to stand among others, which may say what these leave open.
    pub fn parse_alone(text: &str, source: &str) -> Result<Rules, RulesError> {
        let (rules, groups) = parse::parse(text, source)?;
        let rules = Rules::compile(rules, groups, source);
        let mut rules = rules.map_err(|error| RulesError::too_complex(source, &error))?;
        rules.checksum = crc32c::crc32c(text.as_bytes());
        Ok(rules)
    }

    fn compile(
        mut rules: Vec<Rule>,
        groups: Vec<Group>,
        file: &str,
    ) -> Result<Rules, globset::Error> {
        rules.extend(builtin::rules());
        Ok(Rules {
            file: file.into(),
            checksum: 0,
            groups: groups.into_iter().map(Arc::new).collect(),
            names: Globs::new(&rules, true)?,
            paths: Globs::new(&rules, false)?,
            rules,
            no_counters: Arc::from([]),
        })
    }

    /// Whether some rule says what becomes of a save with a stale base.
    pub fn has_conflict_rules(&self) -> bool {
        let says = |rule: &Rule| {
            rule.settings
                .on_conflict
                .is_some_and(|c| c != OnConflict::Last)
        };
        self.rules.iter().any(says)
    }

    /// Whether readers of some group pin generations.
    pub fn has_pins(&self) -> bool {
        self.groups.iter().any(|g| g.readers == Readers::Pin)
    }

    /// Whether a group is among them, as it is, under its number.
    pub fn has_group(&self, group: &Group) -> bool {
        self.groups.iter().any(|g| **g == *group)
    }

    /// How the file at `rel_path`, relative to the mount's root, is to be treated. The path need
    /// not be UTF-8.
    pub fn decide(&self, rel_path: &Path, creation: Creation) -> Policy {
        let mut policy = self.decide_alone(rel_path, creation);
        self.join_group(rel_path, creation, &mut policy);
        policy
    }

    /// [`Rules::decide`], as if there were no groups.
    pub fn decide_alone(&self, rel_path: &Path, creation: Creation) -> Policy {
        let mut settings = Settings::default();
        for rule in self.matching(rel_path, creation) {
            settings.complete_from(&rule.settings);
        }
        settings.into_policy(&self.no_counters)
    }

    /// The group of a directory: it is one, or lies in one.
    pub fn group_of_directory(&self, rel_path: &Path) -> Option<Membership> {
        let groups = self.groups.iter().filter(|_| !failpoint::mutant("C23"));
        groups.into_iter().find_map(|g| g.find_directory(rel_path))
    }

    /// Makes a path's treatment that of a member, if it is one: what is written of it is staged to its close, by whatever its rules
    /// say of lines and of what is at rest. Direct files are no members, nor are claims (C6).
    fn join_group(&self, rel_path: &Path, creation: Creation, policy: &mut Policy) {
        let is_claim = creation.exclusive && policy.guard == Guard::None;
        let is_member = !self.groups.is_empty() && policy.mode == Mode::Atomic && !is_claim;
        if !is_member || failpoint::mutant("C23") {
            return;
        }
        let mut groups = self.groups.iter().filter(|group| group.lock.is_none());
        policy.group = groups.find_map(|group| group.find(rel_path));
        if policy.group.is_some() {
            policy.record = Some(Record::Close);
            policy.publish = Publish::Close;
        }
    }

    /// The first group that has a path, if it is saved under the lock of that. `policy`: how it is treated otherwise.
    pub fn saved_under_lock(&self, rel_path: &Path, policy: &Policy) -> Option<Membership> {
        let mut groups = self.groups.iter().filter(|group| group.lock.is_some());
        let found = groups.find_map(|group| group.find(rel_path));
        found.filter(|_| policy.mode == Mode::Atomic)
    }

    /// The groups whose lock a path is, with what their names stand for.
    pub fn locks_of(&self, rel_path: &Path) -> Vec<(Arc<Group>, Arc<Binding>)> {
        let found = self.groups.iter();
        let found = found.filter_map(|group| Some((group.clone(), group.lock_of(rel_path)?)));
        found
            .map(|(group, binding)| (group, Arc::new(binding)))
            .collect()
    }

    /// What [`Rules::decide`] says and why: a line for each key, with its value and the rule that
    /// decided it.
    pub fn explain(&self, rel_path: &Path, creation: Creation) -> String {
        let mut text = String::new();
        for told in self.explained(rel_path, creation) {
            let setting = format!("{} = {}", told.key, told.value);
            writeln!(text, "{setting:<28} # {}", told.why).expect("a string takes any text");
        }
        text
    }

    /// The rules that hold for a path, in order.
    fn matching(&self, rel_path: &Path, creation: Creation) -> impl Iterator<Item = &Rule> {
        let mut found = Vec::new();
        if let Some(name) = rel_path.file_name() {
            self.names.find(name, &mut found);
        }
        self.paths.find(rel_path.as_os_str(), &mut found);
        found.sort_unstable();
        found
            .into_iter()
            .map(|index| &self.rules[index])
            .filter(move |rule| rule.when.holds(creation))
    }
}
