//! The one error of the chores: a sentence for a person, and what to do about it.

use std::fmt;
use std::path::Path;

/// What failed, and the remedy where there is one.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    remedy: Option<String>,
}

/// What every chore returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// `what` is one sentence, lower case, without a full stop.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let (what, remedy) = (what.into(), None);
        Self { what, remedy }
    }

    /// Adds what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  help: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Names the file in an I/O error, which alone never does.
pub(crate) trait At<T> {
    /// `what` is the verb: "read", "create".
    fn at(self, what: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, what: &str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| {
            Failure::new(format!(
                "cannot {what} {}: {error}",
                path.as_ref().display()
            ))
        })
    }
}
