//! The root CNode: what the program was granted, one typed capability a slot.
//!
//! It is filled once, at boot, from the `BootInfo`; no call changes it in this version.

use bulkhead_abi::machine::MAX_DEVICES;
use bulkhead_abi::syscall::{Status, slot};

/// Number of slots.
pub const SLOTS: usize = slot::DEVICES as usize + MAX_DEVICES;

/// A reference to an object together with the right to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Nothing was granted here.
    Empty,
    /// The console.
    Console,
    /// All free memory.
    Untyped,
    /// The program's address space.
    AddressSpace,
    /// The program's first thread.
    Thread,
    /// A granted device, by its index in the `BootInfo`.
    Device(u8),
}

/// The program's capability table.
#[derive(Clone, Debug)]
pub struct CNode {
    slots: [Capability; SLOTS],
}

impl CNode {
    /// A table in which nothing is granted.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [Capability::Empty; SLOTS],
        }
    }

    /// Puts `capability` in `slot`; a slot out of range changes nothing.
    pub(crate) fn grant(&mut self, slot: u64, capability: Capability) {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        if let Some(entry) = self.slots.get_mut(index) {
            *entry = capability;
        }
    }

    /// Checks that `slot` holds exactly `wanted`.
    ///
    /// # Errors
    /// [`Status::InvalidCapability`] for an empty slot, another kind or a slot out of range.
    pub fn require(&self, slot: u64, wanted: Capability) -> Result<(), Status> {
        let index = usize::try_from(slot).map_err(|_| Status::InvalidCapability)?;
        match self.slots.get(index) {
            Some(found) if *found == wanted => Ok(()),
            _ => Err(Status::InvalidCapability),
        }
    }
}

impl Default for CNode {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_granted_kind_in_the_granted_slot_passes() {
        let mut cnode = CNode::new();
        cnode.grant(slot::CONSOLE, Capability::Console);
        assert_eq!(cnode.require(slot::CONSOLE, Capability::Console), Ok(()));
        let refused = Err(Status::InvalidCapability);
        assert_eq!(cnode.require(slot::CONSOLE, Capability::Untyped), refused);
        for slot in [0, 2, SLOTS as u64 - 1, SLOTS as u64, u64::MAX] {
            assert_eq!(cnode.require(slot, Capability::Console), refused);
        }
    }

    #[test]
    fn a_grant_out_of_range_changes_nothing() {
        let mut cnode = CNode::new();
        cnode.grant(SLOTS as u64, Capability::Console);
        cnode.grant(u64::MAX, Capability::Console);
        assert!(cnode.slots.iter().all(|c| *c == Capability::Empty));
    }
}
