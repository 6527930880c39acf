//! Capabilities to kernel objects as types, and the operations on them. What they mean stands in
//! `docs/kernel-objects.md`.
//!
//! A value of these types is a handle, no more: it can outlive what it names, and is answered
//! [`Status::InvalidCapability`] then.

use core::time::Duration;

use bulkhead_abi::object::{
    RIGHTS_ALL, TYPE_ADDRESS_SPACE, TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION,
    TYPE_PAGE_TABLE, TYPE_REPLY, TYPE_SCHED_CONTEXT, TYPE_THREAD, ThreadRegisters,
};
use bulkhead_abi::syscall::{
    CANCEL_BADGED_SENDS, COPY, DELETE, FRAME_ADDRESS, FRAME_MAP, FRAME_UNMAP, INSPECT,
    IRQ_ACKNOWLEDGE, IRQ_BIND, IRQ_MAKE, MINT, MOVE, MUTATE, POLL, RESTRICTED_BIND, RETYPE, REVOKE,
    ROTATE, SCHED_BIND, SCHED_CONFIGURE, SIGNAL, Status, TABLE_MAP, THREAD_BIND, THREAD_CONFIGURE,
    THREAD_READ_REGISTERS, THREAD_RESUME, THREAD_SET_PRIORITY, THREAD_SUSPEND,
    THREAD_WRITE_REGISTERS, WAIT, slot,
};

use crate::message::within;
use crate::slots;
use crate::syscall::{Registers, exchange, invoke};

/// Bits of a handle.
const DEPTH: u64 = 64;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name(pub u64);

            impl $name {
                /// Its slot in the program's own CNode.
                #[must_use]
                pub const fn place(self) -> Place {
                    Place::own(self.0)
                }

                /// Deletes the capability and gives its slot back to [`slots`].
                ///
                /// # Errors
                /// See [`DELETE`].
                pub fn delete(self) -> Result<(), Status> {
                    self.place().delete()?;
                    slots::give_back(self.0);
                    Ok(())
                }
            }
        )*
    };
}

handles! {
    /// Memory that can be retyped.
    Untyped;
    /// A table of capabilities.
    CNode;
    /// A frame of memory.
    Frame;
    /// A page table.
    PageTable;
    /// An address space.
    AddressSpace;
    /// A thread.
    Thread;
    /// A scheduling context.
    SchedContext;
    /// An endpoint.
    Endpoint;
    /// A notification.
    Notification;
    /// A reply object.
    Reply;
    /// The authority over devices' interrupts.
    IrqControl;
    /// The interrupt of a device.
    IrqHandler;
}

/// The program's own CNode.
pub const CNODE: CNode = CNode(slot::CNODE);
/// The program's own address space.
pub const ADDRESS_SPACE: AddressSpace = AddressSpace(slot::ADDRESS_SPACE);
/// The program's first thread.
pub const FIRST_THREAD: Thread = Thread(slot::THREAD);

/// A slot: an address of so many bits below a CNode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The CNode.
    pub cnode: CNode,
    /// The address.
    pub index: u64,
    /// Its bits.
    pub depth: u64,
}

impl Place {
    /// What a handle names.
    #[must_use]
    pub const fn own(handle: u64) -> Self {
        Self {
            cnode: CNODE,
            index: handle,
            depth: DEPTH,
        }
    }

    /// Slot `index` of a CNode of `1 << radix` slots without a guard.
    #[must_use]
    pub const fn of(cnode: CNode, radix: u64, index: u64) -> Self {
        Self {
            cnode,
            index,
            depth: radix,
        }
    }

    fn put<const N: usize>(self, operation: u64, from: Self, more: [u64; N]) -> Result<(), Status> {
        let mut arguments = [0; 8];
        let given = [self.index, self.depth, from.cnode.0, from.index, from.depth];
        for (argument, value) in arguments.iter_mut().zip(given.into_iter().chain(more)) {
            *argument = value;
        }
        // SAFETY: capabilities move; no memory changes.
        unsafe { invoke(operation, self.cnode.0, arguments) }.map(|_| ())
    }

    /// Copies what is in `from` to here.
    ///
    /// # Errors
    /// See [`COPY`].
    pub fn copy(self, from: Self, rights: u64) -> Result<(), Status> {
        self.put(COPY, from, [rights])
    }

    /// Copies what is in `from` to here, with a badge.
    ///
    /// # Errors
    /// See [`MINT`].
    pub fn mint(self, from: Self, rights: u64, badge: u64) -> Result<(), Status> {
        self.put(MINT, from, [rights, badge])
    }

