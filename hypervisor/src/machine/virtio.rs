//! Builds the granted virtio devices and puts them into the machine: on a PCI bus ([`super::plug`]), or
//! each into a window of registers with doorbells and an interrupt.
//!
//! Without PCI, device n has the window `VIRTIO_MMIO_BASE + n * VIRTIO_MMIO_STRIDE`. Its doorbells are ioeventfds,
//! so that a notification does not leave the kernel; everything else in the window is an exit.

use std::sync::{Arc, Mutex};

use bulkhead_abi::boot::{DEVICE_VIRTIO_MMIO, Device, PhysRange};
use bulkhead_abi::machine::{
    DEVICE_VECTOR_BASE, MAX_DEVICES, VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE,
};
use bulkhead_machine::Transport;
use bulkhead_machine::device::{Device as Described, DeviceKind};
use kvm_ioctls::IoEventAddress;

use super::Parts;
use super::bus::BusDevice;
use crate::descriptors::Descriptors;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::Block;
use crate::devices::virtio::blk::workers::Workers;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::pmem::Pmem;
use crate::devices::virtio::rng::Entropy;
use crate::devices::virtio::vhost_user::VhostUser;
use crate::devices::virtio::vsock::{self, Vsock};
use crate::error::Error;

/// The name of the entropy device in `BootInfo`.
const ENTROPY_NAME: &str = "entropy";
/// The name of the console device.
const CONSOLE_NAME: &str = "console";

/// The name of the pluggable memory.
const MEMORY_NAME: &str = "memory";

/// A device and its name from the manifest.
type Named = (String, Box<dyn VirtioDevice>);

/// What `BootInfo` says of the device in window `index`.
fn boot_info(index: usize, name: &str, virtio_id: u32) -> Device {
    let mut device = Device {
        registers: PhysRange {
            start: base(index),
            len: VIRTIO_MMIO_STRIDE,
        },
        kind: DEVICE_VIRTIO_MMIO,
        virtio_id,
        vector: u32::from(DEVICE_VECTOR_BASE) + index as u32,
        reserved: 0,
        name: [0; 32],
    };
    for (to, from) in device.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    device
}

fn base(index: usize) -> u64 {
    VIRTIO_MMIO_BASE + index as u64 * VIRTIO_MMIO_STRIDE
}

