//! What can go wrong in the VMM, with the stable codes the supervisor sees.
//!
//! Every variant ends the process with status 125. What a *guest* does is never an error here: it
//! is an [`Ended`](bulkhead_machine::control::Ended).

use bulkhead_machine::Fd;

use crate::boot::linux::LinuxError;
use crate::devices::virtio::ResizeError;
use crate::devices::virtio::blk::DiskError;
use crate::devices::virtio::net::NetError;
use crate::devices::virtio::vhost_user::BackendError;
use crate::devices::virtio::vsock::VsockError;
use crate::jail::JailError;
use crate::machine::bus::Overlap;
use crate::machine::plug::PlugError;

/// Why the VMM gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The description is not JSON of the expected shape, or breaks one of its rules.
    #[error("the machine description is invalid: {0}")]
    Description(String),
    /// A descriptor the description names is not open.
    #[error("descriptor {} for {what} is not open", .fd.0)]
    Descriptor {
        /// What the descriptor is for.
        what: &'static str,
        /// Its number.
        fd: Fd,
    },
    /// A KVM call failed.
    #[error("kvm refused {call}: {source}")]
    Kvm {
        /// The call, as the KVM documentation names it.
        call: &'static str,
        /// What KVM answered.
        source: kvm_ioctls::Error,
    },
    /// The descriptor for `/dev/kvm` speaks another KVM API.
    #[error("kvm api version {0} is not supported; version 12 is needed")]
    KvmVersion(i32),
    /// More memory than the host has.
    #[error(
        "{wanted_mib} MiB of memory is more than the {host_mib} MiB this host has; ask for less"
    )]
    MemoryTooLarge {
        /// The description's figure.
        wanted_mib: u64,
        /// RAM and swap of the host.
        host_mib: u64,
    },
    /// The host's pool of huge pages does not hold the memory.
    #[error(
        "the host's pool of 2 MiB pages does not hold {wanted_mib} MiB: {source}; raise \
         vm.nr_hugepages, or ask for less"
    )]
    HugepagesTooFew {
        /// The description's figure.
        wanted_mib: u64,
        /// The host's answer.
        source: std::io::Error,
    },
    /// What has to be loaded does not fit.
    #[error("{memory_mib} MiB of memory does not hold {what}; at least {needed_mib} MiB is needed")]
    MemoryTooSmall {
        /// What does not fit.
        what: &'static str,
        /// The description's figure.
        memory_mib: u64,
        /// A figure that would do for this part.
        needed_mib: u64,
    },
    /// The host refused the memory.
    #[error("cannot set up guest memory: {0}")]
    Memory(String),
    /// A segment of the kernel image lies outside guest memory.
    #[error("the kernel image does not fit into memory: a segment ends at {end:#x}")]
    KernelOutsideMemory {
        /// Physical end address of the segment.
        end: u64,
    },
    /// The kernel image could not be read.
    #[error("the kernel image cannot be read: {0}")]
    KernelUnreadable(std::io::Error),
    /// The Linux kernel image, command line or initial RAM filesystem cannot be used.
    #[error("{0}")]
    Linux(#[from] LinuxError),
    /// Reading a file or talking to the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A list that a guest is told about is longer than its format holds.
    #[error("too many {what}: {count}, at most {max}")]
    TooMany {
        /// Entries of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A block device's file cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network interface cannot be built.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The vsock device cannot be built.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A vhost-user back end cannot be used.
    #[error(transparent)]
    VhostUser(#[from] BackendError),
    /// A file cannot be persistent memory.
    #[error("persistent memory {name}: {what}")]
    Pmem {
        /// The device's name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A size that the device cannot have.
    #[error("device {name}: {source}")]
    Size {
        /// The device's name.
        name: String,
        /// What is wrong with it.
        source: ResizeError,
    },
    /// Two devices claim one address: what a description cannot ask for.
    #[error("the machine description is invalid: two devices claim one address: {0}")]
    Overlap(#[from] Overlap),
    /// A device could not be plugged in.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// No vCPU to boot: excluded by the description's rules.
    #[error("the machine has no vcpu")]
    NoVcpu,
    /// The supervisor sent something that is no command.
    #[error("the control socket brought a message that is no command: {0}")]
    Control(String),
}

impl Error {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Description(_) | Self::Overlap(_) | Self::NoVcpu => "description-invalid",
            Self::Descriptor { .. } => "descriptor-closed",
            Self::Kvm { .. } => "kvm-refused",
            Self::KvmVersion(_) => "kvm-version",
            Self::MemoryTooLarge { .. } => "memory-too-large",
            Self::HugepagesTooFew { .. } => "memory-hugepages",
            Self::MemoryTooSmall { .. } => "memory-too-small",
            Self::Memory(_) => "memory-refused",
            Self::KernelOutsideMemory { .. } => "kernel-outside-memory",
            Self::KernelUnreadable(_) => "kernel-unreadable",
            Self::Linux(e) => e.code(),
            Self::Io { .. } => "io-failed",
            Self::TooMany { .. } => "too-many",
            Self::Disk(e) => e.code(),
            Self::Net(e) => e.code(),
            Self::Vsock(e) => e.code(),
            Self::VhostUser(_) => "vhost-user-backend",
            Self::Pmem { .. } => "pmem-invalid",
            Self::Size { source, .. } => source.code(),
            Self::Plug(e) => e.code(),
            Self::Jail(e) => e.code(),
            Self::Control(_) => "control-invalid",
        }
    }

    /// For `map_err` on a KVM call.
    pub(crate) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { call, source }
    }

    /// For `map_err` on a host call.
    pub(crate) fn io<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }
}
