use std::io::Read;
use std::process::{Command, Stdio};

use super::*;

const STATUS: &[u8] =
    b"Name:\ta\\nTgid: 9\nUmask:\t0022\nTgid:\t41\nPid:\t42\nPPid:\t7\nSigQ:\t0/1\nSigPnd:\t0000000000000000\n\
ShdPnd:\t0000000000000100\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\n";

fn with_masks(pending: u64, shared: u64, blocked: u64, ignored: u64) -> Vec<u8> {
    format!("SigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n")
        .into_bytes()
}

#[test]
fn a_thread_that_cannot_be_read_may_live() {
    assert!(is_end(&Err(Errno::NOENT)) && is_end(&Err(Errno::SRCH)));
    assert!(is_end(&Ok(b"0 0 0 0 0 0 0\n".to_vec())));
    assert!(!is_end(&Ok(b"12 0 0 0 0 0 0\n".to_vec())));
    assert!(
        ![Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS]
            .iter()
            .any(|e| is_end(&Err(*e)))
    );
    assert!(!is_gone(std::process::id()));
}

#[test]
fn fields_are_found_at_the_start_of_a_line_only() {
    assert_eq!(field(STATUS, "Tgid"), Some(&b"41"[..]));
    assert_eq!(field(STATUS, "PPid"), Some(&b"7"[..]));
    assert_eq!(field(STATUS, "gid"), None);
    assert_eq!(field(STATUS, "Tgi"), None);
}

#[test]
fn a_pending_signal_counts_unless_blocked_or_ignored() {
    assert!(has_deliverable_signal(STATUS));
    assert!(has_deliverable_signal(&with_masks(0x100, 0, 0, 0)));
    assert!(!has_deliverable_signal(&with_masks(0, 0, 0, 0)));
    assert!(!has_deliverable_signal(&with_masks(0x4000, 0, 0x4000, 0)));
    assert!(!has_deliverable_signal(&with_masks(0, 0x4000, 0, 0x4000)));
    assert!(has_deliverable_signal(&with_masks(
        0x100, 0x4000, 0x4000, 0
    )));
    assert!(!has_deliverable_signal(b""));
}

#[test]
fn a_range_of_ids_follows_the_counter_around() {
    let ids =
        |from, to| range_of_pids(from, to, || Some(32_768)).map(|ids| ids.collect::<Vec<_>>());
    assert_eq!(ids(10, 13), Some(vec![11, 12, 13]));
    assert_eq!(ids(10, 10), Some(vec![]));
    assert_eq!(ids(32_765, 301), Some(vec![32_766, 32_767, 300, 301]));
    assert_eq!(ids(32_767, 5), Some(vec![]));
    assert_eq!(
        ids(1000, 1000 + MAX_PID_RANGE).map(|ids| ids.len()),
        Some(MAX_PID_RANGE as usize)
    );
    assert_eq!(ids(1000, 1001 + MAX_PID_RANGE), None);
    assert_eq!(ids(1000, 900), None);
    assert_eq!(ids(u32::MAX, 3), None);
}

#[test]
fn a_process_started_in_between_is_found() {
    let before = last_pid().unwrap();
    let mut child = Command::new("sleep").arg("5").spawn().unwrap();
    let found = pids_between(before, last_pid().unwrap()).unwrap();
    assert!(found.contains(&child.id()), "{found:?}");
    assert!(all_pids().contains(&child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn family_relations_are_seen() {
    let own = std::process::id();
    let mut child = Command::new("sleep").arg("5").spawn().unwrap();
    assert_eq!(parent(child.id()), Some(own));
    assert_eq!(tgid(child.id()), Some(child.id()));
    assert!(is_self_or_descendant(child.id(), own));
    assert!(is_self_or_descendant(own, own));
    assert!(!is_self_or_descendant(own, child.id()));
    assert!(!is_self_or_descendant(0, own));
    assert!(!is_self_or_descendant(own, 0));
    // Tests run on threads of their own: the child belongs to one of them.
    assert!(children(own).unwrap().contains(&child.id()));
    assert_eq!(children(child.id()), Some(vec![]));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(children(child.id()), None);
}

#[test]
fn a_thread_belongs_to_its_process() {
    let own = std::process::id();
    let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    assert_ne!(tid, own);
    assert_eq!(tgid(tid), Some(own));
    assert!(is_self_or_descendant(tid, own));
}

#[test]
fn a_command_is_shown_on_one_short_line() {
    let mut child = Command::new("sh")
        .args(["-c", "echo; read x", "a\nb", &"é".repeat(300)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let shown = command(child.id());
    assert!(
        shown.starts_with("sh -c echo; read x a\u{fffd}b é"),
        "{shown}"
    );
    assert!(shown.ends_with('…'), "{shown}");
    assert_eq!(comm(child.id()).as_deref(), Some("sh"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(command(child.id()), "(gone)");
    assert_eq!(command(0), "(gone)");
}

#[test]
fn the_file_size_limit_is_read_in_bytes() {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -f 8; echo; read x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(rlimit_fsize(child.id()), Some(8 * 512));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(rlimit_fsize(child.id()), None);
}

#[test]
fn no_file_size_limit_is_none() {
    let limits =
        b"Limit                     Soft Limit           Hard Limit           Units     \n\
Max cpu time              unlimited            unlimited            seconds   \n\
Max file size             unlimited            unlimited            bytes     \n";
    assert_eq!(parse_rlimit_fsize(limits), None);
    assert_eq!(
        parse_rlimit_fsize(
            b"Max file size             4096                 unlimited            bytes     \n"
        ),
        Some(4096)
    );
}

#[test]
fn a_signal_that_waits_for_a_stopped_process_is_seen() {
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
    let mut child = Command::new("sleep").arg("5").spawn().unwrap();
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::STOP).unwrap();
    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
    assert!(!pending_fatal_or_any_signal(child.id()));
    kill_process(pid, Signal::TERM).unwrap();
    assert!(pending_fatal_or_any_signal(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!pending_fatal_or_any_signal(child.id()));
}
