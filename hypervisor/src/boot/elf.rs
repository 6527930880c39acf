//! ELF kernel images: checks a file and loads its segments at their physical addresses.
//!
//! All three boot protocols come here. The file is untrusted: every number in it is checked against
//! the file's length and guest memory before it is used. Format: System V gABI, chapters 4 and 5.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::parse::ParsingTable;
use elf::segment::ProgramHeader;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::machine::memory::{FileAt, GuestMemory};

/// Most program headers of an image; Linux and Bulkhead kernels have under ten.
const MAX_SEGMENTS: usize = 64;
/// Most bytes of one note segment that are looked at.
const MAX_NOTES: u64 = 64 * 1024;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen public/elfnote.h): the 32-bit entry point of the PVH protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// Why an ELF image cannot be loaded. Texts continue "the kernel image ...".
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Zero bytes.
    #[error("is empty")]
    Empty,
    /// Not an ELF file.
    #[error("is no ELF file")]
    Format,
    /// For another processor, or another ELF class than the protocol needs.
    #[error("is for another processor ({found}); {wanted} is needed")]
    Architecture {
        /// What it is for.
        found: String,
        /// What the boot protocol enters.
        wanted: &'static str,
    },
    /// A header or segment lies beyond the end of the file.
    #[error("is cut off: it needs {needed} bytes and has {size}")]
    Truncated {
        /// Bytes that the headers speak of.
        needed: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A rule is broken.
    #[error("is invalid: {0}")]
    Invalid(&'static str),
    /// A segment lies outside guest memory.
    #[error("does not fit into memory: a segment ends at {end:#x}")]
    OutsideMemory {
        /// Physical end address of the segment.
        end: u64,
    },
    /// No PVH entry note.
    #[error("has no PVH entry note, so it cannot be booted by that protocol")]
    NoPvhNote,
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
}

impl ElfError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "kernel-empty",
            Self::Format => "kernel-format",
            Self::Architecture { .. } => "kernel-architecture",
            Self::Truncated { .. } => "kernel-truncated",
            Self::Invalid(_) => "kernel-invalid",
            Self::OutsideMemory { .. } => "kernel-outside-memory",
            Self::NoPvhNote => "kernel-not-pvh",
            Self::Read(_) => "kernel-unreadable",
        }
    }
}

/// What a boot protocol can enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// ELF64 for x86-64.
    X86_64,
    /// That, or ELF32 for i386: PVH enters in 32-bit mode.
    X86,
}

/// One loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Virtual address it is linked at.
    pub virtual_address: u64,
    /// Physical address it is loaded at.
    pub physical_address: u64,
    /// Bytes in memory; those beyond `file_len` are zero.
    pub memory_len: u64,
    /// Wants to be written to.
    pub write: bool,
    /// Wants to be executed.
    pub execute: bool,
}

impl Segment {
    /// Physical address behind its last byte; checked at parse.
    pub fn physical_end(&self) -> u64 {
        self.physical_address.saturating_add(self.memory_len)
    }
}

/// Whether `file` begins as an ELF file does.
pub fn is_elf(file: &File) -> bool {
    let mut magic = [0; abi::ELFMAGIC.len()];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == abi::ELFMAGIC
}

/// A checked image: every segment lies in the file and no address wraps round.
#[derive(Debug)]
pub struct Image<'a> {
    file: &'a File,
    /// Address of the first instruction, as linked.
    pub entry: u64,
    /// Loadable segments that are not empty, ascending by physical address, without overlap.
    pub segments: Vec<Segment>,
    class: Class,
    notes: Vec<ProgramHeader>,
}

