//! What every part of the gateway works with, and the packets any of them may send.

use std::fmt;
use std::net::Ipv4Addr;

use bulkhead_network::control::Stats;
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};

use crate::chatter::Chatter;
use crate::config::Config;
use crate::consent::Consents;
use crate::frame::Packet;
use crate::host::Host;
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::rules::{Refusal, Rules};
use crate::schedule::Schedule;

/// How far packets go: nowhere.
const HOP_LIMIT: u8 = 64;
/// Bytes of an IPv4 header without options.
const IPV4_HEADER: usize = 20;

/// What every part works with.
pub(crate) struct Core<H: Host> {
    /// The description.
    pub config: Config,
    /// What is allowed.
    pub rules: Rules,
    /// The host's side.
    pub host: H,
    /// Frames to the guest.
    pub outbox: Outbox,
    /// Who is to be looked after.
    pub schedule: Schedule,
    /// Lines for people.
    pub chatter: Chatter,
    /// Records.
    pub journal: Journal,
    /// A person's answers.
    pub consents: Consents,
    /// Counters.
    pub stats: Stats,
    /// The time, since the start; the same while one thing is dealt with.
    pub now: Instant,
}

impl<H: Host> Core<H> {
    /// Sends a packet whose payload `fill` writes.
    fn send(&mut self, packet: Ipv4Repr, fill: impl FnOnce(&Config, &mut [u8])) {
        let config = &self.config;
        let len = packet.buffer_len() + packet.payload_len;
        self.outbox.emit(
            &mut self.host,
            &mut self.stats,
            EthernetProtocol::Ipv4,
            len,
            |bytes| {
                packet.emit(
                    &mut Ipv4Packet::new_unchecked(&mut *bytes),
                    &config.checksums,
                );
                fill(config, bytes.get_mut(IPV4_HEADER..).unwrap_or_default());
            },
        );
    }

    /// Sends a UDP datagram to the guest; one that is longer than the MTU allows is dropped.
    pub(crate) fn send_udp(&mut self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) {
        if payload.len() > self.config.max_datagram() {
            self.stats.dropped_in += 1;
            return;
        }
        let udp = UdpRepr {
            src_port: from.1,
            dst_port: to.1,
        };
        let packet = ipv4(
            from.0,
            to.0,
            IpProtocol::Udp,
            udp.header_len() + payload.len(),
        );
        self.send(packet, |config, bytes| {
            udp.emit(
                &mut UdpPacket::new_unchecked(bytes),
                &from.0.into(),
                &to.0.into(),
                payload.len(),
                |bytes| bytes.copy_from_slice(payload),
                &config.checksums,
            );
        });
    }

    /// Sends an ICMP message to the guest.
    pub(crate) fn send_icmp(&mut self, from: Ipv4Addr, message: &Icmpv4Repr<'_>) {
        let packet = ipv4(
            from,
            self.config.guest,
            IpProtocol::Icmp,
            message.buffer_len(),
        );
        self.send(packet, |config, bytes| {
            message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &config.checksums);
        });
    }

    /// Tells the guest that its packet to `to`, whose payload began with `head`, does not get
    /// through.
    pub(crate) fn send_unreachable(
        &mut self,
        to: Ipv4Addr,
        protocol: IpProtocol,
        head: [u8; 8],
        reason: Icmpv4DstUnreachable,
    ) {
        let message = Icmpv4Repr::DstUnreachable {
            reason,
            header: ipv4(self.config.guest, to, protocol, head.len()),
            data: &head,
        };
        self.send_icmp(self.config.router, &message);
    }

    /// Answers a TCP segment of `packet` with a reset (RFC 9293, section 3.10.7.1).
    pub(crate) fn send_reset(&mut self, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>) {
        let mut control_len = usize::from(segment.syn());
        control_len += usize::from(segment.fin());
        let (seq_number, ack_number) = match segment.ack() {
            true => (segment.ack_number(), None),
            false => (
                Default::default(),
                Some(segment.seq_number() + segment.payload().len() + control_len),
            ),
        };
        let reset = TcpRepr {
            src_port: segment.dst_port(),
            dst_port: segment.src_port(),
            control: TcpControl::Rst,
            seq_number,
            ack_number,
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (from, to) = (packet.destination, packet.source);
        let answer = ipv4(from, to, IpProtocol::Tcp, reset.buffer_len());
        self.send(answer, |config, bytes| {
            reset.emit(
                &mut TcpPacket::new_unchecked(bytes),
                &from.into(),
                &to.into(),
                &config.checksums,
            );
        });
    }

    /// Counts a refused flow, and says so, to the ledger as well.
    pub(crate) fn refuse(&mut self, refusal: &Refusal) {
        let (object, reason) = (refusal.object(), refusal.to_string());
        self.refuse_act("net.connect", &object, format_args!("{reason}"), &reason);
    }

    /// The same of any act: `said` is for people, `why` for the ledger.
    pub(crate) fn refuse_act(
        &mut self,
        action: &'static str,
        object: &str,
        said: fmt::Arguments<'_>,
        why: &str,
    ) {
        self.stats.refused += 1;
        self.chatter.say(self.now, said);
        self.journal.refusal(action, object, why);
    }

    /// Counts a flow for which there is no room, and says so.
    pub(crate) fn full(&mut self, what: &str) {
        self.stats.full += 1;
        self.chatter
            .say(self.now, format_args!("refused a flow: too many {what}"));
    }
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload_len: usize) -> Ipv4Repr {
    Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len,
        hop_limit: HOP_LIMIT,
    }
}
