//! Whether a rule `publish = "whole"` has a guard to go by: asked of a name that its glob matches.

use std::path::Path;

use globset::GlobMatcher;

use super::policy::Publish;
use super::{Creation, Guard, Origin, Rule, Rules, RulesError};

impl Rules {
    /// Refuses rules that publish what is whole where no guard says what that is.
    pub(super) fn check_whole(&self) -> Result<(), RulesError> {
        for rule in &self.rules {
            let (Origin::File { rule: number, line }, Some(Publish::Whole)) =
                (&rule.origin, rule.settings.publish)
            else {
                continue;
            };
            // A glob of which no name can be told is none to complain of.
            let Some(name) = sample(rule) else {
                continue;
            };
            let policy = self.decide(Path::new(&name), Creation::default());
            if policy.guard == Guard::None {
                let place = (*number, *line);
                return Err(RulesError::nothing_whole(&self.file, place, &name));
            }
        }
        Ok(())
    }
}

/// A path that a rule's glob matches, if one is easily made of it.
fn sample(rule: &Rule) -> Option<String> {
    let matcher: GlobMatcher = rule.glob.compile_matcher();
    let mut name = String::new();
    let mut chars = rule.glob.glob().chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => name.extend(chars.next()),
            '*' if name.ends_with('x') => {}
            '*' | '?' => name.push('x'),
            // The first of each choice.
            '[' => {
                name.push(chars.next()?);
                chars.by_ref().find(|c| *c == ']');
            }
            '{' => {
                let mut closed = false;
                let first = chars.by_ref().take_while(|c| {
                    closed = *c == '}';
                    !matches!(c, ',' | '}')
                });
                name.extend(first);
                if !closed {
                    chars.by_ref().find(|c| *c == '}');
                }
            }
            c => name.push(c),
        }
    }
    matcher.is_match(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_each_common_glob() {
        for (glob, name) in [
            ("status.json", "status.json"),
            ("*.json", "x.json"),
            ("runs/**/s?.json", "runs/x/sx.json"),
            ("/[ab]/{one,two}.np[yz]", "a/one.npy"),
            ("a\\*b", "a*b"),
        ] {
            let made = sample(&Rule::new(glob).unwrap());
            assert_eq!(made.as_deref(), Some(name), "{glob}");
        }
    }
}
