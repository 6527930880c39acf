//! A virtio device whose queues another process serves, by the vhost-user protocol: block, network
//! and shared directories, all by the same code. Built by the machine.
//!
//! The back end gets guest memory, the queues' addresses and an eventfd for either direction of each
//! queue. It may do to the guest what it likes: that is what the guest was given. To the VMM it may
//! do nothing: what it says is checked where it enters, it is waited for with a deadline, and no
//! call that it could make block is made on a descriptor that it shares. A back end that dies or
//! lies leaves a device in `DEVICE_NEEDS_RESET`, which no reset brings back.

mod connection;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use bulkhead_machine::device::{VhostUser as Described, VhostUserDevice};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserProtocolFeatures as Protocol, VhostUserU64, VhostUserVirtioFeatures,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_net::*;
use virtio_queue::QueueT;
use vm_memory::{Address, ByteValued, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

pub use connection::BackendError;
use connection::{Connection, MAX_DESCRIPTORS};

use crate::machine::memory;

use super::{
    Activation, COMMON_FEATURES, DeviceError, DeviceIo, DeviceType, Interest, Progress,
    VirtioDevice, read_config_bytes,
};

/// Features of a block device that need nothing of the front end.
const BLOCK_FEATURES: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_RO
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
/// Features of a network interface that need nothing of the front end.
const NET_FEATURES: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO
    | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// `struct virtio_blk_config` up to write-zeroes (virtio 1.2, section 5.2.4), and the place of
/// `num_queues` in it.
const BLOCK_CONFIG: usize = 60;
const BLOCK_NUM_QUEUES: std::ops::Range<usize> = 34..36;
/// Length of the tag in `struct virtio_fs_config` (section 5.11.4).
const TAG: usize = 36;

/// See the module.
pub struct VhostUser {
    connection: Connection,
    device_type: DeviceType,
    features: u64,
    protocol: Protocol,
    config: Vec<u8>,
    queue_sizes: Vec<u16>,
    /// Signalled by the back end when a queue's driver is to be interrupted. Never read, because a
    /// back end could make the read block: they are watched for edges.
    calls: Vec<OwnedFd>,
    /// Signalled by the back end when a queue is broken.
    errors: OwnedFd,
    /// Signalled by the device itself when its rings were stopped by [`Self::quiesce`].
    resume: OwnedFd,
    active: Option<Active>,
    /// The back end is not to be trusted any more, for good.
    failed: bool,
    interrupts: u64,
}

/// What the driver has set up.
struct Active {
    features: u64,
    rings: Vec<Ring>,
    /// The back end serves them now.
    running: bool,
}

struct Ring {
    index: u32,
    size: u16,
    /// Next entry of the available ring.
    base: u16,
    table: u64,
    avail: u64,
    used: u64,
    /// Its owner, the transport, lives longer than the device. It is not duplicated: in the jail the
    /// process gets no more descriptors.
    doorbell: RawFd,
}

impl VhostUser {
    /// The front end of what is behind `socket`, as `described`.
    ///
    /// # Errors
    /// The back end is not there, or lacks something that is needed.
    pub fn new(described: &Described, socket: OwnedFd) -> Result<Self, BackendError> {
        let (device_type, mask, queues) = match &described.device {
            VhostUserDevice::Block { queues: 1 } => (DeviceType::Block, BLOCK_FEATURES, 1),
            VhostUserDevice::Block { queues } => {
                let mask = BLOCK_FEATURES | 1 << VIRTIO_BLK_F_MQ;
                (DeviceType::Block, mask, usize::from(*queues))
            }
            VhostUserDevice::Net { queue_pairs: 1, .. } => (DeviceType::Net, NET_FEATURES, 2),
            // More need a control queue, which the front end would have to serve.
            VhostUserDevice::Net { .. } => {
                return Err(BackendError::Unsupported("several queue pairs".into()));
            }
            VhostUserDevice::Fs { queues, .. } => (DeviceType::Fs, 0, 1 + usize::from(*queues)),
        };
        let mut connection = Connection::new(socket);
        connection.begin();
        let (offered, protocol) = negotiate(&mut connection, device_type)?;
        if protocol.contains(Protocol::MQ) {
            let most: VhostUserU64 = connection.ask(FrontendReq::GET_QUEUE_NUM, &[])?;
            // For a network interface some back ends count pairs.
            let needed = if device_type == DeviceType::Net {
                1
            } else {
                queues
            };
            if { most.value } < needed as u64 {
                return Err(BackendError::Lacks(format!("{queues} queues")));
            }
        } else if queues > 1 && device_type == DeviceType::Block {
            return Err(BackendError::Lacks("several queues".into()));
        }
        let mut features = offered & mask;
        let config = match &described.device {
            VhostUserDevice::Block { queues } => {
                let mut config = ask_config(&mut connection)?;
                if let Some(field) = config.get_mut(BLOCK_NUM_QUEUES) {
                    field.copy_from_slice(&queues.to_le_bytes());
                }
                config
            }
            VhostUserDevice::Net { mac, .. } => {
                features |= 1 << VIRTIO_NET_F_MAC;
                mac.to_vec()
            }
            VhostUserDevice::Fs { tag, queues } => {
                if tag.is_empty() || tag.len() > TAG {
                    return Err(BackendError::Unsupported(format!("the tag `{tag}`")));
                }
                let mut config = tag.as_bytes().to_vec();
                config.resize(TAG, 0);
                config.extend(u32::from(*queues).to_le_bytes());
                config
            }
        };
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Self {
            connection,
            device_type,
            features,
            protocol,
            config,
            queue_sizes: vec![described.queue_size; queues],
            calls: (0..queues).map(|_| event()).collect::<Result<_, _>>()?,
            errors: event()?,
            resume: event()?,
            active: None,
            failed: false,
            interrupts: 0,
        })
    }

    /// Passes a failure on, which ends the connection.
    fn failed(&mut self, error: &BackendError) -> DeviceError {
        self.connection.give_up();
        self.failed = true;
        DeviceError::Backend(error.to_string())
    }

    /// Gives the back end memory and rings, and lets it start.
    fn start(&mut self, memory: &GuestMemoryMmap) -> Result<(), BackendError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let connection = &mut self.connection;
        connection.begin();
        let features = active.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let features = VhostUserU64::new(features);
        connection.tell(FrontendReq::SET_FEATURES, features.as_slice(), &[])?;
        share(connection, memory)?;
        for ring in &active.rings {
            ring.start(connection, &self.calls, &self.errors)?;
        }
        active.running = true;
        Ok(())
    }

    /// Has the back end complete what it works on, and leave the rings alone.
    fn stop(&mut self) -> Result<(), BackendError> {
        let Some(active) = self.active.as_mut().filter(|active| active.running) else {
            return Ok(());
        };
        active.running = false;
        self.connection.begin();
        for ring in &mut active.rings {
            let state = VhostUserVringState::new(ring.index, 0);
            let state: VhostUserVringState = self
                .connection
                .ask(FrontendReq::GET_VRING_BASE, state.as_slice())?;
            // A ring has 2^16 positions.
            ring.base = { state.num } as u16;
        }
        Ok(())
    }
}

