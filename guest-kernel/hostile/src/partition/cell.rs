//! A cell: hostile threads with an address space and a capability space of their own, made of one
//! untyped and ended by its revocation. The capability space begins like that of every program, except
//! that it cannot end the partition.

use bulkhead_hostile::AT;
use bulkhead_hostile::random::Random;
use bulkhead_hostile::sensible::cell;
use bulkhead_runtime::abi::layout::{PAGE_SIZE, PROGRAM_BASE};
use bulkhead_runtime::abi::object::{
    RIGHTS_ALL, TYPE_ADDRESS_SPACE, TYPE_CNODE, TYPE_ENDPOINT, TYPE_FRAME, TYPE_NOTIFICATION,
    TYPE_PAGE_TABLE, TYPE_REPLY, TYPE_SCHED_CONTEXT, TYPE_THREAD, TYPE_UNTYPED, ThreadRegisters,
};
use bulkhead_runtime::abi::syscall::{Status, rights, slot};
use bulkhead_runtime::object::{
    ADDRESS_SPACE, AddressSpace, CNODE, CNode, Configuration, EMPTY_REGISTERS, FIRST_THREAD, Frame,
    PageTable, Place, SchedContext, Thread, Untyped,
};
use bulkhead_runtime::{environment, slots};

use super::code::{self, Memory, ORDINARY_FLAGS, PAGES};

/// Threads of a cell.
pub(super) const THREADS: u64 = 3;
/// Bytes of a cell's untyped, in bits.
const BITS: u64 = 18;
/// Bytes of the untyped that its threads have, in bits.
const INNER_BITS: u64 = 16;
/// Where a thread's memory begins, one after another behind the code.
const MEMORY: u64 = PROGRAM_BASE + 16 * PAGE_SIZE;
const STRIDE: u64 = 16 * PAGE_SIZE;
/// Frames that a cell's threads execute from and work in.
const OWN_FRAMES: u64 = 1 + THREADS * PAGES;
/// The highest priority of a hostile thread, and what it may give.
pub(super) const CEILING: u64 = 150;
/// How long one runs while others are ready.
const TURN_NS: u64 = 4_000_000;
const READ_WRITE: u64 = rights::READ | rights::WRITE;

/// Slots of the supervisor's own CNode that a cell has, by their offset.
mod row {
    /// The cell's CNode, whose slots are at addresses of eight bits.
    pub(super) const CNODE: u64 = 0;
    /// The same with a guard, as the root of a capability space.
    pub(super) const ROOT: u64 = 1;
    pub(super) const SPACE: u64 = 2;
    /// What is made here and moved into the cell.
    pub(super) const PASSING: u64 = 3;
    pub(super) const THREADS: u64 = 4;
    pub(super) const CONTEXTS: u64 = THREADS + super::THREADS;
    pub(super) const COUNT: u64 = CONTEXTS + super::THREADS;
}

const _: () = assert!(OWN_FRAMES == cell::OWN_FRAMES && row::COUNT < 16);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    untyped: Untyped,
    /// First of the supervisor's slots for it.
    row: u64,
    /// The code's frame, then those of the threads; they outlive the cell's objects.
    frames: u64,
    /// Where the supervisor has those frames mapped.
    window: u64,
    /// Capabilities to send faults by, one for each thread.
    faults: u64,
    /// The CPU of its first thread; each further one has the next.
    cpu: u64,
}

impl Cell {
    /// What every life of the cell has: its memory, and frames that the supervisor maps at `window`,
    /// where page tables are. Its threads' faults go to `handler` with badges from `badge` on. They run
    /// on CPUs from `cpu` on.
    pub(super) fn new(window: u64, handler: Place, badge: u64, cpu: u64) -> Result<Self, Status> {
        let memory = Untyped(slot::MEMORY);
        let row = slots::take_row(row::COUNT).ok_or(Status::NotEnoughMemory)?;
        let frames = slots::take_row(OWN_FRAMES).ok_or(Status::NotEnoughMemory)?;
        let faults = slots::take_row(THREADS).ok_or(Status::NotEnoughMemory)?;
        memory.retype(TYPE_FRAME, 0, CNODE, frames, OWN_FRAMES)?;
        for n in 0..OWN_FRAMES {
            // SAFETY: nothing else is there, and only `Memory` and `install` look.
            unsafe { Frame(frames + n).map(ADDRESS_SPACE, window + n * PAGE_SIZE, READ_WRITE) }?;
        }
        for n in 0..THREADS {
            Place::own(faults + n).mint(handler, RIGHTS_ALL, badge + n)?;
        }
        Ok(Self {
            untyped: Untyped(memory.make(TYPE_UNTYPED, BITS)?),
            row,
            frames,
            window,
            faults,
            cpu,
        })
    }

