//! The partition's virtio devices as the host sees them: in the event loop from the start, plugged in
//! and unplugged while the partition runs. Everything here runs on the event loop's thread.
//!
//! A device is unplugged by its guest: it is asked to let go, and may take as long as it likes.

use std::sync::Arc;

use bulkhead_machine::device::{Device, DeviceKind};
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::memory::regions;
use super::pci::Pci;
use super::{Task, virtio};
use crate::descriptors::Descriptors;
use crate::devices::pci::host::InsertError;
use crate::devices::pci::hotplug::HotPlug;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::blk::workers::Workers;
use crate::devices::virtio::pci::PciTransport;
use crate::devices::virtio::subscriber::VirtioSubscriber;
use crate::devices::virtio::transport::{Transport, TransportError};
use crate::devices::virtio::vhost_user::BackendError;
use crate::error::Error;

/// Descriptors that devices plugged in may have, all together: what they are sent, and an eventfd for
/// each queue.
pub(super) const ROOM: usize = 256;

/// A device could not be plugged in or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// There is no PCI bus, or the device is not on it.
    #[error("only devices on a PCI bus can be plugged in and unplugged")]
    Unsupported,
    /// A device of its kind has to be there from the start.
    #[error("only disks, network interfaces and shared directories can be plugged in")]
    Kind,
    /// The name is taken.
    #[error("the partition has a device `{0}` already")]
    Exists(String),
    /// There is no such device.
    #[error("the partition has no device `{0}`")]
    Unknown(String),
    /// The bus has no room.
    #[error(transparent)]
    Bus(#[from] InsertError),
    /// The device's queues cannot be set up.
    #[error("device {name}: {source}")]
    Transport {
        /// The device.
        name: String,
        /// Why.
        source: TransportError,
    },
}

impl PlugError {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unsupported => "plug-unsupported",
            Self::Kind => "device-not-pluggable",
            Self::Exists(_) => "device-exists",
            Self::Unknown(_) => "device-unknown",
            Self::Bus(_) => "too-many",
            Self::Transport { .. } => "io-failed",
        }
    }
}

/// See the module.
pub struct Plug {
    memory: GuestMemoryMmap,
    /// What disks plugged in work with.
    workers: Workers,
    pci: Option<Pci>,
    devices: Vec<Plugged>,
}

struct Plugged {
    name: String,
    transport: Arc<Transport>,
    /// Where it is on the PCI bus.
    slot: Option<u8>,
    /// Its task, once the event loop has it.
    task: Option<SubscriberId>,
    /// Requests that wait for the guest to let go of it.
    detaching: Vec<u64>,
}

impl Plug {
    /// No devices yet; their queues will lie in `memory`, and disks work with `workers`.
    pub fn new(memory: GuestMemoryMmap, workers: Workers) -> Self {
        Self {
            memory,
            workers,
            pci: None,
            devices: Vec::new(),
        }
    }

    /// Gives the machine a PCI bus.
    pub(super) fn set_pci(&mut self, pci: Pci) {
        self.pci = Some(pci);
    }

    /// Takes a device that is in its place, and stays there.
    pub(super) fn keep(&mut self, name: String, transport: Arc<Transport>) {
        self.devices.push(Plugged {
            name,
            transport,
            slot: None,
            task: None,
            detaching: Vec::new(),
        });
    }

    /// Puts `device` on the PCI bus; its slot.
    pub(super) fn insert(
        &mut self,
        name: String,
        device: Box<dyn VirtioDevice>,
    ) -> Result<u8, PlugError> {
        let pci = self.pci.as_ref().ok_or(PlugError::Unsupported)?;
        let function = PciTransport::new(device, self.memory.clone(), pci.platform.clone());
        let function = match function {
            Ok(function) => Arc::new(function),
            Err(source) => return Err(PlugError::Transport { name, source }),
        };
        let transport = function.transport().clone();
        let slot = pci.host.insert(function)?;
        self.keep(name, transport);
        if let Some(device) = self.devices.last_mut() {
            device.slot = Some(slot);
        }
        Ok(slot)
    }