/// Agrees on the protocol; returns the features that the back end offers, and those of the protocol.
fn negotiate(
    connection: &mut Connection,
    device_type: DeviceType,
) -> Result<(u64, Protocol), BackendError> {
    connection.tell(FrontendReq::SET_OWNER, &[], &[])?;
    let offered: VhostUserU64 = connection.ask(FrontendReq::GET_FEATURES, &[])?;
    let offered = offered.value;
    let needed = COMMON_FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    if offered & needed != needed {
        let missing = needed & !offered;
        return Err(BackendError::Lacks(format!("the features {missing:#x}")));
    }
    let protocol: VhostUserU64 = connection.ask(FrontendReq::GET_PROTOCOL_FEATURES, &[])?;
    let protocol = Protocol::from_bits_truncate(protocol.value);
    // Without acknowledgements nothing would say that a back end has let go of memory.
    let mut needed = Protocol::REPLY_ACK;
    if device_type == DeviceType::Block {
        needed |= Protocol::CONFIG;
    }
    if !protocol.contains(needed) {
        let missing = needed.difference(protocol);
        return Err(BackendError::Lacks(format!("the protocol's {missing:?}")));
    }
    let protocol = protocol & (needed | Protocol::MQ | Protocol::RESET_DEVICE);
    let accepted = VhostUserU64::new(protocol.bits());
    connection.tell(FrontendReq::SET_PROTOCOL_FEATURES, accepted.as_slice(), &[])?;
    connection.acknowledged = true;
    Ok((offered, protocol))
}

/// The configuration space of a block device.
fn ask_config(connection: &mut Connection) -> Result<Vec<u8>, BackendError> {
    let head = VhostUserConfig::new(0, BLOCK_CONFIG as u32, VhostUserConfigFlags::empty());
    let request = [head.as_slice(), &[0; BLOCK_CONFIG]].concat();
    let mut answer = request.clone();
    connection.ask_into(FrontendReq::GET_CONFIG, &request, &mut answer)?;
    let config = answer.split_off(head.as_slice().len());
    if answer != head.as_slice() {
        return Err(BackendError::Garbled(FrontendReq::GET_CONFIG));
    }
    Ok(config)
}

/// Shares guest memory. The back end knows it by guest-physical addresses, and learns nothing of
/// the VMM's own.
fn share(connection: &mut Connection, memory: &GuestMemoryMmap) -> Result<(), BackendError> {
    let regions: Vec<_> = memory::regions(memory).collect();
    if regions.len() > MAX_DESCRIPTORS {
        return Err(BackendError::Memory);
    }
    let mut body = VhostUserMemory::new(regions.len() as u32)
        .as_slice()
        .to_vec();
    let mut files = Vec::with_capacity(regions.len());
    for region in regions {
        let file = region.file.ok_or(BackendError::Memory)?;
        let address = region.start.raw_value();
        let entry = VhostUserMemoryRegion::new(address, region.len, address, file.start());
        body.extend(entry.as_slice());
        files.push(file.file().as_fd());
    }
    connection.tell(FrontendReq::SET_MEM_TABLE, &body, &files)
}

