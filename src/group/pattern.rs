//! Patterns of a group's files: globs with names in braces, each of which stands for the same text in all patterns of a group.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::Binding;

/// Comparisons of one path with one pattern at most: a path may be made to need very many.
const MOST_STEPS: u32 = 20_000;

/// What is wrong with a pattern, and what to do about it.
pub type PatternFault = (String, String);

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
    /// Those in braces, sorted.
    names: Vec<String>,
    /// It is for the file's name, in any directory.
    by_name: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// One byte.
    Byte(u8),
    /// `?`: one byte of a name.
    One,
    /// `*`: any of a name.
    Any,
    /// `**/`: any directories.
    Directories,
    /// `**` at the end: anything.
    Rest,
    /// A name in braces, by its number.
    Name(usize),
}

/// A path that is being compared.
struct Comparison<'a> {
    path: &'a [u8],
    bound: Vec<Option<&'a [u8]>>,
    steps: u32,
}

impl Pattern {
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, PatternFault> {
        let fault = |why: &str, remedy: &str| Err((format!("{text:?}: {why}"), remedy.to_owned()));
        let path = checked(text)?;
        let (mut parts, mut names) = (Vec::new(), Vec::<String>::new());
        let mut rest = path;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            match c {
                '*' if rest.starts_with("*/") => {
                    rest = &rest[2..];
                    parts.push(Part::Directories);
                }
                '*' if rest == "*" => {
                    rest = "";
                    parts.push(Part::Rest);
                }
                '*' if parts.last() == Some(&Part::Any) => {}
                '*' => parts.push(Part::Any),
                '?' => parts.push(Part::One),
                '[' => {
                    return fault(
                        "sets of characters are not for groups",
                        "use * or ?, or write \\[ for the character",
                    );
                }
                '{' => {
                    let Some((name, after)) = rest.split_once('}') else {
                        return fault("a brace is not closed", "write {name}, or \\{");
                    };
                    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    if name.is_empty() || !name.chars().all(is_word) {
                        return fault(
                            &format!("{{{name}}} is no name"),
                            "put a word in braces, as in {s}: it stands for the same text in all files of the group",
                        );
                    }
                    rest = after;
                    let known = names.iter().position(|n| n == name);
                    parts.push(Part::Name(known.unwrap_or_else(|| {
                        names.push(name.to_owned());
                        names.len() - 1
                    })));
                }
                '\\' => match rest.chars().next() {
                    Some(next) => {
                        rest = &rest[next.len_utf8()..];
                        push_char(&mut parts, next);
                    }
                    None => return fault("nothing follows the last \\", "write \\\\ for a \\"),
                },
                c => push_char(&mut parts, c),
            }
        }
        Ok(Pattern {
            text: text.to_owned(),
            parts,
            names,
            by_name: !text.contains('/'),
        })
    }

    /// As it was written.
    pub fn written(&self) -> &str {
        &self.text
    }

    /// It matches names, in any directory; the files of a group are in the same one.
    pub fn is_by_name(&self) -> bool {
        self.by_name
    }

    /// The names in it, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// What its names stand for, if it matches a path.
    pub(super) fn find(&self, path: &Path) -> Option<Binding> {
        let whole = match self.by_name {
            true => path.file_name()?.as_bytes(),
            false => path.as_os_str().as_bytes(),
        };
        let mut comparison = Comparison {
            path: whole,
            bound: vec![None; self.names.len()],
            steps: 0,
        };
        if !comparison.matches(&self.parts, 0) {
            return None;
        }
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let bound = self.names.iter().zip(&comparison.bound);
        let mut binding: Binding = bound
            .map(|(name, bytes)| (name.clone(), text(bytes.unwrap_or_default())))
            .collect();
        binding.sort_unstable();
        if self.by_name {
            let dir = path.parent().unwrap_or(Path::new(""));
            binding.push(("/".to_owned(), dir.as_os_str().to_owned()));
        }
        Some(binding)
    }

    /// The pattern with what is bound put in, for people.
    pub fn filled(&self, binding: &Binding) -> String {
        let mut text = self.text.strip_prefix('/').unwrap_or(&self.text).to_owned();
        for (name, bound) in binding {
            match name.as_str() {
                "/" if bound.is_empty() => {}
                "/" => text = format!("{}/{text}", bound.to_string_lossy()),
                name => text = text.replace(&format!("{{{name}}}"), &bound.to_string_lossy()),
            }
        }
        text
    }

    /// A path that it matches, to ask rules about.
    pub fn sample(&self) -> String {
        let mut bytes = Vec::new();
        for part in &self.parts {
            match part {
                Part::Byte(byte) => bytes.push(*byte),
                Part::One | Part::Any | Part::Rest | Part::Name(_) => bytes.push(b'x'),
                Part::Directories => bytes.extend(b"x/"),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A pattern's text without the slash that it may begin with, if it can match something.
fn checked(text: &str) -> Result<&str, PatternFault> {
    let fault = |why: &str, remedy: &str| Err((format!("{text:?}: {why}"), remedy.to_owned()));
    let path = text.strip_prefix('/').unwrap_or(text);
    if path.is_empty() || path.ends_with('/') {
        return fault(
            "it names no file",
            "give a pattern such as \"models/{s}.h5\"",
        );
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return fault(
            "paths have no empty, \".\" or \"..\" parts",
            "write it from the mount's root, as in \"models/{s}.h5\"",
        );
    }
    Ok(path)
}

fn push_char(parts: &mut Vec<Part>, c: char) {
    let mut bytes = [0; 4];
    let bytes = c.encode_utf8(&mut bytes).bytes();
    parts.extend(bytes.map(Part::Byte));
}

impl<'a> Comparison<'a> {
    fn matches(&mut self, parts: &[Part], at: usize) -> bool {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return false;
        }
        let left = &self.path[at..];
        let Some((part, rest)) = parts.split_first() else {
            return left.is_empty();
        };
        let of_name = left.iter().position(|b| *b == b'/').unwrap_or(left.len());
        match part {
            Part::Byte(byte) => left.first() == Some(byte) && self.matches(rest, at + 1),
            Part::One => of_name > 0 && self.matches(rest, at + 1),
            Part::Any => (0..=of_name).any(|n| self.matches(rest, at + n)),
            Part::Rest => !left.is_empty(),
            Part::Directories => {
                let mut starts = vec![at];
                let slashes = left.iter().enumerate().filter(|(_, b)| **b == b'/');
                starts.extend(slashes.map(|(n, _)| at + n + 1));
                starts.into_iter().any(|start| self.matches(rest, start))
            }
            Part::Name(number) => {
                if let Some(bound) = self.bound[*number] {
                    return left.starts_with(bound) && self.matches(rest, at + bound.len());
                }
                for n in 1..=of_name {
                    self.bound[*number] = Some(&self.path[at..at + n]);
                    if self.matches(rest, at + n) {
                        return true;
                    }
                }
                self.bound[*number] = None;
                false
            }
        }
    }
}
