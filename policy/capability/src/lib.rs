//! The one model of a grant: what a partition may touch, by clear names such as `block.read`.
//!
//! [`Capability`] is one grant, [`Grants`] is all that a partition holds. The manifest parses
//! them, the supervisor compiles them into devices; nobody else decides what a name means. The
//! order "narrower than" and [`Grants::intersect`] are what delegation will use: neither ever
//! widens.
#![forbid(unsafe_code)]

mod capability;
mod grants;
mod name;
mod network;

pub use capability::{Capability, ParseCapabilityError};
pub use grants::Grants;
pub use name::{CapabilityName, ObjectKind, UnknownName};
pub use network::{Listen, ParseListenError};
