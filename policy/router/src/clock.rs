//! Time, which tests move as they like, and the dates that providers write.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Time since some moment; it never goes back.
    fn monotonic(&self) -> Duration;
    /// Time since 1970, as the host's clock says.
    fn unix(&self) -> Duration;
}

/// The host's time.
#[derive(Debug)]
pub struct HostClock(Instant);

impl HostClock {
    /// A clock that begins now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, from 1970 on.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let every = |years| u64::is_multiple_of(year, years);
    let leap = every(4) && (!every(100) || every(400));
    let lengths = [
        31,
        if leap { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let before = usize::try_from(month.checked_sub(1)?).ok()?;
    let length = *lengths.get(before)?;
    if !(1970..10_000).contains(&year) || !(1..=length).contains(&day) {
        return None;
    }
    let to_year = |year: u64| year * 365 + year / 4 - year / 100 + year / 400;
    let years = to_year(year - 1) - to_year(1969);
    let months: u64 = lengths.iter().take(before).sum();
    Some(years + months + day - 1)
}

fn moment(days: u64, time: &str) -> Option<Duration> {
    let mut parts = time.split(':').map(|part| match part.len() {
        2 => part.parse::<u64>().ok(),
        _ => None,
    });
    let mut next = |limit: u64| parts.next().flatten().filter(|part| *part < limit);
    let (hours, minutes, seconds) = (next(24)?, next(60)?, next(61)?);
    match parts.next() {
        None => Some(Duration::from_secs(
            ((days * 24 + hours) * 60 + minutes) * 60 + seconds,
        )),
        Some(_) => None,
    }
}

/// A date of HTTP: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<Duration> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    let year = words.next()?.parse().ok()?;
    let days = days(year, u64::try_from(month).ok()? + 1, day)?;
    moment(days, words.next().filter(|_| words.next() == Some("GMT"))?)
}

/// A date of RFC 3339: `2026-01-02T03:04:05Z`, with a fraction or an offset perhaps.
fn rfc3339(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once(['T', 't'])?;
    let mut date = date.split('-').map(|part| part.parse().ok());
    let mut next = || date.next().flatten();
    let days = days(next()?, next()?, next()?)?;
    let clock = moment(days, time.get(..8)?)?;
    let rest = time.get(8..)?;
    let digits = rest.strip_prefix('.').map_or(0, |rest| {
        1 + rest.bytes().take_while(u8::is_ascii_digit).count()
    });
    let zone = rest.get(digits..)?;
    if matches!(zone, "Z" | "z") {
        return Some(clock);
    }
    let offset = moment(0, &format!("{}:00", zone.get(1..)?))?;
    match zone.get(..1)? {
        "+" => clock.checked_sub(offset),
        "-" => clock.checked_add(offset),
        _ => None,
    }
}

/// A duration as OpenAI writes it: `1s`, `6m0s`, `1h2m3.5s`, `20ms`.
fn spelled(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, after) = rest.split_at_checked(digits)?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at_checked(letters)?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        // The third digit after the point is exact enough.
        let part = part.get(..3).unwrap_or(part);
        if whole.is_empty() {
            return None;
        }
        let thousandths: u64 = format!("{whole}{part:0<3}").parse().ok()?;
        let milliseconds = match unit {
            "h" => thousandths.checked_mul(3600),
            "m" => thousandths.checked_mul(60),
            "s" => Some(thousandths),
            "ms" => Some(thousandths.div_ceil(1000)),
            _ => None,
        }?;
        sum = sum.checked_add(Duration::from_millis(milliseconds))?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

/// How long a provider wants to be left alone, of any form in which one says it: seconds, a
/// duration, a date. At most a day is believed.
pub(crate) fn pause(text: &str, unix: Duration) -> Option<Duration> {
    const MOST: Duration = Duration::from_secs(24 * 60 * 60);
    let text = text.trim();
    let seconds = || spelled(&format!("{text}s"));
    let date = || {
        http_date(text)
            .or_else(|| rfc3339(text))
            .map(|at| at.saturating_sub(unix))
    };
    seconds()
        .or_else(|| spelled(text))
        .or_else(date)
        .map(|pause| pause.min(MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_in_every_form() {
        let now = Duration::from_secs(784_111_777);
        let ms = |milliseconds| Some(Duration::from_millis(milliseconds));
        for (text, expected) in [
            ("0", ms(0)),
            ("7", ms(7_000)),
            (" 1.5 ", ms(1_500)),
            ("1s", ms(1_000)),
            ("6m0s", ms(360_000)),
            ("1h2m3.5s", ms(3_723_500)),
            ("20ms", ms(20)),
            ("8.64s", ms(8_640)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", ms(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", ms(30_000)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", ms(0)),
            ("1994-11-06T08:50:07Z", ms(30_000)),
            ("1994-11-06T08:50:07.123Z", ms(30_000)),
            ("1994-11-06T10:50:07+02:00", ms(30_000)),
            ("99999999", ms(86_400_000)),
            ("", None),
            ("soon", None),
            ("-1", None),
            ("1x", None),
            ("1994-13-06T08:50:07Z", None),
            ("1994-11-06T08:50", None),
            ("Sun, 31 Feb 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ] {
            assert_eq!(pause(text, now), expected, "{text}");
        }
    }

    #[test]
    fn days_are_counted() {
        for (date, expected) in [
            ((1970, 1, 1), Some(0)),
            ((1970, 12, 31), Some(364)),
            ((1972, 3, 1), Some(790)),
            ((2000, 2, 29), Some(11_016)),
            ((2100, 3, 1), Some(47_541)),
            ((2026, 1, 1), Some(20_454)),
            ((1969, 12, 31), None),
            ((2026, 2, 29), None),
            ((2026, 0, 1), None),
        ] {
            assert_eq!(days(date.0, date.1, date.2), expected, "{date:?}");
        }
    }
}
