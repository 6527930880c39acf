//! The gateway binary: `bulkhead-gateway --description-fd N`, and `--authority PARTITION`, which
//! makes a certificate authority. Started by the supervisor, not by people.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use bulkhead_network::Fd;
use gateway::FAILED;

const USAGE: &str = "usage: bulkhead-gateway --description-fd N | --authority PARTITION\n\
                     started by the supervisor; people use `bulkhead run`";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Vec<_> = args
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    match args.as_slice() {
        ["--description-fd", number] => match number.parse() {
            Ok(fd) => gateway::run(Fd(fd)),
            Err(_) => usage(),
        },
        ["--authority", partition] => match gateway::create_authority(partition) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(io::stderr(), "bulkhead-gateway: {error}");
                ExitCode::from(FAILED)
            }
        },
        ["--version"] => {
            let version = env!("CARGO_PKG_VERSION");
            match writeln!(io::stdout(), "bulkhead-gateway {version}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(FAILED),
            }
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    // `eprintln!` would panic where standard error cannot be written to.
    let _ = writeln!(io::stderr(), "{USAGE}");
    ExitCode::from(FAILED)
}
