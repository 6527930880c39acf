//! What of a manifest nobody holds a partition to yet: it is refused, not ignored.

use crate::error::Error;
use bulkhead_manifest::{Kernel, LinuxBoot, Partition};

/// Whether the guest learns of environment variables.
fn tells_environment(partition: &Partition) -> bool {
    let Kernel::Linux { boot, .. } = &partition.kernel else {
        return false;
    };
    matches!(boot, LinuxBoot::Command(_))
}

/// Refuses a partition whose mandate says something that nothing would enforce.
pub(crate) fn check(partition: &Partition) -> Result<(), Error> {
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
