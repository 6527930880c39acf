//! The checked reader of program images: ELF64 executables of x86-64 that can be mapped where they
//! lie (System V ABI, "Object Files" and "Program Loading"; `guest-kernel/runtime/program.ld`).
//!
//! Only the header and the program headers are read. Every number is checked against the length
//! of the file before it is believed.

use bulkhead_abi::layout::PAGE_SIZE;

/// Most loadable segments of an image.
pub const MAX_SEGMENTS: usize = 16;

const EHDR_LEN: usize = 64;
pub(crate) const PHDR_LEN: usize = 56;
pub(crate) const ET_EXEC: u16 = 2;
pub(crate) const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

/// Why an image was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// The file ends inside its headers or a segment.
    Truncated,
    /// It is not a little-endian ELF64 file.
    NotElf,
    /// It is not for x86-64.
    WrongMachine,
    /// It is not linked at a fixed address, or wants a dynamic linker.
    NotStatic,
    /// More than [`MAX_SEGMENTS`] program headers, or none of them loadable.
    Segments,
    /// A segment cannot be mapped where it lies: it does not start on a page in file and memory,
    /// or memory that the file does not fill does not start on a page.
    Layout,
    /// A segment is writable and executable.
    WriteExecute,
    /// The entry point is in no executable segment.
    Entry,
}

impl core::fmt::Display for ElfError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the file is truncated",
            Self::NotElf => "it is no little-endian ELF64 file",
            Self::WrongMachine => "it is not for x86-64",
            Self::NotStatic => "it is not a static executable at a fixed address; a Linux program runs as linux-abi",
            Self::Segments => "it has no loadable segment, or too many program headers",
            Self::Layout => "a segment is not page aligned; link it with program.ld, or run a Linux program as linux-abi",
            Self::WriteExecute => "a segment is writable and executable",
            Self::Entry => "its entry point is in no executable segment",
        })
    }
}

/// A loadable segment: whole pages from `offset` in the file at `address`, then zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes, on 4 KiB.
    pub address: u64,
    /// Where its bytes begin in the file, on 4 KiB.
    pub offset: u64,
    /// How many pages come from the file. The last one may hold bytes that follow the segment.
    pub file_pages: u64,
    /// How many zeroed pages follow.
    pub zero_pages: u64,
    /// It can be written.
    pub write: bool,
    /// It can be executed.
    pub execute: bool,
}

/// A checked image.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// First instruction.
    pub entry: u64,
    headers: &'a [u8],
    file_len: u64,
}

impl<'a> Image<'a> {
    /// Checks `file`.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        let header = file.get(..EHDR_LEN).ok_or(ElfError::Truncated)?;
        // Magic, ELFCLASS64, ELFDATA2LSB, EV_CURRENT.
        if !header.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1, 1]) {
            return Err(ElfError::NotElf);
        }
        if u16_at(header, 18)? != EM_X86_64 {
            return Err(ElfError::WrongMachine);
        }
        if u16_at(header, 16)? != ET_EXEC {
            return Err(ElfError::NotStatic);
        }
        let count = usize::from(u16_at(header, 56)?);
        if usize::from(u16_at(header, 54)?) != PHDR_LEN || count > MAX_SEGMENTS {
            return Err(ElfError::Segments);
        }
        let start = usize::try_from(u64_at(header, 32)?).map_err(|_| ElfError::Truncated)?;
        let end = start
            .checked_add(count * PHDR_LEN)
            .ok_or(ElfError::Truncated)?;
        let image = Self {
            entry: u64_at(header, 24)?,
            headers: file.get(start..end).ok_or(ElfError::Truncated)?,
            file_len: file.len() as u64,
        };
        let mut any = false;
        let mut entry_found = false;
        for segment in image.segments() {
            let segment = segment?;
            any = true;
            let end = segment.address + segment.file_pages * PAGE_SIZE;
            entry_found |= segment.execute && (segment.address..end).contains(&image.entry);
        }
        match (any, entry_found) {
            (false, _) => Err(ElfError::Segments),
            (true, false) => Err(ElfError::Entry),
            (true, true) => Ok(image),
        }
    }

    /// The loadable segments.
    pub fn segments(&self) -> impl Iterator<Item = Result<Segment, ElfError>> + use<'a> {
        let file_len = self.file_len;
        self.headers
            .chunks_exact(PHDR_LEN)
            .filter_map(move |h| segment(h, file_len).transpose())
    }
}

