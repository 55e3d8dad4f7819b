//! A `[[group]]` with `directory`: all that lies in one.

use std::time::Duration;

use crate::group::{DirectoryRule, Pattern, PatternFault};

/// The keys of such a table.
#[derive(Default)]
pub(super) struct DirectoryTable {
    pub pattern: Option<Pattern>,
    pub existing: Option<bool>,
    pub settle: Option<Duration>,
}

/// What is wrong with a group, at which key.
type At = (&'static str, PatternFault);

fn fault<T>(key: &'static str, problem: impl Into<String>, remedy: &str) -> Result<T, At> {
    Err((key, (problem.into(), remedy.to_owned())))
}

impl DirectoryTable {
    /// Whether nothing is said of a directory. Keys that mean something only there are none of a group of files.
    pub fn is_absent(&self) -> Result<bool, At> {
        if self.pattern.is_some() {
            return Ok(false);
        }
        let remedy = "say which, as in directory = \"**/checkpoint-*\", or leave it out";
        match (self.existing, self.settle) {
            (Some(_), _) => fault("existing", "it is for groups with a directory", remedy),
            (_, Some(_)) => fault("settle", "it is for groups with a directory", remedy),
            (None, None) => Ok(true),
        }
    }

    /// The rule, and the patterns of a round: those by which it is complete, and one for all else.
    pub fn rule(self, complete: &[Pattern]) -> Result<(DirectoryRule, Vec<Pattern>), At> {
        let Some(pattern) = self.pattern else {
            return fault("directory", "the group has no directory", "say which");
        };
        if let Some(name) = pattern.names().first() {
            let problem = format!("{:?} has {{{name}}} in braces", pattern.written());
            let remedy = "each directory is a group of its own: let * stand for a part of its name";
            return fault("directory", problem, remedy);
        }
        let mut patterns = Vec::new();
        for named in complete {
            if let Some(name) = named.names().first() {
                let problem = format!("{:?} has {{{name}}} in braces", named.written());
                let remedy =
                    "the files of a directory belong together whatever they are called: use *";
                return fault("complete", problem, remedy);
            }
            let path = format!("/{}", named.written().trim_start_matches('/'));
            patterns.push(Pattern::parse(&path).map_err(|fault| ("complete", fault))?);
        }
        patterns.push(Pattern::parse("/**").map_err(|fault| ("directory", fault))?);
        let rule = DirectoryRule {
            pattern,
            existing: self.existing.unwrap_or(false),
            settle: self.settle,
        };
        Ok((rule, patterns))
    }
}
