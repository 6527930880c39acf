//! What the supervisor hands to `bulkhead-gateway`, the user-mode network of one partition, and
//! what the two say to each other while it runs.
//!
//! The supervisor links this crate and never the gateway. A description is fully resolved: numbers,
//! rules and descriptors that are already open in the gateway process. What no rule allows cannot
//! be reached; a description without rules is a network with a DHCP server and nothing behind it.
//!
//! To start one:
//! 1. make a `SOCK_SEQPACKET` socketpair; one end is [`NetworkDescription::link`], the other goes
//!    to the VMM as the backend of virtio-net. Each packet is one raw Ethernet frame without a
//!    virtio-net header, of at most [`MAX_FRAME_BYTES`];
//! 2. write the description as JSON into a memfd or pipe, and spawn
//!    `bulkhead-gateway --description-fd N` with it, the link, the listeners and the control socket
//!    open, and nothing else. Standard error is for people: a line for each refused flow;
//! 3. the gateway jails itself and says [`control::Event::Running`]; frames sent before wait in the
//!    link. It ends, with status 0, when the VMM closes the link or the supervisor the control
//!    socket; and with the thread that spawned it (`PR_SET_PDEATHSIG`).
#![forbid(unsafe_code)]

pub mod connect;
pub mod control;
pub mod http;
pub mod range;
pub mod rule;
pub mod tools;
mod used;

use std::net::{Ipv4Addr, SocketAddr};

pub use bulkhead_machine::{Fd, Jail};
use serde::{Deserialize, Serialize};

pub use connect::{Connect, Deny, Quota, Resolve, Secret, Web};
pub use rule::{Host, Loopback, ParseRuleError, Ports, Protocol, Rule};
pub use used::{USED_BYTES, USED_SECONDS, Used};

/// Version of this format; the gateway refuses any other.
pub const VERSION: u32 = 1;
/// Largest description in bytes, as JSON.
pub const MAX_DESCRIPTION_BYTES: u64 = 1024 * 1024;
/// Smallest MTU: what every host on the Internet has to accept (RFC 791, section 3.1).
pub const MIN_MTU: u16 = 576;
/// Largest MTU: with it, TCP moves 64 KiB per frame.
pub const MAX_MTU: u16 = 65_520;
/// Largest frame on the link, in bytes: [`MAX_MTU`] and an Ethernet header, rounded up.
pub const MAX_FRAME_BYTES: usize = 65_550;
/// Most rules, loopback services and forwards, each.
pub const MAX_RULES: usize = 1024;
/// Most names of loopback services.
pub const MAX_HOSTS: usize = 64;
/// Most secrets.
pub const MAX_SECRETS: usize = 64;
/// Largest value of a secret, in bytes.
pub const MAX_SECRET_BYTES: usize = 16 * 1024;
/// Largest file of certificates, in bytes.
pub const MAX_CERTIFICATES_BYTES: u64 = 4 * 1024 * 1024;
/// Most files of certificates.
pub const MAX_TRUST: usize = 16;
/// The name under which a guest finds its models: the router's address, in plain HTTP.
pub const MODEL_HOST: &str = "model.bulkhead";
/// Port of [`MODEL_HOST`].
pub const MODEL_PORT: u16 = 80;
/// Largest file of models, in bytes.
pub const MAX_MODELS_BYTES: u64 = 4 * 1024 * 1024;
/// Most inbound forwards.
pub const MAX_FORWARDS: usize = 64;
/// Most resolvers.
pub const MAX_RESOLVERS: usize = 8;

/// One partition's network, as JSON on the descriptor named by
/// `bulkhead-gateway --description-fd N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkDescription {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the partition, for messages.
    pub name: String,
    /// This side of the `SOCK_SEQPACKET` socketpair.
    pub link: Fd,
    /// The control socket (`SOCK_SEQPACKET`), see [`control`]; absent: nobody asks.
    #[serde(default)]
    pub control: Option<Fd>,
    /// Hardware address of the guest's network interface, as virtio-net tells it. Frames from
    /// any other are dropped.
    pub guest_mac: [u8; 6],
    /// Largest IP packet in bytes, [`MIN_MTU`] to [`MAX_MTU`]; the guest learns it by DHCP. The
    /// device should offer the same (`VIRTIO_NET_F_MTU`).
    pub mtu: u16,
    /// Who computes the checksums of TCP and UDP in frames to the guest.
    #[serde(default)]
    pub checksums: Checksums,
    /// The addresses inside.
    #[serde(default)]
    pub addresses: Addresses,
    /// The guest's host name, told by DHCP: at most 63 letters, digits and `-`; absent: not told.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Where DNS queries go, in the order of preference: the host's resolvers (`nameserver` lines
    /// of its `resolv.conf`, port 53), at most [`MAX_RESOLVERS`]. With none, names do not resolve.
    /// Resolvers need no rule.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// What the guest may connect or send to.
    #[serde(default)]
    pub allow: Vec<Connect>,
    /// Names that resolve beside those of [`Self::allow`].
    #[serde(default)]
    pub resolve: Vec<Resolve>,
    /// What is refused all the same.
    #[serde(default)]
    pub deny: Deny,
    /// Amounts that [`Self::allow`] is counted against, at most [`MAX_RULES`].
    #[serde(default)]
    pub quotas: Vec<Quota>,
    /// The place in [`Self::quotas`] of what all bytes of the partition are counted against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<usize>,
    /// A file in which the gateway keeps what is used of [`Self::quotas`], as [`Used`] has it, for the
    /// gateway that comes after this one; absent: nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Fd>,
    /// How web requests are looked into; absent: they are not, and no rule may ask for it.
    #[serde(default)]
    pub web: Option<Web>,
    /// Secrets, at most [`MAX_SECRETS`]; only with [`Self::web`].
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// The models that the guest finds at [`MODEL_HOST`]; absent: none. Only with [`Self::ledger`].
    #[serde(default)]
    pub models: Option<ModelAccess>,
    /// A socket on which a person's consent is asked for (`bulkhead-approval`); absent: nobody is asked,
    /// and what takes consent is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvals: Option<Fd>,
    /// A socket to the ledger's writer, where acts are recorded before they are done.
    #[serde(default)]
    pub ledger: Option<Fd>,
    /// Whose acts these are in there: `system/partition`; absent: the partition's name.
    #[serde(default)]
    pub actor: Option<String>,
    /// Where the partition's tools ask for connections to web servers (`SOCK_SEQPACKET`, see [`tools`]);
    /// absent: they do not. Only with [`Self::web`].
    #[serde(default)]
    pub tools: Option<Fd>,
    /// A socket to what answers for the conditions of the partition (`SOCK_SEQPACKET`, as
    /// `bulkhead-conditions` has it), which is asked before an act is done; absent: there are none.
    #[serde(default)]
    pub conditions: Option<Fd>,
    /// Services on the host's loopback that the guest finds at the router's address.
    #[serde(default)]
    pub loopback: Vec<Loopback>,
    /// Names of those services: they resolve to the router's address, and a rule that speaks of one
    /// narrows what goes there as it would anywhere. At most [`MAX_HOSTS`], in lower case, without
    /// the final dot.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Connections from outside that reach the guest.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Most TCP connections at a time, both ways together, 1 to 4096; further ones are refused.
    #[serde(default = "default_max_connections")]
    pub max_connections: u16,
    /// How far the process locks itself in before it reads the first frame.
    pub jail: Jail,
}

