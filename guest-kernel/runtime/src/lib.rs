//! The user library of native programs: what `std` is elsewhere.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use bulkhead_runtime::{program_main, println};
//!
//! program_main!(main);
//!
//! fn main() -> u8 {
//!     println!("hello");
//!     0
//! }
//! ```
//!
//! A program's build script passes the linker script on:
//!
//! ```
//! let script = std::env::var("DEP_BULKHEAD_RUNTIME_LINKER_SCRIPT").unwrap_or_default();
//! for argument in [&format!("-T{script}"), "--no-pie", "-zmax-page-size=4096"] {
//!     println!("cargo::rustc-link-arg-bins={argument}");
//! }
//! ```
//!
//! Programs are built for `x86_64-unknown-none`: soft float, no FPU, no SSE. The kernel relies on
//! that where it switches threads.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`capability`] | the console, as a capability |
//! | [`console`] | printing and reading |
//! | [`device`] | granted devices: registers and interrupts |
//! | [`environment`] | arguments, environment, modules, granted devices |
//! | [`heap`] | the global allocator |
//! | [`memory`] | frames, page tables and small objects for the program |
//! | [`message`] | messages |
//! | [`object`] | capabilities to kernel objects |
//! | [`slots`] | free slots of the program's CNode |
//! | [`start`] | entry, panics, exit |
//! | [`syscall`] | the raw system calls; nobody else executes `syscall` |
//! | [`thread`] | threads |
//! | [`time`] | clocks and sleeping |
#![no_std]

extern crate alloc;

pub mod capability;
pub mod console;
pub mod device;
pub mod environment;
pub mod heap;
pub mod memory;
pub mod message;
pub mod object;
pub mod slots;
pub mod start;
pub mod syscall;
pub mod thread;
pub mod time;

pub use bulkhead_abi as abi;
pub use start::{Termination, exit};
