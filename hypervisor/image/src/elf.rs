//! ELF images: their headers, segments and notes. Format: System V gABI, chapters 4 and 5.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_abi::layout::{KERNEL_BASE, KERNEL_LOAD, PAGE_SIZE};
use bulkhead_machine::{Image, Segment};
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::ParsingTable;
use elf::segment::ProgramHeader;

use crate::{ImageError, read_range};

/// Most program headers of an image; Linux and Bulkhead kernels have under ten.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of one note segment that are looked at.
const MAX_NOTES: u64 = 64 * 1024;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen public/elfnote.h): the 32-bit entry point of the PVH protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
/// Bulkhead kernels end below this physical address: what `KERNEL_BASE` has room for.
const KERNEL_END: u64 = 1 << 30;

/// What a boot protocol can enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// ELF64 for x86-64.
    X86_64,
    /// That, or ELF32 for i386: PVH enters in 32-bit mode.
    X86,
}

/// Whether `file` begins as an ELF file does.
pub(crate) fn is_elf(file: &File) -> bool {
    let mut magic = [0; abi::ELFMAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == abi::ELFMAGIC
}

/// A checked image: every segment lies in the file and no address wraps round.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    file: &'a File,
    header: FileHeader<LittleEndian>,
    /// Loadable segments that are not empty, ascending by physical address, without overlap.
    segments: Vec<ProgramHeader>,
    notes: Vec<ProgramHeader>,
}

impl<'a> Elf<'a> {
    /// Reads and checks the headers of `file`.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(crate) fn parse(file: &'a File, wanted: Wanted) -> Result<Self, ImageError> {
        let size = file.metadata()?.len();
        let header = header(file, size, wanted)?;
        let entry_len = match header.class {
            Class::ELF32 => 32,
            Class::ELF64 => 56,
        };
        if usize::from(header.e_phentsize) != entry_len {
            return Err(ImageError::Invalid("unusual program header size"));
        }
        let count = usize::from(header.e_phnum);
        if count == 0 || count > MAX_SEGMENTS {
            return Err(ImageError::Invalid("no or too many program headers"));
        }
        let table = read_range(file, size, header.e_phoff, (count * entry_len) as u64)?;
        let table: ParsingTable<'_, _, ProgramHeader> =
            ParsingTable::new(LittleEndian, header.class, &table);
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for program_header in table.iter() {
            match program_header.p_type {
                abi::PT_LOAD if program_header.p_memsz > 0 => {
                    check_segment(&program_header, size)?;
                    segments.push(program_header);
                }
                abi::PT_NOTE => notes.push(program_header),
                _ => {}
            }
        }
        segments.sort_by_key(|s| s.p_paddr);
        let overlap = segments
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.p_paddr + a.p_memsz > b.p_paddr));
        if overlap {
            return Err(ImageError::Invalid("segments overlap"));
        }
        if segments.is_empty() {
            return Err(ImageError::Invalid("nothing to load"));
        }
        Ok(Self {
            file,
            header,
            segments,
            notes,
        })
    }

    /// What the VMM has to know of it.
    pub(crate) fn image(&self, pvh_entry: Option<u32>) -> Image {
        let segments = self.segments.iter().map(|header| Segment {
            offset: header.p_offset,
            file_len: header.p_filesz,
            address: header.p_paddr,
            memory_len: header.p_memsz,
            write: header.p_flags & abi::PF_W != 0,
            execute: header.p_flags & abi::PF_X != 0,
        });
        Image {
            entry: self.header.e_entry,
            pvh_entry,
            segments: segments.collect(),
        }
    }

    /// The 32-bit entry point of the PVH protocol, where there is one.
    ///
    /// # Errors
    /// The note segment is cut off.
    pub(crate) fn pvh_entry(&self) -> Result<Option<u32>, ImageError> {
        let size = self.file.metadata()?.len();
        for note in &self.notes {
            let len = note.p_filesz.min(MAX_NOTES);
            let bytes = read_range(self.file, size, note.p_offset, len)?;
            let align = usize::try_from(note.p_align).unwrap_or(4).clamp(4, 8);
            for note in NoteIterator::new(LittleEndian, self.header.class, align, &bytes) {
                if let Note::Unknown(note) = note
                    && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY
                    && note.name_str().is_ok_and(|name| name == "Xen")
                    && let Some(entry) = note.desc.first_chunk::<4>()
                {
                    return Ok(Some(u32::from_le_bytes(*entry)));
                }
            }
        }
        Ok(None)
    }

    /// The rules of `docs/boot-protocol.md` about where a Bulkhead kernel is linked.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(crate) fn check_link_addresses(&self) -> Result<(), ImageError> {
        let mut free_from = KERNEL_LOAD;
        for segment in &self.segments {
            let (start, end) = (segment.p_paddr, segment.p_paddr + segment.p_memsz);
            if start < KERNEL_LOAD || end > KERNEL_END {
                return Err(ImageError::Invalid(
                    "it is not linked between 2 MiB and 1 GiB",
                ));
            }
            if segment.p_vaddr != KERNEL_BASE + start {
                return Err(ImageError::Invalid(
                    "a segment's virtual address is not the kernel base plus its physical address",
                ));
            }
            if segment.p_flags & abi::PF_W != 0 && segment.p_flags & abi::PF_X != 0 {
                return Err(ImageError::Invalid("a segment is writable and executable"));
            }
            // Each page has the rights of one segment.
            if start / PAGE_SIZE * PAGE_SIZE < free_from {
                return Err(ImageError::Invalid("two segments share a page"));
            }
            free_from = end.next_multiple_of(PAGE_SIZE);
        }
        let holds_entry = self.segments.iter().any(|s| {
            s.p_flags & abi::PF_X != 0
                && (s.p_vaddr..s.p_vaddr + s.p_memsz).contains(&self.header.e_entry)
        });
        if !holds_entry {
            return Err(ImageError::Invalid(
                "its entry point is in no executable segment",
            ));
        }
        Ok(())
    }
}

