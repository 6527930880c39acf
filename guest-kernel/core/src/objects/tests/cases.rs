//! The operations on capabilities, case by case.

use super::*;

const ENDPOINT: ObjectType = ObjectType::Endpoint;
const SMALL: ObjectType = ObjectType::CNode { radix: 2 };

#[test]
fn copy_needs_an_occupied_source_and_an_empty_destination() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    rig.make(ENDPOINT, 9);
    assert_eq!(rig.copy(10, 8), Ok(()));
    assert_eq!(rig.capability(10), rig.capability(8));
    assert_eq!(rig.copy(9, 8), Err(Error::DeleteFirst));
    assert_ne!(rig.capability(9), rig.capability(8));
    assert_eq!(
        rig.copy(9, 20),
        Err(Error::DeleteFirst),
        "destination first"
    );
    assert_eq!(rig.copy(21, 20), Err(Error::FailedLookup));
    rig.check();
}

#[test]
fn rights_shrink_and_badges_are_set_once() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    let (to, from) = (rig.slot(9), rig.slot(8));
    rig.objects.copy(to, from, Rights::WRITE).unwrap();
    let (to, from) = (rig.slot(10), rig.slot(9));
    rig.objects.copy(to, from, Rights::ALL).unwrap();
    assert_eq!(rig.capability(10).rights(), Rights::WRITE);
    assert_eq!(rig.mint(11, 8, 7), Ok(()));
    assert_eq!(rig.capability(11).badge(), 7);
    assert_eq!(rig.mint(12, 11, 8), Err(Error::IllegalOperation));
    assert_eq!(rig.mint(12, 11, 0), Err(Error::IllegalOperation));
    assert_eq!(rig.mint(11, 8, 7), Err(Error::DeleteFirst));
    assert_eq!(rig.mint(12, 30, 7), Err(Error::FailedLookup));
    assert_eq!(
        rig.mint(12, 1, 7),
        Err(Error::IllegalOperation),
        "no badge for an untyped"
    );
    assert_eq!(rig.kind(12), Kind::Null);
    assert_eq!(
        rig.copy(12, 11),
        Ok(()),
        "a badged capability can be copied"
    );
    rig.check();
}

#[test]
fn move_keeps_the_place_in_the_tree() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    rig.copy(9, 8).unwrap();
    let (to, from) = (rig.slot(20), rig.slot(8));
    assert_eq!(rig.objects.relocate(to, from, None), Ok(()));
    assert_eq!(rig.kind(8), Kind::Null);
    rig.check();
    rig.revoke(20);
    assert_eq!((rig.kind(20), rig.kind(9)), (Kind::Endpoint, Kind::Null));
    rig.copy(9, 20).unwrap();
    assert_eq!(
        rig.objects.relocate(rig.slot(9), rig.slot(20), None),
        Err(Error::DeleteFirst)
    );
    assert_eq!(
        (rig.kind(20), rig.kind(9)),
        (Kind::Endpoint, Kind::Endpoint)
    );
    assert_eq!(
        rig.objects.relocate(rig.slot(30), rig.slot(31), None),
        Err(Error::FailedLookup)
    );
    assert_eq!(
        rig.objects
            .relocate(rig.slot(30), rig.slot(9), Some((0, 1))),
        Err(Error::IllegalOperation),
        "a guard is for CNodes"
    );
    rig.check();
}

#[test]
fn rotate_moves_two_at_once() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    rig.make(ObjectType::Notification, 9);
    let rotate = |rig: &mut Rig, to: u64, pivot: u64, from: u64| {
        let (to, pivot, from) = (rig.slot(to), rig.slot(pivot), rig.slot(from));
        rig.objects.rotate((to, None), (pivot, None), from)
    };
    assert_eq!(rotate(&mut rig, 10, 9, 8), Ok(()));
    assert_eq!(rig.kind(8), Kind::Null);
    assert_eq!(
        (rig.kind(9), rig.kind(10)),
        (Kind::Endpoint, Kind::Notification)
    );
    rig.check();
    rig.make(ObjectType::Reply, 8);
    let before = [8, 9, 10].map(|n| rig.capability(n));
    assert_eq!(rotate(&mut rig, 10, 9, 8), Err(Error::DeleteFirst));
    assert_eq!(rotate(&mut rig, 10, 8, 8), Err(Error::IllegalOperation));
    assert_eq!(rotate(&mut rig, 10, 10, 8), Err(Error::IllegalOperation));
    assert_eq!(rotate(&mut rig, 11, 30, 8), Err(Error::FailedLookup));
    assert_eq!(rotate(&mut rig, 11, 8, 30), Err(Error::FailedLookup));
    assert_eq!([8, 9, 10].map(|n| rig.capability(n)), before);
    assert_eq!(rotate(&mut rig, 8, 9, 8), Ok(()), "exchange");
    assert_eq!((rig.kind(8), rig.kind(9)), (Kind::Endpoint, Kind::Reply));
    rig.check();
}

