//! Threads: preempted, independent, each with its own registers.

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bulkhead_runtime::{thread, time};

use super::{check, check_eq, named};

/// Neither thread ever yields: both make progress only if the kernel takes the CPU away.
pub(super) fn preemption() -> Result<(), String> {
    static THEIRS: AtomicU64 = AtomicU64::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    let spinner = thread::spawn(|| {
        while !STOP.load(Ordering::Relaxed) {
            THEIRS.fetch_add(1, Ordering::Relaxed);
        }
    })
    .map_err(named)?;
    let mut seen = 0;
    for _ in 0..3 {
        while THEIRS.load(Ordering::Relaxed) == seen {
            core::hint::spin_loop();
        }
        seen = THEIRS.load(Ordering::Relaxed);
    }
    STOP.store(true, Ordering::Relaxed);
    check!(spinner.join().is_some(), "the thread left nothing");
    Ok(())
}

pub(super) fn sleep() -> Result<(), String> {
    for ns in [0, 1, 50_000, 20_000_000] {
        let before = time::monotonic_ns();
        time::sleep_ns(ns);
        let slept = time::monotonic_ns() - before;
        check!(slept >= ns, "slept {slept} ns and not {ns}");
    }
    // A sleeper does not keep others from running.
    let sleeper = thread::spawn(|| time::sleep_ns(30_000_000)).map_err(named)?;
    let mut turns = 0_u64;
    while !sleeper.is_finished() {
        turns += 1;
    }
    check!(turns > 1000, "only {turns} turns beside a sleeper");
    Ok(())
}

pub(super) fn yield_now() -> Result<(), String> {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let other = thread::spawn(|| {
        for _ in 0..50 {
            while TURN.load(Ordering::Acquire).is_multiple_of(2) {
                thread::yield_now();
            }
            TURN.fetch_add(1, Ordering::AcqRel);
        }
    })
    .map_err(named)?;
    for _ in 0..50 {
        while !TURN.load(Ordering::Acquire).is_multiple_of(2) {
            thread::yield_now();
        }
        TURN.fetch_add(1, Ordering::AcqRel);
    }
    check!(other.join().is_some(), "the thread left nothing");
    check_eq!(TURN.load(Ordering::Relaxed), 100, "turns");
    Ok(())
}

pub(super) fn many() -> Result<(), String> {
    static SUM: AtomicU64 = AtomicU64::new(0);
    static GO: AtomicBool = AtomicBool::new(false);
    // Twice, the second time in the places of those that have ended.
    for round in 1..3 {
        GO.store(false, Ordering::Relaxed);
        let mut handles = Vec::new();
        // Few enough that their naps leave time where the kernel is interpreted.
        for number in 1..=40 {
            let spawned = thread::spawn(move || {
                while !GO.load(Ordering::Relaxed) {
                    time::sleep_ns(50_000_000);
                }
                SUM.fetch_add(number, Ordering::Relaxed);
                number
            });
            handles.push(spawned.map_err(named)?);
        }
        GO.store(true, Ordering::Relaxed);
        let returned: u64 = handles
            .into_iter()
            .filter_map(thread::JoinHandle::join)
            .sum();
        check_eq!(returned, 820, "what they returned");
        check_eq!(SUM.load(Ordering::Relaxed), 820 * round, "sum");
    }
    Ok(())
}

/// Spins with known values in registers while another thread takes the CPU with other values.
fn spin_with(pattern: u64, stop: &AtomicBool) -> bool {
    while !stop.load(Ordering::Relaxed) {
        let (mut a, mut b, mut c, mut d) = (pattern, pattern + 1, pattern + 2, pattern + 3);
        let (mut e, mut f, mut g) = (pattern + 4, pattern + 5, pattern + 6);
        // SAFETY: counts down and touches nothing else.
        unsafe {
            asm!("2:", "dec {count}", "jnz 2b",
                count = inout(reg) 100_000_u64 => _,
                inout("r8") a, inout("r9") b, inout("r12") c, inout("r13") d,
                inout("r14") e, inout("r15") f, inout("rsi") g,
                options(nostack, nomem));
        }
        let found = [a, b, c, d, e, f, g];
        if found
            .iter()
            .enumerate()
            .any(|(n, value)| *value != pattern + n as u64)
        {
            return false;
        }
    }
    true
}

pub(super) fn keep_registers() -> Result<(), String> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let one = thread::spawn(|| spin_with(0x1000_0000_0000, &STOP)).map_err(named)?;
    let two = thread::spawn(|| spin_with(0x2000_0000_0000, &STOP)).map_err(named)?;
    time::sleep_ns(60_000_000);
    STOP.store(true, Ordering::Relaxed);
    check_eq!(
        (one.join(), two.join()),
        (Some(true), Some(true)),
        "registers kept"
    );
    Ok(())
}

fn bases() -> (u64, u64) {
    let (fs, gs);
    // SAFETY: reads registers that the kernel leaves to programs.
    unsafe {
        asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nostack, nomem));
    }
    (fs, gs)
}

fn set_bases(fs: u64, gs: u64) {
    // SAFETY: nothing in native programs uses them.
    unsafe {
        asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs, options(nostack, nomem));
    }
}

pub(super) fn keep_bases() -> Result<(), String> {
    set_bases(0x1111_0000, 0x2222_0000);
    let other = thread::spawn(|| {
        let first = bases();
        set_bases(0x3333_0000, 0x4444_0000);
        thread::yield_now();
        (first, bases())
    })
    .map_err(named)?;
    let theirs = other.join();
    let ours = bases();
    set_bases(0, 0);
    check_eq!(
        theirs,
        Some(((0, 0), (0x3333_0000, 0x4444_0000))),
        "the thread's bases"
    );
    check_eq!(ours, (0x1111_0000, 0x2222_0000), "our bases");
    Ok(())
}
