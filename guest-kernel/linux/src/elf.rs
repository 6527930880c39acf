//! What an ELF file asks for: segments, entry, program headers. Everything in the file is checked
//! here, before the first byte of it is mapped.

use alloc::vec::Vec;

use bulkhead_abi::layout::PAGE_SIZE;
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::Class;

use crate::memory::{LOWEST, MMAP_TOP, Protection};

/// Most program headers (Linux allows 64 KiB of them; linkers write about a dozen).
const MAX_HEADERS: u64 = 256;
/// Size of one program header.
const HEADER_BYTES: u64 = 56;

/// Why a file cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not ELF.
    #[error("not an ELF file")]
    NotElf,
    /// ELF for another machine.
    #[error("built for another machine: this partition runs 64-bit x86 programs")]
    Machine,
    /// An object file, core dump or shared library without entry.
    #[error("an ELF file, but no program")]
    NotProgram,
    /// It names an interpreter.
    #[error("dynamically linked, not supported yet: link statically")]
    Dynamic,
    /// The headers contradict themselves or the file.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

/// One loadable segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Address, relative to the load bias.
    pub address: u64,
    /// Its size in memory; what `bytes` does not fill is zero.
    pub size: u64,
    /// Its first bytes.
    pub bytes: &'a [u8],
    /// Its protection.
    pub protection: Protection,
}

/// A checked program. With the bias that [`Image::relocatable`] asks for or allows, all of its
/// addresses are valid for a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Segments, ascending; no two overlap, though two may share a page.
    pub segments: Vec<Segment<'a>>,
    /// Entry address, relative to the load bias.
    pub entry: u64,
    /// Address of the program headers in memory, or 0 when no segment holds them.
    pub headers: u64,
    /// Number of program headers.
    pub header_count: u64,
    /// A position-independent executable: its addresses are offsets.
    pub relocatable: bool,
}

impl Image<'_> {
    /// End of the last segment, relative to the load bias.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.address + s.size)
    }
}

/// Reads the headers of `file`.
///
/// # Errors
/// What keeps it from being run.
pub fn parse(file: &[u8]) -> Result<Image<'_>, ElfError> {
    if !file.starts_with(&abi::ELFMAGIC) {
        return Err(ElfError::NotElf);
    }
    let parsed = ElfBytes::<LittleEndian>::minimal_parse(file)
        .map_err(|_| ElfError::Damaged("its header is cut off or inconsistent"))?;
    let head = parsed.ehdr;
    if head.class != Class::ELF64 || head.e_machine != abi::EM_X86_64 {
        return Err(ElfError::Machine);
    }
    let relocatable = match head.e_type {
        abi::ET_EXEC => false,
        abi::ET_DYN => true,
        _ => return Err(ElfError::NotProgram),
    };
    let header_count = u64::from(head.e_phnum);
    if header_count > MAX_HEADERS || u64::from(head.e_phentsize) != HEADER_BYTES {
        return Err(ElfError::Damaged(
            "its program headers have an unknown size or number",
        ));
    }
    let mut image = Image {
        segments: Vec::new(),
        entry: head.e_entry,
        headers: 0,
        header_count,
        relocatable,
    };
    let lowest = if relocatable { 0 } else { LOWEST };
    let mut end = lowest;
    let headers = parsed.segments().ok_or(ElfError::NotProgram)?;
    for header in headers.iter() {
        match header.p_type {
            abi::PT_INTERP => return Err(ElfError::Dynamic),
            abi::PT_PHDR if header.p_vaddr > MMAP_TOP / 2 => {
                return Err(ElfError::Damaged(
                    "its program headers lie outside of the address space",
                ));
            }
            abi::PT_PHDR => image.headers = header.p_vaddr,
            abi::PT_LOAD if header.p_memsz > 0 => {
                let outside = ElfError::Damaged(
                    "a segment lies outside of the address space or overlaps another",
                );
                let segment_end = header.p_vaddr.checked_add(header.p_memsz).ok_or(outside)?;
                // Half of the address space leaves room for any bias, and for heap and stack.
                if header.p_vaddr < end || segment_end > MMAP_TOP / 2 {
                    return Err(outside);
                }
                end = segment_end;
                let cut = ElfError::Damaged("a segment lies outside of the file: it was truncated");
                let file_end = header.p_offset.checked_add(header.p_filesz).ok_or(cut)?;
                let bytes = usize::try_from(header.p_offset)
                    .ok()
                    .zip(usize::try_from(file_end).ok())
                    .and_then(|(start, end)| file.get(start..end))
                    .ok_or(cut)?;
                if header.p_filesz > header.p_memsz {
                    return Err(ElfError::Damaged(
                        "a segment is larger in the file than in memory",
                    ));
                }
                if header.p_offset % PAGE_SIZE != header.p_vaddr % PAGE_SIZE {
                    return Err(ElfError::Damaged("a segment is not aligned to pages"));
                }
                if image.headers == 0 && (header.p_offset..file_end).contains(&head.e_phoff) {
                    image.headers = header.p_vaddr + (head.e_phoff - header.p_offset);
                }
                image.segments.push(Segment {
                    address: header.p_vaddr,
                    size: header.p_memsz,
                    bytes,
                    protection: protection(header.p_flags),
                });
            }
            _ => {}
        }
    }
    let in_code = |s: &Segment<'_>| {
        s.protection.allows(Protection::EXECUTE)
            && (s.address..s.address + s.size).contains(&image.entry)
    };
    if !image.segments.iter().any(in_code) {
        return Err(ElfError::Damaged("its entry is in no executable segment"));
    }
    Ok(image)
}

