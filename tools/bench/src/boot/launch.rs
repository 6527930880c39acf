//! Starts `bulkhead-vmm` the way a supervisor does, and waits for the first byte of its guest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use bulkhead_machine::{Boot, Console, Jail, MachineDescription, Module, ModuleKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::TracedBoot;
use crate::child::{Handover, Watched, memfd};
use crate::clock::now_ns;
use crate::error::Error;
use crate::host::Host;
use crate::memory::own_kib;

/// How long a guest has for its first byte, in seconds.
const PATIENCE_S: i64 = 10;

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guest {
    /// The probe, by PVH, on a bare machine.
    Probe,
    /// The native example program on the microkernel.
    Native,
}

impl Guest {
    fn memory_mib(self) -> u64 {
        match self {
            Self::Probe => 2,
            Self::Native => 16,
        }
    }

    fn kernel(self, library: &Path) -> Result<File, Error> {
        open(&library.join(match self {
            Self::Probe => "probe",
            Self::Native => "kernel",
        }))
    }

    fn boot(self, library: &Path, handover: &mut Handover) -> Result<Boot, Error> {
        let kernel = handover.give(self.kernel(library)?)?;
        Ok(match self {
            Self::Probe => Boot::Pvh {
                kernel,
                initrd: None,
                cmdline: String::new(),
            },
            Self::Native => Boot::Bulkhead {
                kernel,
                modules: vec![Module {
                    kind: ModuleKind::Program,
                    file: handover.give(open(&library.join("examples/hello-native"))?)?,
                }],
                args: vec!["hello-native".into()],
                env: vec![],
                trace_syscalls: false,
            },
        })
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io(format!("opening {}", path.display())))
}

/// Boots `guest` once.
pub(super) fn boot(library: &Path, host: &Host, guest: Guest) -> Result<TracedBoot, Error> {
    let mut handover = Handover::default();
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let (mut console, their_console) = io::pipe().map_err(Error::io("creating a pipe"))?;
    let (control, their_control) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::io("creating the control socket"))?;
    let mut trace = memfd("trace")?;
    let kvm = handover.give(kvm.map_err(Error::io("opening /dev/kvm"))?)?;
    let their_control = handover.give(their_control)?;
    let boot = guest.boot(library, &mut handover)?;
    let network = (host.network.as_ref()).map(|network| handover.give(network));
    let mut description = MachineDescription {
        console: Some(Console {
            input: None,
            output: handover.give(their_console)?,
            error: None,
            tty: false,
            ports: Vec::new(),
        }),
        jail: Jail::BestEffort,
        trace: Some(handover.give(&trace)?),
        network_namespace: network.transpose()?,
        ..MachineDescription::new(
            "bench",
            kvm,
            their_control,
            host.cpu.all(),
            guest.memory_mib(),
            boot,
        )
    };
    bulkhead_image::provide(&mut description, &guest.kernel(library)?)?;
    let mut file = memfd("description")?;
    serde_json::to_writer(&file, &description)
        .map_err(io::Error::from)
        .and_then(|()| file.rewind())
        .map_err(Error::io("writing the machine description"))?;
    let number = handover.give(file)?.0.to_string();
    let vmm = library.join("bulkhead-vmm");
    let mut command = Command::new(&vmm);
    (command.args(["--description-fd", &number]))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null());

    let spawned_ns = now_ns();
    let child = command
        .spawn()
        .map_err(Error::io(format!("running {}", vmm.display())))?;
    let mut child = Watched(child);
    drop(handover);
    let first_ns = first_byte(&mut console, "bulkhead-vmm")?;
    // The probe goes on with its experiments for a while, and may be over already as the program is.
    let own_kib = match guest {
        Guest::Probe => own_kib(child.0.id(), guest.memory_mib() * 1024)?,
        Guest::Native => None,
    };

    drain(console);
    let status = child
        .0
        .wait()
        .map_err(Error::io("waiting for bulkhead-vmm"))?;
    drop(control);
    if !status.success() {
        return Err(Error::Silent(format!("bulkhead-vmm ({status})")));
    }
    let mut text = String::new();
    trace
        .rewind()
        .and_then(|()| trace.read_to_string(&mut text))
        .map_err(Error::io("reading the trace"))?;
    Ok(TracedBoot {
        total_ns: first_ns - spawned_ns,
        spawned_ns,
        marks: parse(&text)?,
        own_kib,
    })
}

/// Lines `<phase> <nanoseconds>`, see [`bulkhead_machine::trace`].
fn parse(text: &str) -> Result<BTreeMap<String, u64>, Error> {
    let line = |line: &str| {
        let (phase, ns) = line.split_once(' ')?;
        Some((phase.to_owned(), ns.parse().ok()?))
    };
    let marks = text
        .lines()
        .map(|text| line(text).ok_or_else(|| Error::Trace(format!("it says {text:?}"))))
        .collect::<Result<BTreeMap<_, _>, _>>()?;
    if marks.is_empty() {
        return Err(Error::Trace("it is empty".into()));
    }
    Ok(marks)
}

/// Reads one byte and says when it was there.
pub(super) fn first_byte(from: &mut (impl Read + AsFd), who: &str) -> Result<u64, Error> {
    let timeout = Timespec {
        tv_sec: PATIENCE_S,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&timeout))
        .map_err(Error::io("waiting for the first byte"))?;
    let mut byte = [0];
    let count = match ready {
        0 => 0,
        _ => (from.read(&mut byte)).map_err(Error::io("reading the first byte"))?,
    };
    let now = now_ns();
    match count {
        0 => Err(Error::Silent(who.into())),
        _ => Ok(now),
    }
}

/// Takes the rest of the output, so that the guest is not held up at its end.
pub(super) fn drain(mut console: PipeReader) {
    // What cannot be read is not wanted either.
    let _ = io::copy(&mut console, &mut io::sink());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_phases_and_nanoseconds() {
        let marks = parse("start 10\nvm 25\n").unwrap();
        assert_eq!(marks.get("vm"), Some(&25));
        for bad in [
            "",
            "start\n",
            "start x\n",
            "start -1\n",
            "start 99999999999999999999\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_guest_that_says_nothing_is_named() {
        let (mut reader, writer) = io::pipe().unwrap();
        drop(writer);
        let error = first_byte(&mut reader, "it").unwrap_err();
        assert_eq!(error.to_string(), "it ended without a byte from its guest");
    }
}
