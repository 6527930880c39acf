//! Boots the probe under `bulkhead-vmm` and reads its report.
//!
//! The probe is a guest like any other: its output is bounded and parsed as hostile, and its VMM is
//! killed when it takes too long.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bulkhead_cpu::HostCpu;
use bulkhead_machine::control::{Ended, Event};
use bulkhead_machine::{Boot as BootProtocol, Console, Fd, Jail, MachineDescription};
use rustix::event::{PollFd, PollFlags, poll};

use super::Installation;
use crate::process::packet_pair;
use crate::vmm::{Heard, Vmm};

/// Memory of the probe's partition.
const MEMORY_MIB: u64 = 2;
/// Longest report; the probe needs about 1 KiB.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;
/// Longest life of one probe. It needs milliseconds, under emulation up to a second.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// A file of the installation cannot be opened.
    #[error("cannot open {name}: {source}")]
    File {
        /// Its name in the library directory.
        name: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The host refused something else.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error(transparent)]
    Start(#[from] crate::Error),
    /// The probe is no kernel.
    #[error("the kernel image {0}")]
    Image(#[from] bulkhead_image::ImageError),
    /// The VMM gave up.
    #[error("{0}")]
    Vmm(String),
    /// The report is not what it should be.
    #[error("the probe's report is incomplete")]
    Silent,
    /// No end after [`TIMEOUT`].
    #[error("the probe did not end within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl ProbeError {
    /// What to do about it.
    pub(super) fn remedy(&self) -> &'static str {
        match self {
            Self::File { .. } => {
                "run `cargo xtask build`, or name another directory in BULKHEAD_LIB"
            }
            _ => {
                "run `bulkhead doctor` again on an idle host; if it stays, look at the kernel's log"
            }
        }
    }
}

/// The life of one probe.
#[derive(Debug)]
pub(super) struct Boot {
    lines: Vec<(String, String)>,
    /// KVM could not go on with the guest.
    pub(super) cannot_run: bool,
    /// What the VMM said about its jail.
    pub(super) jail_gaps: Vec<String>,
}

impl Boot {
    /// Parses what came on the console. Lines of another shape are passed over.
    pub(super) fn from_output(output: &[u8], cannot_run: bool, jail_gaps: Vec<String>) -> Self {
        let lines = String::from_utf8_lossy(output)
            .lines()
            .filter_map(|line| line.trim_end().split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Self {
            lines,
            cannot_run,
            jail_gaps,
        }
    }

    /// All values of `key`, in order.
    pub(super) fn values<'a>(&'a self, key: &'a str) -> impl DoubleEndedIterator<Item = &'a str> {
        (self.lines.iter())
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The first value of `key`.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.lines
            .iter()
            .find_map(|(name, value)| (name == key).then_some(value.as_str()))
    }

    /// The first value of `key`, if it is a number.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.value(key)?.parse().ok()
    }
}

/// Boots the probe with the command line `probe=<what>` and waits for its end.
pub(super) fn boot(installation: &Installation, what: &str) -> Result<Boot, ProbeError> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let kvm = kvm.map_err(io_error("opening /dev/kvm"))?;
    let name = "probe";
    let cpu = HostCpu::ask().map_err(io_error("asking KVM for its CPUs"))?;
    let probe =
        File::open(installation.file(name)).map_err(|source| ProbeError::File { name, source })?;
    let (output, theirs) = io::pipe().map_err(io_error("creating a pipe"))?;
    let (control, their_control) = packet_pair()?;

    let mut descriptors = Vec::new();
    let mut hand_over = |descriptor: OwnedFd| {
        let fd = Fd(descriptor.as_raw_fd());
        descriptors.push(descriptor);
        fd
    };
    let (kvm, theirs_control) = (hand_over(kvm.into()), hand_over(their_control));
    let of_probe = probe
        .try_clone()
        .map_err(io_error("duplicating a descriptor"))?;
    let boot = BootProtocol::Pvh {
        kernel: hand_over(of_probe.into()),
        initrd: None,
        cmdline: format!("probe={what}"),
    };
    let mut description = MachineDescription {
        console: Some(Console {
            input: None,
            output: hand_over(theirs.into()),
            error: None,
            tty: false,
            ports: Vec::new(),
        }),
        jail: Jail::BestEffort,
        ..MachineDescription::new("probe", kvm, theirs_control, cpu.all(), MEMORY_MIB, boot)
    };
    bulkhead_image::provide(&mut description, &probe)?;
    let path = installation.file("bulkhead-vmm");
    let mut vmm = Vmm::spawn(&path, &description, control, descriptors, None)?;
    watch(&mut vmm, output)
}

/// Reads the console to its end, then what the VMM has to say: it speaks last of the end.
fn watch(vmm: &mut Vmm, mut console: PipeReader) -> Result<Boot, ProbeError> {
    let deadline = Instant::now() + TIMEOUT;
    let mut output = Vec::new();
    let mut bytes = [0; 4096];
    while output.len() <= MAX_OUTPUT_BYTES {
        wait_for(&console, deadline)?;
        match console
            .read(&mut bytes)
            .map_err(io_error("reading the console"))?
        {
            0 => break,
            count => output.extend_from_slice(bytes.get(..count).unwrap_or_default()),
        }
    }
    drop(console);
    let mut jail_gaps = vec![];
    loop {
        match vmm.hear() {
            Heard::Nothing => wait_for(&vmm.control, deadline)?,
            Heard::Event(Event::Running { jail_gaps: gaps }) => jail_gaps = gaps,
            Heard::Event(Event::Reply { .. } | Event::GuestPanicked | Event::WatchdogExpired) => {}
            Heard::Event(Event::Failed { message, .. }) => return Err(ProbeError::Vmm(message)),
            Heard::Event(Event::Ended { how }) => {
                let cannot_run = matches!(how, Ended::CannotRun { .. });
                return Ok(Boot::from_output(&output, cannot_run, jail_gaps));
            }
            Heard::Closed => {
                return Err(ProbeError::Vmm(format!("the VMM {}", vmm.process.reap())));
            }
        }
    }
}

/// Waits until there is something to read, at most until `deadline`.
fn wait_for(source: impl AsFd, deadline: Instant) -> Result<(), ProbeError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().ok();
        match poll(&mut [PollFd::new(&source, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => return Err(ProbeError::Timeout),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(io_error("waiting for the probe")(errno)),
        }
    }
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ProbeError {
    move |source| ProbeError::Io {
        what,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_parsed_as_hostile() {
        let text = b"\nbegin=a\r\na=1\n=\n\xff\xfe=x\nb=2=3\nb=4\nno line\na=9";
        let boot = Boot::from_output(text, false, vec![]);
        assert_eq!(boot.value("a"), Some("1"));
        assert_eq!(boot.number("a"), Some(1));
        assert_eq!(boot.value("begin"), Some("a"));
        assert_eq!(boot.values("b").collect::<Vec<_>>(), ["2=3", "4"]);
        assert_eq!(boot.number("b"), None);
        assert_eq!(boot.value("no line"), None);
    }

    #[test]
    fn a_missing_installation_is_named() {
        let nowhere = Installation::new("/nonexistent");
        match boot(&nowhere, "speed") {
            Err(error @ ProbeError::File { .. }) => {
                assert!(error.to_string().starts_with("cannot open probe: "));
            }
            // Where /dev/kvm does not open, that comes first.
            Err(ProbeError::Io { what, .. }) => assert_eq!(what, "opening /dev/kvm"),
            other => panic!("{other:?}"),
        }
    }
}
