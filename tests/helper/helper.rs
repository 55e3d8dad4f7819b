//! A process that tests drive by hand: it reads one operation per line, does it with plain
//! system calls, and answers with one line, `ok WORD…` or `err ERRNO STAGE`.
//!
//! `commitfs-test-helper SOCKET` connects to a Unix socket; without an argument it talks on stdin
//! and stdout; further arguments `SLOT=N` name descriptors it has inherited. It has one thread, unless it is told to begin others, and no
//! buffers of its own, so that a forked child is an exact copy, and a kill takes effect between two system calls and nowhere else. Words are
//! percent-encoded (see `wire.rs`). Descriptors live in named slots and are inherited across exec.

mod ops;
mod sys;
mod wire;

use std::os::fd::RawFd;

/// Where commands come from and answers go.
pub struct Channel {
    input: RawFd,
    output: RawFd,
    pending: Vec<u8>,
}

impl Channel {
    pub fn connect(path: &str) -> Channel {
        let fd = sys::connect(path).unwrap_or_else(|_| std::process::exit(97));
        Channel {
            input: fd,
            output: fd,
            pending: Vec::new(),
        }
    }

    fn stdio() -> Channel {
        Channel {
            input: 0,
            output: 1,
            pending: Vec::new(),
        }
    }

    /// The next line, or `None` when the test has gone.
    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let more = sys::read(self.input, 64 * 1024)
                .ok()
                .filter(|data| !data.is_empty())?;
            self.pending.extend(more);
        }
    }

    pub fn answer(&self, words: &[Vec<u8>]) {
        let mut line = String::from("ok");
        for word in words {
            line.push(' ');
            line.push_str(&wire::encode(word));
        }
        self.send(&line);
    }

    fn fail(&self, error: &sys::Failure) {
        self.send(&format!(
            "err {} {}",
            sys::errno_name(error.errno),
            error.stage
        ));
    }

    fn send(&self, line: &str) {
        let _ = sys::write_all(self.output, format!("{line}\n").as_bytes());
    }

    pub fn close(&self) {
        let _ = sys::close(self.input);
    }
}

fn main() {
    sys::default_signals();
    let mut channel = match std::env::args().nth(1) {
        Some(path) => Channel::connect(&path),
        None => Channel::stdio(),
    };
    let state = ops::State::inherited(std::env::args().skip(2));
    serve(&state, &mut channel);
    sys::exit_now(0);
}

/// Does what one thread is told, until the test has gone.
pub fn serve(state: &ops::State, channel: &mut Channel) {
    while let Some(line) = channel.line() {
        let words: Vec<Vec<u8>> = line.split_ascii_whitespace().map(wire::decode).collect();
        if words.is_empty() {
            continue;
        }
        match ops::perform(state, channel, &words) {
            Ok(answer) => channel.answer(&answer),
            Err(error) => channel.fail(&error),
        }
    }
}
