//! The Bulkhead boot protocol: a kernel and its modules, page tables, a stack, and `BootInfo`.
//!
//! `docs/boot-protocol.md` says what a kernel may rely on. Guest-physical memory afterwards:
//!
//! | from | what |
//! | --- | --- |
//! | 0 | nothing: page 0 stays unused |
//! | [`MAILBOX`] | the console mailbox |
//! | [`BOOT_INFO`] | the `BootInfo` blob |
//! | behind it | the boot stack, [`BOOT_STACK_BYTES`] |
//! | [`KERNEL_LOAD`] or above | the kernel image, where it is linked |
//! | behind it | page tables |
//! | next 2 MiB boundary | modules, each in 2 MiB pages of its own |
//! | everything else | untyped |

use std::fs::File;
use std::io;

use bulkhead_abi::boot::{self as abi, BootInfo, MemoryRegion, PhysRange, Table};
use bulkhead_abi::layout::{
    DIRECT_MAP, KERNEL_BASE, KERNEL_LOAD, LARGE_PAGE_SIZE, MAX_MODULES, PAGE_SIZE,
};
use bulkhead_abi::machine::{ConsoleMailbox, VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE};
use bulkhead_machine::{Image, ModuleKind};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use zerocopy::IntoBytes;

use super::page_tables::{PageTables, Rights};
use super::segments;
use crate::error::Error;
use crate::machine::memory::{FileAt, GuestMemory, expect_dense};

/// Guest-physical address of the console mailbox page.
pub const MAILBOX: u64 = 0x1000;
/// Guest-physical address of the `BootInfo` blob.
pub const BOOT_INFO: u64 = 0x2000;
/// Bytes of the stack that is active at entry.
pub const BOOT_STACK_BYTES: u64 = 16 * 1024;

const _: () = assert!(MAILBOX + size_of::<ConsoleMailbox>() as u64 <= BOOT_INFO);
const _: () = assert!(BOOT_INFO + abi::MAX_SIZE as u64 + BOOT_STACK_BYTES <= KERNEL_LOAD);

/// The registers a Bulkhead kernel is entered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction, in the kernel image's virtual range.
    pub rip: u64,
    /// Top of the boot stack, through the direct map.
    pub rsp: u64,
    /// The `BootInfo` blob, through the direct map.
    pub rdi: u64,
    /// Guest-physical address of the page tables.
    pub cr3: u64,
}

/// What the kernel is told besides where things lie.
#[derive(Clone, Debug, Default)]
pub struct Facts<'a> {
    /// `FLAG_*` bits of [`abi`].
    pub flags: u64,
    /// Frequency of the guest's TSC in kHz, not zero.
    pub tsc_khz: u64,
    /// How many CPUs there are.
    pub vcpus: u64,
    /// Wall clock in nanoseconds since 1970 and the guest's TSC then, or zeros.
    pub wall_clock: (u64, u64),
    /// Seed, or zeros.
    pub entropy_seed: [u8; 32],
    /// Devices, in the order of their vectors.
    pub devices: &'a [abi::Device],
    /// Arguments of the initial program.
    pub args: &'a [String],
    /// Environment of the initial program.
    pub env: &'a [String],
}

/// A kernel and modules in guest memory.
#[derive(Debug)]
pub struct Loaded {
    entry: u64,
    root: u64,
    kernel: PhysRange,
    page_tables: PhysRange,
    modules: Vec<abi::Module>,
}

/// Loads `kernel`, makes its page tables, and loads `modules` behind them.
///
/// # Errors
/// The image or a module cannot be used or does not fit.
pub fn load(
    memory: &GuestMemory,
    kernel: &File,
    image: &Image,
    modules: &[(ModuleKind, File)],
) -> Result<Loaded, Error> {
    if modules.len() > MAX_MODULES {
        return Err(Error::TooMany {
            what: "modules",
            count: modules.len(),
            max: MAX_MODULES,
        });
    }
    segments::load(memory, kernel, image)?;
    let (start, end) = image.physical_range();
    let kernel = range(start, end);

    let mut tables = PageTables::new(end.next_multiple_of(PAGE_SIZE));
    map_ram(&mut tables, memory);
    map_kernel(&mut tables, image);
    let page_tables = PhysRange {
        start: tables.root(),
        len: tables.bytes(),
    };
    tables
        .write_to(memory)
        .map_err(|_| too_small(memory, "the kernel's page tables", end_of(page_tables)))?;

    Ok(Loaded {
        entry: image.entry,
        root: tables.root(),
        kernel,
        page_tables,
        modules: load_modules(memory, modules, end_of(page_tables))?,
    })
}

