//! virtio-console (virtio 1.2, section 5.3): the console, and further ports that a guest finds by
//! their names.
//!
//! Nothing is buffered on the host. A transmitted chain stays with the device until the host
//! stream has taken its last byte, and input is read only into a buffer the driver has supplied:
//! a slow reader slows its guest down, and costs the VMM neither memory nor time. When the output
//! stream is closed, output is discarded. The end of a console's input is not signalled to the guest
//! (the device has no way to say it); there is just no more input. A port is closed when both its
//! streams have ended.

mod control;
mod port;
mod stream;

use std::os::fd::{OwnedFd, RawFd};

use bulkhead_machine::control::Resize;
use rustix::termios::tcgetwinsize;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, ResizeError, VirtioDevice,
    read_config_bytes,
};
use control::{Fact, MESSAGE_BYTES, Told, Untold};
use port::Port;

/// Feature bit: the configuration space holds the terminal's size (section 5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Feature bit: there are several ports, and control queues.
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Index of the queue of messages to the driver.
const CONTROL_RECEIVE: usize = 2;
/// Index of the queue of messages from the driver.
const CONTROL_TRANSMIT: usize = 3;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Columns and rows of a terminal that does not tell.
const USUAL_SIZE: (u16, u16) = (80, 24);
/// Most ports beside the console.
pub const MAX_PORTS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Console {
    /// The console itself comes first.
    ports: Vec<NamedPort>,
    queue_sizes: Vec<u16>,
    /// Columns and rows, where the console is a terminal.
    size: Option<(u16, u16)>,
    /// The driver knows of several ports.
    multiport: bool,
}

#[derive(Debug)]
struct NamedPort {
    name: String,
    port: Port,
    /// Somebody in the guest has it open.
    open: bool,
    untold: Untold,
}

/// Which queue of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Receive,
    Transmit,
}

impl Console {
    /// A console over the given streams. With `tty` the guest learns the terminal's size. Call
    /// before the jail closes: pipes and terminals are opened anew, through `/proc`.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd, tty: bool) -> Self {
        let size = tty.then(|| match tcgetwinsize(&output) {
            Ok(size) => (size.ws_col, size.ws_row),
            Err(_) => USUAL_SIZE,
        });
        let mut console = Self {
            ports: Vec::new(),
            queue_sizes: vec![QUEUE_SIZE; 2],
            size,
            multiport: false,
        };
        console.push(String::new(), input, output);
        console
    }

    /// Adds a port that the guest finds by `name`, at most [`MAX_PORTS`]; before the jail closes.
    pub fn add_port(&mut self, name: String, input: Option<OwnedFd>, output: OwnedFd) {
        self.push(name, input, output);
        self.queue_sizes = vec![QUEUE_SIZE; 2 + 2 * self.ports.len()];
    }

    fn push(&mut self, name: String, input: Option<OwnedFd>, output: OwnedFd) {
        self.ports.push(NamedPort {
            name,
            port: Port::new(input, output),
            open: false,
            untold: Untold::default(),
        });
    }

    /// Port and direction of a queue that carries data.
    fn role(&self, queue: usize) -> Option<(usize, Direction)> {
        let direction = if queue.is_multiple_of(2) {
            Direction::Receive
        } else {
            Direction::Transmit
        };
        match queue {
            0 | 1 => Some((0, direction)),
            CONTROL_RECEIVE | CONTROL_TRANSMIT => None,
            _ => self.multiport.then_some((queue / 2 - 1, direction)),
        }
    }

    /// Serves one direction of a port.
    fn serve(
        &mut self,
        index: usize,
        direction: Direction,
        readable: bool,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let first = if index == 0 { 0 } else { 2 + 2 * index };
        let queue = first + usize::from(direction == Direction::Transmit);
        let (Some(named), Some(queue)) = (self.ports.get_mut(index), io.queues.get_mut(queue))
        else {
            return Ok(Progress::Idle);
        };
        let was_connected = named.port.is_connected();
        let progress = match direction {
            Direction::Transmit => named.port.transmit(queue, io.memory)?,
            Direction::Receive if readable => {
                named.port.receive(queue, io.memory)?;
                Progress::Idle
            }
            Direction::Receive => {
                named.port.arm(queue, io.memory)?;
                Progress::Idle
            }
        };
        if was_connected && !named.port.is_connected() && index != 0 {
            named.untold.insert(Fact::Connection);
            self.tell(io)?;
        }
        Ok(progress)
    }

    /// Tells the driver what it has not been told, as far as it has supplied buffers.
    fn tell(&mut self, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let Some(queue) = io
            .queues
            .get_mut(CONTROL_RECEIVE)
            .filter(|_| self.multiport)
        else {
            return Ok(());
        };
        for (id, named) in (0..).zip(&mut self.ports) {
            while let Some(fact) = named.untold.first() {
                let Some(chain) = queue.pop(io.memory)? else {
                    return Ok(());
                };
                let told = Told {
                    name: &named.name,
                    connected: named.port.is_connected(),
                    size: self.size.unwrap_or_default(),
                };
                let message = control::message(id, fact, &told);
                if chain.writable.len() < message.len() as u64 {
                    return Err(DeviceError::Unanswerable);
                }
                chain.writable.write_at(io.memory, 0, &message)?;
                queue.push(io.memory, &chain, message.len() as u32)?;
                named.untold.remove(fact);
            }
        }
        Ok(())
    }

    /// Hears what the driver has to say.
    fn hear(&mut self, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let mut progress = Progress::More;
        for _ in 0..QUEUE_SIZE {
            let Some(queue) = io.queues.get_mut(CONTROL_TRANSMIT) else {
                return Ok(Progress::Idle);
            };
            let Some(chain) = queue.pop(io.memory)? else {
                progress = Progress::Idle;
                break;
            };
            let message = read_message(&chain, io)?;
            if let Some(queue) = io.queues.get_mut(CONTROL_TRANSMIT) {
                queue.push(io.memory, &chain, 0)?;
            }
            if let Some(message) = message {
                self.heed(message);
            }
        }
        self.tell(io)?;
        Ok(progress)
    }

    /// Acts on a message; one that makes no sense is passed over.
    fn heed(&mut self, (id, event, value): (u32, u16, u16)) {
        if event == control::DEVICE_READY && value == 1 {
            for named in &mut self.ports {
                named.untold.insert(Fact::Exists);
            }
            return;
        }
        let has_size = self.size.is_some();
        let Some(named) = self.ports.get_mut(id as usize) else {
            return;
        };
        match event {
            control::PORT_READY if value == 1 => {
                if id == 0 {
                    named.untold.insert(Fact::IsConsole);
                    if has_size {
                        named.untold.insert(Fact::Size);
                    }
                } else {
                    named.untold.insert(Fact::Name);
                }
                named.untold.insert(Fact::Connection);
            }
            control::PORT_OPEN => named.open = value == 1,
            _ => {}
        }
    }
}

