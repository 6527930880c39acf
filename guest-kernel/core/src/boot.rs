//! From `BootInfo` to a first thread: memory into the untyped, the initial program mapped where
//! its module lies, grants into the root CNode.

use bulkhead_abi::boot::{BootInfoView, FLAG_CONSOLE, MODULE_PROGRAM, Module, REGION_UNTYPED};
use bulkhead_abi::layout::{
    LARGE_PAGE_SIZE, MAX_MODULES, PAGE_SIZE, PROGRAM_BASE, PROGRAM_BOOT_INFO,
    PROGRAM_MODULE_STRIDE, PROGRAM_MODULES, PROGRAM_STACK_BYTES, PROGRAM_STACK_TOP,
};
use bulkhead_abi::machine::MAX_DEVICES;
use bulkhead_abi::syscall::{Status, rights, slot};

use crate::capability::Capability;
use crate::elf::{ElfError, Image, Segment};
use crate::frame::Frame;
use crate::hardware::{Hardware, PhysPage};
use crate::kernel::Kernel;
use crate::paging::{AddressSpace, Rights};
use crate::user::UserRange;

/// Why a partition could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// No module is the initial program.
    NoProgram,
    /// The initial program is not a usable image.
    Program(ElfError),
    /// The initial program wants addresses outside its range, or twice the same.
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

impl Kernel {
    /// Sets everything up; afterwards the first thread is ready to run.
    ///
    /// `program` are the bytes of the module that [`program`] found, `root` the page table root
    /// the VMM entered the kernel with.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(
        &mut self,
        hardware: &mut impl Hardware,
        info: &BootInfoView<'_>,
        module: Module,
        program: &[u8],
        root: u64,
    ) -> Result<(), StartError> {
        self.set_clock(info.head().tsc_khz);
        for region in info.regions().iter().filter(|r| r.kind == REGION_UNTYPED) {
            self.untyped.add(region.range.start, region.range.len);
        }
        let space = AddressSpace::first(hardware, &mut self.untyped, PhysPage::new(root))?;
        self.space = Some(space);
        self.grant(info);

        let image = Image::parse(program).map_err(StartError::Program)?;
        for segment in image.segments() {
            let segment = segment.map_err(StartError::Program)?;
            self.map_segment(hardware, space, segment, module.range.start)?;
        }
        self.show(hardware, space, info)?;
        let stack = UserRange::pages(PROGRAM_STACK_TOP - PROGRAM_STACK_BYTES, PROGRAM_STACK_BYTES)?;
        let read_write = Rights::from_bits(rights::READ | rights::WRITE)?;
        space.map(hardware, &mut self.untyped, stack, read_write)?;

        let frame = Frame::start(image.entry, PROGRAM_STACK_TOP, PROGRAM_BOOT_INFO);
        self.threads.spawn(frame, 0).ok_or(StartError::Memory)?;
        Ok(())
    }

    fn grant(&mut self, info: &BootInfoView<'_>) {
        if info.has(FLAG_CONSOLE) {
            self.root.grant(slot::CONSOLE, Capability::Console);
        }
        self.root.grant(slot::UNTYPED, Capability::Untyped);
        self.root
            .grant(slot::ADDRESS_SPACE, Capability::AddressSpace);
        self.root.grant(slot::THREAD, Capability::Thread);
        for index in 0..info.devices().len().min(MAX_DEVICES) {
            self.root.grant(
                slot::DEVICES + index as u64,
                Capability::Device(index as u8),
            );
        }
    }

    fn map_segment(
        &mut self,
        hardware: &mut impl Hardware,
        space: AddressSpace,
        segment: Segment,
        module: u64,
    ) -> Result<(), StartError> {
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
        if segment.address < PROGRAM_BASE || end > PROGRAM_BOOT_INFO {
            return Err(StartError::Addresses);
        }
        if segment.file_pages > 0 {
            let range = UserRange::pages(segment.address, file_end - segment.address)?;
            let physical = module + segment.offset;
            space.map_in_place(hardware, &mut self.untyped, range, physical, rights)?;
        }
        if segment.zero_pages > 0 {
            let range = UserRange::pages(file_end, end - file_end)?;
            space.map(hardware, &mut self.untyped, range, rights)?;
        }
        Ok(())
    }

    /// Shows the blob and the modules to the initial program, read-only.
    fn show(
        &mut self,
        hardware: &mut impl Hardware,
        space: AddressSpace,
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
            space.map_in_place(
                hardware,
                &mut self.untyped,
                pages,
                range.start,
                Rights::READ,
            )?;
        }
        let bytes = blob
            .len
            .next_multiple_of(PAGE_SIZE)
            .min(PROGRAM_STACK_TOP - PROGRAM_BOOT_INFO);
        let pages = UserRange::pages(PROGRAM_BOOT_INFO, bytes)?;
        space.map_in_place(hardware, &mut self.untyped, pages, blob.start, Rights::READ)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::fake::{Info, MODULE, PROGRAM, Partition};
    use crate::kernel::Kernel;

    #[test]
    fn the_first_thread_finds_its_world() {
        let mut p = Partition::usual();
        let frame = *p.kernel.threads.current_thread().frame();
        assert_eq!(frame.rip, PROGRAM + 0x40);
        assert_eq!(
            (frame.rsp, frame.rdi),
            (PROGRAM_STACK_TOP, PROGRAM_BOOT_INFO)
        );
        let space = p.kernel.space.unwrap();
        let mut at = |address, write| {
            space
                .translate(&mut p.hardware, address, write)
                .map(|(at, _)| at)
        };
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
            let program = crate::elf::tests::image(address, 0x4000, &headers);
            assert_eq!(
                refused(|i| i.program = program),
                StartError::Addresses,
                "{address:#x}"
            );
        }
    }

    #[test]
    fn a_device_region_is_no_memory() {
        let mut info = Info::usual();
        let before = Partition::start(&info)
            .unwrap()
            .kernel
            .untyped
            .ready_pages();
        info.regions.push((1 << 32, 1 << 30, 2));
        let after = Partition::start(&info)
            .unwrap()
            .kernel
            .untyped
            .ready_pages();
        assert_eq!(before, after);
    }

    #[test]
    fn capabilities_are_the_grants() {
        let without = Info {
            flags: 0,
            ..Info::usual()
        };
        let root = |kernel: &Kernel| kernel.root.require(slot::CONSOLE, Capability::Console);
        assert_eq!(root(&Partition::usual().kernel), Ok(()));
        let p = Partition::start(&without).unwrap();
        assert_eq!(root(&p.kernel), Err(Status::InvalidCapability));
        assert_eq!(
            p.kernel.root.require(slot::UNTYPED, Capability::Untyped),
            Ok(())
        );
        let device = p.kernel.root.require(slot::DEVICES, Capability::Device(0));
        assert_eq!(device, Err(Status::InvalidCapability));
    }
}
