//! Interrupts of devices: handlers, and the notifications that they signal. Semantics as in the
//! seL4 reference manual, chapter 8, for interrupts that are messages.
//!
//! A message says that something happened, once; there is no line that stays raised and would have
//! to be masked. Its arrival signals the notification. Until the driver acknowledges that, further
//! ones are remembered as one, and the acknowledgement signals it: so nothing is lost between a
//! driver's last look at its device and its acknowledgement, and a device that interrupts without
//! end wakes its driver no oftener than that acknowledges. A line that stays raised would be masked
//! from its arrival to the acknowledgement instead; a driver that quiets its device before it
//! acknowledges is right for both.

use super::capability::{Capability, Kind, Rights};
use super::memory::{Memory, Ref};
use super::slot::Slot;
use super::{Error, Objects, derivation};

/// Most interrupts: as many as devices.
pub const MAX_INTERRUPTS: u64 = bulkhead_abi::machine::MAX_DEVICES as u64;

/// A bit for each interrupt.
type Set = u64;

/// What the kernel keeps of interrupts, beside a slot for each with the notification it signals.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Interrupts {
    slots: Option<Ref<Slot>>,
    count: u64,
    /// There is a handler.
    handled: Set,
    /// Signalled, and not acknowledged.
    signalled: Set,
    /// Came, and was not signalled.
    pending: Set,
}

impl Interrupts {
    pub(super) const fn new() -> Self {
        Self {
            slots: None,
            count: 0,
            handled: 0,
            signalled: 0,
            pending: 0,
        }
    }

    /// Where the notification of an interrupt lies.
    fn slot(&self, number: u64) -> Option<Ref<Slot>> {
        let slots = self.slots.filter(|_| number < self.count)?;
        Some(slots.at(number))
    }
}

impl<M: Memory> Objects<M> {
    /// There are `count` interrupts, and a slot for each from `slots` on; at boot.
    pub fn begin_interrupts(&mut self, slots: Ref<Slot>, count: u64) {
        self.interrupts.slots = Some(slots);
        self.interrupts.count = count.min(MAX_INTERRUPTS);
    }

    /// Puts a capability to an interrupt into the empty slot `to`, as derived from the authority
    /// over interrupts in `control`.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] when `control` holds no such authority; [`Error::Range`] for an
    /// interrupt that there is not; [`Error::DeleteFirst`] when `to` is in use; [`Error::Busy`]
    /// for an interrupt with a handler.
    pub fn make_handler(
        &mut self,
        control: Ref<Slot>,
        to: Ref<Slot>,
        number: u64,
    ) -> Result<(), Error> {
        if self.capability(control).kind() != Kind::IrqControl {
            return Err(Error::InvalidCapability);
        }
        if self.interrupts.slot(number).is_none() {
            return Err(Error::Range {
                min: 0,
                max: self.interrupts.count.saturating_sub(1),
            });
        }
        if !self.capability(to).is_null() {
            return Err(Error::DeleteFirst);
        }
        let bit = 1 << number;
        if self.interrupts.handled & bit != 0 {
            return Err(Error::Busy);
        }
        self.interrupts.handled |= bit;
        let handler = Capability::service(Kind::IrqHandler, number);
        derivation::insert(&mut self.memory, control, to, handler, true);
        Ok(())
    }

    /// From now on the interrupt signals by the capability to a notification in `source`, with its
    /// badge; without one it signals nobody. What was signalled before needs no acknowledgement any
    /// more, what came and was not is signalled at once.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no handler or no notification;
    /// [`Error::IllegalOperation`] for a notification without the right to write;
    /// [`Error::Preempted`].
    pub fn bind_interrupt(
        &mut self,
        handler: Capability,
        source: Option<Ref<Slot>>,
    ) -> Result<(), Error> {
        let number = self.interrupt_of(handler)?;
        if let Some(source) = source {
            let notification = self.capability(source);
            if notification.kind() != Kind::Notification {
                return Err(Error::InvalidCapability);
            }
            if !notification.rights().any(Rights::WRITE) {
                return Err(Error::IllegalOperation);
            }
        }
        self.bury()?;
        if let Some(slot) = self.interrupts.slot(number) {
            self.delete(slot)?;
            if let Some(source) = source {
                self.copy(slot, source, Rights::ALL)?;
            }
        }
        self.end_signal(number);
        Ok(())
    }

    /// The driver has seen to what the interrupt signalled: what came meanwhile is signalled now.
    ///
    /// # Errors
    /// [`Error::InvalidCapability`] for what is no handler.
    pub fn acknowledge_interrupt(&mut self, handler: Capability) -> Result<(), Error> {
        let number = self.interrupt_of(handler)?;
        self.end_signal(number);
        Ok(())
    }

    /// Interrupt `number` came.
    pub fn interrupt(&mut self, number: u64) {
        let bit = 1_u64.checked_shl(number as u32).unwrap_or(0);
        if self.interrupts.handled & bit == 0 {
            // It is nobody's.
            return;
        }
        self.interrupts.pending |= bit;
        if self.interrupts.signalled & bit == 0 {
            self.signal_interrupt(number);
        }
    }

    fn interrupt_of(&self, handler: Capability) -> Result<u64, Error> {
        if handler.kind() != Kind::IrqHandler {
            return Err(Error::InvalidCapability);
        }
        Ok(handler.number())
    }

    fn end_signal(&mut self, number: u64) {
        self.interrupts.signalled &= !(1 << number);
        if self.interrupts.pending & 1 << number != 0 {
            self.signal_interrupt(number);
        }
    }

    /// Signals what is pending, if there is a notification to signal.
    fn signal_interrupt(&mut self, number: u64) {
        let Some(slot) = self.interrupts.slot(number) else {
            return;
        };
        let notification = self.capability(slot);
        if self.signal(notification).is_ok() {
            self.interrupts.pending &= !(1 << number);
            self.interrupts.signalled |= 1 << number;
        }
    }

    /// Makes progress with the end of the last capability to an interrupt; true when nothing of it
    /// is left.
    pub(super) fn end_handler(&mut self, handler: Capability) -> bool {
        let number = handler.number();
        if let Some(slot) = self.interrupts.slot(number)
            && !self.capability(slot).is_null()
        {
            self.delete_step(slot);
            return false;
        }
        let others = !(1 << number);
        self.interrupts.handled &= others;
        self.interrupts.signalled &= others;
        self.interrupts.pending &= others;
        true
    }

    /// Checks what must always hold of interrupts.
    #[cfg(test)]
    pub(super) fn check_interrupts(&self) {
        let found = &self.interrupts;
        assert_eq!((found.signalled | found.pending) & !found.handled, 0);
        for number in 0..found.count {
            let bound = found.slot(number).map(|slot| self.capability(slot).kind());
            let waits = (found.pending & !found.signalled) >> number & 1 != 0;
            match bound {
                Some(Kind::Null) => {}
                Some(Kind::Notification) => {
                    assert!(!waits, "{number} is signalled if it can be");
                    assert!(found.handled >> number & 1 != 0, "{number} is bound");
                }
                other => panic!("{number} signals {other:?}"),
            }
        }
    }
}
