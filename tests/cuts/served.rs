//! A disk's process, and the directory where it is mounted.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::common::run::{binary, wait};
use crate::common::{detach, is_mounted};

pub fn helper() -> PathBuf {
    Path::new(binary()).with_file_name("commitfs-test-cuts")
}

pub struct Served {
    directory: PathBuf,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Served {
    /// Begins to serve that part of the helper's in a directory of its own.
    pub fn new(directory: PathBuf, part: &str, args: &[String]) -> Served {
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut command = Command::new(helper());
        command.arg(part).arg(&directory).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.process_group(0).spawn().expect("the helper starts");
        let mut served = Served {
            orders: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().expect("its output")),
            directory,
            child,
        };
        assert_eq!(served.answer(), "ready");
        served
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, order: &str) -> String {
        let orders = self.orders.as_mut().expect("the disk runs");
        writeln!(orders, "{order}").expect("the disk runs");
        self.answer()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.orders = None;
        if wait(&mut self.child, Duration::from_secs(5)).is_none() {
            let _ = self.child.kill();
            wait(&mut self.child, Duration::from_secs(5));
        }
        while is_mounted(&self.directory) && detach(&self.directory) {}
        let _ = std::fs::remove_dir(&self.directory);
    }
}
