//! What keeps a tool from doing what it was asked, and the process from serving.

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_inherited::NotOpen;
use bulkhead_record::RecordError;
use bulkhead_toolbox::MAX_DESCRIPTION_BYTES;
use rustix::io::Errno;

/// Why a tool did not do it. The text is for the agent that asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// The path is not one that can be granted.
    #[error(
        "`{}` is no plain path; write an absolute one without `.`, `..` and empty parts",
        .0.display().to_string().escape_debug()
    )]
    Path(PathBuf),
    /// No grant covers it.
    #[error("`{}` is in no granted directory; fs.roots lists them", .0.display())]
    NotGranted(PathBuf),
    /// It may only be read.
    #[error("`{}` may only be read; it takes a grant of fs.write", .0.display())]
    ReadOnly(PathBuf),
    /// It is a granted directory, which itself no tool touches.
    #[error("`{}` is a granted directory itself", .0.display())]
    Root(PathBuf),
    /// Something else than a regular file is there.
    #[error("`{}` is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// The host refused.
    #[error("cannot {doing} `{}`: {why}", path.display())]
    Host {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The arguments, or what is there, do not fit.
    #[error("{0}")]
    Refused(String),
    /// It failed when something was changed already.
    #[error(transparent)]
    Halfway(Box<ToolError>),
    /// The time was over.
    #[error("it took longer than the {0} seconds it may take, and was ended")]
    TimedOut(u64),
}

impl ToolError {
    /// The host's answer to an attempt on `path`.
    pub(crate) fn host(doing: &'static str, path: &Path, errno: Errno) -> Self {
        let why = match errno {
            Errno::LOOP => "there is a link on the way, which no tool follows".to_owned(),
            Errno::XDEV => "it leads to another filesystem".to_owned(),
            Errno::NOENT => "it does not exist".to_owned(),
            Errno::EXIST => "it exists already".to_owned(),
            Errno::NOTEMPTY => "the directory is not empty".to_owned(),
            other => io::Error::from(other).to_string(),
        };
        Self::Host {
            doing,
            path: path.to_owned(),
            why,
        }
    }

    /// The same for an error of the standard library.
    pub(crate) fn io(doing: &'static str, path: &Path, error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(errno) => Self::host(doing, path, errno),
            None => Self::Host {
                doing,
                path: path.to_owned(),
                why: error.to_string(),
            },
        }
    }

    /// The same, after something was changed.
    pub(crate) fn halfway(self) -> Self {
        match self {
            Self::Halfway(_) => self,
            other => Self::Halfway(Box::new(other)),
        }
    }

    /// A refusal in one sentence.
    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }
}

/// How a call ended without an effect, or without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such tool, or the partition may not call it: which of the two is not told.
    #[error("unknown tool `{}`", .0.escape_debug())]
    Unknown(String),
    /// The arguments do not fit the tool's schema.
    #[error("the arguments do not fit: {0}")]
    Arguments(String),
    /// A capability is missing.
    #[error("it takes a grant of {0}")]
    NotPermitted(String),
    /// It was called too often.
    #[error("{0}")]
    TooOften(String),
    /// The grants allow it, and the conditions do not.
    #[error("{0}")]
    Condition(String),
    /// A person was asked and did not allow it.
    #[error("nobody allowed it: {0}")]
    NotConfirmed(String),
    /// What rolling back needs could not be kept.
    #[error("it could not be backed up: {0}")]
    NotBackedUp(String),
    /// It could not be recorded, so it was not done.
    #[error("it was not done: {0}")]
    NotRecorded(RecordError),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(ToolError),
    /// It was done, but what it said does not fit its schema, and is kept back.
    #[error("the result does not fit the tool's schema, and is kept back")]
    Result,
    /// It was done, but how it went could not be recorded; the result is kept back.
    #[error("the result is kept back: {0}")]
    OutcomeNotRecorded(RecordError),
}

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor was not open.
    #[error(transparent)]
    Descriptor(#[from] NotOpen),
    /// The description cannot be read.
    #[error("cannot read the description: {0}")]
    Read(io::Error),
    /// The description is too long.
    #[error("the description is longer than {MAX_DESCRIPTION_BYTES} bytes")]
    TooLong,
    /// The description is not one.
    #[error("the description is malformed: {0}")]
    Description(String),
    /// The host offers too little to lock the process in.
    #[error(
        "the host refuses the jail layer {layer}: {source}; allow it, or run with a best-effort jail"
    )]
    Jail {
        /// Which layer.
        layer: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// Neither a namespace nor Landlock would confine the process.
    #[error(
        "the host offers neither a mount namespace nor Landlock, one of which has to confine the tools"
    )]
    Unconfined,
    /// A host call failed.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// A tool of ours is described wrongly.
    #[error("the schema of {0} is no schema")]
    Schema(&'static str),
}

impl Error {
    /// For `map_err` on a host call.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }
}
