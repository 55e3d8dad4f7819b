//! `commitfs status`: what a mount is doing, and errors nobody has read yet.

use std::path::PathBuf;

use serde_json::Value;

use super::{Failure, control, exit, openmetrics, output};
use crate::engine::ControlCommand;
use crate::store::STATE_DIR;
use crate::sys::clock::LocalTime;
use crate::sys::mount::MountEntry;

/// Arguments of `commitfs status`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The mount, or a path below it
    mountpoint: PathBuf,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// As metrics for a textfile collector, or by OpenMetrics to the letter; exit code 0 also with unread errors
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true,
          default_missing_value = "textfile", conflicts_with = "json")]
    openmetrics: Option<openmetrics::Form>,
    /// Don't count the errors shown as read
    #[arg(long)]
    keep_errors: bool,
}

/// What the daemon of a mount says of it: the fields of `status --json`.
pub(super) fn read(mount: &MountEntry) -> Result<Value, Failure> {
    let path = mount.mount_point.join(STATE_DIR).join("status.json");
    let bad =
        |e: &dyn std::fmt::Display| Failure::new(exit::TROUBLE, format!("{}: {e}", path.display()));
    let text = std::fs::read(&path).map_err(|e| bad(&e))?;
    serde_json::from_slice(&text).map_err(|e| bad(&e))
}

pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mount = control::mount_of(&arguments.mountpoint)?;
    let status = read(&mount)?;
    if let Some(form) = arguments.openmetrics {
        // For a job that writes a file: the errors are in it, and stay for people to read.
        output::print(openmetrics::text(&status, form))?;
        return Ok(exit::OK);
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&status);
        output::print(text.map_err(|e| Failure::new(exit::TROUBLE, e))? + "\n")?;
    } else {
        output::print(for_people(&status))?;
    }
    let unread = status["errors"].as_array().is_some_and(|e| !e.is_empty());
    if unread && !arguments.keep_errors && !arguments.json {
        control::send(&mount.mount_point, &ControlCommand::ErrorsRead)?;
    }
    Ok(if unread { exit::TROUBLE } else { exit::OK })
}

fn text(v: &Value) -> String {
    output::escaped(v.as_str().unwrap_or("?")).into_owned()
}

fn for_people(s: &Value) -> String {
    let mut out = format!(
        "{} over {} (process {}, durability {})\n",
        text(&s["mountpoint"]),
        text(&s["backing"]),
        s["pid"],
        text(&s["durability"])
    );
    out += &counters_for_people(s);
    out += &aborts_for_people(s);
    out += &trouble_for_people(s);
    out += &features_for_people(s);
    for round in s["groups"]["rounds"].as_array().into_iter().flatten() {
        out += &round_for_people(round);
    }
    out += &pins_for_people(&s["groups"]["pins"]);
    for t in s["transactions"].as_array().into_iter().flatten() {
        out += &open_for_people(t);
    }
    out += &proposals_for_people(s);
    for e in s["errors"].as_array().into_iter().flatten() {
        out += &error_for_people(e);
    }
    out
}

/// What was done, and what there was of locks.
fn counters_for_people(s: &Value) -> String {
    let mut out = String::new();
    let c = &s["counters"];
    out += &format!(
        "commits {}, waiting to be written out {}, overwritten updates {}, rejected {} ({} bytes kept)\n",
        c["commits"],
        s["pending"],
        c["overwritten_updates"],
        s["rejected"]["count"],
        s["rejected"]["bytes"]
    );
    if c["merges"] != 0 || c["uncertain_bases"] != 0 || c["unmerged"] != 0 {
        out += &format!(
            "merges {}, conflicts in them {}, not merged as it was not certain what was changed {}, or no JSON {}\n",
            c["merges"], c["merge_conflicts"], c["uncertain_bases"], c["unmerged"]
        );
    }
    if c["lock_timeouts"] != 0 || c["stale_claims"] != 0 {
        out += &format!(
            "waits for a lock given up {}, lock files left behind {}\n",
            c["lock_timeouts"], c["stale_claims"]
        );
    }
    let names = s["locks"]["names"].as_array().into_iter().flatten();
    let in_demand = |name: &&Value| {
        let keys = ["given_up", "refused", "taken"];
        name["waits"]["count"] != 0 || keys.iter().any(|key| name[*key] != 0)
    };
    for name in names.filter(in_demand) {
        out += &format!("locks of {}\n", past_locks(name));
    }
    if c["malformed"] != 0 {
        out += &format!(
            "published though they are no whole documents of their kind {}\n",
            c["malformed"]
        );
    }
    out
}