/// A message of the driver, as far as it is one.
fn read_message(chain: &Chain, io: &DeviceIo<'_>) -> Result<Option<(u32, u16, u16)>, DeviceError> {
    if chain.readable.len() < MESSAGE_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; MESSAGE_BYTES];
    chain.readable.read_at(io.memory, 0, &mut bytes)?;
    Ok(Some(control::parse(&bytes)))
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        u64::from(self.size.is_some()) << VIRTIO_CONSOLE_F_SIZE
            | u64::from(self.ports.len() > 1) << VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (columns, rows) = self.size.unwrap_or_default();
        let [c0, c1] = columns.to_le_bytes();
        let [r0, r1] = rows.to_le_bytes();
        // At most `MAX_PORTS` and the console.
        let config = [c0, c1, r0, r1, self.ports.len() as u8, 0, 0, 0, 0, 0, 0, 0];
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        self.multiport = activation.features & 1 << VIRTIO_CONSOLE_F_MULTIPORT != 0;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |count: fn(&Port) -> u64| self.ports.iter().map(|named| count(&named.port)).sum();
        vec![
            ("input-bytes", sum(|port| port.received)),
            ("output-bytes", sum(|port| port.transmitted)),
        ]
    }

    fn resize(&mut self, resize: &Resize, io: &mut DeviceIo<'_>) -> Result<(), ResizeError> {
        let (Resize::Console { columns, rows }, Some(size)) = (resize, &mut self.size) else {
            return Err(ResizeError::Fixed);
        };
        *size = (*columns, *rows);
        *io.config_changed = true;
        if self.multiport
            && let Some(console) = self.ports.first_mut()
        {
            console.untold.insert(Fact::Size);
            // A driver that breaks its control queue is found out when that is served.
            let _ = self.tell(io);
        }
        Ok(())
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        match (index, self.role(index)) {
            (CONTROL_RECEIVE, _) => self.tell(io).map(|()| Progress::Idle),
            (CONTROL_TRANSMIT, _) if self.multiport => self.hear(io),
            (_, Some((port, direction))) => self.serve(port, direction, false, io),
            _ => Ok(Progress::Idle),
        }
    }

    fn interests(&self) -> Vec<Interest> {
        let of_port = |named: &NamedPort| -> Vec<Interest> {
            let listens = named.open || !self.multiport;
            named.port.interests(listens).collect()
        };
        self.ports.iter().flat_map(of_port).collect()
    }

    fn process_backend(
        &mut self,
        fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let find =
            |of: fn(&Port, RawFd) -> bool| self.ports.iter().position(|named| of(&named.port, fd));
        if let Some(index) = find(Port::reads) {
            self.serve(index, Direction::Receive, true, io)
        } else if let Some(index) = find(Port::writes) {
            self.serve(index, Direction::Transmit, false, io)
        } else {
            Ok(Progress::Idle)
        }
    }

    fn reset(&mut self) {
        self.multiport = false;
        for named in &mut self.ports {
            named.port.reset();
            named.open = false;
            named.untold = Untold::default();
        }
    }
}

#[cfg(test)]
mod tests;
