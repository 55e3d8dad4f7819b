//! Which rule decides what, and what stands in the way of a new one: for people.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::policy::{KEYS, Key};
use super::{Creation, Guard, Mode, Origin, Policy, Publish, Rule, Rules, Stream, text_stream};
use crate::group::{Binding, Membership, Readers};

/// A key of a path's treatment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Its name, as in a rules file.
    pub key: String,
    /// Its value, as in a rules file; `unset` where there is none.
    pub value: String,
    /// The rule that decides it.
    pub why: String,
}

/// A rule of a rules file that sets a key for a glob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAlready {
    /// The rule's number in the file, from one.
    pub rule: u32,
    /// Its line, from one.
    pub line: u32,
    /// The key.
    pub key: &'static str,
    /// Its value there, as in a rules file.
    pub value: String,
    /// The new rule says the same.
    pub is_same: bool,
}

impl Rules {
    /// The file that they come from, as its reader has named it; empty if all are built in.
    pub fn source(&self) -> &str {
        &self.file
    }

    /// CRC-32C of the text that they come from; 0 of none.
    pub fn checksum(&self) -> u32 {
        self.checksum
    }

    /// How many come from a file.
    pub fn from_file(&self) -> usize {
        let of_file = |rule: &&Rule| matches!(rule.origin, Origin::File { .. });
        self.rules.iter().filter(of_file).count()
    }

    /// What [`Rules::decide`] says and why, for each key.
    pub fn explained(&self, rel_path: &Path, creation: Creation) -> Vec<Explained> {
        let policy = self.decide(rel_path, creation);
        let group = (!self.groups.is_empty()).then(|| self.explained_group(rel_path, &policy));
        KEYS.iter()
            .map(|key| {
                let decider = self
                    .matching(rel_path, creation)
                    .find(|rule| (key.is_set)(&rule.settings));
                let mut told = Explained {
                    key: key.name.to_owned(),
                    value: (key.show)(&policy),
                    why: decider.map_or("default".into(), |rule| rule.describe(&self.file)),
                };
                if key.name == "record" && decider.is_none() {
                    tell_of_streams(rel_path, &policy, &mut told);
                }
                let is_whole = policy.publish == Publish::Whole;
                if key.name == "publish" && is_whole && !policy.publishes_at_rest() {
                    told.why += ": without effect, as it is direct or has no guard";
                }
                if let Some(member) = policy.group.as_ref()
                    && matches!(key.name, "record" | "publish")
                {
                    told.why = format!(
                        "group {}: what is written of a member shows with the others",
                        member.group.number
                    );
                }
                told
            })
            .chain(group)
            .collect()
    }

    /// Whether a rule of a file, not a built-in one, decides a key for a path.
    pub fn is_decided_by_file(&self, rel_path: &Path, key: &str) -> bool {
        let known = KEYS.iter().find(|k| k.name == key);
        known.is_some_and(|key| {
            self.matching(rel_path, Creation::default())
                .find(|rule| (key.is_set)(&rule.settings))
                .is_some_and(|rule| matches!(rule.origin, Origin::File { .. }))
        })
    }

    /// The first rules of the file that have the same glob as `other`'s last rule and set keys that
    /// this sets, too; and whether all that it sets is set so already.
    pub fn set_already(&self, other: &Rules) -> (Vec<SetAlready>, bool) {
        let of_file = |rule: &&Rule| matches!(rule.origin, Origin::File { .. });
        let Some(new) = other.rules.iter().rfind(of_file) else {
            return (Vec::new(), true);
        };
        let same = |rule: &&Rule| {
            of_file(rule) && rule.by_name == new.by_name && rule.glob.glob() == new.glob.glob()
        };
        let wanted = || KEYS.iter().filter(|key| (key.is_set)(&new.settings));
        let found: Vec<SetAlready> = wanted()
            .filter_map(|key| {
                let mut rules = self.rules.iter().filter(same);
                let rule = rules.find(|rule| (key.is_set)(&rule.settings))?;
                let Origin::File { rule: number, line } = rule.origin else {
                    return None;
                };
                let value = self.shown(rule, key);
                Some(SetAlready {
                    rule: number,
                    line,
                    key: key.name,
                    is_same: value == self.shown(new, key),
                    value,
                })
            })
            .collect();
        let all_same = found.len() == wanted().count() && found.iter().all(|f| f.is_same);
        (found, all_same)
    }

    fn shown(&self, rule: &Rule, key: &Key) -> String {
        (key.show)(&rule.settings.clone().into_policy(&self.no_counters))
    }
}

