//! Signals that end a system, or say that the terminal has another size, as bytes to read.

use crate::failure::Failure;
use bulkhead_supervisor::reason;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::io::{self, PipeReader, Write};
use std::thread;

/// From now on these signals do nothing to this process: each is a byte, its number, in the pipe.
pub(crate) fn catch() -> Result<PipeReader, Failure> {
    let failed = |error: io::Error| {
        Failure::new(
            "signals",
            format!("cannot catch signals: {}", reason(&error)),
        )
    };
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH]).map_err(failed)?;
    let (read, mut write) = io::pipe().map_err(failed)?;
    let pass_on = move || {
        for signal in &mut signals {
            let number = u8::try_from(signal).unwrap_or(0);
            if write.write_all(&[number]).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(pass_on)
        .map_err(failed)?;
    Ok(read)
}
