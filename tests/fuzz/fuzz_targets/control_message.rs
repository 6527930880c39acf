//! Messages on the control socket, as a supervisor would never send them: the parser, and what its
//! commands do in a partition without vCPUs. Packets are separated by newlines; the first byte of each says
//! how many descriptors come with it.
#![no_main]

use std::fs::File;
use std::io::{IoSlice, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hypervisor::control::Channel;
use hypervisor::devices::virtio::blk::workers::Workers;
use hypervisor::machine::controller::Controller;
use hypervisor::machine::ending::Ending;
use hypervisor::machine::plug::Plug;
use hypervisor::machine::run_control::RunControl;
use libfuzzer_sys::fuzz_target;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};

fuzz_target!(|bytes: &[u8]| {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).expect("sockets");
    let ending = Ending::new().expect("an ending");
    let vcpus = Arc::new(RunControl::new(Vec::new(), &[], ending.clone()));
    let memory = hypervisor::machine::memory::create(2).expect("memory");
    let plug = Plug::new(memory.clone(), Workers::default());
    let channel = Channel::new(File::from(theirs));
    let mut controller = Controller::new(channel, vcpus, plug, memory, ending.clone());
    for packet in bytes.split(|byte| *byte == b'\n') {
        let Some((count, text)) = packet.split_first() else {
            continue;
        };
        send(&ours, text, usize::from(count % 4));
        for _ in 0..4 {
            controller.note_ready();
            controller.serve();
        }
        if ending.is_over() {
            return;
        }
        // An answer is a packet; without one, the message was a command to stop.
        if !text.is_empty() {
            let mut buffer = [0; 4096];
            recv(&ours, &mut buffer[..], RecvFlags::DONTWAIT).expect("an answer");
        }
    }
});

fn send(socket: &OwnedFd, text: &[u8], count: usize) {
    let (reader, _writer) = pipe().expect("pipe");
    let fds = vec![reader.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if count > 0 {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(
        socket,
        &[IoSlice::new(text)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .expect("sent");
}
