//! Why the process cannot serve, with the stable codes the supervisor sees. What a guest asks for
//! is never an error here: it gets an errno.

use hypervisor::jail::JailError;

/// Why it gave up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The description is not JSON of the expected shape, or breaks one of its rules.
    #[error("the description is invalid: {0}")]
    Description(String),
    /// A descriptor the description names is not open.
    #[error(transparent)]
    Descriptor(#[from] hypervisor::error::Error),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A seccomp filter does not compile.
    #[error("cannot compile a seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The rules of the filter do not fit into one.
    #[error(transparent)]
    Rules(#[from] bulkhead_seccomp::TooLong),
    /// Neither a mount namespace nor Landlock would confine the process.
    #[error(
        "the host offers neither a mount namespace nor Landlock, one of which has to confine the \
         process to the directory"
    )]
    Unconfined,
    /// The ownership policy needs privileges.
    #[error(
        "the process lacks {0}, which the guest's ownership needs; run as root, or export as a user"
    )]
    Privileges(String),
    /// A host call failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The front end broke the vhost-user protocol, or the connection broke.
    #[error("the vhost-user connection failed: {0}")]
    Connection(String),
}

impl Error {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Description(_) => "description-invalid",
            Self::Descriptor(error) => error.code(),
            Self::Jail(error) => error.code(),
            Self::Filter(_) | Self::Rules(_) => "jail-seccomp",
            Self::Unconfined => "fs-unconfined",
            Self::Privileges(_) => "fs-privileges",
            Self::Host { .. } => "io-failed",
            Self::Connection(_) => "fs-connection",
        }
    }

    /// For `map_err` on a host call.
    pub(crate) fn host<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }
}
