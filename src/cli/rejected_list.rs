//! `commitfs rejected list`: in a terminal two lines for each content, cut to its width; elsewhere one,
//! whole.

use super::{Failure, exit, output};
use crate::store::{Rejected, id_name};
use crate::sys::clock::LocalTime;
use crate::sys::terminal;
use crate::types::path_on_a_line;

/// Characters before a path: id, time and bytes, each with two spaces behind it.
const BEFORE_PATH: usize = 16 + 2 + 19 + 2 + 11 + 2;

/// Prints the list.
pub(super) fn run(all: &[Rejected], json: bool) -> Result<u8, Failure> {
    let text = if json {
        serde_json::to_string_pretty(all).map_err(|e| Failure::new(exit::TROUBLE, e))? + "\n"
    } else if all.is_empty() {
        String::new()
    } else {
        table(all, terminal::columns(std::io::stdout()))
    };
    output::print(text)?;
    Ok(exit::OK)
}

fn table(all: &[Rejected], width: Option<usize>) -> String {
    let head = |id: &str, time: &str, bytes: &str| format!("{id:<16}  {time:<19}  {bytes:>11}  ");
    let header = head("ID", "TIME", "BYTES");
    let mut out = match width {
        Some(width) => {
            // Below the times, as far as there is room for it.
            let second = format!("{:18}PROCESS: REASON", "");
            format!(
                "{}\n{}\n",
                cut(&(header + "PATH"), width),
                cut(&second, width)
            )
        }
        None => format!("{header}PATH  REASON  PROCESS\n"),
    };
    for r in all {
        let time = LocalTime::of(r.time_ns).to_string();
        let head = head(&id_name(r.id), &time, &r.len.to_string());
        let path = path_on_a_line(&r.real_path());
        let reason = output::escaped(&r.reason);
        let by = format!("{} ({})", r.pid, output::escaped(&r.command));
        out += &match width {
            Some(width) => {
                // The end of a path tells more than its beginning.
                let path = cut_front(&path, width.saturating_sub(BEFORE_PATH).max(12));
                let second = format!("{:18}{by}: {reason}", "");
                format!("{}\n{}\n", cut(&(head + &path), width), cut(&second, width))
            }
            None => format!("{head}{path}  {reason}  {by}\n"),
        };
    }
    out
}

/// As much of a line as fits, with a mark where something is missing.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let kept: String = line.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

fn cut_front(text: &str, width: usize) -> String {
    let long = text.chars().count();
    if long <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(long + 1 - width).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TxnId;

    #[test]
    fn a_terminal_gets_lines_of_its_width_and_a_pipe_all() {
        let long = "d/".repeat(40) + "state.json";
        let one = Rejected {
            id: TxnId(31),
            path: long.clone(),
            path_hex: None,
            reason: "the content ends ".repeat(9),
            time_ns: 0,
            pid: 4,
            command: "python3".into(),
            len: 20 << 30,
        };
        let narrow = table(std::slice::from_ref(&one), Some(80));
        assert!(narrow.lines().all(|l| l.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("/state.json\n"), "{narrow}");
        assert!(table(&[one], None).contains(&long));
    }
}
