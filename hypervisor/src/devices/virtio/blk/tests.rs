//! Requests as drivers make them, and as they must not.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vmm_sys_util::tempfile::TempFile;

use super::super::testing::*;
use super::*;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// Where the tests put the header, the status and the data.
const HEADER: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x1800;
const BUFFER: u64 = DATA + 0x2000;
/// What no device writes as a status.
const UNTOUCHED: u8 = 0xaa;

/// A disk of `sectors`, sector n filled with the byte n + 1, and a second handle of its file. Its
/// turns have no end in time.
fn disk(sectors: u8, read_only: bool) -> (Block, File) {
    let mut file = TempFile::new().unwrap().into_file();
    for sector in 0..sectors {
        file.write_all(&[sector + 1; 512]).unwrap();
    }
    let other = file.try_clone().unwrap();
    let mut device = Block::new("root", file.into(), read_only).unwrap();
    device.turn_time = Duration::MAX;
    (device, other)
}

fn put_header(rig: &Rig, kind: u32, sector: u64) {
    rig.fill(HEADER, &kind.to_le_bytes());
    rig.fill(HEADER + 4, &[0; 4]);
    rig.fill(HEADER + 8, &sector.to_le_bytes());
    rig.fill(STATUS, &[UNTOUCHED]);
}

/// Gives the device turns until it is idle; how many it took.
fn serve_all(device: &mut Block, rig: &mut Rig) -> usize {
    for turn in 1..1000 {
        if device.process_queue(0, &mut rig.io()).unwrap() == Progress::Idle {
            return turn;
        }
    }
    panic!("the device does not come to rest");
}

/// Offers header, data and status; the status and the used length.
fn request(device: &mut Block, rig: &mut Rig, kind: u32, sector: u64, data: &[Desc]) -> (u8, u32) {
    put_header(rig, kind, sector);
    let mut descriptors = vec![(HEADER, 16, NEXT, 1)];
    for (address, len, flags, _) in data {
        descriptors.push((*address, *len, *flags | NEXT, descriptors.len() as u16 + 1));
    }
    descriptors.push((STATUS, 1, WRITE, 0));
    rig.describe(0, 0, &descriptors);
    rig.offer(0, 0);
    assert_eq!(serve_all(device, rig), 1);
    (rig.bytes(STATUS, 1)[0], rig.used(0).last().unwrap().1)
}

#[test]
fn reads_fill_scattered_buffers() {
    let (mut device, _) = disk(4, true);
    let mut rig = Rig::new(1);
    let data = [(BUFFER, 100, WRITE, 0), (BUFFER + 200, 924, WRITE, 0)];
    assert_eq!(
        request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 1, &data),
        (OK, 1025)
    );
    assert_eq!(rig.bytes(BUFFER, 101), [vec![2; 100], vec![0]].concat());
    assert_eq!(
        rig.bytes(BUFFER + 200, 925),
        [vec![2; 412], vec![3; 512], vec![0]].concat()
    );
}

#[test]
fn writes_reach_the_file_and_flush() {
    let (mut device, file) = disk(4, false);
    let mut rig = Rig::new(1);
    for features in [0, 1 << VIRTIO_BLK_F_FLUSH] {
        device.activate(rig.activation(features)).unwrap();
        rig.fill(BUFFER, &[0x77; 512]);
        let data = [(BUFFER, 512, 0, 0)];
        assert_eq!(
            request(&mut device, &mut rig, VIRTIO_BLK_T_OUT, 2, &data),
            (OK, 1)
        );
        let mut sectors = [0; 1536];
        file.read_exact_at(&mut sectors, 512).unwrap();
        assert_eq!(
            sectors.to_vec(),
            [vec![2; 512], vec![0x77; 512], vec![4; 512]].concat()
        );
        assert_eq!(
            request(&mut device, &mut rig, VIRTIO_BLK_T_FLUSH, 0, &[]),
            (OK, 1)
        );
    }
}

