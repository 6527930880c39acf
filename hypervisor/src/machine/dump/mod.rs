//! A dump: guest memory and registers as an ELF core file, for gdb and crash.
//!
//! Every region of memory is a segment by its physical address; before them come segments for what
//! the first vCPU's page tables map, so that a debugger finds code and stacks at the addresses it
//! knows. Both kinds point to the same bytes of the file. Pages of zeros are holes of the file.
//! The controller calls, with all vCPUs standing and devices at rest.

mod mappings;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use kvm_bindings::{kvm_regs, kvm_sregs};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use zerocopy::{Immutable, IntoBytes};

use super::memory::GuestMemory;
use super::run_control::Cpu;
use crate::devices::virtio::TURN_TIME;
use mappings::{Mapping, Paging};

const PAGE: u64 = 4096;
/// Bytes looked at and written at once.
const CHUNK: usize = 64 * 1024;
/// Most segments of an ELF file without extensions, less those of memory and notes.
const MAX_MAPPINGS: usize = 0x8000;

/// A page that need not be written.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;

/// `Elf64_Ehdr` (System V ABI, "ELF header").
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
    section_header_size: u16,
    section_header_count: u16,
    section_names: u16,
}

/// `Elf64_Phdr`.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// Head of a note `CORE`, `NT_PRSTATUS` (`Elf64_Nhdr` and the name).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct NoteHeader {
    name_size: u32,
    size: u32,
    kind: u32,
    name: [u8; 8],
}

/// `struct elf_prstatus` of x86-64.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Status {
    signal_info: [u32; 3],
    signal: u32,
    signal_masks: [u64; 2],
    pid: u32,
    other_ids: [u32; 3],
    times: [u64; 8],
    registers: [u64; 27],
    fpu_valid: u64,
}

const STATUS_HEADER: NoteHeader = NoteHeader {
    name_size: 5,
    size: size_of::<Status>() as u32,
    kind: NT_PRSTATUS,
    name: *b"CORE\0\0\0\0",
};

/// A part of guest memory and its place in the file.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    offset: u64,
}

/// A dump that is being written.
pub(super) struct Dump {
    file: File,
    memory: GuestMemory,
    regions: Vec<Region>,
    /// Index of the region, and byte in it, to go on with.
    position: (usize, u64),
    buffer: Vec<u8>,
}

impl Dump {
    /// Writes all but the memory to `file`, which is empty.
    ///
    /// # Errors
    /// The file cannot be written, or KVM does not tell the registers.
    pub(super) fn begin(file: File, memory: &GuestMemory, vcpus: &[Cpu]) -> io::Result<Self> {
        let mut notes = Vec::new();
        let mut mapped = Vec::new();
        for (id, cpu) in (1..).zip(vcpus) {
            let vcpu = cpu.lock();
            let (regs, sregs) = (vcpu.get_regs()?, vcpu.get_sregs()?);
            notes.extend_from_slice(STATUS_HEADER.as_bytes());
            notes.extend_from_slice(status(id, &regs, &sregs).as_bytes());
            if id == 1
                && let Some(paging) = Paging::of(&sregs)
            {
                mapped = paging.mappings(memory, MAX_MAPPINGS);
            }
        }
        let count = 1 + mapped.len() + memory.num_regions();
        let headers = size_of::<Header>() + count * size_of::<Segment>();
        let mut offset = (headers + notes.len()) as u64;
        let mut regions = Vec::new();
        for region in memory.iter() {
            offset = offset.next_multiple_of(PAGE);
            let (start, len) = (region.start_addr().raw_value(), region.len());
            regions.push(Region { start, len, offset });
            offset += len;
        }
        let mut head = header(count as u16).as_bytes().to_vec();
        head.extend_from_slice(note_segment(headers, notes.len()).as_bytes());
        for mapping in mapped.iter().filter_map(|mapping| place(mapping, &regions)) {
            head.extend_from_slice(mapping.as_bytes());
        }
        for region in &regions {
            let whole = Mapping::identity(region.start, region.len);
            let segment = place(&whole, &regions);
            head.extend(segment.iter().flat_map(|segment| segment.as_bytes()));
        }
        head.extend(notes);
        file.write_all_at(&head, 0)?;
        // Zeros at the end are a hole as well.
        rustix::fs::ftruncate(&file, offset)?;
        Ok(Self {
            file,
            memory: memory.clone(),
            regions,
            position: (0, 0),
            buffer: vec![0; CHUNK],
        })
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
    fn next_data(&self, region: Region) -> io::Result<Option<u64>> {
        let at = self.position.1;
        if at >= region.len {
            return Ok(None);
        }
        let backing = self
            .memory
            .find_region(vm_memory::GuestAddress(region.start));
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
    fn write(&mut self, region: Region, at: u64, len: usize) -> io::Result<()> {
        let source = self
            .memory
            .find_region(vm_memory::GuestAddress(region.start));
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

/// The segment of `mapping`; nothing where it is not in memory.
fn place(mapping: &Mapping, regions: &[Region]) -> Option<Segment> {
    let region = regions
        .iter()
        .find(|region| (region.start..region.start + region.len).contains(&mapping.physical))?;
    let inside = mapping.physical - region.start;
    Some(Segment {
        kind: PT_LOAD,
        flags: mapping.flags,
        offset: region.offset + inside,
        virtual_address: mapping.virtual_address,
        physical_address: mapping.physical,
        file_size: mapping.len.min(region.len - inside),
        memory_size: mapping.len.min(region.len - inside),
        alignment: PAGE,
    })
}

fn note_segment(offset: usize, len: usize) -> Segment {
    Segment {
        kind: PT_NOTE,
        flags: 0,
        offset: offset as u64,
        virtual_address: 0,
        physical_address: 0,
        file_size: len as u64,
        memory_size: len as u64,
        alignment: 4,
    }
}

fn header(segments: u16) -> Header {
    Header {
        ident: [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        kind: ET_CORE,
        machine: EM_X86_64,
        version: 1,
        entry: 0,
        program_headers: size_of::<Header>() as u64,
        section_headers: 0,
        flags: 0,
        header_size: size_of::<Header>() as u16,
        program_header_size: size_of::<Segment>() as u16,
        program_header_count: segments,
        section_header_size: 0,
        section_header_count: 0,
        section_names: 0,
    }
}

/// What the note of a vCPU says; `id` counts from 1.
fn status(id: u32, regs: &kvm_regs, sregs: &kvm_sregs) -> Status {
    Status {
        signal_info: [0; 3],
        signal: 0,
        signal_masks: [0; 2],
        pid: id,
        other_ids: [0; 3],
        times: [0; 8],
        // `struct user_regs_struct` of Linux.
        registers: [
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
        ],
        fpu_valid: 0,
    }
}
