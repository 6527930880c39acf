//! The initial program of a Linux-ABI partition: the library, on the microkernel. Built for
//! `x86_64-unknown-none`; anywhere else it only says so.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod partition;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "linux-personality runs inside of a partition: build it for x86_64-unknown-none and start \
         it with `bulkhead run --kernel linux-abi`"
    );
    std::process::ExitCode::from(126)
}
