//! Clocks and sleeping. Monotonic time is the time stamp counter, scaled by what the `BootInfo`
//! says; reading it takes no system call.

use bulkhead_abi::boot::FLAG_TIME;
use bulkhead_abi::syscall::SLEEP;

use crate::environment::boot_info;
use crate::syscall;

/// The time stamp counter, read when all that the program has seen so far has been seen: a CPU that
/// reads it ahead of that finds another's time later than its own (Intel SDM, volume 2, RDTSC).
#[must_use]
pub fn ticks() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: every x86-64 CPU has the counter and the fence, the kernel lets programs read it, and
    // neither changes anything but these two registers.
    unsafe {
        core::arch::asm!(
            "lfence", "rdtsc", out("eax") low, out("edx") high,
            options(nostack, preserves_flags)
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Nanoseconds in `ticks` of a counter of `khz`.
#[must_use]
pub const fn ticks_to_ns(ticks: u64, khz: u64) -> u64 {
    let khz = if khz == 0 { 1 } else { khz };
    let (ms, rest) = (ticks / khz, ticks % khz);
    ms.saturating_mul(1_000_000)
        .saturating_add(rest.saturating_mul(1_000_000) / khz)
}

/// Nanoseconds since the partition's clock began, at its start.
#[must_use]
pub fn monotonic_ns() -> u64 {
    boot_info().map_or(0, |info| ticks_to_ns(ticks(), info.head().tsc_khz))
}

/// Nanoseconds since 1970 UTC, with the `time` grant.
#[must_use]
pub fn wall_clock_ns() -> Option<u64> {
    let info = boot_info().filter(|info| info.has(FLAG_TIME))?;
    let head = info.head();
    let passed = ticks_to_ns(ticks().saturating_sub(head.wall_clock_tsc), head.tsc_khz);
    Some(head.wall_clock_ns.saturating_add(passed))
}

/// Sleeps at least `ns` nanoseconds.
pub fn sleep_ns(ns: u64) {
    // SAFETY: no effect on memory.
    unsafe { syscall::raw(SLEEP, [ns, 0, 0, 0]) };
}

#[cfg(test)]
mod tests {
    use super::ticks_to_ns;

    #[test]
    fn ticks_scale_without_overflow() {
        for (ticks, khz, ns) in [
            (0, 1, 0),
            (3_000_000, 3_000_000, 1_000_000),
            (1, 1_000_000, 1),
            (5, 0, 5_000_000),
            (2_500_000_001, 2_500_000, 1_000_000_000),
            (u64::MAX, u64::MAX, 1_000_000),
        ] {
            assert_eq!(ticks_to_ns(ticks, khz), ns, "{ticks} ticks at {khz} kHz");
        }
        assert_eq!(ticks_to_ns(u64::MAX, 1), u64::MAX);
    }
}
