//! Memory: what [`crate::memory::AddressSpace`] does, with Linux's flags around it.

use bulkhead_abi::layout::PAGE_SIZE;
use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::node::{Device, Kind};
use crate::memory::{MMAP_TOP, Placement, Protection, STACK_TOP};
use crate::process::Process;

/// Anonymous memory up to this size, in bytes, is backed at once: it is about to be touched, and a
/// page fault costs as much as the backing. Stacks are not: they get a guard page first.
const EAGER_BYTES: u64 = 64 * 1024;
/// `mremap` copies in pieces of this many bytes.
const COPY_BYTES: u64 = crate::process::CONSOLE_BYTES as u64;

pub(super) fn mmap(p: &mut Process<'_>, a: Args) -> Outcome {
    let (hint, len, flags, offset) = (a.get(0), a.get(1), a.uint(3), a.get(5));
    let protection = Protection::from_bits(a.get(2))?;
    let shared = match flags & raw::MAP_TYPE {
        raw::MAP_PRIVATE => false,
        raw::MAP_SHARED | raw::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let placement = if flags & raw::MAP_FIXED_NOREPLACE != 0 {
        Placement::FixedIfFree(hint)
    } else if flags & raw::MAP_FIXED != 0 {
        Placement::Fixed(hint)
    } else {
        Placement::Hint(hint)
    };
    if flags & raw::MAP_ANONYMOUS == 0 {
        let file = p.files.get(a.int(4))?;
        if !file.readable() {
            return Err(Errno::EACCES);
        }
        match p.tree.get(file.node).map(|node| &node.kind) {
            Some(Kind::File(_)) if shared && protection.allows(Protection::WRITE) => {
                return Err(Errno::ENODEV);
            }
            Some(Kind::File(_)) => {
                return map_file(p, placement, len, protection, file.node, offset);
            }
            Some(Kind::Device(Device::Zero)) => {}
            _ => return Err(Errno::ENODEV),
        }
    }
    let (space, platform) = p.space_and_platform();
    let start = space.map(platform, placement, len, protection)?;
    let eager = len <= EAGER_BYTES && flags & raw::MAP_STACK == 0;
    if eager && protection.allows(Protection::WRITE) {
        let end = start + len.next_multiple_of(PAGE_SIZE);
        if space.back(platform, start..end).is_err() {
            space.unmap(platform, start, len)?;
            return Err(Errno::ENOMEM);
        }
    }
    Ok(start)
}

/// A private copy of a part of a file.
fn map_file(
    p: &mut Process<'_>,
    placement: Placement,
    len: u64,
    protection: Protection,
    node: usize,
    offset: u64,
) -> Outcome {
    let Process {
        tree,
        space,
        platform,
        ..
    } = p;
    let Some(Kind::File(contents)) = tree.get(node).map(|node| &node.kind) else {
        return Err(Errno::ENODEV);
    };
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|at| contents.bytes().get(at..));
    let rest = rest.unwrap_or_default();
    let part = rest.get(..rest.len().min(len as usize)).unwrap_or_default();
    let start = space.map(*platform, placement, len, Protection::READ_WRITE)?;
    let filled = space.touch(*platform, start, part.len() as u64, Protection::WRITE);
    if filled.is_ok() {
        platform.write_memory(start, part);
    }
    let done = filled.and_then(|()| space.protect(*platform, start, len, protection));
    if done.is_err() {
        space.unmap(*platform, start, len)?;
        return Err(Errno::ENOMEM);
    }
    Ok(start)
}

pub(super) fn munmap(p: &mut Process<'_>, a: Args) -> Outcome {
    let (space, platform) = p.space_and_platform();
    space.unmap(platform, a.get(0), a.get(1)).map(|()| 0)
}

pub(super) fn mprotect(p: &mut Process<'_>, a: Args) -> Outcome {
    let protection = Protection::from_bits(a.get(2))?;
    let (space, platform) = p.space_and_platform();
    space
        .protect(platform, a.get(0), a.get(1), protection)
        .map(|()| 0)
}

pub(super) fn brk(p: &mut Process<'_>, a: Args) -> Outcome {
    let (space, platform) = p.space_and_platform();
    Ok(space.set_break(platform, a.get(0)))
}

pub(super) fn mremap(p: &mut Process<'_>, a: Args) -> Outcome {
    let (old, old_len, new_len, flags) = (a.get(0), a.get(1), a.get(2), a.uint(3));
    let rounded = |len: u64| {
        len.checked_next_multiple_of(PAGE_SIZE)
            .filter(|len| *len > 0)
    };
    let (Some(old_len), Some(new_len)) = (rounded(old_len), rounded(new_len)) else {
        return Err(Errno::EINVAL);
    };
    if !old.is_multiple_of(PAGE_SIZE) || flags & !raw::MREMAP_MAYMOVE != 0 {
        return Err(Errno::EINVAL);
    }
    let old_end = old
        .checked_add(old_len)
        .filter(|end| *end <= STACK_TOP)
        .ok_or(Errno::EFAULT)?;
    let (range, protection) = p.space.range_at(old).ok_or(Errno::EFAULT)?;
    if range.end < old_end {
        return Err(Errno::EFAULT);
    }
    let (space, platform) = p.space_and_platform();
    if new_len <= old_len {
        if new_len < old_len {
            space.unmap(platform, old + new_len, old_len - new_len)?;
        }
        return Ok(old);
    }
    let grown = old_end..old.checked_add(new_len).ok_or(Errno::ENOMEM)?;
    if grown.end <= MMAP_TOP {
        let more = grown.end - grown.start;
        match space.map(
            platform,
            Placement::FixedIfFree(grown.start),
            more,
            protection,
        ) {
            Ok(_) => return Ok(old),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    if flags & raw::MREMAP_MAYMOVE == 0 || !protection.allows(Protection::READ_WRITE) {
        return Err(Errno::ENOMEM);
    }
    let new = space.map(platform, Placement::Hint(0), new_len, protection)?;
    let copied = copy(p, old, new, old_len);
    let (space, platform) = p.space_and_platform();
    if let Err(error) = copied {
        space.unmap(platform, new, new_len)?;
        return Err(error);
    }
    space.unmap(platform, old, old_len)?;
    Ok(new)
}

/// Copies `len` bytes of program memory; parts that were never touched stay untouched.
fn copy(p: &mut Process<'_>, from: u64, to: u64, len: u64) -> Result<(), Errno> {
    let Process {
        space,
        platform,
        scratch,
        ..
    } = p;
    let mut at = 0;
    while let Some((piece, _)) = space.first_backed(from + at..from + len) {
        let start = piece.start - from;
        let size = (piece.end - piece.start).min(COPY_BYTES);
        let buffer = scratch.get(size as usize)?;
        platform.read_memory(from + start, buffer);
        space
            .touch(*platform, to + start, size, Protection::WRITE)
            .map_err(|_| Errno::ENOMEM)?;
        platform.write_memory(to + start, buffer);
        at = start + size;
    }
    Ok(())
}

pub(super) fn madvise(p: &mut Process<'_>, a: Args) -> Outcome {
    let (start, len) = (a.get(0), a.get(1));
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    let end = start
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE));
    let end = end.ok_or(Errno::EINVAL)?;
    let (space, platform) = p.space_and_platform();
    if !space.is_mapped(start..end) {
        return Err(Errno::ENOMEM);
    }
    if a.uint(2) == raw::MADV_DONTNEED {
        space.discard(platform, start..end);
    }
    Ok(0)
}
