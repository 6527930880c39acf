//! Guest memory: what lies where, what backs it, and how pages go back to the host.
//!
//! RAM lies at `0..LOW_END` and, where a partition has more, from 4 GiB upwards: the gap holds the
//! virtio windows and the interrupt controllers. Above RAM come the region that virtio-mem plugs
//! memory into, then persistent memory ([`super::pmem`]).
//!
//! Three backings. Private anonymous memory is the quickest to touch, since the host gives it huge
//! pages, and nobody else can map it. A partition that has, or may be given, a device in another process
//! (vhost-user) has a sealed memfd, which that process maps. One that asks for
//! huge pages has a memfd of the host's pool; they are reserved here, so that a pool that is too small
//! is found before the guest starts. docs/memory.md has the figures behind this.
//!
//! Memory is committed as the guest touches it. The one check against the host is that a partition
//! may not have more memory than the host has RAM and swap, since such a partition could never use
//! what it was promised; whether several partitions fit together is the supervisor's to judge.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bulkhead_machine::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, madvise};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use crate::error::Error;

/// The memory of one partition.
pub type GuestMemory = GuestMemoryMmap<()>;

/// End (exclusive) of RAM below 4 GiB: 3 GiB.
pub const LOW_END: u64 = bulkhead_machine::pc::pci::WINDOW.start;
/// Start of RAM above the gap.
pub const HIGH_START: u64 = 1 << 32;
/// What lies above RAM starts on a multiple of this: Linux adds memory in blocks of 128 MiB.
pub const ALIGNMENT: u64 = 128 * MIB;
/// Bytes of a huge page of the host's pool.
pub const HUGEPAGE: u64 = 2 * MIB;

/// Attempts to begin a region on a huge page; where none succeeds, it is slower and no more.
const ALIGNING: usize = 8;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A partition's memory, mapped.
pub struct Mapped {
    /// What loaders and the memory map speak of: from the start.
    pub ram: GuestMemory,
    /// What devices and the guest reach: RAM and the pluggable region.
    pub all: GuestMemory,
    /// Start and bytes of the pluggable region.
    pub pluggable: Option<(GuestAddress, u64)>,
}

/// Maps zeroed memory as `wanted` says.
///
/// # Errors
/// [`Error::MemoryTooLarge`], [`Error::HugepagesTooFew`], or [`Error::Memory`] when the host refuses.
pub fn map(wanted: &Memory) -> Result<Mapped, Error> {
    let total_mib = wanted.mib.saturating_add(wanted.pluggable_mib);
    check_host_has(total_mib, host_mib())?;
    let bytes = total_mib
        .checked_mul(MIB)
        .ok_or_else(|| Error::Memory(format!("{total_mib} MiB overflow an address")))?;
    let file = if wanted.shared || wanted.hugepages {
        Some(Arc::new(memfd(bytes, wanted.hugepages)?))
    } else {
        None
    };
    let ram = ranges(wanted.mib * MIB);
    let mut regions = Vec::with_capacity(3);
    let mut offset = 0;
    let pluggable = pluggable(&ram, wanted.pluggable_mib * MIB);
    for (start, len) in ram.iter().copied().chain(pluggable) {
        let file = file
            .as_ref()
            .map(|f| FileOffset::from_arc(f.clone(), offset));
        regions.push(Arc::new(region(start, len, file, wanted)?));
        offset += len;
    }
    let collection = |regions: &[Arc<GuestRegionMmap>]| {
        GuestMemory::from_arc_regions(regions.to_vec()).map_err(|e| Error::Memory(e.to_string()))
    };
    let mapped = Mapped {
        ram: collection(regions.get(..ram.len()).unwrap_or_default())?,
        all: collection(&regions)?,
        pluggable: pluggable.map(|(start, len)| (GuestAddress(start), len)),
    };
    if wanted.prefault {
        prefault(&mapped.ram)?;
    }
    Ok(mapped)
}

/// Private memory of `mib` MiB, touched as needed.
///
/// # Errors
/// As [`map`].
pub fn create(mib: u64) -> Result<GuestMemory, Error> {
    map(&Memory::of_mib(mib)).map(|mapped| mapped.ram)
}

