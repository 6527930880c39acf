//! The network device against drivers that behave and drivers that do not, over sockets in the
//! place of taps and network processes.

use bulkhead_machine::Fd;
use bulkhead_machine::device::{RateLimit, TokenBucket};
use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::super::testing::*;
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

fn described() -> Described {
    Described {
        backend: NetBackend::Socket { socket: Fd(-1) },
        mac: MAC,
        mtu: None,
        queue_pairs: 1,
        receive_rate: RateLimit::default(),
        transmit_rate: RateLimit::default(),
    }
}

fn packets() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK,
        None,
    )
    .unwrap()
}

/// A device with `features` negotiated, its other side, and a driver.
fn start(described: &Described, features: u64) -> (Net, OwnedFd, Rig) {
    let (ours, theirs) = packets();
    let mut device = Net::new(described, vec![ours]).unwrap();
    let mut rig = Rig::new(2);
    device.activate(rig.activation(features)).unwrap();
    (device, theirs, rig)
}

/// A device over `pairs` taps, and their other sides.
fn start_taps(pairs: u16, features: u64, offered: u64) -> (Net, Vec<OwnedFd>, Rig) {
    let (ours, theirs) = (0..pairs).map(|_| packets()).unzip();
    let described = Described {
        queue_pairs: pairs,
        ..described()
    };
    let mut device = Net::over(Backend::like_tap(ours, offered), &described).unwrap();
    let mut rig = Rig::new(2 * usize::from(pairs) + 1);
    device.activate(rig.activation(features)).unwrap();
    (device, theirs, rig)
}

/// `len` bytes of a frame from the guest's address.
fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|n| n as u8).collect();
    frame[6..12].copy_from_slice(&MAC);
    frame
}

/// A frame as the driver writes it.
fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES as usize], frame].concat()
}

fn arrived(peer: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 70_000];
    match recv(peer, &mut bytes[..], RecvFlags::DONTWAIT) {
        Ok((len, _)) => Some(bytes[..len].to_vec()),
        Err(_) => None,
    }
}

fn transmit(device: &mut Net, rig: &mut Rig) -> Progress {
    device.process_queue(TRANSMIT, &mut rig.io()).unwrap()
}

/// Lets the device look at everything that is ready, as the event loop does, until nothing is.
fn settle(device: &mut Net, rig: &mut Rig) {
    for _ in 0..100 {
        let ready = device.interests().into_iter().find(|interest| {
            // SAFETY: the device owns the descriptor and lives.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(interest.fd) };
            let flags = PollFlags::from_bits_truncate(interest.events.bits() as u16);
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
        });
        match ready {
            Some(interest) => {
                if device.process_backend(interest.fd, &mut rig.io()).unwrap() == Progress::More {
                    for queue in 0..rig.queues.len() {
                        let _ = device.process_queue(queue, &mut rig.io()).unwrap();
                    }
                }
            }
            None => return,
        }
    }
    panic!("the device does not come to rest");
}

fn counter(device: &Net, name: &str) -> u64 {
    let counters = device.counters();
    counters.iter().find(|(n, _)| *n == name).unwrap().1
}

#[test]
fn rules_of_the_description() {
    type Change = fn(&mut Described);
    let cases: [(Change, bool); 9] = [
        (|_| {}, true),
        (|net| net.mac[0] = 1, false),
        (|net| net.mtu = Some(67), false),
        (|net| net.mtu = Some(68), true),
        (|net| net.mtu = Some(65_520), true),
        (|net| net.mtu = Some(65_521), false),
        (|net| net.queue_pairs = 0, false),
        (|net| net.queue_pairs = 2, false),
        (
            |net| net.backend = NetBackend::Tap { queues: vec![] },
            false,
        ),
    ];
    for (index, (change, fine)) in cases.into_iter().enumerate() {
        let mut described = described();
        change(&mut described);
        let files = (0..described.queue_pairs).map(|_| packets().0).collect();
        assert_eq!(Net::new(&described, files).is_ok(), fine, "case {index}");
    }
    let stream = std::os::unix::net::UnixStream::pair().unwrap().0;
    let error = Net::new(&described(), vec![stream.into()]).unwrap_err();
    assert_eq!(error.code(), "net-invalid");
}

