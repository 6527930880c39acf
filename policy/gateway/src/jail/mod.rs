//! The jail: how the process gives up everything but its sockets, before it reads the first frame.
//! It stays in the host's network, which is its job, and can open no file there is. Called by
//! [`crate::run`] alone; the layers are those of `bulkhead-confined`. What each layer is for: docs/network.md.

mod seccomp;

use bulkhead_confined::Kept;
pub use bulkhead_confined::{Entered, JailError};
use bulkhead_network::{NetworkDescription, Protocol};

use crate::{dns, models, udp};

/// Most ports that Landlock is told one by one; with more, rules are checked here alone.
const MAX_PORTS: usize = 1024;
/// Descriptors besides those of flows: standard streams, link, control, event queue, some to spare.
const OTHER_DESCRIPTORS: u64 = 32;

/// Descriptors of a connection that the proxy has: the guest's, and some to the server.
const PER_WEB_CONNECTION: usize = 16;

/// Descriptors of a connection that the router of models has: the guest's, and one to a provider.
const PER_MODEL_CONNECTION: usize = 2;

/// Locks the process in, up to its last layer.
///
/// # Errors
/// See [`JailError`]. The process may then be half locked in, and has to end.
pub fn enter(description: &NetworkDescription) -> Result<Entered, JailError> {
    let kept = Kept {
        ports: ports(description),
        descriptors: Some(descriptors(description)),
        ..Kept::NOTHING
    };
    bulkhead_confined::enter(description.jail, &kept)
}

/// Takes away all system calls but those of the event loop and the proxy. Returns the layers that the
/// host does not offer, by name.
///
/// # Errors
/// See [`JailError`]. The process has to end then.
pub fn seal(entered: Entered) -> Result<Vec<String>, JailError> {
    entered.seal(&seccomp::compile().map_err(JailError::filter)?)
}

/// The ports that a TCP connection may go to; nothing when they are too many.
fn ports(description: &NetworkDescription) -> Option<Vec<u16>> {
    let rules = description.allow.iter().map(|grant| &grant.rule);
    let rules = rules.filter(|rule| rule.protocol == Protocol::Tcp);
    let mut ports: Vec<u16> = Vec::new();
    for rule in rules {
        let range = rule.ports.first..=rule.ports.last;
        if ports.len() + range.len() > MAX_PORTS {
            return None;
        }
        ports.extend(range);
    }
    let services = description.loopback.iter().map(|service| service.host_port);
    ports.extend(services);
    ports.extend(description.models.iter().flat_map(|models| &models.ports));
    ports.extend(description.resolvers.iter().map(|resolver| resolver.port()));
    Some(ports)
}

/// As many descriptors as the tables have places.
fn descriptors(description: &NetworkDescription) -> u64 {
    let flows = udp::MAX_FLOWS + dns::MAX_PENDING + usize::from(description.max_connections);
    let web = match description.web {
        Some(_) => bulkhead_proxy::MAX_CONNECTIONS * PER_WEB_CONNECTION,
        None => 0,
    };
    let models = match description.models {
        Some(_) => models::MAX_CONNECTIONS * PER_MODEL_CONNECTION,
        None => 0,
    };
    (flows + web + models) as u64 + description.forwards.len() as u64 + OTHER_DESCRIPTORS
}
