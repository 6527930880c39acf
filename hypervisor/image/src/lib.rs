//! Kernel images: what a file is, and whether its boot protocol can enter it.
//!
//! Whoever starts a VMM checks the image and describes it by numbers; the VMM loads what the numbers
//! say, and knows no file format but the setup header of a bzImage. The file is untrusted: every
//! number in it is checked against the file's length before it is used.
#![forbid(unsafe_code)]

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bulkhead_machine::{Boot, Image, MachineDescription};

use self::elf::{Elf, Wanted};

/// Why a kernel image cannot be loaded. Texts continue "the kernel image ...".
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Zero bytes.
    #[error("is empty")]
    Empty,
    /// Not an ELF file.
    #[error("is no ELF file")]
    NoElf,
    /// Neither an ELF file nor a bzImage.
    #[error("is neither a bzImage nor an ELF file")]
    Format,
    /// For another processor, or another ELF class than the protocol needs.
    #[error("is for another processor ({found}); {wanted} is needed")]
    Architecture {
        /// What it is for.
        found: String,
        /// What the boot protocol enters.
        wanted: &'static str,
    },
    /// A bzImage that is too old, or not for 64 bits.
    #[error("has no 64-bit entry point; use an x86-64 kernel of Linux 3.8 or later")]
    NotX86_64,
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
    /// No PVH entry note.
    #[error("has no PVH entry note, so it cannot be booted by that protocol")]
    NoPvhNote,
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
}

impl ImageError {
    /// Stable code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "kernel-empty",
            Self::NoElf | Self::Format => "kernel-format",
            Self::Architecture { .. } | Self::NotX86_64 => "kernel-architecture",
            Self::Truncated { .. } => "kernel-truncated",
            Self::Invalid(_) => "kernel-invalid",
            Self::NoPvhNote => "kernel-not-pvh",
            Self::Read(_) => "kernel-unreadable",
        }
    }
}

/// Gives the machine what the VMM has to know of its kernel, the file `kernel`.
///
/// # Errors
/// The first rule that the image breaks.
pub fn provide(description: &mut MachineDescription, kernel: &File) -> Result<(), ImageError> {
    description.image = image(kernel, &description.boot)?;
    Ok(())
}

/// What the VMM has to know of `kernel`, which is to be entered as `boot` says; nothing of a bzImage.
///
/// # Errors
/// The first rule that the image breaks.
pub fn image(kernel: &File, boot: &Boot) -> Result<Option<Image>, ImageError> {
    if kernel.metadata()?.len() == 0 {
        return Err(ImageError::Empty);
    }
    let image = match boot {
        Boot::Bulkhead { .. } => {
            let elf = Elf::parse(kernel, Wanted::X86_64)?;
            elf.check_link_addresses()?;
            elf.image(None)
        }
        Boot::Linux { .. } if !elf::is_elf(kernel) => {
            bzimage::check(kernel)?;
            return Ok(None);
        }
        Boot::Linux { .. } => {
            let elf = Elf::parse(kernel, Wanted::X86)?;
            match elf.pvh_entry()? {
                Some(entry) => elf.image(Some(entry)),
                None => Elf::parse(kernel, Wanted::X86_64)?.image(None),
            }
        }
        Boot::Pvh { .. } => {
            let elf = Elf::parse(kernel, Wanted::X86)?;
            elf.image(Some(elf.pvh_entry()?.ok_or(ImageError::NoPvhNote)?))
        }
    };
    Ok(Some(image))
}

/// Bytes `offset..offset + len` of a file of `size` bytes; callers bound `len`.
fn read_range(file: &File, size: u64, offset: u64, len: u64) -> Result<Vec<u8>, ImageError> {
    let needed = offset
        .checked_add(len)
        .ok_or(ImageError::Invalid("an offset wraps round"))?;
    if needed > size {
        return Err(ImageError::Truncated { needed, size });
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
