//! Interrupts: who is signalled, when again, and what ends that.

use super::*;

/// Where the authority lies.
const CONTROL: u64 = 20;
/// Where the handler of interrupt 0 lies; that of 1 behind it.
const HANDLER: u64 = 21;
const NOTIFICATION: u64 = 30;
/// The same with badges.
const ONE: u64 = 31;
const TWO: u64 = 32;
const COUNT: u64 = 3;

impl Rig {
    /// The authority over three interrupts in a slot.
    pub(super) fn with_interrupts(control: u64) -> Self {
        let mut rig = Self::new();
        // Behind the root CNode, in memory that nobody else has.
        (rig.objects).begin_interrupts(Ref::new(BASE + (1 << UNTYPED_BITS) - 0x1000), COUNT);
        let at = rig.slot(control);
        (rig.objects).plant(at, Capability::service(Kind::IrqControl, 0));
        rig
    }

    pub(super) fn handle(&mut self, control: u64, to: u64, number: u64) -> Result<(), Error> {
        let (control, to) = (self.slot(control), self.slot(to));
        self.objects.make_handler(control, to, number)
    }

    pub(super) fn bind_to(&mut self, handler: u64, notification: u64) -> Result<(), Error> {
        let (handler, source) = (self.capability(handler), self.slot(notification));
        self.objects.bind_interrupt(handler, Some(source))
    }

    pub(super) fn acknowledge(&mut self, handler: u64) -> Result<(), Error> {
        let handler = self.capability(handler);
        self.objects.acknowledge_interrupt(handler)
    }

    /// What was signalled, and is now taken.
    fn signalled(&mut self) -> u64 {
        let at = self.capability(NOTIFICATION).object_ref();
        self.objects.take_signal(at).unwrap_or(0)
    }
}

/// Two interrupts with handlers, and a notification with two badged copies.
fn rig() -> Rig {
    let mut rig = Rig::with_interrupts(CONTROL);
    rig.make(ObjectType::Notification, NOTIFICATION);
    rig.mint(ONE, NOTIFICATION, 1).unwrap();
    rig.mint(TWO, NOTIFICATION, 2).unwrap();
    for number in 0..2 {
        rig.handle(CONTROL, HANDLER + number, number).unwrap();
    }
    rig
}

#[test]
fn an_interrupt_is_signalled_once_until_it_is_acknowledged() {
    let mut rig = rig();
    rig.bind_to(HANDLER, ONE).unwrap();
    rig.bind_to(HANDLER + 1, TWO).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 1);
    rig.objects.interrupt(1);
    rig.objects.interrupt(0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 2, "the other one alone");
    rig.acknowledge(HANDLER).unwrap();
    assert_eq!(rig.signalled(), 1, "what came meanwhile, as one");
    rig.acknowledge(HANDLER).unwrap();
    rig.acknowledge(HANDLER).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 1);
    for nobodys in [2, COUNT, 63, 64, u64::MAX] {
        rig.objects.interrupt(nobodys);
    }
    assert_eq!(rig.signalled(), 0);
}

#[test]
fn what_waits_is_woken() {
    let mut rig = rig();
    rig.bind_to(HANDLER, ONE).unwrap();
    let driver = rig.thread(10, 100);
    rig.run(driver);
    let notification = rig.capability(NOTIFICATION);
    rig.objects.wait(driver, notification, false).unwrap();
    assert_eq!(rig.objects.schedule(rig.now), None);
    rig.objects.interrupt(0);
    assert_eq!(rig.objects.schedule(rig.now), Some(driver));
    assert_eq!(rig.registers(driver).rdi, 1);
}

#[test]
fn what_comes_before_somebody_is_signalled_is_not_lost() {
    let mut rig = rig();
    rig.objects.interrupt(0);
    rig.acknowledge(HANDLER).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.bind_to(HANDLER, ONE).unwrap();
    assert_eq!(rig.signalled(), 1);
    // Another notification begins anew: what the first was signalled it need not acknowledge.
    rig.bind_to(HANDLER, TWO).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 2);
    let handler = rig.capability(HANDLER);
    rig.objects.bind_interrupt(handler, None).unwrap();
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 0, "bound to nothing");
    rig.bind_to(HANDLER, ONE).unwrap();
    assert_eq!(rig.signalled(), 1);
}

