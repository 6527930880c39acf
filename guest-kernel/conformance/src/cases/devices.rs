//! Granted devices: registers that a program maps, interrupts that signal it. The device at hand is
//! the entropy device, which comes with the `entropy` grant.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

use bulkhead_runtime::abi::boot::FLAG_ENTROPY;
use bulkhead_runtime::abi::object::{TYPE_ENDPOINT, TYPE_FRAME};
use bulkhead_runtime::abi::syscall::{Status, rights, slot};
use bulkhead_runtime::device::{self, Granted, Registers};
use bulkhead_runtime::environment;
use bulkhead_runtime::object::{ADDRESS_SPACE, Frame, IrqControl, IrqHandler, Notification, Place};

use super::bench::{Bench, is_occupied};
use super::{check, check_eq, named, read, write};

const CONTROL: IrqControl = IrqControl(slot::IRQ_CONTROL);
/// Where a device's registers are mapped, and its queue: apart from all that the pool maps.
const WINDOW: u64 = 0x7d90_0000_0000;
const QUEUE: u64 = WINDOW + 0x1000;
/// How long a device may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Registers of virtio-mmio (virtio 1.2, section 4.2.2).
mod register {
    pub(super) const MAGIC: u32 = 0x0;
    pub(super) const VERSION: u32 = 0x4;
    pub(super) const DEVICE: u32 = 0x8;
    pub(super) const FEATURES: u32 = 0x10;
    pub(super) const FEATURES_SELECT: u32 = 0x14;
    pub(super) const ACCEPT: u32 = 0x20;
    pub(super) const ACCEPT_SELECT: u32 = 0x24;
    pub(super) const QUEUE_SELECT: u32 = 0x30;
    pub(super) const QUEUE_SIZE: u32 = 0x38;
    pub(super) const QUEUE_READY: u32 = 0x44;
    pub(super) const QUEUE_NOTIFY: u32 = 0x50;
    pub(super) const INTERRUPT: u32 = 0x60;
    pub(super) const INTERRUPT_DONE: u32 = 0x64;
    pub(super) const STATUS: u32 = 0x70;
    pub(super) const DESCRIPTORS: u32 = 0x80;
    pub(super) const AVAILABLE: u32 = 0x90;
    pub(super) const USED: u32 = 0xa0;
}

/// The entropy device, which is there with its grant and only then.
fn entropy() -> Result<Option<Granted>, String> {
    let found = device::named("entropy").filter(|device| device.described.virtio_id == 4);
    let granted = environment::has(FLAG_ENTROPY);
    check_eq!(found.is_some(), granted, "the entropy device is there");
    Ok(found)
}

/// What was granted is there, and no more.
pub(super) fn granted() -> Result<(), String> {
    let count = environment::devices().len() as u64;
    for n in 0..32 {
        for first in [slot::DEVICES, slot::INTERRUPTS] {
            let there = is_occupied(Place::own(first + n));
            check_eq!(there, n < count, format!("I1: {} of device {n}", first));
        }
    }
    let there = is_occupied(Place::own(slot::IRQ_CONTROL));
    check_eq!(there, count > 0, "I1: the authority over interrupts");
    Ok(())
}

