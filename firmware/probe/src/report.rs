//! The report on COM1: lines `key=value`.

use crate::cpu;

/// Sends `text`.
pub(crate) fn text(text: &str) {
    text.bytes().for_each(cpu::send);
}

/// Sends one finding.
pub(crate) fn line(key: &str, value: impl Value) {
    text(key);
    cpu::send(b'=');
    value.send();
    cpu::send(b'\n');
}

/// Says what is tried next: the last line of a VM that does not survive it.
pub(crate) fn begin(name: &str) {
    line("begin", name);
}

/// Sends the finding that `name` raised exception `vector`.
pub(crate) fn fault(name: &str, vector: u64) {
    text(name);
    text("=fault-");
    decimal(vector).send();
    cpu::send(b'\n');
}

/// What can stand behind the `=`.
pub(crate) trait Value {
    /// Sends it.
    fn send(self);
}

impl Value for &str {
    fn send(self) {
        text(self);
    }
}

/// A number, to be sent in decimal.
pub(crate) struct Decimal(u64);

/// `number` in decimal.
pub(crate) fn decimal(number: u64) -> Decimal {
    Decimal(number)
}

impl Value for Decimal {
    fn send(self) {
        let mut divisor = 1;
        while self.0 / divisor >= 10 {
            divisor *= 10;
        }
        while divisor > 0 {
            cpu::send(b'0' + (self.0 / divisor % 10) as u8);
            divisor /= 10;
        }
    }
}
