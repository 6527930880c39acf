//! The virtio device: queues whose chains are FUSE requests, and the vhost-user connection
//! (virtio 1.2, section 5.11). Called by `run`; the fuzz target that plays a guest drives a [`Device`].
//!
//! One worker thread serves all queues, one request after another; the thread of the connection
//! only sets queues and memory up. Guest memory is copied from and to, never referred to, so that a
//! guest that changes a request while it is served changes nothing.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_share::{QUEUE_SIZE, QUEUES};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::error::Error;
use crate::jail;
use crate::server::{MAX_MESSAGE, Server};

/// Guest memory, as the front end shares it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Loaded = GuestMemoryLoadGuard<GuestMemoryMmap>;

/// Accepts one connection on `socket`, and serves until the front end closes it.
///
/// # Errors
/// [`Error::Connection`] when it did not end in order.
pub fn serve(server: Server, socket: OwnedFd, jailed: bool) -> Result<(), Error> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let device = Arc::new(Device::new(server, memory.clone()));
    let failed = |error: vhost_user_backend::Error| Error::Connection(error.to_string());
    let mut daemon =
        VhostUserDaemon::new("connection".to_owned(), device, memory).map_err(failed)?;
    let mut listener = Listener::from(UnixListener::from(socket));
    daemon.start(&mut listener).map_err(failed)?;
    // Nobody else connects.
    drop(listener);
    if jailed {
        jail::tighten()?;
    }
    match daemon.wait() {
        // The front end closed the connection between two messages, or the VMM was killed.
        Err(vhost_user_backend::Error::HandleRequest(
            vhost::vhost_user::Error::Disconnected | vhost::vhost_user::Error::PartialMessage,
        )) => Ok(()),
        other => other.map_err(failed),
    }
}

/// The server, and the buffers of the request it works on.
struct Worker {
    server: Server,
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// The device.
pub struct Device {
    worker: Mutex<Worker>,
    memory: Memory,
}

impl Device {
    /// A device that serves requests in `memory` by `server`.
    pub fn new(server: Server, memory: Memory) -> Self {
        Self {
            worker: Mutex::new(Worker {
                server,
                request: vec![0; MAX_MESSAGE],
                reply: vec![0; MAX_MESSAGE],
            }),
            memory,
        }
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what the driver has made available; returns whether there was anything.
    fn process(&self, worker: &mut Worker, vring: &VringMutex) -> io::Result<bool> {
        let memory = self.memory.memory();
        let mut any = false;
        loop {
            // The ring is not held while a request is served: the connection may want to stop it.
            let next = {
                let mut ring = vring.get_mut();
                if !ring.get_queue().ready() {
                    return Ok(any);
                }
                let queue = ring.get_queue_mut();
                let mut chains = queue.iter(memory.clone()).map_err(io::Error::other)?;
                chains.next()
            };
            let Some(chain) = next else {
                return Ok(any);
            };
            any = true;
            let head = chain.head_index();
            let len = worker.serve(&memory, chain).unwrap_or(0);
            vring
                .add_used(head, len)
                .and_then(|()| vring.needs_notification())
                .map_err(io::Error::other)
                .and_then(|needed| {
                    if needed {
                        vring.signal_used_queue()
                    } else {
                        Ok(())
                    }
                })?;
        }
    }
}

impl Worker {
    /// Serves the request in `chain`; returns the bytes written to it.
    fn serve(&mut self, memory: &Loaded, chain: DescriptorChain<Loaded>) -> io::Result<u32> {
        let mut reader = chain.clone().reader(memory).map_err(io::Error::other)?;
        let mut writer = chain.writer(memory).map_err(io::Error::other)?;
        // One that is longer than any may be is cut off, which the server sees from its length.
        let length = reader.available_bytes().min(self.request.len());
        let request = self.request.get_mut(..length).unwrap_or_default();
        reader.read_exact(request)?;
        let room = writer.available_bytes().min(self.reply.len());
        let reply = self.reply.get_mut(..room).unwrap_or_default();
        let length = self.server.handle(request, reply);
        writer.write_all(reply.get(..length).unwrap_or_default())?;
        Ok(length as u32)
    }
}

impl VhostUserBackend for Device {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.worker().server.reset();
    }

    /// The rings know.
    fn set_event_idx(&self, _enabled: bool) {}

    /// The memory is shared with the connection.
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    /// Waits for the request that is being served, and for all that follows from it: the guest may
    /// use buffers and ring for something else afterwards.
    fn stop_vring(&self, _index: u32) -> io::Result<()> {
        drop(self.worker());
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    /// A ring that breaks the format is not served any further, until it is set up anew; the others
    /// are.
    fn handle_event(
        &self,
        index: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.get(usize::from(index)) else {
            return Ok(());
        };
        // Held to the end. Let go of earlier, it would let the connection stop the ring and set it up
        // anew, and what is said of the old one here would be taken for the new one's.
        let mut worker = self.worker();
        if !vring.get_ref().get_queue().ready() {
            // It was stopped before its event had its turn.
            return Ok(());
        }
        let mut serve = || -> io::Result<()> {
            loop {
                vring.disable_notification().map_err(io::Error::other)?;
                self.process(&mut worker, vring)?;
                // One that is stopped meanwhile may hold requests for ever.
                let ready = vring.get_ref().get_queue().ready();
                if !ready || !vring.enable_notification().map_err(io::Error::other)? {
                    return Ok(());
                }
            }
        };
        if serve().is_err() {
            vring.set_enabled(false);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bulkhead_share::Ownership;
    use rustix::fs::{Mode, OFlags, open};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::server::Options;

    const SIZE: u64 = 0x1_0000;
    const TABLE: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;

    fn directory(path: &Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).unwrap()
    }

    /// A device of an empty directory, its memory, and a ring there that is set up.
    fn device() -> (Device, Memory, VringMutex) {
        let shared = tempfile::tempdir().unwrap();
        let options = Options {
            read_only: false,
            ownership: Ownership::Exporter { uid: 7, gid: 8 },
            max_nodes: 10,
            max_handles: 10,
        };
        let root = directory(shared.path());
        let server = Server::new(root, directory(Path::new("/proc/self/fd")), options).unwrap();
        let ranges = [(GuestAddress(0), SIZE as usize)];
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let vring = VringMutex::new(memory.clone(), QUEUE_SIZE).unwrap();
        vring.set_queue_size(8);
        vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        (Device::new(server, memory.clone()), memory, vring)
    }

    fn kick(device: &Device, vring: &VringMutex) {
        let rings = [vring.clone()];
        device.handle_event(0, EventSet::IN, &rings, 0).unwrap();
    }

    fn enabled(vring: &VringMutex) -> bool {
        vring.get_ref().is_enabled()
    }

    /// Says in `memory` that more is available than the ring has room for.
    fn jump(memory: &Memory) {
        let index = GuestAddress(AVAIL + 2);
        memory.memory().write_obj(9u16, index).unwrap();
    }

    #[test]
    fn a_ring_that_jumps_is_given_up() {
        let (device, memory, vring) = device();
        jump(&memory);
        kick(&device, &vring);
        assert!(!enabled(&vring));
    }

    /// Its event may come late, when the guest has something else where the ring was.
    #[test]
    fn a_ring_that_was_stopped_is_left_alone() {
        let (device, memory, vring) = device();
        jump(&memory);
        vring.set_queue_ready(false);
        // Nothing can be said to the driver there.
        vring.set_queue_info(TABLE, AVAIL, SIZE).unwrap();
        kick(&device, &vring);
        assert!(enabled(&vring), "the one that is set up next is given up");
    }
}
