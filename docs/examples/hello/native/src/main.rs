//! A native partition's program: says hello, names its arguments and what it was granted, and ends
//! with the status in its first argument (`status=N`), or 0.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod program {
    use core::str;

    use bulkhead_runtime::abi::boot::{FLAG_CONSOLE, FLAG_ENTROPY, FLAG_TIME};
    use bulkhead_runtime::{environment, println, program_main, time};

    program_main!(main);

    fn main() -> u8 {
        println!("hello from a native partition");
        for argument in environment::args() {
            println!("argument: {}", argument.escape_ascii());
        }
        if environment::has(FLAG_CONSOLE) {
            println!("granted: console");
        }
        if environment::has(FLAG_ENTROPY) {
            println!("granted: entropy");
        }
        if let Some(ns) = time::wall_clock_ns().filter(|_| environment::has(FLAG_TIME)) {
            println!("granted: time ({} s since 1970)", ns / 1_000_000_000);
        }
        for device in environment::devices() {
            let name = device.name.split(|b| *b == 0).next().unwrap_or_default();
            println!(
                "granted: device {} (virtio {})",
                name.escape_ascii(),
                device.virtio_id
            );
        }
        status().unwrap_or(0)
    }

    /// The status that an argument `status=N` asks for.
    fn status() -> Option<u8> {
        environment::args().find_map(|argument| {
            str::from_utf8(argument.strip_prefix(b"status=")?)
                .ok()?
                .parse()
                .ok()
        })
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a native program runs in a partition: build it with --target x86_64-unknown-none");
    std::process::exit(125);
}
