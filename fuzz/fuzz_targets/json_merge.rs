//! Three documents with NULs between them. The merge can be written and read again, comes out the same
//! every time, leaves one side as it is if the other changed nothing, adds counters up, and holds every
//! change of either side but for the conflicts that it names.
#![no_main]

use commitfs::json::{Conflict, Document, Object, Pointer, Policy, Text, Value, merge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let documents: Result<Vec<Document>, _> = input
        .splitn(3, |&byte| byte == 0)
        .map(Document::parse)
        .collect();
    let Ok([base, mine, theirs]) = documents.as_deref() else {
        return;
    };
    let policy = Policy::new(&["/*", "/*/*", "/n"]).expect("these are pointers");
    let (merged, conflicts) = Document::merge(base, mine, theirs, &policy);
    let text = merged.to_text();
    assert_eq!(text.len(), merged.text_len());
    let again = Document::parse(text.as_bytes()).expect("what was written is read");
    assert!(again.value().is_identical(merged.value()));
    let (once_more, same) = Document::merge(base, mine, theirs, &policy);
    assert_eq!((once_more.to_text(), same), (text, conflicts));

    for (one, two) in [(mine, base), (base, mine)] {
        let merged = merge(base.value(), one.value(), two.value(), &policy);
        assert!(merged.value.is_identical(mine.value()));
        assert!(merged.conflicts.is_empty());
    }
    counted(base, mine, theirs);

    let merged = merge(
        base.value(),
        mine.value(),
        theirs.value(),
        &Policy::default(),
    );
    let mut expected = Vec::new();
    let sides = [base, mine, theirs].map(|document| Some(document.value()));
    holds(sides, Some(&merged.value), &mut Vec::new(), &mut expected);
    let found = merged
        .conflicts
        .iter()
        .map(|Conflict { pointer, .. }| pointer);
    assert_eq!(sorted(found.cloned()), sorted(expected));
});

fn sorted(pointers: impl IntoIterator<Item = Pointer>) -> Vec<String> {
    let mut texts: Vec<String> = pointers.into_iter().map(|p| p.to_string()).collect();
    texts.sort();
    texts
}

/// Both differences are in a counter of integers.
fn counted(base: &Document, mine: &Document, theirs: &Document) {
    let integer = |document: &Document| match document.value() {
        Value::Object(object) => match object.get("n") {
            Some(Value::Number(number)) => number.text().parse::<i64>().ok(),
            _ => None,
        },
        _ => None,
    };
    let (Some(old), Some(one), Some(two)) = (integer(base), integer(mine), integer(theirs)) else {
        return;
    };
    let Some(sum) = (one.checked_sub(old)).and_then(|by| by.checked_add(two)) else {
        return;
    };
    let policy = Policy::new(&["/n"]).expect("this is a pointer");
    let (merged, _) = Document::merge(base, mine, theirs, &policy);
    assert_eq!(integer(&merged), Some(sum));
}

type Maybe<'a> = Option<&'a Value>;

/// Is what became of the base on both sides in `merged`, place by place? Where it can't be, `mine` is,
/// and the place is a conflict.
fn holds<'a>(
    [base, mine, theirs]: [Maybe<'a>; 3],
    merged: Maybe<'a>,
    path: &mut Vec<String>,
    conflicts: &mut Vec<Pointer>,
) {
    match [mine, theirs] {
        [Some(Value::Object(my)), Some(Value::Object(their))] => {
            let Some(Value::Object(merged)) = merged else {
                panic!("two objects make an object");
            };
            let old = match base {
                Some(Value::Object(old)) => Some(old),
                _ => None,
            };
            members([old, Some(my), Some(their)], merged, path, conflicts);
        }
        [Some(Value::Array(my)), Some(Value::Array(their))] if mine != base && theirs != base => {
            let (my, their) = (my.items(), their.items());
            let common = my.iter().zip(their).take_while(|(one, two)| one == two);
            let old = match base {
                Some(Value::Array(old)) => old.items(),
                _ => &my[..common.count()],
            };
            if my.starts_with(old) && their.starts_with(old) {
                let Some(Value::Array(merged)) = merged else {
                    panic!("two arrays that grew make an array");
                };
                let all = [old, &their[old.len()..], &my[old.len()..]].concat();
                assert_eq!(merged.items(), all);
            } else {
                one_of([base, mine, theirs], merged, path, conflicts);
            }
        }
        _ => one_of([base, mine, theirs], merged, path, conflicts),
    }
}

fn members<'a>(
    sides: [Option<&'a Object>; 3],
    merged: &'a Object,
    path: &mut Vec<String>,
    conflicts: &mut Vec<Pointer>,
) {
    for (at, side) in sides.iter().enumerate() {
        for member in side.iter().flat_map(|object| object.members()) {
            let key = &member.key;
            if sides[..at].iter().flatten().any(|o| get(o, key).is_some()) {
                continue;
            }
            path.push(key.as_str().into_owned());
            let values = sides.map(|side| side.and_then(|object| get(object, key)));
            holds(values, get(merged, key), path, conflicts);
            path.pop();
        }
    }
    for member in merged.members() {
        let key = &member.key;
        assert!(sides[1..].iter().flatten().any(|o| get(o, key).is_some()));
    }
}

/// By the key itself: half a surrogate pair, which JSON may escape, is in no name.
fn get<'a>(object: &'a Object, key: &Text) -> Maybe<'a> {
    let mut members = object.members();
    let found = members.find(|member| member.key == *key);
    found.map(|member| &member.value)
}

fn one_of(
    [base, mine, theirs]: [Maybe; 3],
    merged: Maybe,
    path: &[String],
    conflicts: &mut Vec<Pointer>,
) {
    if mine == base && theirs != base {
        assert_eq!(merged, theirs);
        return;
    }
    assert_eq!(merged, mine);
    if theirs != base && theirs != mine {
        conflicts.push(path.iter().cloned().collect());
    }
}
