//! What policy says of an act: the table of a partition's grants, and conditions in Cedar.
//!
//! Grants say what may be done at all, conditions when. [`Policy`] has both: an act that a grant
//! allows must be permitted by the conditions too, where there are any. They never allow what no
//! grant does. The command line asks here; processes that enforce grants link the table alone,
//! which is in `bulkhead-capability`, so that Cedar is in none of them.
#![forbid(unsafe_code)]

mod act;
mod cases;
mod conditions;
mod entities;
mod learn;
mod policy;
mod world;

pub use act::{Act, ActDraft, ParseActError};
pub use cases::{Case, CaseFile, CaseFileError, Expected};
pub use conditions::{Conditions, ConditionsError, Ruling, SCHEMA};
pub use entities::Circumstances;
pub use learn::propose;
pub use policy::{Answer, Policy};
pub use world::World;
