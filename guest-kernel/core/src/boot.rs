//! From `BootInfo` to a first thread: the initial program mapped where its module lies, grants into
//! the root CNode, what is left of free memory into untypeds.
//!
//! | room | what lives there |
//! | --- | --- |
//! | `free` | free memory while the kernel starts |
//! | `space` | the first address space |

mod free;
mod space;

use bulkhead_abi::boot::{BootInfoView, Device, FLAG_CONSOLE, MAX_SIZE, MODULE_PROGRAM, Module};
use bulkhead_abi::layout::{
    LARGE_PAGE_SIZE, MAX_MODULES, PAGE_SIZE, PROGRAM_BASE, PROGRAM_BOOT_INFO,
    PROGRAM_MODULE_STRIDE, PROGRAM_MODULES, PROGRAM_STACK_BYTES, PROGRAM_STACK_TOP,
};
use bulkhead_abi::machine::MAX_DEVICES;
use bulkhead_abi::syscall::{Status, rights, slot};

use crate::elf::{ElfError, Image, Segment};
use crate::frame::Frame;
use crate::hardware::Hardware;
use crate::kernel::{Kernel, QUANTUM_MS, service};
use crate::objects::Objects;
use crate::objects::capability::{Capability, Kind, Rights as CapabilityRights};
use crate::objects::memory::Ref;
use crate::objects::schedule::{MIN_BUDGET, PRIORITIES};
use crate::objects::slot::Slot;
use crate::objects::thread::{Thread, ThreadSlot};
use crate::paging::Rights;
use crate::user::UserRange;
use free::FreeMemory;
use space::FirstSpace;

/// Why a partition could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No module is the initial program.
    NoProgram,
    /// The initial program is not a usable image.
    Program(ElfError),
    /// The initial program wants addresses outside its range, or its segments do not ascend.
    Addresses,
    /// A module is misaligned, too long, or there are too many.
    Modules,
    /// The partition has too little memory.
    Memory,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoProgram => f.write_str("there is no initial program among the modules"),
            Self::Program(error) => write!(f, "the initial program cannot be used: {error}"),
            Self::Addresses => f.write_str(
                "the initial program is not linked for its address range; link it with program.ld, \
                 or run a Linux program as linux-abi",
            ),
            Self::Modules => f.write_str("the modules do not lie as the boot protocol says"),
            Self::Memory => f.write_str("the partition has too little memory to start"),
        }
    }
}

impl From<Status> for StartError {
    fn from(status: Status) -> Self {
        match status {
            Status::NotEnoughMemory => Self::Memory,
            _ => Self::Addresses,
        }
    }
}

/// The module that is the initial program.
///
/// # Errors
/// [`StartError::NoProgram`].
pub fn program(info: &BootInfoView<'_>) -> Result<Module, StartError> {
    let mut modules = info.modules().iter();
    modules
        .find(|m| m.kind == MODULE_PROGRAM)
        .copied()
        .ok_or(StartError::NoProgram)
}

/// The first thread's priority; it may give any.
const FIRST_PRIORITY: u64 = 128;

