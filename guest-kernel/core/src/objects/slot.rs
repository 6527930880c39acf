//! The slot: where a capability lies, and its place in the derivation tree.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::capability::Capability;
use super::memory::{Ref, Stored};

/// Set in [`Slot::next`]: capabilities derived from this one are its children.
const REVOCABLE: u64 = 1 << 0;
/// Set in [`Slot::next`]: the first capability with its badge, and so nobody's sibling by badge.
const FIRST_BADGED: u64 = 1 << 1;
const FLAGS: u64 = REVOCABLE | FIRST_BADGED;

/// A place for one capability. The derivation tree is one list of all slots in use, parents before
/// children; see [`super::derivation`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Slot {
    head: u64,
    data: u64,
    next: u64,
    previous: u64,
}

impl Stored for Slot {}

impl Slot {
    /// The capability in it.
    #[must_use]
    pub const fn capability(&self) -> Capability {
        Capability {
            head: self.head,
            data: self.data,
        }
    }

    pub(super) const fn set_capability(&mut self, capability: Capability) {
        self.head = capability.head;
        self.data = capability.data;
    }

    pub(super) const fn next(&self) -> Option<Ref<Self>> {
        Ref::from_link(self.next & !FLAGS)
    }

    pub(super) fn set_next(&mut self, next: Option<Ref<Self>>) {
        self.next = super::memory::link(next) | self.next & FLAGS;
    }

    pub(super) const fn previous(&self) -> Option<Ref<Self>> {
        Ref::from_link(self.previous)
    }

    pub(super) fn set_previous(&mut self, previous: Option<Ref<Self>>) {
        self.previous = super::memory::link(previous);
    }

    pub(super) const fn is_revocable(&self) -> bool {
        self.next & REVOCABLE != 0
    }

    pub(super) const fn is_first_badged(&self) -> bool {
        self.next & FIRST_BADGED != 0
    }

    pub(super) const fn set_first_badged(&mut self) {
        self.next |= FIRST_BADGED;
    }

    /// Fills an empty slot that stands in no list.
    pub(super) const fn fill(&mut self, capability: Capability, original: bool) {
        self.set_capability(capability);
        self.next = if original { FLAGS } else { 0 };
        self.previous = 0;
    }
}
