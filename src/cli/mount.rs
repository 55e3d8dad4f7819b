//! `commitfs mount`: checks, recovers, mounts and serves.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rustix::io::Errno;

use super::options::{self, Options};
use super::{Failure, exit, logging};
use crate::engine::{Config, Durability, Engine, LogTo, set_dropper};
use crate::fuse::{Adapter, KernelNotify, NameDropper};
use crate::rules::Rules;
use crate::store::{DAEMON_LOG, LOG_LIMIT, OLD_LOG, STATE_DIR, Store, StoreError};
use crate::sys::background::{self, ReadyWriter, StartOutcome};
use crate::sys::mount::{self as sysmount, FsKind, MountError, MountFlags, MountRequest};
use crate::sys::{failpoint, proc, signals};
use crate::txn::recovery::{Recovered, RecoveryError, recover};
use crate::types::errno_of;

/// When a commit survives a power cut.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DurabilityArgument {
    /// Within a second
    Async,
    /// Before close() returns
    Sync,
}

/// The parser of the command line takes limits of one type only.
fn limits(range: &std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    range.clone()
}

/// Arguments of `commitfs mount`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = options::HELP)]
pub struct Arguments {
    /// Directory with the real files
    backing: PathBuf,
    /// Where to mount; without it, over the backing directory itself
    mountpoint: Option<PathBuf>,
    /// Stay in the foreground
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Mount options, as for mount(8)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Rules (TOML); without it .commitfs/rules.toml in the backing directory, if there is one
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// When commits survive a power cut
    #[arg(long, value_enum)]
    durability: Option<DurabilityArgument>,
    /// With async: the longest time a commit may be lost by a power cut, 10 to 60000 [default: 1000]
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(limits(&options::BOUND)))]
    bound: Option<u64>,
    /// How long an in-place editor waits for another one of the same file, before it goes on, up to 86400 [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(limits(&options::PATIENCE)))]
    lock_timeout: Option<u64>,
    /// Warn of a lock or writer slot that is held for longer, up to 86400; 0 never [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(limits(&options::PATIENCE)))]
    lock_warn: Option<u64>,
    /// Allow a backing directory on a network file system
    #[arg(long)]
    network_ok: bool,
    /// error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: log::LevelFilter,
}

/// What is needed to serve, all checked.
struct MountPlan {
    backing: PathBuf,
    mountpoint: PathBuf,
    options: Options,
    rules_file: Option<PathBuf>,
    durability: Durability,
    bound: Duration,
    lock_timeout: Duration,
    lock_warn: Option<Duration>,
    network_ok: bool,
}

pub fn run(arguments: Arguments) -> Result<u8, Failure> {
    let writer = ReadyWriter::from_env().map_err(|e| Failure::new(exit::REFUSED, e))?;
    if writer.is_none() && !arguments.foreground {
        return in_background(&arguments);
    }
    logging::start(arguments.log_level);
    let served = plan(&arguments).and_then(|plan| serve(&plan, writer));
    match served {
        Ok(()) => Ok(exit::OK),
        Err((writer, failure)) => {
            if let Some(writer) = writer {
                log::error!("{}", failure.message);
                writer.fail(failure.code.into(), &failure.message);
                return Ok(failure.code);
            }
            Err(failure)
        }
    }
}

type Served<T> = Result<T, (Option<ReadyWriter>, Failure)>;

