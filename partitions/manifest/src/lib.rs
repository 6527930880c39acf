//! What a person writes, `system.toml`, and its checked form.
//!
//! [`parse()`] reads text into a [`SystemDraft`] and hands it to [`validate()`], the only maker of a
//! [`Validated<System>`]. `bulkhead run`, which has no file, builds a draft itself and takes the
//! same way. Nothing here opens a file: whether a path exists is the supervisor's question.
//! Every refusal is a [`Diagnostic`] with a stable [`Code`], its place in the file, and a remedy.
#![forbid(unsafe_code)]

mod admission;
mod device;
mod diagnostic;
mod diff;
mod document;
mod draft;
mod field;
mod guest_path;
mod mandate;
mod manifest;
mod parse;
mod partition_toml;
mod plan;
mod reader;
mod schema;
mod size;
mod source;
mod system;
mod validate;

pub use admission::{
    Admitted, Capacity, DenyList, Host, Policy, Proof, Rejection, Role, Rule, admit, admit_beside,
    admit_grants, lineage, parse_deny_list, parse_role, reject_spawn,
};
pub use device::{
    Backing, Connect, Denial, Device, DeviceKind, Disk, Inbound, Network, Owner, Resolve, Share,
    Tap,
};
pub use diagnostic::{Code, Diagnostic, Place, Rejected};
pub use diff::{Change, Difference};
pub use document::PAYLOAD_TYPE;
pub use draft::{
    At, BackingDraft, BalloonDraft, GrantDraft, LimitsDraft, MemoryDraft, MountDraft, NetworkDraft,
    PartitionDraft, RateDraft, ReferenceDraft, SystemDraft,
};
pub use guest_path::GuestPath;
pub use mandate::{Budget, Lifetime, Mandate, SecretBinding, SpawnBudget};
pub use manifest::{Manifest, Submission, parse_document, parse_manifest, parse_submission};
pub use parse::{MAX_BYTES, parse, parse_with};
pub use plan::{Plan, PlanRow};
pub use schema::schema;
pub use size::parse_memory_mib;
pub use source::Source;
pub use system::{
    Balloon, Kernel, KernelKind, Limits, LinuxBoot, Memory, Mount, Partition, Program, System,
    UnknownPartition, Validated,
};
pub use validate::{is_reserved_directory, validate, validate_devices};
