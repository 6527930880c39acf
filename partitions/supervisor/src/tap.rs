//! Opens a tap interface that exists. The one room of this crate with `unsafe` code: one ioctl.
#![allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use crate::error::Error;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

// linux/if_tun.h
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);

/// `struct ifreq` of linux/if.h, with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Opens `queues` descriptors of the interface, one for each pair of queues.
pub fn open_tap(interface: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let failed = |source| Error::Tap {
        interface: interface.to_owned(),
        source,
    };
    // The ioctl would make an interface that is not there.
    exists(interface).map_err(failed)?;
    let multiple = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multiple;
    (0..queues)
        .map(|_| open_queue(interface, flags).map_err(failed))
        .collect()
}

fn exists(interface: &str) -> io::Result<()> {
    let kind = SocketType::DGRAM;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    name_to_index(&socket, interface)?;
    Ok(())
}

fn open_queue(interface: &str, flags: u16) -> io::Result<OwnedFd> {
    let mut options = File::options();
    let tun = options.read(true).write(true).open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags,
        rest: [0; 22],
    };
    // The last byte stays NUL: a manifest's names are shorter.
    for (to, from) in request.name.iter_mut().take(15).zip(interface.bytes()) {
        *to = from;
    }
    // SAFETY: `TUNSETIFF` reads and writes a `struct ifreq`, which `InterfaceRequest` is, of 40
    // bytes; it lives across the call.
    let update = unsafe { Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request) };
    // SAFETY: `tun` is a descriptor of the tun driver, whose ioctl this is.
    unsafe { ioctl(&tun, update) }?;
    rustix::io::ioctl_fionbio(&tun, true)?;
    Ok(tun.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_refused_and_not_made() {
        let error = open_tap("no-such-tap", 1).unwrap_err();
        assert_eq!(error.code(), "tap-not-found");
        assert!(exists("no-such-tap").is_err());
        assert!(exists("lo").is_ok());
    }
}
