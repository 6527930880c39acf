//! The kernel's state, and what happens at a trap. The architecture calls [`Kernel::trap`] with
//! the registers already in the running thread's frame, and does what [`Next`] says.

use bulkhead_abi::syscall::{RESTRICTED_ENTER, Status};

use crate::calls::{Outcome, Refusal};
use crate::frame::Frame;
use crate::hardware::Hardware;
use crate::objects::Objects;
use crate::objects::capability::{Capability, Kind};
use crate::objects::fault::Fault;
use crate::objects::memory::Ref;
use crate::objects::thread::{Mode, Thread, ThreadSlot};
use crate::paging::AddressSpace;
use crate::restricted::Exit;

/// How long a thread of the first scheduling context runs while others are ready, in milliseconds.
pub(crate) const QUANTUM_MS: u64 = 10;

/// Services of the kernel that are no objects in memory; see [`Capability::service`].
pub mod service {
    /// The console.
    pub const CONSOLE: u64 = 1;
    /// The partition: its end.
    pub const PARTITION: u64 = 2;
}

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
    /// The device of this number interrupts.
    Device(u64),
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

/// Everything the kernel knows.
#[derive(Debug)]
pub struct Kernel<H> {
    /// All objects, and the machine that they lie in.
    pub objects: Objects<H>,
    /// Frequency of the time stamp counter; set at boot. All of a kernel that has not started is
    /// zeros, which its image need not hold.
    pub(crate) tsc_khz: u64,
}

impl<H: Hardware> Kernel<H> {
    /// A kernel without memory, threads or capabilities.
    #[must_use]
    pub const fn new(hardware: H) -> Self {
        Self {
            objects: Objects::new(hardware),
            tsc_khz: 0,
        }
    }

    /// The address space of a thread.
    pub(crate) fn space(&self, thread: Ref<Thread>) -> Result<AddressSpace, Status> {
        let space = (self.objects).capability(thread.slot(ThreadSlot::AddressSpace));
        if space.is_null() {
            return Err(Status::InvalidAddress);
        }
        Ok(AddressSpace::at(space.address()))
    }

    /// The frame of the running thread.
    #[inline]
    pub fn frame(&mut self) -> Option<&mut Frame> {
        let thread = self.objects.current()?;
        Some(self.objects.memory.get_mut(thread).active_frame())
    }

    /// The frame of a thread in native mode.
    #[inline]
    pub fn native_frame(&mut self, thread: Ref<Thread>) -> &mut Frame {
        &mut self.objects.memory.get_mut(thread).frame
    }

    /// Whether the registers of a trap are those of a program that the thread runs in restricted
    /// mode.
    #[must_use]
    #[inline]
    pub fn is_restricted(&self, thread: Ref<Thread>) -> bool {
        self.objects.memory.get(thread).mode() == Mode::Restricted
    }

    /// Page table root that the running thread needs. Without an address space its next instruction
    /// faults.
    #[must_use]
    #[inline]
    pub fn page_table_root(&self) -> u64 {
        let Some(thread) = self.objects.current() else {
            return self.objects.kernel_root();
        };
        let space = (self.objects).capability(thread.slot(ThreadSlot::AddressSpace));
        if space.is_null() {
            return self.objects.kernel_root();
        }
        let space = AddressSpace::at(space.address());
        match self.objects.memory.get(thread).mode() {
            Mode::Native => space.root(),
            Mode::Restricted => space.restricted_root(),
        }
    }

    /// FS and GS base of a thread that does not run.
    pub fn bases(&mut self, thread: Ref<Thread>) -> (&mut u64, &mut u64) {
        let thread = self.objects.memory.get_mut(thread);
        (&mut thread.fs_base, &mut thread.gs_base)
    }

    /// Acts on a trap that came while the running thread ran.
    ///
    /// The way of a Linux program's system calls, into its personality and back, is kept apart
    /// from everything else so that it needs few registers and no stack.
    #[inline]
    pub fn trap(&mut self, trap: Trap) -> Next {
        let Some(thread) = self.objects.current() else {
            return self.wake(trap);
        };
        if trap == Trap::Syscall {
            let found = self.objects.memory.get(thread);
            if found.mode() == Mode::Restricted {
                self.restricted_leave(thread, Exit::Syscall);
                return Next::Run;
            }
            if found.frame.rax == RESTRICTED_ENTER && self.restricted_enter(thread).is_ok() {
                return Next::Run;
            }
        }
        self.other_trap(thread, trap)
    }

    #[inline(never)]
    fn other_trap(&mut self, thread: Ref<Thread>, trap: Trap) -> Next {
        match (trap, self.objects.memory.get(thread).mode()) {
            (Trap::Syscall, _) => self.syscall(thread),
            (Trap::Exception { address }, Mode::Native) => self.exception(thread, address),
            (Trap::Exception { address }, Mode::Restricted) => {
                self.restricted_leave(thread, Exit::Exception { address });
                Next::Run
            }
            (Trap::Timer | Trap::ConsoleInput | Trap::Device(_) | Trap::Stray, _) => {
                self.wake(trap)
            }
        }
    }

