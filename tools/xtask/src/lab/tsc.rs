//! The host's time stamp counter frequency. QEMU's software emulation hands the host's counter to
//! its guest, and a guest that has to calibrate it on a busy machine may hang.

use std::time::{Duration, Instant};

/// How long one measurement lasts: the error is two clock readings in this time, a few ppm.
const SPAN: Duration = Duration::from_millis(40);

/// Measures the counter against the monotonic clock, in kHz.
pub(crate) fn khz() -> u64 {
    let (start, start_ticks) = reading();
    std::thread::sleep(SPAN);
    let (end, end_ticks) = reading();
    let nanos = end.duration_since(start).as_nanos().max(1);
    let ticks = u128::from(end_ticks.wrapping_sub(start_ticks));
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

/// Clock and counter at the same moment: of several pairs the one read with the least delay, so
/// that being preempted between the two does not count.
fn reading() -> (Instant, u64) {
    let pair = || {
        let before = Instant::now();
        let ticks = counter();
        (before.elapsed(), before, ticks)
    };
    let (_, instant, ticks) = (0..32)
        .map(|_| pair())
        .min_by_key(|(delay, ..)| *delay)
        .unwrap_or_else(pair);
    (instant, ticks)
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn counter() -> u64 {
    // SAFETY: every x86-64 processor has `rdtsc`; it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_measurements_agree() {
        let (first, second) = (super::khz(), super::khz());
        assert!(first.abs_diff(second) * 1000 < first, "{first} {second}");
    }
}
