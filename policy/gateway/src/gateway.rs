//! The gateway without the process around it: frames of the guest, events of the host and the
//! passing of time go in; frames and calls to the host come out.

use bulkhead_network::NetworkDescription;
use bulkhead_network::control::Stats;
use bulkhead_proxy::quota::Quotas;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_SERVER_PORT, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, UdpPacket,
};

use crate::chatter::Chatter;
use crate::config::{Config, ConfigError};
use crate::consent::Consents;
use crate::core::Core;
use crate::dhcp;
use crate::dns::{self, Dns};
use crate::frame::{self, Frame, Packet};
use crate::host::{Host, Readiness};
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::requests;
use crate::rules::Rules;
use crate::schedule::Schedule;
use crate::table::{Kind, Token};
use crate::tcp::Tcp;
use crate::udp::Udp;

/// Most connections that tools want before others have a turn.
const MAX_WANTED: usize = 8;

/// One partition's network.
pub struct Gateway<H: Host> {
    core: Core<H>,
    tcp: Tcp<H>,
    udp: Udp<H>,
    dns: Dns<H>,
}

impl<H: Host> Gateway<H> {
    /// The network that `description` speaks of, which counts in `quotas`.
    ///
    /// # Errors
    /// The description makes no sense.
    pub fn new(
        description: &NetworkDescription,
        quotas: Quotas,
        host: H,
        chatter: Chatter,
    ) -> Result<Self, ConfigError> {
        let config = Config::new(description)?;
        Ok(Self {
            tcp: Tcp::new(config.max_connections),
            udp: Udp::new(),
            dns: Dns::new(),
            core: Core {
                rules: Rules::new(description, quotas),
                host,
                outbox: Outbox::new(config.own_mac, config.guest_mac),
                schedule: Schedule::default(),
                chatter,
                journal: Journal::default(),
                consents: Consents::default(),
                stats: Stats::default(),
                now: Instant::ZERO,
                config,
            },
        })
    }

    /// The host's side.
    pub fn host(&mut self) -> &mut H {
        &mut self.core.host
    }

    /// Records flows there from now on.
    pub(crate) fn set_journal(&mut self, journal: Journal) {
        self.core.journal = journal;
    }

    /// Asks a person there from now on.
    pub(crate) fn set_consents(&mut self, consents: Consents) {
        self.core.consents = consents;
    }

    /// Something was recorded, or a person has answered: those who waited for it go on.
    fn recorded(&mut self) {
        let core = &mut self.core;
        for (token, said) in core.consents.take() {
            self.udp.consented(core, token, said);
        }
        for (token, act) in core.journal.take() {
            match token.kind {
                Kind::Tcp => self.tcp.recorded(core, token, act),
                Kind::Dns => self.dns.decided(core, token, act),
                _ => self.udp.recorded(core, token, act),
            }
        }
    }

    /// The guest is gone, and everything with it: waits until that is on record, for a while.
    pub(crate) fn end(&mut self) {
        self.recorded();
        self.tcp.end(&mut self.core);
        self.udp.end(&mut self.core);
        self.dns.end(&mut self.core);
        self.core.rules.settle();
        self.core.journal.finish();
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats {
            tcp_open: self.tcp.len() as u64,
            udp_open: self.udp.len() as u64,
            ..self.core.stats
        }
    }

    /// It is `now`; never less than before.
    pub fn set_time(&mut self, now: Instant) {
        self.core.now = self.core.now.max(now);
    }

    /// A frame of the guest.
    pub fn frame(&mut self, bytes: &[u8]) {
        self.core.stats.frames_out += 1;
        match frame::parse(&self.core.config, bytes) {
            Some(Frame::WhoHas { address, asker }) => self.tell_address(address, asker),
            Some(Frame::Packet(packet)) => self.packet(&packet),
            None => self.core.stats.dropped_out += 1,
        }
    }

    /// The link takes frames again.
    pub fn link_writable(&mut self) {
        let core = &mut self.core;
        core.outbox.flush(&mut core.host, &mut core.stats);
        if core.outbox.is_clear() {
            core.schedule.unstall();
        }
    }

    /// The host told that something became possible for this token's owner.
    pub fn event(&mut self, token: Token, ready: Readiness) {
        let core = &mut self.core;
        match token.kind {
            Kind::Listener => self.tcp.accept(core, token.place()),
            Kind::Tcp => self.tcp.event(core, token, ready),
            Kind::Udp => self.udp.event(core, token, ready),
            Kind::Dns => self.dns.event(core, token),
            Kind::Records => self.recorded(),
            Kind::Tools => self.wanted(),
            Kind::Link | Kind::Control => {}
        }
    }

