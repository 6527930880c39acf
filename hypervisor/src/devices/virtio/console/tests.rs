//! A console between a driver and pipes.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::super::testing::*;
use super::*;

/// The queue of input buffers of the console, and that of its output.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// A console over two pipes, and the host's ends of them: what the host types, what it sees.
fn console() -> (Console, PipeWriter, PipeReader) {
    let (input, typed) = pipe().unwrap();
    let (seen, output) = pipe().unwrap();
    (
        Console::new(Some(input.into()), output.into(), false),
        typed,
        seen,
    )
}

/// Whether the device waits for its input, and for its output.
fn waits(device: &Console) -> (bool, bool) {
    let events: Vec<_> = device
        .interests()
        .iter()
        .map(|interest| interest.events)
        .collect();
    (
        events.contains(&EventSet::IN),
        events.contains(&EventSet::OUT),
    )
}

fn serve_backend(device: &mut Console, rig: &mut Rig, events: EventSet) {
    let fd = device
        .interests()
        .iter()
        .find(|interest| interest.events == events)
        .unwrap()
        .fd;
    let _ = device.process_backend(fd, &mut rig.io()).unwrap();
}

#[test]
fn output_goes_out_in_order() {
    let (mut device, _typed, mut seen) = console();
    let mut rig = Rig::new(2);
    rig.fill(DATA, b"hello, world");
    rig.describe(
        TRANSMIT,
        0,
        &[(DATA, 7, NEXT, 1), (DATA + 7, 5, 0, 0), (DATA, 5, 0, 0)],
    );
    rig.offer(TRANSMIT, 0);
    rig.offer(TRANSMIT, 2);
    assert_eq!(
        device.process_queue(TRANSMIT, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.used(TRANSMIT), [(0, 0), (2, 0)]);
    drop(device);
    let mut text = String::new();
    seen.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello, worldhello");
}

#[test]
fn a_reader_that_sleeps_holds_the_chain_back() {
    let (mut device, _typed, mut seen) = console();
    let mut rig = Rig::new(2);
    let bytes: Vec<u8> = (0..0xe000u32).map(|n| (n / 100) as u8).collect();
    rig.fill(DATA + 0x1000, &bytes);
    rig.describe(TRANSMIT, 0, &[(DATA + 0x1000, 0xe000, 0, 0)]);
    for _ in 0..4 {
        rig.offer(TRANSMIT, 0);
    }
    // A pipe holds 64 KiB: one chain and a part of the next.
    assert_eq!(
        device.process_queue(TRANSMIT, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.used(TRANSMIT).len(), 1);
    assert_eq!(waits(&device), (false, true));
    // Nothing moves while nobody reads, however often the driver notifies.
    assert_eq!(
        device.process_queue(TRANSMIT, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.used(TRANSMIT).len(), 1);

    let mut got = Vec::new();
    while rig.used(TRANSMIT).len() < 4 {
        let mut part = [0; 16384];
        let count = seen.read(&mut part).unwrap();
        got.extend_from_slice(&part[..count]);
        serve_backend(&mut device, &mut rig, EventSet::OUT);
    }
    assert_eq!(waits(&device), (false, false));
    drop(device);
    seen.read_to_end(&mut got).unwrap();
    assert!(got == bytes.repeat(4), "every byte, once, in order");
}

#[test]
fn what_may_block_is_never_waited_for() {
    // Sockets cannot be opened anew, so that these stay blocking.
    let (input, mut typed) = UnixStream::pair().unwrap();
    let (mut seen, output) = UnixStream::pair().unwrap();
    let mut device = Console::new(Some(input.into()), output.into(), false);
    let mut rig = Rig::new(2);
    rig.describe(TRANSMIT, 0, &[(DATA + 0x1000, 0xe000, 0, 0)]);
    while waits(&device) == (false, false) {
        rig.offer(TRANSMIT, 0);
        let progress = device.process_queue(TRANSMIT, &mut rig.io()).unwrap();
        assert_eq!(progress, Progress::Idle);
    }
    assert_eq!(waits(&device), (false, true), "the socket is full");
    while waits(&device) == (false, true) {
        assert_ne!(seen.read(&mut [0; 16384]).unwrap(), 0);
        serve_backend(&mut device, &mut rig, EventSet::OUT);
    }

    rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(RECEIVE), [], "nothing typed");
    typed.write_all(b"abc").unwrap();
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(RECEIVE), [(0, 3)]);
}

#[test]
fn a_reader_that_left_costs_nothing() {
    let (mut device, _typed, seen) = console();
    drop(seen);
    let mut rig = Rig::new(2);
    rig.describe(TRANSMIT, 0, &[(DATA, 0x1000, 0, 0)]);
    rig.offer(TRANSMIT, 0);
    rig.offer(TRANSMIT, 0);
    assert_eq!(
        device.process_queue(TRANSMIT, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.used(TRANSMIT).len(), 2);
    assert_eq!(waits(&device), (false, false));
}

#[test]
fn input_waits_for_a_buffer_and_a_buffer_for_input() {
    let (mut device, mut typed, _seen) = console();
    let mut rig = Rig::new(2);
    typed.write_all(b"echo hi\n").unwrap();
    assert_eq!(waits(&device), (false, false), "no buffer yet");
    rig.describe(
        RECEIVE,
        0,
        &[(DATA, 5, WRITE, 0), (DATA + 8, 100, WRITE, 0)],
    );
    rig.offer(RECEIVE, 0);
    rig.offer(RECEIVE, 1);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(waits(&device), (true, false));
    serve_backend(&mut device, &mut rig, EventSet::IN);
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(RECEIVE), [(0, 5), (1, 3)]);
    assert_eq!(rig.bytes(DATA, 5), b"echo ");
    assert_eq!(rig.bytes(DATA + 8, 4), b"hi\n\0");
    assert_eq!(waits(&device), (false, false), "no buffer left");
}

#[test]
fn spurious_readiness_is_harmless() {
    let (mut device, _typed, _seen) = console();
    let mut rig = Rig::new(2);
    rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(RECEIVE), []);
    assert_eq!(waits(&device), (true, false));
}