#[test]
fn there_is_one_handler_for_an_interrupt() {
    let mut rig = rig();
    assert_eq!(rig.handle(CONTROL, 24, 0), Err(Error::Busy));
    assert_eq!(rig.handle(CONTROL, HANDLER, 2), Err(Error::DeleteFirst));
    let range = Err(Error::Range { min: 0, max: 2 });
    assert_eq!(rig.handle(CONTROL, 24, COUNT), range);
    assert_eq!(rig.handle(CONTROL, 24, u64::MAX), range);
    assert_eq!(rig.handle(HANDLER, 24, 2), Err(Error::InvalidCapability));
    assert_eq!(rig.handle(25, 24, 2), Err(Error::InvalidCapability));
    assert_eq!(rig.handle(CONTROL, 24, 2), Ok(()));
    assert_eq!(rig.copy(25, CONTROL), Err(Error::IllegalOperation));

    // A copy is as good, and the interrupt is somebody's until the last is gone.
    rig.copy(25, HANDLER).unwrap();
    rig.delete(HANDLER);
    assert_eq!(rig.handle(CONTROL, HANDLER, 0), Err(Error::Busy));
    rig.bind_to(25, ONE).unwrap();
    rig.objects.interrupt(0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 1);
    rig.delete(25);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 0, "nobody's");
    // The next one begins anew.
    rig.handle(CONTROL, HANDLER, 0).unwrap();
    rig.bind_to(HANDLER, TWO).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 2);
    rig.check();
}

#[test]
fn the_authority_takes_back_what_it_gave() {
    let mut rig = rig();
    rig.copy(25, HANDLER).unwrap();
    rig.bind_to(HANDLER, ONE).unwrap();
    rig.revoke(HANDLER);
    assert_eq!(rig.kind(25), Kind::Null, "a copy is the first one's child");
    rig.revoke(CONTROL);
    assert_eq!([HANDLER, HANDLER + 1].map(|n| rig.kind(n)), [Kind::Null; 2]);
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 0);
    assert_eq!(rig.handle(CONTROL, HANDLER, 0), Ok(()));
    rig.check();
}

#[test]
fn a_notification_is_bound_by_a_right_to_signal_it() {
    let mut rig = rig();
    let (to, from) = (rig.slot(40), rig.slot(ONE));
    rig.objects.copy(to, from, Rights::READ).unwrap();
    assert_eq!(rig.bind_to(HANDLER, 40), Err(Error::IllegalOperation));
    assert_eq!(rig.bind_to(HANDLER, CONTROL), Err(Error::InvalidCapability));
    assert_eq!(rig.bind_to(HANDLER, 50), Err(Error::InvalidCapability));
    assert_eq!(rig.bind_to(ONE, ONE), Err(Error::InvalidCapability));
    assert_eq!(rig.acknowledge(ONE), Err(Error::InvalidCapability));
    // Who takes that right away ends the signals; what comes waits for the next.
    rig.bind_to(HANDLER, ONE).unwrap();
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 1);
    rig.revoke(NOTIFICATION);
    rig.objects.interrupt(0);
    rig.acknowledge(HANDLER).unwrap();
    assert_eq!(rig.signalled(), 0);
    rig.bind_to(HANDLER, NOTIFICATION).unwrap();
    let at = rig.capability(NOTIFICATION).object_ref();
    assert_eq!(rig.objects.take_signal(at), Some(0), "without a badge");
    rig.check();
}

/// The last capability to a notification may be the one that an interrupt signals by.
#[test]
fn an_interrupt_that_goes_takes_its_notification_along() {
    for by_binding in [false, true] {
        let mut rig = rig();
        let driver = rig.thread(10, 100);
        rig.run(driver);
        let notification = rig.capability(NOTIFICATION);
        rig.objects.wait(driver, notification, false).unwrap();
        rig.bind_to(HANDLER, ONE).unwrap();
        rig.delete(ONE);
        rig.delete(TWO);
        rig.delete(NOTIFICATION);
        assert_eq!(rig.state(driver), State::Waiting, "it can be signalled");
        if by_binding {
            let handler = rig.capability(HANDLER);
            rig.objects.bind_interrupt(handler, None).unwrap();
        } else {
            rig.delete(HANDLER);
        }
        assert_eq!(rig.state(driver), State::Ready);
        assert_eq!(rig.status(driver), Some(Status::Aborted));
        rig.check();
    }
}

/// Binding can be interrupted, and done again.
#[test]
fn a_binding_that_is_interrupted_is_finished_by_the_next() {
    let mut rig = rig();
    // Several wait for what goes: more than one step.
    rig.make(ObjectType::Notification, 40);
    rig.bind_to(HANDLER, 40).unwrap();
    let notification = rig.capability(40);
    for n in 0..4 {
        let thread = rig.thread(41 + n * 2, 100);
        rig.run(thread);
        rig.objects.wait(thread, notification, false).unwrap();
    }
    rig.delete(40);
    rig.objects.memory.interrupt_in = Some(1);
    assert_eq!(rig.bind_to(HANDLER, ONE), Err(Error::Preempted));
    // What goes is signalled while it is there.
    rig.objects.interrupt(0);
    let woken = |rig: &Rig, n| rig.status(rig.capability(n).object_ref());
    assert_eq!(woken(&rig, 41), Some(Status::Aborted));
    assert_eq!(woken(&rig, 45), Some(Status::Ok));
    rig.bind_to(HANDLER, ONE).unwrap();
    assert_eq!(woken(&rig, 47), Some(Status::Aborted));
    rig.objects.interrupt(0);
    assert_eq!(rig.signalled(), 1);
    rig.check();
}
