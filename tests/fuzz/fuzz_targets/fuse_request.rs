//! A hostile guest of a shared directory: a sequence of FUSE requests over a scratch directory that
//! holds symbolic links out of it. Nothing beside the directory may be seen or change.
#![no_main]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bulkhead_share::Ownership;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, setrlimit};
use shared_directory::server::{MAX_MESSAGE, Options, Server};

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

fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(taken)
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
    let scratch = SCRATCH.as_path();
    let inside = scratch.join("inside");
    let _ = fs::remove_dir_all(&inside);
    fs::create_dir_all(inside.join("directory")).expect("directory");
    fs::write(inside.join("file"), "contents").expect("file");
    symlink("../secret", inside.join("up")).expect("link");
    symlink("..", inside.join("parent")).expect("link");
    symlink(scratch.join("secret"), inside.join("absolute")).expect("link");
    let before = outside(scratch);

    let mut input = bytes;
    let Some(&[choice]) = take(&mut input, 1) else {
        return;
    };
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
    let mut server = Server::new(directory, descriptors, options).expect("server");
    let mut reply = vec![0; MAX_MESSAGE];
    // INIT of version 7.31; requests before it are the unit tests'.
    let init = [7u32, 31, 1 << 17, u32::MAX].map(u32::to_le_bytes);
    server.handle(&request(26, 0, 0, 0, init.as_flattened()), &mut reply);
    while let Some(&[opcode, node, user, wrong, room, low, high]) = take(&mut input, 7) {
        let len = usize::from(u16::from_le_bytes([low, high])).min(input.len());
        let body = take(&mut input, len).unwrap_or_default();
        // Long and short rooms.
        let room = if room == 0 {
            reply.len()
        } else {
            usize::from(room)
        };
        let len = server.handle(
            &request(opcode, node, user, wrong & 1, body),
            &mut reply[..room],
        );
        assert!(len <= room, "a reply within its room");
        let leaked = reply[..len]
            .windows(SECRET.len())
            .any(|window| window == SECRET);
        assert!(!leaked, "nothing of the outside is seen");
    }
    drop(server);
    assert_eq!(outside(scratch), before, "nothing of the outside changes");
});
