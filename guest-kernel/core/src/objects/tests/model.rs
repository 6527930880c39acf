//! Random operations, beside a model that knows nothing of lists, zombies or watermarks: a flat
//! table of capabilities, each with its parent written down.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A capability as the model has it.
#[derive(Clone, Debug)]
struct Entry {
    /// The object, by kind, address and size: untypeds of one size and place are one object.
    object: (Kind, u64, u64),
    badge: u64,
    original: bool,
    parent: Option<u64>,
}

/// All capabilities by the address of their slot.
#[derive(Clone, Debug, Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    fn children(&self, of: u64) -> Vec<u64> {
        let child = |(at, entry): (&u64, &Entry)| (entry.parent == Some(of)).then_some(*at);
        self.entries.iter().filter_map(child).collect()
    }

    fn insert(&mut self, from: u64, to: u64, badge: u64, original: bool) {
        let source = self.entries[&from].clone();
        let parent = if source.original {
            Some(from)
        } else {
            source.parent
        };
        let entry = Entry {
            badge,
            original,
            parent,
            ..source
        };
        self.entries.insert(to, entry);
    }

    fn delete(&mut self, at: u64) {
        let Some(gone) = self.entries.remove(&at) else {
            return;
        };
        for child in self.children(at) {
            self.entries.get_mut(&child).unwrap().parent = gone.parent;
        }
        let (kind, address, slots) = gone.object;
        let last = !self
            .entries
            .values()
            .any(|entry| entry.object == gone.object);
        if kind == Kind::CNode && last {
            for n in 0..slots {
                self.delete(address + n * 32);
            }
        }
    }

    fn revoke(&mut self, at: u64) {
        while let Some(child) = self.children(at).first() {
            self.delete(*child);
        }
    }

    fn relocate(&mut self, from: u64, to: u64) {
        let entry = self.entries.remove(&from).unwrap();
        for child in self.children(from) {
            self.entries.get_mut(&child).unwrap().parent = Some(to);
        }
        self.entries.insert(to, entry);
    }
}

/// Both at once.
struct Pair {
    rig: Rig,
    model: Model,
}

