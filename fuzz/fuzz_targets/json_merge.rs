//! Three documents with NULs between them: the merge can be written and read again, and a side that
//! changed nothing leaves the other as it is.
#![no_main]

use commitfs::json::{Document, Policy, merge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let documents: Result<Vec<Document>, _> = input
        .splitn(3, |&byte| byte == 0)
        .map(Document::parse)
        .collect();
    let Ok([base, mine, theirs]) = documents.as_deref() else {
        return;
    };
    let policy = Policy::new(&["/*", "/*/*", "/n"]).expect("these are pointers");
    let (merged, _) = Document::merge(base, mine, theirs, &policy);
    let text = merged.to_text();
    let again = Document::parse(text.as_bytes()).expect("what was written is read");
    assert!(again.value().is_identical(merged.value()));

    for (one, two) in [(mine, base), (base, mine)] {
        let merged = merge(base.value(), one.value(), two.value(), &policy);
        assert!(merged.value.is_identical(mine.value()));
        assert!(merged.conflicts.is_empty());
    }
});