    fn root(self) -> CNode {
        CNode(self.row + row::CNODE)
    }

    /// A slot inside.
    fn inside(self, index: u64) -> Place {
        Place::of(self.root(), cell::RADIX, index)
    }

    /// A slot of the supervisor's.
    fn own(self, offset: u64) -> Place {
        Place::own(self.row + offset)
    }

    /// Its thread number `n`.
    pub(super) fn thread(self, n: u64) -> Thread {
        Thread(self.row + row::THREADS + n)
    }

    fn context(self, n: u64) -> SchedContext {
        SchedContext(self.row + row::CONTEXTS + n)
    }

    /// The memory of that thread.
    pub(super) fn memory(self, n: u64) -> Memory {
        Memory {
            window: self.window + (1 + n * PAGES) * PAGE_SIZE,
            address: MEMORY + n * STRIDE,
            code: PROGRAM_BASE,
        }
    }

    /// Makes objects inside.
    fn fill(self, kind: u64, size: u64, slots: &[u64]) -> Result<(), Status> {
        let first = slots.first().copied().unwrap_or_default();
        let count = slots.len() as u64;
        self.untyped.retype(kind, size, self.root(), first, count)
    }

    /// Ends all that there is of it.
    pub(super) fn end(self) -> Result<(), Status> {
        self.untyped.place().revoke()?;
        // What the threads had of memory that outlives them.
        (0..OWN_FRAMES).try_for_each(|n| Place::own(self.frames + n).revoke())?;
        (0..THREADS).try_for_each(|n| Place::own(self.faults + n).revoke())
    }

    /// After [`Cell::end`]: whether all of the memory reads as zero, seen through frames that are mapped
    /// at `window`, one by one.
    pub(super) fn is_zero(self, window: u64) -> Result<bool, Status> {
        let (frame, mut zero) = (Frame(self.row + row::PASSING), true);
        for _ in 0..1 << (BITS - 12) {
            self.untyped.retype(TYPE_FRAME, 0, CNODE, frame.0, 1)?;
            // SAFETY: nothing else is there.
            unsafe { frame.map(ADDRESS_SPACE, window, rights::READ) }?;
            for word in 0..PAGE_SIZE / 8 {
                // SAFETY: the page was just mapped.
                zero &= unsafe { ((window + word * 8) as *const u64).read_volatile() } == 0;
            }
            // SAFETY: no reference was made.
            unsafe { frame.unmap() }?;
            // Another one keeps its memory from being handed out again.
            let keep = Place::own(self.row + row::SPACE);
            keep.delete()?;
            keep.relocate(frame.place())?;
        }
        self.end()?;
        Ok(zero)
    }

    /// Page tables on the way to `address`, kept in the slots that `tables` has next.
    fn tables(self, address: u64, tables: &mut impl Iterator<Item = u64>) -> Result<(), Status> {
        let (table, space) = (PageTable(self.row + row::PASSING), self.row + row::SPACE);
        loop {
            self.untyped.retype(TYPE_PAGE_TABLE, 0, CNODE, table.0, 1)?;
            if table.map(AddressSpace(space), address).is_err() {
                return table.place().delete();
            }
            let to = tables.next().ok_or(Status::NotEnoughMemory)?;
            self.inside(to).relocate(table.place())?;
        }
    }

