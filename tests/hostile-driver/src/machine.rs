//! The machine as the driver needs it: a piece of memory, device registers, ports, the console, the
//! end.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use bulkhead_abi::boot::{BootInfoView, MAX_SIZE, REGION_UNTYPED};
use bulkhead_abi::layout::{DIRECT_MAP, KERNEL_BASE};
use bulkhead_abi::machine::{
    CONSOLE_PORT, CONSOLE_WRITE, ConsoleMailbox, EXIT_PORT, VIRTIO_MMIO_BASE,
};

/// Bytes of memory the driver plays with.
pub(crate) const BYTES: u64 = 2 << 20;
/// Where it keeps a page directory in there; rings and data lie before it.
const DIRECTORY: u64 = BYTES - 4096;
/// Present, writable.
const PAGE_TABLE: u64 = 0x3;
/// Present, writable, not cached, a large page.
const DEVICE_PAGE: u64 = 0x93;
const PAGE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the mailbox page lies (docs/boot-protocol.md).
const MAILBOX: u64 = 0x1000;
/// The first serial port of a PC.
const COM1: u16 = 0x3f8;

/// The console is a serial port.
static ON_PC: AtomicBool = AtomicBool::new(false);

// The VMM enters with a stack and the boot information's address in RDI.
global_asm!(
    ".global start",
    "start:",
    "call {main}",
    "mov dx, {exit}",
    "out dx, al",
    "2: jmp 2b",
    main = sym main,
    exit = const EXIT_PORT,
);

extern "C" fn main(boot_info: u64) -> u8 {
    crate::run(boot_info)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        out(EXIT_PORT, 101);
    }
}

pub(crate) fn out(port: u16, value: u8) {
    // SAFETY: the ports that this program names belong to the VMM, which touches no memory of
    // ours but the mailbox.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack)) };
}

pub(crate) fn out_word(port: u16, value: u32) {
    // SAFETY: as in `out`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

pub(crate) fn in_word(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack)) };
    value
}

/// Waits for the VMM to be told to end.
pub(crate) fn rest() -> ! {
    loop {
        // SAFETY: with interrupts off, nothing comes of it but time.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}

/// Memory of our own, by guest-physical address.
pub(crate) struct Memory {
    pub(crate) start: u64,
    /// First address behind all RAM.
    pub(crate) end_of_ram: u64,
}

impl Memory {
    /// Stores `value` at `offset`.
    pub(crate) fn put<T: Copy>(&self, offset: u64, value: T) {
        // SAFETY: the callers' offsets are constants below DIRECTORY, and the range is untyped
        // memory that nobody else uses, mapped writable by the direct map.
        unsafe { ptr::write_volatile((DIRECT_MAP + self.start + offset) as *mut T, value) };
    }

    /// Stores bytes from `offset` on.
    pub(crate) fn put_bytes(&self, offset: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(offset..) {
            self.put(at, *byte);
        }
    }

    /// Loads from `offset`.
    pub(crate) fn get<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: as in `put`; every value in there is an integer.
        unsafe { ptr::read_volatile((DIRECT_MAP + self.start + offset) as *const T) }
    }
}

/// Device registers, by guest-physical address.
#[derive(Clone, Copy)]
pub(crate) struct Window(u64);

impl Window {
    /// Those at `start`, which [`set_up`] or the entry of a PC has mapped.
    pub(crate) fn new(start: u64) -> Self {
        Self(DIRECT_MAP + start)
    }

    /// Reads a register of the width of `T`.
    pub(crate) fn get<T: Copy>(self, offset: u64) -> T {
        // SAFETY: the window is mapped; reads of device registers touch no memory of ours, and any
        // value is an integer.
        unsafe { ptr::read_volatile((self.0 + offset) as *const T) }
    }

    /// Writes a register of the width of `T`.
    pub(crate) fn set<T: Copy>(self, offset: u64, value: T) {
        // SAFETY: as in `get`. What the device then writes lies in `Memory`, or is refused.
        unsafe { ptr::write_volatile((self.0 + offset) as *mut T, value) };
    }
}

/// Checks the boot information, takes memory, and maps the virtio windows.
pub(crate) fn set_up(boot_info: u64) -> Option<(BootInfoView<'static>, Memory)> {
    // SAFETY: the VMM passes the address of the blob, which is followed by RAM, in the direct map;
    // nobody writes it.
    let blob = unsafe { core::slice::from_raw_parts(boot_info as *const u8, MAX_SIZE as usize) };
    let view = BootInfoView::parse(blob).ok()?;
    let untyped = || view.regions().iter().filter(|r| r.kind == REGION_UNTYPED);
    let large = |start: u64| start.next_multiple_of(BYTES);
    let region = untyped().find(|r| large(r.range.start) + BYTES <= r.range.start + r.range.len)?;
    let memory = Memory {
        start: large(region.range.start),
        end_of_ram: untyped().map(|r| r.range.start + r.range.len).max()?,
    };
    map_windows(&memory);
    Some((view, memory))
}

/// Maps 2 MiB from [`VIRTIO_MMIO_BASE`] on into the direct map.
fn map_windows(memory: &Memory) {
    let address = DIRECT_MAP + VIRTIO_MMIO_BASE;
    let index = |shift: u32| (address >> shift & 511) * 8;
    memory.put(DIRECTORY + index(21), VIRTIO_MMIO_BASE | DEVICE_PAGE);
    let root: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) };
    let table = (DIRECT_MAP + (root & PAGE_ADDRESS) + index(39)) as *const u64;
    // SAFETY: the root table is mapped, and its entry for the direct map is present.
    let table = unsafe { ptr::read_volatile(table) } & PAGE_ADDRESS;
    let entry = (DIRECT_MAP + table + index(30)) as *mut u64;
    // SAFETY: the entry belongs to addresses without RAM: nothing was mapped by it.
    unsafe { ptr::write_volatile(entry, (memory.start + DIRECTORY) | PAGE_TABLE) };
}

/// From now on the console is a serial port.
pub(crate) fn speak_by_serial_port() {
    ON_PC.store(true, Ordering::Relaxed);
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if ON_PC.load(Ordering::Relaxed) {
            text.bytes().for_each(|byte| out(COM1, byte));
            return Ok(());
        }
        let request = ConsoleMailbox {
            op: CONSOLE_WRITE,
            len: text.len() as u32,
            // Text lies in the image or on the boot stack, which are mapped at these two bases.
            address: match text.as_ptr() as u64 {
                image @ KERNEL_BASE.. => image - KERNEL_BASE,
                stack => stack.wrapping_sub(DIRECT_MAP),
            },
            result: 0,
        };
        // SAFETY: the mailbox page is the console's, and mapped.
        unsafe { ptr::write_volatile((DIRECT_MAP + MAILBOX) as *mut ConsoleMailbox, request) };
        out(CONSOLE_PORT, 0);
        Ok(())
    }
}

/// Writes to the console; swallowed where there is none.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let _ = Console.write_fmt(text);
}