impl<'a> Image<'a> {
    /// Reads and checks the headers of `file`.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(file: &'a File, wanted: Wanted) -> Result<Self, ElfError> {
        let size = file.metadata()?.len();
        if size == 0 {
            return Err(ElfError::Empty);
        }
        let header = header(file, size, wanted)?;
        let entry_len = match header.class {
            Class::ELF32 => 32,
            Class::ELF64 => 56,
        };
        if usize::from(header.e_phentsize) != entry_len {
            return Err(ElfError::Invalid("unusual program header size"));
        }
        let count = usize::from(header.e_phnum);
        if count == 0 || count > MAX_SEGMENTS {
            return Err(ElfError::Invalid("no or too many program headers"));
        }
        let table = read_range(file, size, header.e_phoff, (count * entry_len) as u64)?;
        let table: ParsingTable<'_, _, ProgramHeader> =
            ParsingTable::new(LittleEndian, header.class, &table);
        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for program_header in table.iter() {
            match program_header.p_type {
                abi::PT_LOAD if program_header.p_memsz > 0 => {
                    segments.push(segment(&program_header, size)?);
                }
                abi::PT_NOTE => notes.push(program_header),
                _ => {}
            }
        }
        segments.sort_by_key(|s| s.physical_address);
        let overlap = segments
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.physical_end() > b.physical_address));
        if overlap {
            return Err(ElfError::Invalid("segments overlap"));
        }
        if segments.is_empty() {
            return Err(ElfError::Invalid("nothing to load"));
        }
        Ok(Self {
            file,
            entry: header.e_entry,
            segments,
            class: header.class,
            notes,
        })
    }

    /// First and last (exclusive) physical address of all segments.
    pub fn physical_range(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |s| s.physical_address);
        let end = self.segments.last().map_or(0, Segment::physical_end);
        (start, end)
    }

    /// Reads all segments into `memory`, which is still all zero.
    ///
    /// # Errors
    /// [`ElfError::OutsideMemory`] or [`ElfError::Read`].
    pub fn load(&self, memory: &GuestMemory) -> Result<(), ElfError> {
        for segment in &self.segments {
            let outside = ElfError::OutsideMemory {
                end: segment.physical_end(),
            };
            let Ok(memory_len) = usize::try_from(segment.memory_len) else {
                return Err(outside);
            };
            let at = GuestAddress(segment.physical_address);
            if !memory.check_range(at, memory_len) {
                return Err(outside);
            }
            let mut source = FileAt::new(self.file, segment.offset);
            memory
                .read_exact_volatile_from(at, &mut source, segment.file_len as usize)
                .map_err(|e| ElfError::Read(io::Error::other(e)))?;
        }
        Ok(())
    }

    /// The 32-bit entry point of the PVH protocol.
    ///
    /// # Errors
    /// [`ElfError::NoPvhNote`], or the note segment is cut off.
    pub fn pvh_entry(&self) -> Result<u32, ElfError> {
        let size = self.file.metadata()?.len();
        for note in &self.notes {
            let len = note.p_filesz.min(MAX_NOTES);
            let bytes = read_range(self.file, size, note.p_offset, len)?;
            let align = usize::try_from(note.p_align).unwrap_or(4).clamp(4, 8);
            for note in NoteIterator::new(LittleEndian, self.class, align, &bytes) {
                if let Note::Unknown(note) = note
                    && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY
                    && note.name_str().is_ok_and(|name| name == "Xen")
                    && let Some(entry) = note.desc.first_chunk::<4>()
                {
                    return Ok(u32::from_le_bytes(*entry));
                }
            }
        }
        Err(ElfError::NoPvhNote)
    }
}