fn protection(flags: u32) -> Protection {
    let right = |flag, right| {
        if flags & flag != 0 {
            right
        } else {
            Protection::NONE
        }
    };
    right(abi::PF_R, Protection::READ)
        .union(right(abi::PF_W, Protection::WRITE))
        .union(right(abi::PF_X, Protection::EXECUTE))
}

/// Builds programs for tests.
#[cfg(test)]
pub(crate) mod build {
    use alloc::vec::Vec;

    /// A program header: type, flags, offset, address, bytes in the file, bytes in memory.
    pub(crate) type Header = (u32, u32, u64, u64, u64, u64);

    /// An ELF file of 8 KiB with the headers given.
    pub(crate) fn program(kind: u16, entry: u64, headers: &[Header]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend_from_slice(&kind.to_le_bytes());
        file.extend_from_slice(&62u16.to_le_bytes());
        file.extend_from_slice(&1u32.to_le_bytes());
        for word in [entry, 64, 0] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        file.extend_from_slice(&0u32.to_le_bytes());
        for half in [64, 56, headers.len() as u16, 64, 0, 0] {
            file.extend_from_slice(&half.to_le_bytes());
        }
        for (kind, flags, offset, address, in_file, in_memory) in headers {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&flags.to_le_bytes());
            for word in [*offset, *address, *address, *in_file, *in_memory, 0x1000] {
                file.extend_from_slice(&word.to_le_bytes());
            }
        }
        file.resize(8192, 0x90);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::build::{Header, program};
    use super::*;
    use proptest::prelude::*;

    const CODE: Header = (1, 5, 0, 0x40_0000, 0x1000, 0x1000);
    const DATA: Header = (1, 6, 0x1000, 0x40_1000, 0x800, 0x5000);
    const ENTRY: u64 = 0x40_0200;

    fn outcome(headers: &[Header]) -> Option<ElfError> {
        parse(&program(2, ENTRY, headers)).err()
    }

    #[test]
    fn reads_a_program() {
        let file = program(2, ENTRY, &[CODE, DATA]);
        let image = parse(&file).unwrap();
        assert_eq!(image.segments.len(), 2);
        assert_eq!(
            (image.headers, image.header_count, image.end()),
            (0x40_0040, 2, 0x40_6000)
        );
        assert!(!image.relocatable);
        assert_eq!(image.segments[1].bytes.len(), 0x800);
        assert!(image.segments[1].protection.allows(Protection::READ_WRITE));
        let pie = program(3, 0x10, &[(1, 5, 0, 0, 0x1000, 0x1000)]);
        assert!(parse(&pie).unwrap().relocatable);
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(
            outcome(&[CODE, (3, 4, 0, 0, 8, 8)]),
            Some(ElfError::Dynamic)
        );
        assert_eq!(parse(b"#!/bin/sh"), Err(ElfError::NotElf));
        assert_eq!(parse(b""), Err(ElfError::NotElf));
        let mut arm = program(2, ENTRY, &[CODE]);
        arm[18] = 183;
        assert_eq!(parse(&arm), Err(ElfError::Machine));
        assert_eq!(
            parse(&program(1, ENTRY, &[CODE])),
            Err(ElfError::NotProgram)
        );
        assert_eq!(
            parse(&program(2, 0x41_0000, &[CODE])).unwrap_err(),
            ElfError::Damaged("its entry is in no executable segment")
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let base = CODE;
        let hostile: [Header; 10] = [
            (1, 5, 0, 0x40_0000, 0x10_0000, 0x10_0000),
            (1, 5, u64::MAX - 0xfff, 0x40_0000, 0x1000, 0x1000),
            (1, 5, 0, u64::MAX - 0xfff, 0x1000, 0x1000),
            (1, 5, 0, 0x7000_0000_0000, 0x1000, 0x1000),
            (1, 5, 0, 0xffff_8000_0000_0000, 0x1000, 0x1000),
            (1, 5, 0, 0, 0x1000, 0x1000),
            (1, 5, 0, 0x40_0000, 0x1000, u64::MAX),
            (1, 5, 0, 0x40_0000, 0x1000, 0x800),
            (1, 5, 8, 0x40_0000, 0x1000, 0x1000),
            (1, 5, 0, 0x40_0000, 0x1000, 0x7000_0000_0000),
        ];
        for header in hostile {
            assert!(outcome(&[header]).is_some(), "{header:x?}");
        }
        // A position-independent program's bias is added to it.
        let headers_far_away = (6, 4, 64, u64::MAX, 112, 112);
        assert!(outcome(&[headers_far_away, base]).is_some());
        assert!(outcome(&[base, base]).is_some());
        assert!(outcome(&[DATA, base]).is_some());
        assert!(outcome(&[]).is_some());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = program(2, ENTRY, &[CODE, DATA]);
        for len in (0..file.len()).filter(|len| len % 7 == 0 && *len < 0x1800) {
            assert!(parse(&file[..len]).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_never_fatal(changes in prop::collection::vec((0usize..180, any::<u8>()), 1..8)) {
            let mut file = program(3, 0x200, &[CODE, DATA]);
            for (at, value) in changes {
                file[at] = value;
            }
            if let Ok(image) = parse(&file) {
                for pair in image.segments.windows(2) {
                    prop_assert!(pair[0].address + pair[0].size <= pair[1].address);
                }
                prop_assert!(image.end() <= MMAP_TOP / 2);
            }
        }
    }
}
