//! The binary: `bulkhead-decision --description-fd N`. Started by the supervisor, not by people.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use bulkhead_decision::process::{FAILED, run};
use bulkhead_machine::Fd;

const USAGE: &str = "usage: bulkhead-decision --description-fd N\n\
                     started by the supervisor; people use `bulkhead policy`";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Vec<_> = args
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    match args.as_slice() {
        ["--description-fd", number] => match number.parse() {
            Ok(fd) => run(Fd(fd)),
            Err(_) => usage(),
        },
        ["--version"] => {
            let version = env!("CARGO_PKG_VERSION");
            match writeln!(io::stdout(), "bulkhead-decision {version}") {
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
