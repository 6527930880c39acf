//! The address of a PCI function of the host: `0000:03:00.0`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A function on the host's PCI buses, as `lspci -D` prints it; without a domain it is `0000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text is no [`PciAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no PCI address; write DOMAIN:BUS:DEVICE.FUNCTION, as in 0000:03:00.0", .0.escape_debug())]
pub struct ParsePciError(String);

/// Exactly `length` hexadecimal digits.
fn hex(text: &str, length: usize) -> Option<u16> {
    let digits = text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(text, 16).ok().filter(|_| digits)
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = match text.matches(':').count() {
        1 => ("0000", text),
        _ => text.split_once(':')?,
    };
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    Some(PciAddress {
        domain: hex(domain, 4)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok().filter(|n| *n < 32)?,
        function: u8::try_from(hex(function, 1)?).ok().filter(|n| *n < 8)?,
    })
}

impl FromStr for PciAddress {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, ParsePciError> {
        parse(text).ok_or_else(|| ParsePciError(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

super::text_form!(PciAddress, ParsePciError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, printed) in [
            ("0000:03:00.0", Some("0000:03:00.0")),
            ("03:00.0", Some("0000:03:00.0")),
            ("00AB:FF:1f.7", Some("00ab:ff:1f.7")),
            ("03:20.0", None),
            ("03:00.8", None),
            ("3:0.0", None),
            ("0000:03:00", None),
            ("+000:03:00.0", None),
            ("0000:0000:03:00.0", None),
            ("", None),
        ] {
            let address = text.parse::<PciAddress>().ok().map(|a| a.to_string());
            assert_eq!(address.as_deref(), printed, "{text}");
        }
    }
}
