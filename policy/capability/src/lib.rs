//! The one model of a grant: what a partition may touch, by clear names such as `block.read`.
//!
//! [`Capability`] is a name and its object, [`Grant`] that under [`Constraints`], [`Grants`] all
//! that a partition holds and is denied. The manifest parses them; the supervisor, the gateway and
//! the tools enforce them; nobody else decides what a name means. The order "narrower than" and
//! [`Grants::intersect`] are what delegation uses: neither ever widens. A [`table::Table`] decides
//! on single acts.
#![forbid(unsafe_code)]

mod adherence;
mod autonomy;
mod capability;
mod constraints;
mod grant;
mod grants;
mod name;
mod object;
pub mod table;

pub use adherence::Adherence;
pub use autonomy::Autonomy;
pub use capability::{Capability, ParseCapabilityError};
pub use constraints::{Constraints, Quota, http_rule, is_plain_directory};
pub use grant::{Grant, GrantError};
pub use grants::Grants;
pub use name::{CapabilityName, Enforcer, ObjectKind, UnknownName};
pub use object::is_plain_name;
pub use object::network::{Listen, ParseDnsNameError, ParseListenError};
pub use object::pattern::{NamePattern, ParsePatternError};
pub use object::pci::{ParsePciError, PciAddress};
pub use object::ring::{ParseRingError, RingEnd};
pub use object::spawn::{ParseSpawnError, Spawn};
