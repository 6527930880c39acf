//! Compiles the seccomp filters, so that no start of a VMM has to.
#![allow(
    clippy::expect_used,
    reason = "a failure here is the build's, and the panic its message"
)]

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let directory = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let source = bulkhead_seccomp::source().expect("the rules are too long");
    std::fs::write(directory.join("filters.rs"), source).expect("the filters are written");
}
