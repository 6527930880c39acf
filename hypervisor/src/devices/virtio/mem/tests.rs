use super::super::testing::*;
use super::*;
use std::sync::Arc;
use vm_memory::{Bytes, GuestRegionMmap};

const START: u64 = 1 << 32;
const BLOCKS: u64 = 128;
const AT: u64 = DATA + 0x1000;

/// The rig's memory and the region.
fn with_region(rig: &Rig) -> GuestMemoryMmap {
    let region = GuestRegionMmap::from_range(GuestAddress(START), (BLOCKS * BLOCK) as usize, None);
    rig.memory.insert_region(Arc::new(region.unwrap())).unwrap()
}

fn mem(requested_mib: u64) -> Mem {
    let mut device = Mem::new(GuestAddress(START), BLOCKS * BLOCK);
    resize(&mut device, requested_mib).unwrap();
    device
}

fn resize(device: &mut Mem, pluggable_mib: u64) -> Result<bool, ResizeError> {
    let mut rig = Rig::new(1);
    device.resize(&Resize::Memory { pluggable_mib }, &mut rig.io())?;
    Ok(rig.config_changed)
}

fn request(kind: u16, address: u64, count: u16) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Response and state.
fn ask(device: &mut Mem, kind: u16, block: u64, count: u16) -> (u16, u16) {
    let (response, state, _) = device.serve(&request(kind, START + block * BLOCK, count));
    (response, state)
}

#[test]
fn blocks_are_plugged_and_unplugged() {
    let mut device = mem(16);
    for (kind, block, count, want) in [
        (REQ_STATE, 0, BLOCKS as u16, (RESP_ACK, STATE_UNPLUGGED)),
        (REQ_PLUG, 0, 4, (RESP_ACK, 0)),
        (REQ_STATE, 0, 4, (RESP_ACK, STATE_PLUGGED)),
        (REQ_STATE, 3, 2, (RESP_ACK, STATE_MIXED)),
        // Plugged already, in part.
        (REQ_PLUG, 3, 2, (RESP_ERROR, 0)),
        // More than was asked for.
        (REQ_PLUG, 10, 5, (RESP_NACK, 0)),
        (REQ_PLUG, 124, 4, (RESP_ACK, 0)),
        (REQ_PLUG, 20, 1, (RESP_NACK, 0)),
        // Not plugged, in part.
        (REQ_UNPLUG, 123, 2, (RESP_ERROR, 0)),
        (REQ_UNPLUG, 125, 2, (RESP_ACK, 0)),
        (REQ_STATE, 124, 4, (RESP_ACK, STATE_MIXED)),
        (REQ_UNPLUG_ALL, 0, 0, (RESP_ACK, 0)),
        (REQ_STATE, 0, BLOCKS as u16, (RESP_ACK, STATE_UNPLUGGED)),
        (4, 0, 1, (RESP_ERROR, 0)),
        (u16::MAX, 0, 1, (RESP_ERROR, 0)),
    ] {
        assert_eq!(
            ask(&mut device, kind, block, count),
            want,
            "{kind} {block} {count}"
        );
    }
    assert_eq!((device.plugged, device.refused), (0, 4));
}

#[test]
fn ranges_outside_the_region_are_errors() {
    let mut device = mem(256);
    for kind in [REQ_PLUG, REQ_UNPLUG, REQ_STATE] {
        for (address, count) in [
            (START, 0),
            (START + 1, 1),
            (START + BLOCK / 2, 1),
            (START - BLOCK, 1),
            (START - BLOCK, 2),
            (0, 1),
            (START + BLOCKS * BLOCK, 1),
            (START + (BLOCKS - 1) * BLOCK, 2),
            (START, u16::MAX),
            (u64::MAX - BLOCK + 1, u16::MAX),
            (u64::MAX, 1),
        ] {
            let (response, ..) = device.serve(&request(kind, address, count));
            assert_eq!(response, RESP_ERROR, "{kind} {address:#x} {count}");
        }
    }
    assert_eq!(device.plugged, 0);
}

#[test]
fn sizes_are_whole_blocks_of_the_region() {
    let mut device = mem(0);
    for (mib, fine) in [
        (0, true),
        (256, true),
        (3, false),
        (258, false),
        (u64::MAX, false),
    ] {
        assert_eq!(
            resize(&mut device, mib).is_ok_and(|changed| changed),
            fine,
            "{mib}"
        );
    }
    assert_eq!(device.requested, 256 << 20);
    let mut rig = Rig::new(1);
    let other = Resize::Balloon { target_mib: 0 };
    assert!(device.resize(&other, &mut rig.io()).is_err());
    let mut config = [0; 64];
    device.read_config(0, &mut config);
    let word = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    let all: Vec<u64> = (0..64).step_by(8).map(word).collect();
    let region = BLOCKS * BLOCK;
    assert_eq!(all, [BLOCK, 0, START, region, region, 0, region, 0]);
}

