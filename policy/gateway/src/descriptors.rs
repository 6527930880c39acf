//! The descriptors that a description names: what this process keeps of those that it was started with.

use bulkhead_network::{Fd, NetworkDescription};

/// All of them.
pub(crate) fn named(description: &NetworkDescription) -> impl Iterator<Item = Fd> {
    let forwards = description.forwards.iter().map(|forward| forward.listener);
    let web = description.web.iter();
    let web = web.flat_map(|web| web.trust.iter().copied().chain([web.authority]));
    let secrets = description.secrets.iter().map(|secret| secret.value);
    forwards
        .chain(web)
        .chain(secrets)
        .chain(
            description
                .models
                .iter()
                .flat_map(|models| [models.file, models.spent]),
        )
        .chain(description.used)
        .chain(description.approvals)
        .chain(description.ledger)
        .chain(description.conditions)
        .chain(description.control)
        .chain(description.tools)
        .chain([description.link])
}
