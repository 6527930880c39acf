//! What of a manifest nobody holds a partition to yet: it is refused, not ignored.

use crate::error::Error;
use bulkhead_capability::Capability;
use bulkhead_manifest::{Kernel, LinuxBoot, Partition};

/// Whether the guest learns of environment variables.
fn tells_environment(partition: &Partition) -> bool {
    let Kernel::Linux { boot, .. } = &partition.kernel else {
        return false;
    };
    matches!(boot, LinuxBoot::Command(_))
}

/// Refuses a partition whose mandate, or whose conditions if it has any, say something that nothing would
/// enforce.
pub(crate) fn check(partition: &Partition, has_conditions: bool) -> Result<(), Error> {
    let spawns = |held: &Capability| matches!(held, Capability::PartitionSpawn(_));
    if has_conditions && partition.grants.capabilities().any(spawns) {
        return Err(Error::NotEnforced(
            "a condition on partition.spawn".to_owned(),
        ));
    }
    let Some(mandate) = &partition.mandate else {
        return Ok(());
    };
    let budget = mandate.budget.amounts();
    // The gateway counts bytes, its router of models tokens and money; who has no network and may call
    // no model spends none.
    let counted = |key: &str| matches!(key, "bytes" | "tokens" | "money");
    let amount = budget
        .into_iter()
        .find(|(key, amount)| amount.is_some() && !counted(key));
    let has_variable = mandate.secrets.iter().any(|secret| secret.env.is_some());
    let what = if has_variable && !tells_environment(partition) {
        "secrets.env of a partition without a command".to_owned()
    } else if let Some((key, _)) = amount {
        format!("budget.{key}")
    } else {
        return Ok(());
    };
    Err(Error::NotEnforced(what))
}
