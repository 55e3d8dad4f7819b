//! A document, a NUL, and a patch or merge patch: what is applied can be written, read again and
//! taken back; what fails has changed nothing. Doing it again comes to the same.
#![no_main]

use commitfs::json::{Applied, Document, Limits, MergePatch, Patch, PatchError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(nul) = input.iter().position(|&byte| byte == 0) else {
        return;
    };
    let (text, patch) = (&input[..nul], &input[nul + 1..]);
    let limits = Limits {
        bytes: 1 << 20,
        operations: 100,
    };
    let Ok(document) = Document::parse_within(text, &limits) else {
        return;
    };
    let written = document.to_text();
    let again = Document::parse(written.as_bytes()).expect("what was written is read");
    assert!(again.value().is_identical(document.value()));
    assert_eq!(again.to_text(), written);
    if let Ok(patch) = Patch::parse(patch, &limits) {
        check(document.clone(), |document| document.apply(&patch, &limits));
    }
    if let Ok(patch) = MergePatch::parse(patch, &limits) {
        check(document, |document| document.apply_merge(&patch, &limits));
    }
});

fn check(mut document: Document, edit: impl Fn(&mut Document) -> Result<Applied, PatchError>) {
    let before = document.to_text();
    assert_eq!(before.len(), document.text_len());
    if let Ok(applied) = edit(&mut document) {
        let text = document.to_text();
        assert_eq!(text.len(), document.text_len());
        let again = Document::parse(text.as_bytes()).expect("what was written is read");
        assert!(again.value().is_identical(document.value()));
        if let Some(target) = &applied.target {
            // Nothing is there behind a `remove`.
            let _ = target.resolve(document.value());
        }
        document.revert(applied.undo);
        assert_eq!(document.to_text(), before);
        let applied = edit(&mut document).expect("it went well before");
        assert_eq!(document.to_text(), text);
        document.revert(applied.undo);
    }
    assert_eq!(document.to_text(), before);
    assert_eq!(before.len(), document.text_len());
}
