//! How long an operation waits at most, as it stands in `rax` beside the operation's number: nine
//! bits of microseconds, and five that say how far they are shifted. So every operation that waits
//! has room for one, also where all other registers are taken by a message.

use core::time::Duration;

const MANTISSA_AT: u32 = 18;
const MANTISSA_BITS: u32 = 9;
const SHIFT_AT: u32 = MANTISSA_AT + MANTISSA_BITS;
const SHIFT_MAX: u32 = 31;

/// The longest time that an operation waits; without one it waits for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeout(u64);

impl Timeout {
    /// No timeout.
    pub const NONE: Self = Self(0);
    /// The bits of `rax` that are the timeout's.
    pub const MASK: u64 = 0xfffc_0000;

    /// At least so long: rounded up to a whole microsecond, and by less than one part in 256. What
    /// is longer than 12 days is for ever.
    #[must_use]
    pub const fn after(duration: Duration) -> Self {
        let whole = duration.as_secs().saturating_mul(1_000_000);
        let part = (duration.subsec_nanos() as u64).div_ceil(1_000);
        let us = whole.saturating_add(part);
        let us = if us == 0 { 1 } else { us };
        let mut shift = (u64::BITS - us.leading_zeros()).saturating_sub(MANTISSA_BITS);
        let mut mantissa = us.div_ceil(1 << shift);
        if mantissa >> MANTISSA_BITS != 0 {
            mantissa >>= 1;
            shift += 1;
        }
        if shift > SHIFT_MAX {
            return Self::NONE;
        }
        Self(mantissa << MANTISSA_AT | (shift as u64) << SHIFT_AT)
    }

    /// The timeout in a call's `rax`.
    #[must_use]
    pub const fn of(rax: u64) -> Self {
        Self(rax & Self::MASK)
    }

    /// Its bits in `rax`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is one. Microseconds of 0, however far they are shifted, are none.
    #[must_use]
    pub const fn is_some(self) -> bool {
        self.microseconds() != 0
    }

    /// How long it is; 0 for none.
    #[must_use]
    pub const fn microseconds(self) -> u64 {
        let mantissa = self.0 >> MANTISSA_AT & ((1 << MANTISSA_BITS) - 1);
        mantissa << (self.0 >> SHIFT_AT)
    }
}

impl From<Duration> for Timeout {
    fn from(duration: Duration) -> Self {
        Self::after(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_never_shorter_and_little_longer() {
        let mut us = 1_u64;
        while us < 511 << SHIFT_MAX {
            for near in [us.saturating_sub(1).max(1), us, us + 1] {
                let timeout = Timeout::after(Duration::from_micros(near));
                let got = timeout.microseconds();
                assert!(near <= got && got - near <= near / 256, "{near} is {got}");
                assert!(timeout.is_some());
                assert_eq!(Timeout::of(timeout.bits() | 0xffff_ffff_0003_ffff), timeout);
            }
            us = us * 3 / 2 + 1;
        }
    }

    #[test]
    fn the_shortest_and_the_longest() {
        let micros = |duration| Timeout::after(duration).microseconds();
        assert_eq!(micros(Duration::ZERO), 1, "not for ever");
        assert_eq!(micros(Duration::from_nanos(1)), 1);
        assert_eq!(micros(Duration::from_nanos(1_001)), 2);
        assert_eq!(micros(Duration::from_micros(511 << 31)), 511 << 31);
        assert_eq!(
            Timeout::after(Duration::from_micros((511 << 31) + 1)),
            Timeout::NONE
        );
        assert_eq!(Timeout::after(Duration::MAX), Timeout::NONE);
        assert!(!Timeout::NONE.is_some());
        assert!(!Timeout::of(31 << SHIFT_AT).is_some(), "nothing, shifted");
    }

    /// What the description of the ABI says of the two places.
    #[test]
    fn the_decoder_finds_it_in_the_same_bits() {
        use crate::decode::{OPERATIONS, Register};
        let place = |name| {
            let operation = OPERATIONS.iter().find(|o| o.name == "reply_recv").unwrap();
            operation
                .arguments
                .iter()
                .find(|v| v.name == name)
                .unwrap()
                .place
        };
        let rax = |register| match register {
            Register::Rax => Timeout::after(Duration::from_millis(700)).bits() | 0xff,
            _ => 0,
        };
        let (us, shift) = (place("timeout").get(rax), place("timeout_shift").get(rax));
        assert_eq!((us, shift), (342, 11));
        assert_eq!(us << shift, 700_416);
    }
}