    /// Copies the CNode in `from` to here, with a guard of `bits` bits.
    ///
    /// # Errors
    /// See [`MINT`].
    pub fn mint_guard(self, from: Self, guard: u64, bits: u64) -> Result<(), Status> {
        self.put(MINT, from, [RIGHTS_ALL | bits << 32, guard])
    }

    /// Moves what is in `from` to here.
    ///
    /// # Errors
    /// See [`MOVE`].
    pub fn relocate(self, from: Self) -> Result<(), Status> {
        self.put(MOVE, from, [])
    }

    /// Moves the CNode in `from` to here, with a guard.
    ///
    /// # Errors
    /// See [`MUTATE`].
    pub fn mutate(self, from: Self, guard: u64, bits: u64) -> Result<(), Status> {
        self.put(MUTATE, from, [guard, bits])
    }

    /// Moves what is in `pivot` to here, and what is in `from` to `pivot`.
    ///
    /// # Errors
    /// See [`ROTATE`].
    pub fn rotate(self, pivot: Self, from: Self) -> Result<(), Status> {
        self.put(ROTATE, pivot, [from.cnode.0, from.index, from.depth])
    }

    /// Empties it.
    ///
    /// # Errors
    /// See [`DELETE`].
    pub fn delete(self) -> Result<(), Status> {
        // SAFETY: who holds an object that goes knows that it goes.
        unsafe { invoke(DELETE, self.cnode.0, [self.index, self.depth]) }.map(|_| ())
    }

    /// Deletes what was derived from what is here.
    ///
    /// # Errors
    /// See [`REVOKE`].
    pub fn revoke(self) -> Result<(), Status> {
        // SAFETY: as for `delete`.
        unsafe { invoke(REVOKE, self.cnode.0, [self.index, self.depth]) }.map(|_| ())
    }
}

impl Untyped {
    /// Makes `count` objects of a `TYPE_*` in the slots of `cnode` from `offset` on.
    ///
    /// # Errors
    /// See [`RETYPE`].
    pub fn retype(
        self,
        kind: u64,
        size: u64,
        cnode: CNode,
        offset: u64,
        count: u64,
    ) -> Result<(), Status> {
        // SAFETY: memory of an untyped is nobody's.
        unsafe { invoke(RETYPE, self.0, [kind, size, cnode.0, 0, 0, offset, count]) }.map(|_| ())
    }

    /// Makes one object of a `TYPE_*` in a free slot: its handle.
    ///
    /// # Errors
    /// See [`RETYPE`]; [`Status::NotEnoughMemory`] also without a free slot.
    pub fn make(self, kind: u64, size: u64) -> Result<u64, Status> {
        let slot = slots::take().ok_or(Status::NotEnoughMemory)?;
        match self.retype(kind, size, CNODE, slot, 1) {
            Ok(()) => Ok(slot),
            Err(status) => {
                slots::give_back(slot);
                Err(status)
            }
        }
    }

    /// Its size in bits, and how many bytes of it are handed out.
    ///
    /// # Errors
    /// See [`INSPECT`].
    pub fn inspect(self) -> Result<(u64, u64), Status> {
        // SAFETY: nothing changes.
        unsafe { invoke(INSPECT, self.0, []) }.map(|[bits, used]| (bits, used))
    }

    /// Makes a CNode of `1 << radix` slots.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn cnode(self, radix: u64) -> Result<CNode, Status> {
        self.make(TYPE_CNODE, radix).map(CNode)
    }

    /// Makes a frame of `1 << bits` pages.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn frame(self, bits: u64) -> Result<Frame, Status> {
        self.make(TYPE_FRAME, bits).map(Frame)
    }

    /// Makes a page table.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn page_table(self) -> Result<PageTable, Status> {
        self.make(TYPE_PAGE_TABLE, 0).map(PageTable)
    }

    /// Makes an address space.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn address_space(self) -> Result<AddressSpace, Status> {
        self.make(TYPE_ADDRESS_SPACE, 0).map(AddressSpace)
    }

    /// Makes a thread.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn thread(self) -> Result<Thread, Status> {
        self.make(TYPE_THREAD, 0).map(Thread)
    }

    /// Makes a scheduling context.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn sched_context(self) -> Result<SchedContext, Status> {
        self.make(TYPE_SCHED_CONTEXT, 0).map(SchedContext)
    }

    /// Makes an endpoint.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn endpoint(self) -> Result<Endpoint, Status> {
        self.make(TYPE_ENDPOINT, 0).map(Endpoint)
    }

    /// Makes a notification.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn notification(self) -> Result<Notification, Status> {
        self.make(TYPE_NOTIFICATION, 0).map(Notification)
    }

    /// Makes a reply object.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn reply(self) -> Result<Reply, Status> {
        self.make(TYPE_REPLY, 0).map(Reply)
    }
}

