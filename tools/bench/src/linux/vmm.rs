//! The VMMs: ours by either transport, and QEMU's microvm.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use bulkhead_machine::device::{Block, Device, DeviceKind, Net, NetBackend, RateLimit};
use bulkhead_machine::{Boot, Console, Fd, Jail, MachineDescription, Transport};
use bulkhead_supervisor::open_tap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::guest::Guest;
use crate::child::{Handover, Watched, memfd};
use crate::clock::now_ns;
use crate::error::Error;
use crate::host::Host;

/// Name of the peer.
pub(super) const QEMU: &str = "qemu-microvm";

/// Something that boots a guest.
pub(super) enum Vmm {
    Bulkhead {
        library: PathBuf,
        transport: Transport,
        host: Rc<Host>,
    },
    Qemu(PathBuf),
}

impl Vmm {
    /// Those that are there.
    pub(super) fn all(library: &Path) -> Result<Vec<Self>, Error> {
        let host = Rc::new(Host::new()?);
        let ours = |transport| Self::Bulkhead {
            library: library.to_owned(),
            transport,
            host: host.clone(),
        };
        let mut all = vec![ours(Transport::Mmio), ours(Transport::Pci)];
        let path = std::env::var_os("PATH").unwrap_or_default();
        all.extend(
            std::env::split_paths(&path)
                .map(|directory| directory.join("qemu-system-x86_64"))
                .find(|program| program.is_file())
                .map(Self::Qemu),
        );
        Ok(all)
    }

    /// Stable name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Bulkhead {
                transport: Transport::Mmio,
                ..
            } => "bulkhead-mmio",
            Self::Bulkhead {
                transport: Transport::Pci,
                ..
            } => "bulkhead-pci",
            Self::Qemu(_) => QEMU,
        }
    }

    /// Starts `guest`.
    pub(super) fn start(&self, guest: &Guest) -> Result<Running, Error> {
        let (console, theirs) = io::pipe().map_err(Error::io("creating a pipe"))?;
        let mut handover = Handover::default();
        let (mut command, control) = match self {
            Self::Bulkhead {
                library,
                transport,
                host,
            } => {
                let (command, control) = ours(
                    library,
                    *transport,
                    host,
                    guest,
                    &theirs.into(),
                    &mut handover,
                )?;
                (command, Some(control))
            }
            Self::Qemu(program) => (qemu(program, guest, theirs.into()), None),
        };
        let start_ns = now_ns();
        let child = command
            .spawn()
            .map_err(Error::io(format!("running {}", self.name())))?;
        Ok(Running {
            child: Watched(child),
            lines: BufReader::new(console),
            name: self.name(),
            start_ns,
            _control: control,
        })
    }
}

/// A VMM with its guest; killed when dropped.
pub(super) struct Running {
    child: Watched,
    lines: BufReader<PipeReader>,
    name: &'static str,
    start_ns: u64,
    _control: Option<OwnedFd>,
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Reads up to the end of a line, or of patience.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<usize> {
        let console = self.lines.get_ref().as_fd();
        if self.lines.buffer().is_empty()
            && poll(
                &mut [PollFd::from_borrowed_fd(console, PollFlags::IN)],
                Some(&PATIENCE),
            )? == 0
        {
            return Ok(0);
        }
        self.lines.read_until(b'\n', line)
    }

    /// Waits for a line with `begin`: nanoseconds since the start, and what stands behind it.
    pub(super) fn line(&mut self, begin: &str) -> Result<(u64, String), Error> {
        let mut seen = String::new();
        loop {
            let mut line = Vec::new();
            let count = self.next(&mut line);
            let now = now_ns();
            let line = String::from_utf8_lossy(&line);
            if let Some((_, rest)) = line.split_once(begin) {
                return Ok((now - self.start_ns, rest.trim().to_owned()));
            }
            if !count.is_ok_and(|count| count > 0) {
                return Err(Error::Silent(format!(
                    "{}, which said {seen:?} and",
                    self.name
                )));
            }
            seen.push_str(&line);
        }
    }
}

/// The guest's address: a locally administered one.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// How long a guest may be silent: no figure, but the end of a hang.
pub(super) const PATIENCE: Timespec = Timespec {
    tv_sec: 180,
    tv_nsec: 0,
};

