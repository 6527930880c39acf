//! The terminal in raw mode, and back again whatever happens.

use crate::failure::Failure;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal};

/// Raw mode until it is dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    before: Termios,
}

/// True when a person sits at both ends of the console.
pub(crate) fn is_attached() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

impl RawMode {
    /// Every key goes to the partition, Ctrl-C too. Output keeps its newlines.
    pub(crate) fn enter() -> Result<Self, Failure> {
        if !is_attached() {
            return Err(
                Failure::new("no-terminal", "-t needs a terminal as input and output")
                    .help("leave -t out when input or output is a pipe or file"),
            );
        }
        let failed =
            |error| Failure::new("terminal", format!("cannot set up the terminal: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that went away needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
