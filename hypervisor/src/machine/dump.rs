//! The VMM's part of a dump: guest memory into a file, and the registers. Pages of zeros are holes of
//! the file. The controller calls, with all vCPUs standing and devices at rest; whoever asked makes a
//! core file of it (`hypervisor/dump`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use bulkhead_machine::control::{DUMP_HEAD, DumpedRegion, Registers, Reply};
use kvm_bindings::{kvm_regs, kvm_sregs};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use super::memory::GuestMemory;
use super::run_control::Cpu;
use crate::devices::virtio::TURN_TIME;

const PAGE: u64 = 4096;
/// Bytes looked at and written at once.
const CHUNK: usize = 64 * 1024;
/// A page that need not be written.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// A dump that is being written.
pub(super) struct Dump {
    file: File,
    memory: GuestMemory,
    regions: Vec<DumpedRegion>,
    vcpus: Vec<Registers>,
    /// Index of the region, and byte in it, to go on with.
    position: (usize, u64),
    buffer: Vec<u8>,
}

impl Dump {
    /// Reads the registers, and makes `file`, which is empty, as long as it will be.
    ///
    /// # Errors
    /// The file cannot be written, or KVM does not tell the registers.
    pub(super) fn begin(file: File, memory: &GuestMemory, vcpus: &[Cpu]) -> io::Result<Self> {
        let registers_of = |cpu: &Cpu| {
            let vcpu = cpu.lock();
            Ok(registers(&vcpu.get_regs()?, &vcpu.get_sregs()?))
        };
        let vcpus = vcpus.iter().map(registers_of).collect::<io::Result<_>>()?;
        let mut offset = DUMP_HEAD;
        let mut regions = Vec::new();
        for region in memory.iter() {
            let (start, len) = (region.start_addr().raw_value(), region.len());
            regions.push(DumpedRegion { start, len, offset });
            offset += len;
        }
        // Zeros at the end are a hole as well.
        rustix::fs::ftruncate(&file, offset)?;
        Ok(Self {
            file,
            memory: memory.clone(),
            regions,
            vcpus,
            position: (0, 0),
            buffer: vec![0; CHUNK],
        })
    }

    /// What to answer when all is written.
    pub(super) fn into_reply(self) -> Reply {
        Reply::Dumped {
            regions: self.regions,
            vcpus: self.vcpus,
        }
    }

    /// Writes for a turn's time; true when all is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn step(&mut self) -> io::Result<bool> {
        let started = Instant::now();
        while let Some(region) = self.regions.get(self.position.0).copied() {
            if started.elapsed() > TURN_TIME {
                return Ok(false);
            }
            match self.next_data(region)? {
                Some(at) => {
                    let len = (region.len - at).min(CHUNK as u64);
                    self.write(region, at, len as usize)?;
                    self.position.1 = at + len;
                }
                None => self.position = (self.position.0 + 1, 0),
            }
        }
        Ok(true)
    }

    /// Where the next bytes of `region` are that the guest may have touched.
    fn next_data(&self, region: DumpedRegion) -> io::Result<Option<u64>> {
        let at = self.position.1;
        if at >= region.len {
            return Ok(None);
        }
        let backing = self.memory.find_region(GuestAddress(region.start));
        // Reading a hole of a file in memory would fill it.
        let Some(backing) = backing.and_then(|region| region.file_offset()) else {
            return Ok(Some(at));
        };
        match seek(backing.file(), SeekFrom::Data(backing.start() + at)) {
            Ok(found) => {
                let found = found.saturating_sub(backing.start()) & !(PAGE - 1);
                Ok((found < region.len).then_some(found.max(at)))
            }
            Err(Errno::NXIO) => Ok(None),
            // Not on every kernel for huge pages.
            Err(Errno::INVAL) => Ok(Some(at)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes those of `len` bytes at `at` in `region` that are in pages with more than zeros.
    fn write(&mut self, region: DumpedRegion, at: u64, len: usize) -> io::Result<()> {
        let source = self.memory.find_region(GuestAddress(region.start));
        let buffer = self.buffer.get_mut(..len).unwrap_or_default();
        if let Some(source) = source {
            source
                .read_slice(buffer, MemoryRegionAddress(at))
                .map_err(io::Error::other)?;
        }
        let mut offset = region.offset + at;
        // Neighbours of one kind are written, or left out, together.
        let is_zero = |page: &&[u8]| ZEROS.starts_with(page);
        let pages: Vec<&[u8]> = buffer.chunks(PAGE as usize).collect();
        for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len: usize = run.iter().map(|page| page.len()).sum();
            if !run.first().is_none_or(is_zero) {
                let start = (offset - region.offset - at) as usize;
                let bytes = buffer.get(start..start + len).unwrap_or_default();
                self.file.write_all_at(bytes, offset)?;
            }
            offset += len as u64;
        }
        Ok(())
    }
}

/// As a dump tells them.
fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> Registers {
    let general = [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        u64::MAX,
        regs.rip,
        sregs.cs.selector.into(),
        regs.rflags,
        regs.rsp,
        sregs.ss.selector.into(),
        sregs.fs.base,
        sregs.gs.base,
        sregs.ds.selector.into(),
        sregs.es.selector.into(),
        sregs.fs.selector.into(),
        sregs.gs.selector.into(),
    ];
    Registers {
        general,
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
    }
}