/// The segment that a program header describes, or `None` for other kinds of header.
fn segment(header: &[u8], file_len: u64) -> Result<Option<Segment>, ElfError> {
    let kind = u32_at(header, 0)?;
    if kind == PT_INTERP {
        return Err(ElfError::NotStatic);
    }
    let memory_len = u64_at(header, 40)?;
    if kind != PT_LOAD || memory_len == 0 {
        return Ok(None);
    }
    let flags = u32_at(header, 4)?;
    let offset = u64_at(header, 8)?;
    let address = u64_at(header, 16)?;
    let in_file = u64_at(header, 32)?;
    if offset.checked_add(in_file).is_none_or(|end| end > file_len) {
        return Err(ElfError::Truncated);
    }
    let aligned = address.is_multiple_of(PAGE_SIZE)
        && (in_file == 0 || offset.is_multiple_of(PAGE_SIZE))
        && (memory_len == in_file || in_file.is_multiple_of(PAGE_SIZE));
    let memory_pages = memory_len.div_ceil(PAGE_SIZE);
    let fits = memory_pages
        .checked_mul(PAGE_SIZE)
        .and_then(|len| address.checked_add(len));
    if !aligned || memory_len < in_file || fits.is_none() {
        return Err(ElfError::Layout);
    }
    let (write, execute) = (flags & PF_W != 0, flags & PF_X != 0);
    if write && execute {
        return Err(ElfError::WriteExecute);
    }
    let file_pages = in_file.div_ceil(PAGE_SIZE);
    let zero_pages = memory_pages - file_pages;
    Ok(Some(Segment {
        address,
        offset,
        file_pages,
        zero_pages,
        write,
        execute,
    }))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    let found = bytes.get(at..).and_then(|tail| tail.first_chunk());
    found.copied().ok_or(ElfError::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ElfError> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::fake::image;

    const AT: u64 = 0x7000_0000_0000;

    fn usual() -> Vec<u8> {
        image(
            AT + 0x10,
            0x4000,
            &[
                [1, 5, 0x1000, AT, 0x1234, 0x1234],
                [1, 6, 0x3000, AT + 0x4000, 0x1000, 0x3001],
            ],
        )
    }

    #[test]
    fn segments_of_a_good_image() {
        let file = usual();
        let image = Image::parse(&file).unwrap();
        let segments: Vec<Segment> = image.segments().map(Result::unwrap).collect();
        assert_eq!(image.entry, AT + 0x10);
        let text = Segment {
            address: AT,
            offset: 0x1000,
            file_pages: 2,
            zero_pages: 0,
            write: false,
            execute: true,
        };
        let data = Segment {
            address: AT + 0x4000,
            offset: 0x3000,
            file_pages: 1,
            zero_pages: 3,
            write: true,
            execute: false,
        };
        assert_eq!(segments, [text, data]);
    }

    #[test]
    fn every_truncation_is_refused() {
        let file = usual();
        let step = if cfg!(miri) { 97 } else { 1 };
        for len in (0..file.len()).step_by(step) {
            assert!(
                Image::parse(&file[..len]).is_err(),
                "{len} bytes were accepted"
            );
        }
    }

    #[test]
    fn broken_rules_are_named() {
        let text = [1, 5, 0x1000, AT, 0x1000, 0x1000];
        let with = |headers: &[[u64; 6]]| Image::parse(&image(AT, 0x4000, headers)).map(|_| ());
        assert_eq!(with(&[text]), Ok(()));
        assert_eq!(with(&[]), Err(ElfError::Segments));
        assert_eq!(with(&[[2, 4, 0, 0, 0, 8]]), Err(ElfError::Segments));
        assert_eq!(with(&[text; MAX_SEGMENTS + 1]), Err(ElfError::Segments));
        assert_eq!(with(&[text, [3, 4, 0, 0, 8, 8]]), Err(ElfError::NotStatic));
        assert_eq!(
            with(&[[1, 4, 0x1000, AT, 0x1000, 0x1000]]),
            Err(ElfError::Entry)
        );
        assert_eq!(
            with(&[[1, 7, 0x1000, AT, 0x1000, 0x1000]]),
            Err(ElfError::WriteExecute)
        );
        for bad in [
            [1, 6, 0x1000, AT + 1, 0x1000, 0x1000],
            [1, 6, 0x1001, AT, 0x1000, 0x1000],
            [1, 6, 0x1000, AT, 0x1001, 0x2000],
            [1, 6, 0x1000, AT, 0x1000, 0xfff],
            [1, 6, 0x1000, AT, 0, u64::MAX],
            [1, 6, 0x1000, !0xfff, 0x1000, 0x2000],
        ] {
            assert_eq!(with(&[text, bad]), Err(ElfError::Layout), "{bad:x?}");
        }
        for bad in [
            [1, 6, u64::MAX, AT, 0x1000, 0x1000],
            [1, 6, 0x1000, AT, 0x4000, 0x4000],
        ] {
            assert_eq!(with(&[text, bad]), Err(ElfError::Truncated), "{bad:x?}");
        }
        for (at, byte, error) in [
            (0, 0, ElfError::NotElf),
            (4, 1, ElfError::NotElf),
            (5, 2, ElfError::NotElf),
            (16, 3, ElfError::NotStatic),
            (18, 183, ElfError::WrongMachine),
            (39, 0x80, ElfError::Truncated),
            (54, 57, ElfError::Segments),
        ] {
            let mut file = usual();
            file[at] = byte;
            assert_eq!(Image::parse(&file).map(|_| ()), Err(error), "byte {at}");
        }
    }

    #[test]
    fn no_byte_of_the_headers_can_make_it_panic() {
        let file = usual();
        let step = if cfg!(miri) { 7 } else { 1 };
        for at in (0..64 + 2 * PHDR_LEN).step_by(step) {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = file.clone();
                file[at] = byte;
                if let Ok(image) = Image::parse(&file) {
                    assert!(image.segments().all(|s| s.is_ok()));
                }
            }
        }
    }
}
