//! The VMM as a process, without KVM: what it says and how it exits when it cannot begin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};

use bulkhead_machine::control::{Event, MAX_MESSAGE_BYTES};
use bulkhead_machine::cpu::Leaf;
use bulkhead_machine::{Boot, Fd, Jail, MIN_MEMORY_MIB, MachineDescription, VERSION};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

/// A number that is open in no process of these tests.
const CLOSED: Fd = Fd(1000);

fn description() -> MachineDescription {
    let boot = Boot::Pvh {
        kernel: CLOSED,
        initrd: None,
        cmdline: String::new(),
    };
    let leaf = |function| Leaf {
        function,
        index: None,
        registers: [0; 4],
    };
    let cpuid = vec![leaf(0), leaf(1)];
    MachineDescription {
        jail: Jail::None,
        ..MachineDescription::new("test", CLOSED, CLOSED, cpuid, MIN_MEMORY_MIB, boot)
    }
}

/// A duplicate that children inherit, far from the numbers that they use themselves.
fn inherit(fd: impl AsFd) -> OwnedFd {
    let high = fcntl_dupfd_cloexec(fd, 100).unwrap();
    fcntl_setfd(&high, FdFlags::empty()).unwrap();
    high
}

/// Starts the VMM with `description`, whose control socket is put in; what it says there, and how
/// it exits.
fn run(mut description: MachineDescription, stderr: Stdio) -> (Event, ExitStatus) {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let control = inherit(&theirs);
    description.control = Fd(control.as_raw_fd());
    let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
    file.write_all(&serde_json::to_vec(&description).unwrap())
        .unwrap();
    file.rewind().unwrap();
    let file = inherit(&file);
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
        .args(["--description-fd", &file.as_raw_fd().to_string()])
        .stderr(stderr)
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let (len, _) = recv(&ours, buffer.as_mut_slice(), RecvFlags::DONTWAIT).unwrap();
    (serde_json::from_slice(&buffer[..len]).unwrap(), status)
}

fn code(event: Event) -> String {
    match event {
        Event::Failed { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_failure_is_told_though_standard_error_is_full() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let other_release = MachineDescription {
        version: VERSION + 1,
        ..description()
    };
    let (event, status) = run(other_release, full.into());
    assert_eq!(code(event), "description-invalid");
    assert_eq!(status.code(), Some(125));
}

#[test]
fn a_closed_descriptor_is_not_mistaken_for_what_the_vmm_opened() {
    // Among these are the numbers of the files that the VMM opens first: none is a kernel.
    for number in 3..12 {
        let mut description = description();
        description.kvm = Fd(number);
        let (event, status) = run(description, Stdio::null());
        assert_eq!(status.code(), Some(125), "{number}: {event:?}");
        // Whoever started this test may have given all its children a descriptor of that number.
        let code = code(event);
        assert!(
            ["descriptor-closed", "description-invalid"].contains(&code.as_str()),
            "{number}: {code}"
        );
    }
}

#[test]
fn wrong_arguments_and_full_streams_are_failures_and_no_panics() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&[][..], &["--version"], &["--description-fd", "x"], &["-x"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
        command.args(arguments).stdout(full()).stderr(full());
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(125), "{arguments:?}");
    }
}
