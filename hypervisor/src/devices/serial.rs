//! COM1: the 16550A of vm-superio between a guest and the console's streams.
//!
//! Output is written on the vCPU's thread. Input comes through the event loop: [`InputPump`] fills
//! the receive FIFO and waits, without spinning, until the guest has emptied it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::streams::{Output, is_readable};
use crate::error::Error;
use crate::machine::bus::BusDevice;

/// How long the event loop rests before it tries a busy port again.
const CONTENTION: Duration = Duration::from_millis(1);

/// COM1's interrupt line; none in a machine without interrupt controllers.
#[derive(Debug)]
pub struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |event| event.write(1))
    }
}

/// Tells the pump when the guest has emptied the receive FIFO.
#[derive(Debug)]
pub struct Emptied(EventFd);

impl SerialEvents for Emptied {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Full only after 2^64 - 2 signals that nobody read.
        let _ = self.0.write(1);
    }
}

/// The port as the bus sees it.
pub struct SerialPort(Serial<Line, Emptied, Output>);

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for byte in data {
            *byte = self.0.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for byte in data {
            // Output never fails (it drops what nobody takes); a lost interrupt eventfd is not the
            // guest's to hear of.
            let _ = self.0.write(offset as u8, *byte);
        }
    }
}

/// Moves input from a stream to the port; a task of the event loop.
pub struct InputPump {
    port: Arc<Mutex<SerialPort>>,
    file: File,
    emptied: EventFd,
    watching: bool,
}

/// Builds the port; with input, also the pump.
///
/// # Errors
/// The host gives no eventfd.
pub fn build(
    output: Output,
    line: Option<EventFd>,
    input: Option<File>,
) -> Result<(Arc<Mutex<SerialPort>>, Option<InputPump>), Error> {
    let eventfd = Error::io("cannot make an eventfd");
    let emptied = EventFd::new(EFD_NONBLOCK).map_err(eventfd)?;
    let heard = emptied
        .try_clone()
        .map_err(Error::io("cannot share an eventfd"))?;
    let serial = Serial::with_events(Line(line), Emptied(emptied), output);
    let port = Arc::new(Mutex::new(SerialPort(serial)));
    let pump = input.map(|file| InputPump {
        port: port.clone(),
        file,
        emptied: heard,
        watching: false,
    });
    Ok((port, pump))
}

/// What one attempt to move input came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// The FIFO has room: wait for more input.
    Room,
    /// The FIFO is full: wait until the guest has emptied it.
    Full,
    /// The input has ended.
    Ended,
}

impl InputPump {
    /// Moves what the FIFO takes.
    fn pump(&mut self) -> Moved {
        let mut port = match self.port.try_lock() {
            Ok(port) => port,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                // The guest is writing, maybe to a reader that does not read. The event loop must
                // not wait for that: it comes back, and hears commands meanwhile.
                std::thread::sleep(CONTENTION);
                return Moved::Room;
            }
        };
        let mut buffer = [0; 64];
        let room = port.0.fifo_capacity().min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|b| !b.is_empty()) else {
            return Moved::Full;
        };
        if !is_readable(&self.file) {
            return Moved::Room;
        }
        match rustix::io::read(&self.file, &mut *buffer) {
            Ok(0) => return Moved::Ended,
            Ok(len) => {
                // There is room for all of it. In loop-back mode a UART hears nothing.
                let _ = port
                    .0
                    .enqueue_raw_bytes(buffer.get(..len).unwrap_or_default());
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => return Moved::Ended,
        }
        match port.0.fifo_capacity() {
            0 => Moved::Full,
            _ => Moved::Room,
        }
    }

    fn watch(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.file, EventSet::IN | EventSet::ONE_SHOT);
        let outcome = if self.watching {
            ops.modify(events)
        } else {
            ops.add(events)
        };
        match outcome {
            Ok(()) => self.watching = true,
            // A file that cannot be waited for is always readable: fill the FIFO once, and again
            // each time the guest has emptied it.
            Err(_) => {
                self.pump();
            }
        }
    }
}

impl MutEventSubscriber for InputPump {
    fn init(&mut self, ops: &mut EventOps) {
        // Without it the port gets one FIFO of input and no more.
        let _ = ops.add(Events::new(&self.emptied, EventSet::IN));
        self.watch(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.emptied.as_raw_fd() {
            let _ = self.emptied.read();
            self.watch(ops);
        } else if self.pump() == Moved::Room {
            self.watch(ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ending::Ending;
    use crate::trace::Trace;
    use event_manager::{EventManager, SubscriberOps};
    use std::io::{Read, Write};

    const LINE_STATUS: u64 = 5;
    const DATA_READY: u8 = 1;

    #[test]
    fn every_register_survives_every_value_and_output_arrives() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let output = Output::new(file, Ending::new().unwrap(), Trace::default());
        let (port, _) = build(output, None, None).unwrap();
        let mut port = port.lock().unwrap();
        port.write(0, b"ok");
        for offset in 1..8 {
            for value in 0..=255 {
                port.write(offset, &[value]);
                port.read(offset, &mut [0; 4]);
            }
        }
        let mut got = [0; 2];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ok");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_in_order() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let output = Output::new(file, Ending::new().unwrap(), Trace::default());
        let (theirs, mut ours) = io::pipe().unwrap();
        let input = File::from(std::os::fd::OwnedFd::from(theirs));
        let (port, pump) = build(output, None, Some(input)).unwrap();
        let mut manager = EventManager::<InputPump>::new().unwrap();
        manager.add_subscriber(pump.unwrap());
        let sent: Vec<u8> = (0..=255).collect();
        ours.write_all(&sent).unwrap();
        let mut got = Vec::new();
        for _ in 0..100 {
            manager.run_with_timeout(10).unwrap();
            let mut port = port.lock().unwrap();
            let mut byte = [0];
            loop {
                port.read(LINE_STATUS, &mut byte);
                if byte[0] & DATA_READY == 0 {
                    break;
                }
                port.read(0, &mut byte);
                got.push(byte[0]);
            }
        }
        assert_eq!(got, sent);
        drop(ours);
        manager.run_with_timeout(10).unwrap();
        assert_eq!(
            manager.run_with_timeout(0).unwrap(),
            0,
            "no spinning at the end"
        );
    }

    #[test]
    fn a_port_that_is_busy_does_not_hold_the_event_loop() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let output = Output::new(file, Ending::new().unwrap(), Trace::default());
        let (theirs, mut ours) = io::pipe().unwrap();
        let input = File::from(std::os::fd::OwnedFd::from(theirs));
        let (port, pump) = build(output, None, Some(input)).unwrap();
        let mut pump = pump.unwrap();
        ours.write_all(b"x").unwrap();
        let busy = port.lock().unwrap();
        assert_eq!(pump.pump(), Moved::Room);
        drop(busy);
        assert_eq!(pump.pump(), Moved::Room);
        let mut byte = [0];
        port.lock().unwrap().read(0, &mut byte);
        assert_eq!(&byte, b"x");
    }
}
