//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a function's table of messages, and which of them are
//! pending. No I/O happens here: what is to be sent is returned.
//!
//! A function that raises its vectors itself calls [`Msix::raise`]. One whose vectors are raised by
//! somebody else (a device passed through) routes each with [`Msix::message`] whenever
//! [`Msix::write_table`] or [`Msix::set_control`] has changed it.

use serde::{Deserialize, Serialize};

/// Identity of the capability.
pub const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry.
pub const ENTRY_LEN: u64 = 16;
/// Most vectors of a function.
pub const MAX_VECTORS: u16 = 2048;

/// Message control: the function sends messages.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: this vector is masked.
const MASKED: u32 = 1;

/// A write that interrupts a CPU (Intel SDM volume 3, section 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// Address low, address high, data, vector control.
type Entry = [u32; 4];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msix {
    table: Vec<Entry>,
    pending: Vec<bool>,
    control: u16,
}

impl Msix {
    /// A table of `vectors`, at most [`MAX_VECTORS`], all of them masked.
    pub fn new(vectors: u16) -> Self {
        let count = vectors.clamp(1, MAX_VECTORS).into();
        Self {
            table: vec![[0, 0, 0, MASKED]; count],
            pending: vec![false; count],
            control: 0,
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        // At most MAX_VECTORS.
        self.table.len() as u16
    }

    /// Body of the capability, and which of its bits a guest may write: the table is at `table`, the
    /// pending bits at `pending` of BAR `bar`, both multiples of 8.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let [size, table, pending] = [
            u32::from(self.vectors() - 1),
            table | u32::from(bar),
            pending | u32::from(bar),
        ];
        body[..2].copy_from_slice(&(size as u16).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// The function sends messages, rather than being polled.
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Takes the message control register; what can be sent now.
    pub fn set_control(&mut self, control: u16) -> Vec<Message> {
        self.control = control & (ENABLE | FUNCTION_MASK);
        if !self.is_enabled() {
            self.pending.fill(false);
        }
        (0..self.vectors())
            .filter_map(|vector| self.release(vector))
            .collect()
    }

    /// Vector `vector` has an interrupt: the message to send, or none when it is masked and pending
    /// now. A vector that does not exist has none.
    pub fn raise(&mut self, vector: u16) -> Option<Message> {
        if !self.is_enabled() {
            return None;
        }
        *self.pending.get_mut(usize::from(vector))? = true;
        self.release(vector)
    }

    /// The message of `vector`, unless it is masked.
    pub fn message(&self, vector: u16) -> Option<Message> {
        let [low, high, data, control] = *self.table.get(usize::from(vector))?;
        let masked = self.control & (ENABLE | FUNCTION_MASK) != ENABLE || control & MASKED != 0;
        (!masked).then_some(Message {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        })
    }

    /// The message of `vector` if it is pending and not masked; it is not pending then.
    fn release(&mut self, vector: u16) -> Option<Message> {
        let message = self.message(vector)?;
        let pending = self.pending.get_mut(usize::from(vector))?;
        std::mem::take(pending).then_some(message)
    }

    /// Serves a read of the table: 4 or 8 bytes, aligned; any other reads zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_whole(offset, data.len()) {
            return;
        }
        for (word, at) in data.chunks_exact_mut(4).zip((offset / 4)..) {
            let [entry, field] = [at / 4, at % 4].map(|n| n as usize);
            let value = self.table.get(entry).and_then(|entry| entry.get(field));
            word.copy_from_slice(&value.copied().unwrap_or(0).to_le_bytes());
        }
    }

    /// Takes a write to the table, of the same kind; what can be sent now.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<Message> {
        if !is_whole(offset, data.len()) {
            return None;
        }
        for (word, at) in data.chunks_exact(4).zip((offset / 4)..) {
            let [entry, field] = [at / 4, at % 4].map(|n| n as usize);
            let value = word.try_into().map(u32::from_le_bytes).ok()?;
            *self.table.get_mut(entry)?.get_mut(field)? = match field {
                0 => value & !3,
                3 => value & MASKED,
                _ => value,
            };
        }
        self.release(u16::try_from(offset / ENTRY_LEN).ok()?)
    }

    /// Serves a read of the pending bits, of the same kind.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let whole = is_whole(offset, data.len());
        for (byte, at) in data.iter_mut().zip(offset..) {
            let bit = |n: u64| {
                let vector = at
                    .checked_mul(8)
                    .and_then(|first| usize::try_from(first + n).ok());
                let pending = vector.and_then(|vector| self.pending.get(vector));
                u8::from(whole && pending == Some(&true)) << n
            };
            *byte = (0..8).map(bit).sum();
        }
    }
}

