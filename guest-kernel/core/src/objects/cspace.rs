//! Capability spaces: from a 64-bit address to a slot, and the operations that put a capability
//! from one slot into another. Semantics as in the seL4 reference manual, chapter 3.
//!
//! Destination before source: a destination in use is [`Error::DeleteFirst`] whatever the source
//! is; an empty source is [`Error::FailedLookup`].

use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::{Error, Objects, derivation};

/// Bits of a capability address.
pub const ADDRESS_BITS: u32 = u64::BITS;

impl<M: Memory> Objects<M> {
    /// The slot at the last `depth` bits of `address`, seen from the CNode `root`: each CNode on
    /// the way takes its guard and its radix from the top.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] when `root` is no CNode, a guard differs, or the bits end
    /// inside a CNode or go on beyond one; [`Error::Range`] for a depth not from 1 to 64.
    pub fn resolve(&self, root: Capability, address: u64, depth: u64) -> Result<Ref<Slot>, Error> {
        let range = Error::Range {
            min: 1,
            max: u64::from(ADDRESS_BITS),
        };
        let mut left = u32::try_from(depth).map_err(|_| range)?;
        if !(1..=ADDRESS_BITS).contains(&left) {
            return Err(range);
        }
        let mut node = root;
        loop {
            if node.kind() != Kind::CNode {
                return Err(Error::InvalidCapability);
            }
            let (guard_bits, radix) = (node.guard_bits(), node.radix());
            let index_end = left
                .checked_sub(guard_bits + radix)
                .ok_or(Error::InvalidCapability)?;
            let index = address >> index_end;
            // A radix is at least one and guard and radix are at most 64, so both shifts fit.
            if index >> radix & ones(guard_bits) != node.guard() {
                return Err(Error::InvalidCapability);
            }
            let slot = node.object_ref::<Slot>().at(index & ones(radix));
            if index_end == 0 {
                return Ok(slot);
            }
            left = index_end;
            node = self.capability(slot);
        }
    }

    /// The slot and capability that a thread with this root names by a handle.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`], also for an empty slot.
    pub fn lookup(&self, root: Capability, handle: u64) -> Result<(Ref<Slot>, Capability), Error> {
        let slot = self.resolve(root, handle, u64::from(ADDRESS_BITS))?;
        let capability = self.capability(slot);
        if capability.is_null() {
            return Err(Error::InvalidCapability);
        }
        Ok((slot, capability))
    }

    fn empty(&self, slot: Ref<Slot>) -> Result<(), Error> {
        if self.capability(slot).is_null() {
            Ok(())
        } else {
            Err(Error::DeleteFirst)
        }
    }

    fn occupied(&self, slot: Ref<Slot>) -> Result<Capability, Error> {
        let capability = self.capability(slot);
        if capability.is_null() {
            Err(Error::FailedLookup)
        } else {
            Ok(capability)
        }
    }

    /// Puts a second capability to the same object into `to`, with no more than `rights`.
    ///
    /// # Errors
    /// [`Error::DeleteFirst`], [`Error::FailedLookup`]; what `Objects::derived` refuses.
    pub fn copy(&mut self, to: Ref<Slot>, from: Ref<Slot>, rights: Rights) -> Result<(), Error> {
        self.empty(to)?;
        let source = self.occupied(from)?;
        let copy = self.derived(from, source)?.masked(rights);
        self.insert_copy(from, to, copy);
        Ok(())
    }

    /// [`Objects::copy`] with a badge for an endpoint or notification that has none, or a guard
    /// for a CNode: `data` is the badge, or the guard with its length in `guard_bits`.
    ///
    /// # Errors
    /// As for [`Objects::copy`]; [`Error::IllegalOperation`] for a capability that has a badge
    /// already, or can have neither; [`Error::InvalidArgument`] for a guard that does not fit.
    pub fn mint(
        &mut self,
        to: Ref<Slot>,
        from: Ref<Slot>,
        rights: Rights,
        data: u64,
        guard_bits: u64,
    ) -> Result<(), Error> {
        self.empty(to)?;
        let source = self.occupied(from)?;
        let minted = match source.kind() {
            Kind::Endpoint | Kind::Notification if source.badge() == 0 => source.with_badge(data),
            Kind::CNode => source.with_guard(data, guard_bits)?,
            _ => return Err(Error::IllegalOperation),
        };
        self.insert_copy(from, to, minted.masked(rights));
        Ok(())
    }

