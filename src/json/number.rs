//! Numbers as they were written: exact, of any length.

use std::fmt;

/// A number's text. Two are equal if their values are, exactly: `1`, `1.0` and `10e-1` are one.
/// `NaN`, `Infinity` and `-Infinity`, which Python writes, are numbers that equal only themselves.
#[derive(Clone, Debug)]
pub struct Number(Box<str>);

/// Why a sum is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NumberError {
    #[error("{0} is no number to calculate with")]
    NotFinite(String),
    #[error("{0} is beyond the 64-bit integers")]
    Integer(String),
    #[error("{0} + {1} is beyond the floating-point numbers")]
    Float(String, String),
}

/// The integers that every reader gets exactly, as one signed or another unsigned.
const INTEGERS: std::ops::RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

/// Integers of so many bits are added without a thought of overflow.
const ADDED_BITS: u32 = 100;

impl Number {
    /// A number of this text, which is a valid one.
    pub(super) fn from_source(text: &str) -> Number {
        Number(text.into())
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Is it neither `NaN` nor infinite?
    pub fn is_finite(&self) -> bool {
        !self.0.ends_with(['N', 'y'])
    }

    fn is_integer(&self) -> bool {
        self.is_finite() && !self.0.contains(['.', 'e', 'E'])
    }

    /// The sum. Integers have to come to a 64-bit one, signed or unsigned; decimal fractions add
    /// exactly, with as many places as the longer one; what is written with an exponent, or too
    /// long, adds as floating-point numbers do.
    ///
    /// # Errors
    /// One of the two is not finite, an integer is or gets too large, or the sum is infinite.
    pub fn plus(&self, other: &Number) -> Result<Number, NumberError> {
        let sum = self.combine(other, Fixed::plus, |one, two| one + two)?;
        if sum.is_integer() && !INTEGERS.contains(&sum.integer()?) {
            return Err(NumberError::Integer(sum.0.into()));
        }
        Ok(sum)
    }

    /// The difference, which may be wider than 64 bits; otherwise by the rules of
    /// [`plus`](Number::plus).
    pub(super) fn minus(&self, other: &Number) -> Result<Number, NumberError> {
        self.combine(other, Fixed::minus, |one, two| one - two)
    }

    fn combine(
        &self,
        other: &Number,
        exactly: fn(Fixed, Fixed) -> Option<Fixed>,
        roughly: fn(f64, f64) -> f64,
    ) -> Result<Number, NumberError> {
        for number in [self, other] {
            if !number.is_finite() {
                return Err(NumberError::NotFinite(number.0.to_string()));
            }
        }
        if self.is_integer() && other.is_integer() {
            let (one, two) = (self.integer()?, other.integer()?);
            let sum = exactly(Fixed::integer(one), Fixed::integer(two))
                .expect("sums of 100-bit integers fit 128 bits");
            return Ok(Number(sum.units.to_string().into()));
        }
        let fixed = self.fixed().zip(other.fixed());
        if let Some(sum) = fixed.and_then(|(one, two)| exactly(one, two)) {
            return Ok(Number(sum.text().into()));
        }
        let sum = roughly(self.float(), other.float());
        if !sum.is_finite() {
            let (one, two) = (self.0.to_string(), other.0.to_string());
            return Err(NumberError::Float(one, two));
        }
        Ok(Number(format!("{sum:?}").into()))
    }

    fn integer(&self) -> Result<i128, NumberError> {
        let value = self.0.parse::<i128>().ok();
        value
            .filter(|value| value.unsigned_abs() < 1 << ADDED_BITS)
            .ok_or_else(|| NumberError::Integer(self.0.to_string()))
    }

    fn float(&self) -> f64 {
        self.0.parse().unwrap_or(f64::NAN)
    }

    fn fixed(&self) -> Option<Fixed> {
        let (whole, fraction) = self.0.split_once('.').unwrap_or((&self.0, ""));
        Some(Fixed {
            units: format!("{whole}{fraction}").parse().ok()?,
            places: fraction.len().try_into().ok()?,
        })
    }
}

/// A decimal fraction: so many units of the last of so many places.
#[derive(Clone, Copy)]
struct Fixed {
    units: i128,
    places: u32,
}

impl Fixed {
    fn integer(units: i128) -> Fixed {
        Fixed { units, places: 0 }
    }

    fn plus(self, other: Fixed) -> Option<Fixed> {
        let places = self.places.max(other.places);
        let units = self.widened(places)?.checked_add(other.widened(places)?)?;
        Some(Fixed { units, places })
    }

    fn minus(self, other: Fixed) -> Option<Fixed> {
        let units = other.units.checked_neg()?;
        self.plus(Fixed { units, ..other })
    }

    fn widened(self, places: u32) -> Option<i128> {
        let factor = 10i128.checked_pow(places - self.places)?;
        self.units.checked_mul(factor)
    }

    fn text(self) -> String {
        let sign = if self.units < 0 { "-" } else { "" };
        let places = self.places as usize;
        let digits = format!("{:0>width$}", self.units.unsigned_abs(), width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let point = if places == 0 { "" } else { "." };
        format!("{sign}{whole}{point}{fraction}")
    }
}

/// A number without its manner of writing: ±0.DIGITS × 10^exponent, the digits without zeros at
/// either end; zero has no digits.
#[derive(PartialEq)]
struct Normal {
    negative: bool,
    digits: String,
    exponent: i128,
}

impl Normal {
    /// None for what is not finite, and for exponents that no program could mean.
    fn of(number: &Number) -> Option<Normal> {
        if !number.is_finite() {
            return None;
        }
        let text = number.text();
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_start_matches('0');
        if significant.is_empty() {
            return Some(Normal {
                negative: false,
                digits: String::new(),
                exponent: 0,
            });
        }
        let zeros = (digits.len() - significant.len()) as i128;
        let exponent = exponent.parse::<i128>().ok()?;
        Some(Normal {
            negative,
            digits: significant.trim_end_matches('0').to_owned(),
            exponent: exponent.checked_add(whole.len() as i128 - zeros)?,
        })
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Number) -> bool {
        self.0 == other.0
            || Normal::of(self)
                .zip(Normal::of(other))
                .is_some_and(|(one, two)| one == two)
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Number {
        Number(value.to_string().into())
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Number {
        Number(value.to_string().into())
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