/// Starts the daemon as a process of its own and waits until its mount stands.
fn in_background(arguments: &Arguments) -> Result<u8, Failure> {
    // What can be said at once is said without a daemon.
    let plan = plan(arguments).map_err(|(_, failure)| failure)?;
    let log = daemon_log(&plan).map_err(|e| {
        let code = match e.kind() {
            std::io::ErrorKind::NotADirectory => exit::DAMAGED,
            _ => exit::BAD_INPUT,
        };
        let dir = plan.backing.join(STATE_DIR);
        Failure::new(
            code,
            format!(
                "{}: {e}: it has to be a directory that commitfs can write to",
                dir.display()
            ),
        )
    })?;
    let mut line: Vec<std::ffi::OsString> = vec!["mount".into(), "--foreground".into()];
    line.extend(["--log-level".into(), arguments.log_level.to_string().into()]);
    let numbers = [
        ("--bound", arguments.bound),
        ("--lock-timeout", arguments.lock_timeout),
        ("--lock-warn", arguments.lock_warn),
    ];
    for (name, number) in numbers {
        line.extend(number.map(|number| format!("{name}={number}").into()));
    }
    let durability = match plan.durability {
        Durability::Async => "async",
        Durability::Sync => "sync",
    };
    line.extend(["--durability".into(), durability.into()]);
    if let Some(rules) = &plan.rules_file {
        line.extend(["--rules".into(), rules.into()]);
    }
    if plan.network_ok {
        line.push("--network-ok".into());
    }
    for list in &arguments.options {
        line.extend(["-o".into(), list.into()]);
    }
    line.extend(["--".into(), plan.backing.into(), plan.mountpoint.into()]);
    let refused = |e: std::io::Error| {
        Failure::new(exit::REFUSED, format!("the daemon can't be started: {e}"))
    };
    let reader = background::spawn_background(line, log).map_err(refused)?;
    match reader.wait().map_err(refused)? {
        StartOutcome::Ready => Ok(exit::OK),
        StartOutcome::Failed { code, message } => Err(Failure::new(
            u8::try_from(code).unwrap_or(exit::TROUBLE),
            message,
        )),
        StartOutcome::Died(status) => Err(Failure::new(
            exit::REFUSED,
            format!(
                "the daemon ended before it was ready ({status:?}); see {STATE_DIR}/{DAEMON_LOG} in the backing directory"
            ),
        )),
    }
}

/// The daemon's log lies in the state directory; a large one makes way first.
fn daemon_log(plan: &MountPlan) -> std::io::Result<File> {
    let dir = plan.backing.join(STATE_DIR);
    if dir.symlink_metadata().is_err() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    }
    let path = dir.join(DAEMON_LOG);
    if path.metadata().is_ok_and(|m| m.len() > LOG_LIMIT) {
        std::fs::rename(&path, dir.join(OLD_LOG))?;
    }
    File::options().create(true).append(true).open(path)
}

/// Checks what can be checked without changing anything.
fn plan(arguments: &Arguments) -> Served<MountPlan> {
    plan_inner(arguments).map_err(|failure| (None, failure))
}

fn plan_inner(arguments: &Arguments) -> Result<MountPlan, Failure> {
    let options = Options::parse(&arguments.options)?;
    let mountpoint = arguments.mountpoint.as_ref().unwrap_or(&arguments.backing);
    // A dead mount would hide what lies below it.
    for path in [mountpoint, &arguments.backing] {
        if let Ok(true) = sysmount::detach_dead(path) {
            log::warn!("{}: detached a mount whose daemon was gone", path.display());
        }
    }
    if options.allow_other == Some(true) && !sysmount::may_let_others_in() {
        return Err(Failure::new(
            exit::REFUSED,
            "-o allow_other: /etc/fuse.conf has no line user_allow_other, which only root can add; \
             without the option the mount is for you alone",
        ));
    }
    let backing = usable_directory(&arguments.backing)?;
    let mountpoint = usable_directory(mountpoint)?;
    let bound = arguments.bound.or(options.bound).unwrap_or(1000);
    let lock_timeout = arguments
        .lock_timeout
        .or(options.lock_timeout)
        .unwrap_or(30);
    let lock_warn = arguments.lock_warn.or(options.lock_warn).unwrap_or(300);
    let durability = match (arguments.durability, options.durability.as_deref()) {
        (Some(DurabilityArgument::Sync), _) | (None, Some("sync")) => Durability::Sync,
        (Some(DurabilityArgument::Async), _) | (None, None | Some("async")) => Durability::Async,
        (None, Some(other)) => {
            return Err(Failure::new(
                exit::USAGE,
                format!("-o durability={other}: use async or sync"),
            ));
        }
    };
    let network_ok = arguments.network_ok || options.network_ok;
    check_backing(&backing, &mountpoint, network_ok)?;
    Store::preflight(&backing).map_err(store_failure)?;
    let rules_file = arguments.rules.clone().or(options.rules.clone());
    let rules_file = match rules_file {
        Some(file) => {
            Some(std::path::absolute(&file).map_err(|e| Failure::new(exit::BAD_INPUT, e))?)
        }
        None => None,
    };
    load_rules(rules_file.as_deref(), &backing)?;
    Ok(MountPlan {
        backing,
        mountpoint,
        options,
        rules_file,
        durability,
        bound: Duration::from_millis(bound),
        lock_timeout: Duration::from_secs(lock_timeout),
        lock_warn: (lock_warn > 0).then(|| Duration::from_secs(lock_warn)),
        network_ok,
    })
}

