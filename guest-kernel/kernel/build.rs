//! Links the kernel by its own script, at its own address.

use std::env;

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=kernel.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        for argument in [
            &format!("-T{here}/kernel.ld"),
            "--no-pie",
            "-zmax-page-size=4096",
        ] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
