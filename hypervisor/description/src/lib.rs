//! What the supervisor hands to the VMM, and what the two say to each other while it runs.
//!
//! The supervisor links this crate and never the VMM; the VMM reads it and nothing else. A
//! description is fully resolved: no names to look up, no files to open, only numbers and
//! descriptors that are already open in the VMM process. A device that is not listed does not
//! exist in the partition.
#![forbid(unsafe_code)]

pub mod control;
pub mod fs;
pub mod trace;

use serde::{Deserialize, Serialize};

/// Version of this format; the VMM refuses any other.
pub const VERSION: u32 = 1;
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
    /// Guest memory in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u64,
    /// What runs first.
    pub boot: Boot,
    /// The console, with the `console` grant.
    pub console: Option<Console>,
    /// With the `time` grant: wall-clock time (RTC and kvmclock for Linux, `BootInfo` otherwise).
    pub time: bool,
    /// With the `entropy` grant: virtio-rng, and a seed in `BootInfo`.
    pub entropy: bool,
    /// Virtio block devices in the order of their grants.
    pub blocks: Vec<Block>,
    /// How far the process locks itself in before guest code runs.
    pub jail: Jail,
    /// Where the VMM writes its [`trace`] when the partition has ended; absent: nowhere.
    #[serde(default)]
    pub trace: Option<Fd>,
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
}

/// A virtio block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Name from the manifest: at most 20 bytes; the device's serial.
    pub name: String,
    /// Raw image file or block device, opened as `read_only` says.
    pub file: Fd,
    /// Offer `VIRTIO_BLK_F_RO` and refuse writes.
    pub read_only: bool,
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