pub(super) fn usable_directory(path: &Path) -> Result<PathBuf, Failure> {
    let bad = |e: &dyn std::fmt::Display| {
        Failure::new(exit::BAD_INPUT, format!("{}: {e}", path.display()))
    };
    let real = path.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => bad(&"no such directory; create it first"),
        _ => bad(&e),
    })?;
    if real.parent().is_none() {
        return Err(bad(
            &"the root directory; commitfs is for a directory of state, such as /srv/state",
        ));
    }
    if real.metadata().map_err(|e| bad(&e))?.is_dir() {
        Ok(real)
    } else {
        Err(bad(
            &"not a directory; commitfs mounts over directories only",
        ))
    }
}

/// C20: nothing mounted here, below or above, and a file system that can do it.
pub(super) fn check_backing(
    backing: &Path,
    mountpoint: &Path,
    network_ok: bool,
) -> Result<(), Failure> {
    let bad = |e: String| Failure::new(exit::BAD_INPUT, e);
    for mounted in sysmount::commitfs_mounts().unwrap_or_default() {
        let source = PathBuf::from(&mounted.source);
        let place = &mounted.mount_point;
        let near = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let taken = near(backing, &source) || near(backing, place) || near(mountpoint, place);
        if taken && !failpoint::mutant("C20") && !failpoint::mutant("C20-nested") {
            let pid = mount_pid(place).or_else(|| backing_pid(&source));
            return Err(Failure::new(
                exit::BUSY,
                format!(
                    "{}: commitfs is mounted already on {} (over {}) by process {}; one daemon per directory tree: unmount that one first",
                    backing.display(),
                    place.display(),
                    source.display(),
                    pid.map_or("?".into(), |p| p.to_string()),
                ),
            ));
        }
    }
    for above in backing.ancestors().skip(1) {
        if let Some(pid) = backing_pid(above) {
            return Err(Failure::new(
                exit::BUSY,
                format!(
                    "{}: lies in {}, which process {pid} has mounted; unmount that first",
                    backing.display(),
                    above.display()
                ),
            ));
        }
    }
    let dir = File::open(backing).map_err(|e| bad(format!("{}: {e}", backing.display())))?;
    match sysmount::fs_kind(dir.as_fd()).map_err(|e| bad(format!("{}: {e}", backing.display())))? {
        FsKind::Fuse(kind) if !network_ok => Err(bad(format!(
            "{}: lies on a FUSE file system ({kind}); use a local one, or --network-ok if only this machine uses it",
            backing.display()
        ))),
        kind if kind.is_network() && !network_ok => Err(bad(format!(
            "{}: lies on a network file system; use a local one, or --network-ok if only this machine uses it",
            backing.display()
        ))),
        _ => Ok(()),
    }
}

/// What a living mount says of its daemon. A mount may be stuck: it is asked from a thread.
fn mount_pid(mountpoint: &Path) -> Option<u32> {
    let lock = mountpoint.join(STATE_DIR).join("lock");
    let (answer, answered) = std::sync::mpsc::channel();
    std::thread::spawn(move || answer.send(std::fs::read_to_string(lock).ok()).ok());
    let text = answered.recv_timeout(Duration::from_secs(2)).ok()??;
    text.trim().parse().ok()
}

fn backing_pid(backing: &Path) -> Option<u32> {
    let dir = File::open(backing).ok()?;
    Store::lock_holder(dir.as_fd())
}

pub(super) fn load_rules(file: Option<&Path>, backing: &Path) -> Result<Rules, Failure> {
    let own = backing.join(STATE_DIR).join("rules.toml");
    let path = match file {
        Some(file) => file,
        None if own.exists() => &own,
        None => return Ok(Rules::builtin()),
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(exit::BAD_INPUT, format!("rules {}: {e}", path.display())))?;
    Rules::parse(&text, &path.to_string_lossy())
        .map_err(|e| Failure::new(exit::BAD_INPUT, format!("rules: {e}")))
}

pub(super) fn store_failure(e: StoreError) -> Failure {
    let code = match &e {
        StoreError::Unusable { .. } | StoreError::NotAllowed { .. } => exit::BAD_INPUT,
        StoreError::Busy { .. } => exit::BUSY,
        StoreError::Foreign { .. } => exit::DAMAGED,
        StoreError::Io { .. } => exit::REFUSED,
    };
    Failure::new(code, e)
}

fn mount_failure(e: MountError) -> Failure {
    let code = match &e {
        MountError::Missing { .. } | MountError::NotADirectory { .. } => exit::BAD_INPUT,
        MountError::Busy { .. } => exit::BUSY,
        _ => exit::REFUSED,
    };
    Failure::new(code, e)
}

