//! What a VMM that was taken over can say: to its supervisor, and to whoever else it has a socket to.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use bulkhead_machine::control::vsock::Connect;
use bulkhead_machine::control::{Event, MAX_MESSAGE_BYTES, Reply};
use bulkhead_machine::device::DeviceKind;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

use crate::{Outcome, Rogue};

/// Lies of each kind.
const MANY: usize = 20_000;

/// Tells every kind of lie, the fatal one last.
pub(crate) fn tell_all(rogue: &mut Rogue) {
    let outcome = ask_for_sockets(rogue);
    rogue.tell("reach others by vsock", &outcome);
    forge_records(rogue);
    for id in 0..MANY as u64 {
        let outcome = Reply::Done;
        rogue.event(&Event::Reply { id, outcome });
        rogue.event(&Event::Running {
            jail_gaps: vec!["\u{1b}[2J".repeat(100)],
        });
    }
    hand_over_descriptors(rogue);
    rogue.say("lied\n");
}

/// Asks the supervisor to connect to others than who listens for this partition.
fn ask_for_sockets(rogue: &Rogue) -> Outcome {
    let vsock = rogue
        .description
        .devices
        .iter()
        .find_map(|device| match &device.kind {
            DeviceKind::Vsock(vsock) => Some(vsock),
            _ => None,
        });
    let connector = borrowed(vsock.expect("a vsock").connector.0);
    let ports = [0, 1, 22, 443, 1024, u32::MAX];
    let ports = rogue.targets.ports.iter().copied().chain(ports);
    let mut asked = 0;
    for (id, port) in (0..).zip(ports) {
        let question = serde_json::to_vec(&Connect { id, port }).unwrap();
        send(connector, &question, SendFlags::NOSIGNAL).unwrap();
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut text)];
        let got = recvmsg(connector, &mut parts, &mut ancillary, RecvFlags::empty()).unwrap();
        let sockets = ancillary.drain().map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.count(),
            _ => 0,
        });
        let sockets: usize = sockets.sum();
        let text = String::from_utf8_lossy(text.get(..got.bytes).unwrap()).into_owned();
        if sockets > 0 || !text.contains("\"accepted\":false") {
            return Ok(format!("port {port}: {text}"));
        }
        asked += 1;
    }
    Err(format!("nobody at {asked} ports"))
}

/// Says to everybody it has a socket to that something was recorded.
fn forge_records(rogue: &Rogue) {
    let forged = br#"{"id":1,"entry":{"kind":"intent","actor":"forged","action":"forged","object":"forged","verdict":"allowed","reason":"forged","detail":{}}}"#;
    for device in &rogue.description.devices {
        for fd in device.kind.descriptors() {
            // Who has no end of a socket there, or none that listens, has not heard it.
            let _ = send(
                borrowed(fd.0),
                forged,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            );
        }
    }
}

/// Sends its supervisor more descriptors than it asked for, with packets as long as they may be.
fn hand_over_descriptors(rogue: &Rogue) {
    let own = rogue.console.as_fd();
    let fds: Vec<BorrowedFd<'_>> = std::iter::repeat_n(own, 100).collect();
    let mut packet = vec![b' '; MAX_MESSAGE_BYTES];
    let event = serde_json::to_vec(&Event::Reply {
        id: 0,
        outcome: Reply::Done,
    });
    let event = event.unwrap();
    packet[..event.len()].copy_from_slice(&event);
    for _ in 0..1000 {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let parts = [IoSlice::new(&packet)];
        // Who has too many on their way is stopped by the kernel.
        if sendmsg(&rogue.control, &parts, &mut ancillary, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
}

fn borrowed(number: i32) -> BorrowedFd<'static> {
    // SAFETY: the description names it as one of this process's, which nobody here closes.
    unsafe { BorrowedFd::borrow_raw(number) }
}