    /// The devices by name.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &Arc<Transport>)> {
        self.devices
            .iter()
            .map(|device| (device.name.as_str(), &device.transport))
    }

    /// Plugs in the device that `device` describes, and tells the guest.
    ///
    /// # Errors
    /// [`PlugError`], or the device cannot be built.
    pub fn attach(&mut self, device: &Device, descriptors: &mut Descriptors) -> Result<(), Error> {
        if self.pci.is_none() {
            return Err(PlugError::Unsupported.into());
        }
        let is_shared = regions(&self.memory).all(|region| region.file.is_some());
        match device.kind {
            DeviceKind::VhostUser(_) if !is_shared => return Err(BackendError::Memory.into()),
            DeviceKind::Block(_) | DeviceKind::Net(_) | DeviceKind::VhostUser(_) => {}
            _ => return Err(PlugError::Kind.into()),
        }
        if self.devices().any(|(name, _)| name == device.name) {
            return Err(PlugError::Exists(device.name.clone()).into());
        }
        let built = virtio::build(device, descriptors, &self.workers)?;
        let slot = self.insert(device.name.clone(), built)?;
        if let Some(pci) = &self.pci {
            pci.hotplug.announce(slot);
        }
        Ok(())
    }

    /// Asks the guest to let go of the device `name`; `settle` gives `request` back when it has. Asking again is allowed, and may wake a guest that had no driver the first time.
    ///
    /// # Errors
    /// [`PlugError`].
    pub fn detach(&mut self, name: &str, request: u64) -> Result<(), PlugError> {
        let device = self.devices.iter_mut().find(|device| device.name == name);
        let device = device.ok_or_else(|| PlugError::Unknown(name.to_owned()))?;
        match (&self.pci, device.slot) {
            (Some(pci), Some(slot)) => {
                device.detaching.push(request);
                pci.hotplug.request_eject(slot);
                Ok(())
            }
            _ => Err(PlugError::Unsupported),
        }
    }

    /// A task that wakes the event loop when a device has been let go of.
    pub(super) fn watch(&self) -> Option<Task> {
        let pci = self.pci.as_ref()?;
        Some(Box::new(EjectWatch(pci.hotplug.clone())))
    }

    /// Brings the tasks of `event_loop` in line with the devices there are; the requests whose
    /// device is gone now. To be called between two turns of the loop.
    pub(super) fn settle(&mut self, event_loop: &mut EventManager<Task>) -> Vec<u64> {
        let mut done = Vec::new();
        if let Some(pci) = &self.pci {
            for slot in pci.hotplug.take_ejected() {
                let at = self.devices.iter().position(|d| d.slot == Some(slot));
                let Some(device) = at.map(|at| self.devices.swap_remove(at)) else {
                    continue;
                };
                if let Some(task) = device.task {
                    // It is there: nobody else takes tasks out.
                    let _ = event_loop.remove_subscriber(task);
                }
                done.extend(device.detaching);
            }
        }
        for device in &mut self.devices {
            if device.task.is_none() {
                let task = VirtioSubscriber::new(device.transport.clone());
                device.task = Some(event_loop.add_subscriber(Box::new(task)));
            }
        }
        done
    }
}

/// Notices that a device has been let go of.
struct EjectWatch(Arc<HotPlug>);

impl MutEventSubscriber for EjectWatch {
    fn init(&mut self, ops: &mut EventOps) {
        // A host out of memory: devices that are let go of stay open until the partition ends.
        let _ = ops.add(Events::new(self.0.event(), EventSet::IN));
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.event().read();
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::devices::ged::Ged;
    use crate::devices::pci::host::PciHost;
    use crate::devices::pci::hotplug::{EJECT, HotPlugPorts};
    use crate::devices::pci::testing::Recorder;
    use crate::devices::virtio::rng::Entropy;
    use crate::machine::bus::{Bus, BusDevice};
    use crate::machine::memory;

    #[test]
    fn devices_plugged_in_while_others_leave_stay() {
        let mut plug = Plug::new(memory::create(2).unwrap(), Workers::default());
        let window = memory::LOW_END..0xd000_0000;
        let host = Arc::new(PciHost::new(Arc::new(Bus::default()), vec![window]));
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let ged = Arc::new(Ged::new(event()));
        let hotplug = Arc::new(HotPlug::new(host.clone(), ged, event()));
        plug.set_pci(Pci {
            host,
            hotplug: hotplug.clone(),
            platform: Arc::new(Recorder::default()),
        });
        let insert = |plug: &mut Plug, name: &str| {
            let device = Box::new(Entropy::new());
            plug.insert(name.into(), device).unwrap();
        };
        insert(&mut plug, "a");
        insert(&mut plug, "b");
        let mut event_loop = EventManager::<Task>::new().unwrap();
        assert!(plug.settle(&mut event_loop).is_empty());
        plug.detach("a", 1).unwrap();
        plug.detach("b", 2).unwrap();
        // Between the guest's letting go and the event loop's hearing of it.
        HotPlugPorts(hotplug).write(EJECT, &[0xff; 4]);
        insert(&mut plug, "c");
        insert(&mut plug, "d");
        assert_eq!(plug.settle(&mut event_loop), [1, 2]);
        let left: Vec<_> = plug.devices().map(|(name, _)| name).collect();
        assert_eq!(left, ["d", "c"]);
    }
}
