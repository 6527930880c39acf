//! The fuzzer's bytes as a script: what happens next, and with which numbers.
#![allow(dead_code, reason = "each target takes what it needs")]

/// Bytes taken from the front; zeros when they are used up.
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// The next `N` bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.some(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    /// The next `len` bytes, or as many as there are.
    pub fn some(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(self.0.len().min(len));
        self.0 = later;
        now
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }
}