fn is_whole(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn pending(msix: &Msix) -> u64 {
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    /// Three vectors, programmed and unmasked, in an enabled function.
    fn programmed() -> Msix {
        let mut msix = Msix::new(3);
        for vector in 0..3u32 {
            let at = u64::from(vector) * ENTRY_LEN;
            assert_eq!(msix.write_table(at, &0xfee0_1000_u64.to_le_bytes()), None);
            assert_eq!(
                msix.write_table(at + 8, &(0x40 + vector).to_le_bytes()),
                None
            );
            assert_eq!(msix.write_table(at + 12, &[0; 4]), None);
        }
        assert_eq!(msix.set_control(ENABLE), []);
        msix
    }

    fn message(vector: u32) -> Message {
        Message {
            address: 0xfee0_1000,
            data: 0x40 + vector,
        }
    }

    #[test]
    fn messages_are_those_of_the_table() {
        let mut msix = programmed();
        assert_eq!(msix.raise(2), Some(message(2)));
        assert_eq!(msix.raise(3), None);
        assert_eq!(msix.raise(u16::MAX), None);
        assert_eq!(pending(&msix), 0);
        let mut entry = [0; 8];
        msix.read_table(40, &mut entry);
        assert_eq!(entry, [0x42, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_masked_vector_waits() {
        let mut msix = programmed();
        assert_eq!(msix.write_table(12 + 16, &1u32.to_le_bytes()), None);
        assert_eq!(msix.raise(1), None);
        assert_eq!(msix.raise(1), None);
        assert_eq!(pending(&msix), 0b10);
        assert_eq!(msix.raise(0), Some(message(0)), "others do not");
        assert_eq!(
            msix.write_table(12 + 16, &0u32.to_le_bytes()),
            Some(message(1)),
            "once"
        );
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn a_masked_function_waits() {
        let mut msix = programmed();
        assert_eq!(msix.set_control(ENABLE | FUNCTION_MASK), []);
        assert_eq!((msix.raise(0), msix.raise(2)), (None, None));
        assert_eq!(pending(&msix), 0b101);
        assert_eq!(msix.write_table(12, &0u32.to_le_bytes()), None);
        assert_eq!(msix.set_control(ENABLE), [message(0), message(2)]);
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn a_function_without_msix_sends_nothing() {
        let mut msix = programmed();
        msix.set_control(0);
        assert_eq!(msix.raise(0), None);
        assert_eq!(pending(&msix), 0);
        assert_eq!(msix.set_control(ENABLE), []);
    }

    #[test]
    fn other_widths_have_no_effect() {
        let mut msix = programmed();
        let before = msix.clone();
        for (offset, len) in [
            (0, 1),
            (0, 2),
            (1, 4),
            (2, 4),
            (4, 8),
            (0, 16),
            (0, 0),
            (48, 4),
            (u64::MAX - 7, 8),
        ] {
            assert_eq!(msix.write_table(offset, &vec![0xff; len]), None);
            let mut data = vec![0xee; len];
            if offset < 48 {
                msix.read_table(offset, &mut data);
                assert!(data.iter().all(|byte| *byte == 0), "{offset} {len}");
            }
        }
        assert_eq!(msix, before);
    }

    #[test]
    fn the_capability_tells_where_the_tables_are() {
        let (body, writable) = Msix::new(3).capability(1, 0x4000, 0x5000);
        assert_eq!(body, [2, 0, 1, 0x40, 0, 0, 1, 0x50, 0, 0]);
        assert_eq!(writable, [0, 0xc0]);
    }

    proptest! {
        /// In any order of raising, masking and unmasking, what was raised is sent once or pending.
        #[test]
        fn nothing_is_lost_or_doubled(steps in vec((0u8..5, 0u16..3), 0..200)) {
            let mut msix = programmed();
            let mut owed = [false; 3];
            for (step, vector) in steps {
                let at = u64::from(vector) * ENTRY_LEN + 12;
                let mut sent = Vec::new();
                match step {
                    0 => {
                        owed[usize::from(vector)] = true;
                        sent.extend(msix.raise(vector));
                    }
                    1 => sent.extend(msix.write_table(at, &1u32.to_le_bytes())),
                    2 => sent.extend(msix.write_table(at, &0u32.to_le_bytes())),
                    3 => sent.extend(msix.set_control(ENABLE | FUNCTION_MASK)),
                    _ => sent.extend(msix.set_control(ENABLE)),
                }
                for message in sent {
                    prop_assert_eq!(std::mem::take(&mut owed[(message.data - 0x40) as usize]), true);
                }
                let bits: u64 = (0..3).map(|n| u64::from(owed[n]) << n).sum();
                prop_assert_eq!(pending(&msix), bits);
            }
        }

        /// Accesses anywhere, of any length, end well.
        #[test]
        fn any_access_ends(offset in any::<u64>(), len in 0usize..40, vectors in any::<u16>()) {
            let mut msix = Msix::new(vectors);
            msix.read_table(offset, &mut vec![0; len]);
            msix.read_pending(offset, &mut vec![0; len]);
            msix.write_table(offset, &vec![0xff; len]);
        }
    }
}
