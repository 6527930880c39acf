//! Messages on the control socket: JSON, one message a packet, private to supervisor and VMM.

use serde::{Deserialize, Serialize};

/// Largest packet in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// From the VMM to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is set up and locked down; guest code runs next.
    Running {
        /// Jail layers that the host did not offer, with [`crate::Jail::BestEffort`].
        jail_gaps: Vec<String>,
    },
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
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// End the partition now.
    Stop,
}
