//! C17: from what a text was made that was saved after two others.

use super::super::goes_back;
use super::*;

/// Earlier, later, mine, whether mine takes back what came between the two.
type Case = (&'static str, &'static str, &'static str, bool);

#[rustfmt::skip]
const CASES: &[Case] = &[
    // Another member was changed meanwhile, and is as it was.
    (r#"{"a":"x","b":"x"}"#, r#"{"a":"y","b":"x"}"#, r#"{"a":"x","b":"y"}"#, true),
    (r#"{"a":"x","b":"x"}"#, r#"{"a":"y","b":"x"}"#, r#"{"a":"y","b":"y"}"#, false),
    (r#"{}"#, r#"{"a":1}"#, r#"{"b":1}"#, true),
    (r#"{"a":1}"#, r#"{}"#, r#"{"a":1,"b":1}"#, true),
    (r#"{"s":{"a":"x"}}"#, r#"{"s":{"a":"y"}}"#, r#"{"s":{"a":"x","b":1}}"#, true),
    // What counts on from the later one lies beyond it; two may have counted alike.
    (r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":7}"#, false),
    (r#"{"n":5}"#, r#"{"n":9}"#, r#"{"n":6}"#, true),
    (r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":6}"#, true),
    (r#"{"n":5,"a":"x"}"#, r#"{"n":6,"a":"x"}"#, r#"{"n":6,"a":"y"}"#, false),
    (r#"{"n":5}"#, r#"{"n":4}"#, r#"{"n":3}"#, false),
    (r#"{"n":0,"a":0}"#, r#"{"n":1,"a":1}"#, r#"{"n":1,"a":0,"b":1}"#, true),
    // A program on its own goes on, though one thing is again as it had been.
    (r#"{"s":"idle","n":1}"#, r#"{"s":"busy","n":2}"#, r#"{"s":"idle","n":3}"#, false),
    // Items that had come are not there, or those that had gone are.
    (r#"{"l":[1]}"#, r#"{"l":[1,2]}"#, r#"{"l":[1,3]}"#, true),
    (r#"{"l":[1]}"#, r#"{"l":[1,2]}"#, r#"{"l":[1,2,3]}"#, false),
    (r#"{"l":[1,2]}"#, r#"{"l":[2]}"#, r#"{"l":[1,2,3]}"#, true),
    (r#"{"l":[1,2]}"#, r#"{"l":[2]}"#, r#"{"l":[2,3]}"#, false),
    // Nothing came between them.
    (r#"{"a":1}"#, r#"{"a":1}"#, r#"{"a":2}"#, false),
];

#[test]
fn what_takes_back_what_came_between_was_made_before_that() {
    for (earlier, later, mine, expected) in CASES {
        let found = goes_back(&value(earlier), &value(later), &value(mine));
        assert_eq!(found, *expected, "{earlier} {later} {mine}");
    }
}