/// What was not committed, and why.
fn aborts_for_people(s: &Value) -> String {
    let mut out = String::new();
    let c = &s["counters"];
    let aborts: Vec<String> = c["aborts"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, n)| n.as_u64() != Some(0))
        .map(|(why, n)| format!("{why} {n}"))
        .collect();
    if !aborts.is_empty() {
        out += &format!("not committed: {}\n", aborts.join(", "));
    }
    out
}

/// What is wrong with the disk.
fn trouble_for_people(s: &Value) -> String {
    let mut out = String::new();
    if let Some(failed) = s["failed"].as_str() {
        out += &format!(
            "COMMITS CAN'T BE MADE DURABLE: {failed}; unmount, look at the disk, mount again\n"
        );
    }
    if let Some(stuck) = s["stuck"].as_str() {
        out += &format!(
            "COMMITS CAN'T BE PUT IN PLACE: {stuck}; they are kept in .commitfs, and it is tried again; if the disk is full, make room\n"
        );
    }
    out
}

/// What of the kernel's is in use.
fn features_for_people(s: &Value) -> String {
    let mut out = String::new();
    let detection = &s["killed_writer_detection"];
    out += &match detection["on"].as_bool() {
        Some(true) => "killed-writer detection: on\n".to_owned(),
        _ => format!(
            "killed-writer detection: off ({})\n",
            text(&detection["why"])
        ),
    };
    let off: Vec<String> = s["features"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|f| f["on"] != Value::Bool(true))
        .map(|f| format!("{} ({})", text(&f["name"]), text(&f["why"])))
        .collect();
    if !off.is_empty() {
        out += &format!("features not in use: {}\n", off.join(", "));
    }
    out
}

/// What a rule would help with.
fn proposals_for_people(s: &Value) -> String {
    let mut out = String::new();
    for o in s["overwritten"].as_array().into_iter().flatten() {
        out += &format!(
            "OVERWRITTEN {}: {} times somebody's update, last by {} ({}); {}{}\n",
            text(&o["path"]),
            o["count"],
            o["pid"],
            text(&o["command"]),
            text(&o["help"]),
            if o["rule"] == "" { "" } else { ":" }
        );
        out += &proposal(o);
    }
    for held in s["kept_open"].as_array().into_iter().flatten() {
        out += &format!(
            "KEPT OPEN {}: rewritten {} times, last by {} ({}); {}\n",
            text(&held["path"]),
            held["count"],
            held["pid"],
            text(&held["command"]),
            text(&held["help"])
        );
        out += &proposal(held);
    }
    out
}

/// So many files of a round are named.
const NAMED: usize = 8;

