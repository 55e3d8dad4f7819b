//! Every guard has a verdict on any content, and the JSON guard the same one however the content is
//! cut.
#![no_main]

use commitfs::guard::{Guard, JsonStream, examine};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let len = content.len() as u64;
    for guard in [Guard::Zip, Guard::Safetensors] {
        examine(guard, &content, len).expect("memory can be read");
    }
    for strict in [false, true] {
        let mut whole = JsonStream::new(strict);
        whole.feed(content);
        let mut cut = JsonStream::new(strict);
        content.chunks(1).for_each(|byte| cut.feed(byte));
        assert_eq!(whole.verdict(), cut.verdict());
    }
});