/// The transport's window on the bus.
struct Registers(Arc<MmioTransport>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// Builds what is granted: for Linux the console, then entropy, then what the description lists. In a
/// window, device n interrupts at `gsis[n]`; on a PCI bus the guest finds the devices by itself, and
/// the list of windows is empty.
///
/// # Errors
/// More devices than interrupts, or a device cannot be built.
pub(super) fn add(
    parts: &mut Parts<'_>,
    with_console: bool,
    gsis: &[u32],
) -> Result<Vec<Device>, Error> {
    let devices = devices(parts, with_console)?;
    if parts.description.transport == Transport::Pci {
        for (name, device) in devices {
            parts.plug.insert(name, device)?;
        }
        return Ok(Vec::new());
    }
    let max = gsis.len().min(MAX_DEVICES);
    if devices.len() > max {
        return Err(Error::TooMany {
            what: "devices",
            count: devices.len(),
            max,
        });
    }
    let mut placed = Vec::with_capacity(devices.len());
    for (index, ((name, device), gsi)) in devices.into_iter().zip(gsis).enumerate() {
        placed.push(place(parts, index, name, device, *gsi)?);
    }
    Ok(placed)
}

fn devices(parts: &mut Parts<'_>, with_console: bool) -> Result<Vec<Named>, Error> {
    let description = parts.description;
    let mut devices: Vec<Named> = Vec::new();
    if with_console && let Some(console) = &description.console {
        let output = parts.descriptors.take("console output", console.output)?;
        let input = match console.input {
            Some(fd) => Some(parts.descriptors.take("console input", fd)?.into()),
            None => None,
        };
        let ports = &console.ports;
        let mut console = Console::new(input, output.into(), console.tty);
        for port in ports {
            let output = parts.descriptors.take("a console port", port.output)?;
            let input = match port.input {
                Some(fd) => Some(parts.descriptors.take("a console port", fd)?.into()),
                None => None,
            };
            console.add_port(port.name.clone(), input, output.into());
        }
        devices.push((CONSOLE_NAME.into(), Box::new(console)));
    }
    if description.entropy {
        devices.push((ENTROPY_NAME.into(), Box::new(Entropy::new())));
    }
    if let Some((start, bytes)) = parts.pluggable {
        devices.push((MEMORY_NAME.into(), Box::new(Mem::new(start, bytes))));
    }
    for device in &description.devices {
        let built = match memory_device(parts, device)? {
            Some(built) => built,
            None => {
                if matches!(device.kind, DeviceKind::Vsock(_)) {
                    // Each connection, and the one that is refused.
                    parts.room += vsock::MAX_CONNECTIONS + 1;
                }
                build(device, parts.descriptors, &parts.workers)?
            }
        };
        devices.push((device.name.clone(), built));
    }
    Ok(devices)
}

/// Builds a device that is about the memory the machine has from the start, and so cannot be plugged
/// in later.
fn memory_device(
    parts: &Parts<'_>,
    device: &Described,
) -> Result<Option<Box<dyn VirtioDevice>>, Error> {
    match &device.kind {
        DeviceKind::Balloon(described) => {
            let balloon = Balloon::new(described, parts.description.memory.mib);
            let balloon = balloon.map_err(|source| Error::Size {
                name: device.name.clone(),
                source,
            })?;
            Ok(Some(Box::new(balloon)))
        }
        DeviceKind::Pmem(_) => {
            let mut mapped = parts.pmem.iter();
            let Some(mapping) = mapped.find(|mapping| mapping.name == device.name) else {
                return Ok(None);
            };
            parts.workers.need(1);
            let (workers, owner) = (parts.workers.clone(), mapping.start.0 as usize);
            let defer = Box::new(move |work| workers.submit(owner, work));
            let pmem = Pmem::new(mapping.start, mapping.len, mapping.file.clone(), defer)
                .map_err(Error::io("cannot make an eventfd"))?;
            Ok(Some(Box::new(pmem)))
        }
        _ => Ok(None),
    }
}

/// Builds the device that `device` describes.
pub(super) fn build(
    device: &Described,
    descriptors: &mut Descriptors,
    workers: &Workers,
) -> Result<Box<dyn VirtioDevice>, Error> {
    match &device.kind {
        DeviceKind::Block(block) => {
            let mut take = |fd| descriptors.take("a block device", fd);
            let block = Block::new(&device.name, block, &mut take, workers)?;
            Ok(Box::new(block))
        }
        DeviceKind::Vsock(vsock) => {
            let listener = descriptors.take("the vsock listener", vsock.listener)?;
            let connector = descriptors.take("the vsock connector", vsock.connector)?;
            let vsock = Vsock::new(vsock.cid, listener.into(), connector.into())?;
            Ok(Box::new(vsock))
        }
        DeviceKind::Net(net) => {
            let files = device.kind.descriptors().into_iter().map(|fd| {
                let file = descriptors.take("a network interface", fd)?;
                Ok::<_, Error>(file.into())
            });
            Ok(Box::new(Net::new(net, files.collect::<Result<_, _>>()?)?))
        }
        DeviceKind::VhostUser(described) => {
            let socket = descriptors.take("a vhost-user socket", described.socket)?;
            Ok(Box::new(VhostUser::new(described, socket.into())?))
        }
        _ => Err(Error::Description(format!(
            "this VMM has no device of the kind of `{}`",
            device.name
        ))),
    }
}

fn place(
    parts: &mut Parts<'_>,
    index: usize,
    name: String,
    device: Box<dyn VirtioDevice>,
    gsi: u32,
) -> Result<Device, Error> {
    let transport = MmioTransport::new(device, parts.memory.clone())
        .map_err(|e| Error::Memory(format!("device {name}: {e}")))?;
    let transport = Arc::new(transport);
    for (queue, event) in (0u32..).zip(transport.transport().queue_events()) {
        let doorbell = IoEventAddress::Mmio(base(index) + QUEUE_NOTIFY);
        parts
            .vm
            .register_ioevent(event, &doorbell, queue)
            .map_err(Error::kvm("KVM_IOEVENTFD"))?;
    }
    parts
        .vm
        .register_irqfd(transport.interrupt().event(), gsi)
        .map_err(Error::kvm("KVM_IRQFD"))?;
    let registers = Arc::new(Mutex::new(Registers(transport.clone())));
    parts
        .mmio
        .insert(base(index), VIRTIO_MMIO_STRIDE, registers)?;
    let transport = transport.transport().clone();
    let device = boot_info(index, &name, transport.device_type() as u32);
    parts.plug.keep(name, transport);
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_below_4_gib_and_vectors_below_256() {
        let device = boot_info(MAX_DEVICES - 1, &"n".repeat(40), 2);
        assert_eq!(device.registers.start, 0xd001_f000);
        assert_eq!(device.vector, 0x5f);
        assert_eq!(device.name, [b'n'; 32]);
    }
}
