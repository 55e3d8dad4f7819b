//! The processes at work in a mount, and what each has written down elsewhere.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::run::wait;
use crate::common::{Mount, Options};
use crate::content;
use crate::judge::Worker;
use crate::plan::{DOCUMENT, GRID, KINDS, Kind, rules};
use crate::served::helper;

/// What they need before anybody does anything.
pub fn seeded(mut options: Options) -> Options {
    let ids = |kind: Kind| (0..KINDS.len()).filter(move |n| KINDS[*n] == kind);
    let grid: Vec<u8> = (0..KINDS.len()).flat_map(|n| content::row(n, 0)).collect();
    options = options
        .rules(&rules())
        .seed(GRID, grid)
        .seed(DOCUMENT, content::document(ids(Kind::Patcher)));
    for me in 0..KINDS.len() {
        options = options.seed(&format!("w{me}/seed"), "");
    }
    options
}

pub struct Workers {
    /// Those at work, by their places in [`KINDS`].
    children: Vec<(usize, Child)>,
    seed: u64,
    stop: PathBuf,
    logs: PathBuf,
}

impl Workers {
    pub fn start(scratch: &Path, mount: &Mount, kinds: &[usize], seed: u64) -> Workers {
        let (logs, stop) = (scratch.join("logs"), scratch.join("stop"));
        std::fs::create_dir_all(&logs).expect("a directory");
        let start = |me: &usize| {
            let [number, seed] = [me.to_string(), seed.to_string()];
            let mut command = Command::new(helper());
            command.args(["work", &number, &number, &seed]);
            command.arg(mount.mountpoint()).arg(logs.join(&number));
            command.arg(&stop).stdin(Stdio::null());
            (*me, command.spawn().expect("a worker"))
        };
        Workers {
            children: kinds.iter().map(start).collect(),
            seed,
            stop,
            logs,
        }
    }

    pub fn stop(mut self) -> Vec<Worker> {
        std::fs::write(&self.stop, "").expect("a file");
        for (_, child) in &mut self.children {
            if wait(child, Duration::from_secs(40)).is_none() {
                panic!("a worker hangs");
            }
        }
        let read = |(me, _): &(usize, Child)| {
            let log = std::fs::read_to_string(self.logs.join(me.to_string())).expect("its log");
            Worker::from_log(KINDS[*me], *me, self.seed, &log)
        };
        self.children.iter().map(read).collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            if let Ok(None) = child.try_wait() {
                let _ = child.kill();
                wait(child, Duration::from_secs(2));
            }
        }
    }
}