/// Neighbours in the list exchange their places as well as strangers.
#[test]
fn rotate_of_parent_and_child() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    rig.copy(9, 8).unwrap();
    let (a, b) = (rig.slot(8), rig.slot(9));
    rig.objects.rotate((a, None), (b, None), a).unwrap();
    rig.check();
    rig.revoke(9);
    assert_eq!((rig.kind(8), rig.kind(9)), (Kind::Null, Kind::Endpoint));
    rig.check();
}

/// A path of 64 CNodes of one bit each.
#[test]
fn an_address_may_lead_through_64_cnodes() {
    let mut rig = Rig::new();
    let address = 0x9a5c_3e17_d02b_64f8_u64;
    let mut node = Capability::NULL;
    // From the last CNode to the first: each holds the next one at its bit of the address.
    for level in 0..64 {
        rig.make(ObjectType::CNode { radix: 1 }, 8);
        let made = rig.capability(8);
        let slot = made.object_ref::<Slot>().at(address >> level & 1);
        if level == 0 {
            rig.make(ENDPOINT, 9);
            rig.objects.relocate(slot, rig.slot(9), None).unwrap();
        } else {
            rig.objects.relocate(slot, rig.slot(10), None).unwrap();
        }
        rig.objects
            .relocate(rig.slot(10), rig.slot(8), None)
            .unwrap();
        node = made;
    }
    let (_, found) = rig.objects.lookup(node, address).unwrap();
    assert_eq!(found.kind(), Kind::Endpoint);
    for bit in 0..64 {
        let refused = rig.objects.lookup(node, address ^ 1 << bit);
        assert_eq!(refused.err(), Some(Error::InvalidCapability), "bit {bit}");
    }
    for small in 0..64 {
        let refused = rig.objects.lookup(node, small);
        assert_eq!(refused.err(), Some(Error::InvalidCapability));
    }
    // All of it goes with its first CNode.
    rig.delete(10);
    rig.check();
    rig.retype(
        ObjectType::Untyped {
            bits: u64::from(UNTYPED_BITS),
        },
        8,
        1,
    )
    .unwrap();
}

#[test]
fn guards_and_depths_are_checked() {
    let mut rig = Rig::new();
    rig.make(SMALL, 8);
    let minted = |rig: &mut Rig, guard, bits| {
        let (to, from) = (rig.slot(9), rig.slot(8));
        rig.objects.mint(to, from, Rights::ALL, guard, bits)
    };
    assert_eq!(minted(&mut rig, 5, 63), Err(Error::InvalidArgument));
    assert_eq!(minted(&mut rig, 5, 2), Err(Error::InvalidArgument));
    assert_eq!(minted(&mut rig, 5, 3), Ok(()));
    let node = rig.capability(9);
    let first = node.object_ref::<Slot>();
    // Five bits: guard 101, then two of the slot.
    assert_eq!(rig.objects.resolve(node, 0b10110, 5), Ok(first.at(2)));
    assert_eq!(
        rig.objects.resolve(node, 0xfff0 | 0b10110, 5),
        Ok(first.at(2))
    );
    for (address, depth) in [(0b00110, 5), (0b10110, 4), (0b10110, 6), (0b10110, 64)] {
        let refused = rig.objects.resolve(node, address, depth);
        assert_eq!(refused, Err(Error::InvalidCapability));
    }
    for depth in [0, 65, u64::MAX] {
        let refused = rig.objects.resolve(node, 0, depth);
        assert_eq!(refused, Err(Error::Range { min: 1, max: 64 }));
    }
    let (at, from) = (rig.slot(10), rig.slot(9));
    assert_eq!(rig.objects.relocate(at, from, Some((0, 62))), Ok(()));
    let node = rig.capability(10);
    assert_eq!(rig.objects.resolve(node, 3, 64), Ok(first.at(3)));
    rig.check();
}

