//! Starts, watches and stops partitions. `bulkhead run` and `bulkhead up` are this library with a
//! command line before it.
//!
//! The way of a system: a checked [`bulkhead_manifest::System`] is compiled into machine
//! descriptions (`compile`), what they need is opened (`open`, `files`, `initramfs`, `linux`), one
//! VMM process each is started (`vmm`) and watched ([`Supervisor`]). Other commands find it in the
//! state directory ([`StateRoot`]) and talk to it over its socket ([`status`], [`down`]).
//! What this host can run at all is [`host`]'s knowledge.
#![deny(unsafe_code)]

mod admit;
mod backend;
mod cgroup;
mod compile;
mod conditions;
mod console;
mod control;
mod cpio;
mod disk;
mod down;
mod elf;
mod end;
mod enforced;
mod error;
mod files;
mod halt;
pub mod host;
mod initramfs;
mod lasting;
mod ledger;
mod library;
mod lifecycle;
mod limits;
mod linux;
mod models;
mod open;
mod process;
mod record;
mod secrets;
mod state_dir;
mod supervisor;
mod tap;
mod tools;
mod vmm;
mod vsock;
mod web;

pub use admit::{AdmissionError, Admissions, Bounds, descendants, lock_lineage, manifest_of};
pub use bulkhead_approval::{Question, Scope};
pub use bulkhead_conditions::{Inherited, Member};
pub use bulkhead_machine::Jail;
pub use bulkhead_machine::control::{DeviceStats, Stats};
pub use conditions::PartitionConditions;
pub use console::log_paths;
pub use control::{
    Act, Answer, HeldConditions, NewConditions, NewDevice, OpenQuestion, TokenOwner, act,
    conditions, decide, questions, reload, status, whose,
};
pub use down::down;
pub use end::{End, STATUS_CRASHED, STATUS_FAILED, STATUS_STOPPED};
pub use error::{Error, ProgramProblem, reason};
pub use halt::{HaltEnd, Halted, go_on_all, halt_all};
pub use library::Library;
pub use lifecycle::{Lifecycle, State};
pub use limits::check_tool_limits;
pub use record::{PartitionRecord, SystemRecord};
pub use secrets::Secrets;
pub use state_dir::{Found, Standing, StateRoot, SystemDir};
pub use supervisor::{Cause, Consoles, Options, Outcome, Supervisor};
pub use tap::open_tap;
