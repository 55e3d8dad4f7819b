//! `commitfs status --openmetrics`: counters and histograms for Prometheus.
//!
//! Two forms differ in one thing. Prometheus's text format, which node_exporter's textfile collector
//! reads, describes a counter under the name that its samples have; OpenMetrics leaves `_total` out
//! there.

use std::fmt::Write as _;

use serde_json::Value;

/// How counters are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// As a textfile collector and promtool read it
    Textfile,
    /// As OpenMetrics has it
    Strict,
}

/// The metrics of a mount, from what its status says.
pub(super) fn text(status: &Value, form: Form) -> String {
    let mut out = Page {
        text: String::new(),
        mount: escaped(status["mountpoint"].as_str().unwrap_or_default()),
        form,
    };
    mount(&mut out, status);
    saves(&mut out, status);
    merges(&mut out, status);
    locks(&mut out, status);
    medium(&mut out, status);
    out.text + "# EOF\n"
}

fn mount(out: &mut Page, s: &Value) {
    let labels: Vec<String> = ["version", "durability"]
        .iter()
        .map(|name| {
            format!(
                "{name}=\"{}\"",
                escaped(s[name].as_str().unwrap_or_default())
            )
        })
        .collect();
    out.describe(
        "commitfs_build_info",
        "gauge",
        "The daemon of the mount; always 1.",
    );
    out.sample("commitfs_build_info", &labels.join(","), "1");
    let open = s["transactions"].as_array().map_or(0, Vec::len);
    out.gauge(
        "commitfs_open_transactions",
        "Files that are open for writing and not committed yet.",
        &open.into(),
    );
    let unread = s["errors"].as_array().map_or(0, Vec::len);
    out.gauge(
        "commitfs_unread_errors",
        "Errors that nobody has read in status.",
        &unread.into(),
    );
}

fn saves(out: &mut Page, s: &Value) {
    let c = &s["counters"];
    out.counter("commitfs_commits", "Versions published.", &c["commits"]);
    out.histogram(
        "commitfs_commit_seconds",
        "From the last close of a file to its version.",
        &s["latency"]["commits"],
    );
    out.describe(
        "commitfs_aborts",
        "counter",
        "Transactions that did not commit, by reason.",
    );
    for (reason, count) in c["aborts"].as_object().into_iter().flatten() {
        out.sample(
            "commitfs_aborts_total",
            &format!("reason=\"{reason}\""),
            &count.to_string(),
        );
    }
    for (name, help, value) in [
        (
            "commitfs_rejected_contents",
            "Contents moved to rejected.",
            &c["rejected"],
        ),
        (
            "commitfs_malformed",
            "Contents published though they go wrong in their middle.",
            &c["malformed"],
        ),
        (
            "commitfs_patches",
            "JSON documents edited through attributes.",
            &c["patches"],
        ),
        (
            "commitfs_stale_patches",
            "Such edits refused because the version they named was not current.",
            &c["stale_patches"],
        ),
        (
            "commitfs_patch_retries",
            "Such edits begun again, as somebody had committed meanwhile.",
            &c["patch_retries"],
        ),
    ] {
        out.counter(name, help, value);
    }
    out.gauge(
        "commitfs_rejected_files",
        "Contents in rejected now.",
        &s["rejected"]["count"],
    );
    out.gauge(
        "commitfs_rejected_bytes",
        "Their bytes.",
        &s["rejected"]["bytes"],
    );
}

fn merges(out: &mut Page, s: &Value) {
    let c = &s["counters"];
    for (name, help, key) in [
        (
            "commitfs_overwritten_updates",
            "Versions replaced by saves that were not built on them.",
            "overwritten_updates",
        ),
        (
            "commitfs_merges",
            "Saves merged into what others had committed.",
            "merges",
        ),
        (
            "commitfs_merge_conflicts",
            "Places in merges where both had changed the same, and the later won.",
            "merge_conflicts",
        ),
    ] {
        out.counter(name, help, &c[key]);
    }
    out.describe(
        "commitfs_merges_left_out",
        "counter",
        "Saves that a rule could not merge, by reason.",
    );
    for (reason, key) in [
        ("uncertain_base", "uncertain_bases"),
        ("no_document", "unmerged"),
    ] {
        let label = format!("reason=\"{reason}\"");
        out.sample(
            "commitfs_merges_left_out_total",
            &label,
            &c[key].to_string(),
        );
    }
}

