//! Entering and leaving restricted mode; the contract is [`bulkhead_abi::restricted`].
//!
//! A thread in restricted mode is the same thread with its other register set and the other root
//! of its address space. Nothing is scheduled on the way in or out.

use bulkhead_abi::layout::{PAGE_SIZE, USER_END};
use bulkhead_abi::restricted::{REASON_EXCEPTION, REASON_SYSCALL, RestrictedState};
use bulkhead_abi::syscall::Status;

use crate::frame::{Frame, USER_CODE, USER_DATA, user_flags};
use crate::hardware::Hardware;
use crate::kernel::{Kernel, Outcome};
use crate::thread::{Mode, StatePage};
use crate::user::UserRange;

/// Why the program left restricted mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Syscall,
    Exception { address: u64 },
}

impl Kernel {
    /// `RESTRICTED_BIND`. Once for one thread of the partition: see [`crate::thread`] for why.
    pub(crate) fn restricted_bind(
        &mut self,
        hardware: &mut impl Hardware,
        address: u64,
    ) -> Result<Outcome, Status> {
        UserRange::pages(address, PAGE_SIZE)?;
        if self.state_page.is_some() {
            return Err(Status::DeleteFirst);
        }
        let space = self.space()?;
        let (physical, _) = space
            .translate(hardware, address, true)
            .ok_or(Status::InvalidAddress)?;
        let page = crate::hardware::PhysPage::new(physical);
        self.state_page = Some(StatePage {
            thread: self.threads.current(),
            address,
            page,
        });
        Ok(Outcome::Value(0))
    }

    /// `RESTRICTED_ENTER`.
    pub(crate) fn restricted_enter(
        &mut self,
        hardware: &mut impl Hardware,
    ) -> Result<Outcome, Status> {
        let current = self.threads.current();
        let page = match self.state_page {
            Some(bound) if bound.thread == current => bound.page,
            _ => return Err(Status::InvalidArgument),
        };
        let state = hardware.restricted_state(page);
        // `iretq` to an address that is not canonical would fault in the kernel.
        if state.rip >= USER_END {
            return Err(Status::InvalidArgument);
        }
        let thread = self.threads.current_thread();
        load(&mut thread.restricted, state);
        // What the call returns when the program comes back.
        thread.native.rax = Status::Ok as u64;
        thread.native.rdx = 0;
        thread.mode = Mode::Restricted;
        Ok(Outcome::Resume)
    }

    /// Goes back from the program to its personality.
    pub(crate) fn restricted_leave(&mut self, hardware: &mut impl Hardware, exit: Exit) {
        let Some(bound) = self.state_page else { return };
        let thread = self.threads.current_thread();
        thread.mode = Mode::Native;
        let frame = &thread.restricted;
        let state = hardware.restricted_state(bound.page);
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