impl Ring {
    fn start(
        &self,
        connection: &mut Connection,
        calls: &[OwnedFd],
        errors: &OwnedFd,
    ) -> Result<(), BackendError> {
        let index = self.index;
        let Some(call) = calls.get(index as usize) else {
            return Ok(());
        };
        let mut set = |request, value: u32| {
            let state = VhostUserVringState::new(index, value);
            connection.tell(request, state.as_slice(), &[])
        };
        set(FrontendReq::SET_VRING_NUM, self.size.into())?;
        set(FrontendReq::SET_VRING_BASE, self.base.into())?;
        let flags = VhostUserVringAddrFlags::empty();
        let addresses = VhostUserVringAddr::new(index, flags, self.table, self.used, self.avail, 0);
        connection.tell(FrontendReq::SET_VRING_ADDR, addresses.as_slice(), &[])?;
        let number = VhostUserU64::new(index.into());
        // SAFETY: the transport owns the descriptor, and the device; it keeps both open and alive
        // while this call lasts.
        let doorbell = unsafe { BorrowedFd::borrow_raw(self.doorbell) };
        for (request, event) in [
            (FrontendReq::SET_VRING_ERR, errors.as_fd()),
            (FrontendReq::SET_VRING_CALL, call.as_fd()),
            (FrontendReq::SET_VRING_KICK, doorbell),
        ] {
            connection.tell(request, number.as_slice(), &[event])?;
        }
        let on = VhostUserVringState::new(index, 1);
        connection.tell(FrontendReq::SET_VRING_ENABLE, on.as_slice(), &[])
    }
}

impl VirtioDevice for VhostUser {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn queues_are_foreign(&self) -> bool {
        true
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        let mut rings = Vec::new();
        for ((index, queue), doorbell) in (0..).zip(activation.queues).zip(activation.doorbells) {
            let queue = queue.ring();
            if !queue.ready() {
                continue;
            }
            rings.push(Ring {
                index,
                size: queue.size(),
                base: queue.next_avail(),
                table: queue.desc_table(),
                avail: queue.avail_ring(),
                used: queue.used_ring(),
                doorbell: doorbell.as_raw_fd(),
            });
        }
        self.active = Some(Active {
            features: activation.features,
            rings,
            running: false,
        });
        self.start(activation.memory)
            .map_err(|error| self.failed(&error))
    }

    fn process_queue(
        &mut self,
        _index: usize,
        _io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        Ok(Progress::Idle)
    }

    fn interests(&self) -> Vec<Interest> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let level = EventSet::IN | EventSet::READ_HANG_UP;
        let own = [
            (self.connection.socket().as_raw_fd(), level),
            (self.errors.as_raw_fd(), edges),
            (self.resume.as_raw_fd(), EventSet::IN),
        ];
        let calls = self.calls.iter().map(|call| (call.as_raw_fd(), edges));
        own.into_iter()
            .chain(calls)
            .map(|(fd, events)| Interest { fd, events })
            .collect()
    }

    fn process_backend(
        &mut self,
        fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        let index = self.calls.iter().position(|call| call.as_raw_fd() == fd);
        if let Some(queue) = index.and_then(|index| io.queues.get_mut(index)) {
            self.interrupts = self.interrupts.saturating_add(1);
            queue.interrupt();
        } else if fd == self.resume.as_raw_fd() {
            // Shared with nobody: it does not block.
            let _ = read(&self.resume, &mut [0; 8]);
            self.start(io.memory).map_err(|error| self.failed(&error))?;
        } else if fd == self.errors.as_raw_fd() {
            return Err(self.failed(&BackendError::Queue));
        } else {
            // Every reply is taken by who asked: a driver that resets the device and sets it up again
            // does so on another thread, while this one has been told that there is one.
            self.connection
                .look()
                .map_err(|error| self.failed(&error))?;
        }
        Ok(Progress::Idle)
    }

    /// The rings stop, and start again when the event loop goes on.
    fn quiesce(&mut self, _io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        if !self.active.as_ref().is_some_and(|active| active.running) {
            return Ok(());
        }
        self.stop().map_err(|error| self.failed(&error))?;
        write(&self.resume, &1u64.to_ne_bytes()).map_err(io::Error::from)?;
        Ok(())
    }

    fn reset(&mut self) {
        let stopped = self.stop();
        self.active = None;
        // A late signal would start nothing.
        let _ = read(&self.resume, &mut [0; 8]);
        let outcome = stopped.and_then(|()| {
            if !self.connection.alive() || !self.protocol.contains(Protocol::RESET_DEVICE) {
                return Ok(());
            }
            self.connection.begin();
            self.connection.tell(FrontendReq::RESET_DEVICE, &[], &[])
        });
        if let Err(error) = outcome {
            // The driver finds out when it sets the device up again.
            let _ = self.failed(&error);
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("interrupts", self.interrupts),
            ("backend_failures", self.failed.into()),
        ]
    }
}
