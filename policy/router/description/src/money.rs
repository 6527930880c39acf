//! Money and prices, exactly: whole millionths of a cent, no fractions that a computer rounds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Millionths of a cent in a dollar.
const PER_DOLLAR: u64 = 100_000_000;
/// Digits after the point that a dollar has then.
const DIGITS: usize = 8;
/// Tokens that a price is for.
const PRICED_TOKENS: u128 = 1_000_000;

/// An amount in millionths of a cent, in text dollars: `12.50`. The currency is whatever the prices
/// are in; nothing here converts.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Money(u64);

/// What a million tokens cost.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Price(Money);

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no amount; write dollars such as 3 or 0.075, with at most {DIGITS} digits after the point",
    .0.escape_debug()
)]
pub struct ParseMoneyError(String);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount in millionths of a cent.
    pub const fn from_micro_cents(micro_cents: u64) -> Self {
        Self(micro_cents)
    }

    /// The amount in millionths of a cent.
    pub const fn micro_cents(self) -> u64 {
        self.0
    }

    /// What tokens cost at their prices, all together rounded up once.
    pub fn of(parts: &[(Price, u64)]) -> Self {
        // Both factors are below 2^64, so two dozen such products fit.
        let millionths = parts.iter().fold(0_u128, |sum, (price, tokens)| {
            sum.saturating_add(u128::from(price.0.0) * u128::from(*tokens))
        });
        Self(u64::try_from(millionths.div_ceil(PRICED_TOKENS)).unwrap_or(u64::MAX))
    }

    /// The sum, or the most there can be.
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or nothing.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl FromStr for Money {
    type Err = ParseMoneyError;

    fn from_str(text: &str) -> Result<Self, ParseMoneyError> {
        let wrong = || ParseMoneyError(text.chars().take(40).collect());
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > DIGITS {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let part: u64 = format!("{part:0<DIGITS$}").parse().map_err(|_| wrong())?;
        let amount = whole
            .checked_mul(PER_DOLLAR)
            .and_then(|whole| whole.checked_add(part));
        amount.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Money {
    /// At least two digits after the point, and as many more as there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!("{:0DIGITS$}", self.0 % PER_DOLLAR);
        let kept = part.trim_end_matches('0').len().max(2);
        let part: String = part.chars().take(kept).collect();
        write!(f, "{}.{part}", self.0 / PER_DOLLAR)
    }
}

impl FromStr for Price {
    type Err = ParseMoneyError;

    fn from_str(text: &str) -> Result<Self, ParseMoneyError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Money {
    type Error = ParseMoneyError;

    fn try_from(text: String) -> Result<Self, ParseMoneyError> {
        text.parse()
    }
}

impl From<Money> for String {
    fn from(money: Money) -> Self {
        money.to_string()
    }
}

impl TryFrom<String> for Price {
    type Error = ParseMoneyError;

    fn try_from(text: String) -> Result<Self, ParseMoneyError> {
        text.parse()
    }
}

impl From<Price> for String {
    fn from(price: Price) -> Self {
        price.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_exact() {
        for (text, micro_cents) in [
            ("0", 0),
            ("3", 300_000_000),
            ("3.00", 300_000_000),
            ("0.075", 7_500_000),
            ("0.00000001", 1),
            ("184467440737.09551615", u64::MAX),
        ] {
            assert_eq!(
                text.parse::<Money>().unwrap().micro_cents(),
                micro_cents,
                "{text}"
            );
        }
        for wrong in [
            "",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "0.000000001",
            "184467440737.09551616",
            "1.+5",
        ] {
            assert!(wrong.parse::<Money>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn costs_are_rounded_up_once() {
        let (cheap, dear): (Price, Price) = ("0.01".parse().unwrap(), "15".parse().unwrap());
        assert_eq!(Money::of(&[(cheap, 1)]).micro_cents(), 1);
        assert_eq!(Money::of(&[(cheap, 1), (cheap, 1)]).micro_cents(), 2);
        assert_eq!(Money::of(&[(dear, 1_000_000)]).to_string(), "15.00");
        assert_eq!(Money::of(&[(cheap, 3), (dear, 7)]).micro_cents(), 10_503);
        let most: Price = "184467440737.09551615".parse().unwrap();
        assert_eq!(
            Money::of(&[(most, u64::MAX), (most, u64::MAX)]).micro_cents(),
            u64::MAX
        );
    }

    proptest! {
        #[test]
        fn an_amount_reads_as_it_prints(micro_cents: u64) {
            let money = Money(micro_cents);
            prop_assert_eq!(money.to_string().parse(), Ok(money));
        }
    }
}