fn memfd(bytes: u64, hugepages: bool) -> Result<File, Error> {
    let refused = |e: rustix::io::Errno| Error::Memory(e.to_string());
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = memfd_create("guest-memory", flags).map_err(refused)?;
    ftruncate(&file, bytes).map_err(refused)?;
    // A mapping of a file that cannot shrink cannot raise SIGBUS at its end.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(refused)?;
    Ok(File::from(file))
}

fn region(
    start: u64,
    len: u64,
    file: Option<FileOffset>,
    wanted: &Memory,
) -> Result<GuestRegionMmap, Error> {
    let mut flags = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    if !wanted.hugepages {
        flags |= libc::MAP_NORESERVE;
    }
    let build = || {
        let mut builder = MmapRegionBuilder::new(len as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .with_hugetlbfs(wanted.hugepages);
        if let Some(file) = &file {
            builder = builder.with_file_offset(file.clone());
        }
        builder.build().map_err(|e| match e {
            MmapRegionError::Mmap(source) if wanted.hugepages => Error::HugepagesTooFew {
                wanted_mib: wanted.mib + wanted.pluggable_mib,
                source,
            },
            other => Error::Memory(other.to_string()),
        })
    };
    let mut mapping = build()?;
    // KVM maps a huge page of the host as one only where the guest's begin where the host's do. The
    // kernel puts mappings one below the other, and before Linux 6.7 on any page: what is above the
    // multiple is filled until the memory is in its place.
    let mut fill = Vec::new();
    let misplaced = |at: *mut u8| at as usize % HUGEPAGE as usize;
    while misplaced(mapping.as_ptr()) > 0 && fill.len() < ALIGNING {
        let above = misplaced(mapping.as_ptr());
        drop(mapping);
        fill.push(MmapRegionBuilder::<()>::new(above).build());
        mapping = build()?;
    }
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::Memory(format!("{len:#x} bytes at {start:#x} overflow an address")))
}

/// Where `bytes` of RAM lie: guest-physical start and length.
fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_START, bytes - low));
    }
    ranges
}

/// Where the pluggable region lies.
fn pluggable(ram: &[(u64, u64)], bytes: u64) -> Option<(u64, u64)> {
    let end = ram.last().map_or(0, |(start, len)| start + len);
    let start = end.max(HIGH_START).next_multiple_of(ALIGNMENT);
    (bytes > 0).then_some((start, bytes))
}

/// First address above all of `memory` and the gap that something aligned may start at.
pub fn above(memory: &GuestMemory) -> GuestAddress {
    let end = memory.last_addr().raw_value() + 1;
    GuestAddress(end.max(HIGH_START).next_multiple_of(ALIGNMENT))
}

/// Touches every page, so that none is missing, or slow, later.
fn prefault(memory: &GuestMemory) -> Result<(), Error> {
    for region in regions(memory) {
        // SAFETY: the range is the whole of one mapping of `memory`; touching changes no contents.
        unsafe {
            madvise(
                region.host.cast(),
                region.len as usize,
                Advice::LinuxPopulateWrite,
            )
        }
        .map_err(|e| Error::Memory(format!("the host cannot provide all of it now: {e}")))?;
    }
    Ok(())
}

/// Says that the `len` bytes from `start` are about to be filled: private memory of which at least
/// half a huge page is used gets a huge page, which costs one fault instead of 512. No more than a
/// hint, and never a page that stays mostly empty: elsewhere a guest that touches 4 KiB would cost
/// the host 2 MiB, and the time to clear them. Shared memory gets its small pages, all in one call
/// rather than in a fault each.
pub fn expect_dense(memory: &GuestMemory, start: GuestAddress, len: u64) {
    let Some(region) = memory.find_region(start) else {
        return;
    };
    let offset = start.unchecked_offset_from(region.start_addr()) / PAGE * PAGE;
    let (from, to, advice) = match (region.file_offset(), dense(offset, len)) {
        (Some(_), _) => (
            offset,
            offset.saturating_add(len),
            Advice::LinuxPopulateWrite,
        ),
        (None, (from, to)) => (from, to, Advice::LinuxHugepage),
    };
    let len = to.min(region.len()).saturating_sub(from);
    let host = region.as_ptr().wrapping_add(from as usize);
    // SAFETY: the range lies in the mapping of `region`, or is empty; neither advice changes contents.
    let _ = unsafe { madvise(host.cast(), len as usize, advice) };
}

