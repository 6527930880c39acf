//! What libFuzzer says of a run. A log may hold several runs of one target, one after another.

use std::fs;
use std::path::Path;

use crate::failure::{At, Failure, Result};
use crate::page::thousands;

/// The figures of a target's runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) executions: u64,
    pub(super) seconds: u64,
    /// Edges of the control flow that the inputs reach, those of the libraries beneath included.
    pub(super) edges: u64,
    /// Inputs kept because each reaches something that no other does.
    pub(super) inputs: u64,
}

impl Log {
    /// Reads the log at `path`.
    ///
    /// # Errors
    /// It is not there, or no run ended in order.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).at("read", path)?;
        Self::parse(&text)
            .ok_or_else(|| Failure::new(format!("{} is no log of a good run", path.display())))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut log = Self::default();
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            match words.as_slice() {
                ["Done", runs, "runs", "in", seconds, ..] => {
                    log.executions += runs.parse::<u64>().ok()?;
                    log.seconds += seconds.parse::<u64>().ok()?;
                }
                [number, "DONE", "cov:", edges, "ft:", _, "corp:", inputs, ..]
                    if number.starts_with('#') =>
                {
                    log.edges = edges.parse().ok()?;
                    log.inputs = inputs.split('/').next()?.parse().ok()?;
                }
                ["SUMMARY:", ..] => return None,
                _ => {}
            }
        }
        (log.executions > 0).then_some(log)
    }

    /// Executions a second.
    pub(super) fn rate(&self) -> u64 {
        self.executions / self.seconds.max(1)
    }

    /// The line that the chore says of a target.
    pub(super) fn line(&self, target: &str) -> String {
        format!(
            "{target:<16} passed: {} executions in {} s ({} a second), {} edges, {} inputs",
            thousands(self.executions),
            self.seconds,
            thousands(self.rate()),
            thousands(self.edges),
            thousands(self.inputs),
        )
    }
}
