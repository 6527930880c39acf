//! virtio-net (virtio 1.2, section 5.1) over taps or a socket to a user-mode network process.
//!
//! A frame moves between the backend and guest memory without a copy, and waits where it is: on
//! its way to the guest in the backend's own queue, until the driver has supplied buffers and the
//! receive limit allows it; on its way out in the transmit queue, until the host takes it and the
//! transmit limit allows it. What the device drops, it counts: frames that no buffer of the guest
//! holds, frames the host refuses, malformed ones, and those whose source address is not the
//! interface's own. A backend that is gone is a link that is down, for good; frames sent then are
//! dropped.

mod backend;
mod frame;
mod receive;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use bulkhead_machine::device::{MAX_FRAME_BYTES, MAX_QUEUES, Net as Described, NetBackend};
use virtio_bindings::virtio_net::*;
use vmm_sys_util::epoll::EventSet;

use super::queue::Chain;
use super::{
    Activation, DeviceError, DeviceIo, DeviceType, Interest, Progress, TURN_BYTES, VirtioDevice,
    read_config_bytes,
};
use crate::devices::rate_limiter::RateLimiter;
use backend::{Backend, Moved};
use frame::{Frame, Refusal};
use receive::Held;

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER_BYTES: u64 = 12;
/// Entries of each queue of frames.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// What a frame, or a control command, counts at least against a turn's [`TURN_BYTES`].
const FRAME_COST: u64 = 8192;
/// MTU of a driver that was not told any.
const DEFAULT_MTU: u64 = 1500;
/// What an MTU does not count: the Ethernet header, and a VLAN tag.
const LINK_BYTES: u64 = 18;
/// Where `status` lies in the configuration space.
const CONFIG_STATUS: usize = 6;

