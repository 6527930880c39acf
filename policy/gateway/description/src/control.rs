//! Messages on the control socket: JSON, one message a packet, private to supervisor and gateway.

use serde::{Deserialize, Serialize};

/// Largest packet in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// From the supervisor to the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Answered with [`Event::Stats`].
    Stats,
    /// End now, and all connections with it.
    Stop,
}

/// From the gateway to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is set up and locked down.
    Running {
        /// Jail layers that the host did not offer, with [`crate::Jail::BestEffort`].
        jail_gaps: Vec<String>,
    },
    /// Answer to [`Command::Stats`].
    Stats(Stats),
    /// A packet was no command; it is passed over.
    Refused {
        /// Why.
        message: String,
    },
    /// The gateway could not start, or cannot go on; the last message. Its process exits with 125.
    Failed {
        /// Stable code such as `network-description`.
        code: String,
        /// One sentence: what, on what, what to do.
        message: String,
    },
}

/// Counters since the start, unless they say otherwise. Bytes are payload of TCP and UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// TCP connections open now.
    pub tcp_open: u64,
    /// TCP connections of the guest that a rule allowed.
    pub tcp_out: u64,
    /// Forwarded connections into the guest.
    pub tcp_in: u64,
    /// Allowed connections that the destination or the guest did not accept.
    pub tcp_failed: u64,
    /// UDP flows open now.
    pub udp_open: u64,
    /// UDP flows that a rule allowed.
    pub udp_flows: u64,
    /// DNS queries, UDP and TCP.
    pub dns_queries: u64,
    /// Connections, datagrams and queries that no rule allowed.
    pub refused: u64,
    /// Connections and flows refused because a table was full.
    pub full: u64,
    /// Bytes from the guest to the world.
    pub bytes_out: u64,
    /// Bytes from the world to the guest.
    pub bytes_in: u64,
    /// Frames from the guest.
    pub frames_out: u64,
    /// Frames to the guest.
    pub frames_in: u64,
    /// Frames from the guest that were dropped: malformed, or of a kind that is not served, as
    /// IPv6, fragments and foreign addresses are.
    pub dropped_out: u64,
    /// Frames to the guest that were dropped because it does not take them.
    pub dropped_in: u64,
}
