//! What the chores say while they work: on a terminal one line that is rewritten, elsewhere plain
//! lines. Always on stderr: stdout belongs to the command that runs.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

/// Progress of one chore.
pub(crate) struct Say {
    topic: &'static str,
    since: Instant,
    terminal: bool,
}

impl Say {
    /// `topic` begins every line, as in `lab: booting`.
    pub(crate) fn new(topic: &'static str) -> Self {
        Self {
            topic,
            since: Instant::now(),
            terminal: stderr().is_terminal(),
        }
    }

    /// What is being done now; the next line replaces it on a terminal.
    pub(crate) fn step(&self, what: &str) {
        let (topic, seconds) = (self.topic, self.since.elapsed().as_secs_f32());
        if self.terminal {
            // A failed write to stderr leaves nobody to tell.
            let _ = write!(stderr(), "\r\x1b[K{topic}: {what} ({seconds:.1} s)");
        } else {
            let _ = writeln!(stderr(), "{topic}: {what}");
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, what: &str) {
        self.clear();
        let _ = writeln!(stderr(), "{}: {what}", self.topic);
    }

    /// Removes the current step from a terminal, before somebody else writes.
    pub(crate) fn clear(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
