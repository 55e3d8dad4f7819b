//! The reasons that verdicts give.

use super::{JsonStream, State, Verdict, WORDS};

impl JsonStream {
    /// Settles the verdict: the byte at `at` of the piece being fed is not what JSON `expected`
    /// there. Where it is NUL, what follows has a say.
    #[cold]
    pub(super) fn fail(&mut self, byte: u8, at: usize, expected: &str) {
        let offset = self.position + at as u64;
        if byte == 0 {
            (self.state, self.hole) = (State::Hole, offset);
            return;
        }
        let found = match byte {
            b' '..=b'~' => format!("'{}'", byte as char),
            _ => format!("0x{byte:02X}"),
        };
        self.settle(format!("byte {offset} is {found}, expected {expected}"));
    }

    /// Passes over NUL bytes; where they end they were no hole to the end.
    #[cold]
    pub(super) fn hole(&mut self, bytes: &[u8], at: usize) -> usize {
        match bytes[at..].iter().position(|&byte| byte != 0) {
            None => bytes.len(),
            Some(run) => {
                self.settle(format!("byte {} is NUL", self.hole));
                at + run
            }
        }
    }

    fn settle(&mut self, reason: String) {
        self.state = State::Failed;
        self.failure = Some(if self.began {
            Verdict::Malformed(reason)
        } else {
            Verdict::Foreign(reason)
        });
    }

    /// What could have come in this state.
    pub(super) fn expected(&self) -> &'static str {
        match self.state {
            State::Top | State::Member | State::Element | State::ElementOrEnd => "a JSON value",
            State::TopGlued => "space behind the value",
            State::KeyOrEnd | State::Key => "a name in double quotes",
            State::Colon => "':'",
            State::After if self.nesting.in_object() => "',' or '}'",
            State::After => "',' or ']'",
            State::Hex(_) => "a hexadecimal digit",
            State::Utf8 { .. } => "valid UTF-8",
            State::Word { word, .. } => WORDS[usize::from(word)],
            State::Slash => "a comment",
            State::Bom(_) => "a byte order mark",
            _ => "JSON",
        }
    }

    /// Where a document that ends in `state` broke off.
    pub(super) fn unfinished(&self, state: State) -> String {
        let place = match state {
            State::Text | State::Escape | State::Hex(_) | State::Utf8 { .. } => "in a string",
            State::Number(_) => "in a number",
            State::Word { .. } => "in a word",
            State::Slash | State::BlockComment | State::Star => "in a comment",
            State::Bom(_) => "in a byte order mark",
            _ if self.nesting.depth() == 0 => "before any value",
            _ => "between values",
        };
        match self.nesting.depth() {
            0 => place.into(),
            1 => format!("{place}, with one bracket open"),
            depth => format!("{place}, with {depth} brackets open"),
        }
    }
}