impl Loaded {
    /// Writes the `BootInfo` blob; says how to enter the kernel.
    ///
    /// # Errors
    /// The strings or tables exceed [`abi::MAX_SIZE`].
    pub fn describe(&self, memory: &GuestMemory, facts: &Facts<'_>) -> Result<Entry, Error> {
        let mut blob = Blob::default();
        let args = blob.strings(facts.args);
        let env = blob.strings(facts.env);
        let modules = blob.table(&self.modules);
        let devices = blob.table(facts.devices);
        // The regions depend on where the stack ends, and that on how many regions there are: the
        // blob gets room for as many as there can be.
        let most_regions = memory.num_regions() + 3 + 1;
        let bytes = blob.len() + most_regions * size_of::<MemoryRegion>();
        let boot_info = PhysRange {
            start: BOOT_INFO,
            len: (bytes as u64).next_multiple_of(PAGE_SIZE),
        };
        if bytes > abi::MAX_SIZE as usize {
            return Err(Error::TooMany {
                what: "bytes of arguments and environment",
                count: bytes,
                max: abi::MAX_SIZE as usize,
            });
        }
        let boot_stack = PhysRange {
            start: end_of(boot_info),
            len: BOOT_STACK_BYTES,
        };
        let regions = blob.table(&self.regions(memory, boot_stack, facts.devices.len()));
        let has_console = facts.flags & abi::FLAG_CONSOLE != 0;
        let blob = blob.finish(BootInfo {
            magic: abi::MAGIC,
            version: abi::VERSION,
            size: 0,
            flags: facts.flags,
            tsc_khz: facts.tsc_khz,
            wall_clock_ns: facts.wall_clock.0,
            wall_clock_tsc: facts.wall_clock.1,
            entropy_seed: facts.entropy_seed,
            boot_info,
            kernel: self.kernel,
            page_tables: self.page_tables,
            boot_stack,
            console_mailbox: if has_console { MAILBOX } else { 0 },
            regions,
            modules,
            devices,
            args,
            env,
            vcpus: facts.vcpus,
        });
        memory
            .write_slice(&blob, GuestAddress(BOOT_INFO))
            .map_err(|e| Error::Memory(e.to_string()))?;
        Ok(Entry {
            rip: self.entry,
            rsp: DIRECT_MAP + end_of(boot_stack),
            rdi: DIRECT_MAP + BOOT_INFO,
            cr3: self.root,
        })
    }

    /// All of RAM that the direct map covers and nothing lies in, and the device windows.
    fn regions(&self, memory: &GuestMemory, stack: PhysRange, devices: usize) -> Vec<MemoryRegion> {
        let modules_start = self.modules.first().map(|m| m.range.start);
        let modules_end = (self.modules.last()).map(|m| {
            m.range.start
                + m.range
                    .len
                    .next_multiple_of(LARGE_PAGE_SIZE)
                    .max(LARGE_PAGE_SIZE)
        });
        let used = [
            (0, end_of(stack)),
            (
                self.kernel.start / PAGE_SIZE * PAGE_SIZE,
                end_of(self.page_tables),
            ),
            (modules_start.unwrap_or(0), modules_end.unwrap_or(0)),
        ];
        let mut regions: Vec<MemoryRegion> = free(&mapped_ram(memory), &used)
            .into_iter()
            .map(|(start, end)| MemoryRegion {
                range: range(start, end),
                kind: abi::REGION_UNTYPED,
                reserved: 0,
            })
            .collect();
        if devices > 0 {
            regions.push(MemoryRegion {
                range: PhysRange {
                    start: VIRTIO_MMIO_BASE,
                    len: devices as u64 * VIRTIO_MMIO_STRIDE,
                },
                kind: abi::REGION_DEVICE,
                reserved: 0,
            });
        }
        regions.sort_by_key(|r| r.range.start);
        regions
    }
}

/// Maps RAM at [`DIRECT_MAP`] by 2 MiB pages.
fn map_ram(tables: &mut PageTables, memory: &GuestMemory) {
    let rights = Rights {
        write: true,
        execute: false,
        global: true,
    };
    for (start, end) in mapped_ram(memory) {
        for at in (start..end).step_by(LARGE_PAGE_SIZE as usize) {
            tables.map_large(DIRECT_MAP + at, at, rights);
        }
    }
}

/// Maps each segment with its own rights by 4 KiB pages.
fn map_kernel(tables: &mut PageTables, image: &Image) {
    for segment in &image.segments {
        let start = segment.address / PAGE_SIZE * PAGE_SIZE;
        let rights = Rights {
            write: segment.write,
            execute: segment.execute,
            global: true,
        };
        for at in (start..segment.end()).step_by(PAGE_SIZE as usize) {
            tables.map_page(KERNEL_BASE + at, at, rights);
        }
    }
}