impl Frame {
    /// Maps it, or changes the rights where it is mapped. One of 2 MiB becomes a large page.
    ///
    /// # Errors
    /// See [`FRAME_MAP`].
    ///
    /// # Safety
    /// In the program's own address space: who uses what is there keeps Rust's rules, also where
    /// the frame is mapped twice.
    pub unsafe fn map(self, space: AddressSpace, address: u64, rights: u64) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe { self.map_part(space, address, rights, (0, 0)) }
    }

    /// Maps `count` pages of it from the `first` on so that the first is at `address`, or changes
    /// the rights where they are mapped. 0 pages are all that follow.
    ///
    /// # Errors
    /// See [`FRAME_MAP`].
    ///
    /// # Safety
    /// As for [`Self::map`].
    pub unsafe fn map_part(
        self,
        space: AddressSpace,
        address: u64,
        rights: u64,
        part: (u64, u64),
    ) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        let mapped = unsafe { self.map_or_say(space, address, rights, part) };
        mapped.map_err(|(status, _)| status)
    }

    /// As [`Self::map_part`]; a refusal comes with what it tells, the level of a missing page table.
    ///
    /// # Errors
    /// See [`FRAME_MAP`].
    ///
    /// # Safety
    /// As for [`Self::map`].
    pub(crate) unsafe fn map_or_say(
        self,
        space: AddressSpace,
        address: u64,
        rights: u64,
        (first, count): (u64, u64),
    ) -> Result<(), (Status, u64)> {
        let mut registers = Registers {
            rax: FRAME_MAP,
            rdi: self.0,
            ..Registers::default()
        };
        registers.set_words(&[space.0, address, rights, first, count, 0, 0, 0, 0, 0]);
        // SAFETY: the caller's promise.
        unsafe { exchange(&mut registers) };
        registers.status().map_err(|status| (status, registers.rdx))
    }

    /// Unmaps it.
    ///
    /// # Errors
    /// See [`FRAME_UNMAP`].
    ///
    /// # Safety
    /// No reference into it is left.
    pub unsafe fn unmap(self) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe { self.unmap_part((0, 0)) }
    }

    /// Unmaps pages of it, given as to [`Self::map_part`].
    ///
    /// # Errors
    /// See [`FRAME_UNMAP`].
    ///
    /// # Safety
    /// As for [`Self::unmap`].
    pub unsafe fn unmap_part(self, (first, count): (u64, u64)) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe { invoke(FRAME_UNMAP, self.0, [first, count]) }.map(|_| ())
    }
}

impl Frame {
    /// As [`Self::map`]; page tables that are missing on the way are made of `memory`, and stay.
    ///
    /// # Errors
    /// As [`Self::map`] and [`Untyped::page_table`].
    ///
    /// # Safety
    /// As [`Self::map`].
    pub unsafe fn map_with_tables(
        self,
        memory: Untyped,
        space: AddressSpace,
        address: u64,
        rights: u64,
    ) -> Result<(), Status> {
        loop {
            // SAFETY: the caller's promise.
            match unsafe { self.map(space, address, rights) } {
                Err(Status::NotMapped) => memory.page_table()?.map(space, address)?,
                done => return done,
            }
        }
    }

    /// Where it lies for a device: its guest-physical address.
    ///
    /// # Errors
    /// See [`FRAME_ADDRESS`].
    pub fn physical(self) -> Result<u64, Status> {
        // SAFETY: nothing changes.
        unsafe { invoke(FRAME_ADDRESS, self.0, []) }.map(|[address, _]| address)
    }
}

impl IrqControl {
    /// Makes the capability to the interrupt of device number `device` in an empty slot.
    ///
    /// # Errors
    /// See [`IRQ_MAKE`].
    pub fn make(self, device: u64, to: Place) -> Result<(), Status> {
        let arguments = [device, to.cnode.0, to.index, to.depth];
        // SAFETY: no memory changes.
        unsafe { invoke(IRQ_MAKE, self.0, arguments) }.map(|_| ())
    }
}

