//! Steps read from any bytes, with numbers that come near what matters.

use bulkhead_abi::layout::{DIRECT_MAP, KERNEL_BASE, PROGRAM_BASE, USER_END};

use crate::AT;

/// Registers that a call passes, in the order of [`Step::Call`].
pub const CALL_REGISTERS: usize = 13;

/// Something that enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many ticks pass, and the timer interrupts.
    Time(u64),
    /// An exception.
    Exception {
        /// 0 to 31.
        vector: u8,
        /// 0 to 31.
        code: u8,
        /// Where a page fault happens.
        address: u64,
    },
    /// A system call.
    Call {
        /// `rax`, `rdi`, `rsi`, `rdx`, `r8`, `r9`, `r10`, `r12`, `r13`, `r14`, `r15`, `rbx`, `rbp`.
        registers: [u64; CALL_REGISTERS],
        /// Long work is interrupted after so many steps.
        patience: Option<u32>,
    },
}

/// Bytes taken from the front; zeros when they are used up.
#[derive(Clone, Debug)]
pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let (now, later) = self.0.split_at(self.0.len().min(N));
        for (to, from) in out.iter_mut().zip(now) {
            *to = *from;
        }
        self.0 = later;
        out
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }

    fn register(&mut self) -> u64 {
        let [kind, value] = self.bytes();
        let value = u64::from(value);
        match kind % 20 {
            0..=5 => value,
            6..=7 => value % 80,
            8 => AT + (value << 12),
            9 => AT + (value << 21),
            10 => PROGRAM_BASE + (value << 12),
            11 => value << 12,
            12 => 1 << (value % 64),
            13 => (1 << (value % 64)) - 1,
            14 => USER_END - value,
            // Not canonical, or the kernel's.
            15 => USER_END + (value << 12),
            16 => DIRECT_MAP + (value << 21),
            17 => KERNEL_BASE + (value << 12),
            _ => u64::from_le_bytes(self.bytes()),
        }
    }

    fn step(&mut self) -> Step {
        match self.byte() {
            kind @ 0..16 => Step::Time(1 << (kind * 3)),
            16..24 => {
                let [vector, code] = self.bytes();
                Step::Exception {
                    vector: vector % 32,
                    code: code % 32,
                    address: self.register(),
                }
            }
            kind => {
                let patience = (kind < 64).then(|| u32::from(self.byte() % 8));
                let [number, length, capabilities] = self.bytes();
                let mut info = u64::from(number % 64) | u64::from(length % 16) << 8;
                info |= u64::from(capabilities % 4) << 16;
                if kind > 240 {
                    info = self.register();
                }
                let mut registers = [info; CALL_REGISTERS];
                for register in registers.iter_mut().skip(1) {
                    *register = self.register();
                }
                Step::Call {
                    registers,
                    patience,
                }
            }
        }
    }
}

impl Iterator for Script<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        (!self.0.is_empty()).then(|| self.step())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn any_bytes_are_steps_and_end() {
        for byte in 0..=255_u8 {
            let bytes = [byte; 500];
            let steps: Vec<Step> = Script(&bytes).collect();
            assert!(!steps.is_empty() && steps.len() <= 500);
        }
        assert_eq!(Script(&[]).next(), None);
    }

    #[test]
    fn steps_are_what_the_bytes_say() {
        let bytes = [2, 20, 14, 2, 11, 7, 100, 18, 0, 0, 0, 5, 17, 1];
        let steps: Vec<Step> = Script(&bytes).collect();
        let fault = Step::Exception {
            vector: 14,
            code: 2,
            address: 7 << 12,
        };
        assert_eq!(steps.get(..2), Some(&[Step::Time(64), fault][..]));
        let Some(Step::Call {
            registers,
            patience: None,
        }) = steps.get(2)
        else {
            panic!("{steps:?}");
        };
        assert_eq!(registers.get(..3), Some(&[18, 5, KERNEL_BASE + 0x1000][..]));
    }
}