fn header(file: &File, size: u64, wanted: Wanted) -> Result<FileHeader<LittleEndian>, ElfError> {
    let ident_len = abi::EI_NIDENT as u64;
    let ident = read_range(file, size, 0, ident_len.min(size))?;
    if !ident.starts_with(&abi::ELFMAGIC) {
        return Err(ElfError::Format);
    }
    let ident = read_range(file, size, 0, ident_len)?;
    let wanted_text = match wanted {
        Wanted::X86_64 => "64-bit x86",
        Wanted::X86 => "x86",
    };
    let wrong = |found: String| ElfError::Architecture {
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
        .map_err(|_| ElfError::Invalid("its header cannot be read"))?;
    match (header.class, header.e_machine, wanted) {
        (Class::ELF64, abi::EM_X86_64, _) | (Class::ELF32, abi::EM_386, Wanted::X86) => {}
        (Class::ELF32, _, Wanted::X86_64) => {
            return Err(wrong(format!("32-bit, ELF machine {}", header.e_machine)));
        }
        (_, machine, _) => return Err(wrong(format!("ELF machine {machine}"))),
    }
    if header.e_type != abi::ET_EXEC && header.e_type != abi::ET_DYN {
        return Err(ElfError::Invalid("it is not an executable"));
    }
    Ok(header)
}

fn segment(header: &ProgramHeader, size: u64) -> Result<Segment, ElfError> {
    let needed = header.p_offset.checked_add(header.p_filesz);
    let needed = needed.ok_or(ElfError::Invalid("a segment's offset wraps round"))?;
    if needed > size {
        return Err(ElfError::Truncated { needed, size });
    }
    if header.p_filesz > header.p_memsz {
        return Err(ElfError::Invalid(
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
            return Err(ElfError::Invalid("a segment's address wraps round"));
        }
    }
    Ok(Segment {
        offset: header.p_offset,
        file_len: header.p_filesz,
        virtual_address: header.p_vaddr,
        physical_address: header.p_paddr,
        memory_len: header.p_memsz,
        write: header.p_flags & abi::PF_W != 0,
        execute: header.p_flags & abi::PF_X != 0,
    })
}

/// Bytes `offset..offset + len` of a file of `size` bytes; callers bound `len`.
fn read_range(file: &File, size: u64, offset: u64, len: u64) -> Result<Vec<u8>, ElfError> {
    let needed = offset
        .checked_add(len)
        .ok_or(ElfError::Invalid("an offset wraps round"))?;
    if needed > size {
        return Err(ElfError::Truncated { needed, size });
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// Writes `bytes` to a file without a name.
    pub(crate) fn file(bytes: &[u8]) -> File {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.write_all(bytes).unwrap();
        file
    }

    /// A segment for [`image`]: type, flags, virtual and physical address, bytes, memory length.
    pub(crate) type Part<'a> = (u32, u32, u64, u64, &'a [u8], u64);

    /// An ELF64 image for x86-64 with these segments.
    pub(crate) fn image(entry: u64, parts: &[Part<'_>]) -> Vec<u8> {
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend(2u16.to_le_bytes());
        out.extend(62u16.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        for word in [entry, 64, 0] {
            out.extend(word.to_le_bytes());
        }
        out.extend([0; 4]);
        for half in [64u16, 56, parts.len() as u16, 64, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * parts.len() as u64;
        for (kind, flags, va, pa, bytes, memory_len) in parts {
            out.extend(kind.to_le_bytes());
            out.extend(flags.to_le_bytes());
            for word in [offset, *va, *pa, bytes.len() as u64, *memory_len, 4] {
                out.extend(word.to_le_bytes());
            }
            offset += bytes.len() as u64;
        }
        for (.., bytes, _) in parts {
            out.extend(*bytes);
        }
        out
    }

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [name.len() as u32, desc.len() as u32, kind] {
            out.extend(word.to_le_bytes());
        }
        out.extend(name);
        out.extend(desc);
        out
    }

    fn two_segments() -> Vec<u8> {
        image(
            0x20_1000,
            &[
                (1, 6, 0x20_4000, 0x20_4000, b"data", 0x3000),
                (1, 5, 0x20_1000, 0x20_1000, b"code", 4),
            ],
        )
    }

    #[test]
    fn segments_are_sorted_and_loaded() {
        let file = file(&two_segments());
        let image = Image::parse(&file, Wanted::X86_64).unwrap();
        assert_eq!(image.physical_range(), (0x20_1000, 0x20_7000));
        let memory = crate::machine::memory::create(4).unwrap();
        image.load(&memory).unwrap();
        let mut got = [0; 5];
        memory
            .read_slice(&mut got, GuestAddress(0x20_4000))
            .unwrap();
        assert_eq!(&got, b"data\0");
        assert!(image.segments.iter().all(|s| s.write != s.execute));
    }

    #[test]
    fn every_cut_is_reported_as_a_cut() {
        let whole = two_segments();
        for len in 1..whole.len() {
            let file = file(&whole[..len]);
            match Image::parse(&file, Wanted::X86_64) {
                Err(ElfError::Truncated { .. }) => {}
                Err(ElfError::Format) if len < 4 => {}
                other => panic!("{len} bytes: {other:?}"),
            }
        }
        assert!(matches!(
            Image::parse(&file(b""), Wanted::X86_64),
            Err(ElfError::Empty)
        ));
    }

    #[test]
    fn any_changed_byte_is_survived() {
        let whole = two_segments();
        let memory = crate::machine::memory::create(4).unwrap();
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let file = file(&bytes);
                if let Ok(image) = Image::parse(&file, Wanted::X86) {
                    let _ = image.load(&memory);
                    let _ = image.pvh_entry();
                }
            }
        }
    }

    #[test]
    fn other_processors_are_named() {
        for (at, value, code) in [
            (18, 183, "kernel-architecture"),
            (4, 1, "kernel-architecture"),
            (5, 2, "kernel-architecture"),
            (0, 0, "kernel-format"),
            (16, 1, "kernel-invalid"),
            (56, 0, "kernel-invalid"),
            (54, 1, "kernel-invalid"),
        ] {
            let mut bytes = two_segments();
            bytes[at] = value;
            let file = file(&bytes);
            let error = Image::parse(&file, Wanted::X86_64).unwrap_err();
            assert_eq!(error.code(), code, "byte {at}: {error}");
        }
    }

    #[test]
    fn segments_outside_memory_and_overlaps_are_refused() {
        let outside = file(&image(0, &[(1, 5, 0, 0x40_0000, b"x", 1)]));
        let memory = crate::machine::memory::create(4).unwrap();
        let error = Image::parse(&outside, Wanted::X86_64)
            .unwrap()
            .load(&memory)
            .unwrap_err();
        assert_eq!(error.code(), "kernel-outside-memory");
        for parts in [
            [
                (1, 5, 0, 0x1000, b"x".as_slice(), 0x1000),
                (1, 6, 0, 0x1fff, b"y", 1),
            ],
            [(1, 5, 0, u64::MAX, b"x", 2), (1, 6, 0, 0, b"y", 1)],
            [(1, 5, 0, 0, b"xyz", 2), (1, 6, 0, 0x9000, b"y", 1)],
        ] {
            let file = file(&image(0, &parts));
            let error = Image::parse(&file, Wanted::X86_64).unwrap_err();
            assert_eq!(error.code(), "kernel-invalid");
        }
    }

    #[test]
    fn the_pvh_note_is_found_among_others() {
        let mut notes = note(b"GNU\0", 3, b"0123");
        notes.extend(note(b"Linux\0\0\0", 18, &[9; 4]));
        notes.extend(note(b"Xen\0", 18, &0x10_0000u32.to_le_bytes()));
        let parts: &[Part<'_>] = &[(1, 5, 0, 0, b"x", 1), (4, 4, 0, 0, &notes, 0)];
        let with = file(&image(0, parts));
        let image_with = Image::parse(&with, Wanted::X86).unwrap();
        assert_eq!(image_with.pvh_entry().unwrap(), 0x10_0000);
        let without = file(&image(0, &parts[..1]));
        let image_without = Image::parse(&without, Wanted::X86).unwrap();
        assert!(matches!(
            image_without.pvh_entry(),
            Err(ElfError::NoPvhNote)
        ));
    }
}
