//! Where a daemon's log goes, and how its lines look there.

use std::io::Write;

use super::output;

/// Whether standard error goes to the journal of systemd, which sets `JOURNAL_STREAM` to the device
/// and inode that it has then.
pub(super) fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino))
}

/// Starts the log at a level. The journal gets priorities, as of sd-daemon(3), and no times, as it has
/// its own.
pub(super) fn start(level: log::LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(log::LevelFilter::Warn)
        .filter_module("commitfs", level)
        .format_timestamp_millis()
        .format_target(false);
    if is_journal() {
        builder.format(|to, record| {
            let text = record.args().to_string();
            to.write_all(journal_lines(priority(record.level()), &text).as_bytes())
        });
    }
    builder.init();
}

/// A command's last words on standard error.
pub(super) fn last_words(message: &str) {
    let text = format!("commitfs: {}", output::escaped_lines(message));
    if is_journal() {
        eprint!("{}", journal_lines(priority(log::Level::Error), &text));
    } else {
        eprintln!("{text}");
    }
}

/// The numbers of syslog(3).
fn priority(level: log::Level) -> u8 {
    match level {
        log::Level::Error => 3,
        log::Level::Warn => 4,
        log::Level::Info => 6,
        log::Level::Debug | log::Level::Trace => 7,
    }
}

fn journal_lines(priority: u8, text: &str) -> String {
    text.lines()
        .map(|line| format!("<{priority}>{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_for_the_journal_has_its_priority() {
        assert_eq!(journal_lines(4, "one\ntwo"), "<4>one\n<4>two\n");
        assert_eq!(priority(log::Level::Error), 3);
    }
}
