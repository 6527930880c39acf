//! Plays the supervisor to a built VMM: for promises about the VMM's own socket.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command as Process};
use std::time::{Duration, Instant};

use bulkhead_cpu::HostCpu;
use bulkhead_machine::control::{Command, Event, MAX_MESSAGE_BYTES, Reply, Request};
use bulkhead_machine::{Boot, Console, Fd, Jail, MachineDescription};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};

use crate::bulkhead::Bulkhead;

/// How long a guest may be silent before a test gives up: this bounds a hang, and judges nothing.
const PATIENCE: Duration = Duration::from_secs(600);

/// A VMM with a stock kernel. Killed when it is dropped.
pub struct Vmm {
    control: OwnedFd,
    console: BufReader<File>,
    child: Child,
    said: String,
    next_id: u64,
}

/// Descriptors that a child inherits, far from the numbers it uses itself.
#[derive(Default)]
pub struct Inherited(Vec<OwnedFd>);

impl Inherited {
    /// The number under which a child has `fd`.
    pub fn pass(&mut self, fd: impl AsFd) -> Fd {
        let high = fcntl_dupfd_cloexec(fd, 100).unwrap();
        fcntl_setfd(&high, FdFlags::empty()).unwrap();
        let number = Fd(high.as_raw_fd());
        self.0.push(high);
        number
    }

    /// As [`Self::pass`], for `description` as JSON.
    pub fn describe(&mut self, description: &impl serde::Serialize) -> Fd {
        let mut text = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
        text.write_all(&serde_json::to_vec(description).unwrap())
            .unwrap();
        std::io::Seek::rewind(&mut text).unwrap();
        self.pass(text)
    }
}

impl Vmm {
    /// Boots the stock kernel with `initrd`.
    pub fn linux(
        bulkhead: &Bulkhead,
        initrd: &Path,
        change: impl FnOnce(&mut MachineDescription, &mut Inherited),
    ) -> Self {
        let cmdline = "console=ttyS0 quiet panic=-1 reboot=k";
        let kernel = bulkhead.library("linux/vmlinuz");
        Self::pc(bulkhead, &kernel, Some(initrd), cmdline, change)
    }

    /// Boots a PC with `kernel`.
    pub fn pc(
        bulkhead: &Bulkhead,
        kernel: &Path,
        initrd: Option<&Path>,
        cmdline: &str,
        change: impl FnOnce(&mut MachineDescription, &mut Inherited),
    ) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.unwrap();
        let (console, output) = std::io::pipe().unwrap();
        let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let mut fds = Inherited::default();
        let image = open(kernel);
        let boot = Boot::Linux {
            kernel: fds.pass(&image),
            initrd: initrd.map(|path| fds.pass(open(path))),
            cmdline: cmdline.into(),
            acpi: Fd(-1),
        };
        let (kvm, control) = (fds.pass(kvm.unwrap()), fds.pass(theirs));
        let cpuid = HostCpu::ask().unwrap().all();
        let mut description = MachineDescription::new("test", kvm, control, cpuid, 256, boot);
        description.jail = Jail::BestEffort;
        description.time = true;
        description.console = Some(Console {
            input: None,
            output: fds.pass(&output),
            error: None,
            tty: false,
            ports: Vec::new(),
        });
        change(&mut description, &mut fds);
        bulkhead_image::provide(&mut description, &image).unwrap();
        let pass = |pc: &MachineDescription| bulkhead_acpi::file(pc).map(|file| fds.pass(file));
        bulkhead_acpi::provide(&mut description, pass).unwrap();
        let child = Process::new(bulkhead.library("bulkhead-vmm"))
            .args([
                "--description-fd",
                &fds.describe(&description).0.to_string(),
            ])
            .spawn()
            .unwrap();
        let mut vmm = Self {
            control: ours,
            console: BufReader::new(File::from(OwnedFd::from(console))),
            child,
            said: String::new(),
            next_id: 0,
        };
        assert!(matches!(vmm.event(), Event::Running { .. }));
        vmm
    }

    /// The next event.
    pub fn event(&mut self) -> Event {
        assert!(is_readable(self.control.as_fd()), "no event: {}", self.said);
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let (len, _) = recv(&self.control, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        assert_ne!(len, 0, "the VMM is gone: {}", self.said);
        serde_json::from_slice(&buffer[..len]).unwrap()
    }

    /// Asks, with descriptors, and waits for the answer.
    pub fn request(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> Reply {
        let asked = self.ask(command, descriptors);
        match self.event() {
            Event::Reply { id, outcome } if id == asked => outcome,
            other => panic!("{other:?} is no reply to {asked}: {}", self.said),
        }
    }

    /// Asks for something that has no reply.
    pub fn send(&mut self, command: Command) {
        self.ask(command, &[]);
    }

    fn ask(&mut self, command: Command, descriptors: &[BorrowedFd<'_>]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let text = serde_json::to_vec(&Request { id, command }).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let parts = [IoSlice::new(&text)];
        sendmsg(&self.control, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        id
    }

    /// As [`Self::request`], for what has to be done.
    pub fn demand(&mut self, command: Command) {
        assert_eq!(self.request(command, &[]), Reply::Done);
    }

    /// A device's counter; 0 where it is not told.
    pub fn counter(&mut self, device: &str, name: &str) -> u64 {
        let Reply::Stats(stats) = self.request(Command::Stats, &[]) else {
            panic!("no statistics");
        };
        let device = stats.devices.iter().find(|d| d.name == device).unwrap();
        let found = device.counters.iter().find(|(own, _)| own == name);
        found.map_or(0, |(_, value)| *value)
    }

    /// MiB of the host's memory that the VMM has, its guest's included.
    pub fn resident_mib(&self) -> u64 {
        self.status_kib("VmRSS:") / 1024
    }

    /// KiB of private memory that the VMM has: its own, where its guest's is shared.
    pub fn private_kib(&self) -> u64 {
        self.status_kib("RssAnon:")
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.unwrap().parse().unwrap()
    }

    /// Waits for the process; its exit code.
    pub fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Waits until `done` holds, which `what` describes.
    pub fn wait_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let resident = self.resident_mib();
            assert!(
                Instant::now() < deadline,
                "never: {what}; {resident} MiB resident"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Reads the console until a line holds `text`; that line.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            let waits = self.console.buffer().is_empty();
            if waits {
                let readable = is_readable(self.console.get_ref().as_fd());
                assert!(readable, "no `{text}` in: {}", self.said);
            }
            let mut line = Vec::new();
            let len = self.console.read_until(b'\n', &mut line).unwrap();
            assert_ne!(len, 0, "no `{text}` in: {}", self.said);
            let line = String::from_utf8_lossy(&line).into_owned();
            self.said += &line;
            if line.contains(text) {
                return line;
            }
        }
    }

    /// All that the guest has said.
    pub fn said(&self) -> &str {
        &self.said
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Fails where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).unwrap() == 1
}
