//! The setup header of a bzImage (Documentation/arch/x86/boot.rst): is this a kernel whose 64-bit
//! entry point can be entered?

use std::fs::File;

use crate::{ImageError, read_range};

/// Where the header's fields that are looked at lie in the file.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
/// Where the header ends in the newest version of the protocol, 2.15.
const HEADER_END: u64 = 0x26c;
/// `header`: the magic of a boot protocol of version 2.00 or later.
const HDRS: &[u8] = b"HdrS";
/// `version` from which `xloadflags` and `pref_address` exist: 2.12.
const OLDEST_VERSION: u16 = 0x020c;
/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
const SECTOR: u64 = 512;

/// Checks the header of `kernel`, which is no ELF file.
pub(crate) fn check(kernel: &File) -> Result<(), ImageError> {
    let size = kernel.metadata()?.len();
    if size < HEADER_END {
        return Err(ImageError::Format);
    }
    let head = read_range(kernel, size, 0, HEADER_END)?;
    let half = |at: usize| u16::from_le_bytes(bytes(&head, at));
    if !head.get(HEADER..).is_some_and(|at| at.starts_with(HDRS)) {
        return Err(ImageError::Format);
    }
    if half(VERSION) < OLDEST_VERSION || half(XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err(ImageError::NotX86_64);
    }
    let [setup_sects] = bytes(&head, SETUP_SECTS);
    let setup_sectors = match setup_sects {
        0 => 4,
        n => u64::from(n),
    };
    let syssize = u32::from_le_bytes(bytes(&head, SYSSIZE));
    let needed = (setup_sectors + 1) * SECTOR + u64::from(syssize) * 16;
    if size < needed {
        return Err(ImageError::Truncated { needed, size });
    }
    Ok(())
}

/// The `N` bytes from `at` on; zeros behind the end.
fn bytes<const N: usize>(head: &[u8], at: usize) -> [u8; N] {
    let found = head.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}
