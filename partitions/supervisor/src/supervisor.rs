//! A running system: starts every partition, watches them in one loop, and ends them together.

mod acts;
mod approvals;
mod callers;
mod halt;
mod launch;
mod member;
mod outputs;
mod reload;
mod watch;

use crate::admit::{check_inherited, write_documents};
use crate::cgroup::Group;
use crate::conditions::PartitionConditions;
use crate::console::{self, Pumps, Streams};
use crate::end::End;
use crate::enforced;
use crate::error::Error;
use crate::host::{self, EmptyNetwork, Installation};
use crate::ledger::{Ledger, Life};
use crate::library::Library;
use crate::lifecycle::State;
use crate::limits;
use crate::open::open_kvm;
use crate::record::SystemRecord;
use crate::secrets::Secrets;
use crate::state_dir::{StateRoot, SystemDir};
use approvals::Approvals;
use bulkhead_cpu::HostCpu;
use bulkhead_machine::Jail;
use bulkhead_manifest::{KernelKind, Partition, System, Validated};
use callers::Callers;
use launch::{Launcher, Prepared};
use member::{Member, Parts};
use outputs::{Outputs, input, outputs, through_agent};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
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
#[derive(Clone, Debug)]
pub struct Options {
    /// See there.
    pub consoles: Consoles,
    /// How far the VMMs lock themselves in.
    pub jail: Jail,
    /// Leave the logs when the system has ended by itself.
    pub keep_logs: bool,
    /// Where secrets come from.
    pub secrets: Arc<Secrets>,
    /// What partitions are held to beyond their grants, by their names.
    pub conditions: BTreeMap<String, Arc<PartitionConditions>>,
    /// A listening stream socket on which every partition waits for a debugger.
    pub gdb: Option<Arc<OwnedFd>>,
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
    callers: Callers,
    notices: PipeReader,
    /// Keeps `notices` from ending before the loop does.
    _notices_writer: PipeWriter,
    started: u64,
    launcher: Launcher,
    /// Every partition is halted, or about to be.
    halted: bool,
    /// Who waits until all of them are.
    halting: Vec<UnixStream>,
    /// Where every step of theirs is recorded. Behind them, because it records their end.
    ledger: Arc<Ledger>,
    /// It does not record any more, and people were told.
    unrecorded: bool,
    /// What their processes ask a person.
    approvals: Approvals,
    /// Last, so that the directory goes after the VMMs.
    directory: SystemDir,
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
        // Opens the ledger while we look at the host.
        let ledger = Ledger::start(&system.name, library, options.jail);
        let looked = (|| {
            for partition in &system.partitions {
                check_memory(partition)?;
                enforced::check(partition)?;
            }
            let kvm = open_kvm()?;
            refuse_linux(system, library)?;
            Ok((kvm, HostCpu::ask().map_err(Error::Kvm)?))
        })();
        let (kvm, cpu) = match (looked, &ledger) {
            (Ok(found), _) => found,
            (Err(error), Ok(ledger)) => return Err(refused(ledger, system, error)),
            (Err(error), Err(_)) => return Err(error),
        };
        let (ledger, network) = (Arc::new(ledger?), network.finish());
        let started = Self::start_on(&kvm, cpu, network, &ledger, system, root, library, options);
        started.map_err(|error| refused(&ledger, system, error))
    }

    /// The same without a look at the host.
    #[expect(clippy::too_many_arguments, reason = "what a look at the host finds")]
    fn start_on(
        kvm: &File,
        cpu: HostCpu,
        network: Option<File>,
        ledger: &Arc<Ledger>,
        system: &Validated<System>,
        root: &StateRoot,
        library: &Library,
        options: Options,
    ) -> Result<Self, Error> {
        let limits = limits::of(system)?;
        let directory = root.create(&system.name)?;
        write_documents(system, root, &directory)?;
        check_inherited(system, &options.conditions, root, &directory)?;
        directory.write_grants(system)?;
        let life = |partition: &Partition| {
            let conditions = options.conditions.get(&partition.name);
            let adherence = conditions.map(|conditions| conditions.adherence.as_str());
            let conditions = conditions.map(|conditions| conditions.digests());
            let held = [
                ("kernel", partition.kernel.kind().as_str()),
                ("conditions", conditions.as_deref().unwrap_or_default()),
                ("adherence", adherence.unwrap_or_default()),
                (
                    "limits",
                    limits.get(&partition.name).map_or("", |own| &own.digest),
                ),
            ];
            Life::begin(&partition.name, held, ledger)
        };
        let mut lives: Vec<Life> = system.partitions.iter().map(life).collect();
        let mut launcher = Launcher::new(
            library,
            kvm,
            cpu,
            network,
            &options,
            ledger,
            directory.path(),
        )?;
        launcher.limits = limits;
        let prepared: Vec<(Prepared, Consoled)> = (system.partitions.iter())
            .map(|partition| prepare(partition, &launcher))
            .collect::<Result<_, _>>()?;
        for life in &mut lives {
            let _ = life.step(State::Validated);
        }
        let failed = |source| Error::StateDir {
            path: directory.path().to_owned(),
            source,
        };
        let groups = groups(system, &directory)?;
        let listener = UnixListener::bind(directory.socket()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        // Whoever halts everything says so first and then asks us: either we see it here, or they
        // find our socket.
        if root.is_halted() {
            return Err(Error::Halted);
        }
        let (notices, notices_writer) = io::pipe().map_err(Error::system("create a pipe"))?;
        let width = system
            .partitions
            .iter()
            .map(|partition| partition.name.len())
            .max();
        // Nothing of them exists before it is on record that they are to start.
        ledger.settle()?;
        let mut members = Vec::new();
        let partitions = system
            .partitions
            .iter()
            .zip(prepared)
            .zip(groups)
            .zip(lives);
        for (number, (((partition, (prepared, consoled)), group), mut life)) in
            partitions.enumerate()
        {
            let started = launcher.start(prepared, group.as_ref())?;
            let _ = life.step(State::Isolated);
            let width = width.unwrap_or(0);
            let consoles = options.consoles;
            let Outputs {
                output,
                error,
                messages,
            } = outputs(partition, number, width, consoles, directory.path())?;
            let (output, input) = through_agent(partition, output, input(consoles));
            let Consoled { ends, spare } = consoled;
            let Pumps { finished } = ends.pump(output, error, input, &notices_writer)?;
            let parts = Parts {
                system: system.name.clone(),
                spare,
                messages,
                finished,
                life,
                group,
                conditions: options.conditions.get(&partition.name).cloned(),
            };
            members.push(Member::new(partition, started, parts));
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let supervisor = Self {
            members,
            listener,
            callers: Callers::default(),
            notices,
            _notices_writer: notices_writer,
            started: started.map_or(0, |since| since.as_secs()),
            launcher,
            halted: false,
            halting: Vec::new(),
            ledger: ledger.clone(),
            unrecorded: false,
            approvals: Approvals::new(system, ledger.clone()),
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
            halted: self.halted,
            partitions: self.members.iter().map(Member::record).collect(),
            cgroups: (self.members.iter())
                .filter_map(|member| member.group.as_ref())
                .flat_map(|group| group.directories().to_vec())
                .collect(),
        }
    }
}

/// Records that a system does not start.
fn refused(ledger: &Ledger, system: &System, error: Error) -> Error {
    let names = system
        .partitions
        .iter()
        .map(|partition| partition.name.as_str());
    ledger.refuse(names, &error);
    error
}

/// Our ends of a partition's console, and the VMM's once more if there may be a VMM after it.
struct Consoled {
    ends: console::Ends,
    spare: Option<Streams>,
}

/// Opens everything that a partition needs, before anything of it runs.
fn prepare(partition: &Partition, launcher: &Launcher) -> Result<(Prepared, Consoled), Error> {
    let (streams, ends) = console::pipes()?;
    let spare = partition.restart.then(|| streams.duplicate()).transpose()?;
    let prepared = launcher.prepare(partition, streams, None)?;
    Ok((prepared, Consoled { ends, spare }))
}

/// Makes the control groups of a system, and notes them down: a supervisor that is killed leaves
/// them to whoever comes next.
fn groups(system: &System, directory: &SystemDir) -> Result<Vec<Option<Group>>, Error> {
    let group = |partition: &Partition| {
        let memory = &partition.memory;
        let most = memory.mib + memory.pluggable_mib;
        Group::new(&system.name, &partition.name, &partition.limits, most)
    };
    let groups: Vec<Option<Group>> = (system.partitions.iter())
        .map(group)
        .collect::<Result<_, _>>()?;
    let cgroups: Vec<_> = (groups.iter().flatten())
        .flat_map(|group| group.directories().to_vec())
        .collect();
    if !cgroups.is_empty() {
        directory.write(&SystemRecord {
            cgroups,
            ..SystemRecord::default()
        })?;
    }
    Ok(groups)
}

/// A partition bigger than the host is a mistake, and would only be found out much later.
fn check_memory(partition: &Partition) -> Result<(), Error> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let host_mib = (info.totalram + info.totalswap).saturating_mul(unit) / (1024 * 1024);
    if partition.memory.mib <= host_mib {
        return Ok(());
    }
    Err(Error::MemoryExceedsHost {
        partition: partition.name.clone(),
        asked_mib: partition.memory.mib,
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

#[cfg(test)]
mod tests;
