//! From registers to text: which operation a system call is, with which arguments, and what it
//! answered. For whoever traces native programs or tests the kernel; the kernel itself finds
//! operations by their numbers in [`crate::syscall`].
//!
//! ```
//! use bulkhead_abi::decode::{Call, Register};
//! let registers = |register| match register {
//!     Register::Rax => 40,
//!     Register::Rdi => 200,
//!     Register::Rdx => 3,
//!     _ => 1,
//! };
//! assert_eq!(
//!     Call(registers).to_string(),
//!     "frame_unmap(frame=0xc8, first=3, count=1)"
//! );
//! ```

use core::fmt;

pub use crate::generated::operations::OPERATIONS;
use crate::generated::operations::{RIGHTS, SLOTS};
use crate::syscall::Status;

/// A general register of a program.
#[allow(
    missing_docs,
    reason = "registers are named as the architecture names them"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
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

/// Where an operation finds or leaves something: a register, or some of its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The register.
    pub register: Register,
    /// Its first bit.
    pub shift: u32,
    /// How many bits.
    pub bits: u32,
}

impl Place {
    /// A whole register.
    pub const fn whole(register: Register) -> Self {
        Self::bits(register, 0, 64)
    }

    /// `bits` bits of a register from bit `shift`.
    pub const fn bits(register: Register, shift: u32, bits: u32) -> Self {
        Self {
            register,
            shift,
            bits,
        }
    }

    /// What lies there.
    pub fn get(self, registers: impl Fn(Register) -> u64) -> u64 {
        let mask = u64::MAX.checked_shr(64 - self.bits).unwrap_or(0);
        (registers)(self.register).wrapping_shr(self.shift) & mask
    }
}

/// What an argument or a result means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A capability of the caller.
    Handle,
    /// An address.
    Address,
    /// The address of bytes that the kernel reads.
    Source,
    /// The address of bytes that the kernel writes.
    Destination,
    /// A length in bytes.
    Bytes,
    /// Bits of [`crate::syscall::rights`].
    Rights,
    /// A number.
    Number,
}

/// An argument or a result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name in the description.
    pub name: &'static str,
    /// What it means.
    pub kind: Kind,
    /// Where it is.
    pub place: Place,
}

/// An operation of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its number in [`crate::syscall`].
    pub number: u64,
    /// Its name there, in lower case.
    pub name: &'static str,
    /// Where the number is.
    pub number_place: Place,
    /// What it takes.
    pub arguments: &'static [Value],
    /// Where it leaves its [`Status`].
    pub status_place: Place,
    /// What it leaves beside that.
    pub results: &'static [Value],
    /// What it can answer beside [`Status::Ok`].
    pub errors: &'static [Status],
}

impl Operation {
    /// The operation that a `syscall` with these registers asks for.
    pub fn find(registers: impl Fn(Register) -> u64) -> Option<&'static Self> {
        (OPERATIONS.iter())
            .find(|operation| operation.number_place.get(&registers) == operation.number)
    }
}

/// The call that a `syscall` with these registers is, as text.
#[derive(Clone, Copy, Debug)]
pub struct Call<F>(pub F);

impl<F: Fn(Register) -> u64> fmt::Display for Call<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Operation::find(&self.0) {
            Some(operation) => call(f, operation, &self.0),
            None => write!(f, "unknown call {:#x}", (self.0)(Register::Rax)),
        }
    }
}

/// What an operation left in these registers, as text.
#[derive(Clone, Copy, Debug)]
pub struct Answer<F>(pub &'static Operation, pub F);

impl<F: Fn(Register) -> u64> fmt::Display for Answer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = self.0.status_place.get(&self.1);
        match Status::from_raw(raw) {
            Some(Status::Ok) => {
                f.write_str("Ok")?;
                (self.0.results.iter()).try_for_each(|value| {
                    f.write_str(", ")?;
                    one(f, value, &self.1)
                })
            }
            Some(status) => write!(f, "{status:?} (at fault: {:?})", status.fault()),
            None => write!(f, "unknown status {raw:#x}"),
        }
    }
}

fn call(
    f: &mut fmt::Formatter<'_>,
    operation: &Operation,
    registers: impl Fn(Register) -> u64,
) -> fmt::Result {
    write!(f, "{}(", operation.name)?;
    for (index, value) in operation.arguments.iter().enumerate() {
        f.write_str(if index > 0 { ", " } else { "" })?;
        one(f, value, &registers)?;
    }
    f.write_str(")")
}

fn one(
    f: &mut fmt::Formatter<'_>,
    value: &Value,
    registers: impl Fn(Register) -> u64,
) -> fmt::Result {
    let raw = value.place.get(registers);
    write!(f, "{}=", value.name)?;
    match value.kind {
        Kind::Handle => match SLOTS.iter().find(|(slot, _)| *slot == raw) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{raw:#x}"),
        },
        Kind::Rights => rights(f, raw),
        Kind::Number => write!(f, "{raw}"),
        Kind::Address | Kind::Source | Kind::Destination | Kind::Bytes => write!(f, "{raw:#x}"),
    }
}

