//! Exact decimal numbers for prices and quantities.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Units in one whole: eight decimals, as exchanges quote them.
const UNITS: i64 = 100_000_000;
const DECIMALS: i32 = 8;

/// An exact decimal number with eight decimals; in JSON, and in every table, an integer in units
/// of 1e-8, so that SQL can add it up exactly.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub(crate) struct Decimal(i64);

impl Decimal {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn from_units(units: i64) -> Self {
        Self(units)
    }

    pub(crate) const fn units(self) -> i64 {
        self.0
    }

    /// `self · numerator / denominator`, rounded towards zero; `None` out of range.
    pub(crate) fn scaled(self, numerator: i64, denominator: i64) -> Option<Self> {
        let product = i128::from(self.0) * i128::from(numerator);
        let units = product.checked_div(i128::from(denominator))?;
        i64::try_from(units).ok().map(Self)
    }

    /// The product, rounded towards zero; `None` out of range.
    pub(crate) fn times(self, other: Self) -> Option<Self> {
        self.scaled(other.0, UNITS)
    }

    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    pub(crate) fn minus(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }
}

/// A text that is not a number of at most eight decimals within range.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotADecimal;

impl Decimal {
    /// The number nearest to the text: for sums that come with the noise of binary fractions.
    ///
    /// # Errors
    /// When the text is not a number within range.
    pub(crate) fn nearest(text: &str) -> Result<Self, NotADecimal> {
        let (digits, places) = read(text)?;
        Ok(Self(shifted(digits, places)?.0))
    }
}

impl FromStr for Decimal {
    type Err = NotADecimal;

    /// Reads `-1.5`, `11509000.0` or `5.33e-05` digit by digit: no binary fraction is involved.
    fn from_str(text: &str) -> Result<Self, NotADecimal> {
        let (digits, places) = read(text)?;
        match shifted(digits, places)? {
            (units, true) => Ok(Self(units)),
            (_, false) => Err(NotADecimal),
        }
    }
}

/// The text as `digits · 10^places` units.
fn read(text: &str) -> Result<(i128, i32), NotADecimal> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse().map_err(|_| NotADecimal)?),
        None => (text, 0_i32),
    };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    if whole.is_empty() || fraction.is_empty() {
        return Err(NotADecimal);
    }
    let mut digits: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let value = digit.is_ascii_digit().then(|| i128::from(digit - b'0'));
        digits = digits
            .checked_mul(10)
            .zip(value)
            .and_then(|(digits, value)| digits.checked_add(value))
            .ok_or(NotADecimal)?;
    }
    let fraction = i32::try_from(fraction.len()).map_err(|_| NotADecimal)?;
    let places = exponent
        .checked_sub(fraction)
        .and_then(|places| places.checked_add(DECIMALS));
    Ok((sign * digits, places.ok_or(NotADecimal)?))
}

/// `digits · 10^places`, rounded half away from zero, and whether that is exact.
fn shifted(digits: i128, places: i32) -> Result<(i64, bool), NotADecimal> {
    if digits == 0 {
        return Ok((0, true));
    }
    let factor = 10_i128
        .checked_pow(places.unsigned_abs())
        .ok_or(NotADecimal)?;
    let (units, rest) = if places >= 0 {
        (digits.checked_mul(factor).ok_or(NotADecimal)?, 0)
    } else {
        (digits / factor, digits % factor)
    };
    let up = i128::from(rest.abs() >= factor - factor / 2 && rest != 0) * rest.signum();
    let units = i64::try_from(units + up).map_err(|_| NotADecimal)?;
    Ok((units, rest == 0))
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let units = self.0.unsigned_abs();
        let (whole, fraction) = (units / UNITS.unsigned_abs(), units % UNITS.unsigned_abs());
        f.pad_integral(true, "", &format!("{sign}{whole}.{fraction:08}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(text: &str) -> Option<i64> {
        text.parse::<Decimal>().ok().map(Decimal::units)
    }

    #[test]
    fn texts_are_read_exactly() {
        assert_eq!(units("0.00005330"), Some(5_330));
        assert_eq!(units("11509000.0"), Some(1_150_900_000_000_000));
        assert_eq!(units("2.63267824"), Some(263_267_824));
        assert_eq!(units("0.1"), Some(10_000_000));
        assert_eq!(units("-7"), Some(-700_000_000));
        assert_eq!(units("5.33e-05"), Some(5_330));
        assert_eq!(units("1E3"), Some(100_000_000_000));
        assert_eq!(units("0.10000000000"), Some(10_000_000));
    }

    #[test]
    fn what_is_not_exact_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-",
            "+1",
            "1,5",
            "abc",
            "NaN",
            "inf",
            "0x1",
            "1e",
            "1e99",
            " 1",
            "0.000000001",
            "99999999999999999999",
            "1e-2147483648",
            "1-2",
            "１",
        ] {
            assert_eq!(units(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_noisy_sum_is_rounded_to_the_nearest_unit() {
        let units = |text| Decimal::nearest(text).map(Decimal::units);
        assert_eq!(units("1180.9245012899998"), Ok(118_092_450_129));
        assert_eq!(units("0.000000005"), Ok(1));
        assert_eq!(units("0.0000000049"), Ok(0));
        assert_eq!(units("-0.000000015"), Ok(-2));
        assert_eq!(
            units("123456789.123456784000001"),
            Ok(12_345_678_912_345_678)
        );
        assert_eq!(units("1e99"), Err(NotADecimal));
    }

    #[test]
    fn a_number_survives_its_text() {
        for number in [0, 1, -1, 5_330, -263_267_824, i64::MAX, -i64::MAX] {
            let text = Decimal::from_units(number).to_string();
            assert_eq!(units(&text), Some(number), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_exact_or_refused() {
        let price = Decimal::from_units(1_150_900_000_000_000);
        let lot = Decimal::from_units(10_000_000);
        assert_eq!(price.times(lot).unwrap().to_string(), "1150900.00000000");
        assert_eq!(Decimal::from_units(i64::MAX).times(price), None);
        assert_eq!(price.scaled(1, 0), None);
    }
}
