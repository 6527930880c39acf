//! Plays the supervisor: starts the built VMM on a small guest of a few bytes of machine code, speaks
//! on its control socket, reads its console.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its part of this module"
)]

use std::fs::File;
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command as Process, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use bulkhead_cpu::HostCpu;
use bulkhead_machine::control::{Command, Ended, Event, MAX_MESSAGE_BYTES, Reply, Request};
use bulkhead_machine::{Boot, Console, Fd, Jail, MachineDescription};
use libtest_mimic::{Arguments, Completion, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};

/// How long anything may take before a test gives up: this bounds a hang, and judges nothing.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where [`guest`] puts its code.
pub const CODE: u64 = 0x10_0000;

/// Runs `tests`; where there is no KVM, or outside CI no `tool`, they are skipped, and counted so.
pub fn run(tests: &[(&'static str, fn())], tool: &'static str) -> ExitCode {
    let has_tool = Process::new(tool).arg("--version").output().is_ok();
    let trials = tests.iter().map(|(name, test)| {
        let test = *test;
        Trial::ignorable_test(*name, move || {
            let kvm = File::options().read(true).write(true).open("/dev/kvm");
            if let Err(error) = kvm {
                return Ok(Completion::ignored_with(format!("/dev/kvm: {error}")));
            }
            if !has_tool && std::env::var_os("CI").is_none() {
                return Ok(Completion::ignored_with(format!("apt-get install {tool}")));
            }
            test();
            Ok(Completion::Completed)
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Tests by the names of their functions, after the program that they need.
#[macro_export]
macro_rules! tests {
    ($tool:literal: $($name:ident)*) => {
        fn main() -> std::process::ExitCode {
            harness::run(&[$((stringify!($name), $name)),*], $tool)
        }
    };
}

/// A running VMM. Killed when it is dropped.
pub struct Vmm {
    pub control: OwnedFd,
    pub console: File,
    pub child: Child,
    next_id: u64,
}

/// A duplicate that children inherit, far from the numbers that they use themselves.
pub fn inherit(fd: impl AsFd) -> OwnedFd {
    let high = fcntl_dupfd_cloexec(fd, 100).unwrap();
    fcntl_setfd(&high, FdFlags::empty()).unwrap();
    high
}

/// A file without a name that holds `bytes`.
pub fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// An ELF image with a PVH note: `code` runs at [`CODE`] in 32-bit protected mode, on a bare machine.
pub fn guest(code: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend((CODE as u32).to_le_bytes());
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend(2u16.to_le_bytes());
    out.extend(62u16.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    for word in [CODE, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0; 4]);
    for half in [64u16, 56, 2, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 2 * 56;
    for (kind, flags, address, bytes) in [(1u32, 7u32, CODE, code), (4, 4, 0, &note)] {
        out.extend(kind.to_le_bytes());
        out.extend(flags.to_le_bytes());
        let len = bytes.len() as u64;
        for word in [offset, address, address, len, len, 4] {
            out.extend(word.to_le_bytes());
        }
        offset += len;
    }
    out.extend(code);
    out.extend(note);
    out
}

/// Writes `x` to the console for ever.
pub fn chatterbox() -> Vec<u8> {
    guest(&[
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'x', // mov al, 'x'
        0xee, // out dx, al
        0xeb, 0xfd, // jmp -3
    ])
}

/// Says `x`, then counts in `ecx` without ever leaving the guest.
pub fn counter() -> Vec<u8> {
    guest(&[
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'x', // mov al, 'x'
        0xee, // out dx, al
        0x31, 0xc9, // xor ecx, ecx
        0x41, // inc ecx
        0xeb, 0xfd, // jmp -3
    ])
}

impl Vmm {
    /// Starts the VMM on `kernel` in a full jail, or the fullest the host allows.
    pub fn start(kernel: &[u8], change: impl FnOnce(&mut MachineDescription)) -> Self {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let (console, output) = std::io::pipe().unwrap();
        let image = file(kernel);
        let kept = [
            inherit(kvm.unwrap()),
            inherit(theirs),
            inherit(output),
            inherit(image.try_clone().unwrap()),
        ];
        let [kvm, control, output, kernel] = kept.each_ref().map(|fd| Fd(fd.as_raw_fd()));
        let boot = Boot::Pvh {
            kernel,
            initrd: None,
            cmdline: String::new(),
        };
        let cpuid = HostCpu::ask().unwrap().all();
        let mut description = MachineDescription::new("test", kvm, control, cpuid, 4, boot);
        description.jail = Jail::BestEffort;
        description.console = Some(Console {
            input: None,
            output,
            error: None,
            tty: false,
            ports: Vec::new(),
        });
        change(&mut description);
        bulkhead_image::provide(&mut description, &image).unwrap();
        let mut tables = None;
        let provided = bulkhead_acpi::provide(&mut description, |pc| {
            let file = inherit(bulkhead_acpi::file(pc)?);
            Ok::<_, std::io::Error>(Fd(tables.insert(file).as_raw_fd()))
        });
        provided.unwrap();
        let text = inherit(file(&serde_json::to_vec(&description).unwrap()));
        // Elsewhere where the tests were carried elsewhere: into the lab.
        let program = std::env::var_os("BULKHEAD_VMM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_bulkhead-vmm").into());
        let child = Process::new(program)
            .args(["--description-fd", &text.as_raw_fd().to_string()])
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        drop((kept, tables));
        let mut vmm = Self {
            control: ours,
            console: File::from(OwnedFd::from(console)),
            child,
            next_id: 0,
        };
        assert!(matches!(vmm.event(), Event::Running { .. }));
        vmm
    }

    /// The next event.
    pub fn event(&mut self) -> Event {
        assert!(is_readable(self.control.as_fd(), PATIENCE), "no event");
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let (len, _) = recv(&self.control, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        assert_ne!(len, 0, "the VMM is gone");
        serde_json::from_slice(&buffer[..len]).unwrap()
    }

    /// Sends `text` and `descriptors` as one packet.
    pub fn send(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(80))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let parts = [IoSlice::new(text)];
        sendmsg(&self.control, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    }

    /// Asks without waiting for the answer; the request's number.
    pub fn ask(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let text = serde_json::to_vec(&Request { id, command }).unwrap();
        self.send(&text, descriptors);
        id
    }

    /// Asks, and waits for the answer.
    pub fn request(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Reply {
        let asked = self.ask(command, descriptors);
        match self.event() {
            Event::Reply { id, outcome } if id == asked => outcome,
            other => panic!("{other:?} is no reply to {asked}"),
        }
    }

    /// As [`Self::request`], for what has to be done.
    pub fn demand(&mut self, command: Command) {
        assert_eq!(self.request(command, &[]), Reply::Done);
    }

    /// Reads from the console until `len` bytes have come.
    pub fn read_console(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            assert!(is_readable(self.console.as_fd(), PATIENCE), "no output");
            done += self.console.read(&mut bytes[done..]).unwrap();
        }
        bytes
    }

    /// Throws away what the console holds now.
    pub fn drain_console(&mut self) {
        while is_readable(self.console.as_fd(), Duration::ZERO) {
            let _ = self.console.read(&mut [0; 65_536]).unwrap();
        }
    }

    /// Whether the console has output, now or within `wait`.
    pub fn has_output(&self, wait: Duration) -> bool {
        is_readable(self.console.as_fd(), wait)
    }

    /// How the partition ended, and how the process did.
    pub fn end(mut self) -> (Event, ExitStatus) {
        (self.event(), self.child.wait().unwrap())
    }

    /// Stops the partition.
    pub fn stop(mut self) {
        self.ask(Command::Stop, &[]);
        let how = Ended::Stopped;
        let (event, status) = self.end();
        assert_eq!(event, Event::Ended { how });
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Fails where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `fd` has something to read, or its end, within `wait`.
pub fn is_readable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let wait = Timespec::try_from(wait).unwrap();
    poll(&mut fds, Some(&wait)).unwrap() > 0
}