fn header(file: &File, size: u64, wanted: Wanted) -> Result<FileHeader<LittleEndian>, ImageError> {
    let ident_len = abi::EI_NIDENT as u64;
    let ident = read_range(file, size, 0, ident_len.min(size))?;
    if !ident.starts_with(&abi::ELFMAGIC) {
        return Err(ImageError::NoElf);
    }
    let ident = read_range(file, size, 0, ident_len)?;
    let wanted_text = match wanted {
        Wanted::X86_64 => "64-bit x86",
        Wanted::X86 => "x86",
    };
    let wrong = |found: String| ImageError::Architecture {
        found,
        wanted: wanted_text,
    };
    let ident = parse_ident::<LittleEndian>(&ident)
        .map_err(|_| wrong("big-endian, or of an unknown ELF class or version".into()))?;
    let tail_len = match ident.1 {
        Class::ELF32 => elf::file::ELF32_EHDR_TAILSIZE,
        Class::ELF64 => elf::file::ELF64_EHDR_TAILSIZE,
    };
    let tail = read_range(file, size, ident_len, tail_len as u64)?;
    let header = FileHeader::parse_tail(ident, &tail)
        .map_err(|_| ImageError::Invalid("its header cannot be read"))?;
    match (header.class, header.e_machine, wanted) {
        (Class::ELF64, abi::EM_X86_64, _) | (Class::ELF32, abi::EM_386, Wanted::X86) => {}
        (Class::ELF32, _, Wanted::X86_64) => {
            return Err(wrong(format!("32-bit, ELF machine {}", header.e_machine)));
        }
        (_, machine, _) => return Err(wrong(format!("ELF machine {machine}"))),
    }
    if header.e_type != abi::ET_EXEC && header.e_type != abi::ET_DYN {
        return Err(ImageError::Invalid("it is not an executable"));
    }
    Ok(header)
}

fn check_segment(header: &ProgramHeader, size: u64) -> Result<(), ImageError> {
    let needed = header.p_offset.checked_add(header.p_filesz);
    let needed = needed.ok_or(ImageError::Invalid("a segment's offset wraps round"))?;
    if needed > size {
        return Err(ImageError::Truncated { needed, size });
    }
    if header.p_filesz > header.p_memsz {
        return Err(ImageError::Invalid(
            "a segment is longer in the file than in memory",
        ));
    }
    for start in [header.p_paddr, header.p_vaddr] {
        // One page of room, so that rounding up to a page cannot wrap round either.
        if start
            .checked_add(header.p_memsz)
            .and_then(|end| end.checked_add(4095))
            .is_none()
        {
            return Err(ImageError::Invalid("a segment's address wraps round"));
        }
    }
    Ok(())
}
