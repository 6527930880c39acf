//! What the supervisor hands to the VMM, and what the two say to each other while it runs.
//!
//! The supervisor links this crate and never the VMM; the VMM reads it and nothing else. A
//! description is fully resolved: no names to look up, no files to open, only numbers and
//! descriptors that are already open in the VMM process. A device that is not listed does not
//! exist in the partition.
#![forbid(unsafe_code)]

pub mod control;
pub mod cpu;
pub mod device;
pub mod pc;
pub mod trace;

use serde::{Deserialize, Serialize};

use cpu::Leaf;
use device::Device;

/// Version of this format; the VMM refuses any other.
pub const VERSION: u32 = 6;
/// Smallest partition memory in MiB.
pub const MIN_MEMORY_MIB: u64 = 2;
/// Most vCPUs of one partition.
pub const MAX_VCPUS: u32 = 32;
/// Largest description in bytes, as JSON.
pub const MAX_DESCRIPTION_BYTES: u64 = 1024 * 1024;

/// Number of a descriptor that is open in the VMM process when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(pub i32);

/// One partition's machine, as JSON on the descriptor named by `bulkhead-vmm --description-fd N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDescription {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the partition, for messages and the process title.
    pub name: String,
    /// `/dev/kvm`, opened read-write.
    pub kvm: Fd,
    /// The control socket (`SOCK_SEQPACKET`), see [`control`].
    pub control: Fd,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// What the guest's CPUs have in common, in the order of [`Leaf::place`]; leaves 0 and 1 at least.
    #[serde(deserialize_with = "cpu::leaves")]
    pub cpuid: Vec<Leaf>,
    /// Guest memory.
    pub memory: Memory,
    /// What runs first.
    pub boot: Boot,
    /// What its kernel is as an ELF file; absent: it is a bzImage.
    #[serde(default)]
    pub image: Option<Image>,
    /// The console, with the `console` grant.
    pub console: Option<Console>,
    /// With the `time` grant: wall-clock time (RTC and kvmclock for Linux, `BootInfo` otherwise).
    pub time: bool,
    /// With the `entropy` grant: virtio-rng, and a seed in `BootInfo`.
    pub entropy: bool,
    /// How a guest with a PC finds its virtio devices; others have [`Transport::Mmio`].
    #[serde(default)]
    pub transport: Transport,
    /// Virtio devices in the order of their grants; console, entropy and pluggable memory come of
    /// themselves, before them.
    pub devices: Vec<Device>,
    /// With a PC: a watchdog that ends a partition which does not feed it.
    #[serde(default)]
    pub watchdog: bool,
    /// A listening `SOCK_STREAM` socket, Unix or TCP, for one debugger (GDB's remote protocol). The
    /// vCPUs stand still until it has come.
    #[serde(default)]
    pub gdb: Option<Fd>,
    /// How far the process locks itself in before guest code runs.
    pub jail: Jail,
    /// An empty network namespace for the jail, which may be shared: to create one takes the host
    /// longer than all else that the jail needs. Absent: the VMM creates its own.
    #[serde(default)]
    pub network_namespace: Option<Fd>,
    /// Where the VMM writes its [`trace`] when the partition has ended; absent: nowhere.
    #[serde(default)]
    pub trace: Option<Fd>,
}

impl MachineDescription {
    /// A machine with one vCPU of `cpuid`, `mib` MiB, and no device at all.
    pub fn new(name: &str, kvm: Fd, control: Fd, cpuid: Vec<Leaf>, mib: u64, boot: Boot) -> Self {
        Self {
            version: VERSION,
            name: name.to_owned(),
            kvm,
            control,
            vcpus: 1,
            cpuid,
            memory: Memory::of_mib(mib),
            boot,
            image: None,
            console: None,
            time: false,
            entropy: false,
            transport: Transport::Mmio,
            devices: Vec::new(),
            watchdog: false,
            gdb: None,
            jail: Jail::Full,
            network_namespace: None,
            trace: None,
        }
    }
}

/// Guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// MiB from the start, at least [`MIN_MEMORY_MIB`].
    pub mib: u64,
    /// MiB that can be plugged in later (virtio-mem), with a PC; a multiple of 128.
    #[serde(default)]
    pub pluggable_mib: u64,
    /// Pages of 2 MiB from the host's pool (hugetlbfs); `mib` is then even.
    #[serde(default)]
    pub hugepages: bool,
    /// Touch every page before the guest starts.
    #[serde(default)]
    pub prefault: bool,
    /// Other processes may map it, as devices there (vhost-user) need.
    #[serde(default)]
    pub shared: bool,
}