impl IrqHandler {
    /// Has it signal `notification`.
    ///
    /// # Errors
    /// See [`IRQ_BIND`].
    pub fn bind(self, notification: Notification) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(IRQ_BIND, self.0, [notification.0]) }.map(|_| ())
    }

    /// Undoes [`Self::bind`].
    ///
    /// # Errors
    /// See [`IRQ_BIND`].
    pub fn unbind(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(IRQ_BIND, self.0, [0]) }.map(|_| ())
    }

    /// Lets it signal again. The device was looked after before.
    ///
    /// # Errors
    /// See [`IRQ_ACKNOWLEDGE`].
    pub fn acknowledge(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(IRQ_ACKNOWLEDGE, self.0, []) }.map(|_| ())
    }
}

impl PageTable {
    /// Puts it where the first one is missing on the way to an address.
    ///
    /// # Errors
    /// See [`TABLE_MAP`].
    pub fn map(self, space: AddressSpace, address: u64) -> Result<(), Status> {
        self.map_row(space, address, 1).map(|_| ())
    }

    /// Puts it and those at the handles that follow, up to `count` in all, where they are missing:
    /// how many were.
    ///
    /// # Errors
    /// See [`TABLE_MAP`].
    pub fn map_row(self, space: AddressSpace, address: u64, count: u64) -> Result<u64, Status> {
        // SAFETY: nothing is mapped by that.
        unsafe { invoke(TABLE_MAP, self.0, [space.0, address, count]) }.map(|[used, _]| used)
    }
}

/// What a thread is given; handle 0 for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The CNode that its handles begin at.
    pub cspace: u64,
    /// Its address space.
    pub address_space: u64,
    /// An endpoint, or the partition.
    pub fault_handler: u64,
    /// A frame.
    pub message_buffer: u64,
}

impl Configuration {
    /// What the program's own threads have; their faults end the partition.
    pub const OWN: Self = Self {
        cspace: slot::CNODE,
        address_space: slot::ADDRESS_SPACE,
        fault_handler: slot::PARTITION,
        message_buffer: 0,
    };
}

impl Thread {
    /// Gives it spaces, fault handler and message buffer.
    ///
    /// # Errors
    /// See [`THREAD_CONFIGURE`].
    pub fn configure(self, with: Configuration) -> Result<(), Status> {
        let handles = [
            with.cspace,
            with.address_space,
            with.fault_handler,
            with.message_buffer,
        ];
        // SAFETY: the thread is none of Rust's, or gets what it has.
        unsafe { invoke(THREAD_CONFIGURE, self.0, handles) }.map(|_| ())
    }

    /// Sets its priority and the highest that it may give, by the authority of another thread.
    ///
    /// # Errors
    /// See [`THREAD_SET_PRIORITY`].
    pub fn set_priority(self, authority: Self, priority: u64, ceiling: u64) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe {
            invoke(
                THREAD_SET_PRIORITY,
                self.0,
                [authority.0, priority, ceiling],
            )
        }
        .map(|_| ())
    }

    /// Its registers.
    ///
    /// # Errors
    /// See [`THREAD_READ_REGISTERS`].
    pub fn registers(self) -> Result<ThreadRegisters, Status> {
        let mut registers = EMPTY_REGISTERS;
        // SAFETY: the kernel writes to `registers` alone.
        unsafe { invoke(THREAD_READ_REGISTERS, self.0, [&raw mut registers as u64]) }?;
        Ok(registers)
    }

    /// Sets its registers, and lets it run if asked to.
    ///
    /// # Errors
    /// See [`THREAD_WRITE_REGISTERS`].
    ///
    /// # Safety
    /// What the thread does from there on keeps Rust's rules.
    pub unsafe fn set_registers(
        self,
        registers: &ThreadRegisters,
        resume: bool,
    ) -> Result<(), Status> {
        let arguments = [core::ptr::from_ref(registers) as u64, u64::from(resume)];
        // SAFETY: the caller's promise.
        unsafe { invoke(THREAD_WRITE_REGISTERS, self.0, arguments) }.map(|_| ())
    }

    /// Stops it.
    ///
    /// # Errors
    /// See [`THREAD_SUSPEND`].
    pub fn suspend(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(THREAD_SUSPEND, self.0, []) }.map(|_| ())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// See [`THREAD_RESUME`].
    pub fn resume(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(THREAD_RESUME, self.0, []) }.map(|_| ())
    }

    /// Makes `frame` what it shares with the kernel about a program in restricted mode: a
    /// [`bulkhead_abi::restricted::RestrictedState`] at its start.
    ///
    /// # Errors
    /// See [`RESTRICTED_BIND`].
    ///
    /// # Safety
    /// What is mapped of the frame is used for that alone, and never as a Rust reference while
    /// [`crate::syscall::restricted_enter`] runs.
    pub unsafe fn bind_restricted(self, frame: Frame) -> Result<(), Status> {
        // SAFETY: the caller's promise.
        unsafe { invoke(RESTRICTED_BIND, self.0, [frame.0]) }.map(|_| ())
    }

    /// Undoes [`Self::bind_restricted`].
    ///
    /// # Errors
    /// See [`RESTRICTED_BIND`].
    pub fn unbind_restricted(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(RESTRICTED_BIND, self.0, [0]) }.map(|_| ())
    }

    /// Lets signals of `notification` end its receiving.
    ///
    /// # Errors
    /// See [`THREAD_BIND`].
    pub fn bind(self, notification: Notification) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(THREAD_BIND, self.0, [notification.0]) }.map(|_| ())
    }

    /// Undoes [`Self::bind`].
    ///
    /// # Errors
    /// See [`THREAD_BIND`].
    pub fn unbind(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(THREAD_BIND, self.0, [0]) }.map(|_| ())
    }
}

