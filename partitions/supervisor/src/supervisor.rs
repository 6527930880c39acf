//! A running system: starts every partition, watches them in one loop, and ends them together.

mod member;
mod watch;

use crate::compile::{Settings, compile};
use crate::console::{self, Gate, Input, Log, Output, PREFIX_COLOURS, Prefixed, Pumps, Raw};
use crate::end::End;
use crate::error::Error;
use crate::host::{self, EmptyNetwork, Installation};
use crate::library::{Library, LibraryFile};
use crate::lifecycle::{Lifecycle, State};
use crate::open::{Opened, open_kvm};
use crate::record::SystemRecord;
use crate::state_dir::{StateRoot, SystemDir};
use crate::vmm::{Vmm, control_socket};
use bulkhead_machine::Jail;
use bulkhead_manifest::{Kernel, KernelKind, LinuxBoot, Partition, System, Validated};
use member::Member;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the partitions' consoles lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consoles {
    /// Our own standard streams are the one partition's.
    Attached {
        /// They are a terminal.
        tty: bool,
        /// The terminal is in raw mode: Ctrl-] ends the partition.
        raw: bool,
    },
    /// Lines with the partition's name before them, and a log for each partition.
    Prefixed {
        /// Our standard output is a terminal: colour prefixes, show control characters.
        terminal: bool,
    },
    /// A log for each partition only.
    Logged,
}

/// How to run a system.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// See there.
    pub consoles: Consoles,
    /// How far the VMMs lock themselves in.
    pub jail: Jail,
    /// Leave the logs when the system has ended by itself.
    pub keep_logs: bool,
}

/// Why a system was ended before its partitions ended by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// One of the watched signals.
    Signal(u8),
    /// `bulkhead down`.
    Request,
    /// Ctrl-] on a raw terminal.
    Escape,
    /// Nobody reads our standard output any more.
    BrokenPipe,
    /// Output of a partition could not be written.
    OutputFailed {
        /// Why, as Linux numbers it.
        errno: u8,
    },
    /// A partition could not be started, and a system runs whole or not at all.
    Incomplete,
}

/// How a system ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Each partition's name and end, in the order of the manifest.
    pub ends: Vec<(String, End)>,
    /// Why it was ended, if it did not end by itself.
    pub cause: Option<Cause>,
}

/// A started system. Dropping it kills its VMMs and removes its directory.
#[derive(Debug)]
pub struct Supervisor {
    members: Vec<Member>,
    listener: UnixListener,
    notices: PipeReader,
    /// Keeps `notices` from ending before the loop does.
    _notices_writer: PipeWriter,
    started: u64,
    keep_logs: bool,
    /// Last, so that the directory goes after the VMMs.
    directory: SystemDir,
}

/// One partition with everything open, before its VMM exists.
struct Prepared<'s> {
    partition: &'s Partition,
    description: bulkhead_machine::MachineDescription,
    descriptors: Vec<OwnedFd>,
    control: OwnedFd,
    ends: console::Ends,
    lifecycle: Lifecycle,
}

impl Supervisor {
    /// Starts every partition of `system`. Everything that can be refused is refused before
    /// anything exists that would have to be cleaned up.
    ///
    /// # Errors
    /// See [`Error`]; nothing is left behind.
    pub fn start(
        system: &Validated<System>,
        root: &StateRoot,
        library: &Library,
        options: Options,
    ) -> Result<Self, Error> {
        let network = EmptyNetwork::begin();
        for partition in &system.partitions {
            check_memory(partition)?;
        }
        let kvm = open_kvm()?;
        refuse_linux(system, library)?;
        Self::start_on(
            &kvm,
            network.finish().as_ref(),
            system,
            root,
            library,
            options,
        )
    }

