//! Delete and revoke: complete, and in steps of bounded length.
//!
//! When the last capability to an object goes, the object goes. A CNode or a thread has slots of
//! its own, with capabilities that may be the last to further CNodes, in any number and also in
//! circles. So nothing here calls itself: the capability to a dying object with slots becomes a
//! *zombie*, which counts the slots that are still to be emptied, and `Objects::bury` empties
//! one at a time. Where a slot holds the last capability to another such object, that becomes a
//! zombie too, on top of the first, and is finished before it.
//!
//! So each zombie but the first lies in the object of the one below it, and only the first, the
//! *root*, can lie in an object that is not dying yet. When that object's turn comes and it is
//! finished, the root moves to the slot that this sets free: it never lies in memory that nobody
//! answers for.
//!
//! Where an urgent interrupt stops that, the rest stays as it is. Nobody can use a zombie, so
//! nothing can be added to it; it still counts as a child of its untyped, so its memory is not
//! handed out; and the next delete or revoke, whoever calls it, finishes it first.

use super::capability::{Capability, Kind};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::thread::{SLOTS_RADIX, Thread};
use super::{Error, Objects, derivation};

/// Empty slots passed over before an urgent thread is looked for.
const SCAN_STEP: u64 = 32;

/// The zombies, one on another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dying {
    root: Ref<Slot>,
    top: Ref<Slot>,
}

impl Dying {
    /// What the next zombie remembers of the one it stands on: nothing when that is the root,
    /// which may move.
    fn link(self) -> Option<Ref<Slot>> {
        (self.top != self.root).then_some(self.top)
    }
}

impl<M: Memory> Objects<M> {
    /// Empties a slot. If it held the last capability to an object, that object is gone with all
    /// that it alone held.
    ///
    /// # Errors
    /// [`Error::Preempted`].
    pub fn delete(&mut self, slot: Ref<Slot>) -> Result<(), Error> {
        self.bury()?;
        while !self.capability(slot).is_null() {
            self.delete_step(slot);
            self.bury()?;
            // What is done is done: a caller that goes on to fill the slot must not be stopped
            // between the two.
            if !self.capability(slot).is_null() {
                self.preempted()?;
            }
        }
        Ok(())
    }

    /// Deletes all that was derived from what is in `slot`, which itself stays, unless it lies in
    /// something that goes.
    ///
    /// # Errors
    /// [`Error::Preempted`].
    pub fn revoke(&mut self, slot: Ref<Slot>) -> Result<(), Error> {
        self.bury()?;
        while let Some(child) = derivation::first_child(&self.memory, slot) {
            self.delete_step(child);
            self.bury()?;
            self.preempted()?;
        }
        Ok(())
    }

    /// Ends work that takes long where something urgent waits.
    pub(super) fn preempted(&mut self) -> Result<(), Error> {
        if self.memory.preemption_pending() {
            Err(Error::Preempted)
        } else {
            Ok(())
        }
    }

    /// Makes progress with the deletion of what is in `slot`, which is not empty and no zombie.
    pub(super) fn delete_step(&mut self, slot: Ref<Slot>) {
        let capability = self.capability(slot);
        match capability.kind() {
            Kind::Frame | Kind::PageTable => self.end_mapping(capability),
            Kind::AddressSpace => self.space_changes(),
            _ => {}
        }
        if !derivation::is_last(&self.memory, slot) {
            derivation::remove(&mut self.memory, slot);
            return;
        }
        match capability.kind() {
            Kind::CNode => self.entomb(slot, capability.radix()),
            Kind::Thread => {
                self.forget_thread(capability.object_ref::<Thread>());
                self.entomb(slot, SLOTS_RADIX);
            }
            _ => {
                if self.dismantle(capability) {
                    derivation::remove(&mut self.memory, slot);
                }
            }
        }
    }

    /// Turns the last capability to an object with `1 << radix` slots, which lies in `slot`, into
    /// the topmost zombie.
    fn entomb(&mut self, slot: Ref<Slot>, radix: u32) {
        let below = self.dying.and_then(Dying::link);
        let zombie = self.capability(slot).into_zombie(radix, below);
        self.memory.get_mut(slot).set_capability(zombie);
        self.dying = Some(match self.dying {
            None => Dying {
                root: slot,
                top: slot,
            },
            Some(dying) => Dying { top: slot, ..dying },
        });
    }

    /// Finishes what deletions have left to do.
    ///
    /// # Errors
    /// [`Error::Preempted`], with less left to do.
    pub fn bury(&mut self) -> Result<(), Error> {
        let mut passed = 0;
        while let Some(dying) = self.dying {
            let zombie = self.capability(dying.top);
            let Some(last) = zombie.slots_left().checked_sub(1) else {
                self.finish(dying, zombie);
                continue;
            };
            let slot = zombie.object_ref::<Slot>().at(last);
            let inside = self.capability(slot);
            if inside.is_null() || inside.kind() == Kind::Zombie {
                // A zombie here is the root: those above this one are finished.
                let carries_root = zombie.carries_root() || !inside.is_null();
                let smaller = zombie.with_slots_left(last, carries_root);
                self.memory.get_mut(dying.top).set_capability(smaller);
                passed += 1;
            } else {
                self.delete_step(slot);
                passed = SCAN_STEP;
            }
            if passed >= SCAN_STEP {
                passed = 0;
                self.preempted()?;
            }
        }
        Ok(())
    }

    /// Ends the topmost zombie, whose slots are empty.
    fn finish(&mut self, dying: Dying, zombie: Capability) {
        derivation::remove(&mut self.memory, dying.top);
        if dying.top == dying.root {
            self.dying = None;
            return;
        }
        let mut root = dying.root;
        if zombie.carries_root() {
            root = dying.top;
            let itself = self.capability(dying.root);
            derivation::relocate(&mut self.memory, dying.root, root, itself);
        }
        self.dying = Some(Dying {
            root,
            top: zombie.below().unwrap_or(root),
        });
    }

    /// Takes a thread out of all that it takes part in, before its slots are emptied.
    fn forget_thread(&mut self, thread: Ref<Thread>) {
        self.stop_waiting(thread);
        self.unbind(thread);
        self.end_restricted(thread);
        self.forget_scheduling(thread);
    }

    /// Makes progress with the end of an object without slots; true when nothing is left of it.
    fn dismantle(&mut self, capability: Capability) -> bool {
        match capability.kind() {
            Kind::Endpoint => return self.dismantle_endpoint(capability.object_ref()),
            Kind::Notification => return self.dismantle_notification(capability.object_ref()),
            Kind::Reply => self.dismantle_reply(capability.object_ref()),
            Kind::IrqHandler => return self.end_handler(capability),
            Kind::AddressSpace => self.end_space(capability),
            Kind::SchedContext => self.unbind_context(capability.object_ref()),
            _ => {}
        }
        true
    }
}
