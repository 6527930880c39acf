//! A hostile guest of a shared directory: a sequence of FUSE requests, as they are or through a queue
//! of the device, over a scratch directory that holds symbolic links out of it. Nothing beside the
//! directory may be seen or change.
#![no_main]

mod script;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bulkhead_share::Ownership;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, setrlimit};
use script::Script;
use shared_directory::device::{Device, Memory};
use shared_directory::server::{MAX_MESSAGE, Options, Server};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// What must appear in no reply.
const SECRET: &[u8] = b"the secret that lies beside the directory";
/// Bytes a request's header takes.
const HEADER: usize = 40;

/// Where the directory lies: in memory, where the system offers that.
static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    // What a guest allocates is limited by the filesystem; here by this.
    let limit = Rlimit {
        current: Some(1 << 24),
        maximum: None,
    };
    setrlimit(Resource::Fsize, limit).expect("limit");
    hypervisor::jail::outlive_file_size_limit().expect("signal");
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() {
        shm.to_owned()
    } else {
        std::env::temp_dir()
    };
    let scratch = base.join(format!("fuse-request-{}", std::process::id()));
    fs::create_dir(&scratch).expect("scratch");
    fs::write(scratch.join("secret"), SECRET).expect("secret");
    scratch
});

/// All that can be said of what lies beside the directory, but for when it was read.
fn outside(scratch: &Path) -> impl PartialEq + std::fmt::Debug {
    let mut names: Vec<_> = fs::read_dir(scratch)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    let secret = fs::metadata(scratch.join("secret")).expect("secret");
    let contents = fs::read(scratch.join("secret")).expect("secret");
    let times = (
        secret.mtime(),
        secret.mtime_nsec(),
        secret.ctime(),
        secret.ctime_nsec(),
    );
    (
        names,
        contents,
        times,
        secret.mode(),
        secret.uid(),
        secret.nlink(),
    )
}

fn request(opcode: u8, node: u8, user: u8, wrong: u8, body: &[u8]) -> Vec<u8> {
    let len = (HEADER + body.len()) as u32 + u32::from(wrong);
    let mut request = len.to_le_bytes().to_vec();
    request.extend(u32::from(opcode).to_le_bytes());
    request.extend(7u64.to_le_bytes());
    request.extend(u64::from(node).to_le_bytes());
    request.extend(
        [u32::from(user), u32::from(user), 1, 0]
            .map(u32::to_le_bytes)
            .as_flattened(),
    );
    request.extend(body);
    request
}

fuzz_target!(|bytes: &[u8]| {
    if contains_secret(bytes) {
        // The fuzzer takes it from the comparison below: what the guest says itself is no leak.
        return;
    }
    let scratch = SCRATCH.as_path();
    let inside = scratch.join("inside");
    let _ = fs::remove_dir_all(&inside);
    fs::create_dir_all(inside.join("directory")).expect("directory");
    fs::write(inside.join("file"), "contents").expect("file");
    symlink("../secret", inside.join("up")).expect("link");
    symlink("..", inside.join("parent")).expect("link");
    symlink(scratch.join("secret"), inside.join("absolute")).expect("link");
    let before = outside(scratch);

    let mut script = Script(bytes);
    let choice = script.byte();
    let root = rustix::process::geteuid().is_root();
    let options = Options {
        read_only: choice & 1 != 0,
        ownership: if choice & 2 != 0 && root {
            Ownership::Guest
        } else {
            Ownership::Exporter { uid: 0, gid: 0 }
        },
        max_nodes: 20,
        max_handles: 10,
    };
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(&inside, path, Mode::empty()).expect("open");
    let descriptors = open("/proc/self/fd", path, Mode::empty()).expect("/proc");
    let server = Server::new(directory, descriptors, options).expect("server");
    if choice & 4 == 0 {
        handle(server, script);
    } else {
        drive(server, script);
    }
    assert_eq!(outside(scratch), before, "nothing of the outside changes");
});

/// INIT of version 7.31; requests before it are the unit tests'.
fn init() -> Vec<u8> {
    let init = [7u32, 31, 1 << 17, u32::MAX].map(u32::to_le_bytes);
    request(26, 0, 0, 0, init.as_flattened())
}

/// The next request of the script, and a number to go with it.
fn next(script: &mut Script<'_>) -> (Vec<u8>, u8) {
    let [opcode, node, user, wrong, number] = script.bytes();
    let body = script.short();
    let body = script.some(body.into());
    (request(opcode, node, user, wrong & 1, body), number)
}

fn contains_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET)
}

fn check(reply: &[u8]) {
    assert!(!contains(reply, SECRET), "nothing of the outside is seen");
}