#[test]
fn unplugged_memory_leaves_in_turns_before_the_answer() {
    let mut rig = Rig::new(1);
    let memory = with_region(&rig);
    let mut device = mem(256);
    assert_eq!(ask(&mut device, REQ_PLUG, 0, BLOCKS as u16), (RESP_ACK, 0));
    let last = GuestAddress(START + BLOCKS * BLOCK - 1);
    for at in [GuestAddress(START), last] {
        memory.write_obj(7u8, at).unwrap();
    }
    rig.fill(AT, &request(REQ_UNPLUG_ALL, 0, 0));
    rig.describe(0, 0, &[(AT, 24, NEXT, 1), (AT + 64, 10, WRITE, 0)]);
    rig.offer(0, 0);
    for (progress, used, left) in [(Progress::More, 0, 7), (Progress::Idle, 1, 0)] {
        let mut io = DeviceIo {
            memory: &memory,
            queues: &mut rig.queues,
            config_changed: &mut rig.config_changed,
        };
        assert_eq!(device.process_queue(0, &mut io).unwrap(), progress);
        assert_eq!(rig.used(0).len(), used);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(START)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(last).unwrap(), left);
    }
    assert_eq!(device.returned_bytes, BLOCKS * BLOCK);
}

#[test]
fn requests_on_the_queue_are_answered() {
    let mut rig = Rig::new(1);
    let mut device = mem(4);
    for (head, kind, block) in [(0, REQ_PLUG, 1), (2, REQ_STATE, 1), (4, REQ_PLUG, 1)] {
        let at = AT + u64::from(head) * 64;
        rig.fill(at, &request(kind, START + block * BLOCK, 1));
        rig.fill(at + 64, &[0xff; 12]);
        rig.describe(
            0,
            head,
            &[(at, 24, NEXT, head + 1), (at + 64, 12, WRITE, 0)],
        );
        rig.offer(0, head);
    }
    let progress = device.process_queue(0, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
    assert_eq!(rig.used(0), [(0, 10), (2, 10), (4, 10)]);
    for (head, response) in [(0, RESP_ACK), (2, RESP_ACK), (4, RESP_ERROR)] {
        let bytes = rig.bytes(AT + head * 64 + 64, 12);
        let want = [response as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(bytes, want, "{head}");
    }
    device.reset();
    assert_eq!(device.plugged, BLOCK, "a reset unplugs nothing");
    // The region is not in the rig's memory: the answer comes, and the failure is counted.
    rig.fill(AT, &request(REQ_UNPLUG, START + BLOCK, 1));
    rig.offer(0, 0);
    let progress = device.process_queue(0, &mut rig.io()).unwrap();
    assert_eq!(progress, Progress::Idle);
    assert_eq!(
        (rig.used(0).len(), device.plugged, device.refused),
        (4, 0, 2)
    );
}

#[test]
fn requests_without_room_stop_the_device() {
    for chain in [
        [(AT, 24, 0, 0), (0, 0, 0, 0)],
        [(AT, 24, NEXT, 1), (AT + 64, 9, WRITE, 0)],
        [(AT, 23, NEXT, 1), (AT + 64, 10, WRITE, 0)],
        [(AT, 10, WRITE, 0), (0, 0, 0, 0)],
    ] {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &chain);
        rig.offer(0, 0);
        assert!(mem(4).process_queue(0, &mut rig.io()).is_err(), "{chain:?}");
        assert_eq!(rig.used(0), []);
    }
}

#[test]
fn malformed_chains_stop_the_device() {
    for (what, descriptors, table) in malformed_chains() {
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &descriptors);
        rig.describe_at(DATA, &table);
        rig.offer(0, 0);
        assert!(mem(4).process_queue(0, &mut rig.io()).is_err(), "{what}");
    }
}

proptest::proptest! {
    /// Whatever is asked, what is plugged is what the blocks say, and only an accepted plug request
    /// makes it more, up to what the host asked for.
    #[test]
    fn the_sum_is_that_of_the_blocks(
        requested in 0..=BLOCKS,
        requests in proptest::collection::vec((0u16..5, 0..BLOCKS + 2, 0u16..BLOCKS as u16 + 2), 0..64),
    ) {
        let mut device = mem(requested * 2);
        for (kind, block, count) in requests {
            let before = device.plugged;
            let (response, _) = ask(&mut device, kind, block, count);
            let sum = device.blocks.iter().filter(|plugged| **plugged).count() as u64 * BLOCK;
            proptest::prop_assert_eq!(device.plugged, sum);
            proptest::prop_assert!(sum <= before || response == RESP_ACK && sum <= device.requested);
        }
    }
}
