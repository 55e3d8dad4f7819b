//! Watchers that read a file as they are told that it was closed.

use super::stamp::{stamped, version_of};
use super::{Actor, Mount};

/// How many of so many saves of `f` a program that inotify wakes doesn't find.
pub fn stale_after_close_write(m: &Mount, saves: usize) -> usize {
    m.save("f", stamped(0, 100));
    let (mut writer, mut watcher) = (Actor::new(), Actor::new());
    let root = m.mountpoint().as_os_str().as_encoded_bytes();
    let mask = libc::IN_CLOSE_WRITE.to_string();
    watcher
        .ask("inotify", &[b"w", mask.as_bytes(), root])
        .unwrap();
    let mut stale = 0;
    for round in 1..=saves as u64 {
        watcher.start("await-and-cat", &[b"w", root, b"f"]);
        writer
            .save(&m.path("f"), stamped(round, 100 + round as usize % 300))
            .unwrap();
        let content = watcher.finish().unwrap().remove(0);
        if version_of(&content) != Ok(round) {
            stale += 1;
        }
    }
    stale
}
