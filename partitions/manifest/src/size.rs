//! Amounts as people write them: `64MiB`, `100MiB/s`, `1000/s`, `150%`.

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
}
