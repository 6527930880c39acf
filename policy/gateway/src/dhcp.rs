//! The DHCP server (RFC 2131): the one address there is, for the one guest. Used by
//! [`crate::Gateway`].

use std::net::Ipv4Addr;

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
};

use crate::core::Core;
use crate::host::Host;

/// Seconds for which the address is given. It is the guest's for ever, so often enough not to
/// matter and seldom enough not to be heard of.
const LEASE: u32 = 86_400;
/// Option: subnet's broadcast address.
const BROADCAST_ADDRESS: u8 = 28;
/// Option: MTU of the interface.
const INTERFACE_MTU: u8 = 26;
/// Option: host name.
const HOST_NAME: u8 = 12;
/// Option: requested address.
const REQUESTED_ADDRESS: u8 = 50;
/// Option: message type.
const MESSAGE_TYPE: u8 = 53;
/// Option: the server that is spoken to.
const SERVER_IDENTIFIER: u8 = 54;
/// Option: client identifier, which an answer repeats (RFC 6842).
const CLIENT_IDENTIFIER: u8 = 61;

/// Answers a message of the guest, the payload of a UDP datagram.
pub(crate) fn answer<H: Host>(core: &mut Core<H>, payload: &[u8]) {
    let Some(request) = Request::parse(payload) else {
        core.stats.dropped_out += 1;
        return;
    };
    if request.packet.client_hardware_address() != core.config.guest_mac {
        core.stats.dropped_out += 1;
        return;
    }
    if let Some(message_type) = request.verdict(core.config.guest, core.config.router) {
        reply(core, &request, message_type);
    }
}

/// A message from a client.
struct Request<'a> {
    packet: DhcpPacket<&'a [u8]>,
    message_type: DhcpMessageType,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_identifier: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let packet = DhcpPacket::new_checked(payload).ok()?;
        // Shorter ones are valid, but smoltcp reads to the end of the fixed part.
        let options = payload.get(240..)?;
        let is_request = packet.opcode() == smoltcp::wire::DhcpOpCode::Request;
        if !is_request || packet.hardware_len() != 6 || packet.magic_number() != 0x6382_5363 {
            return None;
        }
        let address = |kind| {
            let bytes: [u8; 4] = option(options, kind)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        Some(Self {
            message_type: (*option(options, MESSAGE_TYPE)?.first()?).into(),
            requested: address(REQUESTED_ADDRESS),
            server: address(SERVER_IDENTIFIER),
            client_identifier: option(options, CLIENT_IDENTIFIER),
            packet,
        })
    }

    /// What to answer (RFC 2131, section 4.3).
    fn verdict(&self, guest: Ipv4Addr, router: Ipv4Addr) -> Option<DhcpMessageType> {
        match self.message_type {
            DhcpMessageType::Discover => Some(DhcpMessageType::Offer),
            DhcpMessageType::Request if self.server.is_some_and(|server| server != router) => None,
            DhcpMessageType::Request => {
                let current = self.packet.client_ip();
                let wanted = self.requested.unwrap_or(current);
                match wanted == guest {
                    true => Some(DhcpMessageType::Ack),
                    false => Some(DhcpMessageType::Nak),
                }
            }
            DhcpMessageType::Inform => Some(DhcpMessageType::Ack),
            _ => None,
        }
    }
}

/// The value of the first option of this kind.
fn option(mut options: &[u8], kind: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [255, ..] | [] | [_] => return None,
            [0, ref rest @ ..] => options = rest,
            [this, len, ref rest @ ..] => {
                let (value, rest) = rest.split_at_checked(len.into())?;
                if this == kind {
                    return Some(value);
                }
                options = rest;
            }
        }
    }
}