#[test]
fn the_serial_is_the_name() {
    let (mut device, _) = disk(1, true);
    let mut rig = Rig::new(1);
    for (len, used) in [(20, 21), (4, 5), (40, 20)] {
        rig.fill(BUFFER, &[0xff; 40]);
        let data = [(BUFFER, len, WRITE, 0)];
        assert_eq!(
            request(&mut device, &mut rig, VIRTIO_BLK_T_GET_ID, 0, &data),
            (OK, used)
        );
        assert_eq!(rig.bytes(BUFFER, 4), b"root");
    }
    let file = || TempFile::new().unwrap().into_file().into();
    assert_eq!(
        Block::new(&"x".repeat(21), file(), true)
            .unwrap_err()
            .code(),
        "disk-name-too-long"
    );
    assert_eq!(
        Block::new("x", file(), true).unwrap_err().code(),
        "disk-empty"
    );
}

#[test]
fn wrong_requests_are_refused_and_move_nothing() {
    let read = |len: u32| vec![(BUFFER, len, WRITE, 0)];
    let write = |len: u32| vec![(BUFFER, len, 0, 0)];
    type Case = (&'static str, u32, u64, Vec<Desc>, bool, u8);
    let cases: [Case; 17] = [
        (
            "read behind the end",
            VIRTIO_BLK_T_IN,
            4,
            read(512),
            false,
            IOERR,
        ),
        (
            "read across the end",
            VIRTIO_BLK_T_IN,
            3,
            read(1024),
            false,
            IOERR,
        ),
        (
            "read at the last address",
            VIRTIO_BLK_T_IN,
            u64::MAX,
            read(512),
            false,
            IOERR,
        ),
        (
            "read whose bytes overflow",
            VIRTIO_BLK_T_IN,
            u64::MAX / 512 + 1,
            read(512),
            false,
            IOERR,
        ),
        ("read of nothing", VIRTIO_BLK_T_IN, 0, vec![], false, IOERR),
        (
            "read of half a sector",
            VIRTIO_BLK_T_IN,
            0,
            read(256),
            false,
            IOERR,
        ),
        (
            "read with data to write",
            VIRTIO_BLK_T_IN,
            0,
            write(512),
            false,
            IOERR,
        ),
        (
            "write behind the end",
            VIRTIO_BLK_T_OUT,
            4,
            write(512),
            false,
            IOERR,
        ),
        (
            "write of nothing",
            VIRTIO_BLK_T_OUT,
            0,
            vec![],
            false,
            IOERR,
        ),
        (
            "write of an odd length",
            VIRTIO_BLK_T_OUT,
            0,
            write(513),
            false,
            IOERR,
        ),
        (
            "write into a buffer to read",
            VIRTIO_BLK_T_OUT,
            0,
            read(512),
            false,
            IOERR,
        ),
        (
            "write to a read-only disk",
            VIRTIO_BLK_T_OUT,
            0,
            write(512),
            true,
            IOERR,
        ),
        (
            "flush with data",
            VIRTIO_BLK_T_FLUSH,
            0,
            write(512),
            false,
            IOERR,
        ),
        (
            "serial with data to write",
            VIRTIO_BLK_T_GET_ID,
            0,
            write(20),
            false,
            IOERR,
        ),
        (
            "discard, which was not offered",
            VIRTIO_BLK_T_DISCARD,
            0,
            write(16),
            false,
            UNSUPP,
        ),
        ("an unknown type", 0x1234, 0, read(512), false, UNSUPP),
        ("the largest type", u32::MAX, 0, vec![], false, UNSUPP),
    ];
    for (what, kind, sector, data, read_only, status) in cases {
        let (mut device, file) = disk(4, read_only);
        let mut rig = Rig::new(1);
        rig.fill(BUFFER, &[0x55; 1024]);
        assert_eq!(
            request(&mut device, &mut rig, kind, sector, &data).0,
            status,
            "{what}"
        );
        assert_eq!(rig.bytes(BUFFER, 1024), [0x55; 1024], "{what}");
        let mut contents = [0; 2048];
        file.read_exact_at(&mut contents, 0).unwrap();
        assert!(!contents.contains(&0x55), "{what}");
    }
}

#[test]
fn headers_and_status_may_be_cut_anyhow() {
    let (mut device, _) = disk(4, true);
    let mut rig = Rig::new(1);
    put_header(&rig, VIRTIO_BLK_T_IN, 2);
    rig.describe(
        0,
        0,
        &[
            (HEADER, 3, NEXT, 1),
            (HEADER + 3, 13, NEXT, 2),
            // Data and status in one buffer.
            (BUFFER, 513, WRITE, 0),
        ],
    );
    rig.offer(0, 0);
    assert_eq!(
        device.process_queue(0, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.bytes(BUFFER, 513), [vec![3; 512], vec![OK]].concat());
    assert_eq!(rig.used(0), [(0, 513)]);
}

#[test]
fn a_short_header_is_answered() {
    let (mut device, _) = disk(1, true);
    let mut rig = Rig::new(1);
    rig.fill(STATUS, &[UNTOUCHED]);
    rig.describe(
        0,
        0,
        &[
            (HEADER, 15, NEXT, 1),
            (STATUS, 1, WRITE, 0),
            (STATUS, 1, WRITE, 0),
        ],
    );
    rig.offer(0, 0);
    rig.offer(0, 2);
    assert_eq!(
        device.process_queue(0, &mut rig.io()).unwrap(),
        Progress::Idle
    );
    assert_eq!(rig.bytes(STATUS, 1), [IOERR]);
    assert_eq!(rig.used(0), [(0, 1), (2, 1)]);
}

#[test]
fn a_request_without_a_status_byte_stops_the_device() {
    let (mut device, _) = disk(1, true);
    let mut rig = Rig::new(1);
    put_header(&rig, VIRTIO_BLK_T_FLUSH, 0);
    rig.describe(0, 0, &[(HEADER, 16, 0, 0)]);
    rig.offer(0, 0);
    assert!(matches!(
        device.process_queue(0, &mut rig.io()),
        Err(DeviceError::Unanswerable)
    ));
    assert_eq!(rig.used(0), []);
}

#[test]
fn malformed_chains_stop_the_device() {
    for (what, descriptors, table) in malformed_chains() {
        let (mut device, _) = disk(1, false);
        let mut rig = Rig::new(1);
        rig.describe(0, 0, &descriptors);
        rig.describe_at(DATA, &table);
        rig.offer(0, 0);
        assert!(device.process_queue(0, &mut rig.io()).is_err(), "{what}");
        assert_eq!(rig.used(0), [], "{what}");
    }
}

#[test]
fn a_disk_that_fails_is_an_error_for_the_guest_alone() {
    let (mut device, file) = disk(4, false);
    file.set_len(512).unwrap();
    let mut rig = Rig::new(1);
    let data = [(BUFFER, 512, WRITE, 0)];
    assert_eq!(
        request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 3, &data),
        (IOERR, 0)
    );
}

#[test]
fn configuration_and_features() {
    let (device, _) = disk(4, true);
    let mut config = [0; 32];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], 4u64.to_le_bytes());
    assert_eq!(config[8..12], SIZE_MAX.to_le_bytes());
    assert_eq!(config[12..16], SEG_MAX.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24..], [0; 8]);
    assert_ne!(device.features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(disk(4, false).0.features() & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn a_turn_ends_by_time_too() {
    let (mut device, _) = disk(4, false);
    for (turn_time, turns) in [(Duration::MAX, 1), (Duration::ZERO, 4)] {
        device.turn_time = turn_time;
        let mut rig = Rig::new(1);
        put_header(&rig, VIRTIO_BLK_T_FLUSH, 0);
        rig.describe(0, 0, &[(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]);
        for _ in 0..3 {
            rig.offer(0, 0);
        }
        assert_eq!(serve_all(&mut device, &mut rig), turns, "{turn_time:?}");
        assert_eq!(rig.used(0).len(), 3);
        assert_eq!(rig.bytes(STATUS, 1), [OK]);
    }
}
