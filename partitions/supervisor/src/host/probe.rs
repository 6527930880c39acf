//! Boots the probe under `bulkhead-vmm` and reads its report.
//!
//! The probe is a guest like any other: its output is bounded and parsed as hostile, and its VMM is
//! killed when it takes too long.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_machine::control::{Ended, Event, MAX_MESSAGE_BYTES};
use bulkhead_machine::{
    Boot as BootProtocol, Console, Fd, Jail, MachineDescription, Platform, VERSION,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::Installation;

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
    let probe =
        File::open(installation.file(name)).map_err(|source| ProbeError::File { name, source })?;
    let (output, theirs) = io::pipe().map_err(io_error("creating a pipe"))?;
    let (control, their_control) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io_error("creating the control socket"))?;

    let mut handover = Handover::default();
    let description = MachineDescription {
        version: VERSION,
        name: "probe".into(),
        kvm: handover.give(&kvm)?,
        control: handover.give(&their_control)?,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        boot: BootProtocol::Pvh {
            kernel: handover.give(&probe)?,
            initrd: None,
            cmdline: format!("probe={what}"),
            platform: Platform::Bare,
        },
        console: Some(Console {
            input: None,
            output: handover.give(&theirs)?,
            error: None,
            tty: false,
        }),
        time: false,
        entropy: false,
        blocks: vec![],
        jail: Jail::BestEffort,
        trace: None,
    };
    let vmm = spawn(installation, &description, handover)?;
    drop((theirs, their_control));
    watch(vmm, output.into(), &control)
}

/// Descriptors on their way to the VMM: duplicates that survive `exec`, closed here when the
/// process has been started.
#[derive(Default)]
struct Handover(Vec<OwnedFd>);

impl Handover {
    /// The number under which the VMM finds `file`.
    fn give(&mut self, file: impl AsFd) -> Result<Fd, ProbeError> {
        let fd = rustix::io::dup(file).map_err(io_error("duplicating a descriptor"))?;
        let number = Fd(fd.as_raw_fd());
        self.0.push(fd);
        Ok(number)
    }
}

fn spawn(
    installation: &Installation,
    description: &MachineDescription,
    mut handover: Handover,
) -> Result<Child, ProbeError> {
    let memfd = rustix::fs::memfd_create("description", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(memfd.map_err(io_error("creating a memfd"))?);
    serde_json::to_writer(&file, description)
        .map_err(io::Error::from)
        .and_then(|()| file.rewind())
        .map_err(io_error("writing the machine description"))?;
    let number = handover.give(&file)?.0.to_string();
    let name = "bulkhead-vmm";
    Command::new(installation.file(name))
        .args(["--description-fd", &number])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ProbeError::File { name, source })
}

/// A VMM that is killed unless it was seen to end.
struct Watched(Child);

impl Drop for Watched {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads console and control socket until the VMM closes both.
fn watch(vmm: Child, console: OwnedFd, control: &OwnedFd) -> Result<Boot, ProbeError> {
    let _vmm = Watched(vmm);
    let mut console = Some(File::from(console));
    let mut output = Vec::new();
    let (mut ended, mut jail_gaps, mut control_open) = (None, vec![], true);
    let deadline = Instant::now() + TIMEOUT;
    while console.is_some() || control_open {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut wait_for = Vec::with_capacity(2);
        if control_open {
            wait_for.push(PollFd::new(control, PollFlags::IN));
        }
        if let Some(console) = &console {
            wait_for.push(PollFd::new(console, PollFlags::IN));
        }
        let timeout = left.try_into().ok();
        match poll(&mut wait_for, timeout.as_ref()) {
            Ok(0) => return Err(ProbeError::Timeout),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io_error("waiting for the probe")(errno)),
        }
        let mut ready = wait_for.iter().map(|fd| !fd.revents().is_empty());
        let control_ready = control_open && ready.next() == Some(true);
        let console_ready = console.is_some() && ready.next() == Some(true);
        if control_ready {
            let mut packet = [0; MAX_MESSAGE_BYTES];
            let (length, _) = rustix::net::recv(control, &mut packet, RecvFlags::empty())
                .map_err(io_error("reading the control socket"))?;
            match packet.get(..length).map(serde_json::from_slice) {
                Some(Ok(Event::Running { jail_gaps: gaps })) => jail_gaps = gaps,
                Some(Ok(Event::Ended { how })) => ended = Some(how),
                Some(Ok(Event::Failed { message, .. })) => return Err(ProbeError::Vmm(message)),
                _ => control_open = false,
            }
        }
        if let Some(file) = console.as_mut().filter(|_| console_ready) {
            let mut bytes = [0; 4096];
            let count = file
                .read(&mut bytes)
                .map_err(io_error("reading the console"))?;
            output.extend_from_slice(bytes.get(..count).unwrap_or_default());
            if count == 0 || output.len() > MAX_OUTPUT_BYTES {
                console = None;
            }
        }
    }
    match ended {
        None => Err(ProbeError::Silent),
        Some(how) => {
            let cannot_run = matches!(how, Ended::CannotRun { .. });
            Ok(Boot::from_output(&output, cannot_run, jail_gaps))
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

    #[test]
    fn a_vmm_that_dies_silently_is_no_report() {
        let child = Command::new("true").spawn().unwrap();
        let (output, theirs) = io::pipe().unwrap();
        let (control, their_control) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        drop((theirs, their_control));
        let error = watch(child, output.into(), &control).unwrap_err();
        assert!(matches!(error, ProbeError::Silent), "{error}");
    }
}
