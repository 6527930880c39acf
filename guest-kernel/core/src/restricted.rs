//! Entering and leaving restricted mode; the contract is [`bulkhead_abi::restricted`].
//!
//! A thread in restricted mode is the same thread with its other register set and the other root
//! of its address space. Nothing is scheduled on the way in or out.

use core::mem::offset_of;

use bulkhead_abi::layout::USER_END;
use bulkhead_abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_abi::syscall::Status;

use crate::calls::{Answer, Arguments, Outcome, Refusal};
use crate::frame::{Frame, USER_CODE, USER_DATA, user_flags};
use crate::hardware::Hardware;
use crate::kernel::Kernel;
use crate::objects::capability::Rights;
use crate::objects::memory::{Memory, Ref};
use crate::objects::thread::{Mode, Thread, ThreadSlot};

/// Why the program left restricted mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Syscall,
    Exception { address: u64 },
}

impl<H: Hardware> Kernel<H> {
    /// `RESTRICTED_BIND`. A refusal changes nothing.
    pub(crate) fn restricted_bind(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [frame, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        let place = target.slot(ThreadSlot::RestrictedState);
        if frame == 0 {
            self.objects.delete(place)?;
            self.objects.end_restricted(target);
            return Ok(Outcome::Done);
        }
        let source = self.source(thread, ThreadSlot::RestrictedState, frame)?;
        let rights = self.objects.capability(source).rights();
        if !rights.any(Rights::READ) || !rights.any(Rights::WRITE) {
            return Err(Status::IllegalOperation.into());
        }
        // In this order: what is interrupted is executed again.
        self.objects.bury()?;
        self.objects.begin_restricted(target)?;
        self.objects.delete(place)?;
        self.objects.copy(place, source, Rights::ALL)?;
        Ok(Outcome::Done)
    }

    /// Where a thread's restricted state lies; nowhere without a frame, or when that is gone.
    #[inline]
    fn restricted_state(&self, thread: Ref<Thread>) -> Option<Ref<RestrictedState>> {
        let frame = (self.objects).capability(thread.slot(ThreadSlot::RestrictedState));
        (!frame.is_null()).then(|| Ref::new(frame.address()))
    }

    /// `RESTRICTED_ENTER`. A refusal changes nothing.
    #[inline]
    pub(crate) fn restricted_enter(&mut self, thread: Ref<Thread>) -> Result<Outcome, Refusal> {
        let state = self.restricted_state(thread);
        let state = state.ok_or(Status::InvalidArgument)?;
        // The program's registers are read once: other CPUs can change the frame at any time.
        load(&mut self.objects.memory, thread, state);
        let thread = self.objects.memory.get_mut(thread);
        // `iretq` to an address that is not canonical would fault in the kernel.
        if thread.restricted.rip >= USER_END {
            return Err(Status::InvalidArgument.into());
        }
        // What the call returns when the program comes back.
        thread.frame.rax = Status::Ok as u64;
        thread.frame.rdx = 0;
        thread.set_mode(Mode::Restricted);
        Ok(Outcome::Answered)
    }

    /// Goes back from the program to its personality.
    #[inline]
    pub(crate) fn restricted_leave(&mut self, thread: Ref<Thread>, exit: Exit) {
        let Some(state) = self.restricted_state(thread) else {
            self.objects.memory.get_mut(thread).abort_restricted();
            return;
        };
        let memory = &mut self.objects.memory;
        memory.get_mut(thread).set_mode(Mode::Native);
        store(memory, thread, state);
        match exit {
            Exit::Syscall => memory.store(word(state, REASON), REASON_SYSCALL),
            Exit::Exception { address } => {
                let Frame {
                    vector, error_code, ..
                } = memory.get(thread).restricted;
                memory.store(word(state, REASON), REASON_EXCEPTION);
                memory.store(word(state, VECTOR), vector);
                memory.store(word(state, ERROR_CODE), error_code);
                memory.store(word(state, FAULT_ADDRESS), address);
            }
        }
    }
}

const REASON: usize = offset_of!(RestrictedState, reason);
const VECTOR: usize = offset_of!(RestrictedState, vector);
const ERROR_CODE: usize = offset_of!(RestrictedState, error_code);
const FAULT_ADDRESS: usize = offset_of!(RestrictedState, fault_address);

/// Where the field at an offset of a restricted state lies.
const fn word(state: Ref<RestrictedState>, offset: usize) -> u64 {
    state.address() + offset as u64
}

/// Does something with each register that both a frame and a restricted state have.
macro_rules! each_register {
    ($apply:ident) => {
        $apply!(
            rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags
        );
    };
}

#[inline(always)]
fn load(memory: &mut impl Memory, thread: Ref<Thread>, state: Ref<RestrictedState>) {
    macro_rules! load {
        ($($register:ident)*) => {
            $(
                let value = memory.load(word(state, offset_of!(RestrictedState, $register)));
                memory.get_mut(thread).restricted.$register = value;
            )*
        };
    }
    each_register!(load);
    let frame = &mut memory.get_mut(thread).restricted;
    frame.rflags = user_flags(frame.rflags);
    frame.cs = USER_CODE;
    frame.ss = USER_DATA;
}

#[inline(always)]
fn store(memory: &mut impl Memory, thread: Ref<Thread>, state: Ref<RestrictedState>) {
    macro_rules! store {
        ($($register:ident)*) => {
            $(
                let value = memory.get(thread).restricted.$register;
                memory.store(word(state, offset_of!(RestrictedState, $register)), value);
            )*
        };
    }
    each_register!(store);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use bulkhead_abi::syscall::{self, slot};

    use super::*;
    use crate::calls::tests::{page, spawn};
    use crate::fake::Partition;
    use crate::kernel::{Next, Trap};
    use crate::paging::AddressSpace;

    /// The handle of the frame, and where it is mapped.
    const FRAME: u64 = slot::FREE + 20;
    const AT: u64 = 0x4000_0000;

    fn bind(p: &mut Partition, thread: u64, frame: u64) -> Result<(), Status> {
        let bound = p.invoke(syscall::RESTRICTED_BIND, thread, &[frame]);
        bound.map(|_| ())
    }

    fn bound() -> Partition {
        let mut p = Partition::usual();
        page(&mut p, FRAME, AT);
        assert_eq!(bind(&mut p, slot::THREAD, FRAME), Ok(()));
        // What the calls left in them.
        *p.frame() = Frame {
            rip: p.frame().rip,
            rflags: p.frame().rflags,
            ..Frame::start(0, 0, 0)
        };
        p
    }

    fn state(p: &mut Partition) -> &mut RestrictedState {
        let space = AddressSpace::at(p.kernel.page_table_root());
        let (at, _) = space.translate(p.hardware(), AT, true).unwrap();
        p.hardware().restricted_state(at)
    }

    #[test]
    fn registers_go_in_and_come_out() {
        let mut p = bound();
        let native = *p.frame();
        let program = RestrictedState {
            rax: 1,
            rbx: 2,
            rcx: 3,
            rdx: 4,
            rsi: 5,
            rdi: 6,
            rbp: 7,
            rsp: 8,
            r8: 9,
            r9: 10,
            r10: 11,
            r11: 12,
            r12: 13,
            r13: 14,
            r14: 15,
            r15: 16,
            rip: 0x40_0000,
            rflags: 0x246,
            ..RestrictedState::default()
        };
        *state(&mut p) = program;
        let full = p.kernel.page_table_root();
        assert_eq!(p.enter(syscall::RESTRICTED_ENTER, [0; 4]), Next::Run);
        let restricted = AddressSpace::at(full).restricted_root();
        assert_eq!(p.kernel.page_table_root(), restricted);
        let frame = p.frame();
        assert_eq!((frame.rax, frame.r15, frame.rip), (1, 16, 0x40_0000));
        assert_eq!((frame.cs, frame.ss), (USER_CODE, USER_DATA));
        assert_eq!(p.trap(Trap::Syscall), Next::Run);
        assert_eq!(
            *state(&mut p),
            RestrictedState {
                reason: REASON_SYSCALL,
                ..program
            }
        );
        assert_eq!(p.kernel.page_table_root(), full);
        let back = *p.frame();
        let answered = Frame {
            rax: 0,
            rdx: 0,
            ..native
        };
        assert_eq!(back, answered, "the personality's registers are kept");
    }

    #[test]
    fn exceptions_go_to_the_personality() {
        let mut p = bound();
        state(&mut p).rip = 0x40_0000;
        assert_eq!(p.enter(syscall::RESTRICTED_ENTER, [0; 4]), Next::Run);
        let frame = p.frame();
        (frame.vector, frame.error_code) = (14, 6);
        assert_eq!(p.trap(Trap::Exception { address: 0xdead }), Next::Run);
        let seen = *state(&mut p);
        let found = (
            seen.reason,
            seen.vector,
            seen.error_code,
            seen.fault_address,
        );
        assert_eq!(found, (REASON_EXCEPTION, 14, 6, 0xdead));
        assert!(p.hardware().reports.is_empty());
    }

    #[test]
    fn flags_and_addresses_cannot_hurt_the_kernel() {
        let mut p = bound();
        state(&mut p).rflags = u64::MAX;
        assert_eq!(p.enter(syscall::RESTRICTED_ENTER, [0; 4]), Next::Run);
        let flags = p.frame().rflags;
        assert_eq!(flags, user_flags(u64::MAX));
        let _ = p.trap(Trap::Syscall);
        for rip in [USER_END, 1 << 63, u64::MAX] {
            state(&mut p).rip = rip;
            let answer = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
            assert_eq!(answer, Err(Status::InvalidArgument), "{rip:#x}");
        }
    }

    #[test]
    fn a_state_is_a_frame_of_one_thread() {
        let mut p = Partition::usual();
        let first = p.kernel.objects.current();
        let enter = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
        assert_eq!(enter, Err(Status::InvalidArgument));
        page(&mut p, FRAME, AT);
        let read_only = slot::FREE + 40;
        let copy = [read_only, 64, slot::CNODE, FRAME, 64, 1];
        p.invoke(syscall::COPY, slot::CNODE, &copy).unwrap();
        for (thread, frame, status) in [
            (slot::CNODE, FRAME, Status::InvalidCapability),
            (slot::THREAD, slot::CNODE, Status::InvalidCapability),
            (slot::THREAD, slot::FREE + 50, Status::InvalidCapability),
            (slot::THREAD, read_only, Status::IllegalOperation),
        ] {
            assert_eq!(bind(&mut p, thread, frame), Err(status));
        }
        // Another thread cannot have one meanwhile, and can when it is given up.
        spawn(&mut p, slot::FREE);
        assert_eq!(bind(&mut p, slot::THREAD, FRAME), Ok(()));
        assert_eq!(bind(&mut p, slot::THREAD, FRAME), Ok(()), "again");
        assert_eq!(bind(&mut p, slot::FREE, FRAME), Err(Status::Busy));
        let _ = p.enter(syscall::YIELD, [0; 4]);
        assert_ne!(p.kernel.objects.current(), first);
        let theirs = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
        assert_eq!(theirs, Err(Status::InvalidArgument));
        assert_eq!(bind(&mut p, slot::THREAD, 0), Ok(()));
        assert_eq!(bind(&mut p, slot::FREE, FRAME), Ok(()));
        assert_eq!(bind(&mut p, slot::THREAD, FRAME), Err(Status::Busy));
        let _ = p.enter(syscall::YIELD, [0; 4]);
        assert_eq!(p.kernel.objects.current(), first);
        let enter = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
        assert_eq!(enter, Err(Status::InvalidArgument));
        // It is free again when the other thread is gone.
        let delete = [slot::FREE, 64];
        p.invoke(syscall::DELETE, slot::CNODE, &delete).unwrap();
        assert_eq!(bind(&mut p, slot::THREAD, FRAME), Ok(()));
    }

    /// A state can be taken away while the program runs: by a revocation, or by another binding.
    #[test]
    fn a_state_that_goes_takes_the_program_along() {
        for taken_by in [syscall::REVOKE, syscall::RESTRICTED_BIND] {
            let mut p = bound();
            let first = p.kernel.objects.current();
            state(&mut p).rip = 0x40_0000;
            spawn(&mut p, slot::FREE);
            let rip = p.frame().rip;
            assert_eq!(p.enter(syscall::RESTRICTED_ENTER, [0; 4]), Next::Run);
            p.hardware().now = u64::MAX / 2;
            assert_eq!(p.trap(Trap::Timer), Next::Run);
            assert_ne!(p.kernel.objects.current(), first);
            let taken = match taken_by {
                syscall::REVOKE => p.invoke(taken_by, slot::CNODE, &[FRAME, 64]),
                _ => p.invoke(taken_by, slot::THREAD, &[0]),
            };
            assert!(taken.is_ok());
            let _ = p.enter(syscall::YIELD, [0; 4]);
            assert_eq!(p.kernel.objects.current(), first);
            if taken_by == syscall::REVOKE {
                assert_eq!(p.frame().rip, 0x40_0000, "it runs until it leaves");
                assert_eq!(p.trap(Trap::Syscall), Next::Run);
            }
            let frame = *p.frame();
            assert_eq!((frame.rip, frame.rax), (rip, Status::Aborted as u64));
            let again = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
            assert_eq!(again, Err(Status::InvalidArgument));
        }
    }

    #[test]
    fn preemption_in_restricted_mode_comes_back_to_it() {
        let mut p = bound();
        let first = p.kernel.objects.current();
        state(&mut p).rip = 0x40_0000;
        spawn(&mut p, slot::FREE);
        assert_eq!(p.enter(syscall::RESTRICTED_ENTER, [0; 4]), Next::Run);
        let restricted = p.kernel.page_table_root();
        p.hardware().now = u64::MAX / 2;
        assert_eq!(p.trap(Trap::Timer), Next::Run);
        assert_ne!(p.kernel.objects.current(), first);
        assert_ne!(p.kernel.page_table_root(), restricted);
        let _ = p.enter(syscall::YIELD, [0; 4]);
        assert_eq!(p.kernel.objects.current(), first);
        assert_eq!(p.kernel.page_table_root(), restricted);
        assert_eq!(p.frame().rip, 0x40_0000);
    }
}