/// By the first byte first: under the fuzzer a comparison of slices is costly.
fn contains(bytes: &[u8], piece: &[u8]) -> bool {
    let mut windows = bytes.windows(piece.len());
    windows.any(|window| window[0] == piece[0] && window == piece)
}

/// Requests as they are.
fn handle(mut server: Server, mut script: Script<'_>) {
    let mut reply = vec![0; MAX_MESSAGE];
    server.handle(&init(), &mut reply);
    while !script.0.is_empty() {
        let (request, room) = next(&mut script);
        // Long and short rooms.
        let room = match room {
            0 => reply.len(),
            room => room.into(),
        };
        let len = server.handle(&request, &mut reply[..room]);
        assert!(len <= room, "a reply within its room");
        check(&reply[..len]);
    }
}

/// Guest memory, and where its driver puts descriptors, rings, requests and replies.
const MEMORY: u64 = 0x1_0000;
const TABLE: u64 = 0;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
const REQUESTS: u64 = 0x1000;
const REPLIES: u64 = 0x8000;
/// Entries of the queue.
const SIZE: u16 = 16;

/// Requests in the buffers of a queue that the script may tamper with.
fn drive(server: Server, mut script: Script<'_>) {
    let regions = [(GuestAddress(0), MEMORY as usize)];
    let memory = Memory::new(GuestMemoryMmap::from_ranges(&regions).expect("memory"));
    let device = Device::new(server, memory.clone());
    let mut driver = Driver::new(device, memory);
    driver.request(&init(), 0);
    driver.kick();
    while !script.0.is_empty() {
        match script.byte() {
            0..0x80 => {
                let (request, shape) = next(&mut script);
                driver.request(&request, shape);
            }
            0x80..0xa0 => {
                let (address, value) = (script.short(), script.bytes::<8>());
                driver.write(address.into(), &value);
            }
            0xa0..0xc0 => {
                let (index, descriptor) = (script.byte(), script.bytes::<16>());
                driver.write(TABLE + 16 * u64::from(index % 16), &descriptor);
            }
            0xc0..0xe0 => driver.offer(script.byte().into()),
            _ => driver.kick(),
        }
    }
    driver.kick();
    let mut all = vec![0; MEMORY as usize];
    let memory = driver.memory.memory();
    memory
        .read_slice(&mut all, GuestAddress(0))
        .expect("in memory");
    check(&all);
    // Whatever happened, a new queue is served.
    let mut driver = Driver::new(driver.device, driver.memory);
    driver.request(&init(), 0);
    driver.kick();
    assert_eq!(driver.vring.queue_used_idx().expect("in memory"), 1);
}

struct Driver {
    device: Device,
    memory: Memory,
    vring: VringMutex,
    next: u16,
}

impl Driver {
    fn new(device: Device, memory: Memory) -> Self {
        let vring = VringMutex::new(memory.clone(), SIZE).expect("a ring");
        vring.set_queue_size(SIZE);
        vring.set_queue_info(TABLE, AVAIL, USED).expect("aligned");
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        let driver = Self {
            device,
            memory,
            vring,
            next: 0,
        };
        for ring in [AVAIL, USED] {
            driver.write(ring, &[0; 8]);
        }
        driver
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        // What lies outside of memory stays unwritten.
        let _ = self.memory.memory().write(bytes, GuestAddress(address));
    }

    /// Offers `request`, in one piece or in two, and a place for its reply, of a length that `shape`
    /// says too.
    fn request(&mut self, request: &[u8], shape: u8) {
        let len = request.len().min((REPLIES - REQUESTS) as usize);
        self.write(REQUESTS, &request[..len]);
        let cut = len.min(usize::from(shape >> 4) * 8) as u64;
        let room = [0x1000, 16, 144, 20][usize::from(shape & 3)];
        let place = REPLIES + u64::from(self.next % 4) * 0x1000;
        for (index, address, len, flags) in [
            (0, REQUESTS, cut, 1),
            (1, REQUESTS + cut, len as u64 - cut, 1),
            (2, place, room, 2 | u64::from(shape >> 2 & 1)),
            (3, place + room, 8, 2),
        ] {
            let rest = len | flags << 32 | (index + 1) << 48;
            self.write(TABLE + 16 * index, &address.to_le_bytes());
            self.write(TABLE + 16 * index + 8, &rest.to_le_bytes());
        }
        self.offer(u16::from(cut == 0));
    }

    fn offer(&mut self, head: u16) {
        let slot = AVAIL + 4 + 2 * u64::from(self.next % SIZE);
        self.write(slot, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        self.write(AVAIL + 2, &self.next.to_le_bytes());
    }

    fn kick(&self) {
        let vrings = std::slice::from_ref(&self.vring);
        let served = self.device.handle_event(0, EventSet::IN, vrings, 0);
        served.expect("a broken ring is no error of the connection's");
    }
}
