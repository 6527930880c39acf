//! What policy says of an act: the table of a partition's grants, and conditions in Cedar.
//!
//! Grants say what may be done at all, conditions when. [`Policy`] has both: an act that a grant
//! allows must be permitted by the conditions too, where there are any. They never allow what no
//! grant does. The command line asks here. Processes that enforce grants link the table, which is in
//! `bulkhead-capability`, and ask about conditions by `bulkhead-conditions`, so that Cedar is in none of
//! them: what answers is the process `bulkhead-decision` ([`process`]).
#![forbid(unsafe_code)]

mod act;
mod cases;
mod conditions;
mod entities;
mod family;
mod learn;
mod narrower;
mod policy;
pub mod process;
mod requests;
mod world;

pub use act::{ActDraft, ParseActError};
pub use bulkhead_conditions::{Act, Denied, MAX_TEXT_BYTES, Notes, Ruling, WOULD_DENY, denied};
pub use cases::{Case, CaseFile, CaseFileError, Expected};
pub use conditions::{Conditions, ConditionsError, SCHEMA};
pub use entities::Circumstances;
pub use family::{Family, Kin};
pub use learn::{permit, propose};
pub use narrower::{Widening, widenings};
pub use policy::{Answer, Policy};
pub use world::World;
