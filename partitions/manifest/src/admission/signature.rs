//! The second rule: a trusted operator has signed it.

use super::{Case, Proof, Rejection, Rule};
use crate::document::PAYLOAD_TYPE;
use bulkhead_signature::Trusted;

/// The trusted keys that signed it.
pub(super) fn check<'t>(
    case: &Case<'_>,
    proof: Proof<'_>,
    trusted: &'t [Trusted],
) -> Result<Vec<&'t Trusted>, Box<Rejection>> {
    let reject = |message: String, help: &str| {
        Err(case.reject(Rule::Signature, "identity", None, message, help))
    };
    let envelope = match proof {
        Proof::Signed(envelope) => envelope,
        Proof::Vouched => return Ok(Vec::new()),
        Proof::None => {
            let message = "the manifest is not signed".to_owned();
            let help = "sign it: bulkhead manifest sign FILE --key NAME; or say --unsigned";
            return reject(message, help);
        }
    };
    if envelope.unverified_payload() != case.manifest.document() {
        let message = "the envelope holds another manifest".to_owned();
        return reject(message, "hand in the envelope itself");
    }
    envelope.verify(PAYLOAD_TYPE, trusted).or_else(|error| {
        reject(
            error.to_string(),
            "`bulkhead key ls` says whose signatures count",
        )
    })
}
