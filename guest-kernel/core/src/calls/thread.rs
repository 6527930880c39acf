//! Threads and their time.

use bulkhead_abi::layout::{PAGE_SIZE, USER_END};
use bulkhead_abi::object::ThreadRegisters;
use bulkhead_abi::syscall::Status;

use super::{Answer, Arguments, Outcome, Refusal};
use crate::frame::{Frame, USER_CODE, USER_DATA, user_flags};
use crate::hardware::Hardware;
use crate::kernel::{Kernel, service};
use crate::objects::Error;
use crate::objects::capability::{Capability, Kind, Rights};
use crate::objects::memory::Ref;
use crate::objects::slot::Slot;
use crate::objects::thread::{Mode, Thread, ThreadSlot};
use crate::user::UserSlice;

/// Words of [`ThreadRegisters`].
const WORDS: usize = size_of::<ThreadRegisters>() / 8;

impl<H: Hardware> Kernel<H> {
    /// The thread that `thread` names by `handle`.
    pub(crate) fn thread(&self, thread: Ref<Thread>, handle: u64) -> Result<Ref<Thread>, Refusal> {
        Ok(self
            .capability(thread, handle, Kind::Thread)?
            .object_ref::<Thread>())
    }

    pub(super) fn configure(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [cspace, address_space, fault_handler, buffer, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        // In this order, because a long deletion is interrupted and the call executed again: by a
        // thread that may be the target, and then needs its code and the handles that it used.
        let handles = [
            (ThreadSlot::FaultHandler, fault_handler),
            (ThreadSlot::MessageBuffer, buffer),
            (ThreadSlot::AddressSpace, address_space),
            (ThreadSlot::CSpace, cspace),
        ];
        let mut sources: [Option<Ref<Slot>>; 4] = [None; 4];
        for (source, (slot, handle)) in sources.iter_mut().zip(handles) {
            if handle != 0 {
                *source = Some(self.source(thread, slot, handle)?);
            }
        }
        self.objects.bury()?;
        for (source, (slot, _)) in sources.into_iter().zip(handles) {
            let place = target.slot(slot);
            if slot == ThreadSlot::AddressSpace {
                self.objects.space_changes();
            }
            self.objects.delete(place)?;
            if let Some(source) = source {
                self.objects.copy(place, source, Rights::ALL)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The slot of what `handle` names, if it can be in a thread's `slot`.
    pub(crate) fn source(
        &self,
        thread: Ref<Thread>,
        slot: ThreadSlot,
        handle: u64,
    ) -> Result<Ref<Slot>, Refusal> {
        let (source, found) = self.lookup(thread, handle)?;
        let partition = Capability::service(Kind::Service, service::PARTITION);
        let fits = match slot {
            ThreadSlot::CSpace => found.kind() == Kind::CNode,
            ThreadSlot::AddressSpace => found.kind() == Kind::AddressSpace,
            ThreadSlot::FaultHandler => found.kind() == Kind::Endpoint || found == partition,
            ThreadSlot::MessageBuffer | ThreadSlot::RestrictedState => {
                found.kind() == Kind::Frame && !found.is_device()
            }
        };
        if fits {
            Ok(source)
        } else {
            Err(Status::InvalidCapability.into())
        }
    }

    pub(super) fn set_priority(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [authority, priority, ceiling, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        let authority = self.thread(thread, authority)?;
        let most = self.objects.memory.get(authority).ceiling();
        self.count_time();
        self.objects.set_priority(target, priority, ceiling, most)?;
        Ok(Outcome::Done)
    }

    /// Where the words of the registers lie that a program keeps at `address`: the first ones, and
    /// from which one on they lie at another place.
    fn register_words(
        &mut self,
        thread: Ref<Thread>,
        address: u64,
        write: bool,
    ) -> Result<impl Iterator<Item = u64> + use<H>, Refusal> {
        let bytes = size_of::<ThreadRegisters>() as u64;
        if !address.is_multiple_of(8) {
            return Err(Status::InvalidArgument.into());
        }
        UserSlice::new(address, bytes)?;
        let space = self.space(thread)?;
        let find = |at| {
            let found = space.translate(&self.objects.memory, at, write);
            found.map(|(at, _)| at).ok_or(Status::InvalidAddress)
        };
        let first = find(address)?;
        let here = (PAGE_SIZE - address % PAGE_SIZE).min(bytes);
        let second = if here < bytes {
            find(address + here)?
        } else {
            first
        };
        let place = move |word: u64| match (word * 8).checked_sub(here) {
            None => first + word * 8,
            Some(behind) => second + behind,
        };
        Ok((0..WORDS as u64).map(place))
    }

    pub(super) fn read_registers(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [into, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        let words = self.register_words(thread, into, true)?;
        self.objects.hold_still(target);
        let found = self.objects.memory.get(target);
        let registers = registers(&found.frame, found.fs_base, found.gs_base);
        let registers: [u64; WORDS] = zerocopy::transmute!(registers);
        for (at, word) in words.zip(registers) {
            self.objects.memory.store(at, word);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn write_registers(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [from, resume, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        if target == thread {
            return Err(Status::IllegalOperation.into());
        }
        if resume > 1 {
            return Err(Status::InvalidArgument.into());
        }
        let mut words = [0; WORDS];
        for (word, at) in words
            .iter_mut()
            .zip(self.register_words(thread, from, false)?)
        {
            *word = self.objects.memory.load(at);
        }
        let wanted: ThreadRegisters = zerocopy::transmute!(words);
        // The kernel would fault where it loads an address that is not canonical.
        if [wanted.rip, wanted.fs_base, wanted.gs_base]
            .iter()
            .any(|address| *address >= USER_END)
        {
            return Err(Status::InvalidAddress.into());
        }
        self.objects.suspend(target);
        let changed = self.objects.memory.get_mut(target);
        changed.set_mode(Mode::Native);
        changed.frame = Frame {
            cpu: changed.frame.cpu,
            ..frame(&wanted)
        };
        changed.fs_base = wanted.fs_base;
        changed.gs_base = wanted.gs_base;
        self.objects.forget_loaded(target);
        if resume == 1 {
            self.objects.resume(target);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn suspend(&mut self, thread: Ref<Thread>, handle: u64) -> Answer {
        let target = self.thread(thread, handle)?;
        self.count_time();
        self.objects.suspend(target);
        Ok(Outcome::Done)
    }

    pub(super) fn resume(&mut self, thread: Ref<Thread>, handle: u64) -> Answer {
        let target = self.thread(thread, handle)?;
        self.objects.resume(target);
        Ok(Outcome::Done)
    }

    pub(super) fn bind(
        &mut self,
        thread: Ref<Thread>,
        handle: u64,
        [notification, ..]: Arguments,
    ) -> Answer {
        let target = self.thread(thread, handle)?;
        if notification == 0 {
            self.objects.unbind(target);
        } else {
            let notification = self.capability(thread, notification, Kind::Notification)?;
            self.objects.bind(target, notification)?;
        }
        Ok(Outcome::Done)
    }

    pub(super) fn configure_context(
        &mut self,
        thread: Ref<Thread>,
        control: u64,
        [context, budget, period, ..]: Arguments,
    ) -> Answer {
        let control = self.capability(thread, control, Kind::SchedControl)?;
        let context = self.capability(thread, context, Kind::SchedContext)?;
        let ticks = [budget, period].map(|ns| self.ticks(ns));
        let now = self.objects.memory.now();
        let configured =
            (self.objects).configure_context(context.object_ref(), ticks, control.number(), now);
        match configured {
            // The bounds in the caller's unit.
            Err(Error::Range { min, .. }) => {
                let min = min.saturating_mul(1_000_000).div_ceil(self.tsc_khz.max(1));
                Err(Error::Range { min, max: period }.into())
            }
            other => other.map(|()| Outcome::Done).map_err(Into::into),
        }
    }

    pub(super) fn bind_context(
        &mut self,
        thread: Ref<Thread>,
        context: u64,
        [target, ..]: Arguments,
    ) -> Answer {
        let context = self.capability(thread, context, Kind::SchedContext)?;
        self.count_time();
        if target == 0 {
            self.objects.unbind_context(context.object_ref());
        } else {
            let target = self.thread(thread, target)?;
            self.objects.bind_context(target, context.object_ref())?;
        }
        Ok(Outcome::Done)
    }
}

const fn registers(frame: &Frame, fs_base: u64, gs_base: u64) -> ThreadRegisters {
    ThreadRegisters {
        rax: frame.rax,
        rbx: frame.rbx,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rsi: frame.rsi,
        rdi: frame.rdi,
        rbp: frame.rbp,
        rsp: frame.rsp,
        r8: frame.r8,
        r9: frame.r9,
        r10: frame.r10,
        r11: frame.r11,
        r12: frame.r12,
        r13: frame.r13,
        r14: frame.r14,
        r15: frame.r15,
        rip: frame.rip,
        rflags: frame.rflags,
        fs_base,
        gs_base,
    }
}

const fn frame(registers: &ThreadRegisters) -> Frame {
    Frame {
        r15: registers.r15,
        r14: registers.r14,
        r13: registers.r13,
        r12: registers.r12,
        r11: registers.r11,
        r10: registers.r10,
        r9: registers.r9,
        r8: registers.r8,
        rbp: registers.rbp,
        rdi: registers.rdi,
        rsi: registers.rsi,
        rdx: registers.rdx,
        rcx: registers.rcx,
        rbx: registers.rbx,
        rax: registers.rax,
        vector: 0,
        error_code: 0,
        rip: registers.rip,
        cs: USER_CODE,
        rflags: user_flags(registers.rflags),
        rsp: registers.rsp,
        ss: USER_DATA,
        ..Frame::ZERO
    }
}
