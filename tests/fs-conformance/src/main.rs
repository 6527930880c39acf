//! Tries what a directory promises, in the manner of pjdfstest:
//! `fs-conformance [--ownership guest|exporter] DIRECTORY`.
//!
//! The same program runs on a shared directory in a guest and on ext4, which is how the expectations
//! themselves are tried. It works in a directory of its own below `DIRECTORY`, says a line for each
//! case, and exits with 1 when one fails. With `--ownership exporter` everything has one owner, and
//! changing that fails; cases about several users are left out then, and without root.
#![forbid(unsafe_code)]

mod cases;
mod check;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use check::{Case, Needs};

const USAGE: &str = "usage: fs-conformance [--ownership guest|exporter] DIRECTORY";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (exporter, directory) = match arguments.as_slice() {
        ["--ownership", "guest", directory] | [directory] => (false, *directory),
        ["--ownership", "exporter", directory] => (true, *directory),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    // A copy of this program that a case has started says that it runs.
    if directory == check::HERE_I_AM {
        println!("{}", check::HERE_I_AM);
        return ExitCode::SUCCESS;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    let own = Path::new(directory).join(format!("conformance-{}", std::process::id()));
    if let Err(error) = fs::create_dir(&own) {
        eprintln!("fs-conformance: {}: {error}", own.display());
        return ExitCode::from(2);
    }
    let root = rustix::process::geteuid().is_root();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for case in cases::all() {
        let wanted = match case.needs {
            Needs::Nothing => true,
            Needs::Users => root && !exporter,
            Needs::Exporter => exporter,
        };
        if !wanted {
            skipped += 1;
            println!("skip {}", case.name);
            continue;
        }
        match try_case(&case, own.join(case.name.replace(' ', "-"))) {
            Ok(()) => {
                passed += 1;
                println!("ok   {}", case.name);
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {}: {why}", case.name);
            }
        }
    }
    if let Err(error) = fs::remove_dir_all(&own) {
        failed += 1;
        println!("FAIL cleaning up: {error}");
    }
    println!("fs-conformance: {passed} passed, {failed} failed, {skipped} skipped");
    ExitCode::from(u8::from(failed != 0))
}

fn try_case(case: &Case, directory: PathBuf) -> check::Outcome {
    fs::create_dir(&directory)?;
    (case.run)(&directory)
}
