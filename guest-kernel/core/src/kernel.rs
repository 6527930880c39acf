//! The kernel's state, and what happens at a trap. The architecture calls [`Kernel::trap`] with
//! the registers already in the running thread's frame, and does what [`Next`] says.

use bulkhead_abi::syscall::{RESTRICTED_ENTER, Status};

use crate::capability::CNode;
use crate::hardware::{Hardware, PhysPage};
use crate::paging::AddressSpace;
use crate::restricted::Exit;
use crate::thread::{Mode, QUANTUM_MS, StatePage, Threads};
use crate::untyped::Untyped;

/// Why the CPU entered the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The running program executed `syscall`.
    Syscall,
    /// The running program raised a CPU exception; `vector` and `error_code` are in its frame.
    Exception {
        /// CR2 of a page fault, or zero.
        address: u64,
    },
    /// The timer's deadline has passed.
    Timer,
    /// The VMM says that console input can be read.
    ConsoleInput,
    /// An interrupt that nobody waits for.
    Stray,
}

/// What the CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Resume the running thread, which may be another one than before.
    Run,
    /// Wait for an interrupt.
    Idle,
    /// End the partition with this status.
    End(u8),
}

/// What a system call wants, beyond its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answer `Ok` with this value.
    Value(u64),
    /// The registers are set: resume.
    Resume,
    /// Execute the call again, after pending interrupts.
    Restart,
    /// Execute the call again when the thread, which waits now, is ready.
    RestartLater,
    /// Answer `Ok`, and let others run (the thread may be waiting).
    Switch,
    /// The thread is gone: let others run.
    Gone,
    /// End the partition.
    End(u8),
}

/// Everything the kernel knows.
#[derive(Debug)]
pub struct Kernel {
    /// All threads.
    pub threads: Threads,
    pub(crate) root: CNode,
    pub(crate) untyped: Untyped,
    pub(crate) space: Option<AddressSpace>,
    pub(crate) state_page: Option<StatePage>,
    pub(crate) tsc_khz: u64,
    deadline: Option<u64>,
}

