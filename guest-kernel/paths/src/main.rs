//! Takes each path of the kernel once it is warm. Built as a native program it takes those of the
//! system calls; built for Linux those through the Linux personality.
//!
//! `bulkhead-bench instructions` finds the paths by the marks of [`bulkhead_paths`]. A new one is a
//! function in `native.rs` or `linux.rs`, and its line in the list there.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
mod linux;
#[cfg(target_os = "none")]
mod native;

#[cfg(not(target_os = "none"))]
fn main() {
    linux::take_all();
}
