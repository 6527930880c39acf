//! How a command fails: a stable code, one sentence, a remedy, and an exit status.

use bulkhead_ledger::LogError;
use bulkhead_manifest::{Rejected, UnknownPartition};
use bulkhead_models::file::LoadError;
use bulkhead_places::PlaceError;
use bulkhead_record::RecordError;
use bulkhead_signature::StoreError;
use bulkhead_supervisor::{AdmissionError, Error, reason};
use bulkhead_vault::VaultError;
use std::io::{self, Write};

/// Bulkhead failed (docker's convention, like the two below).
pub(crate) const STATUS_FAILED: u8 = bulkhead_supervisor::STATUS_FAILED;
/// The command exists but cannot be run.
pub(crate) const STATUS_CANNOT_RUN: u8 = 126;
/// The command was not found.
pub(crate) const STATUS_NOT_FOUND: u8 = 127;

/// Why a command fails: one complaint or more, each a sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    complaints: Vec<Complaint>,
    /// Exit status.
    pub(crate) status: u8,
}

#[derive(Debug)]
struct Complaint {
    code: String,
    message: String,
    help: Option<String>,
}

impl Failure {
    /// A failure of Bulkhead's own, status 125.
    pub(crate) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::complain(code.into(), message.into(), None)
    }

    /// One with a remedy.
    pub(crate) fn complain(code: String, message: String, help: Option<String>) -> Self {
        Self {
            complaints: vec![Complaint {
                code,
                message,
                help,
            }],
            status: STATUS_FAILED,
        }
    }

    /// A partition's output could not be written.
    pub(crate) fn output(errno: u8) -> Self {
        let error = io::Error::from_raw_os_error(errno.into());
        Self::new(
            "output",
            format!("cannot write a partition's output: {}", reason(&error)),
        )
    }

    /// The same with another remedy.
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(complaint) = self.complaints.last_mut() {
            complaint.help = Some(help.into());
        }
        self
    }

    /// Whether this is what has failed.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.complaints
            .iter()
            .any(|complaint| complaint.code == code)
    }

    /// The same with a sentence before each of its own.
    pub(crate) fn behind(mut self, sentence: &str) -> Self {
        for complaint in &mut self.complaints {
            complaint.message = format!("{sentence}: {}", complaint.message);
        }
        self
    }

    /// Both, with the status of this one.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.complaints.extend(other.complaints);
        self
    }

    /// The same with another status.
    pub(crate) fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    /// How clap says that the command line is wrong, in our form.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        // Its first line is the sentence, behind "error: "; what is indented below belongs to it.
        let said = text.split("\n\n").next().unwrap_or_default();
        let said = said.strip_prefix("error: ").unwrap_or(said);
        let said: Vec<&str> = said.lines().map(str::trim).collect();
        let said = said.join(" ");
        let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
        let tip = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("tip: "));
        let help = tip.or(usage).unwrap_or("see bulkhead --help");
        Self::new("usage", said.trim_end_matches('.')).help(help)
    }

    /// Tells people.
    pub(crate) fn print(&self) {
        let mut text = String::new();
        for Complaint {
            code,
            message,
            help,
        } in &self.complaints
        {
            text += &format!("bulkhead: error[{code}]: {message}\n");
            if let Some(help) = help {
                text += &format!("  help: {help}\n");
            }
        }
        // Nobody listens: the exit status has to do.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::complain(error.code().to_owned(), error.to_string(), error.help())
    }
}

impl From<AdmissionError> for Failure {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Schema(rejected) | AdmissionError::Policy(rejected) => rejected.into(),
            error => Self::complain(error.code().to_owned(), error.to_string(), error.help()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::complain(error.code().to_owned(), error.to_string(), error.help())
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Self {
        Self::new("ledger", error.to_string())
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        Self::complain(error.code().to_owned(), error.to_string(), error.help())
    }
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let help = Some(error.help().to_owned());
        Self::complain(error.code().to_owned(), error.to_string(), help)
    }
}

impl From<Rejected> for Failure {
    fn from(rejected: Rejected) -> Self {
        let complaints = rejected.diagnostics.iter().map(|diagnostic| Complaint {
            code: diagnostic.code.to_string(),
            message: rejected.locate(diagnostic),
            help: Some(diagnostic.help.clone()),
        });
        Self {
            complaints: complaints.collect(),
            status: STATUS_FAILED,
        }
    }
}

impl From<UnknownPartition> for Failure {
    fn from(unknown: UnknownPartition) -> Self {
        let help = format!("it has {}", unknown.known.join(", "));
        Self::new("no-such-partition", unknown.to_string()).help(help)
    }
}
