//! C6, and the rule `stale`. A lock file that was left behind may be removed; one that is held may not,
//! whoever created it.

mod common;

use std::time::Duration;

use common::{Mount, eventually};

const RULES: &str = "[[rule]]\nglob = \"*.lock\"\nmode = \"atomic\"\nstale = \"remove\"\n";
const DIRECT: &str = "[[rule]]\nglob = \"*.lock\"\nstale = \"remove\"\n";

#[test]
fn a_lock_file_that_names_a_living_process_is_never_removed() {
    need_daemon!();
    for rules in [RULES, DIRECT] {
        let m = mount!(Mount::options().rules(rules));
        let mut holder = m.shell("bash");
        let (status, said) = holder.run("( set -o noclobber; echo $$ > held.lock ); cat held.lock");
        assert_eq!((status, said.trim()), (0, &*holder.pid().to_string()));
        // What was created later, and is left behind, is removed in the same pass at the earliest.
        m.bash("( set -o noclobber; echo 4194304 > left.lock )")
            .ok();
        eventually(Duration::from_secs(10), "the other is removed", || {
            !m.exists("left.lock")
        });
        assert!(m.exists("held.lock"), "{}", m.log());
        holder.exit(0);
        eventually(Duration::from_secs(10), "its holder has ended", || {
            !m.exists("held.lock")
        });
        assert_eq!(m.status()["counters"]["stale_claims"], 2);
    }
}

#[test]
fn one_at_a_time_is_inside_what_noclobber_guards() {
    need_daemon!();
    let m = mount!(Mount::options().rules(RULES));
    let script = "crit() { for i in $(seq 100); do\n\
                  if ( set -o noclobber; echo $$ > x.lock ) 2>/dev/null; then\n\
                  [ -e in ] && echo both inside; : > in; sleep .4; rm -f in x.lock; echo left; return; fi\n\
                  sleep .05; done; echo timeout; }\n\
                  for w in 1 2 3 4; do crit & done; wait";
    let said = common::bash(m.mountpoint(), script, Duration::from_secs(60)).ok();
    assert_eq!(said.out, "left\n".repeat(4));
}
