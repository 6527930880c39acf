//! Guest memory: one sealed memfd, mapped once, given to KVM slot by slot.
//!
//! RAM lies at `0..LOW_END` and, where a partition has more, from 4 GiB upwards: the gap holds the
//! virtio windows and the interrupt controllers. Memory is committed as the guest touches it. The
//! one check against the host is that a partition may not have more memory than the host has RAM
//! and swap, since such a partition could never use what it was promised; whether several
//! partitions fit together is the supervisor's to judge.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile,
    VolatileMemoryError, VolatileSlice,
};

use crate::error::Error;

/// The memory of one partition.
pub type GuestMemory = GuestMemoryMmap<()>;

/// End (exclusive) of RAM below 4 GiB: 3 GiB.
pub const LOW_END: u64 = 0xc000_0000;
/// Start of RAM above the gap.
pub const HIGH_START: u64 = 1 << 32;

const MIB: u64 = 1 << 20;

/// Creates and maps `mib` MiB of zeroed memory.
///
/// # Errors
/// [`Error::MemoryTooLarge`], or [`Error::Memory`] when the host refuses.
pub fn create(mib: u64) -> Result<GuestMemory, Error> {
    check_host_has(mib, host_mib())?;
    let bytes = mib
        .checked_mul(MIB)
        .ok_or_else(|| Error::Memory(format!("{mib} MiB overflow an address")))?;
    let refused = |e: rustix::io::Errno| Error::Memory(e.to_string());
    let file = memfd_create(
        "guest-memory",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .map_err(refused)?;
    ftruncate(&file, bytes).map_err(refused)?;
    // A mapping of a file that cannot shrink cannot raise SIGBUS at its end.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(refused)?;
    let file = FileOffset::new(File::from(file), 0).arc().clone();
    let ranges = ranges(bytes).into_iter().map(|(start, len, offset)| {
        let file = FileOffset::from_arc(file.clone(), offset);
        (GuestAddress(start), len, Some(file))
    });
    GuestMemory::from_ranges_with_files(ranges).map_err(|e| Error::Memory(e.to_string()))
}

/// Where `bytes` of RAM lie: guest-physical start, length, offset in the memfd.
fn ranges(bytes: u64) -> Vec<(u64, usize, u64)> {
    let low = bytes.min(LOW_END);
    let mut ranges = vec![(0, low as usize, 0)];
    if bytes > low {
        ranges.push((HIGH_START, (bytes - low) as usize, low));
    }
    ranges
}

/// Gives the memory to `vm`: before any interrupt controller exists, because on some hosts a slot
/// costs milliseconds afterwards.
///
/// # Errors
/// [`Error::Kvm`].
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let host = memory
            .get_host_address(region.start_addr())
            .map_err(|e| Error::Memory(e.to_string()))?;
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the range is the whole of one mapping of `memory`. Every vCPU thread holds the
        // machine's shared state, and with it `memory`, for as long as it can run guest code.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
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
        assert_eq!(ranges(2 * MIB), [(0, 2 << 20, 0)]);
        assert_eq!(ranges(LOW_END), [(0, LOW_END as usize, 0)]);
        assert_eq!(
            ranges(LOW_END + MIB),
            [(0, LOW_END as usize, 0), (HIGH_START, 1 << 20, LOW_END)]
        );
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
    }

    #[test]
    fn memory_is_zero_and_cannot_shrink() {
        let memory = create(2).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1f_fff8)).unwrap(), 0);
        let region = memory.iter().next().unwrap();
        assert!(region.file_offset().unwrap().file().set_len(0).is_err());
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
