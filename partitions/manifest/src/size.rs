//! Amounts as people write them: `64MiB`, `100MiB/s`, `1000/s`, `60/min`, `150%`, `90s`.

/// Parses a whole number of MiB, GiB or TiB.
///
/// # Errors
/// What is wrong, for the end of a sentence: no number, no unit, another unit, or more than 2^64
/// MiB.
pub fn parse_memory_mib(text: &str) -> Result<u64, &'static str> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "MiB" | "M" => 1,
        "GiB" | "G" => 1024,
        "TiB" | "T" => 1024 * 1024,
        "" => return Err("it has no unit"),
        _ => return Err("its unit is not MiB, GiB or TiB"),
    };
    number.checked_mul(factor).ok_or("it is too large a number")
}

/// Parses a whole number of bytes, KiB, MiB, GiB or TiB.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "" => return Err("it has no unit"),
        _ => return Err("its unit is not B, KiB, MiB, GiB or TiB"),
    };
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or("it is too large a number")
}

/// Parses bytes per second: `100MiB/s`.
pub(crate) fn parse_byte_rate(text: &str) -> Result<u64, &'static str> {
    parse_bytes(per_second(text)?)
}

/// Parses operations per second: `1000/s`.
pub(crate) fn parse_operation_rate(text: &str) -> Result<u64, &'static str> {
    parse_count(per_second(text)?)
}

/// Parses calls per minute: `60/min`.
pub(crate) fn parse_call_rate(text: &str) -> Result<u64, &'static str> {
    parse_count(
        text.strip_suffix("/min")
            .ok_or("it does not end with /min")?,
    )
}

/// Parses a length of time in whole seconds, minutes, hours or days: `90s`, `15m`, `8h`, `7d`.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, &'static str> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "" => return Err("it has no unit"),
        _ => return Err("its unit is not s, m, h or d"),
    };
    number.checked_mul(factor).ok_or("it is too large a number")
}

/// Parses a time of the Gregorian calendar in UTC, `2026-12-31T18:00:00Z` (RFC 3339), into seconds
/// since 1970.
pub(crate) fn parse_time(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "it is not of the form 2026-12-31T18:00:00Z";
    let bytes = text.as_bytes();
    let is_form = |(byte, form): (&u8, &u8)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte == form,
    };
    let form = b"0000-00-00T00:00:00Z";
    if bytes.len() != form.len() || !bytes.iter().zip(form).all(is_form) {
        return Err(FORM);
    }
    let number = |from: usize, to: usize| -> Result<u64, &'static str> {
        text.get(from..to)
            .and_then(|digits| digits.parse().ok())
            .ok_or(FORM)
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_leap = |year: u64| {
        let century = year.is_multiple_of(100) && !year.is_multiple_of(400);
        year.is_multiple_of(4) && !century
    };
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = months.iter().take(month.saturating_sub(1) as usize);
    let length = months.get((month as usize).wrapping_sub(1)).copied();
    let in_month = length.is_some_and(|length| (1..=length).contains(&day));
    if year < 1970 || !in_month || hour > 23 || minute > 59 || second > 59 {
        return Err("there is no such time, or it is before 1970");
    }
    let leap_days = (1970..year).filter(|year| is_leap(*year)).count() as u64;
    let days = (year - 1970) * 365 + leap_days + before.sum::<u64>() + day - 1;
    Ok(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Parses an amount of money in whole or broken dollars, `5` or `0.075`, into millionths of a cent.
pub(crate) fn parse_money(text: &str) -> Result<u64, &'static str> {
    const DIGITS: usize = 8;
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) {
        return Err("it is no number of dollars");
    }
    if part.len() > DIGITS {
        return Err("it has more than 8 digits after the point");
    }
    let whole: Option<u64> = whole.parse().ok();
    let part = format!("{part:0<DIGITS$}").parse().ok();
    let amount = whole.and_then(|whole| whole.checked_mul(10_u64.pow(DIGITS as u32)));
    let amount = amount
        .zip(part)
        .and_then(|(whole, part)| whole.checked_add(part));
    amount.ok_or("it is too large a number")
}

/// Parses a number without a unit.
pub(crate) fn parse_count(text: &str) -> Result<u64, &'static str> {
    match split(text)? {
        (number, "") => Ok(number),
        _ => Err("it is no number alone"),
    }
}

/// Parses a share of one CPU: `150%`.
pub(crate) fn parse_percent(text: &str) -> Result<u64, &'static str> {
    match split(text)? {
        (number, "%") => Ok(number),
        _ => Err("its unit is not %"),
    }
}

fn per_second(text: &str) -> Result<&str, &'static str> {
    text.strip_suffix("/s").ok_or("it does not end with /s")
}

fn split(text: &str) -> Result<(u64, &str), &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or(("", text));
    if number.is_empty() {
        return Err("it does not start with a whole number");
    }
    let number = number.parse().map_err(|_| "it is too large a number")?;
    Ok((number, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, mib) in [
            ("1MiB", Some(1)),
            ("64 MiB", Some(64)),
            ("64M", Some(64)),
            ("2GiB", Some(2048)),
            ("10TiB", Some(10 * 1024 * 1024)),
            ("0MiB", Some(0)),
            ("64", None),
            ("", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5GiB", None),
            ("64MB", None),
            ("64KiB", None),
            ("99999999999999999999MiB", None),
            ("18446744073709551615GiB", None),
            ("6\u{664}MiB", None),
        ] {
            assert_eq!(parse_memory_mib(text).ok(), mib, "{text}");
        }
    }

    #[test]
    fn money() {
        for (text, amount) in [
            ("5", Some(500_000_000)),
            ("0.075", Some(7_500_000)),
            ("0.00000001", Some(1)),
            ("12.50", Some(1_250_000_000)),
            ("184467440737.09551615", Some(u64::MAX)),
            ("184467440737.09551616", None),
            ("0.000000001", None),
            ("1.", None),
            (".5", None),
            ("-1", None),
            ("1e3", None),
            ("$5", None),
            ("", None),
        ] {
            assert_eq!(parse_money(text).ok(), amount, "{text}");
        }
    }

    #[test]
    fn rates_and_shares() {
        assert_eq!(parse_byte_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_byte_rate("1B/s"), Ok(1));
        assert_eq!(parse_operation_rate("1000/s"), Ok(1000));
        assert_eq!(parse_percent("150%"), Ok(150));
        assert_eq!(parse_count("7"), Ok(7));
        for text in [
            "100MiB",
            "100/s",
            "MiB/s",
            "16777216TiB/s",
            "1MB/s",
            "",
            "/s",
        ] {
            assert!(parse_byte_rate(text).is_err(), "{text}");
        }
        assert!(parse_operation_rate("1000").is_err());
        assert!(parse_operation_rate("1k/s").is_err());
        assert!(parse_percent("1.5").is_err());
        assert!(parse_count("1s").is_err());
    }

    #[test]
    fn times_and_their_lengths() {
        assert_eq!(parse_call_rate("60/min"), Ok(60));
        assert!(parse_call_rate("60/s").is_err() && parse_call_rate("/min").is_err());
        for (text, seconds) in [("90s", 90), ("15m", 900), ("8h", 28_800), ("7d", 604_800)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for wrong in ["", "90", "1.5h", "1w", "-1s", "18446744073709551615d"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2001-09-09T01:46:40Z", 1_000_000_000),
            ("2026-12-31T23:59:59Z", 1_798_761_599),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(parse_time(text), Ok(seconds), "{text}");
        }
        for wrong in [
            "2100-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00:00+01:00",
            "2026-01-01",
            "",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