impl Kernel {
    /// A kernel without memory, threads or capabilities.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            threads: Threads::new(),
            root: CNode::new(),
            untyped: Untyped::new(),
            space: None,
            state_page: None,
            tsc_khz: 1,
            deadline: None,
        }
    }

    pub(crate) const fn set_clock(&mut self, tsc_khz: u64) {
        self.tsc_khz = tsc_khz;
        self.threads.set_quantum(tsc_khz.saturating_mul(QUANTUM_MS));
    }

    pub(crate) fn space(&self) -> Result<AddressSpace, Status> {
        self.space.ok_or(Status::InvalidCapability)
    }

    /// Time stamp counter at which the timer is to interrupt, or `None` for never.
    #[must_use]
    pub const fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Page table root that the running thread needs, or `None` before there is an address space.
    #[must_use]
    pub fn page_table_root(&mut self) -> Option<PhysPage> {
        let space = self.space?;
        Some(match self.threads.current_thread().mode {
            Mode::Native => space.root(),
            Mode::Restricted => space.restricted_root(),
        })
    }

    /// Acts on a trap that came while the running thread ran.
    ///
    /// The way of a Linux program's system calls, into its personality and back, is kept apart
    /// from everything else so that it needs few registers and no stack.
    #[inline]
    pub fn trap(&mut self, hardware: &mut impl Hardware, trap: Trap) -> Next {
        let thread = self.threads.current_thread();
        if trap == Trap::Syscall {
            if thread.mode == Mode::Restricted {
                self.restricted_leave(hardware, Exit::Syscall);
                return Next::Run;
            }
            if thread.native.rax == RESTRICTED_ENTER
                && self.restricted_enter(hardware) == Ok(Outcome::Resume)
            {
                return Next::Run;
            }
        }
        self.other_trap(hardware, trap)
    }

    #[inline(never)]
    fn other_trap(&mut self, hardware: &mut impl Hardware, trap: Trap) -> Next {
        match (trap, self.threads.current_thread().mode) {
            (Trap::Syscall, Mode::Native) => self.syscall(hardware),
            (Trap::Syscall, Mode::Restricted) => {
                self.restricted_leave(hardware, Exit::Syscall);
                Next::Run
            }
            (Trap::Exception { address }, Mode::Native) => self.fault(hardware, address),
            (Trap::Exception { address }, Mode::Restricted) => {
                self.restricted_leave(hardware, Exit::Exception { address });
                Next::Run
            }
            (Trap::Timer | Trap::ConsoleInput | Trap::Stray, _) => self.interrupt(hardware, trap),
        }
    }

    /// Acts on an interrupt that came while the CPU idled.
    pub fn wake(&mut self, hardware: &mut impl Hardware, trap: Trap) -> Next {
        self.interrupt(hardware, trap)
    }

    fn interrupt(&mut self, hardware: &mut impl Hardware, trap: Trap) -> Next {
        if trap == Trap::Stray {
            return if self.threads.current_is_ready() {
                Next::Run
            } else {
                Next::Idle
            };
        }
        if trap == Trap::ConsoleInput {
            self.threads.wake_readers();
        }
        let now = hardware.now();
        self.threads.wake_sleepers(now);
        if self.threads.current_is_ready() && !self.threads.quantum_is_over(now) {
            self.deadline = self.threads.deadline();
            return Next::Run;
        }
        self.switch(now)
    }

    fn syscall(&mut self, hardware: &mut impl Hardware) -> Next {
        let called = self.call(hardware);
        let frame = self.threads.current_thread().frame();
        let outcome = match called {
            Ok(outcome) => outcome,
            Err(status) => {
                frame.rax = status as u64;
                frame.rdx = 0;
                return Next::Run;
            }
        };
        match outcome {
            Outcome::Value(value) => {
                frame.rax = Status::Ok as u64;
                frame.rdx = value;
                Next::Run
            }
            Outcome::Resume => Next::Run,
            Outcome::Restart => {
                frame.restart_syscall();
                Next::Run
            }
            Outcome::RestartLater => {
                frame.restart_syscall();
                self.switch(hardware.now())
            }
            Outcome::Switch => {
                frame.rax = Status::Ok as u64;
                frame.rdx = 0;
                self.switch(hardware.now())
            }
            Outcome::Gone => self.switch(hardware.now()),
            Outcome::End(status) => Next::End(status),
        }
    }

    fn switch(&mut self, now: u64) -> Next {
        let next = if self.threads.switch(now) {
            Next::Run
        } else {
            Next::Idle
        };
        self.deadline = self.threads.deadline();
        next
    }

    pub(crate) fn update_deadline(&mut self) {
        self.deadline = self.threads.deadline();
    }

    /// A native program did what it may not: it is reported and the partition ends.
    fn fault(&mut self, hardware: &mut impl Hardware, address: u64) -> Next {
        let number = self.threads.current();
        let frame = *self.threads.current_thread().frame();
        let fault = Fault::of(frame.vector);
        hardware.report(format_args!(
            "bulkhead: the program's thread {number} ended by {} at {:#x} (address {address:#x}, \
             error code {:#x}, stack {:#x})",
            fault.name, frame.rip, frame.error_code, frame.rsp
        ));
        Next::End(fault.status)
    }
}

impl Default for Kernel {
    fn default() -> Self {
        Self::new()
    }
}

/// How a fault of a native program is reported.
struct Fault {
    name: &'static str,
    /// 128 + the signal that Linux sends for it.
    status: u8,
}

impl Fault {
    const fn of(vector: u64) -> Self {
        let (name, status) = match vector {
            0 => ("a division error", 128 + 8),
            1 => ("a debug exception", 128 + 5),
            3 => ("a breakpoint", 128 + 5),
            6 => ("an invalid instruction", 128 + 4),
            13 => ("a protection fault", 128 + 11),
            14 => ("a page fault", 128 + 11),
            17 => ("a misaligned access", 128 + 7),
            16 | 19 => ("a floating-point error", 128 + 8),
            _ => ("an exception", 128 + 11),
        };
        Self { name, status }
    }
}