    /// Moves a capability; with a `guard` (value and length) a CNode's gets that one: seL4's
    /// Mutate.
    ///
    /// # Errors
    /// [`Error::DeleteFirst`], [`Error::FailedLookup`]; [`Error::IllegalOperation`] for a guard on
    /// what is no CNode, or what is being deleted; [`Error::InvalidArgument`] for a guard that does not fit.
    pub fn relocate(
        &mut self,
        to: Ref<Slot>,
        from: Ref<Slot>,
        guard: Option<(u64, u64)>,
    ) -> Result<(), Error> {
        self.empty(to)?;
        let source = self.occupied(from)?;
        let moved = movable(source, guard)?;
        derivation::relocate(&mut self.memory, from, to, moved);
        Ok(())
    }

    /// Moves what is in `pivot` to `to`, and what is in `from` to `pivot`, in one step; where `to`
    /// is `from`, exchanges the two. A guard is set as by [`Objects::relocate`].
    ///
    /// # Errors
    /// [`Error::IllegalOperation`] when the pivot is one of the others, [`Error::DeleteFirst`]
    /// when `to` is in use and not `from`, [`Error::FailedLookup`] when one of the others is
    /// empty, and those of a guard.
    pub fn rotate(
        &mut self,
        (to, to_guard): (Ref<Slot>, Option<(u64, u64)>),
        (pivot, pivot_guard): (Ref<Slot>, Option<(u64, u64)>),
        from: Ref<Slot>,
    ) -> Result<(), Error> {
        if pivot == from || pivot == to {
            return Err(Error::IllegalOperation);
        }
        if to != from {
            self.empty(to)?;
        }
        let in_from = self.occupied(from)?;
        let in_pivot = self.occupied(pivot)?;
        let new_in_to = movable(in_pivot, to_guard)?;
        let new_in_pivot = movable(in_from, pivot_guard)?;
        derivation::exchange(&mut self.memory, pivot, from);
        self.memory.get_mut(pivot).set_capability(new_in_pivot);
        if to == from {
            self.memory.get_mut(from).set_capability(new_in_to);
        } else {
            derivation::relocate(&mut self.memory, from, to, new_in_to);
        }
        Ok(())
    }

    /// What a copy of `capability`, which lies in `slot`, is.
    ///
    /// # Errors
    /// [`Error::RevokeFirst`] for an untyped with children, since both would hand out the same
    /// memory; [`Error::IllegalOperation`] for a page table, whose mapping only one capability can
    /// answer for, and for what there is one of.
    pub(super) fn derived(
        &self,
        slot: Ref<Slot>,
        capability: Capability,
    ) -> Result<Capability, Error> {
        match capability.kind() {
            Kind::Untyped if derivation::first_child(&self.memory, slot).is_some() => {
                Err(Error::RevokeFirst)
            }
            Kind::PageTable | Kind::IrqControl | Kind::Zombie | Kind::Null => {
                Err(Error::IllegalOperation)
            }
            Kind::Frame => Ok(capability.with_mapping(0)),
            _ => Ok(capability),
        }
    }

    /// Puts `copy`, derived from what lies in `from`, into the empty slot `to`.
    pub(super) fn insert_copy(&mut self, from: Ref<Slot>, to: Ref<Slot>, copy: Capability) {
        let source = self.capability(from);
        let original = match copy.kind() {
            Kind::Untyped => true,
            Kind::Endpoint | Kind::Notification => copy.badge() != source.badge(),
            _ => false,
        };
        derivation::insert(&mut self.memory, from, to, copy, original);
        if copy.kind() == Kind::Untyped {
            // From now on the copy hands out this memory; it has no children that could be gone.
            let full = 1 << (source.size_bits() - super::UNIT_BITS);
            let all_used = source.with_watermark(full, source.dirty());
            self.memory.get_mut(from).set_capability(all_used);
        }
    }
}

/// `bits` ones; `bits` is at most 64.
const fn ones(bits: u32) -> u64 {
    match u64::MAX.checked_shr(u64::BITS - bits) {
        Some(ones) => ones,
        None => 0,
    }
}

/// What `capability` is after a move, with a new guard or without.
fn movable(capability: Capability, guard: Option<(u64, u64)>) -> Result<Capability, Error> {
    match (capability.kind(), guard) {
        (Kind::Zombie, _) => Err(Error::IllegalOperation),
        (Kind::CNode, Some((guard, bits))) => capability.with_guard(guard, bits),
        (_, Some(_)) => Err(Error::IllegalOperation),
        (_, None) => Ok(capability),
    }
}
