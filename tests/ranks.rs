//! C9: several processes of one job have one file open at once, each for its own rows: by write or
//! through shared mappings, which the kernel writes back by whole pages. The failure it prevents: of
//! four workers that fill an array in a file, three find their rows empty.

mod common;

use std::time::{Duration, Instant};

use common::{Actor, Live, Mount, assert_content, times};

/// Opens `f` to edit it, a part of it locked so that nobody waits, and maps it.
fn mapper(m: &Mount, part: u64) -> Actor {
    let mut actor = Actor::new();
    actor.open("f", "r+", &m.path("f")).unwrap();
    let from = part.to_string();
    actor
        .ask("fcntl", &[b"f", b"set", b"write", from.as_bytes(), b"1"])
        .unwrap();
    actor.mmap("f", "map", 12, "rw").unwrap();
    actor
}

fn end(mut actor: Actor) {
    actor.munmap("map").unwrap();
    actor.close("f").unwrap();
    actor.exit(0);
}

#[test]
fn what_several_change_in_one_mapped_page_stays() {
    need_features!("posix_locks");
    let m = mount!();
    for closed_first in [0, 1] {
        m.save("f", "abcdefghijkl");
        let mut all = [mapper(&m, 0), mapper(&m, 6)];
        for (actor, at) in all.iter_mut().zip([0, 6]) {
            actor.map_write("map", at, b"XYZ").unwrap();
        }
        let [one, two] = all;
        let (first, second) = if closed_first == 0 {
            (one, two)
        } else {
            (two, one)
        };
        end(first);
        end(second);
        assert_content(
            m.read("f"),
            b"XYZdefXYZjkl",
            &format!("both, {closed_first}"),
        );
    }
}

