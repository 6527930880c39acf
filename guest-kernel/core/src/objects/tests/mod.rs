//! Tests of the object logic as a whole: the cases of the documentation one by one (`cases`), and
//! random operations beside a reference model (`model`), the short way of messages beside the
//! long one (`fastpath`).

extern crate std;

mod cases;
#[cfg(not(miri))]
mod cpus;
#[cfg(not(miri))]
mod fastpath;
// None of this is unsafe, and under Miri, a hundred times slower, it is minutes: `cases` stands for
// the rest there.
#[cfg(not(miri))]
mod interrupts;
#[cfg(not(miri))]
mod ipc;
#[cfg(not(miri))]
mod mapping;
#[cfg(not(miri))]
mod model;
#[cfg(not(miri))]
mod random;
#[cfg(not(miri))]
mod scheduling;
#[cfg(not(miri))]
mod timeouts;

use std::collections::HashMap;
use std::vec::Vec;

use bulkhead_abi::syscall::Status;

use super::arena::{Arena, BASE};
use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::thread::{State, Thread, ThreadSlot};
use super::untyped::ObjectType;
use super::{Error, Objects};
use crate::frame::Frame;

/// Slots of the root CNode in bits.
const ROOT_RADIX: u32 = 6;
/// A frame of one page.
const PAGE: ObjectType = ObjectType::Frame { bits: 0 };
/// Size of the untyped in bits.
const UNTYPED_BITS: u32 = 18;

/// Objects in an arena: the root CNode with an untyped of 256 KiB in its slot 1, and the root
/// CNode's own capability in slot 0.
pub(super) struct Rig {
    pub(super) objects: Objects<Arena>,
    pub(super) root: Capability,
    pub(super) now: u64,
}

impl Rig {
    pub(super) fn new() -> Self {
        let memory = 1 << UNTYPED_BITS;
        let mut objects = Objects::new(Arena::new(memory * 2));
        let root = Capability::cnode(BASE, ROOT_RADIX)
            .with_guard(0, u64::from(u64::BITS - ROOT_RADIX))
            .unwrap();
        let slots = root.object_ref::<Slot>();
        objects.plant(slots, root);
        let untyped = Capability::untyped(BASE + memory, UNTYPED_BITS, false, 0);
        objects.plant(slots.at(1), untyped);
        Self {
            objects,
            root,
            now: 1,
        }
    }

    /// The slot of the root CNode with this number.
    pub(super) fn slot(&self, number: u64) -> Ref<Slot> {
        self.root.object_ref::<Slot>().at(number)
    }

    pub(super) fn capability(&self, number: u64) -> Capability {
        self.objects.capability(self.slot(number))
    }

    pub(super) fn kind(&self, number: u64) -> Kind {
        self.capability(number).kind()
    }

    /// Retypes one object from the untyped in slot 1 of the root CNode into another slot.
    pub(super) fn make(&mut self, object: ObjectType, number: u64) {
        self.retype(object, number, 1).unwrap();
    }

    pub(super) fn retype(&mut self, object: ObjectType, at: u64, count: u64) -> Result<(), Error> {
        let (from, root) = (self.slot(1), self.root);
        self.objects.retype(from, object, root, at, count)
    }

    pub(super) fn copy(&mut self, to: u64, from: u64) -> Result<(), Error> {
        let (to, from) = (self.slot(to), self.slot(from));
        self.objects.copy(to, from, Rights::ALL)
    }

    pub(super) fn mint(&mut self, to: u64, from: u64, badge: u64) -> Result<(), Error> {
        let (to, from) = (self.slot(to), self.slot(from));
        self.objects.mint(to, from, Rights::ALL, badge, 0)
    }

    pub(super) fn delete(&mut self, number: u64) {
        self.objects.delete(self.slot(number)).unwrap();
    }

    pub(super) fn revoke(&mut self, number: u64) {
        self.objects.revoke(self.slot(number)).unwrap();
    }