/// What a capability is to the model.
fn identity(capability: Capability) -> (Kind, u64, u64) {
    let size = match capability.kind() {
        Kind::CNode => 1 << capability.radix(),
        Kind::Untyped => u64::from(capability.size_bits()),
        _ => 0,
    };
    (capability.kind(), capability.address(), size)
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::new();
        let mut model = Model::default();
        for n in 0..2 {
            let entry = Entry {
                object: identity(rig.capability(n)),
                badge: 0,
                original: true,
                parent: None,
            };
            model.entries.insert(rig.slot(n).address(), entry);
        }
        Self { rig, model }
    }

    /// Every slot that exists: those of all CNodes.
    fn slots(&self) -> Vec<u64> {
        let mut slots = Vec::new();
        for entry in self.model.entries.values() {
            if let (Kind::CNode, address, count) = entry.object {
                slots.extend((0..count).map(|n| address + n * 32));
            }
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Repeats an operation that interrupts stop, one after each step.
    fn patiently(
        &mut self,
        mut operation: impl FnMut(&mut Objects<Arena>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        loop {
            self.rig.objects.memory.interrupt_in = Some(3);
            let done = operation(&mut self.rig.objects);
            if done != Err(Error::Preempted) {
                self.rig.objects.memory.interrupt_in = None;
                return done;
            }
        }
    }

    fn step(&mut self, (operation, x, y, z): (u8, u16, u16, u16)) {
        let slots = self.slots();
        let pick = |n: u16| slots[usize::from(n) % slots.len()];
        // The root CNode's own capability and the whole untyped stay, else all soon ends.
        let lasting = [self.rig.slot(0).address(), self.rig.slot(1).address()];
        let (to, from, third) = (pick(x), pick(y), pick(z));
        let (to_slot, from_slot) = (Ref::new(to), Ref::new(from));
        let used = |model: &Model, at: u64| model.entries.contains_key(&at);
        match operation % 8 {
            0 => {
                let badge = u64::from(z % 3);
                let minted = if badge == 0 {
                    self.rig.objects.copy(to_slot, from_slot, Rights::ALL)
                } else {
                    (self.rig.objects).mint(to_slot, from_slot, Rights::ALL, badge, 0)
                };
                self.expect_copy(minted, from, to, badge);
            }
            1 if !lasting.contains(&from) => {
                let moved = self.rig.objects.relocate(to_slot, from_slot, None);
                let expected = if used(&self.model, to) {
                    Err(Error::DeleteFirst)
                } else if !used(&self.model, from) {
                    Err(Error::FailedLookup)
                } else {
                    self.model.relocate(from, to);
                    Ok(())
                };
                assert_eq!(moved, expected);
            }
            2 if !lasting.contains(&from) => {
                self.patiently(|objects| objects.delete(from_slot)).unwrap();
                self.model.delete(from);
            }
            3 if !lasting.contains(&from) || z % 8 == 0 => {
                let before = self.rig.objects.capability(from_slot);
                self.patiently(|objects| objects.revoke(from_slot)).unwrap();
                if self.rig.objects.capability(from_slot) == before {
                    self.model.revoke(from);
                } else {
                    // It met itself: how many of the others went depends on their order.
                    self.revoke_all();
                }
            }
            4 if !lasting.contains(&from) && !lasting.contains(&third) => {
                let pivot = Ref::new(third);
                let rotated = (self.rig.objects).rotate((to_slot, None), (pivot, None), from_slot);
                self.expect_rotation(rotated, to, third, from);
            }
            _ => self.retype(operation / 8, x, y, z),
        }
    }

    /// Takes away all that was ever retyped.
    fn revoke_all(&mut self) {
        self.rig.revoke(1);
        self.model.revoke(self.rig.slot(1).address());
    }

    fn expect_copy(&mut self, copied: Result<(), Error>, from: u64, to: u64, badge: u64) {
        let Some(source) = self.model.entries.get(&from) else {
            assert!(copied.is_err());
            return;
        };
        let (kind, ..) = source.object;
        let badged = matches!(kind, Kind::Endpoint | Kind::Notification);
        let expected = if self.model.entries.contains_key(&to) {
            Err(Error::DeleteFirst)
        } else if badge != 0 && !(badged && source.badge == 0 || kind == Kind::CNode) {
            Err(Error::IllegalOperation)
        } else if kind == Kind::Untyped && !self.model.children(from).is_empty() {
            Err(Error::RevokeFirst)
        } else if kind == Kind::PageTable {
            Err(Error::IllegalOperation)
        } else if badge != 0 && kind == Kind::CNode {
            // A guard without a length.
            Err(Error::InvalidArgument)
        } else {
            Ok(())
        };
        assert_eq!(copied, expected, "{kind:?} {badge}");
        if copied.is_ok() {
            let original = badge != 0 || kind == Kind::Untyped;
            let badge = if badge == 0 { source.badge } else { badge };
            self.model.insert(from, to, badge, original);
        }
    }

    fn expect_rotation(&mut self, rotated: Result<(), Error>, to: u64, pivot: u64, from: u64) {
        let used = |at: u64| self.model.entries.contains_key(&at);
        let expected = if pivot == from || pivot == to {
            Err(Error::IllegalOperation)
        } else if to != from && used(to) {
            Err(Error::DeleteFirst)
        } else if !used(from) || !used(pivot) {
            Err(Error::FailedLookup)
        } else {
            Ok(())
        };
        assert_eq!(rotated, expected);
        if rotated.is_ok() {
            const ASIDE: u64 = 1;
            self.model.relocate(pivot, ASIDE);
            self.model.relocate(from, pivot);
            self.model.relocate(ASIDE, to);
        }
    }

    fn retype(&mut self, kind: u8, x: u16, y: u16, z: u16) {
        let pick = |kind: Kind, n: u16| {
            let of = |(at, entry): (&u64, &Entry)| (entry.object.0 == kind).then_some(*at);
            let all: Vec<u64> = self.model.entries.iter().filter_map(of).collect();
            all[usize::from(n) % all.len()]
        };
        let object = match kind % 6 {
            0 => ObjectType::CNode {
                radix: u64::from(z % 3 + 1),
            },
            1 => ObjectType::Untyped {
                bits: u64::from(z % 10 + 6),
            },
            2 => ObjectType::Endpoint,
            3 => ObjectType::Notification,
            4 => ObjectType::PageTable,
            _ => ObjectType::Frame {
                bits: u64::from(z % 3),
            },
        };
        let (untyped, node) = (pick(Kind::Untyped, x), pick(Kind::CNode, y));
        let to = self.rig.objects.capability(Ref::new(node));
        let (slots, offset) = (1_u64 << to.radix(), u64::from(z >> 4));
        let (offset, count) = (offset % slots, u64::from(z >> 12) % 3 + 1);
        let made =
            self.patiently(|objects| objects.retype(Ref::new(untyped), object, to, offset, count));
        let first = to.object_ref::<Slot>().at(offset);
        let in_use = |n| self.model.entries.contains_key(&first.at(n).address());
        match made {
            Ok(()) => {}
            Err(Error::Range { .. }) => return assert!(offset + count > slots),
            Err(Error::DeleteFirst) => return assert!((0..count).any(in_use)),
            Err(Error::NotEnoughMemory { .. }) => return,
            Err(other) => panic!("{other}"),
        }
        for n in 0..count {
            let at = first.at(n);
            let capability = self.rig.objects.capability(at);
            self.expect_fresh(capability);
            let entry = Entry {
                object: identity(capability),
                badge: 0,
                original: true,
                parent: Some(untyped),
            };
            assert!(self.model.entries.insert(at.address(), entry).is_none());
        }
    }

    /// New objects are zero, and overlap nothing that lives but the untypeds they come from.
    fn expect_fresh(&mut self, made: Capability) {
        let bytes = |capability: Capability| match capability.kind() {
            Kind::CNode => 32 << capability.radix(),
            Kind::Untyped => 1 << capability.size_bits(),
            Kind::Endpoint | Kind::Notification => 64,
            Kind::Frame => capability.pages() * 4096,
            _ => 4096,
        };
        let (start, len) = (made.address(), bytes(made));
        for at in self.model.entries.keys() {
            let other = self.rig.objects.capability(Ref::new(*at));
            let (other_start, other_len) = (other.address(), bytes(other));
            if start < other_start + other_len && other_start < start + len {
                let inside = other_start <= start && start + len <= other_start + other_len;
                assert!(
                    inside && other.kind() == Kind::Untyped,
                    "{made:?} on {other:?}"
                );
            }
        }
        if made.kind() != Kind::Untyped {
            let memory = &mut self.rig.objects.memory;
            for at in (start..start + len).step_by(4096) {
                let len = len.min(4096);
                assert!(memory.bytes(at, len).iter().all(|byte| *byte == 0));
                if made.kind() == Kind::Frame {
                    memory.bytes_mut(at, len).fill(0xa5);
                }
            }
        }
    }

    /// The slots in use are the same, with the same objects and badges.
    fn check(&self) {
        self.rig.check();
        for at in self.slots() {
            let capability = self.rig.objects.capability(Ref::new(at));
            let Some(entry) = self.model.entries.get(&at) else {
                assert!(capability.is_null(), "{at:#x} holds {capability:?}");
                continue;
            };
            assert_eq!(identity(capability), entry.object, "{at:#x}");
            if matches!(capability.kind(), Kind::Endpoint | Kind::Notification) {
                assert_eq!(capability.badge(), entry.badge);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_objects_do_what_the_model_does(
        steps in prop::collection::vec(any::<(u8, u16, u16, u16)>(), 1..300)
    ) {
        let mut pair = Pair::new();
        for step in steps {
            pair.step(step);
        }
        pair.check();
        // Whatever was made, one revocation takes it away.
        pair.revoke_all();
        pair.check();
        // What is left are the untyped and capabilities to the root CNode, which is not made of it.
        let left = pair.model.entries.values().filter(|entry| entry.object.0 != Kind::CNode);
        prop_assert_eq!(left.count(), 1);
    }
}
