//! Hooks of the test suite: places where the daemon can be made to die, to fail, or to drop one
//! of its guarantees. All of it compiles to nothing without the feature `testing`.

use rustix::io::Errno;

/// Every place a test can end the daemon at, in the order a commit passes them.
pub const CRASH_POINTS: &[&str] = &[
    "begin-journalled",
    "turned-direct",
    "staging-written",
    "prepared-journalled",
    "flush-replied",
    "commit-journalled",
    "growing-told",
    "append-journalled",
    "patch-journalled",
    "text-written",
    "checkpoint-begun",
    "data-synced",
    "durable-journalled",
    "applied-one",
    "applied-all",
    "dirs-synced",
    "journal-rotated",
    "recovery-filled",
    "recovery-replayed",
    "recovery-taken-over",
    "recovery-placed",
    "recovery-applied",
    "recovery-rejected",
];

/// Ends the process at once if the environment asks for it here: `COMMITFS_CRASH_AT=point[:count]`.
#[cfg(feature = "testing")]
pub fn crash_point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    static ASKED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
        let asked = std::env::var("COMMITFS_CRASH_AT").ok()?;
        let (point, count) = asked.split_once(':').unwrap_or((&asked, "1"));
        assert!(CRASH_POINTS.contains(&point), "no crash point {point}");
        Some((
            point.to_owned(),
            AtomicI64::new(count.parse().expect("a count")),
        ))
    });
    debug_assert!(CRASH_POINTS.contains(&name));
    if let Some((point, left)) = &*ASKED
        && point == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .ok();
        std::thread::park();
    }
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn crash_point(_name: &str) {}

/// An injected failure: `COMMITFS_FAIL_AT=point:errno[:count[:after]]`, the errno as a number; it fails
/// `count` times, after it has worked `after` times.
#[cfg(feature = "testing")]
pub fn fail_point(name: &str) -> Result<(), Errno> {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    static ASKED: LazyLock<Option<(String, i32, AtomicI64, AtomicI64)>> = LazyLock::new(|| {
        let asked = std::env::var("COMMITFS_FAIL_AT").ok()?;
        let mut parts = asked.split(':');
        let point = parts.next()?.to_owned();
        let errno = parts.next()?.parse().ok()?;
        let mut number = |other| parts.next().map_or(Some(other), |c| c.parse().ok());
        let (count, after) = (number(i64::MAX)?, number(0)?);
        Some((point, errno, AtomicI64::new(count), AtomicI64::new(after)))
    });
    match &*ASKED {
        Some((point, errno, left, after))
            if point == name
                && after.fetch_sub(1, Ordering::Relaxed) <= 0
                && left.fetch_sub(1, Ordering::Relaxed) > 0 =>
        {
            Err(Errno::from_raw_os_error(*errno))
        }
        _ => Ok(()),
    }
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn fail_point(_name: &str) -> Result<(), Errno> {
    Ok(())
}

/// Whether the environment takes the guarantee `name` out (`COMMITFS_MUTANT=name`), so that
/// `scripts/mutants` can show which test notices.
#[cfg(feature = "testing")]
pub fn mutant(name: &str) -> bool {
    use std::sync::LazyLock;
    static ASKED: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("COMMITFS_MUTANT").ok());
    ASKED.as_deref() == Some(name)
}

/// Every place where something is made durable; each is a fail point and, skipped, a mutant.
pub const SYNCS: &[&str] = &[
    "C7-sync-data",
    "C7-sync-staging",
    "C7-sync-dir",
    "C14-sync-rename",
    "C19-sync-dirs-before",
    "C19-sync-appends",
    "C19-sync-data",
    "C19-sync-staging",
    "C19-sync-journal",
    "C19-sync-dirs-after",
    "C19-sync-staging-after",
    "C19-sync-new-journal",
    "C19-sync-journal-name",
    "C19-sync-recovered",
    "C19-sync-recovered-staging",
    "C19-sync-recovered-dir",
    "C19-sync-taken-over",
    "C19-sync-state-dir",
    "C19-sync-rejected",
    "C19-sync-rejected-meta",
    "C19-sync-rejected-dir",
];

/// Does what makes something durable, unless a test wants it to fail or to be left out.
pub fn sync<T: Default, E: From<Errno>>(
    name: &str,
    sync: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    debug_assert!(SYNCS.contains(&name));
    if mutant(name) {
        return Ok(T::default());
    }
    // It is what the sync itself says.
    super::spare::told_once(|| fail_point(name))?;
    sync()
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn mutant(_name: &str) -> bool {
    false
}

/// A limit that tests may lower through the environment.
#[cfg(feature = "testing")]
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn number(_variable: &str, default: u64) -> u64 {
    default
}

/// A test makes what comes next come so many milliseconds later.
#[inline]
pub fn delay(variable: &str) {
    let wait = number(variable, 0);
    if wait > 0 {
        std::thread::sleep(std::time::Duration::from_millis(wait));
    }
}

/// A test has threads overtake each other as they do on a busy machine (`COMMITFS_SCHEDULE=seed`): whoever is about to take the
/// engine's lock, or begins a job, lets others go first now and then, for up to 20 ms.
#[cfg(feature = "testing")]
pub fn schedule_point() {
    use std::cell::Cell;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    static SEED: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("COMMITFS_SCHEDULE").ok()?.parse().ok());
    static THREADS: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static RANDOM: Cell<u64> = const { Cell::new(0) };
    }
    let Some(seed) = *SEED else {
        return;
    };
    let random = RANDOM.with(|random| {
        let mut next = random.get();
        if next == 0 {
            let thread = THREADS.fetch_add(1, Ordering::Relaxed);
            next = (seed ^ thread.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1);
        }
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        random.set(next);
        next
    });
    let micros = match (random >> 32) % 2048 {
        0 => 20_000,
        1..16 => 2_000,
        16..64 => 200,
        64..256 => return std::thread::yield_now(),
        _ => return,
    };
    std::thread::sleep(Duration::from_micros(random % micros));
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn schedule_point() {}

/// Whether a kernel feature is to be treated as missing (`COMMITFS_WITHOUT=name,name`): the suite
/// runs with each optional one off.
#[cfg(feature = "testing")]
pub fn feature_off(name: &str) -> bool {
    use std::sync::LazyLock;
    static OFF: LazyLock<String> =
        LazyLock::new(|| std::env::var("COMMITFS_WITHOUT").unwrap_or_default());
    OFF.split(',').any(|off| off == name)
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub fn feature_off(_name: &str) -> bool {
    false
}
