//! Reaches for the host's loopback, its metadata and its networks, and for other partitions: by address, by
//! names that resolve there, and by vsock.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType, socket};

use crate::{GRANTED, Outcome, RESOLVER, ROUTER, allowed, attack, dns, http};

/// Everywhere. `ports` are those where somebody listens on the host's loopback.
pub(crate) fn all(ports: &[u16]) {
    let fetch = |to: Ipv4Addr, port| {
        http::read(http::plain(to, port, &http::get("x.example.org", "/v1/ok")))
    };
    allowed("the granted service of the host", fetch(ROUTER, 80));
    let addresses = [
        ROUTER,
        RESOLVER,
        Ipv4Addr::new(10, 0, 2, 1),
        Ipv4Addr::new(10, 0, 2, 255),
        Ipv4Addr::new(169, 254, 169, 254),
        Ipv4Addr::new(169, 254, 1, 1),
        Ipv4Addr::new(10, 9, 9, 9),
        Ipv4Addr::new(172, 17, 0, 1),
        Ipv4Addr::new(192, 168, 7, 7),
        Ipv4Addr::new(100, 64, 0, 1),
        Ipv4Addr::UNSPECIFIED,
        GRANTED,
    ];
    for to in addresses {
        for port in ports {
            // Port 80 of the router is the service that was granted, and of the server the rule.
            if *port != 80 {
                attack(&format!("connect to {to}:{port}"), fetch(to, *port));
            }
        }
        if to != ROUTER && to != GRANTED {
            attack(&format!("connect to {to}:80"), fetch(to, 80));
        }
    }
    // The loopback's addresses as destinations on the wire: the guest gives its own away for that.
    let give_away = "bb=/bin/busybox; \
                     for d in all eth0; do echo 1 >/proc/sys/net/ipv4/conf/$d/route_localnet; done; \
                     $bb ip link set lo down; $bb ip address del 127.0.0.1/8 dev lo; \
                     $bb ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0; $bb true";
    let own = std::process::Command::new("/bin/busybox")
        .args(["sh", "-c", give_away])
        .status();
    assert!(own.is_ok_and(|status| status.success()));
    for to in [
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(127, 0, 0, 53),
        Ipv4Addr::new(127, 255, 255, 254),
    ] {
        for port in ports {
            attack(&format!("connect to {to}:{port}"), fetch(to, *port));
        }
    }
    // Names that a rule grants, and that lead to where no name may lead.
    for name in ["public.rebind.example.org", "flip.rebind.example.org"] {
        allowed(name, by_name(name, 80));
    }
    for name in [
        "loop.rebind.example.org",
        "loop2.rebind.example.org",
        "meta.rebind.example.org",
        "private.rebind.example.org",
        "shared.rebind.example.org",
        "router.rebind.example.org",
        "none.rebind.example.org",
    ] {
        // Behind the router's port 80 is the service that was granted.
        if name != "router.rebind.example.org" {
            attack(name, by_name(name, 80));
        }
        for port in ports {
            attack(&format!("{name}:{port}"), by_name(name, *port));
        }
    }
    // It led to a public address a moment ago, and now leads to the host.
    attack(
        "flip.rebind.example.org, again",
        by_name("flip.rebind.example.org", 80),
    );
    // The sixth version of the protocol is not there at all.
    for address in [
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[fe80::1]:80",
        "[fd00::1]:80",
    ] {
        let address = address.parse().expect("an address");
        let connected =
            std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(5));
        let outcome = connected
            .map(|_| "connected".into())
            .map_err(|error| error.to_string());
        attack(&format!("connect to {address}"), outcome);
    }
    over_vsock(ports);
}

/// Resolves, and tries each address at once.
fn by_name(name: &str, port: u16) -> Outcome {
    let mut why = String::from("no address");
    for address in dns::addresses(RESOLVER, name)? {
        match http::read(http::plain(address, port, &http::get(name, "/v1/ok"))) {
            Ok(what) => return Ok(what),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(why)
}

/// Other partitions have other addresses, and the host ports that were not granted to us.
fn over_vsock(ports: &[u16]) {
    allowed("the host's port 2000 of our own", vsock(2, 2000));
    for cid in [0, 1, 4, 100] {
        for port in [1024, 2001] {
            attack(&format!("vsock {cid}:{port}"), vsock(cid, port));
        }
    }
    let ports = ports.iter().map(|port| u32::from(*port));
    for port in ports.chain([0, 1, 22, 53, 1024, 2001, 1 << 31, u32::MAX - 1]) {
        attack(&format!("vsock 2:{port}"), vsock(2, port));
    }
}

fn vsock(cid: u32, port: u32) -> Outcome {
    let stream = socket(AddressFamily::VSOCK, SocketType::STREAM, None);
    let stream = stream.map_err(|error| error.to_string())?;
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a `sockaddr_vm` of `length` bytes that outlives the call.
    let done = unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), length) };
    match done {
        0 => Ok(format!("connected to {cid}:{port}")),
        _ => Err(std::io::Error::last_os_error().to_string()),
    }
}
