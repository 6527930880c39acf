//! Promise: whatever a driver does to a virtio device, by registers, queues or requests, the device
//! serves again after a reset, the other devices serve all the time, and the VMM neither panics nor
//! grows, and ends in order.
//!
//! Each test starts a PC with every device there is, whose kernel attacks one of them
//! (`tests/hostile-driver`): hundreds of attacks, an honest request to that device after each (in the
//! lab, after every eighth), and one to another.
//!
//! The driver waits by reading registers, and an exit takes the lab far longer: the lab
//! has the PCI slots and the taps, which need it, and leaves the single devices to the host's KVM.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod tap;

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command as Process, ExitStatus};
use std::thread::{self, JoinHandle};

use bulkhead_machine::control::vsock::{Connect, Connected};
use bulkhead_machine::control::{Command, Ended, Event, Reply, Resize};
use bulkhead_machine::device::{
    Balloon, Block, Device, DeviceKind, Net, NetBackend, Pmem, RateLimit, VhostUser,
    VhostUserDevice, Vsock,
};
use bulkhead_machine::{ConsolePort, Jail, MachineDescription, Transport};
use bulkhead_share::{FsDescription, Ownership, QUEUE_SIZE, REQUEST_QUEUES, VERSION};
use bulkhead_tests::bulkhead::Bulkhead;
use bulkhead_tests::leftovers::Census;
use bulkhead_tests::scratch::Scratch;
use bulkhead_tests::vmm::{Inherited, Vmm};
use bulkhead_tests::{in_lab, skip};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};

/// What the driver calls the devices, in the order in which it finds them.
const DEVICES: [&str; 9] = [
    "console", "rng", "mem", "blk", "net", "vsock", "balloon", "pmem", "fs",
];
/// Where the driver finds somebody who accepts.
const PORT: u32 = 80;
/// MiB of memory: the driver offers half of it as one buffer.
const MEMORY_MIB: u64 = 96;
/// MiB of pluggable memory.
const PLUGGABLE_MIB: u64 = 128;
/// KiB by which the VMM's own memory may grow under attack: what devices hold for requests under
/// way is under 5 MiB for a disk, the most of all, and the allocator keeps it.
const MOST_GROWTH_KIB: u64 = 8 * 1024;

/// The other sides of the devices.
struct World {
    scratch: Scratch,
    share: Child,
    threads: Vec<JoinHandle<()>>,
}

fn packets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