fn open(path: &Path, write: bool) -> Result<File, Error> {
    File::options()
        .read(true)
        .write(write)
        .open(path)
        .map_err(Error::io(format!("opening {}", path.display())))
}

fn ours(
    library: &Path,
    transport: Transport,
    host: &Host,
    guest: &Guest,
    console: &OwnedFd,
    handover: &mut Handover,
) -> Result<(Command, OwnedFd), Error> {
    let (control, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::io("creating the control socket"))?;
    let kernel = open(&guest.kernel, false)?;
    let boot = Boot::Linux {
        kernel: handover.give(&kernel)?,
        initrd: Some(handover.give(open(&guest.initrd, false)?)?),
        cmdline: guest.cmdline.clone(),
        acpi: Fd(-1),
    };
    let kvm = handover.give(open(Path::new("/dev/kvm"), true)?)?;
    let theirs = handover.give(theirs)?;
    let mut devices = Vec::new();
    for (index, (path, read_only)) in guest.disks.iter().enumerate() {
        devices.push(Device {
            name: format!("disk{index}"),
            kind: DeviceKind::Block(Block {
                file: handover.give(open(path, !read_only)?)?,
                read_only: *read_only,
                direct: false,
                overlay: None,
                queues: 1,
                rate: RateLimit::default(),
            }),
        });
    }
    if let Some(tap) = &guest.tap {
        let queues = open_tap(tap, 1)
            .map_err(|error| Error::io("opening the tap")(io::Error::other(error)))?
            .into_iter()
            .map(|queue| handover.give(queue))
            .collect::<Result<_, _>>()?;
        devices.push(Device {
            name: "net".into(),
            kind: DeviceKind::Net(Net {
                backend: NetBackend::Tap { queues },
                mac: MAC,
                mtu: None,
                queue_pairs: 1,
                receive_rate: RateLimit::default(),
                transmit_rate: RateLimit::default(),
            }),
        });
    }
    let network = (host.network.as_ref()).map(|network| handover.give(network));
    let mut description = MachineDescription {
        console: Some(Console {
            input: None,
            output: handover.give(console)?,
            error: None,
            tty: false,
            ports: Vec::new(),
        }),
        time: true,
        entropy: true,
        transport,
        devices,
        jail: Jail::BestEffort,
        network_namespace: network.transpose()?,
        ..MachineDescription::new("bench", kvm, theirs, host.cpu.all(), guest.memory_mib, boot)
    };
    bulkhead_image::provide(&mut description, &kernel)?;
    bulkhead_acpi::provide(&mut description, |pc| {
        let tables = bulkhead_acpi::file(pc).map_err(Error::io("writing the ACPI tables"))?;
        handover.give(tables)
    })?;
    let mut file = memfd("description")?;
    serde_json::to_writer(&file, &description)
        .map_err(io::Error::from)
        .and_then(|()| io::Seek::rewind(&mut file))
        .map_err(Error::io("writing the machine description"))?;
    let number = handover.give(file)?.0.to_string();
    let mut command = Command::new(library.join("bulkhead-vmm"));
    command
        .args(["--description-fd", &number])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok((command, control))
}

/// The settings that QEMU's documentation gives for the smallest footprint ("microvm virtual
/// platform"), with the serial port, kvmclock and the same devices as ours.
fn qemu(program: &Path, guest: &Guest, console: OwnedFd) -> Command {
    let mut command = Command::new(program);
    command
        .args([
            "-M",
            "microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on",
        ])
        .args([
            "-cpu",
            "host",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio"])
        .args(["-m", &guest.memory_mib.to_string()])
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd)
        .args(["-append", &guest.cmdline])
        .args(["-device", "virtio-rng-device"]);
    for (index, (path, read_only)) in guest.disks.iter().enumerate() {
        let on = if *read_only { "on" } else { "off" };
        command
            .arg("-drive")
            .arg(format!(
                "id=disk{index},if=none,format=raw,file={},readonly={on}",
                path.display()
            ))
            .args(["-device", &format!("virtio-blk-device,drive=disk{index}")]);
    }
    if let Some(tap) = &guest.tap {
        let backend = format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off");
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        (command.args(["-netdev", &backend])).args([
            "-device",
            &format!("virtio-net-device,netdev=net,mac={mac}"),
        ]);
    }
    command.stdin(Stdio::null()).stdout(console);
    command
}
