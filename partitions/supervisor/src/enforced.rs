//! What of a manifest nobody holds a partition to yet: it is refused, not ignored.

use crate::error::Error;
use bulkhead_manifest::Partition;

/// Refuses a partition whose mandate says something that nothing would enforce.
pub(crate) fn check(partition: &Partition) -> Result<(), Error> {
    let Some(mandate) = &partition.mandate else {
        return Ok(());
    };
    let budget = mandate.budget.amounts();
    let amount = budget.into_iter().find(|(_, amount)| amount.is_some());
    let what = if !mandate.secrets.is_empty() {
        "secrets".to_owned()
    } else if mandate.tool_limits.is_some() {
        "tools.limits".to_owned()
    } else if let Some((key, _)) = amount {
        format!("budget.{key}")
    } else {
        return Ok(());
    };
    Err(Error::NotEnforced(what))
}
