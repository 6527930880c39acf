//! What can keep the process from starting, or end it. Said on the control socket and on standard
//! error.

use std::io;

use bulkhead_inherited::NotOpen;
use bulkhead_network::MAX_DESCRIPTION_BYTES;

use crate::config::ConfigError;
use crate::jail::JailError;
use crate::models::ModelsError;
use crate::web::WebError;

/// Why the process gives up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A descriptor was not open.
    #[error(transparent)]
    Descriptor(#[from] NotOpen),
    /// The description cannot be read.
    #[error("cannot read the network description: {0}")]
    Read(io::Error),
    /// The description is too long.
    #[error("the network description is longer than {MAX_DESCRIPTION_BYTES} bytes")]
    TooLong,
    /// The description is not one.
    #[error("the network description is malformed: {0}")]
    Parse(#[from] serde_json::Error),
    /// The description makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The proxy cannot be set up.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The router of models cannot be set up.
    #[error(transparent)]
    Models(#[from] ModelsError),
    /// The host does not give the process what it needs.
    #[error("cannot set up the sockets: {0}")]
    Setup(io::Error),
    /// The jail could not be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// Waiting failed.
    #[error("cannot wait for the sockets: {0}")]
    Wait(io::Error),
}

impl Error {
    /// Stable code for the control socket.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Descriptor(_) => NotOpen::CODE,
            Self::Read(_) | Self::TooLong | Self::Parse(_) | Self::Config(_) => {
                "network-description"
            }
            Self::Setup(_) => "gateway-setup",
            Self::Web(_) => "gateway-web",
            Self::Models(_) => "gateway-models",
            Self::Jail(error) => error.code(),
            Self::Wait(_) => "gateway-wait",
        }
    }
}
