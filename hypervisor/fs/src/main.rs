//! The binary: `bulkhead-fs --description-fd N`. Started by the supervisor, not by people.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use bulkhead_machine::Fd;

const USAGE: &str = "usage: bulkhead-fs --description-fd N\n\
                     started by the supervisor; people use `bulkhead run`";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let args: Vec<_> = args
        .iter()
        .map(|a| a.to_str().unwrap_or_default())
        .collect();
    match args.as_slice() {
        ["--description-fd", number] => match number.parse() {
            Ok(fd) => shared_directory::run(Fd(fd)),
            Err(_) => usage(),
        },
        ["--version"] => {
            match writeln!(io::stdout(), "bulkhead-fs {}", env!("CARGO_PKG_VERSION")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(shared_directory::FAILED),
            }
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    // `eprintln!` would panic where standard error cannot be written to.
    let _ = writeln!(io::stderr(), "{USAGE}");
    ExitCode::from(shared_directory::FAILED)
}
