//! Frames from the guest, taken apart as far as everybody needs. Used by [`crate::Gateway`].

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet,
};

use crate::config::Config;

/// Shortest header of IPv4.
const MIN_HEADER: usize = 20;

/// A frame that concerns the gateway.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    /// The guest asks for the hardware address of this one of the gateway's addresses.
    WhoHas {
        /// The address.
        address: Ipv4Addr,
        /// Who asks; unspecified while the guest has no address.
        asker: Ipv4Addr,
    },
    /// A packet.
    Packet(Packet<'a>),
}

/// An IPv4 packet of the guest, whole, its header correct.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    /// Header and payload, without what may follow.
    pub bytes: &'a [u8],
    /// From: the guest, or unspecified.
    pub source: Ipv4Addr,
    /// To.
    pub destination: Ipv4Addr,
    /// Of the payload.
    pub protocol: IpProtocol,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet that was checked before.
    pub(crate) fn whole(bytes: &'a [u8]) -> Option<Self> {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        Some(Self {
            bytes,
            source: packet.src_addr(),
            destination: packet.dst_addr(),
            protocol: packet.next_header(),
            payload: packet.payload(),
        })
    }
}

/// Takes a frame apart; `None` where it is malformed, not for the gateway, or of a kind that is
/// not served.
pub(crate) fn parse<'a>(config: &Config, bytes: &'a [u8]) -> Option<Frame<'a>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let to = frame.dst_addr();
    if frame.src_addr() != config.guest_mac
        || to != config.own_mac && to != EthernetAddress::BROADCAST
    {
        return None;
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => who_has(config, frame.payload()),
        EthernetProtocol::Ipv4 => packet(config, frame.payload()).map(Frame::Packet),
        _ => None,
    }
}

fn who_has<'a>(config: &Config, bytes: &[u8]) -> Option<Frame<'a>> {
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_protocol_addr: asker,
        target_protocol_addr: address,
        ..
    } = ArpRepr::parse(&ArpPacket::new_checked(bytes).ok()?).ok()?
    else {
        return None;
    };
    let own = address == config.router || address == config.dns;
    own.then_some(Frame::WhoHas { address, asker })
}

fn packet<'a>(config: &Config, bytes: &'a [u8]) -> Option<Packet<'a>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    let header = usize::from(packet.header_len());
    let length = usize::from(packet.total_len());
    let source = packet.src_addr();
    if packet.version() != 4
        || header < MIN_HEADER
        || length > usize::from(config.mtu)
        || !packet.verify_checksum()
        || packet.more_frags()
        || packet.frag_offset() != 0
        || source != config.guest && !source.is_unspecified()
    {
        return None;
    }
    Packet::whole(bytes.get(..length)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_network::{Fd, Jail, NetworkDescription};
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::Ipv4Repr;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn config() -> Config {
        Config::new(&NetworkDescription::new("t", Fd(3), GUEST, Jail::None)).unwrap()
    }

    /// A frame of the guest with an empty UDP packet, changed at some places.
    fn frame(config: &Config, changes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 28];
        frame[..6].copy_from_slice(&config.own_mac.0);
        frame[6..12].copy_from_slice(&GUEST);
        frame[12] = 8;
        let repr = Ipv4Repr {
            src_addr: config.guest,
            dst_addr: Ipv4Addr::new(192, 0, 2, 1),
            next_header: IpProtocol::Udp,
            payload_len: 8,
            hop_limit: 64,
        };
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        for (at, byte) in changes {
            frame[*at] = *byte;
        }
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        if packet.header_len() <= 28 {
            packet.fill_checksum();
        }
        frame
    }

    #[test]
    fn packets_of_the_guest_come_through() {
        let config = config();
        let mut bytes = frame(&config, &[]);
        bytes.extend([0; 18]);
        let Some(Frame::Packet(packet)) = parse(&config, &bytes) else {
            panic!("dropped");
        };
        assert_eq!(packet.bytes.len(), 28, "without the padding");
        assert_eq!(packet.payload.len(), 8);
        let unspecified = frame(&config, &[(26, 0), (27, 0), (28, 0), (29, 0)]);
        assert!(parse(&config, &unspecified).is_some());
    }

    #[test]
    fn others_are_dropped() {
        let config = config();
        for (why, changes) in [
            ("to another station", vec![(5, 99)]),
            ("from another station", vec![(11, 99)]),
            ("ipv6", vec![(12, 0x86), (13, 0xdd)]),
            ("version", vec![(14, 0x55)]),
            ("short header", vec![(14, 0x44)]),
            ("header beyond the end", vec![(14, 0x4f)]),
            ("length beyond the end", vec![(17, 99)]),
            ("length below the header", vec![(17, 19)]),
            ("first fragment", vec![(20, 0x20)]),
            ("last fragment", vec![(21, 1)]),
            ("foreign source", vec![(29, 99)]),
        ] {
            let bytes = frame(&config, &changes);
            assert!(parse(&config, &bytes).is_none(), "{why}");
        }
        let mut bytes = frame(&config, &[]);
        bytes[24] ^= 1;
        assert!(parse(&config, &bytes).is_none(), "checksum");
    }

    proptest! {
        #[test]
        fn any_frame_is_taken_or_dropped(bytes: Vec<u8>, kind in 0_usize..3) {
            let config = config();
            let mut frame = frame(&config, &[]);
            frame.truncate([0, 12, 14][kind]);
            frame.extend(bytes);
            if let Some(Frame::Packet(packet)) = parse(&config, &frame) {
                prop_assert!(packet.bytes.len() >= packet.payload.len() + MIN_HEADER);
            }
        }
    }
}