#[test]
fn the_configuration_space_holds_what_is_described() {
    let mut described = described();
    described.mtu = Some(9000);
    let (device, _peer, _) = start(&described, 0);
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    let expected = [
        MAC.as_slice(),
        &[1, 0, 1, 0],
        &9000u16.to_le_bytes(),
        &[0; 2],
    ]
    .concat();
    assert_eq!(config, *expected);
    assert_ne!(device.features() & 1 << VIRTIO_NET_F_MTU, 0);
    assert_eq!(device.features() & 1 << VIRTIO_NET_F_CSUM, 0);
}

#[test]
fn a_frame_goes_out_without_its_header() {
    let (mut device, peer, mut rig) = start(&described(), 0);
    let frame = frame(100);
    rig.fill(DATA, &with_header(&frame));
    rig.describe(
        TRANSMIT,
        0,
        &[
            (DATA, 5, NEXT, 1),
            (DATA + 5, 20, NEXT, 2),
            (DATA + 25, 87, 0, 0),
        ],
    );
    rig.offer(TRANSMIT, 0);
    assert_eq!(transmit(&mut device, &mut rig), Progress::Idle);
    assert_eq!(arrived(&peer), Some(frame));
    assert_eq!(rig.used(TRANSMIT), [(0, 0)]);
    assert_eq!(counter(&device, "transmit-bytes"), 100);
}

#[test]
fn what_may_not_go_is_dropped_and_counted() {
    let spoofed = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 8], &[0; 60]].concat();
    let longest = frame(MAX_FRAME_BYTES + 1);
    let mut with_offload = with_header(&frame(60));
    with_offload[1] = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
    let mut unknown = with_header(&frame(60));
    unknown[1] = 0x7f;
    for (what, bytes, counted) in [
        ("spoofed", with_header(&spoofed), "transmit-spoofed"),
        ("no frame", vec![0; 12], "transmit-dropped"),
        ("no header", vec![0; 1], "transmit-dropped"),
        (
            "too short",
            with_header(&frame(60))[..25].to_vec(),
            "transmit-dropped",
        ),
        ("too long", with_header(&longest), "transmit-dropped"),
        ("not negotiated", with_offload, "transmit-dropped"),
        ("unknown", unknown, "transmit-dropped"),
    ] {
        let (mut device, peer, mut rig) = start(&described(), 0);
        rig.fill(DATA, &bytes);
        rig.describe(TRANSMIT, 0, &[(DATA, bytes.len() as u32, 0, 0)]);
        rig.offer(TRANSMIT, 0);
        let _ = transmit(&mut device, &mut rig);
        assert_eq!(arrived(&peer), None, "{what}");
        assert_eq!(rig.used(TRANSMIT), [(0, 0)], "{what}");
        assert_eq!(counter(&device, counted), 1, "{what}");
    }
}

#[test]
fn a_tap_gets_the_header_as_far_as_it_was_negotiated() {
    let offload = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4;
    for (features, header, expected) in [
        (
            0,
            [7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9],
            Some([0, 0, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0]),
        ),
        (
            offload,
            [7, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9],
            Some([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]),
        ),
        (offload, [1, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], None),
    ] {
        let (mut device, peers, mut rig) = start_taps(1, features, offload);
        rig.fill(DATA, &[&header[..], &frame(60)].concat());
        rig.describe(TRANSMIT, 0, &[(DATA, 72, 0, 0)]);
        rig.offer(TRANSMIT, 0);
        let _ = transmit(&mut device, &mut rig);
        let expected = expected.map(|header| [&header[..], &frame(60)].concat());
        assert_eq!(arrived(&peers[0]), expected);
    }
}

