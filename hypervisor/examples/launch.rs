//! Starts `bulkhead-vmm` by hand, playing the supervisor: for people who work on the VMM or a kernel.
//! The real door is `bulkhead run`.
//!
//! ```text
//! launch --kernel K [--protocol bulkhead|linux|pvh] [--program P] [--initramfs C]
//!        [--arg A].. [--env NAME=VALUE].. [--cmdline TEXT] [--blk FILE[:OPTION]..].. [--memory MIB]
//!        [--vcpus N] [--cpu host|v2|v3] [--jail none|best-effort|full] [--time] [--entropy] [--no-console]
//!        [--fs TAG=DIRECTORY[:ro][:exporter]].. [--trace-syscalls] [--trace] [--stop-after MS] [--gdb SOCKET]
//!        [--dump-after MS FILE] [--pci]
//! ```
//!
//! The guest's console is this terminal; events and the boot trace go to stderr; the exit status is
//! the guest's, or 125. `bulkhead-vmm` and `bulkhead-fs` are found beside this program's parent
//! directory, or in `$BULKHEAD_VMM` and `$BULKHEAD_FS`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a developer's tool: a panic is its error message"
)]

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use bulkhead_cpu::{CpuTemplate, HostCpu};
use bulkhead_machine::control::{self, Ended, Event};
use bulkhead_machine::device::{
    BaseImage, Block, Device, DeviceKind, ImageFormat, Overlay, RateLimit, VhostUser,
    VhostUserDevice,
};
use bulkhead_machine::{
    Boot, Console, Fd, Jail, MachineDescription, Module, ModuleKind, Transport, trace,
};
use bulkhead_share::{FsDescription, Ownership};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, send, sendmsg, socketpair,
};

/// Descriptors that the VMM inherits.
#[derive(Default)]
struct Inherited(Vec<OwnedFd>);

impl Inherited {
    fn pass(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        let fd = fd.into();
        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        let number = Fd(fd.as_raw_fd());
        self.0.push(fd);
        number
    }

    fn open(&mut self, path: &str) -> Fd {
        self.pass(File::open(path).unwrap_or_else(|e| panic!("{path}: {e}")))
    }
}

