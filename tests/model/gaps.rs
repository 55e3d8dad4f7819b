//! What the contract says and the product doesn't do yet. Programs that would show it are not
//! tried; each line goes with its fix. `COMMITFS_MODEL_STRICT` names those that are to be tried all
//! the same (`WrittenAfterOwnSave,…`, or `all`).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// A file that is new or empty is shared until its first write (C14).
    SharedOpens,
    /// Who has a new text open, saves it by name itself and then writes a line where the text begins: that
    /// shows at once (C10).
    WrittenAfterOwnSave,
}

pub const KNOWN_GAPS: &[Gap] = &[Gap::WrittenAfterOwnSave];

impl Gap {
    /// Whether programs have to go around it.
    pub fn is_open(self) -> bool {
        let strict = std::env::var("COMMITFS_MODEL_STRICT").unwrap_or_default();
        let is_asked = |word: &str| word == "all" || word == format!("{self:?}");
        KNOWN_GAPS.contains(&self) && !strict.split(',').any(is_asked)
    }
}