/// 1024: some 100 MiB of buffers when all are full.
fn default_max_connections() -> u16 {
    1024
}

impl NetworkDescription {
    /// A network with nothing behind it: every field that has a default has that.
    pub fn new(name: &str, link: Fd, guest_mac: [u8; 6], jail: Jail) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            link,
            control: None,
            guest_mac,
            mtu: MAX_MTU,
            checksums: Checksums::default(),
            addresses: Addresses::default(),
            hostname: None,
            resolvers: Vec::new(),
            allow: Vec::new(),
            resolve: Vec::new(),
            deny: Deny::default(),
            quotas: Vec::new(),
            budget: None,
            used: None,
            web: None,
            secrets: Vec::new(),
            models: None,
            approvals: None,
            ledger: None,
            actor: None,
            tools: None,
            conditions: None,
            loopback: Vec::new(),
            hosts: Vec::new(),
            forwards: Vec::new(),
            max_connections: default_max_connections(),
            jail,
        }
    }
}

/// Bytes of tokens and money in millionths of a cent, both little-endian.
pub const SPENT_BYTES: usize = 16;

/// What was spent on models, as a file has it.
pub fn spent(tokens: u64, micro_cents: u64) -> [u8; SPENT_BYTES] {
    let both = u128::from(tokens) | u128::from(micro_cents) << 64;
    both.to_le_bytes()
}

/// Tokens, and money in millionths of a cent, of what a file has.
pub fn spent_from(file: [u8; SPENT_BYTES]) -> (u64, u64) {
    let both = u128::from_le_bytes(file);
    (both as u64, (both >> 64) as u64)
}

/// The way to a partition's models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelAccess {
    /// What the router of models works with, as JSON, to be read to the end: it has keys.
    pub file: Fd,
    /// TCP ports of the providers.
    pub ports: Vec<u16>,
    /// A file in which the gateway keeps what was spent, at its beginning, as [`spent`] has it: for
    /// the gateway that comes after this one.
    pub spent: Fd,
}

/// Checksums of TCP and UDP in frames to the guest. Those in frames from the guest are never
/// looked at: the link is memory, not a wire, and a device that offers `VIRTIO_NET_F_CSUM` passes
/// them on unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checksums {
    /// The gateway computes them: right for any device.
    #[default]
    Computed,
    /// Left out, which is quicker. The device must mark every frame `VIRTIO_NET_HDR_F_DATA_VALID`,
    /// which takes a guest that accepted `VIRTIO_NET_F_GUEST_CSUM`.
    Omitted,
}

/// The addresses inside: one subnet with the guest, the router and the DNS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// The guest's, given by DHCP; packets from any other are dropped.
    pub guest: Ipv4Addr,
    /// Length of the subnet's prefix, 8 to 30.
    pub prefix: u8,
    /// The router's, which answers ping, stands for the host's loopback where a [`Loopback`] says
    /// so, and is the source of forwarded connections.
    pub router: Ipv4Addr,
    /// The DNS server's; not the router's.
    pub dns: Ipv4Addr,
}

impl Default for Addresses {
    /// Guest 10.0.2.15, router 10.0.2.2, DNS server 10.0.2.3 in 10.0.2.0/24, as slirp has them.
    fn default() -> Self {
        Self {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            router: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
        }
    }
}

/// Connections to a socket of the host become connections of the router to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// TCP socket, bound and listening. Who may connect is what it is bound to.
    pub listener: Fd,
    /// What it is bound to, for records.
    pub address: SocketAddr,
    /// Port in the guest.
    pub guest_port: u16,
    /// As in [`Connect`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<usize>,
    /// As in [`Connect`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u64>,
}