impl Memory {
    /// `mib` MiB, touched as needed.
    pub fn of_mib(mib: u64) -> Self {
        Self {
            mib,
            ..Self::default()
        }
    }
}

/// How a guest finds its virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Windows of registers: the shortest boot.
    #[default]
    Mmio,
    /// A PCI bus: MSI-X and hot plug.
    Pci,
}

/// What the VMM loads, and by which protocol it enters it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// A Bulkhead kernel by the Bulkhead boot protocol.
    Bulkhead {
        /// ELF64 image.
        kernel: Fd,
        /// Modules in the order the kernel sees them.
        modules: Vec<Module>,
        /// Arguments of the initial program, without NUL bytes.
        args: Vec<String>,
        /// Environment of the initial program, `NAME=value`.
        env: Vec<String>,
        /// Ask the personality to name unknown system calls.
        trace_syscalls: bool,
    },
    /// A kernel that expects a PC, told apart by content: a vmlinux, or another ELF image, with a
    /// PVH entry note is entered there; a vmlinux without and a bzImage by Linux's 64-bit boot
    /// protocol.
    Linux {
        /// The kernel image.
        kernel: Fd,
        /// The initial RAM filesystem.
        initrd: Option<Fd>,
        /// The kernel's command line.
        cmdline: String,
        /// The ACPI tables, for [`pc::ACPI_TABLES`].
        acpi: Fd,
    },
    /// An ELF image with a PVH entry note (`XEN_ELFNOTE_PHYS32_ENTRY`) on a bare machine: one CPU,
    /// RAM, COM1 without its interrupt, the exit port; no interrupt controller, no timer, no ACPI,
    /// no virtio devices. The quickest machine there is to build.
    Pvh {
        /// The image.
        kernel: Fd,
        /// The first module.
        initrd: Option<Fd>,
        /// The command line.
        cmdline: String,
    },
}

/// A kernel image, as whoever starts the VMM has found it in an ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Address of the first instruction, as linked.
    pub entry: u64,
    /// Physical address of the first instruction by PVH, which is then how the kernel is entered.
    pub pvh_entry: Option<u32>,
    /// What is loaded, ascending by address, without overlap.
    pub segments: Vec<Segment>,
}

impl Image {
    /// First and last (exclusive) physical address of all segments.
    pub fn physical_range(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |s| s.address);
        let end = self.segments.last().map_or(0, Segment::end);
        (start, end)
    }
}

/// A segment of a kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Physical address it is loaded at.
    pub address: u64,
    /// Bytes in memory; those beyond `file_len` are zero.
    pub memory_len: u64,
    /// Wants to be written to.
    pub write: bool,
    /// Wants to be executed.
    pub execute: bool,
}

impl Segment {
    /// Physical address behind its last byte.
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_len)
    }
}

impl Boot {
    /// The kernel image.
    pub fn kernel(&self) -> Fd {
        match self {
            Self::Bulkhead { kernel, .. }
            | Self::Linux { kernel, .. }
            | Self::Pvh { kernel, .. } => *kernel,
        }
    }
}

/// A module of the Bulkhead boot protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// What it is.
    pub kind: ModuleKind,
    /// Its bytes: the whole file.
    pub file: Fd,
}

/// What a module is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleKind {
    /// ELF image of the initial program.
    Program,
    /// cpio archive.
    Initramfs,
}

/// The partition's console streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Input; absent means that it ends at once.
    pub input: Option<Fd>,
    /// Output.
    pub output: Fd,
    /// Error stream of native and Linux-ABI programs; the same as output where absent.
    pub error: Option<Fd>,
    /// The other side is a terminal.
    pub tty: bool,
    /// Further ports of a virtio console, which a guest finds by name.
    #[serde(default)]
    pub ports: Vec<ConsolePort>,
}

/// A port of a virtio console beside the console itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsolePort {
    /// Its name in the guest (`/dev/virtio-ports/NAME`): 1 to 32 bytes.
    pub name: String,
    /// Input; absent means that it ends at once.
    pub input: Option<Fd>,
    /// Output.
    pub output: Fd,
}

/// The jail's strength.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Jail {
    /// Namespaces, an empty root, no capabilities, Landlock, seccomp; a layer that the host does
    /// not offer is an error.
    Full,
    /// As `Full`, but layers that the host does not offer are reported and passed over.
    BestEffort,
    /// None: for debugging the VMM itself.
    None,
}
