//! What grants become: the checked devices of a partition, with every option decided.

use bulkhead_capability::{Constraints, Listen};
use bulkhead_machine::device::{ImageFormat, RateLimit};
use bulkhead_network::{Host, Loopback, Rule};
use std::path::PathBuf;

/// A device of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Unique in the partition: 1 to 20 of letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
}

/// Kinds of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A disk, from `block.read` or `block.write`.
    Disk(Disk),
    /// The user-mode network, from all of `net.connect`, `net.listen`, `net.loopback` and
    /// `dns.resolve` together.
    Network(Network),
    /// A tap interface, from `net.tap`.
    Tap(Tap),
    /// A shared directory, from `fs.read` or `fs.write`.
    Share(Share),
    /// A file that is memory, from `pmem.read` or `pmem.write`.
    Pmem {
        /// The file.
        path: PathBuf,
        /// The guest may write it.
        write: bool,
    },
    /// Sockets between host and guest.
    Vsock {
        /// The guest's address, from 3.
        cid: u32,
    },
    /// A disk of another process.
    VhostUserBlock {
        /// Its socket.
        path: PathBuf,
        /// Request queues.
        queues: u16,
    },
    /// A network interface of another process.
    VhostUserNet {
        /// Its socket.
        path: PathBuf,
        /// Hardware address.
        mac: [u8; 6],
        /// Pairs of queues.
        queues: u16,
    },
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Image or block device.
    pub path: PathBuf,
    /// The guest may write the disk; with an overlay the image itself is only read.
    pub write: bool,
    /// Of the image; anything but raw is only read.
    pub format: ImageFormat,
    /// What a qcow2 image is based on, and what that is based on, to the last: never looked for,
    /// since an image may name any file of the host.
    pub backing: Vec<Backing>,
    /// What the guest writes goes here.
    pub overlay: Option<PathBuf>,
    /// Past the host's page cache.
    pub direct: bool,
    /// Request queues.
    pub queues: u16,
    /// How fast it may be.
    pub rate: RateLimit,
}

/// An image that another is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Image or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
}

/// The user-mode network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where the guest may connect or send to.
    pub connect: Vec<Connect>,
    /// Names that resolve though nothing there can be connected to.
    pub resolve: Vec<Resolve>,
    /// Where it may not, whatever `connect` and `resolve` say.
    pub deny: Vec<Denial>,
    /// Services of the host's loopback that it may use.
    pub loopback: Vec<Loopback>,
    /// Names of those services, which resolve to the router.
    pub hosts: Vec<String>,
    /// Files with certificates of authorities that servers are trusted by beside the host's own,
    /// where requests are looked into.
    pub trust: Vec<PathBuf>,
    /// Sockets of the host that lead to it.
    pub listen: Vec<Inbound>,
    /// Hardware address of the guest's interface.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Most TCP connections at a time.
    pub max_connections: u16,
    /// How fast the guest may receive.
    pub receive_rate: RateLimit,
    /// How fast it may send.
    pub transmit_rate: RateLimit,
}

/// Where a guest may connect or send to, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The hosts and ports.
    pub rule: Rule,
    /// Requests, amounts and time.
    pub constraints: Constraints,
}

/// Names that a guest may resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolve {
    /// A name, or all below one.
    pub name: Host,
    /// Amounts and time.
    pub constraints: Constraints,
}

/// A socket of the host that leads to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where it listens, and to which port it leads.
    pub listen: Listen,
    /// Amounts and time.
    pub constraints: Constraints,
}

/// What a guest may not do on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Connect or send there.
    Connect(Rule),
    /// Resolve these names.
    Resolve(Host),
}

/// A tap interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The host's name of it.
    pub interface: String,
    /// Hardware address of the guest's interface.
    pub mac: [u8; 6],
    /// Largest IP packet in bytes, where the guest is told.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub queues: u16,
    /// How fast the guest may receive.
    pub receive_rate: RateLimit,
    /// How fast it may send.
    pub transmit_rate: RateLimit,
}

/// A shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// The guest may change it.
    pub write: bool,
    /// What the guest mounts.
    pub tag: String,
    /// Whose files they are.
    pub owner: Owner,
}

/// Whose the files of a shared directory are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// As the guest says; takes root.
    Guest,
    /// The user's who exports them; the guest sees these ids.
    Exporter {
        /// User id in the guest.
        uid: u32,
        /// Group id in the guest.
        gid: u32,
    },
}

/// A locally administered address that is the same at every start: FNV-1a of all the names.
pub(crate) fn stable_mac(names: [&str; 3]) -> [u8; 6] {
    let hash = names
        .iter()
        .flat_map(|name| name.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let [_, _, first, rest @ ..] = hash.to_be_bytes();
    let [a, b, c, d, e] = rest;
    // Neither multicast nor anybody's assigned number (IEEE 802, section 8.2).
    [(first & 0xfc) | 0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_stable_and_local() {
        let mac = stable_mac(["shop", "web", "net0"]);
        assert_eq!(mac, stable_mac(["shop", "web", "net0"]));
        assert_eq!(mac[0] & 3, 2);
        for other in [
            ["shop", "web", "net1"],
            ["shopw", "eb", "net0"],
            ["", "", ""],
        ] {
            assert_ne!(mac, stable_mac(other));
        }
    }
}
