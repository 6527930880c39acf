//! A hostile driver of virtio-net, over a socket with some frames to read and nobody who reads.
#![no_main]

mod driver;

use bulkhead_machine::Fd;
use bulkhead_machine::device::{Net as Described, NetBackend, RateLimit, TokenBucket};
use driver::{Script, drive};
use hypervisor::devices::virtio::net::Net;
use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

fuzz_target!(init: outlive_peers(), |bytes: &[u8]| {
    let mut script = Script(bytes);
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK,
        None,
    )
    .expect("a socket pair");
    let shape = script.byte();
    for n in 0..shape & 7 {
        let len = 1 + usize::from(script.byte()) * (1 + usize::from(n) * 16);
        send(&theirs, &vec![n; len], SendFlags::empty()).expect("it has room");
    }
    let operations = Some(TokenBucket {
        per_second: 1,
        burst: 2,
    });
    let limited = RateLimit {
        bytes: None,
        operations,
    };
    let rate = |bit: u8| {
        if shape & bit == 0 {
            RateLimit::default()
        } else {
            limited
        }
    };
    let described = Described {
        backend: NetBackend::Socket { socket: Fd(-1) },
        mac: [2, 0, 0, 0, 0, 1],
        mtu: (shape & 8 != 0).then_some(9000),
        queue_pairs: 1,
        receive_rate: rate(16),
        transmit_rate: rate(32),
    };
    let device = Net::new(&described, vec![ours]).expect("a network interface");
    let kept = (shape & 64 == 0).then_some(theirs);
    drive(Box::new(device), script);
    drop(kept);
});

/// As the start of any Rust program does, and libFuzzer's does not.
fn outlive_peers() {
    // SAFETY: no handler is installed, and nothing else runs yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
