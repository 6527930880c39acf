//! [`Platform`] on the microkernel: the one room of the personality with unsafe code. Program
//! memory is this program's own memory below `RESTRICTED_END`; nothing of Rust's lies there, and
//! the Linux program stands still while the personality runs.

extern crate alloc;

use alloc::vec::Vec;
use core::arch::asm;
use core::ops::Range;

use bulkhead_linux::memory::{Backing, Frames, Part};
use bulkhead_linux::platform::{Platform, PlatformError, Settings, Stream};
use bulkhead_linux::process::{FAILURE_STATUS, Process};
use bulkhead_runtime::abi::boot::{
    FLAG_CONSOLE, FLAG_CONSOLE_TTY, FLAG_ENTROPY, FLAG_TIME, FLAG_TRACE_SYSCALLS, MODULE_INITRAMFS,
    REGION_UNTYPED,
};
use bulkhead_runtime::abi::layout::{
    PAGE_SIZE, PROGRAM_BOOT_INFO, PROGRAM_STACK_BYTES, PROGRAM_STACK_TOP,
};
use bulkhead_runtime::abi::object::RIGHTS_ALL;
use bulkhead_runtime::abi::restricted::RestrictedState;
use bulkhead_runtime::abi::syscall::{Status, rights};
use bulkhead_runtime::capability::{self, CONSOLE};
use bulkhead_runtime::object::{FIRST_THREAD, Frame, Place};
use bulkhead_runtime::{environment, eprintln, memory, program_main, slots, syscall, time};

program_main!(main);

const READ_WRITE: u64 = rights::READ | rights::WRITE;

/// Where the restricted state is mapped: between the `BootInfo` and the first stack, where there is a
/// page table.
const STATE: u64 = PROGRAM_BOOT_INFO + 0x10_0000;
const _: () = assert!(STATE + PAGE_SIZE < PROGRAM_STACK_TOP - PROGRAM_STACK_BYTES - PAGE_SIZE);

/// Makes the restricted state that the kernel and the personality share.
fn bind_state() -> Result<(), Status> {
    let frame = memory::frame(0)?;
    // SAFETY: nothing else is mapped there; the state is reached by volatile copies alone.
    unsafe { memory::map_frame(frame, STATE, READ_WRITE, (0, 0)) }?;
    // SAFETY: as above.
    unsafe { FIRST_THREAD.bind_restricted(frame) }
}

/// MXCSR of a new program (System V ABI, AMD64 supplement, section 3.4.1): all exceptions masked.
static INITIAL_MXCSR: u32 = 0x1f80;
/// CPUID leaf 1, ECX: `rdrand` exists.
const HAS_RDRAND: u32 = 1 << 30;

fn main() -> u8 {
    let Some(info) = environment::boot_info() else {
        return FAILURE_STATUS;
    };
    if let Err(status) = bind_state() {
        eprintln!("bulkhead: this kernel offers no restricted mode ({status:?})");
        return FAILURE_STATUS;
    }
    let head = info.head();
    let khz = head.tsc_khz;
    let start = time::ticks();
    let since_boot_ns = time::ticks_to_ns(start.saturating_sub(head.wall_clock_tsc), khz);
    let granted = |flag| info.has(flag).then_some(());
    let regions = info.regions().iter();
    let free = regions.filter(|region| region.kind == REGION_UNTYPED);
    let settings = Settings {
        console: info.has(FLAG_CONSOLE),
        tty: info.has(FLAG_CONSOLE_TTY),
        wall_clock_base_ns: granted(FLAG_TIME)
            .map(|()| head.wall_clock_ns.wrapping_add(since_boot_ns)),
        entropy_seed: granted(FLAG_ENTROPY).map(|()| head.entropy_seed),
        trace: info.has(FLAG_TRACE_SYSCALLS),
        memory_bytes: free.map(|region| region.range.len).sum(),
    };
    let mut partition = Partition {
        khz,
        start,
        backing: Backing::new(),
    };
    let strings = |list: &mut dyn Iterator<Item = &[u8]>| -> Vec<Vec<u8>> {
        list.map(<[u8]>::to_vec).collect()
    };
    let arguments = strings(&mut info.args());
    let variables = strings(&mut info.env());
    let archive = environment::module(MODULE_INITRAMFS);
    match Process::new(&mut partition, settings, archive) {
        Ok(mut process) => process.run(arguments, variables),
        Err(error) => {
            eprintln!("bulkhead: initramfs: {error}");
            FAILURE_STATUS
        }
    }
}

/// The machine of a Linux-ABI partition.
struct Partition {
    khz: u64,
    /// Time stamp counter when the personality started.
    start: u64,
    /// The program's memory.
    backing: Backing,
}

/// What the kernel does with the frames of program memory. No reference leads there.
struct Kernel;

impl Frames for Kernel {
    fn take(&mut self) -> Option<(u64, u64)> {
        let (frame, bits) = memory::largest_frame()?;
        Some((frame.0, 1 << bits))
    }