fn main() -> ExitCode {
    let mut fds = Inherited::default();
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut trace_file = File::from(memfd_create("trace", MemfdFlags::CLOEXEC).unwrap());
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let boot = Boot::Pvh {
        kernel: Fd(-1),
        initrd: None,
        cmdline: String::new(),
    };
    let (kvm, theirs) = (fds.pass(kvm.expect("/dev/kvm")), fds.pass(theirs));
    let mut description = MachineDescription::new("launch", kvm, theirs, Vec::new(), 64, boot);
    description.jail = Jail::BestEffort;
    description.console = Some(Console {
        input: Some(fds.pass(std::io::stdin().as_fd_owned())),
        output: fds.pass(std::io::stdout().as_fd_owned()),
        error: Some(fds.pass(std::io::stderr().as_fd_owned())),
        tty: rustix::termios::isatty(std::io::stdin()),
        ports: Vec::new(),
    });
    let (mut kernel, mut protocol, mut cmdline) = (None, "bulkhead".to_owned(), String::new());
    let (mut program, mut initramfs, mut args, mut env) = (None, None, Vec::new(), Vec::new());
    let (mut trace_syscalls, mut stop_after, mut dump) = (false, None, None);
    let mut template = CpuTemplate::Host;
    let mut options = std::env::args().skip(1);
    while let Some(option) = options.next() {
        let mut value = || {
            options
                .next()
                .unwrap_or_else(|| panic!("{option} needs a value"))
        };
        match option.as_str() {
            "--kernel" => kernel = Some(value()),
            "--protocol" => protocol = value(),
            "--program" => program = Some(value()),
            "--initramfs" => initramfs = Some(value()),
            "--arg" => args.push(value()),
            "--env" => env.push(value()),
            "--cmdline" => cmdline = value(),
            "--memory" => description.memory.mib = value().parse().unwrap(),
            "--vcpus" => description.vcpus = value().parse().unwrap(),
            "--cpu" => {
                template = match value().as_str() {
                    "host" => CpuTemplate::Host,
                    "v2" => CpuTemplate::V2,
                    "v3" => CpuTemplate::V3,
                    other => panic!("unknown cpu {other}"),
                }
            }
            "--jail" => description.jail = serde_json::from_value(value().into()).unwrap(),
            "--blk" => description.devices.push(block(&mut fds, &value())),
            "--fs" => description
                .devices
                .push(shared_directory(&mut fds, &value())),
            "--time" => description.time = true,
            "--pci" => description.transport = Transport::Pci,
            "--gdb" => {
                let listener = UnixListener::bind(value()).expect("the debugger's socket");
                description.gdb = Some(fds.pass(listener));
            }
            "--entropy" => description.entropy = true,
            "--no-console" => description.console = None,
            "--trace-syscalls" => trace_syscalls = true,
            "--trace" => {
                description.trace = Some(fds.pass(trace_file.try_clone().unwrap()));
            }
            "--dump-after" => {
                let delay = Duration::from_millis(value().parse().unwrap());
                dump = Some((delay, new_file(&value())));
            }
            "--stop-after" => stop_after = Some(Duration::from_millis(value().parse().unwrap())),
            other => {
                panic!("unknown option {other}; see the head of hypervisor/examples/launch.rs")
            }
        }
    }
    let offered = HostCpu::ask().expect("/dev/kvm").offer(template);
    description.cpuid = offered.unwrap_or_else(|lacks| panic!("{lacks}"));
    let image = File::open(kernel.expect("--kernel is needed")).expect("the kernel");
    let kernel = fds.pass(image.try_clone().unwrap());
    let initrd = initramfs.map(|path| fds.open(&path));
    description.boot = match protocol.as_str() {
        "bulkhead" => {
            let program = program.map(|path| (ModuleKind::Program, fds.open(&path)));
            let archive = initrd.map(|file| (ModuleKind::Initramfs, file));
            let modules = [program, archive].into_iter().flatten();
            Boot::Bulkhead {
                kernel,
                modules: modules.map(|(kind, file)| Module { kind, file }).collect(),
                args,
                env,
                trace_syscalls,
            }
        }
        "linux" => Boot::Linux {
            kernel,
            initrd,
            cmdline,
            acpi: Fd(-1),
        },
        "pvh" => Boot::Pvh {
            kernel,
            initrd,
            cmdline,
        },
        other => panic!("unknown protocol {other}"),
    };

    if let Err(error) = bulkhead_image::provide(&mut description, &image) {
        panic!("the kernel image {error}");
    }
    let pass = |pc: &MachineDescription| bulkhead_acpi::file(pc).map(|file| fds.pass(file));
    bulkhead_acpi::provide(&mut description, pass).unwrap();
    let mut json = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
    json.write_all(&serde_json::to_vec(&description).unwrap())
        .unwrap();
    json.rewind().unwrap();
    let number = fds.pass(json).0.to_string();
    let started = hypervisor::trace::now_ns();
    let mut child = Command::new(program_path("BULKHEAD_VMM", "bulkhead-vmm"))
        .args(["--description-fd", &number])
        .spawn()
        .expect("bulkhead-vmm");
    drop(fds);
    if let Some((delay, file)) = &dump {
        dump_after(&ours, *delay, file.try_clone().unwrap());
    }
    let status = follow(&ours, stop_after, dump.as_ref().map(|(_, file)| file));
    let exit = child.wait().unwrap();
    eprintln!("launch: bulkhead-vmm ended with {exit}");
    print_trace(&mut trace_file, started);
    ExitCode::from(status)
}

/// Prints events until the VMM hangs up; the guest's status, or 125.
fn follow(control: &OwnedFd, stop_after: Option<Duration>, dump: Option<&File>) -> u8 {
    let mut status = 125;
    let mut buffer = vec![0; control::MAX_MESSAGE_BYTES];
    if let Some(delay) = stop_after {
        let control = control.try_clone().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let stop = serde_json::to_vec(&control::Request {
                id: 0,
                command: control::Command::Stop,
            })
            .unwrap();
            let asked = Instant::now();
            let _ = send(&control, &stop, SendFlags::NOSIGNAL);
            eprintln!("launch: stop sent at {asked:?}");
        });
    }
    while let Ok((len @ 1.., _)) = recv(control, buffer.as_mut_slice(), RecvFlags::empty()) {
        let event: Event = serde_json::from_slice(&buffer[..len]).unwrap();
        eprintln!("launch: {event:?}");
        if let Event::Reply {
            outcome: control::Reply::Dumped { regions, vcpus },
            ..
        } = &event
        {
            let file = dump.as_ref().expect("only what was asked for is dumped");
            bulkhead_dump::finish(file, regions, vcpus).unwrap();
        }
        match event {
            Event::Ended {
                how: Ended::Exit { status: s },
            } => status = s,
            Event::Ended {
                how: Ended::PowerOff | Ended::Stopped,
            } => status = 0,
            _ => {}
        }
    }
    status
}

/// A file to write and to read again.
fn new_file(path: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options.open(path).unwrap()
}

/// Asks for a dump later; the reply is printed like every event.
fn dump_after(control: &OwnedFd, delay: Duration, file: File) {
    let control = control.try_clone().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        let request = serde_json::to_vec(&control::Request {
            id: 1,
            command: control::Command::Dump { file: Fd(0) },
        });
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let parts = [IoSlice::new(request.as_ref().unwrap())];
        sendmsg(&control, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    });
}