/// Where huge pages begin and end of which at least half lies in the `len` bytes from `offset`. They
/// are whole: an advice for a part of one would leave it without.
fn dense(offset: u64, len: u64) -> (u64, u64) {
    let round = |at: u64, half: u64| at.saturating_add(half) / HUGEPAGE * HUGEPAGE;
    let from = round(offset, HUGEPAGE / 2 - 1);
    let to = round(offset.saturating_add(len), HUGEPAGE / 2);
    (from, if len < HUGEPAGE / 2 { from } else { to })
}

/// A region of guest memory as who reaches it by DMA needs to know it: a vhost-user back end, and
/// KVM itself.
#[derive(Clone, Copy, Debug)]
pub struct DmaRegion<'a> {
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes.
    pub len: u64,
    /// Where this process sees it.
    pub host: *mut u8,
    /// Where another process finds it; absent for memory that no other process can map.
    pub file: Option<&'a FileOffset>,
}

/// Every region of `memory`: the one place that says what can be reached by DMA.
pub fn regions(memory: &GuestMemory) -> impl Iterator<Item = DmaRegion<'_>> {
    memory.iter().map(|region| DmaRegion {
        start: region.start_addr(),
        len: region.len(),
        host: region.as_ptr(),
        file: region.file_offset(),
    })
}

/// Gives the memory to `vm`, as slots from 0 on: before any interrupt controller exists, because on
/// some hosts a slot costs milliseconds afterwards.
///
/// # Errors
/// [`Error::Kvm`].
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(regions(memory)) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start.raw_value(),
            memory_size: region.len,
            userspace_addr: region.host as u64,
            flags: 0,
        };
        // SAFETY: the range is the whole of one mapping of `memory`. Every vCPU thread holds the
        // machine's shared state, and with it `memory`, for as long as it can run guest code.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Gives the pages inside `len` bytes from `start` back to the host, and says how many bytes that
/// were: only whole pages of the backing go. The guest finds zeros there afterwards.
///
/// # Errors
/// The range is not all memory, or the host refuses.
pub fn discard(memory: &GuestMemory, start: GuestAddress, len: u64) -> io::Result<u64> {
    let mut at = start;
    let mut rest = len;
    let mut given = 0;
    while rest > 0 {
        let region = memory.find_region(at).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = at.unchecked_offset_from(region.start_addr());
        let here = rest.min(region.len() - offset);
        given += discard_in(region, offset, offset + here)?;
        at = at.checked_add(here).ok_or(io::ErrorKind::InvalidInput)?;
        rest -= here;
    }
    Ok(given)
}

/// Discards the whole pages between two offsets, which lie in `region`.
fn discard_in(region: &GuestRegionMmap, from: u64, to: u64) -> io::Result<u64> {
    let page = match region.is_hugetlbfs() {
        Some(true) => HUGEPAGE,
        _ => PAGE,
    };
    let first = from.next_multiple_of(page);
    let Some(len) = (to - to % page).checked_sub(first).filter(|len| *len > 0) else {
        return Ok(0);
    };
    // Punches a hole in a file, but cannot be done to memory that has none.
    let advice = match region.file_offset() {
        Some(_) => Advice::LinuxRemove,
        None => Advice::LinuxDontNeed,
    };
    let host = region.as_ptr().wrapping_add(first as usize);
    // SAFETY: the range lies in the mapping of `region`, which is borrowed. Contents that become
    // zero are no more than what the guest could write at any time: nothing in this process holds
    // a reference into guest memory.
    unsafe { madvise(host.cast(), len as usize, advice) }?;
    Ok(len)
}

/// RAM and swap of this host in MiB.
fn host_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let units = (info.totalram as u64).saturating_add(info.totalswap as u64);
    units.saturating_mul(u64::from(info.mem_unit)) / MIB
}

fn check_host_has(wanted_mib: u64, host_mib: u64) -> Result<(), Error> {
    if wanted_mib > host_mib {
        return Err(Error::MemoryTooLarge {
            wanted_mib,
            host_mib,
        });
    }
    Ok(())
}

