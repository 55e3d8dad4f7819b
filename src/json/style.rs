//! How a document is laid out, learned from its text.

/// How the items of one array or object are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Layout {
    /// None yet: for what is empty, or is about to come by an edit.
    #[default]
    Auto,
    /// All on one line.
    Inline,
    /// Each on a line of its own.
    Lines,
}

/// What the whitespace of a document is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Style {
    /// In front of the value: nothing, a byte order mark, space.
    pub before: String,
    /// Behind the value: nothing, or the end of the line.
    pub after: String,
    /// One step of indentation, if anything stands on lines of its own.
    pub indent: Option<String>,
    pub newline: &'static str,
    /// Between items on one line.
    pub separator: String,
    /// Between items on lines of their own, in front of the line's end.
    pub line_separator: String,
    pub colon: String,
    /// Inside the brackets of arrays and the braces of objects on one line.
    pub array_padding: String,
    pub object_padding: String,
    /// Characters beyond ASCII are escaped.
    pub ascii: bool,
}

impl Style {
    /// As Python writes by default, but with the end of line that a text file has: what a file that
    /// was empty gets.
    pub(super) fn fresh() -> Style {
        Style {
            after: "\n".into(),
            ..Evidence::default().conclude()
        }
    }

    /// The layout of a container for which nothing else speaks.
    pub(super) fn usual(&self) -> Layout {
        match self.indent {
            Some(_) => Layout::Lines,
            None => Layout::Inline,
        }
    }

    /// The layout of a container inside of one of this layout, for which nothing else speaks.
    pub(super) fn usual_inside(&self, layout: Layout) -> Layout {
        match layout {
            Layout::Inline => Layout::Inline,
            _ => self.usual(),
        }
    }

    /// Whether the items of a container of this layout stand on lines of their own. A document
    /// without such has no indentation to put them there with.
    pub(super) fn has_lines(&self, layout: Layout) -> bool {
        layout != Layout::Inline && self.indent.is_some()
    }

    /// No space at all.
    pub(super) fn compact() -> Style {
        Style {
            separator: ",".into(),
            colon: ":".into(),
            ..Evidence::default().conclude()
        }
    }
}

/// What was seen of a document's style so far; of each trait the first sight counts.
#[derive(Default)]
pub(super) struct Evidence {
    pub before: String,
    pub after: String,
    indent: Option<String>,
    newline: Option<&'static str>,
    separator: Option<String>,
    line_separator: Option<String>,
    colon: Option<String>,
    array_padding: Option<String>,
    object_padding: Option<String>,
    /// A character beyond ASCII was escaped, or stands for itself.
    pub escaped: bool,
    pub unescaped: bool,
}

impl Evidence {
    /// The space behind the opening bracket of a container that is not empty; `depth` is the number
    /// of indentation steps, if it has lines.
    pub(super) fn opening(&mut self, space: &str, depth: usize, is_object: bool) -> Layout {
        let Some((_, indentation)) = space.rsplit_once('\n') else {
            let padding = if is_object {
                &mut self.object_padding
            } else {
                &mut self.array_padding
            };
            padding.get_or_insert_with(|| space.to_owned());
            return Layout::Inline;
        };
        if self.indent.is_none() {
            let step = &indentation[..indentation.len() / depth];
            self.indent = Some(step.to_owned());
            self.newline = Some(if space.contains("\r\n") { "\r\n" } else { "\n" });
        }
        Layout::Lines
    }

    /// The space behind a comma.
    pub(super) fn comma(&mut self, space: &str, layout: Layout) {
        match layout {
            Layout::Lines if self.line_separator.is_none() => {
                let before_end = space.split(['\r', '\n']).next().unwrap_or_default();
                self.line_separator = Some(format!(",{before_end}"));
            }
            Layout::Inline if self.separator.is_none() && !space.contains('\n') => {
                self.separator = Some(format!(",{space}"));
            }
            _ => {}
        }
    }

    /// The space on both sides of a colon.
    pub(super) fn colon(&mut self, before: &str, after: &str) {
        if self.colon.is_none() {
            self.colon = Some(format!("{before}:{after}"));
        }
    }

    pub(super) fn conclude(self) -> Style {
        let colon = self.colon.unwrap_or_else(|| {
            let spaceless = self.separator.as_deref() == Some(",");
            if spaceless { ":" } else { ": " }.to_owned()
        });
        let separator = self.separator.unwrap_or_else(|| {
            let spaceless = colon == ":";
            if spaceless { "," } else { ", " }.to_owned()
        });
        Style {
            before: self.before,
            after: self.after,
            indent: self.indent,
            newline: self.newline.unwrap_or("\n"),
            separator,
            line_separator: self.line_separator.unwrap_or_else(|| ",".into()),
            colon,
            array_padding: self.array_padding.unwrap_or_default(),
            object_padding: self.object_padding.unwrap_or_default(),
            ascii: self.escaped && !self.unescaped,
        }
    }
}
