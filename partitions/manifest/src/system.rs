//! A checked system: what the supervisor works with.

use crate::device::Device;
use crate::guest_path::GuestPath;
use crate::mandate::Mandate;
use crate::source::Source;
use bulkhead_capability::{Adherence, Autonomy, Capability, Grants};
use bulkhead_cpu::CpuTemplate;
use bulkhead_machine::Transport;
use std::fmt;
use std::ops::Deref;

/// A value that passed validation. Only [`crate::validate()`] makes one, and it cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validated<T>(pub(crate) T);

impl<T> Deref for Validated<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Partitions that start and stop together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// 1 to 40 characters: lower case, digits, `-`.
    pub name: String,
    /// At least one; names are unique.
    pub partitions: Vec<Partition>,
}

/// `--only` named a partition that the system does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("system `{system}` has no partition `{partition}`")]
pub struct UnknownPartition {
    /// The system.
    pub system: String,
    /// The name.
    pub partition: String,
    /// The names it does have.
    pub known: Vec<String>,
}

impl Validated<System> {
    /// The same system with only the partitions of these names; all of them when `names` is empty.
    ///
    /// # Errors
    /// A name that no partition has.
    pub fn only(&self, names: &[String]) -> Result<Self, UnknownPartition> {
        let has = |name: &String| self.partitions.iter().any(|p| p.name == *name);
        if let Some(unknown) = names.iter().find(|name| !has(name)) {
            return Err(UnknownPartition {
                system: self.name.clone(),
                partition: unknown.clone(),
                known: self.partitions.iter().map(|p| p.name.clone()).collect(),
            });
        }
        let mut system = self.0.clone();
        if !names.is_empty() {
            system.partitions.retain(|p| names.contains(&p.name));
        }
        Ok(Self(system))
    }
}

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As [`System::name`].
    pub name: String,
    /// Guest memory.
    pub memory: Memory,
    /// vCPUs, within the bounds of the machine description.
    pub vcpus: u32,
    /// What its CPUs can do.
    pub cpu: CpuTemplate,
    /// How a Linux kernel finds its devices.
    pub transport: Transport,
    /// It has a watchdog.
    pub watchdog: bool,
    /// A reset starts it again, instead of ending it.
    pub restart: bool,
    /// How many of its calls of tools wait for a person.
    pub autonomy: Autonomy,
    /// Whether conditions hold for it, if there are any.
    pub conditions: Adherence,
    /// What it may touch.
    pub grants: Grants,
    /// What the grants become, in their order; console, entropy and time have no options.
    pub devices: Vec<Device>,
    /// What its processes may use of the host.
    pub limits: Limits,
    /// What runs in it.
    pub kernel: Kernel,
    /// What bounds it as a whole, where it has a manifest of its own.
    pub mandate: Option<Mandate>,
}

impl Partition {
    /// True when it may call tools of the host at all.
    pub fn calls_tools(&self) -> bool {
        let calls = |held: &Capability| matches!(held, Capability::ToolCall(_));
        self.grants.capabilities().any(calls)
    }

    /// Those that it descends from, the nearest first.
    pub fn lineage(&self) -> &[String] {
        let mandate = self.mandate.as_ref();
        mandate.map_or(&[], |mandate| mandate.lineage.as_slice())
    }
}

/// Guest memory, within the bounds of the machine description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// MiB from the start.
    pub mib: u64,
    /// MiB that can be plugged in later.
    pub pluggable_mib: u64,
    /// Pages of 2 MiB from the host's pool.
    pub hugepages: bool,
    /// Touch every page before the guest starts.
    pub prefault: bool,
    /// A device of another process can be plugged in later.
    pub shared: bool,
    /// With a balloon.
    pub balloon: Option<Balloon>,
}

/// A device through which the guest gives memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balloon {
    /// MiB it is asked for from the start.
    pub mib: u64,
    /// The guest may take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest tells which pages it does not use.
    pub free_page_reporting: bool,
}

/// What all processes of a partition may use of the host, together; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time in percent of one CPU.
    pub cpu_percent: Option<u64>,
    /// MiB beyond the guest's memory.
    pub memory_overhead_mib: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// True when something is limited.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// Which kernel a partition runs, without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelKind {
    /// Programs on Bulkhead's microkernel.
    Native,
    /// Linux programs on Bulkhead's microkernel.
    LinuxAbi,
    /// An unmodified Linux kernel.
    Linux,
}

impl KernelKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Native, Self::LinuxAbi, Self::Linux];

    /// The kind as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::LinuxAbi => "linux-abi",
            Self::Linux => "linux",
        }
    }

    /// Memory of a partition that does not say, in MiB.
    pub fn default_memory_mib(self) -> u64 {
        match self {
            Self::Native => 16,
            Self::LinuxAbi => 128,
            Self::Linux => 256,
        }
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which kernel a partition runs, and what on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// See [`KernelKind::Native`].
    Native {
        /// ELF image of the initial program.
        program: Source,
        /// Its arguments; the program's own name is the first.
        args: Vec<String>,
        /// Its environment, `NAME=value`.
        env: Vec<String>,
    },
    /// See [`KernelKind::LinuxAbi`].
    LinuxAbi {
        /// What runs.
        program: Program,
        /// Name unknown system calls on the error stream.
        trace_syscalls: bool,
    },
    /// See [`KernelKind::Linux`].
    Linux {
        /// bzImage or vmlinux.
        image: Source,
        /// What boots on it.
        boot: LinuxBoot,
        /// Kernel arguments as written; replaces the defaults with an initrd, adds to them with a
        /// command.
        cmdline: Option<String>,
    },
}

impl Kernel {
    /// The kind alone.
    pub fn kind(&self) -> KernelKind {
        match self {
            Self::Native { .. } => KernelKind::Native,
            Self::LinuxAbi { .. } => KernelKind::LinuxAbi,
            Self::Linux { .. } => KernelKind::Linux,
        }
    }
}

/// User space of a Linux partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinuxBoot {
    /// One command below Bulkhead's guest agent.
    Command(Program),
    /// An initial RAM filesystem of the user's own, or none.
    Initrd(Option<Source>),
}

/// A Linux command and the files it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The command and its arguments; never empty.
    pub command: Vec<String>,
    /// `NAME=value`, sorted by name.
    pub env: Vec<String>,
    /// Directory that is the guest's `/`.
    pub root: Option<Source>,
    /// Files and directories laid over it; none overlaps another.
    pub mounts: Vec<Mount>,
}

/// A file or directory that is copied into the guest's memory when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it comes from.
    pub source: Source,
    /// Where the guest finds it; not `/`.
    pub target: GuestPath,
}