fn reply<H: Host>(core: &mut Core<H>, request: &Request<'_>, message_type: DhcpMessageType) {
    let config = &core.config;
    let refused = message_type == DhcpMessageType::Nak;
    let told = !refused && request.message_type != DhcpMessageType::Inform;
    let unspecified = Ipv4Addr::UNSPECIFIED;
    let mtu = config.mtu.to_be_bytes();
    let netmask = config.netmask();
    let broadcast = Ipv4Addr::from_bits(config.router.to_bits() | !netmask.to_bits()).octets();
    let mut options = Vec::new();
    let mut option = |kind, data| options.push(DhcpOption { kind, data });
    if let Some(identifier) = request.client_identifier {
        option(CLIENT_IDENTIFIER, identifier);
    }
    if !refused {
        option(INTERFACE_MTU, &mtu);
        option(BROADCAST_ADDRESS, &broadcast);
        if let Some(hostname) = &config.hostname {
            option(HOST_NAME, hostname.as_bytes());
        }
    }
    let repr = DhcpRepr {
        message_type,
        transaction_id: request.packet.transaction_id(),
        secs: 0,
        client_hardware_address: config.guest_mac,
        client_ip: match refused {
            true => unspecified,
            false => request.packet.client_ip(),
        },
        your_ip: if told { config.guest } else { unspecified },
        server_ip: unspecified,
        router: (!refused).then_some(config.router),
        subnet_mask: (!refused).then_some(netmask),
        relay_agent_ip: unspecified,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.router),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| std::iter::once(config.dns).collect()),
        max_size: None,
        lease_duration: told.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let mut bytes = vec![0; repr.buffer_len()];
    if repr
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes))
        .is_err()
    {
        return;
    }
    // Broadcast, which every client takes before it has an address.
    let to = match request.packet.client_ip() {
        ip if ip == config.guest && !refused => ip,
        _ => Ipv4Addr::BROADCAST,
    };
    let from = (config.router, DHCP_SERVER_PORT);
    core.send_udp(from, (to, DHCP_CLIENT_PORT), &bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

    /// A request with these options.
    fn message(client_ip: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 236];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[12..16].copy_from_slice(&client_ip);
        message.extend([0x63, 0x82, 0x53, 0x63]);
        message.extend(options);
        message
    }

    fn verdict(client_ip: [u8; 4], options: &[u8]) -> Option<DhcpMessageType> {
        let message = message(client_ip, options);
        Request::parse(&message)?.verdict(GUEST, ROUTER)
    }

    #[test]
    fn the_address_is_given_to_who_asks_for_it() {
        use DhcpMessageType::{Ack, Nak, Offer};
        let none = [0; 4];
        for (client_ip, options, answer) in [
            (none, &[53, 1, 1][..], Some(Offer)),
            (none, &[0, 0, 53, 1, 1, 255, 53, 1, 3], Some(Offer)),
            (none, &[53, 1, 1, 50, 4, 192, 0, 2, 1], Some(Offer)),
            (none, &[53, 1, 3, 50, 4, 10, 0, 2, 15], Some(Ack)),
            (none, &[53, 1, 3, 50, 4, 10, 0, 2, 16], Some(Nak)),
            (none, &[53, 1, 3], Some(Nak)),
            (GUEST.octets(), &[53, 1, 3], Some(Ack)),
            ([192, 0, 2, 1], &[53, 1, 3], Some(Nak)),
            (
                none,
                &[53, 1, 3, 54, 4, 10, 0, 2, 2, 50, 4, 10, 0, 2, 15],
                Some(Ack),
            ),
            (
                none,
                &[53, 1, 3, 54, 4, 10, 0, 2, 9, 50, 4, 10, 0, 2, 15],
                None,
            ),
            ([192, 0, 2, 1], &[53, 1, 8], Some(Ack)),
            (none, &[53, 1, 7], None),
            (none, &[53, 1, 99], None),
            (none, &[], None),
            (none, &[53], None),
            (none, &[53, 0], None),
            (none, &[53, 9, 1], None),
        ] {
            assert_eq!(verdict(client_ip, options), answer, "{options:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_passed_over() {
        let fine = message([0; 4], &[53, 1, 1]);
        assert!(Request::parse(&fine).is_some());
        for (at, byte) in [(0, 2), (2, 5), (236, 0)] {
            let mut wrong = fine.clone();
            wrong[at] = byte;
            assert!(Request::parse(&wrong).is_none(), "{at}");
        }
        for len in 0..240 {
            assert!(Request::parse(&fine[..len]).is_none(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_not(options: Vec<u8>) {
            let _ = verdict([0; 4], &options);
        }
    }
}
