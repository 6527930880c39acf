//! Entering and leaving restricted mode; the contract is [`bulkhead_abi::restricted`].
//!
//! A thread in restricted mode is the same thread with its other register set and the other root
//! of its address space. Nothing is scheduled on the way in or out.

use bulkhead_abi::layout::{PAGE_SIZE, USER_END};
use bulkhead_abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_abi::syscall::Status;

use crate::calls::{Outcome, Refusal};
use crate::frame::{Frame, USER_CODE, USER_DATA, user_flags};
use crate::hardware::{Hardware, PhysPage};
use crate::kernel::Kernel;
use crate::objects::memory::Ref;
use crate::objects::thread::{Mode, Thread};
use crate::user::UserRange;

/// Why the program left restricted mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Syscall,
    Exception { address: u64 },
}

/// The page through which a thread and the kernel pass restricted state. There is one in a
/// partition: the FPU and its descendants are not switched between threads, so only one thread's
/// program may have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatePage {
    pub(crate) address: u64,
}

impl<H: Hardware> Kernel<H> {
    /// `RESTRICTED_BIND`. Once for one thread of the partition.
    pub(crate) fn restricted_bind(
        &mut self,
        thread: Ref<Thread>,
        address: u64,
    ) -> Result<Outcome, Refusal> {
        UserRange::pages(address, PAGE_SIZE)?;
        if self.state_page.is_some() {
            return Err(Status::DeleteFirst.into());
        }
        let space = self.space(thread)?;
        if Ok(space) != self.first_space() {
            return Err(Status::InvalidAddress.into());
        }
        let (physical, _) = space
            .translate_pooled(&mut self.objects.memory, address, true)
            .ok_or(Status::InvalidAddress)?;
        self.state_page = Some(StatePage { address });
        self.objects.memory.get_mut(thread).state_page = physical;
        Ok(Outcome::Value(0))
    }

    /// `RESTRICTED_ENTER`. A refusal changes nothing.
    #[inline]
    pub(crate) fn restricted_enter(&mut self, thread: Ref<Thread>) -> Result<Outcome, Refusal> {
        let page = self.objects.memory.get(thread).state_page;
        if page == 0 {
            return Err(Status::InvalidArgument.into());
        }
        let (thread, state) = self
            .objects
            .memory
            .restricted_state(thread, PhysPage::new(page));
        // `iretq` to an address that is not canonical would fault in the kernel.
        if state.rip >= USER_END {
            return Err(Status::InvalidArgument.into());
        }
        load(&mut thread.restricted, state);
        // What the call returns when the program comes back.
        thread.frame.rax = Status::Ok as u64;
        thread.frame.rdx = 0;
        thread.set_mode(Mode::Restricted);
        Ok(Outcome::Answered)
    }

    /// Goes back from the program to its personality.
    #[inline]
    pub(crate) fn restricted_leave(&mut self, thread: Ref<Thread>, exit: Exit) {
        // A thread gets into restricted mode with a page alone, and keeps it.
        let page = PhysPage::new(self.objects.memory.get(thread).state_page);
        let (thread, state) = self.objects.memory.restricted_state(thread, page);
        thread.set_mode(Mode::Native);
        let frame = &thread.restricted;
        store(state, frame);
        match exit {
            Exit::Syscall => state.reason = REASON_SYSCALL,
            Exit::Exception { address } => {
                state.reason = REASON_EXCEPTION;
                state.vector = frame.vector;
                state.error_code = frame.error_code;
                state.fault_address = address;
            }
        }
    }
}

fn load(frame: &mut Frame, state: &RestrictedState) {
    frame.rax = state.rax;
    frame.rbx = state.rbx;
    frame.rcx = state.rcx;
    frame.rdx = state.rdx;
    frame.rsi = state.rsi;
    frame.rdi = state.rdi;
    frame.rbp = state.rbp;
    frame.rsp = state.rsp;
    frame.r8 = state.r8;
    frame.r9 = state.r9;
    frame.r10 = state.r10;
    frame.r11 = state.r11;
    frame.r12 = state.r12;
    frame.r13 = state.r13;
    frame.r14 = state.r14;
    frame.r15 = state.r15;
    frame.rip = state.rip;
    frame.rflags = user_flags(state.rflags);
    frame.cs = USER_CODE;
    frame.ss = USER_DATA;
}

fn store(state: &mut RestrictedState, frame: &Frame) {
    state.rax = frame.rax;
    state.rbx = frame.rbx;
    state.rcx = frame.rcx;
    state.rdx = frame.rdx;
    state.rsi = frame.rsi;
    state.rdi = frame.rdi;
    state.rbp = frame.rbp;
    state.rsp = frame.rsp;
    state.r8 = frame.r8;
    state.r9 = frame.r9;
    state.r10 = frame.r10;
    state.r11 = frame.r11;
    state.r12 = frame.r12;
    state.r13 = frame.r13;
    state.r14 = frame.r14;
    state.r15 = frame.r15;
    state.rip = frame.rip;
    state.rflags = frame.rflags;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use bulkhead_abi::syscall::{self, slot};

    use super::*;
    use crate::calls::tests::spawn;
    use crate::fake::{PROGRAM, Partition};
    use crate::kernel::{Next, Trap};
    use crate::objects::memory::Memory;

    /// The page of the fake program that is data, and its state page.
    const STATE: u64 = PROGRAM + 0x2000;

    fn bound() -> Partition {
        let mut p = Partition::usual();
        assert_eq!(p.call(syscall::RESTRICTED_BIND, [STATE, 0, 0, 0]), Ok(0));
        p
    }

    fn state(p: &mut Partition) -> &mut RestrictedState {
        let thread = p.kernel.objects.current().unwrap();
        let page = p.kernel.objects.memory.get(thread).state_page;
        let machine = p.hardware();
        machine.restricted_state(thread, PhysPage::new(page)).1
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
        let restricted = p.kernel.space.unwrap().restricted_root().address();
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
            rdi: 0,
            rsi: 0,
            r10: 0,
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
    fn the_state_page_is_bound_once_and_stays() {
        let mut p = Partition::usual();
        let first = p.kernel.objects.current();
        let enter = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
        assert_eq!(enter, Err(Status::InvalidArgument));
        for (address, status) in [
            (STATE + 8, Status::InvalidArgument),
            (PROGRAM, Status::InvalidAddress),
            (0x4000_0000, Status::InvalidAddress),
            (0, Status::InvalidAddress),
            (!0xfff, Status::InvalidAddress),
        ] {
            assert_eq!(
                p.call(syscall::RESTRICTED_BIND, [address, 0, 0, 0]),
                Err(status)
            );
        }
        assert_eq!(p.call(syscall::RESTRICTED_BIND, [STATE, 0, 0, 0]), Ok(0));
        let again = p.call(syscall::RESTRICTED_BIND, [STATE, 0, 0, 0]);
        assert_eq!(again, Err(Status::DeleteFirst));
        let unmap = [slot::ADDRESS_SPACE, PROGRAM, 0x4000, 0];
        assert_eq!(p.call(syscall::UNMAP, unmap), Err(Status::InvalidAddress));
        // A second thread cannot enter with the first one's page.
        spawn(&mut p, slot::FREE);
        let _ = p.enter(syscall::YIELD, [0; 4]);
        assert_ne!(p.kernel.objects.current(), first);
        let theirs = p.call(syscall::RESTRICTED_ENTER, [0; 4]);
        assert_eq!(theirs, Err(Status::InvalidArgument));
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
