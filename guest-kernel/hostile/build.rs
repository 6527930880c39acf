//! Links the native program as the kernel loads it.

use std::env;

fn main() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script = env::var("DEP_BULKHEAD_RUNTIME_LINKER_SCRIPT").unwrap_or_default();
        for argument in [&format!("-T{script}"), "--no-pie", "-zmax-page-size=4096"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
