//! The stack of open brackets, at one bit for each.

/// The brackets that are open: a set bit for an object, a clear one for an array.
#[derive(Clone, Default, Debug)]
pub(super) struct Nesting {
    /// The innermost up to 64, the last one lowest; zero if none is open.
    innermost: u64,
    /// The others, in full words.
    outer: Vec<u64>,
    depth: usize,
}

impl Nesting {
    /// How many brackets are open.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Is the innermost open bracket a brace?
    pub(super) fn in_object(&self) -> bool {
        self.innermost & 1 == 1
    }

    pub(super) fn open(&mut self, object: bool) {
        if self.depth.is_multiple_of(64) {
            self.outer.push(self.innermost);
        }
        self.innermost = self.innermost << 1 | u64::from(object);
        self.depth += 1;
    }

    /// Closes the innermost bracket; one is open.
    pub(super) fn close(&mut self) {
        self.depth -= 1;
        self.innermost >>= 1;
        if self.depth.is_multiple_of(64) {
            self.innermost = self.outer.pop().unwrap_or_default();
        }
    }
}