/// There is one handler for an interrupt, made by its authority.
pub(super) fn handlers() -> Result<(), String> {
    let bench = Bench::new()?;
    let at = Place::own(bench.slot()?);
    let Some(device) = device::granted().next() else {
        check_eq!(
            CONTROL.make(0, at),
            Err(Status::InvalidCapability),
            "I2: no device"
        );
        return bench.finish();
    };
    let count = environment::devices().len() as u64;
    check_eq!(CONTROL.make(0, at), Err(Status::Busy), "I2: a second one");
    check_eq!(
        CONTROL.make(count, at),
        Err(Status::OutOfRange),
        "I2: no such device"
    );
    let endpoint = bench.make(TYPE_ENDPOINT, 0)?;
    let wrong = IrqControl(endpoint).make(0, at);
    check_eq!(
        wrong,
        Err(Status::InvalidCapability),
        "I2: by something else"
    );
    let interrupt = device.interrupt;
    let not_one = interrupt.bind(Notification(endpoint));
    check_eq!(not_one, Err(Status::InvalidCapability), "I2: an endpoint");
    let notification = bench.notification()?;
    let mute = Notification(bench.minted(notification.0, rights::READ, 0)?);
    let refused = interrupt.bind(mute);
    check_eq!(
        refused,
        Err(Status::IllegalOperation),
        "I2: without the right to signal"
    );
    check_eq!(interrupt.bind(notification), Ok(()), "I2: bound");
    check_eq!(interrupt.unbind(), Ok(()), "I2: unbound");
    check_eq!(
        interrupt.acknowledge(),
        Ok(()),
        "I2: nothing to acknowledge"
    );
    // What is deleted can be made again.
    check_eq!(interrupt.place().delete(), Ok(()), "I2: delete");
    check_eq!(
        interrupt.acknowledge(),
        Err(Status::InvalidCapability),
        "I2: it is gone"
    );
    check_eq!(CONTROL.make(0, at), Ok(()), "I2: another one");
    check_eq!(IrqHandler(at.index).acknowledge(), Ok(()), "I2: it is one");
    check_eq!(CONTROL.place().revoke(), Ok(()), "I2: revoke");
    check_eq!(
        IrqHandler(at.index).acknowledge(),
        Err(Status::InvalidCapability),
        "I2: taken back"
    );
    for (number, device) in (0..).zip(device::granted()) {
        check_eq!(
            CONTROL.make(number, device.interrupt.place()),
            Ok(()),
            "I2: made again"
        );
    }
    bench.finish()
}

/// A device's registers are mapped like memory.
pub(super) fn registers() -> Result<(), String> {
    let bench = Bench::new()?;
    let Some(device) = entropy()? else {
        return bench.finish();
    };
    let window = device.map(bench.untyped, WINDOW).map_err(named)?;
    check_eq!(
        window.read(register::MAGIC).to_le_bytes(),
        *b"virt",
        "I3: magic"
    );
    check_eq!(window.read(register::VERSION), 2, "I3: version");
    check_eq!(
        window.read(register::DEVICE),
        device.described.virtio_id,
        "I3: device"
    );
    check_eq!(window.read(0x1000), u32::MAX, "I3: beyond the page");
    check_eq!(window.unmap(), Ok(()), "I3: unmap");
    bench.finish()
}

/// A driver that asks for random bytes and sleeps until they are there.
struct Driver {
    window: Registers,
    interrupt: IrqHandler,
    notification: Notification,
    /// Where the queue's page is for the device.
    physical: u64,
    requests: u16,
}

/// Entries of the queue; offsets in its page.
const ENTRIES: u16 = 4;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const BYTES: u64 = 0x400;
/// Bytes of a request.
const LENGTH: u64 = 64;
/// Bits of the status register, and of a descriptor.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const DEVICE_WRITES: u64 = 2;
/// Feature bit 32, in the upper word.
const VERSION_1: u32 = 1;

impl Driver {
    fn begin(bench: &Bench, device: Granted) -> Result<Self, String> {
        let window = device.map(bench.untyped, WINDOW).map_err(named)?;
        let queue = Frame(bench.make(TYPE_FRAME, 0)?);
        // SAFETY: nothing refers to that address.
        unsafe {
            queue.map_with_tables(
                bench.untyped,
                ADDRESS_SPACE,
                QUEUE,
                rights::READ | rights::WRITE,
            )
        }
        .map_err(named)?;
        let notification = bench.notification()?;
        let badged = Notification(bench.badged(notification.0, 0x10)?);
        device.interrupt.bind(badged).map_err(named)?;
        let driver = Self {
            window,
            interrupt: device.interrupt,
            notification,
            physical: queue.physical().map_err(named)?,
            requests: 0,
        };
        driver.set(register::STATUS, 0);
        driver.set(register::STATUS, ACKNOWLEDGE | DRIVER);
        driver.set(register::FEATURES_SELECT, 1);
        let offered = driver.window.read(register::FEATURES);
        check!(offered & VERSION_1 != 0, "I4: features {offered:#x}");
        driver.set(register::ACCEPT_SELECT, 0);
        driver.set(register::ACCEPT, 0);
        driver.set(register::ACCEPT_SELECT, 1);
        driver.set(register::ACCEPT, VERSION_1);
        let mut status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        driver.set(register::STATUS, status);
        check_eq!(driver.window.read(register::STATUS), status, "I4: features");
        driver.set(register::QUEUE_SELECT, 0);
        driver.set(register::QUEUE_SIZE, ENTRIES.into());
        for (register, offset) in [
            (register::DESCRIPTORS, 0),
            (register::AVAILABLE, AVAILABLE),
            (register::USED, USED),
        ] {
            let at = driver.physical + offset;
            driver.set(register, at as u32);
            driver.set(register + 4, (at >> 32) as u32);
        }
        driver.set(register::QUEUE_READY, 1);
        status |= DRIVER_OK;
        driver.set(register::STATUS, status);
        check_eq!(driver.window.read(register::STATUS), status, "I4: ready");
        Ok(driver)
    }

