//! What a person writes, `system.toml`, and its checked form.
//!
//! [`parse()`] reads text into a [`SystemDraft`] and hands it to [`validate()`], the only maker of a
//! [`Validated<System>`]. `bulkhead run`, which has no file, builds a draft itself and takes the
//! same way. Nothing here opens a file: whether a path exists is the supervisor's question.
//! Every refusal is a [`Diagnostic`] with a stable [`Code`], its place in the file, and a remedy.
#![forbid(unsafe_code)]

mod device;
mod diagnostic;
mod draft;
mod guest_path;
mod parse;
mod reader;
mod size;
mod source;
mod system;
mod validate;

pub use device::{
    Backing, Connect, Denial, Device, DeviceKind, Disk, Network, Owner, Resolve, Share, Tap,
};
pub use diagnostic::{Code, Diagnostic, Place, Rejected};
pub use draft::{
    At, BackingDraft, BalloonDraft, GrantDraft, LimitsDraft, MemoryDraft, MountDraft, NetworkDraft,
    PartitionDraft, RateDraft, SystemDraft,
};
pub use guest_path::GuestPath;
pub use parse::{MAX_BYTES, parse};
pub use size::parse_memory_mib;
pub use source::Source;
pub use system::{
    Balloon, Kernel, KernelKind, Limits, LinuxBoot, Memory, Mount, Partition, Program, System,
    UnknownPartition, Validated,
};
pub use validate::{is_reserved_directory, validate, validate_devices};
