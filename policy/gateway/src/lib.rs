//! The user-mode network of one partition: between the guest's network interface, as raw Ethernet
//! frames, and sockets of the host. No privilege is needed, and nothing is reachable that the
//! description does not allow.
//!
//! - [`Gateway`] is the network without the process: frames, events and time go in, frames and calls
//!   to the host ([`host`]) come out. A guest may send what it likes: every table is bounded.
//! - [`dns::message`] reads and writes DNS.
//! - [`run`] is the process `bulkhead-gateway`: descriptors, the jail, the event loop.
//!
//! docs/network.md tells users what to expect of it. The supervisor links `bulkhead-network`, the
//! description, and never this crate.
#![forbid(unsafe_code)]

mod chatter;
mod config;
mod consent;
mod control;
mod core;
mod descriptors;
mod dhcp;
pub mod dns;
mod error;
mod frame;
mod gateway;
pub mod host;
pub mod jail;
mod journal;
mod models;
mod outbox;
mod process;
mod requests;
mod rules;
mod schedule;
pub mod sockets;
mod table;
mod tcp;
mod udp;
mod web;

pub use bulkhead_proxy::Flow;
pub use bulkhead_proxy::quota::Quotas;
pub use chatter::Chatter;
pub use config::{Config, ConfigError};
pub use error::Error;
pub use gateway::Gateway;
pub use jail::JailError;
pub use process::{FAILED, create_authority, run};
pub use smoltcp::time::Instant;
pub use table::{Kind, Token};