/// Recovers, mounts and serves until unmounted.
fn serve(plan: &MountPlan, writer: Option<ReadyWriter>) -> Served<()> {
    match start(plan) {
        Ok((session, engine)) => {
            if let Some(writer) = writer
                && writer.ready().is_err()
            {
                log::warn!("whoever asked for this mount is gone");
            }
            background::sd_notify("READY=1");
            let ended = session.run();
            background::sd_notify("STOPPING=1");
            engine.shut_down();
            log::info!("{}: unmounted", plan.mountpoint.display());
            ended
                .or_else(|e| match e.raw_os_error() {
                    // How a connection ends that was unmounted.
                    Some(libc::ENODEV | libc::ECONNABORTED) => Ok(()),
                    _ => Err(e),
                })
                .map_err(|e| {
                    (
                        None,
                        Failure::new(exit::TROUBLE, format!("the connection broke: {e}")),
                    )
                })
        }
        Err(failure) => Err((writer, failure)),
    }
}

pub(super) fn recovery_failure(error: RecoveryError) -> Failure {
    let code = match &error {
        RecoveryError::Journal { .. } => exit::DAMAGED,
        RecoveryError::Io { .. } | RecoveryError::Full { .. } => exit::REFUSED,
    };
    Failure::new(code, error)
}

/// Whether files can be replaced by rename there.
fn renames(store: &Store) -> Result<bool, Errno> {
    let tried = store.with_reserve(|| {
        sysmount::has_rename_semantics(store.state.as_fd()).map_err(|e| errno_of(&e))
    });
    match tried {
        // A full disk, and there is a journal: it was tried when this was mounted before. What has
        // been saved can be read, and what is removed makes room.
        Err(Errno::NOSPC | Errno::DQUOT)
            if crate::sys::at::stat_at(&store.state, "journal".as_ref())?.is_some() =>
        {
            Ok(true)
        }
        tried => tried,
    }
}

fn refused(e: io::Error) -> Failure {
    Failure::new(exit::REFUSED, e)
}

/// The state directory, if files of its file system can be replaced by rename.
fn open_store(backing: &Path) -> Result<Store, Failure> {
    let store = Store::open(backing).map_err(store_failure)?;
    let renames = renames(&store).map_err(|e| {
        let hint = match e {
            Errno::NOSPC | Errno::DQUOT => {
                "; make room on this disk and mount again: what was committed waits in .commitfs"
            }
            _ => "",
        };
        Failure::new(exit::BAD_INPUT, format!("{}: {e}{hint}", backing.display()))
    })?;
    if renames {
        return Ok(store);
    }
    Err(Failure::new(
        exit::BAD_INPUT,
        format!(
            "{}: its file system can't replace a file by rename; use another",
            backing.display()
        ),
    ))
}

/// What the last mount has left is brought in order, and told of.
fn recover_store(store: &Store, rules: &Rules, backing: &Path) -> Result<Recovered, Failure> {
    let recovered = recover(store, rules).map_err(recovery_failure)?;
    store
        .record_pid(std::process::id())
        .map_err(|e| refused(e.into()))?;
    if recovered.applied + recovered.rejected > 0 {
        log::warn!(
            "{}: recovered: {} versions put in place, {} unfinished contents kept in rejected",
            backing.display(),
            recovered.applied,
            recovered.rejected
        );
    }
    if let Err(e) = store.keep_reserve() {
        log::warn!(
            "{}: nothing can be saved until there is room: {e}",
            backing.display()
        );
    }
    Ok(recovered)
}

/// What the engine is told of the mount. Starts a process and kills it, so it comes before the mount stands.
fn config(plan: &MountPlan, store: &Store, descriptors: u64) -> Config {
    Config {
        durability: plan.durability,
        bound: plan.bound,
        privileged: rustix::process::geteuid().is_root(),
        descriptors,
        lock_timeout: plan.lock_timeout,
        lock_warn: plan.lock_warn,
        noatime: plan.options.flags.contains(MountFlags::NOATIME),
        nodiratime: plan.options.flags.contains(MountFlags::NODIRATIME),
        mountpoint: plan.mountpoint.clone(),
        rules_file: plan.rules_file.clone(),
        log: match store.logs_here() {
            true => LogTo::File,
            false if logging::is_journal() => LogTo::Journal,
            false => LogTo::Stderr,
        },
        no_killed_writer_detection: detection(),
    }
}

