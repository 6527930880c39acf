//! Looks at a program before a partition is made for it, so that the usual mistakes (a dynamic
//! executable, another CPU, a file cut short) end in a sentence and not in a guest.
//!
//! The guest trusts none of this: it checks again.

use crate::error::{Error, ProgramProblem};
use crate::files::open_regular;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers we look at.
const MAX_HEADERS: u16 = 128;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const MAX_LOADER: u64 = 4096;

/// Opens a program and checks that a partition could run it: an x86-64 ELF executable, complete,
/// and static unless `dynamic_ok`.
pub(crate) fn open_program(path: &Path, dynamic_ok: bool) -> Result<File, Error> {
    let file = open_regular("program", path)?;
    match check(&file, dynamic_ok) {
        Ok(()) => Ok(file),
        Err(problem) => Err(Error::Program {
            path: path.to_owned(),
            problem,
        }),
    }
}

fn check(file: &File, dynamic_ok: bool) -> Result<(), ProgramProblem> {
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let header: [u8; HEADER] = read_at(file, 0).ok_or_else(|| match read_at::<4>(file, 0) {
        Some(magic) if magic == *b"\x7fELF" => ProgramProblem::Truncated,
        _ => ProgramProblem::NotElf,
    })?;
    if !header.starts_with(b"\x7fELF") {
        return Err(ProgramProblem::NotElf);
    }
    // Class 2: 64 bits; data 1: little endian.
    let machine = u16_at(&header, 18);
    if header.get(4..6) != Some(&[2, 1]) || machine != EM_X86_64 {
        return Err(ProgramProblem::WrongArchitecture);
    }
    let count = u16_at(&header, 56);
    if !matches!(u16_at(&header, 16), ET_EXEC | ET_DYN)
        || count == 0
        || count > MAX_HEADERS
        || usize::from(u16_at(&header, 54)) != PROGRAM_HEADER
    {
        return Err(ProgramProblem::NotExecutable);
    }
    let table = u64_at(&header, 32);
    let mut loads = 0;
    for index in 0..u64::from(count) {
        let at = table.checked_add(index * PROGRAM_HEADER as u64);
        let header: [u8; PROGRAM_HEADER] = at
            .and_then(|at| read_at(file, at))
            .ok_or(ProgramProblem::Truncated)?;
        let (kind, offset, size) = (u32_at(&header, 0), u64_at(&header, 8), u64_at(&header, 32));
        let end = offset.checked_add(size).ok_or(ProgramProblem::Truncated)?;
        if end > len && matches!(kind, PT_LOAD | PT_INTERP) {
            return Err(ProgramProblem::Truncated);
        }
        loads += usize::from(kind == PT_LOAD);
        if kind == PT_INTERP && !dynamic_ok {
            let mut loader = vec![0; usize::try_from(size.min(MAX_LOADER)).unwrap_or(0)];
            let read = file.read_exact_at(&mut loader, offset);
            read.map_err(|_| ProgramProblem::Truncated)?;
            let loader = String::from_utf8_lossy(&loader);
            let loader = loader.trim_end_matches('\0').escape_debug().to_string();
            return Err(ProgramProblem::Dynamic { loader });
        }
    }
    // A shared library without an entry point loads, and then there is nothing to run.
    if loads == 0 || u64_at(&header, 24) == 0 {
        return Err(ProgramProblem::NotExecutable);
    }
    Ok(())
}

fn read_at<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// The bytes at `at`; zeros beyond the end, which the fixed offsets above never reach.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|tail| tail.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A static executable with one segment that covers the whole file.
    fn program() -> Vec<u8> {
        let mut bytes = vec![0_u8; 256];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x40_0000_u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        bytes[96..104].copy_from_slice(&256_u64.to_le_bytes());
        bytes
    }

    fn judge(bytes: &[u8]) -> Result<(), ProgramProblem> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        check(&file, false)
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut program = program();
        program[at..at + bytes.len()].copy_from_slice(bytes);
        program
    }

    #[test]
    fn each_problem_is_told_apart() {
        use ProgramProblem::{NotElf, NotExecutable, Truncated, WrongArchitecture};
        assert_eq!(judge(&program()), Ok(()));
        for (bytes, problem) in [
            (b"".to_vec(), NotElf),
            (b"#!/bin/sh\n".to_vec(), NotElf),
            (vec![b'x'; 300], NotElf),
            (program()[..20].to_vec(), Truncated),
            (program()[..100].to_vec(), Truncated),
            (program()[..255].to_vec(), Truncated),
            (with(4, &[1]), WrongArchitecture),
            (with(18, &183_u16.to_le_bytes()), WrongArchitecture),
            (with(16, &1_u16.to_le_bytes()), NotExecutable),
            (with(24, &0_u64.to_le_bytes()), NotExecutable),
            (with(56, &0_u16.to_le_bytes()), NotExecutable),
            (with(32, &u64::MAX.to_le_bytes()), Truncated),
            (with(72, &u64::MAX.to_le_bytes()), Truncated),
        ] {
            assert_eq!(judge(&bytes), Err(problem));
        }
    }

    #[test]
    fn a_dynamic_program_names_its_loader() {
        let mut bytes = program();
        bytes[64..68].copy_from_slice(&PT_INTERP.to_le_bytes());
        bytes[72..80].copy_from_slice(&200_u64.to_le_bytes());
        bytes[96..104].copy_from_slice(&11_u64.to_le_bytes());
        bytes[200..211].copy_from_slice(b"/lib/ld.so\0");
        let loader = "/lib/ld.so".to_owned();
        assert_eq!(judge(&bytes), Err(ProgramProblem::Dynamic { loader }));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(at in 0_usize..250, bytes in any::<[u8; 4]>(), cut in 0_usize..256) {
            let program = with(at, &bytes);
            let _ = judge(&program[..cut]);
        }
    }
}