/// A network interface cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The description, or a descriptor it names, breaks a rule.
    #[error("a network interface cannot be built: {0}")]
    Rule(&'static str),
    /// The host refused a call.
    #[error("a network interface cannot be built: {call}: {source}")]
    Host {
        /// The call.
        call: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl NetError {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rule(_) => "net-invalid",
            Self::Host { .. } => "net-refused",
        }
    }

    /// For `map_err` on a host call.
    fn host<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            call,
            source: source.into(),
        }
    }

    fn last(call: &'static str) -> Self {
        Self::host(call)(io::Error::last_os_error())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Net {
    backend: Backend,
    config: [u8; 12],
    mac: [u8; 6],
    mtu: u64,
    offered: u64,
    queue_sizes: Vec<u16>,
    /// One entry for each pair of queues.
    pairs: Vec<Pair>,
    /// Pairs that receive, from the first on; the driver enables them (section 5.1.6.5.5).
    active: usize,
    /// What the driver negotiated.
    negotiated: u64,
    /// The backend has to be told of `negotiated`; left to the event loop's thread.
    offloads_due: bool,
    link_up: bool,
    receive_limit: RateLimiter,
    transmit_limit: RateLimiter,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Pair {
    held: Held,
    /// Waits for the host, or for the rate limit.
    sending: Option<Chain>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    receive_frames: u64,
    receive_bytes: u64,
    receive_dropped: u64,
    receive_throttled: u64,
    transmit_frames: u64,
    transmit_bytes: u64,
    transmit_dropped: u64,
    transmit_spoofed: u64,
    transmit_throttled: u64,
}

impl Net {
    /// The interface that `net` describes, over its descriptors in the order of the description.
    /// Call before the jail closes.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(net: &Described, files: Vec<OwnedFd>) -> Result<Self, NetError> {
        let pairs = usize::from(net.queue_pairs);
        if !(1..=MAX_QUEUES).contains(&net.queue_pairs) {
            return Err(NetError::Rule("it needs 1 to 32 pairs of queues"));
        }
        if files.len() != pairs {
            return Err(NetError::Rule(
                "it needs a descriptor for each pair of queues",
            ));
        }
        if matches!(net.backend, NetBackend::Socket { .. }) && pairs > 1 {
            return Err(NetError::Rule("over a socket it has one pair of queues"));
        }
        if net.mac[0] & 1 != 0 {
            return Err(NetError::Rule("its address is a multicast address"));
        }
        if net.mtu.is_some_and(|mtu| !(68..=65_520).contains(&mtu)) {
            return Err(NetError::Rule("its mtu is not 68 to 65520"));
        }
        Self::over(Backend::new(&net.backend, files)?, net)
    }

    /// The interface over a backend that fits it.
    fn over(backend: Backend, net: &Described) -> Result<Self, NetError> {
        let pairs = usize::from(net.queue_pairs);
        let mut offered = backend.features()
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_STATUS;
        if net.mtu.is_some() {
            offered |= 1 << VIRTIO_NET_F_MTU;
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            offered |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
            queue_sizes.push(CONTROL_SIZE);
        }
        let [m0, m1, m2, m3, m4, m5] = net.mac;
        let [s0, s1] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let [p0, p1] = net.queue_pairs.to_le_bytes();
        let [u0, u1] = net.mtu.unwrap_or(0).to_le_bytes();
        Ok(Self {
            backend,
            config: [m0, m1, m2, m3, m4, m5, s0, s1, p0, p1, u0, u1],
            mac: net.mac,
            mtu: net.mtu.map_or(DEFAULT_MTU, u64::from),
            offered,
            queue_sizes,
            pairs: (0..pairs).map(|_| Pair::default()).collect(),
            active: 1,
            negotiated: 0,
            offloads_due: false,
            link_up: true,
            receive_limit: RateLimiter::new(&net.receive_rate)
                .map_err(NetError::host("timerfd_create"))?,
            transmit_limit: RateLimiter::new(&net.transmit_rate)
                .map_err(NetError::host("timerfd_create"))?,
            counters: Counters::default(),
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.negotiated & 1 << feature != 0
    }

    /// The control queue comes behind the queues of pairs that the driver knows of (section 5.1.2).
    fn control_queue(&self) -> Option<usize> {
        if !self.has(VIRTIO_NET_F_CTRL_VQ) {
            None
        } else if self.has(VIRTIO_NET_F_MQ) {
            Some(2 * self.pairs.len())
        } else {
            Some(2)
        }
    }

    /// Bytes of the longest frame to expect, header and all.
    fn longest(&self) -> u64 {
        let segments = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ];
        if segments.into_iter().any(|bit| self.has(bit)) {
            HEADER_BYTES + MAX_FRAME_BYTES as u64
        } else {
            HEADER_BYTES + self.mtu + LINK_BYTES
        }
    }

    fn merges(&self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// The pair that receives what comes from the backend's queue `from`: what the kernel steers to
    /// a pair that the driver has not enabled goes to another.
    fn receiver(&self, from: usize) -> usize {
        from % self.active
    }

    /// Makes buffers of pair `index` ready; whether it can take a frame.
    fn fill(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<bool, DeviceError> {
        let (longest, merge) = (self.longest(), self.merges());
        let pair = self.pairs.get_mut(index);
        match (pair, io.queues.get_mut(2 * index)) {
            (Some(pair), Some(queue)) => pair.held.fill(queue, io.memory, longest, merge),
            _ => Ok(false),
        }
    }

    /// Receives from the backend's queue `from` until it is empty, the guest has no buffers, the
    /// limit is reached or the turn is over. The backend then announces what is left.
    fn receive(&mut self, from: usize, io: &mut DeviceIo<'_>) -> Result<(), DeviceError> {
        let index = self.receiver(from);
        let merge = self.merges();
        // What the tap writes into the header stays, if the driver understands it.
        let header = (!self.has(VIRTIO_NET_F_GUEST_CSUM)).then_some([0; 10]);
        let offset = HEADER_BYTES - self.backend.header_bytes();
        let mut slices = Vec::new();
        let mut spent = 0;
        while self.fill(index, io)? && self.link_up && spent < TURN_BYTES {
            if !self.receive_limit.allows(1) {
                self.counters.receive_throttled += 1;
                return Ok(());
            }
            let (Some(pair), Some(queue)) =
                (self.pairs.get_mut(index), io.queues.get_mut(2 * index))
            else {
                return Ok(());
            };
            pair.held.slices(io.memory, offset, merge, &mut slices)?;
            match self.backend.receive(from, &slices) {
                Moved::Frame(len) => {
                    let whole = len as u64 + offset;
                    pair.held.deliver(queue, io.memory, whole, header)?;
                    let bytes = whole.saturating_sub(HEADER_BYTES);
                    self.receive_limit.charge(bytes);
                    self.counters.receive_frames += 1;
                    self.counters.receive_bytes += bytes;
                    spent += bytes;
                }
                Moved::Lost => self.counters.receive_dropped += 1,
                Moved::WouldBlock => return Ok(()),
                Moved::Closed => self.link_down(io),
            }
            spent += FRAME_COST;
        }
        Ok(())
    }

    /// Sends the frames of pair `index` until there are none, the host takes no more, the limit is
    /// reached or the turn is over.
    fn transmit(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let mut spent = 0;
        while spent < TURN_BYTES {
            let (Some(pair), Some(queue)) =
                (self.pairs.get_mut(index), io.queues.get_mut(2 * index + 1))
            else {
                return Ok(Progress::Idle);
            };
            let chain = match pair.sending.take() {
                Some(chain) => chain,
                None => match queue.pop(io.memory)? {
                    Some(chain) => chain,
                    None => return Ok(Progress::Idle),
                },
            };
            spent += FRAME_COST;
            match Frame::check(&chain, io.memory, self.negotiated, self.mac) {
                Err(Refusal::Malformed) => self.counters.transmit_dropped += 1,
                Err(Refusal::Spoofed) => self.counters.transmit_spoofed += 1,
                Ok(_) if !self.link_up => self.counters.transmit_dropped += 1,
                Ok(frame) => {
                    if !self.transmit_limit.allows(frame.len) {
                        self.counters.transmit_throttled += 1;
                        pair.sending = Some(chain);
                        return Ok(Progress::Idle);
                    }
                    let (offset, len) = frame.rest();
                    let slices = chain.readable.slices(io.memory, offset, len)?;
                    let head = frame.head(self.backend.header_bytes());
                    match self.backend.send(index, head, &slices) {
                        Moved::Frame(_) => {
                            self.transmit_limit.charge(frame.len);
                            self.counters.transmit_frames += 1;
                            self.counters.transmit_bytes += frame.len;
                            spent += frame.len;
                        }
                        Moved::WouldBlock => {
                            pair.sending = Some(chain);
                            return Ok(Progress::Idle);
                        }
                        Moved::Lost => self.counters.transmit_dropped += 1,
                        Moved::Closed => {
                            self.counters.transmit_dropped += 1;
                            self.link_down(io);
                        }
                    }
                }
            }
            if let Some(queue) = io.queues.get_mut(2 * index + 1) {
                queue.push(io.memory, &chain, 0)?;
            }
        }
        Ok(Progress::More)
    }

    fn link_down(&mut self, io: &mut DeviceIo<'_>) {
        self.link_up = false;
        if let Some(status) = self.config.get_mut(CONFIG_STATUS..CONFIG_STATUS + 2) {
            status.fill(0);
        }
        *io.config_changed = true;
    }

    /// Answers commands on the control queue (section 5.1.6.5); the one there is sets the number of
    /// pairs that receive.
    fn control(&mut self, index: usize, io: &mut DeviceIo<'_>) -> Result<Progress, DeviceError> {
        let Some(queue) = io.queues.get_mut(index) else {
            return Ok(Progress::Idle);
        };
        for _ in 0..CONTROL_SIZE {
            let Some(chain) = queue.pop(io.memory)? else {
                return Ok(Progress::Idle);
            };
            if chain.writable.is_empty() {
                return Err(DeviceError::Unanswerable);
            }
            let mut command = [0; 4];
            let whole = chain.readable.len() == command.len() as u64;
            if whole {
                chain.readable.read_at(io.memory, 0, &mut command)?;
            }
            let [class, code, p0, p1] = command;
            let pairs = usize::from(u16::from_le_bytes([p0, p1]));
            let accepted = whole
                && self.negotiated & 1 << VIRTIO_NET_F_MQ != 0
                && u32::from(class) == VIRTIO_NET_CTRL_MQ
                && u32::from(code) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
                && (1..=self.pairs.len()).contains(&pairs);
            let answer = if accepted {
                self.active = pairs;
                VIRTIO_NET_OK
            } else {
                VIRTIO_NET_ERR
            };
            chain.writable.write_at(io.memory, 0, &[answer as u8])?;
            queue.push(io.memory, &chain, 1)?;
        }
        Ok(Progress::More)
    }

    fn apply_offloads(&mut self) {
        if std::mem::take(&mut self.offloads_due) {
            self.backend.set_offloads(self.negotiated);
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation<'_>) -> Result<(), DeviceError> {
        self.negotiated = activation.features;
        self.offloads_due = true;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        vec![
            ("receive-frames", counters.receive_frames),
            ("receive-bytes", counters.receive_bytes),
            ("receive-dropped", counters.receive_dropped),
            ("receive-throttled", counters.receive_throttled),
            ("transmit-frames", counters.transmit_frames),
            ("transmit-bytes", counters.transmit_bytes),
            ("transmit-dropped", counters.transmit_dropped),
            ("transmit-spoofed", counters.transmit_spoofed),
            ("transmit-throttled", counters.transmit_throttled),
        ]
    }

    fn process_queue(
        &mut self,
        index: usize,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        self.apply_offloads();
        if self.control_queue() == Some(index) {
            self.control(index, io)
        } else if index % 2 == 1 {
            self.transmit(index / 2, io)
        } else {
            self.fill(index / 2, io).map(|_| Progress::Idle)
        }
    }

    fn interests(&self) -> Vec<Interest> {
        let timers = [&self.receive_limit, &self.transmit_limit].map(RateLimiter::interest);
        let mut interests: Vec<_> = timers.into_iter().flatten().collect();
        if !self.link_up {
            return interests;
        }
        let [receive_waits, transmit_waits] = timers.map(|timer| timer.is_some());
        for (index, fd) in self.backend.fds().enumerate() {
            let mut events = EventSet::empty();
            let receiver = self.pairs.get(self.receiver(index));
            if !receive_waits && receiver.is_some_and(|pair| pair.held.is_ready()) {
                events |= EventSet::IN;
            }
            let sending = |pair: &Pair| pair.sending.is_some();
            if !transmit_waits && self.pairs.get(index).is_some_and(sending) {
                events |= EventSet::OUT;
            }
            if !events.is_empty() {
                interests.push(Interest { fd, events });
            }
        }
        interests
    }

    fn process_backend(
        &mut self,
        fd: RawFd,
        io: &mut DeviceIo<'_>,
    ) -> Result<Progress, DeviceError> {
        if self.receive_limit.take_expiry(fd) || self.transmit_limit.take_expiry(fd) {
            return Ok(Progress::More);
        }
        self.apply_offloads();
        let Some(index) = self.backend.fds().position(|backend| backend == fd) else {
            return Ok(Progress::Idle);
        };
        self.receive(index, io)?;
        if !self.link_up {
            // What waits to be sent is dropped.
            return Ok(Progress::More);
        }
        if self.pairs.get(index).is_some_and(|p| p.sending.is_some()) {
            return self.transmit(index, io);
        }
        Ok(Progress::Idle)
    }

    fn reset(&mut self) {
        for pair in &mut self.pairs {
            pair.held.clear();
            pair.sending = None;
        }
        self.active = 1;
        self.negotiated = 0;
        self.offloads_due = false;
        self.receive_limit.cancel();
        self.transmit_limit.cancel();
    }
}

#[cfg(test)]
mod tests;