    /// Acts on an interrupt, also one that came while the CPU idled.
    pub fn wake(&mut self, trap: Trap) -> Next {
        match trap {
            Trap::ConsoleInput => self.objects.wake_readers(),
            Trap::Device(number) => self.objects.interrupt(number),
            _ => {}
        }
        self.schedule()
    }

    /// Says who runs next, as time and threads are now.
    pub(crate) fn schedule(&mut self) -> Next {
        let more = self.objects.wake_some_readers();
        let now = self.objects.memory.now();
        let next = self.objects.schedule(now);
        let deadline = if more {
            // The rest are woken by the next interrupt, so that none waits for all of them.
            Some(now)
        } else {
            self.objects.next_deadline()
        };
        self.objects.set_deadline(deadline);
        if next.is_some() {
            Next::Run
        } else {
            Next::Idle
        }
    }

    fn syscall(&mut self, thread: Ref<Thread>) -> Next {
        let called = self.call(thread);
        let frame = &mut self.objects.memory.get_mut(thread).frame;
        match called {
            Ok(Outcome::Done) => frame.rax = Status::Ok as u64,
            Ok(Outcome::Value(value)) => {
                frame.rax = Status::Ok as u64;
                frame.rdx = value;
            }
            Ok(Outcome::Values([rdx, r8])) => {
                frame.rax = Status::Ok as u64;
                frame.rdx = rdx;
                frame.r8 = r8;
            }
            Ok(Outcome::Answered) => {}
            Ok(Outcome::Restart) | Err(Refusal::Again) => frame.restart_syscall(),
            Ok(Outcome::End(status)) => return Next::End(status),
            Err(Refusal::Refused(status, None)) => {
                frame.rax = status as u64;
                frame.rdx = 0;
            }
            Err(Refusal::Refused(status, Some([rdx, r8]))) => {
                frame.rax = status as u64;
                frame.rdx = rdx;
                frame.r8 = r8;
            }
            Err(Refusal::Unknown) => return self.unknown_call(thread),
        }
        self.settle()
    }

    /// Lets the running thread go on where nothing has changed about that.
    pub(crate) fn settle(&mut self) -> Next {
        if self.objects.is_settled() {
            Next::Run
        } else {
            self.schedule()
        }
    }

    /// A system call that there is none of is a fault for who has a handler, and a status for all
    /// others.
    fn unknown_call(&mut self, thread: Ref<Thread>) -> Next {
        if self.fault_handler(thread).kind() == Kind::Endpoint {
            self.count_time();
            let number = self.objects.memory.get(thread).frame.rax;
            self.objects.fault(thread, Fault::UnknownCall { number });
        } else {
            let frame = &mut self.objects.memory.get_mut(thread).frame;
            frame.rax = Status::UnknownCall as u64;
            frame.rdx = 0;
        }
        self.settle()
    }

    fn fault_handler(&self, thread: Ref<Thread>) -> Capability {
        self.objects
            .capability(thread.slot(ThreadSlot::FaultHandler))
    }

    /// A native program did what it may not: its handler is told. Where that is the partition, it
    /// is reported and the partition ends.
    fn exception(&mut self, thread: Ref<Thread>, address: u64) -> Next {
        let frame = self.objects.memory.get(thread).frame;
        if self.fault_handler(thread) == Capability::service(Kind::Service, service::PARTITION) {
            let ending = Ending::of(frame.vector);
            self.objects.memory.report(format_args!(
                "bulkhead: the program's thread {:#x} ended by {} at {:#x} (address {address:#x}, \
                 error code {:#x}, stack {:#x})",
                thread.address(),
                ending.name,
                frame.rip,
                frame.error_code,
                frame.rsp
            ));
            return Next::End(ending.status);
        }
        let fault = match frame.vector {
            PAGE_FAULT => Fault::Memory {
                address,
                code: frame.error_code,
            },
            vector => Fault::Exception {
                vector,
                code: frame.error_code,
            },
        };
        self.count_time();
        self.objects.fault(thread, fault);
        self.settle()
    }
}

/// Vector of a page fault.
const PAGE_FAULT: u64 = 14;

/// How the end of a partition by a fault is reported.
struct Ending {
    name: &'static str,
    /// 128 + the signal that Linux sends for it.
    status: u8,
}

impl Ending {
    const fn of(vector: u64) -> Self {
        let (name, status) = match vector {
            0 => ("a division error", 128 + 8),
            1 => ("a debug exception", 128 + 5),
            3 => ("a breakpoint", 128 + 5),
            6 => ("an invalid instruction", 128 + 4),
            13 => ("a protection fault", 128 + 11),
            PAGE_FAULT => ("a page fault", 128 + 11),
            17 => ("a misaligned access", 128 + 7),
            16 | 19 => ("a floating-point error", 128 + 8),
            _ => ("an exception", 128 + 11),
        };
        Self { name, status }
    }
}
