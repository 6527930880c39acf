//! The system calls of [`bulkhead_abi::syscall`], one function each. A call checks everything,
//! then acts; an error changes nothing. Numbers and their meaning are documented there.
//!
//! | room | what lives there |
//! | --- | --- |
//! | `capability` | capability spaces and untyped memory |
//! | `console` | the console |
//! | `interrupt` | interrupts of devices |
//! | `mapping` | frames and page tables |
//! | `message` | messages and notifications |
//! | `thread` | threads and their time |

mod capability;
mod console;
mod interrupt;
mod mapping;
mod message;
#[cfg(test)]
pub(crate) mod tests;
mod thread;

use bulkhead_abi::syscall::{self, Status};

use crate::hardware::Hardware;
use crate::kernel::{Kernel, service};
use crate::objects::Error;
use crate::objects::capability::{Capability, Kind};
use crate::objects::ipc::Sending;
use crate::objects::memory::Ref;
use crate::objects::slot::Slot;
use crate::objects::thread::{Thread, ThreadSlot};

/// Bits of `rax` that say which operation a call is.
const NUMBER: u64 = 0xff;

/// What a system call wants, beyond its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answer `Ok`.
    Done,
    /// Answer `Ok` with a value.
    Value(u64),
    /// Answer `Ok` with two values.
    Values([u64; 2]),
    /// The registers are set, or will be when what the thread waits for comes.
    Answered,
    /// Execute the call again when the thread runs again.
    Restart,
    /// End the partition.
    End(u8),
}

/// Why a call does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such call.
    Unknown,
    /// It has done a part of its work; execute it again.
    Again,
    /// It is refused, and some refusals tell more than their status.
    Refused(Status, Option<[u64; 2]>),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Refused(status, None)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCapability => Status::InvalidCapability.into(),
            Error::FailedLookup => Status::FailedLookup.into(),
            Error::DeleteFirst => Status::DeleteFirst.into(),
            Error::RevokeFirst => Status::RevokeFirst.into(),
            Error::Range { min, max } => Self::Refused(Status::OutOfRange, Some([min, max])),
            Error::InvalidAddress => Status::InvalidAddress.into(),
            Error::NoTable { level } => {
                Self::Refused(Status::NotMapped, Some([u64::from(level), 0]))
            }
            Error::InvalidArgument => Status::InvalidArgument.into(),
            Error::IllegalOperation => Status::IllegalOperation.into(),
            Error::NotEnoughMemory { available } => {
                Self::Refused(Status::NotEnoughMemory, Some([available, 0]))
            }
            Error::Busy => Status::Busy.into(),
            Error::NoCaller => Status::NoCaller.into(),
            Error::Preempted => Self::Again,
        }
    }
}

pub(crate) type Answer = Result<Outcome, Refusal>;

/// The arguments of an operation on a capability, behind the capability.
pub(crate) type Arguments = [u64; 8];

