//! `bulkhead-fs` as a process in its jail, behind the VMM's front end, asked by a guest that the
//! tests play.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/driver/mod.rs"]
mod driver;

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use bulkhead_machine::control::{Event, MAX_MESSAGE_BYTES};
use bulkhead_machine::device::{VhostUser as Described, VhostUserDevice};
use bulkhead_machine::{Fd, Jail};
use bulkhead_share::{FsDescription, Ownership, QUEUE_SIZE, QUEUES, REQUEST_QUEUES, VERSION};
use driver::Driver;
use hypervisor::devices::virtio::vhost_user::VhostUser;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use shared_directory::fuse::*;
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
/// Index of the request queue.
const REQUESTS: usize = 1;

/// A duplicate that children inherit, far from the numbers that they use themselves.
fn inherit(fd: impl AsFd) -> OwnedFd {
    let high = fcntl_dupfd_cloexec(fd, 100).unwrap();
    fcntl_setfd(&high, FdFlags::empty()).unwrap();
    high
}

/// A served directory.
struct Share {
    process: Child,
    control: OwnedFd,
    socket: Option<UnixStream>,
}

impl Share {
    fn new(directory: &Path, change: impl FnOnce(&mut FsDescription)) -> Self {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let private = TempDir::new().unwrap();
        let path = private.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        let exported = open(directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let kept = [inherit(&listener), inherit(&theirs), inherit(&exported)];
        let number = |n: usize| Fd(kept[n].as_raw_fd());
        let mut description = FsDescription {
            version: VERSION,
            name: "test".into(),
            socket: number(0),
            control: Some(number(1)),
            directory: number(2),
            read_only: false,
            ownership: Ownership::Exporter {
                uid: 1000,
                gid: 1000,
            },
            jail: Jail::Full,
        };
        change(&mut description);
        let mut text = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
        text.write_all(&serde_json::to_vec(&description).unwrap())
            .unwrap();
        text.rewind().unwrap();
        let text = inherit(&text);
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-fs"))
            .args(["--description-fd", &text.as_raw_fd().to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            process,
            control: ours,
            socket: Some(socket),
        }
    }

    fn event(&self) -> Event {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let (len, _) = recv(&self.control, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..len]).unwrap()
    }

    /// Demands that it is locked in, and mounts it.
    fn mount(&mut self) -> Guest {
        match self.event() {
            Event::Running { jail_gaps } => assert!(jail_gaps.is_empty(), "{jail_gaps:?}"),
            other => panic!("{other:?}"),
        }
        let described = Described {
            socket: Fd(-1),
            device: VhostUserDevice::Fs {
                tag: "test".into(),
                queues: REQUEST_QUEUES,
            },
            queue_size: QUEUE_SIZE,
        };
        let socket = self.socket.take().unwrap();
        let device = VhostUser::new(&described, socket.into()).unwrap();
        let mut guest = Guest {
            driver: Driver::new(Box::new(device), QUEUES.into()),
        };
        guest.mount();
        guest
    }

    fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Guest {
    driver: Driver,
}

impl Guest {
    fn mount(&mut self) {
        assert_eq!(
            self.driver.bring_up() & (DRIVER_OK | NEEDS_RESET),
            DRIVER_OK
        );
        let init = InitIn {
            major: 7,
            minor: 36,
            ..InitIn::default()
        };
        self.ask(opcode::INIT, 0, &[init.as_bytes()]).unwrap();
    }

    fn ask(&mut self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Result<Vec<u8>, i32> {
        let body = parts.concat();
        let header = InHeader {
            len: (40 + body.len()) as u32,
            opcode,
            nodeid,
            unique: 5,
            uid: 1234,
            gid: 1234,
            ..InHeader::default()
        };
        let request = [header.as_bytes(), &body].concat();
        // Header and contents in descriptors of their own, as Linux does it.
        let answer = self.driver.request(REQUESTS, &request, &[16, 4096, 65_536]);
        let answer = answer.expect("no answer");
        let (head, rest) = OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!((head.unique, head.len as usize), (5, answer.len()));
        match head.error {
            0 => Ok(rest.to_vec()),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<EntryOut, i32> {
        let answer = self.ask(opcode::LOOKUP, parent, &[name])?;
        Ok(EntryOut::read_from_bytes(&answer).unwrap())
    }

    fn create(&mut self, name: &[u8]) -> Result<(EntryOut, u64), i32> {
        let arg = CreateIn {
            flags: libc::O_RDWR as u32,
            mode: 0o644,
            ..CreateIn::default()
        };
        let answer = self.ask(opcode::CREATE, ROOT_ID, &[arg.as_bytes(), name])?;
        let (entry, rest) = EntryOut::read_from_prefix(&answer).unwrap();
        Ok((entry, OpenOut::read_from_bytes(rest).unwrap().fh))
    }
}

/// A directory with a secret beside it.
fn scratch() -> TempDir {
    let scratch = TempDir::new().unwrap();
    fs::write(scratch.path().join("secret"), "secret").unwrap();
    fs::create_dir(scratch.path().join("inside")).unwrap();
    scratch
}

#[test]
fn a_directory_is_served_from_a_jail() {
    let scratch = scratch();
    let inside = scratch.path().join("inside");
    symlink("../secret", inside.join("up")).unwrap();
    let mut share = Share::new(&inside, |_| {});
    let mut guest = share.mount();

    // The root of the process is the directory, and it has nothing else.
    let proc = format!("/proc/{}", share.process.id());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapPrm:"), "0000000000000000");
    assert_eq!(field("CapBnd:").trim_start_matches('0'), "");
    let mounts = fs::read_to_string(format!("{proc}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(mounts.contains(flag), "{mounts}");
    }
    assert!(fs::symlink_metadata(format!("{proc}/root/up")).is_ok());

    let (entry, fh) = guest.create(b"file\0").unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1000));
    let data: Vec<u8> = (0..60_000u32).map(|n| (n / 3) as u8).collect();
    let arg = WriteIn {
        fh,
        size: data.len() as u32,
        ..WriteIn::default()
    };
    guest
        .ask(opcode::WRITE, 0, &[arg.as_bytes(), &data])
        .unwrap();
    assert_eq!(fs::read(inside.join("file")).unwrap(), data);
    let arg = ReadIn {
        fh,
        size: 65_536,
        ..ReadIn::default()
    };
    assert_eq!(guest.ask(opcode::READ, 0, &[arg.as_bytes()]).unwrap(), data);
    assert_eq!(guest.lookup(ROOT_ID, b"..\0").unwrap_err(), libc::EINVAL);
    let up = guest.lookup(ROOT_ID, b"up\0").unwrap();
    assert_eq!(
        guest.lookup(up.nodeid, b"secret\0").unwrap_err(),
        libc::ENOTDIR
    );

    // Everything the server can be asked for is on its list of system calls.
    let old = [&ROOT_ID.to_le_bytes()[..], b"file\0", b"moved\0"].concat();
    guest.ask(opcode::RENAME, ROOT_ID, &[&old]).unwrap();
    let mkdir = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    guest
        .ask(opcode::MKDIR, ROOT_ID, &[mkdir.as_bytes(), b"d\0"])
        .unwrap();
    let node = MknodIn {
        mode: libc::S_IFIFO | 0o600,
        ..MknodIn::default()
    };
    guest
        .ask(opcode::MKNOD, ROOT_ID, &[node.as_bytes(), b"fifo\0"])
        .unwrap();
    guest
        .ask(opcode::SYMLINK, ROOT_ID, &[b"link\0target\0"])
        .unwrap();
    let file = entry.nodeid;
    guest
        .ask(opcode::LINK, ROOT_ID, &[&file.to_le_bytes(), b"second\0"])
        .unwrap();
    guest.ask(opcode::STATFS, ROOT_ID, &[]).unwrap();
    let all = SetattrIn {
        valid: setattr::MODE | setattr::SIZE | setattr::ATIME | setattr::MTIME,
        mode: 0o600,
        size: 100,
        ..SetattrIn::default()
    };
    guest.ask(opcode::SETATTR, file, &[all.as_bytes()]).unwrap();
    assert_eq!(fs::metadata(inside.join("moved")).unwrap().len(), 100);
    let set = SetxattrIn { size: 1, flags: 0 };
    let _ = guest.ask(opcode::SETXATTR, file, &[set.as_bytes(), b"user.a\0", b"1"]);
    let get = GetxattrIn {
        size: 99,
        padding: 0,
    };
    let _ = guest.ask(opcode::GETXATTR, file, &[get.as_bytes(), b"user.a\0"]);
    guest
        .ask(opcode::LISTXATTR, file, &[get.as_bytes()])
        .unwrap();
    let _ = guest.ask(opcode::REMOVEXATTR, file, &[b"user.a\0"]);
    let hole = FallocateIn {
        fh,
        length: 4096,
        ..FallocateIn::default()
    };
    let _ = guest.ask(opcode::FALLOCATE, 0, &[hole.as_bytes()]);
    let seek = LseekIn {
        fh,
        whence: 4,
        ..LseekIn::default()
    };
    guest.ask(opcode::LSEEK, 0, &[seek.as_bytes()]).unwrap();
    let sync = FsyncIn::default();
    for flags in [0, 1] {
        let sync = FsyncIn { fh, flags, ..sync };
        guest.ask(opcode::FSYNC, 0, &[sync.as_bytes()]).unwrap();
    }
    guest.ask(opcode::SYNCFS, 0, &[&[0; 8]]).unwrap();
    let copy = CopyFileRangeIn {
        fh_in: fh,
        fh_out: fh,
        off_out: 8192,
        len: 10,
        ..CopyFileRangeIn::default()
    };
    guest
        .ask(opcode::COPY_FILE_RANGE, 0, &[copy.as_bytes()])
        .unwrap();
    let open = OpenIn::default();
    let opened = guest
        .ask(opcode::OPENDIR, ROOT_ID, &[open.as_bytes()])
        .unwrap();
    let list = ReadIn {
        fh: OpenOut::read_from_bytes(&opened).unwrap().fh,
        size: 4096,
        ..ReadIn::default()
    };
    for code in [opcode::READDIR, opcode::READDIRPLUS] {
        assert!(
            !guest
                .ask(code, ROOT_ID, &[list.as_bytes()])
                .unwrap()
                .is_empty()
        );
    }
    guest.ask(opcode::UNLINK, ROOT_ID, &[b"second\0"]).unwrap();
    guest.ask(opcode::RMDIR, ROOT_ID, &[b"d\0"]).unwrap();
    assert_eq!(guest.ask(99, 0, &[]).unwrap_err(), libc::ENOSYS);

    // A guest that reboots starts from nothing.
    guest.mount();
    assert_eq!(guest.lookup(file, b"x\0").unwrap_err(), libc::ESTALE);
    guest.lookup(ROOT_ID, b"moved\0").unwrap();

    // The end of the VMM is its end.
    drop(guest);
    assert!(share.wait().success());
}

#[test]
fn a_guests_users_own_their_files_where_root_exports() {
    if !rustix::process::geteuid().is_root() {
        // Refused, then.
        let scratch = scratch();
        let share = Share::new(scratch.path(), |d| d.ownership = Ownership::Guest);
        assert!(matches!(share.event(), Event::Failed { code, .. } if code == "fs-privileges"));
        return;
    }
    let scratch = scratch();
    let inside = scratch.path().join("inside");
    let mut share = Share::new(&inside, |d| d.ownership = Ownership::Guest);
    let mut guest = share.mount();
    let (entry, _) = guest.create(b"file\0").unwrap();
    assert_eq!(fs::metadata(inside.join("file")).unwrap().uid(), 1234);
    let chown = SetattrIn {
        valid: setattr::UID,
        uid: 77,
        ..SetattrIn::default()
    };
    guest
        .ask(opcode::SETATTR, entry.nodeid, &[chown.as_bytes()])
        .unwrap();
    assert_eq!(fs::metadata(inside.join("file")).unwrap().uid(), 77);
}

#[test]
fn a_read_only_directory_is_one_for_the_process_itself() {
    let scratch = scratch();
    let mut share = Share::new(scratch.path(), |d| d.read_only = true);
    let mut guest = share.mount();
    assert_eq!(guest.create(b"file\0").unwrap_err(), libc::EROFS);
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", share.process.id())).unwrap();
    assert!(
        mounts.split_whitespace().nth(5).unwrap().starts_with("ro"),
        "{mounts}"
    );
}

#[test]
fn a_broken_ring_costs_the_guest_its_share_until_it_resets() {
    let scratch = scratch();
    let mut share = Share::new(scratch.path(), |_| {});
    let mut guest = share.mount();
    guest.driver.break_ring(REQUESTS);
    // The process lives, and serves a driver that starts anew.
    guest.mount();
    guest.lookup(ROOT_ID, b"secret\0").unwrap();
    assert!(share.process.try_wait().unwrap().is_none());
}

#[test]
fn a_process_that_dies_breaks_its_device_alone() {
    let scratch = scratch();
    let mut share = Share::new(scratch.path(), |_| {});
    let mut guest = share.mount();
    share.process.kill().unwrap();
    let broken = |driver: &Driver| driver.status() & NEEDS_RESET != 0;
    assert!(guest.driver.wait(broken));
    assert_ne!(guest.driver.bring_up() & NEEDS_RESET, 0);
}

#[test]
fn descriptions_are_strict() {
    let scratch = scratch();
    let refused = |change: &dyn Fn(&mut FsDescription)| {
        let mut share = Share::new(scratch.path(), change);
        assert_eq!(share.wait().code(), Some(125));
    };
    refused(&|d| d.version = 99);
    refused(&|d| d.socket = Fd(1000));
    refused(&|d| d.directory = Fd(-1));
    // A socket is no directory.
    refused(&|d| d.directory = d.socket);
}
