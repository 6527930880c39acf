//! What a guest says about its memory (virtio 1.2, section 5.5.6.4): tag and value, 10 bytes each.

use std::io;

use vm_memory::GuestMemoryMmap;

use super::super::queue::Buffers;

/// Tags in their order, and the names under which they are told.
const NAMES: [&str; 10] = [
    "guest-swap-in-bytes",
    "guest-swap-out-bytes",
    "guest-major-faults",
    "guest-minor-faults",
    "guest-free-bytes",
    "guest-total-bytes",
    "guest-available-bytes",
    "guest-cache-bytes",
    "guest-hugepage-allocations",
    "guest-hugepage-failures",
];
/// Bytes of an entry.
const ENTRY: usize = 10;
/// Most entries that are looked at; newer guests know more tags than are told.
const MAX_ENTRIES: usize = 32;

/// The last that was said, by tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statistics([Option<u64>; NAMES.len()]);

impl Statistics {
    /// Reads what the driver wrote; tags that are not known are passed over.
    pub(super) fn read(buffers: &Buffers, memory: &GuestMemoryMmap) -> io::Result<Self> {
        let mut bytes = [0; MAX_ENTRIES * ENTRY];
        let len = buffers.len().min(bytes.len() as u64) as usize;
        let filled = bytes.get_mut(..len).unwrap_or_default();
        buffers.read_at(memory, 0, filled)?;
        let mut all = Self::default();
        for [t0, t1, value @ ..] in filled.as_chunks::<ENTRY>().0 {
            let tag = usize::from(u16::from_le_bytes([*t0, *t1]));
            if let Some(slot) = all.0.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(*value));
            }
        }
        Ok(all)
    }

    /// Name and value of what was said.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let pairs = NAMES.iter().zip(self.0);
        pairs.filter_map(|(name, value)| value.map(|value| (*name, value)))
    }
}
