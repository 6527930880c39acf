//! Several CPUs: the lock that lets one of them run the kernel, what that one asks of the others,
//! and how they start.
//!
//! There is one lock for all of the kernel: docs/kernel-objects.md says why. What takes long stops
//! where another CPU waits for it.
//!
//! With one CPU there is no lock: entries lead to other functions, see [`DOORS`].
//!
//! Between the end of the kernel on a CPU and the next entry there, that CPU may have three things
//! that the one which runs the kernel has to take away from it: a program's registers, translations,
//! and a page table root that goes. It asks for them, by a flag and an interrupt, and waits. The
//! other CPU does what it is asked for as it waits for the lock; it waits for nothing else, and never
//! while it has it. So nobody waits in a circle.

use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bulkhead_abi::layout::KERNEL_BASE;
use bulkhead_kernel_core::frame::Frame;

use super::entry::{resume_frame, syscall_entry, syscall_entry_of_several, unlock_and_resume};
use super::machine::{direct, is_root_of};
use super::percpu::{self, Cpu};
use super::{Exclusive, apic, cpu, trap};

/// [`Cpu::request`]: stop the program that runs there.
const STOP: u64 = 1 << 0;
/// [`Cpu::request`]: forget all translations of user addresses.
pub(super) const FORGET: u64 = 1 << 1;
/// [`Cpu::request`]: activate the kernel's own root.
pub(super) const LEAVE: u64 = 1 << 2;

/// The function that an entry leads to.
type Door = unsafe extern "C" fn(*mut Frame) -> *mut Frame;

/// Where entries lead, and how the shortest system calls leave: as there is one CPU, or several.
#[repr(C)]
pub(super) struct Doors {
    pub(super) system_call: Door,
    pub(super) page_fault: Door,
    pub(super) interrupted: Door,
    pub(super) resume: unsafe extern "C" fn(),
    /// Target of `syscall`.
    syscall: unsafe extern "C" fn(),
}

/// Read by `entry.s`.
#[unsafe(no_mangle)]
pub(super) static DOORS: Exclusive<Doors> = Exclusive::new(Doors {
    system_call: trap::system_call,
    page_fault: trap::page_fault,
    interrupted: trap::interrupted,
    resume: resume_frame,
    syscall: syscall_entry,
});

/// Whether a CPU runs the kernel. Given back by `entry.s` too.
#[unsafe(no_mangle)]
static LOCK: AtomicBool = AtomicBool::new(false);
/// How many CPUs wait for that.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// For how long the CPU that had the kernel last lets others have it who wait, in ticks: some 50 us.
/// Where a host runs several CPUs in turn, one that calls without a pause has the lock nearly always
/// when its turn ends; those that wait would find it taken in each of theirs.
const COURTESY: u64 = 1 << 17;
/// How many CPUs run.
static RUNNING: AtomicU64 = AtomicU64::new(1);

/// The address that `syscall` leads to.
#[inline(always)]
pub(super) fn syscall_target() -> u64 {
    // SAFETY: changed at boot only, before the first program runs.
    unsafe { (*DOORS.as_ptr()).syscall as *const () as u64 }
}

/// Whether there are several CPUs.
#[inline(always)]
pub(super) fn are_several() -> bool {
    RUNNING.load(Ordering::Relaxed) > 1
}

/// Whether another CPU waits for the kernel.
#[inline(always)]
pub(super) fn is_awaited() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

