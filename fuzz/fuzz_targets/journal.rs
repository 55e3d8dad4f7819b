//! Any bytes are a journal or an error. Behind the header every frame is under a checksum, so random
//! bytes seldom get far: start from the journals in tests/fixtures.
#![no_main]

use commitfs::journal::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
});
