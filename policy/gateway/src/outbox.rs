//! Frames on their way to the guest. When the link takes no more, a few wait here and whoever has
//! a choice stops making them; the rest is dropped, as on any network.

use std::collections::VecDeque;
use std::io;

use bulkhead_network::MAX_FRAME_BYTES;
use bulkhead_network::control::Stats;
use smoltcp::wire::{EthernetAddress, EthernetProtocol};

use crate::host::Host;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// Most frames that wait. Those who have a choice make one at most.
const MAX_WAITING: usize = 64;
/// Most bytes of frames that wait.
const MAX_WAITING_BYTES: usize = 4 * MAX_FRAME_BYTES;

/// Where frames to the guest are built and wait.
#[derive(Debug)]
pub(crate) struct Outbox {
    frame: Box<[u8]>,
    waiting: VecDeque<Box<[u8]>>,
    waiting_bytes: usize,
}

impl Outbox {
    /// An outbox for frames from `own` to `guest`.
    pub(crate) fn new(own: EthernetAddress, guest: EthernetAddress) -> Self {
        let mut frame = vec![0; MAX_FRAME_BYTES].into_boxed_slice();
        let addresses = guest.0.iter().chain(&own.0);
        for (byte, value) in frame.iter_mut().zip(addresses) {
            *byte = *value;
        }
        Self {
            frame,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }

    /// Whether the link took everything so far.
    pub(crate) fn is_clear(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends a frame whose payload of `len` bytes `fill` writes, wholly. What is too long for the
    /// link is dropped.
    pub(crate) fn emit<R>(
        &mut self,
        host: &mut impl Host,
        stats: &mut Stats,
        protocol: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let frame = self.frame.get_mut(..ETHERNET_HEADER + len);
        let parts = frame.and_then(|frame| frame.split_at_mut_checked(ETHERNET_HEADER));
        let Some((header, payload)) = parts else {
            stats.dropped_in += 1;
            return fill(&mut vec![0; len]);
        };
        if let Some(field) = header.last_chunk_mut() {
            *field = u16::from(protocol).to_be_bytes();
        }
        let filled = fill(payload);
        self.send(host, stats, ETHERNET_HEADER + len);
        filled
    }

    fn send(&mut self, host: &mut impl Host, stats: &mut Stats, len: usize) {
        let frame = self.frame.get(..len).unwrap_or_default();
        let sent = match self.waiting.is_empty() {
            true => host.transmit(frame),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        match sent {
            Ok(()) => stats.frames_in += 1,
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    && self.waiting.len() < MAX_WAITING
                    && self.waiting_bytes + len <= MAX_WAITING_BYTES =>
            {
                self.waiting_bytes += len;
                self.waiting.push_back(frame.into());
            }
            Err(_) => stats.dropped_in += 1,
        }
    }

    /// The link takes frames again: sends those that wait.
    pub(crate) fn flush(&mut self, host: &mut impl Host, stats: &mut Stats) {
        while let Some(frame) = self.waiting.pop_front() {
            match host.transmit(&frame) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting.push_front(frame);
                    return;
                }
                Ok(()) => stats.frames_in += 1,
                Err(_) => stats.dropped_in += 1,
            }
            self.waiting_bytes -= frame.len();
        }
    }
}