/// A file read at explicit positions straight into guest memory. Its cursor is not touched, so the
/// supervisor may hand one open file to several partitions.
#[derive(Debug)]
pub struct FileAt<'a> {
    file: &'a File,
    position: u64,
}

impl<'a> FileAt<'a> {
    /// Reads of `file` start at byte `position`.
    pub fn new(file: &'a File, position: u64) -> Self {
        Self { file, position }
    }
}

impl Read for FileAt<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for FileAt<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for FileAt<'_> {
    fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = buf.ptr_guard_mut();
        // SAFETY: the guard keeps `len` bytes mapped and writable. Nobody else reads or writes them
        // while the slice lives: files are loaded before any vCPU runs. Bytes need no init.
        let bytes = unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), guard.len()) };
        let read =
            rustix::io::retry_on_intr(|| rustix::io::pread(self.file, &mut *bytes, self.position))
                .map_err(|e| VolatileMemoryError::IOError(e.into()))?;
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    #[test]
    fn ram_leaves_the_gap_free() {
        assert_eq!(ranges(2 * MIB), [(0, 2 << 20)]);
        assert_eq!(ranges(LOW_END), [(0, LOW_END)]);
        assert_eq!(ranges(LOW_END + MIB), [(0, LOW_END), (HIGH_START, 1 << 20)]);
    }

    #[test]
    fn the_pluggable_region_lies_above_ram_and_aligned() {
        for (ram, start) in [
            (2 * MIB, HIGH_START),
            (LOW_END, HIGH_START),
            (LOW_END + MIB, HIGH_START + ALIGNMENT),
            (LOW_END + ALIGNMENT, HIGH_START + ALIGNMENT),
        ] {
            assert_eq!(pluggable(&ranges(ram), ALIGNMENT), Some((start, ALIGNMENT)));
            assert_eq!(pluggable(&ranges(ram), 0), None);
        }
        let wanted = Memory {
            pluggable_mib: 256,
            ..Memory::of_mib(2)
        };
        let mapped = map(&wanted).unwrap();
        assert_eq!(
            mapped.pluggable,
            Some((GuestAddress(HIGH_START), 256 * MIB))
        );
        assert_eq!(mapped.ram.num_regions(), 1);
        assert_eq!(mapped.all.num_regions(), 2);
        assert_eq!(above(&mapped.ram), GuestAddress(HIGH_START));
        assert_eq!(above(&mapped.all), GuestAddress(HIGH_START + 256 * MIB));
    }

    #[test]
    fn the_guests_huge_pages_are_those_of_the_host() {
        // Something of an odd size before them.
        let _odd = MmapRegionBuilder::<()>::new(3 * PAGE as usize).build();
        for shared in [false, true] {
            for mib in [2, 3, 64] {
                let plain = Memory::of_mib(mib);
                let memory = map(&Memory { shared, ..plain }).unwrap().all;
                for region in regions(&memory) {
                    assert_eq!(region.host as u64 % HUGEPAGE, 0, "{mib} MiB, {shared}");
                }
            }
        }
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        assert!(check_host_has(8, 8).is_ok());
        let e = check_host_has(10 * 1024 * 1024, 16 * 1024).unwrap_err();
        assert_eq!(e.code(), "memory-too-large");
        assert_eq!(
            e.to_string(),
            "10485760 MiB of memory is more than the 16384 MiB this host has; ask for less"
        );
        for (mib, pluggable_mib) in [(u64::MAX, 0), (2, u64::MAX), (u64::MAX, u64::MAX)] {
            let wanted = Memory {
                pluggable_mib,
                ..Memory::of_mib(mib)
            };
            assert_eq!(map(&wanted).err().unwrap().code(), "memory-too-large");
        }
    }

    #[test]
    fn private_memory_has_no_file_and_shared_memory_one_that_cannot_shrink() {
        for shared in [false, true] {
            let wanted = Memory {
                pluggable_mib: 128,
                shared,
                ..Memory::of_mib(2)
            };
            let memory = map(&wanted).unwrap().all;
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1f_fff8)).unwrap(), 0);
            let files: Vec<_> = regions(&memory).map(|r| r.file.cloned()).collect();
            for (file, start) in files.into_iter().zip([0, 2 * MIB]) {
                assert_eq!(file.is_some(), shared);
                if let Some(file) = file {
                    assert_eq!(file.start(), start);
                    assert!(file.file().set_len(0).is_err());
                }
            }
        }
    }

    /// Resident bytes of the first region, by what mincore says.
    fn resident(memory: &GuestMemory) -> u64 {
        let region = regions(memory).next().unwrap();
        let mut pages = vec![0u8; (region.len / PAGE) as usize];
        // SAFETY: the range is one mapping, and `pages` has a byte for each of its pages.
        let done =
            unsafe { libc::mincore(region.host.cast(), region.len as usize, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 != 0).count() as u64 * PAGE
    }

    #[test]
    fn discarded_pages_leave_the_host_and_come_back_as_zeros() {
        for shared in [false, true] {
            let wanted = Memory {
                prefault: true,
                shared,
                ..Memory::of_mib(2)
            };
            let memory = map(&wanted).unwrap().ram;
            assert_eq!(resident(&memory), 2 * MIB, "prefault touches everything");
            memory.write_obj(7u8, GuestAddress(0x1fff)).unwrap();
            memory.write_obj(7u8, GuestAddress(0x2000)).unwrap();
            for (start, len, given) in [
                (0x1001, 0x1fff, 0x1000),
                (0x2000, 0xfff, 0),
                (0x2001, 0x1ffe, 0),
                (0x4000, 0, 0),
                (0x10_0000, 0x10_0000, 0x10_0000),
            ] {
                let got = discard(&memory, GuestAddress(start), len).unwrap();
                assert_eq!(got, given, "{start:#x}");
            }
            assert_eq!(resident(&memory), MIB - 0x1000);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1fff)).unwrap(), 7);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2000)).unwrap(), 0);
            for (start, len) in [(2 * MIB, 1), (MIB, MIB + 1), (u64::MAX, 2)] {
                assert!(discard(&memory, GuestAddress(start), len).is_err());
            }
        }
    }

    #[test]
    fn a_huge_page_is_for_what_fills_half_of_it() {
        for (offset, len, from, to) in [
            (0, 0, 0, 0),
            (0, MIB - 1, 0, 0),
            (0, MIB, 0, HUGEPAGE),
            (0, 3 * MIB - 1, 0, HUGEPAGE),
            (MIB, 3 * MIB, 0, 2 * HUGEPAGE),
            (MIB - 1, MIB, 0, HUGEPAGE),
            (MIB + 1, 3 * MIB, HUGEPAGE, 2 * HUGEPAGE),
            (HUGEPAGE - PAGE, 2 * PAGE, HUGEPAGE, HUGEPAGE),
            (MIB - PAGE, 2 * PAGE, 0, 0),
            (HUGEPAGE, 3 * MIB, HUGEPAGE, 3 * HUGEPAGE),
            (HUGEPAGE, u64::MAX, HUGEPAGE, u64::MAX / HUGEPAGE * HUGEPAGE),
        ] {
            assert_eq!(dense(offset, len), (from, to), "{offset:#x} {len:#x}");
        }
        let memory = create(2).unwrap();
        for (start, len) in [(0, 0), (0, u64::MAX), (2 * MIB, 1), (u64::MAX, u64::MAX)] {
            expect_dense(&memory, GuestAddress(start), len);
        }
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
    }

    #[test]
    fn a_pool_without_huge_pages_is_named() {
        // No host has all of its memory in the pool.
        let wanted = Memory {
            hugepages: true,
            ..Memory::of_mib(host_mib() / 2 * 2)
        };
        let e = map(&wanted).err().unwrap();
        assert!(
            ["memory-hugepages", "memory-refused"].contains(&e.code()),
            "{e}"
        );
    }

    #[test]
    fn files_are_read_at_positions_without_moving_the_cursor() {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.write_all(b"0123456789").unwrap();
        let memory = create(2).unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(0x1000), &mut FileAt::new(&file, 2), 5)
            .unwrap();
        let mut got = [0; 6];
        memory.read_slice(&mut got, GuestAddress(0x1000)).unwrap();
        assert_eq!(&got, b"23456\0");
        let past_the_end =
            memory.read_exact_volatile_from(GuestAddress(0x1000), &mut FileAt::new(&file, 8), 5);
        assert!(past_the_end.is_err());
    }
}
