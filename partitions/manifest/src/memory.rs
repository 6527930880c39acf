//! Sizes of memory as people write them: `64MiB`, `2GiB`.

/// Parses a whole number of MiB or GiB. `Err` holds what is wrong, for the end of a sentence.
///
/// # Errors
/// No number, no unit, another unit, or more than 2^64 MiB.
pub fn parse_memory_mib(text: &str) -> Result<u64, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or(("", text));
    if number.is_empty() {
        return Err("it does not start with a whole number");
    }
    let factor = match unit.trim() {
        "MiB" | "M" => 1,
        "GiB" | "G" => 1024,
        "TiB" | "T" => 1024 * 1024,
        "" => return Err("it has no unit"),
        _ => return Err("its unit is not MiB, GiB or TiB"),
    };
    let number: u64 = number.parse().map_err(|_| "it is too large a number")?;
    number.checked_mul(factor).ok_or("it is too large a number")
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
}