/// Files of a group that wait for each other: whose, since when, which are there and which are missing.
fn round_for_people(round: &Value) -> String {
    let members: Vec<&Value> = round["members"].as_array().into_iter().flatten().collect();
    let named = members.iter().take(NAMED).map(|member| {
        let state = match member["state"].as_str() {
            Some("saved") | None => String::new(),
            Some(other) => format!(" ({other})"),
        };
        text(&member["path"]) + &state
    });
    let mut named: Vec<String> = named.collect();
    if members.len() > NAMED {
        named.push(format!("{} more", members.len() - NAMED));
    }
    let mut out = format!(
        "together: by {} ({})  {} ms: {}",
        round["pids"][0],
        text(&round["command"]),
        round["age_ms"],
        named.join(", ")
    );
    let missing: Vec<String> = round["missing"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    if !missing.is_empty() {
        out += &format!("; still to come: {}", missing.join(", "));
    }
    if let Some(lock) = round["lock"]["path"].as_str() {
        out += &format!(
            "; until {} lets go of {}",
            round["lock"]["holder"],
            output::escaped(lock)
        );
    }
    out.push('\n');
    out
}

/// What readers of groups have pinned, if that takes space.
fn pins_for_people(pins: &Value) -> String {
    match pins["versions"].as_u64() {
        None | Some(0) => String::new(),
        Some(versions) => format!(
            "pinned by readers of groups: {versions} replaced versions, {} bytes\n",
            pins["bytes"]
        ),
    }
}

/// An open transaction.
fn open_for_people(t: &Value) -> String {
    let mut out = format!(
        "open: {}  by {} ({})  {} ms, {} bytes, {}",
        text(&t["path"]),
        t["pid"],
        text(&t["command"]),
        t["age_ms"],
        t["bytes"],
        text(&t["state"])
    );
    let idle: Vec<String> = t["idle_holders"]
        .as_array()
        .into_iter()
        .flatten()
        .map(Value::to_string)
        .collect();
    if !idle.is_empty() {
        out += &format!("; writer gone, still held by {}", idle.join(", "));
    }
    out.push('\n');
    out
}

/// A rule, and the command that puts it in force.
fn proposal(of: &Value) -> String {
    let mut out = String::new();
    for line in of["rule"].as_str().unwrap_or_default().lines() {
        out += &format!("    {}\n", output::escaped(line));
    }
    if let Some(command) = of["command_to_add"].as_str().filter(|c| !c.is_empty()) {
        out += &format!("  which this puts in force, while jobs go on:\n    {command}\n");
    }
    out
}

/// What became of the locks of one name: as `commitfs locks` shows it, too.
pub(super) fn past_locks(name: &Value) -> String {
    let path = name["path"].as_str().unwrap_or("?");
    let seconds = |v: &Value| v.as_f64().unwrap_or(0.0);
    let mut parts = Vec::new();
    for (what, how) in [("waits", "waits"), ("holds", "held")] {
        let times = &name[what];
        if times["count"] != 0 {
            parts.push(format!(
                "{how} {}, {:.3} s in all, {:.3} s the longest",
                times["count"],
                seconds(&times["sum_s"]),
                seconds(&times["max_s"])
            ));
        }
    }
    for (key, said) in [
        ("given_up", "waits given up"),
        ("refused", "refused as it would have had to wait"),
        ("taken", "found taken"),
    ] {
        if name[key] != 0 {
            parts.push(format!("{said} {}", name[key]));
        }
    }
    format!("{}: {}", output::escaped(path), parts.join("; "))
}

/// An error: when, under which id, where; what; and the command to run next.
fn error_for_people(e: &Value) -> String {
    let dropped = e["dropped_bytes"].is_u64() || e["published"] == true;
    let when = LocalTime::of(e["time_ns"].as_i64().unwrap_or_default());
    let mut out = format!(
        "ERROR {when} {} {}\n    {}{}",
        text(&e["id"]),
        text(&e["path"]),
        if dropped { "" } else { "not committed: " },
        text(&e["reason"]),
    );
    if e["pid"] != 0 {
        let command = e["command"].as_str().filter(|c| !c.is_empty());
        let command = command.map_or(String::new(), |c| format!(", {}", output::escaped(c)));
        out += &format!(" (process {}{command})", e["pid"]);
    }
    if e["resumable"] == true {
        out += "\n    what there is of it can be gone on with (curl -C -, wget -c)";
    }
    out + &format!("\n    next: {}\n", text(&e["next"]))
}
