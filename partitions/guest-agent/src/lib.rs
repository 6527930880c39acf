//! What the supervisor tells the guest agent: the agreement between the two, and nothing else.
//!
//! The supervisor packs the agent, its modules and a [`Spec`] into the initial RAM filesystem of a
//! Linux partition that runs one command. The agent itself is `main.rs`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Where the agent lies in the initial RAM filesystem, without leading slash.
pub const AGENT_PATH: &str = "bulkhead/agent";
/// Where its specification lies, without leading slash.
pub const SPEC_PATH: &str = "bulkhead/spec.json";

/// What the agent writes to the console when input may come: an operating system command of no
/// terminal. The supervisor takes it out of the output.
pub const READY: &[u8] = b"\x1b]bulkhead;ready\x07";

/// What the agent is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The command and its arguments; not empty.
    pub command: Vec<String>,
    /// Its environment, `NAME=value`.
    pub env: Vec<String>,
    /// Kernel modules to load first, in this order, by absolute path.
    pub modules: Vec<String>,
    /// The other side of the console is a terminal.
    pub tty: bool,
    /// Input waits for [`READY`].
    pub announce: bool,
}