    /// Makes a thread in a slot that runs with this priority on a context of its own in the next
    /// slot. It is ready.
    pub(super) fn thread(&mut self, number: u64, priority: u64) -> Ref<Thread> {
        let thread = self.passive_thread(number, priority);
        self.make(ObjectType::SchedContext, number + 1);
        let context = self.capability(number + 1).object_ref();
        let time = self.now;
        (self.objects)
            .configure_context(context, [1_000_000, 1_000_000], 0, time)
            .unwrap();
        self.objects.bind_context(thread, context).unwrap();
        thread
    }

    /// Makes a thread in a slot that has no time of its own. It is resumed.
    pub(super) fn passive_thread(&mut self, number: u64, priority: u64) -> Ref<Thread> {
        self.make(ObjectType::Thread, number);
        let thread = self.capability(number).object_ref::<Thread>();
        self.objects
            .set_priority(thread, priority, priority, 255)
            .unwrap();
        let (root, cspace) = (self.slot(0), thread.slot(ThreadSlot::CSpace));
        self.objects.copy(cspace, root, Rights::ALL).unwrap();
        self.objects.resume(thread);
        thread
    }

    /// Makes `thread`, which is ready, the running one, whoever would be next.
    pub(super) fn run(&mut self, thread: Ref<Thread>) {
        self.objects.yield_now();
        self.objects.force(thread);
    }

    pub(super) fn registers(&self, thread: Ref<Thread>) -> Frame {
        self.objects.memory.get(thread).frame
    }

    /// What a thread's operation was answered.
    pub(super) fn status(&self, thread: Ref<Thread>) -> Option<Status> {
        Status::from_raw(self.registers(thread).rax)
    }

    pub(super) fn state(&self, thread: Ref<Thread>) -> State {
        self.objects.memory.get(thread).state()
    }

    /// Puts the first words of a message into a thread's registers.
    pub(super) fn words(&mut self, thread: Ref<Thread>, words: &[u64]) {
        let frame = &mut self.objects.memory.get_mut(thread).frame;
        let mut all = [0; 10];
        all[..words.len()].copy_from_slice(words);
        frame.set_message(words.len() as u64, &all);
    }

    /// Gives a thread a frame, made in slot `number`, as its message buffer; its address.
    pub(super) fn buffer(&mut self, thread: Ref<Thread>, number: u64) -> u64 {
        self.make(PAGE, number);
        let (from, to) = (self.slot(number), thread.slot(ThreadSlot::MessageBuffer));
        self.objects.copy(to, from, Rights::ALL).unwrap();
        self.capability(number).address()
    }

    /// Checks what must always hold of all slots that exist: those of the CNodes that capabilities
    /// in slots name, beginning with the root.
    pub(super) fn check(&self) {
        let mut slots = HashMap::new();
        let mut tables = Vec::from([(self.root.address(), ROOT_RADIX)]);
        while let Some((address, radix)) = tables.pop() {
            for n in 0..1 << radix {
                let at = Ref::<Slot>::new(address).at(n);
                let slot = *self.objects.memory.get(at);
                if slots.insert(at, slot).is_some() {
                    break;
                }
                let capability = slot.capability();
                if capability.kind() == Kind::CNode {
                    tables.push((capability.address(), capability.radix()));
                }
            }
        }
        assert!(self.objects.dying.is_none(), "deletions are finished");
        for (at, slot) in &slots {
            if slot.capability().is_null() {
                assert_eq!(*slot, Slot::default(), "{at:?} is empty");
                continue;
            }
            assert_ne!(slot.capability().kind(), Kind::Zombie);
            // A CNode that only its own content names is out of reach, and out of this check.
            if let Some(next) = slot.next() {
                assert_eq!(self.objects.memory.get(next).previous(), Some(*at));
                assert!(!self.objects.memory.get(next).capability().is_null());
            }
            if let Some(previous) = slot.previous() {
                assert_eq!(self.objects.memory.get(previous).next(), Some(*at));
            }
        }
    }
}
