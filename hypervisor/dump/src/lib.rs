//! A dump: guest memory and registers as an ELF core file, for gdb and crash.
//!
//! The VMM writes the memory and says where it has put it, and its CPUs' registers; whoever asked for
//! the dump then calls [`finish`], which writes what comes before: headers and notes. Every region of
//! memory is a segment by its physical address; before them come segments for what the first vCPU's
//! page tables map, so that a debugger finds code and stacks at the addresses it knows. Both kinds
//! point to the same bytes of the file.
#![forbid(unsafe_code)]

mod mappings;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bulkhead_machine::control::{DumpedRegion, Registers};
use zerocopy::{Immutable, IntoBytes};

use mappings::{Mapping, Paging};

const PAGE: u64 = 4096;
/// Most segments of an ELF file without extensions, less those of memory and notes.
const MAX_MAPPINGS: usize = 0x8000;

const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
/// Read, write, execute: what a mapping allows matters to no reader of a dump.
const ALL_ACCESS: u32 = 7;
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

/// Makes a core file of `file`, in which a VMM has left `regions`; `vcpus` are its CPUs' registers.
///
/// # Errors
/// The file cannot be read or written, or the regions leave no room before them.
pub fn finish(file: &File, regions: &[DumpedRegion], vcpus: &[Registers]) -> io::Result<()> {
    let mut notes = Vec::new();
    for (id, registers) in (1..).zip(vcpus) {
        notes.extend_from_slice(STATUS_HEADER.as_bytes());
        notes.extend_from_slice(status(id, registers).as_bytes());
    }
    let paging = vcpus.first().and_then(Paging::of);
    let mapped = paging.map(|paging| paging.mappings(file, regions, MAX_MAPPINGS));
    let whole = regions.iter().map(|region| Mapping {
        virtual_address: region.start,
        physical: region.start,
        len: region.len,
    });
    let mappings = mapped.into_iter().flatten().chain(whole);
    let segments: Vec<_> = mappings
        .filter_map(|mapping| place(&mapping, regions))
        .collect();
    let headers = size_of::<Header>() + (1 + segments.len()) * size_of::<Segment>();
    let mut head = header(1 + segments.len() as u16).as_bytes().to_vec();
    head.extend_from_slice(note_segment(headers, notes.len()).as_bytes());
    head.extend_from_slice(segments.as_bytes());
    head.extend(notes);
    let room = regions.iter().map(|region| region.offset).min();
    if room.is_none_or(|room| head.len() as u64 > room) {
        return Err(io::Error::other(
            "the memory leaves no room for the headers",
        ));
    }
    file.write_all_at(&head, 0)
}

/// The region that `physical` lies in.
fn find(regions: &[DumpedRegion], physical: u64) -> Option<&DumpedRegion> {
    let inside = |region: &&DumpedRegion| {
        let offset = physical.checked_sub(region.start);
        offset.is_some_and(|offset| offset < region.len)
    };
    regions.iter().find(inside)
}

/// The segment of `mapping`; nothing where it is not in memory.
fn place(mapping: &Mapping, regions: &[DumpedRegion]) -> Option<Segment> {
    let region = find(regions, mapping.physical)?;
    let inside = mapping.physical - region.start;
    Some(Segment {
        kind: PT_LOAD,
        flags: ALL_ACCESS,
        offset: region.offset.saturating_add(inside),
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
fn status(id: u32, registers: &Registers) -> Status {
    Status {
        signal_info: [0; 3],
        signal: 0,
        signal_masks: [0; 2],
        pid: id,
        other_ids: [0; 3],
        times: [0; 8],
        registers: registers.general,
        fpu_valid: 0,
    }
}

#[cfg(test)]
mod tests;
