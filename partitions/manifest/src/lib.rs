//! What a person writes, `system.toml`, and its checked form.
//!
//! [`parse()`] reads text into a [`SystemDraft`] and hands it to [`validate()`], the only maker of a
//! [`Validated<System>`]. `bulkhead run`, which has no file, builds a draft itself and takes the
//! same way. Nothing here opens a file: whether a path exists is the supervisor's question.
//! Every refusal is a [`Diagnostic`] with a stable [`Code`], its place in the file, and a remedy.
#![forbid(unsafe_code)]

mod diagnostic;
mod draft;
mod guest_path;
mod memory;
mod parse;
mod reader;
mod source;
mod system;
mod validate;

pub use diagnostic::{Code, Diagnostic, Place, Rejected};
pub use draft::{At, MountDraft, PartitionDraft, SystemDraft};
pub use guest_path::GuestPath;
pub use memory::parse_memory_mib;
pub use parse::{MAX_BYTES, parse};
pub use source::Source;
pub use system::{
    Kernel, KernelKind, LinuxBoot, Mount, Partition, Program, System, UnknownPartition, Validated,
};
pub use validate::validate;
