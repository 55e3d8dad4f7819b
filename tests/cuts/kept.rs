//! What lies in rejected after a recovery: whatever is kept there is something, and says what it was.

use std::path::Path;

use crate::judge::{Cut, Promise, Worker};
use crate::plan::Step;

/// What the power may take of the moments before it, with what a busy machine adds: of content that was
/// begun or rejected within this time nobody may know where it belonged.
const MOMENTS: u64 = 3_000_000_000;

#[derive(Debug)]
pub struct Kept {
    name: String,
    path: Option<String>,
    len: usize,
    /// Whose it is, and which, where that can be read. A killed child writes as 0.
    written: Option<(usize, u64)>,
    is_empty: bool,
}

pub fn read(store: &Path) -> Vec<Kept> {
    let directory = store.join("rejected");
    let names = std::fs::read_dir(&directory).into_iter().flatten();
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let contents = names.filter(|name| !name.ends_with(".meta"));
    contents.map(|name| kept(&directory, name)).collect()
}

fn kept(directory: &Path, name: String) -> Kept {
    let content = std::fs::read(directory.join(&name)).expect("rejected content");
    let meta = std::fs::read(directory.join(format!("{name}.meta"))).unwrap_or_default();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap_or_default();
    let path = meta["path"].as_str();
    let path = path.filter(|path| !path.is_empty() && *path != "?");
    let head = content.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    let head = String::from_utf8_lossy(&head[..head.len().min(80)]).into_owned();
    let numbers: Option<Vec<u64>> = head.split(' ').map(|word| word.parse().ok()).collect();
    Kept {
        name,
        path: path.map(str::to_owned),
        len: content.len(),
        written: numbers.and_then(|n| (n.len() == 3).then(|| (n[0] as usize, n[1]))),
        is_empty: content.iter().all(|byte| *byte == 0),
    }
}

pub fn judge(cut: &Cut, workers: &[Worker], all: &[Kept]) -> Vec<String> {
    let empty: Vec<&Kept> = all.iter().filter(|kept| kept.is_empty).collect();
    let nameless = |kept: &&Kept| kept.path.is_none() && is_old(cut, workers, kept);
    let nameless: Vec<&Kept> = all.iter().filter(nameless).collect();
    let told = |(what, which): (&str, Vec<&Kept>)| {
        let first = which.first()?;
        let path = first.path.as_deref().unwrap_or("?");
        let count = which.len();
        Some(format!(
            "{count} of {} rejected have {what}: {} {path} ({} bytes) …",
            all.len(),
            first.name,
            first.len,
        ))
    };
    let both = [("nothing in them", empty), ("no path", nameless)];
    both.into_iter().filter_map(told).collect()
}

/// Whether it had ended so long before the cut that nothing of it may be missing.
fn is_old(cut: &Cut, workers: &[Worker], kept: &Kept) -> bool {
    let moments = match cut.promise {
        Promise::Kill => return true,
        Promise::Acknowledged | Promise::Within(_) => MOMENTS,
    };
    let Some((writer, number)) = kept.written else {
        return false;
    };
    let is_it = |worker: &Worker, step: &Step| match step {
        Step::KilledSave { number: n, .. } => writer == 0 && *n == number,
        Step::Save { number: n, .. } => writer == worker.me && *n == number,
        _ => false,
    };
    let steps = workers.iter().flat_map(|worker| {
        let its = worker.steps.iter().filter(|(step, _)| is_it(worker, step));
        its.map(|(_, times)| times)
    });
    let ended = steps.filter_map(|times| times.done).max();
    ended.is_some_and(|time| time + moments < cut.from)
}