impl<H: Hardware> Kernel<H> {
    /// Sets everything up; afterwards the first thread runs.
    ///
    /// `program` are the bytes of the module that [`program`] found, `root` the page table root
    /// the VMM entered the kernel with.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        &mut self,
        info: &BootInfoView<'_>,
        module: Module,
        program: &[u8],
        root: u64,
    ) -> Result<(), StartError> {
        self.tsc_khz = info.head().tsc_khz;
        self.objects.set_kernel_root(root);
        let mut free = FreeMemory::new(*info);
        let roots = free.take(2).ok_or(StartError::Memory)?;
        let capability = (self.objects.begin_space(roots)).map_err(|_| StartError::Memory)?;
        let mut space = FirstSpace::new(roots, &mut self.objects.memory, &mut free);

        let image = Image::parse(program).map_err(StartError::Program)?;
        let mut end = PROGRAM_BASE;
        for segment in image.segments() {
            let segment = segment.map_err(StartError::Program)?;
            end = map_segment(&mut space, end, segment, module.range.start)?;
        }
        show(&mut space, info)?;
        let stack = UserRange::pages(PROGRAM_STACK_TOP - PROGRAM_STACK_BYTES, PROGRAM_STACK_BYTES)?;
        space.map_new(stack, Rights::from_bits(rights::READ | rights::WRITE)?)?;

        let slots = self.grant(info, &mut free, capability)?;
        self.first_thread(&mut free, slots, image.entry)?;
        let mut next = slots.at(slot::MEMORY);
        let end = slots.at(slot::INTERRUPTS);
        free.untypeds(|address, bits| {
            // There are at most two of each size a region; what exceeds the slots is left unused.
            if next < end {
                let untyped = Capability::untyped(address, bits, false, 0);
                self.objects.plant(next, untyped);
                next = next.at(1);
            }
        });
        let _ = self.schedule();
        Ok(())
    }

    /// Makes the root CNode and fills it; its first slot.
    fn grant(
        &mut self,
        info: &BootInfoView<'_>,
        free: &mut FreeMemory<'_>,
        space: Capability,
    ) -> Result<Ref<Slot>, StartError> {
        let radix = info.root_radix();
        let pages = (size_of::<Slot>() as u64) << radix >> 12;
        let first = free.take(pages).ok_or(StartError::Memory)?;
        let cnode = Capability::cnode(first, radix)
            .with_guard(0, u64::from(u64::BITS - radix))
            .map_err(|_| StartError::Memory)?;
        let slots = cnode.object_ref::<Slot>();
        let plant = |objects: &mut Objects<H>, slot, capability| {
            objects.plant(slots.at(slot), capability);
        };
        let objects = &mut self.objects;
        if info.has(FLAG_CONSOLE) {
            let console = Capability::service(Kind::Service, service::CONSOLE);
            plant(objects, slot::CONSOLE, console);
        }
        let partition = Capability::service(Kind::Service, service::PARTITION);
        plant(objects, slot::ADDRESS_SPACE, space);
        plant(objects, slot::CNODE, cnode);
        plant(objects, slot::PARTITION, partition);
        for cpu in 0..info.cpus() {
            let control = Capability::service(Kind::SchedControl, cpu);
            plant(objects, slot::SCHED_CONTROL + cpu, control);
        }
        self.grant_devices(free, slots, info.devices())?;
        Ok(slots)
    }

    /// Fills the slots of devices: their registers and their interrupts.
    fn grant_devices(
        &mut self,
        free: &mut FreeMemory<'_>,
        slots: Ref<Slot>,
        devices: &[Device],
    ) -> Result<(), StartError> {
        let devices = devices.get(..MAX_DEVICES).unwrap_or(devices);
        if devices.is_empty() {
            return Ok(());
        }
        // What interrupts signal lies in a page of the kernel's own, in slots of zeros.
        let page = free.take(1).ok_or(StartError::Memory)?;
        let objects = &mut self.objects;
        objects.begin_interrupts(Ref::new(page), devices.len() as u64);
        let control = slots.at(slot::IRQ_CONTROL);
        objects.plant(control, Capability::service(Kind::IrqControl, 0));
        for (index, device) in (0..).zip(devices) {
            let window = device.registers;
            let fits = window.len.is_power_of_two()
                && window.len >= PAGE_SIZE
                && window.start.is_multiple_of(window.len);
            if fits {
                let bits = window.len.ilog2();
                let untyped = Capability::untyped(window.start, bits, true, 0);
                objects.plant(slots.at(slot::DEVICES + index), untyped);
            }
            let handler = slots.at(slot::INTERRUPTS + index);
            (objects.make_handler(control, handler, index)).map_err(|_| StartError::Memory)?;
        }
        Ok(())
    }

    /// Makes the first thread, its capabilities in the CNode that begins with `slots`, and lets it
    /// run.
    fn first_thread(
        &mut self,
        free: &mut FreeMemory<'_>,
        slots: Ref<Slot>,
        entry: u64,
    ) -> Result<(), StartError> {
        let page = free.take(1).ok_or(StartError::Memory)?;
        let thread = Capability::object(Kind::Thread, page);
        let behind = page + size_of::<Thread>() as u64;
        let context = Capability::object(Kind::SchedContext, behind);
        let objects = &mut self.objects;
        objects.plant(slots.at(slot::THREAD), thread);
        objects.plant(slots.at(slot::SCHED_CONTEXT), context);
        let thread = thread.object_ref::<Thread>();
        objects.memory.get_mut(thread).frame =
            Frame::start(entry, PROGRAM_STACK_TOP, PROGRAM_BOOT_INFO);
        let quantum = self.tsc_khz.saturating_mul(QUANTUM_MS).max(MIN_BUDGET);
        let context = context.object_ref();
        let most = PRIORITIES as u64 - 1;
        let ready = (|| {
            for (to, from) in [
                (ThreadSlot::CSpace, slot::CNODE),
                (ThreadSlot::AddressSpace, slot::ADDRESS_SPACE),
                (ThreadSlot::FaultHandler, slot::PARTITION),
            ] {
                objects.copy(thread.slot(to), slots.at(from), CapabilityRights::ALL)?;
            }
            objects.configure_context(context, [quantum, quantum], 0, 0)?;
            objects.bind_context(thread, context)?;
            objects.set_priority(thread, FIRST_PRIORITY, most, most)
        })();
        ready.map_err(|_| StartError::Memory)?;
        objects.resume(thread);
        Ok(())
    }
}

