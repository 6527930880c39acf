//! The microkernel's logic, free of architecture and of `unsafe`.
//!
//! `guest-kernel/kernel` drives [`kernel::Kernel`]: it hands in each trap and gets back what runs
//! next. Whatever touches the machine goes through [`hardware::Hardware`], so every rule in here
//! runs on the host too, in unit tests, under Miri and in fuzz targets. There is no heap: objects
//! lie in memory that programs give by retype, what little else there is in fixed tables.
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`boot`] | from `BootInfo` to a first thread that can run |
//! | [`calls`] | the system calls |
//! | [`elf`] | the checked reader of program images |
//! | [`frame`] | a thread's registers |
//! | [`hardware`] | what the logic asks of the machine |
//! | [`kernel`] | the kernel's state and its trap dispatch |
//! | [`objects`] | kernel objects and the capabilities to them |
//! | [`paging`] | entries of page tables, and the way through them |
//! | [`restricted`] | entering and leaving restricted mode |
//! | [`user`] | user addresses, an allegation until checked |
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod calls;
pub mod elf;
pub mod frame;
pub mod hardware;
pub mod kernel;
pub mod objects;
pub mod paging;
pub mod restricted;
pub mod user;

#[cfg(any(test, feature = "fake"))]
pub mod fake;