fn locks(out: &mut Page, s: &Value) {
    let all = &s["locks"]["all"];
    out.histogram(
        "commitfs_lock_wait_seconds",
        "Waits for advisory locks and writer slots, whatever became of them.",
        &all["waits"],
    );
    out.histogram(
        "commitfs_lock_hold_seconds",
        "How long advisory locks and writer slots were held that were given back.",
        &all["holds"],
    );
    for (name, help, value) in [
        (
            "commitfs_lock_waits_given_up",
            "Waits that ended without the lock.",
            &all["given_up"],
        ),
        (
            "commitfs_lock_refusals",
            "Requests that would not wait and found the lock taken.",
            &all["refused"],
        ),
        (
            "commitfs_lock_files_taken",
            "Exclusive creations that found the lock file there.",
            &all["taken"],
        ),
        (
            "commitfs_lock_timeouts",
            "Editors that went on without the writer slot after the lock timeout.",
            &s["counters"]["lock_timeouts"],
        ),
        (
            "commitfs_stale_claims",
            "Lock files whose creators ended without removing them.",
            &s["counters"]["stale_claims"],
        ),
    ] {
        out.counter(name, help, value);
    }
}

fn medium(out: &mut Page, s: &Value) {
    out.gauge(
        "commitfs_checkpoint_lag_seconds",
        "How long the oldest commit that is not on the medium has been waiting.",
        &s["latency"]["checkpoint_lag_s"],
    );
    out.histogram(
        "commitfs_checkpoint_seconds",
        "How long the oldest commit of a checkpoint had waited for it.",
        &s["latency"]["checkpoints"],
    );
    out.gauge(
        "commitfs_checkpoint_pending_versions",
        "Versions that are not in the backing directory yet.",
        &s["pending"],
    );
    for (name, help, key) in [
        (
            "commitfs_failed",
            "1 if commits can not be made durable.",
            "failed",
        ),
        (
            "commitfs_stuck",
            "1 if commits can not be put in place for now.",
            "stuck",
        ),
    ] {
        out.gauge(name, help, &u8::from(!s[key].is_null()).into());
    }
}

/// The text so far.
struct Page {
    text: String,
    mount: String,
    form: Form,
}

impl Page {
    /// Begins a family; a counter's name comes without `_total`.
    fn describe(&mut self, name: &str, kind: &str, help: &str) {
        let suffix = match (kind, self.form) {
            ("counter", Form::Textfile) => "_total",
            _ => "",
        };
        writeln!(self.text, "# HELP {name}{suffix} {help}").ok();
        writeln!(self.text, "# TYPE {name}{suffix} {kind}").ok();
        for unit in ["seconds", "bytes"] {
            if name.ends_with(&format!("_{unit}")) && self.form == Form::Strict {
                writeln!(self.text, "# UNIT {name} {unit}").ok();
            }
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mount = &self.mount;
        writeln!(
            self.text,
            "{name}{{mountpoint=\"{mount}\"{comma}{labels}}} {value}"
        )
        .ok();
    }

    fn counter(&mut self, name: &str, help: &str, value: &Value) {
        self.describe(name, "counter", help);
        self.sample(&format!("{name}_total"), "", &value.to_string());
    }

    fn gauge(&mut self, name: &str, help: &str, value: &Value) {
        self.describe(name, "gauge", help);
        self.sample(name, "", &value.to_string());
    }

    fn histogram(&mut self, name: &str, help: &str, value: &Value) {
        self.describe(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for one in value["buckets"].as_array().into_iter().flatten() {
            let label = format!("le=\"{}\"", one["le_s"]);
            self.sample(&bucket, &label, &one["count"].to_string());
        }
        let count = value["count"].to_string();
        self.sample(&bucket, "le=\"+Inf\"", &count);
        self.sample(&format!("{name}_sum"), "", &value["sum_s"].to_string());
        self.sample(&format!("{name}_count"), "", &count);
    }
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
