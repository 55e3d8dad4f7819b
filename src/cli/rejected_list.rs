//! `commitfs rejected list`: in a terminal two lines for each content, cut to its width; elsewhere one,
//! whole. The files of a group that were not published are one entry.

use super::{Failure, exit, output};
use serde::Serialize;

use crate::store::{Rejected, id_name, parse_id};
use crate::sys::clock::LocalTime;
use crate::sys::terminal;
use crate::types::path_on_a_line;

/// Characters before a path: id, time and bytes, each with two spaces behind it.
const BEFORE_PATH: usize = 16 + 2 + 19 + 2 + 11 + 2;

/// A content, or all of a round (C23).
#[derive(Clone, Debug, Serialize)]
struct Listed {
    /// The first of them; id, length and reason are those of the round.
    #[serde(flatten)]
    first: Rejected,
    /// All files of the round; none for a content by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<Rejected>,
}

/// Contents as they are listed, in the order of the first of each.
fn entries(all: &[Rejected]) -> Vec<Listed> {
    let mut entries: Vec<Listed> = Vec::new();
    for one in all {
        let of_round = |e: &&mut Listed| one.round.is_some() && e.first.round == one.round;
        if let Some(entry) = entries.iter_mut().find(of_round) {
            entry.first.len += one.len;
            if one.reason.starts_with("its group") {
                entry.first.reason.clone_from(&one.reason);
            }
            entry.members.push(one.clone());
            continue;
        }
        let mut first = one.clone();
        let round = first.round.as_deref().and_then(|id| parse_id(id.as_ref()));
        let members = round.map(|_| one.clone());
        first.id = round.unwrap_or(first.id);
        entries.push(Listed {
            first,
            members: members.into_iter().collect(),
        });
    }
    entries
}

/// Prints the list.
pub(super) fn run(all: &[Rejected], json: bool) -> Result<u8, Failure> {
    let all = &entries(all);
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

fn table(all: &[Listed], width: Option<usize>) -> String {
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
    for Listed { first: r, members } in all {
        let time = LocalTime::of(r.time_ns).to_string();
        let head = head(&id_name(r.id), &time, &r.len.to_string());
        let path = match members.split_first() {
            Some((_, others)) if width.is_none() => {
                let paths = std::iter::once(r).chain(others);
                let paths: Vec<_> = paths.map(|m| path_on_a_line(&m.real_path())).collect();
                paths.join(", ")
            }
            Some((_, others @ [_, ..])) => {
                let path = path_on_a_line(&r.real_path());
                format!("{path} and {} more of its group", others.len())
            }
            _ => path_on_a_line(&r.real_path()),
        };
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
            round: None,
        };
        let one = &entries(&[one]);
        let narrow = table(one, Some(80));
        assert!(narrow.lines().all(|l| l.chars().count() <= 80), "{narrow}");
        assert!(narrow.contains("/state.json\n"), "{narrow}");
        assert!(table(one, None).contains(&long));
    }

    #[test]
    fn the_files_of_a_round_are_one_entry() {
        let one = |id, path: &str, round: Option<u64>| Rejected {
            id: TxnId(id),
            path: path.into(),
            path_hex: None,
            reason: "its group was not published".into(),
            time_ns: 0,
            pid: 4,
            command: "python3".into(),
            len: 10,
            round: round.map(|id| id_name(TxnId(id))),
        };
        let all = [
            one(1, "a", Some(9)),
            one(2, "x", None),
            one(3, "b", Some(9)),
        ];
        let listed = entries(&all);
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[0].first.id, listed[0].first.len), (TxnId(9), 20));
        assert_eq!(listed[0].members.len(), 2);
        let text = table(&listed, None);
        assert!(text.contains("  a, b  "), "{text}");
        let narrow = table(&listed, Some(80));
        assert!(narrow.contains("a and 1 more of its group"), "{narrow}");
    }
}