fn start(plan: &MountPlan) -> Result<(fuser::Session<Adapter>, Arc<Engine>), Failure> {
    signals::block().map_err(refused)?;
    let descriptors = background::raise_nofile_limit();
    let store = open_store(&plan.backing)?;
    let rules = load_rules(plan.rules_file.as_deref(), &plan.backing)?;
    let recovered = recover_store(&store, &rules, &plan.backing)?;
    let config = config(plan, &store, descriptors);
    let no_detection = config.no_killed_writer_detection.clone();
    let mounted = sysmount::mount(&MountRequest {
        mountpoint: &plan.mountpoint,
        source: &plan.backing.to_string_lossy(),
        allow_other: plan.options.allow_other.unwrap_or(config.privileged),
        default_permissions: true,
        read_only: plan.options.read_only,
        flags: plan.options.flags,
        max_read: None,
    })
    .map_err(mount_failure)?;
    let engine = Engine::start(store, rules, config, recovered).map_err(|e| refused(e.into()))?;
    let session = connect(&engine, mounted.device, &plan.mountpoint).map_err(|e| {
        sysmount::unmount(&plan.mountpoint, true).ok();
        refused(e)
    })?;
    if let Err(why) = engine.start_watch_helper() {
        log::warn!("programs that watch single files miss commits: {why}");
    }
    let stop = stopper(&engine, plan.mountpoint.clone());
    engine.kernel.set_stop(stop);
    let asked = Arc::downgrade(&engine);
    signals::listen(move |signal| {
        if let Some(engine) = asked.upgrade() {
            end_on_signal(&engine, signal);
        }
    })
    .map_err(refused)?;
    if let Some(why) = no_detection {
        log::warn!("killed-writer detection: off ({why})");
    }
    log::info!(
        "{} mounted on {}",
        plan.backing.display(),
        plan.mountpoint.display()
    );
    Ok((session, engine))
}

/// Answers the kernel, and tells it of changes.
fn connect(
    engine: &Arc<Engine>,
    device: OwnedFd,
    mountpoint: &Path,
) -> io::Result<fuser::Session<Adapter>> {
    let dropper = Arc::new(NameDropper::default());
    let session = fuser::Session::from_fd(
        Adapter::new(engine.clone(), dropper.clone(), device.as_fd()),
        device,
        fuser::SessionACL::All,
        fuser::Config::default(),
    )?;
    engine
        .kernel
        .set_notify(Box::new(KernelNotify::start(session.notifier())?));
    if !failpoint::feature_off("kept_files") {
        match dropper.start(engine, session.notifier(), mountpoint) {
            Ok(()) => set_dropper(engine, dropper),
            Err(e) => log::warn!("names of files are looked up each time: no name helper: {e}"),
        }
    }
    Ok(session)
}

pub(super) fn detection() -> Option<String> {
    if failpoint::feature_off("death") {
        return Some("switched off".into());
    }
    proc::self_test_killed_writer_detection().err()
}

/// SIGTERM and the like: as `commitfs umount`.
fn end_on_signal(engine: &Arc<Engine>, signal: i32) {
    let answer = engine.ask_unmount(false, false);
    if answer.ok {
        if answer.unread > 0 {
            log::warn!(
                "{} errors that nobody has read are kept for the next mount",
                answer.unread
            );
        }
        return;
    }
    let why = answer.error.as_deref().unwrap_or_default();
    log::warn!("signal {signal}: not unmounted: {why}");
    for open in answer.open {
        log::warn!(
            "  {} opened by {} ({}) {} ms ago",
            open.path,
            open.pid,
            open.command,
            open.age_ms
        );
    }
}

/// Unmounts, from a thread: whoever asks still has the control file open.
fn stopper(engine: &Arc<Engine>, mountpoint: PathBuf) -> Box<dyn Fn(bool) + Send + Sync> {
    let engine = Arc::downgrade(engine);
    Box::new(move |force| {
        let (engine, mountpoint) = (engine.clone(), mountpoint.clone());
        std::thread::spawn(move || {
            let Some(engine) = engine.upgrade() else {
                return;
            };
            if force {
                engine.abort_all();
            }
            let mut last = None;
            for _ in 0..100 {
                match sysmount::unmount(&mountpoint, force) {
                    Ok(()) if force => {
                        // Descriptors that are still open keep the connection: end it.
                        engine.shut_down();
                        std::process::exit(i32::from(exit::OK));
                    }
                    Ok(()) | Err(MountError::NotMounted { .. }) => return,
                    Err(e) => last = Some(e),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if let Some(e) = last {
                log::warn!("not unmounted: {e}");
            }
            engine.stay();
        });
    })
}
