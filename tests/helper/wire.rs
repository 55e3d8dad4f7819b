//! Words on the wire: bytes outside a small safe set are written as %XX, an empty word as `%`.

pub fn encode(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "%".into();
    }
    let mut word = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'%' {
            word.push(byte as char);
        } else {
            word.push_str(&format!("%{byte:02x}"));
        }
    }
    word
}

pub fn decode(word: &str) -> Vec<u8> {
    let bytes = word.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = word
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (b'%', None) => at += 1,
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}
