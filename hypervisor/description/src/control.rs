//! Messages on the control socket: JSON, one message a packet, private to supervisor and VMM. The
//! version is that of the description ([`crate::VERSION`]).

use serde::{Deserialize, Serialize};

use crate::Fd;
use crate::device::Device;

/// Largest packet in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// Most descriptors with one packet.
pub const MAX_MESSAGE_FDS: usize = 64;

/// From the VMM to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is set up and locked down; guest code runs next.
    Running {
        /// Jail layers that the host did not offer, with [`crate::Jail::BestEffort`].
        jail_gaps: Vec<String>,
    },
    /// The answer to the request of the same number.
    Reply {
        /// [`Request::id`].
        id: u64,
        /// How it went.
        outcome: Reply,
    },
    /// The guest's kernel said that it crashed (pvpanic); the partition runs on until it ends.
    GuestPanicked,
    /// The watchdog was not fed in time; the partition ends next.
    WatchdogExpired,
    /// The partition ended; the last message.
    Ended {
        /// How.
        how: Ended,
    },
    /// The VMM gave up; the last message. Its process exits with 125.
    Failed {
        /// Stable code such as `kernel-truncated`.
        code: String,
        /// One sentence: what, on what, what to do.
        message: String,
    },
}

/// How a partition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Ended {
    /// The guest reported a status, 0 to 255.
    Exit {
        /// The status.
        status: u8,
    },
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed its (virtual) CPU.
    TripleFault,
    /// The guest did not feed its watchdog.
    Watchdog,
    /// KVM could not go on, for example at an instruction its emulator does not know.
    CannotRun {
        /// Instruction pointer of the vCPU.
        rip: u64,
    },
    /// The supervisor asked for it.
    Stopped,
}

/// From the supervisor to the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in [`Event::Reply`].
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// What a supervisor can ask. Every descriptor a command names comes with its packet
/// (`SCM_RIGHTS`): [`Fd`]`(n)` is the n-th of them, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// End the partition now. There is no reply but [`Event::Ended`].
    Stop,
    /// Stop every vCPU and every device at a point between two requests; twice is once.
    Pause,
    /// Go on; a partition that is not paused goes on.
    Resume,
    /// Plug a device in: a disk, a network interface, a shared directory; with PCI only.
    Attach {
        /// The device.
        device: Device,
    },
    /// Ask the guest to let go of the device, and remove it when it has.
    Detach {
        /// The device's name.
        name: String,
    },
    /// Change a size.
    Resize(Resize),
    /// Counters and state.
    Stats,
    /// Write the guest's memory to a file, and tell the registers; the partition is paused meanwhile.
    Dump {
        /// An empty file, opened for writing.
        file: Fd,
    },
}

/// What can be resized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Resize {
    /// Pluggable memory (virtio-mem): the guest is to have this much of it.
    Memory {
        /// 0 to [`crate::Memory::pluggable_mib`].
        pluggable_mib: u64,
    },
    /// The balloon: the guest is to give back this much.
    Balloon {
        /// MiB, less than the partition's memory.
        target_mib: u64,
    },
    /// A disk whose file has grown or shrunk: look at it again.
    Block {
        /// The device's name.
        name: String,
    },
    /// The console's window.
    Console {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done. For [`Command::Detach`]: the guest has let go.
    Done,
    /// The answer to [`Command::Stats`].
    Stats(Stats),
    /// The answer to [`Command::Dump`]. Pages of zeros are holes of the file, and so are its first
    /// [`DUMP_HEAD`] bytes.
    Dumped {
        /// What was written.
        regions: Vec<DumpedRegion>,
        /// Registers of each vCPU.
        vcpus: Vec<Registers>,
    },
    /// It was not done, and nothing has changed.
    Refused {
        /// Stable code such as `device-unknown`.
        code: String,
        /// One sentence: what, on what, what to do.
        message: String,
    },
}

/// Bytes of a dump's file before the first region: room for the headers of a core file.
pub const DUMP_HEAD: u64 = 2 * 1024 * 1024;

/// A part of guest memory and its place in the file of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpedRegion {
    /// Guest-physical address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Place of the first.
    pub offset: u64,
}

/// Registers of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// In the order of Linux's `struct user_regs_struct`.
    pub general: [u64; 27],
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
}

/// Counters since the start, and state. What a partition does not have is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Paused by [`Command::Pause`].
    pub paused: bool,
    /// For each vCPU: exits to the VMM.
    pub vcpu_exits: Vec<u64>,
    /// Counters of each device by the device's name and theirs.
    pub devices: Vec<DeviceStats>,
}

/// Counters of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStats {
    /// The device's name.
    pub name: String,
    /// Name and value of each counter, such as `read-bytes`.
    pub counters: Vec<(String, u64)>,
}

/// On a vsock device's connector, both ways.
pub mod vsock {
    use serde::{Deserialize, Serialize};

    /// From the VMM: the guest wants to connect.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Connect {
        /// Comes back in [`Connected`].
        pub id: u64,
        /// The port it named.
        pub port: u32,
    }

    /// From the supervisor, with one descriptor, a connected non-blocking `SOCK_STREAM` socket,
    /// when `accepted`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Connected {
        /// [`Connect::id`].
        pub id: u64,
        /// Somebody listens there, and may be reached.
        pub accepted: bool,
    }
}