#[test]
fn retype_says_what_would_do() {
    let mut rig = Rig::new();
    rig.make(SMALL, 8);
    let to = rig.capability(8);
    let retype = |rig: &mut Rig, offset, count| {
        let from = rig.slot(1);
        rig.objects.retype(from, ENDPOINT, to, offset, count)
    };
    assert_eq!(retype(&mut rig, 0, 0), Err(Error::Range { min: 1, max: 4 }));
    assert_eq!(retype(&mut rig, 2, 3), Err(Error::Range { min: 1, max: 2 }));
    assert_eq!(retype(&mut rig, 4, 1), Err(Error::Range { min: 0, max: 3 }));
    assert_eq!(
        retype(&mut rig, u64::MAX, 1),
        Err(Error::Range { min: 0, max: 3 })
    );
    assert_eq!(
        retype(&mut rig, 0, u64::MAX),
        Err(Error::Range { min: 1, max: 4 })
    );
    assert_eq!(retype(&mut rig, 0, 3), Ok(()));
    for offset in 0..3 {
        assert_eq!(retype(&mut rig, offset, 1), Err(Error::DeleteFirst));
    }
    assert_eq!(retype(&mut rig, 3, 1), Ok(()));
    assert_eq!(rig.retype(SMALL, 1, 1), Err(Error::DeleteFirst));
    let endpoint = rig.slot(8);
    let refused = rig.objects.retype(endpoint, ENDPOINT, to, 0, 1);
    assert_eq!(refused, Err(Error::InvalidCapability), "no untyped");
    let (untyped, endpoint) = (rig.slot(1), rig.objects.capability(to.object_ref()));
    let refused = rig.objects.retype(untyped, ENDPOINT, endpoint, 0, 1);
    assert_eq!(refused, Err(Error::InvalidCapability), "no CNode");
    rig.check();
}

#[test]
fn an_untyped_gives_all_it_has_and_no_more() {
    let mut rig = Rig::new();
    rig.make(ObjectType::Untyped { bits: 16 }, 2);
    let (from, root) = (rig.slot(2), rig.root);
    for n in 0..16 {
        rig.objects.retype(from, PAGE, root, 8 + n, 1).unwrap();
        let frame = rig.capability(8 + n);
        assert_eq!(frame.address(), rig.capability(2).address() + n * 4096);
    }
    let frame = PAGE;
    assert_eq!(
        rig.objects.retype(from, frame, root, 30, 1),
        Err(Error::NotEnoughMemory { available: 0 })
    );
    assert_eq!(
        rig.objects.retype(from, frame, root, 30, 1_000_000),
        Err(Error::Range { min: 1, max: 34 })
    );
    assert_eq!(
        rig.objects.retype(from, frame, root, 8, 1),
        Err(Error::DeleteFirst)
    );
    for more in 1..=40 {
        let larger = ObjectType::CNode { radix: 11 + more };
        assert!(
            rig.objects.retype(from, larger, root, 30, 1).is_err(),
            "{more}"
        );
    }
    for bits in [0, 4, 37, 64, 1 << 32, u64::MAX] {
        let odd = ObjectType::Untyped { bits };
        let refused = rig.objects.retype(from, odd, root, 30, 1);
        assert!(matches!(refused, Err(Error::Range { .. })), "{bits}");
    }
    rig.check();
}

#[test]
fn memory_comes_back_from_its_start_and_zero() {
    let mut rig = Rig::new();
    rig.make(PAGE, 8);
    rig.make(PAGE, 9);
    let [first, second] = [8, 9].map(|n| rig.capability(n).address());
    rig.objects.memory.bytes_mut(first, 4096).fill(0xaa);
    rig.objects.memory.bytes_mut(second, 4096).fill(0xbb);
    rig.delete(8);
    rig.make(ENDPOINT, 10);
    assert_ne!(
        rig.capability(10).address(),
        first,
        "the second frame is still there"
    );
    rig.delete(9);
    rig.delete(10);
    assert_eq!(rig.objects.memory.zeroed, 0, "nobody needed it yet");
    rig.make(ObjectType::Untyped { bits: 14 }, 8);
    assert_eq!(rig.objects.memory.zeroed, 0, "untyped memory may be old");
    let (from, root) = (rig.slot(8), rig.root);
    rig.objects.retype(from, PAGE, root, 9, 2).unwrap();
    assert_eq!(rig.capability(9).address(), first);
    for frame in [first, second] {
        assert!(
            rig.objects
                .memory
                .bytes(frame, 4096)
                .iter()
                .all(|byte| *byte == 0)
        );
    }
    rig.check();
}