#[test]
fn a_frame_comes_in_behind_a_header() {
    for features in [0, MERGE] {
        let (mut device, peer, mut rig) = start(&described(), features);
        assert!(device.interests().is_empty(), "no buffer, so nobody looks");
        rig.fill(DATA, &[0xee; 2000]);
        rig.describe(
            RECEIVE,
            0,
            &[(DATA, 7, WRITE | NEXT, 1), (DATA + 7, 1900, WRITE, 0)],
        );
        rig.offer(RECEIVE, 0);
        let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
        assert_eq!(device.interests().len(), 1);
        send(&peer, &frame(80), SendFlags::empty()).unwrap();
        settle(&mut device, &mut rig);
        assert_eq!(rig.used(RECEIVE), [(0, 92)]);
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(
            rig.bytes(DATA, 93),
            [&header[..], &frame(80), &[0xee]].concat()
        );
        assert!(device.interests().is_empty());
        assert_eq!(counter(&device, "receive-bytes"), 80);
    }
}

#[test]
fn a_long_frame_takes_several_buffers_at_once() {
    let (mut device, peer, mut rig) = start(&described(), MERGE);
    for n in 0..4u16 {
        let at = DATA + 0x1000 * u64::from(n);
        rig.describe(RECEIVE, n, &[(at, 500, WRITE, 0)]);
        rig.offer(RECEIVE, n);
    }
    let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
    send(&peer, &frame(1200), SendFlags::empty()).unwrap();
    settle(&mut device, &mut rig);
    assert_eq!(rig.used(RECEIVE), [(0, 500), (1, 500), (2, 212)]);
    assert_eq!(rig.bytes(DATA + 10, 2), [3, 0]);
    let parts = [(12, 488), (0x1000, 500), (0x2000, 212)];
    let got = parts.map(|(at, len)| rig.bytes(DATA + at, len)).concat();
    assert_eq!(got, frame(1200));
    // The one that is left does not hold the longest frame: wait for more.
    assert!(device.interests().is_empty());
}

#[test]
fn a_frame_that_no_buffer_holds_is_lost_alone() {
    let (mut device, peer, mut rig) = start(&described(), 0);
    for n in 0..2u16 {
        rig.describe(RECEIVE, n, &[(DATA, 72, WRITE, 0)]);
        rig.offer(RECEIVE, n);
    }
    let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
    for len in [61, 60, 1000] {
        send(&peer, &frame(len), SendFlags::empty()).unwrap();
    }
    settle(&mut device, &mut rig);
    assert_eq!(rig.used(RECEIVE), [(0, 72)]);
    assert_eq!(counter(&device, "receive-dropped"), 2);
}

#[test]
fn a_queue_too_small_for_the_longest_frame_gets_those_that_fit() {
    let (mut device, peer, mut rig) = start(&described(), MERGE);
    for n in 0..SIZE {
        rig.describe(RECEIVE, n, &[(DATA + 64 * u64::from(n), 32, WRITE, 0)]);
        rig.offer(RECEIVE, n);
    }
    let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
    for len in [501, 500] {
        send(&peer, &frame(len), SendFlags::empty()).unwrap();
    }
    settle(&mut device, &mut rig);
    assert_eq!(rig.used(RECEIVE).len(), 16);
    assert_eq!(counter(&device, "receive-dropped"), 1);
}

