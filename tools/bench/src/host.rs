//! What a supervisor has from before it starts a VMM, and so stands outside of every clock.

use std::fs::File;

use bulkhead_cpu::HostCpu;
use bulkhead_supervisor::host::EmptyNetwork;

use crate::error::Error;

/// The host as far as every partition on it shares it.
pub(crate) struct Host {
    /// What KVM offers.
    pub(crate) cpu: HostCpu,
    /// An empty network namespace, where one can be made.
    pub(crate) network: Option<File>,
}

impl Host {
    /// Asks and makes.
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            cpu: HostCpu::ask().map_err(Error::io("asking KVM for its CPUs"))?,
            network: EmptyNetwork::begin().finish(),
        })
    }
}
