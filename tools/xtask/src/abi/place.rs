//! Places: a register, or bits of one. "rdi", "rax:8-15".

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// A general register that an operation may use; `rsp` is none.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(super) enum Register {
    Rax,
    Rbx,
    Rcx,
    Rdx,
    Rsi,
    Rdi,
    Rbp,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// `bits` bits of a register from bit `shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) register: Register,
    pub(super) shift: u32,
    pub(super) bits: u32,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (register, bits) = match text.split_once(':') {
            Some((register, bits)) => (register, Some(bits.split_once('-')?)),
            None => (text, None),
        };
        let register = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(register);
        let register = Register::deserialize(register).ok()?;
        let (first, last) = match bits {
            Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
            None => (0, 63),
        };
        (first <= last && last < 64).then(|| Self {
            register,
            shift: first,
            bits: last - first + 1,
        })
    }

    /// True for all bits of the register.
    pub(super) fn is_whole(self) -> bool {
        self.bits == 64
    }

    /// Its bits, at the register's low end.
    pub(super) fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// True when `value` fits.
    pub(super) fn holds(self, value: u64) -> bool {
        value & !self.mask() == 0
    }

    /// True when the two share a bit.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.register == other.register
            && self.shift < other.shift + other.bits
            && other.shift < self.shift + self.bits
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.shift + self.bits - 1;
        match self.is_whole() {
            true => write!(f, "{}", self.register),
            false => write!(f, "{}:{}-{last}", self.register, self.shift),
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text} is no place")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["rax", "r15", "rax:0-7", "rax:32-63", "rbp:63-63"] {
            assert_eq!(Place::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "", "rsp", "eax", "RAX", "rax:", "rax:8", "rax:8-7", "rax:0-64", "rax:-1-3",
        ] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
    }

    #[test]
    fn overlaps_are_seen_bit_by_bit() {
        let place = |text| Place::parse(text).unwrap();
        for (one, other, shared) in [
            ("rax", "rax:8-15", true),
            ("rax:0-7", "rax:8-15", false),
            ("rax:0-8", "rax:8-15", true),
            ("rax", "rbx", false),
        ] {
            assert_eq!(place(one).overlaps(place(other)), shared, "{one} {other}");
            assert_eq!(place(other).overlaps(place(one)), shared, "{other} {one}");
        }
        assert!(place("rax:0-7").holds(255) && !place("rax:0-7").holds(256));
        assert!(place("rax").holds(u64::MAX));
    }
}
