//! Where the rules of a directory lie, and who has to be told when they change.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::{Failure, control, exit, status};
use crate::engine::ControlCommand;
use crate::rules::Rules;
use crate::store::{RULES_FILE, STATE_DIR};

/// A directory with rules.
#[derive(Debug)]
pub(super) struct Place {
    /// Where it is mounted, if it is.
    mounted: Option<PathBuf>,
    /// The rules file, as messages call it.
    file: PathBuf,
    /// It was named with `--rules`, and lies outside of the state directory.
    is_named: bool,
}

/// A path without symbolic links, as far as it leads somewhere.
pub(super) fn whole(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path)
        .map_err(|e| Failure::new(exit::BAD_INPUT, format!("{}: {e}", path.display())))?;
    for above in path.ancestors() {
        if let Ok(real) = above.canonicalize() {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            return Ok(match rest.as_os_str().is_empty() {
                true => real,
                false => real.join(rest),
            });
        }
    }
    Ok(path)
}

/// The text of a rules file; empty if there is none.
fn text_of(file: &Path) -> std::io::Result<String> {
    match std::fs::read_to_string(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

impl Place {
    fn unusable(&self, error: &std::io::Error) -> Failure {
        Failure::new(
            exit::BAD_INPUT,
            format!("rules {}: {error}", self.file.display()),
        )
    }

    /// That of a mount, or of a directory that may be mounted.
    pub fn of(dir: &Path) -> Result<Place, Failure> {
        if let Some(mount) = control::mount_if_any(dir)? {
            let told = status::read(&mount)?;
            let named = told["rules"]["named"].as_str().map(PathBuf::from);
            let own = || {
                let backing = told["backing"].as_str().unwrap_or_default();
                Path::new(backing).join(STATE_DIR).join(RULES_FILE)
            };
            return Ok(Place {
                mounted: Some(mount.mount_point),
                is_named: named.is_some(),
                file: named.unwrap_or_else(own),
            });
        }
        if !dir.is_dir() {
            return Err(Failure::new(
                exit::BAD_INPUT,
                format!("{}: not a directory", dir.display()),
            ));
        }
        Ok(Place {
            mounted: None,
            file: dir.join(STATE_DIR).join(RULES_FILE),
            is_named: false,
        })
    }

    /// The place that a file belongs to, and its path there.
    pub fn above(file: &Path) -> Result<Option<(Place, PathBuf)>, Failure> {
        let there = file.ancestors().find(|a| a.symlink_metadata().is_ok());
        let there = there.unwrap_or(Path::new("/"));
        if let Some(mount) = control::mount_if_any(there)? {
            let place = Place::of(&mount.mount_point)?;
            let relative = file.strip_prefix(&mount.mount_point).unwrap_or(file);
            return Ok(Some((place, relative.to_owned())));
        }
        for above in there.ancestors() {
            if above.join(STATE_DIR).is_dir() {
                let relative = file.strip_prefix(above).unwrap_or(file);
                return Ok(Some((Place::of(above)?, relative.to_owned())));
            }
        }
        Ok(None)
    }

    pub fn mountpoint(&self) -> Option<&Path> {
        self.mounted.as_deref()
    }

    pub fn is_mounted(&self) -> bool {
        self.mounted.is_some()
    }

    /// What messages call the rules file.
    pub fn source(&self) -> String {
        self.file.to_string_lossy().into_owned()
    }

    /// The file as this process can reach it: a mount may cover where it lies.
    fn readable(&self) -> PathBuf {
        match &self.mounted {
            Some(mount) if !self.is_named => mount.join(STATE_DIR).join(RULES_FILE),
            _ => self.file.clone(),
        }
    }

    /// Its text; empty if there is none.
    pub fn read(&self) -> Result<String, Failure> {
        text_of(&self.readable()).map_err(|e| self.unusable(&e))
    }

    /// Whether a text is what is in force; `None` where nothing is mounted.
    pub fn is_in_force(&self, text: &str) -> Result<Option<bool>, Failure> {
        let Some(mount) = &self.mounted else {
            return Ok(None);
        };
        let told = status::read(&control::mount_of(mount)?)?;
        let sum = crc32c::crc32c(text.as_bytes());
        Ok(Some(told["rules"]["crc32c"].as_u64() == Some(sum.into())))
    }

    /// Puts the text of the file in force.
    pub fn put_in_force(&self, text: &str) -> Result<(), Failure> {
        self.send(text, None)
    }

    /// Makes the file a text, where it still has the one that was read, and puts it in force.
    pub fn write(&self, before: &str, text: &str) -> Result<(), Failure> {
        Rules::parse(text, &self.source()).map_err(|e| self.stay(super::bad_rules(e)))?;
        if self.is_mounted() && !self.is_named {
            return self.send(text, Some(before.to_owned()));
        }
        self.replace(before, text).map_err(|e| self.unusable(&e))?;
        if self.is_mounted() {
            self.send(text, None)?;
        }
        Ok(())
    }

    fn send(&self, text: &str, instead_of: Option<String>) -> Result<(), Failure> {
        let Some(mount) = &self.mounted else {
            return Ok(());
        };
        let command = ControlCommand::Rules {
            text: text.to_owned(),
            source: self.source(),
            instead_of,
        };
        match control::send(mount, &command)?.error {
            Some(why) => Err(self.stay(super::bad_rules(why))),
            None => Ok(()),
        }
    }

    /// Says beside what is wrong that nothing was changed.
    pub fn stay(&self, failure: Failure) -> Failure {
        match self.is_mounted() {
            true => Failure::new(
                failure.code,
                format!("{}\nthe rules that were in force stay", failure.message),
            ),
            false => failure,
        }
    }

    /// As an editor that is careful: beside it, on the disk, then in its place.
    fn replace(&self, before: &str, text: &str) -> std::io::Result<()> {
        if let Some(dir) = self.file.parent()
            && dir.symlink_metadata().is_err()
        {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o700).create(dir)?;
        }
        let mut beside = self.file.clone().into_os_string();
        beside.push(".new");
        let mut file = std::fs::File::create(&beside)?;
        if let Ok(found) = self.file.metadata() {
            file.set_permissions(found.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if text_of(&self.file)? != before {
            std::fs::remove_file(&beside)?;
            return Err(std::io::Error::other(
                "somebody else has changed it just now; try again",
            ));
        }
        std::fs::rename(&beside, &self.file)
    }
}
