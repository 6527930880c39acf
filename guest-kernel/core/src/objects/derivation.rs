//! The derivation tree: who came from whom. It answers what a revocation takes away and when an
//! object's last capability goes.
//!
//! All slots in use stand in one doubly linked list, parents before children and every subtree in
//! one piece. The tree is not stored: whether one capability is another's parent follows from
//! what they name (`is_parent`), so no operation has to touch more than its neighbours. This is
//! the mapping database of seL4 (reference manual, section 3.1.4), whose rules we keep:
//!
//! - what is retyped from an untyped is its child, for as long as it lies in it;
//! - a copy of an original is its child; a copy of a copy is the copy's sibling;
//! - the first endpoint or notification capability with a badge is an original: its copies are
//!   its children, and it is a child of the one without a badge.

use super::capability::{Capability, Kind};
use super::memory::{Memory, Ref};
use super::slot::Slot;

/// Puts `capability` into the empty slot `to`, as derived from what lies in `from`. `original`
/// says that its copies are to be its children.
pub(super) fn insert(
    memory: &mut impl Memory,
    from: Ref<Slot>,
    to: Ref<Slot>,
    capability: Capability,
    original: bool,
) {
    memory.get_mut(to).fill(capability, original);
    let behind = memory.get(from).next();
    connect(memory, from, Some(to));
    connect(memory, to, behind);
}

/// Puts the first capability of a tree into an empty slot; at boot.
pub(super) fn plant(memory: &mut impl Memory, to: Ref<Slot>, capability: Capability) {
    memory.get_mut(to).fill(capability, true);
}

/// Moves what lies in `from` to the empty slot `to`, as `capability`: same object, same place in
/// the tree.
pub(super) fn relocate(
    memory: &mut impl Memory,
    from: Ref<Slot>,
    to: Ref<Slot>,
    capability: Capability,
) {
    let moved = *memory.get(from);
    *memory.get_mut(from) = Slot::default();
    let target = memory.get_mut(to);
    *target = moved;
    target.set_capability(capability);
    if let Some(previous) = moved.previous() {
        memory.get_mut(previous).set_next(Some(to));
    }
    if let Some(next) = moved.next() {
        memory.get_mut(next).set_previous(Some(to));
    }
}

/// Exchanges what lies in two slots.
pub(super) fn exchange(memory: &mut impl Memory, a: Ref<Slot>, b: Ref<Slot>) {
    if a == b {
        return;
    }
    let (mut in_a, mut in_b) = (*memory.get(a), *memory.get(b));
    // Neighbours point at each other: after the exchange each points at the other's new place.
    for (slot, own, other) in [(&mut in_a, a, b), (&mut in_b, b, a)] {
        if slot.next() == Some(other) {
            slot.set_next(Some(own));
        }
        if slot.previous() == Some(other) {
            slot.set_previous(Some(own));
        }
    }
    *memory.get_mut(a) = in_b;
    *memory.get_mut(b) = in_a;
    for slot in [a, b] {
        let (previous, next) = (memory.get(slot).previous(), memory.get(slot).next());
        if memory.get(slot).capability().is_null() {
            continue;
        }
        if let Some(previous) = previous {
            memory.get_mut(previous).set_next(Some(slot));
        }
        if let Some(next) = next {
            memory.get_mut(next).set_previous(Some(slot));
        }
    }
}

/// Takes what lies in `slot` out of the tree and leaves it empty. Its children become those of its
/// parent.
pub(super) fn remove(memory: &mut impl Memory, slot: Ref<Slot>) {
    let removed = *memory.get(slot);
    *memory.get_mut(slot) = Slot::default();
    let next = removed.next();
    if let Some(next) = next {
        let after = memory.get_mut(next);
        if removed.is_first_badged() {
            // Else its copies would turn into those of another with the same badge.
            after.set_first_badged();
        }
        after.set_previous(removed.previous());
    }
    if let Some(previous) = removed.previous() {
        memory.get_mut(previous).set_next(next);
    }
}

/// The first capability derived from what lies in `slot`.
pub(super) fn first_child(memory: &impl Memory, slot: Ref<Slot>) -> Option<Ref<Slot>> {
    let next = memory.get(slot).next()?;
    is_parent(memory, slot, next).then_some(next)
}

/// Whether `slot` holds the only capability to its object.
pub(super) fn is_last(memory: &impl Memory, slot: Ref<Slot>) -> bool {
    let this = memory.get(slot);
    let same = |other: Option<Ref<Slot>>| {
        other.is_some_and(|other| same_object(this.capability(), memory.get(other).capability()))
    };
    !same(this.previous()) && !same(this.next())
}

/// Whether what lies in `parent` is the parent, or a further ancestor, of what lies in `child`.
fn is_parent(memory: &impl Memory, parent: Ref<Slot>, child: Ref<Slot>) -> bool {
    let (above, below) = (memory.get(parent), memory.get(child));
    if !above.is_revocable() {
        return false;
    }
    let (from, to) = (above.capability(), below.capability());
    match from.kind() {
        Kind::Untyped => contains(from, to),
        Kind::IrqControl => matches!(to.kind(), Kind::IrqControl | Kind::IrqHandler),
        Kind::Endpoint | Kind::Notification => {
            same_object(from, to)
                && (from.badge() == 0 || from.badge() == to.badge() && !below.is_first_badged())
        }
        _ => same_object(from, to),
    }
}

/// Whether the object of `capability` is part of an untyped's memory.
fn contains(untyped: Capability, capability: Capability) -> bool {
    let in_memory = !matches!(
        capability.kind(),
        Kind::Null | Kind::IrqControl | Kind::IrqHandler | Kind::SchedControl | Kind::Service
    );
    let offset = capability.address().checked_sub(untyped.address());
    in_memory && offset.is_some_and(|offset| offset >> untyped.size_bits() == 0)
}

/// Whether two capabilities name one object.
pub(super) fn same_object(a: Capability, b: Capability) -> bool {
    if a.kind() != b.kind() {
        return false;
    }
    match a.kind() {
        // Untypeds of several sizes can share an address; a zombie is the only one there.
        Kind::Null | Kind::Untyped | Kind::Zombie => false,
        Kind::IrqControl | Kind::SchedControl => true,
        Kind::IrqHandler | Kind::Service => a.data == b.data,
        _ => a.address() == b.address(),
    }
}

fn connect(memory: &mut impl Memory, first: Ref<Slot>, second: Option<Ref<Slot>>) {
    memory.get_mut(first).set_next(second);
    if let Some(second) = second {
        memory.get_mut(second).set_previous(Some(first));
    }
}
