//! Signals, as far as they go: dispositions are recorded, handlers are not run. CPU exceptions and
//! signals the program sends to itself take their default action.

use alloc::format;
use alloc::string::String;

use bulkhead_abi::restricted::RestrictedState;
use linux_raw_sys::general as raw;

use crate::memory::Protection;
use crate::uapi::{SigAction, SigAltStack};

/// Number of signals.
pub const COUNT: u32 = 64;
/// Vector of page faults (Intel SDM volume 3, table 6-1).
pub const PAGE_FAULT: u64 = 14;

/// `SIG_IGN`.
const IGNORE: u64 = 1;
const NO_ACTION: SigAction = SigAction {
    handler: 0,
    flags: 0,
    restorer: 0,
    mask: 0,
};

/// What a program has said about its signals.
#[derive(Clone, Debug)]
pub struct Signals {
    actions: [SigAction; COUNT as usize],
    /// Blocked signals, bit n - 1 for signal n.
    pub mask: u64,
    /// `sigaltstack`.
    pub stack: SigAltStack,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            actions: [NO_ACTION; COUNT as usize],
            mask: 0,
            stack: SigAltStack {
                sp: 0,
                flags: raw::SS_DISABLE as i32,
                pad: 0,
                size: 0,
            },
        }
    }
}

impl Signals {
    /// The action of `signal` (1 to 64), to change it.
    pub fn action(&mut self, signal: u32) -> Option<&mut SigAction> {
        self.actions.get_mut(signal.checked_sub(1)? as usize)
    }

    /// True when the program has a handler.
    pub fn is_handled(&self, signal: u32) -> bool {
        self.handler(signal) > IGNORE
    }

    /// True when the program ignores it, or its default action is to be ignored.
    pub fn is_ignored(&self, signal: u32) -> bool {
        match self.handler(signal) {
            0 => matches!(
                signal,
                raw::SIGCHLD | raw::SIGURG | raw::SIGWINCH | raw::SIGCONT
            ),
            handler => handler == IGNORE,
        }
    }

    fn handler(&self, signal: u32) -> u64 {
        let action = signal
            .checked_sub(1)
            .and_then(|n| self.actions.get(n as usize));
        action.map_or(0, |action| action.handler)
    }

    /// What `execve` keeps: ignored signals stay ignored, handlers are gone.
    pub fn reset_for_exec(&mut self) {
        for action in &mut self.actions {
            let ignored = action.handler == IGNORE;
            *action = NO_ACTION;
            action.handler = u64::from(ignored);
        }
        self.stack = Self::default().stack;
    }
}

/// Exit status of a process that a signal ended, as a shell has it.
pub fn status(signal: u32) -> u8 {
    (128 + signal) as u8
}

/// What the program tried at a page fault, from the error code.
pub fn access(error_code: u64) -> Protection {
    if error_code & 16 != 0 {
        Protection::EXECUTE
    } else if error_code & 2 != 0 {
        Protection::WRITE
    } else {
        Protection::READ
    }
}

/// The signal Linux sends for an exception.
pub fn of_exception(vector: u64) -> u32 {
    match vector {
        0 | 16 | 19 => raw::SIGFPE,
        1 | 3 => raw::SIGTRAP,
        6 => raw::SIGILL,
        11 | 12 | 17 => raw::SIGBUS,
        _ => raw::SIGSEGV,
    }
}

/// One line about an exception.
pub fn describe(state: &RestrictedState) -> String {
    let RestrictedState {
        vector,
        error_code,
        rip,
        fault_address,
        ..
    } = *state;
    let what = match of_exception(vector) {
        raw::SIGFPE => "floating point exception",
        raw::SIGTRAP => "trace or breakpoint trap",
        raw::SIGILL => "illegal instruction",
        raw::SIGBUS => "bus error",
        _ => "segmentation fault",
    };
    if vector == PAGE_FAULT {
        let access = match access(error_code) {
            Protection::EXECUTE => "executing",
            Protection::WRITE => "writing",
            _ => "reading",
        };
        format!("{what} {access} {fault_address:#x} at instruction {rip:#x}")
    } else {
        format!("{what} at instruction {rip:#x} (exception {vector}, error {error_code:#x})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_end_as_on_linux() {
        for (vector, expected) in [
            (14, 139),
            (13, 139),
            (6, 132),
            (0, 136),
            (16, 136),
            (19, 136),
            (3, 133),
            (17, 135),
            (99, 139),
        ] {
            assert_eq!(status(of_exception(vector)), expected, "{vector}");
        }
    }

    #[test]
    fn execve_keeps_only_what_is_ignored() {
        let mut signals = Signals::default();
        signals.action(2).unwrap().handler = IGNORE;
        signals.action(15).unwrap().handler = 0x1234;
        assert!(signals.is_handled(15));
        signals.reset_for_exec();
        assert!(signals.is_ignored(2) && !signals.is_handled(15) && !signals.is_ignored(15));
        assert!(signals.action(0).is_none() && signals.action(65).is_none());
    }
}
