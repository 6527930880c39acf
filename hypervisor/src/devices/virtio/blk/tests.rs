//! Requests as drivers make them, and as they must not; on every engine.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use bulkhead_machine::device::{RateLimit, TokenBucket};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vmm_sys_util::tempfile::TempFile;

use super::super::testing::*;
use super::*;

mod life;

const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// Where the tests put the header, the status and the data.
const HEADER: u64 = DATA + 0x1000;
const STATUS: u64 = DATA + 0x1800;
const BUFFER: u64 = DATA + 0x2000;
/// What no device writes as a status.
const UNTOUCHED: u8 = 0xaa;

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Ring,
    Workers,
}

const ENGINES: [By; 2] = [By::Ring, By::Workers];

/// A description of a raw disk.
fn raw(read_only: bool) -> description::Block {
    description::Block {
        file: Fd(0),
        read_only,
        direct: false,
        overlay: None,
        queues: 1,
        rate: RateLimit::default(),
    }
}

/// The disk `block` of `files`, by the numbers in it.
fn build(block: &description::Block, files: &[&File], by: By) -> Result<Block, Error> {
    let workers = Workers::default();
    let mut take = |fd: Fd| Ok(files[fd.0 as usize].try_clone().unwrap());
    let device = Block::with_engine("root", block, &mut take, &workers, by == By::Ring);
    workers.need(1);
    workers.start(|| ()).unwrap();
    device
}

/// A raw, writable disk, for tests of transports.
pub(in super::super) fn plain(file: &File) -> Block {
    build(&raw(false), &[file], By::Ring).unwrap()
}

/// A file of `sectors`, sector n filled with the byte n + 1.
fn image(sectors: u8) -> File {
    let mut file = TempFile::new().unwrap().into_file();
    for sector in 0..sectors {
        file.write_all(&[sector + 1; 512]).unwrap();
    }
    file
}

/// A raw disk of [`image`], and a second handle of its file.
fn disk(sectors: u8, read_only: bool, by: By) -> (Block, File) {
    let file = image(sectors);
    (build(&raw(read_only), &[&file], by).unwrap(), file)
}

fn put_header(rig: &Rig, kind: u32, sector: u64) {
    rig.fill(HEADER, &kind.to_le_bytes());
    rig.fill(HEADER + 4, &[0; 4]);
    rig.fill(HEADER + 8, &sector.to_le_bytes());
    rig.fill(STATUS, &[UNTOUCHED]);
}

