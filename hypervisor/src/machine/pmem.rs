//! Files that are memory of the guest (virtio-pmem): each is mapped and given to KVM as a slot of
//! its own, above all other memory.
//!
//! They are deliberately no part of [`GuestMemory`], which is what devices reach. A file can shrink
//! under its mapping, and a read-only one cannot be written: a device that was pointed there by its
//! driver would end the VMM by a signal. KVM meets the same as an error of that one access. The price
//! is that a driver cannot have a device read or write straight from persistent memory: its buffer is
//! outside memory, and the device stops.

use std::fs::File;
use std::sync::Arc;

use bulkhead_machine::device::{Device, DeviceKind, Pmem};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryBackend, MmapRegion};

use super::memory::{ALIGNMENT, GuestMemory, above};
use crate::descriptors::Descriptors;
use crate::error::Error;

/// Files are whole pages of this size, so that the guest can map them by such.
const GRANULE: u64 = 2 << 20;

/// A mapped file. Held for as long as a vCPU can run guest code.
#[derive(Debug)]
pub struct Mapping {
    /// The device's name.
    pub name: String,
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes, a multiple of 2 MiB.
    pub len: u64,
    /// The file.
    pub file: Arc<File>,
    region: MmapRegion,
}

/// Maps the files of `devices`, one behind the other above `memory`, and gives them to `vm`: as the
/// memory itself, before any interrupt controller exists.
///
/// # Errors
/// A file is empty, or not whole 2 MiB long, or the host refuses.
pub fn map(
    vm: &VmFd,
    memory: &GuestMemory,
    devices: &[Device],
    descriptors: &mut Descriptors,
) -> Result<Vec<Mapping>, Error> {
    let mut start = above(memory);
    let mut slots = memory.num_regions() as u32..;
    let mut mappings = Vec::new();
    for device in devices {
        let DeviceKind::Pmem(described) = &device.kind else {
            continue;
        };
        let file = descriptors.take("persistent memory", described.file)?;
        let mapping = map_file(&device.name, described, file, start)?;
        register(
            vm,
            slots.next().unwrap_or(u32::MAX),
            &mapping,
            described.read_only,
        )?;
        let end = (mapping.start.raw_value() + mapping.len).next_multiple_of(ALIGNMENT);
        start = GuestAddress(end);
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn map_file(
    name: &str,
    described: &Pmem,
    file: File,
    start: GuestAddress,
) -> Result<Mapping, Error> {
    let failed = |what: String| Error::Pmem {
        name: name.to_owned(),
        what,
    };
    let len = file.metadata().map_err(|e| failed(e.to_string()))?.len();
    if len == 0 || !len.is_multiple_of(GRANULE) {
        return Err(failed(format!(
            "{len} bytes are not whole 2 MiB; make it longer (truncate -s %2M)"
        )));
    }
    // 2^52 bytes are all that a physical address can name (Intel SDM volume 3, section 4.1.4).
    if start
        .raw_value()
        .checked_add(len)
        .is_none_or(|end| end > 1 << 52)
    {
        return Err(failed("it lies beyond what a CPU can address".into()));
    }
    let prot = match described.read_only {
        true => libc::PROT_READ,
        false => libc::PROT_READ | libc::PROT_WRITE,
    };
    let file = Arc::new(file);
    let region = MmapRegionBuilder::new(len as usize)
        .with_mmap_prot(prot)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.clone(), 0))
        .build()
        .map_err(|e| failed(e.to_string()))?;
    Ok(Mapping {
        name: name.to_owned(),
        start,
        len,
        file,
        region,
    })
}

fn register(vm: &VmFd, slot: u32, mapping: &Mapping, read_only: bool) -> Result<(), Error> {
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: mapping.start.raw_value(),
        memory_size: mapping.len,
        userspace_addr: mapping.region.as_ptr() as u64,
        flags: if read_only { KVM_MEM_READONLY } else { 0 },
    };
    // SAFETY: the range is the whole of one mapping. Every vCPU thread holds the machine's shared
    // state, and with it the mapping, for as long as it can run guest code; nothing in this process
    // reads or writes it.
    unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_map(len: u64, start: u64, read_only: bool) -> Result<Mapping, Error> {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.set_len(len).unwrap();
        let described = Pmem {
            file: bulkhead_machine::Fd(-1),
            read_only,
        };
        map_file("data", &described, file, GuestAddress(start))
    }

    #[test]
    fn files_are_whole_granules_inside_the_address_space() {
        for (len, start, fine) in [
            (0, 1 << 32, false),
            (4096, 1 << 32, false),
            (GRANULE, 1 << 32, true),
            (3 * GRANULE, 1 << 32, true),
            (GRANULE + 512, 1 << 32, false),
            (GRANULE, (1 << 52) - GRANULE, true),
            (GRANULE, 1 << 52, false),
            (GRANULE, u64::MAX - 1, false),
        ] {
            for read_only in [false, true] {
                let mapped = try_map(len, start, read_only);
                assert_eq!(mapped.is_ok(), fine, "{len:#x} at {start:#x}");
                match mapped {
                    Ok(mapping) => assert_eq!((mapping.start.0, mapping.len), (start, len)),
                    Err(e) => assert_eq!(e.code(), "pmem-invalid"),
                }
            }
        }
    }
}
