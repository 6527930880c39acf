//! Tells programs where the linker script is: their build scripts find its path in
//! `DEP_BULKHEAD_RUNTIME_LINKER_SCRIPT`.

use std::env;

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=program.ld");
    println!("cargo::metadata=LINKER_SCRIPT={here}/program.ld");
}
