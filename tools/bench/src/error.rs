//! What can go wrong while measuring.

use std::path::PathBuf;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The host refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the host answered.
        source: std::io::Error,
    },
    /// The ledger refused something.
    #[error(transparent)]
    Ledger(#[from] bulkhead_ledger::LogError),
    /// KVM refused something.
    #[error("kvm refused {call}: {source}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What KVM answered.
        source: kvm_ioctls::Error,
    },
    /// The kernel is none.
    #[error("the kernel image {0}")]
    Image(#[from] bulkhead_image::ImageError),
    /// A subject ended, or was ended, before its first byte.
    #[error("{0} ended without a byte from its guest")]
    Silent(String),
    /// A measuring program's answer cannot be understood.
    #[error("no figure: {0}")]
    Answer(String),
    /// The kernel's image does not say where its entries are.
    #[error("{0} is no kernel image with its symbols")]
    Symbols(PathBuf),
    /// The VMM's debugger did not do its part.
    #[error("the VMM's debugger: {0}")]
    Debugger(String),
    /// A path was not what can be counted.
    #[error("the path {0}")]
    Path(String),
    /// The VMM's trace cannot be understood.
    #[error("the VMM wrote no usable trace; is it of this build? {0}")]
    Trace(String),
}

impl Error {
    /// For `map_err` on a host call.
    pub(crate) fn io<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }
}