/// A disk: its file, then `:ro`, `:direct`, `:queues=N`, `:over=BASE` (qcow2 if it ends so) with the
/// map in `FILE.map`.
fn block(fds: &mut Inherited, spec: &str) -> Device {
    let mut parts = spec.split(':');
    let path = parts.next().unwrap();
    let (mut read_only, mut direct, mut queues, mut base) = (false, false, 1, None);
    for option in parts {
        match option.split_once('=') {
            None if option == "ro" => read_only = true,
            None if option == "direct" => direct = true,
            Some(("queues", count)) => queues = count.parse().unwrap(),
            Some(("over", path)) => base = Some(path),
            _ => panic!("unknown option {option} of {path}"),
        }
    }
    let flags = if direct {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    };
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    let file = options.custom_flags(flags.bits() as i32).open(path);
    let overlay = base.map(|base| {
        let mut map = OpenOptions::new();
        map.read(true).write(true).create(true).truncate(false);
        Overlay {
            map: fds.pass(map.open(format!("{path}.map")).unwrap()),
            base: vec![BaseImage {
                file: fds.open(base),
                format: if base.ends_with("qcow2") {
                    ImageFormat::Qcow2
                } else {
                    ImageFormat::Raw
                },
            }],
        }
    });
    Device {
        name: format!("disk{}", fds.0.len()),
        kind: DeviceKind::Block(Block {
            file: fds.pass(file.unwrap_or_else(|e| panic!("{path}: {e}"))),
            read_only,
            direct,
            overlay,
            queues,
            rate: RateLimit::default(),
        }),
    }
}

/// Starts the server of a shared directory; the device that stands before it.
#[expect(
    clippy::zombie_processes,
    reason = "it ends with its connection, and this program with it"
)]
fn shared_directory(fds: &mut Inherited, spec: &str) -> Device {
    let (spec, exporter) = match spec.strip_suffix(":exporter") {
        Some(spec) => (spec, true),
        None => (spec, false),
    };
    let (spec, read_only) = match spec.strip_suffix(":ro") {
        Some(spec) => (spec, true),
        None => (spec, false),
    };
    let (tag, path) = spec.split_once('=').expect("--fs TAG=DIRECTORY");
    let name = std::env::temp_dir().join(format!("launch-{}-{tag}", std::process::id()));
    let listener = UnixListener::bind(&name).unwrap();
    let socket = UnixStream::connect(&name).unwrap();
    std::fs::remove_file(&name).unwrap();
    let mut server = Inherited::default();
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let directory = open(path, directory, Mode::empty()).unwrap_or_else(|e| panic!("{path}: {e}"));
    let ownership = match exporter {
        true => Ownership::Exporter { uid: 0, gid: 0 },
        false => Ownership::Guest,
    };
    let description = FsDescription {
        version: bulkhead_share::VERSION,
        name: tag.to_owned(),
        socket: server.pass(listener),
        control: None,
        directory: server.pass(directory),
        read_only,
        ownership,
        jail: Jail::Full,
    };
    let mut json = File::from(memfd_create("description", MemfdFlags::CLOEXEC).unwrap());
    json.write_all(&serde_json::to_vec(&description).unwrap())
        .unwrap();
    json.rewind().unwrap();
    let number = server.pass(json).0.to_string();
    Command::new(program_path("BULKHEAD_FS", "bulkhead-fs"))
        .args(["--description-fd", &number])
        .spawn()
        .expect("bulkhead-fs");
    Device {
        name: tag.to_owned(),
        kind: DeviceKind::VhostUser(VhostUser {
            socket: fds.pass(socket),
            device: VhostUserDevice::Fs {
                tag: tag.to_owned(),
                queues: bulkhead_share::REQUEST_QUEUES,
            },
            queue_size: bulkhead_share::QUEUE_SIZE,
        }),
    }
}

/// A program of Bulkhead's.
fn program_path(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            let here = std::env::current_exe().unwrap();
            here.parent().unwrap().parent().unwrap().join(name)
        },
        PathBuf::from,
    )
}

fn print_trace(file: &mut File, started: u64) {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let mut before = started;
    for line in text.lines() {
        let (phase, ns) = line.split_once(' ').unwrap();
        let ns: u64 = ns.parse().unwrap();
        let since = ns.saturating_sub(before) / 1000;
        eprintln!(
            "launch: {phase:>20} +{since:>6} us  {:>6} us",
            (ns - started) / 1000
        );
        before = ns;
        if phase == trace::END {
            break;
        }
    }
}

/// A second descriptor on a standard stream, for the VMM to own.
trait Duplicate: std::os::fd::AsFd {
    fn as_fd_owned(&self) -> OwnedFd {
        self.as_fd().try_clone_to_owned().unwrap()
    }
}

impl<T: std::os::fd::AsFd> Duplicate for T {}