impl World {
    /// With a machine that has every device; its network is the tap of that name, with two pairs of
    /// queues, or somebody who sends everything back.
    fn new(
        bulkhead: &Bulkhead,
        machine: &mut MachineDescription,
        fds: &mut Inherited,
        tap: Option<&str>,
    ) -> Self {
        let scratch = Scratch::new();
        machine.jail = Jail::BestEffort;
        machine.memory.mib = MEMORY_MIB;
        machine.memory.pluggable_mib = PLUGGABLE_MIB;
        machine.entropy = true;
        let mut threads = Vec::new();
        let console = machine.console.as_mut().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        // What the driver says there is of no interest.
        threads.push(thread::spawn(move || {
            while matches!(reader.read(&mut [0; 4096]), Ok(1..)) {}
        }));
        let output = fds.pass(writer);
        let mut fed = || {
            let (reader, mut writer) = pipe().unwrap();
            threads.push(thread::spawn(move || {
                while writer.write_all(&[b'x'; 512]).is_ok() {}
            }));
            Some(fds.pass(reader))
        };
        console.input = fed();
        console.ports.push(ConsolePort {
            name: "port".into(),
            input: fed(),
            output,
        });
        let (backend, queue_pairs) = match tap {
            Some(name) => {
                let taps: Vec<_> = (0..2).map(|_| tap::queue(name)).collect();
                tap::ip(&format!("link set {name} up"));
                let queues = taps.into_iter().map(|tap| fds.pass(tap)).collect();
                (NetBackend::Tap { queues }, 2)
            }
            None => {
                let (network, theirs) = packets();
                threads.push(thread::spawn(move || echo(&network)));
                let socket = fds.pass(theirs);
                (NetBackend::Socket { socket }, 1)
            }
        };
        let (connector, connects) = packets();
        threads.push(thread::spawn(move || supervise(&connector)));
        let listener = UnixListener::bind(scratch.path().join("vsock")).unwrap();
        let file = |name: &str, bytes| {
            let path = scratch.path().join(name);
            let mut options = File::options();
            let options = options.read(true).write(true).create_new(true);
            let file = options.open(path).unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        let (share, mounted) = share(bulkhead, &scratch);
        let kinds = [
            DeviceKind::Block(Block {
                file: fds.pass(file("disk", 1 << 20)),
                read_only: false,
                direct: false,
                overlay: None,
                queues: 2,
                rate: RateLimit::default(),
            }),
            DeviceKind::Net(Net {
                backend,
                mac: [2, 0, 0, 0, 0, 7],
                mtu: None,
                queue_pairs,
                receive_rate: RateLimit::default(),
                transmit_rate: RateLimit::default(),
            }),
            DeviceKind::Vsock(Vsock {
                cid: 42,
                listener: fds.pass(listener),
                connector: fds.pass(connects),
            }),
            DeviceKind::Balloon(Balloon {
                target_mib: 0,
                deflate_on_oom: true,
                free_page_reporting: true,
            }),
            DeviceKind::Pmem(Pmem {
                file: fds.pass(file("pmem", 2 << 20)),
                read_only: false,
            }),
            DeviceKind::VhostUser(VhostUser {
                socket: fds.pass(mounted),
                device: VhostUserDevice::Fs {
                    tag: "share".into(),
                    queues: REQUEST_QUEUES,
                },
                queue_size: QUEUE_SIZE,
            }),
        ];
        let numbered = kinds.into_iter().enumerate();
        let device = |(number, kind)| Device {
            name: format!("device{number}"),
            kind,
        };
        machine.devices = numbered.map(device).collect();
        Self {
            scratch,
            share,
            threads,
        }
    }

    /// The VMM is gone: all others end by themselves.
    fn end(mut self) -> ExitStatus {
        for thread in self.threads {
            thread.join().unwrap();
        }
        drop(self.scratch);
        self.share.wait().unwrap()
    }
}

/// Sends back what comes, until the VMM is gone.
fn echo(network: &OwnedFd) {
    let mut frame = vec![0; 1 << 17];
    while let Ok((len @ 1.., _)) = recv(network, &mut frame[..], RecvFlags::empty()) {
        // A guest that does not receive what it has sent does not stop us.
        let _ = send(
            network,
            &frame[..len],
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
    }
}

/// Plays the supervisor until the VMM is gone: [`PORT`] is accepted, and what comes there passed over.
fn supervise(connector: &OwnedFd) {
    let mut buffer = [0; 512];
    let mut open = std::collections::VecDeque::new();
    while let Ok((len @ 1.., _)) = recv(connector, &mut buffer[..], RecvFlags::empty()) {
        let question: Connect = serde_json::from_slice(&buffer[..len]).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let accepted = question.port == PORT;
        let id = question.id;
        let text = serde_json::to_vec(&Connected { id, accepted }).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [theirs.as_fd()];
        if accepted {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let parts = [IoSlice::new(&text)];
        if sendmsg(connector, &parts, &mut ancillary, SendFlags::NOSIGNAL).is_err() {
            return;
        }
        // Nobody reads there: what the guest sends has to be held.
        open.push_back(ours);
        if open.len() > 8 {
            open.pop_front();
        }
    }
}

/// Serves a directory; the process, and the VMM's end of the connection to it.
fn share(bulkhead: &Bulkhead, scratch: &Scratch) -> (Child, UnixStream) {
    let directory = scratch.path().join("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "content").unwrap();
    let path = scratch.path().join("fs");
    let listener = UnixListener::bind(&path).unwrap();
    let mounted = UnixStream::connect(&path).unwrap();
    let exported = open(&directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut fds = Inherited::default();
    let description = FsDescription {
        version: VERSION,
        name: "share".into(),
        socket: fds.pass(listener),
        control: None,
        directory: fds.pass(exported),
        read_only: false,
        ownership: Ownership::Exporter { uid: 0, gid: 0 },
        jail: Jail::BestEffort,
    };
    let text = fds.describe(&description).0.to_string();
    let mut command = Process::new(bulkhead.library("bulkhead-fs"));
    let process = command.args(["--description-fd", &text]).spawn().unwrap();
    (process, mounted)
}

/// A PC with a hostile kernel.
struct Attack {
    vmm: Vmm,
    world: World,
    before: Census,
}

impl Attack {
    /// On what `target` says; the driver says when it begins.
    fn begin(target: &str, transport: Transport, tap: Option<&str>) -> Self {
        let bulkhead = Bulkhead::built();
        let before = Census::take();
        let kernel = bulkhead.library("tests/hostile-driver");
        let silent = if tap.is_some() { " silent" } else { "" };
        // An exit takes the lab far longer.
        let hurried = if in_lab() { " hurried" } else { "" };
        let cmdline = format!("{target}{silent}{hurried}");
        let mut world = None;
        let mut vmm = Vmm::pc(&bulkhead, &kernel, None, &cmdline, |machine, fds| {
            machine.transport = transport;
            machine.memory.shared = true;
            world = Some(World::new(&bulkhead, machine, fds, tap));
        });
        // So that there is something to plug.
        let pluggable_mib = PLUGGABLE_MIB;
        vmm.demand(Command::Resize(Resize::Memory { pluggable_mib }));
        vmm.wait_for("begin\n");
        let world = world.unwrap();
        Self { vmm, world, before }
    }

    /// Waits for its end, and demands that these devices served at first and at last, that no
    /// others are left, and that all processes end in order. What the guest said.
    #[track_caller]
    fn end(mut self, devices: &[&str]) -> String {
        let private = self.vmm.private_kib();
        self.vmm.wait_for("end\n");
        let growth = self.vmm.private_kib().saturating_sub(private);
        let said = self.vmm.said().to_owned();
        println!("{growth} KiB more than the {private} KiB before");
        assert!(!said.contains("BROKEN"), "{said}");
        let well = |name: &&str, when| {
            let well = format!("{name}: well at {when}");
            said.lines().any(|line| line == well)
        };
        for name in DEVICES {
            assert!(well(&name, "first"), "{name} was not there:\n{said}");
            let last = well(&name, "last");
            assert_eq!(last, devices.contains(&name), "{name} at last:\n{said}");
        }
        let Reply::Stats(stats) = self.vmm.request(Command::Stats, &[]) else {
            panic!("no statistics after the attacks")
        };
        assert_eq!(stats.devices.len(), devices.len());
        assert!(growth <= MOST_GROWTH_KIB, "{growth} KiB more");
        self.vmm.send(Command::Stop);
        let how = Ended::Stopped;
        assert_eq!(self.vmm.event(), Event::Ended { how });
        assert_eq!(self.vmm.wait(), Some(0));
        let share = self.world.end();
        assert_eq!(share.code(), Some(0), "the server of the shared directory");
        self.before.expect_nothing_new();
        said
    }
}

/// Attacks the device `name`.
#[track_caller]
fn attack(name: &str, transport: Transport, tap: Option<&str>) {
    let said = Attack::begin(name, transport, tap).end(&DEVICES);
    let own = format!("{name}: ");
    let mut lines = said.lines();
    let line = lines.find(|l| l.starts_with(&own) && l.contains(" resets, "));
    let line = line.unwrap_or_else(|| panic!("{name} was not attacked:\n{said}"));
    println!("{line}");
    assert!(line.ends_with("alive"), "{line}");
}

/// As [`attack`], where an exit is cheap.
#[track_caller]
fn attack_on_the_host(name: &str, transport: Transport) {
    if in_lab() {
        skip("hundreds of attacks on one device take the lab too long");
        return;
    }
    attack(name, transport, None);
}

/// A test for each device.
macro_rules! attacks {
    ($transport:expr; $($device:ident)*) => {
        $(
            #[test]
            fn $device() {
                super::super::attack_on_the_host(stringify!($device), $transport);
            }
        )*
    };
}

mod kvm {
    mod a_hostile_driver_over_mmio_of {
        use bulkhead_machine::Transport;

        attacks!(Transport::Mmio; console rng mem blk net vsock balloon pmem fs);
    }

    mod a_hostile_driver_over_pci_of {
        use bulkhead_machine::Transport;

        attacks!(Transport::Pci; console rng mem blk net vsock balloon pmem fs);

        /// Devices are let go of that nobody asked for.
        #[test]
        fn slots() {
            let [gone, left @ ..] = super::super::DEVICES;
            let said = super::super::Attack::begin("slots", Transport::Pci, None).end(&left);
            assert!(said.contains(&format!("{gone}: gone\n")), "{said}");
        }
    }
}

mod lab {
    use bulkhead_machine::Transport;

    #[test]
    fn a_hostile_driver_over_mmio_of_a_tap() {
        super::attack("net", Transport::Mmio, Some("hostile-tap1"));
    }

    #[test]
    fn a_hostile_driver_over_pci_of_a_tap() {
        super::attack("net", Transport::Pci, Some("hostile-tap2"));
    }
}