fn rights(f: &mut fmt::Formatter<'_>, raw: u64) -> fmt::Result {
    let mut rest = raw;
    for (right, name) in RIGHTS {
        if rest & right != 0 {
            let first = rest == raw;
            rest &= !right;
            write!(f, "{}{name}", if first { "" } else { "|" })?;
        }
    }
    match (rest, rest == raw) {
        (0, false) => Ok(()),
        (rest, true) => write!(f, "{rest:#x}"),
        (rest, false) => write!(f, "|{rest:#x}"),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;
    use std::string::{String, ToString};

    use super::*;
    use crate::syscall;

    fn registers<const N: usize>(values: [(Register, u64); N]) -> impl Fn(Register) -> u64 {
        move |wanted| {
            let found = values.iter().find(|(register, _)| *register == wanted);
            found.map_or(0, |(_, value)| *value)
        }
    }

    /// The call with these arguments, as text.
    fn text(number: u64, [rdi, rsi, rdx, r10]: [u64; 4]) -> String {
        Call(registers([
            (Register::Rax, number),
            (Register::Rdi, rdi),
            (Register::Rsi, rsi),
            (Register::Rdx, rdx),
            (Register::R10, r10),
        ]))
        .to_string()
    }

    #[test]
    fn calls_read_like_what_they_do() {
        assert_eq!(
            Call(registers([
                (Register::Rax, syscall::FRAME_MAP),
                (Register::Rdi, 200),
                (Register::Rdx, 3),
                (Register::R8, 0x4000),
                (Register::R9, 3),
                (Register::R10, 1),
                (Register::R12, 2),
            ]))
            .to_string(),
            "frame_map(frame=0xc8, address_space=ADDRESS_SPACE, address=0x4000, \
             rights=READ|WRITE, first=1, count=2)"
        );
        assert_eq!(
            text(syscall::CONSOLE_WRITE, [1, 0x7000, 3, 2]),
            "console_write(console=CONSOLE, from=0x7000, length=0x3, stream=2)"
        );
        assert_eq!(text(syscall::YIELD, [9; 4]), "yield()");
        assert_eq!(
            text(syscall::COUNT, [9; 4]),
            format!("unknown call {:#x}", syscall::COUNT)
        );
        // The number of an operation by registers is the whole of one.
        assert_eq!(
            text(1 << 32 | syscall::SLEEP, [0; 4]),
            "unknown call 0x100000007"
        );
    }

    #[test]
    fn rights_name_every_bit() {
        let rights = |bits| {
            let map = [(Register::Rax, syscall::FRAME_MAP), (Register::R9, bits)];
            let whole = Call(registers(map)).to_string();
            let from = whole.split_once("rights=").unwrap().1;
            String::from(from.split_once(',').unwrap().0)
        };
        for (bits, wanted) in [
            (0, "0x0"),
            (1, "READ"),
            (7, "READ|WRITE|EXECUTE"),
            (8, "0x8"),
            (0xc, "EXECUTE|0x8"),
        ] {
            assert_eq!(rights(bits), wanted);
        }
    }

    #[test]
    fn answers_name_the_party_at_fault() {
        let answer = |number, status, value| {
            let asked = registers([(Register::Rax, number)]);
            let operation = Operation::find(asked).unwrap();
            let left = [(Register::Rax, status), (Register::Rdx, value)];
            Answer(operation, registers(left)).to_string()
        };
        assert_eq!(answer(syscall::YIELD, 0, 0), "Ok");
        assert_eq!(answer(syscall::CONSOLE_READ, 0, 16), "Ok, read=0x10");
        assert_eq!(
            answer(syscall::FRAME_MAP, 6, 0),
            "DeleteFirst (at fault: Caller)"
        );
        assert_eq!(
            answer(syscall::RETYPE, 5, 0),
            "NotEnoughMemory (at fault: Limit)"
        );
        assert_eq!(answer(syscall::RETYPE, 99, 0), "unknown status 0x63");
    }

    #[test]
    fn messages_share_a_register() {
        let call = Call(registers([
            (Register::Rax, 7 << 32 | 2 << 16 | 3 << 8 | syscall::SEND),
            (Register::Rdi, 77),
            (Register::Rdx, 5),
        ]))
        .to_string();
        assert!(
            call.starts_with("send(endpoint=0x4d, length=3, capabilities=2, label=7, word0=5,"),
            "{call}"
        );
    }

    /// Several values in one register.
    #[test]
    fn a_place_is_any_part_of_a_register() {
        let rax = registers([(Register::Rax, 0x1234_5678_9abc_def0)]);
        for (shift, bits, wanted) in [
            (0, 64, 0x1234_5678_9abc_def0),
            (0, 8, 0xf0),
            (8, 8, 0xde),
            (16, 2, 0),
            (18, 2, 3),
            (32, 32, 0x1234_5678),
            (63, 1, 0),
            (60, 1, 1),
        ] {
            let place = Place::bits(Register::Rax, shift, bits);
            assert_eq!(place.get(&rax), wanted, "{bits} bits from {shift}");
        }
    }

    #[test]
    fn numbers_and_names_are_unique() {
        for (index, operation) in OPERATIONS.iter().enumerate() {
            let others = OPERATIONS.iter().skip(index + 1);
            assert!(others.clone().all(|o| o.number != operation.number));
            assert!(others.clone().all(|o| o.name != operation.name));
            assert!(operation.number < syscall::COUNT);
            assert!(!operation.errors.contains(&Status::Ok));
        }
    }

    #[test]
    fn statuses_survive_the_way_through_a_register() {
        for raw in 0..16 {
            assert_eq!(Status::from_raw(raw).map(|s| s as u64), Some(raw));
        }
        for raw in [16, 17, 1 << 32, u64::MAX] {
            assert_eq!(Status::from_raw(raw), None);
        }
    }

    #[test]
    fn the_first_stack_ends_where_its_large_page_ends() {
        use crate::layout::{LARGE_PAGE_SIZE, PROGRAM_BOOT_INFO, PROGRAM_STACK_TOP};
        assert_eq!(PROGRAM_STACK_TOP, PROGRAM_BOOT_INFO + LARGE_PAGE_SIZE);
        assert_eq!(crate::boot::MAGIC.to_le_bytes(), *b"BULKHEAD");
    }
}
