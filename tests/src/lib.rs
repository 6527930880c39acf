//! End-to-end suites through the front door: what every suite in `tests/tests/` shares.
//!
//! A suite is one promise. Its tests live in modules that say where they can run: `kvm` on any
//! usable `/dev/kvm` (this host's, and the lab's), `lab` only where KVM runs guest kernel mode
//! natively, which the lab always does. `cargo xtask test` selects by these names.
#![forbid(unsafe_code)]
// A suite that cannot go on says so by panicking: that is the report.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

pub mod bulkhead;
pub mod debian;
pub mod guest;
pub mod house;
pub mod initramfs;
pub mod initrd;
pub mod leftovers;
pub mod library;
pub mod mcp;
pub mod scratch;
pub mod vmm;

/// Marks the test as skipped, with the reason that ends up in the summary. The caller returns.
pub fn skip(why: &str) {
    println!("skipped: {why}");
}

/// A file of the repository that suites use: below `docs/examples` or `tests/data`, which the lab
/// has a copy of.
pub fn repository(path: &str) -> std::path::PathBuf {
    let root = if in_lab() {
        "/repo"
    } else {
        concat!(env!("CARGO_MANIFEST_DIR"), "/..")
    };
    std::path::Path::new(root).join(path)
}

/// True inside `cargo xtask lab`.
pub fn in_lab() -> bool {
    std::env::var_os("LAB").is_some()
}
