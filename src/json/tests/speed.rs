//! What things cost. Run by hand, in release.

use std::fmt::Write;
use std::time::{Duration, Instant};

use super::*;

fn records(bytes: usize) -> String {
    let mut text = String::from("{\n  \"step\": 1,\n  \"items\": [");
    let mut number = 0;
    while text.len() < bytes {
        let comma = if number == 0 { "" } else { "," };
        write!(
            text,
            "{comma}\n    {{\n      \"id\": {number},\n      \"name\": \"item {number}\",\n      \"loss\": 0.{number},\n      \"tags\": [\n        \"a\",\n        \"b\"\n      ]\n    }}"
        )
        .expect("a string takes everything");
        number += 1;
    }
    text + "\n  ]\n}\n"
}

fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    let once = |_| {
        let start = Instant::now();
        let kept = work();
        let time = start.elapsed();
        drop(kept);
        time
    };
    (0..5).map(once).min().unwrap_or_default()
}

#[test]
#[ignore = "a measurement, not a claim"]
fn speed() {
    let limits = Limits::default();
    for bytes in [1 << 10, 1 << 20, 10 << 20] {
        let text = records(bytes);
        let mut document = document(&text);
        println!("{} bytes:", text.len());
        println!("  parse    {:?}", best(|| super::document(&text)));
        println!("  to_text  {:?}", best(|| document.to_text()));
        for patch in [
            r#"[{"op":"increment","path":"/step","value":1}]"#,
            r#"[{"op":"replace","path":"/items/3/name","value":"new"},{"op":"add","path":"/items/3/z","value":[1]}]"#,
            r#"[{"op":"add","path":"/items/0","value":1}]"#,
        ] {
            let time = best(|| {
                for _ in 0..1000 {
                    let patch = Patch::parse(patch.as_bytes(), &limits).expect("it is one");
                    document.apply(&patch, &limits).expect("it fits");
                }
            });
            println!("  patch    {:?} {patch}", time / 1000);
        }
        let (base, mine) = (super::document(&text), document.clone());
        let merge = || Document::merge(&base, &mine, &document, &Policy::default());
        println!("  merge    {:?}", best(merge));
    }
}