/// Lets the device serve its first queue until nothing is under way.
fn settle(device: &mut Block, rig: &mut Rig) -> Result<(), DeviceError> {
    let mut progress = device.process_queue(0, &mut rig.io())?;
    while device.engine.in_flight() > 0 || progress == Progress::More {
        device.engine.wait();
        let event = device.engine.event();
        progress = device.process_backend(event, &mut rig.io())?;
    }
    Ok(())
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
    settle(device, rig).unwrap();
    (rig.bytes(STATUS, 1)[0], rig.used(0).last().unwrap().1)
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn reads_fill_scattered_buffers() {
    for by in ENGINES {
        let (mut device, _) = disk(4, true, by);
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
}

#[test]
fn writes_reach_the_file_and_flush() {
    for (by, features) in ENGINES
        .into_iter()
        .flat_map(|by| [(by, 0), (by, 1 << VIRTIO_BLK_F_FLUSH)])
    {
        let (mut device, file) = disk(4, false, by);
        let mut rig = Rig::new(1);
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
    let (mut device, _) = disk(1, true, By::Ring);
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
}

#[test]
fn files_that_cannot_be_disks_are_refused() {
    let code = |name: &str, block: &description::Block, file: &File| {
        let mut take = |_| Ok(file.try_clone().unwrap());
        let refused = Block::new(name, block, &mut take, &Workers::default());
        refused.map(drop).unwrap_err().code()
    };
    let (rw, ro) = (raw(false), raw(true));
    assert_eq!(code(&"x".repeat(21), &ro, &image(1)), "disk-name-too-long");
    assert_eq!(code("x", &ro, &image(0)), "disk-empty");
    for len in [1, 513] {
        let file = image(2);
        file.set_len(len).unwrap();
        assert_eq!(code("x", &rw, &file), "disk-unaligned");
    }
    let program = File::open("/proc/self/exe").unwrap();
    assert_eq!(code("x", &rw, &program), "disk-not-writable");
    for queues in [0, MAX_QUEUES + 1] {
        let block = description::Block {
            queues,
            ..raw(true)
        };
        assert_eq!(code("x", &block, &image(1)), "disk-queues");
    }
}

#[test]
fn wrong_requests_are_refused_and_move_nothing() {
    let read = |len: u32| vec![(BUFFER, len, WRITE, 0)];
    let write = |len: u32| vec![(BUFFER, len, 0, 0)];
    type Case = (&'static str, u32, u64, Vec<Desc>, bool, u8);
    let cases: [Case; 20] = [
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
            "discard of half a range",
            VIRTIO_BLK_T_DISCARD,
            0,
            write(24),
            false,
            IOERR,
        ),
        (
            "discard of nothing",
            VIRTIO_BLK_T_DISCARD,
            0,
            vec![],
            false,
            IOERR,
        ),
        (
            "discard of too many ranges",
            VIRTIO_BLK_T_DISCARD,
            0,
            write(17 * 16),
            false,
            IOERR,
        ),
        (
            "zeroes with unknown flags",
            VIRTIO_BLK_T_WRITE_ZEROES,
            0,
            write(16),
            false,
            UNSUPP,
        ),
        ("an unknown type", 0x1234, 0, read(512), false, UNSUPP),
        ("the largest type", u32::MAX, 0, vec![], false, UNSUPP),
    ];
    for (what, kind, sector, data, read_only, status) in cases {
        let (mut device, file) = disk(4, read_only, By::Ring);
        let mut rig = Rig::new(1);
        rig.fill(BUFFER, &[0x55; 1024]);
        assert_eq!(
            request(&mut device, &mut rig, kind, sector, &data).0,
            status,
            "{what}"
        );
        assert_eq!(rig.bytes(BUFFER, 1024), [0x55; 1024], "{what}");
        assert!(bytes_of(&file) == bytes_of(&image(4)), "{what}");
    }
}

#[test]
fn headers_and_status_may_be_cut_anyhow() {
    let (mut device, _) = disk(4, true, By::Ring);
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
    settle(&mut device, &mut rig).unwrap();
    assert_eq!(rig.bytes(BUFFER, 513), [vec![3; 512], vec![OK]].concat());
    assert_eq!(rig.used(0), [(0, 513)]);
}

#[test]
fn a_short_header_is_answered() {
    let (mut device, _) = disk(1, true, By::Ring);
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
    settle(&mut device, &mut rig).unwrap();
    assert_eq!(rig.bytes(STATUS, 1), [IOERR]);
    assert_eq!(rig.used(0), [(0, 1), (2, 1)]);
}

#[test]
fn a_request_without_a_status_byte_stops_the_device() {
    let (mut device, _) = disk(1, true, By::Ring);
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
        let (mut device, _) = disk(1, false, By::Ring);
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
    for by in ENGINES {
        let (mut device, file) = disk(4, false, by);
        file.set_len(512).unwrap();
        let mut rig = Rig::new(1);
        let data = [(BUFFER, 512, WRITE, 0)];
        let got = request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 3, &data);
        assert_eq!(got, (IOERR, 0));
        assert!(device.counters().contains(&("errors", 1)));
    }
}

#[test]
fn configuration_and_features() {
    let (device, _) = disk(4, true, By::Ring);
    let mut config = [0; 64];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], 4u64.to_le_bytes());
    assert_eq!(config[8..12], SIZE_MAX.to_le_bytes());
    assert_eq!(config[12..16], SEG_MAX.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24..32], [3, 0, 8, 0, 8, 0, 0, 0], "topology");
    assert_eq!(config[32..36], [1, 0, 1, 0], "write cache, queues");
    assert_eq!(config[44..48], 8u32.to_le_bytes(), "discard alignment");
    let bit = |device: &Block, bit: u32| device.features() & 1 << bit != 0;
    let writing = [
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ];
    assert!(bit(&device, VIRTIO_BLK_F_RO) && !bit(&device, VIRTIO_BLK_F_MQ));
    assert!(writing.iter().all(|feature| !bit(&device, *feature)));
    let block = description::Block {
        queues: 3,
        ..raw(false)
    };
    let device = build(&block, &[&image(4)], By::Ring).unwrap();
    assert!(!bit(&device, VIRTIO_BLK_F_RO) && bit(&device, VIRTIO_BLK_F_MQ));
    assert!(writing.iter().all(|feature| bit(&device, *feature)));
    assert_eq!(device.queue_max_sizes(), [QUEUE_SIZE; 3]);
}

#[test]
fn a_driver_may_choose_write_through() {
    let (mut device, _) = disk(4, false, By::Ring);
    let mut rig = Rig::new(1);
    let (flush, wce) = (1 << VIRTIO_BLK_F_FLUSH, 1 << VIRTIO_BLK_F_CONFIG_WCE);
    for (features, writeback, write_through) in [
        (0, None, true),
        (flush, None, false),
        (flush, Some(0), false),
        (flush | wce, None, false),
        (flush | wce, Some(0), true),
        (flush | wce, Some(1), false),
        (wce, Some(0), true),
    ] {
        device.activate(rig.activation(features)).unwrap();
        if let Some(value) = writeback {
            device.write_config(config::WRITEBACK, &[value]);
        }
        assert_eq!(
            device.write_through(),
            write_through,
            "{features:#x} {writeback:?}"
        );
        device.reset();
    }
    device.write_config(config::WRITEBACK, &[0, 0]);
    device.write_config(0, &[0]);
    let mut config = [0; 1];
    device.read_config(config::WRITEBACK, &mut config);
    assert_eq!(config, [1]);
}

