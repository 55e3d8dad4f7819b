//! What the cuts of power (tests/cuts.rs) need in processes of their own: the disk, and those who write on it.

#[path = "content.rs"]
#[allow(dead_code)]
mod content;
#[path = "medium.rs"]
mod medium;
#[path = "plan.rs"]
#[allow(dead_code)]
mod plan;
#[path = "random.rs"]
mod random;
#[path = "server.rs"]
mod server;
#[path = "tree.rs"]
#[allow(dead_code)]
mod tree;
#[path = "worker.rs"]
mod worker;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args[0].as_str() {
        "disk" => medium::serve(&args[1..]),
        "tree" => server::serve(&args[1..]),
        "work" => worker::work(&args[1..]),
        "be-killed" => worker::be_killed(&args[1..]),
        other => panic!("no such part: {other}"),
    }
}