    fn copy(&mut self, frame: u64) -> Result<u64, Status> {
        let slot = slots::take().ok_or(Status::NotEnoughMemory)?;
        let copied = Place::own(slot).copy(Place::own(frame), RIGHTS_ALL);
        copied.inspect_err(|_| slots::give_back(slot))?;
        Ok(slot)
    }

    fn discard(&mut self, copy: u64) {
        // A slot that cannot be emptied is not used again.
        let _ = Frame(copy).delete();
    }

    fn map(&mut self, frame: u64, address: u64, rights: u64, part: Part) -> Result<(), Status> {
        // SAFETY: program memory, see above.
        unsafe { memory::map_frame(Frame(frame), address, rights, part) }
    }

    fn unmap(&mut self, frame: u64, part: Part) {
        // It cannot be refused: the frame's capability is there, and the pages are the frame's.
        // SAFETY: program memory, see above.
        let _ = unsafe { Frame(frame).unmap_part(part) };
    }

    fn zero(&mut self, range: Range<u64>) {
        let bytes = (range.end - range.start) as usize;
        // SAFETY: the caller has mapped the range writable.
        unsafe { core::ptr::write_bytes(range.start as *mut u8, 0, bytes) }
    }
}

fn refused(status: Status) -> PlatformError {
    match status {
        Status::NotEnoughMemory => PlatformError::OutOfMemory,
        _ => PlatformError::Refused,
    }
}

impl Platform for Partition {
    fn enter(&mut self, state: &mut RestrictedState) -> Result<(), PlatformError> {
        let page = STATE as *mut RestrictedState;
        // SAFETY: the page is ours, and the kernel leaves it alone until the call below.
        unsafe { page.write_volatile(*state) };
        // SAFETY: the program can reach only what lies below `RESTRICTED_END`.
        unsafe { syscall::restricted_enter() }.map_err(refused)?;
        // SAFETY: as above; every bit pattern is a `RestrictedState`.
        *state = unsafe { page.read_volatile() };
        Ok(())
    }

    fn console_write(&mut self, stream: Stream, bytes: &[u8]) -> Result<usize, PlatformError> {
        let stream = match stream {
            Stream::Output => capability::Stream::Output,
            Stream::Error => capability::Stream::Error,
        };
        CONSOLE.write(stream, bytes).map_err(refused)
    }

    fn console_read(&mut self, into: &mut [u8]) -> Result<usize, PlatformError> {
        CONSOLE.read(into).map_err(refused)
    }

    fn map(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError> {
        self.backing.map(&mut Kernel, range, rights)
    }

    fn protect(&mut self, range: Range<u64>, rights: u64) -> Result<(), PlatformError> {
        self.backing.protect(&mut Kernel, range, rights)
    }

    fn unmap(&mut self, range: Range<u64>) -> Result<(), PlatformError> {
        self.backing.unmap(&mut Kernel, range)
    }

    fn read_memory(&self, address: u64, into: &mut [u8]) {
        // SAFETY: the caller has checked that the range is mapped; `into` is the personality's own
        // memory, so the two do not overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(address as *const u8, into.as_mut_ptr(), into.len())
        }
    }

    fn write_memory(&mut self, address: u64, from: &[u8]) {
        // SAFETY: the caller has checked that the range is mapped writable; `from` is the
        // personality's own memory or a module, so the two do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) }
    }

    fn zero_memory(&mut self, range: Range<u64>) {
        Kernel.zero(range);
    }

    fn fs_base(&self) -> u64 {
        let base;
        // SAFETY: reads a register; the kernel enables the instruction.
        unsafe { asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        base
    }

    fn set_fs_base(&mut self, base: u64) {
        // SAFETY: the personality itself does not use FS; `base` is canonical by contract.
        unsafe { asm!("wrfsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
    }

    fn gs_base(&self) -> u64 {
        let base;
        // SAFETY: reads a register; the kernel enables the instruction.
        unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        base
    }

    fn set_gs_base(&mut self, base: u64) {
        // SAFETY: the personality itself does not use GS; `base` is canonical by contract.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
    }

    fn reset_fpu(&mut self) {
        // SAFETY: the personality is built without FPU and SSE: the state is the program's alone.
        unsafe {
            asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const INITIAL_MXCSR, options(nostack));
        }
    }

    fn monotonic_ns(&self) -> u64 {
        time::ticks_to_ns(time::ticks().saturating_sub(self.start), self.khz)
    }

    fn sleep(&mut self, ns: u64) {
        time::sleep_ns(ns);
    }

    fn hardware_random(&mut self) -> Option<u64> {
        if core::arch::x86_64::__cpuid(1).ecx & HAS_RDRAND == 0 {
            return None;
        }
        // It may have nothing ready; Intel advises ten tries.
        (0..10).find_map(|_| {
            let (number, ready): (u64, u8);
            // SAFETY: the instruction exists.
            unsafe {
                asm!("rdrand {}", "setc {}", out(reg) number, out(reg_byte) ready, options(nomem, nostack));
            }
            (ready != 0).then_some(number)
        })
    }

    fn cpu_features(&self) -> u32 {
        core::arch::x86_64::__cpuid(1).edx
    }
}