#[test]
fn the_end_of_input_ends_the_waiting() {
    let (mut device, typed, _seen) = console();
    let mut rig = Rig::new(2);
    rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    drop(typed);
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(waits(&device), (false, false));
    assert_eq!(rig.used(RECEIVE), []);
}

#[test]
fn files_serve_as_streams() {
    let mut input = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    input.write_all(b"xyz").unwrap();
    std::io::Seek::rewind(&mut input).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let mut device = Console::new(Some(input.into()), null.into(), false);
    assert_eq!(device.features(), 0, "no terminal, no size");
    let mut rig = Rig::new(2);
    rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0), (DATA, 5, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    rig.offer(RECEIVE, 1);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(RECEIVE), [(0, 3)]);
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(waits(&device), (false, false), "the file is at its end");
}

#[test]
fn flags_of_a_shared_description_stay() {
    let (input, _typed) = pipe().unwrap();
    let (_seen, output) = pipe().unwrap();
    let (kept_input, kept_output) = (input.try_clone().unwrap(), output.try_clone().unwrap());
    let _device = Console::new(Some(input.into()), output.into(), false);
    for flags in [
        rustix::fs::fcntl_getfl(&kept_input).unwrap(),
        rustix::fs::fcntl_getfl(&kept_output).unwrap(),
    ] {
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
}

#[test]
fn malformed_chains_stop_the_device() {
    for queue in [RECEIVE, TRANSMIT] {
        for (what, descriptors, table) in malformed_chains() {
            let (mut device, _typed, _seen) = console();
            let mut rig = Rig::new(2);
            rig.describe(queue, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(queue, 0);
            assert!(
                device.process_queue(queue, &mut rig.io()).is_err(),
                "{what} on {queue}"
            );
        }
    }
}

#[test]
fn an_input_buffer_the_device_may_not_write_stops_it() {
    let (mut device, _typed, _seen) = console();
    let mut rig = Rig::new(2);
    rig.describe(RECEIVE, 0, &[(DATA, 5, 0, 0)]);
    rig.offer(RECEIVE, 0);
    assert!(device.process_queue(RECEIVE, &mut rig.io()).is_err());
}

#[test]
fn reset_forgets_chains() {
    let (mut device, _typed, _seen) = console();
    let mut rig = Rig::new(2);
    rig.describe(RECEIVE, 0, &[(DATA, 5, WRITE, 0)]);
    rig.offer(RECEIVE, 0);
    assert_eq!(
        device.process_queue(RECEIVE, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    device.reset();
    assert_eq!(waits(&device), (false, false));
}

/// Messages of the device so far: port, event, value, and what follows.
fn heard(rig: &Rig, buffers: u64) -> Vec<(u32, u16, u16, Vec<u8>)> {
    let used = rig.used(CONTROL_RECEIVE);
    let message = |(head, len): &(u32, u32)| {
        let bytes = rig.bytes(buffers + 64 * u64::from(*head), *len as usize);
        let (id, event, value) = control::parse(bytes[..8].try_into().unwrap());
        (id, event, value, bytes[8..].to_vec())
    };
    used.iter().map(message).collect()
}

/// The driver says something on the control queue.
fn say(device: &mut Console, rig: &mut Rig, id: u32, event: u16, value: u16) {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend([event.to_le_bytes(), value.to_le_bytes()].concat());
    rig.fill(DATA + 0x8000, &bytes);
    rig.describe(CONTROL_TRANSMIT, 0, &[(DATA + 0x8000, 8, 0, 0)]);
    rig.offer(CONTROL_TRANSMIT, 0);
    let progress = device.process_queue(CONTROL_TRANSMIT, &mut rig.io());
    assert_eq!(progress.unwrap(), Progress::Idle);
}

#[test]
fn ports_are_announced_named_opened_resized_and_closed() {
    let (mut device, _typed, _seen) = console();
    device.size = Some(USUAL_SIZE);
    let (input, mut typed) = pipe().unwrap();
    let (mut seen, output) = pipe().unwrap();
    device.add_port("agent".into(), Some(input.into()), output.into());
    assert_eq!(device.features(), 3);
    assert_eq!(device.queue_max_sizes().len(), 6);
    let mut config = [0; 8];
    device.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 24, 0, 2, 0, 0, 0]);

    let mut rig = Rig::new(6);
    device.activate(rig.activation(device.features())).unwrap();
    let buffers = DATA + 0x4000;
    // The driver asks first, and supplies buffers later.
    say(&mut device, &mut rig, 0, control::DEVICE_READY, 1);
    say(&mut device, &mut rig, 0, control::DEVICE_READY, 1);
    assert_eq!(heard(&rig, buffers), []);
    for head in 0..12 {
        let buffer = (buffers + 64 * u64::from(head), 64, WRITE, 0);
        rig.describe(CONTROL_RECEIVE, head, &[buffer]);
        rig.offer(CONTROL_RECEIVE, head);
    }
    let progress = device.process_queue(CONTROL_RECEIVE, &mut rig.io());
    assert_eq!(progress.unwrap(), Progress::Idle);
    let mut want = vec![(0, 1, 1, vec![]), (1, 1, 1, vec![])];
    assert_eq!(heard(&rig, buffers), want, "each port once");

    for id in [0, 1, 7, u32::MAX] {
        say(&mut device, &mut rig, id, control::PORT_READY, 1);
    }
    want.extend([
        (0, 4, 1, vec![]),
        (0, 6, 1, vec![]),
        (0, 5, 0, vec![24, 0, 80, 0]),
        (1, 7, 1, b"agent".to_vec()),
        (1, 6, 1, vec![]),
    ]);
    assert_eq!(heard(&rig, buffers), want);

    // Nothing is read for a port that nobody in the guest has open.
    rig.describe(4, 0, &[(DATA, 16, WRITE, 0)]);
    rig.offer(4, 0);
    let _ = device.process_queue(4, &mut rig.io()).unwrap();
    assert_eq!(waits(&device), (false, false));
    say(&mut device, &mut rig, 1, control::PORT_OPEN, 1);
    assert_eq!(waits(&device), (true, false));
    typed.write_all(b"question").unwrap();
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(rig.used(4), [(0, 8)]);
    assert_eq!(rig.bytes(DATA, 8), b"question");

    rig.fill(DATA + 0x100, b"answer");
    rig.describe(5, 0, &[(DATA + 0x100, 6, 0, 0)]);
    rig.offer(5, 0);
    let _ = device.process_queue(5, &mut rig.io()).unwrap();
    let mut answer = [0; 6];
    seen.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    let counters = [("input-bytes", 8), ("output-bytes", 6)];
    assert_eq!(device.counters(), counters);

    let resize = Resize::Console {
        columns: 132,
        rows: 50,
    };
    device.resize(&resize, &mut rig.io()).unwrap();
    want.push((0, 5, 0, vec![50, 0, 132, 0]));
    assert_eq!(heard(&rig, buffers), want);
    assert!(rig.config_changed);

    // A port is closed when nobody is on either side of it.
    drop(typed);
    rig.offer(4, 0);
    let _ = device.process_queue(4, &mut rig.io()).unwrap();
    serve_backend(&mut device, &mut rig, EventSet::IN);
    assert_eq!(heard(&rig, buffers), want);
    drop(seen);
    rig.offer(5, 0);
    let _ = device.process_queue(5, &mut rig.io()).unwrap();
    want.push((1, 6, 0, vec![]));
    assert_eq!(heard(&rig, buffers), want);
}

#[test]
fn a_driver_without_ports_has_the_console_alone() {
    let (mut device, _typed, _seen) = console();
    let (_unread, output) = pipe().unwrap();
    device.add_port("agent".into(), None, output.into());
    let mut rig = Rig::new(6);
    device.activate(rig.activation(0)).unwrap();
    for queue in 2..6 {
        rig.describe(queue, 0, &[(DATA, 64, WRITE, 0)]);
        rig.offer(queue, 0);
        let progress = device.process_queue(queue, &mut rig.io()).unwrap();
        assert_eq!((progress, rig.used(queue)), (Progress::Idle, vec![]));
    }
}

#[test]
fn malformed_control_messages_cost_no_more_than_the_device() {
    for queue in [CONTROL_RECEIVE, CONTROL_TRANSMIT] {
        for (what, descriptors, table) in malformed_chains() {
            let (mut device, _typed, _seen) = console();
            let (_unread, output) = pipe().unwrap();
            device.add_port("agent".into(), None, output.into());
            let mut rig = Rig::new(6);
            device.activate(rig.activation(2)).unwrap();
            say(&mut device, &mut rig, 0, control::DEVICE_READY, 1);
            let mut rig = Rig::new(6);
            rig.describe(queue, 0, &descriptors);
            rig.describe_at(DATA, &table);
            rig.offer(queue, 0);
            let outcome = device.process_queue(queue, &mut rig.io());
            assert!(outcome.is_err(), "{what} on {queue}");
        }
    }
    // Too short for a message, and too short for an answer.
    let (mut device, _typed, _seen) = console();
    let (_unread, output) = pipe().unwrap();
    device.add_port("agent".into(), None, output.into());
    let mut rig = Rig::new(6);
    device.activate(rig.activation(2)).unwrap();
    rig.describe(CONTROL_TRANSMIT, 0, &[(DATA, 7, 0, 0)]);
    rig.offer(CONTROL_TRANSMIT, 0);
    let _ = device
        .process_queue(CONTROL_TRANSMIT, &mut rig.io())
        .unwrap();
    assert_eq!(rig.used(CONTROL_TRANSMIT), [(0, 0)]);
    say(&mut device, &mut rig, 0, control::DEVICE_READY, 1);
    rig.describe(CONTROL_RECEIVE, 0, &[(DATA, 7, WRITE, 0)]);
    rig.offer(CONTROL_RECEIVE, 0);
    assert!(
        device
            .process_queue(CONTROL_RECEIVE, &mut rig.io())
            .is_err()
    );
}

#[test]
fn a_terminal_has_a_size_and_others_none() {
    let (mut device, _typed, _seen) = console();
    let mut rig = Rig::new(2);
    let resize = Resize::Console {
        columns: 1,
        rows: 2,
    };
    let error = device.resize(&resize, &mut rig.io()).unwrap_err();
    assert_eq!(error.code(), "resize-unsupported");
    let (_unread, output) = pipe().unwrap();
    let mut device = Console::new(None, output.into(), true);
    assert_eq!(device.features(), 1);
    device.resize(&resize, &mut rig.io()).unwrap();
    let mut config = [0; 4];
    device.read_config(0, &mut config);
    assert_eq!(config, [1, 0, 2, 0]);
}
