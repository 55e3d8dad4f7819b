//! Contents that betray any damage: a head with version and length, a body of one letter that
//! depends on the version, and a tail. A prefix, a mixture of two versions and an empty file are
//! all told apart from a whole version.

const HEAD: usize = 31;
const TAIL: usize = 18;
pub const SMALLEST: usize = HEAD + TAIL;

pub fn stamped(version: u64, len: usize) -> Vec<u8> {
    let len = len.max(SMALLEST);
    let mut content = format!("v={version:012} len={len:011}\n").into_bytes();
    debug_assert_eq!(content.len(), HEAD);
    content.resize(len - TAIL, b'a' + (version % 26) as u8);
    content.extend_from_slice(format!("\nend {version:012}\n").as_bytes());
    content
}

/// The version of a whole content, or what is wrong with it.
pub fn version_of(content: &[u8]) -> Result<u64, String> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        std::str::from_utf8(content.get(range)?).ok()?.parse().ok()
    };
    let torn = |what: &str| {
        let from = content.len().saturating_sub(40);
        Err(format!(
            "{what}: {} bytes, beginning {:?}, ending {:?}",
            content.len(),
            String::from_utf8_lossy(&content[..content.len().min(40)]),
            String::from_utf8_lossy(&content[from..]),
        ))
    };
    let (Some(version), Some(len)) = (number(2..14), number(19..30)) else {
        return torn("no head");
    };
    if content.len() as u64 != len {
        return torn("wrong length");
    }
    if content != stamped(version, len as usize) {
        return torn("a mixture");
    }
    Ok(version)
}

/// A line that betrays any damage; how long it is depends on its number.
pub fn line(name: &str, number: u64) -> String {
    let padding = "=".repeat((number * 37 % 211) as usize);
    format!("{name} {number:06} {padding} {name}\n")
}
