//! Why a ledger cannot be opened, written or read.

use std::io;

use crate::note::NoteError;
use crate::segment::Problem;

/// See there.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The host refused.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the host answered.
        source: io::Error,
    },
    /// The ledger is damaged: nothing is built upon it.
    #[error("record {} is bad: {}", .0.first, .0.what)]
    Damaged(Problem),
    /// The second place knows more records.
    #[error("there are {has} records, and the checkpoint in the second place counts {known}")]
    Behind {
        /// How many there are.
        has: u64,
        /// How many it knows.
        known: u64,
    },
    /// Writing failed before: what is on disk is not known for certain.
    #[error("an earlier record could not be written: {0}")]
    Broken(String),
    /// The ledger's key cannot be used.
    #[error("the ledger's key {0}")]
    Key(NoteError),
    /// The ledger's key can be read by others.
    #[error("the ledger's key is open to other users")]
    KeyOpen,
    /// An entry cannot be written down.
    #[error("cannot write an entry as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl LogError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Broken(_) | Self::Json(_) => "ledger-not-written",
            Self::Damaged(_) => "ledger-damaged",
            Self::Behind { .. } => "ledger-truncated",
            Self::Key(_) | Self::KeyOpen => "ledger-key",
        }
    }
}
