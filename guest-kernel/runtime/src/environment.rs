//! What the partition was started with: arguments, environment, modules and devices, from the
//! `BootInfo` that the kernel shows to the program.

use core::sync::atomic::{AtomicPtr, Ordering};

use bulkhead_abi::boot::{BootInfo, BootInfoView, Device, MAX_SIZE};
use bulkhead_abi::layout::{PAGE_SIZE, PROGRAM_MODULE_STRIDE, PROGRAM_MODULES};

static BLOB: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Remembers where the blob lies.
#[cfg(target_os = "none")]
pub(crate) fn set_boot_info(blob: *const u8) {
    BLOB.store(blob.cast_mut(), Ordering::Relaxed);
}

/// The checked `BootInfo`; `None` before the program was started by [`crate::program_main!`].
pub fn boot_info() -> Option<BootInfoView<'static>> {
    let blob = BLOB.load(Ordering::Relaxed).cast_const();
    if blob.is_null() {
        return None;
    }
    // SAFETY: the kernel mapped at least a page there, read-only, for the program's life; the head
    // fits into it, and is plain integers.
    let head = unsafe { &*blob.cast::<BootInfo>() };
    let mapped = (u64::from(head.size.min(MAX_SIZE))).next_multiple_of(PAGE_SIZE);
    // SAFETY: the kernel maps the whole blob, in whole pages.
    let bytes = unsafe { core::slice::from_raw_parts(blob, mapped as usize) };
    BootInfoView::parse(bytes).ok()
}

/// The arguments, as bytes: the program's name is not among them unless the manifest put it there.
pub fn args() -> impl Iterator<Item = &'static [u8]> {
    boot_info().into_iter().flat_map(|info| info.args())
}

/// The environment as `NAME=value`.
pub fn vars() -> impl Iterator<Item = &'static [u8]> {
    boot_info().into_iter().flat_map(|info| info.env())
}

/// The value of an environment variable.
pub fn var(name: &str) -> Option<&'static [u8]> {
    vars().find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The granted devices.
pub fn devices() -> &'static [Device] {
    boot_info().map_or(&[], |info| info.devices())
}

/// How many CPUs there are for the program's threads.
pub fn cpus() -> u64 {
    boot_info().map_or(1, |info| info.cpus())
}

/// True when all bits of a `FLAG_*` of [`bulkhead_abi::boot`] are set.
pub fn has(flag: u64) -> bool {
    boot_info().is_some_and(|info| info.has(flag))
}

/// The bytes of the first module of `kind` (`MODULE_*` of [`bulkhead_abi::boot`]).
///
/// The initial program's own module is [`None`]: its data lives in there and changes.
pub fn module(kind: u32) -> Option<&'static [u8]> {
    let info = boot_info()?;
    let index = info.modules().iter().position(|m| m.kind == kind)?;
    let module = info.modules().get(index)?;
    if kind == bulkhead_abi::boot::MODULE_PROGRAM {
        return None;
    }
    let address = PROGRAM_MODULES + index as u64 * PROGRAM_MODULE_STRIDE;
    if module.range.len == 0 {
        return Some(&[]);
    }
    // SAFETY: the kernel mapped the module there, read-only, for the program's life.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, module.range.len as usize) })
}
