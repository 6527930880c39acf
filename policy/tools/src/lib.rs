//! The tools that the agent in one partition may call: files, programs, repositories. Everything here
//! happens on the host, in a process of its own, for a guest that is not trusted.
//!
//! - [`Registry`] is all tools there are; each says what it needs, what harm it can do, and what
//!   takes it back.
//! - [`Pipeline`] is what happens to a call: it is checked, permitted, confirmed, backed up and
//!   recorded before it takes effect.
//!
//! docs/tools.md tells users what to expect of it. The supervisor links `bulkhead-toolbox`, the
//! description, and never this crate.
#![deny(unsafe_code)]

pub mod backups;
mod calls;
mod counters;
mod descriptors;
pub mod directories;
pub mod error;
mod families;
pub mod gate;
pub mod host;
mod jail;
pub mod jobs;
mod launch;
pub mod limiter;
pub mod mcp;
pub mod permits;
mod person;
pub mod pipeline;
mod process;
pub mod programs;
pub mod registry;

pub use error::{CallError, Error, ToolError};
pub use launch::{LAUNCH, run as launch};
pub use pipeline::Pipeline;
pub use process::{FAILED, run};
pub use registry::Registry;