    /// Looks after everybody who has work now, once.
    pub fn turn(&mut self) {
        let core = &mut self.core;
        while let Some(token) = core.schedule.due(core.now) {
            match token.kind {
                Kind::Tcp => self.tcp.due(core, token),
                Kind::Udp => self.udp.due(core, token),
                _ => self.dns.due(core, token),
            }
        }
        for _ in 0..core.schedule.ready() {
            let Some(token) = core.schedule.pop() else {
                return;
            };
            match token.kind {
                Kind::Tcp => self.tcp.turn(core, token),
                Kind::Udp => self.udp.turn(core, token),
                _ => self.dns.turn(core, token),
            }
        }
    }

    /// The partition's tools want something: some of it, since they are told of again.
    fn wanted(&mut self) {
        for _ in 0..MAX_WANTED {
            let Some(wanted) = self.core.host.wanted() else {
                return;
            };
            match requests::known(&self.core, &wanted) {
                Some(address) => requests::go_on(&mut self.core, &wanted, address),
                None => self.dns.resolve(&mut self.core, wanted),
            }
        }
    }

    /// When [`Self::turn`] is to be called if nothing happens: `Some(now)` or earlier for at once.
    pub fn next_turn(&self) -> Option<Instant> {
        match self.core.schedule.ready() {
            0 => self.core.schedule.next_deadline(),
            _ => Some(self.core.now),
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        match packet.protocol {
            IpProtocol::Tcp => self.tcp.packet(&mut self.core, packet),
            IpProtocol::Udp => self.datagram(packet),
            IpProtocol::Icmp => self.icmp(packet),
            _ => self.core.stats.dropped_out += 1,
        }
    }

    fn datagram(&mut self, packet: &Packet<'_>) {
        let core = &mut self.core;
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else {
            core.stats.dropped_out += 1;
            return;
        };
        let (from, port) = (datagram.src_port(), datagram.dst_port());
        let to = packet.destination;
        let own = to == core.config.router || to.is_broadcast();
        if own && port == DHCP_SERVER_PORT {
            dhcp::answer(core, datagram.payload());
        } else if packet.source.is_unspecified() || from == 0 || !is_single(&core.config, packet) {
            // Broadcasts and multicasts, of which every system sends some, are not worth a line.
            core.stats.dropped_out += 1;
        } else if (to, port) == (core.config.dns, dns::PORT) {
            self.dns.query(core, from, datagram.payload());
        } else {
            self.udp
                .datagram(core, from, (to, port), datagram.payload());
        }
    }

    fn icmp(&mut self, packet: &Packet<'_>) {
        let core = &mut self.core;
        let to = packet.destination;
        let message = Icmpv4Packet::new_checked(packet.payload).ok();
        let message = message.and_then(|m| Icmpv4Repr::parse(&m, &core.config.checksums).ok());
        let Some(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) = message
        else {
            // Errors about packets of ours, which concern nobody.
            core.stats.dropped_out += 1;
            return;
        };
        if packet.source.is_unspecified() || !is_single(&core.config, packet) {
            core.stats.dropped_out += 1;
        } else if to == core.config.router || to == core.config.dns {
            let reply = Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            core.send_icmp(to, &reply);
        } else {
            core.stats.refused += 1;
            let text = format_args!("refused ping to {to}: only the gateway answers");
            core.chatter.say(core.now, text);
            if let Some(head) = packet.payload.first_chunk() {
                let reason = Icmpv4DstUnreachable::CommProhibited;
                core.send_unreachable(to, IpProtocol::Icmp, *head, reason);
            }
        }
    }

    /// Answers an ARP request.
    fn tell_address(&mut self, address: std::net::Ipv4Addr, asker: std::net::Ipv4Addr) {
        let core = &mut self.core;
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: core.config.own_mac,
            source_protocol_addr: address,
            target_hardware_addr: core.config.guest_mac,
            target_protocol_addr: asker,
        };
        let (host, stats) = (&mut core.host, &mut core.stats);
        let len = reply.buffer_len();
        core.outbox
            .emit(host, stats, EthernetProtocol::Arp, len, |bytes| {
                reply.emit(&mut ArpPacket::new_unchecked(bytes));
            });
    }
}

/// Whether a packet is to one station, as far as can be told.
fn is_single(config: &Config, packet: &Packet<'_>) -> bool {
    let to = packet.destination;
    let last = config.router.to_bits() | !config.netmask().to_bits();
    !to.is_broadcast() && !to.is_multicast() && !to.is_unspecified() && to.to_bits() != last
}