#[test]
fn a_buffer_without_room_for_the_header_stops_the_device() {
    let (mut device, _peer, mut rig) = start(&described(), MERGE);
    rig.describe(RECEIVE, 0, &[(DATA, 11, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    assert!(device.process_queue(RECEIVE, &mut rig.io()).is_err());
}

#[test]
fn a_peer_that_is_gone_is_a_link_that_is_down() {
    let (mut device, peer, mut rig) = start(&described(), 0);
    rig.describe(RECEIVE, 0, &[(DATA, 2000, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
    drop(peer);
    settle(&mut device, &mut rig);
    assert!(rig.config_changed && device.interests().is_empty());
    let mut status = [0xff; 2];
    device.read_config(6, &mut status);
    assert_eq!(status, [0, 0]);
    rig.fill(DATA, &with_header(&frame(60)));
    rig.describe(TRANSMIT, 0, &[(DATA, 72, 0, 0)]);
    rig.offer(TRANSMIT, 0);
    let _ = transmit(&mut device, &mut rig);
    assert_eq!(rig.used(TRANSMIT), [(0, 0)]);
    assert_eq!(counter(&device, "transmit-dropped"), 1);
    // A reset does not bring the peer back.
    device.reset();
    assert!(device.interests().is_empty());
}

#[test]
fn a_peer_that_is_gone_is_noticed_by_sending_too() {
    let (mut device, peer, mut rig) = start(&described(), 0);
    drop(peer);
    rig.fill(DATA, &with_header(&frame(60)));
    rig.describe(TRANSMIT, 0, &[(DATA, 72, 0, 0)]);
    rig.offer(TRANSMIT, 0);
    let _ = transmit(&mut device, &mut rig);
    assert_eq!(rig.used(TRANSMIT), [(0, 0)]);
    assert!(rig.config_changed);
}

#[test]
fn a_slow_peer_slows_the_guest_and_loses_nothing() {
    let (mut device, peer, mut rig) = start(&described(), 0);
    rig.fill(DATA, &with_header(&frame(60_000)));
    rig.describe(TRANSMIT, 0, &[(DATA, 60_012, 0, 0)]);
    for _ in 0..SIZE {
        rig.offer(TRANSMIT, 0);
    }
    let _ = transmit(&mut device, &mut rig);
    assert!(
        rig.used(TRANSMIT).len() < usize::from(SIZE),
        "the socket is full"
    );
    assert_eq!(device.interests()[0].events, EventSet::OUT);
    let mut count = 0;
    while let Some(got) = arrived(&peer) {
        assert_eq!(got, frame(60_000));
        count += 1;
        settle(&mut device, &mut rig);
    }
    assert_eq!((count, rig.used(TRANSMIT).len()), (16, 16));
}

#[test]
fn both_directions_keep_to_their_limits() {
    // A token in a quarter of an hour: the second frame does not come while the test runs.
    let operations = Some(TokenBucket {
        per_second: 1,
        burst: 1000,
    });
    let bytes = Some(TokenBucket {
        per_second: 1,
        burst: 60,
    });
    for limit in [
        RateLimit {
            bytes,
            operations: None,
        },
        RateLimit { bytes, operations },
    ] {
        let mut described = described();
        (described.receive_rate, described.transmit_rate) = (limit, limit);
        let (mut device, peer, mut rig) = start(&described, 0);
        rig.fill(DATA, &with_header(&frame(1000)));
        rig.describe(TRANSMIT, 0, &[(DATA, 1012, 0, 0)]);
        rig.describe(RECEIVE, 0, &[(DATA + 0x1000, 2000, WRITE, 0)]);
        for queue in [TRANSMIT, TRANSMIT, RECEIVE, RECEIVE] {
            rig.offer(queue, 0);
        }
        for _ in 0..2 {
            send(&peer, &frame(1000), SendFlags::empty()).unwrap();
        }
        for queue in [RECEIVE, TRANSMIT] {
            let _ = device.process_queue(queue, &mut rig.io()).unwrap();
        }
        settle(&mut device, &mut rig);
        assert_eq!((rig.used(TRANSMIT).len(), rig.used(RECEIVE).len()), (1, 1));
        for name in ["receive-throttled", "transmit-throttled"] {
            assert!(counter(&device, name) > 0, "{name}");
        }
        assert_eq!(device.interests().len(), 2, "only the timers");
        device.reset();
        assert!(device.interests().is_empty());
    }
}

#[test]
fn pairs_are_enabled_by_command() {
    const MQ: u64 = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
    let command = |device: &mut Net, rig: &mut Rig, queue: usize, bytes: &[u8]| {
        rig.fill(DATA, bytes);
        rig.describe(
            queue,
            0,
            &[
                (DATA, bytes.len() as u32, NEXT, 1),
                (DATA + 64, 1, WRITE, 0),
            ],
        );
        rig.offer(queue, 0);
        let _ = device.process_queue(queue, &mut rig.io()).unwrap();
        rig.bytes(DATA + 64, 1)[0]
    };
    let (mut device, peers, mut rig) = start_taps(3, MQ, 0);
    assert_eq!(device.queue_max_sizes().len(), 7);
    for (bytes, answer) in [
        (&[4, 0, 2, 0][..], 0),
        (&[4, 0, 0, 0], 1),
        (&[4, 0, 4, 0], 1),
        (&[4, 0, 2, 1], 1),
        (&[4, 1, 2, 0], 1),
        (&[0, 0, 1, 0], 1),
        (&[4, 0, 2], 1),
        (&[4, 0, 2, 0, 0], 1),
        (&[4], 1),
    ] {
        assert_eq!(
            command(&mut device, &mut rig, 6, bytes),
            answer,
            "{bytes:?}"
        );
        assert_eq!(device.active, 2);
    }
    // Each queue of the backend has a pair that receives, the third that of the first.
    for pair in [0, 1] {
        for n in 0..2 {
            rig.describe(2 * pair, n, &[(DATA, 100, WRITE, 0)]);
            rig.offer(2 * pair, n);
        }
        let _ = device.process_queue(2 * pair, &mut rig.io()).unwrap();
    }
    assert_eq!(device.interests().len(), 3);
    for peer in &peers {
        send(peer, &with_header(&frame(60)), SendFlags::empty()).unwrap();
    }
    settle(&mut device, &mut rig);
    assert_eq!((rig.used(0).len(), rig.used(2).len()), (2, 1));
    device.reset();
    assert_eq!(device.active, 1);

    // A driver that knows of no pairs finds the control queue behind the first one.
    let (mut device, _peers, mut rig) = start_taps(3, 1 << VIRTIO_NET_F_CTRL_VQ, 0);
    assert_eq!(command(&mut device, &mut rig, 2, &[4, 0, 1, 0]), 1);
    rig.describe(2, 0, &[(DATA, 4, 0, 0)]);
    rig.offer(2, 0);
    assert!(
        device.process_queue(2, &mut rig.io()).is_err(),
        "nowhere to answer"
    );
}

#[test]
fn malformed_chains_stop_the_device() {
    for (what, descriptors, table) in malformed_chains() {
        for queue in [RECEIVE, TRANSMIT] {
            let (mut device, peer, mut rig) = start(&described(), 0);
            rig.describe(queue, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(queue, 0);
            assert!(
                device.process_queue(queue, &mut rig.io()).is_err(),
                "{what}"
            );
            assert_eq!((rig.used(queue).len(), arrived(&peer)), (0, None), "{what}");
        }
    }
}

proptest! {
    /// Whatever the buffers, a frame that fits arrives whole, in the first of them, and nothing
    /// behind it is touched.
    #[test]
    fn any_buffers_do(
        lens in vec(12u32..400, usize::from(SIZE)), len in 14usize..3000, byte in any::<u8>(),
    ) {
        let mut described = described();
        described.mtu = Some(3000);
        let (mut device, peer, mut rig) = start(&described, MERGE);
        rig.fill(DATA, &[byte; 16 * 512]);
        for (n, len) in (0..SIZE).zip(&lens) {
            rig.describe(RECEIVE, n, &[(DATA + 512 * u64::from(n), *len, WRITE, 0)]);
            rig.offer(RECEIVE, n);
        }
        let _ = device.process_queue(RECEIVE, &mut rig.io()).unwrap();
        send(&peer, &frame(len), SendFlags::empty()).unwrap();
        settle(&mut device, &mut rig);
        let room: usize = lens.iter().map(|len| *len as usize).sum();
        let used = rig.used(RECEIVE);
        if len + 12 > room {
            prop_assert_eq!(used, []);
            return Ok(());
        }
        let mut got = Vec::new();
        for (n, written) in &used {
            got.extend(rig.bytes(DATA + 512 * u64::from(*n), *written as usize));
            let behind = rig.bytes(DATA + 512 * u64::from(*n) + u64::from(*written), 112);
            prop_assert_eq!(behind, vec![byte; 112]);
        }
        prop_assert_eq!(&got[..10], &[0; 10]);
        prop_assert_eq!(usize::from(got[10]) | usize::from(got[11]) << 8, used.len());
        prop_assert_eq!(&got[12..], frame(len));
    }
}