    /// A new life, after [`Cell::end`]: everything as it is at first, the threads' memory empty, each at
    /// the code's first instruction.
    pub(super) fn begin(self, random: &mut Random) -> Result<(), Status> {
        let (untyped, space) = (self.untyped, AddressSpace(self.row + row::SPACE));
        untyped.retype(TYPE_CNODE, cell::RADIX, CNODE, self.row + row::CNODE, 1)?;
        untyped.retype(TYPE_ADDRESS_SPACE, 0, CNODE, space.0, 1)?;
        let guard_bits = u64::from(u64::BITS) - cell::RADIX;
        (self.own(row::ROOT)).mint_guard(self.own(row::CNODE), 0, guard_bits)?;
        let mut tables = cell::TABLES.into_iter();
        self.tables(PROGRAM_BASE, &mut tables)?;
        self.tables(AT, &mut tables)?;
        // SAFETY: the page is mapped there, for this alone.
        unsafe { code::install(self.window) };
        self.map_frames(space)?;
        self.fill(TYPE_UNTYPED, INNER_BITS, &[slot::MEMORY])?;
        self.fill(TYPE_FRAME, 0, &cell::FRAMES)?;
        self.fill(TYPE_ADDRESS_SPACE, 0, &[cell::SPACE])?;
        self.fill(TYPE_CNODE, 4, &[cell::NODE])?;
        self.fill(TYPE_ENDPOINT, 0, &cell::ENDPOINTS[..4])?;
        self.fill(TYPE_NOTIFICATION, 0, &cell::NOTIFICATIONS[..2])?;
        self.fill(TYPE_REPLY, 0, &cell::REPLIES)?;
        for (to, from, badge) in [
            (cell::ENDPOINTS[4], cell::ENDPOINTS[0], 1),
            (cell::ENDPOINTS[5], cell::ENDPOINTS[1], 2),
            (cell::NOTIFICATIONS[2], cell::NOTIFICATIONS[0], 4),
        ] {
            self.inside(to).mint(self.inside(from), RIGHTS_ALL, badge)?;
        }
        let copies = [
            (slot::CNODE, self.own(row::ROOT)),
            (slot::ADDRESS_SPACE, space.place()),
            (slot::CONSOLE, Place::own(slot::CONSOLE)),
        ];
        let controls = (slot::SCHED_CONTROL..).take(environment::cpus() as usize);
        let controls = controls.map(|control| (control, Place::own(control)));
        for (to, from) in copies.into_iter().chain(controls) {
            match self.inside(to).copy(from, RIGHTS_ALL) {
                // Not every partition has a console.
                Ok(()) | Err(Status::FailedLookup) => {}
                Err(status) => return Err(status),
            }
        }
        (0..THREADS).try_for_each(|n| self.begin_thread(n, random))
    }

    /// The code and the threads' memory, which their own capabilities map.
    fn map_frames(self, space: AddressSpace) -> Result<(), Status> {
        let passing = Frame(self.row + row::PASSING);
        for n in 0..OWN_FRAMES {
            passing
                .place()
                .copy(Place::own(self.frames + n), RIGHTS_ALL)?;
            let (address, allowed) = match n.checked_sub(1) {
                None => (PROGRAM_BASE, rights::READ | rights::EXECUTE),
                Some(n) => {
                    let thread = MEMORY + n / PAGES * STRIDE;
                    (thread + n % PAGES * PAGE_SIZE, READ_WRITE)
                }
            };
            // SAFETY: nothing of Rust's is in that address space.
            unsafe { passing.map(space, address, allowed) }?;
            self.inside(cell::CODE + n).relocate(passing.place())?;
        }
        Ok(())
    }

    fn begin_thread(self, n: u64, random: &mut Random) -> Result<(), Status> {
        let (thread, context) = (self.thread(n), self.context(n));
        self.untyped.retype(TYPE_THREAD, 0, CNODE, thread.0, 1)?;
        self.untyped
            .retype(TYPE_SCHED_CONTEXT, 0, CNODE, context.0, 1)?;
        self.repair(n, 1 + random.below(CEILING))?;
        let index = n as usize % cell::THREADS.len();
        for (slots, from) in [
            (cell::THREADS, thread.place()),
            (cell::CONTEXTS, context.place()),
        ] {
            let to = slots.get(index).copied().unwrap_or_default();
            self.inside(to).copy(from, RIGHTS_ALL)?;
        }
        self.memory(n).load(core::iter::empty(), random);
        self.revive(n)
    }

    /// Gives a thread the spaces and the time that every one begins with, whatever it has, and a
    /// priority.
    pub(super) fn repair(self, n: u64, priority: u64) -> Result<(), Status> {
        let (thread, context) = (self.thread(n), self.context(n));
        thread.configure(Configuration {
            cspace: self.row + row::ROOT,
            address_space: self.row + row::SPACE,
            fault_handler: self.faults + n,
            message_buffer: self.frames + (n + 1) * PAGES,
        })?;
        thread.set_priority(FIRST_THREAD, priority, CEILING)?;
        let cpu = (self.cpu + n) % environment::cpus();
        context.configure_on(cpu, TURN_NS, TURN_NS)?;
        match context.bind(thread) {
            // It is still bound, or the thread has another's: then that one is configured.
            Ok(()) | Err(Status::DeleteFirst) => Ok(()),
            Err(status) => Err(status),
        }
    }

    /// Has a thread go on with its next step, whatever it does.
    pub(super) fn revive(self, n: u64) -> Result<(), Status> {
        let registers = ThreadRegisters {
            rip: PROGRAM_BASE,
            rflags: ORDINARY_FLAGS,
            gs_base: self.memory(n).address,
            ..EMPTY_REGISTERS
        };
        // SAFETY: the thread reaches no memory of Rust's.
        unsafe { self.thread(n).set_registers(&registers, true) }
    }
}