#[test]
fn discards_and_zeroes() {
    let range = |sector: u64, sectors: u32, flags: u32| {
        [
            &sector.to_le_bytes()[..],
            &sectors.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat()
    };
    for by in ENGINES {
        for (kind, flags) in [
            (VIRTIO_BLK_T_DISCARD, 0),
            (VIRTIO_BLK_T_WRITE_ZEROES, 0),
            (VIRTIO_BLK_T_WRITE_ZEROES, 1),
        ] {
            let (mut device, file) = disk(8, false, by);
            let mut rig = Rig::new(1);
            rig.fill(BUFFER, &[range(1, 2, flags), range(5, 1, flags)].concat());
            let data = [(BUFFER, 32, 0, 0)];
            let got = request(&mut device, &mut rig, kind, 0, &data);
            assert_eq!(got, (OK, 1));
            let want = [1, 0, 0, 4, 5, 0, 7, 8].map(|byte| [byte; 512]).concat();
            assert!(bytes_of(&file) == want, "{kind} {flags} {by:?}");
            // A range that is wrong keeps those before it from being acted on.
            rig.fill(BUFFER, &[range(0, 1, flags), range(8, 1, flags)].concat());
            let got = request(&mut device, &mut rig, kind, 0, &data);
            assert_eq!(got, (IOERR, 1));
            assert!(bytes_of(&file) == want, "{kind} {flags} {by:?}");
        }
    }
}

#[test]
fn zeroes_are_written_where_the_host_cannot_make_them() {
    // A file in memory has no FALLOC_FL_ZERO_RANGE.
    for (by, sectors) in ENGINES.into_iter().flat_map(|by| [(by, 3), (by, 24 << 10)]) {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("disk", flags).unwrap());
        let len = (sectors + 2) * 512;
        file.write_all_at(&vec![7; len], 0).unwrap();
        let mut device = build(&raw(false), &[&file], by).unwrap();
        let mut rig = Rig::new(1);
        rig.fill(BUFFER, &1u64.to_le_bytes());
        rig.fill(BUFFER + 8, &(sectors as u32).to_le_bytes());
        rig.fill(BUFFER + 12, &[0; 4]);
        let data = [(BUFFER, 16, 0, 0)];
        let got = request(&mut device, &mut rig, VIRTIO_BLK_T_WRITE_ZEROES, 0, &data);
        assert_eq!(got, (OK, 1));
        let want = [vec![7; 512], vec![0; sectors * 512], vec![7; 512]].concat();
        assert!(bytes_of(&file) == want, "{by:?}");
    }
}

#[test]
fn direct_io_takes_any_buffers_but_whole_blocks() {
    let plain = TempFile::new().unwrap();
    let contents: Vec<u8> = (0..64 * 512u32).map(|n| (n / 512 + 1) as u8).collect();
    plain.as_file().write_all_at(&contents, 0).unwrap();
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = match options.open(plain.as_path()) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("skipped: no direct I/O where temporary files are: {error}");
            return;
        }
    };
    let described = description::Block {
        direct: true,
        ..raw(false)
    };
    for by in ENGINES {
        let mut device = build(&described, &[&file], by).unwrap();
        let block = device.disk.block();
        let mut rig = Rig::new(1);
        for shift in [0, 1, 512] {
            let at = BUFFER + shift;
            let data = [(at, 100, WRITE, 0), (at + 200, 8092, WRITE, 0)];
            let got = request(&mut device, &mut rig, VIRTIO_BLK_T_IN, 8, &data);
            assert_eq!(got, (OK, 8193), "{by:?} {shift}");
            let read = [rig.bytes(at, 100), rig.bytes(at + 200, 8092)].concat();
            assert!(read == contents[8 * 512..][..8192], "{by:?} {shift}");
            rig.fill(at, &[0x33; 4096]);
            let got = request(
                &mut device,
                &mut rig,
                VIRTIO_BLK_T_OUT,
                32,
                &[(at, 4096, 0, 0)],
            );
            assert_eq!(got, (OK, 1));
            let mut written = [0; 4096];
            plain
                .as_file()
                .read_exact_at(&mut written, 32 * 512)
                .unwrap();
            assert_eq!(written, [0x33; 4096]);
        }
        let part = request(
            &mut device,
            &mut rig,
            VIRTIO_BLK_T_IN,
            1,
            &[(BUFFER, 512, WRITE, 0)],
        );
        assert_eq!(part.0, if block > 512 { IOERR } else { OK });
    }
}
