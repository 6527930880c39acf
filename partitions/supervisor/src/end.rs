//! How a partition ended, and the exit status that stands for it.

use bulkhead_machine::control::Ended;

/// How a partition ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As the VMM saw it.
    Ended(Ended),
    /// The VMM gave up.
    Failed {
        /// The VMM's stable code.
        code: String,
        /// The VMM's sentence.
        message: String,
    },
    /// The VMM process ended without a word; how, as the end of a sentence.
    Vanished(String),
}

/// Exit status of what Bulkhead itself got wrong, or could not do.
pub const STATUS_FAILED: u8 = 125;
/// Exit status of a partition that crashed its CPU: as if a process had aborted.
pub const STATUS_CRASHED: u8 = 134;
/// Exit status of a partition that was ended from outside: as if by SIGTERM.
pub const STATUS_STOPPED: u8 = 143;

impl End {
    /// The exit status that stands for this end.
    pub fn status(&self) -> u8 {
        match self {
            Self::Ended(Ended::Exit { status }) => *status,
            Self::Ended(Ended::PowerOff | Ended::Reset) => 0,
            Self::Ended(Ended::TripleFault | Ended::Watchdog) => STATUS_CRASHED,
            Self::Ended(Ended::Stopped) => STATUS_STOPPED,
            Self::Ended(Ended::CannotRun { .. }) | Self::Failed { .. } | Self::Vanished(_) => {
                STATUS_FAILED
            }
        }
    }

    /// What to tell people about an end that no guest meant: code, sentence about `partition`,
    /// and help.
    pub fn complaint(&self, partition: &str) -> Option<(String, String, Option<String>)> {
        let (code, message, help) = match self {
            Self::Ended(Ended::TripleFault) => (
                "guest-crashed",
                format!("partition `{partition}` crashed its CPU (triple fault)"),
                Some("its kernel is at fault: see its output"),
            ),
            Self::Ended(Ended::Watchdog) => (
                "guest-hung",
                format!("partition `{partition}` did not feed its watchdog"),
                Some("it hung: see its output"),
            ),
            Self::Ended(Ended::CannotRun { rip }) => (
                "kvm-cannot-run",
                format!(
                    "this host's KVM cannot run an instruction of partition `{partition}`, at \
                     {rip:#x}"
                ),
                Some("`bulkhead doctor` says what this host can run"),
            ),
            Self::Failed { code, message } => {
                return Some((
                    code.clone(),
                    format!("partition `{partition}`: {message}"),
                    None,
                ));
            }
            Self::Vanished(how) => (
                "vmm-died",
                format!("the VMM of partition `{partition}` {how}"),
                None,
            ),
            Self::Ended(_) => return None,
        };
        Some((code.to_owned(), message, help.map(str::to_owned)))
    }
}
