//! A hostile driver of virtio-vsock, between host processes that connect and a supervisor that
//! answers.
#![no_main]

mod driver;

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use bulkhead_machine::control::vsock::{Connect, Connected};
use driver::{Host, Script, drive_on};
use hypervisor::devices::virtio::vsock::Vsock;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};

/// The guest's address, and the port every host process wants.
const CID: u32 = 3;

fuzz_target!(init: outlive_peers(), |bytes: &[u8]| {
    let mut script = Script(bytes);
    let shape = script.byte();
    let name = format!("bulkhead-fuzz-vsock-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a free name");
    let (supervisor, connector) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK,
        None,
    )
    .expect("a socket pair");
    let device = Vsock::new(CID, listener.into(), connector).expect("a vsock device");
    let peers: RefCell<Vec<UnixStream>> = RefCell::default();
    for n in 0..shape & 3 {
        let mut peer = UnixStream::connect_addr(&address).expect("it listens");
        let line: &[u8] = if n == 2 {
            b"CONNECT what\n"
        } else {
            b"CONNECT 5\nearly"
        };
        peer.write_all(line).expect("it has room");
        peers.borrow_mut().push(peer);
    }
    let turns = Cell::new(0u32);
    let elsewhere = || {
        turns.set(turns.get() + 1);
        while let Some(peer) = answer(&supervisor, shape) {
            peers.borrow_mut().push(peer);
        }
        let mut peers = peers.borrow_mut();
        for peer in peers.iter_mut() {
            peer.set_nonblocking(true).expect("a socket");
            // Some read, some write, some do both; some leave.
            if shape & 8 != 0 {
                let _ = peer.read(&mut [0; 4096]);
            }
            if shape & 16 != 0 {
                let _ = peer.write(&[7; 1000]);
            }
        }
        if shape & 32 != 0 && turns.get() % 4 == 0 {
            peers.pop();
        }
    };
    let host = Host {
        elsewhere: &elsewhere,
        ..Host::default()
    };
    drive_on(host, Box::new(device), script);
});

/// Answers a question, if there is one; the other side of the connection.
fn answer(supervisor: &OwnedFd, shape: u8) -> Option<UnixStream> {
    let mut buffer = [0; 512];
    let (len, _) = recv(supervisor, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
    let question: Connect = serde_json::from_slice(&buffer[..len]).expect("a question");
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let accepted = shape & 4 == 0 || question.port % 2 == 0;
    let answer = Connected {
        id: question.id,
        accepted,
    };
    let text = serde_json::to_vec(&answer).expect("plain data");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let parts = [IoSlice::new(&text)];
    sendmsg(supervisor, &parts, &mut ancillary, SendFlags::empty()).ok()?;
    Some(ours)
}

/// As the start of any Rust program does, and libFuzzer's does not.
fn outlive_peers() {
    // SAFETY: no handler is installed, and nothing else runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