/// Maps a segment behind `before`, where the one before it ends: its own end.
fn map_segment<H: Hardware>(
    space: &mut FirstSpace<'_, '_, H>,
    before: u64,
    segment: Segment,
    module: u64,
) -> Result<u64, StartError> {
    let mut bits = rights::READ;
    if segment.write {
        bits |= rights::WRITE;
    }
    if segment.execute {
        bits |= rights::EXECUTE;
    }
    let rights = Rights::from_bits(bits)?;
    let file_end = segment.address + segment.file_pages * PAGE_SIZE;
    let end = file_end + segment.zero_pages * PAGE_SIZE;
    if segment.address < before || end > PROGRAM_BOOT_INFO {
        return Err(StartError::Addresses);
    }
    if segment.file_pages > 0 {
        let range = UserRange::pages(segment.address, file_end - segment.address)?;
        space.map(range, module + segment.offset, rights)?;
    }
    if segment.zero_pages > 0 {
        let range = UserRange::pages(file_end, end - file_end)?;
        space.map_new(range, rights)?;
    }
    Ok(end)
}

/// Shows the blob and the modules to the initial program, read-only.
fn show<H: Hardware>(
    space: &mut FirstSpace<'_, '_, H>,
    info: &BootInfoView<'_>,
) -> Result<(), StartError> {
    let blob = info.head().boot_info;
    let modules = info.modules();
    if modules.len() > MAX_MODULES {
        return Err(StartError::Modules);
    }
    let shown = (modules.iter().enumerate())
        .map(|(n, m)| (PROGRAM_MODULES + n as u64 * PROGRAM_MODULE_STRIDE, m.range))
        .filter(|(_, range)| range.len > 0);
    for (at, range) in shown {
        // A module has its 2 MiB pages to itself, so whole ones can be shown.
        let bytes = range.len.checked_next_multiple_of(LARGE_PAGE_SIZE);
        let bytes = bytes.filter(|bytes| *bytes <= PROGRAM_MODULE_STRIDE);
        if !range.start.is_multiple_of(LARGE_PAGE_SIZE) {
            return Err(StartError::Modules);
        }
        let pages = UserRange::pages(at, bytes.ok_or(StartError::Modules)?)?;
        space.map(pages, range.start, Rights::READ)?;
    }
    let bytes = blob.len.min(MAX_SIZE.into()).next_multiple_of(PAGE_SIZE);
    let pages = UserRange::pages(PROGRAM_BOOT_INFO, bytes)?;
    space.map(pages, blob.start, Rights::READ)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use bulkhead_abi::boot::{DEVICE_VIRTIO_MMIO, PhysRange};

    use super::*;
    use crate::fake::{Info, MODULE, PROGRAM, Partition};
    use crate::paging::AddressSpace;
    use bulkhead_abi::boot::{REGION_DEVICE, REGION_UNTYPED};
    use std::vec::Vec;

    #[test]
    fn the_first_thread_finds_its_world() {
        let mut p = Partition::usual();
        let frame = *p.frame();
        assert_eq!(frame.rip, PROGRAM + 0x40);
        assert_eq!(
            (frame.rsp, frame.rdi),
            (PROGRAM_STACK_TOP, PROGRAM_BOOT_INFO)
        );
        let space = AddressSpace::at(p.kernel.page_table_root());
        let memory = &p.kernel.objects.memory;
        let at = |address, write| space.translate(memory, address, write).map(|(at, _)| at);
        assert_eq!(
            at(PROGRAM + 0x1234, false),
            Some(MODULE + 0x2234),
            "text lies in the module"
        );
        assert_eq!(at(PROGRAM, true), None, "text is read-only");
        assert_eq!(
            at(PROGRAM + 0x2008, true),
            Some(MODULE + 0x3008),
            "data lies in the module"
        );
        assert!(
            at(PROGRAM + 0x3000, true).is_some(),
            "zeroed memory follows"
        );
        assert_eq!(at(PROGRAM + 0x4000, false), None);
        assert_eq!(at(PROGRAM_BOOT_INFO, false), Some(0x2000));
        assert_eq!(at(PROGRAM_BOOT_INFO, true), None);
        assert_eq!(at(PROGRAM_MODULES + 5, false), Some(MODULE + 5));
        assert_eq!(at(PROGRAM_MODULES, true), None);
        assert!(at(PROGRAM_STACK_TOP - 8, true).is_some());
        assert_eq!(at(PROGRAM_STACK_TOP - PROGRAM_STACK_BYTES - 1, false), None);
    }

    fn refused(spoil: impl FnOnce(&mut Info)) -> StartError {
        let mut info = Info::usual();
        spoil(&mut info);
        match Partition::start(&info) {
            Err(error) => error,
            Ok(_) => panic!("started"),
        }
    }

    #[test]
    fn what_cannot_start_says_why() {
        assert_eq!(refused(|i| i.modules.clear()), StartError::NoProgram);
        assert_eq!(refused(|i| i.regions.clear()), StartError::Memory);
        assert_eq!(refused(|i| i.regions[0].1 = 0x8000), StartError::Memory);
        let truncated = StartError::Program(ElfError::Truncated);
        assert_eq!(refused(|i| i.program.truncate(100)), truncated);
        assert_eq!(
            refused(|i| i.modules[0].range.start += 0x1000),
            StartError::Modules
        );
        assert_eq!(
            refused(|i| i.modules[0].range.len = 1 << 40),
            StartError::Modules
        );
        let module = Info::usual().modules[0];
        assert_eq!(
            refused(|i| i.modules = [module; 9].to_vec()),
            StartError::Modules
        );
        for address in [0x40_0000, PROGRAM_BOOT_INFO - 0x1000] {
            let headers = [[1, 5, 0x1000, address, 0x2000, 0x2000]];
            let program = crate::fake::image(address, 0x4000, &headers);
            assert_eq!(
                refused(|i| i.program = program),
                StartError::Addresses,
                "{address:#x}"
            );
        }
    }

    #[test]
    fn segments_ascend() {
        let segments = |addresses: [u64; 2]| {
            let headers = addresses.map(|at| [1, 5, 0x1000, at, 0x2000, 0x2000]);
            let program = crate::fake::image(PROGRAM, 0x4000, &headers);
            Partition::start(&Info {
                program,
                ..Info::usual()
            })
            .map(|_| ())
        };
        assert_eq!(segments([PROGRAM, PROGRAM + 0x2000]), Ok(()));
        for addresses in [
            [PROGRAM, PROGRAM],
            [PROGRAM, PROGRAM + 0x1000],
            [PROGRAM + 0x1000, PROGRAM],
            [PROGRAM + 0x4000, PROGRAM],
        ] {
            assert_eq!(
                segments(addresses),
                Err(StartError::Addresses),
                "{addresses:x?}"
            );
        }
    }

    /// The untypeds that a partition begins with: address and size.
    fn untypeds(regions: &[(u64, u64, u32)]) -> Vec<(u64, u64)> {
        let info = Info {
            regions: regions.to_vec(),
            ..Info::usual()
        };
        let mut p = Partition::start(&info).unwrap();
        let slots = capability(&mut p, slot::CNODE).unwrap();
        let slots = slots.object_ref::<Slot>();
        let all =
            (slot::MEMORY..slot::INTERRUPTS).map(|n| p.kernel.objects.capability(slots.at(n)));
        let given = all.clone().take_while(|found| !found.is_null());
        let given: Vec<_> = given.collect();
        let count = all.filter(|found| !found.is_null()).count();
        assert_eq!(count, given.len(), "empty slots follow the last");
        for untyped in &given {
            assert_eq!(
                (untyped.kind(), untyped.is_device()),
                (Kind::Untyped, false)
            );
            assert_eq!((untyped.watermark(), untyped.dirty()), (0, 0));
            assert!(untyped.address().is_multiple_of(1 << untyped.size_bits()));
        }
        let given = given.iter().map(|u| (u.address(), 1 << u.size_bits()));
        given.collect()
    }

    #[test]
    fn free_memory_becomes_untypeds_the_largest_first() {
        const MIB: u64 = 1 << 20;
        for regions in [
            &[(16 * MIB, 16 * MIB, REGION_UNTYPED)][..],
            &[(3 * MIB + 0x1000, 13 * MIB + 0x5000, REGION_UNTYPED)],
            &[
                (0, MIB / 2, REGION_UNTYPED),
                (5 * MIB, 91 * MIB, REGION_UNTYPED),
                (1 << 32, 64 * MIB, REGION_UNTYPED),
                (1 << 33, 1 << 30, REGION_DEVICE),
            ],
            // More than the largest untyped holds.
            &[(1 << 38, 7 << 36, REGION_UNTYPED)],
            &[((1 << 38) - (1 << 36), 4 << 36, REGION_UNTYPED)],
        ] {
            let mut given = untypeds(regions);
            assert!(given.is_sorted_by(|a, b| a.1 >= b.1), "{given:x?}");
            given.sort_unstable();
            let free = regions.iter().filter(|region| region.2 == REGION_UNTYPED);
            let longest = free
                .clone()
                .map(|(at, len, _)| (*len, *at))
                .max()
                .unwrap()
                .1;
            for (at, len, _) in free {
                let (mut next, end) = ((*at).max(PAGE_SIZE), at + len);
                let inside = given
                    .iter()
                    .filter(|(address, _)| (*at..end).contains(address));
                for (address, bytes) in inside {
                    if next == longest {
                        // What the kernel took for itself.
                        assert!(*address - next < 4 * MIB);
                        next = *address;
                    }
                    assert_eq!(*address, next, "{given:x?}");
                    next += bytes;
                }
                assert_eq!(next, end, "{given:x?}");
            }
        }
    }

    #[test]
    fn what_the_kernel_has_is_in_no_untyped() {
        let info = Info::usual();
        let given = untypeds(&info.regions);
        let mut p = Partition::usual();
        let thread = p.kernel.objects.current().unwrap().address();
        let cnode = capability(&mut p, slot::CNODE).unwrap().address();
        let root = p.kernel.page_table_root();
        let space = AddressSpace::at(root);
        let stack = space.translate(p.hardware(), PROGRAM_STACK_TOP - 8, true);
        for at in [thread, cnode, root, stack.unwrap().0] {
            let covers = |(start, len): &(u64, u64)| (*start..start + len).contains(&at);
            assert!(!given.iter().any(covers), "{at:#x}");
        }
    }

    /// The capability that the first thread names by a handle.
    fn capability(p: &mut Partition, handle: u64) -> Result<Capability, crate::objects::Error> {
        let objects = &p.kernel.objects;
        let thread = objects.current().unwrap();
        let root = objects.capability(thread.slot(ThreadSlot::CSpace));
        objects.lookup(root, handle).map(|(_, found)| found)
    }

    #[test]
    fn a_device_is_its_registers_and_its_interrupt() {
        let window = |start, len| Device {
            registers: PhysRange { start, len },
            kind: DEVICE_VIRTIO_MMIO,
            ..Device::default()
        };
        let mut info = Info::usual();
        info.devices = [
            window(0xd000_0000, 0x1000),
            // No window that an untyped could be.
            window(0xd000_1800, 0x1000),
            window(0xd000_2000, 0x800),
        ]
        .to_vec();
        let p = Partition::start(&info).unwrap();
        let objects = &p.kernel.objects;
        let thread = objects.current().unwrap();
        let root = objects.capability(thread.slot(ThreadSlot::CSpace));
        let found = |handle| objects.lookup(root, handle).map(|(_, found)| found);
        let registers = found(slot::DEVICES).unwrap();
        assert_eq!(
            (registers.kind(), registers.is_device()),
            (Kind::Untyped, true)
        );
        assert_eq!(
            (registers.address(), registers.size_bits()),
            (0xd000_0000, 12)
        );
        let none = Err(crate::objects::Error::InvalidCapability);
        for n in 1..4 {
            assert_eq!(found(slot::DEVICES + n), none);
        }
        for n in 0..3 {
            let handler = Capability::service(Kind::IrqHandler, n);
            assert_eq!(found(slot::INTERRUPTS + n), Ok(handler));
        }
        assert_eq!(found(slot::INTERRUPTS + 3), none);
        let control = found(slot::IRQ_CONTROL).map(Capability::kind);
        assert_eq!(control, Ok(Kind::IrqControl));
    }

    #[test]
    fn capabilities_are_the_grants() {
        let without = Info {
            flags: 0,
            ..Info::usual()
        };
        let kind = |p: &mut Partition, handle| capability(p, handle).map(Capability::kind);
        let mut p = Partition::usual();
        assert_eq!(kind(&mut p, slot::CONSOLE), Ok(Kind::Service));
        let mut p = Partition::start(&without).unwrap();
        let none = Err(crate::objects::Error::InvalidCapability);
        assert_eq!(kind(&mut p, slot::CONSOLE), none);
        for (handle, wanted) in [
            (slot::ADDRESS_SPACE, Kind::AddressSpace),
            (slot::THREAD, Kind::Thread),
            (slot::CNODE, Kind::CNode),
            (slot::PARTITION, Kind::Service),
            (slot::SCHED_CONTROL, Kind::SchedControl),
            (slot::SCHED_CONTEXT, Kind::SchedContext),
            (slot::MEMORY, Kind::Untyped),
        ] {
            assert_eq!(kind(&mut p, handle), Ok(wanted), "{handle}");
        }
        for handle in [
            slot::IRQ_CONTROL,
            slot::DEVICES,
            slot::INTERRUPTS,
            slot::FREE,
        ] {
            assert_eq!(kind(&mut p, handle), none, "{handle}");
        }
    }
}
