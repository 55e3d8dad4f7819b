//! Contents that say who wrote them, which of their writer's they are, and whether they are whole.

use crate::plan::{DOCUMENT, GRID, LOG};

pub const ROW: usize = 256;

fn sealed(mut content: Vec<u8>) -> Vec<u8> {
    let seal = format!(" {:08x}\n", crc32c::crc32c(&content));
    content.extend_from_slice(seal.as_bytes());
    content
}

/// The content of a saved file.
pub fn saved(writer: usize, number: u64, len: usize) -> Vec<u8> {
    let mut content = format!("{writer} {number} {len}\n").into_bytes();
    let unit = format!("{writer}:{number},");
    while content.len() < len {
        content.extend_from_slice(unit.as_bytes());
    }
    content.truncate(len.max(20));
    sealed(content)
}

/// One line of a log; how long it is depends on its number.
pub fn line(writer: usize, number: u64) -> Vec<u8> {
    let padding = "=".repeat((number * 37 % 211) as usize);
    sealed(format!("{writer} {number} {padding}").into_bytes())
}

/// One writer's part of the grid.
pub fn row(writer: usize, number: u64) -> Vec<u8> {
    let head = format!("{writer} {number} ");
    sealed(format!("{head:.<width$}", width = ROW - 10).into_bytes())
}

pub fn patch(writer: usize, number: u64) -> String {
    format!(
        r#"[{{"op": "replace", "path": "/a{writer}", "value": {number}}}, {{"op": "replace", "path": "/b{writer}", "value": {number}}}]"#
    )
}

pub fn document(writers: impl Iterator<Item = usize>) -> String {
    let members: Vec<String> = writers
        .map(|w| format!("\"a{w}\": 0, \"b{w}\": 0"))
        .collect();
    format!("{{{}}}\n", members.join(", "))
}

/// What is in a file: by whom (`None`: a file of one writer, its path says whose), and which.
pub type Parts = Vec<(Option<usize>, u64)>;

/// An unfinished line at the end of a log.
pub type Rest = Vec<u8>;

/// The parts of a whole file, or what is wrong with it.
pub fn parts_of(path: &str, content: &[u8]) -> Result<(Parts, Rest), String> {
    if let Some(at) = content.iter().position(|byte| *byte == 0) {
        let zeros = content[at..].iter().take_while(|byte| **byte == 0).count();
        return Err(format!("{zeros} zeros at {at} of {}", content.len()));
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    match name {
        GRID => rows(content).map(|parts| (parts, Rest::new())),
        DOCUMENT => members(content).map(|parts| (parts, Rest::new())),
        LOG | "pieces" => lines(content),
        _ if name.starts_with("out-") => lines(content),
        _ => whole(content).map(|part| (vec![part], Rest::new())),
    }
}

fn numbers(text: &[u8]) -> Option<Vec<u64>> {
    let text = std::str::from_utf8(text).ok()?;
    text.split(' ').map(|word| word.parse().ok()).collect()
}

fn whole(content: &[u8]) -> Result<(Option<usize>, u64), String> {
    let head = content
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or(content);
    let torn = || {
        let begin = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
        format!("torn: {} bytes, {begin:?}", content.len())
    };
    let head = numbers(head).filter(|numbers| numbers.len() == 3);
    let head = head.ok_or_else(torn)?;
    if content == saved(head[0] as usize, head[1], head[2] as usize) {
        Ok((None, head[1]))
    } else {
        Err(torn())
    }
}

/// The last line of each writer; each writer's come from 1 on, in order and without holes.
fn lines(content: &[u8]) -> Result<(Parts, Rest), String> {
    let mut last: std::collections::BTreeMap<usize, u64> = Default::default();
    let mut rest = Rest::new();
    for found in content.split_inclusive(|byte| *byte == b'\n') {
        if !found.ends_with(b"\n") {
            rest = found.to_vec();
            break;
        }
        let begin: Vec<&[u8]> = found.splitn(3, |byte| *byte == b' ').collect();
        let head = numbers(&begin[..begin.len().min(2)].join(&b' '));
        let head = head.filter(|head| head.len() == 2);
        let show = || String::from_utf8_lossy(&found[..found.len().min(80)]).into_owned();
        let head = head.ok_or_else(|| format!("no line: {:?}", show()))?;
        let (writer, number) = (head[0] as usize, head[1]);
        if found != line(writer, number) {
            return Err(format!("a damaged line: {:?}", show()));
        }
        let before = last.insert(writer, number).unwrap_or(0);
        if number != before + 1 {
            return Err(format!(
                "line {number} of {writer} comes after its line {before}"
            ));
        }
    }
    let parts = last
        .into_iter()
        .map(|(writer, number)| (Some(writer), number));
    Ok((parts.collect(), rest))
}

fn rows(content: &[u8]) -> Result<Parts, String> {
    let part = |found: &[u8]| {
        let head: Vec<&[u8]> = found.splitn(3, |byte| *byte == b' ').collect();
        let head = numbers(&head[..head.len().min(2)].join(&b' '));
        let head = head.filter(|head| head.len() == 2 && found == row(head[0] as usize, head[1]));
        let head =
            head.ok_or_else(|| format!("a torn row: {:?}", String::from_utf8_lossy(found)))?;
        Ok((Some(head[0] as usize), head[1]))
    };
    content.chunks(ROW).map(part).collect()
}

fn members(content: &[u8]) -> Result<Parts, String> {
    let value: serde_json::Value = serde_json::from_slice(content).map_err(|e| e.to_string())?;
    let object = value.as_object().ok_or("no object")?;
    let mut parts = Parts::new();
    for (name, value) in object {
        let Some(writer) = name.strip_prefix('a') else {
            continue;
        };
        if object.get(&format!("b{writer}")) != Some(value) {
            return Err(format!("half a patch of {writer}: {value}"));
        }
        let number = value.as_u64().ok_or("no number")?;
        parts.push((Some(writer.parse().map_err(|_| "no writer")?), number));
    }
    Ok(parts)
}
