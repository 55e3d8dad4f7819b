//! Exact numbers.

use super::super::Number;
use super::*;

fn number(text: &str) -> Number {
    match value(text) {
        Value::Number(number) => number,
        other => panic!("{other} is no number"),
    }
}

fn sum(one: &str, two: &str) -> Result<String, String> {
    let sum = number(one).plus(&number(two));
    sum.map(|sum| sum.text().to_owned())
        .map_err(|error| error.to_string())
}

#[test]
fn sums_are_exact_where_they_can_be() {
    let cases = [
        ("1", "2", "3"),
        ("9007199254740993", "1", "9007199254740994"),
        ("18446744073709551614", "1", "18446744073709551615"),
        ("-9223372036854775807", "-1", "-9223372036854775808"),
        ("18446744073709551615", "-18446744073709551615", "0"),
        ("0.1", "0.2", "0.3"),
        ("1.10", "1", "2.10"),
        ("1.5", "0.5", "2.0"),
        ("0.05", "-0.1", "-0.05"),
        ("-1.5", "1.5", "0.0"),
        ("-0", "0", "0"),
        ("1e2", "1", "101.0"),
        ("1e300", "1e300", "2e300"),
        ("1.5e-7", "0", "1.5e-7"),
        (
            "0.1234567890123456789012345678901234567890",
            "1",
            "1.1234567890123457",
        ),
    ];
    for (one, two, expected) in cases {
        assert_eq!(sum(one, two).as_deref(), Ok(expected), "{one} + {two}");
        value(expected);
    }
}

#[test]
fn sums_that_are_not_there_name_the_number() {
    let cases = [
        (
            "18446744073709551615",
            "1",
            "18446744073709551616 is beyond the 64-bit integers",
        ),
        (
            "-9223372036854775808",
            "-1",
            "-9223372036854775809 is beyond the 64-bit integers",
        ),
        (
            "99999999999999999999",
            "1",
            "100000000000000000000 is beyond the 64-bit integers",
        ),
        ("NaN", "1", "NaN is no number to calculate with"),
        ("1", "-Infinity", "-Infinity is no number to calculate with"),
        (
            "1e308",
            "1e308",
            "1e308 + 1e308 is beyond the floating-point numbers",
        ),
    ];
    for (one, two, expected) in cases {
        assert_eq!(sum(one, two), Err(expected.to_owned()), "{one} + {two}");
    }
}

#[test]
fn numbers_compare_by_value_however_they_are_written() {
    let equal = [
        ("1", "1.0"),
        ("1e2", "100"),
        ("1E+2", "1000e-1"),
        ("0", "-0.0e7"),
        ("0.001", "1e-3"),
        (
            "123456789012345678901234567890",
            "1234567890123456789012345678.90e2",
        ),
        ("NaN", "NaN"),
        (
            "1e99999999999999999999999999999999999999999",
            "1e99999999999999999999999999999999999999999",
        ),
    ];
    for (one, two) in equal {
        assert_eq!(number(one), number(two));
    }
    let different = [
        ("1", "-1"),
        ("1", "10"),
        ("9007199254740993", "9007199254740992"),
        ("99999999999999999999", "99999999999999999998"),
        ("0.1", "0.10000000000000001"),
        ("NaN", "0"),
        ("Infinity", "-Infinity"),
        ("1e400", "Infinity"),
    ];
    for (one, two) in different {
        assert_ne!(number(one), number(two));
    }
}
