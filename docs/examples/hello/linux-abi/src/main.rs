//! An ordinary Linux program that says hello. Built for `x86_64-unknown-linux-musl`, it runs
//! unmodified on Linux and in a Linux-ABI partition:
//!
//!     bulkhead run --kernel linux-abi -- ./hello-linux-abi
//!     bulkhead run --kernel linux-abi -- ./hello-linux-abi --date --exit 7 first second
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Instant, SystemTime};

fn main() -> ExitCode {
    let started = Instant::now();
    println!("hello from a Linux program");

    let mut status = ExitCode::SUCCESS;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--exit" => {
                let code = arguments.next().and_then(|code| code.parse::<u8>().ok());
                let Some(code) = code else {
                    eprintln!("hello: --exit needs a status from 0 to 255");
                    return ExitCode::from(2);
                };
                status = ExitCode::from(code);
            }
            // Only with the `time` grant is there a wall clock to ask.
            "--date" => match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                Ok(now) => println!("seconds since 1970: {}", now.as_secs()),
                Err(error) => println!("the clock is before 1970: {error}"),
            },
            _ => println!("argument: {argument}"),
        }
    }

    let mut environment: Vec<_> = std::env::vars_os().collect();
    environment.sort();
    for (name, value) in environment {
        println!("environment: {}={}", name.display(), value.display());
    }

    println!("took {} us", started.elapsed().as_micros());
    status
}
