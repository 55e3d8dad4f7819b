//! `commitfs locks`: who holds and who waits for what.

use std::path::PathBuf;

use serde_json::Value;

use super::{Failure, control, exit, output};
use crate::store::STATE_DIR;

/// Arguments of `commitfs locks`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The mount, or a path below it
    mountpoint: PathBuf,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mount = control::mount_of(&arguments.mountpoint)?;
    let path = mount.mount_point.join(STATE_DIR).join("locks.json");
    let bad =
        |e: &dyn std::fmt::Display| Failure::new(exit::TROUBLE, format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| bad(&e))?;
    if arguments.json {
        output::print(text)?;
        return Ok(exit::OK);
    }
    let all: Value = serde_json::from_str(&text).map_err(|e| bad(&e))?;
    for entry in all.as_array().into_iter().flatten() {
        output::print(line(entry) + "\n")?;
    }
    Ok(exit::OK)
}

fn line(e: &Value) -> String {
    if e["state"] == "past" {
        return format!("past  {}", super::status::past_locks(e));
    }
    let text = |v: &Value| output::escaped(v.as_str().unwrap_or("?")).into_owned();
    let mut out = format!(
        "{} {}  {}  by {} ({})  {} ms",
        text(&e["state"]),
        text(&e["kind"]),
        text(&e["path"]),
        e["pid"],
        text(&e["command"]),
        e["age_ms"]
    );
    if e["alive"] == Value::Bool(false) {
        out += "  (process is gone)";
    }
    let blockers: Vec<String> = e["waits_for"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    if !blockers.is_empty() {
        out += &format!("  waits for {}", blockers.join(", "));
    }
    out
}
