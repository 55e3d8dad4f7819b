//! How a mount is asked for: options of the command line, of mount(8) and of fstab. Nothing here
//! means anything on the plain directory.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Actor, Mount, commitfs, is_mounted};

/// Tries to mount a directory with one more word or two on the command line.
fn mount_with(m: &Mount, words: &[&str]) -> common::Run {
    let mut line = vec!["mount"];
    line.extend(words);
    line.push(m.backing().to_str().unwrap());
    commitfs(line)
}

#[test]
fn a_value_out_of_range_is_an_error_that_names_the_range() {
    need_daemon!();
    let m = Mount::options().prepare();
    for words in [
        ["--bound", "0"],
        ["--bound", "60001"],
        ["--bound=-1", "--network-ok"],
        ["--lock-timeout", "86401"],
        ["--lock-warn", "soon"],
        ["-o", "bound=0"],
        ["-o", "bound=60001"],
        ["-o", "bound=1s"],
        ["-o", "lock_timeout=86401"],
        ["-o", "lock_warn="],
    ] {
        let said = mount_with(&m, &words);
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(!is_mounted(m.backing()), "{words:?}");
        let names_a_limit = said.err.contains("60000") || said.err.contains("86400");
        // What is no number at all is told so.
        assert!(
            names_a_limit || said.err.contains("invalid digit"),
            "{words:?}: {said:?}"
        );
    }
}

#[test]
fn every_option_of_fstab_is_taken_or_named_as_unknown() {
    need_daemon!();
    let m = Mount::options().prepare();
    let all = "rw,noatime,lazytime,nodiratime,fsname=state,subtype=x,defaults,noauto,nofail,_netdev,\
               x-systemd.automount,bound=500,lock_timeout=2,lock_warn=0,durability=async";
    mount_with(&m, &["-o", all]).ok();
    assert!(is_mounted(m.backing()));
    commitfs(["umount".as_ref(), m.backing()]).ok();
    mount_with(&m, &["-o", "strictatime"]).ok();
    commitfs(["umount".as_ref(), m.backing()]).ok();
    let said = mount_with(&m, &["-o", "bond=500"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("bond=500"), "{said:?}");
}

#[test]
fn help_names_every_option() {
    let help = commitfs(["mount", "--help"]).ok().out;
    for option in [
        "ro",
        "allow_other",
        "no_allow_other",
        "noexec",
        "noatime",
        "nodiratime",
        "relatime",
        "strictatime",
        "lazytime",
        "allow_suid",
        "allow_dev",
        "durability=async|sync",
        "bound=MILLISECONDS",
        "lock_timeout=SECONDS",
        "lock_warn=SECONDS",
        "rules=FILE",
        "network_ok",
        "fsname=",
    ] {
        assert!(help.contains(option), "{option} is missing: {help}");
    }
}

#[test]
fn the_lock_timeout_of_fstab_holds_and_the_command_line_goes_before_it() {
    for (words, waits) in [
        (["-o", "lock_timeout=1", "-o", "rw"], true),
        (["-o", "lock_timeout=20", "--lock-timeout", "1"], true),
        (["-o", "lock_timeout=0", "-o", "rw"], false),
    ] {
        let m = mount!(Mount::options().args(words));
        m.save("f", "0123456789");
        let mut first = Actor::new();
        first.open("f", "r+", &m.path("f")).unwrap();
        first.write("f", "x").unwrap();
        let begun = Instant::now();
        let mut second = Actor::new();
        second.open("f", "r+", &m.path("f")).unwrap();
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(10), "{words:?}: {waited:?}");
        if !common::plain() {
            let long = Duration::from_millis(900);
            assert_eq!(waited >= long, waits, "{words:?}: {waited:?}");
        }
    }
}

#[test]
fn the_root_directory_is_refused_on_either_side() {
    need_daemon!();
    let m = Mount::options().prepare();
    for line in [
        vec!["mount".as_ref(), Path::new("/")],
        vec!["mount".as_ref(), m.backing(), Path::new("/")],
        vec!["mount".as_ref(), Path::new("/"), m.backing()],
    ] {
        let said = commitfs(&line);
        assert_eq!(said.code, Some(3), "{line:?}: {said:?}");
        assert!(said.err.contains("root directory"), "{line:?}: {said:?}");
    }
}