    /// The same without a look at the host.
    fn start_on(
        kvm: &File,
        network: Option<&File>,
        system: &Validated<System>,
        root: &StateRoot,
        library: &Library,
        options: Options,
    ) -> Result<Self, Error> {
        let vmm = library.file(LibraryFile::Vmm)?;
        let prepared: Vec<Prepared<'_>> = (system.partitions.iter())
            .map(|partition| prepare(partition, library, kvm, network, options))
            .collect::<Result<_, _>>()?;

        let directory = root.create(&system.name)?;
        let failed = |source| Error::StateDir {
            path: directory.path().to_owned(),
            source,
        };
        let listener = UnixListener::bind(directory.socket()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (notices, notices_writer) = io::pipe().map_err(Error::system("create a pipe"))?;
        let width = system
            .partitions
            .iter()
            .map(|partition| partition.name.len())
            .max();
        let mut members = Vec::new();
        for (number, prepared) in prepared.into_iter().enumerate() {
            let Prepared {
                partition,
                description,
                descriptors,
                control,
                ends,
                mut lifecycle,
            } = prepared;
            let process = Vmm::spawn(&vmm, &description, control, descriptors)?;
            let _ = lifecycle.step(State::Isolated);
            let (output, error) = outputs(
                partition,
                number,
                width.unwrap_or(0),
                options.consoles,
                &directory,
            )?;
            let (output, input) = through_agent(partition, output, input(options.consoles));
            let Pumps { finished } = ends.pump(output, error, input, &notices_writer)?;
            members.push(Member::new(partition, process, finished, lifecycle));
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let supervisor = Self {
            members,
            listener,
            notices,
            _notices_writer: notices_writer,
            started: started.map_or(0, |since| since.as_secs()),
            keep_logs: options.keep_logs,
            directory,
        };
        supervisor.directory.write(&supervisor.record(false))?;
        Ok(supervisor)
    }

    /// How the system stands.
    fn record(&self, finished: bool) -> SystemRecord {
        SystemRecord {
            supervisor: std::process::id(),
            started: self.started,
            finished,
            partitions: self.members.iter().map(Member::record).collect(),
        }
    }
}

/// Opens everything that a partition's VMM needs.
fn prepare<'s>(
    partition: &'s Partition,
    library: &Library,
    kvm: &File,
    network: Option<&File>,
    options: Options,
) -> Result<Prepared<'s>, Error> {
    let mut lifecycle = Lifecycle::new();
    let (control, theirs) = control_socket()?;
    let (streams, ends) = console::pipes()?;
    let (input, tty) = match options.consoles {
        Consoles::Attached { tty, .. } => (true, tty),
        Consoles::Prefixed { .. } | Consoles::Logged => (false, false),
    };
    let settings = Settings {
        input,
        tty,
        jail: options.jail,
    };
    let mut opened = Opened::new(library, kvm, theirs, streams, settings);
    let mut description = compile(partition, settings, &mut opened)?;
    if let Some(network) = network {
        let network = (network.try_clone()).map_err(Error::system("share a network namespace"))?;
        description.network_namespace = Some(opened.keep(network));
    }
    let _ = lifecycle.step(State::Validated);
    let descriptors = opened.into_descriptors();
    Ok(Prepared {
        partition,
        description,
        descriptors,
        control,
        ends,
        lifecycle,
    })
}

/// A partition bigger than the host is a mistake, and would only be found out much later.
fn check_memory(partition: &Partition) -> Result<(), Error> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let host_mib = (info.totalram + info.totalswap).saturating_mul(unit) / (1024 * 1024);
    if partition.memory_mib <= host_mib {
        return Ok(());
    }
    Err(Error::MemoryExceedsHost {
        partition: partition.name.clone(),
        asked_mib: partition.memory_mib,
        host_mib,
    })
}

/// A Linux kernel is not even tried where it cannot run.
fn refuse_linux(system: &System, library: &Library) -> Result<(), Error> {
    let is_linux = |partition: &&Partition| partition.kernel.kind() == KernelKind::Linux;
    let Some(partition) = system.partitions.iter().find(is_linux) else {
        return Ok(());
    };
    let kind = host::kvm_kind(&Installation::new(library.path()));
    match host::linux_refusal(kind) {
        None => Ok(()),
        Some(reason) => Err(Error::KvmInterpreted {
            partition: partition.name.clone(),
            reason: reason.to_owned(),
        }),
    }
}

type BoxedOutput = Box<dyn Output>;

/// Where the output and the error stream of a partition go.
fn outputs(
    partition: &Partition,
    number: usize,
    width: usize,
    consoles: Consoles,
    directory: &SystemDir,
) -> Result<(BoxedOutput, BoxedOutput), Error> {
    let log = || {
        let log = Log::open(directory.path(), &partition.name);
        log.map_err(|source| Error::StateDir {
            path: directory.path().to_owned(),
            source,
        })
    };
    Ok(match consoles {
        Consoles::Attached { .. } => (Box::new(Raw(io::stdout())), Box::new(Raw(io::stderr()))),
        Consoles::Logged => (Box::new(log()?), Box::new(log()?)),
        Consoles::Prefixed { terminal } => {
            let colour = PREFIX_COLOURS.iter().cycle().nth(number).copied();
            let colour = colour.filter(|_| terminal);
            let name = &partition.name;
            let output = Prefixed::new(io::stdout(), name, width, colour, terminal, Some(log()?));
            let error = Prefixed::new(io::stderr(), name, width, colour, terminal, Some(log()?));
            (Box::new(output), Box::new(error))
        }
    })
}

/// How our standard input becomes the partition's, if it does.
fn input(consoles: Consoles) -> Option<Input> {
    let Consoles::Attached { raw, .. } = consoles else {
        return None;
    };
    Some(Input {
        escape: raw,
        end: b"",
        gate: None,
    })
}

/// A guest agent's console is a terminal, whatever ours is. So input waits until the agent has set
/// it up, and ends with Ctrl-D: twice, for a last line that is not whole.
fn through_agent(
    partition: &Partition,
    output: BoxedOutput,
    input: Option<Input>,
) -> (BoxedOutput, Option<Input>) {
    let has_agent = matches!(
        &partition.kernel,
        Kernel::Linux {
            boot: LinuxBoot::Command(_),
            ..
        }
    );
    match input {
        Some(Input { escape, .. }) if has_agent => {
            let (gate, opened) = Gate::new(output);
            let end: &[u8] = if escape { b"" } else { b"\x04\x04" };
            (
                Box::new(gate),
                Some(Input {
                    escape,
                    end,
                    gate: Some(opened),
                }),
            )
        }
        input => (output, input),
    }
}

#[cfg(test)]
mod tests;