/// Registers of zeros.
pub const EMPTY_REGISTERS: ThreadRegisters = ThreadRegisters {
    rax: 0,
    rbx: 0,
    rcx: 0,
    rdx: 0,
    rsi: 0,
    rdi: 0,
    rbp: 0,
    rsp: 0,
    r8: 0,
    r9: 0,
    r10: 0,
    r11: 0,
    r12: 0,
    r13: 0,
    r14: 0,
    r15: 0,
    rip: 0,
    rflags: 0,
    fs_base: 0,
    gs_base: 0,
};

impl SchedContext {
    /// Gives it so many nanoseconds of the first CPU in each period.
    ///
    /// # Errors
    /// See [`SCHED_CONFIGURE`].
    pub fn configure(self, budget_ns: u64, period_ns: u64) -> Result<(), Status> {
        self.configure_on(0, budget_ns, period_ns)
    }

    /// Gives it so many nanoseconds of a CPU in each period. CPUs are numbered from 0 to
    /// [`crate::environment::cpus`].
    ///
    /// # Errors
    /// See [`SCHED_CONFIGURE`].
    pub fn configure_on(self, cpu: u64, budget_ns: u64, period_ns: u64) -> Result<(), Status> {
        let control = slot::SCHED_CONTROL.saturating_add(cpu);
        // SAFETY: no memory changes.
        unsafe { invoke(SCHED_CONFIGURE, control, [self.0, budget_ns, period_ns]) }.map(|_| ())
    }

    /// Makes it `thread`'s own.
    ///
    /// # Errors
    /// See [`SCHED_BIND`].
    pub fn bind(self, thread: Thread) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(SCHED_BIND, self.0, [thread.0]) }.map(|_| ())
    }

    /// Undoes [`Self::bind`].
    ///
    /// # Errors
    /// See [`SCHED_BIND`].
    pub fn unbind(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(SCHED_BIND, self.0, [0]) }.map(|_| ())
    }
}

impl Notification {
    /// Signals it.
    ///
    /// # Errors
    /// See [`SIGNAL`].
    pub fn signal(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(SIGNAL, self.0, []) }.map(|_| ())
    }

    fn take(self, operation: u64) -> Result<u64, Status> {
        let mut registers = Registers {
            rax: operation,
            rdi: self.0,
            ..Registers::default()
        };
        // SAFETY: no memory changes.
        unsafe { exchange(&mut registers) };
        registers.status().map(|()| registers.rdi)
    }

    /// Waits for a signal: the badges of all since the last wait.
    ///
    /// # Errors
    /// See [`WAIT`].
    pub fn wait(self) -> Result<u64, Status> {
        self.take(WAIT)
    }

    /// Waits for a signal, no longer than that.
    ///
    /// # Errors
    /// See [`WAIT`]; [`Status::TimedOut`].
    pub fn wait_within(self, time: Duration) -> Result<u64, Status> {
        self.take(WAIT | within(time))
    }

    /// What was signalled; 0 for nothing.
    ///
    /// # Errors
    /// See [`POLL`].
    pub fn poll(self) -> Result<u64, Status> {
        self.take(POLL)
    }
}

impl Endpoint {
    /// Aborts all sends by capabilities with this one's badge.
    ///
    /// # Errors
    /// See [`CANCEL_BADGED_SENDS`].
    pub fn cancel_badged_sends(self) -> Result<(), Status> {
        // SAFETY: no memory changes.
        unsafe { invoke(CANCEL_BADGED_SENDS, self.0, []) }.map(|_| ())
    }
}
