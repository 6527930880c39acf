//! The ninth rule: a lifetime without end takes the approval of a second person.

use super::{Case, Rejection, Rule};
use crate::mandate::Lifetime;
use bulkhead_signature::Trusted;

/// Two keys have signed it, and one of them is trusted with approvals.
pub(super) fn check(case: &Case<'_>, signers: &[&Trusted]) -> Result<(), Box<Rejection>> {
    let approved = signers.len() >= 2 && signers.iter().any(|signer| signer.approves);
    if case.mandate().lifetime != Lifetime::Unlimited || approved {
        return Ok(());
    }
    let message = "a lifetime without end takes a second signature, of an approver".to_owned();
    let help = "have it signed once more: bulkhead manifest sign FILE.json --key APPROVER";
    let span = case.manifest.spans().lifetime.clone();
    Err(case.reject(Rule::Approval, "lifetime.unlimited", span, message, help))
}
