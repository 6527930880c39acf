//! What is written into the ledger, and how a process asks for it.
//!
//! Every process that lets a partition act links this crate: it describes the act as an [`Entry`],
//! has it recorded through a [`Recorder`], and acts once the record is durable, never before. The
//! ledger itself is written by one process, `bulkhead-ledger`: a [`Client`] asks it through a socket that
//! a supervisor has given to both ([`wire`]); [`description`] is what the supervisor starts it with.
#![forbid(unsafe_code)]

mod client;
pub mod description;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;

pub use client::{Client, Ticket};
use serde::{Deserialize, Serialize};

/// Most bytes of an entry, as JSON.
pub const MAX_ENTRY_BYTES: usize = 16 * 1024;

/// One thing that happened, or is about to happen, at a partition's boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What kind of record it is.
    pub kind: Kind,
    /// Who acts: `system/partition`, or `operator` for a person at the command line.
    pub actor: String,
    /// What is done, by its clear name: `net.connect`, `tool.call`, `partition.start`.
    pub action: String,
    /// What it is done to: a host, a path, a tool's name; never a secret's value.
    pub object: String,
    /// How it was decided, or how it went.
    pub verdict: Verdict,
    /// Why: the rule, grant or person that decided; the reason of a failure.
    pub reason: String,
    /// Index of the record of the intent that this is the outcome of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<u64>,
    /// What else there is to know, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
}

/// Kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An act that was allowed and is about to take effect.
    Intent,
    /// How an act went whose intent was recorded.
    Outcome,
    /// An act that was refused, and so had no effect.
    Refusal,
    /// A partition went from one state of its life to another.
    Transition,
    /// A person was asked, or answered.
    Approval,
    /// Policy, keys or secrets changed.
    Policy,
}

/// How something was decided, or how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may be done.
    Allowed,
    /// It may not.
    Denied,
    /// Nobody has decided yet.
    Pending,
    /// It was done.
    Done,
    /// It was tried, and failed.
    Failed,
}

impl Kind {
    /// As it stands in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intent => "intent",
            Self::Outcome => "outcome",
            Self::Refusal => "refusal",
            Self::Transition => "transition",
            Self::Approval => "approval",
            Self::Policy => "policy",
        }
    }
}

impl Verdict {
    /// As it stands in a record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an entry is not recorded; whatever it is, the act must not take effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The ledger could not be written.
    #[error("the ledger cannot be written: {0}")]
    NotWritten(String),
    /// The process that writes the ledger is gone.
    #[error("the ledger's writer is gone")]
    WriterGone,
    /// The writer does not take it from this process.
    #[error("the ledger does not take this record: {0}")]
    Refused(String),
    /// The entry is longer than [`MAX_ENTRY_BYTES`].
    #[error("a record of {0} bytes is too long; {MAX_ENTRY_BYTES} are possible")]
    TooLong(usize),
}

/// Where entries are recorded.
pub trait Recorder: Send + Sync {
    /// Records `entry` and returns its index in the ledger once it is durable. Blocks until then.
    ///
    /// # Errors
    /// It is not durable: the act it is about must not take effect.
    fn record(&self, entry: &Entry) -> Result<u64, RecordError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_record() {
        use Verdict::{Allowed, Denied, Done, Failed, Pending};
        for verdict in [Allowed, Denied, Pending, Done, Failed] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
        use Kind::{Approval, Intent, Outcome, Policy, Refusal, Transition};
        for kind in [Intent, Outcome, Refusal, Transition, Approval, Policy] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