fn load_modules(
    memory: &GuestMemory,
    modules: &[(ModuleKind, File)],
    free_from: u64,
) -> Result<Vec<abi::Module>, Error> {
    let mut next = free_from.next_multiple_of(LARGE_PAGE_SIZE);
    let mut loaded = Vec::with_capacity(modules.len());
    for (kind, file) in modules {
        let len = file
            .metadata()
            .map_err(Error::io("cannot read a module"))?
            .len();
        let start = next;
        let fits = len.checked_next_multiple_of(LARGE_PAGE_SIZE);
        let end = fits.and_then(|len| start.checked_add(len.max(LARGE_PAGE_SIZE)));
        let end = end.ok_or_else(|| too_small(memory, "the modules", u64::MAX))?;
        next = end;
        if !memory.check_range(GuestAddress(start), (end - start) as usize) {
            return Err(too_small(memory, "the modules", end));
        }
        expect_dense(memory, GuestAddress(start), len);
        memory
            .read_exact_volatile_from(GuestAddress(start), &mut FileAt::new(file, 0), len as usize)
            .map_err(|e| Error::Io {
                what: "cannot read a module",
                source: io::Error::other(e),
            })?;
        loaded.push(abi::Module {
            range: PhysRange { start, len },
            kind: match kind {
                ModuleKind::Program => abi::MODULE_PROGRAM,
                ModuleKind::Initramfs => abi::MODULE_INITRAMFS,
            },
            reserved: 0,
        });
    }
    // What is loaded, the guest copies into the lowest memory that is free.
    let total = loaded.iter().map(|module| module.range.len).sum::<u64>();
    let low = total.min(KERNEL_LOAD);
    expect_dense(memory, GuestAddress(0), low);
    expect_dense(memory, GuestAddress(next), total - low);
    Ok(loaded)
}

/// RAM in whole 2 MiB pages: start and end of each range.
fn mapped_ram(memory: &GuestMemory) -> Vec<(u64, u64)> {
    memory
        .iter()
        .map(|region| {
            let start = region.start_addr().raw_value();
            (
                start,
                start + region.len() / LARGE_PAGE_SIZE * LARGE_PAGE_SIZE,
            )
        })
        .collect()
}

/// `ram` without `used`; both ascending, as starts and ends.
fn free(ram: &[(u64, u64)], used: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut free = Vec::new();
    for (mut start, end) in ram.iter().copied() {
        for (used_start, used_end) in used.iter().copied() {
            if used_end <= start || used_start >= end {
                continue;
            }
            if used_start > start {
                free.push((start, used_start));
            }
            start = used_end;
        }
        if start < end {
            free.push((start, end));
        }
    }
    free
}

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange {
        start,
        len: end - start,
    }
}

fn end_of(range: PhysRange) -> u64 {
    range.start + range.len
}

fn too_small(memory: &GuestMemory, what: &'static str, end: u64) -> Error {
    const MIB: u64 = 1 << 20;
    Error::MemoryTooSmall {
        what,
        memory_mib: memory.iter().map(|r| r.len() / MIB).sum(),
        needed_mib: end.div_ceil(MIB),
    }
}

/// The blob behind its head, as it grows.
#[derive(Default)]
struct Blob {
    tail: Vec<u8>,
}

impl Blob {
    fn len(&self) -> usize {
        size_of::<BootInfo>() + self.tail.len()
    }

    /// Entries on 8 bytes.
    fn table<T: IntoBytes + zerocopy::Immutable>(&mut self, entries: &[T]) -> Table {
        self.tail.resize(self.tail.len().next_multiple_of(8), 0);
        self.bytes(entries.as_bytes(), entries.len())
    }

    fn strings(&mut self, strings: &[String]) -> Table {
        let bytes: Vec<u8> = strings.iter().flat_map(|s| s.bytes().chain([0])).collect();
        self.bytes(&bytes, bytes.len())
    }

    fn bytes(&mut self, bytes: &[u8], count: usize) -> Table {
        // Larger blobs are refused as a whole before they are used.
        let table = Table {
            offset: u32::try_from(self.len()).unwrap_or(u32::MAX),
            count: u32::try_from(count).unwrap_or(u32::MAX),
        };
        self.tail.extend_from_slice(bytes);
        table
    }

    fn finish(self, mut head: BootInfo) -> Vec<u8> {
        head.size = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let mut out = head.as_bytes().to_vec();
        out.extend(self.tail);
        out
    }
}

#[cfg(test)]
mod tests;
