//! A hostile driver of virtio-blk: raw disks and overlays, read-only and writable, with several
//! queues, on io_uring and on worker threads.
#![no_main]

mod driver;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use bulkhead_machine::Fd;
use bulkhead_machine::device::{
    BaseImage, Block as Described, ImageFormat, Overlay, RateLimit, TokenBucket,
};
use driver::{Script, drive};
use hypervisor::devices::virtio::blk::Block;
use hypervisor::devices::virtio::blk::workers::Workers;
use libfuzzer_sys::fuzz_target;

/// Length of the disk in bytes: two clusters of an overlay, and part of a third.
const LEN: usize = 2 * 65536 + 8192;

/// Threads that outlive each run. A disk that asks for a ring has handles of its own, since none is
/// made once threads run.
static WORKERS: LazyLock<Workers> = LazyLock::new(|| started(4));

fn started(threads: usize) -> Workers {
    let workers = Workers::default();
    workers.need(threads);
    workers.start(|| ()).expect("threads");
    workers
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let options = script.byte();
    let (read_only, overlay) = (options & 1 == 0, options & 2 != 0);
    let contents: Vec<u8> = (0..LEN).map(|n| (n / 512) as u8).collect();
    let (disk, map, base) = (memfd(&contents), memfd(&[]), memfd(&contents));
    let tokens = TokenBucket {
        per_second: 1 << 20,
        burst: 4,
    };
    let described = Described {
        file: Fd(0),
        read_only,
        direct: false,
        overlay: overlay.then(|| Overlay {
            map: Fd(1),
            base: vec![BaseImage {
                file: Fd(2),
                format: ImageFormat::Raw,
            }],
        }),
        queues: 1 + u16::from(options >> 4 & 1),
        rate: RateLimit {
            bytes: None,
            operations: (options & 0x20 != 0).then_some(tokens),
        },
    };
    let files = [&disk, &map, &base];
    let mut take = |fd: Fd| Ok(files[fd.0 as usize].try_clone().expect("clone"));
    let own = Workers::default();
    let ring = options & 4 != 0 && !overlay;
    let workers = if ring { &own } else { &*WORKERS };
    let block = Block::new("fuzz", &described, &mut take, workers).expect("disk");
    drive(Box::new(block), script);
    assert_eq!(disk.metadata().expect("metadata").len(), LEN as u64);
    assert!(read(&base) == contents, "a base does not change");
    assert!(
        !read_only || read(&disk) == contents,
        "a read-only disk does not change"
    );
});

fn memfd(contents: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("disk", flags).expect("memfd"));
    file.write_all_at(contents, 0).expect("write");
    file
}

fn read(file: &File) -> Vec<u8> {
    let mut now = vec![0; LEN];
    file.read_exact_at(&mut now, 0).expect("read");
    now
}
