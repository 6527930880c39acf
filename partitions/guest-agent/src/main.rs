//! PID 1 of Linux partitions that run one command: makes the guest's file systems, loads the
//! modules of its devices, runs the command on the console, and reports its exit status to the VMM.
//!
//! It never returns: whatever happens, the partition ends. Its own failures are one line on the
//! console and status 125, as everywhere in Bulkhead.

mod console;
mod power;
mod process;
mod setup;

use bulkhead_guest_agent::{SPEC_PATH, Spec};
use std::fs;
use std::io::{self, Write};

/// Exit status of the agent's own failures.
const STATUS_FAILED: u8 = 125;

fn main() {
    let status = match run() {
        Ok(status) => status,
        Err(message) => {
            // There may be no console; then the status alone has to do.
            let _ = writeln!(io::stderr(), "bulkhead: error[guest-agent]: {message}");
            STATUS_FAILED
        }
    };
    power::end(status);
}

/// Everything up to the command's exit status; the error is a sentence.
fn run() -> Result<u8, String> {
    setup::mount_all()?;
    let path = format!("/{SPEC_PATH}");
    let json = fs::read(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let spec: Spec =
        serde_json::from_slice(&json).map_err(|error| format!("cannot parse {path}: {error}"))?;
    setup::load_modules(&spec.modules)?;
    console::attach(spec.tty)?;
    if spec.announce {
        console::announce()?;
    }
    process::run(&spec)
}
