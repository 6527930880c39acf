//! A console between a driver and pipes.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::net::UnixStream;

use super::super::testing::*;
use super::*;

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
    let mut device = Console::new(Some(input.into()), null.into(), true);
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