/// Takes the lock, and does meanwhile what this CPU is asked for. Whether the program that ran here
/// still has what it came for: false if it was stopped. A system call is one to be made again then.
///
/// # Safety
/// `cpu` is the CPU that this runs on, which does not run the kernel; `syscall` the frame of its
/// program, if it came with a system call.
unsafe fn acquire(cpu: *mut Cpu, mut syscall: Option<*mut Frame>) -> bool {
    let mut goes_on = true;
    let courteous = is_awaited() && percpu::was_last(cpu);
    if courteous || LOCK.swap(true, Ordering::Acquire) {
        let others_first = if courteous {
            cpu::time_stamp().saturating_add(COURTESY)
        } else {
            0
        };
        WAITING.fetch_add(1, Ordering::Relaxed);
        loop {
            // SAFETY: the caller's promise.
            if unsafe { serve(cpu, syscall) } {
                (goes_on, syscall) = (false, None);
            }
            let others = percpu::was_last(cpu) && WAITING.load(Ordering::Relaxed) > 1;
            let turn = !others || cpu::time_stamp() >= others_first;
            if turn && !LOCK.load(Ordering::Relaxed) && !LOCK.swap(true, Ordering::Acquire) {
                break;
            }
            spin_loop();
        }
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
    percpu::set_active(cpu);
    // SAFETY: the lock is this CPU's.
    let number = unsafe { percpu::active() }.number;
    // SAFETY: as above.
    unsafe { trap::kernel() }.objects.enter_cpu(number);
    goes_on
}

fn release() {
    LOCK.store(false, Ordering::Release);
}

/// Does what this CPU is asked for; whether that was to stop its program.
///
/// # Safety
/// As for [`acquire`].
unsafe fn serve(cpu: *mut Cpu, syscall: Option<*mut Frame>) -> bool {
    // SAFETY: an atomic of a CPU that is there for ever.
    let request = unsafe { &(*cpu).request };
    let asked = request.load(Ordering::Acquire);
    if asked & LEAVE != 0 {
        let root = trap::kernel_root();
        // SAFETY: the kernel's own root.
        unsafe { cpu::set_page_table_root(root) };
        // SAFETY: only this CPU writes the field, and whoever reads it waits.
        unsafe { (*cpu).root = root };
    }
    if asked & FORGET != 0 {
        // SAFETY: the root is the active one.
        unsafe { cpu::set_page_table_root(cpu::page_table_root()) };
    }
    if asked & STOP != 0 {
        // SAFETY: whoever reads them waits.
        unsafe { (*cpu).bases = [cpu::fs_base(), cpu::gs_base()] };
        if let Some(frame) = syscall {
            // SAFETY: `entry.s` stored the registers there; nobody has a reference before this CPU
            // has answered.
            unsafe { (*frame).restart_syscall() };
        }
    }
    if asked != 0 {
        request.store(0, Ordering::Release);
    }
    asked & STOP != 0
}

/// Asks another CPU for something, and waits until it is done.
fn ask(other: *mut Cpu, what: u64) {
    // SAFETY: an atomic of a CPU that is there for ever.
    let request = unsafe { &(*other).request };
    // SAFETY: set before the CPU ran, and never changed.
    let number = unsafe { (*other).number };
    request.store(what, Ordering::Release);
    apic::call(number);
    while request.load(Ordering::Acquire) != 0 {
        spin_loop();
    }
}

/// Asks all other CPUs that use the address space at `root` for something.
#[inline]
pub(super) fn ask_users(root: u64, what: u64) {
    if are_several() {
        ask_all_users(root, what);
    }
}

#[inline(never)]
fn ask_all_users(root: u64, what: u64) {
    // SAFETY: the kernel's logic runs, and has no reference to a CPU.
    let here = unsafe { percpu::active() }.number;
    let count = RUNNING.load(Ordering::Relaxed) as usize;
    for number in (0..count).filter(|number| *number != here) {
        let other = percpu::numbered(number);
        // SAFETY: that CPU does not run the kernel, and so does not change its root unless it is asked
        // to.
        let active = unsafe { (*other).root };
        if is_root_of(root, active) {
            ask(other, what);
        }
    }
}

/// Stops the program that another CPU runs; FS and GS base there.
pub(super) fn stop(number: usize) -> [u64; 2] {
    let other = percpu::numbered(number);
    ask(other, STOP);
    // SAFETY: it has written them, and waits for the lock.
    unsafe { (*other).bases }
}

/// [`acquire`] for an entry from user mode.
///
/// # Safety
/// `entry.s` stored the registers in the frame, on this CPU, which does not run the kernel.
unsafe fn enter(frame: *mut Frame, by_syscall: bool) -> bool {
    // SAFETY: set by whoever resumed the frame, on this CPU.
    let cpu = unsafe { (*frame).cpu } as *mut Cpu;
    // SAFETY: the caller's promise.
    unsafe { acquire(cpu, by_syscall.then_some(frame)) }
}

/// What [`trap::system_call`] is with one CPU.
unsafe extern "C" fn system_call(frame: *mut Frame) -> *mut Frame {
    // SAFETY: entered by `entry.s` only.
    let goes_on = unsafe { enter(frame, true) };
    let next = if goes_on {
        trap::system_call(frame)
    } else {
        trap::stray()
    };
    release();
    next
}

/// What [`trap::page_fault`] is with one CPU.
unsafe extern "C" fn page_fault(frame: *mut Frame) -> *mut Frame {
    // SAFETY: entered by `entry.s` only; this program runs nowhere else, and whoever stops it waits for
    // this CPU.
    let entered = unsafe { &mut *frame };
    if trap::is_syscall(entered) {
        entered.finish_syscall();
        // SAFETY: as above.
        return unsafe { system_call(frame) };
    }
    // SAFETY: as in `system_call`.
    let goes_on = unsafe { enter(frame, false) };
    let next = if goes_on {
        trap::page_fault(frame)
    } else {
        trap::stray()
    };
    release();
    next
}

/// What [`trap::interrupted`] is with one CPU. The exception of a program that was stopped is raised
/// again when it goes on; an interrupt is not the program's.
unsafe extern "C" fn interrupted(frame: *mut Frame) -> *mut Frame {
    // SAFETY: as in `system_call`. The frame may be gone once this CPU has answered.
    let vector = unsafe { (*frame).vector };
    // SAFETY: as in `system_call`.
    let goes_on = unsafe { enter(frame, false) };
    let next = if goes_on || trap::is_interrupt(vector) {
        trap::entered_by(vector)
    } else {
        trap::stray()
    };
    release();
    next
}

/// Runs `work` as the kernel, for an interrupt of the idle loop, in which `place` is on the stack.
pub(super) fn from_idle(place: u64, work: impl FnOnce() -> *mut Frame) -> *mut Frame {
    if !are_several() {
        return work();
    }
    // SAFETY: the stack is that of this CPU; the idle loop holds nothing.
    unsafe { acquire(percpu::around(place), None) };
    let next = work();
    release();
    next
}

unsafe extern "C" {
    /// What other CPUs execute first, of `entry.s`.
    static trampoline: u8;
    static trampoline_end: u8;
    /// What follows. Its address is all that Rust uses.
    fn secondary_start();
}

/// What the trampoline is told, at [`PARAMETERS`].
#[repr(C)]
struct Parameters {
    cpu: *mut Cpu,
    target: u64,
    root: u32,
    cr4: u32,
}

/// Where the trampoline is told it: known to `entry.s`.
const PARAMETERS: u64 = 8;
const _: () = assert!(size_of::<Parameters>() == 24);

/// CR4 of the boot protocol, without what programs of the kernel do not use: PAE, PGE, OSFXSR,
/// OSXMMEXCPT, FSGSBASE.
const CR4: u32 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16;

/// A page table above another one: present, writable, accessed.
const TABLE: u64 = 0x23;
/// A large page at 0: present, writable, accessed, dirty, large.
const PAGE_0: u64 = 0xe3;
/// Bytes of a page table.
const TABLE_BYTES: u64 = 4096;
/// How long a CPU may take to start, in milliseconds.
const PATIENCE_MS: u64 = 5_000;

/// Has entries lead to the functions for several CPUs.
///
/// # Safety
/// Called once, at boot, before the system call registers are set and the first program runs.
pub(super) unsafe fn prepare() {
    // SAFETY: the caller's promise.
    unsafe {
        *DOORS.as_ptr() = Doors {
            system_call,
            page_fault,
            interrupted,
            resume: unlock_and_resume,
            syscall: syscall_entry_of_several,
        };
    }
}

/// Starts all other CPUs, `count` in all; they wait for the lock, which is this CPU's. The number of
/// one that does not start is an error.
///
/// # Safety
/// Called once, at boot, after [`prepare`], with the kernel's own root active.
pub(super) unsafe fn start(count: usize, tsc_khz: u64) -> Result<(), usize> {
    LOCK.store(true, Ordering::Relaxed);
    let root = cpu::page_table_root();
    // What begins in real mode has 32 bits for it.
    let narrow = u32::try_from(root).map_err(|_| 1_usize)?;
    // The identity map that the trampoline needs: two tables in what will be the second CPU's stack.
    let area = percpu::numbered(1) as u64 & !(percpu::AREA_BYTES as u64 - 1);
    let tables = area.wrapping_sub(KERNEL_BASE);
    for (at, entry) in [
        (root, tables | TABLE),
        (tables, (tables + TABLE_BYTES) | TABLE),
        (tables + TABLE_BYTES, PAGE_0),
    ] {
        // SAFETY: the lower half of the kernel's root is unused; the stack is not used yet, and later
        // not as deep.
        unsafe { direct::<u64>(at).write_volatile(entry) };
    }
    let code = (&raw const trampoline).cast::<u8>();
    // SAFETY: labels of one section, in this order.
    let len = unsafe { (&raw const trampoline_end).offset_from(code) } as usize;
    // SAFETY: page 0 is nobody's, and the direct map has it.
    unsafe { ptr::copy_nonoverlapping(code, direct::<u8>(0), len) };
    let started = (1..count).try_for_each(|number| {
        // SAFETY: the trampoline is complete, but for what it is told of each CPU.
        unsafe { start_one(number, narrow, tsc_khz) }
    });
    // SAFETY: as above; each CPU forgets what it knows of the lower half before it runs a program.
    unsafe { direct::<u64>(root).write_volatile(0) };
    started
}

/// Starts one CPU, and waits until it runs.
///
/// # Safety
/// As for [`start`]; the trampoline lies in page 0, and no CPU executes it.
unsafe fn start_one(number: usize, root: u32, tsc_khz: u64) -> Result<(), usize> {
    let other = percpu::numbered(number);
    let told = Parameters {
        cpu: other,
        target: secondary_start as *const () as u64,
        root,
        cr4: CR4,
    };
    // SAFETY: in the copy of the trampoline.
    unsafe { direct::<Parameters>(PARAMETERS).write_volatile(told) };
    // SAFETY: the CPU is not started yet.
    unsafe { (*other).number = number };
    // SAFETY: the caller's promise.
    unsafe { apic::start(number) };
    let end = cpu::time_stamp().saturating_add(tsc_khz.saturating_mul(PATIENCE_MS));
    while RUNNING.load(Ordering::Acquire) <= number as u64 {
        if cpu::time_stamp() > end {
            return Err(number);
        }
        spin_loop();
    }
    Ok(())
}

/// The boot CPU leaves the kernel for the first time.
pub(super) fn leave_boot() {
    release();
}

/// Says that this CPU runs, and waits for the lock.
///
/// # Safety
/// Called once on each CPU but the first; `cpu` is this one, and set up.
pub(super) unsafe fn join(cpu: *mut Cpu) -> *mut Frame {
    RUNNING.fetch_add(1, Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { acquire(cpu, None) };
    let root = trap::kernel_root();
    // SAFETY: the kernel's own root, of which this CPU forgets what the trampoline needed.
    unsafe { cpu::set_page_table_root(root) };
    // SAFETY: the lock is this CPU's.
    unsafe { percpu::active() }.root = root;
    let next = trap::stray();
    release();
    next
}
