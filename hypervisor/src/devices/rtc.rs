//! The CMOS clock of a PC (Motorola MC146818), read-only. Without the `time` grant it stands at the
//! first second of 1970, and ACPI says that there is none: to Linux, which looks all the same, the
//! all ones of a port without a device are a clock that is about to tick, and it waits for seconds
//! (`mc146818_avoid_UIP` in drivers/rtc/rtc-mc146818-lib.c).
//!
//! Linux reads the wall clock here once, at boot. Alarms, periodic interrupts and stores are absent.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::machine::bus::BusDevice;

/// Index port 0x70 and data port 0x71.
pub const PORTS: u16 = 0x70;
/// How many.
pub const PORT_COUNT: u16 = 2;

/// The clock; `now` gives seconds since 1970 UTC.
pub struct Rtc {
    index: u8,
    now: fn() -> u64,
}

impl Rtc {
    /// A clock that shows the host's time, or stands still.
    pub fn new(runs: bool) -> Self {
        let host = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |t| t.as_secs())
        };
        Self {
            index: 0,
            now: if runs { host } else { || 0 },
        }
    }

    /// The register that the index port names.
    fn register(&self) -> u8 {
        /// Status B: 24-hour mode, binary coded decimal.
        const STATUS_B: u8 = 0x02;
        /// Status D: RAM and time are valid.
        const STATUS_D: u8 = 0x80;
        let seconds = (self.now)();
        let (year, month, day) = civil(seconds / 86_400);
        let value = match self.index & 0x7f {
            0x00 => seconds % 60,
            0x02 => seconds / 60 % 60,
            0x04 => seconds / 3600 % 24,
            // 1 January 1970 was a Thursday; Sunday is 1.
            0x06 => (seconds / 86_400 + 4) % 7 + 1,
            0x07 => day,
            0x08 => month,
            0x09 => year % 100,
            0x32 => year / 100,
            0x0b => return STATUS_B,
            0x0d => return STATUS_D,
            _ => return 0,
        };
        (value / 10 % 10 * 16 + value % 10) as u8
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 1 { self.register() } else { 0xff });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Some(index)) = (offset, data.first()) {
            self.index = *index;
        }
    }
}

/// Year, month and day of a day number since 1970-01-01: Howard Hinnant's `civil_from_days`, for
/// days that are not negative.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar() {
        for (days, want) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_514, (2026, 3, 2)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), want, "{days}");
        }
    }

    #[test]
    fn one_that_stands_still_is_never_about_to_tick() {
        let mut rtc = Rtc::new(false);
        for (index, want) in [(0x00, 0), (0x07, 1), (0x08, 1), (0x09, 0x70), (0x0a, 0)] {
            rtc.write(0, &[index]);
            let mut got = [0xff];
            rtc.read(1, &mut got);
            assert_eq!(got[0], want, "{index:#x}");
        }
    }

    #[test]
    fn registers_show_the_time_in_decimal_digits() {
        // 2009-02-13 23:31:30 UTC, a Friday.
        let mut rtc = Rtc {
            index: 0,
            now: || 1_234_567_890,
        };
        for (index, want) in [
            (0x00, 0x30),
            (0x02, 0x31),
            (0x04, 0x23),
            (0x06, 0x06),
            (0x07, 0x13),
            (0x08, 0x02),
            (0x09, 0x09),
            (0x32, 0x20),
            (0x0a, 0x00),
            (0x0b, 0x02),
            (0x8d, 0x80),
            (0x7f, 0x00),
        ] {
            rtc.write(0, &[index]);
            let mut got = [0];
            rtc.read(1, &mut got);
            assert_eq!(got[0], want, "{index:#x}");
        }
    }
}