    fn set(&self, register: u32, value: u32) {
        // SAFETY: the device is told of the queue's page alone, to which there are no references.
        unsafe { self.window.write(register, value) };
    }

    /// Asks for bytes, without waiting for them.
    fn ask(&mut self) {
        // One descriptor: address; length, flags and next. The ring names it, then says so.
        write(QUEUE, self.physical + BYTES);
        write(QUEUE + 8, LENGTH | DEVICE_WRITES << 32);
        self.requests += 1;
        fence(Ordering::SeqCst);
        // Flags 0, index, and entries 0 to 1: all of them descriptor 0.
        write(QUEUE + AVAILABLE, u64::from(self.requests) << 16);
        fence(Ordering::SeqCst);
        self.set(register::QUEUE_NOTIFY, 0);
    }

    /// Waits for the interrupt, and quiets the device.
    fn interrupted(&self) -> Result<(), String> {
        let badge = self.notification.wait_within(PATIENCE);
        check_eq!(badge, Ok(0x10), "I4: the signal");
        check_eq!(self.window.read(register::INTERRUPT), 1, "I4: its cause");
        self.set(register::INTERRUPT_DONE, 1);
        check_eq!(self.window.read(register::INTERRUPT), 0, "I4: it is quiet");
        fence(Ordering::SeqCst);
        let used = read(QUEUE + USED) >> 16 & 0xffff;
        check_eq!(used, u64::from(self.requests), "I4: requests served");
        Ok(())
    }

    fn end(self) -> Result<(), String> {
        self.set(register::STATUS, 0);
        self.interrupt.unbind().map_err(named)?;
        self.window.unmap().map_err(named)
    }
}

/// What came, which is not to be zeros.
fn bytes() -> [u64; LENGTH as usize / 8] {
    core::array::from_fn(|n| read(QUEUE + BYTES + n as u64 * 8))
}

/// The device works, and its interrupts arrive: each is signalled, once acknowledged again.
pub(super) fn interrupts() -> Result<(), String> {
    let bench = Bench::new()?;
    let Some(device) = entropy()? else {
        return bench.finish();
    };
    let mut driver = Driver::begin(&bench, device)?;
    let mut last = [0; LENGTH as usize / 8];
    for _ in 0..3 {
        driver.ask();
        driver.interrupted()?;
        check!(bytes() != last, "I4: the same bytes again");
        last = bytes();
        check_eq!(driver.notification.poll(), Ok(0), "I4: one signal");
        driver.interrupt.acknowledge().map_err(named)?;
        check_eq!(driver.notification.poll(), Ok(0), "I4: nothing more came");
    }
    // Without an acknowledgement the next one waits for it.
    driver.ask();
    driver.interrupted()?;
    driver.ask();
    let waited = driver.notification.wait_within(Duration::from_millis(50));
    check_eq!(waited, Err(Status::TimedOut), "I4: not acknowledged");
    driver.interrupt.acknowledge().map_err(named)?;
    driver.interrupted()?;
    driver.end()?;
    bench.finish()
}
