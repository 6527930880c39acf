//! Moving bytes: between program memory and files, devices, the console.

use alloc::vec::Vec;

use linux_raw_sys::general as raw;

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::OpenFile;
use crate::fs::node::{Device, Kind, NodeId};
use crate::fs::tree::OVERLAY_BYTES;
use crate::memory::{Protection, UserPtr};
use crate::platform::Stream;
use crate::process::{CONSOLE_BYTES, Process};
use crate::uapi::Iovec;

/// Most bytes one call moves (Linux `MAX_RW_COUNT`).
const MAX_COUNT: u64 = 0x7fff_f000;
/// Most parts of a vector (`UIO_MAXIOV`).
const MAX_PARTS: u64 = 1024;

/// What a descriptor moves bytes to and from.
enum Endpoint {
    File,
    Device(Device),
}

fn endpoint(p: &Process<'_>, node: NodeId) -> Result<Endpoint, Errno> {
    match p.tree.get(node).map(|n| &n.kind) {
        Some(Kind::File(_)) => Ok(Endpoint::File),
        Some(Kind::Device(device)) => Ok(Endpoint::Device(*device)),
        Some(Kind::Directory(_)) => Err(Errno::EISDIR),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn read(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    read_part(p, &file, None, a.get(1), a.get(2))
}

pub(super) fn pread64(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let offset = position(p, &file, a.get(3))?;
    read_part(p, &file, Some(offset), a.get(1), a.get(2))
}

pub(super) fn write(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    write_parts(
        p,
        &file,
        None,
        &[Iovec {
            base: a.get(1),
            len: a.get(2),
        }],
    )
}

pub(super) fn pwrite64(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let offset = position(p, &file, a.get(3))?;
    write_parts(
        p,
        &file,
        Some(offset),
        &[Iovec {
            base: a.get(1),
            len: a.get(2),
        }],
    )
}

pub(super) fn readv(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let parts = vector(p, a)?;
    let mut total = 0;
    for part in parts.iter().filter(|part| part.len > 0) {
        match read_part(p, &file, None, part.base, part.len) {
            Ok(count) => {
                total += count;
                if count < part.len {
                    break;
                }
            }
            Err(error) if total == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(total)
}

pub(super) fn writev(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let parts = vector(p, a)?;
    write_parts(p, &file, None, &parts)
}

/// The offset argument of `pread64` and `pwrite64`.
fn position(p: &Process<'_>, file: &OpenFile, offset: u64) -> Result<u64, Errno> {
    match endpoint(p, file.node)? {
        Endpoint::Device(Device::Console(_)) => Err(Errno::ESPIPE),
        _ if offset > i64::MAX as u64 => Err(Errno::EINVAL),
        _ => Ok(offset),
    }
}

/// The vector of `readv` and `writev`.
fn vector(p: &mut Process<'_>, a: Args) -> Result<Vec<Iovec>, Errno> {
    let (first, count) = (a.pointer::<Iovec>(1), a.get(2));
    if count > MAX_PARTS {
        return Err(Errno::EINVAL);
    }
    let mut parts = Vec::new();
    let mut left = MAX_COUNT;
    for index in 0..count {
        let mut part = p.memory().read(first.at(index))?;
        if part.len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        part.len = part.len.min(left);
        left -= part.len;
        parts.push(part);
    }
    Ok(parts)
}

/// Reads into one stretch of memory; at `offset`, or where the file stands.
fn read_part(
    p: &mut Process<'_>,
    file: &OpenFile,
    offset: Option<u64>,
    base: u64,
    len: u64,
) -> Outcome {
    if !file.readable() {
        return Err(Errno::EBADF);
    }
    let len = len.min(MAX_COUNT);
    match endpoint(p, file.node)? {
        Endpoint::File => {
            let at = offset.unwrap_or_else(|| file.offset.get());
            let Process {
                tree,
                space,
                platform,
                ..
            } = p;
            let Some(Kind::File(contents)) = tree.get(file.node).map(|n| &n.kind) else {
                return Err(Errno::EINVAL);
            };
            let bytes = contents.bytes();
            let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let rest = bytes.get(start..).unwrap_or_default();
            let rest = rest.get(..rest.len().min(len as usize)).unwrap_or_default();
            space.touch(*platform, base, rest.len() as u64, Protection::WRITE)?;
            platform.write_memory(base, rest);
            if offset.is_none() {
                file.offset.set(at.saturating_add(rest.len() as u64));
            }
            Ok(rest.len() as u64)
        }
        Endpoint::Device(device) => read_device(p, device, base, len),
    }
}

fn read_device(p: &mut Process<'_>, device: Device, base: u64, len: u64) -> Outcome {
    match device {
        Device::Null => Ok(0),
        Device::Zero | Device::Full => {
            // In pieces: a zero page that was never touched costs memory when it is.
            let len = len.min(CONSOLE_BYTES as u64 * 16);
            p.memory().zero(base, len)?;
            Ok(len)
        }
        Device::Random => super::process::fill_random(p, base, len),
        Device::Console(_) => {
            let len = (len as usize).min(CONSOLE_BYTES);
            if len == 0 {
                return Ok(0);
            }
            // Before the input is taken: a bad pointer must not lose it.
            let Process {
                space,
                platform,
                scratch,
                ..
            } = p;
            space.touch(*platform, base, len as u64, Protection::WRITE)?;
            let into = scratch.get(len)?;
            let count = platform.console_read(into).map_err(|_| Errno::EIO)?;
            platform.write_memory(base, into.get(..count).ok_or(Errno::EIO)?);
            Ok(count as u64)
        }
    }
}

/// Writes a vector; at `offset`, or where the file stands.
fn write_parts(
    p: &mut Process<'_>,
    file: &OpenFile,
    offset: Option<u64>,
    parts: &[Iovec],
) -> Outcome {
    if !file.writable() {
        return Err(Errno::EBADF);
    }
    match endpoint(p, file.node)? {
        Endpoint::File => write_file(p, file, offset, parts),
        Endpoint::Device(Device::Full) => Err(Errno::ENOSPC),
        Endpoint::Device(Device::Console(stream)) => write_console(p, stream, parts),
        Endpoint::Device(Device::Null | Device::Zero | Device::Random) => {
            Ok(parts.iter().map(|part| part.len.min(MAX_COUNT)).sum())
        }
    }
}

fn write_file(
    p: &mut Process<'_>,
    file: &OpenFile,
    offset: Option<u64>,
    parts: &[Iovec],
) -> Outcome {
    let now = p.stamp_ns();
    let Process {
        tree,
        space,
        platform,
        ..
    } = p;
    let append = file.flags.get() & raw::O_APPEND != 0;
    let size = tree.get(file.node).map_or(0, |node| node.size());
    let start = match offset {
        _ if append => size,
        Some(offset) => offset,
        None => file.offset.get(),
    };
    let mut at = start;
    for part in parts.iter().filter(|part| part.len > 0) {
        let len = part.len.min(MAX_COUNT);
        let wrote = at.checked_add(len).ok_or(Errno::EFBIG).and_then(|end| {
            // Checked first: a bad pointer must not grow the file, nor a vast write use up memory.
            if end > OVERLAY_BYTES as u64 {
                return Err(Errno::ENOSPC);
            }
            space.touch(*platform, part.base, len, Protection::READ)?;
            let size = tree.get(file.node).map_or(0, |node| node.size());
            let bytes = tree.resize(file.node, size.max(end), now)?;
            let into = bytes.get_mut(at as usize..end as usize).ok_or(Errno::EIO)?;
            platform.read_memory(part.base, into);
            Ok(end)
        });
        match wrote {
            Ok(end) => at = end,
            Err(error) if at == start => return Err(error),
            Err(_) => break,
        }
    }
    if offset.is_none() {
        file.offset.set(at);
    }
    Ok(at - start)
}

/// Gathers the parts: one console operation costs far more than a copy.
fn write_console(p: &mut Process<'_>, stream: Stream, parts: &[Iovec]) -> Outcome {
    let (mut total, mut held) = (0, 0);
    for part in parts {
        let (mut at, mut left) = (part.base, part.len.min(MAX_COUNT));
        while left > 0 {
            let len = left.min((CONSOLE_BYTES - held) as u64);
            let Process {
                space,
                platform,
                scratch,
                ..
            } = p;
            if let Err(error) = space.touch(*platform, at, len, Protection::READ) {
                total += flush(p, stream, held)?;
                return if total > 0 { Ok(total) } else { Err(error) };
            }
            let end = held + len as usize;
            let into = scratch.get(end)?.get_mut(held..).ok_or(Errno::EIO)?;
            platform.read_memory(at, into);
            (at, left, held) = (at + len, left - len, end);
            if held == CONSOLE_BYTES {
                let written = flush(p, stream, held)?;
                total += written;
                if written < held as u64 {
                    return Ok(total);
                }
                held = 0;
            }
        }
    }
    Ok(total + flush(p, stream, held)?)
}

/// Writes the first `held` bytes of the scratch place out; how many, 0 only for none.
fn flush(p: &mut Process<'_>, stream: Stream, held: usize) -> Outcome {
    let Process {
        platform, scratch, ..
    } = p;
    let bytes = scratch.get(held)?;
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match platform.console_write(stream, rest) {
            Ok(written @ 1..) => done += written,
            _ if done > 0 => break,
            _ => return Err(Errno::EIO),
        }
    }
    Ok(done as u64)
}

pub(super) fn lseek(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    let node = p.tree.get(file.node).ok_or(Errno::EBADF)?;
    if let Kind::Device(Device::Console(_)) = node.kind {
        return Err(Errno::ESPIPE);
    }
    let (offset, size) = (a.get(1) as i64, node.size() as i64);
    let base = match a.uint(2) {
        raw::SEEK_SET => 0,
        raw::SEEK_CUR => file.offset.get() as i64,
        raw::SEEK_END => size,
        // Files have no holes.
        raw::SEEK_DATA if (0..size).contains(&offset) => 0,
        raw::SEEK_HOLE if (0..size).contains(&offset) => size.wrapping_sub(offset),
        _ => return Err(Errno::EINVAL),
    };
    let position = base.checked_add(offset).ok_or(Errno::EOVERFLOW)?;
    let position = u64::try_from(position).map_err(|_| Errno::EINVAL)?;
    file.offset.set(position);
    Ok(position)
}

pub(super) fn ftruncate(p: &mut Process<'_>, a: Args) -> Outcome {
    let file = p.files.get(a.int(0))?;
    if !file.writable() || a.get(1) > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let now = p.stamp_ns();
    p.tree.resize(file.node, a.get(1), now)?;
    Ok(0)
}

pub(super) fn fsync(p: &mut Process<'_>, a: Args) -> Outcome {
    p.files.get(a.int(0)).map(|_| 0)
}

pub(super) fn sendfile(p: &mut Process<'_>, a: Args) -> Outcome {
    let (to, from) = (p.files.get(a.int(0))?, p.files.get(a.int(1))?);
    let pointer: UserPtr<u64> = a.pointer(2);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF);
    }
    if !matches!(endpoint(p, from.node)?, Endpoint::File) {
        return Err(Errno::EINVAL);
    }
    let start = if pointer.is_null() {
        from.offset.get()
    } else {
        p.memory().read(pointer)?
    };
    let now = p.stamp_ns();
    let (mut at, mut left) = (start, a.get(3).min(MAX_COUNT));
    while left > 0 {
        let Process { tree, scratch, .. } = &mut *p;
        let bytes = match tree.get(from.node).map(|n| &n.kind) {
            Some(Kind::File(contents)) => contents.bytes(),
            _ => return Err(Errno::EINVAL),
        };
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| bytes.get(at..))
            .unwrap_or_default();
        let len = rest.len().min(CONSOLE_BYTES).min(left as usize);
        if len == 0 {
            break;
        }
        let piece = rest.get(..len).ok_or(Errno::EIO)?;
        scratch.get(len)?.copy_from_slice(piece);
        let written = match endpoint(p, to.node)? {
            Endpoint::Device(Device::Console(stream)) => flush(p, stream, len)?,
            Endpoint::Device(Device::Full) => return Err(Errno::ENOSPC),
            Endpoint::Device(_) => len as u64,
            Endpoint::File => {
                let position = to.offset.get();
                let end = position.checked_add(len as u64).ok_or(Errno::EFBIG)?;
                let Process { tree, scratch, .. } = &mut *p;
                let size = tree.get(to.node).map_or(0, |node| node.size());
                let into = tree.resize(to.node, size.max(end), now)?;
                let into = into.get_mut(position as usize..end as usize);
                into.ok_or(Errno::EIO)?.copy_from_slice(scratch.get(len)?);
                to.offset.set(end);
                len as u64
            }
        };
        (at, left) = (at + written, left - written);
    }
    if pointer.is_null() {
        from.offset.set(at);
    } else {
        p.memory().write(pointer, &at)?;
    }
    Ok(at - start)
}
