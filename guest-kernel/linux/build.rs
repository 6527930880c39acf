//! Links the personality as every native program: by the runtime's script.

use std::env;

fn main() {
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none")
        && let Ok(script) = env::var("DEP_BULKHEAD_RUNTIME_LINKER_SCRIPT")
    {
        for argument in [&format!("-T{script}"), "--no-pie", "-zmax-page-size=4096"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
