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
    let has_variable = mandate.secrets.iter().any(|secret| secret.env.is_some());
    match has_variable && !tells_environment(partition) {
        true => Err(Error::NotEnforced(
            "secrets.env of a partition without a command".to_owned(),
        )),
        false => Ok(()),
    }
}