impl Rules {
    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// What is odd about groups, for people: members that are none.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for group in self.groups.iter() {
            let own = group.patterns.iter();
            let own = own.filter(|p| group.lock.as_ref() == Some(p));
            doubts.extend(own.map(|pattern| {
                let place = (&self.file, group.line, group.number, pattern.written());
                let (file, line, number, text) = place;
                format!("{file}:{line}, group {number}: {text:?} is its lock, and no member")
            }));
            let of_directory = group.directory.as_ref();
            let named = match of_directory {
                Some(_) => group.patterns.len() - 1,
                None => group.patterns.len(),
            };
            for pattern in &group.patterns[..named] {
                let dir = of_directory.map(|d| format!("{}/", d.pattern.sample()));
                let sample = dir.unwrap_or_default() + &pattern.sample();
                let path = Path::new(&sample);
                let exclusive = Creation {
                    exclusive: true,
                    empty: false,
                };
                let place = format!(
                    "{}:{}, group {}: {:?}",
                    self.file,
                    group.line,
                    group.number,
                    pattern.written()
                );
                if self.decide(path, Creation::default()).mode == Mode::Direct {
                    doubts.push(format!(
                        "{place} is direct, and no member: what is written there shows at once; a rule with mode = \"atomic\" makes it one"
                    ));
                } else if self.decide(path, exclusive).stale.is_some() {
                    doubts.push(format!(
                        "{place} is a lock file where it is created with O_EXCL, and no member then"
                    ));
                }
            }
        }
        doubts
    }

    pub(super) fn explained_group(&self, rel_path: &Path, policy: &Policy) -> Explained {
        let Some(Membership {
            group,
            pattern,
            binding,
        }) = &policy.group
        else {
            return self.explained_lock(rel_path, policy);
        };
        let value = with_names(group.number, binding);
        let value = match group.readers {
            Readers::Newest => value,
            Readers::Pin => value + ", readers pin",
        };
        let place = format!("{}:{}, group {}", self.file, group.line, group.number);
        let text = match &group.directory {
            Some(rule) => rule.pattern.written(),
            None => group.patterns[*pattern].written(),
        };
        let why = format!("{place}, {text:?}{}", of_directory(&policy.group));
        told(value, why)
    }
}

impl Rules {
    /// Of what no group has by its files alone: whether the holder of a lock saves it with others, or it is that lock.
    fn explained_lock(&self, rel_path: &Path, policy: &Policy) -> Explained {
        for group in self.groups.iter() {
            let Some(lock) = &group.lock else {
                continue;
            };
            let place = format!("{}:{}, group {}", self.file, group.line, group.number);
            if group.lock_of(rel_path).is_some() {
                let why = format!("{place}: its lock, which is no member");
                return told("none".into(), why);
            }
            if let Some(member) = group.find(rel_path).filter(|_| policy.mode == Mode::Atomic) {
                let text = group.patterns[member.pattern].written();
                let why = format!(
                    "{place}, {text:?}: what the holder of {:?} saves",
                    lock.written()
                );
                return told(with_names(group.number, &member.binding), why);
            }
        }
        told("none".into(), "no group has it".into())
    }
}

fn told(value: String, why: String) -> Explained {
    Explained {
        key: "group".to_owned(),
        value,
        why,
    }
}

/// A group's number, with what its names stand for.
fn with_names(number: u32, binding: &Binding) -> String {
    let names = binding.iter().filter(|(name, _)| name != "/");
    let names: Vec<String> = names
        .map(|(name, text)| format!("{name} = {}", text.to_string_lossy()))
        .collect();
    match names.is_empty() {
        true => format!("{number}"),
        false => format!("{number} ({})", names.join(", ")),
    }
}

/// What a group that is a directory does with a file in it.
fn of_directory(member: &Option<Membership>) -> String {
    let Some(member) = member else {
        return String::new();
    };
    let group = &member.group;
    let Some((rule, dir)) = group.directory.as_ref().zip(member.directory()) else {
        return String::new();
    };
    let when = match rule.existing {
        true => "is saved",
        false => "is new",
    };
    let named = group.complete.iter();
    let named: Vec<String> = named
        .map(|n| group.patterns[*n].filled(&member.binding))
        .collect();
    let mut until = Vec::new();
    if !named.is_empty() {
        until.push(format!("{} is there", named.join(", ")));
    }
    if !group.settles().is_zero() {
        until.push(format!("nothing was written for {:?}", group.settles()));
    }
    format!(
        ": while {} {when}, until {}",
        dir.display(),
        until.join(" and ")
    )
}

/// The glob that matches one path alone.
pub fn escaped_glob(path: &str) -> String {
    let mut glob = String::new();
    for c in path.chars() {
        if "*?[]{}!\\".contains(c) {
            glob.push('\\');
        }
        glob.push(c);
    }
    glob
}

/// A basic string of TOML; JSON's is one.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// No rule says how it is recorded: its name may, if it is new.
fn tell_of_streams(rel_path: &Path, policy: &Policy, told: &mut Explained) {
    let stream = rel_path.file_name().and_then(text_stream);
    if policy.mode != Mode::Atomic || policy.guard != Guard::None {
        return;
    }
    if let Some(stream) = stream {
        let what = match stream {
            Stream::Table => "a new table shows by whole lines, unless it comes in blocks",
            _ => "a new text stream shows by whole lines",
        };
        told.why = format!("built-in, by its name: {what}");
    }
}