impl<H: Hardware> Kernel<H> {
    /// The call in the running thread's registers.
    pub(crate) fn call(&mut self, thread: Ref<Thread>) -> Answer {
        let frame = &self.objects.memory.get(thread).frame;
        let (number, handle) = (frame.rax, frame.rdi);
        let plain = [frame.rsi, frame.rdx, frame.r10];
        let message = frame.message();
        let [a, b, c, d, e, f, g, h, ..] = message;
        let arguments = [a, b, c, d, e, f, g, h];
        match number {
            syscall::EXIT => return self.exit(thread, handle, plain),
            syscall::CONSOLE_WRITE => return self.console_write(thread, handle, plain),
            syscall::CONSOLE_READ => return self.console_read(thread, handle, plain),
            syscall::YIELD => {
                self.count_time();
                self.objects.yield_now();
                return Ok(Outcome::Value(0));
            }
            syscall::SLEEP => return self.sleep(thread, handle),
            syscall::RESTRICTED_ENTER => return self.restricted_enter(thread),
            _ => {}
        }
        match number & NUMBER {
            syscall::RESTRICTED_BIND => self.restricted_bind(thread, handle, arguments),
            syscall::COPY => self.copy(thread, handle, arguments),
            syscall::MINT => self.mint(thread, handle, arguments),
            syscall::MOVE => self.relocate(thread, handle, arguments, false),
            syscall::MUTATE => self.relocate(thread, handle, arguments, true),
            syscall::ROTATE => self.rotate(thread, handle, arguments),
            syscall::DELETE => self.delete(thread, handle, arguments),
            syscall::REVOKE => self.revoke(thread, handle, arguments),
            syscall::CANCEL_BADGED_SENDS => self.cancel_badged_sends(thread, handle),
            syscall::RETYPE => self.retype(thread, handle, arguments),
            syscall::INSPECT => self.inspect(thread, handle),
            syscall::SIGNAL => self.signal(thread, handle),
            syscall::WAIT => self.wait(thread, handle, false),
            syscall::POLL => self.wait(thread, handle, true),
            syscall::SEND => self.send(thread, handle, Sending::Blocking),
            syscall::NB_SEND => self.send(thread, handle, Sending::NonBlocking),
            syscall::CALL => self.send(thread, handle, Sending::Call),
            syscall::RECV => self.receive(thread, handle, false),
            syscall::NB_RECV => self.receive(thread, handle, true),
            syscall::REPLY => self.reply(thread, handle),
            syscall::REPLY_RECV => self.reply_receive(thread, handle),
            syscall::THREAD_CONFIGURE => self.configure(thread, handle, arguments),
            syscall::THREAD_SET_PRIORITY => self.set_priority(thread, handle, arguments),
            syscall::THREAD_READ_REGISTERS => self.read_registers(thread, handle, arguments),
            syscall::THREAD_WRITE_REGISTERS => self.write_registers(thread, handle, arguments),
            syscall::THREAD_SUSPEND => self.suspend(thread, handle),
            syscall::THREAD_RESUME => self.resume(thread, handle),
            syscall::THREAD_BIND => self.bind(thread, handle, arguments),
            syscall::SCHED_CONFIGURE => self.configure_context(thread, handle, arguments),
            syscall::SCHED_BIND => self.bind_context(thread, handle, arguments),
            syscall::FRAME_MAP => self.map_frame(thread, handle, arguments),
            syscall::FRAME_UNMAP => self.unmap_frame(thread, handle, arguments),
            syscall::FRAME_ADDRESS => self.frame_address(thread, handle),
            syscall::IRQ_MAKE => self.make_handler(thread, handle, arguments),
            syscall::IRQ_BIND => self.bind_interrupt(thread, handle, arguments),
            syscall::IRQ_ACKNOWLEDGE => self.acknowledge_interrupt(thread, handle),
            syscall::TABLE_MAP => self.map_tables(thread, handle, arguments),
            _ => Err(Refusal::Unknown),
        }
    }

    /// The CNode that a thread's handles begin at.
    fn root_of(&self, thread: Ref<Thread>) -> Capability {
        self.objects.capability(thread.slot(ThreadSlot::CSpace))
    }

    /// The slot and capability that `thread` names by `handle`.
    pub(crate) fn lookup(
        &self,
        thread: Ref<Thread>,
        handle: u64,
    ) -> Result<(Ref<Slot>, Capability), Refusal> {
        Ok(self.objects.lookup(self.root_of(thread), handle)?)
    }

    /// The capability of one kind that `thread` names by `handle`.
    fn capability(
        &self,
        thread: Ref<Thread>,
        handle: u64,
        kind: Kind,
    ) -> Result<Capability, Refusal> {
        let (_, found) = self.lookup(thread, handle)?;
        if found.kind() == kind {
            Ok(found)
        } else {
            Err(Status::InvalidCapability.into())
        }
    }

    /// Checks that `handle` names a service of the kernel.
    fn service(&self, thread: Ref<Thread>, handle: u64, number: u64) -> Result<(), Refusal> {
        let wanted = Capability::service(Kind::Service, number);
        match self.capability(thread, handle, Kind::Service)? {
            found if found == wanted => Ok(()),
            _ => Err(Status::InvalidCapability.into()),
        }
    }

    /// Counts the running thread's time before it may change hands.
    pub(crate) fn count_time(&mut self) {
        let now = self.objects.memory.now();
        self.objects.count_time(now);
    }

    fn exit(&mut self, thread: Ref<Thread>, partition: u64, [status, ..]: [u64; 3]) -> Answer {
        self.service(thread, partition, service::PARTITION)?;
        u8::try_from(status)
            .map(Outcome::End)
            .map_err(|_| Status::InvalidArgument.into())
    }

    fn sleep(&mut self, thread: Ref<Thread>, ns: u64) -> Answer {
        self.count_time();
        let due = self.objects.memory.now().saturating_add(self.ticks(ns));
        let frame = &mut self.objects.memory.get_mut(thread).frame;
        frame.rdx = 0;
        self.objects.sleep(thread, due);
        Ok(Outcome::Answered)
    }

    /// Ticks of the time stamp counter in `ns` nanoseconds, saturating.
    fn ticks(&self, ns: u64) -> u64 {
        let (ms, rest) = (ns / 1_000_000, ns % 1_000_000);
        let whole = ms.saturating_mul(self.tsc_khz);
        whole.saturating_add(rest.saturating_mul(self.tsc_khz) / 1_000_000)
    }
}
