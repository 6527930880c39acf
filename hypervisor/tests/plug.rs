//! Disks that come and go while a guest runs, in the jail that a partition has. The guest is a few
//! instructions that let go of whatever they are asked to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::os::fd::AsFd;

use bulkhead_machine::control::{Command, Reply};
use bulkhead_machine::device::{
    Balloon, Block, Device, DeviceKind, Net, NetBackend, RateLimit, TokenBucket, VhostUser,
    VhostUserDevice,
};
use bulkhead_machine::{Boot, Fd, Transport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

mod harness;
use harness::{Vmm, file, guest};

tests! {
    "true":
    disks_and_interfaces_come_and_go
    what_cannot_be_plugged_in_is_refused
    without_pci_nothing_is_plugged_in
}

/// Reads which slots it is to empty, and says that it has.
fn obedient() -> Vec<u8> {
    guest(&[
        0x66, 0xba, 0x24, 0x06, // mov dx, 0x624
        0xed, // in eax, dx
        0x85, 0xc0, // test eax, eax
        0x74, 0xf7, // jz -9
        0x66, 0xba, 0x28, 0x06, // mov dx, 0x628
        0xef, // out dx, eax
        0xeb, 0xf0, // jmp -16
    ])
}

fn start(transport: Transport) -> Vmm {
    Vmm::start(&obedient(), |description| {
        let Boot::Pvh { kernel, .. } = description.boot else {
            unreachable!()
        };
        description.boot = Boot::Linux {
            kernel,
            initrd: None,
            cmdline: String::new(),
            acpi: Fd(-1),
        };
        description.memory.mib = 64;
        description.transport = transport;
    })
}

fn device(name: &str, kind: DeviceKind) -> Command {
    let name = name.to_owned();
    Command::Attach {
        device: Device { name, kind },
    }
}

fn limited() -> RateLimit {
    let bucket = TokenBucket {
        per_second: 1_000_000,
        burst: 1_000_000,
    };
    RateLimit {
        bytes: Some(bucket),
        operations: None,
    }
}

fn disk() -> DeviceKind {
    DeviceKind::Block(Block {
        file: Fd(0),
        read_only: false,
        direct: false,
        overlay: None,
        queues: 1,
        rate: limited(),
    })
}

fn interface() -> DeviceKind {
    DeviceKind::Net(Net {
        backend: NetBackend::Socket { socket: Fd(0) },
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        queue_pairs: 1,
        receive_rate: limited(),
        transmit_rate: RateLimit::default(),
    })
}

fn names(vmm: &mut Vmm) -> Vec<String> {
    match vmm.request(Command::Stats, &[]) {
        Reply::Stats(stats) => stats
            .devices
            .into_iter()
            .map(|device| device.name)
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn code(reply: Reply) -> String {
    match reply {
        Reply::Refused { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn open_descriptors(vmm: &Vmm) -> usize {
    let dir = format!("/proc/{}/fd", vmm.child.id());
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn disks_and_interfaces_come_and_go() {
    let mut vmm = start(Transport::Pci);
    assert!(names(&mut vmm).iter().all(|name| name == "console"));
    let before = open_descriptors(&vmm);
    for round in 0..50 {
        let image: File = file(&[0; 8192]);
        let kind = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind.0, kind.1, None).unwrap();
        for (name, kind, descriptor) in [
            ("data", disk(), image.as_fd()),
            ("eth", interface(), theirs.as_fd()),
        ] {
            let reply = vmm.request(device(name, kind), &[descriptor]);
            assert_eq!(reply, Reply::Done, "round {round}");
        }
        assert_eq!(names(&mut vmm).len(), 3);
        for name in ["data", "eth"] {
            vmm.demand(Command::Detach { name: name.into() });
        }
        assert_eq!(names(&mut vmm).len(), 1);
        drop(ours);
    }
    // Nobody else may look at a process in a jail of its own; where we may, nothing is left open.
    assert_eq!(open_descriptors(&vmm), before);
    vmm.stop();
}

fn what_cannot_be_plugged_in_is_refused() {
    let mut vmm = start(Transport::Pci);
    let image = file(&[0; 8192]);
    let image = image.as_fd();
    assert_eq!(vmm.request(device("data", disk()), &[image]), Reply::Done);
    let balloon = DeviceKind::Balloon(Balloon {
        target_mib: 0,
        deflate_on_oom: false,
        free_page_reporting: false,
    });
    let attach = |vmm: &mut Vmm, name, kind| code(vmm.request(device(name, kind), &[image]));
    assert_eq!(attach(&mut vmm, "data", disk()), "device-exists");
    assert_eq!(attach(&mut vmm, "more", balloon), "device-not-pluggable");
    let share = DeviceKind::VhostUser(VhostUser {
        socket: Fd(0),
        device: VhostUserDevice::Fs {
            tag: "share".to_owned(),
            queues: 1,
        },
        queue_size: 64,
    });
    // Its process could not map the memory.
    assert_eq!(attach(&mut vmm, "more", share), "vhost-user-backend");
    let none = code(vmm.request(device("more", disk()), &[]));
    assert_eq!(none, "descriptor-closed");
    let unknown = Command::Detach {
        name: "more".into(),
    };
    assert_eq!(code(vmm.request(unknown, &[])), "device-unknown");
    // As many as there are slots, and no more; nothing of those that do not fit stays.
    let mut count = 1;
    let refused = loop {
        match vmm.request(device(&format!("disk{count}"), disk()), &[image]) {
            Reply::Done => count += 1,
            refused => break code(refused),
        }
    };
    assert_eq!(refused, "too-many");
    assert_eq!(names(&mut vmm).len(), 31);
    vmm.stop();
}

fn without_pci_nothing_is_plugged_in() {
    let mut vmm = start(Transport::Mmio);
    let image = file(&[0; 8192]);
    let reply = vmm.request(device("data", disk()), &[image.as_fd()]);
    assert_eq!(code(reply), "plug-unsupported");
    let detach = Command::Detach {
        name: "console".into(),
    };
    assert_eq!(code(vmm.request(detach, &[])), "plug-unsupported");
    vmm.stop();
}