/// Zeroing stops for what is urgent, goes on where it was, and does nothing twice.
#[test]
fn zeroing_can_be_interrupted_after_each_step() {
    let mut rig = Rig::new();
    rig.make(PAGE, 8);
    let frame = rig.capability(8).address();
    rig.objects.memory.bytes_mut(frame, 4096).fill(0xaa);
    rig.delete(8);
    let mut interruptions = 0;
    loop {
        rig.objects.memory.interrupt_in = Some(0);
        match rig.retype(PAGE, 8, 1) {
            Ok(()) => break,
            Err(Error::Preempted) => interruptions += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(interruptions >= 3, "{interruptions}");
    assert_eq!(rig.objects.memory.zeroed, 4096);
    assert!(
        rig.objects
            .memory
            .bytes(frame, 4096)
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn devices_become_frames_and_untypeds_only() {
    let mut rig = Rig::new();
    let device = Capability::untyped(0xfed0_0000, 16, true, 0);
    let (at, root) = (rig.slot(2), rig.root);
    rig.objects.plant(at, device);
    for refused in [ObjectType::Thread, SMALL, ENDPOINT, ObjectType::PageTable] {
        assert_eq!(
            rig.objects.retype(at, refused, root, 8, 1),
            Err(Error::IllegalOperation)
        );
    }
    rig.objects.retype(at, PAGE, root, 8, 1).unwrap();
    rig.objects
        .retype(at, ObjectType::Untyped { bits: 12 }, root, 9, 1)
        .unwrap();
    assert!(rig.capability(8).is_device() && rig.capability(9).is_device());
    rig.revoke(2);
    rig.objects.retype(at, PAGE, root, 8, 1).unwrap();
    assert_eq!(
        rig.capability(8).address(),
        0xfed0_0000,
        "and it is never zeroed"
    );
    rig.check();
}

#[test]
fn revoking_reaches_every_copy_everywhere() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    for n in 9..12 {
        rig.make(ObjectType::CNode { radix: 6 }, n);
    }
    for n in 0..100 {
        let node = rig.capability(9 + n % 3).object_ref::<Slot>();
        let (to, from) = (node.at(n / 3), rig.slot(8));
        rig.objects.copy(to, from, Rights::ALL).unwrap();
    }
    rig.revoke(8);
    assert_eq!(rig.kind(8), Kind::Endpoint);
    for n in 9..12 {
        let node = rig.capability(n).object_ref::<Slot>();
        assert!((0..64).all(|slot| rig.objects.capability(node.at(slot)).is_null()));
    }
    rig.revoke(8);
    rig.revoke(40);
    assert_eq!((rig.kind(8), rig.kind(40)), (Kind::Endpoint, Kind::Null));
    rig.check();
}

#[test]
fn revoking_a_badge_leaves_other_badges() {
    let mut rig = Rig::new();
    rig.make(ENDPOINT, 8);
    rig.mint(9, 8, 1).unwrap();
    rig.mint(10, 8, 2).unwrap();
    rig.copy(11, 9).unwrap();
    rig.copy(12, 10).unwrap();
    rig.copy(13, 8).unwrap();
    // A second capability with the same badge is no copy of the first.
    rig.mint(14, 8, 1).unwrap();
    rig.revoke(9);
    let left = [8, 9, 10, 11, 12, 13, 14].map(|n| rig.kind(n) != Kind::Null);
    assert_eq!(left, [true, true, true, false, true, true, true]);
    // Nor does it adopt the copies of the first when that goes.
    rig.copy(11, 9).unwrap();
    rig.delete(9);
    rig.revoke(14);
    assert_eq!(rig.kind(11), Kind::Endpoint);
    rig.revoke(8);
    assert!((9..15).all(|n| rig.kind(n) == Kind::Null));
    rig.check();
}

#[test]
fn an_untyped_with_children_is_not_copied_and_a_copied_one_gives_nothing() {
    let mut rig = Rig::new();
    rig.make(ObjectType::Untyped { bits: 14 }, 2);
    rig.copy(3, 2).unwrap();
    let root = rig.root;
    let retype = |rig: &mut Rig, from| {
        let from = rig.slot(from);
        rig.objects.retype(from, PAGE, root, 8, 1)
    };
    assert_eq!(
        retype(&mut rig, 2),
        Err(Error::NotEnoughMemory { available: 0 })
    );
    assert_eq!(retype(&mut rig, 3), Ok(()));
    assert_eq!(rig.copy(4, 3), Err(Error::RevokeFirst));
    assert_eq!(rig.copy(4, 1), Err(Error::RevokeFirst));
    rig.revoke(2);
    assert_eq!((rig.kind(3), rig.kind(8)), (Kind::Null, Kind::Null));
    assert_eq!(retype(&mut rig, 2), Ok(()));
    rig.check();
}

/// A CNode with the capability to its own memory, to itself, and to another that names it.
fn circle(rig: &mut Rig) -> [Capability; 2] {
    rig.make(ObjectType::Untyped { bits: 14 }, 2);
    let (from, root) = (rig.slot(2), rig.root);
    rig.objects
        .retype(from, ObjectType::CNode { radix: 3 }, root, 8, 2)
        .unwrap();
    let nodes = [8, 9].map(|n| rig.capability(n));
    let [a, b] = nodes.map(|node| node.object_ref::<Slot>());
    for (to, from) in [(a.at(0), 9), (a.at(3), 8), (b.at(0), 8), (b.at(7), 9)] {
        let from = rig.slot(from);
        rig.objects.copy(to, from, Rights::ALL).unwrap();
    }
    rig.objects.relocate(a.at(5), rig.slot(2), None).unwrap();
    nodes
}

/// After everything went its memory can be had again, and only the root's two are left.
fn all_is_gone(rig: &mut Rig) {
    rig.check();
    assert!((2..64).all(|n| rig.kind(n) == Kind::Null));
    rig.retype(
        ObjectType::Untyped {
            bits: u64::from(UNTYPED_BITS),
        },
        8,
        1,
    )
    .unwrap();
}

#[test]
fn circles_of_cnodes_go_when_the_last_way_in_goes() {
    let mut rig = Rig::new();
    let _ = circle(&mut rig);
    // The circle keeps itself alive without these two; its untyped inside as well.
    rig.delete(8);
    rig.delete(9);
    assert!(matches!(
        rig.retype(
            ObjectType::Untyped {
                bits: u64::from(UNTYPED_BITS)
            },
            8,
            1
        ),
        Err(Error::NotEnoughMemory { .. })
    ));
    rig.revoke(1);
    all_is_gone(&mut rig);
}

#[test]
fn revoke_from_inside_what_goes() {
    let mut rig = Rig::new();
    let [a, _] = circle(&mut rig);
    rig.objects.revoke(a.object_ref::<Slot>().at(5)).unwrap();
    rig.revoke(1);
    all_is_gone(&mut rig);
}

#[test]
fn delete_of_a_cnode_that_holds_its_own_last_capability() {
    let mut rig = Rig::new();
    rig.make(SMALL, 8);
    for own in 0..4 {
        let slots = rig.capability(8).object_ref::<Slot>();
        rig.objects
            .relocate(slots.at(own), rig.slot(8), None)
            .unwrap();
        rig.objects.delete(slots.at(own)).unwrap();
        rig.check();
        rig.make(SMALL, 8);
    }
}

/// Chains and circles deleted with an interrupt after every step, and other deletions between.
#[test]
fn deletion_survives_interrupts_everywhere() {
    for pause in (0..40).step_by(if cfg!(miri) { 13 } else { 1 }) {
        let mut rig = Rig::new();
        let _ = circle(&mut rig);
        rig.make(SMALL, 10);
        for _ in 0..200 {
            rig.objects.memory.interrupt_in = Some(pause);
            let done = rig.objects.revoke(rig.slot(1));
            rig.objects.memory.interrupt_in = None;
            if done.is_ok() {
                break;
            }
            // Somebody else deletes something: that finishes what is left.
            if pause % 3 == 0 {
                rig.delete(40);
            }
        }
        rig.revoke(1);
        all_is_gone(&mut rig);
    }
}