/// A close that has returned comes before one that begins later, also where RELEASE is late: a descriptor on its
/// way over a socket holds it back here, as a full machine does that gives the closing task no processor.
#[test]
fn who_closes_an_array_waits_for_whoever_is_closing_it() {
    need_features!("posix_locks");
    let m = mount!();
    m.save("f", "abcdefghijkl");
    let mut one = mapper(&m, 0);
    one.munmap("map").unwrap();
    one.pwrite("f", 0, b"one").unwrap();
    one.ask("pair", &[b"here", b"there"]).unwrap();
    one.ask("sendfd", &[b"here", b"f"]).unwrap();
    let mut two = mapper(&m, 6);
    two.munmap("map").unwrap();
    two.pwrite("f", 6, b"two").unwrap();
    one.close("f").unwrap();
    two.start("close", &[b"f"]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(!two.has_answered(), "it waits for the first close");
    one.ask("recvfd", &[b"there", b"got"]).unwrap();
    one.close("got").unwrap();
    two.finish().unwrap();
    assert_content(m.read("f"), b"onedeftwojkl", "after both");
}

/// A row that is counted up: one of its digits is again what it was when its program had opened the file.
#[test]
fn a_digit_that_comes_round_is_written_by_the_page_that_has_it() {
    need_features!("posix_locks");
    let m = mount!();
    m.save("f", "row 10 rows ");
    let mut actor = Actor::new();
    actor.open("f", "r+", &m.path("f")).unwrap();
    let lock: &[&[u8]] = &[b"f", b"set", b"write", b"0", b"1"];
    let unlock: &[&[u8]] = &[b"f", b"set", b"unlock", b"0", b"1"];
    actor.ask("fcntl", lock).unwrap();
    actor.pwrite("f", 4, b"19").unwrap();
    actor.ask("fcntl", unlock).unwrap();
    assert_content(m.read("f"), b"row 19 rows ", "unlocked");
    actor.ask("fcntl", lock).unwrap();
    actor.mmap("f", "map", 12, "rw").unwrap();
    actor.map_write("map", 4, b"20").unwrap();
    end(actor);
    assert_content(m.read("f"), b"row 20 rows ", "mapped");
}

#[test]
fn what_a_mapped_page_was_found_with_takes_nothing_back() {
    need_features!("posix_locks");
    let m = mount!();
    m.save("f", "abcdefghijkl");
    let mut keeper = mapper(&m, 0);
    keeper.map_write("map", 0, b"1").unwrap();
    keeper.ask("msync", &[b"map"]).unwrap();
    keeper.fsync("f").unwrap();
    // Others commit, some of it twice; each time the page that was found first is written again.
    for (letter, at) in [(b"2", 2), (b"3", 4), (b"4", 2)] {
        let mut other = Actor::new();
        other.open("g", "r+", &m.path("f")).unwrap();
        other.pwrite("g", at, letter).unwrap();
        other.close("g").unwrap();
        keeper.map_write("map", 8, letter).unwrap();
        keeper.ask("msync", &[b"map"]).unwrap();
        keeper.fsync("f").unwrap();
    }
    end(keeper);
    assert_content(m.read("f"), b"1b4d3fgh4jkl", "all of them");
}

#[test]
fn a_byte_that_two_have_changed_through_mappings_is_kept_both_ways() {
    need_features!("posix_locks");
    need_daemon!();
    // The second one's page comes before the first has committed, or after it has taken that over.
    for takes_over in [false, true] {
        let m = mount!();
        m.save("f", "abcdefghijkl");
        let [mut one, mut two] = [mapper(&m, 0), mapper(&m, 6)];
        one.map_write("map", 0, b"XY").unwrap();
        if takes_over {
            two.map_write("map", 8, b"8").unwrap();
            end(one);
            two.ask("msync", &[b"map"]).unwrap();
            two.fsync("f").unwrap();
            two.map_write("map", 0, b"ZY").unwrap();
        } else {
            two.map_write("map", 0, b"ZY").unwrap();
            end(one);
        }
        end(two);
        let now = m.read("f").unwrap();
        assert_eq!(&now[..3], b"ZYc", "the last close");
        let kept = m.await_rejected("f", b"XYcdefghijkl");
        assert!(kept.reason.contains("overwritten"), "{kept:?}");
        let told = m.status();
        assert!(told.to_string().contains("overwritten"), "{told}");
        assert_eq!(
            m.rejected().len(),
            1,
            "what both have made the same is nobody's loss"
        );
    }
}

#[test]
fn workers_that_map_one_array_keep_their_rows() {
    need_daemon!();
    let m = mount!();
    m.save("rows", [0; 4 * 5000]);
    let script = "
import mmap, os, sys
me = int(sys.stdin.readline())
fd = os.open('rows', os.O_RDWR)
m = mmap.mmap(fd, 0)
os.close(fd)
for row in range(me, 5000, 4):
    m[row * 4:row * 4 + 4] = (row + 1).to_bytes(4, 'little')
m.flush()
print('full', flush=True)
sys.stdin.readline()
m.close()
";
    let mut all: Vec<Live> = (0..4).map(|_| m.live_python(script)).collect();
    for (me, worker) in all.iter_mut().enumerate() {
        worker.send(&me.to_string());
    }
    // All of them have it open at once before the first ends.
    for worker in &mut all {
        worker.expect("full");
    }
    for worker in &mut all {
        worker.send("");
        assert!(worker.finish().success());
    }
    let rows = m.read("rows").unwrap();
    let filled = rows
        .chunks(4)
        .zip(1..)
        .filter(|(row, n): &(&[u8], u32)| **row == n.to_le_bytes());
    assert_eq!(filled.count(), 5000);
    assert_eq!(m.rejected().len(), 0);
}

#[test]
fn who_has_sent_nothing_for_two_seconds_is_not_waited_for() {
    need_daemon!();
    // Ranks of a job: all open the restart file, meet at a barrier, and write their slices.
    let m = mount!(Mount::options().args(["--lock-timeout", "600"]));
    m.save("restart", [b'-'; 30]);
    let script = "
import os, sys
fd = os.open('restart', os.O_RDWR)
print('open', flush=True)
me = int(sys.stdin.readline())
os.pwrite(fd, b'%d' % me * 10, me * 10)
os.close(fd)
";
    let begun = Instant::now();
    let mut ranks: Vec<Live> = (0..3).map(|_| m.live_python(script)).collect();
    for rank in &mut ranks {
        rank.expect("open");
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "as long as that");
    for (me, rank) in ranks.iter_mut().enumerate() {
        rank.send(&me.to_string());
    }
    for rank in &mut ranks {
        assert!(rank.finish().success());
    }
    assert_content(
        m.read("restart"),
        b"000000000011111111112222222222",
        "all slices",
    );
}

#[test]
fn all_who_have_waited_for_a_silent_holder_go_in_together() {
    need_daemon!();
    let m = mount!(
        Mount::options()
            .args(["--lock-timeout", "600"])
            .env("COMMITFS_SILENCE_MS", 4000)
    );
    m.save("restart", [b'-'; 40]);
    let mut ranks: Vec<Actor> = (0..4).map(|_| Actor::new()).collect();
    let path = m.path("restart");
    ranks[0].open("f", "r+", &path).unwrap();
    let begun = Instant::now();
    for rank in &mut ranks[1..] {
        rank.start("open", &[b"f", b"r+", path.to_string_lossy().as_bytes()]);
    }
    for rank in &mut ranks[1..] {
        rank.finish().unwrap();
    }
    let passed = begun.elapsed();
    assert!(passed >= Duration::from_secs(3), "they wait: {passed:?}");
    assert!(passed < Duration::from_secs(8), "but once: {passed:?}");
    for (me, rank) in ranks.iter_mut().enumerate() {
        let slice = [b'0' + me as u8; 10];
        rank.pwrite("f", 10 * me as u64, &slice).unwrap();
        rank.close("f").unwrap();
    }
    assert_content(
        m.read("restart"),
        b"0000000000111111111122222222223333333333",
        "all slices",
    );
}

#[test]
fn who_goes_on_sending_is_waited_for() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_SILENCE_MS", 3000));
    m.save("f", "abc");
    let mut holder = Actor::new();
    holder.open("f", "r+", &m.path("f")).unwrap();
    let mut next = Actor::new();
    let path = m.path("f");
    next.start("open", &[b"f", b"r+", path.to_string_lossy().as_bytes()]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(times(4, 10) as u64) {
        holder.pwrite("f", 0, b"x").unwrap();
        holder.ask("sleep", &[b"50"]).unwrap();
        assert!(!next.has_answered(), "after {:?}", begun.elapsed());
    }
    holder.close("f").unwrap();
    next.finish().unwrap();
}
